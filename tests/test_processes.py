"""Processes that write, follow, die and come back: readers see whole commits in order, and nothing acknowledged is lost.

Every row says which commit it belongs to, its place in it, and how many rows the commit has.
"""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import complaint, create, elsewhere, numbers, process, rows, stored
from disk import Act, put_between, without_platters

import tensorblob as tb

pytestmark = pytest.mark.usefixtures("no_platters")

SCHEMA = {"commit": "int64", "place": "int64", "count": "int64", "more": ("float32", (600,))}
WAYS: list[dict[str, Any]] = [{}, {"io": "pread"}, {"max_cached_blocks": 3}]


def commit(number: int) -> dict[str, torch.Tensor]:
    """The rows of one commit: 1 to 7 of them."""
    count = number * 5 % 7 + 1
    return {
        "commit": torch.full((count,), number),
        "place": torch.arange(count),
        "count": torch.full((count,), count),
        "more": torch.full((count, 600), float(number)),
    }


def whole_commits(found: Any, *, cut_at_front: bool = False) -> list[int]:
    """The numbers of the commits in these rows, each of which must be whole (but the first, where rows are trimmed)."""
    numbers, places, counts = (found[key].tolist() for key in ("commit", "place", "count"))
    assert bool((found["more"] == found["commit"].float()[:, None]).all()), "the fields of a row are of one commit"
    seen: list[int] = []
    position = 0
    while position < len(numbers):
        number, place, count = numbers[position], places[position], counts[position]
        assert place == 0 or (cut_at_front and position == 0), "a commit begins with its first row"
        rest = count - place
        assert numbers[position : position + rest] == [number] * rest, "and is there to its last"
        assert places[position : position + rest] == list(range(place, count))
        seen.append(number)
        position += rest
    return seen


def open_stream(path: Path, mode: str, **options: Any) -> tb.TensorBlob:
    return tb.TensorBlob.open(path, mode, **({} if mode == "r" else {"schema": SCHEMA, "block_rows": 64}), **options)


def _hasten(edits: int) -> None:
    """In a process of its own: begin a generation every few edits, and do not wait for a disk (a kill spares the kernel)."""
    patch = pytest.MonkeyPatch()
    patch.setattr("tensorblob.writer.MAX_EDITS", edits)
    without_platters(patch)


def _stream(connection: Connection, path: Path, options: dict[str, Any], edits: int) -> None:
    """Write commits, saying after each which it was, until told to end."""
    _hasten(edits)
    with open_stream(path, "a", **options) as writer:
        number = writer.metadata["next"] if not len(writer) else None
        if number is None:
            with open_stream(path, "r") as reader:
                number = int(reader[-1]["commit"]) + 1
        while not connection.poll():
            writer.write(commit(number))
            connection.send(number)
            number += 1


def begin(path: Path, **options: Any) -> Path:
    open_stream(path, "w", metadata={"next": 0}, **options).close()
    return path


def last_sent(connection: Connection, last: int) -> int:
    """The newest number in the pipe; blocks only if there is none, and `last` if its other end is gone."""
    try:
        last = connection.recv()
        while connection.poll():
            last = connection.recv()
    except (EOFError, ConnectionResetError):
        pass
    return last


def finish(connection: Connection, child: BaseProcess) -> None:
    connection.send("enough")
    while connection.poll(None):  # what it still has to say, so that it gets to hear us
        try:
            connection.recv()
        except (EOFError, ConnectionResetError):
            break
    child.join()
    assert child.exitcode == 0


# ---- a reader at work


@pytest.mark.slow
@pytest.mark.parametrize("edits", [7, 10_000])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_follower_only_ever_sees_whole_commits_in_order(way: dict[str, Any], edits: int, tmp_path: Path) -> None:
    path = begin(tmp_path / "x.blob")
    with open_stream(path, "r", **way) as reader, process(_stream, path, {}, edits) as (connection, child):
        seen = position = 0
        acknowledged = -1
        while seen < 400:
            acknowledged = last_sent(connection, acknowledged)
            reader.refresh()
            found = whole_commits(reader[position:])
            assert found == list(range(seen, seen + len(found)))
            seen, position = seen + len(found), len(reader)
            assert seen > acknowledged, "what was acknowledged is seen"
            sample = torch.randint(0, position, (16,))
            again = reader.gather(sample)
            assert bool((again["more"][:, 0] == again["commit"]).all())
        finish(connection, child)


@pytest.mark.parametrize("options", [{}, {"durability": "power"}, {"flush_every_s": 0.001}], ids=str)
def test_a_ring_is_followed_over_trims_and_generations(options: dict[str, Any], tmp_path: Path) -> None:
    path = begin(tmp_path / "x.blob", max_rows=200)
    with open_stream(path, "r") as reader, process(_stream, path, options, 11) as (connection, child):
        newest = -1
        while newest < 300:
            acknowledged = last_sent(connection, newest)
            reader.refresh()
            found = whole_commits(reader[:], cut_at_front=True)
            assert found == list(range(found[0], found[0] + len(found)))
            assert found[-1] >= max(newest, acknowledged) and len(reader) <= 200
            newest = found[-1]
        finish(connection, child)


def test_opening_never_fails_while_generations_come_and_go(tmp_path: Path) -> None:
    path = begin(tmp_path / "x.blob")
    with process(_stream, path, {}, 2) as (connection, _):
        seen = 0
        while seen < 150:
            acknowledged = last_sent(connection, -1)
            for _ in range(5):
                with open_stream(path, "r") as reader:
                    found = whole_commits(reader[:])
                    assert found == list(range(len(found))) and len(found) >= max(seen, acknowledged + 1)
                    seen = len(found)


def _overwrite_all(connection: Connection, path: Path) -> None:
    """Replace all rows, with one number after another, in one commit each; and compact, trim and regrow in between."""
    _hasten(13)
    with tb.TensorBlob.open(path, "r+") as blob:
        number = 0
        while not connection.poll():
            number += 1
            with blob.transaction():
                if number % 5 == 3:
                    blob.trim(blob.first_row + 1)
                if number % 5 == 4:
                    blob.truncate(len(blob) - 1)
                blob.seek(0)
                blob.write(rows(*[number] * 9))
                blob.seek(4)
                blob.write(rows(number))
            if number % 11 == 0:
                blob.compact()
            connection.send(number)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rows_that_are_replaced_together_are_seen_together(way: dict[str, Any], tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 0)
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(*[0] * 9))
    with tb.TensorBlob.open(path, **way) as reader, process(_overwrite_all, path) as (connection, child):
        newest = 0
        while newest < 200:
            acknowledged = last_sent(connection, newest)
            reader.refresh()
            found = numbers(reader[:])
            assert len(set(found)) == 1 and len(found) == 9, "never a mixture of two commits"
            assert found[0] >= max(newest, acknowledged)
            newest = found[0]
            assert numbers(reader.gather([8, 0, 4])) == [newest] * 3
        finish(connection, child)


@pytest.mark.slow
def test_copies_of_a_blob_that_is_being_written_are_whole_prefixes_and_copies_by_hand_are_or_are_refused(
    tmp_path: Path,
) -> None:
    path = begin(tmp_path / "x.blob")
    with open_stream(path, "r") as reader, process(_stream, path, {}, 10_000) as (connection, _):
        for number in range(12):
            acknowledged = last_sent(connection, -1)
            by_hand = Path(shutil.copytree(path, tmp_path / f"cp {number}.blob"))
            try:
                with open_stream(by_hand, "r") as copied:
                    found = whole_commits(copied[:])
                    assert found == list(range(len(found)))
            except tb.Corrupt:
                pass  # blocks copied before a generation began that says they are longer: refused, never wrong rows
            reader.refresh()
            reader.copy(tmp_path / f"copy {number}.blob")
            with open_stream(tmp_path / f"copy {number}.blob", "a+") as copied:
                found = whole_commits(copied[:])
                assert found == list(range(len(found))) and len(found) > acknowledged and len(copied) == len(reader)
                copied.write(commit(len(found)))
                assert whole_commits(copied[:]) == [*found, len(found)]


# ---- a writer that is killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "edits"), [({}, 10_000), ({}, 5), ({"durability": "power"}, 9), ({"flush_every_s": 0.001}, 9)]
)
def test_a_writer_killed_in_mid_stream_loses_nothing_it_acknowledged(
    options: dict[str, Any], edits: int, tmp_path: Path
) -> None:
    path = begin(tmp_path / "x.blob")
    acknowledged = -1
    with open_stream(path, "r") as follower:
        for count in (1, 40, 3, 77, 12, 25):
            with process(_stream, path, options, edits) as (connection, child):
                for _ in range(count):
                    acknowledged = connection.recv()
                child.kill()
                child.join()
                acknowledged = last_sent(connection, acknowledged)
            with open_stream(path, "r") as reader:
                found = whole_commits(reader[:])
                assert found == list(range(len(found))), "in order, none twice, none missing"
                assert acknowledged + 1 <= len(found) <= acknowledged + 2
                assert reader.history == 0, "nothing was cut"
            follower.refresh()
            assert whole_commits(follower[:]) == found
    with open_stream(path, "a") as writer:
        writer.write(commit(len(found)))
        assert {block.name for block in (path / "blocks" / "more").iterdir()} == set(
            writer.snapshot.columns[3].blocks()
        )
        assert len(list((path / "producers").iterdir())) == 1


def _steps(other: Path) -> list[tuple[Callable[[tb.TensorBlob], object], list[int]]]:
    """Changes, and what the blob holds after each."""
    return [
        (lambda b: b.write(rows(0, 1, 2)), [0, 1, 2]),
        (lambda b: b.write(rows(3, 4, 5, 6, 7, 8)), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda b: (b.seek(2), b.write(rows(92, 93))), [0, 1, 92, 93, 4, 5, 6, 7, 8]),
        (lambda b: b.flush(), [0, 1, 92, 93, 4, 5, 6, 7, 8]),
        (lambda b: b.truncate(6), [0, 1, 92, 93, 4, 5]),
        (lambda b: b.write(rows(96)), [0, 1, 92, 93, 4, 5, 96]),
        (lambda b: b.trim(2), [92, 93, 4, 5, 96]),
        (lambda b: b.extend(other), [92, 93, 4, 5, 96, 0, 1, 2]),
        (lambda b: b.compact(), [92, 93, 4, 5, 96, 0, 1, 2]),
        (lambda b: b.write(rows(10)), [92, 93, 4, 5, 96, 0, 1, 2, 10]),
        (lambda b: b.truncate(0), []),
        (lambda b: b.write(rows(11)), [11]),
    ]


def _change_and_die(connection: Connection, path: Path, other: Path, nth: int, options: dict[str, Any]) -> None:
    """Be killed just before the nth durable act."""
    _hasten(6)
    patch = pytest.MonkeyPatch()
    patch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    disk = put_between(patch, path.parent)
    left = nth

    def die(act: Act) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    disk.watch = die
    with tb.TensorBlob.open(path, "r+", **options) as blob:
        for number, (step, _) in enumerate(_steps(other)):
            step(blob)
            connection.send(number + 1)
    connection.send("closed")


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_writer_killed_before_any_of_its_acts_leaves_the_last_commit_or_the_next(
    durability: str, tmp_path: Path
) -> None:
    other = create(tmp_path / "other.blob", 3)
    states = [[], *(state for _, state in _steps(other))]
    for nth in itertools.count(0, 2 if durability == "process" else 3):
        path = create(tmp_path / f"{nth}.blob", 0)
        with tb.TensorBlob.open(path) as follower:
            with process(_change_and_die, path, other, nth, {"durability": durability}) as (connection, child):
                child.join()
                done = last_sent(connection, 0)
            if done == "closed":
                break
            assert child.exitcode == -signal.SIGKILL
            found = stored(path)
            assert found in states[done : done + 2], f"killed at act {nth} after {done} changes"
            follower.refresh()
            assert numbers(follower[:]) == found
            with tb.TensorBlob.open(path, "r+") as writer:
                assert not list(path.glob(".*")), "a generation that it was about to begin is not left behind"
                writer.seek(0, 2)
                writer.write(rows(77))
                assert numbers(writer[:]) == [*found, 77]
                follower.refresh()
                assert numbers(follower[:]) == [*found, 77]
                writer.truncate(0)
                writer.write(rows(*range(12)))
        with tb.TensorBlob.open(path, "r+") as writer:
            writer.compact()
            named = set(writer.snapshot.columns[0].blocks())
        assert {block.name for block in (path / "blocks" / "data").iterdir()} == named
        assert len(list(path.glob("manifest.*"))) == 1 and not list(path.glob(".manifest*"))
        assert not list((path / "producers").iterdir())
        assert stored(path) == list(range(12))
    assert nth > 60


# ---- several that want to write


def _append_in_turn(connection: Connection, path: Path, name: int, count: int) -> None:
    for number in range(count):
        with tb.TensorBlob.open(path, "a", timeout_s=60) as writer:
            writer.write(rows(name, number))
    connection.send("done")


def test_writers_that_wait_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 0)
    with process(_append_in_turn, path, 1, 15) as (one, _), process(_append_in_turn, path, 2, 15) as (two, _):
        assert one.recv() == two.recv() == "done"
    found = stored(path)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert (
        [number for name, number in pairs if name == 1]
        == [number for name, number in pairs if name == 2]
        == list(range(15))
    )


def _fork_misuse(path: Path) -> dict[str, Any]:
    """What a forked child finds when it uses, and then closes, its parent's writer; and what the parent finds afterwards."""
    with tb.TensorBlob.open(path, "r+") as writer:
        writer.write(rows(50))
        receiving, sending = os.pipe()
        pid = os.fork()
        if not pid:
            attempts = {
                "write": lambda: writer.write(rows(1)),
                "truncate": lambda: writer.truncate(0),
                "flush": lambda: writer.flush(),
                "transaction": lambda: writer.transaction().__enter__(),
                "compact": lambda: writer.compact(),
                "set_metadata": lambda: writer.set_metadata({}),
            }
            found = {name: complaint(attempt) for name, attempt in attempts.items()}
            writer.close()
            text = ",".join(f"{name}:{bool(error and 'ForkedHandle' in error.names)}" for name, error in found.items())
            os.write(sending, text.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        child = dict(part.split(":") for part in os.read(receiving, 4096).decode().split(","))
        locked = False
        try:
            tb.TensorBlob.open(path, "a").close()
        except tb.WriterBusy as busy:
            locked = busy.pid == os.getpid()
        writer.write(rows(51))
        return {"child": child, "locked": locked, "rows": numbers(writer[:])}


def test_a_forked_child_can_neither_use_its_parents_writer_nor_let_go_of_its_lock(tmp_path: Path) -> None:
    found = elsewhere(_fork_misuse, create(tmp_path / "x.blob", 3))
    assert set(found["child"].values()) == {"True"}, found
    assert found["locked"] and found["rows"] == [50, 51, 2]
    assert stored(tmp_path / "x.blob") == [50, 51, 2]
