"""A thread that calls a function now and then: when woken, and every so many seconds. It keeps nothing alive."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable


class Flusher:
    """Calls the bound method `flush` in the background. What it raises as `OSError` shows in its owner, so it is
    dropped here.

    The thread starts when first needed, and ends when its owner is gone or `stop` is called.
    """

    def __init__(self, flush: Callable[[], None], every_s: float | None) -> None:
        self._flush = weakref.WeakMethod(flush)
        self._every_s = every_s
        self._event = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None
        if every_s is not None:
            self._start()

    def _start(self) -> None:
        event = self._event
        owner = weakref.ref(self, lambda _: event.set())
        thread = threading.Thread(
            target=_run, name="tensorblob-flush", args=(self._flush, event, self._every_s, owner), daemon=True
        )
        with contextlib.suppress(RuntimeError):  # no thread to be had now: tried again at the next waking
            thread.start()
            self._thread = thread

    def wake(self) -> None:
        if self._thread is None:
            self._start()
        self._event.set()

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def stop(self, *, wait: bool = True) -> None:
        """End the thread, and wait until it has."""
        self._is_stopped = True
        if self._thread is not None:
            self._event.set()
            if wait and self._thread is not threading.current_thread():
                self._thread.join()


def _run(
    method: weakref.WeakMethod[Callable[[], None]],
    event: threading.Event,
    every_s: float | None,
    owner: weakref.ref[Flusher],
) -> None:
    while True:
        event.wait(every_s)
        event.clear()
        flusher, flush = owner(), method()
        if flusher is None or flusher.is_stopped or flush is None:
            return
        del flusher
        with contextlib.suppress(OSError):
            flush()
        del flush
