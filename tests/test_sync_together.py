"""Files that are made durable at once: each is synced, each failure is told, and who cannot have it so has it in turn."""

import ctypes
import errno
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import elsewhere, mount_small_disk, private_mounts
from disk import put_between

import tensorblob as tb
from tensorblob import files, kernel_aio
from tensorblob.errors import SyncFailed
from tensorblob.kernel_aio import SyncQueue


@pytest.fixture
def queue() -> Iterator[SyncQueue]:
    try:
        queue = SyncQueue()
    except OSError as error:
        pytest.skip(f"the kernel gives none: {error}")
    yield queue
    queue.close()


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[list[int]]:
    """Of files with something to be synced."""
    fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(40)]
    for fd in fds:
        os.pwrite(fd, b"x" * 5000, 0)
    yield fds
    for fd in fds:
        os.close(fd)


def named(fds: list[int]) -> list[tuple[int, str]]:
    return [(fd, f"file {n}") for n, fd in enumerate(fds)]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 32])
def test_each_file_is_synced(queue: SyncQueue, fds: list[int], count: int) -> None:
    for _ in range(3):
        assert queue.fdatasync(fds[:count]) == [0] * count


def test_what_does_not_fit_is_left_to_the_caller(queue: SyncQueue, fds: list[int]) -> None:
    assert queue.fdatasync(fds) == [0] * 32 + [None] * 8
    assert files.sync_together(named(fds), queue) == [None] * 40


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("has_queue", [True, False])
def test_who_fails_is_told_and_the_others_are_synced(
    fds: list[int], place: int, has_queue: bool, request: pytest.FixtureRequest
) -> None:
    queue = request.getfixturevalue("queue") if has_queue else None
    read_end, write_end = os.pipe()
    failing = fds[:2]
    failing.insert(place, write_end)  # which cannot be synced
    failed = files.sync_together(named(failing), queue)
    os.close(read_end)
    os.close(write_end)
    errors = [None if error is None else error.errno for error in failed]
    assert errors == [errno.EINVAL if n == place else None for n in range(3)]
    assert f"file {place}" in str(failed[place]) and isinstance(failed[place], SyncFailed)
    if queue is not None:
        assert queue.fdatasync(fds[:3]) == [0, 0, 0], "the queue is as good as before"


def test_a_descriptor_that_is_closed_fails(queue: SyncQueue, fds: list[int]) -> None:
    closed = os.dup(fds[0])
    os.close(closed)
    failed = files.sync_together(named([closed, fds[0]]), queue)
    assert failed[0] is not None and failed[0].errno == errno.EBADF and failed[1] is None


def test_syncs_of_which_the_kernel_says_nothing_have_failed(
    queue: SyncQueue, fds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernel_aio._syscall

    def mute(number: Any, *arguments: Any) -> int:
        if number is not queue._get_events:
            return int(real(number, *arguments))
        ctypes.set_errno(errno.EFAULT)
        return -1

    monkeypatch.setattr(kernel_aio, "_syscall", mute)
    failed = files.sync_together(named(fds[:2]), queue)
    assert [error and error.errno for error in failed] == [errno.EFAULT, errno.EFAULT]
    monkeypatch.undo()
    assert queue.fdatasync(fds[:3]) == [0, 0, 0], "late answers are none to this"


def test_a_wait_that_a_signal_ends_goes_on(queue: SyncQueue, fds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    real, interrupted = kernel_aio._syscall, []

    def interrupt(number: Any, *arguments: Any) -> int:
        if number is not queue._get_events or len(interrupted) == 3:
            return int(real(number, *arguments))
        interrupted.append(number)
        ctypes.set_errno(errno.EINTR)
        return -1

    monkeypatch.setattr(kernel_aio, "_syscall", interrupt)
    assert queue.fdatasync(fds[:4]) == [0] * 4 and len(interrupted) == 3


def test_answers_that_come_late_are_none_to_the_next(
    queue: SyncQueue, fds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is interrupted as its answers come; the kernel gives them to the next."""

    class Interrupt(Exception):
        pass

    real = kernel_aio._syscall
    late: list[tuple[int, int]] = []

    def interrupt(number: Any, *arguments: Any) -> int:
        if number is not queue._get_events:
            return int(real(number, *arguments))
        if late:
            monkeypatch.setattr(kernel_aio, "_syscall", real)
            for number, (data, result) in enumerate(late):
                queue._events[number].data, queue._events[number].result = data, result
            return len(late)
        late.extend((event.data, event.result) for event in queue._events[: real(number, *arguments)])
        raise Interrupt

    monkeypatch.setattr(kernel_aio, "_syscall", interrupt)
    with pytest.raises(Interrupt):
        queue.fdatasync(fds[:3])
    assert queue.fdatasync(fds[:2]) == [0, 0] and len(late) == 3 and kernel_aio._syscall is real


def test_signals_interrupt_nothing(queue: SyncQueue, fds: list[int]) -> None:
    came = 0

    def count(*_: object) -> None:
        nonlocal came
        came += 1

    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        limit = time.monotonic() + 60
        while came < 200 and time.monotonic() < limit:
            for fd in fds[:4]:
                os.pwrite(fd, b"y", 100)
            assert queue.fdatasync(fds[:4]) == [0] * 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came >= 200


def test_what_an_interrupted_call_left_under_way_is_no_answer_to_the_next(queue: SyncQueue, fds: list[int]) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    try:
        limit = time.monotonic() + 60
        while interrupts < 30 and time.monotonic() < limit:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
                for n in range(20):
                    for fd in fds[:3]:
                        os.pwrite(fd, b"z" * 4096, 4096 * n)
                    queue.fdatasync(fds[:3])
            except Interrupt:
                interrupts += 1
            finally:
                while True:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        break
                    except Interrupt:
                        interrupts += 1
            read_end, write_end = os.pipe()
            assert queue.fdatasync([fds[0], fds[1]]) == [0, 0]
            found = queue.fdatasync([fds[2], write_end])
            assert found[0] == 0 and found[1] in (None, errno.EINVAL)
            os.close(read_end)
            os.close(write_end)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupts >= 30


def test_a_fork_has_none_of_it_and_does_no_harm(queue: SyncQueue, fds: list[int]) -> None:
    assert queue.fdatasync(fds[:2]) == [0, 0]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = SyncQueue()
            queue._context.value = own._context.value  # a number that was the parent's may be given again
            queue.close()
            status = 0 if own.fdatasync(fds[:2]) == [0, 0] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert queue.fdatasync(fds[:2]) == [0, 0]


def test_queues_of_threads_do_not_meet(fds: list[int], queue: SyncQueue) -> None:
    wrong = []

    def sync(mine: list[int]) -> None:
        own = SyncQueue()
        for n in range(50):
            for fd in mine:
                os.pwrite(fd, bytes([n]), n)
            if own.fdatasync(mine) != [0] * len(mine):
                wrong.append(mine)
        own.close()

    threads = [threading.Thread(target=sync, args=(fds[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _mappings_of_queues() -> int:
    return Path("/proc/self/maps").read_text().count("[aio]")


@pytest.mark.parametrize("fields", [1, 3])
def test_a_writer_that_is_closed_gives_its_queue_back(tmp_path: Path, queue: SyncQueue, fields: int) -> None:
    before = _mappings_of_queues()
    assert before >= 1
    schema = {f"f{n}": ("int64", ()) for n in range(fields)}
    for name in ("a", "b"):
        with tb.TensorBlob.open(tmp_path / name, "w", schema=schema, durability="power") as blob:
            for n in range(5):
                blob.write({f"f{k}": torch.tensor([n]) for k in range(fields)})
            assert blob.durable_rows == 5
            assert _mappings_of_queues() == before + 1
        assert _mappings_of_queues() == before


def _rows_without_a_queue(path: str) -> list[int]:
    kernel_aio._CALLS.clear()
    assert files.open_sync_queue() is None
    with tb.TensorBlob.open(path, "w+", dtype="int64", shape=(), durability="power") as blob:
        for n in range(5):
            blob.write(torch.tensor([n]))
        assert blob.durable_rows == 5
        blob.seek(0)
        return blob.read().tolist()


def test_without_a_queue_files_are_synced_in_turn(tmp_path: Path) -> None:
    assert elsewhere(_rows_without_a_queue, str(tmp_path / "x.blob")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("refused", range(4), ids=["io_setup", "io_destroy", "io_getevents", "io_submit"])
def test_a_queue_that_a_sandbox_does_not_let_us_use_is_none(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    real, before = kernel_aio._syscall, _mappings_of_queues()
    number = kernel_aio._CALLS[platform.machine()][refused]

    def refuse(call: Any, *arguments: Any) -> int:
        if call.value != number:
            return int(real(call, *arguments))
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(kernel_aio, "_syscall", refuse)
    queue = files.open_sync_queue()
    assert (queue is None) == (refused != 1), "who may only not give it back can do without"
    monkeypatch.undo()
    if queue is not None:
        queue.close()
    assert _mappings_of_queues() == before


def test_names_are_durable_before_the_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = put_between(monkeypatch, tmp_path)
    with tb.TensorBlob.open(tmp_path / "x.blob", "w", dtype="int64", shape=(), durability="power") as blob:
        blob.write(torch.arange(3))
        assert blob._writer is not None
        blob._writer._blocks._new_names = {"blocks/data": {"a name that is not synced yet"}}
        mark = len(disk.acts)
        blob.write(torch.arange(3))
        assert [act.kind for act in disk.acts[mark:]] == ["write", "sync", "syncdir", "write", "sync", "write"]


@pytest.mark.parametrize("part", ["blocks/", "manifest"])
def test_a_sync_that_fails_after_the_commit_point_leaves_the_outcome_unknown_and_is_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    disk = put_between(monkeypatch, tmp_path)
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="int64", shape=(), durability="power") as blob:
        blob.write(torch.arange(3))
        blob.write(torch.arange(3, 5))
        blocks = set((tmp_path / "x.blob").glob("blocks/*/*"))
        assert blocks
        disk.fail_when(lambda act: act.kind == "sync" and part in act.path)
        with pytest.raises(tb.OutcomeUnknown):
            blob.write(torch.arange(5, 6))
        disk.heal()
        assert len(blob) == 6 and blob.durable_rows == 5, "it is visible, and not durable for certain"
        blob.write(torch.arange(6, 8))
        assert blob.durable_rows == 8 and blob[:].tolist() == list(range(8))
        has_moved = set((tmp_path / "x.blob").glob("blocks/*/*")) != blocks
        assert has_moved == (part == "blocks/"), "the rows of a file that failed are in a new one"
    with tb.TensorBlob.open(tmp_path / "x.blob") as blob:
        assert blob[:].tolist() == list(range(8))


@pytest.mark.parametrize("when", ["before it", "after it"])
def test_syncs_that_are_interrupted_are_not_trusted_by_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "x.blob"
    real = files.sync_together

    def interrupted(*arguments: Any) -> Any:
        found = real(*arguments) if when == "after it" else None
        raise KeyboardInterrupt(found)

    blob = tb.TensorBlob.open(path, "w+", dtype="int64", shape=(), durability="power")
    blob.write(torch.arange(3))
    blob.write(torch.arange(3, 5))
    before = blob.snapshot.columns[0].live()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "sync_together", interrupted)
        blob.write(torch.arange(5, 6))
    assert (path / "commit.lock").read_text().strip(), "peers, and whoever comes next, know of it"
    blob.write(torch.arange(6, 7))
    assert blob.durable_rows == 7 and blob[:].tolist() == list(range(7))
    assert not blob.snapshot.columns[0].live() & before and (path / "manifest.000002").exists()
    blob.close()


# ---- a device that really fails


def _mounted_on_a_failing_device(at: Path) -> Path | None:
    """A filesystem whose device fails to write beyond some MiB, until "ballast" is removed; None where none can be had."""
    if os.geteuid() or not private_mounts():
        return None
    below, there = at / "below", at / "there"
    below.mkdir(parents=True)
    there.mkdir()
    mount_small_disk(below, 4 << 20)
    (below / "ballast").write_bytes(bytes(2 << 20))
    with open(below / "image", "wb") as image:
        image.truncate(64 << 20)
    for command in (
        ["mkfs.ext4", "-q", "-O", "^has_journal", below / "image"],
        ["mount", "-o", "loop", below / "image", there],
    ):
        if subprocess.run(command, capture_output=True).returncode:
            return None
    return there


def _codes_of_a_failing_device(at: Path) -> list[int | None] | None:
    if (there := _mounted_on_a_failing_device(at)) is None:
        return None
    good, bad = (os.open(there / name, os.O_RDWR | os.O_CREAT) for name in ("good", "bad"))
    queue = SyncQueue()
    os.pwrite(good, b"x" * 4096, 0)
    codes = queue.fdatasync([good])
    os.pwrite(good, b"y" * 4096, 0)  # where the device has room
    os.pwrite(bad, os.urandom(8 << 20), 0)
    return codes + queue.fdatasync([good, bad, good])


def test_a_device_that_fails_is_heard_of_by_the_file_that_it_failed(tmp_path: Path) -> None:
    codes = elsewhere(_codes_of_a_failing_device, tmp_path)
    if codes is None:
        pytest.skip("this system lets us mount no such thing")
    assert codes[:2] == [0, 0] and codes[2] in (errno.ENOSPC, errno.EIO) and codes[3] == 0


def _write_on_a_failing_device(at: Path) -> list[Any] | None:
    if (there := _mounted_on_a_failing_device(at)) is None:
        return None
    path, remounted = there / "x.blob", at / "remounted"
    row = torch.randint(0, 255, (1, 16 << 10), dtype=torch.uint8)
    acknowledged, unknown = 0, 0
    blob = tb.TensorBlob.open(path, "w", dtype="uint8", shape=(16 << 10,), durability="power", block_rows=64)
    for _ in range(300):
        try:
            blob.write(row + blob.rows % 7)
            acknowledged = blob.rows
        except tb.OutcomeUnknown:
            unknown += 1
            break
        except tb.SyncFailed:
            break
    assert acknowledged > 30 and blob.durable_rows == acknowledged, f"{acknowledged} rows"
    (at / "below" / "ballast").unlink()
    rows = blob.rows
    blob.write(row + rows % 7)
    blob.write(row + (rows + 1) % 7)
    assert blob.durable_rows == blob.rows == rows + 2
    blob.close()
    subprocess.run(["umount", there], check=True)  # nothing is left in memory
    remounted.mkdir()
    subprocess.run(["mount", "-o", "loop", at / "below" / "image", remounted], check=True)
    with tb.TensorBlob.open(remounted / "x.blob") as reader:
        found = [bool((reader[n] == row[0] + n % 7).all()) for n in range(len(reader))]
    return [unknown, len(found) - rows, all(found)]


def test_rows_on_a_device_that_fails_for_a_while_are_what_was_acknowledged(tmp_path: Path) -> None:
    found = elsewhere(_write_on_a_failing_device, tmp_path)
    if found is None:
        pytest.skip("this system lets us mount no such thing")
    assert found == [1, 2, True]
