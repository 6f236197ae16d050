"""What the tests of the public API share: rows that carry one number each, a photograph of a directory, processes.

A row is one page (1024 float32), so that any `block_size` is a whole number of pages and blocks are cut exactly where
a test says. Processes come from a fork server that has imported torch once: they start in milliseconds, share no lock
and no file with the test, and may kill themselves, lower their limits, mount things or change their user.
"""

import ctypes
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tensorblob import TensorBlob

SHAPE = (1024,)
ROW_NBYTES = 4096


def rows(*numbers: float) -> torch.Tensor:
    """Rows that are filled with one number each."""
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1).expand(-1, *SHAPE).contiguous()


def numbers(got: torch.Tensor) -> list[int]:
    """The inverse of `rows`; every element of a row must agree."""
    assert got.shape[1:] == SHAPE and got.dtype == torch.float32
    assert bool((got == got[:, :1]).all())
    return [int(x) for x in got[:, 0]]


def create(path: Path, count: int = 10, **options: Any) -> Path:
    """A closed blob of the rows 0 … count - 1 in blocks of four."""
    with TensorBlob.open(path, "w", **({"dtype": "float32", "shape": SHAPE, "block_size": 4} | options)) as blob:
        blob.write(rows(*range(count)))
    return path


def stored(path: Path) -> list[int]:
    """What a reader that opens the blob now finds in it."""
    with TensorBlob.open(path) as blob:
        return numbers(blob.read())


def manifest_of(path: Path) -> Path:
    """The one manifest of a small blob."""
    (manifest,) = path.glob("manifest.*")
    return manifest


def photograph(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every name below `path` with its kind, size, inode, time of change and bytes: equal only if nothing was touched."""
    found: dict[str, tuple[Any, ...]] = {}
    for entry in [path, *sorted(path.rglob("*"))]:
        stat = entry.lstat()
        content = hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else ""
        found[os.fspath(entry.relative_to(path))] = (stat.st_mode, stat.st_size, stat.st_ino, stat.st_mtime_ns, content)
    return found


# ---- processes

PRELOADED = ["torch", "tensorblob", "api_support"]
"""What processes find imported; who wants more there says so before the first of them starts."""


@functools.cache
def _forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Died(Exception):
    """The process ended without an answer; `exitcode` is negative for a signal."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"the process died with exit code {exitcode}")
        self.exitcode = exitcode


@contextmanager
def process(target: Callable[..., object], *args: object) -> Iterator[tuple[Connection, BaseProcess]]:
    """Run `target(connection, *args)` elsewhere; it is killed on the way out if it has not ended by then."""
    context = _forkserver()
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *args))
    child.start()
    theirs.close()
    try:
        yield ours, child
    finally:
        child.kill()
        child.join()
        ours.close()


def elsewhere(target: Callable[..., Any], *args: object) -> Any:
    """The value of `target(*args)` in another process; raises `Died` if that process came to its end first."""
    with process(_answer, target, *args) as (connection, child):
        try:
            value = connection.recv()
        except EOFError:
            child.join()
            raise Died(child.exitcode) from None
        if isinstance(value, Complaint) and value.unexpected:
            raise AssertionError(f"{value.text}\n{value.where}")
        return value


def _answer(connection: Connection, target: Callable[..., Any], *args: object) -> None:
    try:
        connection.send(target(*args))
    except Exception as error:
        connection.send(Complaint(error, unexpected=True))


class Complaint:
    """An exception as a value that crosses processes."""

    def __init__(self, error: BaseException, *, unexpected: bool = False) -> None:
        self.names = {kind.__name__ for kind in type(error).__mro__}
        self.text = f"{type(error).__name__}: {error}"
        self.errno: int | None = getattr(error, "errno", None)
        self.pid: int | None = getattr(error, "pid", None)
        self.host: str | None = getattr(error, "host", None)
        self.unexpected = unexpected
        self.where = "".join(traceback.format_exception(error)) if unexpected else ""


def complaint(act: Callable[[], object]) -> Complaint | None:
    """The exception that `act()` raises, or None."""
    try:
        act()
    except Exception as error:
        return Complaint(error)
    return None


def die_at_event(nth: int, *events: str) -> None:
    """SIGKILL this process just before its nth (from 0) act of these kinds, which are Python's audit events.

    Whatever the engine calls, it cannot create, rename, link or unlink a file without raising one of them.
    """
    left = nth

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in events:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


# ---- file systems of our own, gone with the process that made them

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 1 << 14, 1 << 18


def _call(name: str, *args: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def private_mounts() -> bool:
    """Let this process mount things that nobody else sees; False where the system does not allow that."""
    try:
        _call("unshare", _NEW_MOUNTS | (_NEW_USERS if os.geteuid() else 0))
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)
    except (OSError, AttributeError):
        return False
    return True


def mount_small_disk(at: Path, nbytes: int) -> None:
    _call("mount", b"tmpfs", os.fsencode(at), b"tmpfs", ctypes.c_ulong(0), b"size=%d" % nbytes)


def mount_read_only(at: Path) -> None:
    """Make what is below `at` a read-only medium for this process."""
    target = os.fsencode(at)
    _call("mount", target, target, None, ctypes.c_ulong(_BIND), None)
    _call("mount", b"none", target, None, ctypes.c_ulong(_BIND | _REMOUNT | _READ_ONLY), None)
