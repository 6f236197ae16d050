"""The changes other than append, each as one edit over staged blocks.

Every function here has the form that `Writer.change` runs: it places rows in new blocks and returns the operations
that commit them. Nothing is visible before the writer appends those, and committed bytes are never touched: change is
new blocks plus an edit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tensorblob import files
from tensorblob.edit import Block, Cut, Op, Span, Splice, Trim
from tensorblob.errors import SchemaConflict
from tensorblob.format import Store, block_path
from tensorblob.growth import Growth, Rows
from tensorblob.memory import check_named
from tensorblob.snapshot import Column, Snapshot

if TYPE_CHECKING:
    from tensorblob.writer import Writer


def truncate(snapshot: Snapshot, row: int) -> list[Op]:
    """Cut all rows from `row` (a row id) on, and begin a new history."""
    if row >= snapshot.rows:
        return []
    splices = [Splice(number, row, column.stop, ()) for number, column in enumerate(snapshot.columns)]
    return [*splices, Cut(row, snapshot.history + 1)]


def trim(snapshot: Snapshot, before_row: int) -> list[Op]:
    """Drop the rows before `before_row`; at most all of them."""
    first_row = min(before_row, snapshot.rows)
    return [Trim(first_row)] if first_row > snapshot.first_row else []


def overwrite(snapshot: Snapshot, growths: Sequence[Growth], row: int, columns: Sequence[Rows], count: int) -> list[Op]:
    """Replace `count` rows from `row` on by new ones; rows beyond the end are appended, in the same edit."""
    replaced = min(count, snapshot.rows - row)
    ops: list[Op] = []
    for growth, given, column in zip(growths, columns, snapshot.columns, strict=True):
        rows = growth.as_array(given)
        changed = growth.overwrite(row, rows[:replaced], column)
        ops += changed
        if replaced < count:
            after = snapshot.apply(tuple(changed)).columns[growth.number]
            growth.settle(after)
            ops += growth.append(rows[replaced:], after)
    return ops


# -- extend -------------------------------------------------------------------------------------------------------------


class Source:
    """Rows of another blob to take over: its directory, what it is, and a snapshot that stays pinned meanwhile."""

    def __init__(self, dir_fd: int, store: Store, snapshot: Snapshot, pin: object) -> None:
        self.dir_fd, self.store, self.snapshot, self._pin = dir_fd, store, snapshot, pin

    def column(self, name: str) -> Column:
        names = [field.name for field in self.store.schema]
        return self.snapshot.columns[names.index(name)]


def check_same_layout(store: Store, other: Store) -> None:
    if store.schema.layout() != other.schema.layout():
        raise SchemaConflict("Blob data types and shapes must match to extend blobs!")


def adopt(writer: Writer, snapshot: Snapshot, source: Source) -> list[Op]:
    """Append the source's rows in order, without copying them: spans over linked files (a partial block leaves a
    seam).
    """
    if not len(source.snapshot):
        return []
    adopted = _Adoption(writer, source)
    ops: list[Op] = []
    for number, column in enumerate(snapshot.columns):
        spans = adopted.spans(number, source.snapshot.first_row, source.snapshot.rows)
        ops.append(Splice(number, column.stop, column.stop, spans))
    return [*adopted.blocks, *ops]


def adopt_full(writer: Writer, snapshot: Snapshot, growths: Sequence[Growth], source: Source) -> list[Op]:
    """Append the source's rows so that memory stays contiguous: whole quanta are linked, the two tails rewritten
    after them.

    Our rows beyond whole quanta move behind the adopted ones, so a new history begins at the first of them.
    """
    if not len(source.snapshot):
        return []
    theirs = [source.column(growth.field.name) for growth in growths]
    quanta = [growth.field.quantum for growth in growths]
    whole = _aligned_before(snapshot.rows, snapshot, snapshot.columns, quanta)
    linked, rest = _split(source.snapshot, theirs, quanta)
    adopted = _Adoption(writer, source)
    ops: list[Op] = []
    for number, (growth, column, their) in enumerate(zip(growths, snapshot.columns, theirs, strict=True)):
        spans = tuple(span for low, high in linked for span in adopted.spans(number, low, high))
        tails = [growth.read(column.between(whole, column.stop))]
        tails += [growth.read(their.between(low, high), source.dir_fd) for low, high in rest]
        after = column
        for splice in (Splice(number, whole, column.stop, ()), Splice(number, whole, whole, spans)):
            if splice.start < splice.stop or splice.spans:
                ops.append(splice)
                after = after.spliced(splice.start, splice.stop, splice.spans)
        growth.settle(after)
        if len(rows := np.concatenate(tails)):
            ops += growth.append(rows, after)
    cut: list[Op] = [Cut(whole, snapshot.history + 1)] if whole < snapshot.rows else []
    return [*adopted.blocks, *ops, *cut]


class _Adoption:
    """The files taken over from one source: each is linked once, however many spans name it."""

    def __init__(self, writer: Writer, source: Source) -> None:
        self._writer = writer
        self._source = source
        self._columns = [source.column(field.name) for field in writer.store.schema]
        self._named = [column.blocks() for column in self._columns]
        self._ids: dict[tuple[int, str], str] = {}
        self.blocks: list[Op] = []

    def spans(self, number: int, start: int, stop: int) -> tuple[Span, ...]:
        """The source's rows `start` to `stop` for our column `number`, as spans over adopted blocks."""
        spans = self._columns[number].between(start, stop)
        field = self._writer.store.schema.fields[number]
        check_named(self._source.dir_fd, field, self._named[number], spans)
        return tuple(Span(self._adopt(number, span.block), span.start, span.stop) for span in spans)

    def _adopt(self, number: int, block: str) -> str:
        if (known := self._ids.get((number, block))) is not None:
            return known
        field = self._writer.store.schema.fields[number]
        id = self._writer.adopt_file(number, block_path(field, block), self._source.dir_fd)
        rows, crc = self._named[number][block]
        self._ids[number, block] = id
        self.blocks.append(Block(number, id, rows, crc))
        return id


def _aligned_before(row: int, snapshot: Snapshot, columns: Sequence[Column], quanta: Sequence[int]) -> int:
    """The last row at or before `row` (the end) where every column is at a whole quantum of its last span, or `row`
    if none.
    """
    lasts = [
        (last, quantum)
        for column, quantum in zip(columns, quanta, strict=True)
        for last in column.placed_from(column.stop)
    ]
    for back in range(max(quanta) if len(snapshot) else 0):
        if row - back < snapshot.first_row:
            break
        if all((last.span.stop - back) % quantum == 0 and last.row <= row - back for last, quantum in lasts):
            return row - back
    return row


def _split(
    snapshot: Snapshot, columns: Sequence[Column], quanta: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The row ranges that are whole quanta in every column, to be linked, and the rest, to be rewritten."""
    bounds = {snapshot.first_row, snapshot.rows}
    for column in columns:
        bounds.update(p.row for p in column.placed() if snapshot.first_row < p.row < snapshot.rows)
    linked: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    common = math.lcm(*quanta)
    ordered = sorted(bounds)
    for low, high in pairwise(ordered):
        starts = [column.between(low, low + 1)[0].start for column in columns]
        is_aligned = all(start % quantum == 0 for start, quantum in zip(starts, quanta, strict=True))
        middle = low + (high - low) // common * common if is_aligned else low
        if low < middle:
            linked.append((low, middle))
        if middle < high:
            rest.append((middle, high))
    return linked, rest


# -- compact ------------------------------------------------------------------------------------------------------------


def compact(snapshot: Snapshot, growths: Sequence[Growth]) -> list[Op]:
    """Rewrite each column from its first imperfect span on into full blocks: no seams, patches or trimmed rows are
    left.
    """
    ops: list[Op] = []
    for growth, column in zip(growths, snapshot.columns, strict=True):
        row = _imperfect_from(growth, column, snapshot.first_row)
        if row is None:
            continue
        origin = column.origin
        start = origin if row <= snapshot.first_row else row
        after = column.spliced(start, column.stop, ())
        ops.append(Splice(growth.number, start, column.stop, ()))
        if start == origin and origin != snapshot.first_row:
            ops.append(Splice(growth.number, snapshot.first_row, snapshot.first_row, ()))
            after = after.spliced(snapshot.first_row, snapshot.first_row, ())
        growth.settle(after)
        step = max(files.COPY_NBYTES // growth.row_nbytes, 1)
        for low in range(max(row, snapshot.first_row), column.stop, step):
            ops += growth.append(growth.read(column.between(low, min(low + step, column.stop))), after)
    return ops


def _imperfect_from(growth: Growth, column: Column, first_row: int) -> int | None:
    """The first row whose span is not a whole block from its beginning, or None if compacting changes nothing."""
    items = list(column.placed())
    for index, placed in enumerate(items):
        span, is_last = placed.span, index == len(items) - 1
        is_whole = span.start == 0 and (is_last or span.stop % growth.field.block_rows == 0)
        if not is_whole or placed.row < first_row:
            return placed.row
    return None
