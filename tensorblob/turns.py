"""Taking turns: how writers in several processes share one blob.

Each holds writer.lock shared for as long as it lives, so that no sole writer comes in, and commit.lock exclusively for
each commit. A turn begins by taking note of what the others have committed; within it this process is the only writer
there is, and everything that a sole writer may do is allowed. What peers must know of and cannot see in the manifest
(that a sync failed) is written into commit.lock: the generation, and the blocks that must not be trusted in it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import msgspec

from tensorblob import files, forks

TROUBLE_NBYTES = 64 << 10


class Trouble(msgspec.Struct, frozen=True):
    """A sync of `generation` failed: nothing more is appended to it, and the blocks `poisoned` are not trusted."""

    generation: int
    poisoned: tuple[str, ...]


class Turns:
    """A lock for threads and processes, used as the context manager of a turn; `begin` is called first in each.

    It is reentrant. In a forked child it is free, and the parent's turn stays the parent's.
    """

    def __init__(self, dir_fd: int, begin: Callable[[], None]) -> None:
        self._fd = files.open_for_append("commit.lock", dir_fd=dir_fd)
        self._begin = begin
        self._threads = forks.rlock()
        self._depth = 0

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
        if not self._depth and (self._fd < 0 or not files.try_lock(self._fd, shared=False)):
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
        data = files.read_at(self._fd, TROUBLE_NBYTES, 0).rstrip(b"\0 ")
        if not data:
            return None
        try:
            return msgspec.json.decode(data, type=Trouble)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # torn by a power loss, after which it means nothing

    def report(self, trouble: Trouble) -> None:
        """Tell the peers, within a turn."""
        data = msgspec.json.encode(trouble)
        data = data.ljust(max(len(data), files.size_of(self._fd)))
        files.write_at(self._fd, data, len(data), 0)

    def close(self) -> None:
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1
