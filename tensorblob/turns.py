"""Taking turns: how writers in several processes share one blob.

Each holds writer.lock shared for as long as it lives, so that no sole writer comes in, and commit.lock exclusively for
each commit. A turn begins by taking note of what the others have committed; within it this process is the only writer
there is, and everything that a sole writer may do is allowed. What peers must know of and cannot see in the manifest
(that a sync failed) is written into commit.lock: the generation, and the blocks that must not be trusted in it.

Nobody waits for a turn for ever: a peer may have been stopped in the middle of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType

import msgspec

from tensorblob import files, forks


class Trouble(msgspec.Struct, frozen=True):
    """A sync of `generation` failed: nothing more is appended to it, and the blocks `poisoned` are not trusted."""

    generation: int
    poisoned: tuple[str, ...]


def trouble_in(dir_fd: int) -> Trouble | None:
    """What commit.lock says, for who has no turn. Raises if it cannot be read: nothing would be known then."""
    fd = files.open_file("commit.lock", dir_fd=dir_fd)
    try:
        return files.said(fd, Trouble)
    finally:
        os.close(fd)


class Turns:
    """A lock for threads and processes, used as the context manager of a turn; `begin` is called first in each.

    path, dir_fd: the blob's directory. timeout_s: how long to wait for a sole writer; for a turn, `files.STOPPED_S` at
    least. Raises `WriterBusy`. It is reentrant. In a forked child it is free, and the parent's turn stays the parent's.
    """

    def __init__(self, path: str, dir_fd: int, timeout_s: float, begin: Callable[[], None]) -> None:
        self._begin = begin
        self._timeout_s = min(max(timeout_s, files.STOPPED_S), threading.TIMEOUT_MAX)
        self.threads = forks.rlock()
        """Keeps the threads of this process apart; whoever has the turn has this, too."""
        self._depth = 0
        self._writer_fd = files.share_writer_lock(os.path.join(path, "writer.lock"), timeout_s)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._writer_fd)
            self._fd = files.open_for_append("commit.lock", dir_fd=dir_fd)
            undo.callback(os.close, self._fd)
            self._lock = TimedLock(self._fd)
            undo.pop_all()
        forks.own(self)

    def __enter__(self) -> None:
        self.threads.acquire()
        try:
            if not self._depth and self._fd >= 0:
                self._wait()
                self._start()
            self._depth += 1
        except BaseException:
            self.threads.release()
            raise

    def _wait(self) -> None:
        """Wait for the turn. Who has it for long may be syncing a lot: only one that was stopped is given up at once."""
        if self._lock.acquire(self._timeout_s):
            return
        if files.is_stopped(files.lock_holder(self._fd)) or not self._lock.acquire(files.SLOW_S):
            raise files.busy(self._fd, "its turn to write", self._timeout_s)

    @property
    def is_mine(self) -> bool:
        """True in a turn of this thread."""
        return self._depth > 0 and bool(self.threads._is_owned())

    def _start(self) -> None:
        try:
            self._begin()
        except BaseException:
            files.unlock(self._fd)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._depth == 1 and self._fd >= 0:
                files.unlock(self._fd)
        finally:
            self._depth -= 1
            self.threads.release()

    def try_enter(self) -> bool:
        """Begin a turn if nobody has one; it ends by `__exit__`."""
        if not self.threads.acquire(blocking=False):
            return False
        has_turn = False
        try:
            if not self._depth:
                if self._fd < 0 or not self._lock.try_acquire():
                    return False
                self._start()
            self._depth += 1
            has_turn = True
            return True
        finally:
            if not has_turn:
                self.threads.release()

    def trouble(self) -> Trouble | None:
        """What peers have to know; asked within a turn."""
        return files.said(self._fd, Trouble)

    def close(self) -> None:
        if self._fd >= 0:
            self._lock.close()
            os.close(self._fd)
            os.close(self._writer_fd)
            self._fd = -1

    def close_in_child(self) -> None:
        """The locks stay with the parent's descriptors."""
        if self._fd >= 0:
            self._lock.close_in_child()
            os.close(self._fd)
            os.close(self._writer_fd)
            self._fd = -1


class TimedLock:
    """An exclusive flock on the open file `fd`, for which one waits only so long.

    The kernel's wait cannot be cut short, so a thread of ours does the waiting. If nobody wants the lock any more when it
    comes, it is let go at once. One at a time may ask. It has a descriptor of its own for the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._changed = threading.Condition()
        self._is_asked = self._is_wanted = self._is_had = self._is_closed = False
        """The thread waits for the kernel; the caller waits for the thread; the thread got the lock for the caller."""
        self._error: OSError | None = None
        """What the kernel said instead."""
        self._thread: threading.Thread | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free now."""
        with self._changed:  # while the thread is asking, the lock may come to it, which is the same as to us
            return not self._is_asked and files.try_lock(self._fd, shared=False)

    def acquire(self, timeout_s: float) -> bool:
        """Take the lock within so many seconds; return whether it was had."""
        with self._changed:
            if not self._is_asked:
                if files.try_lock(self._fd, shared=False):
                    return True
                self._ask()
            self._is_wanted = True
            try:
                self._changed.wait_for(lambda: self._is_had or self._error is not None, timeout_s)
            except BaseException:
                if self._is_had:
                    files.unlock(self._fd)
                raise
            finally:
                is_had, error = self._is_had, self._error
                self._is_wanted, self._is_had, self._error = False, False, None
            if error is not None:
                raise error
            return is_had

    def _ask(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="tensorblob-turns", daemon=True)
            thread.start()
            self._thread = thread
        self._is_asked = True
        self._changed.notify_all()

    def close(self) -> None:
        """End the thread; if the kernel keeps it waiting, as soon as that lets it go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            is_asked = self._is_asked
        if not is_asked:
            if self._thread is not None:
                self._thread.join()
            self.close_in_child()

    def close_in_child(self) -> None:
        """Close the file, whatever a thread of the parent was doing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_asked or self._is_closed)
                if self._is_closed:
                    if self._is_asked:  # closed before it could ask: the file was left to it
                        self.close_in_child()
                    return
            error: OSError | None = None
            try:
                files.lock(self._fd)
            except OSError as raised:
                error = raised
            with self._changed:
                self._is_asked = False
                if self._is_closed:
                    self.close_in_child()  # the lock goes with it
                    return
                if self._is_wanted:
                    self._is_had, self._error = error is None, error
                    self._changed.notify_all()
                elif error is None:
                    files.unlock(self._fd)
