"""Rate limiters: inserts and samples keep the ratio that was asked for, across tasks and processes."""

import itertools
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import pytest
from api_support import Died, elsewhere, process
from disk import without_platters
from live_support import (
    LARGE,
    Disk,
    copies,
    create_ints,
    files_before,
    held_up,
    ints,
    limited,
    open_files,
    outcome,
    some_turns,
    until,
    write_ints,
)

import tensorblob as tb
from tensorblob import files

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


def counts(of: tb.AsyncWriter | tb.AsyncReader) -> tuple[int, int]:
    """The rows that were inserted and sampled, as the writer or reader sees them."""
    assert of.limit is not None
    return of.limit.counts


# ---- the rules


@pytest.mark.parametrize(
    ("ratio", "least", "buffer"), [(1.0, 1, 2.0), (4.0, 10, 8.0), (0.25, 100, 40.0), (8.0, 1, 64.0), (0.5, 5, 2.0)]
)
@pytest.mark.parametrize(("inserts", "samples"), [(1, 1), (1, 7), (5, 1), (3, 4), (50, 1), (1, 50)])
def test_a_ratio_is_kept_within_its_buffer_and_never_stops_both_sides(
    ratio: float, least: int, buffer: float, inserts: int, samples: int
) -> None:
    limiter = tb.SampleToInsertRatio(ratio, least, buffer)
    middle = ratio * least
    for eager in ("insert", "sample"):
        inserted = sampled = 0
        for _ in range(3000):
            may = {
                "insert": limiter.may_insert(inserted, sampled, inserts),
                "sample": limiter.may_sample(inserted, sampled, samples),
            }
            assert any(may.values()), f"both wait at {inserted} inserted, {sampled} sampled"
            if (eager if may[eager] else next(side for side in may if may[side])) == "insert":
                inserted += inserts
            else:
                assert inserted >= least
                sampled += samples
            difference = inserted * ratio - sampled
            if inserted > least + inserts:
                slack = buffer + max(inserts * ratio, samples)
                assert abs(difference - middle) <= slack
                if max(inserts * ratio, samples) <= buffer:
                    assert abs(difference - middle) <= buffer + 1e-9
        assert inserted and sampled
        assert (
            sampled / inserted == pytest.approx(ratio, rel=0.3) or abs(inserted * ratio - sampled) < 3 * slack + middle
        )


def test_a_queue_gives_each_row_once_and_never_stops_both_sides() -> None:
    for size, inserts, samples in itertools.product((1, 3, 10), (1, 2, 10, 25), (1, 2, 10)):
        limiter = tb.Queue(size)
        inserted = sampled = 0
        for _ in range(500):
            insert, sample = (
                limiter.may_insert(inserted, sampled, inserts),
                limiter.may_sample(inserted, sampled, samples),
            )
            if samples <= size:
                assert insert or sample, (size, inserts, samples, inserted, sampled)
            if insert:
                inserted += inserts
            elif sample:
                sampled += samples
            assert 0 <= inserted - sampled < size + inserts


def test_the_least_size_is_waited_for_and_inserting_never_waits() -> None:
    limiter = tb.MinSize(10)
    assert not limiter.may_sample(9, 0, 1) and limiter.may_sample(10, 1000, 1000)
    assert limiter.may_insert(10**9, 0, 10**6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tb.MinSize(0),
        lambda: tb.Queue(0),
        lambda: tb.SampleToInsertRatio(0, 1, 10),
        lambda: tb.SampleToInsertRatio(1, 0, 10),
        lambda: tb.SampleToInsertRatio(4, 1, 7),
        lambda: tb.SampleToInsertRatio(1, 1, float("nan")),
        lambda: tb.MinSize(1, name="../x"),
    ],
)
def test_limits_under_which_nobody_could_go_on_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


# ---- waiting


@limited
async def test_samples_wait_for_the_least_size(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    got: list[Any] = []
    async with (
        write_ints(path, limiter=tb.MinSize(10)) as writer,
        tb.open_reader(path, limiter=tb.MinSize(10)) as reader,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(outcome, reader.sample(4), got)
        for number in range(9):
            await writer.append(ints(number, number + 1))
        await some_turns()
        assert not got
        await writer.append(ints(9, 10))
        await until(lambda: got)
    assert len(got[0].rows) == 4


@limited
async def test_a_sample_that_may_go_on_sees_the_least_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    disk = Disk(monkeypatch)
    got: list[Any] = []
    async with (
        write_ints(path, limiter=tb.MinSize(LARGE)) as writer,
        tb.open_reader(path, limiter=tb.MinSize(LARGE)) as reader,
        anyio.create_task_group() as tasks,
    ):
        await writer.append(ints(0, 1))
        disk.hold()
        try:
            tasks.start_soon(writer.append, ints(1, LARGE))
            await until(lambda: disk.is_waiting)
            tasks.start_soon(outcome, reader.sample(100), got)
            with anyio.move_on_after(0.1):
                await until(lambda: got)
            assert not got, "these rows are not committed yet"
        finally:
            disk.release()
        await until(lambda: got)
    assert int(got[0].row_ids.max()) > 1


@limited
async def test_a_queue_holds_both_sides_up(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    appended = sampled = 0
    async with write_ints(path, limiter=tb.Queue(6)) as writer, tb.open_reader(path, limiter=tb.Queue(6)) as reader:

        async def produce() -> None:
            nonlocal appended
            for number in range(50):
                await writer.append(copies(number, 2))
                appended += 2
                # let in with less than 6 in the queue; and 3 may be out of it that their sampler has not got yet
                assert appended - sampled <= 6 - 1 + 2 + 3

        async def consume() -> None:
            nonlocal sampled
            for _ in range(33):
                await reader.sample(3)
                sampled += 3
                assert sampled <= appended + 2

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            await some_turns(50)
            assert appended == 6, "it waits for who samples"
            tasks.start_soon(consume)
    assert (appended, sampled) == (100, 99)


@limited
async def test_transactions_and_appends_without_waiting_count_too(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, limiter=tb.Queue(4)) as writer, tb.open_reader(path, limiter=tb.Queue(4)) as reader:
        async with writer.transaction() as transaction:
            transaction.append(ints(0, 3))
        writer.append_nowait(ints(3, 4))
        with pytest.raises(anyio.WouldBlock):
            writer.append_nowait(ints(4, 5))
        with anyio.fail_after(5):
            await reader.sample(4)


@limited
async def test_what_was_cancelled_or_failed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    disk, limiter = Disk(monkeypatch), tb.Queue(3 * LARGE)
    async with write_ints(path, limiter=limiter, max_pending_bytes=8) as writer:
        await writer.append(ints(0, 1))
        disk.fail("blocks/", lambda: tb.DiskFull(28, "no space left"))
        with pytest.raises(tb.DiskFull):
            await writer.append(ints(1, 2))
        assert writer.limit.counts == (1, 0), "a failed append inserted nothing"
        with pytest.raises(tb.DTypeMismatch):
            await writer.append(ints(1, 2).float())
        async with anyio.create_task_group() as tasks, held_up(writer, disk):
            with anyio.CancelScope() as scope:
                tasks.start_soon(_cancel_soon, scope)
                await writer.append(ints(1, 3))
            assert scope.cancelled_caught
        assert writer.rows == LARGE + 1
        assert writer.limit.counts == (LARGE + 1, 0), "a cancelled append inserted nothing"


async def _cancel_soon(scope: anyio.CancelScope) -> None:
    await some_turns(10)
    scope.cancel()


@limited
async def test_a_sample_that_is_cancelled_while_it_waits_counts_nothing(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, limiter=tb.Queue(10)) as writer, tb.open_reader(path, limiter=tb.Queue(10)) as reader:
        await writer.append(ints(0, 2))
        with anyio.move_on_after(0.05):
            await reader.sample(3)
        with anyio.move_on_after(0.05):
            await reader.sample(1, length=5)  # may be counted, but there are no such slices
        assert writer.limit.counts == (2, 0)


# ---- across processes, and blobs


def _insert_elsewhere(connection: Connection, path: Path, backend: str, appends: int) -> None:
    async def main() -> None:
        async with tb.open_writer(path, limiter=tb.SampleToInsertRatio(2.0, 4, 8.0)) as writer:
            for number in range(appends):
                await writer.append(copies(number, 1))
                connection.send(number)

    without_platters(pytest.MonkeyPatch())
    anyio.run(main, backend=backend)
    connection.send("done")


@pytest.mark.slow
@limited
async def test_one_limiter_holds_across_processes(anyio_backend: str, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    limiter = tb.SampleToInsertRatio(2.0, 4, 8.0)
    async with tb.open_reader(path, limiter=limiter) as reader:
        with process(_insert_elsewhere, path, anyio_backend, 40) as (connection, _):
            for number in range(8):  # 8 * 2 = 4 * 2 + 8
                await until(connection.poll)
                assert connection.recv() == number
            with anyio.move_on_after(0.1):
                await until(connection.poll)
            assert not connection.poll() and reader.limit.counts == (8, 0), "it waits for who samples"
            sampled = 0
            while reader.limit.counts[0] < 40:
                await reader.sample(1)
                sampled += 1
                inserted, counted = reader.limit.counts
                assert counted == sampled and 0 <= inserted * 2 - sampled <= 18
            await until(lambda: "done" in iter(connection.recv, None) if connection.poll() else False)
    assert 2 * 40 - 16 - 2 <= sampled <= 80


def _die_inserting(path: Path, backend: str) -> None:
    """Die with rows that the limiter has let in, and that are not committed."""
    disk = Disk(pytest.MonkeyPatch())

    def die() -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        return OSError()

    async def main() -> None:
        async with write_ints(path, limiter=tb.Queue(5)) as writer:
            await writer.append(ints(0, 2))
            disk.fail("blocks/", die)
            await writer.append(ints(2, 5))

    anyio.run(main, backend=backend)


@limited
async def test_what_a_killed_writer_did_not_commit_does_not_count_for_the_next(
    anyio_backend: str, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob")
    with pytest.raises(Died):
        elsewhere(_die_inserting, path, anyio_backend)
    async with write_ints(path, limiter=tb.Queue(5)) as writer, tb.open_reader(path, limiter=tb.Queue(5)) as reader:
        assert writer.rows == 2 == counts(writer)[0]
        await writer.append(ints(2, 5))
        await reader.sample(5)
        await writer.append(ints(5, 10))


@limited
async def test_two_names_are_two_limiters(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, limiter=tb.MinSize(2, name="a")) as writer:
        await writer.append(ints(0, 2))
        async with tb.open_reader(path, limiter=tb.MinSize(2, name="a")) as reader:
            await reader.sample(1)
        async with tb.open_reader(path, limiter=tb.MinSize(2, name="b")) as reader:
            with anyio.move_on_after(0.05) as scope:
                await reader.sample(1)
            assert scope.cancelled_caught


@limited
async def test_one_limiter_object_counts_each_blob_by_itself_or_refuses(tmp_path: Path) -> None:
    limiter = tb.MinSize(2)
    async with write_ints(create_ints(tmp_path / "x.blob"), limiter=limiter) as writer:
        await writer.append(ints(0, 2))
    try:
        async with tb.open_reader(create_ints(tmp_path / "y.blob", 1), limiter=limiter) as reader:
            with anyio.move_on_after(0.05) as scope:
                await reader.sample(1)
            assert scope.cancelled_caught, "nothing was inserted in this one"
    except ValueError:
        pass


@limited
async def test_limiters_leave_no_file_open(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob", 5)
    before = files_before()
    async with write_ints(path, limiter=tb.MinSize(1)) as writer, tb.open_reader(path, limiter=tb.MinSize(1)) as reader:
        await writer.append(ints(0, 1))
        await reader.sample(1)
    assert open_files() == before


# ---- what the file says


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"step":9,"inserted":"x"}',
        b'{"step":9,"inserted":1e400}',
        b'{"step":9,"inserted":-1}',
        b'{"step":9,"sampled":9223372036854775808}',
        b'{"step":9,"admitted":{"../../outside":5}}',
        b'{"step":9,"admitted":{"a\\u0000b":5}}',
        b'{"step":9,"more":1}',
        b"\xff",
        b"[" * 30_000,
    ],
)
def test_counts_that_nobody_wrote_do_not_count(text: bytes, tmp_path: Path) -> None:
    from tensorblob.format import COUNTS_NBYTES, crc32c

    path = create_ints(tmp_path / "x.blob", 1)
    dir_fd = files.open_directory(os.fspath(path))
    try:
        limit = tb.Queue(5).open(dir_fd, "p")
        assert limit.try_insert(3)
        limit.inserted(3)
        file = path / "cursors" / "limiter.default.lock"
        data = bytearray(file.read_bytes().ljust(2 * COUNTS_NBYTES, b"\0"))
        line = b"%08x %b\n" % (crc32c(0, text), text)
        data[COUNTS_NBYTES : COUNTS_NBYTES + len(line)] = line  # where the older counts are
        file.write_bytes(data)
        assert limit.counts == (3, 0) and limit.try_insert(1)
        limit.close()
    finally:
        os.close(dir_fd)


def test_verify_looks_at_the_counts(tmp_path: Path) -> None:
    from tensorblob.format import COUNTS_NBYTES

    path = create_ints(tmp_path / "x.blob", 1)
    dir_fd = files.open_directory(os.fspath(path))
    limit = tb.Queue(5).open(dir_fd, "p")
    for _ in range(2):
        assert limit.try_insert(1)
    limit.close()
    os.close(dir_fd)
    file = path / "cursors" / "limiter.default.lock"
    good = file.read_bytes()
    assert tb.verify(path, quick=True).ok and not tb.verify(path, quick=True).remarks
    for start in (0, COUNTS_NBYTES):
        for bit in range(8 * len(good[start : start + COUNTS_NBYTES].rstrip(b"\0"))):
            flipped = bytearray(good)
            flipped[start + bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            (remark,) = tb.verify(path, quick=True).remarks
            assert f"from byte {start} on" in remark
    torn = bytearray(good)
    torn[12] ^= 1
    torn[COUNTS_NBYTES + 12] ^= 1
    file.write_bytes(torn)
    (fault,) = tb.verify(path, quick=True).faults
    assert fault.file == "cursors/limiter.default.lock"
