"""Train a CartPole policy from a blob while it is still being written.

Collector processes play gymnasium's CartPole-v1, each in several environments at once. A blob has one writer, so they
send their transitions through pipes to this process, which appends every batch as one commit. The learner process
follows the growing blob, gathers random batches from all that is committed so far, and trains a double DQN on them. Its
weights travel the same way: each new policy is one more row of a second blob, which the collectors follow.

    collector ─┐ pipes                          ┌─> learner: refresh, gather, train
               ├──────> main ──> transitions ───┘      │
    collector ─┘ <──────────────── policies <──────────┘

Exits with status 1 if the mean return of the episodes has not clearly risen when the time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

import tensorblob as tb

torch.set_num_threads(1)  # in every process, since each of them imports this file

COLLECTORS = 2
ENVIRONMENTS = 8  # of each collector
TICKS_PER_BATCH = 4  # a batch, and so a commit, is this many steps of all environments of a collector
ROWS_PER_S = 2_000  # of each collector: leaves the learner its share of two cores
EXPLORATION_ROWS = 10_000  # of each collector: meanwhile the share of random actions falls from all to the floor
EXPLORATION_FLOOR = 0.03

FIRST_ROWS = 1_000  # training starts when the blob holds this many
BATCH_ROWS = 128
UPDATES_PER_POLICY = 200
HIDDEN = 64
DISCOUNT = 0.99
LEARNING_RATE = 5e-4
TARGET_TRACKING = 0.02  # how much of the online network each update mixes into the target network

EPISODES = 100  # every mean return is over this many finished episodes
RISEN_MEAN, RISEN_FACTOR = 100.0, 3.0  # clearly risen: at least this mean, and this many times the first one
SAMPLE_EVERY_S = 1.0
STOP_WITHIN_S = 5.0  # a process that takes longer is killed, which no blob minds

TRANSITION: dict[str | tuple[str, ...], Any] = {
    "observation": ("float32", (4,)),
    "action": "int64",
    ("next", "observation"): ("float32", (4,)),
    ("next", "reward"): "float32",
    ("next", "terminated"): "bool",
    ("next", "done"): "bool",  # terminated, or cut off after 500 steps
    ("next", "episode_return"): "float32",  # the rewards of the episode so far
}
Batch = dict[str | tuple[str, ...], np.ndarray]


@dataclass(frozen=True)
class Training:
    """What the learner reports with every policy."""

    rows: int = 0  # in its snapshot
    lag_rows: int = 0  # the most that its snapshot was found behind since the last report
    updates: int = 0
    mean_return: float = math.nan


@dataclass(frozen=True)
class Sample:
    """Where everything stood at one moment of the run."""

    seconds: float
    rows: int
    commits: int
    rows_per_s: float
    commits_per_s: float
    training: Training

    def __str__(self) -> str:
        return (
            f"{self.seconds:5.0f} s {self.rows:9,} rows {self.rows_per_s:7,.0f} rows/s "
            f"{self.commits_per_s:5.0f} commits/s   learner: {self.training.lag_rows:4} rows behind "
            f"{self.training.updates:7,} updates   mean return {self.training.mean_return:5.1f}"
        )


class Policy(nn.Module):
    """The value of both actions, from position, velocity, angle and angular velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor([0.4, 0.5, 5.0, 0.5])  # brings all four to about -1..1
        self.values = nn.Sequential(
            nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.values(observation * self.scale)
        return values

    def to_row(self) -> torch.Tensor:
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def take_row(self, row: torch.Tensor) -> None:
        nn.utils.vector_to_parameters(row, self.parameters())


# ---- the collectors


def collect(batches: Connection, policies: Path, seed: int) -> None:
    """Play, always by the newest committed policy, and send what happens until nobody listens."""
    import gymnasium

    environments = [gymnasium.make("CartPole-v1") for _ in range(ENVIRONMENTS)]
    observations = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(environments)])
    returns = np.zeros(ENVIRONMENTS, np.float32)
    random = np.random.default_rng(seed)
    policy = Policy().requires_grad_(False)
    with contextlib.suppress(ConnectionError), tb.TensorBlob.open(policies) as blob:
        policy.take_row(blob[-1])
        started, rows = time.monotonic(), 0
        while True:
            if blob.refresh():
                policy.take_row(blob[-1])
            ticks = []
            for _ in range(TICKS_PER_BATCH):
                actions = policy(torch.from_numpy(observations)).argmax(1).numpy()
                exploring = random.random(ENVIRONMENTS) < max(EXPLORATION_FLOOR, 1 - rows / EXPLORATION_ROWS)
                actions[exploring] = random.integers(2, size=exploring.sum())
                tick = step(environments, observations, actions, returns)
                observations = tick["next", "observation"].copy()
                for i in np.flatnonzero(tick["next", "done"]):
                    observations[i], returns[i] = environments[i].reset()[0], 0.0
                ticks.append(tick)
                rows += ENVIRONMENTS
            batches.send({field: np.concatenate([tick[field] for tick in ticks]) for field in TRANSITION})
            time.sleep(max(0.0, started + rows / ROWS_PER_S - time.monotonic()))


def step(environments: Sequence[Any], observations: np.ndarray, actions: np.ndarray, returns: np.ndarray) -> Batch:
    """One transition of each environment; its reward is added to ``returns``."""
    after, rewards, terminated, truncated, _ = zip(
        *(env.step(action) for env, action in zip(environments, actions.tolist(), strict=True)), strict=True
    )
    returns += np.array(rewards, np.float32)
    return {
        "observation": observations,
        "action": actions,
        ("next", "observation"): np.stack(after),
        ("next", "reward"): np.array(rewards, np.float32),
        ("next", "terminated"): np.array(terminated),
        ("next", "done"): np.array(terminated) | np.array(truncated),
        ("next", "episode_return"): returns.copy(),
    }


# ---- the learner


def learn(reports: Connection, transitions: Path, policies: Path, seed: int) -> None:
    """Follow the transitions and train on them, committing a policy now and then, until nobody listens."""
    torch.manual_seed(seed)
    online, target = Policy(), Policy().requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), LEARNING_RATE, fused=True)
    returns: deque[float] = deque(maxlen=EPISODES)
    rows = lag_rows = updates = 0
    with (
        contextlib.suppress(ConnectionError),
        tb.TensorBlob.open(transitions) as blob,
        tb.TensorBlob.open(policies, "a+") as published,
    ):
        online.take_row(published[-1])
        target.take_row(published[-1])
        while True:
            if blob.refresh():
                returns.extend(total for _, total in finished_episodes(blob, rows))
                lag_rows, rows = max(lag_rows, len(blob) - rows), len(blob)
            if rows < FIRST_ROWS:
                if reports.poll(0.01):  # main never sends: this is the end of the pipe
                    return
                continue
            batch = blob.gather(
                torch.randint(rows, (2, BATCH_ROWS)).amax(0)
            )  # the newer of two: newer rows are likelier
            optimizer.zero_grad()
            double_dqn_loss(batch, online, target).backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.lerp_(fast, TARGET_TRACKING)
            updates += 1
            if updates % UPDATES_PER_POLICY == 0:
                published.write(target.to_row().unsqueeze(0))
                reports.send(Training(rows, lag_rows, updates, mean(returns)))
                lag_rows = 0


def double_dqn_loss(batch: TensorDict, online: nn.Module, target: nn.Module) -> torch.Tensor:
    """The online network chooses the next action and the target network rates it. Values lie between 0 and 1."""
    after = batch["next", "observation"]
    with torch.no_grad():
        value = target(after).gather(1, online(after).argmax(1, keepdim=True)).squeeze(1)
        value = torch.where(batch["next", "terminated"], 0.0, value)
        goal = (1 - DISCOUNT) * batch["next", "reward"] + DISCOUNT * value
    taken = online(batch["observation"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    return nn.functional.smooth_l1_loss(taken, goal)


def finished_episodes(blob: tb.TensorBlob, start: int) -> list[tuple[int, float]]:
    """The episodes that ended from row ``start`` on, as (last row, return). Reads two of the columns only."""
    rows: TensorDict = blob.select(("next", "done"), ("next", "episode_return"))[start:]
    ends = rows["next", "done"].nonzero().squeeze(1)
    return list(zip((start + ends).tolist(), rows["next", "episode_return"][ends].tolist(), strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# ---- main: the writer


def record(pipes: dict[Connection, BaseProcess], blob: tb.TensorBlob, seconds: float, goal: float) -> Iterator[Sample]:
    """Append what the collectors send, each batch as one commit, until the learner reports ``goal`` or time is up.

    The clock starts with the first commit: until then the processes import torch.
    """
    started, commits = math.inf, 0
    training = Training()
    last = Sample(0.0, 0, 0, 0.0, 0.0, training)
    is_over = False
    while not is_over:
        for pipe in wait(list(pipes), timeout=SAMPLE_EVERY_S):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError:
                process = pipes[pipe]
                process.join()
                raise RuntimeError(f"the {process.name} ended with status {process.exitcode}") from None
            if isinstance(message, Training):
                training = message
            else:
                blob.write({field: torch.from_numpy(column) for field, column in message.items()})
                commits += 1
                started = min(started, time.monotonic())
        now = time.monotonic() - started
        is_over = now >= seconds or training.mean_return >= goal
        passed = now - last.seconds
        if is_over or passed >= SAMPLE_EVERY_S:
            rows_per_s, commits_per_s = (len(blob) - last.rows) / passed, (commits - last.commits) / passed
            last = Sample(now, len(blob), commits, rows_per_s, commits_per_s, training)
            yield last


@contextlib.contextmanager
def running(jobs: dict[str, tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[dict[Connection, BaseProcess]]:
    """Run each job in a process that holds the other end of a pipe. Leaving closes the pipes, which ends the jobs."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Connection, BaseProcess] = {}
    within_s = 0.0
    # Ctrl-C reaches every process of a terminal. Those that are started while it is ignored go on ignoring it.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        try:
            for name, (job, arguments) in jobs.items():
                ours, theirs = context.Pipe()
                process = context.Process(target=job, args=(theirs, *arguments), name=name, daemon=True)
                process.start()
                pipes[ours] = process
                theirs.close()  # so that the end of the process is the end of the pipe
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        yield pipes
        within_s = STOP_WITHIN_S
    finally:
        for pipe in pipes:
            pipe.close()
        deadline = time.monotonic() + within_s
        for started in pipes.values():
            started.join(max(0.0, deadline - time.monotonic()))
            started.kill()  # does nothing to one that has ended
            started.join()


@contextlib.contextmanager
def screen() -> Iterator[Callable[[object], None]]:
    """A function that shows the newest state: in place on a terminal if rich is installed, otherwise line by line."""
    try:
        from rich.console import Console
    except ImportError:
        yield lambda text: print(text, flush=True)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        yield lambda text: print(text, flush=True)
        return
    with console.status("starting") as status:
        yield lambda text: status.update(str(text))


def plot(episodes: Sequence[tuple[int, float]], samples: Sequence[Sample], out: Path) -> None:
    """Draw the return of every episode over the row it ended with; below, the writer's and the learner's pace."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    ends, returns = [row for row, _ in episodes], [total for _, total in episodes]
    above.plot(ends, returns, ".", markersize=2, alpha=0.3, label="episode")
    means = [mean(returns[stop - EPISODES : stop]) for stop in range(EPISODES, len(returns) + 1)]
    above.plot(ends[EPISODES - 1 :], means, linewidth=2, label=f"mean of {EPISODES}")
    above.set(title="CartPole-v1, learned from a growing blob", xlabel="rows in the blob", ylabel="return")
    above.legend(loc="upper left")
    seconds = [sample.seconds for sample in samples]
    below.plot(seconds, [sample.rows_per_s for sample in samples], label="rows committed per second")
    below.plot(seconds, [sample.training.lag_rows for sample in samples], label="rows the learner was behind, at most")
    below.set(xlabel="seconds", ylabel="rows", yscale="symlog", ylim=(0, None))
    below.legend(loc="lower right")
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="stop after this time at the latest (default: 90)")
    parser.add_argument(
        "--goal", type=float, default=400.0, help="stop at this mean return (default: 400, of 500 at most)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="keep the blobs in this directory (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("cartpole.png"), help="the plot (default: cartpole.png)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the with statements, as on Ctrl-C

    torch.manual_seed(options.seed)
    first_policy = Policy().to_row()
    with contextlib.ExitStack() as stack:
        directory = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorblob-")))
        directory.mkdir(parents=True, exist_ok=True)
        transitions, policies = directory / "transitions.blob", directory / "policies.blob"
        print(f"{COLLECTORS} collectors and a learner on {transitions} and {policies}", flush=True)
        with tb.TensorBlob.open(policies, "w", dtype="float32", shape=first_policy.shape) as blob:
            blob.write(first_policy.unsqueeze(0))
        jobs: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
            f"collector {i}": (collect, (policies, options.seed + 1000 * i)) for i in range(COLLECTORS)
        }
        jobs["learner"] = (learn, (transitions, policies, options.seed))
        samples = []
        with tb.TensorBlob.open(transitions, "w", schema=TRANSITION) as blob, running(jobs) as pipes, screen() as show:
            for sample in record(pipes, blob, options.seconds, options.goal):
                samples.append(sample)
                show(sample)

        with tb.TensorBlob.open(transitions) as blob, tb.TensorBlob.open(policies) as published:
            episodes = finished_episodes(blob, 0)
            last, lags = samples[-1], sorted(sample.training.lag_rows for sample in samples)
            print(
                f"{len(blob):,} rows in {last.commits:,} commits and {last.seconds:.0f} s "
                f"({last.rows / last.seconds:,.0f} rows/s, {last.commits / last.seconds:.0f} commits/s), "
                f"{len(published):,} policies after {last.training.updates:,} updates\n"
                f"the learner was {lags[len(lags) // 2]:,} rows behind as a rule, {lags[-1]:,} at most"
            )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        plot(episodes, samples, options.out)
        print(f"plot: {options.out.resolve()}")
    returns = [total for _, total in episodes]
    before, after = mean(returns[:EPISODES]), mean(returns[-EPISODES:])
    risen = len(returns) >= 2 * EPISODES and after >= max(RISEN_MEAN, RISEN_FACTOR * before)
    verdict = "risen" if risen else "NOT risen"
    print(f"mean return of {EPISODES} episodes: {before:.1f} at first, {after:.1f} at last: {verdict}")
    return 0 if risen else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
