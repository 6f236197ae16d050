"""What is written, synced, renamed and unlinked in which order; and what is left when any of it fails.

A `Ledger` holds every durable act against the protocol. Faults are made at every place in turn: the k-th act fails, for every
k. Whatever failed, the outcome is a commit or nothing, and the handle, the readers and the next writer go on from there.
"""

import contextlib
import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, create, numbers, rows, stored
from disk import KINDS, SPACE, SYNCS, Act, Disk, assert_never_synced_again, put_between

import tensorblob as tb

ROW_NBYTES = 4096
COMMITTING = {"grow", "tail", "splice", "trim", "cut", "note", "metadata", "retention"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.blob"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return put_between(monkeypatch, tmp_path)


@pytest.fixture
def no_background_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)


def wait_until(condition: Callable[[], object]) -> None:
    """The test's own time limit ends a wait that is in vain."""
    while not condition():
        time.sleep(0.001)


def open_new(path: Path, mode: str = "w+", **options: Any) -> tb.TensorBlob:
    return tb.TensorBlob.open(path, mode, **({"dtype": "float32", "shape": SHAPE, "block_rows": 4} | options))


# ---- order


class Ledger:
    """Watches one blob's disk and asserts the order of its acts; `acknowledge` after every call that returned."""

    def __init__(self, disk: Disk, *, is_power: bool) -> None:
        self.is_power = is_power
        self.dirty: dict[int, str] = {}
        """Inodes with bytes that are not synced, and where they lie."""
        self.unsynced_names: dict[str, set[str]] = {}
        """Directories with names that are not synced."""
        self.committed: dict[str, int] = {}
        """Block files and how many of their bytes are committed."""
        self.tails: dict[str, str] = {}
        self.unacknowledged: int | None = None
        """The inode of the manifest with a commit that no call has returned for."""
        self.acknowledged = self.marked = self.generations = self.unlinked = 0
        disk.watch = self.see

    def see(self, act: Act) -> None:
        directory, name = os.path.split(act.path)
        match act.kind:
            case "create" | "mkdir":
                self.unsynced_names.setdefault(directory, set()).add(name)
            case "link":
                self.unsynced_names.setdefault(os.path.dirname(act.target), set()).add(os.path.basename(act.target))
            case "write":
                self.see_write(act)
            case "sync":
                self.dirty.pop(act.inode, None)
            case "syncdir":
                self.unsynced_names.pop(act.path, None)
            case "truncate":
                assert act.offset >= act.size, f"{act.path} is shrunk: a reader may have it mapped"
            case "rename":
                self.see_rename(act)
            case "unlink" if act.is_manifest or act.path in self.committed:
                assert not self.hidden_generation(directory), f"{act} before its successor is durable"
                self.unlinked += 1
        if act.kind == "unlink":
            self.unsynced_names.get(directory, set()).discard(name)

    def hidden_generation(self, path: str) -> set[str]:
        top = path.partition("/blocks")[0]
        return {name for name in self.unsynced_names.get(top, ()) if name.startswith("manifest.")}

    def undurable(self, blob: str) -> list[str]:
        """Files and names below the blob's blocks that a power loss might take."""
        return self.undurable_names(blob) + [p for p in self.dirty.values() if p.startswith(f"{blob}/blocks/")]

    def undurable_names(self, blob: str) -> list[str]:
        return [f"{d}/{n}" for d, ns in self.unsynced_names.items() if d.startswith(f"{blob}/blocks") for n in ns]

    def see_write(self, act: Act) -> None:
        blob = act.path.partition("/")[0]
        if act.is_block:
            assert act.offset >= self.committed.get(act.path, 0), f"{act} overwrites committed rows"
        elif act.is_manifest:
            assert act.offset == act.size, f"{act} is no append"
            edit = json.loads(act.data[9:])
            names = {op[0] for op in edit}
            if names & COMMITTING and "state" not in names:
                self.unacknowledged = act.inode
                if self.is_power:
                    has_only_grown = names == {"grow"}  # then both are synced at once, before it is acknowledged
                    undurable = self.undurable_names(blob) if has_only_grown else self.undurable(blob)
                    assert not undurable, f"{act} before its rows are durable"
                    assert not self.hidden_generation(blob), "a commit before its generation is durable"
            if "durable" in names:
                ((_, offset, _),) = [op for op in edit if op[0] == "durable"]
                assert offset == act.offset and act.inode not in self.dirty, f"{act} claims what is not synced"
                assert not self.undurable(blob), f"{act} claims rows that are not synced"
                self.marked += 1
            if names <= {"durable", "moved"}:
                return  # these need not be durable themselves
            self.learn(blob, edit)
        self.dirty[act.inode] = act.path

    def learn(self, blob: str, edit: list[Any]) -> None:
        for name, *values in edit:
            if name in ("tail", "patch", "block"):
                path = f"{blob}/blocks/data/{values[1]}"
                self.committed[path] = values[-2] * ROW_NBYTES
                if name == "tail":
                    self.tails[blob] = path
            if name == "grow" and values[0][0] is not None:
                self.committed[self.tails[blob]] = values[0][0][0] * ROW_NBYTES

    def see_rename(self, act: Act) -> None:
        directory, name = os.path.split(act.target)
        if name.startswith("manifest."):
            assert act.inode not in self.dirty, f"{act} before its checkpoint is synced"
            assert not self.undurable(directory), f"{act} before all that it names is durable"
            self.generations += 1
        elif act.path.endswith(".new"):
            inside = [p for p in self.dirty.values() if p.startswith(f"{act.path}/")]
            inside += [d for d, names in self.unsynced_names.items() if d.startswith(act.path) and names]
            assert not inside, f"{act} before all of it is durable"
        self.unsynced_names.setdefault(directory, set()).add(name)
        self.unsynced_names.get(os.path.dirname(act.path), set()).discard(os.path.basename(act.path))

    def acknowledge(self) -> None:
        """A call returned: what it committed must be durable at "power"."""
        if self.is_power and self.unacknowledged is not None:
            assert self.unacknowledged not in self.dirty, "acknowledged before the manifest is synced"
            assert not self.undurable("x.blob"), "acknowledged before its rows are durable"
            self.acknowledged += 1
        self.unacknowledged = None


def workload(path: Path, other: Path) -> list[Callable[[tb.TensorBlob], object]]:
    copies = itertools.count()
    return [
        lambda blob: blob.write(rows(0, 1, 2)),
        lambda blob: blob.write(rows(3)),
        lambda blob: blob.write(rows(4, 5, 6, 7, 8, 9)),
        lambda blob: (blob.seek(1), blob.write(rows(50))),
        lambda blob: (blob.seek(1), blob.write(rows(51, 52))),
        lambda blob: blob.flush(),
        lambda blob: (blob.seek(9), blob.write(rows(53, 54))),
        lambda blob: blob.truncate(6),
        lambda blob: blob.write(rows(10)),
        lambda blob: blob.set_metadata({"a": 1}),
        lambda blob: blob.copy(path.with_name(f"copy {next(copies)}.blob")),
        lambda blob: blob.write(rows(11, 12)),
        lambda blob: blob.extend(other),
        lambda blob: blob.write(rows(13)),
        lambda blob: blob.extend(other, maintain_order=False),
        lambda blob: blob.flush(),
        lambda blob: blob.compact(),
        lambda blob: blob.write(rows(14, 15)),
        lambda blob: blob.trim(7),
        lambda blob: transact(blob, [16, 17], [18]),
        lambda blob: blob.truncate(0),
        lambda blob: blob.write(rows(19)),
    ]


def transact(blob: tb.TensorBlob, *batches: list[int]) -> None:
    with blob.transaction():
        for batch in batches:
            blob.write(rows(*batch))


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.usefixtures("no_background_flush")
def test_every_act_is_in_the_order_of_the_protocol(
    durability: str, path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.writer.MAX_EDITS", 9)
    other = create(path.with_name("other.blob"), 6)
    ledger = Ledger(disk, is_power=durability == "power")
    with open_new(path, durability=durability) as blob:
        for act in workload(path, other) * 3:
            act(blob)
            ledger.acknowledge()
    ledger.acknowledge()
    assert ledger.generations > 5 and ledger.unlinked > 10 and ledger.marked > 2
    assert ledger.acknowledged > 30 or durability == "process"
    assert not ledger.undurable("x.blob"), "close is a flush"


@pytest.mark.parametrize("shared", [False, True])
def test_a_power_commit_is_exactly_these_acts(path: Path, disk: Disk, shared: bool) -> None:
    """Rows that a peer may build upon are synced before the edit that names them; else both are, at once."""
    open_new(path).close()
    with tb.TensorBlob.open(path, "a", durability="power", shared=shared) as blob:
        blob.write(rows(0))
        rows_of_a_tail = ["write block", "write manifest", "sync block", "sync manifest", "write manifest"]
        if shared:
            rows_of_a_tail[1:3] = reversed(rows_of_a_tail[1:3])
        for batch, expected in [
            ([1, 2], rows_of_a_tail),
            (
                [3, 4],  # the first of them in the full block's rest
                ["write block", "create block", "write block", "sync block", "sync block", "syncdir blocks/data",
                 "write manifest", "sync manifest", "write manifest"],
            ),
        ]:  # fmt: skip
            mark = len(disk.acts)
            blob.write(rows(*batch))
            found = []
            for act in disk.acts[mark:]:
                if act.kind != "allocate":
                    what = "manifest" if act.is_manifest else "block" if act.is_block else act.path.partition("/")[2]
                    found.append(f"{act.kind} {what}")
            assert found == expected


def test_parent_directories_that_had_to_be_made_are_durable_too(path: Path, disk: Disk) -> None:
    """Each is a name in the one above it; without that name all rows below it are lost."""
    with open_new(path.parent / "a" / "b" / "x.blob", durability="power") as blob:
        blob.write(rows(0))
        synced = {act.path for act in disk.since(0, "syncdir")}
    assert {".", "a", "a/b"} <= synced


@pytest.mark.usefixtures("no_background_flush")
def test_a_process_commit_syncs_nothing(path: Path, disk: Disk) -> None:
    with open_new(path) as blob:
        blob.write(rows(0))
        mark = len(disk.acts)
        for number in range(1, 20):
            blob.write(rows(number))
        blob.seek(3)
        blob.write(rows(50))
        blob.truncate(12)
        assert disk.since(mark, *SYNCS) == []


@pytest.mark.usefixtures("no_background_flush")
def test_flush_and_close_make_all_rows_durable_and_say_so(path: Path, disk: Disk) -> None:
    with open_new(path) as blob, tb.TensorBlob.open(path) as reader:
        blob.write(rows(*range(6)))
        reader.refresh()
        assert (blob.rows, blob.durable_rows, reader.durable_rows) == (6, 0, 0)
        blob.flush()
        mark = len(disk.acts)
        assert reader.refresh()
        assert (blob.durable_rows, reader.durable_rows) == (6, 6)
        blob.flush()
        assert disk.since(mark) == [], "there is nothing to do"
        blob.write(rows(6))
        assert (blob.rows, blob.durable_rows) == (7, 6)
        blob.close()
        reader.refresh()
        assert reader.durable_rows == 7
    assert {os.path.basename(act.path) for act in disk.since(mark, "sync")} >= {"manifest.000001"}


def test_one_flush_syncs_more_blocks_than_are_kept_open(path: Path, disk: Disk, no_background_flush: None) -> None:
    ledger = Ledger(disk, is_power=False)
    with open_new(path) as blob:
        blob.write(rows(0))
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1, 700):
            blob.write(rows(number))
        blob.write(rows(*range(700, 1400)))
        assert len(os.listdir("/proc/self/fd")) < before + 100
        blob.flush()
        assert blob.durable_rows == 1400 and ledger.marked == 1
        assert not ledger.undurable("x.blob")
        synced = {act.path for act in disk.since(0, "sync") if act.is_block}
        assert len(synced) == len(list((path / "blocks" / "data").iterdir())) == 350
    assert stored(path) == list(range(1400))


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_new_generation_is_a_flush(
    durability: str, path: Path, monkeypatch: pytest.MonkeyPatch, no_background_flush: None
) -> None:
    monkeypatch.setattr("tensorblob.writer.MAX_EDITS", 5)
    with open_new(path, durability=durability) as blob:
        for number in range(12):
            blob.write(rows(number))
            if durability == "power":
                assert blob.durable_rows == number + 1
        assert blob.durable_rows >= 5
    with tb.TensorBlob.open(path) as reader:
        assert reader.durable_rows == 12


def test_sealed_blocks_are_made_durable_in_the_background(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorblob.writer.BACKGROUND_NBYTES", 4 * ROW_NBYTES)
    with open_new(path) as blob, tb.TensorBlob.open(path) as reader:
        blob.write(rows(0, 1))
        blob.write(rows(2, 3, 4, 5, 6))

        def is_durable() -> bool:
            reader.refresh()
            return reader.durable_rows >= 4

        wait_until(is_durable)


def test_flush_every_s_makes_rows_durable_without_being_asked(path: Path) -> None:
    with open_new(path, flush_every_s=0.005) as blob, tb.TensorBlob.open(path) as reader:
        for number in range(3):
            blob.write(rows(number))

            def is_durable(stop: int = number + 1) -> bool:
                reader.refresh()
                return reader.durable_rows == stop

            wait_until(is_durable)


def test_a_writer_syncs_the_directory_of_a_generation_before_it_removes_the_one_before(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    """Its predecessor may have died between the rename and the sync that makes the rename last."""
    blob = open_new(path, durability="power")
    blob.write(rows(0, 1, 2))

    class Died(BaseException):
        pass

    def die_at_the_sync(act: Act) -> None:
        if act.kind == "syncdir" and act.path == "x.blob":
            raise Died

    disk.watch = die_at_the_sync
    with pytest.raises(Died):
        blob.truncate(1), blob.compact()
    assert len(list(path.glob("manifest.*"))) == 2
    abandon(blob)
    ledger = Ledger(disk, is_power=True)
    ledger.unsynced_names["x.blob"] = {"manifest.000002"}
    with open_new(path, "a", durability="power") as blob:
        blob.write(rows(3))
        ledger.acknowledge()
    assert ledger.unlinked and len(list(path.glob("manifest.*"))) == 1
    assert stored(path) == [0, 3]


def abandon(blob: tb.TensorBlob) -> None:
    """Let go of a writer's locks as its death would, and of nothing else."""
    writer = blob._writer
    assert writer is not None
    assert writer._announced is not None
    os.close(writer._announced.fd)
    writer._writer_lock.release(force=True)
    for pin in writer._pins:
        pin.close()
    writer._manifest.close()
    blob._closed, writer._manifest = True, None


# ---- syncs that fail


def write_or_not(blob: tb.TensorBlob, model: list[int], batch: list[int]) -> BaseException | None:
    """Write a batch, and note in `model` what the outcome says about it."""
    try:
        blob.write(rows(*batch))
    except tb.OutcomeUnknown as error:
        model += batch
        return error
    except tb.SyncFailed as error:
        return error
    model += batch
    return None


BATCHES = [[0], [1, 2], [3, 4], [5, 6, 7, 8], [9], [10, 11, 12]]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.usefixtures("no_background_flush")
def test_a_failed_sync_costs_at_most_its_own_commit_and_the_next_goes_to_new_files(
    path: Path, disk: Disk, shared: bool
) -> None:
    raised = set()
    for nth in itertools.count():
        path = path.with_name(f"{nth}.blob")
        model: list[int] = []
        open_new(path).close()
        disk.acts.clear()
        with tb.TensorBlob.open(path, "a+", durability="power", shared=shared) as blob:
            with disk.failing(nth, SYNCS) as fault:
                for batch in BATCHES:
                    had_fired = fault.fired
                    error = write_or_not(blob, model, batch)
                    assert (error is not None) == (fault.fired and not had_fired), "one failure, one error"
                    raised.add(type(error))
                    assert stored(path) == model == numbers(blob[:])
                    if error is not None:
                        before = generation(path)
                    if had_fired:
                        assert generation(path) > before, "the next commit begins a new generation"
                if fault.fired and error is None:
                    assert blob.durable_rows == blob.rows
            broken = [act for act in disk.acts if act.failed and act.is_block]
            live = {placed.span.block for placed in blob.snapshot.columns[0].placed()}
            if had_fired:
                assert not {os.path.basename(act.path) for act in broken} & live, "no row stays in a poisoned file"
        assert_never_synced_again(disk)
        assert stored(path) == model
        with open_new(path, "a") as blob:
            blob.write(rows(99))
        assert stored(path) == [*model, 99]
        if not fault.fired:
            break
    assert nth > 12 and raised == {type(None), tb.SyncFailed, tb.OutcomeUnknown}


def generation(path: Path) -> int:
    return max(int(manifest.name[-6:]) for manifest in path.glob("manifest.*"))


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_flush_keeps_commits_out_where_they_have_to_be_durable(
    durability: str, path: Path, disk: Disk, no_background_flush: None
) -> None:
    """One that came in between would take for synced what the flush has only begun to sync."""
    free: list[bool] = []
    with open_new(path, durability=durability) as blob:
        blob.write(rows(0))
        writer = blob._writer
        assert writer is not None
        writer._flushed_offset = -1  # as after an interrupt

        def try_lock() -> None:
            free.append(writer._lock.acquire(blocking=False))
            if free[-1]:
                writer._lock.release()

        def look(act: Act) -> None:
            if act.kind == "sync":
                other = threading.Thread(target=try_lock)
                other.start()
                other.join()

        disk.watch = look
        blob.flush()
        disk.watch = None
    assert free and set(free) == {durability == "process"}


@pytest.mark.usefixtures("no_background_flush")
def test_a_failed_flush_says_so_and_the_next_one_makes_all_rows_durable(path: Path, disk: Disk) -> None:
    for nth in itertools.count():
        disk.acts.clear()
        path = path.with_name(f"{nth}.blob")
        with open_new(path) as blob:
            failures = 0
            with disk.failing(nth, SYNCS) as fault:
                for place, batch in enumerate(BATCHES):
                    blob.write(rows(*batch))
                    assert stored(path) == list(range(blob.rows)), "a failed flush takes no commit back"
                    try:
                        blob.flush()
                    except tb.SyncFailed:
                        failures += 1
                        assert blob.durable_rows < blob.rows or place == 0
                    else:
                        assert blob.durable_rows == blob.rows
            assert failures == fault.fired
        assert_never_synced_again(disk)
        assert stored(path) == list(range(13))
        if not fault.fired:
            break
    assert nth > 12


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_disk_that_syncs_no_more_loses_no_row_that_was_acknowledged(durability: str, path: Path, disk: Disk) -> None:
    with open_new(path, durability=durability) as blob:
        model: list[int] = []
        for batch in BATCHES[:2]:
            assert write_or_not(blob, model, batch) is None
        with disk.failing(0, SYNCS, lasting=True):
            for batch in BATCHES[2:]:
                write_or_not(blob, model, batch)
                assert numbers(blob[:]) == stored(path) == model
            with pytest.raises(tb.SyncFailed):
                blob.flush()
            assert numbers(blob[:]) == stored(path) == model
        assert write_or_not(blob, model, [100]) is None, "it works again as soon as the disk does"
        blob.flush()
        assert blob.durable_rows == blob.rows
    assert_never_synced_again(disk)
    assert stored(path) == model and model[:3] == [0, 1, 2] and model[-1] == 100


def test_close_reports_rows_that_could_not_be_made_durable_and_is_closed_all_the_same(path: Path, disk: Disk) -> None:
    blob = open_new(path)
    blob.write(rows(0, 1))
    with disk.failing(0, SYNCS, lasting=True), pytest.raises(tb.SyncFailed):
        blob.close()
    assert blob.closed
    with open_new(path, "a") as blob:
        blob.write(rows(2))
    assert stored(path) == [0, 1, 2]


def test_what_fails_in_the_background_is_healed_by_the_next_commit(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.writer.BACKGROUND_NBYTES", 4 * ROW_NBYTES)
    with open_new(path) as blob:
        with disk.failing(0, ("sync",)) as fault:
            blob.write(rows(0, 1, 2, 3, 4))
            wait_until(lambda: fault.fired)
        for number in range(5, 30):
            blob.write(rows(number))
        blob.flush()
        assert blob.durable_rows == blob.rows == 30
        assert numbers(blob[:]) == list(range(30))
    assert_never_synced_again(disk)
    assert stored(path) == list(range(30))


def test_rows_that_the_kernel_dropped_when_their_sync_failed_are_not_passed_on(path: Path, disk: Disk) -> None:
    """After EIO the page cache may hold anything. What moves to a new file is checked against its checksum."""
    with open_new(path, durability="power") as blob:
        blob.write(rows(0, 1))
        with disk.failing(0, ("sync",)), pytest.raises(tb.SyncFailed):
            blob.write(rows(2))
        (block,) = (path / "blocks" / "data").iterdir()
        with block.open("r+b") as file:
            file.write(bytes(ROW_NBYTES))
            file.seek(0)
            file.write(b"\1")
        with pytest.raises(tb.Corrupt):
            blob.write(rows(3))
        with pytest.raises(tb.Corrupt):
            blob.close()


@pytest.mark.usefixtures("no_background_flush")
def test_a_flush_claims_only_what_it_synced_though_rows_are_cut_and_written_meanwhile(path: Path, disk: Disk) -> None:
    with open_new(path) as blob:
        blob.write(rows(*range(10)))

        def cut_once(act: Act) -> None:
            if act.kind == "sync":
                disk.watch = None
                blob.truncate(5)
                blob.write(rows(*range(50, 60)))

        disk.watch = cut_once
        blob.flush()
        assert blob.rows == 15
        assert blob.durable_rows <= 5, "rows 5 and on were never synced"
        with tb.TensorBlob.open(path) as reader:
            assert reader.durable_rows <= 5
        blob.flush()
        assert blob.durable_rows == 15


def test_a_sync_that_fails_while_another_thread_writes_fails_neither_it_nor_later_writes(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    syncing, placed, failed = threading.Event(), threading.Event(), threading.Event()
    failures: list[BaseException] = []
    with open_new(path) as blob:
        blob.write(rows(0))

        def flush() -> None:
            try:
                blob.flush()
            except tb.SyncFailed as error:
                failures.append(error)

        flusher = threading.Thread(target=flush)

        def meet(act: Act) -> None:
            if threading.current_thread() is flusher and act.kind == "sync" and act.is_manifest:
                syncing.set()
                placed.wait()
            if threading.current_thread() is not flusher and act.kind == "write" and act.is_block:
                disk.watch = None
                placed.set()
                failed.wait()
                flusher.join(0.2)  # it notes its failure now, or waits for us: both are to be survived

        def fail(act: Act) -> bool:
            if act.kind == "sync" and act.is_manifest:
                failed.set()
                return True
            return False

        disk.watch = meet
        disk.fail_when(fail)
        flusher.start()
        syncing.wait()
        model = [0]
        try:
            blob.write(rows(1))
            model.append(1)
        except OSError:
            pass
        disk.heal()
        flusher.join()
        assert len(failures) == 1
        assert stored(path) == numbers(blob[:]) == model
        blob.write(rows(2))
        assert stored(path) == [*model, 2]
    assert stored(path) == [*model, 2]


def test_what_was_taken_over_and_could_not_be_synced_moves_to_new_files(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    other = create(path.with_name("other.blob"), 6)
    with open_new(path) as blob:
        blob.write(rows(0))
        blob.flush()
        blob.extend(other)
        taken = {placed.span.block for placed in blob.snapshot.columns[0].placed()}
        with disk.failing(0, ("sync",)) as fault, pytest.raises(tb.SyncFailed):
            blob.flush()
        assert fault.fired
        blob.flush()
        assert blob.durable_rows == blob.rows == 7
        (failed,) = (os.path.basename(act.path) for act in disk.acts if act.failed)
        assert failed in taken and failed not in {placed.span.block for placed in blob.snapshot.columns[0].placed()}
    assert_never_synced_again(disk)
    assert stored(path) == [0, *range(6)]


@pytest.mark.parametrize("is_read", [True, False], ids=["", "commit.lock cannot be read"])
def test_a_writer_after_one_that_died_knows_that_a_sync_failed(
    is_read: bool, path: Path, disk: Disk, no_background_flush: None
) -> None:
    """The kernel has told the dead one, and will say yes to the next sync, and mean nothing."""
    blob = open_new(path, durability="power")
    blob.write(rows(0, 1))
    with disk.failing(0, ("sync",)), pytest.raises(tb.OutcomeUnknown):
        blob.write(rows(2))
    (failed,) = (os.path.basename(act.path) for act in disk.acts if act.failed)
    assert failed in {placed.span.block for placed in blob.snapshot.columns[0].placed()}
    before = generation(path)
    abandon(blob)
    if not is_read:
        disk.fail_when(lambda act: act.kind == "open" and act.path.endswith("commit.lock"))
        with pytest.raises(OSError, match="Input/output"):
            open_new(path, "a")
        disk.heal()
    with open_new(path, "a+") as blob:
        assert generation(path) > before
        blob.write(rows(3))
        blob.flush()
        assert failed not in {placed.span.block for placed in blob.snapshot.columns[0].placed()}
    assert_never_synced_again(disk)
    assert stored(path) == [0, 1, 2, 3]


def test_a_poisoned_file_that_a_reader_pins_is_not_synced_again(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    """It stays where it is for the reader's sake; its rows have moved."""
    blob = open_new(path, "w", durability="power")
    blob.write(rows(0, 1))
    with disk.failing(0, ("sync",)), pytest.raises(tb.OutcomeUnknown):
        blob.write(rows(2))
    abandon(blob)
    with tb.TensorBlob.open(path) as reader:
        with open_new(path, "a", durability="power") as blob:
            blob.write(rows(3))
            blob.write(rows(4))
        assert_never_synced_again(disk)
        assert numbers(reader[:]) == [0, 1, 2]
    assert stored(path) == [0, 1, 2, 3, 4]


def test_a_generation_whose_name_could_not_be_synced_is_given_no_commit(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    with open_new(path, durability="power") as blob:
        blob.write(rows(*range(6)))
        blob.truncate(3)
        disk.fail_when(lambda act: act.kind == "syncdir" and act.path == "x.blob")
        blob.compact()
        disk.heal()
        assert generation(path) == 2
        mark = len(disk.acts)
        blob.seek(0, 2)
        blob.write(rows(9))
        done = disk.since(mark)
        names = [{op[0] for op in json.loads(act.data[9:])} if act.is_manifest and act.data else set() for act in done]
        commit = next(place for place, found in enumerate(names) if found & COMMITTING and "state" not in found)
        assert ("syncdir", "x.blob") in [(act.kind, act.path) for act in done[:commit]]
    assert stored(path) == [0, 1, 2, 9]


def test_a_flush_marks_nothing_in_a_generation_that_broke_meanwhile(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    with open_new(path) as blob:
        blob.write(rows(0, 1))

        def break_it(act: Act) -> None:
            if act.kind == "sync":
                disk.watch = None
                disk.fail_when(lambda act: act.kind == "write" and act.is_manifest)
                with pytest.raises(OSError, match="Input/output"):
                    blob.write(rows(2))
                disk.heal()

        disk.watch = break_it
        blob.flush()
        assert disk.watch is None
        blob.write(rows(3))
        blob.flush()
        assert blob.durable_rows == 3
    assert stored(path) == [0, 1, 3]


def test_what_could_not_be_removed_is_removed_by_the_next_writer(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    with open_new(path) as blob:
        blob.write(rows(*range(9)))
        disk.fail_when(lambda act: act.kind == "unlink" and act.is_block)
        blob.truncate(1)
        live = {placed.span.block for placed in blob.snapshot.columns[0].placed()}
    disk.heal()
    assert set(os.listdir(path / "blocks" / "data")) > live and len(list(path.glob("manifest.*"))) == 1
    open_new(path, "a").close()
    assert set(os.listdir(path / "blocks" / "data")) == live and not os.listdir(path / "producers")


# ---- syncs that writes come in between


class WatchedLock:
    """A lock that says when a thread asks for it: it calls `asked` before it waits."""

    def __init__(self, lock: Any, asked: Callable[[], object]) -> None:
        self._lock, self._asked = lock, asked

    def acquire(self, blocking: bool = True) -> bool:
        self._asked()
        return bool(self._lock.acquire(blocking))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_a_generation_begins_when_the_flush_that_is_under_way_has_ended(
    path: Path, disk: Disk, no_background_flush: None
) -> None:
    """What the flush has taken over to sync is nobody else's to sync, and not durable yet."""
    with open_new(path) as blob:
        assert blob._writer is not None
        blob.write(rows(*range(6)))
        flushing, asked = threading.Event(), threading.Event()
        flusher = threading.Thread(target=blob.flush)
        met: list[Act] = []

        def is_begun() -> bool:
            return any(act.target.startswith("x.blob/manifest.") for act in disk.acts)

        def meet(act: Act) -> None:
            if threading.current_thread() is flusher and act.kind == "sync":
                disk.watch = None
                met.append(act)
                flushing.set()
                wait_until(lambda: asked.is_set() or is_begun())

        blob._writer._sync_lock = WatchedLock(blob._writer._sync_lock, lambda: flushing.is_set() and asked.set())
        disk.acts.clear()
        disk.watch = meet
        flusher.start()
        flushing.wait()
        blob.compact()
        flusher.join()
        assert is_begun()
        first = next(act for act in disk.acts if act in met or act.kind == "rename")
        assert first in met, "what the flush syncs, then the generation's name"


def test_a_close_waits_for_the_write_that_another_thread_is_in(path: Path, disk: Disk) -> None:
    """Its files would be closed under it, and their numbers given to others."""
    blob = open_new(path)
    blob.write(rows(0))
    writer, closing, writing, asked = blob._writer, threading.Event(), threading.Event(), threading.Event()
    assert writer is not None
    lock, leave = writer._threads_lock, writer._leave
    errors: list[BaseException] = []

    def write() -> None:
        closing.wait()
        try:
            blob.write(rows(1))
        except BaseException as error:
            errors.append(error)

    def meet(act: Act) -> None:
        if threading.current_thread() is other and act.kind == "write" and act.is_block:
            writing.set()
            wait_until(lambda: asked.is_set() or writer.dir_fd < 0)

    def unlink_dead() -> None:  # the last that is done before all is closed
        closing.set()

    def ask_during_the_write() -> None:
        if threading.current_thread() is not other:
            wait_until(writing.is_set)
            asked.set()

    def leave_during_the_write() -> None:
        if not lock._is_owned():
            wait_until(writing.is_set)
        leave()

    other = threading.Thread(target=write)
    other.start()
    writer._blocks.unlink_dead = unlink_dead  # type: ignore[method-assign]
    writer._threads_lock = WatchedLock(lock, ask_during_the_write)
    writer._leave = leave_during_the_write  # type: ignore[method-assign]
    disk.watch = meet
    blob.close()
    other.join()
    assert not errors
    assert stored(path) == [0, 1]


@pytest.mark.usefixtures("no_background_flush")
def test_a_flush_makes_the_names_durable_of_blocks_that_a_peer_has_made(path: Path, disk: Disk) -> None:
    open_new(path).close()
    with (
        tb.TensorBlob.open(path, "a", shared=True) as one,
        tb.TensorBlob.open(path, "a", shared=True) as two,
    ):
        one.write(rows(*range(6)))
        mark = len(disk.acts)
        two.flush()
        assert "x.blob/blocks/data" in {act.path for act in disk.since(mark, "syncdir")}


@pytest.mark.usefixtures("no_background_flush")
def test_what_is_written_while_it_is_synced_is_synced_by_the_next_flush(path: Path, disk: Disk) -> None:
    """Rows of a file, and names of a directory."""
    with open_new(path) as blob:
        for kind, count in (("sync", 1), ("syncdir", 4)):
            blob.write(rows(0, 1))  # a file, which is not full, and its name

            def write_once(act: Act, kind: str = kind, count: int = count) -> None:
                if act.kind == kind and "/blocks" in act.path:
                    disk.watch = None
                    blob.write(rows(*range(count)))

            disk.watch = write_once
            blob.flush()
            assert disk.watch is None
            mark = len(disk.acts)
            blob.flush()
            assert [act for act in disk.since(mark, kind) if "/blocks" in act.path]
            assert blob.durable_rows == blob.rows


@pytest.mark.parametrize("way", ["one row", "several parts", "many rows"])
@pytest.mark.usefixtures("no_background_flush")
def test_rows_whose_file_is_synced_while_they_are_on_their_way_are_synced_by_the_next_flush(
    way: str, path: Path, disk: Disk
) -> None:
    flushing, writing = threading.Event(), threading.Event()
    schema = {"a": ("float32", SHAPE), "b": ("float32", SHAPE)}

    def batch(count: int) -> dict[str, torch.Tensor]:
        return {name: rows(*range(count)) for name in schema}

    def is_of_b(act: Act) -> bool:
        return "/blocks/b/" in act.path

    with tb.TensorBlob.open(path, "w", schema=schema, block_rows=64) as blob:
        assert blob._writer is not None
        blob.write(batch(1))
        flusher = threading.Thread(target=blob.flush)

        def meet(act: Act) -> None:
            if threading.current_thread() is flusher and act.kind == "sync" and "/blocks/a/" in act.path:
                flushing.set()
                writing.wait()
            if threading.current_thread() is not flusher and act.kind == "write" and is_of_b(act):
                writing.set()
                wait_until(lambda: any(map(is_of_b, disk.since(0, "sync"))))

        disk.watch = meet
        flusher.start()
        flushing.wait()
        if way == "several parts":
            row = bytes(ROW_NBYTES)
            blob._writer.append([[row, row], [row, row]], 2)
        else:
            blob.write(batch(1 if way == "one row" else 20))
        disk.watch = None
        flusher.join()
        mark = len(disk.acts)
        blob.flush()
        assert any(map(is_of_b, disk.since(mark, "sync")))


@pytest.mark.parametrize("most_open", [1, 64])
@pytest.mark.usefixtures("no_background_flush")
def test_a_file_whose_sync_fails_while_rows_are_written_to_it_is_never_synced_again(
    most_open: int, path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.blocks.MAX_OPEN", most_open)
    with open_new(path) as blob:
        blob.write(rows(0, 1, 2))

        def write_once(act: Act) -> None:
            if act.kind == "sync" and act.is_block:
                disk.watch = None
                blob.write(rows(3))

        disk.watch = write_once
        with disk.failing(0, ("sync",)), pytest.raises(tb.SyncFailed):
            blob.flush()
        blob.write(rows(4))
        blob.flush()
        assert blob.durable_rows == 5
    assert_never_synced_again(disk)
    assert stored(path) == [0, 1, 2, 3, 4]


# ---- appends to the manifest that fail


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize(
    ("error", "short", "raises"),
    [
        (errno.ENOSPC, False, tb.DiskFull),
        (errno.EDQUOT, True, tb.DiskFull),
        (errno.EIO, False, OSError),
        (errno.EIO, True, OSError),
    ],
)
def test_a_commit_whose_record_could_not_be_written_never_was(
    durability: str, error: int, short: bool, raises: type[OSError], path: Path, disk: Disk, no_background_flush: None
) -> None:
    changes: list[Callable[[tb.TensorBlob], object]] = [
        lambda blob: blob.write(rows(100)),
        lambda blob: blob.write(rows(*range(100, 110))),
        lambda blob: (blob.seek(2), blob.write(rows(100, 101))),
        lambda blob: blob.truncate(3),
        lambda blob: blob.trim(3),
        lambda blob: blob.set_metadata({"a": 2}),
        lambda blob: transact(blob, [100], [101, 102, 103, 104]),
    ]
    with open_new(path, durability=durability) as blob, tb.TensorBlob.open(path) as follower:
        blob.write(rows(*range(6)))
        model = list(range(6))
        for number, change in enumerate(changes):
            snapshot = blob.snapshot
            disk.fail_when(lambda act: act.kind == "write" and act.is_manifest, error)
            disk._is_short = short
            with pytest.raises(raises) as caught:
                change(blob)
            assert caught.value.errno == error
            disk.heal()
            assert numbers(blob[:]) == stored(path) == model
            assert (blob.rows, blob.first_row, blob.history, blob.metadata) == (
                snapshot.rows,
                snapshot.first_row,
                snapshot.history,
                snapshot.metadata or {},
            )
            follower.refresh()
            assert numbers(follower[:]) == model
            blob.seek(0, 2)
            blob.write(rows(number))
            model.append(number)
            assert follower.refresh()
            assert numbers(follower[:]) == numbers(blob[:]) == stored(path) == model
        assert generation(path) == 1 + len(changes)
    assert stored(path) == model


def test_a_record_that_was_written_counts_although_the_kernel_then_said_no(path: Path, disk: Disk) -> None:
    with open_new(path) as blob:
        blob.write(rows(0))

        def refuse(act: Act) -> None:
            if act.is_manifest:
                disk.after = None
                raise OSError(errno.EIO, "late news")

        disk.after = refuse
        blob.write(rows(1))
        assert stored(path) == numbers(blob[:]) == [0, 1]
        blob.write(rows(2))
        assert stored(path) == numbers(blob[:]) == [0, 1, 2]
    assert stored(path) == [0, 1, 2]


# ---- anything that fails, anywhere


class Case:
    """A change, and what the blob holds before and after it."""

    def __init__(self, change: Callable[[tb.TensorBlob], object], after: list[int], *, trims: int = 0) -> None:
        self.change, self.after, self.trims = change, after, trims


BEFORE = [10, 11, 12, 13, 14, 15]
OTHER = [0, 1, 2, 3, 4, 5]
CASES: dict[str, Callable[[Path], Case]] = {
    "append in the tail": lambda other: Case(lambda b: b.write(rows(16)), [*BEFORE, 16]),
    "append over blocks": lambda other: Case(lambda b: b.write(rows(*range(16, 26))), [*BEFORE, *range(16, 26)]),
    "transaction": lambda other: Case(lambda b: transact(b, [16], [17, 18, 19]), [*BEFORE, 16, 17, 18, 19]),
    "overwrite": lambda other: Case(lambda b: (b.seek(1), b.write(rows(91, 92, 93, 94))), [10, 91, 92, 93, 94, 15]),
    "overwrite beyond the end": lambda other: Case(
        lambda b: (b.seek(4), b.write(rows(94, 95, 96, 97, 98))), [10, 11, 12, 13, 94, 95, 96, 97, 98]
    ),
    "truncate": lambda other: Case(lambda b: b.truncate(2), [10, 11]),
    "trim": lambda other: Case(lambda b: b.trim(5), [15], trims=5),
    "extend": lambda other: Case(lambda b: b.extend(other), [*BEFORE, *OTHER]),
    "extend in any order": lambda other: Case(lambda b: b.extend(other, maintain_order=False), [*BEFORE, *OTHER]),
    "compact": lambda other: Case(lambda b: b.compact(), BEFORE),
    "metadata": lambda other: Case(lambda b: b.set_metadata({"a": 1}), BEFORE),
    "flush": lambda other: Case(lambda b: b.flush(), BEFORE),
}


def faults() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "io error", {"error": errno.EIO}
    yield "io error in the middle of a write", {"kinds": ("write",), "error": errno.EIO, "short": True}
    yield "disk full", {"kinds": SPACE, "error": errno.ENOSPC, "lasting": True}
    yield "broken disk", {"error": errno.EIO, "lasting": True}


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_background_flush")
def test_a_change_that_fails_anywhere_is_committed_or_never_was(
    name: str, durability: str, path: Path, disk: Disk
) -> None:
    other = create(path.with_name("other.blob"), len(OTHER))
    case = CASES[name](other)
    numbered = itertools.count()
    for kind, fault_options in faults():
        for nth in itertools.count():
            path = path.with_name(f"{next(numbered)}.blob")
            blob = begin(path, durability)
            disk.acts.clear()
            what = f"{kind} at act {nth}"
            with disk.failing(nth, **({"kinds": KINDS} | fault_options)) as fault:
                error = outcome(lambda blob=blob: case.change(blob))
                found = stored(path)
                assert sorted(numbers(blob[:])) == sorted(found), what
            if error is None or isinstance(error, tb.OutcomeUnknown):
                assert sorted(found) == sorted(case.after), what
            else:
                assert isinstance(error, OSError), what
                assert found == BEFORE, what
                assert fault.fired
            blob.seek(0, 2)
            assert outcome(lambda blob=blob: blob.write(rows(200))) is None, (
                f"{what}: the handle works when the disk does"
            )
            assert stored(path) == numbers(blob[:]) == [*found, 200], what
            blob.close()
            assert stored(path) == [*found, 200], what
            assert_never_synced_again(disk)
            with open_new(path, "r+") as blob:
                assert numbers(blob[:]) == [*found, 200], what
                blob.seek(0, 2)
                blob.write(rows(201))
                named = {block for column in blob.snapshot.columns for block in column.blocks()}
            assert stored(path) == [*found, 200, 201], what
            left = {block.name for block in (path / "blocks" / "data").iterdir()}
            assert left == named, f"{what}: files that nothing names are left behind, or named ones are gone"
            assert not list((path / "producers").iterdir()) and not list(path.glob(".*"))
            if not fault.fired:
                break


def begin(path: Path, durability: str) -> tb.TensorBlob:
    blob = open_new(path, durability=durability)
    blob.write(rows(0, *BEFORE[1:5]))
    blob.seek(0)
    blob.write(rows(BEFORE[0]))  # so that there is a patch, and something to compact
    blob.seek(0, 2)
    blob.write(rows(BEFORE[5]))
    return blob


def outcome(change: Callable[[], object]) -> BaseException | None:
    try:
        change()
    except Exception as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize("make", ["create", "copy"])
def test_a_blob_whose_making_fails_anywhere_is_whole_or_absent(
    make: str, path: Path, disk: Disk, no_background_flush: None
) -> None:
    source = create(path.with_name("source.blob"), 6)
    for kind, fault_options in faults():
        for nth in itertools.count():
            path = path.with_name(f"{kind} {nth}.blob")
            with disk.failing(nth, **({"kinds": KINDS} | fault_options)) as fault:
                if make == "create":
                    error = outcome(lambda path=path: open_new(path, "w").close())
                else:
                    with tb.TensorBlob.open(source) as reader:
                        error = outcome(lambda path=path, reader=reader: reader.copy(path))
            assert error is None or (fault.fired and isinstance(error, OSError)), error
            expected = list(range(6)) if make == "copy" else []
            if error is None:
                assert stored(path) == expected
            elif path.exists():
                assert stored(path) == expected, "what has its name is whole"
            elif make == "copy":
                with tb.TensorBlob.open(source) as reader:
                    reader.copy(path)
            with open_new(path) if make == "create" else tb.TensorBlob.open(path, "r+") as blob:
                blob.seek(0, 2)
                blob.write(rows(100))
            assert stored(path) == [*expected, 100]
            if not fault.fired:
                break
        assert nth > 10 or kind.endswith("write")
    assert stored(source) == list(range(6))
    assert not list(path.parent.glob(".*")), "nothing unfinished is left"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["append in the tail", "append over blocks", "overwrite", "transaction", "extend", "truncate"]
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("durability", ["power", "process"])
def test_an_interrupt_anywhere_leaves_a_whole_commit_or_none(
    name: str, when: str, durability: str, path: Path, disk: Disk, no_background_flush: None
) -> None:
    case = CASES[name](create(path.with_name("other.blob"), len(OTHER)))
    for nth in itertools.count():
        path = path.with_name(f"{nth}.blob")
        blob = begin(path, durability)
        left = nth

        def interrupt(act: Act) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise KeyboardInterrupt

        setattr(disk, "watch" if when == "before" else "after", interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            case.change(blob)
        disk.watch = disk.after = None
        found = stored(path)
        assert numbers(blob[:]) == found and found in (BEFORE, case.after), nth
        blob.seek(0, 2)
        blob.write(rows(200))
        assert stored(path) == numbers(blob[:]) == [*found, 200], nth
        blob.close()
        assert stored(path) == [*found, 200], nth
        if left >= 0:
            break
    assert nth > 0


def test_one_failing_field_takes_the_commit_of_all_back(path: Path, disk: Disk, no_background_flush: None) -> None:
    schema = {"a": ("float32", SHAPE), "b": ("int64", (512,))}

    def batch(*values: int) -> dict[str, torch.Tensor]:
        return {"a": rows(*values), "b": torch.tensor(values)[:, None].expand(-1, 512)}

    with tb.TensorBlob.open(path, "w+", schema=schema, block_rows=4) as blob:
        blob.write(batch(0, 1, 2))
        model = [0, 1, 2]
        for count, nth in itertools.product((1, 5), range(12)):
            batch_rows = list(range(len(model), len(model) + count))
            with disk.failing(nth, error=errno.ENOSPC) as fault:
                error = outcome(lambda batch_rows=batch_rows: blob.write(batch(*batch_rows)))
            assert error is None or fault.fired
            model += batch_rows if error is None else []
            with tb.TensorBlob.open(path) as reader:
                found = reader[:]
            assert numbers(found["a"]) == found["b"][:, 0].tolist() == model
    assert len(model) > 3
