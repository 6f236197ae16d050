"""What a fork does to us: locks that are free in the child, whoever held them, and a count by which a child knows itself.

A forked child has one thread; what another one of the parent was in the middle of stays undone in it, and a lock that
it held would never be free. So everything that our locks guard is published in one step.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any, Protocol

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


class Owner(Protocol):
    """Something that holds files which a forked child must not keep open: their locks would outlive it."""

    def close_in_child(self) -> None: ...


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
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


def own(owner: Owner) -> None:
    """Have `owner.close_in_child()` called in forked children, for as long as it lives."""
    _owners.add(owner)


def _after_fork_in_child() -> None:
    global count
    count += 1
    for held in list(_locks):
        held._at_fork_reinit()  # as threading and logging do it
    for owner in list(_owners):
        with contextlib.suppress(OSError):
            owner.close_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
