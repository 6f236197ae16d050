"""TorchRL's replay buffer over memory-mapped storage."""

from __future__ import annotations

import os
import shutil
import tempfile
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
    "capacity. Reads: `buffer[indices]` of one restored by `loads`; others see what `dumps` left, not the live buffer."
)
GIVES_UP = "growth beyond its capacity, readers in other processes, a commit; after a crash there is what `dumps` left."


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "a mapping that it offers no call to sync")
        self.path = path
        path.mkdir()
        (path / "capacity").write_text(str(capacity_rows))
        storage = LazyMemmapStorage(capacity_rows, scratch_dir=path / "dumped" / "storage")  # where dumps need not copy
        self.buffer = ReplayBuffer(storage=storage, batch_size=256)

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
        self.loaded = Path(tempfile.mkdtemp(prefix="loaded-", dir=path))
        storage = LazyMemmapStorage(int((path / "capacity").read_text()), scratch_dir=self.loaded)
        self.buffer = ReplayBuffer(storage=storage, batch_size=256)
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
        shutil.rmtree(self.loaded)
