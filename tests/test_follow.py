"""Following a blob: batches as they are committed, in order and without a copy, whatever happens to the blob meanwhile."""

import itertools
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch
from api_support import process
from live_support import (
    LARGE,
    add_ints,
    at_every_wait,
    cancelled_at,
    copies,
    create_ints,
    files_before,
    ints,
    limited,
    open_files,
    some_turns,
    until,
    write_ints,
)
from test_async_reader import bell, hasty, keep_writing, outcome, received  # noqa: F401 (some are fixtures)

import tensorblob as tb
from tensorblob import async_reader, doorbell
from tensorblob.writer import Writer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


def change(path: Path, act: Callable[[tb.TensorBlob], object]) -> None:
    """Change a blob as another writer would, that is gone when this returns."""
    with tb.TensorBlob.open(path, "r+") as blob:
        act(blob)


def joined(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


async def collected(follower: tb.Follower, into: list[list[int]]) -> list[list[int]]:
    """All batches to the end."""
    async for batch in follower:
        assert follower.stop - follower.start == len(batch)
        into.append(batch.tolist())
    return into


# ---- batches


@limited
async def test_a_follower_yields_every_row_in_order_and_ends_with_the_stream(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob", 10, block_rows=512)
    got: list[list[int]] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            follower = reader.follow()
            tasks.start_soon(collected, follower, got)
            row = 10
            for count in (1, 7, 600, 3, 1200):
                await writer.append(ints(row, row + count))
                row += count
                await some_turns(count % 5)
            await writer.finish()
        assert joined(got) == list(range(row))
        assert got[0] == list(range(10)) or got[0][0] == 0
        assert follower.is_finished and follower.stop == row and follower.lag_rows == 0
        assert await collected(reader.follow(start=row), []) == []
        assert joined(await collected(reader.follow(start=row - 5), [])) == list(range(row - 5, row))
        with pytest.raises(StopAsyncIteration):
            await anext(follower)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000])
@limited
async def test_batches_have_the_size_that_was_asked_for_and_the_last_has_the_rest(
    batch_size: int, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    got: list[list[int]] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collected, reader.follow(batch_size=batch_size), got)
            row = 0
            while row < 1300:
                await writer.append(ints(row, row + 37))
                row += 37
            await writer.finish()
        assert joined(got) == list(range(row))
        assert {len(batch) for batch in got[:-1]} <= {batch_size} and len(got[-1]) == (row - 1) % batch_size + 1


@limited
async def test_a_short_batch_is_yielded_when_its_first_row_has_waited_long_enough(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        follower = reader.follow(batch_size=10, max_wait_s=0.02)
        await writer.append(ints(0, 25))
        assert [len(await anext(follower)) for _ in range(3)] == [10, 10, 5]
        hasty = reader.follow(batch_size=10, max_wait_s=0)
        assert [len(await anext(hasty)) for _ in range(3)] == [10, 10, 5]
        patient = reader.follow(start=20, batch_size=10)
        with anyio.move_on_after(0.05) as scope:
            await anext(patient)
        assert scope.cancelled_caught
        await writer.append(ints(25, 30))
        assert (await anext(patient)).tolist() == list(range(20, 30)), "a cancelled wait loses nothing"
        waited = anyio.current_time()
        await writer.append(ints(30, 31))
        assert (await anext(follower)).tolist() == list(range(25, 31)) and anyio.current_time() - waited < 5


@limited
async def test_now_begins_with_the_rows_to_come(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 10)
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        await writer.append(ints(10, 20))
        follower = reader.follow("now")  # the reader has not looked since
        await writer.append(ints(20, 21))
        assert (await anext(follower)).tolist() == [20]


@limited
async def test_a_follower_may_begin_before_there_is_a_row(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 10)
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        follower = reader.follow(start=15)
        await writer.append(ints(10, 20))
        assert (await anext(follower)).tolist() == list(range(15, 20))


@limited
async def test_fields_are_those_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    schema = {"a": "int64", "b": ("float32", (300,)), ("c", "d"): "bool"}
    async with tb.open_writer(path, schema=schema, block_rows=256) as writer, tb.open_reader(path) as reader:
        numbers = torch.arange(700)
        batch = {"a": numbers, "b": numbers.float()[:, None].expand(-1, 300), "c": {"d": numbers % 2 == 0}}
        await writer.append(batch)
        await writer.finish()
        seen = 0
        async for found in reader.follow(batch_size=100, fields=["a", ("c", "d")]):
            assert torch.equal(found["a"], ints(seen, seen + 100)) and "b" not in found
            assert torch.equal(found["c", "d"], found["a"] % 2 == 0)
            seen += 100
        assert seen == 700
        with pytest.raises((KeyError, ValueError)):
            reader.follow(fields=["nothing"])


@limited
async def test_durable_rows_only(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    got: list[list[int]] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collected, reader.follow(durable=True), got)
            await writer.append(ints(0, 3))
            await reader.wait_rows(3)
            await some_turns()
            assert not got
            await writer.flush()
            await until(lambda: got)
            assert got == [[0, 1, 2]]
            await writer.append(ints(3, 5))
            await writer.finish()
            await writer.flush()
        assert got == [[0, 1, 2], [3, 4]]


@limited
async def test_a_durable_follower_waits_for_the_flush_of_the_last_rows_of_a_finished_stream(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[list[int]] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks, write_ints(path) as writer:
        tasks.start_soon(collected, reader.follow(durable=True), got)
        await writer.append(ints(0, 3))
        await writer.finish()
        await reader.wait_rows(3)
        await some_turns()
    assert got == [[0, 1, 2]], "closing flushes"


@limited
async def test_batches_are_views_that_stay_as_they_are(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    held: list[torch.Tensor] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        follower = reader.follow(batch_size=100)
        for number in range(20):
            await writer.append(copies(number, 100))
            held.append(await anext(follower))
        held[3][0] = 77  # it is the follower's own
        assert (await reader.read(300, 301)).tolist() == [3]
        writer.blob.trim(1500)
        writer.blob.truncate(100)
        await writer.append(copies(99, 3000))
        reader.refresh()
    for number, batch in enumerate(held):
        assert batch.tolist() == ([77] if number == 3 else [number]) + [number] * 99


@pytest.mark.parametrize("batch_size", [None, 100])
@limited
async def test_a_seam_is_crossed_and_no_row_is_lost(batch_size: int | None, tmp_path: Path) -> None:
    path, other = create_ints(tmp_path / "x.blob", 700, block_rows=512), tmp_path / "y.blob"
    create_ints(other, 50, block_rows=512)
    change(path, lambda blob: blob.extend(other))
    async with write_ints(path) as writer, tb.open_reader(path) as reader:
        assert len(reader.blob.runs()) > 1
        await writer.append(ints(0, 60))
        await writer.finish()
        got = await collected(reader.follow(batch_size=batch_size), [])
        assert joined(got) == [*range(700), *range(50), *range(60)]
        if batch_size is not None:
            assert [len(batch) for batch in got] == [100] * 8 + [10]


@pytest.mark.parametrize(
    "options",
    [
        {"start": -1},
        {"start": "then"},
        {"start": True},
        {"start": 1.5},
        {"batch_size": 0},
        {"max_wait_s": -1},
        {"max_wait_s": float("nan")},
        {"on_trim": "cry"},
        {"on_dead_writer": "cry"},
        {"cursor": "../x"},
        {"cursor": ""},
    ],
    ids=str,
)
async def test_wrong_options_raise_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    async with tb.open_reader(create_ints(tmp_path / "x.blob")) as reader:
        with pytest.raises(ValueError):
            reader.follow(**options)


@limited
async def test_many_followers_of_one_reader_each_have_their_own_place(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    got: list[list[list[int]]] = [[] for _ in range(8)]
    async with write_ints(path) as writer, tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        for number, into in enumerate(got):
            tasks.start_soon(collected, reader.follow(batch_size=number or None), into)
        for number in range(50):
            await writer.append(copies(number, 3))
        await writer.finish()
    assert all(joined(batches) == [number // 3 for number in range(150)] for batches in got)


# ---- the blob changes


@limited
async def test_rows_that_were_yielded_and_then_cut_are_told_with_the_row_of_the_cut(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob", 10)
    async with tb.open_reader(path) as reader:
        follower, early = reader.follow(), reader.follow(batch_size=4)
        await anext(follower)
        await anext(early)
        change(path, lambda blob: blob.truncate(6))
        add_ints(path, 66, 77)
        assert reader.refresh()
        with pytest.raises(tb.HistoryRewritten) as raised:
            await anext(follower)
        assert raised.value.row == 6
        assert (await anext(early)).tolist() == [4, 5, 66, 77], "what was not yielded yet may change"


@limited
async def test_a_cut_is_told_to_who_waits(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob", 10)
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        follower = reader.follow()
        await anext(follower)
        tasks.start_soon(outcome, follower.__anext__(), got)
        await some_turns()
        change(path, lambda blob: blob.truncate(6))
        await until(lambda: got)
    assert isinstance(got[0], tb.HistoryRewritten) and got[0].row == 6


@limited
async def test_rows_that_were_trimmed_before_they_were_read_are_told_or_skipped(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob", 2000, block_rows=512)
    async with tb.open_reader(path) as reader:
        follower, skipping = reader.follow(batch_size=100), reader.follow(batch_size=100, on_trim="skip")
        await anext(follower)
        await anext(skipping)
        change(path, lambda blob: blob.trim(1234))
        reader.refresh()
        with pytest.raises(tb.RowsTrimmed) as raised:
            await anext(follower)
        assert raised.value.first_row == 1234
        assert (await anext(skipping)).tolist() == list(range(1234, 1334)) and skipping.start == 1234
        assert skipping.lag_rows == 2000 - 1334


@limited
async def test_a_ring_is_followed_and_what_is_missing_is_known(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob", max_rows=600, block_rows=512)
    got: list[tuple[int, list[int]]] = []

    async with write_ints(path) as writer, tb.open_reader(path) as reader:

        async def follow() -> None:
            follower = reader.follow(on_trim="skip")
            async for batch in follower:
                got.append((follower.start, batch.tolist()))
                await some_turns(30)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            for number in range(300):
                await writer.append(ints(number * 50, number * 50 + 50))
            await writer.finish()
    assert all(batch == list(range(start, start + len(batch))) for start, batch in got)
    assert all(one[0] + len(one[1]) <= next[0] for one, next in itertools.pairwise(got))
    assert got[-1][1][-1] == 14_999


@limited
async def test_a_follower_who_waits_for_a_batch_yields_no_empty_one_when_its_rows_are_taken_back(
    tmp_path: Path,
) -> None:
    path = create_ints(tmp_path / "x.blob", 7)
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        follower = reader.follow(batch_size=4)
        await anext(follower)
        tasks.start_soon(outcome, follower.__anext__(), got)  # three of the four rows are there
        await some_turns()
        change(path, lambda blob: blob.truncate(4))
        await until(lambda: reader.snapshot().history == 1)
        await some_turns()
        add_ints(path, 44, 55, 66, 77)
        await until(lambda: got)
    assert got[0].tolist() == [44, 55, 66, 77]


@limited
async def test_a_follower_who_waits_for_a_batch_yields_no_empty_one_when_it_skips(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 7)
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        follower = reader.follow(batch_size=4, on_trim="skip")
        await anext(follower)
        tasks.start_soon(outcome, follower.__anext__(), got)
        await some_turns()
        change(path, lambda blob: blob.trim(7))
        await until(lambda: reader.snapshot().first_row == 7)
        await some_turns()
        add_ints(path, 77, 88, 99, 100)
        await until(lambda: got)
    assert got[0].tolist() == [77, 88, 99, 100]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("what", ["trim", "truncate"])
@limited
async def test_a_refresh_by_another_task_just_before_a_batch_is_yielded_mixes_nothing_up(
    what: str, batch_size: int | None, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", 20)
    got: list[Any] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        followers = [reader.follow(start=3, batch_size=batch_size) for _ in range(20)]
        for follower in followers:
            tasks.start_soon(outcome, follower.__anext__(), got)
        await anyio.lowlevel.checkpoint()
        change(path, lambda blob: blob.trim(11) if what == "trim" else blob.truncate(3))
        reader.refresh()
        if what == "truncate":
            add_ints(path, *range(3, 20))
    expected = list(range(3, 20))[:batch_size]
    for result in got:
        assert isinstance(result, tb.RowsTrimmed) or result.tolist() == expected, result
    assert len(got) == 20


@limited
async def test_generations_switch_under_a_follower(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    got: list[list[int]] = []
    async with write_ints(path) as writer, tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(collected, reader.follow(), got)
        for number in range(40):
            await writer.append(copies(number, 2))
            if number % 3 == 0:
                assert isinstance(writer.blob._writer, Writer)
                writer.blob._writer._rotate()
            await some_turns(number % 4)
        await writer.finish()
    assert joined(got) == [number // 2 for number in range(80)]


@limited
async def test_compaction_under_a_follower_changes_nothing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 700, block_rows=512)
    create_ints(tmp_path / "y.blob", 50, block_rows=512)
    async with tb.open_reader(path) as reader:
        follower = reader.follow(batch_size=200)
        first = await anext(follower)
        change(path, lambda blob: blob.extend(tmp_path / "y.blob"))
        reader.refresh()
        second = await anext(follower)
        change(path, lambda blob: blob.compact())
        add_ints(path, *range(50, 250))
        rest = [await anext(follower), await anext(follower)]
        assert first.tolist() + second.tolist() == list(range(400))
        assert torch.cat(rest).tolist() == [*range(400, 700), *range(100)]


@limited
async def test_a_writer_that_closes_and_comes_back_is_followed_on(bell: str, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    got: list[list[int]] = []
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(collected, reader.follow(), got)
        for session in range(5):
            async with write_ints(path) as writer:
                await writer.append(copies(session, 3))
                if session == 4:
                    await writer.finish()
    assert joined(got) == [session for session in range(5) for _ in range(3)]


# ---- writers that die


@limited
async def test_a_dead_writer_is_told_waited_for_or_taken_for_the_end(
    bell: str,  # noqa: F811
    hasty: float,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: dict[str, list[list[int]]] = {"raise": [], "wait": [], "end": []}
    ends: dict[str, Any] = {}
    async with tb.open_reader(path) as reader, anyio.create_task_group() as tasks:

        async def follow(way: str) -> None:
            try:
                await collected(reader.follow(on_dead_writer=way), got[way])
                ends[way] = "ended"
            except tb.WriterDied:
                ends[way] = "raised"

        with process(keep_writing, path, [0, 1]) as (connection, child):
            assert await received(connection) == "written"
            for way in got:
                tasks.start_soon(follow, way)
            await until(lambda: all(got.values()))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        await until(lambda: len(ends) == 2)
        assert ends == {"raise": "raised", "end": "ended"}
        async with write_ints(path) as writer:
            await writer.append(ints(2, 4))
            await writer.finish()
    assert ends["wait"] == "ended"
    assert joined(got["wait"]) == [0, 1, 2, 3] and joined(got["raise"]) == [0, 1] == joined(got["end"])


@limited
async def test_all_that_a_dead_writer_committed_is_yielded_first(hasty: float, tmp_path: Path) -> None:  # noqa: F811
    path = create_ints(tmp_path / "x.blob")
    async with tb.open_reader(path) as reader:
        with process(keep_writing, path, [0, 1, 2, 3, 4]) as (connection, _):
            assert await received(connection) == "written"
        follower = reader.follow(batch_size=3)
        assert (await anext(follower)).tolist() == [0, 1, 2]
        assert (await anext(follower)).tolist() == [3, 4], "a short batch, rather than none"
        with pytest.raises(tb.WriterDied):
            await anext(follower)


def _commit_for_ever(connection: Connection, path: Path) -> None:
    number = 0
    with tb.TensorBlob.open(path, "a") as blob:
        while True:
            blob.write(copies(number, number % 5 + 1))
            connection.send(number)
            number += 1


@limited
async def test_a_killed_writer_leaves_whole_commits_and_no_acknowledged_one_is_missing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    got: list[int] = []
    async with tb.open_reader(path) as reader:
        with process(_commit_for_ever, path) as (connection, child):
            follower = reader.follow()
            while len(got) < 500:
                got += (await anext(follower)).tolist()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            acknowledged = -1
            try:
                while True:
                    acknowledged = connection.recv()
            except EOFError:
                pass
        with pytest.raises(tb.WriterDied):
            while True:
                got += (await anext(follower)).tolist()
    last = got[-1]
    assert last >= acknowledged
    assert got == [number for number in range(last + 1) for _ in range(number % 5 + 1)]


# ---- cancellation


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"cursor": "c"}, {"durable": True}], ids=str)
@limited
async def test_a_follower_can_be_cancelled_at_any_wait_and_loses_and_repeats_nothing(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob", block_rows=512)
    got: list[int] = []
    row = 0
    async with (
        write_ints(path, durability="power") as writer,
        tb.open_reader(path) as reader,
        reader.follow(**options) as follower,
    ):

        async def act(nth: int) -> tuple[bool, Any]:
            nonlocal row

            async def append() -> None:
                await some_turns(nth % 7)
                await writer.append(ints(row, row + 3))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append)
                reached, batch = await cancelled_at(nth, anext(follower))
            row += 3
            if batch is not None:
                got.extend(batch.tolist())
            return reached, batch

        for _ in range(4):  # where it waits differs from time to time
            await at_every_wait(act)
        await writer.finish()
        async for batch in follower:
            got.extend(batch.tolist())
    assert got == list(range(row))


@limited
async def test_followers_leak_nothing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", LARGE)
    async with tb.open_reader(path) as reader:
        reader.blob.view(0, 10)
        before = files_before()
        for _ in range(100):
            follower = reader.follow(batch_size=1000)
            await anext(follower)
            with anyio.move_on_after(0.0):
                await anext(reader.follow("now"))
        assert open_files() == before


@limited
async def test_an_idle_follower_hardly_ever_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    looks = 0
    arm = doorbell.Doorbell.arm

    def counted(self: doorbell.Doorbell, fd: int, *, names: bool = False) -> None:
        nonlocal looks
        looks += 1
        arm(self, fd, names=names)

    monkeypatch.setattr(doorbell.Doorbell, "arm", counted)
    async with tb.open_reader(path) as reader:
        began_s = anyio.current_time()
        with anyio.move_on_after(0.6):
            await anext(reader.follow())
        took_s = anyio.current_time() - began_s
    assert looks <= 2 * took_s / async_reader.IDLE_POLL_S + 2, "each time it looks, it arms the bell once or twice"
