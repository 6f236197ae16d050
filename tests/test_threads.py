"""Threads that share a handle: a close in the middle of their writes is a close, and every write before it is whole."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tensorblob as tb
from tensorblob import files


@pytest.fixture(autouse=True)
def threads_that_switch_all_the_time() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_a_handle_that_is_closed_while_others_write_raises_blob_closed_in_them_and_keeps_what_was_committed(
    tmp_path: Path, attempt: int
) -> None:
    blob = tb.TensorBlob.open(tmp_path / "x.blob", "w", dtype="int64", shape=(512,), block_size=8)
    errors: list[Exception] = []
    committed = [0, 0]

    def write(number: int) -> None:
        try:
            while True:
                blob.write(torch.full((3, 512), number))
                committed[number] += 3
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while not all(committed):
        pass
    blob.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [tb.BlobClosed] * 2, errors
    with tb.TensorBlob.open(tmp_path / "x.blob") as reader:
        assert len(reader) == sum(committed)


def test_threads_that_refresh_one_handle_take_each_commit_in_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is on its way while the other comes: that one waits, or both would fold the same records."""
    path = tmp_path / "x.blob"
    both, is_over, read_on = threading.Barrier(2), threading.Event(), files.read_on
    met: set[int] = set()
    reading: set[int] = set()

    def meet() -> bool:
        """One is reading by then, and the other is, too, or waits for the lock. Return True to one of them, once."""
        if (me := threading.get_ident()) in met:
            return False
        met.add(me)
        return both.wait(30) == 0

    class Lock:
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if not self._lock.acquire(blocking=False):
                meet()
                self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    def read_and_meet(fd: int, offset: int) -> bytes:
        data = read_on(fd, offset)
        reading.add(threading.get_ident())
        if meet() and len(reading) == 2:
            is_over.wait(30)
        return data

    def refresh() -> None:
        reader.refresh()
        is_over.set()

    with tb.TensorBlob.open(path, "w", dtype="int64", shape=()) as writer, tb.TensorBlob.open(path) as reader:
        writer.write(torch.arange(3), metadata={"a": 1})
        assert reader._reader is not None
        reader._reader._lock = Lock()  # type: ignore[assignment]
        monkeypatch.setattr(files, "read_on", read_and_meet)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(refresh) for _ in range(2)]:
                done.result()
        assert len(met) == 2 and len(reader.commit_metadata()) == 1 and len(reader) == 3
