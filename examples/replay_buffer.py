"""A replay buffer in balance: each row is sampled so many times on average, whether the actor or the learner is slower.

An actor process watches a swinging pendulum and appends what it sees to a ring, which holds the newest rows only. A
learner process draws random rows from the ring and fits a model of the pendulum. Both name the same rate limiter
(Reverb's `SampleToInsertRatio`), whose counts they share through the blob: whoever runs ahead waits.

    actor ──append──> ring.blob (max_rows) ──sample──> learner
        └───────── one SampleToInsertRatio ──────────┘

In the first half of the run the actor dawdles and the learner has to wait; in the second half it is the other way
round. This process looks on and prints the ratio that is achieved. Exits with status 1 if it leaves the range that the
limiter promises, if a row is not the one that its row id says, or if the learner has learned nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import signal
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import anyio
import torch

import tensorblob as tb

STEP = {"number": "int64", "state": ("float32", (2,)), "next_state": ("float32", (2,))}
STEPS_PER_APPEND = 16
BATCH_ROWS = 64
MIN_ROWS = 500  # the learner waits for the first so many
DAWDLE_S = 0.02  # the pause after each step of the one who is slow
START_WITHIN_S = STOP_WITHIN_S = 60.0

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tensorblob"])  # imported once, for both processes


def balance(samples_per_insert: float) -> tb.SampleToInsertRatio:
    """The limiter that the actor and the learner share, as everybody makes it."""
    return tb.SampleToInsertRatio(samples_per_insert, MIN_ROWS, error_buffer(samples_per_insert))


def error_buffer(samples_per_insert: float) -> float:
    """By how many samples the two may be out of balance: what the ten largest steps make."""
    return 10 * max(STEPS_PER_APPEND * samples_per_insert, BATCH_ROWS)


# ---- the actor


def act(ring: Path, options: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends us
    anyio.run(play, ring, options)


async def play(ring: Path, options: argparse.Namespace) -> None:
    """Append steps of the pendulum until the time is up, and say that the stream ends there."""
    limiter = balance(options.samples_per_insert)
    async with tb.open_writer(ring, schema=STEP, max_rows=options.max_rows, limiter=limiter) as writer:
        begun_s = anyio.current_time()
        state, number = torch.tensor([[1.0, 0.0]]), 0
        with anyio.move_on_after(options.seconds):  # an append that still waits for the learner is cancelled
            while True:
                states = [state]
                for _ in range(STEPS_PER_APPEND):
                    states.append(swing(states[-1]))
                states[-1] = states[-1] + 0.05 * torch.randn(1, 2)  # a push, so that it never rests
                seen = torch.cat(states)
                numbers = torch.arange(number, number + STEPS_PER_APPEND)
                await writer.append({"number": numbers, "state": seen[:-1], "next_state": swing(seen[:-1])})
                state, number = seen[-1:], number + STEPS_PER_APPEND
                if anyio.current_time() - begun_s < options.seconds / 2:
                    await anyio.sleep(DAWDLE_S)
        await writer.finish()


def swing(state: torch.Tensor) -> torch.Tensor:
    """Where a damped pendulum is one tick later: (angle, velocity) of each row."""
    angle, velocity = state.unbind(1)
    velocity = 0.995 * velocity - 0.1 * angle
    return torch.stack([angle + 0.1 * velocity, velocity], 1)


# ---- the learner


def learn(ring: Path, options: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(anyio.run(fit, ring, options))


async def fit(ring: Path, options: argparse.Namespace) -> int:
    """Fit a linear model to rows of the ring until the stream ends; return 1 if it did not come out."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 5e-2)
    losses: list[float] = []
    async with tb.open_reader(ring, wait_s=START_WITHIN_S, limiter=balance(options.samples_per_insert)) as reader:
        begun_s = anyio.current_time()
        with contextlib.suppress(tb.StreamFinished):  # when it would have to wait for rows that will not come
            while True:
                rows, row_ids = await reader.sample(BATCH_ROWS)
                assert torch.equal(rows["number"], row_ids), "a row is the one that its id says"
                loss = torch.nn.functional.mse_loss(model(rows["state"]), rows["next_state"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if anyio.current_time() - begun_s > options.seconds / 2:
                    await anyio.sleep(DAWDLE_S)
        print(
            f"learner: {len(losses):,} batches of {BATCH_ROWS} rows from a ring of {len(reader):,} of {reader.rows:,}; "
            f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last"
        )
    return 0 if losses[-1] < losses[0] / 10 else 1


# ---- main: looks on


async def look_on(ring: Path, options: argparse.Namespace, processes: dict[str, BaseProcess]) -> bool:
    """Print how the two get on until the stream ends; return whether they were in balance whenever we looked."""
    limiter = balance(options.samples_per_insert)
    counts, is_balanced = [(0, 0)], True
    every_s = options.seconds / 8
    async with tb.open_reader(ring, wait_s=START_WITHIN_S, limiter=limiter) as reader:
        while not reader.snapshot().is_finished:
            for name, process in processes.items():
                if process.exitcode:
                    raise RuntimeError(f"the {name} ended with status {process.exitcode}")
            with anyio.move_on_after(every_s), contextlib.suppress(tb.StreamFinished):
                await reader.wait_rows(sys.maxsize)
            assert reader.limit is not None
            counts.append(reader.limit.counts)
            (was_inserted, was_sampled), (inserted, sampled) = counts[-2:]
            rows, samples = inserted - was_inserted, sampled - was_sampled
            ahead = (inserted - MIN_ROWS) * options.samples_per_insert - sampled
            is_balanced &= inserted <= MIN_ROWS or abs(ahead) <= error_buffer(options.samples_per_insert)
            print(
                f"{rows:6,} rows inserted, {samples:7,} sampled: {ratio(samples, rows):5.2f} for each; "
                f"the ring holds {reader.first_row:6,} to {reader.rows:6,}; "
                f"the {'actor' if ahead > 0 else 'learner'} is {abs(ahead):5,.0f} samples ahead",
                flush=True,
            )
    inserted, sampled = counts[-1]
    print(
        f"achieved: {ratio(sampled, inserted - MIN_ROWS):.2f} samples for each row after the first {MIN_ROWS}, "
        f"asked for {options.samples_per_insert:g}"
    )
    return is_balanced


def ratio(samples: int, rows: int) -> float:
    return samples / rows if rows > 0 else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the actor plays (default: 8)")
    parser.add_argument("--samples-per-insert", type=float, default=8.0, help="the ratio to keep (default: 8)")
    parser.add_argument("--max-rows", type=int, default=1_000, help="the size of the ring (default: 1,000)")
    parser.add_argument("--dir", type=Path, help="keep the blob in this directory (default: a temporary one)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorblob-")))
        directory.mkdir(parents=True, exist_ok=True)
        ring = directory / "ring.blob"
        tb.TensorBlob.unlink(ring)  # of an earlier run in the same directory
        processes: dict[str, BaseProcess] = {}
        for name, job in {"learner": learn, "actor": act}.items():
            processes[name] = CONTEXT.Process(target=job, args=(ring, options), name=name, daemon=True)
            processes[name].start()
            stack.callback(processes[name].join)
            stack.callback(processes[name].kill)  # does nothing to one that has ended
        is_balanced = anyio.run(look_on, ring, options, processes)
        for process in processes.values():
            process.join(STOP_WITHIN_S)
        has_learned = all(process.exitcode == 0 for process in processes.values())
    print(
        f"they were {'' if is_balanced else 'NOT '}in balance, and the learner has {'' if has_learned else 'NOT '}learned"
    )
    return 0 if is_balanced and has_learned else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
