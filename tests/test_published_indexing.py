"""The published package's indexing, `extend` and `unlink`, which ours keeps: these tests too pass against 0.3.0."""

from pathlib import Path

import numpy as np
import pytest
import torch
from api_support import SHAPE, create, numbers, rows, stored

from tensorblob import TensorBlob

READABLE = ["r", "r+", "w+", "a+"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


@pytest.fixture
def blob(path: Path):
    with TensorBlob.open(path) as blob:
        yield blob


# ---- one row


@pytest.mark.parametrize(("index", "row"), [*((i, i) for i in range(10)), *((i, i + 10) for i in range(-10, 0))])
def test_an_int_gives_one_row(blob: TensorBlob, index: int, row: int) -> None:
    got = blob[index]
    assert type(got) is torch.Tensor and got.shape == SHAPE
    assert numbers(got[None]) == [row]


@pytest.mark.parametrize("index", [10, -11, 1 << 40, -(1 << 70)])
def test_an_int_out_of_bounds_is_named(blob: TensorBlob, index: int) -> None:
    with pytest.raises(IndexError) as caught:
        blob[index]
    assert str(caught.value) == f"Index out of bounds: {index} (length: 10)"


def test_a_python_bool_is_an_int(blob: TensorBlob) -> None:
    assert numbers(torch.stack([blob[True], blob[False]])) == [1, 0]


# ---- many rows

BOUNDS = [None, -12, -10, -5, -1, 0, 1, 4, 7, 10, 12]


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 1, 2, 4, 5, 30, -1, -2, -3, -30])
@pytest.mark.parametrize("start", BOUNDS)
def test_a_slice_gives_what_it_gives_of_a_list(blob: TensorBlob, start: int | None, step: int | None) -> None:
    for stop in BOUNDS:
        wanted = slice(start, stop, step)
        got = blob[wanted]
        assert type(got) is torch.Tensor
        assert numbers(got) == list(range(10))[wanted]


def test_slice_bounds_may_be_anything_with_an_index(blob: TensorBlob) -> None:
    assert numbers(blob[np.int64(2) : torch.tensor(5)]) == [2, 3, 4]


@pytest.mark.parametrize(
    ("index", "error"), [(slice(None, None, 0), ValueError), (slice("a"), TypeError), (slice(1.5), TypeError)]
)
def test_an_impossible_slice_fails_as_it_does_for_a_list(
    blob: TensorBlob, index: slice, error: type[Exception]
) -> None:
    with pytest.raises(error) as expected:
        [][index]
    with pytest.raises(error) as caught:
        blob[index]
    assert str(caught.value) == str(expected.value)


PICKS = [[], [0], [9], [-1], [-10], [3, 1, 2], [5, 5, 5], [-1, 0, 9, -10, 4], [7, 2, 7, 0, 3, 8, 1]]
FORMS = {
    "list": list,
    "tuple": tuple,
    "int64 tensor": lambda pick: torch.tensor(pick, dtype=torch.int64),
    "int32 tensor": lambda pick: torch.tensor(pick, dtype=torch.int32),
    "int8 tensor": lambda pick: torch.tensor(pick, dtype=torch.int8),
    "strided tensor": lambda pick: torch.tensor(pick + pick, dtype=torch.int64).reshape(2, -1).T.flatten()[::2],
    "int64 array": lambda pick: np.array(pick, dtype=np.int64),
    "int16 array": lambda pick: np.array(pick, dtype=np.int16),
    "list of numpy ints": lambda pick: [np.int64(i) for i in pick],
    "list of 0-d tensors": lambda pick: [torch.tensor(i) for i in pick],
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pick", PICKS)
def test_a_sequence_of_ints_gives_its_rows_in_its_order(blob: TensorBlob, form: str, pick: list[int]) -> None:
    got = blob[FORMS[form](pick)]
    assert type(got) is torch.Tensor
    assert numbers(got) == [i % 10 for i in pick]


@pytest.mark.parametrize("index", [torch.tensor([1, 9], dtype=torch.uint8), np.array([1, 9], dtype=np.uint16)])
def test_unsigned_indices_are_ints_too_and_no_mask(blob: TensorBlob, index: object) -> None:
    assert numbers(blob[index]) == [1, 9]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pick", [[10], [-11], [0, 1, 10], [0, -11, 5]])
def test_a_sequence_out_of_bounds_is_refused(blob: TensorBlob, form: str, pick: list[int]) -> None:
    with pytest.raises(IndexError) as caught:
        blob[FORMS[form](pick)]
    assert str(caught.value) == "Index out of bounds (length: 10)"


@pytest.mark.parametrize(("index", "got"), [
    ([1.5], "elements of type 'float'"), ([True, False], "elements of type 'bool'"), ((0.0, 1.0), "elements of type 'float'"),
    (torch.tensor([1.0]), "dtype torch.float32"), (torch.tensor([True]), "dtype torch.bool"),
    (np.array([1.0]), "elements of type 'float64'"),
])  # fmt: skip
def test_only_integers_pick_rows(blob: TensorBlob, index: object, got: str) -> None:
    with pytest.raises(TypeError) as caught:
        blob[index]
    assert str(caught.value) == f"Batch index must have an integer dtype, got {got}!"


@pytest.mark.parametrize("index", [[[1, 2]], torch.tensor([[1]]), np.array([[1]])])
def test_only_one_dimension_of_indices_is_taken(blob: TensorBlob, index: object) -> None:
    with pytest.raises(ValueError) as caught:
        blob[index]
    assert str(caught.value) == "Batch index must be 1-dimensional, got 2!"


@pytest.mark.parametrize("index", [None, "a", 1.5, ..., {1}, 1j, b"a"])
def test_what_is_no_index_is_named(blob: TensorBlob, index: object) -> None:
    with pytest.raises(TypeError) as caught:
        blob[index]
    assert str(caught.value) == f"Index must be int, slice, or a sequence of int, got {type(index).__name__!r}!"


def test_an_index_leaves_the_cursor_alone(blob: TensorBlob) -> None:
    blob.seek(4)
    blob[2], blob[1:3], blob[[7, 8]]
    assert blob.tell() == 4


def test_reversed_walks_backwards(blob: TensorBlob) -> None:
    assert numbers(torch.stack(list(reversed(blob)))) == list(range(10))[::-1]


# ---- copies

READS = {
    "int": lambda blob: blob[2][None],
    "slice": lambda blob: blob[2:3],
    "strided slice": lambda blob: blob[2:5:9],
    "list": lambda blob: blob[[2]],
    "tensor": lambda blob: blob[torch.tensor([2])],
    "read": lambda blob: (blob.seek(2), blob.read(1))[1],
    "iteration": lambda blob: (blob.seek(2), next(iter(blob)))[1][None],
}


@pytest.mark.slow
@pytest.mark.parametrize("max_cached_blocks", [None, 1])
@pytest.mark.parametrize("mode", READABLE)
@pytest.mark.parametrize("form", READS)
def test_what_was_read_is_a_copy(path: Path, mode: str, form: str, max_cached_blocks: int | None) -> None:
    with TensorBlob.open(path, mode, max_cached_blocks=max_cached_blocks) as blob:
        if "w" in mode:
            blob.write(rows(*range(10)))
        got = READS[form](blob)
        assert numbers(got) == [2]
        got.fill_(77)
        assert numbers(READS[form](blob)) == [2]
    assert stored(path) == list(range(10))


@pytest.mark.parametrize("form", READS)
def test_what_was_read_stays_when_its_row_is_overwritten(path: Path, form: str) -> None:
    with TensorBlob.open(path, "r+") as blob:
        got = READS[form](blob)
        blob.seek(2)
        blob.write(rows(99))
        assert numbers(got) == [2]
        assert numbers(READS[form](blob)) == [99]


def test_what_was_read_outlives_the_blob(path: Path) -> None:
    with TensorBlob.open(path) as blob:
        got = blob[:]
    TensorBlob.unlink(path)
    assert numbers(got) == list(range(10))


# ---- max_cached_blocks


@pytest.mark.parametrize("max_cached_blocks", [1, 2, 100])
def test_few_cached_blocks_give_the_same_rows(path: Path, max_cached_blocks: int) -> None:
    with TensorBlob.open(path, "r+", max_cached_blocks=max_cached_blocks) as blob:
        assert blob.max_cached_blocks == max_cached_blocks
        assert numbers(blob[::-1]) == list(range(10))[::-1]
        assert numbers(blob[[9, 0, 5, 1, 8]]) == [9, 0, 5, 1, 8]
        blob.seek(3)
        blob.write(rows(30, 40))
        assert numbers(blob[:]) == [0, 1, 2, 30, 40, 5, 6, 7, 8, 9]


def test_max_cached_blocks_cannot_be_negative(path: Path) -> None:
    with pytest.raises(ValueError):
        TensorBlob.open(path, max_cached_blocks=-1)


# ---- extend


@pytest.fixture
def other(tmp_path: Path) -> Path:
    create(tmp_path / "other.blob", 0)
    with TensorBlob.open(tmp_path / "other.blob", "a") as blob:
        blob.write(rows(*range(100, 106)))
    return tmp_path / "other.blob"


@pytest.mark.parametrize("mode", ["r+", "a", "a+"])
def test_extend_appends_the_other_blob_in_order(path: Path, other: Path, mode: str) -> None:
    with TensorBlob.open(path, mode) as blob, TensorBlob.open(other) as source:
        blob.seek(1)
        source.seek(2)
        assert blob.extend(source, maintain_order=True) is None
        assert (blob.tell(), len(blob), len(source)) == (16, 16, 6)
        assert blob.extend(source, True) is None
        blob.write(rows(-1))
    assert stored(path) == [*range(10), *range(100, 106), *range(100, 106), -1]
    assert stored(other) == list(range(100, 106))


def test_extend_without_order_keeps_every_row_and_the_full_blocks_first(path: Path, other: Path) -> None:
    with TensorBlob.open(path, "r+") as blob, TensorBlob.open(other) as source:
        assert blob.extend(source, maintain_order=False) is None
        assert (blob.tell(), len(blob)) == (16, 16)
        assert numbers(blob[:8]) == list(range(8))
        blob.write(rows(-1))
    assert stored(path)[:8] == list(range(8))
    assert sorted(stored(path)) == [-1, *range(10), *range(100, 106)]
    assert stored(other) == list(range(100, 106))


@pytest.mark.parametrize("maintain_order", [True, False])
@pytest.mark.parametrize("count", [0, 3, 4, 8])
def test_extend_takes_any_number_of_rows(path: Path, tmp_path: Path, count: int, maintain_order: bool) -> None:
    create(tmp_path / "source", count)
    with TensorBlob.open(path, "a+") as blob, TensorBlob.open(tmp_path / "source") as source:
        blob.extend(source, maintain_order=maintain_order)
        assert sorted(numbers(blob[:])) == sorted([*range(10), *range(count)])


def test_a_blob_can_be_extended_by_itself(path: Path) -> None:
    with TensorBlob.open(path, "r+") as blob:
        blob.extend(blob, maintain_order=True)
    assert stored(path) == [*range(10), *range(10)]


@pytest.mark.parametrize("change", [{"dtype": "int32"}, {"shape": (1, 1024)}])
def test_extend_refuses_another_kind_of_rows(path: Path, tmp_path: Path, change: dict[str, object]) -> None:
    with (
        TensorBlob.open(
            tmp_path / "x", "w+", **({"dtype": "float32", "shape": SHAPE, "block_size": 4} | change)
        ) as source,
        TensorBlob.open(path, "a") as blob,
        pytest.raises(ValueError) as caught,
    ):
        blob.extend(source)
    assert str(caught.value) == "Blob data types and shapes must match to extend blobs!"
    assert stored(path) == list(range(10))


def test_extend_without_order_needs_equal_block_sizes(path: Path, tmp_path: Path) -> None:
    create(tmp_path / "x", 6, block_size=2)
    with TensorBlob.open(tmp_path / "x") as source, TensorBlob.open(path, "a") as blob:
        with pytest.raises(ValueError) as caught:
            blob.extend(source, maintain_order=False)
        assert str(caught.value) == "Block sizes must match to extend blobs in non-order-preserving mode!"
        blob.extend(source, maintain_order=True)
    assert stored(path) == [*range(10), *range(6)]


# ---- unlink


def test_unlink_removes_a_blob_and_is_content_without_one(path: Path) -> None:
    assert TensorBlob.unlink(path) is True
    assert not path.exists()
    assert TensorBlob.unlink(path) is True


@pytest.mark.parametrize("content", [[], ["x"]])
def test_unlink_warns_and_leaves_what_is_no_blob(tmp_path: Path, content: list[str]) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in content:
        (foreign / name).write_text("mine")
    with pytest.warns(UserWarning, match="Failed to unlink blob at .*foreign"):
        assert TensorBlob.unlink(foreign) is False
    assert [entry.name for entry in foreign.iterdir()] == content
