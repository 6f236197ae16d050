"""Edits fold into snapshots: any prefix of a log is a prefix of history, and a version once taken never changes.

The naive model knows for every row which block row it is, and does everything one row at a time.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

import tensorblob as tb
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
from tensorblob.format import decode_log, log_seed
from tensorblob.snapshot import MAX_CUTS, MAX_KEYS, Column, Snapshot, Vector, checkpoint

# ---- the persistent list


class VectorMachine(RuleBasedStateMachine):
    """Versions of lists, extended in any order: each must stay what it was."""

    versions = Bundle("versions")

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Vector[int], list[int]]] = []
        self.next = 0

    def keep(self, vector: Vector[int], model: list[int]) -> tuple[Vector[int], list[int]]:
        self.made.append((vector, model))
        return vector, model

    @rule(target=versions, count=st.integers(0, 200))
    def begin(self, count: int) -> Any:
        return self.keep(Vector(range(count)), list(range(count)))

    @rule(target=versions, version=versions, count=st.integers(0, 3))
    def append(self, version: Any, count: int) -> Any:
        vector, model = version
        new = list(range(self.next, self.next + count))
        self.next += count
        appended = vector.appended(*new)
        since = appended.since(vector)
        assert since is None or since == new
        return self.keep(appended, model + new)

    @rule(target=versions, version=versions, data=st.data())
    def drop(self, version: Any, data: st.DataObject) -> Any:
        vector, model = version
        count = data.draw(st.integers(0, len(model)))
        return self.keep(vector.dropped(count), model[count:])

    @rule(one=versions, other=versions)
    def what_was_appended_since_is_true(self, one: Any, other: Any) -> None:
        (new, new_model), (old, old_model) = one, other
        since = new.since(old)
        assert since is None or old_model + since == new_model
        assert (new == old) == (new_model == old_model)

    @invariant()
    def no_version_ever_changes(self) -> None:
        for vector, model in self.made:
            assert list(vector) == model and len(vector) == len(model)

    def teardown(self) -> None:
        for vector, model in self.made:
            for index in range(-len(model), len(model)):
                assert vector[index] == model[index]


VectorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestVersionsOfAVector = VectorMachine.TestCase


def test_a_linear_history_of_appends_shares_one_list() -> None:
    vector = Vector[int]()
    versions = []
    for item in range(1000):
        versions.append(vector)
        vector = vector.appended(item)
        assert vector.since(versions[-1]) == [item]
    assert vector.since(versions[0]) == list(range(1000))
    assert len({id(version._items) for version in versions}) == 1


# ---- columns and snapshots against rows


@dataclass
class ColumnModel:
    """Row i of the column, counted from `origin`, is `rows[i]`, a (block, block row)."""

    origin: int = 0
    rows: list[tuple[str, int]] = field(default_factory=list)
    tail: Tail | None = None
    patch: Patch | None = None
    checksums: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.origin + len(self.rows)

    def seal_unless_it_ends_the_column(self) -> None:
        if self.tail is not None and (not self.rows or self.rows[-1] != (self.tail.id, self.tail.rows - 1)):
            self.tail = None


@dataclass
class Model:
    """A snapshot, row by row."""

    columns: list[ColumnModel]
    first_row: int = 0
    durable_rows: int = 0
    history: int = 0
    cuts: list[tuple[int, int]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    finish_row: int | None = None
    metadata: dict[str, Any] | None = None
    retention: Retention = field(default_factory=lambda: Retention(None, None))
    session: Session | None = None
    commits: int = 0

    @property
    def rows(self) -> int:
        return min(column.stop for column in self.columns)

    def apply(self, op: Op) -> None:
        match op:
            case Tail():
                column = self.columns[op.column]
                column.rows += [(op.id, row) for row in range(op.start, op.rows)]
                column.tail, column.checksums[op.id] = op, (op.rows, op.crc32c)
            case Grow(tails):
                for column, grown in zip(self.columns, tails, strict=True):
                    if grown is not None:
                        tail = column.tail
                        assert tail is not None
                        column.rows += [(tail.id, row) for row in range(tail.rows, grown[0])]
                        column.tail = msgspec.structs.replace(tail, rows=grown[0], crc32c=grown[1])
                        column.checksums[tail.id] = grown
            case Block():
                self.columns[op.column].checksums[op.id] = op.rows, op.crc32c
            case Patch():
                column = self.columns[op.column]
                column.patch, column.checksums[op.id] = op, (op.rows, op.crc32c)
            case Splice():
                column = self.columns[op.column]
                if not column.rows:
                    column.origin = op.start
                low, high = op.start - column.origin, op.stop - column.origin
                column.rows[low:high] = [(span.block, row) for span in op.spans for row in range(span.start, span.stop)]
                column.seal_unless_it_ends_the_column()
            case Trim(first_row):
                self.first_row = first_row
                self.notes = [note for note in self.notes if note.stop > first_row]
            case Cut(row, history):
                self.history = history
                self.cuts.append((self.history, row))
                self.durable_rows = min(self.durable_rows, row)
                self.notes = [note for note in self.notes if note.stop <= row]
                self.keys = [key for key in self.keys if key.stop <= row]
                self.finish_row = None
            case Key():
                self.keys = [*(key for key in self.keys if key.key != op.key), op][-MAX_KEYS:]
            case Finish(row):
                self.finish_row = row
            case Note():
                self.notes.append(op)
            case Metadata(value):
                self.metadata = value
            case Retention():
                self.retention = op
            case Session():
                self.session = op
            case Durable(_, rows):
                self.durable_rows = rows


def check(snapshot: Snapshot, model: Model) -> None:
    assert (snapshot.rows, snapshot.first_row, snapshot.history) == (model.rows, model.first_row, model.history)
    assert len(snapshot) == model.rows - model.first_row
    assert snapshot.durable_rows == model.durable_rows
    assert snapshot.commits == model.commits
    assert (snapshot.metadata, snapshot.retention, snapshot.session) == (model.metadata, model.retention, model.session)
    assert list(snapshot.notes) == model.notes
    assert list(snapshot.keys.values()) == model.keys
    assert snapshot.is_finished == (model.finish_row == model.rows)
    for history in range(model.history + 2):
        assert snapshot.cut_after(history) == min((row for begun, row in model.cuts if begun > history), default=None)
    for column, expected in zip(snapshot.columns, model.columns, strict=True):
        check_column(column, expected, model.first_row)


def check_column(column: Column, model: ColumnModel, first_row: int) -> None:
    assert column.stop == model.stop
    assert column.tail is None or model.tail is not None
    if column.tail is not None and model.tail is not None:
        assert (column.tail.id, column.tail.rows, column.tail.crc32c) == (
            model.tail.id,
            model.tail.rows,
            model.tail.crc32c,
        )
    assert column.patch == model.patch
    assert model.tail is None or column.tail is not None, "a tail that ends the column goes on"
    found, row = {}, None
    for placed in column.placed():
        assert row is None or placed.row == row, "spans leave no gap"
        assert (
            placed.span.start < placed.span.stop
            and placed.stop_row - placed.row == placed.span.stop - placed.span.start
        )
        found |= {
            placed.row + i: (placed.span.block, placed.span.start + i) for i in range(placed.stop_row - placed.row)
        }
        row = placed.stop_row
    retained = range(max(first_row, model.origin), model.stop)
    assert [found[row] for row in retained] == [model.rows[row - model.origin] for row in retained]
    assert column.origin <= max(first_row, model.origin) or not retained
    named = column.blocks()
    for block in {block for block, _ in found.values()}:
        assert named[block] == model.checksums[block]
        assert block in column.live()
    for low in retained:
        assert [placed for placed in column.placed() if placed.stop_row > low] == list(column.placed_from(low))
        for high in (low, low + 1, (low + model.stop) // 2, model.stop):
            parts = [(span.block, row) for span in column.between(low, high) for row in range(span.start, span.stop)]
            assert parts == model.rows[low - model.origin : max(high, low) - model.origin]


COLUMNS = 2
CAPACITY = 4
COMMITS = {Grow, Tail, Splice, Trim, Cut, Note, Metadata, Finish}


class SnapshotMachine(RuleBasedStateMachine):
    """Edits on any version so far, as a writer makes them: a new version each, and all the older ones stay true."""

    versions = Bundle("versions")

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Snapshot, Model]] = []
        self.blocks = 0

    def fresh(self) -> str:
        self.blocks += 1
        return f"p-{self.blocks}"

    def apply(self, version: tuple[Snapshot, Model], *edit: Op) -> Any:
        if not edit:
            return multiple()
        snapshot, model = version[0].apply(edit), copy.deepcopy(version[1])
        for op in edit:
            model.apply(op)
        model.durable_rows = min(
            model.durable_rows, model.rows
        )  # rows that are gone are not durable when they grow again
        model.commits += any(type(op) in COMMITS for op in edit)
        self.made.append((snapshot, model))
        check(snapshot, model)
        return snapshot, model

    @rule(target=versions, origin=st.integers(0, 3))
    def begin(self, origin: int) -> Any:
        edit = (State(0, (), (), origin, 0), *(Splice(number, origin, origin, ()) for number in range(COLUMNS)))
        snapshot = Snapshot.empty(COLUMNS).apply(edit)
        model = Model([ColumnModel(origin) for _ in range(COLUMNS)], first_row=origin)
        model.durable_rows = origin
        self.made.append((snapshot, model))
        check(snapshot, model)
        return snapshot, model

    @rule(target=versions, version=versions, count=st.integers(1, 6))
    def append(self, version: Any, count: int) -> Any:
        ops: list[Op] = []
        for number, column in enumerate(version[1].columns):
            left, tail = count, column.tail
            if tail is not None and (part := min(left, tail.capacity_rows - tail.rows)):
                grown: list[tuple[int, int] | None] = [None] * COLUMNS
                grown[number] = tail.rows + part, 100 + tail.rows + part
                ops.append(Grow(tuple(grown)))
                left -= part
            while left:
                part = min(left, CAPACITY)
                ops.append(Tail(number, self.fresh(), CAPACITY, 0, part, 100 + part))
                left -= part
        return self.apply(version, *ops)

    @rule(target=versions, version=versions, data=st.data())
    def grow_all(self, version: Any, data: st.DataObject) -> Any:
        """What nearly every commit says."""
        tails = [column.tail for column in version[1].columns]
        if any(tail is None or tail.rows == tail.capacity_rows for tail in tails):
            return multiple()
        counts = [data.draw(st.integers(tail.rows, tail.capacity_rows)) for tail in tails]
        return self.apply(version, Grow(tuple((count, 100 + count) for count in counts)))

    @rule(target=versions, version=versions, column=st.integers(0, COLUMNS - 1), data=st.data())
    def overwrite(self, version: Any, column: int, data: st.DataObject) -> Any:
        model = version[1]
        mine = model.columns[column]
        low = data.draw(st.integers(max(mine.origin, model.first_row), max(mine.stop, model.first_row)))
        high = data.draw(st.integers(low, mine.stop)) if low <= mine.stop else low
        if low >= high:
            return multiple()
        patch = mine.patch
        if patch is None or patch.rows + high - low > 64:
            patch = Patch(column, self.fresh(), 64, 0, 0)
        start, stop = patch.rows, patch.rows + high - low
        ops = Patch(column, patch.id, 64, stop, 500 + stop), Splice(column, low, high, (Span(patch.id, start, stop),))
        return self.apply(version, *ops)

    @rule(target=versions, version=versions, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
    def adopt(self, version: Any, sizes: list[int]) -> Any:
        """Spans of sealed blocks at the end, one of them named twice."""
        ops: list[Op] = []
        for number, column in enumerate(version[1].columns):
            spans = []
            for size in sizes:
                id = self.fresh()
                ops.append(Block(number, id, size + 1, 7))
                spans.append(Span(id, 1, 1 + size))
            spans.append(spans[0])
            ops.append(Splice(number, column.stop, column.stop, tuple(spans)))
        return self.apply(version, *ops)

    @rule(target=versions, version=versions, data=st.data())
    def truncate(self, version: Any, data: st.DataObject) -> Any:
        model = version[1]
        row = data.draw(st.integers(model.first_row, model.rows)) if model.first_row <= model.rows else model.rows
        cuts = [Splice(n, row, c.stop, ()) for n, c in enumerate(model.columns) if row < c.stop]
        return self.apply(version, *cuts, Cut(row, model.history + 1)) if cuts else multiple()

    @rule(target=versions, version=versions, data=st.data())
    def replace_the_end(self, version: Any, data: st.DataObject) -> Any:
        """As compact and extend do: the rows from some row on become others, fewer or more."""
        model = version[1]
        ops: list[Op] = []
        for number, column in enumerate(model.columns):
            row = data.draw(st.integers(max(column.origin, model.first_row), column.stop))
            if row == column.stop:
                return multiple()
            ops.append(Splice(number, row, column.stop, ()))
            ops.append(Tail(number, self.fresh(), CAPACITY, 0, data.draw(st.integers(1, CAPACITY)), 3))
        return self.apply(version, *ops)

    @rule(target=versions, version=versions, data=st.data())
    def trim(self, version: Any, data: st.DataObject) -> Any:
        model = version[1]
        if model.first_row > model.rows:
            return multiple()
        return self.apply(version, Trim(data.draw(st.integers(model.first_row, model.rows))))

    @rule(target=versions, version=versions, data=st.data())
    def note(self, version: Any, data: st.DataObject) -> Any:
        rows = version[1].rows
        start = data.draw(st.integers(0, rows))
        return self.apply(version, Note(start, rows, {"n": self.blocks}))

    @rule(target=versions, version=versions, name=st.sampled_from("abc"), sequence=st.integers(0, 3), data=st.data())
    def key(self, version: Any, name: str, sequence: int, data: st.DataObject) -> Any:
        rows = version[1].rows
        return self.apply(version, Key(name, sequence, data.draw(st.integers(0, rows)), rows))

    @rule(target=versions, version=versions)
    def finish(self, version: Any) -> Any:
        return self.apply(version, Finish(version[1].rows))

    @rule(target=versions, version=versions, data=st.data())
    def say_something_else(self, version: Any, data: st.DataObject) -> Any:
        rows = version[1].rows
        ops: list[Op] = [
            Metadata({"a": 1}),
            Retention(7, None),
            Session("p", "boot", 1, 2, 3, "h"),
            Moved(2),
            Durable(0, data.draw(st.integers(0, rows))),
        ]
        return self.apply(version, data.draw(st.sampled_from(ops)))

    @rule(target=versions, version=versions)
    def restart_from_a_checkpoint(self, version: Any) -> Any:
        """The edits may go on behind it as if nothing had been."""
        snapshot, model = version
        restored, model = Snapshot.empty(COLUMNS).apply(checkpoint(snapshot)), copy.deepcopy(model)
        model.session, model.durable_rows = None, model.rows
        check(restored, model)
        assert restored == msgspec.structs.replace(
            snapshot,
            session=None,
            durable_rows=snapshot.rows,
            columns=tuple(
                msgspec.structs.replace(column, sealed=Vector(b for b in column.sealed if b.id in column.live()))
                for column in snapshot.columns
            ),
        )
        assert checkpoint(restored) == checkpoint(snapshot)
        self.made.append((restored, model))
        return restored, model

    def teardown(self) -> None:
        for snapshot, model in self.made:
            check(snapshot, model)


SnapshotMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)
TestSnapshotsAgainstRows = SnapshotMachine.TestCase


@given(cuts=st.lists(st.integers(0, 40), max_size=60), limit=st.integers(2, 10))
@settings(deadline=None)
def test_forgotten_cuts_can_only_report_a_rewrite_too_many(cuts: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.snapshot.MAX_CUTS", limit)
        snapshot = reduce(
            Snapshot.apply, [(Cut(row, history),) for history, row in enumerate(cuts, 1)], Snapshot.empty(1)
        )
    assert len(snapshot.cuts) <= limit + 1 <= MAX_CUTS
    for history in range(len(cuts) + 1):
        true = min(cuts[history:], default=None)
        found = snapshot.cut_after(history)
        assert (found is None) == (true is None)
        assert found is None or true is None or found <= true


# ---- a real log

SCHEMA = {"x": ("float32", (512,)), ("deep", "y"): ("int64", (128,))}


def _batch(*values: int) -> dict[str, Any]:
    column = torch.tensor(values)[:, None]
    return {"x": column.float().expand(-1, 512), "deep": {"y": column.expand(-1, 128)}}


def _steps(blob: tb.TensorBlob, other: Path) -> list[Callable[[], object]]:
    return [
        lambda: blob.write(_batch(*range(5))),
        lambda: blob.write(_batch(*range(5, 30)), metadata={"n": 1}),
        lambda: blob.write(_batch(30)),
        lambda: (blob.seek(3), blob.write(_batch(-1, -2, -3))),
        lambda: blob.flush(),
        lambda: (blob.seek(29), blob.write(_batch(*range(100, 109)))),
        lambda: blob.truncate(33),
        lambda: blob.write(_batch(*range(40, 50))),
        lambda: blob.trim(11),
        lambda: blob.extend(other),
        lambda: blob.set_metadata({"k": [1]}),
        lambda: blob.write(_batch(7, 8)),
        lambda: blob.extend(other, maintain_order=False),
        lambda: blob.truncate(0),
        lambda: blob.write(_batch(11, 12)),
    ]


def _shape(snapshot: Snapshot) -> tuple[Any, ...]:
    """A snapshot without the operations of no commit."""
    columns = [(list(column.placed()), column.tail, column.patch, column.blocks()) for column in snapshot.columns]
    told = snapshot.history, snapshot.cuts, snapshot.metadata, list(snapshot.notes), snapshot.retention
    return snapshot.rows, snapshot.first_row, snapshot.durable_rows, told, columns


def test_replaying_any_prefix_of_the_log_gives_a_prefix_of_history(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "other.blob", "w", schema=SCHEMA, block_rows=8) as other:
        other.write(_batch(*range(200, 221)))
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", schema=SCHEMA, block_rows=8, durability="power") as blob:
        history = [_shape(blob.snapshot)]
        for step in _steps(blob, tmp_path / "other.blob"):
            step()
            history.append(_shape(blob.snapshot))
        uuid = blob._store.uuid
        data = (tmp_path / "x.blob" / "manifest.000001").read_bytes()
    seed = log_seed(uuid, 1)
    edits: list[Edit] = [record.edit for record in decode_log(data, seed, 0)]
    whole = [_shape(snapshot) for snapshot in _replayed(edits)]
    assert [shape for shape in whole if shape in history] and whole[-1] == history[-1]
    assert [shape[3:] for shape in _distinct(whole)] == [shape[3:] for shape in _distinct(history)]
    for cut in range(len(data) + 1):
        found = [record.edit for record in decode_log(data[:cut], seed, 0)]
        assert found == edits[: len(found)]
        if cut % 64 == 0 or found == edits:
            assert [_shape(snapshot) for snapshot in _replayed(found)] == whole[: len(found)]


def _replayed(edits: list[Edit]) -> list[Snapshot]:
    return list(accumulate(edits, Snapshot.apply, initial=Snapshot.empty(len(SCHEMA))))[1:]


def _distinct(shapes: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Without those that only say again what the one before says (marks, sessions)."""
    return [
        shape
        for before, shape in zip([None, *shapes], shapes, strict=False)
        if before is None or shape[3:] != before[3:]
    ]
