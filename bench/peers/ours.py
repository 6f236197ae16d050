"""tensorblob as it is in this repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import torch
from anyio.from_thread import start_blocking_portal

import tensorblob as tb

from .contract import Fields, Seen, is_one_array, look_all_the_time

NAME = "tensorblob"
PACKAGES = ("tensordict", "torch")
HOW = (
    "`TensorBlob.open(…, 'w')` and `write`, which commits with checksums; sync: `durability='power'`; a ring: `max_rows`; "
    "overwriting: `seek`, `write`. Many producers are tasks that await `append` of one `open_writer`. Reads: `blob[i]`, "
    "`gather`, views; another process follows with `open_reader` and `follow`, which sleeps until there is more."
)


def options_of(fields: Fields, sync: bool) -> dict[str, Any]:
    dtype, shape = fields.get("rows", (None, None))
    kind = {"dtype": dtype, "shape": shape} if is_one_array(fields) else {"schema": fields}
    return kind | {"durability": "power" if sync else "process"}


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool, **more: Any) -> None:
        self.blob = tb.TensorBlob.open(path, "w", **options_of(fields, sync), **more)
        self.append, self.extend = self.blob.write, self.blob.extend

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.blob.seek(first_row)
        self.blob.write(rows)

    def close(self) -> None:
        self.blob.close()


class Ring(Writer):
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, capacity_rows, sync, max_rows=capacity_rows)


def writer_of_blocks(path: Path, fields: Fields, block_rows: int) -> Writer:
    return Writer(path, fields, 0, False, block_rows=block_rows)


class Producers:
    """Tasks that share one writer."""

    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool, producers: int) -> None:
        self.producers, self.stack = producers, ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        opened = tb.open_writer(path, **options_of(fields, sync))
        self.writer = self.stack.enter_context(self.portal.wrap_async_context_manager(opened))

    def append_all(self, rows: torch.Tensor, count: int) -> None:
        self.portal.call(self._append_all, rows, count)

    async def _append_all(self, rows: torch.Tensor, count: int) -> None:
        async def produce() -> None:
            for _ in range(count // self.producers):
                await self.writer.append(rows)

        async with anyio.create_task_group() as tasks:
            for _ in range(self.producers):
                tasks.start_soon(produce)

    def close(self) -> None:
        self.stack.close()


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
