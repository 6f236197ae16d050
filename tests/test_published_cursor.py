"""The published package's cursor, which ours keeps: `seek`, `tell`, `read`, `truncate`, iteration. These pass on 0.3.0 too."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from api_support import create, numbers, rows, stored

from tensorblob import TensorBlob

READABLE = ["r", "r+", "w+", "a+"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


@pytest.mark.parametrize(("args", "lands"), [
    ((), 0), ((3,), 3), ((-3,), 0), ((100,), 10), ((2, io.SEEK_CUR), 6), ((-20, 1), 0), ((0, io.SEEK_END), 10),
    ((-3, 2), 7), ((5, 2), 10), ((np.int64(3),), 3),
])  # fmt: skip
def test_seek_stays_within_the_blob(path: Path, args: tuple[int, ...], lands: int) -> None:
    with TensorBlob.open(path) as blob:
        blob.seek(4)
        assert blob.seek(*args) == lands
        assert blob.tell() == lands
        assert blob.seek(pos=1, whence=0) == 1


@pytest.mark.parametrize("whence", [3, -1])
def test_an_unknown_whence_is_refused(path: Path, whence: int) -> None:
    with TensorBlob.open(path) as blob:
        blob.seek(4)
        with pytest.raises(ValueError) as caught:
            blob.seek(0, whence)
        assert str(caught.value) == f"Invalid whence: {whence}"
        assert blob.tell() == 4


@pytest.mark.parametrize("mode", READABLE)
@pytest.mark.parametrize(("size", "count"), [(None, 8), (0, 0), (1, 1), (3, 3), (8, 8), (100, 8), (np.int64(2), 2)])
def test_read_goes_on_from_the_cursor(path: Path, mode: str, size: int | None, count: int) -> None:
    with TensorBlob.open(path, mode) as blob:
        if "w" in mode:
            blob.write(rows(*range(10)))
        blob.seek(2)
        got = blob.read(size)
        assert type(got) is torch.Tensor
        assert numbers(got) == list(range(2, 2 + count))
        assert blob.tell() == 2 + count
        assert numbers(blob.read(size=1)) == ([2 + count] if count < 8 else [])


def test_reading_an_empty_blob_gives_no_rows_of_the_right_kind(tmp_path: Path) -> None:
    with TensorBlob.open(tmp_path / "x", "w+", dtype="int16", shape=(2, 3)) as blob:
        for got in (blob.read(), blob.read(5), blob[:], blob[[]], blob[()], blob[torch.tensor([], dtype=torch.long)]):
            assert got.shape == (0, 2, 3) and got.dtype == torch.int16


@pytest.mark.parametrize(("pos", "left"), [(0, 0), (3, 3), (4, 4), (5, 5), (8, 8), (10, 10), (50, 10), (None, 6)])
@pytest.mark.parametrize("mode", ["r+", "a", "a+"])
def test_truncate_cuts_at_the_position_or_the_cursor(path: Path, mode: str, pos: int | None, left: int) -> None:
    with TensorBlob.open(path, mode) as blob:
        blob.seek(6)
        assert blob.truncate(pos) == left
        assert (blob.tell(), len(blob)) == (left, left)
        blob.write(rows(100))
    assert stored(path) == [*range(left), 100]


@pytest.mark.parametrize("mode", ["w", "w+"])
def test_what_was_just_written_can_be_truncated(path: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob:
        blob.write(rows(*range(6)))
        assert blob.truncate(pos=3) == 3
    assert stored(path) == [0, 1, 2]


def test_a_negative_truncation_is_refused(path: Path) -> None:
    with TensorBlob.open(path, "r+") as blob:
        with pytest.raises(ValueError) as caught:
            blob.truncate(-1)
        assert str(caught.value) == "Truncate position must be non-negative, got -1!"
    assert stored(path) == list(range(10))


@pytest.mark.parametrize("mode", READABLE)
def test_iteration_starts_at_the_cursor_and_gives_one_row_at_a_time(path: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob:
        if "w" in mode:
            blob.write(rows(*range(10)))
        blob.seek(3)
        got = list(blob)
        assert all(type(row) is torch.Tensor for row in got)
        assert numbers(torch.stack(got)) == list(range(3, 10))
        blob.seek(0, io.SEEK_END)
        assert list(blob) == []
