"""The tensorblob that is published, 0.3.0."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from tensorblob import TensorBlob, TensorDB  # the published one

from .contract import Fields, Rows, is_one_array, refuse_sync

if not version("tensorblob").startswith("0.3."):
    raise ModuleNotFoundError("tensorblob 0.3 is not what this interpreter has")

NAME = "tensorblob 0.3.0"
PACKAGES = ("tensorblob", "tensordict", "torch")
HOW = (
    "`write`, then `flush`, which rewrites the status file that readers open by; `TensorDB` for several fields; `extend` as "
    "it is by default, which copies whole blocks."
)
GIVES_UP = "a commit that a crash cannot tear (the status file is rewritten in place), checksums, sync."


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool, **more: int) -> None:
        refuse_sync(sync, "`flush` writes the status file; nothing is synced")
        if is_one_array(fields):
            dtype, shape = fields["rows"]
            self.blob = TensorBlob.open(str(path), "w", dtype=dtype, shape=tuple(shape), **more)
        else:
            self.blob = TensorDB.open(str(path), "w", schema={n: (d, tuple(s) or 1) for n, (d, s) in fields.items()})

    def append(self, rows: torch.Tensor) -> None:
        self.blob.write(rows)
        self.blob.flush()

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.blob.seek(first_row)
        self.append(rows)

    def extend(self, path: Path) -> None:
        with TensorBlob.open(str(path), "r") as other:
            self.blob.extend(other)

    def close(self) -> None:
        self.blob.close()


def writer_of_blocks(path: Path, fields: Fields, block_rows: int) -> Writer:
    return Writer(path, fields, 0, False, block_size=block_rows)


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.blob = (TensorBlob if is_one_array(fields) else TensorDB).open(str(path), "r")
        self.scalars = [
            name for name, (_, shape) in fields.items() if not shape
        ]  # it keeps them as rows of one element
        self.row = self.batch = self.blob.__getitem__ if not self.scalars else self._fields

    def _fields(self, index: int | torch.Tensor) -> Rows:
        rows = self.blob[index]
        for name in self.scalars:
            rows[name] = rows[name].squeeze(-1)
        return rows

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        self.blob.seek(0)
        for _ in range(0, len(self.blob), chunk_rows):
            yield self.blob.read(chunk_rows)

    def close(self) -> None:
        self.blob.close()
