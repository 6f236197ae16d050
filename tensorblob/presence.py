"""Who is at work in a blob: every writer holds a flock on a file of its own in producers/ for as long as it lives.

A file that nobody holds was left by a process that died; one that closed has removed it, or hidden it by a dot if there
is garbage left for the next writer to sweep. Whoever looks takes the lock shared for an instant, which is in nobody's
way: the owner has had it since before the file got its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from typing import NamedTuple

import msgspec

from tensorblob import files, forks
from tensorblob.format import is_producer


class Identity(msgspec.Struct, frozen=True):
    """What a producer's file says: who it is, which consumers it waits for once they are more rows behind, how durable
    its commits are, and for which consumers rings have to keep their rows.
    """

    pid: int
    host: str
    consumers: tuple[str, ...] = ()
    max_lag_rows: int = sys.maxsize
    durability: str = "process"
    retain_for: tuple[str, ...] = ()


class Presence(NamedTuple):
    """The producers that are at work now, and those that died without leaving."""

    alive: list[str]
    dead: list[str]


def is_dead(dir_fd: int, producer: str) -> bool:
    """True if nobody holds the file of `producer`, or there is none."""
    try:
        return _is_free(dir_fd, producer)
    except FileNotFoundError:
        return True


def _is_free(dir_fd: int, producer: str) -> bool:
    fd = files.open_file(f"producers/{producer}", dir_fd=dir_fd)
    try:
        return files.try_lock(fd, shared=True)
    finally:
        os.close(fd)


def presence(dir_fd: int) -> Presence:
    """Look who is there."""
    found = Presence([], [])
    for name in files.list_directory("producers", dir_fd=dir_fd):
        if is_producer(name):
            with contextlib.suppress(FileNotFoundError):  # it closed since it was listed
                (found.dead if _is_free(dir_fd, name) else found.alive).append(name)
    return found


def present(dir_fd: int) -> list[Identity]:
    """Who is at work, as far as they say."""
    found = (identity(dir_fd, producer) for producer in presence(dir_fd).alive)
    return [who for who in found if who is not None]


def identity(dir_fd: int, producer: str) -> Identity | None:
    """Return who a producer is, or None if its file does not say, or is gone. Raises if it cannot be asked: it may have
    said that rows must be kept.
    """
    try:
        fd = files.open_file(f"producers/{producer}", dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return files.said(fd, Identity)
    finally:
        os.close(fd)


class Announcement:
    """Our own file in producers/: locked from before it gets its name until `close`."""

    def __init__(self, dir_fd: int, durability: str) -> None:
        self._dir_fd, self._durability = dir_fd, durability
        self.producer = secrets.token_hex(5)
        self._path, self._hidden = f"producers/{self.producer}", f"producers/.{self.producer}"
        self.fd = files.create_file(self._hidden, dir_fd=dir_fd)
        try:
            if not files.try_lock(self.fd, shared=False):
                raise AssertionError("nobody else has the name")
            self.say()
            files.rename(self._hidden, self._path, dir_fd=dir_fd)
        except BaseException:
            self.close()
            raise
        forks.own(self)

    def say(
        self, consumers: tuple[str, ...] = (), max_lag_rows: int = sys.maxsize, retain_for: tuple[str, ...] = ()
    ) -> None:
        """Say who we are, whom we wait for, and for whom rows are kept. Raises if peers could not learn of the last; the
        rest only informs, and a full disk fails nobody.
        """
        me = files.Holder.me()
        with contextlib.nullcontext() if retain_for else contextlib.suppress(OSError):
            files.say(self.fd, Identity(me.pid, me.host, consumers, max_lag_rows, self._durability, retain_for))
            if retain_for:
                files.mark_changed("producers", dir_fd=self._dir_fd)  # peers look again when the directory has changed

    def close(self, *, has_garbage: bool = False) -> None:
        """Leave. With garbage the file stays, hidden: so the next writer has something to sweep, and nobody died."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            if has_garbage:
                files.rename(self._path, self._hidden, dir_fd=self._dir_fd)
            else:
                for path in (self._path, self._hidden):
                    files.unlink(path, dir_fd=self._dir_fd, missing_ok=True)
        self.close_in_child()

    def close_in_child(self) -> None:
        """In a forked child: that we are there is told by the parent's descriptor alone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
