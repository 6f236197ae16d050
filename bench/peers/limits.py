"""The hardware's own calls: what each system is held against."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .contract import Fields, Rows, Seen, columns_of, is_one_array, look_all_the_time, one_array

NAME = "limit"
PACKAGES = ("torch",)
HOW = (
    "`os.pwrite` at the end of a file a column, space allocated ahead, nothing that says how many rows there are; "
    "with sync, one `fdatasync` a column. Many producers are one loop, merging is `shutil.copyfile`. Reads: `index_select` "
    "and slices of tensors in memory, or from the disk `os.preadv`. Another process asks `fstat` all the time."
)

libc = ctypes.CDLL(None)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
FALLOC_FL_KEEP_SIZE = 1


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        path.mkdir()
        self.path = path
        self.sync, self.columns, self.offsets = sync, {}, dict.fromkeys(fields, 0)
        for name, (dtype, shape) in fields.items():
            self.row_nbytes = torch.empty(shape, dtype=getattr(torch, dtype)).nbytes  # of the last column, in the end
            self.columns[name] = os.open(path / name, os.O_CREAT | os.O_RDWR)
            libc.fallocate(self.columns[name], FALLOC_FL_KEEP_SIZE, 0, capacity_rows * self.row_nbytes)
        self.nbytes = capacity_rows * self.row_nbytes
        if is_one_array(fields) and not sync:
            self.fd, self.offset = self.columns["rows"], 0
            self.append = self._append_one

    def _append_one(self, rows: torch.Tensor) -> None:
        self.offset += os.pwrite(self.fd, rows.numpy(), self.offset)

    def append(self, rows: Rows) -> None:
        for name, column in columns_of(rows).items():
            self.offsets[name] += os.pwrite(self.columns[name], column.numpy(), self.offsets[name])
        if self.sync:
            for fd in self.columns.values():
                os.fdatasync(fd)

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        os.pwrite(self.fd, rows.numpy(), first_row * self.row_nbytes)

    def extend(self, path: Path) -> None:
        shutil.copyfile(path / "rows", self.path / "rows")

    def close(self) -> None:
        for fd in self.columns.values():
            os.close(fd)


class Ring(Writer):
    def _append_one(self, rows: torch.Tensor) -> None:
        self.offset = (self.offset + os.pwrite(self.fd, rows.numpy(), self.offset)) % self.nbytes


class Producers(Writer):
    """All that n producers append, by one."""

    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool, producers: int) -> None:
        super().__init__(path, fields, capacity_rows, sync)

    def append_all(self, rows: torch.Tensor, count: int) -> None:
        for _ in range(count):
            self.append(rows)


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.columns = {}
        for name, (dtype, shape) in fields.items():
            data = bytearray((path / name).read_bytes())
            self.columns[name] = torch.frombuffer(data, dtype=getattr(torch, dtype)).view(-1, *shape).clone()
        self.one = self.columns["rows"] if is_one_array(fields) else None

    def row(self, index: int) -> Rows:
        if self.one is not None:
            return self.one[index].clone()
        return {name: column[index].clone() for name, column in self.columns.items()}

    def batch(self, indices: torch.Tensor) -> Rows:
        if self.one is not None:
            return self.one.index_select(0, indices)
        return {name: column.index_select(0, indices) for name, column in self.columns.items()}

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        assert self.one is not None
        for start in range(0, len(self.one), chunk_rows):
            yield self.one[start : start + chunk_rows]

    def close(self) -> None:
        pass


class DiskReader:
    """One array, read by the system's own calls each time."""

    def __init__(self, path: Path, fields: Fields) -> None:
        dtype, self.shape = one_array(fields)
        self.dtype = getattr(torch, dtype)
        self.fd = os.open(path / "rows", os.O_RDONLY)
        self.row_nbytes = torch.empty(self.shape, dtype=self.dtype).nbytes
        self.rows = os.fstat(self.fd).st_size // self.row_nbytes

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(indices), *self.shape, dtype=self.dtype)
        for row, index in zip(out.numpy(), indices.tolist(), strict=True):
            os.preadv(self.fd, [row], index * self.row_nbytes)
        return out

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        buffer = torch.empty(chunk_rows, *self.shape, dtype=self.dtype)
        for start in range(0, self.rows, chunk_rows):
            nbytes = os.preadv(self.fd, [buffer.numpy()], start * self.row_nbytes)
            yield buffer[: nbytes // self.row_nbytes]

    def close(self) -> None:
        os.close(self.fd)


def opening(path: Path, fields: Fields, index: int) -> Callable[[Path], bytes]:
    """What opening is held against: the system's own open, read of one row, close. All else is worked out beforehand."""
    dtype, shape = fields["rows"]
    nbytes = torch.empty(shape, dtype=getattr(torch, dtype)).nbytes
    file, offset = str(path / "rows"), index * nbytes

    def open_and_read(_: Path) -> bytes:
        fd = os.open(file, os.O_RDONLY)
        data = os.pread(fd, nbytes, offset)
        os.close(fd)
        return data

    return open_and_read


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    """The shortest way there is: ask for the size of the file until it has grown."""
    dtype, shape = fields["rows"]
    nbytes = torch.empty(shape, dtype=getattr(torch, dtype)).nbytes
    fd = os.open(path / "rows", os.O_RDONLY)

    def row(index: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(os.pread(fd, nbytes, index * nbytes)), dtype=getattr(torch, dtype))

    look_all_the_time(lambda: os.fstat(fd).st_size // nbytes, row, ready, seen)
    os.close(fd)


follow = look  # nothing that waits is sooner
