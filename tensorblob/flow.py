"""Flow control: producers wait for consumers that fall too far behind, and rings keep what consumers still need.

Consumers show where they are by their cursors, so this works across processes and survives both sides. The files are
read only when what is known of them would make somebody wait, or trim.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from tensorblob import files
from tensorblob.cursors import check_name, is_alive, is_name, read_position
from tensorblob.doorbell import Doorbell
from tensorblob.errors import BlobClosed, ConsumerDied
from tensorblob.presence import present

if TYPE_CHECKING:
    from tensorblob.writer import Writer

POLL_S = 0.1
RACY_NS = 50_000_000
"""A directory that was changed within this may change once more, and show the same time."""


class LagGate:
    """Lets producers through while every consumer of `consumers` is at most `max_lag_rows` rows behind."""

    def __init__(self, consumers: Sequence[str], max_lag_rows: int | None, on_dead_consumer: str) -> None:
        if isinstance(consumers, str):
            raise TypeError("consumers must be a sequence of cursor names")
        if (max_lag_rows is None) != (not consumers):
            raise ValueError("max_lag_rows and consumers go together")
        if max_lag_rows is not None and (not isinstance(max_lag_rows, int) or max_lag_rows < 1):
            raise ValueError(f"max_lag_rows must be a positive int, got {max_lag_rows!r}")
        if on_dead_consumer not in ("wait", "raise", "drop"):
            raise ValueError(f"on_dead_consumer must be 'wait', 'raise' or 'drop', got {on_dead_consumer!r}")
        self._names = [check_name(name) for name in consumers]
        self._max_lag_rows = sys.maxsize if max_lag_rows is None else max_lag_rows
        self._on_dead = on_dead_consumer
        self.is_active = bool(self._names)
        self.dead: tuple[str, ...] = ()
        self.waiting = 0
        self._slowest_row = 0
        self._is_watched = self._is_stopped = False
        self._news = anyio.Event()
        self._bell: Doorbell | None = None
        self._dir_fd = self._cursors_fd = -1

    def watch(self, dir_fd: int, writer: Writer) -> None:
        """Watch the cursors of the blob that `writer` writes."""
        self._writer = writer
        self._begin_row = writer.snapshot.first_row
        if self.is_active:
            self._bell = Doorbell()
            self._dir_fd = os.dup(dir_fd)
            self._cursors_fd = files.open_directory("cursors", dir_fd=dir_fd)

    @property
    def waits_for(self) -> tuple[tuple[str, ...], int]:
        """Which consumers, and how many rows they may be behind: followers then ask for no longer batches."""
        return tuple(self._names), self._max_lag_rows

    def stop(self) -> None:
        """The writer closes: whoever waits is told so."""
        self._is_stopped = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def close(self) -> None:
        if self._bell is not None:
            if self._bell.is_working:
                anyio.notify_closing(self._bell.fileno())
            self._bell.close()
            self._bell = None
        for fd in (self._cursors_fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._cursors_fd = self._dir_fd = -1

    def _is_open(self) -> bool:
        return self._writer.stop_row - self._slowest_row <= self._max_lag_rows

    def would_wait(self) -> bool:
        """True if a producer would have to wait now. Raises `ConsumerDied` if that is asked for."""
        if not self.is_active or self._is_open():
            return False
        self._look()
        return not self._is_open()

    def _look(self) -> None:
        """Read where the consumers are. One that was not seen yet is at the first row."""
        rows, dead = [], []
        for name in self._names:
            position = read_position(self._dir_fd, name)
            if position is None:
                rows.append(self._begin_row)
                continue
            behind = self._writer.stop_row - position.row > self._max_lag_rows
            if behind and not is_alive(self._dir_fd, name):
                dead.append(name)
                if self._on_dead == "drop":
                    continue
            rows.append(position.row)
        self._slowest_row = min(rows, default=sys.maxsize)
        for name in set(dead) - set(self.dead):
            what = f"The consumer {name!r} died more than {self._max_lag_rows} rows behind"
            if self._on_dead == "raise":
                raise ConsumerDied(f"{what}; restart it, or leave it out of consumers=", name=name)
            rest = "producers wait until it is back" if self._on_dead == "wait" else "nobody waits for it any more"
            warnings.warn(f"{what}: {rest}", RuntimeWarning, stacklevel=2)
        self.dead = tuple(dead)

    async def wait(self) -> None:
        """Wait until the slowest consumer is near enough. A cancellation changes nothing. Raises `ConsumerDied`."""
        if not self.would_wait():
            return
        self.waiting += 1
        try:
            while self.would_wait():
                if self._is_watched:
                    await self._news.wait()
                else:
                    self._is_watched = True
                    try:
                        await self._watch()
                    finally:
                        self._is_watched = False
                        self._tell()
                if self._is_stopped:
                    raise BlobClosed("I/O operation on closed blob.")
        finally:
            self.waiting -= 1

    async def _watch(self) -> None:
        bell = self._bell
        assert bell is not None
        bell.arm(self._cursors_fd, names=True)
        if not self.would_wait():
            return
        with anyio.move_on_after(POLL_S if bell.is_working else POLL_S / 20) as waiting:
            if bell.is_working:
                with contextlib.suppress(anyio.ClosedResourceError):  # the writer closes
                    await anyio.wait_readable(bell.fileno())
            else:
                await anyio.sleep_forever()
        if waiting.cancelled_caught and self._writer.snapshot.durable_rows < self._writer.stop_row:
            with contextlib.suppress(OSError):  # a consumer of durable rows may wait for just this
                await anyio.to_thread.run_sync(self._writer.flush)


class Retainer:
    """Says from which row on a ring must keep its rows, for cursors that have not acknowledged them."""

    def __init__(self, names: Sequence[str], *, is_shared: bool = False) -> None:
        if isinstance(names, str):
            raise TypeError("retain_for must be a sequence of cursor names")
        self.names = [check_name(name) for name in names]
        self._is_shared = is_shared
        """Peers may retain for others: look who is there, too."""
        self._fds: list[int] = []
        self._seen: list[tuple[int, int]] = []
        """How the directories were when they were looked into."""
        self._row = -1

    def watch(self, dir_fd: int) -> None:
        """Look at the cursors, and who is there, of the blob at `dir_fd`."""
        self._fds = [os.dup(dir_fd)]
        for name in ("cursors", *(["producers"] if self._is_shared else [])):
            self._fds.append(files.open_directory(name, dir_fd=dir_fd))

    def close(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()

    def keep_from(self, first_row: int) -> int:
        """The row to trim before, where retention alone would trim before `first_row`."""
        dir_fd, *directories = self._fds
        seen = [(stat.st_mtime_ns, stat.st_ino) for stat in map(os.fstat, directories)]
        if seen != self._seen or time.time_ns() - max(seen)[0] < RACY_NS:
            names = set(self.names)
            if self._is_shared:
                names.update(name for who in present(dir_fd) for name in who.retain_for if is_name(name))
            positions = [read_position(dir_fd, name) for name in names]
            self._row = min((0 if position is None else position.row for position in positions), default=sys.maxsize)
            self._seen = seen
        return min(first_row, self._row)
