"""tensordict's memory-mapped tensors: files of a size fixed when they are created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tensordict import MemoryMappedTensor, TensorDict

from .contract import Fields, Rows, Seen, is_one_array, look_all_the_time, refuse_sync

NAME = "tensordict memmap"
PACKAGES = ("tensordict", "torch")
HOW = (
    "`MemoryMappedTensor.empty` of the full capacity (several fields: `TensorDict.memmap_like`), assigned to by slices. It "
    "does not grow, so a second mapped tensor of one element says how many rows are there: that is all its commit is."
)
GIVES_UP = "growth, and a commit: rows and count may reach the disk in any order; no checksums, no sync."


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "a mapping that it offers no call to sync")
        path.mkdir()
        self.capacity_rows, self.rows = capacity_rows, 0
        if is_one_array(fields):
            dtype, shape = fields["rows"]
            self.data = MemoryMappedTensor.empty(
                (capacity_rows, *shape), dtype=getattr(torch, dtype), filename=path / "rows"
            )
        else:
            row = TensorDict({name: torch.zeros(shape, dtype=getattr(torch, d)) for name, (d, shape) in fields.items()})
            self.data = row.expand(capacity_rows).memmap_like(path / "rows")
        self.count = MemoryMappedTensor.empty((1,), dtype=torch.int64, filename=path / "count")
        (path / "capacity").write_text(str(capacity_rows))

    def append(self, rows: Rows) -> None:
        added = len(rows) if isinstance(rows, torch.Tensor) else len(next(iter(rows.values())))
        if self.rows + added > self.capacity_rows:
            self.rows = 0
        if isinstance(rows, torch.Tensor):
            self.data[self.rows : self.rows + added] = rows
        else:
            self.data[self.rows : self.rows + added] = TensorDict(rows, [added])
        self.rows += added
        self.count.fill_(self.rows)

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.data[first_row : first_row + len(rows)] = rows

    def close(self) -> None:
        del self.data, self.count


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        if is_one_array(fields):
            dtype, shape = fields["rows"]
            size = (int((path / "capacity").read_text()), *shape)
            data = MemoryMappedTensor.from_filename(path / "rows", dtype=getattr(torch, dtype), shape=torch.Size(size))
        else:
            data = TensorDict.load_memmap(path / "rows")
        count = MemoryMappedTensor.from_filename(path / "count", dtype=torch.int64, shape=torch.Size([1]))
        self.data = data[: int(count)]
        self.batch = self.data.__getitem__

    def row(self, index: int) -> Rows:
        return self.data[index].clone()

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.data), chunk_rows):
            yield self.data[start : start + chunk_rows]

    def close(self) -> None:
        del self.data, self.batch


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    dtype, shape = fields["rows"]
    size = torch.Size((int((path / "capacity").read_text()), *shape))
    data = MemoryMappedTensor.from_filename(path / "rows", dtype=getattr(torch, dtype), shape=size)
    count = MemoryMappedTensor.from_filename(path / "count", dtype=torch.int64, shape=torch.Size([1]))
    look_all_the_time(lambda: int(count), data.__getitem__, ready, seen)
