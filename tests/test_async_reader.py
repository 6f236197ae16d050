"""The async reader: waiting for rows, the end of a stream, writers that die, reading and sampling."""

import math
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import torch
from api_support import process
from live_support import (
    add_ints,
    at_every_wait,
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
    until,
    write_ints,
)

import tensorblob as tb
from tensorblob import async_reader, doorbell
from tensorblob.writer import Writer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> float:
    """Look for dead writers very often; return how long that takes several times over."""
    monkeypatch.setattr(async_reader, "IDLE_POLL_S", 0.02)
    monkeypatch.setattr(async_reader, "LAST_IDLE_POLL_S", 0.02)
    return 0.15


@pytest.fixture(params=["inotify", "polling"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without what rings on a commit."""
    if request.param == "polling":
        monkeypatch.setattr(doorbell, "inotify", None)
    return str(request.param)


# ---- processes


def keep_writing(connection: Connection, path: Path, numbers: list[int]) -> None:
    """Commit rows, say so, and stay there with the blob open."""
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(torch.tensor(numbers))
        connection.send("written")
        while (said := connection.recv()) != "close":
            blob.write(torch.tensor(said))
            connection.send("written")
    connection.send("closed")


def create_after(connection: Connection, path: Path) -> None:
    connection.recv()
    create_ints(path, 3)
    connection.send("created")


# ---- waiting


@limited
async def test_waiting_for_rows_returns_the_snapshot_that_has_them(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        assert (await reader.wait_rows(3)).rows == 3 and (await reader.wait_rows(0)).rows == 3
        async with anyio.create_task_group() as tasks:
            for rows in (4, 5, 9):
                tasks.start_soon(outcome, reader.wait_rows(rows), got)
            await some_turns()
            assert not got
            await writer.append(ints(3, 4))
            await until(lambda: len(got) == 1)
            await writer.append(ints(4, 8))
            await until(lambda: len(got) == 2)
            await writer.append(ints(8, 9))
        assert [snapshot.rows >= rows for snapshot, rows in zip(got, (4, 5, 9), strict=True)] == [True] * 3
        assert reader.rows == 9 == len(reader) and reader.first_row == 0


@limited
async def test_a_commit_of_another_process_is_seen(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with tb.open_reader(path) as reader:
        with process(keep_writing, path, [0]) as (connection, _):
            await reader.wait_rows(1)
            for number in range(1, 20):
                connection.send([number])
                await reader.wait_rows(number + 1)
            connection.send("close")
            await until(lambda: connection.poll())
        assert (await reader.read(0, 20)).tolist() == list(range(20))


@limited
async def test_waiting_for_durable_rows_waits_for_the_flush(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(outcome, reader.wait_durable(3), got)
        await writer.append(ints(0, 3))
        await reader.wait_rows(3)
        assert not got
        await writer.flush()
        await until(lambda: got)
        assert got[0].durable_rows == 3


@limited
async def test_waiting_for_durable_rows_of_a_finished_stream(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        await writer.append(ints(0, 3))
        await writer.finish()
        tasks.start_soon(outcome, reader.wait_durable(3), got)
        with pytest.raises(tb.StreamFinished):
            await reader.wait_durable(4)
        await some_turns()
        assert not got
        await writer.flush()
        await until(lambda: got)
    assert got[0].durable_rows == 3


@limited
async def test_a_wait_beyond_the_end_of_the_stream_raises(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            for rows in (3, 4, 5):
                tasks.start_soon(outcome, reader.wait_rows(rows), got)
            await some_turns()
            await writer.append(ints(0, 3))
            await writer.finish()
        assert sorted(type(result).__name__ for result in got) == ["Snapshot", "StreamFinished", "StreamFinished"]
        assert (await reader.wait_rows(3)).rows == 3
        with pytest.raises(EOFError):
            await reader.wait_rows(4)
        with pytest.raises(tb.StreamFinished):
            await reader.sample(2, length=4)


@limited
async def test_rows_after_a_finish_that_was_taken_back_can_be_waited_for(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        await writer.finish()
        await writer.append(ints(0, 3))
        assert (await reader.wait_rows(3)).rows == 3


# ---- writers that die


@limited
async def test_a_writer_that_was_killed_is_told_to_everybody_who_waits(bell: str, hasty: float, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with tb.open_reader(path) as reader:
        with process(keep_writing, path, [0, 1]) as (connection, child):
            assert await received(connection) == "written"
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(outcome, reader.wait_rows(3), got)
                await some_turns()
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
        assert [type(result) for result in got] == [tb.WriterDied] * 3
        assert (await reader.wait_rows(2)).rows == 2, "what it committed is there"
        add_ints(path, 2)
        assert (await reader.wait_rows(3)).rows == 3, "and another one goes on"


@limited
async def test_a_writer_that_is_stopped_has_not_died(hasty: float, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with tb.open_reader(path) as reader:
        with process(keep_writing, path, [0, 1]) as (connection, child):
            assert await received(connection) == "written"
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)
            with anyio.move_on_after(hasty) as scope:
                await reader.wait_rows(3)
            assert scope.cancelled_caught
            os.kill(child.pid, signal.SIGCONT)
            connection.send([2])
            assert (await reader.wait_rows(3)).rows == 3


@limited
async def test_a_writer_that_closed_has_not_died(hasty: float, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 2)
    async with tb.open_reader(path) as reader:
        with anyio.move_on_after(hasty) as scope:
            await reader.wait_rows(3)
        assert scope.cancelled_caught


@limited
async def test_a_writer_that_closed_with_garbage_left_to_its_successor_has_not_died(
    hasty: float, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", 2048, block_rows=512)
    async with tb.open_reader(path) as reader:  # it pins the blocks
        with tb.TensorBlob.open(path, "r+") as blob:
            blob.trim(2000)
        assert reader.refresh()
        with anyio.move_on_after(hasty) as scope:
            await reader.wait_rows(2049)
        assert scope.cancelled_caught


# ---- several tasks, cancellation, closing


@limited
async def test_when_the_first_who_waits_is_cancelled_another_takes_its_place(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope() for _ in range(4)]

            async def wait(number: int) -> None:
                with scopes[number]:
                    await reader.wait_rows(1)
                    got.append(number)

            for number in range(4):
                tasks.start_soon(wait, number)
                await some_turns(5)
            scopes[0].cancel()
            await some_turns()
            scopes[1].cancel()
            await some_turns()
            await writer.append(ints(0, 1))
        assert sorted(got) == [2, 3]


@limited
async def test_rows_that_another_task_has_seen_first_are_seen_by_who_waits(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        with process(keep_writing, path, [0]) as (connection, _):
            await received(connection)
            for _ in range(2):
                tasks.start_soon(outcome, reader.wait_rows(2), got)
            await some_turns()
            connection.send([1])
            while not connection.poll():  # its writer commits, and dies; this task looks before the others do
                pass
        reader.refresh()
        await until(lambda: len(got) == 2)
    assert [type(result) for result in got] == [tb.Snapshot] * 2, "they are there, whatever became of the writer"


@limited
async def test_a_wait_can_be_cancelled_at_any_point(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path) as writer, tb.open_reader(path) as reader:

        async def act(nth: int) -> tuple[bool, Any]:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(writer.append, copies(nth, 1))
                result = await cancelled_at(nth, reader.wait_rows(nth + 1))
            assert (await reader.wait_rows(nth + 1)).rows == nth + 1
            return result

        await at_every_wait(act)


@limited
async def test_who_waits_while_the_reader_is_closed_is_told(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path), anyio.create_task_group() as tasks, tb.open_reader(path) as reader:
        for _ in range(3):
            tasks.start_soon(outcome, reader.wait_rows(1), got)
            await some_turns(5)
    assert [type(result) for result in got] == [tb.BlobClosed] * 3


@limited
async def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)
    async with tb.open_reader(path) as reader:
        follower = reader.follow()
    for work in (reader.wait_rows(1), reader.wait_rows(9), reader.read(0, 1), reader.sample(1), follower.__anext__()):
        with pytest.raises(tb.BlobClosed):
            await work
    with pytest.raises(tb.BlobClosed):
        reader.refresh()


# ---- opening


@limited
async def test_a_reader_may_open_before_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    with pytest.raises(FileNotFoundError):
        async with tb.open_reader(path):
            pass
    with pytest.raises(FileNotFoundError):
        async with tb.open_reader(path, wait_s=0.02):
            pass
    with process(create_after, path) as (connection, _):
        connection.send("go")
        async with tb.open_reader(path, wait_s=math.inf) as reader:
            assert (await reader.wait_rows(3)).rows == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.blob"], "and creates nothing itself"


@limited
async def test_opening_can_be_cancelled_at_any_wait_and_leaks_nothing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 3)

    async def work() -> int:
        async with tb.open_reader(path) as reader:
            return int((await reader.read(0, 3)).sum())

    await work()
    before = files_before()
    count = await at_every_wait(lambda nth: cancelled_at(nth, work()))
    assert count > 0 and open_files() == before
    with anyio.move_on_after(0.05):
        async with tb.open_reader(tmp_path / "y.blob", wait_s=math.inf):
            pass
    assert open_files() == before


@limited
async def test_what_is_no_blob_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a blob")
    with pytest.raises(tb.NotABlob):
        async with tb.open_reader(tmp_path / "x", wait_s=5):
            pass


@limited
async def test_a_blob_that_was_replaced_is_told_to_everybody_who_waits(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(outcome, reader.wait_rows(1), got)
            await some_turns()
            path.rename(tmp_path / "y.blob")
        assert [type(result) for result in got] == [tb.BlobReplaced] * 3


# ---- without inotify


@limited
async def test_exhausted_inotify_instances_only_cost_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    assert doorbell.inotify is not None

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(doorbell.inotify, "INotify", refuse)
    async with write_ints(path) as writer, tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(writer.append, ints(0, 3))
        assert (await reader.wait_rows(3)).rows == 3


@limited
async def test_a_watch_that_is_refused_later_only_costs_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    assert doorbell.inotify is not None
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(outcome, reader.wait_rows(4), got)
            await some_turns()

            def refuse(*_: Any, **__: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(doorbell.inotify.INotify, "add_watch", refuse)
            for number in range(4):
                await writer.append(copies(number, 1))
                await some_turns(3)
        assert [result.rows for result in got] == [4, 4]


@limited
async def test_generations_that_switch_are_waited_across(bell: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        for number in range(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reader.wait_rows, number + 1)
                await some_turns(number)
                assert isinstance(writer.blob._writer, Writer)
                writer.blob._writer._rotate()
                await writer.append(copies(number, 1))
        assert (await reader.read(0, 10)).tolist() == list(range(10))


# ---- reading and sampling


@limited
async def test_read_gives_copies_of_committed_rows(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 1000, block_rows=512)
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.trim(600)
    async with tb.open_reader(path) as reader:
        found = await reader.read(600, 700)
        assert found.tolist() == list(range(600, 700))
        found.zero_()
        assert (await reader.read(600, 602)).tolist() == [600, 601]
        assert len(await reader.read(700, 700)) == 0
        with pytest.raises(tb.RowsTrimmed) as raised:
            await reader.read(599, 700)
        assert raised.value.first_row == 600
        for start, stop in ((600, 1001), (700, 699), (1001, 1001)):
            with pytest.raises(IndexError):
                await reader.read(start, stop)


@limited
async def test_read_of_what_was_trimmed_while_it_waited_is_still_what_was_asked_for(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 1000, block_rows=512)
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(outcome, reader.read(0, 100), got)
        await anyio.lowlevel.checkpoint()
        with tb.TensorBlob.open(path, "r+") as blob:
            blob.trim(600)
        reader.refresh()
    for result in got:
        assert isinstance(result, tb.RowsTrimmed) or result.tolist() == list(range(100)), result


@limited
async def test_sample_while_another_task_steps_over_a_trim_gives_rows_and_ids_that_agree(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 1_000_000)
    got: list[tb.Sample] = []
    async with tb.open_reader(path) as reader:
        for step in range(8):
            async with anyio.create_task_group() as tasks:
                for batch_size in (1, 20, 600_000):  # the last is gathered in a thread
                    tasks.start_soon(outcome, reader.sample(batch_size), got)
                    tasks.start_soon(outcome, reader.sample(batch_size // 10 + 1, length=10), got)
                await some_turns(step)
                with tb.TensorBlob.open(path, "r+") as blob:
                    blob.trim(step * 100_000 + 50_000)
                reader.refresh()
    assert len(got) == 48
    for rows, ids in got:
        assert torch.equal(rows, ids)


@limited
async def test_large_reads_and_samples_are_done_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob", 1_000_000)
    run_sync, hops = anyio.to_thread.run_sync, 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal hops
        hops += 1
        return await run_sync(*args, **options)

    async with tb.open_reader(path) as reader:
        monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
        assert torch.equal(await reader.read(0, 1_000_000), ints(0, 1_000_000))
        rows, ids = await reader.sample(600_000)
        assert torch.equal(rows, ids) and hops == 2
        assert torch.equal(*(await reader.sample(10))) and hops == 2


@limited
async def test_small_reads_go_to_a_thread_while_pages_are_not_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob", 100)
    threads: list[int] = []
    now_s = takes_s = 0.0

    def clock() -> float:
        """Asked before and after each small read, by whoever reads."""
        nonlocal now_s
        now_s += takes_s
        threads.append(threading.get_ident())
        return now_s

    async with tb.open_reader(path) as reader:
        monkeypatch.setattr(async_reader, "time", SimpleNamespace(perf_counter=clock))
        for cost_s in (0, 1, 1, 0, 0):
            takes_s = cost_s
            assert (await reader.read(3, 5)).tolist() == [3, 4]
    is_here = [ident == threading.get_ident() for ident in threads[::2]]
    assert is_here == [True, True, False, False, True], "the second waits for the disk, the fourth no longer"


@limited
async def test_sample_gives_rows_and_their_ids(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 1000, block_rows=512)
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.trim(600)
    async with tb.open_reader(path) as reader:
        rows, ids = await reader.sample(5000)
        assert rows.shape == ids.shape == (5000,) and torch.equal(rows, ids)
        assert int(ids.min()) >= 600 and len(ids.unique()) > 390, "all rows that are left have a chance"
        rows, ids = await reader.sample(300, length=7)
        assert rows.shape == ids.shape == (300, 7) and torch.equal(rows, ids)
        assert bool((ids[:, 1:] - ids[:, :-1] == 1).all()), "neighbours"
        assert int(ids.min()) >= 600 and int(ids.max()) <= 999
        whole = await reader.sample(2, length=400)
        assert torch.equal(whole.rows, ints(600, 1000).expand(2, -1))
        one = await reader.sample(1, length=1)
        assert one.rows.shape == (1, 1)
        first = await reader.sample(10, generator=torch.Generator().manual_seed(3))
        again = await reader.sample(10, generator=torch.Generator().manual_seed(3))
        assert torch.equal(first.rows, again.rows)
        for wrong in ({"batch_size": 0}, {"batch_size": 1, "length": 0}):
            with pytest.raises(ValueError):
                await reader.sample(**wrong)


@limited
async def test_sample_of_several_fields(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    schema = {"a": "int64", "b": ("float32", (3,)), ("c", "d"): "bool"}
    async with tb.open_writer(path, schema=schema) as writer:
        numbers = torch.arange(100)
        batch = {"a": numbers, "b": numbers.float()[:, None].expand(-1, 3), "c": {"d": numbers % 2 == 0}}
        await writer.append(batch)
        async with tb.open_reader(path) as reader:
            rows, ids = await reader.sample(20)
            assert torch.equal(rows["a"], ids) and torch.equal(rows["c", "d"], ids % 2 == 0)
            rows, ids = await reader.sample(20, length=5)
            assert rows["b"].shape == (20, 5, 3) and torch.equal(rows["b"][..., 0], ids.float())
            rows, ids = await reader.sample(20, fields=["a"])
            assert torch.equal(rows["a"], ids) and "b" not in rows
            rows, ids = await reader.sample(20, length=4, fields=[("c", "d")])
            assert rows["c", "d"].shape == (20, 4)


@limited
async def test_sample_waits_for_enough_rows(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, reader.sample(2), got)
            tasks.start_soon(outcome, reader.sample(2, length=3), got)
            await some_turns()
            assert not got
            await writer.append(ints(0, 1))
            await until(lambda: len(got) == 1)
            await writer.append(ints(1, 3))
        assert got[0].rows.tolist() == [0, 0] and got[1].rows.tolist() == [[0, 1, 2]] * 2


@limited
async def test_sample_takes_new_rows_in(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 2)
    async with tb.open_reader(path) as reader:
        add_ints(path, 2)
        assert 2 in (await reader.sample(300)).rows
