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
    "`libver='latest'`, `swmr_mode`, a resizable dataset a field in chunks of at most 128 KiB and a power of two rows, no "
    "filter; `resize`, assign, `flush`, by which SWMR readers see it; sync: `fdatasync` of the file. Readers have no chunk "
    "cache, so that a row is read without its chunk. Batches: large rows one by one, small ones by sorted unique indices."
)
GIVES_UP = "one commit for several fields, rows that are views; after a crash a flag may have to be cleared by a tool."
CHUNK_NBYTES = 128 << 10
LARGE_ROW_NBYTES = 1 << 10  # those are sooner read one by one: indices cost more than calls from there on


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        self.file = h5py.File(path, "w", libver="latest")
        for name, (dtype, shape) in fields.items():
            fit = min(4096, max(1, CHUNK_NBYTES // (np.dtype(dtype).itemsize * int(np.prod(shape)))))
            chunk_rows = 1 << (fit.bit_length() - 1)
            self.file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk_rows, *shape))
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
            os.fdatasync(self.sync_fd)

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.datasets["rows"][first_row : first_row + len(rows)] = rows.numpy()
        self.datasets["rows"].flush()

    def close(self) -> None:
        self.file.close()


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.file = h5py.File(path, "r", libver="latest", swmr=True, rdcc_nbytes=0)
        self.datasets = {name: self.file[name] for name in fields}
        self.one = self.datasets["rows"] if is_one_array(fields) else None

    def row(self, index: int) -> Rows:
        if self.one is not None:
            return torch.from_numpy(self.one[index])
        return {name: torch.from_numpy(np.asarray(dataset[index])) for name, dataset in self.datasets.items()}

    def batch(self, indices: torch.Tensor) -> Rows:
        columns = {name: torch.from_numpy(self._picked(dataset, indices)) for name, dataset in self.datasets.items()}
        return columns["rows"] if self.one is not None else columns

    def _picked(self, dataset: h5py.Dataset, indices: torch.Tensor) -> np.ndarray:
        row_shape = dataset.shape[1:]
        if dataset.dtype.itemsize * np.prod(row_shape) < LARGE_ROW_NBYTES:
            unique, inverse = np.unique(indices.numpy(), return_inverse=True)
            return dataset[unique][inverse]
        rows = np.empty((len(indices), *row_shape), dataset.dtype)
        for row, index in zip(rows, indices.tolist(), strict=True):
            row[...] = dataset[index]
        return rows

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.one), chunk_rows):
            yield torch.from_numpy(self.one[start : start + chunk_rows])

    def close(self) -> None:
        self.file.close()


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    with h5py.File(path, "r", libver="latest", swmr=True, rdcc_nbytes=0) as file:
        dataset = file["rows"]

        def count_rows() -> int:
            dataset.refresh()
            return len(dataset)

        look_all_the_time(count_rows, lambda index: torch.from_numpy(dataset[index]), ready, seen)
