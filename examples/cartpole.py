"""Train a CartPole policy from a blob while several processes write it.

Collector processes play gymnasium's CartPole-v1, each in several environments at once, and append their transitions to
one blob that they share: a ring of the newest. The learner process samples the ring and trains a double DQN. A rate
limiter that all of them name keeps the samples and the transitions in proportion, so whoever is faster waits. In passing
the learner follows the transitions at a cursor of its own, and sums up the returns of the episodes. Policies travel the
same way: each is a row of a second blob, with what the learner has to say about it, and the collectors follow that one.

    collector ─┐                  ┌─ sample, follow ─> learner
    collector ─┼─> transitions ───┤                       │
    collector ─┘                  └─ follow ─> main  <────┤
        ^                                                 v
        └──────────────────── follow ───────────────── policies

Nothing else connects the processes. The learner ends the stream of policies (`finish`) when the goal is reached or the
time is up, and everybody who follows it ends with it. This process only looks on, shows the state, and draws it at the
end. Exits with status 1 if the mean return of the episodes has not clearly risen.
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
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

import tensorblob as tb

torch.set_num_threads(1)  # in every process, since each of them imports this file

COLLECTORS = 3
ENVIRONMENTS = 8  # of each collector
TICKS_PER_BATCH = 4  # a batch, and so a commit, is this many steps of all environments of a collector
EXPLORATION_ROWS = 7_000  # of each collector: meanwhile the share of random actions falls from all to the floor
EXPLORATION_FLOOR = 0.03

RING_ROWS = 50_000
FIRST_ROWS = 1_000  # training starts when so many were collected
BATCH_ROWS = 128
SAMPLES_PER_ROW = 16.0  # how often each transition is sampled, on average
SLACK_ROWS = 500  # for so many transitions collectors or learner may be ahead of that
UPDATES_PER_POLICY = 200
HIDDEN = 64
DISCOUNT = 0.99
LEARNING_RATE = 5e-4
TARGET_TRACKING = 0.02  # how much of the online network each update mixes into the target network

EPISODES = 100  # every mean return is over this many finished episodes
RISEN_MEAN, RISEN_FACTOR = 100.0, 3.0  # clearly risen: at least this mean, and this many times the first one
LOOK_EVERY_S = 1.0
START_WITHIN_S = 120.0  # the others import torch, too
STOP_WITHIN_S = 10.0  # a process that takes longer is killed, which no blob minds

TRANSITION: dict[str | tuple[str, ...], Any] = {
    "observation": ("float32", (4,)),
    "action": "int64",
    ("next", "observation"): ("float32", (4,)),
    ("next", "reward"): "float32",
    ("next", "terminated"): "bool",
    ("next", "done"): "bool",  # terminated, or cut off after 500 steps
    ("next", "episode_return"): "float32",  # the rewards of the episode so far
}
TRAINED_ON: list[str | tuple[str, ...]] = [
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
]
EPISODE_ENDS = [("next", "done"), ("next", "episode_return")]
Batch = dict[str | tuple[str, ...], np.ndarray]


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


PUBLISHED: dict[str | tuple[str, ...], Any] = {
    "weights": ("float32", (sum(parameter.numel() for parameter in Policy().parameters()),)),
    "updates": "int64",
    "lag_rows": "int64",  # the most that the learner was behind the collectors since the policy before
    "mean_return": "float32",
}
REPORTED = [name for name in PUBLISHED if name != "weights"]


def balance() -> tb.SampleToInsertRatio:
    """The limiter that collectors and learner share, as everybody makes it."""
    return tb.SampleToInsertRatio(SAMPLES_PER_ROW, FIRST_ROWS, error_buffer=SLACK_ROWS * SAMPLES_PER_ROW)


# ---- the collectors


async def collect(transitions: Path, policies: Path, seed: int) -> None:
    """Play, always by the newest policy, until the stream of policies ends."""
    policy = Policy().requires_grad_(False)
    async with (
        # Whoever comes first makes the blob.
        tb.open_writer(transitions, schema=TRANSITION, shared=True, max_rows=RING_ROWS, limiter=balance()) as writer,
        tb.open_reader(policies, wait_s=START_WITHIN_S) as reader,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(play, writer, policy, seed)
        newest: TensorDict
        async for newest in reader.follow(fields=["weights"]):
            policy.take_row(newest["weights"][-1])  # the weights stay where they are, in the blob
        tasks.cancel_scope.cancel()


async def play(writer: tb.AsyncWriter, policy: Policy, seed: int) -> None:
    """Append what happens, for ever."""
    import gymnasium

    environments = [gymnasium.make("CartPole-v1") for _ in range(ENVIRONMENTS)]
    observations = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(environments)])
    returns = np.zeros(ENVIRONMENTS, np.float32)
    random = np.random.default_rng(seed)
    rows = 0
    while True:
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
        batch = {name: np.concatenate([tick[name] for tick in ticks]) for name in TRANSITION}
        await writer.append({name: torch.from_numpy(column) for name, column in batch.items()})


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


@dataclass
class Progress:
    """What the learner's follower has seen: the returns of the last episodes, and how far behind it was at most."""

    returns: deque[float] = field(default_factory=lambda: deque(maxlen=EPISODES))
    lag_rows: int = 0


async def learn(transitions: Path, policies: Path, seed: int, seconds: float, goal: float) -> None:
    """Train and publish policies until the mean return is `goal` or the time is up; then end the stream."""
    torch.manual_seed(seed)
    progress = Progress()
    async with (
        tb.open_writer(policies, schema=PUBLISHED) as publisher,
        tb.open_reader(transitions, wait_s=START_WITHIN_S, limiter=balance()) as reader,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(follow_returns, reader, progress)
        await reader.wait_rows(1)
        with anyio.move_on_after(seconds):
            await train(reader, publisher, progress, goal)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await publisher.finish()


async def follow_returns(reader: tb.AsyncReader, progress: Progress) -> None:
    """Note the returns of the episodes as they are committed, and how many rows the learner was behind."""
    async with reader.follow(cursor="learner", fields=EPISODE_ENDS) as batches:
        async for batch in batches:
            progress.lag_rows = max(progress.lag_rows, batches.stop - batches.start + batches.lag_rows)
            progress.returns.extend(total for _, total in finished_episodes(batch, batches.start))


async def train(reader: tb.AsyncReader, publisher: tb.AsyncWriter, progress: Progress, goal: float) -> None:
    online, target = Policy(), Policy().requires_grad_(False)
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), LEARNING_RATE, fused=True)
    updates = 0
    while True:
        batch, _ = await reader.sample(BATCH_ROWS, fields=TRAINED_ON)
        optimizer.zero_grad()
        double_dqn_loss(batch, online, target).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, TARGET_TRACKING)
        updates += 1
        if updates % UPDATES_PER_POLICY:
            continue
        published = {
            "weights": target.to_row().unsqueeze(0),
            "updates": torch.tensor([updates]),
            "lag_rows": torch.tensor([progress.lag_rows]),
            "mean_return": torch.tensor([mean(progress.returns)]),
        }
        await publisher.append(published)
        progress.lag_rows = 0
        if mean(progress.returns) >= goal:
            return


def double_dqn_loss(batch: TensorDict, online: nn.Module, target: nn.Module) -> torch.Tensor:
    """The online network chooses the next action and the target network rates it. Values lie between 0 and 1."""
    after = batch["next", "observation"]
    with torch.no_grad():
        value = target(after).gather(1, online(after).argmax(1, keepdim=True)).squeeze(1)
        value = torch.where(batch["next", "terminated"], 0.0, value)
        goal = (1 - DISCOUNT) * batch["next", "reward"] + DISCOUNT * value
    taken = online(batch["observation"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    return nn.functional.smooth_l1_loss(taken, goal)


def finished_episodes(rows: Any, start: int) -> list[tuple[int, float]]:
    """The episodes that ended in these rows, the first of which is row ``start``, as (last row, return)."""
    ends = rows["next", "done"].nonzero().squeeze(1)
    return list(zip((start + ends).tolist(), rows["next", "episode_return"][ends].tolist(), strict=True))


def mean(values: Sequence[float] | deque[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# ---- main: looks on


@dataclass(frozen=True)
class State:
    """Where everything stood at one moment of the run."""

    seconds: float = 0.0
    rows: int = 0
    commits: int = 0
    policies: int = 0
    updates: int = 0
    lag_rows: int = 0
    mean_return: float = math.nan
    rows_per_s: float = 0.0
    commits_per_s: float = 0.0

    @property
    def samples_per_row(self) -> float:
        return self.updates * BATCH_ROWS / max(self.rows - FIRST_ROWS, 1)

    def __str__(self) -> str:
        return (
            f"{self.seconds:5.0f} s {self.rows:9,} rows {self.rows_per_s:7,.0f} rows/s "
            f"{self.commits_per_s:5.0f} commits/s   learner: {self.lag_rows:4} rows behind "
            f"{self.updates:7,} updates {self.samples_per_row:5.1f} samples/row   mean return {self.mean_return:5.1f}"
        )

    def to_table(self) -> Any:
        from rich.table import Table

        table = Table(title=f"CartPole from a growing blob, {self.seconds:.0f} s", min_width=60)
        for title in ("", "so far", "now"):
            table.add_column(title, justify="right" if title else "left")
        table.add_row("rows", f"{self.rows:,}", f"{self.rows_per_s:,.0f} /s")
        table.add_row("commits", f"{self.commits:,}", f"{self.commits_per_s:,.0f} /s")
        table.add_row("policies", f"{self.policies:,}", "")
        table.add_row("updates", f"{self.updates:,}", f"{self.samples_per_row:.1f} samples of each row")
        table.add_row("learner", "", f"{self.lag_rows:,} rows behind")
        table.add_row(f"mean return of {EPISODES} episodes", "", f"{self.mean_return:.1f}")
        return table


@dataclass
class Run:
    """What was seen of a run."""

    episodes: list[tuple[int, float]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)


async def look_on(
    transitions: Path, policies: Path, processes: Sequence[BaseProcess], show: Callable[[State], None]
) -> Run:
    """Follow both blobs until the stream of policies ends, and show the state every second."""
    run = Run()
    async with (
        tb.open_reader(policies, wait_s=START_WITHIN_S) as published,
        tb.open_reader(transitions, wait_s=START_WITHIN_S) as collected,
        anyio.create_task_group() as tasks,
    ):
        await collected.wait_rows(1)  # the clock starts with the first commit: until then the processes import torch
        tasks.start_soon(gather_episodes, collected, run)
        last, started_s = State(), anyio.current_time()
        is_over = False
        while not is_over:
            with anyio.move_on_after(LOOK_EVERY_S), contextlib.suppress(tb.StreamFinished):
                await published.wait_rows(sys.maxsize)
            is_over = published.snapshot().is_finished
            check(processes)
            collected.refresh()
            seconds, snapshot = anyio.current_time() - started_s, collected.snapshot()
            passed_s = seconds - last.seconds
            said: Any = published.blob.select(*REPORTED)[-1] if published.rows else {}
            last = State(
                seconds,
                snapshot.rows,
                snapshot.commits,
                published.rows,
                int(said.get("updates", 0)),
                int(said.get("lag_rows", 0)),
                float(said.get("mean_return", math.nan)),
                (snapshot.rows - last.rows) / passed_s,
                (snapshot.commits - last.commits) / passed_s,
            )
            run.states.append(last)
            show(last)
        tasks.cancel_scope.cancel()
    return run


async def gather_episodes(reader: tb.AsyncReader, run: Run) -> None:
    batches = reader.follow(fields=EPISODE_ENDS)
    async for batch in batches:
        run.episodes += finished_episodes(batch, batches.start)


def check(processes: Sequence[BaseProcess]) -> None:
    """Raise if one of them has failed."""
    for process in processes:
        if process.exitcode:
            raise RuntimeError(f"the {process.name} ended with status {process.exitcode}")


@contextlib.contextmanager
def running(jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[list[BaseProcess]]:
    """Run each job in a process. Leaving waits for their end, or kills them where it is left by an exception."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorblob", "gymnasium"])  # imported once, for all of them
    processes: list[BaseProcess] = []
    within_s = 0.0
    # Ctrl-C reaches every process of a terminal. Those that are started while it is ignored go on ignoring it.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        try:
            for name, (job, arguments) in jobs.items():
                processes.append(context.Process(target=anyio.run, args=(job, *arguments), name=name, daemon=True))
                processes[-1].start()
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        yield processes
        within_s = STOP_WITHIN_S
    finally:
        deadline = time.monotonic() + within_s
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()  # does nothing to one that has ended
            process.join()
    check(processes)


@contextlib.contextmanager
def screen() -> Iterator[Callable[[State], None]]:
    """A function that shows the newest state: a live table on a terminal if rich is installed, otherwise lines."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        yield lambda state: print(state, flush=True)
        return
    console = Console()
    if not console.is_terminal:
        yield lambda state: print(state, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda state: live.update(state.to_table(), refresh=True)


def plot(run: Run, out: Path) -> None:
    """Draw the return of every episode over the row it ended with; below, the collectors' and the learner's pace."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    ends, returns = [row for row, _ in run.episodes], [total for _, total in run.episodes]
    above.plot(ends, returns, ".", markersize=2, alpha=0.3, label="episode")
    means = [mean(returns[stop - EPISODES : stop]) for stop in range(EPISODES, len(returns) + 1)]
    above.plot(ends[EPISODES - 1 :], means, linewidth=2, label=f"mean of {EPISODES}")
    above.set(title="CartPole-v1, learned from a growing blob", xlabel="rows in the blob", ylabel="return")
    above.legend(loc="upper left")
    seconds = [state.seconds for state in run.states]
    below.plot(seconds, [state.rows_per_s for state in run.states], label="rows committed per second")
    below.plot(seconds, [state.lag_rows for state in run.states], label="rows the learner was behind, at most")
    below.set(xlabel="seconds", ylabel="rows", yscale="symlog", ylim=(0, None))
    below.legend(loc="lower right")
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="stop after this time at the latest (default: 90)")
    parser.add_argument(
        "--goal", type=float, default=475.0, help="stop at this mean return (default: 475, of 500 at most)"
    )
    parser.add_argument("--collectors", type=int, default=COLLECTORS, help=f"processes (default: {COLLECTORS})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="keep the blobs in this directory (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("cartpole.png"), help="the plot (default: cartpole.png)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # leave as on Ctrl-C

    with contextlib.ExitStack() as stack:
        directory = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorblob-")))
        directory.mkdir(parents=True, exist_ok=True)
        transitions, policies = directory / "transitions.blob", directory / "policies.blob"
        for path in (transitions, policies):
            tb.TensorBlob.unlink(path)  # of an earlier run in the same directory
        print(f"{options.collectors} collectors and a learner on {transitions} and {policies}", flush=True)
        jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            f"collector {i}": (collect, (transitions, policies, options.seed + 1000 * i))
            for i in range(options.collectors)
        }
        jobs["learner"] = (learn, (transitions, policies, options.seed, options.seconds, options.goal))
        with running(jobs) as processes, screen() as show:
            run = anyio.run(look_on, transitions, policies, processes, show)
        last, lags = run.states[-1], sorted(state.lag_rows for state in run.states)
        print(
            f"{last.rows:,} rows in {last.commits:,} commits and {last.seconds:.0f} s "
            f"({last.rows / last.seconds:,.0f} rows/s, {last.commits / last.seconds:.0f} commits/s), "
            f"{last.policies:,} policies after {last.updates:,} updates\n"
            f"each row was sampled {last.samples_per_row:.1f} times, {SAMPLES_PER_ROW:g} were asked for; "
            f"the learner was {lags[len(lags) // 2]:,} rows behind as a rule, {lags[-1]:,} at most"
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        plot(run, options.out)
        print(f"plot: {options.out.resolve()}")
    returns = [total for _, total in run.episodes]
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
