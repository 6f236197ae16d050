"""What a review of the finished engine found, as claims: each of these tests failed once.

Histories that a power loss took, mappings of a whole process, full disks, selections that travel, and misuse. What it found of
interrupts and forks has files of its own.
"""

import ctypes
import errno
import gc
import itertools
import math
import mmap
import os
import pickle
import resource
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from api_support import (
    ROW_NBYTES,
    SHAPE,
    create,
    elsewhere,
    manifest_of,
    mount_small_disk,
    numbers,
    photograph,
    private_mounts,
    rows,
    stored,
)
from disk import reboot, without_platters

import tensorblob as tb
from tensorblob import batch, files, memory
from tensorblob.columns import MappedColumn
from tensorblob.edit import Block, Cut, Metadata, Op, Patch, Span, Splice, Tail, Trim
from tensorblob.memory import Mapping
from tensorblob.snapshot import Column, Placed, Snapshot, Vector, checkpoint


@pytest.fixture(autouse=True)
def no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is durable is decided by these tests alone; so nothing has to reach a platter."""
    monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    without_platters(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows 0 … 9 in blocks of four."""
    return create(tmp_path / "x.blob")


FIELDS: dict[Any, Any] = {"x": ("float32", SHAPE), "next": {"y": ("int64", (512,)), "z": ("uint8", (4096,))}}
"""Three columns, whose rows are a page each."""


def fields_of(*values: int) -> dict[str, Any]:
    column = torch.tensor(values, dtype=torch.int64).reshape(-1, 1)
    return {
        "x": rows(*values),
        "next": {"y": column.expand(-1, 512), "z": (column % 256).to(torch.uint8).expand(-1, 4096)},
    }


def values_of(found: Any) -> list[int]:
    """The inverse of `fields_of`; the fields must agree."""
    values = numbers(found["x"])
    assert bool((found["next", "y"] == torch.tensor(values).reshape(-1, 1)).all())
    assert bool((found["next", "z"] == torch.tensor(values).reshape(-1, 1) % 256).all())
    return values


def create_fields(path: Path, count: int, block_rows: int = 4) -> Path:
    with tb.TensorBlob.open(path, "w", schema=FIELDS, block_rows=block_rows) as blob:
        blob.write(fields_of(*range(count)))
    return path


# ---- histories that a power loss took


class Power:
    """One blob on a disk that keeps what was there at the last `keep`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._monkeypatch = path, monkeypatch
        self._kept = path.with_name("kept.blob")
        self._boots = itertools.count()

    def keep(self) -> None:
        """Everything so far has reached the disk; of what follows nothing does."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self._path, self._kept)

    def goes(self) -> None:
        """The power goes and comes back. Nobody may have the blob open for writing."""
        shutil.rmtree(self._path)
        shutil.copytree(self._kept, self._path)
        reboot(self._monkeypatch, f"boot {next(self._boots)}")


@pytest.fixture
def power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Power:
    return Power(tmp_path / "x.blob", monkeypatch)


def loaded(data: bytes) -> list[int] | None:
    """The rows of a pickle, None if they are not what they were."""
    try:
        found = pickle.loads(data)
    except tb.HistoryRewritten:
        return None
    if isinstance(found, tb.TensorBlob):
        with found:
            return numbers(found[:])
    return numbers(found)


def test_a_pickle_of_rows_that_a_power_loss_took_is_refused_and_older_ones_stay_valid(path: Path, power: Power) -> None:
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.flush()
        power.keep()
        old = [pickle.dumps(thing) for thing in (blob.view(0, 4), blob.view(4, 10), blob)]
        lost = []
        for cut in (8, 5, 1):  # three histories, and each of their numbers must stay theirs
            blob.truncate(cut)
            blob.seek(0, 2)
            blob.write(rows(100, 101, 102))
            lost += [pickle.dumps(thing) for thing in (blob.view(cut, cut + 3), blob.view(0, 1), blob)]
        assert blob.history == 3
    power.goes()
    with tb.TensorBlob.open(path) as reader:
        assert reader.history == 0, "a reader repairs nothing"
        assert [loaded(data) for data in lost] == [None] * 9
        assert [loaded(data) for data in old] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], list(range(10))]
    with tb.TensorBlob.open(path, "a+") as blob:
        assert blob.history > 3 and len(blob) == 10
        for _ in range(3):  # nor may the histories that follow be taken for those
            assert [loaded(data) for data in lost] == [None] * 9
            assert [loaded(data) for data in old] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], list(range(10))]
            blob.write(rows(200, 201, 202))
            blob.truncate(10)


def test_rows_beyond_the_recovered_end_are_refused_and_rows_below_it_are_not(path: Path, power: Power) -> None:
    with tb.TensorBlob.open(path, "a+") as blob:
        blob.flush()
        power.keep()
        blob.write(rows(10, 11, 12))
        data = {stop: pickle.dumps(blob.view(0, stop)) for stop in (9, 10, 11, 13)}
    power.goes()
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(90, 91, 92))
        assert blob.history > 0
    assert {stop: loaded(found) for stop, found in data.items()} == {
        9: list(range(9)),
        10: list(range(10)),
        11: None,
        13: None,
    }


def test_every_power_loss_takes_numbers_of_its_own(path: Path, power: Power) -> None:
    lost, kept, histories = [], [], [0]
    for turn in range(1, 5):
        with tb.TensorBlob.open(path, "r+") as blob:
            assert blob.history == histories[-1], "closed and opened again it is the same history"
            blob.flush()
            power.keep()
            kept.append(pickle.dumps(blob.view(0, 6)))
            blob.truncate(5)
            blob.seek(0, 2)
            blob.write(rows(*[100 * turn] * 5))
            lost.append(pickle.dumps(blob.view(5, 10)))
            assert blob.history == histories[-1] + 1
        power.goes()
        tb.TensorBlob.open(path, "a").close()
        with tb.TensorBlob.open(path) as reader:
            histories.append(reader.history)
            pairs = list(itertools.pairwise(histories))
            assert reader.snapshot.lost == tuple(pairs)
            for before, after in pairs:
                assert before + 1 < after
                assert {reader.snapshot.cut_after(h) for h in (before + 1, before + 2, after - 1)} == {0}
                assert reader.snapshot.cut_after(before) == 10, (
                    "of those that were not lost, the rows below the end are left"
                )
        assert [loaded(data) for data in lost] == [None] * turn
        assert [loaded(data) for data in kept] == [list(range(6))] * turn


def test_what_was_lost_is_known_to_checkpoints_and_copies(path: Path, power: Power) -> None:
    tb.TensorBlob.open(path, "a").close()
    power.keep()
    power.goes()
    with tb.TensorBlob.open(path, "r+") as blob:
        lost, cuts = blob.snapshot.lost, blob.snapshot.cuts
        assert len(lost) == 1
        blob.seek(0)
        blob.write(rows(*range(10)))
        blob.compact()  # begins a generation
        assert blob.snapshot.lost == lost
        blob.copy(path.with_name("copy.blob"))
    for where in (path, path.with_name("copy.blob")):
        for mode in ("r", "a"):
            with tb.TensorBlob.open(where, mode) as blob:
                assert (blob.snapshot.lost, blob.snapshot.cuts) == (lost, cuts)
                assert blob.snapshot.cut_after(lost[0][0] + 1) == 0 and blob.snapshot.cut_after(blob.history) is None
    snapshot = Snapshot.empty(1).apply(checkpoint(Snapshot.empty(1).apply((Cut(0, 5),)).apply((Cut(0, 6),))))
    assert (snapshot.history, snapshot.lost) == (6, ((0, 5),))


@pytest.mark.parametrize("history", [0, 1, 3, 4])
def test_a_history_with_a_number_that_was_used_is_no_edit(history: int) -> None:
    with pytest.raises(AssertionError):
        Snapshot.empty(1).apply((Cut(0, 4),)).apply((Cut(0, history),))


def test_forgotten_losses_can_only_refuse_a_pickle_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorblob.snapshot.MAX_CUTS", 4)
    snapshot, lost = Snapshot.empty(1), set()
    for number in range(1, 40):
        step = 10 if number % 3 else 1
        lost |= set(range(snapshot.history + 1, snapshot.history + step))
        snapshot = snapshot.apply((Cut(7, snapshot.history + step),))
        assert len(snapshot.lost) <= 4
        assert {history for history in range(snapshot.history) if snapshot.cut_after(history) == 0} >= lost
        assert snapshot.cut_after(snapshot.history) is None


# ---- the mappings of a process


class Maps:
    """How many mappings there may be, and the most that there were."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        gc.collect()
        self.before = self.peak = Mapping.live
        self.most = self.before + most
        for name in ("memory", "table", "blob"):
            monkeypatch.setattr(f"tensorblob.{name}.max_map_count", lambda: 2 * self.most)
        begin = Mapping.__init__

        def count(mapping: Mapping, *args: Any, **options: Any) -> None:
            begin(mapping, *args, **options)
            self.peak = max(self.peak, Mapping.live)

        monkeypatch.setattr(Mapping, "__init__", count)

    @property
    def left(self) -> int:
        gc.collect()
        return Mapping.live - self.before


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Maps:
    return Maps(20, monkeypatch)


def read_every_way(blob: tb.TensorBlob, values: Callable[[Any], list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """What each way of reading gives, and what it should: of rows that are their own positions."""
    count = len(blob)
    yield values(torch.stack([blob[position] for position in range(count)])), list(range(count))
    yield values(blob[:]), list(range(count))
    yield values(blob[count - 2 : 3 : -7]), list(range(count - 2, 3, -7))
    yield values(blob[1::5]), list(range(1, count, 5))
    index = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    yield values(blob.gather(index)), index.tolist()
    yield values(blob.gather(index[:3], out=blob[:3])), index[:3].tolist()
    for column in blob._table.state[1]:
        if isinstance(column, MappedColumn):
            column.will_need(0, count)
    for low, high in ((0, 3), (5, 13), (count - 6, count)):
        for run in blob.runs(low, high):
            yield values(blob.view(*run)), list(range(*run))
    blob.seek(0)
    yield values(torch.stack(list(blob))), list(range(count))


@pytest.mark.slow
@pytest.mark.parametrize("count", [18, 26, 120])
def test_many_fields_and_handles_share_the_mappings_of_one_process(count: int, tmp_path: Path, maps: Maps) -> None:
    path = create_fields(tmp_path / "x.blob", count)
    handles = [tb.TensorBlob.open(path, **options) for options in ({}, {}, {"max_cached_blocks": 50}, {})]
    held = []
    for handle in handles:
        for found, expected in read_every_way(handle, values_of):
            assert found == expected
        held += [handle.view(*run) for run in handle.runs()]
        assert Mapping.live <= maps.peak <= maps.most
    assert maps.peak == maps.most, "all were used: this blob has more blocks than that"
    assert [value for view in held for value in values_of(view)] == list(range(count)) * len(handles)
    for handle in handles:
        handle.close()
    del handle, handles
    assert [value for view in held for value in values_of(view)] == list(range(count)) * 4
    del held
    assert maps.left == 0, "and all came back"


def test_fields_share_the_mappings_and_a_blob_with_more_blocks_than_that_is_mapped_block_by_block(
    tmp_path: Path, maps: Maps
) -> None:
    for count, stops in ((18, [18]), (40, list(range(4, 41, 4)))):
        with tb.TensorBlob.open(create_fields(tmp_path / f"{count}.blob", count)) as blob:
            assert [stop for _, stop in blob.runs()] == stops
            assert values_of(blob[:]) == list(range(count)) and maps.peak <= maps.most


@pytest.mark.slow
def test_a_blob_that_grows_beyond_the_mappings_is_followed_and_written_on(tmp_path: Path, maps: Maps) -> None:
    path = create_fields(tmp_path / "x.blob", 2)
    with tb.TensorBlob.open(path, "a+") as writer, tb.TensorBlob.open(path) as follower:
        views = []
        for stop in range(10, 130, 16):
            writer.write(fields_of(*range(len(writer), stop)))
            assert follower.refresh()
            views.append((stop, follower.view(stop - 1, stop)))
            for handle in (writer, follower):
                assert values_of(handle[:]) == list(range(stop))
                assert values_of(handle.gather([stop - 1, 0])) == [stop - 1, 0]
        for stop, view in views:
            assert values_of(view) == [stop - 1]
        assert maps.peak <= maps.most
        del view, views
    del writer, follower, handle
    assert maps.left == 0


@pytest.mark.slow
def test_rows_that_were_overwritten_in_many_places_are_read_with_few_mappings(tmp_path: Path, maps: Maps) -> None:
    path = create_fields(tmp_path / "x.blob", 60, block_rows=64)
    with tb.TensorBlob.open(path, "r+") as writer, tb.TensorBlob.open(path) as follower:
        follower[:]
        for position in range(0, 60, 4):  # two spans more, each time
            writer.seek(position)
            writer.write(fields_of(position))
            follower.refresh()
            for found, expected in read_every_way(follower, values_of):
                assert found == expected
        assert values_of(writer[:]) == list(range(60))
    assert maps.peak <= maps.most


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0, 1, 7])
def test_where_the_kernel_gives_no_more_mappings_rows_are_read_all_the_same(
    allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_fields(tmp_path / "x.blob", 30)
    really, nothing = memory._mmap, ctypes.c_void_p(-1).value
    gc.collect()
    most = Mapping.live + allowed

    def refuse(address: Any, nbytes: int, protection: int, flags: int, fd: int, offset: int) -> Any:
        if fd >= 0 and Mapping.live >= most:
            ctypes.set_errno(errno.ENOMEM)
            return nothing
        return really(address, nbytes, protection, flags, fd, offset)

    monkeypatch.setattr(memory, "_mmap", refuse)
    with tb.TensorBlob.open(path) as reader, tb.TensorBlob.open(path, max_cached_blocks=3) as cached:
        for handle in (reader, cached):
            for found, expected in read_every_way(handle, values_of):
                assert found == expected
        assert values_of(reader.select("x", "next").view(2, 4)) == [2, 3]


# ---- a full disk


class SmallDisk:
    """Room for so many pages of blocks below `root`; what was reserved counts."""

    def __init__(self, root: Path, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self.pages = root, pages
        self._reserved: dict[int, int] = {}
        self._release = files.release_allocation
        monkeypatch.setattr(files, "allocate", self._allocate)
        monkeypatch.setattr(files, "release_allocation", self._give_back)

    @property
    def used(self) -> int:
        found = [file.stat() for file in self._root.rglob("blocks/*/*-*")]
        nbytes = sum(max(stat.st_size, self._reserved.get(stat.st_ino, 0)) for stat in found)
        return nbytes // mmap.PAGESIZE

    def _allocate(self, fd: int, offset: int, nbytes: int) -> None:
        inode = os.fstat(fd).st_ino
        self._reserved[inode] = offset
        if nbytes > (self.pages - self.used) * mmap.PAGESIZE:
            raise tb.DiskFull(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._reserved[inode] = offset + nbytes

    def _give_back(self, fd: int) -> None:
        self._reserved.pop(os.fstat(fd).st_ino, None)
        self._release(fd)


def open_new(path: Path, **options: Any) -> tb.TensorBlob:
    return tb.TensorBlob.open(path, "w+", **({"dtype": "float32", "shape": SHAPE, "block_rows": 16} | options))


def append(blob: tb.TensorBlob, *values: int) -> None:
    blob.seek(0, 2)
    blob.write(rows(*values))


def blocks_are_those_named_by(blob: tb.TensorBlob) -> bool:
    found = {file.name for file in Path(blob.filename).glob("blocks/*/*")}
    return found == {block for column in blob.snapshot.columns for block in column.live()}


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_a_disk_is_full_when_the_rows_need_more_than_is_left_and_not_before(
    batch_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of 16 rows does not fit into the last twelve pages, and is begun there all the same."""
    disk = SmallDisk(tmp_path, 60, monkeypatch)
    with open_new(tmp_path / "x.blob") as blob:
        for first in range(0, 60, batch_rows):
            append(blob, *range(first, first + batch_rows))
        with pytest.raises(tb.DiskFull):
            append(blob, 60)
        assert disk.used == 60 and numbers(blob[:]) == stored(tmp_path / "x.blob") == list(range(60))
        disk.pages = 61
        append(blob, 60)
        assert stored(tmp_path / "x.blob") == list(range(61))


def _fill(blob: tb.TensorBlob) -> int:
    with pytest.raises(tb.DiskFull):
        while True:
            append(blob, len(blob))
    return len(blob)


FREEING: dict[str, tuple[Callable[[tb.TensorBlob], object], list[int]]] = {
    "truncating": (lambda blob: blob.truncate(3), [0, 1, 2]),
    "trimming": (lambda blob: blob.trim(50), list(range(50, 60))),
}
WRITING: dict[str, tuple[Callable[[tb.TensorBlob], object], Callable[[list[int]], list[int]]]] = {
    "appends": (lambda blob: append(blob, *range(100, 130)), lambda left: [*left, *range(100, 130)]),
    "appends with metadata": (
        lambda blob: (blob.seek(0, 2), blob.write(rows(*range(100, 130)), metadata={"a": 1})),
        lambda left: [*left, *range(100, 130)],
    ),
    "overwrites and appends": (
        lambda blob: (blob.seek(0), blob.write(rows(*range(100, 130)))),
        lambda left: list(range(100, 130)),
    ),
    "is compacted": (lambda blob: blob.compact(), lambda left: left),
}


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("writing", WRITING)
@pytest.mark.parametrize("freeing", FREEING)
def test_a_full_disk_is_helped_by(
    freeing: str, writing: str, durability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, 60, monkeypatch)
    free, left = FREEING[freeing]
    write, expected = WRITING[writing]
    with open_new(tmp_path / "x.blob", durability=durability) as blob:
        assert _fill(blob) == 60
        free(blob)
        assert numbers(blob[:]) == left
        write(blob)
        assert numbers(blob[:]) == stored(tmp_path / "x.blob") == expected(left)
        assert disk.used <= 60
        append(blob, 7)
    with tb.TensorBlob.open(tmp_path / "x.blob", "a+") as blob:
        assert numbers(blob[:]) == [*expected(left), 7]


def test_a_full_disk_with_nothing_to_free_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallDisk(tmp_path, 60, monkeypatch)
    with open_new(tmp_path / "x.blob") as blob:
        _fill(blob)
        snapshot, before = blob.snapshot, photograph(tmp_path)
        for attempt in (lambda: append(blob, 60), lambda: (blob.seek(0), blob.write(rows(90, 91)))):
            with pytest.raises(tb.DiskFull):
                attempt()
            assert numbers(blob[:]) == list(range(60)) and blob.snapshot == snapshot
            assert photograph(tmp_path).keys() == before.keys(), "no generation was begun in vain, and no block"
        blob.truncate(40)
        append(blob, 70)
        assert stored(tmp_path / "x.blob") == [*range(40), 70]


def test_what_readers_still_need_is_not_freed_and_the_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDisk(tmp_path, 60, monkeypatch)
    with open_new(tmp_path / "x.blob") as blob:
        _fill(blob)
        with tb.TensorBlob.open(tmp_path / "x.blob") as reader:
            blob.truncate(3)
            with pytest.raises(tb.DiskFull):
                append(blob, *range(100, 130))
            assert numbers(blob[:]) == [0, 1, 2] and numbers(reader[:]) == list(range(60))
        append(blob, *range(100, 130))
        assert numbers(blob[:]) == stored(tmp_path / "x.blob") == [0, 1, 2, *range(100, 130)]


def test_a_transaction_that_finds_the_disk_full_is_taken_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDisk(tmp_path, 60, monkeypatch)
    with open_new(tmp_path / "x.blob") as blob:
        _fill(blob)
        with pytest.raises(tb.DiskFull), blob.transaction():
            blob.truncate(3)
            append(blob, *range(100, 130))
        assert numbers(blob[:]) == stored(tmp_path / "x.blob") == list(range(60))
        blob.truncate(3)
        append(blob, 100)
        with blob.transaction():
            append(blob, *range(101, 130))
        assert numbers(blob[:]) == stored(tmp_path / "x.blob") == [0, 1, 2, *range(100, 130)]


def _fill_and_truncate(at: Path, nbytes: int) -> dict[str, Any] | None:
    if not private_mounts():
        return None
    at.mkdir()
    mount_small_disk(at, nbytes)
    path, report = at / "x.blob", {}
    spare = at / "spare"
    spare.write_bytes(bytes(16 * ROW_NBYTES))  # for the log
    with open_new(path) as blob:
        with pytest.raises(tb.DiskFull):
            for first in itertools.count(0, 3):
                append(blob, *range(first, first + 3))
        report["filled"] = len(blob)
        spare.unlink()
        blob.truncate(5)
        append(blob, *range(100, 100 + report["filled"] // 2))
        report["rows"] = stored(path)
        report["tidy"] = blocks_are_those_named_by(blob)
    return report


def test_a_small_disk_is_filled_and_is_helped_by_truncating(tmp_path: Path) -> None:
    report = elsewhere(_fill_and_truncate, tmp_path / "disk", 2 << 20)
    if report is None:
        pytest.skip("this system lets us mount nothing; a disk of our own making is tested instead")
    assert report["filled"] * ROW_NBYTES > 1 << 20
    assert report["rows"] == [*range(5), *range(100, 100 + report["filled"] // 2)]
    assert report["tidy"]


# ---- selections


def test_a_selection_travels_with_a_handle_of_its_own(tmp_path: Path) -> None:
    path = create_fields(tmp_path / "x.blob", 10)
    with tb.TensorBlob.open(path) as blob, tb.TensorBlob.open(path, "a+") as writer:
        selections = [blob.select("next"), blob.select("x", ("next", "z")), writer.select("next.y", "x")]
        data = [pickle.dumps(selection) for selection in selections]
        assert max(map(len, data)) < 600
        writer.write(fields_of(10))
        for selection, sent in zip(selections, data, strict=True):
            found = pickle.loads(sent)
            assert found.fields == selection.fields and len(found) == 10, "as it was when it was pickled"
            assert bool((found[:] == selection[:10]).all()) and bool((found.gather([9, 0]) == selection[[9, 0]]).all())
            assert found.refresh() and len(found) == 11
    assert bool((found[:]["x"] == rows(*range(11))).all()), "it outlives the handle that it was made of"


def test_of_a_selection_can_be_selected(tmp_path: Path) -> None:
    with tb.TensorBlob.open(create_fields(tmp_path / "x.blob", 10)) as blob:
        some = blob.select("next", "x")
        less = some.select("next")
        one = less.select(("next", "z"))
        assert [part.fields for part in (some, less, one)] == [
            ("next.y", "next.z", "x"),
            ("next.y", "next.z"),
            ("next.z",),
        ]
        assert some.select("x", "next").fields == ("x", "next.y", "next.z")
        for part in (one, pickle.loads(pickle.dumps(one))):
            assert list(part[3:5].keys(include_nested=True, leaves_only=True)) == [("next", "z")]
            assert part[3:5]["next", "z"][:, 0].tolist() == [3, 4]
            assert [int(row["next", "z"][0]) for row in part] == list(range(10))
        for selection, field in ((less, "x"), (one, ("next", "y")), (one, "next.y"), (blob, "y")):
            with pytest.raises(KeyError):
                selection.select(field)
        with pytest.raises(ValueError):
            one.select()


def _look_at(selection: Any) -> tuple[tuple[str, ...], list[int], list[int]]:
    found = selection.gather([3, 0])
    return selection.fields, numbers(found["x"]), numbers(selection[2:4]["x"])


def test_another_process_reads_by_a_selection(tmp_path: Path) -> None:
    with tb.TensorBlob.open(create_fields(tmp_path / "x.blob", 10)) as blob:
        assert elsewhere(_look_at, blob.select("next", "x").select("x")) == (("x",), [3, 0], [2, 3])


def _numbers_of_x(batch: list[Any]) -> list[int]:
    return [int(row["x"][0]) for row in batch]


def _load(path: Path) -> list[int]:
    with tb.TensorBlob.open(path) as blob:
        loader = torch.utils.data.DataLoader(
            blob.select("x"), batch_size=4, num_workers=1, multiprocessing_context="spawn", collate_fn=_numbers_of_x
        )
        return [number for batch in loader for number in batch]


@pytest.mark.slow
def test_a_data_loader_reads_by_a_selection_in_a_spawned_worker(tmp_path: Path) -> None:
    assert elsewhere(_load, create_fields(tmp_path / "x.blob", 10)) == list(range(10))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_data_loader_makes_batches_of_rows_with_several_fields(workers: int, tmp_path: Path) -> None:
    with tb.TensorBlob.open(create_fields(tmp_path / "x.blob", 10)) as blob:
        batches = list(torch.utils.data.DataLoader(blob, batch_size=4, num_workers=workers))  # type: ignore[arg-type]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert torch.equal(torch.cat([batch["next", "z"] for batch in batches]), blob[:]["next", "z"])


# ---- rows that are none


def _nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are a prototype
        return torch.nested.nested_tensor([torch.zeros(SHAPE), torch.zeros(SHAPE)])


def _jagged() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)], layout=torch.jagged)


NO_ROWS: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.empty(3, *SHAPE, device="meta"),
    "a meta row": lambda: torch.empty(SHAPE, device="meta"),
    "no meta rows": lambda: torch.empty(0, *SHAPE, device="meta"),
    "nested": _nested,
    "jagged": _jagged,
    "sparse": lambda: rows(1, 2).to_sparse(),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_tensors_without_rows_in_memory_are_refused_before_anything_changes(
    kind: str, tmp_path: Path, path: Path
) -> None:
    fields_path = create_fields(tmp_path / "fields.blob", 3)
    with tb.TensorBlob.open(path, "a") as blob, tb.TensorBlob.open(fields_path, "a") as fields:
        before = photograph(tmp_path)
        with pytest.raises(tb.SchemaMismatch):
            blob.write(NO_ROWS[kind]())
        with pytest.raises(tb.SchemaMismatch):
            fields.write(fields_of(1, 2) | {"x": NO_ROWS[kind]()})
        assert photograph(tmp_path) == before
        assert blob.write(rows(10)) == fields.write(fields_of(3)) == 1
    assert stored(path) == list(range(11))


# ---- writes without rows


@pytest.mark.parametrize("mode", ["r+", "a", "w+"])
def test_an_empty_write_keeps_its_metadata_as_a_note_of_no_rows(mode: str, path: Path) -> None:
    with tb.TensorBlob.open(path, mode) as blob:
        count = len(blob)
        assert blob.write(rows(), metadata={"n": 1}) == 0
        assert blob.write(rows(77), metadata={"n": 2}) == 1
        with blob.transaction({"n": 4}):
            blob.write(rows(), metadata={"n": 3})
        blob.write(rows())
        at = blob.rows
        notes = blob.commit_metadata()
        assert [value["n"] for _, _, value in notes] == [1, 2, 3, 4]
        assert notes[0][:2] == (count, count) and notes[2][:2] == notes[3][:2] == (at, at)
        with tb.TensorBlob.open(path) as reader:
            assert reader.commit_metadata() == notes
    with tb.TensorBlob.open(path) as reader:
        assert reader.commit_metadata() == notes and len(reader) == at


def test_an_empty_write_with_bad_metadata_is_refused(path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        with pytest.raises(TypeError):
            blob.write(rows(), metadata={"x": object()})
        assert blob.commit_metadata() == []


# ---- all rows as an array


@pytest.mark.parametrize("cursor", [0, 4, 10])
def test_an_array_of_a_blob_has_all_rows_wherever_the_cursor_is(cursor: int, path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.seek(cursor)
        for array in (np.asarray(blob), np.array(blob), np.stack([np.asarray(blob)])[0]):
            assert array.dtype == np.float32 and array.shape == (10, *SHAPE)
            assert numbers(torch.from_numpy(array)) == list(range(10))
        assert np.asarray(blob, dtype=np.int16)[:, 0].tolist() == list(range(10))
        array[:] = 7
        assert numbers(blob[:]) == list(range(10)), "it is a copy"
        with pytest.raises(ValueError):
            blob.__array__(copy=False)
        assert blob.tell() == cursor
        blob.trim(3)
        blob.truncate(2)
        assert np.asarray(blob)[:, 0].tolist() == [3, 4]


def test_rows_of_several_fields_are_no_array(tmp_path: Path) -> None:
    with tb.TensorBlob.open(create_fields(tmp_path / "x.blob", 3)) as blob:
        for several in (blob, blob.select("next"), blob.select("x")):
            with pytest.raises(TypeError):
                np.asarray(several)


# ---- arguments that mean nothing


def test_unknown_names_in_block_rows_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    makers: list[Callable[[Path], tb.TensorBlob]] = [
        lambda path: tb.TensorBlob.open(path, "w", schema=FIELDS, block_rows={"y": 8}),
        lambda path: tb.TensorBlob.open(path, "w", schema=FIELDS, block_rows={"next": 8}),
        lambda path: tb.TensorBlob.open(path, "w", schema=FIELDS, block_rows={"x": 8, ("next", "w"): 8}),  # type: ignore[dict-item]
        lambda path: tb.TensorBlob.open(path, "w", dtype="float32", shape=3, block_rows={"data": 8}),
    ]
    for make in makers:
        with pytest.raises(ValueError):
            make(tmp_path / "x.blob")
    assert list(tmp_path.iterdir()) == []
    known: Any = {"x": 8, ("next", "y"): 16, "next.z": 24}
    with tb.TensorBlob.open(tmp_path / "x.blob", "w", schema=FIELDS, block_rows=known) as blob:
        assert blob.block_rows == {"x": 8, "next.y": 16, "next.z": 24}


@pytest.mark.parametrize(
    "option", [{"max_rows": 5}, {"max_bytes": 1 << 20}, {"metadata": {}}, {"metadata": {"a": 1}}], ids=str
)
def test_what_only_a_writer_sets_is_refused_in_a_reader(option: dict[str, Any], path: Path) -> None:
    before = photograph(path)
    with pytest.raises(ValueError, match=next(iter(option))):
        tb.TensorBlob.open(path, "r", **option)
    assert photograph(path) == before


@pytest.mark.parametrize("options", [{}, {"io": "pread"}, {"max_cached_blocks": 2}], ids=str)
def test_gathering_into_what_requires_grad_is_refused(options: dict[str, Any], path: Path, tmp_path: Path) -> None:
    fields_path = create_fields(tmp_path / "fields.blob", 3)
    with tb.TensorBlob.open(path, **options) as blob, tb.TensorBlob.open(fields_path, **options) as fields:
        for _ in range(2):  # by the slow way and, once the blocks are mapped, by the quick one
            out = torch.zeros(2, *SHAPE, requires_grad=True)
            with pytest.raises(tb.SchemaMismatch):
                blob.gather([0, 1], out=out)
            into = fields[:2]
            into["x"] = out
            with pytest.raises(tb.SchemaMismatch):
                fields.gather([1, 2], out=into)
            assert not out.any() and into["next", "y"][:, 0].tolist() == [0, 1], "nothing was written"
            assert numbers(blob.gather([1, 2], out=torch.zeros(2, *SHAPE))) == [1, 2]
            assert values_of(fields.gather([1, 2], out=fields[:2])) == [1, 2]


@pytest.mark.parametrize(
    "index",
    [[None], (slice(0, 2),), [slice(0, 2)], [[0], [1, 2]], (0, None), [..., 0], ["a"], {0}],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"io": "pread"}], ids=str)
def test_what_is_no_index_is_a_type_error(index: Any, options: dict[str, Any], path: Path) -> None:
    with tb.TensorBlob.open(path, **options) as blob:
        for read in (blob.__getitem__, blob.gather):
            with pytest.raises((TypeError, ValueError)) as caught:
                read(index)
            assert isinstance(caught.value, TypeError) or index == [[0], [1, 2]]


# ---- paths


@pytest.mark.parametrize("mode", ["r", "r+", "w", "w+", "a", "a+"])
def test_a_loop_of_symlinks_is_an_os_error(mode: str, tmp_path: Path, path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for loop in (tmp_path / "a", tmp_path / "a" / "x.blob"):
        with pytest.raises(OSError):
            tb.TensorBlob.open(loop, mode, dtype="float32", shape=SHAPE)
        with tb.TensorBlob.open(path) as blob, pytest.raises(OSError):
            blob.copy(loop)
    with pytest.warns(UserWarning, match="unlink"):
        assert tb.TensorBlob.unlink(tmp_path / "a") is False
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "x.blob"]


@pytest.mark.parametrize(
    "inside", ["y.blob", "deep/er/y.blob", "blocks/y.blob", "blocks/data/0-7", "producers/y", "cursors/y.json"]
)
def test_no_blob_is_made_inside_of_another(inside: str, tmp_path: Path, path: Path) -> None:
    (tmp_path / "link").symlink_to(path, target_is_directory=True)
    other = create(tmp_path / "other.blob", 3)
    before = photograph(path)
    with tb.TensorBlob.open(path) as blob, tb.TensorBlob.open(other) as source:
        for outer in (path, tmp_path / "link"):
            for make in (
                lambda where: tb.TensorBlob.open(where, "w", dtype="float32", shape=SHAPE),
                blob.copy,
                source.copy,
            ):
                with pytest.raises(ValueError, match="inside"):
                    make(outer / inside)
                assert photograph(path) == before
    assert tb.TensorBlob.unlink(path) and not path.exists()


FOREIGN = [
    "notes.txt",
    "mine/notes.txt",
    "blocks/mine",
    "blocks/mine/notes.txt",
    "blocks/data/mine.txt",
    "blocks/data/mine/notes.txt",
    "blocks/data/0-9/notes.txt",
    "producers/x.txt",
    "producers/mine/notes.txt",
    "cursors/x.txt",
    "cursors/x.json/notes.txt",
    "manifest.000099/notes.txt",
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_unlink_removes_nothing_if_anything_in_it_is_not_of_a_blob(foreign: str, path: Path) -> None:
    file = path / foreign
    made = next(place for place in reversed([file, *file.parents]) if not place.exists())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    before = photograph(path.parent)
    with pytest.warns(UserWarning, match="remove"):
        assert tb.TensorBlob.unlink(path) is False
    after = photograph(path.parent)
    lock = f"{path.name}/writer.lock"  # says who had it last
    assert after.pop(lock)[1:3] == before.pop(lock)[1:3] and after == before
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert tb.TensorBlob.unlink(path) is True and not path.exists()


# ---- what is written can be read


@pytest.mark.parametrize(
    "edit",
    [
        [Trim(2.0)],  # type: ignore[arg-type]
        [Trim(np.int64(2))],
        [Metadata({1: 2})],  # type: ignore[dict-item]
        [Metadata({"a": math.nan})],
        [Metadata({"a": (1, 2)})],
        [Splice(0, 8, 10, ()), Cut(8.0, 1)],  # type: ignore[arg-type]
    ],
    ids=str,
)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_an_edit_that_would_not_read_back_is_refused_before_it_is_written(
    edit: list[Op], durability: str, path: Path
) -> None:
    with tb.TensorBlob.open(path, "a+", durability=durability) as blob:
        blob.write(rows(10))
        snapshot, log = blob.snapshot, manifest_of(path).read_bytes()
        writer = blob._writer
        assert writer is not None
        with pytest.raises(AssertionError):
            writer.change(lambda *_: edit)
        with pytest.raises(AssertionError), blob.transaction():
            blob.write(rows(11))
            writer.change(lambda *_: edit)
        assert manifest_of(path).read_bytes() == log and blob.snapshot == snapshot
        assert numbers(blob[:]) == stored(path) == list(range(11))
        blob.write(rows(11))
        assert numbers(blob[:]) == stored(path) == list(range(12))
    assert stored(path) == list(range(12))


# ---- many spans


class Counted(Vector[Placed]):
    """A vector that counts how often an item is taken out of it."""

    __slots__ = ("taken",)
    taken: int

    def __getitem__(self, index: int) -> Placed:
        self.taken += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Placed]:
        for item in super().__iter__():
            self.taken += 1
            yield item


def column_of(spans: int, *, has_tail: bool) -> Column:
    """Spans of two rows each, in as many blocks."""
    column = Column(sealed=Vector(Block(0, f"p-{number}", 4, 7) for number in range(spans)))
    column = column.spliced(0, 0, [Span(f"p-{number}", 1, 3) for number in range(spans)])
    if has_tail:
        column = column.with_tail(Tail(0, "p-t", 64, 0, 2, 9))
    return column


def calls_of(act: Callable[[], object]) -> int:
    """How many Python functions `act()` begins or goes on in."""
    count = 0

    def see(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("has_tail", [False, True])
@pytest.mark.parametrize("spans", [1, 2, 1000, 5000])
def test_a_row_among_many_spans_is_found_by_bisection(spans: int, has_tail: bool) -> None:
    column = column_of(spans, has_tail=has_tail)
    counted = Counted(column.spans)
    column = Column(counted, column.sealed, column.tail_row, column.tail, column.patch)
    few = 2 * math.ceil(math.log2(spans + 1)) + 8
    for row in {0, 1, spans - 1, spans, 2 * spans - 1, *range(0, 2 * spans, max(spans // 7, 1))}:
        counted.taken = 0
        placed = next(column.placed_from(row))
        assert placed.row <= row < placed.stop_row and placed.row == row // 2 * 2
        assert counted.taken <= few
        counted.taken = 0
        assert column.between(row, row + 1) == [Span(f"p-{row // 2}", 1 + row % 2, 2 + row % 2)]
        assert counted.taken <= few
    counted.taken = 0
    list(column.placed_from(column.stop))
    assert counted.taken <= few


@pytest.mark.parametrize("has_tail", [False, True])
def test_folding_an_overwrite_calls_no_function_for_every_span(has_tail: bool) -> None:
    counts = []
    for spans in (500, 8000):
        snapshot = Snapshot.empty(1)
        snapshot = Snapshot((column_of(spans, has_tail=has_tail),), rows=2 * spans + 2 * has_tail)
        for row in (0, spans, 2 * spans - 1):
            edit = Patch(0, "p-p", 64, 1, 5), Splice(0, row, row + 1, (Span("p-p", 0, 1),))
            after = snapshot.apply(edit)
            assert after.columns[0].between(row, row + 1) == [Span("p-p", 0, 1)]
            counts.append(calls_of(partial(snapshot.apply, edit)))
    assert max(counts[3:]) <= max(counts[:3]) + 40, counts


def test_writing_one_row_among_many_spans_calls_no_function_for_every_span(path: Path) -> None:
    counts = []
    with open_new(path.with_name("y.blob"), block_rows=256) as blob:
        blob.write(rows(*range(1200)))
        for position in range(0, 1200, 2):
            blob.seek(position)
            if position in (20, 1000):
                counts.append(calls_of(partial(blob.write, rows(position))))
            else:
                blob.write(rows(position))
        assert len(blob.snapshot.columns[0].spans) > 1000
        assert numbers(blob[:]) == list(range(1200))
    assert counts[1] <= counts[0] + 200, counts


# ---- two threads and one handle


def test_a_batch_that_another_thread_writes_meanwhile_is_not_mistaken_for_ones_own(path: Path) -> None:
    """The other thread writes three rows wherever Python may let it in while one row is checked."""

    def write(blob: tb.TensorBlob, value: int, count: int) -> None:
        blob.write(rows(*[value] * count))

    for nth in itertools.count():
        left, reached = nth, False

        def let_in(frame: FrameType, event: str, _: object, nth: int = nth) -> None:
            nonlocal left, reached
            if frame.f_code.co_filename == batch.__file__ and event in ("call", "c_call", "c_return"):
                left -= 1
                if left == -1:
                    reached = True
                    thread = threading.Thread(target=write, args=(blob, 3, 3))
                    thread.start()
                    thread.join()

        with tb.TensorBlob.open(path, "a+") as blob:
            count = len(blob)
            write(blob, 9, 1)
            sys.setprofile(let_in)
            try:
                write(blob, 1, 1)
            finally:
                sys.setprofile(None)
            if not reached:
                break
            assert numbers(blob[count:]) == [9, 3, 3, 3, 1], nth
    assert nth > 3


# ---- what a newcomer forgets


@pytest.mark.anyio
async def test_whoever_would_create_a_blob_without_saying_of_what_is_told_so(tmp_path: Path) -> None:
    for opening in (tb.open_writer(tmp_path / "x.blob"), tb.open_producer(tmp_path / "x.blob", dtype="int64")):
        with pytest.raises(FileNotFoundError, match="dtype= and shape=, or schema=, to create it"):
            async with opening:
                pass
    assert not (tmp_path / "x.blob").exists()


# ---- a second review: durability, pins of those who read by a writer, views of rows that were taken back


def test_rows_that_fill_a_block_while_it_is_synced_are_not_taken_for_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is closed at once, for want of descriptors; that its last rows have to be synced is not forgotten."""
    monkeypatch.setattr("tensorblob.blocks.MAX_OPEN", 1)
    synced: dict[str, int] = {}
    sync_file = files.sync_file
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.seek(0, os.SEEK_END)
        assert blob._writer is not None
        tail = blob._writer._growths[0].tail
        assert tail is not None and tail.rows == 2, "of four"
        blob.write(rows(10))
        is_written = False

        def sync(fd: int, what: str) -> None:
            nonlocal is_written
            size = os.fstat(fd).st_size
            sync_file(fd, what)
            synced[os.path.basename(what)] = size
            if what == tail.path and not is_written:
                is_written = True
                blob.write(rows(11))
                blob.write(rows(12, 13))

        monkeypatch.setattr(files, "sync_file", sync)
        blob.flush()
        assert is_written and blob.durable_rows == 11
        blob.flush()
        assert blob.durable_rows == blob.rows == 14
        assert synced[tail.id] == 4 * ROW_NBYTES


@pytest.mark.parametrize("options", [{}, {"io": "pread"}, {"max_cached_blocks": 1}], ids=["map", "pread", "cached"])
@pytest.mark.parametrize("how", ["trim", "compact", "close"])
def test_who_reads_by_a_shared_writer_keeps_its_rows_whatever_peers_remove(
    path: Path, how: str, options: dict[str, Any]
) -> None:
    with tb.TensorBlob.open(path, "a+", shared=True, **options) as blob:
        with tb.TensorBlob.open(path, "a", shared=True) as peer:
            peer.trim(6)
            if how == "compact":
                peer.compact()
            if how == "close":
                peer.write(rows(10))
        assert numbers(blob[:]) == list(range(10))
        blob.refresh()
        assert numbers(blob[:4]) == [6, 7, 8, 9]
    assert len(list(path.glob("manifest.*"))) <= 2


@pytest.mark.parametrize("io", ["map", "pread"])
def test_who_reads_by_a_writer_pins_its_generation_and_none_before(path: Path, io: str) -> None:
    with tb.TensorBlob.open(path, "a+", shared=True, io=io) as blob:
        assert numbers(blob[:1]) == [0]
        blob.trim(4)
        blob.compact()
        assert len(list(path.glob("manifest.*"))) == 1, "who reads on keeps nothing that is older"
        assert len(os.listdir(path / "blocks" / "data")) == 2
        with tb.TensorBlob.open(path, "a", shared=True) as peer:
            peer.trim(8)
            peer.compact()
        assert numbers(blob[:]) == [4, 5, 6, 7, 8, 9]
        blob.refresh()
        assert numbers(blob[:]) == [8, 9]
    assert len(list(path.glob("manifest.*"))) == 1


def test_a_flush_ends_well_though_its_process_has_followed_a_peer_to_another_generation(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_file, is_followed = files.sync_file, False
    with tb.TensorBlob.open(path, "a", shared=True) as blob, tb.TensorBlob.open(path, "a", shared=True) as peer:
        blob.write(rows(10))

        def sync(fd: int, what: str) -> None:
            nonlocal is_followed
            if not is_followed:
                is_followed = True
                peer.trim(6)
                peer.compact()
                blob.write(rows(11))  # as another thread would: it goes on in the peer's generation
            os.fstat(fd)  # which an open file has
            sync_file(fd, what)

        monkeypatch.setattr(files, "sync_file", sync)
        blob.flush()
        assert is_followed
        monkeypatch.undo()
        blob.flush()
        assert blob.durable_rows == blob.rows == 12
    assert tb.verify(path).ok


class _TakenBack(Exception):
    pass


def test_a_view_of_rows_that_were_taken_back_outlives_them(path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as blob:
        more = create(path.parent / "more.blob", 4)
        with pytest.raises(_TakenBack), blob.transaction():
            blob.seek(0, os.SEEK_END)
            blob.write(rows(10, 11))
            view = blob.view(8, 12)
            raise _TakenBack
        assert numbers(blob.view(8, 10)) == [8, 9]
        blob.extend(more)  # which seals the tail where it is committed
        assert numbers(blob.view(0, 4)) == [0, 1, 2, 3]
        assert numbers(view)[:2] == [8, 9]  # and the other two can be looked at, whatever they are
        assert view.sum() is not None


def test_what_was_scribbled_on_rows_that_were_taken_back_is_not_shown_as_committed(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="int64", shape=()) as blob:
        blob.write(torch.arange(1000))
        with pytest.raises(_TakenBack), blob.transaction():
            blob.write(torch.arange(50_000))
            blob.view(1000, 51_000).fill_(-7)
            raise _TakenBack
        blob.write(torch.arange(50_000))
        assert torch.equal(blob.view(1000, 51_000), torch.arange(50_000))


@pytest.mark.parametrize(
    "read",
    [lambda b: b[0], lambda b: b[2:], lambda b: b[[3, 1]], lambda b: b.view(), lambda b: b.held()[1]],
    ids=["row", "slice", "gather", "view", "held"],
)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_who_reads_while_another_thread_closes_the_handle_hears_that_it_is_closed(
    path: Path, mode: str, read: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tb.TensorBlob.open(path, mode)
    open_block = memory.open_block

    def open_late(*arguments: Any) -> int:
        blob.close()
        return open_block(*arguments)

    for module in ("memory", "columns"):
        monkeypatch.setattr(f"tensorblob.{module}.open_block", open_late)
    with pytest.raises(tb.BlobClosed):
        read(blob)


def _write_many_fields(path: Path) -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    fields = {f"f{number:03}": "int64" for number in range(160)}
    with tb.TensorBlob.open(path, "w", schema=fields) as blob:
        blob.write({name: torch.arange(5) for name in fields})
        blob.flush()
        return blob.durable_rows


def test_a_flush_needs_no_second_descriptor_for_each_of_very_many_files(tmp_path: Path) -> None:
    assert elsewhere(_write_many_fields, tmp_path / "x.blob") == 5


def test_rows_of_an_open_transaction_are_not_left_out_in_silence(path: Path, tmp_path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as blob, tb.TensorBlob.open(create(tmp_path / "y.blob", 1), "a") as other:
        with blob.transaction():
            blob.seek(0, os.SEEK_END)
            blob.write(rows(10))
            for take in (lambda: blob.copy(tmp_path / "z.blob"), lambda: other.extend(blob), lambda: blob.extend(blob)):
                with pytest.raises(RuntimeError, match="inside a transaction"):
                    take()
        other.extend(blob)
        assert len(other) == 12 and len(blob) == 11
    assert not (tmp_path / "z.blob").exists()
