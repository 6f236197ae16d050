"""Sensors stream into a blob, and a consumer that is killed again and again counts every reading exactly once.

Each producer process runs some sensors: tasks that wake at irregular times and append a burst of readings. All of them
share one blob, and what the tasks of a process append at the same time becomes one commit. The consumer reads windows of
readings at a durable cursor, commits a summary of each to a second blob, and acknowledges the window.

    producer (its sensors) ─┐
    producer (its sensors) ─┴─> readings.blob ──> consumer, at cursor "summaries" ──> summaries.blob

This process kills the consumer (SIGKILL) at random moments, and starts it again. Two things make up for that:

- A window is acknowledged after its summary is committed. So none is left out: the next consumer goes on at the first
  window that was not acknowledged.
- That one may have a summary already, if the kill came between the commit and the acknowledgement. So summaries are
  appended with a producer key and the window's place as its sequence: a repeated append commits nothing, and says which
  row it got the first time.

At the end every summary is held against the readings, and the sensors against what they say they have appended. Exits
with status 1 if anything is missing, repeated or different.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import torch
from tensordict import TensorDict

import tensorblob as tb

READING = {"sensor": "int64", "number": "int64", "time_s": "float64", "value": ("float32", (3,))}
SUMMARY = {"start": "int64", "count": "int64", "mean": ("float64", (3,)), "highest": ("float32", (3,))}
CURSOR = "summaries"

MAX_BURST = 8  # readings that a sensor appends at once
WORK_S = 0.01  # what a consumer does before, and again after the summary of each window is committed
START_WITHIN_S = 60.0  # the others import torch, too

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tensorblob"])  # imported once, so that a consumer is back in milliseconds


class Report(NamedTuple):
    """What a consumer says through its pipe, so that we know how far it came before it was killed.

    `what` is "resumed", "read", "repeated" (a summary that was there already) or "acknowledged".
    """

    what: str
    row: int


class Life(NamedTuple):
    """One consumer, from its start to its end. All but `repeated` are row ids."""

    resumed: int
    read: int
    acknowledged: int
    repeated: int


# ---- the producers


def produce(sent: Connection, readings: Path, sensors: range, bursts_per_s: float, seconds: float, seed: int) -> None:
    """Run some sensors for a while, and send how many readings each of them got acknowledged."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends us
    sent.send(anyio.run(run_sensors, readings, sensors, bursts_per_s, seconds, seed))


async def run_sensors(readings: Path, sensors: range, bursts_per_s: float, seconds: float, seed: int) -> dict[int, int]:
    appended = dict.fromkeys(sensors, 0)
    async with (
        tb.open_writer(readings, schema=READING, shared=True) as writer,  # made by whoever comes first
        anyio.create_task_group() as tasks,
    ):
        for sensor in sensors:
            tasks.start_soon(run_sensor, writer, sensor, bursts_per_s, seconds, appended, random.Random(seed + sensor))
    return appended


async def run_sensor(
    writer: tb.AsyncWriter,
    sensor: int,
    bursts_per_s: float,
    seconds: float,
    appended: dict[int, int],
    chance: random.Random,
) -> None:
    """Append a burst of readings now and then: often soon after the last, sometimes long after it."""
    deadline = anyio.current_time() + seconds
    while anyio.current_time() < deadline:
        await anyio.sleep(chance.expovariate(bursts_per_s))
        count = chance.randint(1, MAX_BURST)
        numbers = torch.arange(appended[sensor], appended[sensor] + count)
        burst = {
            "sensor": torch.full((count,), sensor),
            "number": numbers,
            "time_s": torch.full((count,), time.time(), dtype=torch.float64),
            "value": torch.sin(numbers[:, None] * torch.tensor([0.01, 0.02, 0.05])) + sensor,
        }
        await writer.append(burst)
        appended[sensor] += count  # from here on they outlive us


# ---- the consumer


def consume(reports: Connection, readings: Path, summaries: Path, window_rows: int) -> None:
    """Summarise every window from the cursor on, until the stream ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    anyio.run(summarise, reports, readings, summaries, window_rows)


async def summarise(reports: Connection, readings: Path, summaries: Path, window_rows: int) -> None:
    async with (
        tb.open_reader(readings, wait_s=START_WITHIN_S) as reader,
        tb.open_writer(summaries, schema=SUMMARY) as writer,
        # Without max_wait_s all windows but the last are full: whoever reads one again reads the same rows.
        reader.follow(cursor=CURSOR, batch_size=window_rows) as windows,
    ):
        reports.send(Report("resumed", windows.stop))
        async for window in windows:
            reports.send(Report("read", windows.stop))
            await anyio.sleep(WORK_S)
            newest = writer.rows
            (row,) = await writer.append(summary(window, windows.start), key=CURSOR, sequence=windows.start)
            if row < newest:
                reports.send(Report("repeated", row))
            await anyio.sleep(WORK_S)
            await windows.ack()
            reports.send(Report("acknowledged", windows.stop))


def summary(window: Any, start: int) -> dict[str, torch.Tensor]:
    """The one row that says what is in a window of readings."""
    values = window["value"]
    return {
        "start": torch.tensor([start]),
        "count": torch.tensor([len(values)]),
        "mean": values.double().mean(0, keepdim=True),
        "highest": values.amax(0, keepdim=True),
    }


# ---- main: the end of many consumers


@contextlib.contextmanager
def running(job: Any, *arguments: Any) -> Iterator[tuple[Connection, BaseProcess]]:
    """Run a job in a process, with a pipe from it. Leaving kills it, if it has not ended."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=job, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()
        ours.close()


def live(readings: Path, summaries: Path, window_rows: int, seconds: float) -> Life:
    """Run a consumer, and kill it so many seconds after it has resumed; with `math.inf`, wait for its end."""
    reports: list[Report] = []
    with running(consume, readings, summaries, window_rows) as (pipe, process):
        deadline = math.inf
        with contextlib.suppress(EOFError):
            while (left_s := deadline - time.monotonic()) > 0:
                if pipe.poll(min(left_s, 1.0)):
                    reports.append(receive(pipe))
                    if len(reports) == 1:
                        deadline = time.monotonic() + seconds
            process.kill()
            while True:  # what it had still said
                reports.append(receive(pipe))
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a consumer ended with status {process.exitcode}")
    last = dict(reports)  # of each kind
    resumed = last["resumed"]
    return Life(
        resumed,
        last.get("read", resumed),
        last.get("acknowledged", resumed),
        sum(report.what == "repeated" for report in reports),
    )


def receive(pipe: Connection) -> Report:
    return Report(*pipe.recv())


def say(number: int, life: Life, end: str) -> None:
    lost = f", {life.read - life.acknowledged:,} rows were read and not acknowledged" * (life.read > life.acknowledged)
    repeated = f"; {life.repeated} summary was there already" * (life.repeated > 0)
    print(f"consumer {number:2}: rows {life.resumed:7,} to {life.acknowledged:7,}{repeated}; {end}{lost}", flush=True)


def wrong_lives(lives: list[Life]) -> list[str]:
    """What is wrong with where consumers resumed."""
    wrong = []
    for number, (before, after) in enumerate(pairwise(lives), 2):
        if after.resumed < before.acknowledged:
            wrong.append(
                f"consumer {number} resumed at row {after.resumed}, and {before.acknowledged} was acknowledged"
            )
        if after.resumed > before.read:
            wrong.append(f"consumer {number} resumed at row {after.resumed}, and only {before.read} rows were read")
    return wrong


def wrong_rows(readings: TensorDict, summaries: TensorDict, appended: dict[int, int]) -> list[str]:
    """What is wrong with the blobs: every reading once and in order, and every window summarised once."""
    wrong = []
    for sensor, count in appended.items():
        numbers = readings["number"][readings["sensor"] == sensor]
        if not torch.equal(numbers, torch.arange(count)):
            wrong.append(f"sensor {sensor} appended {count} readings, and these are there: {numbers.tolist()}")
    if len(readings) != sum(appended.values()):
        wrong.append(f"{len(readings)} readings are there, and {sum(appended.values())} were appended")
    stop = 0
    for found in summaries:
        start, count = int(found["start"]), int(found["count"])
        if start != stop:
            wrong.append(f"a summary begins at row {start}, and the one before ended at {stop}")
        stop = start + count
        expected = summary(readings[start:stop], start)
        if any(not torch.equal(found[field], value[0]) for field, value in expected.items()):
            wrong.append(f"the summary of rows {start} to {stop} does not fit them")
    if stop != len(readings):
        wrong.append(f"the summaries end at row {stop}, and there are {len(readings)} readings")
    return wrong


async def finish(readings: Path) -> None:
    """Say that no readings will follow, once all producers have closed the blob."""
    async with tb.open_writer(readings, shared=True) as writer:
        await writer.finish()


def run(directory: Path, options: argparse.Namespace) -> list[str]:
    """Let everything happen, and return what went wrong."""
    readings, summaries = directory / "readings.blob", directory / "summaries.blob"
    for path in (readings, summaries):
        tb.TensorBlob.unlink(path)  # of an earlier run in the same directory
    chance = random.Random(options.seed)
    lives: list[Life] = []
    appended: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        producers = []
        for i in range(options.producers):
            sensors = range(i * options.sensors, (i + 1) * options.sensors)
            arguments = readings, sensors, options.bursts_per_s, options.seconds, options.seed
            producers.append(stack.enter_context(running(produce, *arguments)))
        while any(not pipe.poll() for pipe, _ in producers):
            seconds = chance.uniform(0.2, 1.8) * options.kill_every_s
            lives.append(live(readings, summaries, options.window_rows, seconds))
            say(len(lives), lives[-1], "killed")
        for pipe, process in producers:
            try:
                appended |= pipe.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"a producer ended with status {process.exitcode}") from None
            process.join()
    anyio.run(finish, readings)
    lives.append(live(readings, summaries, options.window_rows, math.inf))
    say(len(lives), lives[-1], "reached the end")

    with tb.TensorBlob.open(readings) as all_readings, tb.TensorBlob.open(summaries) as all_summaries:
        wrong = wrong_lives(lives) + wrong_rows(all_readings[:], all_summaries[:], appended)
        print(
            f"{len(all_readings):,} readings of {len(appended)} sensors in {all_readings.snapshot.commits:,} commits, "
            f"{len(all_summaries):,} summaries; {len(lives) - 1} consumers were killed, "
            f"{sum(life.repeated for life in lives)} of their summaries came twice and were committed once"
        )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the sensors run (default: 8)")
    parser.add_argument("--producers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--sensors", type=int, default=6, help="tasks in each of them (default: 6)")
    parser.add_argument("--bursts-per-s", type=float, default=20.0, help="of each sensor (default: 20)")
    parser.add_argument("--window-rows", type=int, default=64, help="readings in each summary (default: 64)")
    parser.add_argument("--kill-every-s", type=float, default=0.5, help="the mean life of a consumer (default: 0.5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="keep the blobs in this directory (default: a temporary one)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorblob-")))
        directory.mkdir(parents=True, exist_ok=True)
        wrong = run(directory, options)
    print("\n".join(wrong) or "every reading is there once, and every window was summarised once")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
