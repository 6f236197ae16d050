"""Durable consumers: a cursor resumes exactly, has one consumer at a time, and producers wait for those who fall behind."""

import math
import os
import signal
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from api_support import Died, die_at_event, elsewhere, process
from disk import without_platters
from live_support import (
    Disk,
    add_ints,
    cancelled_at,
    copies,
    create_ints,
    files_before,
    ints,
    limited,
    open_files,
    outcome,
    received,
    some_turns,
    stored_ints,
    until,
    write_ints,
)

import tensorblob as tb
from tensorblob import cursors, doorbell, files

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


async def consume(path: Path, count: int | None, name: str = "c", **options: Any) -> list[int]:
    """Take `count` batches (None: to the end) by a cursor, acknowledging each, as a consumer that comes and goes."""
    got: list[int] = []
    async with tb.open_reader(path) as reader, reader.follow(cursor=name, **options) as follower:
        while count is None or count > 0:
            try:
                got += (await anext(follower)).tolist()
            except StopAsyncIteration:
                break
            await follower.ack()
            count = None if count is None else count - 1
    return got


def positions(path: Path) -> dict[str, tuple[int, bool]]:
    dir_fd = files.open_directory(os.fspath(path))
    try:
        return {found.name: (found.position.row, found.is_alive) for found in cursors.consumers(dir_fd)}
    finally:
        os.close(dir_fd)


# ---- consumers elsewhere


def consume_elsewhere(
    connection: Connection, path: Path, backend: str, name: str, batch_size: int | None, dies_after: int
) -> None:
    """Send each batch before it is acknowledged, and then that it was; die by SIGKILL after so many batches, or never."""

    async def main() -> None:
        left = dies_after
        async with (
            tb.open_reader(path, wait_s=math.inf) as reader,
            reader.follow(cursor=name, batch_size=batch_size) as follower,
        ):
            connection.send(("starts", follower.stop))
            async for batch in follower:
                connection.send(("got", follower.start, batch.tolist()))
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                await follower.ack()
                connection.send(("acknowledged", follower.stop))
        connection.send(("ended",))

    without_platters(pytest.MonkeyPatch())
    anyio.run(main, backend=backend)


def on_command(connection: Connection, path: Path, backend: str, name: str) -> None:
    """Take a batch for each "next", acknowledge at "ack"."""

    async def main() -> None:
        async with tb.open_reader(path) as reader, reader.follow(cursor=name) as follower:
            connection.send("open")
            while True:
                await until(connection.poll)
                match connection.recv():
                    case "next":
                        connection.send((await anext(follower)).tolist())
                    case "ack":
                        await follower.ack()
                        connection.send("acknowledged")
                    case "close":
                        break
        connection.send("closed")

    without_platters(pytest.MonkeyPatch())
    anyio.run(main, backend=backend)


# ---- resuming


@limited
async def test_a_consumer_resumes_exactly_where_it_acknowledged(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 100)
    got: list[int] = []
    for _ in range(9):
        got += await consume(path, 1, batch_size=7)
    assert got == list(range(63))
    assert positions(path) == {"c": (63, False)}
    add_ints(path, 100, 101)
    assert await consume(path, 1) == list(range(63, 102))


@limited
async def test_the_batch_that_was_not_acknowledged_comes_again(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 100)
    async with tb.open_reader(path) as reader:
        async with reader.follow(cursor="c", batch_size=10) as follower:
            for _ in range(3):
                await anext(follower)  # asking for the next acknowledges the one before
            assert (follower.start, follower.stop) == (20, 30)
        async with reader.follow(cursor="c", batch_size=10) as follower:
            assert follower.stop == 20
            assert (await anext(follower)).tolist() == list(range(20, 30))
            await follower.ack()
            await follower.ack()
        async with reader.follow(cursor="c", start=5) as follower:
            assert follower.stop == 30, "start is for a cursor that is not there yet"
        async with reader.follow(cursor="d", start=5) as follower:
            assert follower.stop == 5
        assert positions(path) == {"c": (30, False), "d": (5, False)}


@limited
async def test_the_end_of_the_stream_is_acknowledged_and_lets_the_cursor_go(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path) as writer:
        await writer.append(ints(0, 10))
        await writer.finish()
    async with tb.open_reader(path) as reader:
        follower = reader.follow(cursor="c", batch_size=4)
        got: list[int] = []
        async for batch in follower:
            got += batch.tolist()
        assert got == list(range(10))
        assert positions(path) == {"c": (10, False)}
        assert await consume(path, None) == []


@limited
async def test_cursors_of_different_names_do_not_know_each_other(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    assert await consume(path, 1, "a", batch_size=5) == list(range(5))
    assert await consume(path, 1, "b.c-d_1") == list(range(20))
    assert positions(path) == {"a": (5, False), "b.c-d_1": (20, False)}


@limited
async def test_acknowledging_without_a_cursor_does_nothing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    async with tb.open_reader(path) as reader, reader.follow() as follower:
        await anext(follower)
        await follower.ack()
    assert positions(path) == {}


@limited
async def test_rows_that_were_acknowledged_and_cut_meanwhile_are_told(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    assert len(await consume(path, 1, batch_size=10)) == 10
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.truncate(15)
    assert await consume(path, 1, batch_size=2) == [10, 11], "a cut above it is nothing to it"
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.truncate(8)
    add_ints(path, *range(80, 100))
    with pytest.raises(tb.HistoryRewritten) as raised:
        await consume(path, 1)
    assert raised.value.row == 8


@limited
async def test_rows_that_were_trimmed_before_a_consumer_came_back_are_told_or_skipped(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    assert len(await consume(path, 1, batch_size=10)) == 10
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.trim(15)
    with pytest.raises(tb.RowsTrimmed) as raised:
        await consume(path, 1)
    assert raised.value.first_row == 15
    assert await consume(path, 1, on_trim="skip") == [15, 16, 17, 18, 19]


# ---- one consumer at a time


@limited
async def test_a_cursor_has_one_consumer_at_a_time(anyio_backend: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    async with tb.open_reader(path) as reader, tb.open_reader(path) as second:
        async with reader.follow(cursor="c") as follower:
            for other in (reader, second):
                with pytest.raises(tb.CursorBusy, match=str(os.getpid())):
                    async with other.follow(cursor="c"):
                        pass
                with pytest.raises(tb.CursorBusy):
                    await anext(other.follow(cursor="c"))
            async with second.follow(cursor="d"):
                pass
            assert positions(path)["c"] == (0, True)
            await anext(follower)
            await follower.ack()
        async with second.follow(cursor="c") as follower:
            assert follower.stop == 20
        with process(on_command, path, anyio_backend, "c") as (connection, child):
            assert await received(connection) == "open"
            with pytest.raises(tb.CursorBusy, match=str(child.pid)):
                async with second.follow(cursor="c"):
                    pass
            connection.send("close")
            assert await received(connection) == "closed"
        async with second.follow(cursor="c"):
            pass


@limited
async def test_taking_a_cursor_can_be_cancelled_at_any_wait_and_lets_it_go(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 5)

    async with tb.open_reader(path) as reader:

        async def work() -> int:
            async with reader.follow(cursor="c") as follower:
                return follower.stop

        await work()
        for number in range(20):
            before = files_before()
            reached, _ = await cancelled_at(number, work())
            assert open_files() == before, f"cancelled at wait {number}"
            reached_new, _ = await cancelled_at(number, _begin(reader, f"new{number}"))
            assert open_files() == before, f"a new one, cancelled at wait {number}"
            async with reader.follow(cursor=f"new{number}"):
                pass
            if not reached and not reached_new:
                break
        else:
            raise AssertionError("it never ends")


async def _begin(reader: tb.AsyncReader, name: str) -> None:
    async with reader.follow(cursor=name):
        pass


@limited
async def test_a_cursor_that_cannot_be_written_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob", 5)
    disk = Disk(monkeypatch)
    async with tb.open_reader(path) as reader:
        before = files_before()
        disk.fail("cursors/", lambda: tb.DiskFull(28, "no space left"))
        with pytest.raises(tb.DiskFull):
            async with reader.follow(cursor="c"):
                pass
        disk.fail(".c.json", lambda: tb.DiskFull(28, "no space left"))
        with pytest.raises(tb.DiskFull):
            async with reader.follow(cursor="c"):
                pass
        assert open_files() == before
        async with reader.follow(cursor="c") as follower:
            await anext(follower)
            disk.fail(".c.json", lambda: tb.DiskFull(28, "no space left"))
            with pytest.raises(tb.DiskFull):
                await follower.ack()
            assert positions(path)["c"][0] == 0
            await follower.ack()
    assert positions(path)["c"] == (5, False)


# ---- consumers that are killed


@pytest.mark.slow
@limited
async def test_a_killed_consumer_resumes_without_losing_or_repeating_an_acknowledged_row(
    anyio_backend: str, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    got: list[tuple[int, list[int]]] = []
    acknowledged = 0
    async with write_ints(path) as writer:
        for number in range(40):
            await writer.append(ints(number * 5, number * 5 + 5))
        await writer.finish()
    for life in range(4):
        dies_after = [3, 1, 7, 0][life]
        with process(consume_elsewhere, path, anyio_backend, "c", 9, dies_after) as (connection, child):
            kind, row = await received(connection)
            assert kind == "starts" and row == acknowledged, "exactly where it had acknowledged"
            got = [(start, batch) for start, batch in got if start < acknowledged]
            try:
                while True:
                    await until(lambda: connection.poll() or not child.is_alive())
                    match connection.recv():
                        case ("got", start, batch):
                            assert start == acknowledged, "nothing acknowledged comes again"
                            got.append((start, batch))
                        case ("acknowledged", row):
                            acknowledged = row
                        case ("ended",):
                            break
            except EOFError:
                assert dies_after
        assert positions(path)["c"] == (acknowledged, False)
    assert [number for _, batch in got for number in batch] == list(range(200))


def _consume_with_a_helper(connection: Connection, path: Path) -> None:
    """Fork a child that outlives the consumer's `follow` (as a loader's worker would), then close the cursor."""
    dir_fd = files.open_directory(os.fspath(path))
    cursor = cursors.Cursor(dir_fd, "c")
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says, b"!")
        signal.pause()
        os._exit(0)
    os.read(hears, 1)  # by now it has let go of what it must not keep
    cursor.close()
    try:
        cursors.Cursor(dir_fd, "c").close()
        found = "free"
    except tb.CursorBusy:
        found = "busy"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    connection.send(found)  # last: who hears it may kill this process, and would leave the child behind


def test_a_cursor_that_was_closed_is_free_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 5)
    with process(_consume_with_a_helper, path) as (connection, _):
        assert connection.recv() == "free"


def _die_while_acknowledging(path: Path, nth: int) -> None:
    dir_fd = files.open_directory(os.fspath(path))
    cursor = cursors.Cursor(dir_fd, "c")
    die_at_event(nth, "open", "os.rename", "os.remove")
    assert cursor.position is not None
    cursor.acknowledge(cursor.position.row + 1, 0)


def test_a_consumer_killed_at_any_step_of_an_acknowledgement_has_made_it_or_not(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 100)
    dir_fd = files.open_directory(os.fspath(path))
    cursor = cursors.Cursor(dir_fd, "c")
    cursor.acknowledge(10, 0)
    cursor.close()
    row = 10
    for nth in range(20):
        try:
            elsewhere(_die_while_acknowledging, path, nth)
            died = False
        except Died:
            died = True
        found = cursors.read_position(dir_fd, "c")
        assert found is not None and found.row in ((row, row + 1) if died else (row + 1,))
        row = found.row
        if not died:
            break
    else:
        raise AssertionError("it never ends")
    assert nth > 2
    os.close(dir_fd)


# ---- damage


def test_a_damaged_cursor_file_is_corrupt_and_never_another_position(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 100)
    dir_fd = files.open_directory(os.fspath(path))
    cursor = cursors.Cursor(dir_fd, "c")
    cursor.acknowledge(57, 0)
    file = path / "cursors" / "c.json"
    good = file.read_bytes()
    damaged = [good[:cut] for cut in range(len(good) - 1)]
    for position in range(len(good)):
        damaged += [good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :] for bit in range(8)]
    damaged += [b"", b"\0" * len(good), b"[]", b"null", good + good, b'{"row": 57, "history": 0, "crc32c": 5}']
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            found = cursors.read_position(dir_fd, "c")
        except tb.Corrupt:
            refused += 1
        else:
            assert found == (57, 0), data
    with pytest.raises(tb.Corrupt, match=r"c\.json"):
        cursors.read_position(dir_fd, "c")
    assert refused > 0.9 * len(damaged)
    cursor.close()
    os.close(dir_fd)


@limited
async def test_following_by_a_damaged_cursor_raises_and_lets_it_go(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    await consume(path, 1)
    (path / "cursors" / "c.json").write_text("{}")
    async with tb.open_reader(path) as reader:
        before = files_before()
        for _ in range(2):
            with pytest.raises(tb.Corrupt):
                async with reader.follow(cursor="c"):
                    pass
        assert open_files() == before
        (path / "cursors" / "c.json").unlink()
        async with reader.follow(cursor="c") as follower:
            assert follower.stop == 0


def test_names_of_cursors_stay_in_their_directory() -> None:
    for name in ("", ".", "..", "../x", "a/b", ".hidden", "a" * 101, "ä", "a b", "-x", "a\n"):
        with pytest.raises(ValueError):
            cursors.check_name(name)
    for name in ("a", "A.b-c_9", "_", "a" * 100):
        assert cursors.check_name(name) == name


# ---- producers wait


@limited
async def test_producers_wait_for_a_slow_consumer_in_another_process(anyio_backend: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    with process(on_command, path, anyio_backend, "c") as (connection, _):
        assert await received(connection) == "open"
        async with write_ints(path, consumers=["c"], max_lag_rows=10) as writer:

            async def produce() -> None:
                for number in range(12):
                    await writer.append(ints(number * 5, number * 5 + 5))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce)
                await until(lambda: writer.statistics().waiting_producers == 1)
                assert writer.rows == 15, "more than ten behind"
                with pytest.raises(anyio.WouldBlock):
                    writer.append_nowait(ints(0, 1))
                seen = 0
                while seen < 60:
                    connection.send("next")
                    batch = await received(connection)
                    assert batch == list(range(seen, seen + len(batch)))
                    seen += len(batch)
                    await some_turns()
                    rows = writer.rows
                    assert rows <= seen + 15, "reading is not acknowledging"
                    connection.send("ack")
                    await received(connection)
                    await until(lambda rows=rows: writer.rows > rows or writer.rows == 60)
            assert writer.statistics().waiting_producers == 0
    assert stored_ints(path) == list(range(60))


@pytest.mark.parametrize("way", ["inotify", "polling"])
@limited
async def test_all_who_wait_go_on_and_one_that_is_cancelled_holds_up_nobody(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "polling":
        monkeypatch.setattr(doorbell, "inotify", None)
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path, consumers=["c", "d"], max_lag_rows=4) as writer, tb.open_reader(path) as reader:
        await writer.append(ints(0, 5))
        scopes = [anyio.CancelScope() for _ in range(5)]

        async def produce(number: int) -> None:
            with scopes[number]:
                got.append(await writer.append(copies(number, 1)))

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(produce, number)
                await some_turns(5)
            assert writer.statistics().waiting_producers == 5
            scopes[0].cancel()
            await until(lambda: writer.statistics().waiting_producers == 4)  # it may be the one who is flushing
            async with reader.follow(cursor="c") as follower, reader.follow(cursor="d") as other:
                await anext(follower)
                await follower.ack()
                await some_turns()
                assert not got, "the slowest counts"
                await anext(other)
                await other.ack()
                await until(lambda: len(got) == 4)
    assert len(stored_ints(path)) == 9


@limited
async def test_a_consumer_that_was_never_seen_is_waited_for_from_the_first_row(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 10)
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.trim(8)
    async with write_ints(path, consumers=["c"], max_lag_rows=4) as writer, tb.open_reader(path) as reader:
        await writer.append(ints(10, 14))
        got: list[Any] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, writer.append(ints(14, 15)), got)
            await until(lambda: writer.statistics().waiting_producers == 1)
            async with reader.follow("now", cursor="c"):
                await until(lambda: got)


@limited
async def test_a_batch_size_larger_than_the_lag_does_not_deadlock(anyio_backend: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, consumers=["c"], max_lag_rows=10) as writer:
        with process(consume_elsewhere, path, anyio_backend, "c", 1000, 0) as (connection, _):
            for number in range(20):
                await writer.append(ints(number * 5, number * 5 + 5))
            await writer.finish()
            seen = 0
            while True:
                match await received(connection):
                    case ("got", start, batch):
                        assert start == seen and len(batch) <= 1000
                        seen += len(batch)
                    case ("ended",):
                        break
    assert seen == 100


@limited
async def test_a_writer_that_comes_while_a_follower_waits_for_a_large_batch_does_not_deadlock(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 1)
    got: list[int] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:

        async def follow() -> None:
            async with reader.follow(cursor="c", batch_size=1000) as follower:
                async for batch in follower:
                    got.extend(batch.tolist())

        tasks.start_soon(follow)
        await until(lambda: positions(path).get("c"))
        await some_turns(50)  # it waits for 999 more rows, and no writer is there that could tell it to hurry
        async with write_ints(path, consumers=["c"], max_lag_rows=10) as writer:
            for number in range(1, 60):
                await writer.append(ints(number, number + 1))
            await writer.finish()
    assert got == list(range(60))


@limited
async def test_a_transaction_and_a_large_append_wait_for_consumers_but_are_let_in_whole(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, consumers=["c"], max_lag_rows=10) as writer, tb.open_reader(path) as reader:
        assert await writer.append(ints(0, 100)) == range(100), "larger than the lag, and nobody is behind"
        got: list[Any] = []

        async def transact() -> None:
            async with writer.transaction() as transaction:
                transaction.append(ints(100, 150))
            got.append(transaction.rows)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transact)
            await until(lambda: writer.statistics().waiting_producers == 1)
            async with reader.follow(cursor="c", batch_size=7) as follower:
                while not got:
                    await anext(follower)
        assert got == [range(100, 150)]


# ---- consumers that die


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wait", "raise", "drop"])
@limited
async def test_a_dead_consumer_is_waited_for_told_or_dropped(anyio_backend: str, way: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path, consumers=["c"], max_lag_rows=5, on_dead_consumer=way) as writer:
        with process(on_command, path, anyio_backend, "c") as (connection, child):
            assert await received(connection) == "open"
            await writer.append(ints(0, 6))
            async with anyio.create_task_group() as tasks:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    for number in range(3):
                        tasks.start_soon(outcome, writer.append(copies(number, 1)), got)
                    await until(lambda: writer.statistics().waiting_producers == 3)
                    assert not writer.statistics().dead_consumers
                    assert child.pid is not None
                    os.kill(child.pid, signal.SIGKILL)
                    child.join()
                    if way == "wait":
                        await until(lambda: writer.statistics().dead_consumers == ("c",))
                        assert not got
                        async with tb.open_reader(path) as reader, reader.follow(cursor="c") as follower:
                            await anext(follower)
                            await follower.ack()  # it is back
                            await until(lambda: len(got) == 3)
                    else:
                        await until(lambda: len(got) == 3)
                assert len([warning for warning in told if "'c'" in str(warning.message)]) == (way != "raise")
        if way == "raise":
            assert [type(error) for error in got] == [tb.ConsumerDied] * 3 and got[0].name == "c"
            with pytest.raises(tb.ConsumerDied):
                writer.append_nowait(copies(9, 1))
            assert writer.rows == 6
        else:
            assert all(isinstance(rows, range) for rows in got) and writer.rows == 9


@limited
async def test_a_consumer_that_closed_its_cursor_cleanly_but_far_behind_is_seen_as_gone(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    await consume(path, 1)
    async with write_ints(path, consumers=["c"], max_lag_rows=5, on_dead_consumer="raise") as writer:
        await writer.append(ints(0, 6))
        with pytest.raises(tb.ConsumerDied):
            await writer.append(ints(0, 1))


@limited
async def test_a_stopped_consumer_has_not_died(anyio_backend: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path, consumers=["c"], max_lag_rows=5, on_dead_consumer="raise") as writer:
        with process(on_command, path, anyio_backend, "c") as (connection, child):
            assert await received(connection) == "open"
            await writer.append(ints(0, 6))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome, writer.append(ints(6, 7)), got)
                with anyio.move_on_after(0.35):  # some looks
                    await until(lambda: got)
                assert not got
                os.kill(child.pid, signal.SIGCONT)
                connection.send("next")
                await received(connection)
                connection.send("ack")
                await until(lambda: got)
    assert got == [range(6, 7)]


# ---- rings that wait


@limited
async def test_a_ring_keeps_what_a_consumer_still_needs(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", max_rows=600, block_rows=512)
    assert await consume(path, 0) == []
    async with write_ints(path, retain_for=["c"]) as writer, tb.open_reader(path) as reader:
        for number in range(20):
            await writer.append(ints(number * 100, number * 100 + 100))
        assert writer.snapshot().first_row == 0
        async with reader.follow(cursor="c", batch_size=450) as follower:
            assert (await anext(follower)).tolist() == list(range(450))
            await writer.append(ints(2000, 2100))
            assert writer.snapshot().first_row == 0, "read, and not acknowledged"
            await follower.ack()
            await writer.append(ints(2100, 2200))
            assert writer.snapshot().first_row == 450
            got = []
            for _ in range(3):
                got += (await anext(follower)).tolist()
            assert got == list(range(450, 1800))
            await follower.ack()
            await writer.append(ints(2200, 2300))
            assert writer.snapshot().first_row == 1700, "no more than the ring asks for"


@limited
async def test_a_ring_without_its_consumer_keeps_everything_from_the_beginning(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", max_rows=600, block_rows=512)
    async with write_ints(path, retain_for=["later"]) as writer:
        await writer.append(ints(0, 2000))
        assert writer.snapshot().first_row == 0
    assert torch.equal(torch.tensor(await consume(path, 1, "later")), ints(0, 2000))
    async with write_ints(path, retain_for=["later"]) as writer:
        await writer.append(ints(2000, 2001))
        assert writer.snapshot().first_row == 1401


@limited
async def test_a_durable_consumer_does_not_stall_producers_that_wait_for_it(tmp_path: Path) -> None:
    """Nobody flushes by itself at "process", so whoever waits for a consumer has to."""
    path = create_ints(tmp_path / "x.blob")
    got: list[int] = []

    async def consume() -> None:
        async with tb.open_reader(path) as reader, reader.follow(cursor="slow", durable=True) as batches:
            async for rows in batches:
                got.extend(rows.tolist())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        async with write_ints(path, consumers=["slow"], max_lag_rows=4) as writer:
            for number in range(20):
                await writer.append(ints(number, number + 1))
            await writer.finish()
    assert got == list(range(20))


@limited
async def test_a_consumer_whose_rows_were_cut_goes_on_where_it_says(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 6)
    async with tb.open_reader(path) as reader, reader.follow(cursor="c") as batches:
        await anext(batches)
        with tb.TensorBlob.open(path, "a") as blob:
            blob.truncate(3)
            blob.write(ints(30, 33))
        with pytest.raises(tb.HistoryRewritten) as caught:
            await anext(batches)
        assert caught.value.row == 3
        batches.seek(caught.value.row)
        assert (await anext(batches)).tolist() == [30, 31, 32]
        await batches.ack()
    async with tb.open_reader(path) as reader, reader.follow(cursor="c") as batches:
        assert batches.stop == 6


@limited
async def test_what_one_of_several_writers_retains_its_peers_keep_too(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", max_rows=10, block_size=1)
    async with (
        tb.open_reader(path) as reader,
        reader.follow(cursor="c") as batches,
        write_ints(path, shared=True, retain_for=["c"]) as one,
        write_ints(path, shared=True) as two,
    ):
        for number in range(30):
            await (one, two)[number % 2].append(ints(number, number + 1))
        assert (await anext(batches)).tolist() == list(range(30)), "nothing went before it was read"
        await batches.ack()
        await one.append(ints(30, 31))
        assert one.snapshot().first_row > 10
