"""Reading one column at one snapshot, in three ways that answer alike.

`MappedColumn` copies from one contiguous map (`memory`). `CachedColumn` maps blocks on demand and keeps at most so
many, as `MemoryMappedTensor`s in an LRU: for more blocks than the kernel maps, and where address space is refused.
`PreadColumn` maps nothing: for storage whose errors must be exceptions.

Rows are row ids here, and the caller has checked them against the snapshot. Everything but `view` returns copies.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor

from tensorblob import files, forks
from tensorblob.edit import Span
from tensorblob.errors import Corrupt, SeamError
from tensorblob.format import block_path
from tensorblob.memory import Layout, Mapping, Reservation, ReservationRefused, carrier_dtype, open_block, tensor_at
from tensorblob.residency import SLOW_NS
from tensorblob.schema import HUGE_PAGE_NBYTES, PAGE_NBYTES, Field
from tensorblob.snapshot import Column

REFUSED_CACHE_BLOCKS = 16
CHECKED_NBYTES = 64 << 20
ALONE_NBYTES = 64 << 10
"""At most so much is read from blocks that are not mapped yet."""
COLD_ROWS, COLD_NBYTES = 4096, 64 << 20
"""At most so much is asked of the disk at once."""
_NOTHING = -1, -1, torch.empty(0, device="cpu")


class ColumnRows(ABC):
    """The rows of one column of one snapshot."""

    field: Field
    column: Column

    def __init__(self, field: Field, dir_fd: int, column: Column) -> None:
        self.field, self.column, self._dir_fd = field, column, dir_fd
        self._dtype = field.torch_dtype
        self._carrier = carrier_dtype(self._dtype)
        self._is_carried = self._carrier is not self._dtype

    def _finish(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self._dtype) if self._is_carried else rows

    def empty(self, count: int) -> torch.Tensor:
        try:
            return torch.empty((count, *self.field.shape), dtype=self._dtype, device="cpu")
        except RuntimeError as error:
            nbytes = count * self.field.row_nbytes
            raise MemoryError(
                f"No memory for {count} rows of {self.field.row_nbytes} bytes, {nbytes} in all"
            ) from error

    @abstractmethod
    def follow(self, column: Column) -> ColumnRows:
        """Return the same way of reading for a newer snapshot of this column."""

    @abstractmethod
    def row(self, row: int) -> torch.Tensor:
        """A copy of one row, of shape field.shape."""

    @abstractmethod
    def copy(self, start: int, stop: int, step: int) -> torch.Tensor:
        """A copy of rows range(start, stop, step), `step` > 0."""

    @abstractmethod
    def take(self, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """A copy of the rows with these ids (int64, 1-D), in their order, into `out` if given."""

    @abstractmethod
    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of rows between `start` and `stop` that `view` can show."""

    @abstractmethod
    def view(self, start: int, stop: int) -> torch.Tensor:
        """A tensor over rows `start` to `stop`, which are of one run."""

    def will_need(self, start: int, stop: int) -> None:
        """These rows are viewed next: a hint, which does nothing where nothing is mapped ahead."""
        return

    def _check_one_run(self, start: int, stop: int) -> None:
        if len(runs := self.runs(start, stop)) > 1:
            raise SeamError(
                f"Rows {start} to {stop} are not contiguous in memory (a seam lies at row {runs[0][1]}); "
                "use runs(start, stop) and view each of them, or compact() the blob"
            )

    def _read(self, span: Span) -> torch.Tensor:
        """The rows of `span` by pread; memory is asked for when they are known to be there."""
        with self._opened(span) as fd:
            rows = torch.empty((span.stop - span.start, *self.field.shape), dtype=self._carrier, device="cpu")
            self._fill(fd, span, _bytes_of(rows))
        return rows

    @contextlib.contextmanager
    def _opened(self, span: Span) -> Iterator[int]:
        """A descriptor of the block of `span`, which holds its rows."""
        fd = open_block(self._dir_fd, self.field, span.block, span.stop)
        try:
            yield fd
        finally:
            os.close(fd)

    def _fill(self, fd: int, span: Span, target: np.ndarray[Any, Any]) -> None:
        """Have the bytes of the rows of `span` in `target`."""
        offset, nbytes = span.start * self.field.row_nbytes, len(target)
        if (got := files.read_into(fd, target, offset)) != nbytes:
            path = files.path_of(self._dir_fd, block_path(self.field, span.block))
            raise Corrupt("A block ends before its committed rows", path=path, offset=offset + got)


def _bytes_of(rows: torch.Tensor) -> np.ndarray[Any, Any]:
    """The memory of contiguous rows."""
    return rows.view(-1).view(torch.uint8).numpy() if rows.numel() else np.empty(0, np.uint8)


class MappedColumn(ColumnRows):
    """Reads from one range of addresses over all blocks."""

    def __init__(
        self, field: Field, dir_fd: int, column: Column, shared: Layout | None = None, private: Layout | None = None
    ) -> None:
        super().__init__(field, dir_fd, column)
        self._shared = shared if shared is not None else Layout(field, dir_fd, column, private=False)
        self._private = private
        self._fallback: ColumnRows | None = None
        self._committed: tuple[int, int, torch.Tensor] = _NOTHING

    @property
    def _unmapped(self) -> ColumnRows:
        """How to read what cannot be mapped: by a few maps that come and go, or by none."""
        if self._fallback is None:
            self._fallback = CachedColumn(self.field, self._dir_fd, self.column, BlockCache(REFUSED_CACHE_BLOCKS))
        return self._fallback

    def follow(self, column: Column) -> MappedColumn:
        private = self._private and self._private.follow(self.column, column)
        shared = self._shared.follow(self.column, column)
        shared.residency = self._shared.residency
        made = MappedColumn.__new__(MappedColumn)  # who follows waits for this: nothing is worked out twice
        made.field, made._dtype, made._carrier, made._is_carried = (
            self.field,
            self._dtype,
            self._carrier,
            self._is_carried,
        )
        made.column, made._dir_fd, made._shared, made._private = column, self._dir_fd, shared, private
        made._fallback, made._committed = None, _NOTHING
        return made

    def row(self, row: int) -> torch.Tensor:
        layout = self._shared
        if layout.unmapped:
            if layout.patience > 0 and (alone := self._read_alone(row, row + 1)) is not None:
                return alone[0]
            try:
                layout.ensure(row, row + 1)
            except ReservationRefused:
                return self._unmapped.row(row)
        if (table := layout.table) is not None:
            found = table[row - layout.table_row].clone()
        else:
            found = layout.rows_between(row, row + 1)[0].clone()
        return found.view(self._dtype) if self._is_carried else found

    def _read_alone(self, start: int, stop: int) -> torch.Tensor | None:
        """A few rows, by pread, while the spans of many are not placed yet; None if they are, or should be."""
        layout = self._shared
        if (stop - start) * self.field.row_nbytes > ALONE_NBYTES:
            return None
        spans = self.column.between(start, stop)
        if len(spans) > layout.patience:
            return None
        layout.patience -= len(spans)
        parts = [self._read(span) for span in spans]
        return self._finish(parts[0] if len(parts) == 1 else torch.cat(parts))

    def copy(self, start: int, stop: int, step: int) -> torch.Tensor:
        layout = self._shared
        if start >= stop:
            return self.empty(0)
        if layout.patience > 0 and (alone := self._read_alone(start, stop)) is not None:
            return alone if step == 1 else alone[::step].clone(memory_format=torch.contiguous_format)
        try:
            layout.ensure(start, stop)
        except ReservationRefused:
            return self._unmapped.copy(start, stop, step)
        runs = layout.runs(start, stop)
        if len(runs) == 1:
            rows = layout.rows_between(start, stop)
            return self._finish(
                rows.clone() if step == 1 else rows[::step].clone(memory_format=torch.contiguous_format)
            )
        parts = []
        for low, high in runs:
            skip = -(low - start) % step
            if low + skip < high:
                parts.append(layout.rows_between(low + skip, high)[::step])
        return self._finish(torch.cat(parts))

    def take(self, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        layout = self._shared
        if layout.unmapped:
            try:
                layout.ensure_rows(rows)
            except ReservationRefused:
                return self._unmapped.take(rows, out)
        residency = layout.residency
        if not residency.rows_to_look_at:
            return self._gather(layout, rows, out)
        found = self.empty(len(rows)) if out is None else out
        step = max(1, min(COLD_ROWS, COLD_NBYTES // self.field.row_nbytes))
        if found.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr():
            step = max(1, len(rows))  # torch has to see whether they overlap
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            if residency.rows_to_look_at:
                layout.will_need_rows(piece)
            self._gather(layout, piece, found[start : start + step])
        return found

    def _gather(self, layout: Layout, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        started = perf_counter_ns()
        if (table := layout.table) is not None:
            base = layout.table_row
            table, ids = table[: self.column.stop - base], rows - base if base else rows
            if out is not None:
                torch.index_select(table, 0, ids, out=out.view(self._carrier) if self._is_carried else out)
            else:
                try:
                    out = self._finish(torch.index_select(table, 0, ids))
                except RuntimeError:
                    self.empty(len(rows))  # which says so if it was for want of memory
                    raise
        else:
            out = self.empty(len(rows)) if out is None else out
            target = out.view(self._carrier) if self._is_carried else out
            if layout.run_rows:
                which = np.searchsorted(layout.run_rows, rows.numpy(), side="right") - 1
                for run in np.unique(which).tolist():
                    at = torch.from_numpy(np.flatnonzero(which == run))
                    target[at] = torch.index_select(layout.tables[run], 0, rows[at] - layout.run_rows[run])
        if (ns := perf_counter_ns() - started) > SLOW_NS:
            layout.residency.gathered(rows.numel(), self.field.row_nbytes, ns)
        return out

    def take_positions(
        self, positions: torch.Tensor, out: torch.Tensor | None, first_row: int, stop_row: int
    ) -> torch.Tensor | None:
        """As `take`, of rows counted from `first_row`, if that needs no look at them first; else None.

        So it is when all blocks are mapped, and in memory as far as is known, there is no seam, and no position is negative
        or beyond: `index_select` checks.
        """
        layout = self._shared
        if layout.unmapped or layout.table is None or layout.residency.rows_to_look_at:
            return None
        committed = self._committed  # once: a thread with another state may put its own there
        if committed[0] != first_row or committed[1] != stop_row:
            base = layout.table_row
            committed = self._committed = first_row, stop_row, layout.table[first_row - base : stop_row - base]
        started = perf_counter_ns()
        try:
            if out is None:
                out = self._finish(torch.index_select(committed[2], 0, positions))
            else:
                target = out.view(self._carrier) if self._is_carried else out
                torch.index_select(committed[2], 0, positions, out=target)
        except (IndexError, RuntimeError):  # which `take` raises again, or a MemoryError
            return None
        if (ns := perf_counter_ns() - started) > SLOW_NS:
            layout.residency.gathered(positions.numel(), self.field.row_nbytes, ns)
        return out

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        return self._shared.runs(start, stop)

    def view(self, start: int, stop: int) -> torch.Tensor:
        if start >= stop:
            return self.empty(0)
        try:
            layout = self._private
            if layout is None:  # of two threads that come here at once, each has a range of its own for this view
                layout = self._private = Layout(self.field, self._dir_fd, self.column, private=True)
            if len(layout.runs(start, stop)) > 1:
                self._check_one_run(start, stop)
            layout.ensure(start, stop)
        except ReservationRefused:  # there is room for one range only, or for no more maps: a copy is as private
            return self.copy(start, stop, 1)
        keep = layout.mappings(start, stop)
        return self._finish(tensor_at(layout.address(start), stop - start, self.field, keep))

    def will_need(self, start: int, stop: int) -> None:
        if self._private is not None:
            with contextlib.suppress(ReservationRefused):
                self._private.will_need(start, stop)


class _Piecewise(ColumnRows):
    """Reads span by span: `_rows` lends the rows of one."""

    def __init__(self, field: Field, dir_fd: int, column: Column) -> None:
        super().__init__(field, dir_fd, column)
        self._placed = list(column.placed())
        self._starts = [placed.row for placed in self._placed]

    @abstractmethod
    def _rows(self, span: Span) -> torch.Tensor:
        """The rows of `span`, of the carrier dtype; not to be kept."""

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, Span]]:
        """Rows `start` to `stop` as (row, row, the span cut to them)."""
        found = []
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self._placed)):
            placed = self._placed[index]
            low, high = max(start, placed.row), min(stop, placed.stop_row)
            if low >= high:
                break
            shift = placed.span.start - placed.row
            found.append((low, high, Span(placed.span.block, low + shift, high + shift)))
        return found

    def _found(self, start: int, stop: int) -> list[tuple[int, int, Span]]:
        """As `_parts`; of many bytes it is known that they are there, before memory is asked for on their behalf."""
        parts = self._parts(start, stop)
        if (stop - start) * self.field.row_nbytes > CHECKED_NBYTES:
            self._check_there([span for _, _, span in parts])
        return parts

    def _check_there(self, spans: Sequence[Span]) -> None:
        """Raise `Corrupt` for rows that are not there."""
        for span in spans:
            os.close(open_block(self._dir_fd, self.field, span.block, span.stop))

    def row(self, row: int) -> torch.Tensor:
        ((_, _, span),) = self._parts(row, row + 1)
        return self._finish(self._rows(span)[0].clone())

    def copy(self, start: int, stop: int, step: int) -> torch.Tensor:
        parts = self._found(start, stop)
        found = self.empty(len(range(start, stop, step)))
        target, done = found.view(self._carrier) if self._is_carried else found, 0
        for low, high, span in parts:
            skip = -(low - start) % step
            if low + skip < high:
                count = len(range(low + skip, high, step))
                target[done : done + count] = self._rows(Span(span.block, span.start + skip, span.stop))[::step]
                done += count
        return found

    def take(self, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        ids = rows.numpy()
        order = np.argsort(ids, kind="stable")
        which = np.searchsorted(self._starts, ids[order], side="right") - 1
        if out is None and len(rows) * self.field.row_nbytes > CHECKED_NBYTES:
            self._check_there([self._placed[index].span for index in np.unique(which).tolist()])
        found = self.empty(len(rows)) if out is None else out
        target = found.view(self._carrier) if self._is_carried else found
        bounds = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(ids)]
        for low, high in pairwise(bounds):
            if low < high:
                placed = self._placed[int(which[low])]
                at = torch.from_numpy(order[low:high])
                target[at] = self._take(placed.span, rows[at] - placed.row + placed.span.start)
        return found

    def _take(self, span: Span, block_rows: torch.Tensor) -> torch.Tensor:
        """The given block rows (ascending) of the block of `span`."""
        low, high = int(block_rows[0]), int(block_rows[-1]) + 1
        return torch.index_select(self._rows(Span(span.block, low, high)), 0, block_rows - low)


class BlockCache:
    """At most `capacity` mapped blocks, the least recently used unmapped first; any number of threads may ask.

    A block leaves memory once the last tensor over it is gone.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"max_cached_blocks must be a positive integer, got {capacity}!")
        self.capacity = capacity
        self._blocks: OrderedDict[tuple[str, str], MemoryMappedTensor] = OrderedDict()
        self._lock = forks.lock()

    def __len__(self) -> int:
        return len(self._blocks)

    def block(self, dir_fd: int, field: Field, block: str, rows: int) -> MemoryMappedTensor | None:
        """Return a tensor over (at least) the first `rows` rows of a block, of the carrier dtype.

        None if there is no address space for it, even with all others unmapped.
        """
        key = field.name, block
        with self._lock:
            found = self._blocks.get(key)
            if found is not None and len(found) >= rows:
                self._blocks.move_to_end(key)
                return found
            self._blocks.pop(key, None)
            while len(self._blocks) >= self.capacity:
                self._blocks.popitem(last=False)
            while True:
                try:
                    found = self._blocks[key] = self._map(dir_fd, field, block, rows)
                    return found
                except ReservationRefused:
                    if not self._blocks:
                        return None
                    self._blocks.popitem(last=False)

    @staticmethod
    def _map(dir_fd: int, field: Field, block: str, rows: int) -> MemoryMappedTensor:
        tensor = map_block(dir_fd, field, block, 0, rows)
        return MemoryMappedTensor.from_storage(tensor.untyped_storage(), dtype=tensor.dtype, shape=tensor.shape)


def map_block(dir_fd: int, field: Field, block: str, start: int, stop: int) -> torch.Tensor:
    """Return a tensor, of the carrier dtype, over a private map of the block rows `start` to `stop`, and of nothing
    more.
    """
    offset = start * field.row_nbytes
    phase = offset % PAGE_NBYTES
    nbytes = -(-(phase + (stop - start) * field.row_nbytes) // PAGE_NBYTES) * PAGE_NBYTES
    fd = open_block(dir_fd, field, block, stop)
    try:
        alignment = HUGE_PAGE_NBYTES if nbytes >= HUGE_PAGE_NBYTES else PAGE_NBYTES
        mapping = Mapping(Reservation(nbytes, alignment), 0, nbytes, fd, offset - phase, private=True)
    finally:
        os.close(fd)
    return tensor_at(mapping.address + phase, stop - start, field, mapping)


class CachedColumn(_Piecewise):
    """Reads through a `BlockCache` that it shares with its other snapshots and columns."""

    def __init__(self, field: Field, dir_fd: int, column: Column, cache: BlockCache) -> None:
        super().__init__(field, dir_fd, column)
        self._cache = cache

    def follow(self, column: Column) -> CachedColumn:
        return CachedColumn(self.field, self._dir_fd, column, self._cache)

    def _rows(self, span: Span) -> torch.Tensor:
        block = self._cache.block(self._dir_fd, self.field, span.block, span.stop)
        if block is None:
            return self._read(span)
        rows: torch.Tensor = block.as_subclass(torch.Tensor)
        return rows[span.start : span.stop]

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        return [(low, high) for low, high, _ in self._parts(start, stop)]

    def view(self, start: int, stop: int) -> torch.Tensor:
        if start >= stop:
            return self.empty(0)
        self._check_one_run(start, stop)
        ((_, _, span),) = self._parts(start, stop)
        try:
            return self._finish(map_block(self._dir_fd, self.field, span.block, span.start, span.stop))
        except ReservationRefused:
            return self.copy(start, stop, 1)


class PreadColumn(_Piecewise):
    """Reads by `pread`: nothing is mapped, a failing disk is an `OSError`, and a `view` is a copy."""

    def follow(self, column: Column) -> PreadColumn:
        return PreadColumn(self.field, self._dir_fd, column)

    def _rows(self, span: Span) -> torch.Tensor:
        return self._read(span)

    def copy(self, start: int, stop: int, step: int) -> torch.Tensor:
        if step != 1:
            return super().copy(start, stop, step)
        parts = self._found(start, stop)
        rows = self.empty(stop - start)
        target, row_nbytes = _bytes_of(rows), self.field.row_nbytes
        for low, high, span in parts:
            with self._opened(span) as fd:
                self._fill(fd, span, target[(low - start) * row_nbytes : (high - start) * row_nbytes])
        return rows

    def _take(self, span: Span, block_rows: torch.Tensor) -> torch.Tensor:
        """Read runs of neighbouring rows, not everything between the first and the last."""
        rows = torch.empty((len(block_rows), *self.field.shape), dtype=self._carrier, device="cpu")
        unique, inverse = torch.unique_consecutive(block_rows, return_inverse=True)
        ids = unique.numpy()
        bounds = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        with self._opened(span) as fd:
            for low, high in pairwise(bounds):
                self._fill(fd, Span(span.block, int(ids[low]), int(ids[high - 1]) + 1), _bytes_of(rows[low:high]))
        found: torch.Tensor = torch.index_select(rows, 0, inverse)
        return found

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        return [(start, stop)] if start < stop else []

    def view(self, start: int, stop: int) -> torch.Tensor:
        return self.copy(start, stop, 1)
