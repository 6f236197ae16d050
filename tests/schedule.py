"""A scheduler of actors that share a blob: which of them goes on at each filesystem call is decided by a plan, not by chance.

Actors are threads with handles of their own (a flock belongs to an opening of a file, so they exclude each other as processes
do), of which one runs at a time. Each filesystem call of the engine is a step, before which the plan may say who goes on
instead: a pre-emption. Without one, an actor runs until it ends or has to wait for a lock. This is iterative context bounding
(Musuvathi and Qadeer, 2007): most races need but one or two pre-emptions, at the right places.

A plan is written "0 17>1 40>0": actor 0 begins, before step 17 actor 1 goes on, before step 40 actor 0.
"""

import errno
import fcntl
import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from disk import Act, Disk

from tensorblob import files
from tensorblob.turns import TimedLock

LIMIT_S = 60.0
MOST_STEPS, MOST_WAITS = 20_000, 100
PRIVATE = frozenset({"dup", "allocate", "truncate", "sync"})
"""Calls that nobody else can notice: it makes no difference who comes in between."""


class Deadlock(AssertionError):
    """Every actor that is left waits for another."""


class Plan(NamedTuple):
    first: int = 0
    preemptions: tuple[tuple[int, int], ...] = ()
    """(step, actor): before this step that actor goes on, if it can."""

    def __str__(self) -> str:
        return " ".join([str(self.first), *(f"{step}>{actor}" for step, actor in self.preemptions)])

    @classmethod
    def parse(cls, text: str) -> "Plan":
        first, *rest = text.split()
        pairs = [part.split(">") for part in rest]
        return cls(int(first), tuple((int(step), int(actor)) for step, actor in pairs))


@dataclass
class Outcome:
    """What came of one plan: who made each step, what these were, and what each actor raised."""

    order: list[int]
    trace: list[str]
    errors: list[BaseException | None]


class Scheduler:
    """Runs actors by a plan, as the `Disk` that they use tells of their steps."""

    def __init__(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        self._disk = disk
        self._me = threading.local()
        self._is_running = False
        lock_class: Any = files.FileLock
        scheduler = self

        class Lock(lock_class):  # type: ignore[misc]
            def acquire(self, *args: Any, **options: Any) -> Any:
                while scheduler._is_running and self.timeout > 0:
                    try:
                        return super().acquire(timeout=0)
                    except files.Timeout:
                        scheduler.wait()
                return super().acquire(*args, **options)

        class Clock:
            def __getattr__(self, name: str) -> Any:
                return getattr(time, name)

            def sleep(self, seconds: float) -> None:
                if scheduler._is_running:
                    scheduler.wait()

        through: Any = files.fcntl

        class Fcntl:
            def __getattr__(self, name: str) -> Any:
                return getattr(through, name)

            def flock(self, fd: int, operation: int) -> None:
                if operation & (fcntl.LOCK_NB | fcntl.LOCK_UN) or not scheduler._is_running:
                    return through.flock(fd, operation)
                flock = through.flock
                while True:
                    try:
                        return flock(fd, operation | fcntl.LOCK_NB)
                    except OSError as error:
                        if error.errno != errno.EAGAIN:
                            raise
                    scheduler.wait()
                    flock = fcntl.flock  # that it tries again is no step

        acquire = TimedLock.acquire

        def acquire_in_turn(lock: TimedLock, timeout_s: float) -> bool:
            if not scheduler._is_running:
                return acquire(lock, timeout_s)
            files.lock(lock._fd)  # by the actor itself: the scheduler knows who waits
            return True

        numbered = itertools.count()
        monkeypatch.setattr(TimedLock, "acquire", acquire_in_turn)
        monkeypatch.setattr("tensorblob.limiter.SPIN_S", LIMIT_S)
        monkeypatch.setattr(files, "FileLock", Lock)
        monkeypatch.setattr(files, "time", Clock())
        monkeypatch.setattr(files, "fcntl", Fcntl())
        monkeypatch.setattr("secrets.token_hex", lambda nbytes=16: f"{next(numbered):0{2 * nbytes}x}")
        monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
        disk.before = self._step

    def run(self, actors: list[Callable[[], object]], plan: Plan) -> Outcome:
        """Run all actors to their ends."""
        self._switches = dict(plan.preemptions)
        self._turns = [threading.Semaphore(0) for _ in actors]
        self._is_over = threading.Event()
        self._left = set(range(len(actors)))
        self._waits = 0
        """How often somebody had to wait since anybody did anything else."""
        self._steps = 0
        self._outcome = Outcome([], [], [None] * len(actors))
        threads = [threading.Thread(target=self._act, args=(number, act)) for number, act in enumerate(actors)]
        self._is_running = True
        try:
            for thread in threads:
                thread.start()
            self._turns[plan.first].release()
            assert self._is_over.wait(LIMIT_S), f"{plan}: it hangs after step {self._steps}: {self._outcome.trace[-5:]}"
        finally:
            self._is_running = False
        for thread in threads:
            thread.join()
        return self._outcome

    def _act(self, number: int, act: Callable[[], object]) -> None:
        self._turns[number].acquire()
        self._me.number = number
        try:
            act()
        except BaseException as error:
            self._outcome.errors[number] = error
        self._left.discard(number)
        self._waits = 0
        if self._left:
            self._turns[self._after(number)].release()
        else:
            self._is_over.set()

    def _after(self, number: int) -> int:
        """Who is next, of those that are left; itself if there is nobody else."""
        count = len(self._turns)
        following = [(number + more) % count for more in range(1, count + 1)]
        return next(other for other in following if other in self._left)

    def _go_to(self, number: int) -> None:
        me = self._me.number
        self._turns[number].release()
        assert self._turns[me].acquire(timeout=LIMIT_S), "nobody hands the turn back"

    def _step(self, act: Act) -> None:
        if (me := getattr(self._me, "number", None)) is None or act.kind in PRIVATE:
            return
        self._steps += 1
        if act.kind != "lock":
            self._waits = 0
        self._outcome.order.append(me)
        self._outcome.trace.append(f"{self._steps} {me} {act!r}")
        if self._steps > MOST_STEPS:
            raise Deadlock("it does not end")
        target = self._switches.get(self._steps)
        if target is not None and target != me and target in self._left:
            self._go_to(target)

    def wait(self) -> None:
        """The actor needs what another one has: it goes on once somebody else has done something."""
        me = self._me.number
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise Deadlock(f"actor {me} waits for what nobody will do: {self._outcome.trace[-5:]}")
        if (other := self._after(me)) != me:
            self._go_to(other)


def plans(
    actors: int, run: Callable[[Plan], list[int]], schedules: int, seed: int, shard: tuple[int, int]
) -> Iterator[Plan]:
    """Plans to try: of those with one pre-emption all, or 4 * `schedules` if there are more; and `schedules` with two or
    three. Of these the shard's share.

    run: runs a plan, and returns who made each step; those without a pre-emption are run by this.
    """
    chosen = random.Random(seed)
    single, longest = [], 0
    for first in range(actors):
        order = run(Plan(first))
        longest = max(longest, len(order))
        last = {actor: step for step, actor in enumerate(order, 1)}
        for step, running in enumerate(order, 1):
            others = [actor for actor in last if actor != running and last[actor] > step]
            single += [Plan(first, ((step, other),)) for other in others]
    if len(single) > 4 * schedules:
        single = chosen.sample(single, 4 * schedules)
    several = []
    for _ in range(schedules):
        places = sorted(chosen.sample(range(1, longest), chosen.choice((2, 2, 3))))
        several.append(Plan(chosen.randrange(actors), tuple((step, chosen.randrange(actors)) for step in places)))
    number, of = shard
    yield from [*single, *several][number::of]


def collected(count: int) -> None:
    """Now and then: what is not referred to goes between plans, not within one."""
    if count % 100 == 0:
        gc.collect()
