"""Rate limiters: how much may be sampled from a replay buffer for each row inserted, and the other way round.

The terms are Reverb's (Cassirer et al., "Reverb: A Framework for Experience Replay", 2021). A limiter compares what was
inserted with what was sampled, and makes whoever runs ahead wait. The two counts are kept in limiter.<name>.lock in the
blob's cursors/ directory, under a flock, so that one limiter holds for all tasks and processes that name it. The file has
two places that are written in turn, each with a checksum: a write that fails half-way leaves the counts as they were.
"""

from __future__ import annotations

import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import anyio
import anyio.lowlevel

from tensorblob import files
from tensorblob.cursors import check_name
from tensorblob.errors import BlobClosed, WriterBusy
from tensorblob.format import COUNTS_NBYTES, Counts, decode_counts, encode_counts
from tensorblob.presence import is_dead

FIRST_POLL_S, LAST_POLL_S, LOOK_S = 0.0005, 0.02, 0.25
SPIN_S = 0.002
"""So long the counts are waited for on the event loop: others hold them for some twenty microseconds."""


class RateLimiter(ABC):
    """The rule by which inserts and samples wait for each other. `name` is that of the counts it goes by: writers and
    readers of one blob that are opened with limiters of one name, in any processes, share them.
    """

    def __init__(self, name: str = "default") -> None:
        self.name = check_name(name)

    @abstractmethod
    def may_insert(self, inserted: int, sampled: int, count: int) -> bool:
        """True if `count` rows may be inserted, where so many were inserted and sampled before."""

    @abstractmethod
    def may_sample(self, inserted: int, sampled: int, count: int) -> bool:
        """True if `count` rows may be sampled."""

    def check_sample(self, count: int) -> None:
        """Raise `ValueError` if `count` rows will never be allowed at once."""
        return

    def open(self, dir_fd: int, producer: str = "") -> Limit:
        """Open the counts of the blob at `dir_fd`, for the writer `producer` or a reader.

        What was in the blob before the first limiter does not count.
        """
        return Limit(self, dir_fd, producer)


class Limit:
    """A limiter at work in one blob. Rows are admitted, and then inserted when they are committed; or given back."""

    def __init__(self, rule: RateLimiter, dir_fd: int, producer: str = "") -> None:
        self.rule = rule
        self._producer = producer
        self._unsaid = [0, 0, 0]
        """Rows that were inserted, and given back, and samples that were given back, which the file does not say yet."""
        self._fd = self._dir_fd = -1
        self._dir_fd = os.dup(dir_fd)
        try:
            self._fd = files.open_or_create(f"cursors/limiter.{rule.name}.lock", dir_fd=dir_fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Say what is to be said, if nobody keeps the counts, and leave them."""
        self.say()
        for fd in (self._fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._dir_fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()

    @property
    def counts(self) -> tuple[int, int]:
        """The rows that were inserted, and that were sampled."""
        counts = self._read()
        return counts.inserted, counts.sampled

    def _read(self) -> Counts:
        found = Counts()  # none yet, or torn by a power loss: they begin again
        for place in (0, 1):
            said = decode_counts(files.read_at(self._fd, COUNTS_NBYTES, place * COUNTS_NBYTES))
            if said is not None and said.step >= found.step:
                found = said
        inserted, given_back, samples = self._unsaid
        if self.has_unsaid:
            found.inserted += inserted
            found.sampled -= samples
            found.admitted[self._producer] = max(found.admitted.get(self._producer, 0) - inserted - given_back, 0)
        return found

    def _write(self, counts: Counts) -> None:
        counts.step += 1
        counts.admitted = {producer: count for producer, count in counts.admitted.items() if count}
        line = encode_counts(counts)
        if len(line) > COUNTS_NBYTES:
            counts.admitted = {name: rows for name, rows in counts.admitted.items() if not is_dead(self._dir_fd, name)}
            line = encode_counts(counts)
        files.write_at(self._fd, line, len(line), counts.step % 2 * COUNTS_NBYTES)
        self._unsaid = [0, 0, 0]

    def _locked(self) -> AbstractContextManager[None]:
        """Hold the counts; raises `WriterBusy` if somebody else does for longer than that takes."""
        if self._fd < 0:
            raise BlobClosed("I/O operation on closed blob.")
        return files.locked(self._fd, f"the limiter {self.rule.name!r}", SPIN_S)

    def try_insert(self, count: int) -> bool:
        """Admit `count` rows if they may be inserted now. Raises `WriterBusy` if the counts are not to be had now."""
        with self._locked():
            counts = self._read()
            if count and not self._may_insert(counts, count):
                dead = [producer for producer in counts.admitted if is_dead(self._dir_fd, producer)]
                for producer in dead:  # what it was let in with never comes
                    del counts.admitted[producer]
                if not dead or not self._may_insert(counts, count):
                    return False
            counts.admitted[self._producer] = counts.admitted.get(self._producer, 0) + count
            self._write(counts)
            return True

    def _may_insert(self, counts: Counts, count: int) -> bool:
        return self.rule.may_insert(counts.inserted + sum(counts.admitted.values()), counts.sampled, count)

    def inserted(self, count: int) -> None:
        """`count` rows that were admitted are committed; a negative count: they were not, and are given back.

        Once it is closed there is nothing to say: what a producer that is gone was let in with counts no more. It fails
        nobody, for the rows are committed: what cannot be said now is said later, by `say`.
        """
        self._unsaid[0 if count > 0 else 1] += abs(count)
        self.say()

    def give_back(self, count: int) -> None:
        """`count` rows that were counted as sampled were not. It fails nobody, as `inserted`."""
        self._unsaid[2] += count
        self.say()

    @property
    def has_unsaid(self) -> bool:
        """Others have yet to hear of something."""
        return any(self._unsaid)

    def say(self) -> None:
        """Say what is not said yet, if the counts are to be had now."""
        if self._fd >= 0 and self.has_unsaid:
            with contextlib.suppress(OSError), self._locked():
                self._write(self._read())

    def try_sample(self, count: int) -> bool:
        """Count `count` rows as sampled if they may be. Raises `WriterBusy` if the counts are not to be had now."""
        with self._locked():
            counts = self._read()
            if not self.rule.may_sample(counts.inserted, counts.sampled, count):
                return False
            counts.sampled += count
            self._write(counts)
            return True

    async def _wait(self, attempt: Callable[[int], bool], count: int, look: Callable[[], None] | None) -> None:
        await anyio.lowlevel.checkpoint()
        pause_s, look_s = FIRST_POLL_S, anyio.current_time() + LOOK_S
        free_s = anyio.current_time()
        while True:
            try:
                if attempt(count):
                    return
                free_s = anyio.current_time()
            except WriterBusy:
                if anyio.current_time() - free_s >= files.STOPPED_S:
                    raise
            await anyio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LAST_POLL_S)
            if look is not None and anyio.current_time() >= look_s:
                look()
                look_s += LOOK_S

    async def wait_to_insert(self, count: int, look: Callable[[], None] | None = None) -> None:
        """Wait until `count` rows may be inserted, and admit them; `look` is called now and then, and may raise.

        A cancellation admits nothing. A sampler that died is waited for, since another may come: bound the wait by
        `anyio.fail_after`.
        """
        await self._wait(self.try_insert, count, look)

    async def wait_to_sample(self, count: int, look: Callable[[], None] | None = None) -> None:
        """Wait until `count` rows may be sampled, and count them; `look` is called now and then, and may raise.

        A cancellation counts nothing. Raises `ValueError` if they never will be allowed at once.
        """
        self.rule.check_sample(count)
        await self._wait(self.try_sample, count, look)


class MinSize(RateLimiter):
    """Sampling waits until `min_size_to_sample` rows were inserted; inserting never waits."""

    def __init__(self, min_size_to_sample: int, name: str = "default") -> None:
        super().__init__(name)
        if not 1 <= min_size_to_sample < math.inf:
            raise ValueError(f"min_size_to_sample must be positive and finite, got {min_size_to_sample!r}")
        self.min_size_to_sample = min_size_to_sample

    def may_insert(self, inserted: int, sampled: int, count: int) -> bool:
        return True

    def may_sample(self, inserted: int, sampled: int, count: int) -> bool:
        return inserted >= self.min_size_to_sample


class SampleToInsertRatio(RateLimiter):
    """Each inserted row is sampled `samples_per_insert` times on average, within `error_buffer` samples.

    Sampling waits for the first `min_size_to_sample` rows. After them the difference
    `inserted * samples_per_insert - sampled` stays within `error_buffer` of
    `min_size_to_sample * samples_per_insert`: whoever would leave that range waits. `error_buffer` must be at least
    as large as one insert and one sample make it move, or both sides could wait for each other; that is an error at once.
    """

    def __init__(
        self, samples_per_insert: float, min_size_to_sample: int, error_buffer: float, name: str = "default"
    ) -> None:
        super().__init__(name)
        if not (0 < samples_per_insert < math.inf and 1 <= min_size_to_sample < math.inf):
            raise ValueError("samples_per_insert and min_size_to_sample must be positive and finite")
        if not 2 * max(1.0, samples_per_insert) <= error_buffer < math.inf:
            raise ValueError(
                "error_buffer must be finite, and at least 2 * max(1, samples_per_insert) = "
                f"{2 * max(1.0, samples_per_insert)}, got {error_buffer!r}: nobody could go on"
            )
        self.samples_per_insert = samples_per_insert
        self.min_size_to_sample = min_size_to_sample
        offset = samples_per_insert * min_size_to_sample
        self._min_difference, self._max_difference = offset - error_buffer, offset + error_buffer

    def may_insert(self, inserted: int, sampled: int, count: int) -> bool:
        if inserted + count <= self.min_size_to_sample:
            return True
        difference = inserted * self.samples_per_insert - sampled
        return difference + count * self.samples_per_insert <= self._max_difference or difference <= self._middle(count)

    def may_sample(self, inserted: int, sampled: int, count: int) -> bool:
        if inserted < self.min_size_to_sample:
            return False
        difference = inserted * self.samples_per_insert - sampled
        return difference - count >= self._min_difference or difference >= self._middle(-count)

    def _middle(self, count: int) -> float:
        """A step that is larger than the whole range is allowed from the middle of it on, or it would never be."""
        middle = (self._min_difference + self._max_difference) / 2
        step = count * self.samples_per_insert if count > 0 else -count
        room = (self._max_difference - self._min_difference) / 2
        if step <= room:
            return float("-inf") if count > 0 else float("inf")
        return middle


class Queue(RateLimiter):
    """Each row is sampled once: sampling waits for rows, and inserting while `size` rows or more are not sampled yet."""

    def __init__(self, size: int, name: str = "default") -> None:
        super().__init__(name)
        if not 1 <= size < math.inf:
            raise ValueError(f"size must be positive and finite, got {size!r}")
        self.size = size

    def may_insert(self, inserted: int, sampled: int, count: int) -> bool:
        return inserted - sampled < self.size

    def may_sample(self, inserted: int, sampled: int, count: int) -> bool:
        return inserted - sampled >= count

    def check_sample(self, count: int) -> None:
        if count > self.size:
            raise ValueError(f"{count} rows at once are more than a queue of {self.size} ever holds for sure")
