"""How a process learns of a commit: something that becomes readable when a manifest was appended to.

It is a hint that saves waiting. Who waits arms it, looks, and only then waits for it, for a limited time: so nothing is
lost if it never rings (another platform, a network filesystem, no inotify instance left), only later. Each arming
rings once, so a watched writer pays for one event, not for one a commit.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

inotify: ModuleType | None = importlib.import_module("inotify_simple") if sys.platform == "linux" else None


class Doorbell:
    """Rings when the file that it is armed for is written; `fileno` is then readable.

    `is_working` is False where the system has none to give: then it never rings.
    """

    def __init__(self) -> None:
        self._inotify: Any = None
        if inotify is not None:
            try:
                self._inotify = inotify.INotify(nonblocking=True)
            except OSError:  # no instance, or no descriptor, is left
                self._inotify = None

    @property
    def is_working(self) -> bool:
        return self._inotify is not None

    def fileno(self) -> int:
        assert self._inotify is not None
        return int(self._inotify.fileno())

    def arm(self, fd: int, *, names: bool = False) -> None:
        """Ring once, at the next write to the open file `fd` by whatever process, and forget earlier ringing.

        With `names`, `fd` is a directory, and the next file that is renamed into it rings.
        """
        if self._inotify is None or inotify is None:
            return
        try:
            self._inotify.read(timeout=0)
            self._inotify.add_watch(
                f"/proc/self/fd/{fd}",
                (inotify.flags.MOVED_TO if names else inotify.flags.MODIFY) | inotify.flags.ONESHOT,
            )
        except OSError:  # no watch is left, or /proc is not there
            self.close()

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
