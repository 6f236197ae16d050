"""What the tests of the live layer share: rows of one number each, a disk that waits or fails, and cancellation at will.

Rows are int64 scalars, so that a row's number says who wrote it. No test waits for time: it waits for a condition, and
`limited` says after how long that has failed.
"""

import functools
import gc
import os
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch

import tensorblob as tb
from tensorblob import files

LIMIT_S = float(os.environ.get("TENSORBLOB_TEST_LIMIT_S", "30"))
LARGE = 40_000
"""Rows of one append that is too large to be committed on the event loop."""


def limited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """An async test that fails, rather than to wait for ever."""

    @functools.wraps(test)
    async def within_limit(*args: Any, **options: Any) -> None:
        with anyio.fail_after(LIMIT_S):
            await test(*args, **options)

    return within_limit


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    while not condition():
        await anyio.sleep(0.0005)


async def some_turns(count: int = 20) -> None:
    """Let every other task that can go on do so."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def outcome(work: Awaitable[Any], into: list[Any]) -> None:
    """Note what became of `work`: its value or its error."""
    try:
        into.append(await work)
    except Exception as error:
        into.append(error)


async def received(connection: Connection) -> Any:
    """What another process sends next."""
    await until(connection.poll)
    return connection.recv()


# ---- rows


def ints(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop)


def copies(number: int, count: int) -> torch.Tensor:
    """`count` rows of one number."""
    return torch.full((count,), number)


def write_ints(path: Path, **options: Any) -> AbstractAsyncContextManager[tb.AsyncWriter]:
    return tb.open_writer(path, **({"dtype": "int64", "shape": ()} | options))


def create_ints(path: Path, count: int = 0, **options: Any) -> Path:
    """A closed blob of the rows 0 … count - 1."""
    with tb.TensorBlob.open(path, "w", **({"dtype": "int64", "shape": ()} | options)) as blob:
        if count:
            blob.write(ints(0, count))
    return path


def add_ints(path: Path, *numbers: int) -> None:
    """Commit rows, as a writer that is gone when this returns."""
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(torch.tensor(numbers))


def stored_ints(path: Path) -> list[int]:
    """What a reader that opens the blob now finds in it."""
    with tb.TensorBlob.open(path) as blob:
        found: list[int] = blob.read().tolist()
        return found


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbours that are equal, as (number, count)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][0] == number:
            found[-1] = (number, found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


# ---- a disk that waits or fails


class Disk:
    """Stands between a blob and its writes, which it can hold up (but not those to cursors), or have fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self.is_waiting = False
        """A write is being held up."""
        self._failures: list[tuple[str, Callable[[], BaseException]]] = []
        for name in ("write_at", "write_parts_at", "sync_file"):
            monkeypatch.setattr(files, name, functools.partial(self._act, name, getattr(files, name)))
        monkeypatch.setattr(files, "open_sync_queue", lambda: None)

    def _act(self, name: str, act: Callable[..., None], *args: Any) -> None:
        path = args[1] if name == "sync_file" else os.readlink(f"/proc/self/fd/{args[0]}")
        if not self._is_open.is_set() and "/cursors/" not in path:
            self.is_waiting = True
            assert self._is_open.wait(LIMIT_S)
            self.is_waiting = False
        for number, (part, error) in enumerate(self._failures):
            if part in f"{name} {path}":
                del self._failures[number]
                raise error()
        act(*args)

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    def fail(self, part: str, error: Callable[[], BaseException]) -> None:
        """Fail the next act of which the name ("write_at", "sync_file"…) and the path contain `part`, once."""
        self._failures.append((part, error))

    @property
    def has_failed(self) -> bool:
        return not self._failures


@asynccontextmanager
async def held_up(writer: tb.AsyncWriter, disk: Disk) -> AsyncIterator[list[range]]:
    """While the body runs, a large append of -1s is being written; the list then holds what it returned."""
    returned: list[range] = []

    async def append() -> None:
        returned.append(await writer.append(copies(-1, LARGE)))

    async with anyio.create_task_group() as tasks:
        disk.hold()
        try:
            tasks.start_soon(append)
            await until(lambda: disk.is_waiting)
            yield returned
        finally:
            disk.release()


# ---- cancellation


@types.coroutine
def _driven(
    work: Coroutine[Any, Any, Any], nth: int, cancel: Callable[[], None]
) -> Generator[Any, Any, tuple[int, Any]]:
    """Run `work`, and call `cancel` as it waits for the nth time (from 0); return how often it waited, and its value."""
    waits = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = work.send(value) if error is None else work.throw(error)
        except StopIteration as stop:
            return waits, stop.value
        if waits == nth:
            cancel()
        waits += 1
        try:
            value, error = (yield request), None
        except BaseException as thrown:
            value, error = None, thrown


async def cancelled_at(nth: int, work: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Run `work`, cancelled as it waits for the nth time; return whether it waited so often, and what it returned."""
    reached, result = True, None
    with anyio.CancelScope() as scope:
        waits, result = await _driven(work, nth, scope.cancel)
        reached = waits > nth
    return reached, result


async def at_every_wait(act: Callable[[int], Awaitable[tuple[bool, Any]]], most: int = 400) -> int:
    """Call `act(nth)`, which cancels something as it waits for the nth time, until it no longer waits so often."""
    for nth in range(most):
        reached, _ = await act(nth)
        if not reached:
            return nth
    raise AssertionError("it never ends")


# ---- what is left behind


def files_before() -> dict[int, str]:
    """`open_files`, once what earlier tests left has let go of its own."""
    gc.collect()
    return open_files()


def open_files() -> dict[int, str]:
    """The files and watches that this process has open (pipes to other processes go when their ends are collected)."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed them
        if path.startswith("/") or "inotify" in path:
            found[int(name)] = path
    return found


def map_count() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())
