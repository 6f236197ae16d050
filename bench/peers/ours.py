"""tensorblob as it is in this repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

import tensorblob as tb

from .contract import Fields, is_one_array

NAME = "tensorblob"
PACKAGES = ("tensordict", "torch")
HOW = (
    "`TensorBlob.open(…, 'w')` and `write`, which commits with checksums; sync: `durability='power'`. Reads: `blob[i]`, "
    "`gather`, views."
)


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        dtype, shape = fields.get("rows", (None, None))
        kind = {"dtype": dtype, "shape": shape} if is_one_array(fields) else {"schema": fields}
        self.blob = tb.TensorBlob.open(path, "w", durability="power" if sync else "process", **kind)
        self.append = self.blob.write

    def close(self) -> None:
        self.blob.close()


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.blob = tb.TensorBlob.open(path)
        self.row = self.blob.__getitem__
        self.batch = self.blob.gather

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.blob), chunk_rows):
            yield self.blob.view(start, min(start + chunk_rows, len(self.blob)))

    def close(self) -> None:
        self.blob.close()
