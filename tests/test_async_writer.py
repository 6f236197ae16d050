"""The async writer: group commit, the waiting room, failures, keys, and cancellation at any point."""

import asyncio
import dataclasses
import errno
import itertools
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import torch
from api_support import elsewhere, mount_small_disk, private_mounts, process
from disk import without_platters
from live_support import (
    LARGE,
    Disk,
    at_every_wait,
    cancelled_at,
    copies,
    create_ints,
    files_before,
    held_up,
    ints,
    limited,
    map_count,
    open_files,
    outcome,
    runs_of,
    some_turns,
    stored_ints,
    until,
    write_ints,
)

import tensorblob as tb

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100), pytest.mark.usefixtures("no_platters")]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, no_platters: None) -> Disk:
    return Disk(monkeypatch)


def full() -> OSError:
    return tb.DiskFull(errno.ENOSPC, "no space left")


def broken() -> OSError:
    return OSError(errno.EIO, "input/output error")


def unsynced() -> OSError:
    return tb.SyncFailed(errno.EIO, "input/output error")


# ---- commits


@pytest.mark.parametrize("durability", ["process", "power"])
@limited
async def test_an_append_returns_its_row_ids_once_they_are_committed(durability: str, tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path, durability=durability) as writer:
        assert await writer.append(ints(0, 3)) == range(3)
        assert stored_ints(path) == [0, 1, 2], "who looks after it sees them"
        assert await writer.append(ints(3, LARGE)) == range(3, LARGE)
        assert await writer.append(ints(0, 0)) == range(LARGE, LARGE)
        assert writer.rows == LARGE == writer.snapshot().rows
        assert (writer.snapshot().durable_rows == LARGE) == (durability == "power")
    assert stored_ints(path) == list(range(LARGE))


@pytest.mark.parametrize("shared", [False, True])
@limited
async def test_all_who_wait_share_one_commit(shared: bool, tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    got: list[range] = []
    async with write_ints(path, shared=shared) as writer:

        async def produce(number: int) -> None:
            got.append(await writer.append(copies(number, number + 1)))

        async with anyio.create_task_group() as tasks, held_up(writer, disk) as first:
            for number in range(30):
                tasks.start_soon(produce, number)
            await until(lambda: writer.statistics().pending_nbytes == (LARGE + 30 * 31 // 2) * 8)
            assert not got and not first
        before = writer.statistics()
        assert (before.appends, before.commits, before.max_appends_per_commit) == (31, 2, 30)
        assert before.mean_appends_per_commit == 31 / 2
        assert writer.snapshot().commits == 2
    found = stored_ints(path)
    assert sorted((rows.start, rows.stop) for rows in got) == sorted((rows.start, rows.stop) for rows in set(got))
    for rows in got:
        assert found[rows.start : rows.stop] == [len(rows) - 1] * len(rows)
    assert first == [range(LARGE)] and len(found) == LARGE + 30 * 31 // 2


@pytest.mark.parametrize(
    "options", [{}, {"durability": "power"}, {"shared": True}, {"max_pending_bytes": 100}], ids=str
)
@limited
async def test_each_append_is_contiguous_and_each_task_in_its_own_order(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.blob"
    got: dict[int, list[range]] = {}
    async with write_ints(path, block_rows=512, **options) as writer:

        async def produce(task: int) -> None:
            batches = [copies(task * 100 + number, (task + number) % 4 + 1) for number in range(20)]
            got[task] = [await writer.append(batch) for batch in batches]

        async with anyio.create_task_group() as tasks:
            for task in range(16):
                tasks.start_soon(produce, task)
        assert writer.statistics().appends == 320
        assert writer.statistics().commits < 320, "fewer commits than appends"
    found = stored_ints(path)
    for task, ranges in got.items():
        assert all(one.stop <= next.start for one, next in itertools.pairwise(ranges)), "in its own order"
        for number, rows in enumerate(ranges):
            assert found[rows.start : rows.stop] == [task * 100 + number] * ((task + number) % 4 + 1)
    assert sum(len(rows) for ranges in got.values() for rows in ranges) == len(found)


@limited
async def test_all_fields_of_all_appends_of_a_group_are_committed_together(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    schema = {"a": "int64", "b": ("float32", (300,)), "c": {"d": "bool"}}

    def batch(number: int, count: int) -> dict[str, Any]:
        numbers = torch.full((count,), number)
        return {"a": numbers, "b": numbers.float()[:, None].expand(-1, 300), "c": {"d": numbers % 2 == 0}}

    got: dict[int, range] = {}
    async with tb.open_writer(path, schema=schema, block_rows=256) as writer:

        async def produce(number: int, count: int) -> None:
            got[number] = await writer.append(batch(number, count))

        async with anyio.create_task_group() as tasks:
            disk.hold()
            tasks.start_soon(produce, 0, 1000)
            await until(lambda: disk.is_waiting)
            for number in range(1, 20):
                tasks.start_soon(produce, number, 7 * number)  # some are copied, some are not
            await some_turns()
            disk.release()
        assert writer.statistics().max_appends_per_commit == 19
    with tb.TensorBlob.open(path) as blob:
        for number, rows in got.items():
            found = blob[rows.start : rows.stop]
            assert bool((found["a"] == number).all()) and bool((found["b"] == number).all())
            assert bool((found["c", "d"] == (number % 2 == 0)).all())


@limited
async def test_metadata_goes_with_the_rows_of_its_append(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer, anyio.create_task_group() as tasks:
        async with held_up(writer, disk):
            tasks.start_soon(lambda: writer.append(copies(1, 2), metadata={"who": 1}))
            tasks.start_soon(lambda: writer.append(copies(2, 3)))
            tasks.start_soon(lambda: writer.append(copies(3, 4), metadata={"who": 3}))
            await some_turns()
        await writer.append(copies(4, 1), metadata={"who": 4})
        with pytest.raises(TypeError):
            await writer.append(copies(9, 1), metadata=[1])  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            await writer.append(copies(9, 1), metadata={"who": object()})
    found = stored_ints(path)
    with tb.TensorBlob.open(path) as blob:
        notes = blob.commit_metadata()
    assert [note[2]["who"] for note in sorted(notes, key=lambda note: note[2]["who"])] == [1, 3, 4]
    for start, stop, note in notes:
        assert set(found[start:stop]) == {note["who"]} and stop - start == {1: 2, 3: 4, 4: 1}[note["who"]]
    assert 9 not in found


# ---- the caller's memory


@pytest.mark.parametrize("count", [3, 8_000, LARGE, 530_000])
@limited
async def test_a_buffer_may_be_used_again_when_append_has_returned(count: int, tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    buffer = torch.empty(count, dtype=torch.int64)
    async with write_ints(path) as writer:
        for number in range(4):
            buffer.fill_(number)
            await writer.append(buffer)
        buffer.fill_(-1)
    assert runs_of(stored_ints(path)) == [(number, count) for number in range(4)]


@limited
async def test_small_batches_and_those_of_append_nowait_are_copied_on_entry(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    small, large = copies(1, 10), copies(2, LARGE)
    async with write_ints(path) as writer, anyio.create_task_group() as tasks, held_up(writer, disk):
        tasks.start_soon(writer.append, small)
        await some_turns()
        small.fill_(-2)
        writer.append_nowait(large)
        large.fill_(-3)
    assert runs_of(stored_ints(path)) == [(-1, LARGE), (1, 10), (2, LARGE)]


@limited
async def test_a_cancelled_append_returns_when_its_buffer_is_no_longer_read(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    left = anyio.Event()
    scope = anyio.CancelScope()
    buffer = copies(7, LARGE)
    async with write_ints(path) as writer:

        async def produce() -> None:
            with scope:
                await writer.append(buffer)
            left.set()

        async with anyio.create_task_group() as tasks:
            disk.hold()
            tasks.start_soon(produce)
            await until(lambda: disk.is_waiting)
            scope.cancel()
            await some_turns(50)
            assert not left.is_set(), "its rows are being written"
            disk.release()
            await left.wait()
            buffer.fill_(-1)
        assert writer.rows == LARGE
    assert runs_of(stored_ints(path)) == [(7, LARGE)]


# ---- who commits


@limited
async def test_the_first_of_a_group_commits_for_all_who_come_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        await writer.append(copies(0, 2))
        await some_turns(5)  # the committer waits for its bell
        async with anyio.create_task_group() as tasks:
            for number in range(1, 8):
                tasks.start_soon(writer.append, copies(number, 2))
        assert writer.statistics().commits == 2
        for number in range(8, 11):
            await writer.append(copies(number, 2))
        assert writer.statistics().commits == 5
    assert sorted(runs_of(stored_ints(path))) == [(number, 2) for number in range(11)]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # whose tasks take their turns in the order of their coming
@limited
async def test_who_leads_a_group_and_is_cancelled_leaves_the_others_to_the_committer(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    scope = anyio.CancelScope()

    async def lead() -> None:
        with scope:
            await writer.append(copies(1, 3))

    async with write_ints(path) as writer, anyio.create_task_group() as tasks:
        tasks.start_soon(lead)
        await anyio.lowlevel.checkpoint()
        assert writer._is_led
        scope.cancel()
        assert await writer.append(copies(2, 3)) == range(3)
        assert scope.cancelled_caught
    assert runs_of(stored_ints(path)) == [(2, 3)]


@pytest.mark.parametrize("anyio_backend", ["trio"])  # whose tasks take their turns in any order
@limited
async def test_nobody_leads_a_group_while_the_committer_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"

    async def come_later(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        await writer.append(copies(number, 1))

    async with write_ints(path) as writer:
        for number in range(0, 600, 2):  # in one of twelve the committer begins, one joins, then the leader goes on
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(writer.append, copies(number, 1))
                tasks.start_soon(come_later, number + 1)
                tasks.start_soon(writer.flush)
    assert sorted(stored_ints(path)) == list(range(600))


# ---- the waiting room


@limited
async def test_producers_wait_for_room_and_come_in_in_their_order(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    limit = LARGE * 8 + 100
    async with write_ints(path, max_pending_bytes=limit) as writer:
        async with anyio.create_task_group() as tasks, held_up(writer, disk):
            for number in range(30):
                tasks.start_soon(writer.append, copies(number, 5))
                await some_turns(3)
            await until(lambda: writer.statistics().waiting_producers)
            found = writer.statistics()
            assert found.pending_nbytes <= limit
            assert found.waiting_producers == 28, "two of 40 bytes each have room"
        assert writer.statistics().waiting_producers == 0 == writer.statistics().pending_nbytes
    assert runs_of(stored_ints(path)) == [(-1, LARGE), *[(number, 5) for number in range(30)]]


@pytest.mark.parametrize("options", [{"durability": "power"}, {}], ids=str)
@limited
async def test_producers_who_waited_for_room_are_told_when_the_commit_was_in_a_thread(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.blob"
    count = 3 if options else LARGE
    async with write_ints(path, max_pending_bytes=8, **options) as writer, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(writer.append, copies(number, count))
    assert sorted(runs_of(stored_ints(path))) == [(number, count) for number in range(8)]


@limited
async def test_an_append_larger_than_the_waiting_room_is_let_in_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    most = 0
    async with write_ints(path, max_pending_bytes=64) as writer:

        async def produce(number: int) -> None:
            nonlocal most
            for _ in range(5):
                await writer.append(copies(number, 100 if number % 2 else 4))
                most = max(most, writer.statistics().pending_nbytes)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(produce, number)
    assert most <= 800
    assert Counter(stored_ints(path)) == {number: 500 if number % 2 else 20 for number in range(6)}


@limited
async def test_append_nowait_is_committed_or_would_block(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path, max_pending_bytes=LARGE * 8 + 80) as writer:
        async with held_up(writer, disk):
            writer.append_nowait(copies(1, 5))
            writer.append_nowait(copies(2, 5))
            with pytest.raises(anyio.WouldBlock):
                writer.append_nowait(copies(3, 1))
        writer.append_nowait(copies(4, 1))
        await writer.flush()
        assert writer.snapshot().durable_rows == writer.rows == LARGE + 11
        writer.append_nowait(copies(5, 1))
    assert runs_of(stored_ints(path)) == [(-1, LARGE), (1, 5), (2, 5), (4, 1), (5, 1)]


@pytest.mark.parametrize("is_early", [False, True], ids=["flushed at once", "flushed later"])
@limited
async def test_flush_raises_what_became_of_append_nowait(is_early: bool, tmp_path: Path, disk: Disk) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        await writer.append(ints(0, 1))
        disk.fail("write_at", full)
        writer.append_nowait(ints(1, 2))
        if is_early:
            await until(lambda: disk.has_failed)
            await some_turns()
        with pytest.raises(tb.DiskFull):
            await writer.flush()
        await writer.flush()
        assert writer.rows == 1


# ---- failures


@pytest.mark.parametrize("error", [full, broken])
@pytest.mark.parametrize("where", ["blocks/", "manifest."])
@pytest.mark.parametrize("options", [{}, {"durability": "power"}, {"shared": True}], ids=str)
@limited
async def test_a_failing_disk_is_told_to_those_of_the_group_and_to_nobody_else(
    options: dict[str, Any], where: str, error: Callable[[], OSError], tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "x.blob"
    failed: list[Any] = []
    async with write_ints(path, **options) as writer:
        await writer.append(ints(0, 2))
        async with anyio.create_task_group() as tasks, held_up(writer, disk) as first:
            for number in range(5):
                tasks.start_soon(outcome, writer.append(copies(100 + number, 3)), failed)
            await some_turns()
            await until(lambda: writer.statistics().pending_nbytes == 8 * (LARGE + 15))
            disk.release()
            await until(lambda: first)
            # the group is taken and fails as a whole; its first append may have gone through before this line
            disk.fail(where, error)
            later = await _outcome(writer.append(copies(200, 3)))
        assert first == [range(2, LARGE + 2)]
        results = [*failed, later]
        assert disk.has_failed
        assert sum(isinstance(result, OSError) for result in results) >= 1
        assert await writer.append(copies(300, 4)), "the writer works afterwards"
        assert await writer.append(copies(301, LARGE))
    found = Counter(stored_ints(path))
    for number, result in zip([100, 101, 102, 103, 104, 200], results, strict=True):
        assert found[number] == (0 if isinstance(result, OSError) else 3)
    assert found[300] == 4 and found[301] == LARGE and found[-1] == LARGE


async def _outcome(work: Awaitable[Any]) -> Any:
    into: list[Any] = []
    await outcome(work, into)
    return into[0]


@pytest.mark.parametrize("error", [full, broken])
@pytest.mark.parametrize("where", ["blocks/", "manifest."])
@limited
async def test_a_group_fails_as_one(where: str, error: Callable[[], OSError], tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    failed: list[Any] = []
    async with write_ints(path) as writer:
        await writer.append(ints(0, 2))
        disk.fail(where, error)
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(outcome, writer.append(copies(100 + number, 3)), failed)
        assert len(failed) == 5 and len({type(result) for result in failed}) <= 2
        succeeded = [result for result in failed if isinstance(result, range)]
        assert len(succeeded) < 5, "one group of them failed"
        assert writer.rows == 2 + 3 * len(succeeded)
        again = await writer.append(copies(300, 4))
        assert again == range(writer.rows - 4, writer.rows)
    assert len(stored_ints(path)) == 2 + 3 * len(succeeded) + 4


@limited
async def test_a_bad_batch_is_told_to_its_producer_and_hurts_nobody_in_the_group(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    got: list[Any] = []
    async with write_ints(path) as writer, anyio.create_task_group() as tasks, held_up(writer, disk):
        tasks.start_soon(outcome, writer.append(copies(1, 2)), got)
        tasks.start_soon(outcome, writer.append(copies(1, 2).float()), got)
        tasks.start_soon(outcome, writer.append(torch.zeros(2, 2, dtype=torch.int64)), got)
        tasks.start_soon(outcome, writer.append("rows"), got)
        with pytest.raises(tb.DTypeMismatch):
            writer.append_nowait(torch.zeros(2))
        await some_turns()
    assert sorted(type(result).__name__ for result in got) == ["DTypeMismatch", "SchemaMismatch", "TypeError", "range"]
    assert runs_of(stored_ints(path)) == [(-1, LARGE), (1, 2)]


@limited
async def test_an_unknown_outcome_is_told_and_a_retry_with_the_same_key_does_not_repeat_the_rows(
    tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path, durability="power") as writer:
        assert await writer.append(ints(0, 2), key="p", sequence=1) == range(2)
        disk.fail("sync_file manifest", unsynced)
        with pytest.raises(tb.OutcomeUnknown):
            await writer.append(ints(2, 5), key="p", sequence=2)
        assert await writer.append(ints(2, 5), key="p", sequence=2) == range(2, 5)
        assert writer.snapshot().durable_rows == 5, "and what it returns is durable"
        assert await writer.append(ints(5, 6), key="p", sequence=3) == range(5, 6)
    async with write_ints(path) as writer:
        assert await writer.append(ints(5, 6), key="p", sequence=3) == range(5, 6), "the next writer knows it, too"
    assert stored_ints(path) == list(range(6))


@limited
async def test_an_unknown_outcome_is_told_to_the_whole_group(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    got: list[Any] = []
    async with write_ints(path, durability="power") as writer:
        await writer.append(ints(0, 1))
        disk.fail("sync_file manifest", unsynced)
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(outcome, writer.append(copies(number, 2), key=f"p{number}", sequence=0), got)
        kinds = Counter(type(result) for result in got)
        assert kinds[tb.OutcomeUnknown] >= 1 and kinds.total() == 4 == kinds[tb.OutcomeUnknown] + kinds[range]
        assert writer.rows == 9, "and all of it is visible"
        for number in range(4):
            assert len(await writer.append(copies(number, 2), key=f"p{number}", sequence=0)) == 2
        assert writer.rows == 9 == writer.snapshot().durable_rows
    assert Counter(stored_ints(path)[1:]) == dict.fromkeys(range(4), 2)


@limited
async def test_no_thread_to_be_had_fails_the_appends_and_hangs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.blob"
    run_sync = anyio.to_thread.run_sync
    async with write_ints(path) as writer:

        async def refuse(*args: Any, **options: Any) -> None:
            monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(anyio.to_thread, "run_sync", refuse)
        with anyio.move_on_after(5) as scope, pytest.raises(RuntimeError):
            await writer.append(copies(1, LARGE))
        assert not scope.cancelled_caught
        assert await writer.append(copies(2, 3)) == range(3)
    assert runs_of(stored_ints(path)) == [(2, 3)]


# ---- keys


@limited
async def test_sequence_numbers_of_a_key_rise_and_a_repetition_returns_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        first = await writer.append(ints(0, 3), key="a", sequence=5)
        assert await writer.append(ints(3, 4), key="b", sequence=5) == range(3, 4)
        assert await writer.append(ints(0, 3), key="a", sequence=5) == first
        with pytest.raises(ValueError, match="rise"):
            await writer.append(ints(0, 3), key="a", sequence=4)
        assert await writer.append(ints(4, 5), key="a", sequence=9) == range(4, 5)
        for options in ({"key": "a"}, {"sequence": 1}):
            with pytest.raises(ValueError, match="go together"):
                await writer.append(ints(0, 1), **options)  # type: ignore[arg-type]
        for key, sequence in (("", 1), ("\ud800", 1), ("k" * 2000, 1), ("k", 1 << 53)):
            with pytest.raises(ValueError):
                await writer.append(ints(0, 1), key=key, sequence=sequence)
        for key, sequence in ((3, 1), (b"k", 1), ("k", 1.5), ("k", "7"), ("k", True)):  # type: ignore[assignment]
            with pytest.raises(TypeError):
                await writer.append(ints(0, 1), key=key, sequence=sequence)
    assert stored_ints(path) == list(range(5))


@limited
async def test_an_append_repeated_at_the_same_time_is_committed_once(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    got: list[Any] = []
    async with write_ints(path) as writer, anyio.create_task_group() as tasks, held_up(writer, disk):
        for sequence in (1, 1, 2, 2):
            tasks.start_soon(outcome, writer.append(copies(sequence, 2), key="a", sequence=sequence), got)
            await some_turns(3)
    assert Counter(stored_ints(path)) == {-1: LARGE, 1: 2, 2: 2}
    assert Counter(got) == {range(LARGE, LARGE + 2): 2, range(LARGE + 2, LARGE + 4): 2}, "each returns the same rows"


@limited
async def test_a_cancelled_append_can_be_repeated_by_its_key(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:

        async def act(nth: int) -> tuple[bool, Any]:
            rows = copies(nth, 2)
            result = await cancelled_at(nth, writer.append(rows, key="a", sequence=nth))
            again = await writer.append(rows, key="a", sequence=nth)
            assert result[1] in (None, again)
            return result

        count = await at_every_wait(act)
    assert runs_of(stored_ints(path)) == [(nth, 2) for nth in range(count + 1)]


@limited
async def test_the_table_of_keys_is_bounded_and_forgets_the_one_used_longest_ago(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        async with anyio.create_task_group() as tasks:
            for number in range(1100):
                tasks.start_soon(lambda number=number: writer.append(ints(0, 1), key=f"k{number}", sequence=0))
        assert len(writer.snapshot().keys) == 1024
        last = next(reversed(writer.snapshot().keys))
        rows = writer.rows
        await writer.append(ints(0, 1), key=last, sequence=0)
        assert writer.rows == rows


# ---- transactions


@limited
async def test_a_transaction_is_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    buffer = copies(1, 3)
    async with write_ints(path) as writer:
        before = writer.snapshot().commits
        async with writer.transaction({"episode": 1}) as transaction:
            transaction.append(buffer)
            buffer.fill_(2)
            transaction.append(buffer)
            buffer.fill_(-1)
            transaction.append(copies(3, LARGE))
            await some_turns()
            assert writer.rows == 0, "nobody sees any of it"
        assert transaction.rows == range(LARGE + 6)
        assert writer.snapshot().commits == before + 1
        async with writer.transaction() as empty:
            pass
        assert empty.rows is None or len(empty.rows) == 0
        with pytest.raises(TypeError):
            writer.transaction([1])  # type: ignore[arg-type]
    assert runs_of(stored_ints(path)) == [(1, 3), (2, 3), (3, LARGE)]
    with tb.TensorBlob.open(path) as blob:
        assert blob.commit_metadata() == [(0, LARGE + 6, {"episode": 1})]


@limited
async def test_an_exception_drops_all_of_a_transaction(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        with pytest.raises(ZeroDivisionError):
            async with writer.transaction() as transaction:
                transaction.append(ints(0, 3))
                raise ZeroDivisionError
        with pytest.raises(tb.DTypeMismatch):
            async with writer.transaction() as transaction:
                transaction.append(ints(0, 3))
                transaction.append(torch.zeros(2))
        assert writer.rows == 0
        async with writer.transaction() as transaction:
            transaction.append(ints(0, 3))
            with pytest.raises(tb.DTypeMismatch):
                transaction.append(torch.zeros(2))
        assert transaction.rows == range(3), "a batch that does not fit is refused alone, if the body goes on"


@limited
async def test_a_cancelled_transaction_is_wholly_there_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:

        async def work(nth: int) -> bool:
            async with writer.transaction() as transaction:
                transaction.append(copies(nth, 3))
                await some_turns(2)
                transaction.append(copies(nth, 5))
            return True

        finished: set[int] = set()

        async def act(nth: int) -> tuple[bool, Any]:
            reached, result = await cancelled_at(nth, work(nth))
            finished.update([nth] if result else [])
            return reached, result

        await at_every_wait(act)
    found = dict(runs_of(stored_ints(path)))
    assert set(found.values()) == {8} and finished <= found.keys()


# ---- the end, durability, and what is told


@limited
async def test_flush_makes_everything_accepted_durable(tmp_path: Path, disk: Disk) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        await writer.append(ints(0, 3))
        assert writer.snapshot().durable_rows == 0
        writer.append_nowait(ints(3, 4))
        await writer.flush()
        assert writer.snapshot().durable_rows == 4
        await writer.append(ints(4, 5))
        disk.fail("sync_file", unsynced)
        with pytest.raises(tb.SyncFailed):
            await writer.flush()
        await writer.flush()
        assert writer.snapshot().durable_rows == 5
    assert stored_ints(tmp_path / "x.blob") == list(range(5))


@limited
async def test_finish_ends_the_stream_after_what_was_accepted_and_an_append_takes_it_back(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        writer.append_nowait(ints(0, 3))
        await writer.finish()
        assert writer.snapshot().is_finished and writer.rows == 3
        with tb.TensorBlob.open(path) as blob:
            assert blob.snapshot.is_finished
        await writer.append(ints(3, 4))
        assert not writer.snapshot().is_finished
        await writer.finish()
        await writer.finish()
    with tb.TensorBlob.open(path) as blob:
        assert blob.snapshot.is_finished and len(blob) == 4


@limited
async def test_statistics_are_a_frozen_value_of_what_happened(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        before = writer.statistics()
        assert (before.rows, before.appends, before.commits, before.waiting_producers, before.pending_nbytes) == (
            0,
        ) * 5
        assert before.dead_consumers == ()
        for _ in range(10):
            await writer.append(ints(0, 2))
        after = writer.statistics()
        assert (before.rows, before.commits) == (0, 0)
        assert (after.rows, after.appends, after.commits, after.max_appends_per_commit) == (20, 10, 10, 1)
        assert 0 <= after.median_latency_s <= after.p99_latency_s < 20
        with pytest.raises(dataclasses.FrozenInstanceError):
            after.rows = 3  # type: ignore[misc]


@limited
async def test_statistics_count_only_what_was_appended(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        await writer.flush()
        await writer.finish()
        assert writer.statistics().appends == 0
        assert writer.statistics().median_latency_s != writer.statistics().median_latency_s, "there is none yet"


# ---- cancellation


KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "small": (3, {}),
    "large": (LARGE, {}),
    "power": (3, {"durability": "power"}),
    "shared": (3, {"shared": True}),
    "no room": (3, {"max_pending_bytes": 8}),
    "behind": (3, {"consumers": ["c"], "max_lag_rows": 1 << 40}),
    "limited": (3, {}),
    "new blocks": (700, {"block_rows": 512}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [0, 3])
@limited
async def test_an_append_cancelled_at_any_wait_is_wholly_there_or_not_at_all(
    kind: str, others: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.blob"
    count, options = KINDS[kind]
    limiter = tb.MinSize(1) if kind == "limited" else None
    returned: dict[int, range] = {}
    other_rows = 0
    async with write_ints(path, limiter=limiter, **options) as writer:

        async def other() -> None:
            nonlocal other_rows
            await writer.append(copies(-1, count))
            other_rows += count

        async def act(nth: int) -> tuple[bool, Any]:
            async with anyio.create_task_group() as tasks:
                for _ in range(others):
                    tasks.start_soon(other)
                if others:
                    await some_turns(nth % 3)
                reached, rows = await cancelled_at(nth, writer.append(copies(nth, count)))
            if rows is not None:
                returned[nth] = rows
            return reached, rows

        waits = await at_every_wait(act)
        assert waits > 0
        assert await writer.append(copies(1000, count)), "the writer works afterwards"
        assert writer.statistics().pending_nbytes == 0 == writer.statistics().waiting_producers
    found = stored_ints(path)
    for number, many in Counter(found).items():
        assert number < 0 or many == count, f"the append cancelled at wait {number} is there in part"
    for number, rows in returned.items():
        assert found[rows.start : rows.stop] == [number] * count
    assert found.count(-1) == other_rows and found.count(1000) == count


@pytest.mark.parametrize(
    "seed", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
@limited
async def test_tasks_that_are_cancelled_at_random_leave_whole_appends(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    choose = random.Random(seed)
    returned: dict[int, range] = {}
    sizes: dict[int, int] = {}
    async with write_ints(path, max_pending_bytes=2000, block_rows=512) as writer:

        async def produce(task: int) -> None:
            for number in range(task * 1000, task * 1000 + 25):
                sizes[number] = choose.choice([1, 5, 60, 600])
                with anyio.move_on_after(choose.random() * 0.004):
                    returned[number] = await writer.append(copies(number, sizes[number]))

        async with anyio.create_task_group() as tasks:
            for task in range(12):
                tasks.start_soon(produce, task)
        await until(lambda: writer.statistics().pending_nbytes == 0)  # one cancelled in its commit may be in it still
        assert writer.statistics().waiting_producers == 0
    found = stored_ints(path)
    assert all(many == sizes[number] for number, many in runs_of(found)), "whole and contiguous"
    assert len(runs_of(found)) == len(set(found)), "and once"
    for number, rows in returned.items():
        assert found[rows.start : rows.stop] == [number] * sizes[number]


@pytest.mark.parametrize("what", ["flush", "finish"])
@limited
async def test_a_cancelled_flush_or_finish_leaves_a_working_writer(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:

        async def act(nth: int) -> tuple[bool, Any]:
            await writer.append(copies(nth, 1))
            return await cancelled_at(nth, getattr(writer, what)())

        count = await at_every_wait(act)
        await writer.append(copies(-1, 1))
    assert stored_ints(path) == [*range(count + 1), -1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@limited
async def test_a_task_cancelled_the_way_of_asyncio_leaves_a_whole_append(
    anyio_backend: str, tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path) as writer:
        async with held_up(writer, disk):
            waiting = asyncio.create_task(writer.append(copies(1, 3)))
            await some_turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        disk.hold()
        written = asyncio.create_task(writer.append(copies(2, LARGE)))
        await until(lambda: disk.is_waiting)
        written.cancel()
        await some_turns()
        assert not written.done(), "its rows are being read"
        disk.release()
        with pytest.raises(asyncio.CancelledError):
            await written
        assert await writer.append(copies(3, 1))
    assert runs_of(stored_ints(path)) == [(-1, LARGE), (2, LARGE), (3, 1)]


# ---- processes


def _append_for_ever(connection: Connection, path: Path, backend: str, options: dict[str, Any]) -> None:
    """Eight tasks append, and say of each append that has returned which rows it got."""

    async def main() -> None:
        async with write_ints(path, block_rows=512, **options) as writer, anyio.create_task_group() as tasks:

            async def produce(task: int) -> None:
                for number in itertools.count(task, 8):
                    rows = await writer.append(copies(number, number % 5 + 1))
                    connection.send((number, rows))

            for task in range(8):
                tasks.start_soon(produce, task)

    without_platters(pytest.MonkeyPatch())
    anyio.run(main, backend=backend)


@pytest.mark.parametrize(
    "options",
    [
        {},
        *[
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"durability": "power"}, {"shared": True}, {"max_pending_bytes": 64})
        ],
    ],
    ids=str,
)
@limited
async def test_a_killed_writer_leaves_whole_appends_and_each_that_had_returned(
    options: dict[str, Any], anyio_backend: str, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    returned: dict[int, range] = {}
    with process(_append_for_ever, path, anyio_backend, options) as (connection, child):
        while len(returned) < 300:
            await until(connection.poll)
            number, rows = connection.recv()
            returned[number] = rows
        child.kill()
        child.join()
        try:
            while True:
                number, rows = connection.recv()
                returned[number] = rows
        except EOFError:
            pass
    found = stored_ints(path)
    for number, rows in returned.items():
        assert found[rows.start : rows.stop] == [number] * (number % 5 + 1)
    assert all(count == number % 5 + 1 for number, count in runs_of(found)), "whole and contiguous"
    assert len(runs_of(found)) == len(set(found)), "and once"
    async with write_ints(path, **options) as writer:  # nothing is in the way of the next one
        assert await writer.append(ints(0, 1)) == range(len(found), len(found) + 1)


def _fill_a_small_disk(at: Path, backend: str) -> str:
    """Append until the disk is full; make room; go on. Everything that was acknowledged has to be there."""
    if not private_mounts():
        return "no mounts"
    mount_small_disk(at, 4 << 20)
    path, ballast = at / "x.blob", at / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    got: list[Any] = []

    async def main() -> None:
        async with write_ints(path, block_rows=512) as writer:

            async def produce(task: int) -> None:
                for number in range(task, 100_000, 4):
                    result = await _outcome(writer.append(copies(number, 3000)))
                    got.append((number, result))
                    if isinstance(result, Exception):
                        return

            async with anyio.create_task_group() as tasks:
                for task in range(4):
                    tasks.start_soon(produce, task)
            assert all(isinstance(result, (range, tb.DiskFull)) for _, result in got)
            assert sum(isinstance(result, tb.DiskFull) for _, result in got) == 4
            ballast.unlink()
            got.append((-1, await writer.append(copies(-1, 3000))))

    anyio.run(main, backend=backend)
    found = stored_ints(path)
    ranges = {number: result for number, result in got if isinstance(result, range)}
    for number, rows in ranges.items():
        assert found[rows.start : rows.stop] == [number] * 3000
    assert len(found) == 3000 * len(ranges), "and nothing else is"
    return "fine"


@limited
async def test_a_full_disk_fails_the_appends_that_found_it_full_and_goes_on_when_there_is_room(
    anyio_backend: str, tmp_path: Path
) -> None:
    if (said := elsewhere(_fill_a_small_disk, tmp_path, anyio_backend)) == "no mounts":
        pytest.skip("this system lets nobody mount a small disk")
    assert said == "fine"


# ---- opening and leaving


@limited
async def test_an_exception_in_the_block_commits_what_was_accepted_and_lets_the_next_writer_in(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    with pytest.raises(ZeroDivisionError):  # as it was raised: callers catch what they know
        async with write_ints(path) as writer:
            await writer.append(ints(0, 1))
            writer.append_nowait(ints(1, 3))
            raise ZeroDivisionError
    with tb.TensorBlob.open(path) as blob:
        assert blob.read().tolist() == [0, 1, 2] and blob.durable_rows == 3
    async with write_ints(path) as writer:
        assert await writer.append(ints(3, 4)) == range(3, 4)


@limited
async def test_an_error_of_an_append_leaves_the_block_as_itself(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(tb.DiskFull):
        async with write_ints(tmp_path / "x.blob") as writer:
            disk.fail("write_at", full)
            await writer.append(ints(0, 1))


@limited
async def test_cancelling_the_block_commits_what_was_accepted_and_lets_the_next_writer_in(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    with anyio.CancelScope() as scope:
        async with write_ints(path) as writer:
            await writer.append(ints(0, 1))
            writer.append_nowait(ints(1, 3))
            scope.cancel()
            await anyio.sleep_forever()
    assert stored_ints(path) == [0, 1, 2]
    async with write_ints(path) as writer:
        assert await writer.append(ints(3, 4)) == range(3, 4)


@pytest.mark.parametrize("limiter", [None, tb.MinSize(1)], ids=["free", "limited"])
@limited
async def test_leaving_the_block_commits_those_who_wait_for_room(
    limiter: tb.RateLimiter | None, tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "x.blob"
    got: list[Any] = []

    async def release_soon() -> None:
        await some_turns()
        disk.release()

    async with anyio.create_task_group() as tasks, write_ints(path, max_pending_bytes=16, limiter=limiter) as writer:
        disk.hold()
        tasks.start_soon(outcome, writer.append(copies(-1, LARGE)), got)
        await until(lambda: disk.is_waiting)
        for number in range(10):
            tasks.start_soon(outcome, writer.append(copies(number, 2)), got)
        await until(lambda: writer.statistics().waiting_producers == 10)
        tasks.start_soon(release_soon)
    assert all(isinstance(rows, range) for rows in got) and len(got) == 11
    assert Counter(stored_ints(path)) == {-1: LARGE} | dict.fromkeys(range(10), 2)


@limited
async def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        pass
    for act in (
        lambda: writer.append(ints(0, 1)),
        writer.flush,
        writer.finish,
        lambda: writer.transaction().__aenter__(),
    ):
        with pytest.raises(tb.BlobClosed):
            await act()  # type: ignore[operator]
    with pytest.raises(tb.BlobClosed):
        writer.append_nowait(ints(0, 1))


@limited
async def test_a_transaction_that_outlives_its_writer_says_so(tmp_path: Path) -> None:
    with pytest.raises(tb.BlobClosed):
        async with AsyncExitStack() as stack:
            writer = await stack.enter_async_context(write_ints(tmp_path / "x.blob"))
            transaction = writer.transaction()
            await transaction.__aenter__()
            transaction.append(ints(0, 1))
            await stack.aclose()
            with anyio.fail_after(5):
                await transaction.__aexit__(None, None, None)


@pytest.mark.parametrize("why", ["a slow consumer", "a limiter"])
@limited
async def test_an_append_that_waits_while_the_writer_is_closed_is_told(why: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    limiter = None if why == "a slow consumer" else tb.Queue(2)
    options: dict[str, Any] = {"consumers": ["slow"], "max_lag_rows": 2} if limiter is None else {"limiter": limiter}
    got: list[Any] = []
    async with anyio.create_task_group() as tasks:
        async with write_ints(path, **options) as writer:
            await writer.append(ints(0, 2))
            if limiter is None:
                await writer.append(ints(2, 3))
            tasks.start_soon(outcome, writer.append(ints(3, 4)), got)
            tasks.start_soon(outcome, writer.append(ints(4, 5)), got)
            await some_turns(50)
            assert not got
        async with tb.open_reader(path, limiter=limiter) as reader:  # what they waited for comes too late
            if limiter is None:
                async with reader.follow(cursor="slow") as follower:
                    await anext(follower)
                    await follower.ack()
            else:
                await reader.sample(2)
            with anyio.move_on_after(5):
                await until(lambda: len(got) == 2)
        tasks.cancel_scope.cancel()
    assert [type(result) for result in got] == [tb.BlobClosed] * 2


WRONG: list[dict[str, Any]] = [
    {"max_pending_bytes": 0},
    {"consumers": ["a"]},
    {"max_lag_rows": 4},
    {"consumers": ["a"], "max_lag_rows": 0},
    {"consumers": "a", "max_lag_rows": 3},
    {"consumers": ["../a"], "max_lag_rows": 3},
    {"consumers": ["a"], "max_lag_rows": 3, "on_dead_consumer": "cry"},
    {"retain_for": "a"},
    {"retain_for": ["../a"]},
    {"durability": "hope"},
    {"flush_every_s": -1},
    {"dtype": "float32"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
@limited
async def test_wrong_options_raise_and_keep_no_lock(options: dict[str, Any], tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    before = files_before()
    with pytest.raises((ValueError, TypeError)):
        async with write_ints(path, **options):
            pass
    assert open_files() == before
    async with write_ints(path) as writer:
        assert await writer.append(ints(3, 4)) == range(3, 4)


@limited
async def test_a_second_writer_is_refused_or_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    got: list[range] = []

    async def second() -> None:
        async with write_ints(path, timeout_s=10) as writer:
            got.append(await writer.append(ints(1, 2)))

    async with anyio.create_task_group() as tasks, write_ints(path) as writer:
        with pytest.raises(tb.WriterBusy):
            async with write_ints(path):
                pass
        tasks.start_soon(second)
        await writer.append(ints(0, 1))
    assert got == [range(1, 2)] and stored_ints(path) == [0, 1]


@limited
async def test_a_missing_blob_needs_a_schema(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with tb.open_writer(tmp_path / "x.blob"):
            pass
    assert not list(tmp_path.iterdir())


async def test_opening_and_closing_can_be_cancelled_at_any_wait(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")

    async def work(nth: int) -> bool:
        async with write_ints(path) as writer:
            writer.append_nowait(copies(nth, 2))
            await writer.append(copies(nth, 3))
        return True

    async def act(nth: int) -> tuple[bool, Any]:
        with anyio.fail_after(20):
            reached, _ = await cancelled_at(nth, work(nth))
        async with write_ints(path) as writer:  # nobody holds the lock
            await writer.append(copies(-1, 1))
        return reached, None

    with anyio.fail_after(60):
        await at_every_wait(act)
    for number, many in Counter(stored_ints(path)).items():
        assert number < 0 or many in (2, 5), "the accepted ones are there, the cancelled one or not"


@pytest.mark.parametrize("cycles", [60, pytest.param(1000, marks=pytest.mark.slow)])
async def test_opening_closing_and_cancelling_leaks_nothing(cycles: int, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", max_rows=5000, block_rows=512)
    choose = random.Random(0)

    async def cycle() -> None:
        with anyio.CancelScope() as scope:
            async with (
                write_ints(path, consumers=["c"], max_lag_rows=1 << 40, retain_for=["c"]) as writer,
                tb.open_reader(path) as reader,
                anyio.create_task_group() as tasks,
            ):

                async def follow() -> None:
                    async with reader.follow("now", cursor="c") as follower:
                        async for batch in follower:
                            del batch

                tasks.start_soon(follow)
                tasks.start_soon(reader.wait_rows, 1 << 40)
                for number in range(4):
                    tasks.start_soon(writer.append, copies(number, 20))
                await some_turns(choose.randrange(25))
                if choose.random() < 0.5:
                    tasks.cancel_scope.cancel()
                else:
                    scope.cancel()
                await anyio.sleep_forever()

    with anyio.fail_after(100):
        for _ in range(20):
            await cycle()
        files, maps, threads = len(files_before()), map_count(), threading.active_count()
        for _ in range(cycles):
            await cycle()
        assert len(open_files()) <= files, open_files()
        assert map_count() <= maps + 30
        assert threading.active_count() <= threads + 1
