"""The edges of the live layer: what is used after its end, asyncio's own cancellation, peers that are slow, odd arguments."""

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from live_support import (
    Disk,
    copies,
    create_ints,
    held_up,
    ints,
    limited,
    open_files,
    outcome,
    some_turns,
    stored_ints,
    until,
    write_ints,
)

import tensorblob as tb
from tensorblob import async_writer, cursors, files, writer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, no_platters: None) -> Disk:
    return Disk(monkeypatch)


# ---- after the end


@pytest.mark.anyio
@limited
async def test_a_follower_whose_reader_closed_moves_no_cursor_of_another_blob(tmp_path: Path) -> None:
    paths = [create_ints(tmp_path / name, 100) for name in ("a.blob", "b.blob")]
    async with tb.open_reader(paths[1]) as reader, reader.follow(cursor="c", batch_size=7) as follower:
        await anext(follower)
        await follower.ack()
    before = (paths[1] / "cursors" / "c.json").read_bytes()
    async with tb.open_reader(paths[0]) as reader:
        follower = reader.follow(cursor="c", batch_size=50)
        await anext(follower)
    async with tb.open_reader(paths[1]):  # which has the number of a descriptor that the first one closed
        for act in (follower.ack, follower.__anext__):
            with pytest.raises(tb.BlobClosed):
                await act()
    follower.close()
    assert (paths[1] / "cursors" / "c.json").read_bytes() == before


@pytest.mark.anyio
@limited
async def test_a_producer_takes_nothing_after_its_end(tmp_path: Path) -> None:
    paths = [create_ints(tmp_path / name, 1) for name in ("a.blob", "b.blob")]
    async with tb.open_producer(paths[0]) as producer:
        pass
    async with write_ints(paths[1], shared=True):
        names = set(os.listdir(paths[1] / "blocks" / "data"))
        for act in (lambda: producer.append(ints(0, 9)), producer.commit, producer.discard):
            with pytest.raises(tb.BlobClosed):
                await act()
        assert set(os.listdir(paths[1] / "blocks" / "data")) == names, "nor does it write into another blob"


@pytest.mark.anyio
@limited
async def test_a_sample_that_waits_for_the_limiter_as_its_reader_closes_says_so_and_counts_nothing(
    tmp_path: Path,
) -> None:
    path, rule, errors = tmp_path / "x.blob", tb.Queue(10), []

    async def sample(reader: tb.AsyncReader) -> None:
        try:
            await reader.sample(2, length=50)
        except tb.BlobClosed as error:
            errors.append(error)

    async with write_ints(path, limiter=rule) as writer, anyio.create_task_group() as tasks:
        await writer.append(ints(0, 4))
        assert writer.limit is not None
        async with tb.open_reader(path, limiter=rule) as reader:
            tasks.start_soon(sample, reader)
            await until(lambda: writer.limit is not None and writer.limit.counts == (4, 2))
        await until(lambda: errors)
        assert writer.limit.counts == (4, 0)


@pytest.mark.anyio
@limited
async def test_a_transaction_takes_rows_inside_its_block_only(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        transaction = writer.transaction()
        with pytest.raises(RuntimeError, match="inside"):
            transaction.append(ints(0, 1))
        async with transaction:
            transaction.append(ints(0, 2))
        with pytest.raises(RuntimeError, match="inside"):
            transaction.append(ints(0, 1))
        with writer.blob.transaction(), pytest.raises(RuntimeError, match="transaction"):
            await writer.append(ints(0, 1))
        assert writer.rows == 2


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.anyio
@limited
async def test_an_accepted_append_does_not_get_into_another_tasks_transaction(shared: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path, shared=shared) as writer:
        writer.append_nowait(ints(0, 5))
        with contextlib.suppress(KeyError), writer.blob.transaction():
            await some_turns()
            assert writer.statistics().commits == 0, "it waits for the end of the transaction"
            writer.blob.write(ints(70, 80))
            raise KeyError
        await writer.flush()
        assert writer.statistics().commits == 1
    assert stored_ints(path) == [0, 1, 2, 3, 4]


@pytest.mark.anyio
@limited
async def test_what_would_wait_for_the_end_of_ones_own_transaction_is_refused(tmp_path: Path) -> None:
    async with (
        write_ints(tmp_path / "x.blob") as writer,
        tb.open_producer(create_ints(tmp_path / "y.blob")) as producer,
    ):
        await producer.append(ints(0, 2))
        acts: list[tuple[tb.TensorBlob, Callable[[], Any]]] = [
            (writer.blob, writer.flush),
            (writer.blob, writer.finish),
            (producer.blob, producer.commit),
        ]
        for blob, act in acts:
            with blob.transaction():
                blob.write(ints(0, 1))
                with pytest.raises(RuntimeError, match="inside a transaction"):
                    await act()
        await writer.finish()
        assert await producer.commit() == range(1, 3)
        assert writer.rows == 2


@pytest.mark.anyio
@limited
async def test_another_threads_event_loop_is_refused_and_disturbs_nobody(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="event loop"):
                anyio.run(writer.append, ints(0, 1))

        await anyio.to_thread.run_sync(elsewhere)
        assert await writer.append(ints(0, 1)) == range(1)


@pytest.mark.anyio
@limited
async def test_a_producer_that_waits_for_a_consumer_lets_go_of_a_descriptor_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.flow.POLL_S", math.inf)
    path = tmp_path / "x.blob"
    outcomes: list[Any] = []
    async with anyio.create_task_group() as tasks:
        async with write_ints(path, consumers=["c"], max_lag_rows=1) as writer:
            await writer.append(ints(0, 5))
            tasks.start_soon(outcome, writer.append(ints(5, 6)), outcomes)
            await until(lambda: writer.statistics().waiting_producers)
            await some_turns()
            assert writer._gate._bell is not None
            number = writer._gate._bell.fileno()
        one, two = socket.socketpair()
        with one, two:
            assert fcntl.fcntl(one, fcntl.F_DUPFD, number) == number, "it is free"
            two.send(b"x")
            try:
                await anyio.wait_readable(number)
            finally:
                os.close(number)
    assert [type(error) for error in outcomes] == [tb.BlobClosed]


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.anyio
@limited
async def test_staged_blocks_that_are_full_cost_no_descriptors(
    durability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def sync_file(fd: int, what: str) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(files, "sync_file", sync_file)
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    async with tb.open_producer(path, durability=durability) as producer:
        before = len(open_files())
        for start in range(0, 100 * 512, 256):
            await producer.append(ints(start, start + 256))
        await producer.append(ints(100 * 512, 300 * 512 + 1))
        assert len(open_files()) - before <= 3
        rows = await producer.commit()
        assert rows == range(300 * 512 + 1)
    blocks = [os.fspath(block) for block in (path / "blocks" / "data").iterdir()]
    assert len(blocks) == 301 and set(blocks) <= set(synced)
    assert stored_ints(path) == [*rows]


@pytest.mark.parametrize("count", [100, 512, 600])
@pytest.mark.anyio
@limited
async def test_an_append_that_fails_blocks_later_leaves_what_was_staged_before(
    count: int, tmp_path: Path, disk: Disk
) -> None:
    path, rows = create_ints(tmp_path / "x.blob", block_rows=512), range(1 << 17)
    async with tb.open_producer(path) as producer:
        await producer.append(ints(0, count))
        disk.fail("-4", lambda: OSError(errno.EIO, "I/O error"))
        with pytest.raises(OSError):
            await producer.append(ints(count, rows.stop))
        assert disk.has_failed and producer.staged_rows == count
        await producer.append(ints(count, rows.stop))
        assert await producer.commit() == rows
    assert stored_ints(path) == [*rows]


# ---- asyncio's own cancellation goes through anyio's shields


@contextlib.contextmanager
def slowed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[threading.Event]:
    """Hold up whoever calls `owner.name`, in whatever thread, until the event is set; `is_waiting` of it says that it does."""
    go_on = threading.Event()
    before = getattr(owner, name)

    def wait(*args: Any, **options: Any) -> Any:
        go_on.is_waiting = True  # type: ignore[attr-defined]
        assert go_on.wait(30)
        return before(*args, **options)

    go_on.is_waiting = False  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wait)
        try:
            yield go_on
        finally:
            go_on.set()


def cancelled_while_slow(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], Any], times: int = 1
) -> None:
    """Cancel the task of `work()` natively while a thread is in `owner.name`; it must not end before the thread does."""

    async def main() -> None:
        with slowed(monkeypatch, owner, name) as go_on:
            task = asyncio.create_task(work())
            await until(lambda: go_on.is_waiting)  # type: ignore[attr-defined]
            for _ in range(times):
                task.cancel()
                await some_turns(10)
                assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 3])
def test_who_is_cancelled_natively_while_a_writer_closes_has_closed_it(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")

    async def write() -> None:
        async with write_ints(path) as writer:
            await writer.append(ints(0, 3))

    cancelled_while_slow(monkeypatch, writer.Writer, "close", write, times)
    tb.TensorBlob.open(path, "a").close()
    assert stored_ints(path) == [0, 1, 2]


@pytest.mark.parametrize("way", ["writer", "producer", "reader"])
def test_who_is_cancelled_natively_while_a_blob_opens_has_nothing_open(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")

    async def opening() -> None:
        ways: dict[str, Callable[[], Any]] = {
            "writer": lambda: write_ints(path),
            "producer": lambda: tb.open_producer(path),
            "reader": lambda: tb.open_reader(path),
        }
        async with ways[way]():
            raise AssertionError("it was cancelled")

    cancelled_while_slow(monkeypatch, files, "open_directory", opening)
    assert not [name for name in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if os.fspath(path) in name]


def test_who_is_cancelled_natively_while_a_cursor_is_taken_has_let_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    followers = []

    async def follow() -> None:
        async with tb.open_reader(path) as reader:
            followers.append(reader.follow(cursor="c"))
            async with followers[0]:
                raise AssertionError("it was cancelled")

    cancelled_while_slow(monkeypatch, cursors.files, "open_or_create", follow)
    dir_fd = files.open_directory(os.fspath(path))
    try:
        assert not cursors.is_alive(dir_fd, "c")
    finally:
        os.close(dir_fd)


@pytest.mark.parametrize("times", [1, 3])
def test_a_batch_is_the_writers_until_its_append_ends_however_often_that_is_cancelled_natively(
    times: int, tmp_path: Path, disk: Disk
) -> None:
    path = create_ints(tmp_path / "x.blob")

    async def main() -> None:
        batch = copies(1, async_writer.INLINE_NBYTES)
        async with write_ints(path) as writer:
            disk.hold()
            task = asyncio.create_task(writer.append(batch))
            await until(lambda: disk.is_waiting)
            for _ in range(times):
                task.cancel()
                await some_turns(10)
                assert not task.done()
            disk.release()
            with pytest.raises(asyncio.CancelledError):
                await task
            batch.zero_()

    asyncio.run(main())
    assert set(stored_ints(path)) <= {1}


def test_what_was_accepted_is_committed_when_the_event_loop_ends_under_the_writer(tmp_path: Path, disk: Disk) -> None:
    path = create_ints(tmp_path / "x.blob")

    tasks = []  # so that nobody collects it

    async def serve(is_open: asyncio.Event) -> None:
        async with write_ints(path) as writer:
            disk.hold()
            writer.append_nowait(copies(1, async_writer.INLINE_NBYTES))
            await until(lambda: disk.is_waiting)
            writer.append_nowait(copies(2, 3))
            is_open.set()
            await asyncio.Event().wait()

    async def main() -> None:
        is_open = asyncio.Event()
        tasks.append(asyncio.create_task(serve(is_open)))
        await is_open.wait()
        threading.Timer(0.05, disk.release).start()

    asyncio.run(main())
    assert stored_ints(path)[-3:] == [2, 2, 2] and len(stored_ints(path)) == async_writer.INLINE_NBYTES + 3


# ---- peers that take their time


@pytest.mark.anyio
@limited
async def test_a_peers_flush_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with (
        write_ints(path, shared=True) as one,
        write_ints(path, shared=True) as two,
        anyio.create_task_group() as tasks,
    ):
        await one.append(ints(0, 1))
        with slowed(monkeypatch, files, "sync_file") as go_on:
            tasks.start_soon(one.flush)
            await until(lambda: go_on.is_waiting)  # type: ignore[attr-defined]
            assert await two.append(ints(1, 2)) == range(1, 2), "the other writer"
            assert one.rows == 1
            go_on.set()


@pytest.mark.anyio
@limited
async def test_a_shared_writers_own_background_flush_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, shared=True) as writer:
        await writer.append(ints(0, 1))
        with slowed(monkeypatch, files, "sync_file") as go_on:
            flush = threading.Thread(target=writer._writer.flush)
            flush.start()
            await until(lambda: go_on.is_waiting)  # type: ignore[attr-defined]
            assert await writer.append(ints(1, 2)) == range(1, 2)
            go_on.set()
            await anyio.to_thread.run_sync(flush.join)
    assert stored_ints(path) == [0, 1]


@pytest.mark.anyio
@limited
async def test_a_peer_may_be_waited_for_without_end(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with (
        write_ints(path, shared=True, timeout_s=math.inf) as one,
        write_ints(path, shared=True) as two,
        anyio.create_task_group() as tasks,
    ):
        with two._writer.turn():
            tasks.start_soon(one.append, ints(0, 1))
            await until(lambda: one._writer.turns is not None and one._writer.turns._lock._is_wanted)
    assert stored_ints(path) == [0]


@pytest.mark.anyio
@limited
async def test_a_limiter_that_somebody_keeps_stops_nobody_elses_task(tmp_path: Path) -> None:
    path, rule = tmp_path / "x.blob", tb.MinSize(1)
    async with write_ints(path, limiter=rule) as writer:
        await writer.append(ints(0, 1))
        with open(path / "cursors" / "limiter.default.lock", "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with anyio.move_on_after(0.1) as scope:
                await writer.append(ints(1, 2))
            assert scope.cancelled_caught, "it waits in its task, where it can be cancelled"
            with pytest.raises(anyio.WouldBlock):
                writer.append_nowait(ints(1, 2))
        assert await writer.append(ints(1, 2)) == range(1, 2)
        assert writer.limit is not None and writer.limit.counts == (2, 0)


@pytest.mark.anyio
@limited
async def test_counts_that_could_not_be_said_are_said_when_they_can_be(tmp_path: Path, disk: Disk) -> None:
    path, rule = tmp_path / "x.blob", tb.MinSize(1)
    async with write_ints(path, limiter=rule) as writer, tb.open_reader(path, limiter=rule) as reader:
        assert writer.limit is not None and reader.limit is not None
        with open(path / "cursors" / "limiter.default.lock", "rb") as held:
            async with anyio.create_task_group() as tasks, held_up(writer, disk):
                fcntl.flock(held, fcntl.LOCK_EX)
                del tasks
            await until(lambda: writer.limit is not None and writer.limit.has_unsaid)
            assert reader.limit.counts[0] == 0
        await until(lambda: reader.limit is not None and reader.limit.counts[0] == writer.rows)


# ---- rings


@pytest.mark.anyio
@limited
async def test_a_ring_keeps_what_a_consumer_went_back_to(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with (
        write_ints(path, max_rows=10, retain_for=["c"]) as writer,
        tb.open_reader(path) as reader,
        reader.follow(cursor="c") as follower,
    ):
        for start, stop in ((0, 100), (100, 101)):
            await writer.append(ints(start, stop))
            await anext(follower)
            await follower.ack()
        writer.blob.truncate(5)
        row = writer.rows
        with pytest.raises(tb.HistoryRewritten):
            await anext(follower)
        follower.seek(row)
        await follower.ack()
        for number in range(4):
            await writer.append(copies(number, 4))
        assert writer.snapshot().first_row == row
        assert (await anext(follower)).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.anyio
@limited
async def test_a_peer_keeps_rows_from_the_moment_that_another_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    async with write_ints(path, shared=True, max_rows=10) as writer:
        for _ in range(30):
            await writer.append(ints(0, 1))
        async with tb.open_reader(path) as reader, reader.follow(cursor="c", start=20):
            pass
        async with write_ints(path, shared=True, max_rows=10, retain_for=["c"]):
            for _ in range(20):
                await writer.append(ints(0, 1))
            assert writer.snapshot().first_row == 20


@pytest.mark.anyio
@limited
async def test_a_peer_that_has_looked_looks_again_when_another_asks_for_rows_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.flow.RACY_NS", 0)
    path = tmp_path / "x.blob"
    async with write_ints(path, shared=True, max_rows=10) as writer, write_ints(path, shared=True) as other:
        for _ in range(30):
            await writer.append(ints(0, 1))
        async with tb.open_reader(path) as reader, reader.follow(cursor="c", start=20):
            pass
        await writer.append(ints(0, 1))  # it has looked who is there, and at the cursor
        assert writer.snapshot().first_row == 21
        async with tb.open_reader(path) as reader, reader.follow(cursor="d", start=21):
            pass
        await writer.append(ints(0, 1))
        other._writer.announce((), 1 << 40, ("d",))
        for _ in range(20):
            await writer.append(ints(0, 1))
        assert writer.snapshot().first_row == 22


@pytest.mark.parametrize("on_trim", ["skip", "raise"])
@pytest.mark.anyio
@limited
async def test_a_follower_that_waits_for_many_rows_notices_that_the_blob_became_a_small_ring(
    on_trim: str, tmp_path: Path
) -> None:
    path, got = create_ints(tmp_path / "x.blob", 1), []

    async def consume(reader: tb.AsyncReader) -> None:
        nonlocal got
        async for batch in reader.follow(batch_size=100, on_trim=on_trim):
            got += [len(batch)]

    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(consume, reader)
        await some_turns()
        async with write_ints(path, max_rows=50) as writer:
            for _ in range(3):
                await writer.append(ints(0, 10))
            await until(lambda: got)  # before the stream ends
            await writer.finish()
    assert sum(got) == 31


@pytest.mark.anyio
@limited
async def test_sample_after_a_truncation_that_was_not_seen_yet_waits_for_rows(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 5)
    async with tb.open_reader(path) as reader:
        with tb.TensorBlob.open(path, "r+") as blob:
            blob.truncate(0)
        with anyio.move_on_after(0.05) as scope:
            await reader.sample(2)
        assert scope.cancelled_caught
        async with write_ints(path) as writer:
            await writer.append(ints(7, 8))
            assert (await reader.sample(2)).rows.tolist() == [7, 7]


# ---- arguments


@pytest.mark.anyio
@limited
async def test_arguments_that_nobody_can_mean_are_refused_at_once(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    nan: Any = math.nan
    openings: list[dict[str, Any]] = [
        {"max_lag_rows": nan, "consumers": ["c"]},
        {"max_lag_rows": 2.5, "consumers": ["c"]},
        {"max_pending_bytes": nan},
        {"limiter": tb.MinSize},
    ]
    for options in openings:
        with pytest.raises((ValueError, TypeError)):
            async with write_ints(path, **options):
                pass
    for options in ({"wait_s": nan}, {"wait_s": -1}, {"limiter": tb.MinSize}):
        with pytest.raises((ValueError, TypeError)):
            async with tb.open_reader(path, **options):  # type: ignore[arg-type]
                pass
    for make in (
        lambda: tb.MinSize(nan),
        lambda: tb.Queue(nan),
        lambda: tb.SampleToInsertRatio(math.inf, 1, math.inf),
        lambda: tb.SampleToInsertRatio(1, 1, nan),
    ):
        with pytest.raises(ValueError):
            make()
    async with tb.open_reader(path) as reader:
        for wrong in (lambda: reader.follow(batch_size=2.5), lambda: reader.follow(fields="obs")):  # type: ignore[arg-type]
            with pytest.raises((ValueError, TypeError)):
                wrong()
        for wait in (reader.wait_rows, reader.wait_durable):
            with pytest.raises(ValueError):
                await wait(nan)
        with pytest.raises(ValueError):
            await reader.sample(2.5)  # type: ignore[arg-type]
    assert time.monotonic() > 0 and stored_ints(path) == [0, 1, 2]


@pytest.mark.anyio
@limited
async def test_an_append_of_no_rows_is_remembered_by_its_key(tmp_path: Path) -> None:
    async with write_ints(tmp_path / "x.blob") as writer:
        assert await writer.append(ints(0, 0), key="k", sequence=1) == range(0)
        await writer.append(ints(0, 3))
        assert await writer.append(ints(0, 0), key="k", sequence=1) == range(0)


@pytest.mark.anyio
@limited
async def test_a_flush_in_a_turn_does_not_wait_for_a_flush_that_waits_for_the_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")
    with tb.TensorBlob.open(path, "a", shared=True) as blob:
        assert blob._writer is not None
        blob.write(ints(0, 1))
        with slowed(monkeypatch, files, "sync_file") as go_on:
            flush = threading.Thread(target=blob.flush)
            flush.start()
            await until(lambda: go_on.is_waiting)  # type: ignore[attr-defined]
            with blob._writer.turn():
                go_on.set()
                await some_turns()  # by now the other one is on its way to its turn
                with pytest.raises(OSError, match="try again"):
                    blob.flush()
        await anyio.to_thread.run_sync(flush.join)
        blob.flush()
        assert blob.durable_rows == 1


def test_an_event_loop_ends_while_a_commit_waits_for_a_transaction_of_its_own(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    tasks = []  # so that nobody collects it

    async def serve(is_open: asyncio.Event) -> None:
        async with write_ints(path) as writer:
            writer.append_nowait(ints(0, 3))
            with writer.blob.transaction():
                await until(lambda: writer._group)  # which a thread is to commit
                is_open.set()
                await asyncio.Event().wait()

    async def main() -> None:
        is_open = asyncio.Event()
        tasks.append(asyncio.create_task(serve(is_open)))
        await is_open.wait()
        for task in asyncio.all_tasks():
            if "_commit_all" in repr(task):
                task.cancel()  # before the transaction, as may happen when the loop cancels all

    asyncio.run(main())
    assert stored_ints(path) == [0, 1, 2]
