"""HDF5 through h5py in SWMR mode: one writer, many readers, one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from .contract import Fields, Rows, Seen, columns_of, is_one_array, look_all_the_time

NAME = "h5py (SWMR)"
PACKAGES = ("h5py",)
HOW = (
    "`libver='latest'`, `swmr_mode`, a resizable dataset a field in chunks of about 128 KiB of whole rows, no filter; "
    "`resize`, assign, `flush`, by which SWMR readers see it; sync: `fsync` of the file. Batches: sorted unique indices, "
    "as h5py asks."
)
GIVES_UP = "one commit for several fields, rows that are views; after a crash a flag may have to be cleared by a tool."
CHUNK_NBYTES = 128 << 10


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        self.file = h5py.File(path, "w", libver="latest")
        for name, (dtype, shape) in fields.items():
            chunk_rows = max(1, CHUNK_NBYTES // (np.dtype(dtype).itemsize * int(np.prod(shape))))
            self.file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(min(chunk_rows, 4096), *shape)
            )
        self.file.swmr_mode = True
        self.datasets, self.rows = {name: self.file[name] for name in fields}, 0
        self.sync_fd = self.file.id.get_vfd_handle() if sync else None

    def append(self, rows: Rows) -> None:
        for name, column in columns_of(rows).items():
            dataset, stop = self.datasets[name], self.rows + len(column)
            dataset.resize(stop, axis=0)
            dataset[self.rows : stop] = column.numpy()
            dataset.flush()
        self.rows = stop
        if self.sync_fd is not None:
            os.fsync(self.sync_fd)

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.datasets["rows"][first_row : first_row + len(rows)] = rows.numpy()
        self.datasets["rows"].flush()

    def close(self) -> None:
        self.file.close()


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.file = h5py.File(path, "r", libver="latest", swmr=True)
        self.datasets = {name: self.file[name] for name in fields}
        self.one = self.datasets["rows"] if is_one_array(fields) else None

    def row(self, index: int) -> Rows:
        if self.one is not None:
            return torch.from_numpy(self.one[index])
        return {name: torch.from_numpy(np.asarray(dataset[index])) for name, dataset in self.datasets.items()}

    def batch(self, indices: torch.Tensor) -> Rows:
        unique, inverse = np.unique(indices.numpy(), return_inverse=True)
        columns = {name: torch.from_numpy(dataset[unique][inverse]) for name, dataset in self.datasets.items()}
        return columns["rows"] if self.one is not None else columns

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.one), chunk_rows):
            yield torch.from_numpy(self.one[start : start + chunk_rows])

    def close(self) -> None:
        self.file.close()


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        dataset = file["rows"]

        def count_rows() -> int:
            dataset.refresh()
            return len(dataset)

        look_all_the_time(count_rows, lambda index: torch.from_numpy(dataset[index]), ready, seen)
