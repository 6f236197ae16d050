"""Turns that are waited for in vain: a peer that was stopped in the middle of its own holds nobody up for ever.

How long one waits is made short here, so that what it comes to can be seen; a test whose wait is to be long waits for
conditions only.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from api_support import process
from live_support import LIMIT_S, create_ints, ints, limited, open_files, stored_ints, until, write_ints

import tensorblob as tb
from tensorblob import files
from tensorblob.turns import TimedLock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_platters")]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long one waits for a turn."""
    monkeypatch.setattr(files, "STOPPED_S", 0.3)
    return 0.3


def _stop_in_a_turn(connection: Connection, path: Path) -> None:
    """Append a row as a shared writer, stop in the middle of the next turn, append two more when let go on."""
    with tb.TensorBlob.open(path, "a", shared=True) as blob:
        blob.write(ints(100, 101))
        assert blob._writer is not None
        with blob._writer.turn():
            connection.send("in its turn")
            os.kill(os.getpid(), signal.SIGSTOP)
            blob.write(ints(101, 102))
        blob.write(ints(102, 103))
    connection.send("over")


class Stopped:
    def __init__(self, connection: Connection, pid: int) -> None:
        self.connection, self.pid = connection, pid

    async def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        assert await anyio.to_thread.run_sync(self.connection.recv) == "over"


@asynccontextmanager
async def stopped_peer(path: Path) -> AsyncIterator[Stopped]:
    with process(_stop_in_a_turn, path) as (connection, child):
        assert child.pid is not None
        assert await anyio.to_thread.run_sync(connection.recv) == "in its turn"
        await until(lambda: " (stopped)" in Path(f"/proc/{child.pid}/status").read_text())
        yield Stopped(connection, child.pid)


@pytest.mark.slow
@limited
async def test_whoever_waits_for_a_stopped_peers_turn_is_told_who_has_it(hasty: float, tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, shared=True) as writer:
        await writer.append(ints(0, 1))
        async with stopped_peer(path) as peer:
            for act in (lambda: writer.append(ints(1, 2)), writer.flush, writer.finish):
                with pytest.raises(tb.WriterBusy, match=f"Process {peer.pid} has kept its turn") as caught:
                    await act()
                assert caught.value.pid == peer.pid
            with pytest.raises(tb.WriterBusy, match=str(peer.pid)):
                async with write_ints(path, shared=True):
                    pass
            async with tb.open_reader(path) as reader:
                assert (await reader.read(0, 2)).tolist() == [0, 100], "readers are not held up"
            await peer.go_on()
            assert await writer.append(ints(2, 3)) == range(4, 5)
    assert stored_ints(path) == [0, 100, 101, 102, 2], "what was refused is absent"


@limited
async def test_a_writer_that_closes_without_a_turn_is_closed_and_its_rows_are_there(
    hasty: float, tmp_path: Path
) -> None:
    path = create_ints(tmp_path / "x.blob")
    waited_for = os.fspath(path / "commit.lock")  # the kernel keeps a thread waiting for it
    async with AsyncExitStack() as stack:
        with pytest.raises(tb.WriterBusy, match="has kept its turn"):
            async with write_ints(path, shared=True) as writer:
                await writer.append(ints(0, 1))
                peer = await stack.enter_async_context(stopped_peer(path))
        await until(lambda: {name for name in open_files().values() if os.fspath(path) in name} <= {waited_for})
        await peer.go_on()
        await until(lambda: waited_for not in open_files().values())
    assert stored_ints(path) == [0, 100, 101, 102]
    async with write_ints(path, timeout_s=0) as writer:  # nobody holds a lock any more
        await writer.append(ints(1, 2))


@limited
async def test_an_append_that_waits_for_a_stopped_peers_turn_can_be_cancelled(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    async with write_ints(path, shared=True) as writer, stopped_peer(path) as peer:
        with anyio.move_on_after(0.05) as scope:
            await writer.append(ints(0, 1))
        assert scope.cancelled_caught
        await peer.go_on()
        assert await writer.append(ints(1, 2)) == range(3, 4)
    assert stored_ints(path) == [100, 101, 102, 1], "wholly absent"


def test_a_turn_that_fails_to_begin_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_ints(tmp_path / "x.blob")
    for name in ("STOPPED_S", "SLOW_S"):
        monkeypatch.setattr(files, name, 0.1)
    with tb.TensorBlob.open(path, "a", shared=True) as one, tb.TensorBlob.open(path, "a", shared=True) as two:
        assert one._writer is not None and one._writer.turns is not None and two._writer is not None
        turns = one._writer.turns

        def fail() -> None:
            raise OSError(5, "Input/output error")

        def has_threads_lock() -> bool:
            return turns.threads.acquire(blocking=False) and turns.threads.release() is None

        for take in (one._writer.turn().__enter__, one._writer.try_turn):
            with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
                patch.setattr(turns, "_begin", fail)
                take()
            assert two._writer.try_turn(), "it is free for other processes"
            two._writer.end_turn()
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(has_threads_lock).result(), "and for other threads"
        two.write(ints(0, 1))
        one.write(ints(1, 2))
    assert stored_ints(path) == [0, 1]


def test_a_turn_of_one_thread_is_not_had_by_another(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    with tb.TensorBlob.open(path, "a", shared=True) as blob, ThreadPoolExecutor(1) as pool:
        assert blob._writer is not None
        with blob._writer.turn():
            assert not pool.submit(blob._writer.try_turn).result()


def test_a_turn_within_a_turn_is_the_same(tmp_path: Path) -> None:
    path = create_ints(tmp_path / "x.blob")
    with tb.TensorBlob.open(path, "a", shared=True) as one, tb.TensorBlob.open(path, "a", shared=True) as two:
        assert one._writer is not None and two._writer is not None
        with one._writer.turn():
            with one._writer.turn():
                one.write(ints(0, 1))
            assert not two._writer.try_turn()
        assert two._writer.try_turn()
        two._writer.end_turn()


async def test_who_is_slow_is_waited_for_and_who_was_stopped_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_ints(tmp_path / "x.blob")
    monkeypatch.setattr(files, "STOPPED_S", 0.01)
    with tb.TensorBlob.open(path, "a", shared=True) as one, tb.TensorBlob.open(path, "a", shared=True) as two:
        assert one._writer is not None and one._writer.turns is not None and two._writer is not None
        one._writer.turns._timeout_s, asked = 0.01, []
        acquire = one._writer.turns._lock.acquire

        def ask(timeout_s: float) -> bool:
            asked.append(timeout_s)
            return acquire(timeout_s)

        monkeypatch.setattr(one._writer.turns._lock, "acquire", ask)
        with two._writer.turn():
            thread = threading.Thread(target=one.write, args=(ints(0, 1),))
            thread.start()
            await until(lambda: files.SLOW_S in asked or not thread.is_alive())
            assert files.SLOW_S in asked
        await anyio.to_thread.run_sync(thread.join)
        asked.clear()
        with monkeypatch.context() as patch:  # not for the closes: they wait for a thread that lets the lock go
            patch.setattr(files, "SLOW_S", 0.02)
            patch.setattr(files, "is_stopped", lambda pid: pid == os.getpid())
            with two._writer.turn(), ThreadPoolExecutor(1) as pool, pytest.raises(tb.WriterBusy, match="its turn"):
                pool.submit(one.write, ints(1, 2)).result()
            assert asked == [0.01]
    assert stored_ints(path) == [0]


# ---- the lock itself


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[tuple[TimedLock, int, int]]:
    """A lock, the file it locks, and another opening of that file."""
    path = os.fspath(tmp_path / "lock")
    fd, other = files.create_file(path), files.open_file(path)
    lock = TimedLock(fd)
    yield lock, fd, other
    lock.close()
    os.close(fd)
    os.close(other)


def is_free(other: int) -> bool:
    if files.try_lock(other, shared=False):
        files.unlock(other)
        return True
    return False


def test_a_lock_that_is_free_is_taken_at_once(lock: tuple[TimedLock, int, int]) -> None:
    timed, fd, other = lock
    assert timed.acquire(0.0) and not is_free(other)
    files.unlock(fd)
    assert timed.try_acquire() and not is_free(other)
    files.unlock(fd)
    assert is_free(other)


@pytest.mark.anyio
async def test_a_lock_that_comes_too_late_is_let_go_at_once(lock: tuple[TimedLock, int, int]) -> None:
    timed, _, other = lock
    files.lock(other)
    assert not timed.acquire(0.01)
    assert not timed.try_acquire(), "the kernel may give it to the thread at any moment"
    files.unlock(other)
    with anyio.fail_after(LIMIT_S):
        await until(lambda: not timed._is_asked)  # the thread has had it
    with timed._changed:  # and has done with it
        assert is_free(other)
    assert timed.try_acquire()


@pytest.mark.anyio
async def test_a_lock_is_not_tried_for_while_the_thread_asks(
    lock: tuple[TimedLock, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come to both; and when the thread lets go, for nobody waits for it, neither has it."""
    timed, _, other = lock
    ask, may_ask = files.lock, threading.Event()
    ask(other)
    monkeypatch.setattr(files, "lock", lambda fd: may_ask.wait(LIMIT_S) and ask(fd))
    assert not timed.acquire(0.01)
    files.unlock(other)
    assert not timed.try_acquire()
    may_ask.set()
    with anyio.fail_after(LIMIT_S):
        await until(lambda: not timed._is_asked)
    with timed._changed:
        assert is_free(other)
    assert timed.try_acquire()


def test_a_file_stays_open_while_the_thread_asks_for_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its number is another file's by then."""
    path = os.fspath(tmp_path / "lock")
    fd, other = files.create_file(path), files.open_file(path)
    timed, ask, asks, may_ask = TimedLock(fd), files.lock, threading.Event(), threading.Event()
    ask(other)

    def ask_later(fd: int) -> None:
        asks.set()
        assert may_ask.wait(LIMIT_S)
        ask(fd)

    monkeypatch.setattr(files, "lock", ask_later)
    assert not timed.acquire(0.01) and timed._thread is not None
    assert asks.wait(LIMIT_S), "it is on its way to the kernel, with the number that the file has"
    timed.close()
    os.close(fd)
    later = [files.create_file(f"{path}{number}") for number in range(9)]  # one of which would have its number
    files.unlock(other)
    may_ask.set()
    timed._thread.join(LIMIT_S)
    again = [files.open_file(f"{path}{number}") for number in range(9)]
    assert all(map(is_free, [*again, other]))
    for number in (other, *later, *again):
        os.close(number)


def test_who_is_interrupted_while_waiting_has_no_lock(
    lock: tuple[TimedLock, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, _, other = lock
    wait_for = timed._changed.wait_for

    def interrupted(*args: object) -> bool:
        if threading.current_thread() is timed._thread:
            return wait_for(*args)  # type: ignore[arg-type]
        files.unlock(other)
        wait_for(lambda: timed._is_had)
        raise KeyboardInterrupt

    monkeypatch.setattr(timed._changed, "wait_for", interrupted)
    files.lock(other)
    with pytest.raises(KeyboardInterrupt):
        timed.acquire(LIMIT_S)
    assert is_free(other)


@pytest.mark.anyio
async def test_who_asks_again_while_the_kernel_still_waits_gets_the_lock_that_comes(
    lock: tuple[TimedLock, int, int],
) -> None:
    timed, fd, other = lock
    files.lock(other)
    assert not timed.acquire(0.01)
    got: list[bool] = []
    with anyio.fail_after(LIMIT_S):
        thread = threading.Thread(target=lambda: got.append(timed.acquire(10.0)))
        thread.start()
        await until(lambda: timed._is_wanted)
        files.unlock(other)
        await until(lambda: got)
    thread.join()
    assert got == [True] and not is_free(other), "it has it until it lets go"
    files.unlock(fd)
    assert is_free(other)


@pytest.mark.anyio
async def test_a_lock_that_comes_after_the_file_was_closed_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fspath(tmp_path / "lock")
    fd, other = files.create_file(path), files.open_file(path)
    timed, ask, asks = TimedLock(fd), files.lock, threading.Event()
    ask(other)
    monkeypatch.setattr(files, "lock", lambda fd: asks.set() or ask(fd))
    assert not timed.acquire(0.01)
    assert asks.wait(LIMIT_S)
    timed.close()
    os.close(fd)
    reused = files.create_file(f"{path}2")  # perhaps with the number of the file that was closed
    ask(reused)
    files.unlock(other)
    with anyio.fail_after(LIMIT_S):
        assert timed._thread is not None
        await until(lambda: not timed._thread.is_alive())  # type: ignore[union-attr]
        await until(lambda: is_free(other))
    again = files.open_file(f"{path}2")
    assert not files.try_lock(again, shared=False), "the lock of another file is not touched"
    for number in (other, reused, again):
        os.close(number)


def test_the_thread_ends_with_the_lock(lock: tuple[TimedLock, int, int]) -> None:
    timed, fd, other = lock
    files.lock(other)
    assert not timed.acquire(0.01)
    files.unlock(other)
    assert timed.acquire(10.0)
    files.unlock(fd)
    timed.close()
    assert timed._thread is not None
    timed._thread.join(10)
    assert not timed._thread.is_alive()


def test_a_kernel_that_refuses_is_heard(lock: tuple[TimedLock, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    timed, _, other = lock
    files.lock(other)

    def refuse(fd: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "lock", refuse)
    with pytest.raises(OSError, match="No locks"):
        timed.acquire(10.0)
    monkeypatch.undo()
    files.unlock(other)
    assert timed.acquire(10.0)
