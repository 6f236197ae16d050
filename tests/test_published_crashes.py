"""What the published package gets wrong when processes meet, die or run out of disk: one claim each that ours does not."""

import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from api_support import (
    ROW_NBYTES,
    SHAPE,
    Complaint,
    Died,
    complaint,
    create,
    die_at_event,
    elsewhere,
    mount_small_disk,
    numbers,
    private_mounts,
    process,
    rows,
    stored,
)

import tensorblob as tb

FILE_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


# ---- its length file is rewritten in place


def _write_and_flush(connection: Connection, path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        while not connection.poll():
            blob.write(rows(len(blob)))
            blob.flush()
            connection.send(len(blob))


@pytest.mark.slow
def test_a_reader_never_sees_an_empty_or_half_written_length_while_a_writer_flushes(path: Path) -> None:
    acknowledged, seen, opened = 10, 10, 0
    with process(_write_and_flush, path) as (connection, child):
        while opened < 300 or acknowledged < 30:
            while connection.poll():
                acknowledged = connection.recv()
            with tb.TensorBlob.open(path) as blob:
                assert len(blob) >= max(seen, acknowledged)
                seen, opened = len(blob), opened + 1
                assert numbers(blob[seen - 3 :]) == [seen - 3, seen - 2, seen - 1]
        connection.send("enough")
        child.join()
        assert child.exitcode == 0
    assert stored(path) == list(range(len(stored(path)))) and len(stored(path)) >= seen


@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_writer_killed_while_it_flushes_leaves_every_row_it_had_acknowledged(path: Path, after: int) -> None:
    with process(_write_and_flush, path) as (connection, child):
        acknowledged = [connection.recv() for _ in range(after)][-1]
        child.kill()
        child.join()
    found = stored(path)
    assert found == list(range(len(found))) and len(found) >= acknowledged
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(-1))
    assert stored(path) == [*found, -1]


# ---- two appenders overwrite each other's length


def _append_when_told(connection: Connection, path: Path) -> None:
    with tb.TensorBlob.open(path, "a") as blob:
        connection.send(os.getpid())
        connection.recv()
        blob.write(rows(10, 11))


def test_a_second_appender_is_refused_and_no_row_of_either_is_lost(path: Path) -> None:
    with process(_append_when_told, path) as (connection, child):
        pid = connection.recv()
        with pytest.raises(tb.WriterBusy) as caught:
            tb.TensorBlob.open(path, "a")
        assert caught.value.pid == pid
        connection.send("go")
        child.join()
        assert child.exitcode == 0
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(12))
    assert stored(path) == list(range(13))


# ---- its blocks are deleted before the state says so; its quick extend persists a truncated tail before it copies; its failed
# creation leaves a path that no mode can open


def dying(prepare: Callable[[Path], None], act: Callable[[Path], object], tmp_path: Path) -> Iterator[Path]:
    """Run `act(directory)` killed just before its nth act on files, for every nth until it lives to its end.

    Each time in a fresh directory that `prepare` filled; those where it was killed are given out, and the last as well.
    """
    for nth in itertools.count():
        directory = tmp_path / f"killed at {nth}"
        directory.mkdir()
        prepare(directory)
        exitcode = 0
        try:
            elsewhere(_dying, nth, act, directory)
        except Died as death:
            exitcode = death.exitcode or 0
        assert exitcode in (0, -signal.SIGKILL)
        yield directory
        if not exitcode:
            assert nth > 3, "too few acts on files were seen"
            return


def _dying(nth: int, act: Callable[[Path], object], directory: Path) -> None:
    die_at_event(nth, *FILE_EVENTS)
    act(directory)


def _prepare(directory: Path) -> None:
    create(directory / "x")
    create(directory / "other", 7)


def _truncate(directory: Path) -> None:
    with tb.TensorBlob.open(directory / "x", "r+") as blob:
        blob.truncate(5)


def _start_over(directory: Path) -> None:
    tb.TensorBlob.open(directory / "x", "w").close()


def _extend_without_order(directory: Path) -> None:
    with tb.TensorBlob.open(directory / "x", "a") as blob, tb.TensorBlob.open(directory / "other") as source:
        blob.extend(source, maintain_order=False)


def _create(directory: Path) -> None:
    create(directory / "x", 3)


@pytest.mark.slow
@pytest.mark.parametrize(("act", "left"), [(_truncate, list(range(5))), (_start_over, [])])
def test_a_crash_anywhere_in_a_truncation_leaves_all_rows_or_the_kept_ones(
    tmp_path: Path, act, left: list[int]
) -> None:
    readers: list[tb.TensorBlob] = []

    def prepare(directory: Path) -> None:
        _prepare(directory)
        readers.append(tb.TensorBlob.open(directory / "x"))

    found = []
    for directory in dying(prepare, act, tmp_path):
        found.append(stored(directory / "x"))
        assert found[-1] in (list(range(10)), left)
        with readers[-1] as reader:
            assert numbers(reader[:]) == list(range(10))
        with tb.TensorBlob.open(directory / "x", "a") as blob:
            blob.write(rows(-1))
        assert stored(directory / "x") == [*found[-1], -1]
    assert found[0] == list(range(10)) and found[-1] == left


@pytest.mark.slow
def test_a_crash_anywhere_in_an_extend_leaves_all_of_the_new_rows_or_none(tmp_path: Path) -> None:
    before, after = list(range(10)), sorted([*range(10), *range(7)])
    found = []
    for directory in dying(_prepare, _extend_without_order, tmp_path):
        found.append(stored(directory / "x"))
        assert found[-1] == before or sorted(found[-1]) == after
        assert stored(directory / "other") == list(range(7))
        with tb.TensorBlob.open(directory / "x", "a") as blob:
            blob.write(rows(-1))
        assert stored(directory / "x") == [*found[-1], -1]
    assert found[0] == before and sorted(found[-1]) == after


@pytest.mark.slow
def test_a_crash_anywhere_in_a_creation_leaves_no_blob_or_a_whole_one(tmp_path: Path) -> None:
    found = []
    for directory in dying(lambda directory: None, _create, tmp_path):
        path = directory / "x"
        found.append(stored(path) if path.exists() else None)
        assert found[-1] in (None, [], [0, 1, 2])
        if found[-1] is None:
            with pytest.raises(FileNotFoundError):
                tb.TensorBlob.open(path)
        assert stored(create(path, 2)) == [0, 1]
        assert tb.TensorBlob.unlink(path) is True
    assert found[0] is None and found[-1] == [0, 1, 2]


# ---- a full disk kills the process by SIGBUS


@contextmanager
def _small_tmpfs(at: Path, nbytes: int) -> Iterator[None]:
    mount_small_disk(at, nbytes)
    yield


@contextmanager
def _small_files(at: Path, nbytes: int) -> Iterator[None]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _fill_the_disk(at: Path, kind: str, nbytes: int) -> dict[str, Any] | None:
    if kind == "tmpfs" and not private_mounts():
        return None
    report: dict[str, Any] = {}
    at.mkdir()
    limit = _small_tmpfs if kind == "tmpfs" else _small_files
    with limit(at, nbytes):
        spare = at / "spare"
        spare.write_bytes(bytes(16 * ROW_NBYTES))
        with tb.TensorBlob.open(at / "x", "w+", dtype="float32", shape=SHAPE) as blob:
            acknowledged = 0
            while (error := complaint(lambda: blob.write(rows(*range(len(blob), len(blob) + 3))))) is None:
                acknowledged += 3
            report |= {"error": error, "acknowledged": acknowledged, "same handle": numbers(blob[:])}
            report["again"] = complaint(lambda: blob.write(rows(*range(300))))
            report["reader"] = stored(at / "x")
            if kind == "tmpfs":
                spare.unlink()
                blob.truncate(acknowledged - 3)
    if kind == "tmpfs":
        with tb.TensorBlob.open(at / "x", "a") as blob:
            blob.write(rows(-1))
    report["in the end"] = stored(at / "x")
    return report


@pytest.mark.parametrize("kind", ["tmpfs", "file size limit"])
def test_a_full_disk_raises_and_costs_no_committed_row(tmp_path: Path, kind: str) -> None:
    nbytes = 4 << 20
    report = elsewhere(_fill_the_disk, tmp_path / "disk", kind, nbytes)
    if report is None:
        pytest.skip("this system lets us mount nothing; the file size limit is tested instead")
    count = report["acknowledged"]
    for error in (report["error"], report["again"]):
        assert isinstance(error, Complaint) and {"DiskFull", "OSError"} <= error.names, error
    assert count * ROW_NBYTES > nbytes // 2, "a disk is not full while half of it is free"
    assert report["same handle"] == report["reader"] == list(range(count))
    assert report["in the end"] == ([*range(count - 3), -1] if kind == "tmpfs" else list(range(count)))
