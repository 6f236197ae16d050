"""The published package's behaviour, which ours keeps: every test here also passes against tensorblob 0.3.0.

So nothing here may use a name that only ours has. Where the published package loses or corrupts data ours differs, and
the claims are in test_published_defects.py. The cursor is in test_published_cursor.py; indexing, `extend` and
`unlink` are in test_published_indexing.py.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from api_support import SHAPE, create, numbers, rows, stored

from tensorblob import TensorBlob

MODES = ["r", "w", "a", "r+", "w+", "a+"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


# ---- opening


@pytest.mark.parametrize("mode", ["x", "rr", "r++", "rb", "wt", "R", "r "])
def test_an_unknown_mode_letter_is_named(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError) as caught:
        TensorBlob.open(tmp_path / "x", mode, dtype="float32", shape=3)
    assert str(caught.value) == f"Invalid mode: {mode}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", ["", "+", "rw", "r+w", "raw", "ra+", "wr"])
def test_a_mode_is_exactly_one_of_r_w_a(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError) as caught:
        TensorBlob.open(tmp_path / "x", mode, dtype="float32", shape=3)
    assert str(caught.value) == f"Must have exactly one of read/write/append mode and at most one plus: {mode}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", [None, 3])
def test_a_mode_is_a_string(path: Path, mode: object) -> None:
    with pytest.raises(TypeError):
        TensorBlob.open(path, mode)


def test_the_plus_may_come_first(path: Path) -> None:
    with TensorBlob.open(path, "+r") as blob:
        blob.write(blob.read(1) + 100)
    assert stored(path)[:3] == [0, 100, 2]


@pytest.mark.parametrize("mode", ["r", "a", "r+", "a+"])
def test_only_w_creates_a_blob(tmp_path: Path, mode: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        TensorBlob.open(tmp_path / "none", mode, dtype="float32", shape=3)
    assert str(caught.value) == f"Blob not found: {tmp_path.resolve() / 'none'!r}"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("mode", ["w", "w+"])
@pytest.mark.parametrize(("dtype", "shape"), [(None, None), ("float32", None), (None, 3)])
def test_a_new_blob_needs_dtype_and_shape(tmp_path: Path, mode: str, dtype: object, shape: object) -> None:
    with pytest.raises(ValueError) as caught:
        TensorBlob.open(tmp_path / "x", mode, dtype=dtype, shape=shape)
    assert str(caught.value) == (
        f"Arguments ``dtype`` and ``shape`` are required for new blob; got: {dtype!r} and {shape!r}"
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("dtype", "name"), [(3, "int"), (np.float32, "type")])
def test_a_dtype_is_a_string_or_a_torch_dtype(tmp_path: Path, dtype: object, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        TensorBlob.open(tmp_path / "x", "w", dtype=dtype, shape=3)
    assert str(caught.value) == f"dtype must be str or torch.dtype, got {name!r}"


def test_a_shape_is_an_int_or_a_sequence(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        TensorBlob.open(tmp_path / "x", "w", dtype="float32", shape=2.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64,
                                   torch.bool, torch.complex64])  # fmt: skip
@pytest.mark.parametrize("spell", [lambda dtype: dtype, lambda dtype: str(dtype).removeprefix("torch.")])
def test_a_dtype_may_be_spelled_either_way_and_comes_back_as_its_name(
    tmp_path: Path, dtype: torch.dtype, spell
) -> None:
    batch = torch.arange(6).reshape(3, 2).to(dtype)
    with TensorBlob.open(tmp_path / "x", "w", dtype=spell(dtype), shape=2) as blob:
        assert blob.dtype == str(dtype).removeprefix("torch.")
        blob.write(batch)
    with TensorBlob.open(tmp_path / "x") as blob:
        assert blob.dtype == str(dtype).removeprefix("torch.")
        got = blob.read()
        assert got.dtype == dtype and torch.equal(got, batch)


@pytest.mark.parametrize(
    ("shape", "kept"), [(3, (3,)), ((2, 3), (2, 3)), ([2, 3], (2, 3)), ((), ()), (torch.Size([4]), (4,))]
)
def test_a_shape_is_kept_as_a_tuple(tmp_path: Path, shape: object, kept: tuple[int, ...]) -> None:
    with TensorBlob.open(tmp_path / "x", "w+", dtype="float32", shape=shape) as blob:
        assert blob.shape == kept and type(blob.shape) is tuple
        assert blob.write(torch.ones(5, *kept)) == 5
        assert blob[0].shape == kept and blob[:].shape == (5, *kept)
    with TensorBlob.open(tmp_path / "x") as blob:
        assert blob.shape == kept and type(blob.shape) is tuple


def test_everything_after_the_mode_is_a_keyword(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        TensorBlob.open(tmp_path / "x", "w", "float32", 3)


@pytest.mark.parametrize("how", ["str", "path", "relative", "tilde", "new parents"])
def test_a_filename_may_be_given_in_every_usual_way_and_is_kept_absolute(tmp_path: Path, monkeypatch, how: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    given, kept = {
        "str": (os.fspath(tmp_path / "x"), tmp_path / "x"),
        "path": (tmp_path / "x", tmp_path / "x"),
        "relative": ("x", tmp_path / "x"),
        "tilde": ("~/x", tmp_path / "x"),
        "new parents": (tmp_path / "a" / "b" / "x", tmp_path / "a" / "b" / "x"),
    }[how]
    with TensorBlob.open(given, "w", dtype="float32", shape=()) as blob:
        assert blob.filename == os.fspath(kept.resolve())
        blob.write(torch.ones(3))
    with TensorBlob.open(given) as blob:
        assert len(blob) == 3
    assert TensorBlob.unlink(given) is True
    assert not kept.exists()


@pytest.mark.parametrize("mode", MODES)
def test_the_properties_can_be_read_in_every_mode_and_after_close(path: Path, mode: str) -> None:
    blob = TensorBlob.open(path, mode, max_cached_blocks=7)
    count = 0 if "w" in mode else 10
    for closed in (False, True):
        assert (blob.mode, blob.dtype, blob.shape, blob.block_size) == (mode, "float32", SHAPE, 4)
        assert (blob.filename, blob.max_cached_blocks) == (os.fspath(path.resolve()), 7)
        assert blob.closed is closed
        assert len(blob) == count and bool(blob) is (count > 0)
        blob.close()


# ---- what each mode allows


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_starts_where_a_file_would(path: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob:
        assert (len(blob), blob.tell()) == {"r": (10, 0), "w": (0, 0), "a": (10, 10)}[mode[0]]
    assert len(stored(path)) == (0 if "w" in mode else 10)


def test_reading_needs_a_readable_mode(path: Path) -> None:
    for mode in ("a", "w"):
        with TensorBlob.open(path, mode) as blob, pytest.raises(OSError) as caught:
            blob.read()
        assert str(caught.value) == f"Blob is not open for reading (mode='{mode}')"


@pytest.mark.parametrize("act", [
    lambda blob: blob.write(rows(1)), lambda blob: blob.truncate(), lambda blob: blob.truncate(-1),
    lambda blob: blob.flush(), lambda blob: blob.extend(blob), lambda blob: blob.extend(blob, maintain_order=False),
])  # fmt: skip
def test_changing_needs_a_writable_mode(path: Path, act) -> None:
    with TensorBlob.open(path) as blob, pytest.raises(OSError) as caught:
        act(blob)
    assert str(caught.value) == "Blob is not open for writing (mode='r')"
    assert stored(path) == list(range(10))


@pytest.mark.parametrize("act", [
    lambda blob: blob.read(), lambda blob: blob.write(rows(1)), lambda blob: blob.seek(0), lambda blob: blob.tell(),
    lambda blob: blob.truncate(0), lambda blob: blob.flush(), lambda blob: blob.extend(blob),
])  # fmt: skip
def test_a_closed_blob_refuses_everything(path: Path, act) -> None:
    blob = TensorBlob.open(path, "r+")
    assert blob.close() is None
    assert blob.close() is None
    with pytest.raises(OSError) as caught:
        act(blob)
    assert str(caught.value) == "I/O operation on closed blob."
    assert stored(path) == list(range(10))


def test_with_closes(path: Path) -> None:
    with TensorBlob.open(path) as blob:
        assert not blob.closed
    assert blob.closed
    with pytest.raises(KeyError), TensorBlob.open(path) as blob:
        raise KeyError
    assert blob.closed


# ---- writing


def test_a_write_returns_how_many_rows_it_wrote(path: Path) -> None:
    with TensorBlob.open(path, "a") as blob:
        assert blob.write(rows(10, 11, 12)) == 3
        assert blob.write(rows(13)[0]) == 1
        assert blob.write(rows(14, 15).flatten()) == 2
        assert blob.write(rows()) == 0
        assert blob.tell() == len(blob) == 16
    assert stored(path) == list(range(16))


def test_a_scalar_row_may_be_written_without_a_dimension(tmp_path: Path) -> None:
    with TensorBlob.open(tmp_path / "x", "w+", dtype="int64", shape=()) as blob:
        assert blob.write(torch.tensor(5)) == 1
        assert blob.write(torch.arange(3)) == 3
        assert blob[:].tolist() == [5, 0, 1, 2]


def test_flat_input_is_cut_into_rows_of_several_dimensions(tmp_path: Path) -> None:
    with TensorBlob.open(tmp_path / "x", "w+", dtype="float32", shape=(2, 3)) as blob:
        assert blob.write(torch.arange(12.0)) == 2
        assert blob.write(torch.zeros(2, 3)) == 1
        assert torch.equal(blob[:2], torch.arange(12.0).reshape(2, 2, 3))


def test_a_dtype_is_never_cast(path: Path) -> None:
    with TensorBlob.open(path, "a") as blob:
        with pytest.raises(TypeError) as caught:
            blob.write(rows(1).double())
        assert str(caught.value) == "Tensor dtype torch.float64 does not match blob dtype torch.float32!"
    assert stored(path) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10))
@pytest.mark.parametrize("second", [0, 1, 3, 4, 5, 9])
def test_writes_join_seamlessly_wherever_a_block_ends(tmp_path: Path, first: int, second: int) -> None:
    create(tmp_path / "x", first)
    with TensorBlob.open(tmp_path / "x", "a") as blob:
        blob.write(rows(*range(first, first + second)))
        blob.write(rows(-1))
    assert stored(tmp_path / "x") == [*range(first + second), -1]


@pytest.mark.parametrize("at", [0, 3, 4, 7, 9, 10])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_r_plus_overwrites_at_the_cursor_and_goes_on_past_the_end(path: Path, at: int, count: int) -> None:
    new = [100 + i for i in range(count)]
    expected = list(range(10))
    expected[at : at + count] = new
    with TensorBlob.open(path, "r+") as blob:
        assert blob.seek(at) == at
        assert blob.write(rows(*new)) == count
        assert blob.tell() == at + count
        assert len(blob) == len(expected)
        assert numbers(blob[:]) == expected
    assert stored(path) == expected


@pytest.mark.parametrize("mode", ["w", "w+"])
def test_w_may_go_back_and_overwrite(path: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob:
        blob.write(rows(*range(6)))
        blob.seek(2)
        blob.write(rows(20, 30))
        assert (blob.tell(), len(blob)) == (4, 6)
    assert stored(path) == [0, 1, 20, 30, 4, 5]


@pytest.mark.parametrize("mode", ["a", "a+"])
def test_appending_goes_to_the_end_wherever_the_cursor_is(path: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob:
        assert blob.seek(3) == 3
        assert blob.write(rows(10)) == 1
        assert (blob.tell(), len(blob)) == (11, 11)
        blob.seek(3)
        assert blob.write(rows()) == 0
        assert blob.tell() == 11
    assert stored(path) == list(range(11))


def test_w_empties_a_blob_and_keeps_its_dtype_shape_and_block_size(path: Path) -> None:
    with TensorBlob.open(path, "w") as blob:
        assert (blob.dtype, blob.shape, blob.block_size, len(blob)) == ("float32", SHAPE, 4, 0)
        blob.write(rows(7))
    assert stored(path) == [7]


def test_flushed_rows_are_seen_by_a_reader_opened_later(path: Path) -> None:
    with TensorBlob.open(path, "a") as blob:
        blob.write(rows(10, 11))
        assert blob.flush() is None
        assert stored(path) == list(range(12))
