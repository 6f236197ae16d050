"""Ctrl-C at any moment of a change: the commit is whole or absent, the handle knows which, and goes on.

Python raises `KeyboardInterrupt` where a function begins and where a call into C returns, whatever that call has done by
then. An `Interrupt` waits at one of these places, and the tests move it through all of a change. (A tracer of lines would
come to more of them, and to some that no signal comes to: between the body of a `with` and its end, for one.)
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from api_support import create, numbers, rows, stored
from disk import without_platters

import tensorblob as tb

PACKAGE = str(Path(tb.__file__).parent)
PURE = ("batch", "edit", "format", "memory", "reader", "replay", "schema", "snapshot", "table")
"""Modules that change nothing: an interrupt in them is one in who calls them."""
IGNORED = frozenset(f"{PACKAGE}/{name}.py" for name in PURE)
NEVER = sys.maxsize


@pytest.fixture(autouse=True)
def no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other thread is at work, and nothing has to reach a platter."""
    monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    without_platters(monkeypatch)


class Interrupt:
    """Raise `KeyboardInterrupt` in a `with` block, at its nth (from 0) place; the block is left, and the test goes on.

    `place` says where it was, or None if the block came to its end before; `seen` counts the places. Those in `contextlib`
    count as well: half of a `with` is written in Python there.
    """

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self.seen = 0
        self.place: str | None = None

    def __enter__(self) -> "Interrupt":
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = lambda _: None  # what is raised in a `__del__` Python reports and forgets
        sys.setprofile(self._see)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.setprofile(None)
        sys.unraisablehook = self._unraisable
        return kind is KeyboardInterrupt

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "c_return") or self.place is not None:
            return
        file = frame.f_code.co_filename
        if file.endswith("/contextlib.py") or (file.startswith(PACKAGE) and file not in IGNORED):
            self.seen += 1
            if self.seen > self._nth:
                self.place = f"place {self._nth}: {event} at {file}:{frame.f_lineno}"
                raise KeyboardInterrupt


# ---- the changes

Change = Callable[[tb.TensorBlob, Path], object]


def writing(position: int, *values: int) -> Change:
    def change(blob: tb.TensorBlob, other: Path) -> None:
        blob.seek(position)
        blob.write(rows(*values))

    return change


def transact(blob: tb.TensorBlob, other: Path) -> None:
    with blob.transaction({"a": 1}):
        blob.seek(0, 2)
        blob.write(rows(*range(70, 76)))
        blob.truncate(3)
        blob.write(rows(80, 81))


def rotate(blob: tb.TensorBlob, other: Path) -> None:
    writer = blob._writer
    assert writer is not None
    writer._rotate()


CHANGES: dict[str, Change] = {
    "append to a partial tail": writing(6, 40),
    "append over blocks": writing(6, *range(50, 60)),
    "truncate": lambda blob, other: blob.truncate(2),
    "overwrite": writing(2, 62, 63, 64),
    "transaction": transact,
    "extend": lambda blob, other: blob.extend(other),
    "extend in any order": lambda blob, other: blob.extend(other, maintain_order=False),
    "compact": lambda blob, other: blob.compact(),
    "trim": lambda blob, other: blob.trim(5),
    "begin a generation": rotate,
    "flush": lambda blob, other: blob.flush(),
}
IN_FULL = ("append to a partial tail", "append over blocks", "truncate")
STEP = 3
"""Of the places of the other changes the tests take every third: a few hundred each."""


def begin(path: Path, durability: str) -> tb.TensorBlob:
    """Rows 10 … 15 in blocks of four, one of them in a patch."""
    blob = tb.TensorBlob.open(path, "w+", dtype="float32", shape=1024, block_rows=4, durability=durability)
    blob.write(rows(0, 11, 12, 13, 14))
    blob.seek(0)
    blob.write(rows(10))
    blob.seek(0, 2)
    blob.write(rows(15))
    return blob


def told(blob: tb.TensorBlob) -> tuple[Any, ...]:
    """All that a handle says of its blob, but for what is durable; its rows come first."""
    snapshot = blob.snapshot
    said = snapshot.rows, snapshot.first_row, snapshot.history, snapshot.cuts, snapshot.commits, blob.commit_metadata()
    return numbers(blob[:]), *said


def told_by_the_log(path: Path) -> tuple[Any, ...]:
    with tb.TensorBlob.open(path) as reader:
        return told(reader)


def undisturbed(change: Change, durability: str, path: Path, other: Path) -> tuple[tuple[Any, ...], int]:
    """What the blob is after `change`, and how many places that has."""
    with begin(path, durability) as blob:
        with Interrupt(NEVER) as interrupt:
            change(blob, other)
        return told_by_the_log(path), interrupt.seen


def hold_against_the_claims(
    change: Change, nth: int, durability: str, path: Path, other: Path, expected: tuple[Any, ...]
) -> None:
    """Interrupt `change` at its nth place; `expected` is what it makes of the blob."""
    with begin(path, durability) as blob, tb.TensorBlob.open(path) as follower:
        before = told(follower)
        with Interrupt(nth) as interrupt:
            change(blob, other)
        place = interrupt.place
        seen = told_by_the_log(path)
        assert seen in (before, expected), f"{place}: a whole commit or none"
        assert told(blob) == seen, f"{place}: the handle knows which"
        assert told(follower) == before, f"{place}: a snapshot stays as it was"

        blob.seek(0, 2)
        blob.write(rows(90, 91))
        now = told_by_the_log(path)
        assert now[0] == [*seen[0], 90, 91], f"{place}: the next write goes behind what is there"
        assert told(blob) == now, place
        follower.refresh()
        assert told(follower) == now, place
    with tb.TensorBlob.open(path, "r+") as blob:
        assert told(blob) == now, place
        blob.seek(0, 2)
        blob.write(rows(92))
        named = {block for column in blob.snapshot.columns for block in column.blocks()}
    assert stored(path) == [*now[0], 92], place
    left = {block.name for block in (path / "blocks" / "data").iterdir()}
    assert left == named and not list((path / "producers").iterdir()), f"{place}: nothing is left behind"


def interrupt_all_over(name: str, durability: str, directory: Path, step: Callable[[int], int]) -> None:
    """Interrupt a change at every `step(places)`-th of its places; not at the same ones for both durabilities."""
    change, other = CHANGES[name], create(directory / "other.blob", 5)
    expected, places = undisturbed(change, durability, directory / "undisturbed.blob", other)
    every = step(places)
    for nth in range(0 if durability == "process" else every // 2, places, every):
        hold_against_the_claims(change, nth, durability, directory / f"{nth}.blob", other, expected)


DURABILITIES = pytest.mark.parametrize("durability", ["process", "power"])


@DURABILITIES
def test_an_append_that_is_interrupted_anywhere_is_whole_or_absent_and_the_handle_knows(
    durability: str, tmp_path: Path
) -> None:
    interrupt_all_over("append to a partial tail", durability, tmp_path, lambda places: 1)


@pytest.mark.slow
@DURABILITIES
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "append to a partial tail"])
def test_a_change_that_is_interrupted_here_or_there_is_whole_or_absent_and_the_handle_knows(
    name: str, durability: str, tmp_path: Path
) -> None:
    interrupt_all_over(name, durability, tmp_path, lambda places: max(places // 8, 1))


@pytest.mark.slow
@DURABILITIES
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_interrupted_anywhere_is_whole_or_absent_and_the_handle_knows(
    name: str, durability: str, tmp_path: Path
) -> None:
    interrupt_all_over(name, durability, tmp_path, lambda places: 1 if name in IN_FULL else STEP)
