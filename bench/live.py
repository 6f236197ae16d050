"""The live service's targets, each printed as a ratio next to what it is held against.

    python bench/live.py [workload ...] [--dir DIR] [--json FILE]

Followers, producers and writers are real processes. A follower is held against a process that does nothing but ask, in
a loop, whether the manifest has grown; group commit against one producer; writers that share a blob against a sole one.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import torch
from engine import SMALL_SHAPE, main
from harness import Bench, Contender, at_least, at_most

import tensorblob as tb
from tensorblob.edit import Finish

elsewhere = multiprocessing.get_context("forkserver")
elsewhere.set_forkserver_preload(["__main__"])
"""Processes find all imported, and begin in milliseconds."""
COMMITS = 400
PAUSE_S = 0.003
PATIENCE_S = 120.0
"""Nobody waits longer than this for an answer: who should have given it is dead."""
CLOCK_NBYTES = 64
"""A row that begins with the time at which it was written."""
ROUNDS = 5


def _race(bench: Bench, workload: str, limit: Contender, contender: Contender) -> None:
    """Few rounds, and not for ever: each takes seconds."""
    bench.patience_s = 40.0
    bench.race(workload, limit, contender, repetitions=ROUNDS)


def _finish(blob: tb.TensorBlob) -> None:
    assert blob._writer is not None
    blob._writer.change(lambda snapshot, _: [Finish(snapshot.rows)])


# ---- from a commit to who follows it


def _poll(path: Path, results: Any) -> None:
    """See each commit by asking all the time whether the log has grown; which commit it was is looked up after that."""
    delays_s: list[float] = []
    with open(next(path.glob("manifest.*")), "rb") as log:
        size, rows = os.fstat(log.fileno()).st_size, 0
        results.put("ready")
        while rows < COMMITS:
            if (now := os.fstat(log.fileno()).st_size) == size:
                continue
            seen_s, size = time.monotonic(), now
            for block in (path / "blocks" / "data").iterdir():
                if (there := block.stat().st_size // CLOCK_NBYTES) > rows:
                    (written_s,) = struct.unpack("d", block.read_bytes()[(there - 1) * CLOCK_NBYTES :][:8])
                    delays_s.append(seen_s - written_s)
                    rows = there
    results.put(delays_s)


def _follow(path: Path, results: Any) -> None:
    async def follow() -> None:
        delays_s = []
        async with tb.open_reader(path) as reader:
            results.put("ready")
            async for batch in reader.follow():
                delays_s.append(time.monotonic() - float(batch[-1, 0]))  # noqa: PERF401 - one by one, as they come
        results.put(delays_s)

    anyio.run(follow)


def _delays_s(bench: Bench, job: Callable[[Path, Any], None]) -> list[float]:
    """How long after the beginning of its write each commit was seen by another process."""
    with bench.fresh_directory("follow") as directory:
        path = directory / "clock.blob"
        results = elsewhere.Queue()
        tb.TensorBlob.open(path, "w", dtype="float64", shape=CLOCK_NBYTES // 8).close()
        process = elsewhere.Process(target=job, args=(path, results))
        process.start()
        results.get(timeout=PATIENCE_S)  # it has opened the blob, and waits
        with tb.TensorBlob.open(path, "a") as blob:
            for _ in range(COMMITS):
                time.sleep(PAUSE_S)
                blob.write(torch.full((1, CLOCK_NBYTES // 8), time.monotonic(), dtype=torch.float64))
            _finish(blob)
            delays_s: list[float] = results.get(timeout=PATIENCE_S)
            process.join()
    return sorted(delays_s)


def follow(bench: Bench) -> None:
    """From the beginning of a write to its row in the hands of another process."""
    tails_s: list[float] = []

    def followed() -> float:
        delays_s = _delays_s(bench, _follow)
        tails_s.append(delays_s[int(0.99 * (len(delays_s) - 1))])
        return statistics.median(delays_s)

    workload = "commit → seen in another process"
    _race(
        bench,
        workload,
        Contender("a busy fstat", lambda: statistics.median(_delays_s(bench, _poll))),
        Contender("follow, median", followed, at_most(2.0)),
    )
    bench.compare(workload, "follow, p99", statistics.median(tails_s), "2 ms", 0.002, at_most(1.0))


def _write_rows(blob: tb.TensorBlob, count: int) -> float:
    one = torch.zeros(1, 8, dtype=torch.float64)
    start = time.perf_counter()
    for _ in range(count):
        blob.write(one)
    return (time.perf_counter() - start) / count


def _follow_all(path: Path, results: Any) -> None:
    async def follow() -> None:
        async with tb.open_reader(path) as reader:
            results.put("ready")
            async for _ in reader.follow(start="now"):
                pass

    anyio.run(follow)
    results.put("done")


def _write_on(path: Path, results: Any, over: Any) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        results.put("ready")
        while not over.is_set():
            _write_rows(blob, 100)
        _finish(blob)


def _cost_s(bench: Bench, *, is_followed: bool) -> float:
    """What a row costs the writer while four follow it, or else another blob that another process writes as fast."""
    with bench.fresh_directory("followers") as directory:
        paths = [directory / "a.blob", directory / "b.blob"]
        for path in paths:
            tb.TensorBlob.open(path, "w", dtype="float64", shape=8).close()
        results, over = elsewhere.Queue(), elsewhere.Event()
        followed = paths[0 if is_followed else 1]
        processes = [elsewhere.Process(target=_write_on, args=(paths[1], results, over))]
        processes += [elsewhere.Process(target=_follow_all, args=(followed, results)) for _ in range(4)]
        for process in processes:
            process.start()
        for _ in processes:
            results.get(timeout=PATIENCE_S)
        with tb.TensorBlob.open(paths[0], "a") as blob:
            cost_s = statistics.median(_write_rows(blob, 500) for _ in range(100))
            _finish(blob)
        over.set()
        for process in processes:
            process.join()
    return cost_s


def followers(bench: Bench) -> None:
    _race(
        bench,
        "one row, with four followers",
        Contender("of another blob", lambda: _cost_s(bench, is_followed=False)),
        Contender("of this blob", lambda: _cost_s(bench, is_followed=True), at_most(1.1)),
    )


# ---- group commit


def _rate(path: Path, tasks: int, seconds: float, **options: Any) -> tuple[float, float]:
    """Rows per second of `tasks` producers that await each append of one 64-byte row, and commits per second."""

    async def produce() -> tuple[float, float]:
        one = torch.zeros(1, *SMALL_SHAPE)
        async with tb.open_writer(path, dtype="float32", shape=SMALL_SHAPE, **options) as writer:

            async def producer(stop_s: float) -> None:
                while time.perf_counter() < stop_s:
                    await writer.append(one)

            for warm_s in (0.1, seconds):
                before, start = writer.statistics(), time.perf_counter()
                async with anyio.create_task_group() as group:
                    for _ in range(tasks):
                        group.start_soon(producer, start + warm_s)
                passed_s = time.perf_counter() - start
            after = writer.statistics()
            return (after.rows - before.rows) / passed_s, (after.commits - before.commits) / passed_s

    return anyio.run(produce)


def group(bench: Bench) -> None:
    def seconds_a_row(tasks: int, durability: str) -> Callable[[], float]:
        def repetition() -> float:
            with bench.fresh_directory("group") as directory:
                return 1 / _rate(directory / "x.blob", tasks, 1.0, durability=durability)[0]

        return repetition

    _race(
        bench,
        "32 tasks, each append awaited, power",
        Contender("one task", seconds_a_row(1, "power")),
        Contender("32 tasks", seconds_a_row(32, "power"), at_most(0.1)),
    )
    rows_per_s = statistics.median(1 / seconds_a_row(32, "process")() for _ in range(ROUNDS))
    workload = "32 tasks, each append awaited"
    bench.compare(workload, "rows of 64 bytes", rows_per_s, "60 000 rows/s", 60_000, at_least(1), "rows/s")


def _append_for(path: Path, shared: bool, begin: Any, results: Any) -> None:
    async def produce() -> None:
        one = torch.zeros(1, *SMALL_SHAPE)
        delays_s: list[float] = []
        async with tb.open_writer(path, dtype="float32", shape=SMALL_SHAPE, shared=shared) as writer:

            async def producer(stop_s: float) -> None:
                while (start_s := time.perf_counter()) < stop_s:
                    await writer.append(one)
                    delays_s.append(time.perf_counter() - start_s)

            await anyio.to_thread.run_sync(begin.wait)
            stop_s = time.perf_counter() + 2.0
            async with anyio.create_task_group() as tasks:
                for _ in range(32):
                    tasks.start_soon(producer, stop_s)
        delays_s.sort()
        results.put((len(delays_s), delays_s[int(0.99 * (len(delays_s) - 1))], delays_s[-1]))

    anyio.run(produce)


class Together(NamedTuple):
    """What processes that append at the same time came to."""

    rows_per_s: float
    spread: float
    """Most rows of one / fewest of one."""
    p99_s: float
    max_s: float


def _together(bench: Bench, count: int, *, shared: bool) -> Together:
    """`count` processes with 32 tasks each: on one blob that they share, or each on a blob of its own."""
    with bench.fresh_directory("together") as directory:
        paths = [directory / ("x.blob" if shared else f"{number}.blob") for number in range(count)]
        for path in set(paths):
            tb.TensorBlob.open(path, "w", dtype="float32", shape=SMALL_SHAPE).close()
        begin, results = elsewhere.Barrier(count), elsewhere.Queue()
        processes = [elsewhere.Process(target=_append_for, args=(path, shared, begin, results)) for path in paths]
        for process in processes:
            process.start()
        counts, p99_s, max_s = zip(*(results.get(timeout=PATIENCE_S) for _ in processes), strict=True)
        for process in processes:
            process.join()
    return Together(sum(counts) / 2.0, max(counts) / min(counts), max(p99_s), max(max_s))


def shared(bench: Bench) -> None:
    """Processes that share a blob, 32 tasks in each, against one that has it alone, and against blobs of their own.

    The last says what of a slow append is the scheduler's: four busy processes wait for two cores, locks or no locks.
    """
    four: list[Together] = []
    two: list[Together] = []
    own: list[Together] = []

    def alone_s() -> float:
        with bench.fresh_directory("alone") as directory:
            return 1 / _rate(directory / "x.blob", 32, 2.0)[0]

    def together_s() -> float:
        four.append(_together(bench, 4, shared=True))
        own.append(_together(bench, 4, shared=False))  # at once: as busy a machine
        two.append(_together(bench, 2, shared=True))
        return 1 / four[-1].rows_per_s

    workload = "four writers that share a blob"
    _race(
        bench,
        workload,
        Contender("a sole writer", alone_s),
        Contender("together", together_s, at_most(1 / 0.8)),
    )

    def median(runs: list[Together]) -> Together:
        return Together(*(statistics.median(values) for values in zip(*runs, strict=True)))

    found, floor = median(four), median(own)
    bench.compare(workload, "most rows of one", found.spread, "least", 1.0, at_most(2.0), "times")
    bench.compare(workload, "p99 of an append", found.p99_s, "5 ms", 0.005, at_most(1.0))
    bench.compare(workload, "p99 of an append", found.p99_s, "four writers of blobs of their own", floor.p99_s, None)
    bench.compare(workload, "slowest append", found.max_s, "50 ms", 0.05, at_most(1.0))
    workload = "two writers that share a blob"
    found = median(two)
    bench.compare(workload, "p99 of an append", found.p99_s, "5 ms", 0.005, at_most(1.0))
    bench.compare(workload, "slowest append", found.max_s, "50 ms", 0.05, at_most(1.0))


# ---- resuming, and doing nothing


def cursor(bench: Bench) -> None:
    """From opening the blob to the first batch, for a consumer that resumes."""

    async def resume(path: Path) -> float:
        start_s = time.perf_counter()
        async with (
            tb.open_reader(path) as reader,
            reader.follow(cursor="consumer", batch_size=64) as follower,
        ):
            await anext(follower)
            return time.perf_counter() - start_s

    with bench.fresh_directory("cursor") as directory:
        path = directory / "x.blob"
        with tb.TensorBlob.open(path, "w", dtype="float32", shape=SMALL_SHAPE) as blob:
            for _ in range(5_000):
                blob.write(torch.zeros(1, *SMALL_SHAPE))
        costs_s = [anyio.run(resume, path) for _ in range(20)]
        bench.compare("resuming a cursor", "first batch", statistics.median(costs_s), "5 ms", 0.005, at_most(1.0))


def idle(bench: Bench) -> None:
    """The processor time of a follower that has nothing to read."""

    async def wait(path: Path, seconds: float) -> float:
        async with tb.open_reader(path) as reader:
            with anyio.move_on_after(1.0):
                await anext(reader.follow(start="now"))
            usage = resource.getrusage(resource.RUSAGE_SELF)
            with anyio.move_on_after(seconds):
                await anext(reader.follow(start="now"))
            after = resource.getrusage(resource.RUSAGE_SELF)
        return (after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime) / seconds

    with bench.fresh_directory("idle") as directory:
        path = directory / "x.blob"
        with tb.TensorBlob.open(path, "w", dtype="float32", shape=SMALL_SHAPE) as blob:
            blob.write(torch.zeros(1, *SMALL_SHAPE))
            share = anyio.run(wait, path, 10.0)
        bench.compare("an idle follower", "processor", 100 * share, "0.1 % of a core", 0.1, at_most(1.0), "%")


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "follow": follow,
    "followers": followers,
    "group": group,
    "shared": shared,
    "cursor": cursor,
    "idle": idle,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(WORKLOADS, __doc__))
