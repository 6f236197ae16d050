"""Property tests: every form of index gives what it gives of a tensor in memory, however the rows lie in files.

The layouts: one block, many, blocks with seams (parts adopted from other blobs, cut blocks), patched by overwrites, trimmed
at the front; read through the stitched map, through a few cached maps, and without any map.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorblob as tb

LAYOUTS = ["one block", "many blocks", "many seams", "patched", "trimmed"]
WAYS: dict[str, dict[str, Any]] = {
    "map": {"io": "map"},
    "pread": {"io": "pread"},
    "one cached block": {"max_cached_blocks": 1},
    "three cached blocks": {"max_cached_blocks": 3},
    "as chosen": {},
}
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "a page": ("float32", (1024,)),
    "half a page": ("int16", (2, 512)),
    "three pages in two": ("uint8", (6144,)),
    "two numbers": ("int64", (2,)),
    "a scalar": ("bfloat16", ()),
}

CASES = [
    *((layout, "a page") for layout in LAYOUTS),
    *((layout, "half a page") for layout in ("many blocks", "many seams", "patched")),
    ("many seams", "three pages in two"),
    ("trimmed", "two numbers"),
    ("patched", "a scalar"),
    ("many seams", "a scalar"),
]


def filled(dtype: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    """Rows whose numbers tell them apart (by their low bits: bfloat16 and uint8 know no more)."""
    number = torch.arange(start, stop) * 7 % 251
    return number.reshape(-1, *[1] * len(shape)).expand(-1, *shape).to(getattr(torch, dtype)).contiguous()


def lay_out(path: Path, layout: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Write a blob in this layout and return the rows that it must hold."""
    options: dict[str, Any] = {"dtype": dtype, "shape": shape, "block_rows": None if layout == "one block" else 1}
    with tb.TensorBlob.open(path, "w", **options) as blob:
        block_rows = 3 if layout == "one block" else blob.block_rows
    if layout != "one block" and block_rows < 5:  # blocks of some rows, not of one
        tb.TensorBlob.unlink(path)
        block_rows *= 2
        tb.TensorBlob.open(path, "w", **(options | {"block_rows": block_rows})).close()
    with tb.TensorBlob.open(path, "r+") as blob:
        if layout == "many seams":
            return _lay_out_seams(blob, path, options | {"block_rows": block_rows})
        expected = filled(dtype, shape, 0, 5 * block_rows + block_rows // 2 + 1)
        blob.write(expected)
        if layout == "patched":
            for start, stop in (
                (0, 1),
                (block_rows - 1, block_rows + 1),
                (3 * block_rows + 1, 3 * block_rows + 2),
                (len(blob) - 1, len(blob)),
            ):
                patch = filled(dtype, shape, start + 1000, stop + 1000)
                blob.seek(start)
                blob.write(patch)
                expected[start:stop] = patch
        if layout == "trimmed":
            cut = block_rows + block_rows // 2 + 1
            assert blob.trim(blob.first_row + cut) == cut
            expected = expected[cut:].clone()
    return expected


def _lay_out_seams(blob: tb.TensorBlob, path: Path, options: dict[str, Any]) -> torch.Tensor:
    parts = []
    for i, count in enumerate((1, 2 * blob.block_rows + 1, 2, blob.block_rows, 1)):
        rows = filled(options["dtype"], options["shape"], 100 * i, 100 * i + count)
        source = path.with_name(f"source {i}")
        with tb.TensorBlob.open(source, "w+", **options) as other:
            other.write(rows)
            blob.extend(other)
        blob.write(rows[:1])
        parts += [rows, rows[:1]]
    blob.truncate(len(blob) - 1)
    return torch.cat(parts)[:-1]


Case = tuple[tb.TensorBlob, torch.Tensor]


@pytest.fixture(scope="module", params=CASES, ids=" of ".join)
def stored_rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    layout, shape = request.param
    path = tmp_path_factory.mktemp("indexing") / "x.blob"
    return path, lay_out(path, layout, *SHAPES[shape])


@pytest.fixture(scope="module", params=WAYS)
def case(request: pytest.FixtureRequest, stored_rows: tuple[Path, torch.Tensor]) -> Iterator[Case]:
    path, expected = stored_rows
    with tb.TensorBlob.open(path, **WAYS[request.param]) as blob:
        yield blob, expected


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return type(got) is torch.Tensor and got.dtype == expected.dtype and torch.equal(got, expected)


def modest(test: Callable[..., None]) -> Callable[..., None]:
    return settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])(test)


def positions(expected: torch.Tensor, slack: int = 0) -> st.SearchStrategy[int]:
    return st.integers(-len(expected) - slack, len(expected) - 1 + slack)


ONE: list[Callable[[int], Any]] = [
    int,
    np.int64,
    np.int32,
    np.int16,
    torch.tensor,
    lambda i: torch.tensor(i, dtype=torch.int16),
    np.array,
]


@modest
@given(data=st.data())
def test_one_row(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    i = data.draw(positions(expected))
    for form in ONE:
        assert same(blob[form(i)], expected[i])


@modest
@given(data=st.data())
def test_one_row_out_of_bounds(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    i = data.draw(st.one_of(st.integers(len(expected), 30_000), st.integers(-30_000, -len(expected) - 1)))
    for form in ONE:
        with pytest.raises(IndexError, match=rf"Index out of bounds: .*{i}.* \(length: {len(expected)}\)"):
            blob[form(i)]


@pytest.mark.slow
@modest
@given(data=st.data())
def test_slices_of_any_step(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    bound = st.none() | positions(expected, slack=5)
    step = st.none() | st.integers(-7, 7).filter(bool) | st.integers(-3 * len(expected), 3 * len(expected)).filter(bool)
    wanted = slice(data.draw(bound), data.draw(bound), data.draw(step))
    assert same(blob[wanted], expected[list(range(len(expected))[wanted])])


@modest
@given(data=st.data())
def test_a_few_rows_are_read_before_the_spans_are_placed(
    stored_rows: tuple[Path, torch.Tensor], data: st.DataObject
) -> None:
    path, expected = stored_rows
    with tb.TensorBlob.open(path, io="map") as blob:
        layout = blob._state()[1][0]._shared
        assert not layout.patience, "few spans are placed at once"
        layout.patience = left = 1 << 20
        for _ in range(5):
            i = data.draw(positions(expected))
            assert same(blob[i], expected[i])
            start, step = data.draw(positions(expected)), data.draw(st.integers(-3, 3).filter(bool))
            wanted = slice(start, start + (1 if step > 0 else -1) * data.draw(st.integers(0, 8)), step)
            found = blob[wanted]
            assert same(found, expected[list(range(len(expected))[wanted])])
            assert found.untyped_storage().nbytes() == found.nbytes, "nothing else is held with it"
        assert left - 100 < layout.patience < left and not layout.cells and layout.unmapped
        assert same(blob.gather([0, -1]), expected[[0, -1]])
        assert layout.cells and not layout.patience
        i = data.draw(positions(expected))
        assert same(blob[i], expected[i])


MANY: list[Callable[[list[int]], Any]] = [
    list,
    tuple,
    lambda pick: torch.tensor(pick, dtype=torch.int64),
    lambda pick: torch.tensor(pick, dtype=torch.int16),
    lambda pick: np.array(pick, dtype=np.int64),
    lambda pick: np.array(pick, dtype=np.int32),
    lambda pick: np.repeat(np.array(pick, dtype=np.int64), 2)[::2],
]


@pytest.mark.slow
@modest
@given(data=st.data())
def test_many_rows_in_any_order_and_more_than_once(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    pick = data.draw(st.lists(positions(expected), max_size=40))
    wanted = expected[torch.tensor(pick, dtype=torch.int64)]
    for form in MANY:
        assert same(blob[form(pick)], wanted)
        assert same(blob.gather(form(pick)), wanted)
    assert same(torch.stack(blob.__getitems__(pick)), wanted) if pick else blob.__getitems__(pick) == []
    out = torch.zeros_like(wanted)
    assert blob.gather(pick, out=out) is out
    assert torch.equal(out, wanted)


@pytest.mark.slow
@modest
@given(data=st.data())
def test_unsigned_indices_pick_rows_too(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    pick = data.draw(st.lists(st.integers(0, min(len(expected), 256) - 1), max_size=20))
    wanted = expected[torch.tensor(pick, dtype=torch.int64)]
    for index in (
        torch.tensor(pick, dtype=torch.uint8),
        np.array(pick, dtype=np.uint8),
        np.array(pick, dtype=np.uint32),
    ):
        assert same(blob[index], wanted)


@pytest.mark.slow
@modest
@given(data=st.data())
def test_one_index_out_of_bounds_spoils_many(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    pick = data.draw(st.lists(positions(expected), max_size=10))
    bad = data.draw(st.one_of(st.integers(len(expected), 30_000), st.integers(-30_000, -len(expected) - 1)))
    pick.insert(data.draw(st.integers(0, len(pick))), bad)
    out = torch.zeros(len(pick), *expected.shape[1:], dtype=expected.dtype)
    for form in MANY:
        with pytest.raises(IndexError, match=rf"Index out of bounds \(length: {len(expected)}\)"):
            blob[form(pick)]
        with pytest.raises(IndexError):
            blob.gather(form(pick), out=out)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_an_index_that_only_uint64_holds_is_out_of_bounds_and_not_negative(case: Case, number: int) -> None:
    blob, expected = case
    out = torch.zeros(2, *expected.shape[1:], dtype=expected.dtype)
    for index in (torch.tensor([0, number], dtype=torch.uint64), np.array([0, number], dtype=np.uint64)):
        with pytest.raises(IndexError, match=rf"Index out of bounds \(length: {len(expected)}\)"):
            blob[index]
        with pytest.raises(IndexError):
            blob.gather(index, out=out)
    assert same(blob[torch.tensor([1, 0], dtype=torch.uint64)], expected[[1, 0]])


@modest
@given(data=st.data())
def test_reading_on_and_iterating_from_anywhere(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    start, size = data.draw(st.integers(0, len(expected))), data.draw(st.none() | st.integers(0, len(expected) + 5))
    stop = len(expected) if size is None else min(start + size, len(expected))
    assert blob.seek(start) == start
    assert same(blob.read(size), expected[start:stop])
    assert blob.tell() == stop
    got = [row for row, _ in zip(blob, range(20), strict=False)]
    assert len(got) == min(20, len(expected) - stop)
    assert all(same(row, expected[stop + i]) for i, row in enumerate(got))


@modest
@given(data=st.data())
def test_views_cover_the_runs_and_the_runs_cover_the_rows(case: Case, data: st.DataObject) -> None:
    blob, expected = case
    start, stop = sorted((data.draw(st.integers(0, len(expected))), data.draw(st.integers(0, len(expected)))))
    runs = blob.runs(start, stop)
    views = [blob.view(*run) for run in runs]
    assert [position for run in runs for position in range(*run)] == list(range(start, stop))
    assert all(torch.equal(view, expected[run[0] : run[1]]) for run, view in zip(runs, views, strict=True))
    if len(runs) > 1:
        with pytest.raises(tb.SeamError, match=r"runs\("):
            blob.view(start, stop)
    else:
        assert torch.equal(blob.view(start, stop), expected[start:stop])
