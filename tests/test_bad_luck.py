"""A second writer, a read-only directory, another user, a forked child: an error that says what to do, or nothing at all."""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from api_support import (
    SHAPE,
    complaint,
    create,
    elsewhere,
    mount_read_only,
    numbers,
    photograph,
    private_mounts,
    process,
    rows,
    stored,
)

import tensorblob as tb
from tensorblob import files

WRITABLE = ["w", "a", "r+", "w+", "a+"]
LOCK_EX = 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


# ---- a second writer


def _hold(connection: Connection, path: Path, until: Callable[[], bool] | Path | None = None) -> None:
    """Be the writer, until told or until the file `until` exists."""
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(10))
        connection.send(os.getpid())
        while not (until.exists() if isinstance(until, Path) else connection.poll()):
            time.sleep(0.001)
        blob.write(rows(11))


@pytest.mark.slow
@pytest.mark.parametrize("mode", WRITABLE)
def test_a_second_writer_is_told_at_once_who_holds_the_lock(path: Path, mode: str) -> None:
    with process(_hold, path) as (connection, child):
        pid = connection.recv()
        before = photograph(path)
        with pytest.raises(tb.WriterBusy) as caught:
            tb.TensorBlob.open(path, mode)
        error = caught.value
        assert isinstance(error, TimeoutError) and isinstance(error, OSError)
        assert (error.pid, error.host) == (pid, socket.gethostname())
        assert str(pid) in str(error) and socket.gethostname() in str(error)
        assert stored(path) == list(range(11))  # a reader is not in the way, nor is anything in its way
        assert photograph(path) == before
        connection.send("enough")
        child.join()
    assert stored(path) == list(range(12))


def test_a_second_writer_in_the_same_process_is_refused_too(path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        with pytest.raises(tb.WriterBusy) as caught:
            tb.TensorBlob.open(path, "r+")
        assert caught.value.pid == os.getpid()
        blob.write(rows(10))
    with tb.TensorBlob.open(path, "r+") as blob:
        assert len(blob) == 11


def _open_when_free(path: Path, waiting: Path) -> list[int]:
    refused = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal refused
        if event == "fcntl.flock" and args[1] & LOCK_EX:
            refused += 1
            if refused == 3:  # the first attempts are over, and it goes on trying
                waiting.touch()

    sys.addaudithook(watch)
    with tb.TensorBlob.open(path, "a+", timeout_s=600) as blob:
        blob.write(rows(12))
        return numbers(blob[:])


def test_a_second_writer_that_may_wait_gets_its_turn(path: Path, tmp_path: Path) -> None:
    with process(_hold, path, tmp_path / "waiting") as (connection, child):
        connection.recv()
        assert elsewhere(_open_when_free, path, tmp_path / "waiting") == list(range(13))
        child.join()
        assert child.exitcode == 0


def test_a_writer_that_draws_a_name_that_was_had_before_overwrites_no_block(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.presence.secrets.token_hex", lambda nbytes: "ab" * nbytes)
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(*range(10, 20)))
    expected = stored(path)
    with tb.TensorBlob.open(path, "a") as blob, pytest.raises(FileExistsError):
        blob.write(rows(*range(20, 40)))
    assert stored(path) == expected


def test_a_second_writer_waits_no_longer_than_it_was_told(path: Path) -> None:
    with tb.TensorBlob.open(path, "a"):
        start = time.monotonic()
        with pytest.raises(tb.WriterBusy):
            tb.TensorBlob.open(path, "a", timeout_s=0.2)
        assert time.monotonic() - start >= 0.2


def test_a_writer_that_was_killed_is_in_nobodys_way(path: Path) -> None:
    with process(_hold, path) as (connection, child):
        connection.recv()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(99))
    assert stored(path) == [*range(11), 99]


# ---- a directory that cannot be written


def _try_to_write(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {mode: complaint(lambda mode=mode: tb.TensorBlob.open(path, mode)) for mode in WRITABLE}
    report["create"] = complaint(lambda: tb.TensorBlob.open(path.parent / "new", "w", dtype="float32", shape=SHAPE))
    with tb.TensorBlob.open(path) as blob:
        report["copy"] = complaint(lambda: blob.copy(path.parent / "copy"))
    return report


def _try_to_read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for options in ({}, {"io": "pread"}, {"max_cached_blocks": 1}):
        with tb.TensorBlob.open(path, **options) as blob:
            report[f"read {options}"] = (numbers(blob[:]), numbers(blob.gather([3, 1])), blob.refresh())
    return report


def _on_a_read_only_medium(path: Path) -> dict[str, Any] | None:
    if not private_mounts():
        return None
    mount_read_only(path.parent)
    return _as_this_user(path)


def _as_another_user(path: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:  # that user may not be able to import what is not imported by now
        other = create(Path(directory) / "ten.blob")
        _try_to_read(other), _try_to_write(other)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return _as_this_user(path)


def _as_this_user(path: Path) -> dict[str, Any]:
    return _try_to_write(path) | _try_to_read(path)


def check_report(report: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    for what in (*WRITABLE, "create", "copy"):
        error = report.pop(what)
        assert error is not None and {"ReadOnlyStore", "BlobError", "OSError"} <= error.names, (
            what,
            error and error.text,
        )
    assert set(map(str, report.values())) == {str((list(range(10)), [3, 1], False))}
    assert photograph(path.parent) == before


def test_a_read_only_medium_can_be_read_and_nothing_else(path: Path) -> None:
    before = photograph(path.parent)
    report = elsewhere(_on_a_read_only_medium, path)
    if report is None:
        pytest.skip("this system lets us mount nothing; permissions are tested instead")
    check_report(report, before, path)


def test_another_users_blob_can_be_read_and_nothing_else() -> None:
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to others
        path = create(Path(directory) / "home" / "ten.blob")
        modes = {entry: entry.stat().st_mode for entry in (path.parent, *path.parent.rglob("*"))}
        os.chmod(directory, 0o755)
        for entry, mode in modes.items():
            entry.chmod(mode & ~0o222 | 0o444)
        before = photograph(path.parent)
        try:
            check_report(elsewhere(_as_another_user if os.geteuid() == 0 else _as_this_user, path), before, path)
        finally:
            for entry, mode in modes.items():
                entry.chmod(mode)


# ---- a forked child


USES_OF_A_WRITER: dict[str, Callable[[tb.TensorBlob], object]] = {
    "write": lambda b: b.write(rows(99)),
    "truncate": lambda b: b.truncate(0),
    "extend": lambda b: b.extend(b),
    "flush": lambda b: b.flush(),
    "trim": lambda b: b.trim(3),
    "compact": lambda b: b.compact(),
    "set_metadata": lambda b: b.set_metadata({"x": 1}),
    "transaction": lambda b: b.transaction().__enter__(),
}


def in_a_fork(act: Callable[[], Any]) -> Any:
    """The value of `act()` in a forked child of this process, which must have no threads."""
    here, there = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            there.send(act())
            atexit._run_exitfuncs()
        finally:
            os._exit(0)
    there.close()
    try:
        return here.recv()
    finally:
        os.waitpid(pid, 0)


def _use_in_a_forked_child(path: Path) -> dict[str, Any]:
    """Open a writer and a reader, use both in a forked child and let it end; then see what is left here."""
    writer, reader = tb.TensorBlob.open(path, "r+"), tb.TensorBlob.open(path)
    view = reader.view(2, 9)

    def use_both() -> dict[str, Any]:
        report: dict[str, Any] = {use: complaint(lambda act=act: act(writer)) for use, act in USES_OF_A_WRITER.items()}
        report["read"] = (numbers(reader[:]), numbers(reader.gather([7, 1])), numbers(view))
        writer.close()
        reader.close()
        return report

    before = photograph(path)
    report = in_a_fork(use_both)
    report["untouched"] = photograph(path) == before
    report["second writer"] = in_a_fork(lambda: complaint(lambda: tb.TensorBlob.open(path, "a")))
    writer.seek(0, 2)
    report["written"] = writer.write(rows(10))
    report["refreshed"] = (reader.refresh(), numbers(reader[:]), numbers(view))
    writer.close()
    return report


def test_a_forked_child_can_read_but_never_inherits_the_writer(path: Path) -> None:
    report = elsewhere(_use_in_a_forked_child, path)
    for use in USES_OF_A_WRITER:
        error = report[use]
        assert error is not None and {"ForkedHandle", "BlobError", "RuntimeError"} <= error.names, (
            use,
            error and error.text,
        )
    assert report["read"] == (list(range(10)), [7, 1], list(range(2, 9)))
    assert report["untouched"]
    assert "WriterBusy" in report["second writer"].names  # the child's close did not let go of the parent's lock
    assert report["written"] == 1
    assert report["refreshed"] == (True, list(range(11)), list(range(2, 9)))
    assert stored(path) == list(range(11))


def _fork_in_a_transaction(path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as writer, writer.transaction():
        writer.write(rows(98))
        in_a_fork(lambda: None)


def test_a_forked_child_that_ends_neither_commits_nor_rolls_back_its_parents_transaction(path: Path) -> None:
    elsewhere(_fork_in_a_transaction, path)
    assert stored(path) == [*range(10), 98]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("first", [0, 100])
def test_a_filesystem_that_writes_nothing_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """No filesystem should; one that does must not be asked for ever."""
    create(path, 2)
    with tb.TensorBlob.open(path, "a") as blob:
        answers = iter([first])

        class Os:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def pwrite(self, fd: int, data: Any, offset: int) -> int:
                return os.pwrite(fd, memoryview(data).cast("B")[:count], offset) if (count := next(answers, 0)) else 0

            def pwritev(self, fd: int, parts: Any, offset: int) -> int:
                return 0

        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Os())
            with pytest.raises(OSError, match="nothing is written"):
                blob.write(rows(2))
            with pytest.raises(OSError, match="nothing is written"):
                files.write_parts_at(0, [b"ab", b"c"], 3, 0)
        blob.write(rows(3))
    assert stored(path) == [0, 1, 3]
