"""Taking turns: how writers in several processes share one blob.

Each holds writer.lock shared for as long as it lives, so that no sole writer comes in, and commit.lock exclusively for
each commit. A turn begins by taking note of what the others have committed; within it this process is the only writer
there is, and everything that a sole writer may do is allowed. What peers must know of and cannot see in the manifest
(that a sync failed) is written into commit.lock: the generation, and the blocks that must not be trusted in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

import msgspec

from tensorblob import files, forks


class Trouble(msgspec.Struct, frozen=True):
    """A sync of `generation` failed: nothing more is appended to it, and the blocks `poisoned` are not trusted."""

    generation: int
    poisoned: tuple[str, ...]


class Turns:
    """A lock for threads and processes, used as the context manager of a turn; `begin` is called first in each.

    path, dir_fd: the blob's directory. timeout_s: how long to wait for a sole writer; raises `WriterBusy`. It is
    reentrant. In a forked child it is free, and the parent's turn stays the parent's.
    """

    def __init__(self, path: str, dir_fd: int, timeout_s: float, begin: Callable[[], None]) -> None:
        self._begin = begin
        self._threads = forks.rlock()
        self._depth = 0
        self._writer_fd = files.share_writer_lock(os.path.join(path, "writer.lock"), timeout_s)
        try:
            self._fd = files.open_for_append("commit.lock", dir_fd=dir_fd)
        except BaseException:
            os.close(self._writer_fd)
            raise
        forks.own(self)

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if not self._depth and self._fd >= 0:
                files.lock(self._fd)
                try:
                    self._begin()
                except BaseException:
                    files.unlock(self._fd)
                    raise
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._depth == 1 and self._fd >= 0:
                files.unlock(self._fd)
        finally:
            self._depth -= 1
            self._threads.release()

    def try_enter(self) -> bool:
        """Begin a turn if nobody has one; it ends by `__exit__`."""
        if not self._threads.acquire(blocking=False):
            return False
        try:
            is_ours = bool(self._depth) or (self._fd >= 0 and files.try_lock(self._fd, shared=False))
        except BaseException:
            self._threads.release()
            raise
        if not is_ours:
            self._threads.release()
            return False
        try:
            if not self._depth:
                self._begin()
            self._depth += 1
        except BaseException:
            files.unlock(self._fd)
            self._threads.release()
            raise
        return True

    def trouble(self) -> Trouble | None:
        """What peers have to know; asked within a turn."""
        return files.said(self._fd, Trouble)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._writer_fd)
            self._fd = -1

    def close_in_child(self) -> None:
        self.close()  # the locks stay with the parent's descriptors
