"""Snapshots: what is committed, as an immutable value that edits are folded into.

    snapshot = reduce(Snapshot.apply, edits, Snapshot.empty(columns))

A column is a list of spans, oldest first, the last of which grows in the tail block. Applying an edit costs what the
edit changes, not what the blob holds: the common edits only replace a few small frozen values, and the lists they
share are persistent (`Vector`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Generic, TypeVar

import msgspec

from tensorblob.edit import (
    Block,
    Cut,
    Durable,
    Edit,
    Finish,
    Grow,
    Key,
    Metadata,
    Moved,
    Note,
    Op,
    Patch,
    Retention,
    Session,
    Span,
    Splice,
    State,
    Tail,
    Trim,
)

T = TypeVar("T")
MAX_CUTS = 1000
MAX_KEYS = 1024


class Vector(Generic[T]):
    """An immutable sequence with cheap `appended` and `dropped`: versions share one list and differ in what they see.

    The version that sees the end of the shared list appends to it in place, any other copies first; so a linear
    history of appends is linear in time, and an older version never changes. Versions that are extended concurrently
    must be owned by one thread (readers of any version need no lock).
    """

    __slots__ = ("_items", "_start", "_stop")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items: list[T] = list(items)
        self._start = 0
        self._stop = len(self._items)

    def _version(self, items: list[T], start: int, stop: int) -> Vector[T]:
        new = Vector.__new__(Vector)
        new._items, new._start, new._stop = items, start, stop
        return new

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[T]:
        return islice(self._items, self._start, self._stop)

    def __getitem__(self, index: int) -> T:
        return self._items[self._start + index if index >= 0 else self._stop + index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vector({list(self)!r})"

    def appended(self, *new: T) -> Vector[T]:
        items, start = self._items, self._start
        if len(items) != self._stop:
            items, start = items[start : self._stop], 0
        items.extend(new)
        return self._version(items, start, len(items))

    def dropped(self, count: int) -> Vector[T]:
        """Return this without its first `count` items."""
        start = self._start + count
        if start > len(self._items) // 2 and start > 64:
            return Vector(self._items[start : self._stop])
        return self._version(self._items, start, self._stop)

    def copied(self) -> list[T]:
        """A list of the items, made at the speed of a copy of memory."""
        return self._items[self._start : self._stop]

    @classmethod
    def over(cls, items: list[T]) -> Vector[T]:
        """The vector of `items`, which becomes its own."""
        new = cls()
        new._items, new._stop = items, len(items)
        return new

    def since(self, older: Vector[T]) -> list[T] | None:
        """Return what was appended after `older`, if this is `older` with items appended; else None."""
        if self._items is older._items and self._start == older._start and self._stop >= older._stop:
            return self._items[older._stop : self._stop]
        return None


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A span with the row id of its first row."""

    row: int
    span: Span

    @property
    def stop_row(self) -> int:
        return self.row + self.span.stop - self.span.start


def _row_of(placed: Placed) -> int:
    return placed.row


class Column(msgspec.Struct, frozen=True):
    """The spans of one column, and the blocks that may still grow.

    `spans` are all but the last span where that one lies in the tail block, whose block rows `tail.start` to
    `tail.rows` are the column's rows from `tail_row` on. Without a tail, `tail_row` is where the column stops.
    """

    spans: Vector[Placed] = msgspec.field(default_factory=Vector)
    sealed: Vector[Block] = msgspec.field(default_factory=Vector)
    tail_row: int = 0
    tail: Tail | None = None
    patch: Patch | None = None

    @property
    def stop(self) -> int:
        """The row id after the last one."""
        return self.tail_row if self.tail is None else self.tail_row + self.tail.rows - self.tail.start

    @property
    def origin(self) -> int:
        """The row id of the first row that is placed; rows from here to `Snapshot.first_row` are trimmed."""
        return self.spans[0].row if self.spans else self.tail_row

    def placed(self) -> Iterator[Placed]:
        """All spans in order, the tail's included."""
        yield from self.spans
        tail = self.tail
        if tail is not None and tail.rows > tail.start:
            yield Placed(self.tail_row, Span(tail.id, tail.start, tail.rows))

    def placed_from(self, row: int) -> Iterator[Placed]:
        """The spans from the one that holds `row` on; costs what is taken of it."""
        tail = self.tail
        has_rows = tail is not None and tail.rows > tail.start
        if not has_rows or row < self.tail_row:
            spans = self.spans
            for index in range(max(bisect_right(spans, row, key=_row_of) - 1, 0), len(spans)):
                yield spans[index]
        if tail is not None and has_rows:
            yield Placed(self.tail_row, Span(tail.id, tail.start, tail.rows))

    def between(self, start: int, stop: int) -> list[Span]:
        """The spans that hold exactly the rows `start` to `stop`."""
        parts: list[Span] = []
        for placed in self.placed_from(start):
            if placed.row >= stop:
                break
            low, high = max(start, placed.row), min(stop, placed.stop_row)
            if low < high:
                shift = placed.span.start - placed.row
                parts.append(Span(placed.span.block, low + shift, high + shift))
        return parts

    def blocks(self) -> dict[str, tuple[int, int]]:
        """All blocks named so far and not yet forgotten: id to (rows, crc32c)."""
        named = {block.id: (block.rows, block.crc32c) for block in self.sealed}
        for block in (self.tail, self.patch):
            if block is not None:
                named[block.id] = block.rows, block.crc32c
        return named

    def live(self) -> set[str]:
        """The ids of the blocks that spans name, and of those that may grow."""
        ids = {placed.span.block for placed in self.spans}
        return ids | {block.id for block in (self.tail, self.patch) if block is not None}

    def grown(self, rows: int, crc32c: int) -> Column:
        tail = self.tail
        assert tail is not None and tail.rows <= rows <= tail.capacity_rows, "a tail grows within its capacity"
        grown = Tail(tail.column, tail.id, tail.capacity_rows, tail.start, rows, crc32c)
        return Column(self.spans, self.sealed, self.tail_row, grown, self.patch)

    def without_tail(self) -> Column:
        """This column with its tail sealed at its committed length."""
        tail = self.tail
        if tail is None:
            return self
        spans = self.spans
        if tail.rows > tail.start:
            spans = spans.appended(Placed(self.tail_row, Span(tail.id, tail.start, tail.rows)))
        sealed = self.sealed
        if tail.rows:
            sealed = sealed.appended(Block(tail.column, tail.id, tail.rows, tail.crc32c))
        return Column(spans, sealed, self.stop, None, self.patch)

    def with_tail(self, tail: Tail) -> Column:
        """This column followed by the rows `tail.start` to `tail.rows` of `tail`, where it grows from now on."""
        assert tail.start <= tail.rows <= tail.capacity_rows, "a tail begins and ends within its capacity"
        column = self.without_tail()
        return Column(column.spans, column.sealed, column.tail_row, tail, column.patch)

    def patched(self, patch: Patch) -> Column:
        sealed, old = self.sealed, self.patch
        assert patch.rows <= patch.capacity_rows, "a patch block ends within its capacity"
        if old is not None and old.id != patch.id:
            sealed = sealed.appended(Block(old.column, old.id, old.rows, old.crc32c))
        return Column(self.spans, sealed, self.tail_row, self.tail, patch)

    def spliced(self, start: int, stop: int, spans: Sequence[Span]) -> Column:
        """This column with the rows `start` to `stop` replaced by `spans`; see `edit.Splice`."""
        tail, end = self.tail, self.stop
        count = sum(span.stop - span.start for span in spans)
        if not self.spans and (tail is None or tail.rows == tail.start) and start == stop:
            base = self.without_tail()
            return Column(_place(Vector(), start, spans), base.sealed, start + count, None, self.patch)
        assert start <= stop <= end and (count == stop - start or stop == end), (
            "a splice keeps the rows after it in place"
        )
        if start == stop == end:
            base = self.without_tail()
            return Column(_place(base.spans, end, spans), base.sealed, end + count, None, self.patch)
        items = self.spans.copied()
        if tail is not None and tail.rows > tail.start:
            items.append(Placed(self.tail_row, Span(tail.id, tail.start, tail.rows)))
        first = max(bisect_right(items, start, key=_row_of) - 1, 0)
        last = bisect_right(items, stop - 1, key=_row_of)
        origin = items[first].row
        middle = [
            *self.between(origin, start),
            *spans,
            *self.between(stop, items[last - 1].stop_row),
        ]
        items[first:last] = _place(Vector(), origin, middle)
        new_end = end + count - (stop - start)
        if tail is not None and items and (items[-1].span.block, items[-1].span.stop) == (tail.id, tail.rows):
            kept = items.pop()
            tail = Tail(tail.column, tail.id, tail.capacity_rows, kept.span.start, tail.rows, tail.crc32c)
            return Column(Vector.over(items), self.sealed, kept.row, tail, self.patch)
        sealed = self.sealed
        if tail is not None and tail.rows:
            sealed = sealed.appended(Block(tail.column, tail.id, tail.rows, tail.crc32c))
        return Column(Vector.over(items), sealed, new_end, None, self.patch)

    def pruned(self) -> Column:
        """This column without the blocks that no span names (its tail stays)."""
        named = {placed.span.block for placed in self.spans}
        patch = self.patch if self.patch is not None and self.patch.id in named else None
        if patch is self.patch and all(block.id in named for block in self.sealed):
            return self
        sealed = Vector(block for block in self.sealed if block.id in named)
        return Column(self.spans, sealed, self.tail_row, self.tail, patch)

    def renamed(self, old: str, new: str) -> Column:
        """This column with the block `old` replaced by `new`, which holds the same rows."""
        spans = Vector(
            Placed(placed.row, Span(new, placed.span.start, placed.span.stop)) if placed.span.block == old else placed
            for placed in self.spans
        )
        sealed = Vector(Block(b.column, new, b.rows, b.crc32c) if b.id == old else b for b in self.sealed)
        tail, patch = self.tail, self.patch
        if tail is not None and tail.id == old:
            tail = Tail(tail.column, new, tail.capacity_rows, tail.start, tail.rows, tail.crc32c)
        if patch is not None and patch.id == old:
            patch = Patch(patch.column, new, patch.capacity_rows, patch.rows, patch.crc32c)
        return Column(spans, sealed, self.tail_row, tail, patch)

    def trimmed(self, first_row: int) -> Column:
        """This column without the spans that end at or before `first_row` (the tail stays)."""
        spans, count = self.spans, 0
        while count < len(spans) and spans[count].stop_row <= first_row:
            count += 1
        return self if not count else Column(spans.dropped(count), self.sealed, self.tail_row, self.tail, self.patch)


def _place(base: Vector[Placed], row: int, spans: Sequence[Span]) -> Vector[Placed]:
    """`base`, which ends at `row`, followed by `spans`; neighbours that continue one another become one."""
    merged: list[Placed] = []
    for span in spans:
        assert 0 <= span.start <= span.stop, "a span is a range of block rows"
        if span.start == span.stop:
            continue
        if merged and (last := merged[-1].span).block == span.block and last.stop == span.start:
            merged[-1] = Placed(merged[-1].row, Span(span.block, last.start, span.stop))
        else:
            merged.append(Placed(row, span))
        row += span.stop - span.start
    return base.appended(*merged)


class Snapshot(msgspec.Struct, frozen=True):
    """What is committed: rows `first_row` to `rows` (row ids) of every column.

    `durable_rows` of them survive a power loss. `history` steps when committed rows are cut, and `cuts` lists, for
    every history after the first, the row it was cut at. `lost` are pairs of histories: those with numbers between
    them, if there were any, went with a power loss. `commits` counts the edits that changed the blob.
    """

    columns: tuple[Column, ...]
    rows: int = 0
    first_row: int = 0
    durable_rows: int = 0
    history: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    lost: tuple[tuple[int, int], ...] = ()
    commits: int = 0
    metadata: dict[str, Any] | None = None
    notes: Vector[Note] = msgspec.field(default_factory=Vector)
    keys: dict[str, Key] = msgspec.field(default_factory=dict)
    """By producer key its last append, the key that was used last at the end. Never changed in place."""
    finish_row: int | None = None
    retention: Retention = Retention(None, None)
    session: Session | None = None

    @classmethod
    def empty(cls, columns: int) -> Snapshot:
        return cls(tuple(Column() for _ in range(columns)))

    def __len__(self) -> int:
        return self.rows - self.first_row

    @property
    def is_finished(self) -> bool:
        """The stream ends here: the writer said so, and nothing was appended since."""
        return self.finish_row == self.rows

    def committed(self, key: str, sequence: int) -> Key | None:
        """What the producer key `key` committed as `sequence`, its last append; None if that is still to come.

        Raises `ValueError` if it is an earlier one: of those nothing is remembered.
        """
        done = self.keys.get(key)
        if done is None or sequence > done.sequence:
            return None
        check_rises(key, sequence, done.sequence)
        return done

    def cut_after(self, history: int) -> int | None:
        """The lowest row that was cut since `history` was current, or None: rows below it are still what they were."""
        if any(before < history < after for before, after in self.lost):
            return 0
        return min((row for begun, row in self.cuts if begun > history), default=None)

    def apply(self, edit: Edit) -> Snapshot:
        """Return the snapshot after `edit`."""
        if len(edit) == 1 and type(edit[0]) is Grow:  # what nearly every commit says
            return self.grown(edit[0].tails)
        draft = _Draft(self)
        for kind, ops in groupby(edit, type):
            if kind is Block:
                draft.name_blocks(ops)
            else:
                for op in ops:
                    draft.fold(op)
        return draft.snapshot()

    def trimmed(self, first_row: int) -> Snapshot:
        """Return the snapshot without the rows before `first_row`; not a commit of its own."""
        columns = tuple([column.trimmed(first_row) for column in self.columns])
        notes = _trimmed_notes(self.notes, first_row)
        return msgspec.structs.replace(self, columns=columns, first_row=first_row, notes=notes)

    def grown(self, tails: Sequence[tuple[int, int] | None], commits: int = 1) -> Snapshot:
        """Return the snapshot after `commits` edits that only grew the tails, the last of them to `tails`."""
        pairs = zip(self.columns, tails, strict=True)
        columns = tuple([column if tail is None else column.grown(*tail) for column, tail in pairs])
        return Snapshot(
            columns,
            columns[0].stop if len(columns) == 1 else min([column.stop for column in columns]),
            self.first_row,
            self.durable_rows,
            self.history,
            self.cuts,
            self.lost,
            self.commits + commits,
            self.metadata,
            self.notes,
            self.keys,
            self.finish_row,
            self.retention,
            self.session,
        )


def check_rises(key: str, sequence: int, last: int) -> None:
    """Raise `ValueError` if append `sequence` of a producer key comes after append `last`, and is an earlier one."""
    if sequence < last:
        raise ValueError(f"Append {sequence} of {key!r} comes after append {last}; sequence numbers must rise")


class _Draft:
    """One fold in progress: the fields of a snapshot, loose."""

    def __init__(self, base: Snapshot) -> None:
        self.columns = list(base.columns)
        self.value = msgspec.structs.asdict(base)
        del self.value["columns"]
        self.is_commit = self.is_checkpoint = False

    def snapshot(self) -> Snapshot:
        rows = min((column.stop for column in self.columns), default=0)
        self.value["rows"] = rows
        durable_rows = rows if self.is_checkpoint else self.value["durable_rows"]  # starting a generation is a flush
        self.value["durable_rows"] = min(durable_rows, rows)
        self.value["commits"] += self.is_commit and not self.is_checkpoint
        return Snapshot(tuple(self.columns), **self.value)

    def name_blocks(self, blocks: Iterable[Op]) -> None:
        """Fold a row of block operations at once: a checkpoint has as many as the blob has blocks."""
        named: dict[int, list[Block]] = {}
        for block in blocks:
            assert isinstance(block, Block)
            named.setdefault(block.column, []).append(block)
        for number, found in named.items():
            column = self.columns[number]
            self.columns[number] = msgspec.structs.replace(column, sealed=column.sealed.appended(*found))

    def fold(self, op: Op) -> None:
        columns, value = self.columns, self.value
        match op:
            case Grow(tails):
                for number, tail in enumerate(tails):
                    if tail is not None:
                        columns[number] = columns[number].grown(*tail)
            case Tail():
                columns[op.column] = columns[op.column].with_tail(op)
            case Splice():
                columns[op.column] = columns[op.column].spliced(op.start, op.stop, op.spans)
            case Patch():
                columns[op.column] = columns[op.column].patched(op)
            case Trim(first_row):
                value["first_row"] = first_row
                for number, column in enumerate(columns):
                    columns[number] = column.trimmed(first_row)
                value["notes"] = _trimmed_notes(value["notes"], first_row)
            case Cut(row, history):
                before = value["history"]
                assert history > before, "a history's number is never used again"
                if history > before + 1:
                    value["lost"] = _with_lost(value["lost"], before, history)
                value["history"] = history
                value["cuts"] = _with_cut(value["cuts"], history, row)
                value["durable_rows"] = min(value["durable_rows"], row)
                value["notes"] = Vector(note for note in value["notes"] if note.stop <= row)
                value["keys"] = {name: key for name, key in value["keys"].items() if key.stop <= row}
                value["finish_row"] = None
            case Note():
                value["notes"] = value["notes"].appended(op)
            case Key(name):
                keys = {other: key for other, key in value["keys"].items() if other != name}
                while len(keys) >= MAX_KEYS:
                    del keys[next(iter(keys))]
                value["keys"] = keys | {name: op}
            case Finish(row):
                value["finish_row"] = row
            case Metadata(metadata):
                value["metadata"] = metadata
            case Retention():
                value["retention"] = op
            case Durable(_, rows):
                value["durable_rows"] = rows
            case Session():
                value["session"] = op
            case Moved():
                pass
            case State(history, cuts, lost, first_row, commits):
                assert not any(column.spans or column.sealed or column.stop for column in columns), (
                    "a checkpoint stands at the beginning"
                )
                value.update(history=history, cuts=cuts, lost=lost, first_row=first_row, commits=commits)
                self.is_checkpoint = True
        self.is_commit |= type(op) in _COMMITS


def _trimmed_notes(notes: Vector[Note], first_row: int) -> Vector[Note]:
    gone = next((index for index, note in enumerate(notes) if note.stop > first_row), len(notes))
    return notes.dropped(gone) if gone else notes


def _with_cut(cuts: tuple[tuple[int, int], ...], history: int, row: int) -> tuple[tuple[int, int], ...]:
    """`cuts` followed by one at `row`: earlier ones at or above it say nothing more and go, so that rows only rise.

    Beyond `MAX_CUTS` the two oldest become one at the lower row, which can only report a rewrite too many.
    """
    kept = [cut for cut in cuts if cut[1] < row]
    if len(kept) >= MAX_CUTS:
        kept[:2] = [(kept[1][0], kept[0][1])]
    return (*kept, (history, row))


def _with_lost(lost: tuple[tuple[int, int], ...], before: int, after: int) -> tuple[tuple[int, int], ...]:
    """`lost` with one pair more; beyond `MAX_CUTS` the two oldest become one, which can only report a rewrite too
    many.
    """
    if len(lost) >= MAX_CUTS:
        lost = ((lost[0][0], lost[1][1]), *lost[2:])
    return (*lost, (before, after))


_COMMITS = frozenset({Grow, Tail, Splice, Trim, Cut, Note, Metadata, Finish})


def checkpoint(snapshot: Snapshot) -> Edit:
    """Return the edit that, applied to an empty snapshot, gives `snapshot` (less the blocks that no span names)."""
    ops: list[Op] = [State(snapshot.history, snapshot.cuts, snapshot.lost, snapshot.first_row, snapshot.commits)]
    for number, column in enumerate(snapshot.columns):
        live = column.live()
        ops += (block for block in column.sealed if block.id in live)
        origin = column.origin
        ops.append(Splice(number, origin, origin, tuple(placed.span for placed in column.spans)))
        if column.patch is not None:
            ops.append(column.patch)
        if column.tail is not None:
            ops.append(column.tail)
    if snapshot.metadata is not None:
        ops.append(Metadata(snapshot.metadata))
    ops += snapshot.notes
    ops += snapshot.keys.values()
    if snapshot.finish_row is not None:
        ops.append(Finish(snapshot.finish_row))
    if snapshot.retention != Retention(None, None):
        ops.append(snapshot.retention)
    return tuple(ops)
