"""TorchRL's replay buffer over memory-mapped storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, ReplayBuffer

from .contract import Fields, Rows, columns_of, is_one_array, refuse_sync

NAME = "TorchRL memmap"
PACKAGES = ("torchrl", "tensordict", "torch")
HOW = (
    "`ReplayBuffer(storage=LazyMemmapStorage(capacity, scratch_dir=…))` and `extend` with TensorDicts: a ring of fixed "
    "capacity, in the folder where `dumps` looks for it, so that nothing is copied. Reads: `loads` into a storage of that "
    "folder, which maps it, then `buffer[indices]`; others see what `dumps` left, not the live buffer."
)
GIVES_UP = (
    "growth beyond its capacity, a commit, readers that see the live buffer: its rows are in shared files at once, how many "
    "there are only after `dumps`, which comes when the store is closed and is in none of these times; no checksums, no sync."
)


def storage_in(path: Path, capacity_rows: int) -> LazyMemmapStorage:
    """Where `dumps` and `loads` of that path need not copy."""
    return LazyMemmapStorage(capacity_rows, scratch_dir=path / "dumped" / "storage")


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "a mapping that it offers no call to sync")
        self.path = path
        path.mkdir()
        (path / "capacity").write_text(str(capacity_rows))
        self.buffer = ReplayBuffer(storage=storage_in(path, capacity_rows), batch_size=256)

    def append(self, rows: Rows) -> None:
        columns = columns_of(rows)
        self.buffer.extend(TensorDict(columns, [len(next(iter(columns.values())))]))

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.buffer[first_row : first_row + len(rows)] = TensorDict({"rows": rows}, [len(rows)])

    def close(self) -> None:
        self.buffer.dumps(self.path / "dumped")
        del self.buffer


Ring = Writer  # its storage begins again at its first row when it is full


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        capacity_rows = int((path / "capacity").read_text())
        self.buffer = ReplayBuffer(storage=storage_in(path, capacity_rows), batch_size=256)
        self.buffer.loads(path / "dumped")
        self.one = is_one_array(fields)

    def row(self, index: int) -> Rows:
        row = self.buffer[index].clone()
        return row["rows"] if self.one else row

    def batch(self, indices: torch.Tensor) -> Rows:
        batch = self.buffer[indices]
        return batch["rows"] if self.one else batch

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.buffer), chunk_rows):
            yield self.buffer[start : start + chunk_rows]["rows"]

    def close(self) -> None:
        del self.buffer
