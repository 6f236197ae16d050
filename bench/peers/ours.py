"""tensorblob as it is in this repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import torch

import tensorblob as tb

from .contract import Fields, Seen, is_one_array, look_all_the_time

NAME = "tensorblob"
PACKAGES = ("tensordict", "torch")
HOW = (
    "`TensorBlob.open(…, 'w')` and `write`, which commits with checksums; sync: `durability='power'`. Reads: `blob[i]`, "
    "`gather`, views; another process follows with `open_reader` and `follow`, which sleeps until there is more."
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


def follow(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    async def run() -> None:
        async with tb.open_reader(path) as reader:
            follower = reader.follow(start="now")
            ready()
            async for batch in follower:
                if any(seen(row) for row in batch):
                    return

    anyio.run(run)


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    with tb.TensorBlob.open(path) as blob:

        def count_rows() -> int:
            blob.refresh()
            return len(blob)

        look_all_the_time(count_rows, blob.__getitem__, ready, seen)
