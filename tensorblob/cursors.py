"""Durable positions of consumers: how far each has read, so that it goes on there after it was killed.

A cursor is cursors/<name>.json, replaced by rename and synced: the row id that its consumer has acknowledged, and the
history that it counts in. cursors/.<name>.lock is held by the consumer for as long as it lives, so that a name has one
consumer at a time, and so that a writer that waits for it can tell whether it is still there. It says who that is.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

import msgspec

from tensorblob import files, forks
from tensorblob.edit import Count
from tensorblob.errors import Corrupt, CursorBusy
from tensorblob.format import crc32c

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class _CursorFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    row: Count
    history: Count
    crc32c: str


class Position(NamedTuple):
    """Rows before `row`, as they were in `history`, are done."""

    row: int
    history: int


class Consumer(NamedTuple):
    """A cursor as others see it. `is_alive`: a consumer holds it now; `pid` says which, if it has said so."""

    name: str
    position: Position
    is_alive: bool
    pid: int | None


def is_name(name: str) -> bool:
    """True if `name` can name a cursor."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return `name`; raise `ValueError` unless it can name a cursor (letters, digits, `_`, `-`, `.`, at most 100)."""
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"Invalid cursor name: {name!r} (letters, digits, '_', '-' and '.', at most 100)")
    return name


def _lock_path(name: str) -> str:
    return f"cursors/.{check_name(name)}.lock"


def _checksum(row: int, history: int) -> str:
    return f"{crc32c(0, f'{row} {history}'.encode()):08x}"


def read_position(dir_fd: int, name: str) -> Position | None:
    """Return where a cursor stands, or None if there is none. Raises `Corrupt` for a damaged file."""
    path = f"cursors/{check_name(name)}.json"
    try:
        data = files.read_file(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=_CursorFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"The cursor {name!r} is damaged: {error}", path=files.path_of(dir_fd, path)) from error
    if found.crc32c != _checksum(found.row, found.history):
        raise Corrupt(f"The cursor {name!r} does not agree with its checksum", path=files.path_of(dir_fd, path))
    return Position(found.row, found.history)


def consumers(dir_fd: int) -> list[Consumer]:
    """All cursors of a blob, by name."""
    found = []
    for file in files.list_directory("cursors", dir_fd=dir_fd):
        name = file.removesuffix(".json")
        if file.endswith(".json") and is_name(name) and (position := read_position(dir_fd, name)) is not None:
            alive = is_alive(dir_fd, name)
            holder = files.said_in(_lock_path(name), files.Holder, dir_fd=dir_fd) if alive else None
            found.append(Consumer(name, position, alive, None if holder is None else holder.pid))
    return found


def is_alive(dir_fd: int, name: str) -> bool:
    """True if a consumer holds the cursor now."""
    try:
        fd = files.open_file(_lock_path(name), dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    try:
        return not files.try_lock(fd, shared=True)
    finally:
        os.close(fd)


class Cursor:
    """A cursor in the hand of its consumer: `acknowledge` moves it, durably; `close` lets another consumer have it.

    dir_fd: the blob's directory, which stays the caller's. Raises `CursorBusy` if another consumer holds the name, and
    `ReadOnlyStore` where cursors cannot be written.
    """

    def __init__(self, dir_fd: int, name: str) -> None:
        self._fd = -1
        self.name, self._dir_fd = name, dir_fd
        self._fd = files.open_or_create(_lock_path(name), dir_fd=dir_fd)
        try:
            if not files.try_lock_soon(self._fd):
                holder = files.said(self._fd, files.Holder)
                who = "" if holder is None else f" (process {holder.pid})"
                raise CursorBusy(f"Another consumer{who} holds the cursor {name!r}")
            files.say(self._fd, files.Holder.me())
            self.position = read_position(dir_fd, name)
            forks.own(self)
        except BaseException:
            self.close()
            raise

    def acknowledge(self, row: int, history: int) -> None:
        """Rows before `row` are done: the consumer goes on there, whatever happens to it. Synced when this returns."""
        position = Position(row, history)
        if position == self.position:
            return
        value = _CursorFile(row=row, history=history, crc32c=_checksum(row, history))
        path = f"cursors/{self.name}.json"
        files.replace_file(path, msgspec.json.encode(value) + b"\n", dir_fd=self._dir_fd)
        self.position = position

    def close_in_child(self) -> None:
        self.close()  # only this descriptor: the lock stays with the parent's

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
