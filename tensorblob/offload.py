"""Work in a thread that is over when whoever waits for it goes on, however they are cancelled.

anyio's shields hold anyio's cancellation off. asyncio's own (`task.cancel()`, `asyncio.timeout`, the end of `asyncio.run`)
goes through them, and would leave a thread at work on what the caller takes for its own again, or a lock that is taken
after it was let go.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
POLL_S = 0.001


class _Job(Generic[T]):
    """Work that is done once, by whoever comes first."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._claim, self._over = threading.Lock(), threading.Event()
        self.values: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        if self._claim.acquire(blocking=False):
            try:
                self.values.append(self._work())
            except BaseException as error:
                self._error = error
            finally:
                self._over.set()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self.values[0]


async def _finished(job: _Job[Any], limiter: anyio.CapacityLimiter | None) -> None:
    with anyio.CancelScope(shield=True):
        try:
            await anyio.to_thread.run_sync(job.run, limiter=limiter)
        except anyio.get_cancelled_exc_class():
            # asyncio cancelled this very task: its loop ends, but others of it may hold the lock that the work waits for
            try:
                threading.Thread(target=job.run).start()  # if none has begun
            except RuntimeError:  # no thread to be had
                job.run()
            while not job.is_over:
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep(POLL_S)
            raise


async def finished(work: Callable[[], T], *, limiter: anyio.CapacityLimiter | None = None) -> T:
    """Do `work()` in a thread and return what it does, for a task of our own, which is only cancelled with its loop."""
    job = _Job(work)
    await _finished(job, limiter)
    return job.result()


async def to_the_end(
    work: Callable[[], T],
    *,
    limiter: anyio.CapacityLimiter | None = None,
    undo: Callable[[T], object] | None = None,
) -> T:
    """Do `work()` in a thread and return what it does, for a task of the caller's, which may be cancelled by any means.

    If it is, the work is done first; `undo(value)` then takes back what nobody receives.
    """
    job = _Job(work)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_finished, job, limiter)
    except BaseException as error:
        if undo is not None and job.values:
            undo(job.values[0])
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0] from None
        raise
    return job.result()
