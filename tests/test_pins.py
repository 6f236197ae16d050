"""A snapshot that is held stays bit for bit what it was, in every process; what nobody holds is removed, and not before.

Readers pin the generation they have open. Generations begin here after a few edits or a few dead pages, so that everything
happens often.
"""

import itertools
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, create, numbers, process, rows, stored
from disk import without_platters

import tensorblob as tb

ROW_NBYTES = 4096
READERS: list[dict[str, Any]] = [{}, {"io": "pread"}, {"max_cached_blocks": 2}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.blob"


@pytest.fixture(params=[5, 10_000], ids=["short generations", "long generations"], autouse=True)
def generations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun every few edits, or only when space is reclaimed."""
    without_platters(monkeypatch)
    monkeypatch.setattr("tensorblob.writer.MAX_EDITS", request.param)
    monkeypatch.setattr("tensorblob.writer.RECLAIM_NBYTES", 6 * ROW_NBYTES)


def open_new(path: Path, **options: Any) -> tb.TensorBlob:
    return tb.TensorBlob.open(path, "w+", **({"dtype": "float32", "shape": SHAPE, "block_rows": 4} | options))


def blocks_on_disk(path: Path) -> set[str]:
    return {block.name for block in (path / "blocks" / "data").iterdir()}


def blocks_of(blob: tb.TensorBlob) -> set[str]:
    """The block files that a handle's snapshot needs."""
    return {placed.span.block for column in blob.snapshot.columns for placed in column.placed()}


def manifests(path: Path) -> list[int]:
    return sorted(int(manifest.name[-6:]) for manifest in path.glob("manifest.*"))


def ring(blob: tb.TensorBlob) -> None:
    for number in range(60):
        blob.write(rows(1000 + number, 2000 + number))
        blob.trim(blob.rows - 8)


def rewrite(blob: tb.TensorBlob) -> None:
    for round in range(4):
        blob.truncate(0)
        blob.write(rows(*range(100 * round, 100 * round + 20)))


def update(blob: tb.TensorBlob) -> None:
    for round in range(12):
        for position in (0, 3, 4, 9):
            blob.seek(position % len(blob))
            blob.write(rows(-round))


def shuffle(blob: tb.TensorBlob) -> None:
    blob.trim(blob.first_row + 5)
    blob.truncate(max(len(blob) - 3, 0))
    for _ in range(3):
        blob.compact()
        blob.seek(0, 2)
        blob.write(rows(1, 2, 3, 4, 5))
    blob.seek(2)
    blob.write(rows(7, 8))
    blob.compact()


def grow(blob: tb.TensorBlob) -> None:
    blob.seek(0, 2)
    for number in range(40):
        blob.write(rows(number))


CHANGES: dict[str, Callable[[tb.TensorBlob], None]] = {f.__name__: f for f in (ring, rewrite, update, shuffle, grow)}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_held_snapshots_stay_as_they_were_through_every_change(change: str, path: Path) -> None:
    """Some were read before the change and some are read first when their blocks have no name any more."""
    held: list[tuple[tb.TensorBlob, list[int]]] = []
    with open_new(path) as blob:
        blob.write(rows(*range(18)))
        for order in [*itertools.permutations(CHANGES, 1), (change, "shuffle"), ("grow", change)]:
            for options, is_read in itertools.product(READERS, (True, False)):
                reader = tb.TensorBlob.open(path, **options)
                held.append((reader, numbers(blob[:])))
                if is_read:
                    assert numbers(reader[:]) == held[-1][1]
            for name in order:
                CHANGES[name](blob)
                for reader, _ in held:
                    assert blocks_of(reader) <= blocks_on_disk(path), name
                if len(blob) < 6:
                    grow(blob)
        for reader, expected in held:
            assert numbers(reader[:]) == expected
            if expected:
                assert numbers(reader.gather([0, -1])) == [expected[0], expected[-1]]
        for reader, _ in held[::2]:
            reader.refresh()
            assert numbers(reader[:]) == numbers(blob[:])
        for reader, _ in held:
            reader.close()
        blob.compact()
        blob.truncate(3)
        blob.compact()
        assert manifests(path) == [max(manifests(path))]
        assert blocks_on_disk(path) == blocks_of(blob), "nothing is left for nobody"
        expected = numbers(blob[:])
    assert stored(path) == expected


def _hold(connection: Connection, path: Path, options: dict[str, Any], is_read: bool) -> None:
    with tb.TensorBlob.open(path, **options) as reader:
        if is_read:
            reader[:]
            view = reader.view(0, 4) if not options else None
        connection.send("held")
        while connection.poll(None) and (order := connection.recv()) != "enough":
            if order == "refresh":
                reader.refresh()
            if is_read and view is not None:
                assert numbers(view) == [0, 1, 2, 3]
            connection.send((numbers(reader[:]), numbers(reader[1::3]), numbers(reader.gather([3, 0, -1]))))


@pytest.mark.slow
@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("options", READERS, ids=str)
def test_a_snapshot_that_another_process_holds_stays_as_it_was(
    options: dict[str, Any], is_read: bool, path: Path
) -> None:
    with open_new(path) as blob:
        blob.write(rows(*range(18)))
        with process(_hold, path, options, is_read) as (connection, _):
            assert connection.recv() == "held"
            for change in CHANGES.values():
                change(blob)
            connection.send("read")
            expected = list(range(18))
            assert connection.recv() == (expected, expected[1::3], [3, 0, 17])
            connection.send("refresh")
            expected = numbers(blob[:])
            assert connection.recv() == (expected, expected[1::3], [expected[3], expected[0], expected[-1]])
            connection.send("enough")
    with tb.TensorBlob.open(path, "a") as blob:
        assert blocks_on_disk(path) == blocks_of(blob), "what the last writer could not remove, the next one does"
        assert len(manifests(path)) == 1


def test_a_block_goes_when_the_last_generation_that_needs_it_is_let_go_and_not_before(path: Path) -> None:
    with open_new(path) as blob:
        readers = []
        for round in range(5):
            blob.truncate(0)
            blob.write(rows(*range(round * 10, round * 10 + 8)))
            blob.compact()
            readers.append(tb.TensorBlob.open(path))
            rewrite(blob)
        for close in (2, 0, 4, 1, 3):
            for number, reader in enumerate(readers):
                if not reader.closed:
                    assert blocks_of(reader) <= blocks_on_disk(path)
                    assert numbers(reader[:]) == list(range(number * 10, number * 10 + 8))
            needed_by_it_alone = blocks_of(readers[close])
            readers[close].close()
            rewrite(blob)
            assert not needed_by_it_alone & blocks_on_disk(path)
        assert len(manifests(path)) == 1


def test_manifests_are_removed_oldest_first(path: Path) -> None:
    """So whoever holds generation g open finds g + 1, if there ever was one, and steps on."""
    with open_new(path) as blob:
        readers: dict[int, tb.TensorBlob] = {}
        for _ in range(6):
            readers[max(manifests(path))] = tb.TensorBlob.open(path)
            before = max(manifests(path))
            blob.write(rows(*range(8)))
            blob.truncate(0)
            blob.compact()
            assert max(manifests(path)) > before
        newest = max(manifests(path))
        assert manifests(path) == list(range(1, newest + 1)), "all behind the oldest pin stay"
        pins = sorted(readers)
        for released in (pins[2], pins[3], pins[0], pins[1], pins[5], pins[4]):
            readers.pop(released).close()
            blob.write(rows(*range(8)))
            blob.truncate(0)
            blob.compact()
            oldest = min(readers, default=max(manifests(path)))
            assert manifests(path) == list(range(oldest, max(manifests(path)) + 1))


def _die_holding(connection: Connection, path: Path) -> None:
    reader = tb.TensorBlob.open(path)
    connection.send(numbers(reader[:]))
    connection.recv()


def test_a_killed_reader_pins_nothing(path: Path) -> None:
    with open_new(path) as blob:
        blob.write(rows(*range(8)))
        with process(_die_holding, path) as (connection, child):
            held = blocks_on_disk(path)
            assert connection.recv() == list(range(8))
            rewrite(blob)
            assert held <= blocks_on_disk(path)
            child.kill()
            child.join()
            rewrite(blob)
            assert not held & blocks_on_disk(path) and len(manifests(path)) == 1


def _hold_and_fork(connection: Connection, path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        pid = os.fork()
        if not pid:
            reader.close()
            os._exit(0)
        connection.send(os.waitpid(pid, 0)[1])
        connection.recv()
        connection.send(numbers(reader[:]))


def test_a_forked_child_that_closes_what_it_inherited_cannot_let_go_of_its_parents_pin(path: Path) -> None:
    with open_new(path) as blob:
        blob.write(rows(*range(8)))
        with process(_hold_and_fork, path) as (connection, _):
            assert connection.recv() == 0
            rewrite(blob)
            assert len(manifests(path)) > 1
            connection.send("read")
            assert connection.recv() == list(range(8))


def _trim_and_die(connection: Connection, path: Path, flushes: bool) -> None:
    blob = tb.TensorBlob.open(path, "r+")
    blob.seek(9)
    blob.write(rows(90))
    blob.trim(6)
    blob.truncate(5)
    if flushes:
        blob.flush()
    connection.send("ready")
    connection.recv()


@pytest.mark.parametrize("flushes", [True, False])
def test_the_next_writer_keeps_what_readers_of_the_current_generation_hold(flushes: bool, path: Path) -> None:
    """The dead writer's blocks are named by the log that both go on in, though no row of its end lies in them."""
    create(path, 18)
    readers = [tb.TensorBlob.open(path, **options) for options in READERS]
    with process(_trim_and_die, path, flushes) as (connection, child):
        assert connection.recv() == "ready"
        child.kill()
        child.join()
    late = tb.TensorBlob.open(path)
    expected_late = [6, 7, 8, 90, 10]
    with tb.TensorBlob.open(path, "r+") as blob:
        for reader in readers:
            assert blocks_of(reader) <= blocks_on_disk(path)
        blob.seek(0, 2)
        blob.write(rows(11))
        for reader in readers:
            assert numbers(reader[:]) == list(range(18))
        assert numbers(late[:]) == expected_late
        rewrite(blob)
        assert numbers(late[:]) == expected_late
        for reader in readers:
            assert numbers(reader[:]) == list(range(18))
    for reader in [*readers, late]:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"max_rows": 20}, {"max_bytes": 20 * ROW_NBYTES}], ids=str)
def test_a_ring_has_a_bounded_number_of_files_and_bytes(limit: dict[str, int], path: Path) -> None:
    most_files = most_bytes = 0
    with open_new(path, **limit) as blob, tb.TensorBlob.open(path) as follower, tb.TensorBlob.open(path) as held:
        assert blob.block_rows == 4
        for round in range(200):
            blob.write(rows(*range(3 * round, 3 * round + 3)))
            expected = list(range(max(3 * round - 17, 0), 3 * round + 3))
            assert (len(blob), blob.rows) == (len(expected), 3 * round + 3)
            if round % 20 == 0:
                follower.refresh()
                assert numbers(follower[:]) == numbers(blob[:]) == expected
            if round == 100:
                held.refresh()
            if round in (150, 199):
                assert numbers(held[:]) == list(range(283, 303))
            files = list((path / "blocks" / "data").iterdir())
            most_files = max(most_files, len(files))
            most_bytes = max(most_bytes, sum(file.stat().st_size for file in files))
        held.close()
        assert most_files <= 60 and most_bytes <= 200 * ROW_NBYTES
        follower.close()
        for round in range(200):
            blob.write(rows(*range(3 * round, 3 * round + 3)))
            if round > 20:
                files = list((path / "blocks" / "data").iterdir())
                assert len(files) <= 10 and sum(file.stat().st_size for file in files) <= 40 * ROW_NBYTES
                assert len(manifests(path)) == 1
        assert blob.first_row == 1180


def test_a_ring_of_tiny_rows_through_many_blocks_stays_flat(path: Path) -> None:
    """A block is at most an eighth of the ring, and pages of the trimmed rows are given back."""
    with tb.TensorBlob.open(path, "w", dtype="int64", shape=(), max_rows=8 * 512) as blob:
        assert blob.block_rows == 512
        for start in range(0, 60_000, 300):
            blob.write(torch.arange(start, start + 300))
            assert len(blocks_on_disk(path)) <= 16
        assert len(blob) == 8 * 512
    with tb.TensorBlob.open(path) as reader:
        assert torch.equal(reader[:], torch.arange(60_000 - 8 * 512, 60_000))


def test_readers_follow_over_every_generation_and_miss_nothing(path: Path) -> None:
    with open_new(path) as blob:
        readers = [tb.TensorBlob.open(path, **options) for options in READERS]
        seen = 0
        for number in range(100):
            blob.write(rows(number))
            for every, reader in zip((1, 7, 31), readers, strict=True):
                if number % every == 0:
                    assert reader.refresh() and len(reader) == number + 1
                    assert numbers(reader[-3:]) == list(range(max(number - 2, 0), number + 1))
                    assert not reader.refresh()
            seen = max(seen, max(manifests(path)))
        assert seen == 1 or seen > 10
        assert blob.history == 0
        for reader in readers:
            reader.refresh()
            assert numbers(reader[:]) == list(range(100))
            reader.close()


def test_an_extend_takes_the_rows_that_the_handle_shows_though_the_other_blob_has_dropped_them(path: Path) -> None:
    create(path, 10)
    with tb.TensorBlob.open(path) as held, tb.TensorBlob.open(path, "r+") as source:
        rewrite(source)
        with open_new(path.with_name("y.blob")) as blob:
            blob.write(rows(-1))
            blob.extend(held)
            held.copy(path.with_name("z.blob"))
            assert numbers(blob[:]) == [-1, *range(10)]
    assert stored(path.with_name("y.blob")) == [-1, *range(10)]
    assert stored(path.with_name("z.blob")) == list(range(10))


@pytest.mark.parametrize("generations", [10_000], indirect=True, ids=["as shipped"])
def test_a_generation_begins_at_least_every_ten_thousand_edits(path: Path) -> None:
    """So that opening reads a checkpoint and a short tail."""
    with tb.TensorBlob.open(path, "w", dtype="int64", shape=()) as blob:
        row = torch.zeros(1, dtype=torch.int64)
        for _ in range(10_100):
            blob.write(row)
        assert max(manifests(path)) == 2
        assert (path / "manifest.000002").read_bytes().count(b"\n") < 200
    with tb.TensorBlob.open(path) as reader:
        assert len(reader) == 10_100
