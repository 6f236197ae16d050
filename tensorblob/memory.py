"""One tensor over many files: the rows of a column at one range of addresses.

For each column a reader reserves a large range of address space and maps every span at its place in it. Spans begin
and end on whole pages except at a seam, so committed rows are one contiguous `torch.Tensor` however many files hold
them. A `Layout` says where the spans of a column lie; blocks are mapped on first use.

There are two layouts over the same files. What we copy from is a read-only shared map that never leaves us. What
`view` hands out is a private (copy-on-write) map: a stray in-place op can neither crash nor reach the disk nor change
what others read.

Invariants: an address range that someone may read keeps meaning the same rows (a layout whose spans moved reserves a
new range); a file is mapped only after its size was checked, and only committed rows are touched, so no access can
fault; a range is unmapped when the last tensor over it and the last layout that holds it are gone. The reservation is
aligned to 2 MiB, and blocks are whole 2 MiB where they can be, so that the kernel maps the page cache by huge pages.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tensorblob import files, forks
from tensorblob.edit import Span
from tensorblob.errors import Corrupt, UnsupportedFormat
from tensorblob.format import block_path
from tensorblob.residency import SAMPLE_ROWS, Look, Residency
from tensorblob.schema import HUGE_PAGE_NBYTES, PAGE_NBYTES, Field
from tensorblob.snapshot import Column, Placed

RESERVE_NBYTES = 64 << 30
MIN_RESERVE_NBYTES = 16 << 20
MAX_RESERVE_NBYTES = 1 << 56
READ_SPANS = 16
"""To read from a block by itself, and close it, takes about as long as to place so many spans."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40
_MAP_ANONYMOUS = mmap.MAP_ANONYMOUS
_NOTHING = mmap.MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
_MADV_WILLNEED = 3
_MADV_DONTNEED = 4
_NOWHERE = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise = _libc.mmap, _libc.munmap, _libc.madvise
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_PLAIN = {
    getattr(torch, name)
    for name in (
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
        "bool",
        "complex64",
        "complex128",
    )
}


def carrier_dtype(dtype: torch.dtype) -> torch.dtype:
    """A dtype of the same itemsize that numpy knows and every torch copy and gather is implemented for."""
    return dtype if dtype in _PLAIN else _CARRIERS[dtype.itemsize]


def numpy_dtype(field: Field) -> np.dtype[Any]:
    """The numpy dtype of the field's carrier."""
    return np.dtype(_TYPESTR[carrier_dtype(field.torch_dtype)])


class ReservationRefused(MemoryError):
    """The kernel gave no address space (RLIMIT_AS, strict overcommit), or no more mappings; read without."""


@functools.cache
def max_map_count() -> int:
    """How many mappings the kernel allows this process."""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 65_530


class Reservation:
    """A range of addresses, aligned to 2 MiB unless said otherwise, unmapped when nothing refers to it any more."""

    def __init__(self, nbytes: int, alignment: int = HUGE_PAGE_NBYTES) -> None:
        self._nbytes = nbytes + (alignment if alignment > PAGE_NBYTES else 0)
        if self._nbytes > MAX_RESERVE_NBYTES:
            raise ReservationRefused(f"No machine has address space for {nbytes} bytes")
        flags = mmap.MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        base = _mmap(None, self._nbytes, 0, flags, -1, 0)
        if base == _NOWHERE:
            raise ReservationRefused(f"No address space for {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
        self._base = base
        self.address = -(-base // alignment) * alignment
        self.nbytes = nbytes

    @classmethod
    def at_least(cls, nbytes: int) -> Reservation:
        """Reserve generously for a range of `nbytes` that will grow; less where the kernel refuses."""
        want = max(RESERVE_NBYTES, 4 * nbytes)
        while True:
            try:
                return cls(want)
            except ReservationRefused:
                if want <= max(nbytes, MIN_RESERVE_NBYTES):
                    raise
                want = max(want // 4, nbytes, MIN_RESERVE_NBYTES)

    def __del__(self, munmap: Any = _munmap) -> None:
        if (base := getattr(self, "_base", None)) is not None:
            munmap(base, self._nbytes)


class Mapping:
    """A part of a reservation that shows a file, given back to the reservation when nothing refers to it any more."""

    __slots__ = ("address", "nbytes", "reservation")
    live = 0
    """How many there are in this process."""

    def __init__(self, reservation: Reservation, offset: int, nbytes: int, fd: int, at: int, *, private: bool) -> None:
        """Raises `ReservationRefused` where half of the mappings that the kernel allows a process are in use."""
        assert offset % PAGE_NBYTES == 0 == at % PAGE_NBYTES, "maps are of whole pages"
        assert offset >= 0 and offset + nbytes <= reservation.nbytes, "maps lie within their reservation"
        if Mapping.live >= max_map_count() // 2:
            raise ReservationRefused(f"This process has {Mapping.live} blocks mapped: the rest is for others")
        self.reservation = reservation
        self.nbytes = nbytes
        address = reservation.address + offset
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if private else 0)
        flags = (mmap.MAP_PRIVATE | _MAP_NORESERVE if private else mmap.MAP_SHARED) | _MAP_FIXED
        if _mmap(address, nbytes, protection, flags, fd, at) != address:
            code = ctypes.get_errno()
            if code == errno.ENOMEM:
                raise ReservationRefused(f"Cannot map a block: {os.strerror(code)}")
            raise OSError(code, f"Cannot map a block: {os.strerror(code)}; try max_cached_blocks= or io='pread'")
        self.address = address
        Mapping.live += 1

    def shrink(self, nbytes: int) -> None:
        """Give the pages beyond `nbytes` back to the reservation: another file will be shown there."""
        kept = -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES
        if kept < self.nbytes:
            _mmap(self.address + kept, self.nbytes - kept, 0, _NOTHING, -1, 0)
            self.nbytes = kept

    def __del__(self, mmap_: Any = _mmap, nothing: int = _NOTHING) -> None:
        if (address := getattr(self, "address", None)) is not None:
            mmap_(address, self.nbytes, 0, nothing, -1, 0)
            type(self).live -= 1


class _Memory:
    """What numpy needs to see an address range as an array; it keeps alive what the range depends on."""

    __slots__ = ("__array_interface__", "keep")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: torch.dtype, keep: object) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": _TYPESTR[dtype], "version": 3}
        self.keep = keep


_TYPESTR = {dtype: torch.empty(0, dtype=dtype, device="cpu").numpy().dtype.str for dtype in _PLAIN}


def tensor_at(address: int, rows: int, field: Field, keep: object) -> torch.Tensor:
    """Return a tensor of shape (rows, *field.shape), of the field's carrier dtype, over memory that stays as `keep`
    does.
    """
    carrier = carrier_dtype(field.torch_dtype)
    return torch.from_numpy(np.asarray(_Memory(address, (rows, *field.shape), carrier, keep)))


def open_block(dir_fd: int, field: Field, block: str, rows: int) -> int:
    """Open a block that must hold `rows` rows; a missing or short one is `Corrupt`, and is neither created
    nor grown.
    """
    try:
        path = block_path(field, block)
    except UnsupportedFormat as error:
        raise Corrupt(str(error), path=files.path_of(dir_fd, "")) from None
    try:
        fd = files.open_file(path, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise Corrupt("A block with committed rows is missing", path=files.path_of(dir_fd, path)) from error
    try:
        size = files.size_of(fd)
        if size < rows * field.row_nbytes:
            raise Corrupt(
                f"A block holds {size} bytes of {rows * field.row_nbytes} that were committed",
                path=files.path_of(dir_fd, path),
                offset=size,
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_named(dir_fd: int, field: Field, named: dict[str, tuple[int, int]], spans: Sequence[Span]) -> None:
    """Raise `Corrupt` unless the blocks of `spans` are `named` with so many rows, and have files with so many.

    It goes before whatever takes them over into another blob: the bytes are not looked at, but theirs is not made ours.
    """
    for span in spans:
        rows, _ = named.get(span.block, (0, 0))
        if not 0 <= span.start <= span.stop <= rows:
            path = files.path_of(dir_fd, f"blocks/{field.directory}")
            raise Corrupt(f"Rows to {span.stop} of block {span.block!r} are used, it has {rows}", path=path)
    for block in {span.block for span in spans}:
        os.close(open_block(dir_fd, field, block, named[block][0]))


class Cell:
    """The place of one span: where its first row lies in the reservation, and the mapping once there is one."""

    __slots__ = ("capacity_rows", "mapping", "offset", "placed")

    def __init__(self, placed: Placed, offset: int, capacity_rows: int) -> None:
        self.placed = placed
        self.offset = offset
        self.capacity_rows = capacity_rows
        self.mapping: Mapping | None = None

    def stop_offset(self, row_nbytes: int) -> int:
        """Where the pages that its mapping needs end in the reservation."""
        stop = self.offset + (self.capacity_rows - self.placed.span.start) * row_nbytes
        return -(-stop // PAGE_NBYTES) * PAGE_NBYTES

    def end_at(self, placed: Placed, capacity_rows: int, row_nbytes: int) -> None:
        """The span is `placed` now, and its block will not grow beyond `capacity_rows`."""
        assert placed.span.stop <= capacity_rows <= self.capacity_rows, "a mapping is only ever shortened"
        self.placed, self.capacity_rows = placed, capacity_rows
        if self.mapping is not None:
            self.mapping.shrink(
                self.stop_offset(row_nbytes) - (self.mapping.address - self.mapping.reservation.address)
            )


class Layout:
    """Where the rows of one column lie in one reservation.

    `rows[i]` is the first row of `cells[i]`. `run_rows[i]` is the first row of the i-th run, of which `tables[i]` is
    one tensor from that row to beyond the last (only committed rows of it may be touched, after `ensure`).
    `residency` is what is known of whether they are in memory.

    The spans are placed at first use, all at once. Until then `patience` blocks may be read by themselves, which costs no
    more in all: so the last row of a blob is there at once, however many blocks it has.
    """

    def __init__(
        self, field: Field, dir_fd: int, column: Column, *, private: bool, share: Layout | None = None
    ) -> None:
        self.field = field
        self._dir_fd = dir_fd
        self._private = private
        self._lock: threading.Lock = forks.lock() if share is None else share._lock
        self._forks = forks.count
        self.residency = Residency()
        self._unplaced: Column | None = None
        self.patience = 0
        self.cells: list[Cell] = []
        self.rows: list[int] = []
        self.run_rows: list[int] = []
        self._run_offsets: list[int] = []
        self.unmapped = 0
        if share is None:
            nbytes = (column.stop - column.origin) * field.row_nbytes
            spans = len(column.spans) + 1
            alignment = 2 * PAGE_NBYTES * spans + min(nbytes, HUGE_PAGE_NBYTES * spans)
            capacity = (column.tail.capacity_rows if column.tail else 0) * field.row_nbytes
            self.reservation = Reservation.at_least(nbytes + capacity + alignment + HUGE_PAGE_NBYTES)
            self._unplaced = column
            self.patience = len(column.spans) // READ_SPANS
            self.unmapped = 1
        else:
            self._share(share, column)
        self._make_tables()

    def _place(self) -> None:
        """Place the spans, at first use: opening a blob does not walk them.

        Until it is done `unmapped` is not 0 and `_unplaced` not None, so other threads come here too, and wait.
        """
        with self._lock:
            if (column := self._unplaced) is not None:
                self.cells, self.rows, self.run_rows, self._run_offsets = [], [], [], []  # a fork can come in between
                self._add(list(column.placed()), column)
                self._make_tables()
                self.unmapped = len(self.cells)
                self._unplaced = None
                self.patience = 0

    def _share(self, older: Layout, column: Column) -> None:
        """Take over the cells of `older`, less those that were trimmed."""
        self.reservation = older.reservation
        first = column.origin
        count = bisect_right(older.rows, first) - 1 if older.rows else 0
        count = max(count, 0)
        self.cells, self.rows = older.cells[count:], older.rows[count:]
        self.unmapped = sum(cell.mapping is None for cell in self.cells)
        keep = max(bisect_right(older.run_rows, self.rows[0]) - 1, 0) if self.rows else 0
        self.run_rows, self._run_offsets = older.run_rows[keep:], older._run_offsets[keep:]

    # -- placing --------------------------------------------------------------------------------------------------

    def _add(self, placed: list[Placed], column: Column) -> None:
        """Place spans after the last one, whose own end is known by now."""
        row_nbytes = self.field.row_nbytes
        tail = column.tail
        for item in placed:
            span = item.span
            phase = span.start * row_nbytes % PAGE_NBYTES
            if self.cells:
                last = self.cells[-1]
                stop_offset = last.offset + (item.row - last.placed.row) * row_nbytes
                last_stop = last.placed.span.start + item.row - last.placed.row
                joins = phase == 0 and last_stop * row_nbytes % PAGE_NBYTES == 0
                if not joins:
                    is_huge = (span.stop - span.start) * row_nbytes >= HUGE_PAGE_NBYTES
                    alignment = HUGE_PAGE_NBYTES if is_huge else PAGE_NBYTES
                    stop_offset = -(-stop_offset // alignment) * alignment + phase
                offset = stop_offset
            else:
                joins, offset = False, phase
            is_tail = tail is not None and span.block == tail.id and item.row == column.tail_row
            capacity = tail.capacity_rows if is_tail and tail is not None else span.stop
            nbytes = (capacity - span.start) * row_nbytes
            assert not self.cells or offset - phase >= self.cells[-1].stop_offset(row_nbytes), "cells do not overlap"
            if offset + nbytes + PAGE_NBYTES > self.reservation.nbytes:
                raise ReservationRefused("The reservation is full")
            if not joins:
                self.run_rows.append(item.row)
                self._run_offsets.append(offset)
            self.cells.append(Cell(item, offset, capacity))
            self.rows.append(item.row)
            self.unmapped += 1

    def _make_tables(self) -> None:
        base = self.reservation
        self.tables = [
            tensor_at(base.address + offset, (base.nbytes - offset) // self.field.row_nbytes, self.field, base)
            for offset in self._run_offsets
        ]
        self.table = self.tables[0] if len(self.tables) == 1 else None
        self.table_row = self.run_rows[0] if self.run_rows else 0

    def follow(self, before: Column, after: Column) -> Layout:
        """Return a layout for `after`, given that this one is for `before`.

        The same one if rows were only appended, one that shares its maps if rows were trimmed too, else a new one in
        a new range, so that addresses already handed out keep meaning the rows of `before`.
        """
        tail, older = after.tail, before.tail
        if after.stop < before.stop:  # the rows beyond are shown by views, and others may take their place
            return Layout(self.field, self._dir_fd, after, private=self._private)
        if self._unplaced is not None or self._forks != forks.count:  # a thread may have been changing it
            layout = Layout(self.field, self._dir_fd, after, private=self._private)
            if self._unplaced is not None:
                layout.patience = min(layout.patience, self.patience)
            return layout
        if after.spans is before.spans and tail is not None and older is not None and self.cells:
            if (tail.id, tail.start) == (older.id, older.start) and older.rows > older.start:
                self._forget_scribbles(before)
                self.cells[-1].placed = next(after.placed_from(after.tail_row))
                return self
        if self.cells and (appended := self._appended(before, after)) is not None:
            layout = self
            if after.origin > self.rows[0]:
                layout = Layout(self.field, self._dir_fd, after, private=self._private, share=self)
            last = appended[0]
            is_tail = tail is not None and len(appended) == 1 and last.span.block == tail.id
            row_nbytes, runs = self.field.row_nbytes, len(layout.run_rows)
            try:
                with layout._lock:
                    capacity_rows = tail.capacity_rows if is_tail and tail is not None else last.span.stop
                    layout.cells[-1].end_at(last, capacity_rows, row_nbytes)
                    layout._add(appended[1:], after)
                    if len(layout.run_rows) != runs:
                        layout._make_tables()
            except ReservationRefused:
                return Layout(self.field, self._dir_fd, after, private=self._private)
            self._forget_scribbles(before)
            return layout
        return Layout(self.field, self._dir_fd, after, private=self._private)

    def _appended(self, before: Column, after: Column) -> list[Placed] | None:
        """The last span placed here as it is in `after`, and those that follow; None if what is placed has changed."""
        last, tail = self.cells[-1].placed, after.tail
        items = list(after.placed_from(last.row))
        if not items or items[0].row != last.row:
            return None
        first = items[0].span
        if (first.block, first.start) != (last.span.block, last.span.start) or first.stop < last.span.stop:
            return None
        if (first.stop if tail is None or tail.id != first.block else tail.capacity_rows) > self.cells[
            -1
        ].capacity_rows:
            return None
        start = bisect_right(self.rows, after.origin) - 1
        if after.origin < before.origin or start < 0:
            return None
        if after.spans.since(before.spans) is None:
            kept = [cell.placed for cell in self.cells[start:-1]]
            now = [item for item in after.spans if item.row < last.row]
            if kept != now:
                return None
        return items

    # -- mapping --------------------------------------------------------------------------------------------------

    def ensure(self, start: int, stop: int) -> None:
        """Map the blocks that hold rows `start` to `stop`."""
        if not self.unmapped or start >= stop:
            return
        if self._unplaced is not None:
            self._place()
        first = max(bisect_right(self.rows, start) - 1, 0)
        last = bisect_right(self.rows, stop - 1)
        for index in range(first, last):
            if self.cells[index].mapping is None:
                self._map(index)

    def ensure_rows(self, rows: torch.Tensor) -> None:
        """Map the blocks that hold the given row ids (int64, all committed)."""
        if not self.unmapped or not rows.numel():
            return
        if self._unplaced is not None:
            self._place()
        if len(self.cells) <= 4:
            low, high = rows.aminmax()
            self.ensure(int(low), int(high) + 1)
            return
        for index in np.unique(np.searchsorted(self.rows, rows.numpy(), side="right") - 1).tolist():
            if self.cells[index].mapping is None:
                self._map(index)

    def _map(self, index: int) -> None:
        cell = self.cells[index]
        span, row_nbytes = cell.placed.span, self.field.row_nbytes
        with self._lock:
            if cell.mapping is not None:
                return
            fd = open_block(self._dir_fd, self.field, span.block, span.stop)
            try:
                phase = span.start * row_nbytes % PAGE_NBYTES
                nbytes = phase + (cell.capacity_rows - span.start) * row_nbytes
                cell.mapping = Mapping(
                    self.reservation,
                    cell.offset - phase,
                    -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES,
                    fd,
                    span.start * row_nbytes - phase,
                    private=self._private,
                )
                self.unmapped -= 1
            finally:
                os.close(fd)

    def mappings(self, start: int, stop: int) -> tuple[Mapping | None, ...]:
        """What keeps rows `start` to `stop` mapped."""
        first = max(bisect_right(self.rows, start) - 1, 0)
        return tuple([cell.mapping for cell in self.cells[first : bisect_right(self.rows, stop - 1)]])

    def address(self, row: int) -> int:
        run = bisect_right(self.run_rows, row) - 1
        base: int = self.reservation.address
        return base + self._run_offsets[run] + (row - self.run_rows[run]) * self.field.row_nbytes

    def _forget_scribbles(self, before: Column) -> None:
        """Let the page that held the old end follow its file again: the user may have changed a private copy of it."""
        if self._private and before.stop > self.rows[0]:
            end = self.address(before.stop - 1) + self.field.row_nbytes
            if end % PAGE_NBYTES:
                _madvise(end // PAGE_NBYTES * PAGE_NBYTES, PAGE_NBYTES, _MADV_DONTNEED)

    def will_need(self, start: int, stop: int) -> None:
        """Have the kernel begin to read rows `start` to `stop` in; a hint that waits for nothing."""
        self.ensure(start, stop)
        for low, high in self.runs(start, stop):
            address = self.address(low) // PAGE_NBYTES * PAGE_NBYTES
            _madvise(address, self.address(high - 1) + self.field.row_nbytes - address, _MADV_WILLNEED)

    def will_need_rows(self, rows: torch.Tensor) -> None:
        """As `will_need`, for these rows (int64, mapped), wherever they lie; but if those that are asked for first, from
        everywhere among them, are in memory, the rest is taken to be.
        """
        ids = rows.numpy()
        runs = np.searchsorted(self.run_rows, ids, side="right") - 1
        first_rows, offsets = np.asarray(self.run_rows)[runs], np.asarray(self._run_offsets)[runs]
        addresses = (ids - first_rows) * self.field.row_nbytes + (offsets + self.reservation.address)
        starts = addresses // PAGE_NBYTES * PAGE_NBYTES
        pages = np.stack((starts, addresses + self.field.row_nbytes - starts), 1)
        step = max(1, len(ids) // SAMPLE_ROWS)
        look, looked = Look(), 0
        for first in range(step):
            for start, nbytes in pages[first::step].tolist():
                _madvise(start, nbytes, _MADV_WILLNEED)
            looked += len(pages[first::step])
            if first == 0 and not look.has_read():
                break
        self.residency.looked(looked, look)

    # -- reading --------------------------------------------------------------------------------------------------

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Rows `start` to `stop` as ranges of row ids that are each contiguous in memory."""
        if self._unplaced is not None:
            self._place()
        first = max(bisect_right(self.run_rows, start) - 1, 0)
        bounds = [start, *(row for row in self.run_rows[first + 1 :] if row < stop), stop]
        return [(low, high) for low, high in pairwise(bounds) if low < high]

    def rows_between(self, start: int, stop: int) -> torch.Tensor:
        """A tensor over rows `start` to `stop` of one run, for copying from."""
        self.ensure(start, stop)
        run = bisect_right(self.run_rows, start) - 1
        base = self.run_rows[run]
        return self.tables[run][start - base : stop - base]
