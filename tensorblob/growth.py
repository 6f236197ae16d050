"""Placing rows of one column: blocks that grow, ahead of what is committed.

A `Growth` knows where the next row of its column goes. It writes rows past the committed end of the tail block, opens
the next block when one is full, and returns the operations that would commit what it placed; until the writer appends
them to the manifest nobody sees them, and `reset` forgets them. Overwritten quanta go to a second block that grows
the same way (`patch`).

Invariants: bytes below a committed length are never written again; a block file holds exactly the rows given to it,
and its checksum covers each before it is committed. Rows are checksummed and written while they are in cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorblob import files
from tensorblob.edit import Grow, Op, Patch, Span, Splice, Tail
from tensorblob.errors import DiskFull
from tensorblob.format import crc32c
from tensorblob.memory import numpy_dtype, open_block
from tensorblob.schema import HUGE_PAGE_NBYTES, Field
from tensorblob.snapshot import Column

SMALL_NBYTES = 64 << 10
ALLOCATE_NBYTES = 64 << 10
MAX_ALLOCATE_NBYTES = 128 << 20


class BlockFile:
    """A block file that this process writes: `rows` placed, with checksum `crc32c` over them."""

    __slots__ = ("allocated", "capacity_rows", "crc32c", "fd", "id", "is_dirty", "path", "rows")

    def __init__(self, id: str, path: str, fd: int, capacity_rows: int, rows: int = 0, crc: int = 0) -> None:
        self.id, self.path, self.fd = id, path, fd
        self.capacity_rows, self.rows, self.crc32c = capacity_rows, rows, crc
        self.allocated = 0
        self.is_dirty = False
        """Some bytes are not synced yet."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Array: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = Array | bytes
Rows: TypeAlias = Part | list[Part]
"""Rows of one field as an array of its carrier dtype, as the bytes of one, or in parts of both kinds."""


def as_bytes(rows: Array) -> npt.NDArray[np.uint8]:
    """The memory of an array as bytes, without a copy if it is contiguous."""
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


class Growth:
    """Where the next rows of one column go. Rows are given and read back as arrays of the field's carrier dtype.

    `new_block(number)` creates the next block file of the column.
    """

    def __init__(
        self,
        number: int,
        columns: int,
        field: Field,
        dir_fd: int,
        new_block: Callable[[int], BlockFile],
    ) -> None:
        self.number = number
        self.field = field
        self.row_nbytes = field.row_nbytes
        self._dtype = numpy_dtype(field)
        self._columns = columns
        self._dir_fd = dir_fd
        self._new_block = new_block
        self.tail: BlockFile | None = None
        self.patch: BlockFile | None = None

    def as_array(self, rows: Rows) -> Array:
        """`rows` as an array of shape (count, *field.shape)."""
        if isinstance(rows, bytes):
            return np.frombuffer(rows, self._dtype).reshape(-1, *self.field.shape)
        if isinstance(rows, list):
            return np.concatenate([self.as_array(part) for part in rows])
        return rows

    # -- writing bytes --------------------------------------------------------------------------------------------

    def grow(self, rows: Rows, count: int) -> tuple[int, int] | None:
        """Place rows in the tail if they fit in it; return its new (rows, crc32c), or None if they do not."""
        tail = self.tail
        if tail is None or (stop := tail.rows + count) > tail.capacity_rows:
            return None
        nbytes, offset = count * self.row_nbytes, tail.rows * self.row_nbytes
        if isinstance(rows, list):
            return self._grow_parts(tail, rows, nbytes, offset, stop)
        if nbytes > SMALL_NBYTES or offset + nbytes > tail.allocated:
            self._write(tail, self.as_array(rows), count)
            return stop, tail.crc32c
        # a copy, so that bytes and checksum agree whatever the caller does with its memory
        data = rows if isinstance(rows, bytes) else rows.tobytes()
        crc = crc32c(tail.crc32c, data)
        files.write_at(tail.fd, data, nbytes, offset)
        tail.rows, tail.crc32c = stop, crc
        tail.is_dirty = True  # after the write: a sync that began before it does not count
        return stop, crc

    def _grow_parts(self, tail: BlockFile, rows: list[Part], nbytes: int, offset: int, stop: int) -> tuple[int, int]:
        """Place what several appends brought by one `pwritev`."""
        if offset + nbytes > tail.allocated:
            self._allocate(tail, offset, nbytes)
        parts = [part if isinstance(part, bytes) else as_bytes(part) for part in rows]
        crc = tail.crc32c
        for part in parts:
            crc = crc32c(crc, part)
        files.write_parts_at(tail.fd, parts, nbytes, offset)
        tail.rows, tail.crc32c = stop, crc
        tail.is_dirty = True
        return stop, crc

    def _write(self, block: BlockFile, rows: Array, count: int) -> None:
        """Write `count` rows at the end of `block`, reserving space ahead of them."""
        assert rows.dtype == self._dtype, "rows come in the carrier dtype"
        offset = block.rows * self.row_nbytes
        nbytes = count * self.row_nbytes
        if offset + nbytes > block.allocated:
            self._allocate(block, offset, nbytes)
        data = as_bytes(rows)
        self._write_pieces(block, data.copy() if nbytes <= SMALL_NBYTES else data, offset)
        block.is_dirty = True
        block.rows += count

    @staticmethod
    def _write_pieces(block: BlockFile, data: npt.NDArray[np.uint8], offset: int) -> None:
        """Checksum and write, a piece at a time: so it is in cache the second time, and pages stay huge."""
        crc, done = block.crc32c, 0
        while done < len(data):
            stop = min(done + HUGE_PAGE_NBYTES - (offset + done) % HUGE_PAGE_NBYTES, len(data))
            crc = crc32c(crc, data[done:stop])
            files.write_at(block.fd, data[done:stop], stop - done, offset + done)
            done = stop
        block.crc32c = crc

    def _allocate(self, block: BlockFile, offset: int, nbytes: int) -> None:
        """Reserve space ahead of the rows: twice what there is, from 64 KiB to 128 MiB, at most the block; only what
        they need where there is no more.
        """
        needed = offset + nbytes
        ahead = min(max(needed, ALLOCATE_NBYTES), MAX_ALLOCATE_NBYTES)
        stop = max(min(needed + ahead, block.capacity_rows * self.row_nbytes), needed)
        try:
            files.allocate(block.fd, block.allocated, stop - block.allocated)
        except DiskFull:
            if stop == needed:
                raise
            stop = needed
            files.allocate(block.fd, block.allocated, stop - block.allocated)
        block.allocated = stop

    # -- appending ------------------------------------------------------------------------------------------------

    def append(self, given: Rows, column: Column) -> list[Op]:
        """Place rows at the end of `column`, in as many blocks as they need; return the operations that commit them."""
        ops: list[Op] = []
        rows = self.as_array(given)
        done, count = 0, len(rows)
        if self.tail is None:
            rest, ops = self._continue(column)
            if rest is not None:
                rows = np.concatenate([rest, rows])
                count = len(rows)
        while done < count:
            tail = self.tail
            if tail is None or tail.rows == tail.capacity_rows:
                tail = self.tail = self._new_block(self.number)
            part = min(count - done, tail.capacity_rows - tail.rows)
            is_new = tail.rows == 0
            self._write(tail, rows[done : done + part], part)
            done += part
            if is_new:
                ops.append(Tail(self.number, tail.id, tail.capacity_rows, 0, tail.rows, tail.crc32c))
            else:
                grown = [None] * self.number, [(tail.rows, tail.crc32c)], [None] * (self._columns - self.number - 1)
                ops.append(Grow((*grown[0], *grown[1], *grown[2])))
        return ops

    def _continue(self, column: Column) -> tuple[Array | None, list[Op]]:
        """To append after a sealed partial block: its rows beyond whole quanta go to the new block, or a seam would
        be left.
        """
        last = next(column.placed_from(column.stop), None)
        if last is None:
            return None, []
        beyond = min(last.span.stop % self.field.quantum, last.span.stop - last.span.start)
        if beyond == 0:
            return None, []
        row = column.stop - beyond
        rest = self.read([Span(last.span.block, last.span.stop - beyond, last.span.stop)])
        return rest, [Splice(self.number, row, column.stop, ())]

    # -- overwriting ----------------------------------------------------------------------------------------------

    def overwrite(self, start: int, rows: Array, column: Column) -> list[Op]:
        """Place new versions of the quanta that hold rows `start`… of `column`; return the operations that commit
        them.
        """
        ops: list[Op] = []
        stop = start + len(rows)
        if start == stop:
            return ops
        for low, high in self._quanta(start, stop, column):
            first, last = max(low, start), min(high, stop)
            parts = [
                self.read(column.between(low, first)),
                rows[first - start : last - start],
                self.read(column.between(last, high)),
            ]
            phase = column.between(low, low + 1)[0].start % self.field.quantum
            ops += self._patch(low, np.concatenate(parts), phase)
        return ops

    def _quanta(self, start: int, stop: int, column: Column) -> Iterator[tuple[int, int]]:
        """Rows `start` to `stop`, grown to whole quanta as far as runs go: one range a run."""
        quantum = self.field.quantum
        low = high = -1
        last_stop = 0
        for placed in column.placed_from(start):
            if placed.row >= stop:
                break
            span = placed.span
            first, last = (
                max(start, placed.row) - placed.row + span.start,
                min(stop, placed.stop_row) - placed.row + span.start,
            )
            first -= min(first % quantum, first - span.start)
            last = min(-(-last // quantum) * quantum, span.stop)
            joins = low >= 0 and span.start % quantum == 0 and last_stop % quantum == 0 and first == span.start
            if low >= 0 and not joins:
                yield low, high
            if not joins:
                low = placed.row + first - span.start
            high = placed.row + last - span.start
            last_stop = span.stop
        if low >= 0:
            yield low, high

    def _patch(self, row: int, rows: Array, phase: int) -> Iterator[Op]:
        done = 0
        while done < len(rows):
            patch = self.patch
            gap = 0 if patch is None else (phase - patch.rows) % self.field.quantum
            if patch is None or patch.rows + gap >= patch.capacity_rows:
                patch = self.patch = self._new_block(self.number)
                gap = phase
            if gap:
                self._write(patch, np.zeros((gap, *self.field.shape), self._dtype), gap)
            start = patch.rows
            part = min(len(rows) - done, patch.capacity_rows - start)
            self._write(patch, rows[done : done + part], part)
            yield Patch(self.number, patch.id, patch.capacity_rows, patch.rows, patch.crc32c)
            span = Span(patch.id, start, patch.rows)
            yield Splice(self.number, row + done, row + done + part, (span,))
            done += part
            phase = 0

    # -- reading back ---------------------------------------------------------------------------------------------

    def read(self, spans: Sequence[Span], dir_fd: int | None = None) -> Array:
        """The rows of committed or placed spans, read by pread (of the same column of another blob, if `dir_fd` is
        given).
        """
        count = sum(span.stop - span.start for span in spans)
        if count * self.row_nbytes > files.COPY_NBYTES:
            for span in spans:  # no memory is asked for on behalf of rows that are not there
                os.close(open_block(self._dir_fd if dir_fd is None else dir_fd, self.field, span.block, span.stop))
        rows = np.empty((count, *self.field.shape), self._dtype)
        if not count:
            return rows
        data, done = as_bytes(rows), 0
        for span in spans:
            nbytes = (span.stop - span.start) * self.row_nbytes
            fd = open_block(self._dir_fd if dir_fd is None else dir_fd, self.field, span.block, span.stop)
            try:
                got = files.read_into(fd, data[done : done + nbytes], span.start * self.row_nbytes)
            finally:
                os.close(fd)
            assert got == nbytes, "open_block has checked the size"
            done += nbytes
        return rows

    def copy_block(self, source: str, rows: int, target: BlockFile) -> None:
        """Write the first `rows` rows of a block to a new one."""
        step = max(files.COPY_NBYTES // self.row_nbytes, 1)
        target.capacity_rows = max(target.capacity_rows, rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            self._write(target, self.read([Span(source, start, stop)]), stop - start)

    # -- committed state --------------------------------------------------------------------------------------------

    def settle(self, column: Column) -> None:
        """Let go of a tail or patch block that `column` does not grow in any more."""
        if self.tail is not None and (column.tail is None or column.tail.id != self.tail.id):
            self.tail = None
        if self.patch is not None and (column.patch is None or column.patch.id != self.patch.id):
            self.patch = None

    def reset(self, column: Column, blocks: Mapping[str, BlockFile]) -> None:
        """Go on where `column` ends, in those of its blocks that may go on; what was placed beyond is forgotten."""
        self.tail = None if column.tail is None else blocks.get(column.tail.id)
        if self.tail is not None and column.tail is not None:
            self.tail.rows, self.tail.crc32c = column.tail.rows, column.tail.crc32c
        self.patch = None if column.patch is None else blocks.get(column.patch.id)
        if self.patch is not None and column.patch is not None:
            self.patch.rows, self.patch.crc32c = column.patch.rows, column.patch.crc32c
