"""Threads that share a handle: a close in the middle of their writes is a close, and every write before it is whole."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tensorblob as tb


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
