"""A disk of a few MiB that is really full: the error says so, nothing committed is touched, and room is enough to go on.

Each way to write fills a tmpfs of its own, in a process of its own, while readers hold views of what is there: storing through
a map would kill that process by SIGBUS, which the test would see. Then room is made, and the same handles go on; it is filled
and closed again, and the next writer goes on.
"""

import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from api_support import Complaint, elsewhere, mount_small_disk, numbers, private_mounts, rows, stored

import tensorblob as tb
from tensorblob.cursors import Cursor, read_position

DISK_NBYTES = 4 << 20
BATCH = 7
MOST_APPENDS = 2000
Append = Callable[[int], Awaitable[object]]


def batch(number: int, count: int = BATCH) -> torch.Tensor:
    return rows(*[number] * count)


# ---- ways to write


async def sole(path: Path, closing: AsyncExitStack, **options: Any) -> list[Append]:
    blob = closing.enter_context(tb.TensorBlob.open(path, "a+", **options))

    async def append(number: int) -> None:
        blob.write(batch(number))

    async def transact(number: int) -> None:
        with blob.transaction(metadata={"number": number}):
            blob.write(batch(number, 3))
            blob.write(batch(number, BATCH - 3))

    return [append, append, transact]


async def sole_at_power(path: Path, closing: AsyncExitStack) -> list[Append]:
    return await sole(path, closing, durability="power")


async def shared(path: Path, closing: AsyncExitStack) -> list[Append]:
    blobs = [closing.enter_context(tb.TensorBlob.open(path, "a+", shared=True)) for _ in range(3)]

    def by(blob: tb.TensorBlob) -> Append:
        async def append(number: int) -> None:
            blob.write(batch(number))

        return append

    return [by(blob) for blob in blobs]


async def live(path: Path, closing: AsyncExitStack, **options: Any) -> list[Append]:
    writer = await closing.enter_async_context(tb.open_writer(path, **options))
    return [lambda number: writer.append(batch(number), key="k", sequence=number)]


async def live_and_shared_at_power(path: Path, closing: AsyncExitStack) -> list[Append]:
    one = await live(path, closing, durability="power", shared=True)
    return one + await live(path, closing, durability="power", shared=True)


async def staged(path: Path, closing: AsyncExitStack) -> list[Append]:
    producers = [await closing.enter_async_context(tb.open_producer(path)) for _ in range(2)]

    def by(producer: Any) -> Append:
        async def append(number: int) -> None:
            if not producer.staged_rows:
                await producer.append(batch(number, 3))
            if producer.staged_rows == 3:
                await producer.append(batch(number, BATCH - 3))
            await producer.commit(key=f"{id(producer)}", sequence=number)

        return append

    return [by(producer) for producer in producers]


async def staged_and_adopted(path: Path, closing: AsyncExitStack) -> list[Append]:
    tb.staging.COPY_NBYTES = 1
    return await staged(path, closing)


WAYS = {way.__name__: way for way in (sole, sole_at_power, shared, live, live_and_shared_at_power, staged)}
WAYS["staged_and_adopted"] = staged_and_adopted


# ---- what each has to do


class Filled:
    """A small disk that one way of writing fills, with the rows that were acknowledged."""

    def __init__(self, at: Path, way: str) -> None:
        self.path, self.way = at / "x.blob", WAYS[way]
        self.ballast = [at / f"ballast {number}" for number in range(3)]
        for spare in self.ballast:
            spare.write_bytes(bytes(DISK_NBYTES // 8))
        tb.TensorBlob.open(self.path, "w", dtype="float32", shape=(1024,), block_rows=32).close()
        self.numbers = itertools.count()
        self.acknowledged: list[int] = []
        self.pending: dict[Append, int] = {}
        self.held: list[tuple[Any, torch.Tensor]] = []

    async def fill(self, appends: list[Append]) -> None:
        """Append until everyone has found the disk full."""
        full: set[Append] = set()
        for append in itertools.islice(itertools.cycle(appends), MOST_APPENDS):
            if await self.try_append(append):
                full.discard(append)
            else:
                full.add(append)
            if len(full) == len(set(appends)):
                return
        raise AssertionError("it is never full")

    async def try_append(self, append: Append) -> bool:
        """Append the next batch, or the one that this one could not append the last time."""
        number = self.pending.pop(append, -1)
        number = next(self.numbers) if number < 0 else number
        try:
            await append(number)
        except tb.DiskFull:
            self.pending[append] = number
            return False
        self.acknowledged += [number] * BATCH
        return True

    def check(self) -> None:
        assert stored(self.path) == self.acknowledged, "what was acknowledged is there, and nothing else"
        for view, copy in self.held:
            assert torch.equal(view, copy), "what is held stays"

    async def run(self) -> None:
        with contextlib.ExitStack() as reading:
            reader = reading.enter_context(tb.TensorBlob.open(self.path))
            for round in range(2):
                async with AsyncExitStack() as closing:
                    appends = await self.way(self.path, closing)
                    await self.fill(appends)
                    self.check()
                    reader.refresh()
                    runs = reader.runs(0, len(reader))
                    self.held += [(view := reader.view(*run), torch.clone(view)) for run in runs]
                    await self.fill(appends)  # as full as before
                    self.check()
                    if round == 0:
                        self.ballast.pop().unlink()
                        for append in appends:
                            assert await self.try_append(append), "room was made, and that is enough"
                        await self.fill(appends)
                        self.check()
                self.check()
                self.pending.clear()
                self.ballast.pop().unlink()
        async with AsyncExitStack() as closing:
            for append in await self.way(self.path, closing):
                assert await self.try_append(append), "so it is for the next writer"
        self.check()
        with tb.TensorBlob.open(self.path) as last:
            assert set(os.listdir(self.path / "blocks" / "data")) == last.snapshot.columns[0].live(), (
                "no garbage is left"
            )
        assert not os.listdir(self.path / "producers")
        assert len(self.acknowledged) * 4096 > DISK_NBYTES // 2, "a disk is not full while half of it is free"


def _fill(at: Path, way: str) -> bool:
    if not private_mounts():
        return False
    at.mkdir()
    mount_small_disk(at, DISK_NBYTES)
    anyio.run(Filled(at, way).run)
    return True


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_says_so_and_room_is_enough_to_go_on(way: str, tmp_path: Path) -> None:
    if not elsewhere(_fill, tmp_path / "disk", way):
        pytest.skip("this system lets us mount nothing")


# ---- what takes little room, and what frees some


def _fill_a_ring(at: Path) -> list[Any] | None:
    """A ring that fits twice, with a reader that pins what it held once."""
    if not private_mounts():
        return None
    at.mkdir()
    mount_small_disk(at, DISK_NBYTES)
    path = at / "x.blob"
    with contextlib.ExitStack() as closing:
        options: dict[str, Any] = {"dtype": "float32", "shape": (1024,), "block_rows": 16, "max_rows": 320}
        blob = closing.enter_context(tb.TensorBlob.open(path, "w+", **options))
        for number in range(0, 320, 8):
            blob.write(rows(*range(number, number + 8)))
        readers = [tb.TensorBlob.open(path)]
        full = 0
        for number in range(320, 3200, 8):
            try:
                blob.write(rows(*range(number, number + 8)))
            except tb.DiskFull:
                full += 1
                assert stored(path) == list(range(number - 320, number)), "nothing was trimmed for what did not come"
                assert numbers(readers[-1][:]) == list(range(320)), "nor taken from who reads it"
                readers.pop().close()
                blob.write(rows(*range(number, number + 8)))
        return [full, len(readers), stored(path) == list(range(2880, 3200))]


def test_a_full_ring_goes_on_as_soon_as_a_reader_lets_go(tmp_path: Path) -> None:
    report = elsewhere(_fill_a_ring, tmp_path / "disk")
    if report is None:
        pytest.skip("this system lets us mount nothing")
    assert report == [1, 0, True]


def _do_the_rest(at: Path) -> list[Any] | None:
    """On a disk without a free byte: open, read, look, acknowledge, truncate, remove, create."""
    if not private_mounts():
        return None
    at.mkdir()
    mount_small_disk(at, DISK_NBYTES)
    path = at / "x.blob"
    failed: dict[str, Complaint | None] = {}
    with tb.TensorBlob.open(path, "w", dtype="float32", shape=(1024,), block_rows=32) as blob:
        blob.write(rows(*range(100)))
    dir_fd = os.open(path, os.O_RDONLY)
    cursor = Cursor(dir_fd, "c")
    cursor.acknowledge(10, 0)
    with open(at / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            act()
            failed[name] = None
        except OSError as error:
            failed[name] = Complaint(error)

    attempt("read", lambda: stored(path))
    attempt("acknowledge", lambda: cursor.acknowledge(20, 0))
    assert read_position(dir_fd, "c") in ((10, 0), (20, 0)), "where it was, or where it is"
    attempt("create", lambda: tb.TensorBlob.open(at / "y.blob", "w", dtype="float32", shape=(1024,)).close())
    attempt("copy", lambda: _copy(path, at / "z.blob"))
    attempt("write", lambda: _append(path))
    assert stored(path) == list(range(100)) and not list(at.glob(".*"))
    names = sorted(found.name for found in at.glob("*.blob"))
    (at / "ballast").unlink()
    cursor.acknowledge(30, 0)
    _append(path)
    assert stored(path) == [*range(100), 7]
    assert read_position(dir_fd, "c") == (30, 0)
    return [failed["read"], names, {name for name, error in failed.items() if error and "DiskFull" not in error.names}]


def _append(path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(7))


def _copy(path: Path, there: Path) -> None:
    with tb.TensorBlob.open(path) as blob:
        blob.copy(there)


def test_on_a_full_disk_what_is_there_can_be_read_and_nothing_is_half_made(tmp_path: Path) -> None:
    report = elsewhere(_do_the_rest, tmp_path / "disk")
    if report is None:
        pytest.skip("this system lets us mount nothing")
    assert report == [None, ["x.blob"], set()], "reading works, nothing new has its name, and errors say why"
