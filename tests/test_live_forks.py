"""A process that forks in the middle of its live work: the child holds nothing of it, and can do work of its own.

The children are forked by a thread, so that they have no event loop running, and live on while their parent goes on.
"""

import multiprocessing
import os
import signal
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from api_support import process
from live_support import create_ints, ints, limited, received, stored_ints, write_ints

import tensorblob as tb
from tensorblob.presence import presence

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("no_platters")]


@asynccontextmanager
async def forked(work: Callable[[], Any]) -> AsyncIterator[Connection]:
    """A forked child of this process that does `work()` each time it is asked to, until the block is left."""
    ours, theirs = multiprocessing.Pipe()

    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                while theirs.recv() == "work":
                    try:
                        theirs.send(work())
                    except BaseException as error:
                        theirs.send(repr(error))
            finally:
                os._exit(0)
        return pid

    pid = await anyio.to_thread.run_sync(fork)
    try:
        yield ours
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()
        theirs.close()


@pytest.mark.parametrize("shared", [False, True])
@limited
async def test_a_child_holds_none_of_its_parents_locks(shared: bool, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with AsyncExitStack() as children:
        async with (
            write_ints(path, shared=shared) as writer,
            tb.open_reader(path) as reader,
            reader.follow(cursor="c", batch_size=1) as follower,
        ):
            await writer.append(ints(0, 2))
            assert (await anext(follower)).tolist() == [0]
            await follower.ack()
            child = await children.enter_async_context(forked(lambda: "here"))
            await writer.append(ints(2, 3))
        child.send("work")
        assert await received(child) == "here", "it outlives what its parent had open"
        async with write_ints(path, timeout_s=0) as writer:
            await writer.append(ints(5, 6))
        async with tb.open_reader(path) as reader, reader.follow(cursor="c", batch_size=1) as follower:
            assert (await anext(follower)).tolist() == [1], "where the parent stopped"
            await follower.ack()
        assert not os.listdir(path / "producers")
    assert stored_ints(path) == [0, 1, 2, 5]


def _fork_and_die(connection: Connection, path: Path) -> None:
    """Be a writer with a forked child that says who it is and lives on, to be killed."""
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(ints(0, 2))
        if os.fork() == 0:
            connection.send(os.getpid())  # by now it has let go of what it must not keep
        signal.pause()


def test_a_writer_that_was_killed_is_dead_though_a_child_of_it_lives(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    with process(_fork_and_die, path) as (connection, parent):
        pid = connection.recv()
        try:
            parent.kill()
            parent.join()
            dir_fd = os.open(path, os.O_RDONLY)
            found = presence(dir_fd)
            os.close(dir_fd)
            assert not found.alive and len(found.dead) == 1
            with tb.TensorBlob.open(path, "a") as blob:
                blob.write(ints(2, 3))
        finally:
            os.kill(pid, signal.SIGKILL)
    assert stored_ints(path) == [0, 1, 2]


@limited
async def test_a_child_cannot_use_what_its_parent_has_open_and_can_open_its_own(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, shared=True) as writer, tb.open_producer(path) as producer:
        await writer.append(ints(0, 2))
        await producer.append(ints(10, 12))

        def use() -> list[str]:
            found = []
            for blob in (writer.blob, producer.blob):
                try:
                    blob.write(torch.tensor([-1]))
                except tb.ForkedHandle:
                    found.append("refused")
            with tb.TensorBlob.open(path, "a", shared=True) as own:
                own.write(torch.tensor([2]))
            return found

        async with forked(use) as child:
            child.send("work")
            assert await received(child) == ["refused", "refused"]
            assert await writer.append(ints(3, 4)) == range(3, 4)
            assert await producer.commit() == range(4, 6), "what the parent staged is still its own"
    assert stored_ints(path) == [0, 1, 2, 3, 10, 11]


@limited
async def test_a_forked_child_that_works_on_its_own_follower_and_limiter_disturbs_nobody(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    rule = tb.MinSize(1)
    async with write_ints(path, limiter=rule) as writer, tb.open_reader(path, limiter=rule) as reader:
        await writer.append(ints(0, 3))

        def consume() -> list[int]:
            async def follow() -> list[int]:
                async with tb.open_reader(path, limiter=rule) as own, own.follow(cursor="child") as batches:
                    rows: list[int] = (await anext(batches)).tolist()
                    await own.sample(2)
                    return rows

            return anyio.run(follow)

        async with forked(consume) as child:
            child.send("work")
            assert await received(child) == [0, 1, 2]
            assert (await reader.sample(4)).rows.shape == (4,)
            assert reader.limit is not None and reader.limit.counts == (3, 6)
            await writer.append(ints(3, 4))
    assert stored_ints(path) == [0, 1, 2, 3]
