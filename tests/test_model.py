"""A stateful property test: `TensorBlob` does whatever a list of rows would do, and what was handed out never changes.

Hypothesis makes up sequences of operations, reopenings, readers and views. After each step the blob must hold the model's
rows, every reader the rows of the snapshot it took, and every view the rows it was made over, bit for bit.
"""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tensordict import TensorDictBase

import tensorblob as tb

READER_OPTIONS: list[dict[str, Any]] = [{}, {"io": "pread"}, {"max_cached_blocks": 1}, {"max_cached_blocks": 2}]
WRITER_OPTIONS: list[dict[str, Any]] = [*READER_OPTIONS, {"durability": "power"}]
HELD = 4  # readers, and views, that are held at a time


class RollBack(Exception):
    pass


class BlobMachine(RuleBasedStateMachine):
    """One blob, its writer or whatever handle is open on it, readers and views; `model` is the number in each row."""

    schema: ClassVar[dict[str, tuple[str, tuple[int, ...]]]] = {
        "": ("int32", (1024,))
    }  # a page: the quantum is one row
    block_rows = 3
    batch = st.integers(0, 8)

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tensorblob-model-"))
        self.path = self.directory / "x.blob"
        self.readers: list[tuple[tb.TensorBlob, list[int], tb.Snapshot]] = []
        self.views: list[tuple[Any, list[int]]] = []
        self.model: list[int] = []
        self.next_number = 1
        self.copies = 0

    def teardown(self) -> None:
        for reader, _, _ in self.readers:
            reader.close()
        if hasattr(self, "blob"):
            self.blob.close()
        shutil.rmtree(self.directory)

    # ---- numbers to rows and back

    @property
    def options(self) -> dict[str, Any]:
        if "" in self.schema:
            dtype, shape = self.schema[""]
            return {"dtype": dtype, "shape": shape, "block_rows": self.block_rows}
        return {"schema": self.schema, "block_rows": self.block_rows}

    def fresh(self, count: int) -> list[int]:
        self.next_number += count
        return list(range(self.next_number - count, self.next_number))

    def rows(self, numbers: list[int]) -> Any:
        fields = {
            name: torch.tensor(numbers).reshape(-1, *[1] * len(shape)).expand(-1, *shape).to(getattr(torch, dtype))
            for name, (dtype, shape) in self.schema.items()
        }
        return fields.get("", fields)

    def numbers(self, got: Any) -> list[int]:
        """The number in each row; all numbers of a row, in all its fields, must agree."""
        found: list[list[int]] = []
        for name, (dtype, shape) in self.schema.items():
            field = got if not name else got[name]
            assert field.dtype == getattr(torch, dtype) and field.shape[1:] == shape
            flat = field.reshape(len(field), math.prod(shape))
            assert bool((flat == flat[:, :1]).all())
            found.append([int(x) for x in flat[:, 0]])
        assert all(numbers == found[0] for numbers in found)
        if isinstance(got, TensorDictBase):
            assert got.batch_size == torch.Size([len(found[0])])
        return found[0]

    # ---- what must always be true

    @invariant()
    def the_blob_holds_the_rows_of_the_model(self) -> None:
        if not hasattr(self, "blob"):
            return
        blob = self.blob
        assert len(blob) == len(self.model)
        assert 0 <= blob.tell() <= len(blob)
        assert blob.snapshot.rows - blob.snapshot.first_row == len(self.model)
        assert (blob.first_row, blob.rows, blob.history) == (
            blob.snapshot.first_row,
            blob.snapshot.rows,
            blob.snapshot.history,
        )
        assert blob.durable_rows <= blob.rows
        if blob.mode not in ("w", "a"):
            assert self.numbers(blob[:]) == self.model
        else:
            with tb.TensorBlob.open(self.path) as reader:
                assert self.numbers(reader[:]) == self.model

    @invariant()
    def what_was_handed_out_never_changes(self) -> None:
        for reader, model, snapshot in self.readers:
            assert reader.snapshot == snapshot
            assert self.numbers(reader[:]) == model
        for view, model in self.views:
            assert self.numbers(view) == model

    # ---- opening

    @initialize(mode=st.sampled_from(["w", "w+"]))
    def create(self, mode: str) -> None:
        self.blob = tb.TensorBlob.open(self.path, mode, **self.options)

    @rule(mode=st.sampled_from(["r", "r+", "r+", "a", "a+"]), options=st.sampled_from(WRITER_OPTIONS))
    def reopen(self, mode: str, options: dict[str, Any]) -> None:
        rows, first_row, history = self.blob.rows, self.blob.first_row, self.blob.history
        self.blob.close()
        self.blob = tb.TensorBlob.open(self.path, mode, **options)
        assert (self.blob.rows, self.blob.first_row, self.blob.history) == (rows, first_row, history)
        assert self.blob.durable_rows == rows  # the last writer closed
        assert self.blob.tell() == (len(self.model) if "a" in mode else 0)

    @rule(mode=st.sampled_from(["w", "w+"]))
    def start_over(self, mode: str) -> None:
        history = self.blob.history
        self.blob.close()
        self.blob = tb.TensorBlob.open(self.path, mode)
        assert self.blob.history > history if self.model else self.blob.history >= history
        self.model = []
        assert self.blob.tell() == 0

    def writable(self) -> bool:
        return hasattr(self, "blob") and self.blob.mode != "r"

    def readable(self) -> bool:
        return hasattr(self, "blob") and self.blob.mode not in ("w", "a")

    def readonly(self) -> bool:
        return hasattr(self, "blob") and self.blob.mode == "r"

    # ---- rows in

    def write_once(self, count: int, model: list[int]) -> list[int]:
        """Write at the cursor (or the end) and return what the rows must then be."""
        at = len(model) if "a" in self.blob.mode else self.blob.tell()
        numbers = self.fresh(count)
        assert self.blob.write(self.rows(numbers)) == count
        assert self.blob.tell() == at + count
        return [*model[:at], *numbers, *model[at + count :]]

    @precondition(writable)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        history = self.blob.history
        self.model = self.write_once(data.draw(self.batch), self.model)
        assert self.blob.history == history

    @precondition(writable)
    @rule(data=st.data(), where=st.floats(0, 1))
    def overwrite(self, data: st.DataObject, where: float) -> None:
        history = self.blob.history
        self.blob.seek(int(where * len(self.model)))
        self.model = self.write_once(data.draw(self.batch), self.model)
        assert self.blob.history == history

    @precondition(writable)
    @rule(data=st.data(), fails=st.booleans(), seeks=st.lists(st.floats(0, 1), max_size=4))
    def transaction(self, data: st.DataObject, fails: bool, seeks: list[float]) -> None:
        before, model = self.blob.snapshot, self.model
        try:
            with tb.TensorBlob.open(self.path) as reader, self.blob.transaction():
                for where in seeks:
                    self.blob.seek(int(where * len(model)))
                    model = self.write_once(data.draw(self.batch), model)
                reader.refresh()  # only a durable mark may be new
                assert self.numbers(reader[:]) == self.model
                assert (reader.rows, reader.first_row, reader.history) == (
                    before.rows,
                    before.first_row,
                    before.history,
                )
                if fails:
                    raise RollBack
        except RollBack:
            after = self.blob.snapshot
            assert (after.rows, after.first_row, after.history) == (before.rows, before.first_row, before.history)
            self.blob.seek(0)
        else:
            self.model = model

    @precondition(writable)
    @rule(data=st.data(), tail=st.data(), same_blocks=st.booleans())
    def extend(self, data: st.DataObject, tail: st.DataObject, same_blocks: bool) -> None:
        self.copies += 1
        options = self.options | ({} if same_blocks else {"block_rows": 2 * self.block_rows})
        with tb.TensorBlob.open(self.directory / f"source {self.copies}", "w+", **options) as source:
            numbers = self.fresh(data.draw(self.batch)) + self.fresh(tail.draw(self.batch))
            source.write(self.rows(numbers[:1]))
            source.write(self.rows(numbers[1:]))
            self.blob.extend(source)
            assert self.numbers(source[:]) == numbers
        self.model = [*self.model, *numbers]
        assert self.blob.tell() == len(self.model)

    @precondition(writable)
    @rule(data=st.data())
    def extend_in_any_order(self, data: st.DataObject) -> None:
        self.copies += 1
        numbers = self.fresh(data.draw(self.batch))
        with tb.TensorBlob.open(self.directory / f"source {self.copies}", "w+", **self.options) as source:
            source.write(self.rows(numbers))
            self.blob.extend(source, maintain_order=False)
        with tb.TensorBlob.open(self.path) as reader:
            found = self.numbers(reader[:])
        assert sorted(found) == sorted([*self.model, *numbers])
        self.model = found

    @precondition(lambda self: self.readable() and self.writable() and len(self.model) < 60)
    @rule()
    def extend_by_itself(self) -> None:
        self.blob.extend(self.blob)
        self.model = self.model * 2

    # ---- rows out

    @precondition(writable)
    @rule(where=st.floats(0, 1), at_cursor=st.booleans())
    def truncate(self, where: float, at_cursor: bool) -> None:
        history, pos = self.blob.history, int(where * len(self.model))
        if at_cursor:
            self.blob.seek(pos)
        assert self.blob.truncate(None if at_cursor else pos) == pos
        assert (self.blob.history > history) is (pos < len(self.model))
        self.model = self.model[:pos]
        assert self.blob.tell() == pos

    @precondition(writable)
    @rule(where=st.floats(0, 1))
    def trim(self, where: float) -> None:
        first_row, history, count = self.blob.first_row, self.blob.history, int(where * len(self.model))
        assert self.blob.trim(first_row + count) == first_row + count
        assert (self.blob.first_row, self.blob.history) == (first_row + count, history)
        self.model = self.model[count:]

    @precondition(writable)
    @rule()
    def compact(self) -> None:
        before = self.blob.snapshot
        self.blob.compact()
        after = self.blob.snapshot
        assert (after.first_row, after.rows, after.history) == (before.first_row, before.rows, before.history)
        with tb.TensorBlob.open(self.path) as reader:
            assert reader.runs() == ([(0, len(self.model))] if self.model else [])

    @precondition(writable)
    @rule()
    def flush(self) -> None:
        self.blob.flush()
        assert self.blob.durable_rows == self.blob.rows

    @precondition(readable)
    @rule(where=st.floats(0, 1), size=st.none() | st.integers(0, 9))
    def read(self, where: float, size: int | None) -> None:
        pos = self.blob.seek(int(where * len(self.model)))
        expected = self.model[pos:] if size is None else self.model[pos : pos + size]
        assert self.numbers(self.blob.read(size)) == expected
        assert self.blob.tell() == pos + len(expected)

    @precondition(readonly)
    @rule()
    def a_reader_cannot_write(self) -> None:
        for act in (lambda: self.blob.write(self.rows([1])), lambda: self.blob.truncate(0), self.blob.compact):
            with pytest.raises(tb.NotWritable):
                act()

    # ---- others look on

    @rule()
    def copy(self) -> None:
        if self.blob.mode == "w" or self.blob.mode == "a":
            return
        self.copies += 1
        copy = self.directory / f"copy {self.copies}"
        self.blob.copy(copy)
        self.views.append((_read_all(copy), self.model))
        with tb.TensorBlob.open(copy, "a") as blob:
            blob.write(self.rows([0]))
        self.views = self.views[-HELD:]

    @precondition(lambda self: hasattr(self, "blob"))
    @rule(options=st.sampled_from(READER_OPTIONS))
    def hold_a_reader(self, options: dict[str, Any]) -> None:
        if len(self.readers) == HELD:
            self.readers.pop(0)[0].close()
        reader = tb.TensorBlob.open(self.path, **options)
        self.readers.append((reader, self.model, reader.snapshot))

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, HELD - 1))
    def refresh_a_reader(self, which: int) -> None:
        reader, _, before = self.readers[which % len(self.readers)]
        moved = reader.refresh()
        assert moved or reader.snapshot == before
        assert self.numbers(reader[:]) == self.model
        assert (reader.rows, reader.first_row, reader.history) == (
            self.blob.rows,
            self.blob.first_row,
            self.blob.history,
        )
        self.readers[which % len(self.readers)] = (reader, self.model, reader.snapshot)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, HELD - 1), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def hold_a_view(self, which: int, ends: tuple[float, float]) -> None:
        reader, model, _ = self.readers[which % len(self.readers)]
        start, stop = (int(end * len(model)) for end in sorted(ends))
        runs = reader.runs(start, stop)
        views = [(reader.view(*run), model[slice(*run)]) for run in runs]
        assert [i for run in runs for i in range(*run)] == list(range(start, stop))
        self.views = [*self.views, *views][-HELD:]


def _read_all(path: Path) -> Any:
    with tb.TensorBlob.open(path) as blob:
        return blob[:]


class HalfPages(BlobMachine):
    schema: ClassVar = {"": ("int64", (2, 128))}  # 2048 bytes: the quantum is two rows
    block_rows = 4


class OddRows(BlobMachine):
    schema: ClassVar = {
        "": ("int32", (250,))
    }  # 1000 bytes: the quantum is 512 rows, so that every cut leaves a part of one
    block_rows = 512
    batch = st.integers(0, 700)


class SeveralFields(BlobMachine):
    schema: ClassVar = {"obs": ("int16", (2, 1024)), "reward": ("int32", (512,)), "action": ("int64", (1024,))}
    block_rows = 2
    batch = st.integers(0, 6)


MODEST = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
TestBlobIsAListOfRows = pytest.mark.slow(BlobMachine.TestCase)
TestBlobIsAListOfHalfPages = pytest.mark.slow(HalfPages.TestCase)
TestBlobIsAListOfOddRows = pytest.mark.slow(OddRows.TestCase)
TestBlobIsAListOfSeveralFields = pytest.mark.slow(SeveralFields.TestCase)
TestBlobIsAListOfRows.settings = MODEST
TestBlobIsAListOfHalfPages.settings = MODEST
TestBlobIsAListOfOddRows.settings = settings(MODEST, max_examples=8)
TestBlobIsAListOfSeveralFields.settings = MODEST
