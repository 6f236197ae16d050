"""What a fork does to us: locks that are free in the child, whoever held them, and a count by which a child knows itself.

A forked child has one thread; what another one of the parent was in the middle of stays undone in it, and a lock that
it held would never be free. So everything that our locks guard is published in one step.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
count = 0
"""How many forks lie between this process and the one that imported us first: it differs in a child."""


def lock() -> threading.Lock:
    """Return a new lock that is free in a forked child."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> Any:
    """Return a new reentrant lock that is free in a forked child."""
    made = threading.RLock()
    _locks.add(made)
    return made


def _after_fork_in_child() -> None:
    global count
    count += 1
    for held in list(_locks):
        held._at_fork_reinit()  # as threading and logging do it


os.register_at_fork(after_in_child=_after_fork_in_child)
