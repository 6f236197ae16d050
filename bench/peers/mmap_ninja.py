"""mmap-ninja: NumPy memory maps that can be extended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmap_ninja import numpy as np_ninja

from .contract import Fields, one_array, refuse_sync

NAME = "mmap-ninja"
PACKAGES = ("mmap-ninja",)
HOW = (
    "`numpy.from_ndarray`, then `extend`, which appends to the file and rewrites the one that holds the shape; "
    "a reader opens anew to see more. Overwriting: assigning to one map that is kept. Reads: NumPy indexing of the map."
)
GIVES_UP = "more than one array, a commit (the shape is rewritten in place), checksums, sync."


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "`extend` flushes to the system, it does not sync")
        one_array(fields)
        self.path, self.map = path, None
        self.all: np.memmap | None = None

    def append(self, rows: torch.Tensor) -> None:
        self.all = None
        if self.map is None:
            self.map = np_ninja.from_ndarray(self.path, rows.numpy())
        else:
            np_ninja.extend(self.map, rows.numpy())

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        if self.all is None:
            self.all = np_ninja.open_existing(self.path, mode="r+")
        self.all[first_row : first_row + len(rows)] = rows.numpy()

    def close(self) -> None:
        del self.map, self.all


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.map = np_ninja.open_existing(path)

    def row(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.map[index]))

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.map[indices.numpy()])

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.map), chunk_rows):
            yield torch.from_numpy(self.map[start : start + chunk_rows])

    def close(self) -> None:
        del self.map
