"""What one operation leaves behind is what the next one must work on: sequences that once went wrong, and their like.

Most were found by test_model.py, and are here so that nobody has to find them again.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, numbers, rows, stored

import tensorblob as tb

WAYS: list[dict[str, Any]] = [{}, {"io": "pread"}, {"max_cached_blocks": 1}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


# ---- the cursor stays with its row, whatever is trimmed or cut around it


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("before_row", [0, 4, 6, 10])
@pytest.mark.parametrize("at", [0, 5, 10])
def test_a_write_after_a_trim_goes_to_the_row_at_the_cursor_or_the_oldest_left(
    path: Path, at: int, before_row: int, options: dict[str, Any]
) -> None:
    row = max(at, before_row)
    expected = [*range(before_row, row), 100, 101, *range(row + 2, 10)]
    with tb.TensorBlob.open(path, "r+", **options) as blob:
        blob.seek(at)
        assert blob.trim(before_row) == before_row
        assert blob.tell() == row - before_row
        assert blob.write(rows(100, 101)) == 2
        assert blob.tell() == row + 2 - before_row
        assert numbers(blob[:]) == expected
    assert stored(path) == expected


@pytest.mark.parametrize("mode", ["r+", "a+"])
def test_a_blob_that_was_trimmed_of_every_row_goes_on(path: Path, mode: str) -> None:
    with tb.TensorBlob.open(path, mode) as blob:
        blob.trim(10)
        assert (len(blob), blob.first_row, blob.rows, blob.tell()) == (0, 10, 10, 0)
        assert blob[:].shape == (0, 1024) and list(blob) == [] and blob.runs() == []
        blob.write(rows(10))
        blob.trim(11)
        blob.extend(blob)
        blob.compact()
        blob.write(rows(11, 12))
        assert (blob.first_row, blob.rows) == (11, 13)
    assert stored(path) == [11, 12]


def test_rows_can_be_overwritten_truncated_and_trimmed_in_one_transaction(path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as blob, tb.TensorBlob.open(path) as reader:
        with blob.transaction():
            blob.seek(2)
            blob.write(rows(20, 30))
            blob.truncate(8)
            blob.trim(1)
            blob.seek(0, 2)
            blob.write(rows(80, 90))
            assert numbers(blob[:]) == [1, 20, 30, 4, 5, 6, 7, 80, 90]
            assert numbers(reader[:]) == list(range(10))
        assert reader.refresh()
        assert numbers(reader[:]) == [1, 20, 30, 4, 5, 6, 7, 80, 90]
    assert stored(path) == [1, 20, 30, 4, 5, 6, 7, 80, 90]


# ---- adopted rows, trimmed rows and reads


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("maintain_order", [True, False])
@pytest.mark.parametrize("cut", [0, 5, 9, 13, 14])
def test_what_was_adopted_can_be_read_when_the_rows_before_it_are_trimmed(
    tmp_path: Path, cut: int, maintain_order: bool, options: dict[str, Any]
) -> None:
    """Rows of half a page, so that a block may end within a page: reading after the trim was once a segmentation fault."""

    def halves(start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop).reshape(-1, 1, 1).expand(-1, 2, 128)

    kind: dict[str, Any] = {"dtype": "int64", "shape": (2, 128), "block_rows": 4}
    with (
        tb.TensorBlob.open(tmp_path / "x", "w+", **kind, **options) as blob,
        tb.TensorBlob.open(tmp_path / "source", "w+", **kind) as source,
    ):
        with blob.transaction():
            blob.write(halves(0, 5))
            blob.seek(3)
            blob.write(halves(3, 10))
        source.write(halves(10, 25))
        assert len(blob[:]) == 10
        blob.extend(source, maintain_order=maintain_order)
        found = blob[:]
        blob.trim(cut)
        assert torch.equal(blob[:], found[cut:])
        assert torch.equal(blob.gather(list(range(25 - cut))), found[cut:])
        if maintain_order:
            assert torch.equal(found, halves(0, 25))


SCHEMA = {"obs": ("int16", (2, 1024)), "reward": ("int32", (512,)), "action": ("int64", (1024,))}


def fields(*numbers: int) -> dict[str, torch.Tensor]:
    """Rows of SCHEMA that are filled with one number each: a row of `obs` is a page, of `reward` half, of `action` two."""
    number = torch.tensor(numbers, dtype=torch.int64)
    return {
        "obs": number.reshape(-1, 1, 1).expand(-1, 2, 1024).to(torch.int16),
        "reward": number.reshape(-1, 1).expand(-1, 512).to(torch.int32),
        "action": number.reshape(-1, 1).expand(-1, 1024),
    }


@pytest.mark.slow
@pytest.mark.parametrize("maintain_order", [True, False])
@pytest.mark.parametrize("keep", [0, 1, None])
@pytest.mark.parametrize("trim", [0, 1, 3, 4])
@pytest.mark.parametrize("patch", [None, 0, 2])
def test_fields_of_different_quanta_are_extended_whatever_is_left_of_them(
    tmp_path: Path, patch: int | None, trim: int, keep: int | None, maintain_order: bool
) -> None:
    kind: dict[str, Any] = {"schema": SCHEMA, "block_rows": 2}
    expected = [0, 1, 2, 3]
    with (
        tb.TensorBlob.open(tmp_path / "source", "w+", **kind) as source,
        tb.TensorBlob.open(tmp_path / "x", "w+", **kind) as blob,
    ):
        blob.write(fields(*expected))
        if patch is not None:
            blob.seek(patch)
            blob.write(fields(99))
            expected[patch] = 99
        blob.trim(trim)
        blob.truncate(keep if keep is not None else 4 - trim)
        expected = expected[trim:][:keep]
        source.write(fields(10, 11, 12, 13))
        blob.extend(source, maintain_order=maintain_order)
        got = blob[:]
        found = got["action"][:, 0].tolist()
        assert sorted(found) == sorted([*expected, 10, 11, 12, 13])
        assert not maintain_order or found == [*expected, 10, 11, 12, 13]
        assert all(torch.equal(got[key], value) for key, value in fields(*found).items())


# ---- slices

DTYPES = [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.uint8, torch.int64]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_any_dtype_is_sliced_backwards(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    count = 50
    batch = (torch.arange(count) % 7).reshape(-1, *[1] * len(shape)).expand(-1, *shape).to(dtype)
    with tb.TensorBlob.open(tmp_path / "x", "w+", dtype=dtype, shape=shape, **options) as blob:
        blob.write(batch)
        for wanted in (slice(None, None, step) for step in (-1, -2, -7, -count + 1, -count, -count - 1, 1 - 3 * count)):
            got = blob[wanted]
            expected = batch.view(torch.uint8) if dtype == torch.float8_e4m3fn else batch
            got = got.view(torch.uint8) if dtype == torch.float8_e4m3fn else got
            assert torch.equal(got, expected[list(range(count)[wanted])])
