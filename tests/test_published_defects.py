"""What the published package gets wrong, found by running it: one claim each that ours does not.

Those that need several processes, a crash or a full disk are in test_published_crashes.py.
"""

import gc
import os
import sys
import threading
import time
import tracemalloc
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, create, numbers, photograph, rows, stored

import tensorblob as tb
from tensorblob import columns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


def block_files(path: Path) -> list[Path]:
    return sorted(entry for entry in (path / "blocks").rglob("*") if entry.is_file())


# ---- a reader of a missing or short block creates or grows the file and returns zeros


@pytest.mark.parametrize("options", [{}, {"io": "pread"}, {"max_cached_blocks": 1}])
@pytest.mark.parametrize("damage", [
    lambda block: block.unlink(),
    lambda block: os.truncate(block, 0),
    lambda block: os.truncate(block, block.stat().st_size - 1),
], ids=["missing", "empty", "short"])  # fmt: skip
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_missing_or_short_block_is_an_error_and_is_not_created_or_grown(
    path: Path, which: int, damage, options
) -> None:
    block = block_files(path)[which]
    damage(block)
    before = photograph(path)
    with pytest.raises(tb.Corrupt) as caught, tb.TensorBlob.open(path, **options) as blob:
        blob.read()
    assert isinstance(caught.value, OSError)
    assert caught.value.path == os.fspath(block)
    assert photograph(path) == before


# ---- a write that requires grad chains autograd graphs


def test_a_write_that_requires_grad_takes_the_values_and_keeps_no_graph(path: Path) -> None:
    leaf = rows(1, 2).requires_grad_()
    with tb.TensorBlob.open(path, "r+") as blob:
        assert blob.write(leaf) == 2
        product = leaf * 10
        assert blob.write(product) == 2
        got = blob[:4]
        assert not got.requires_grad and got.grad_fn is None
        assert not blob.view(0, 4).requires_grad
        assert numbers(got) == [1, 2, 10, 20]
        product.sum().backward()  # the caller's own graph is as it was
        assert leaf.grad is not None and bool((leaf.grad == 10).all())
        gone = weakref.ref(product)
        del product
        gc.collect()
        assert gone() is None


# ---- the LRU is not thread-safe


class Leisurely(OrderedDict[Any, Any]):
    """Whoever looks something up in it lets others go first."""

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        time.sleep(1e-5)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("max_cached_blocks", [1, 2, 3])
def test_threads_share_the_cached_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_cached_blocks: int
) -> None:
    create(tmp_path / "x", 64)
    monkeypatch.setattr(columns, "OrderedDict", Leisurely)
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def read(seed: int) -> None:
        picks = torch.randint(64, (100,), generator=torch.Generator().manual_seed(seed)).tolist()
        try:
            start.wait()
            for i in picks:
                assert numbers(blob[i][None]) == [i]
                assert numbers(blob[[i, (i + 32) % 64]]) == [i, (i + 32) % 64]
        except BaseException as error:
            failures.append(error)

    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with tb.TensorBlob.open(tmp_path / "x", max_cached_blocks=max_cached_blocks) as blob:
            threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(switch_interval_s)
    assert failures == []


# ---- closed and write-only blobs can be indexed; iterators share one cursor; read(-1) moves backwards

INDEXING = [lambda b: b[0], lambda b: b[:], lambda b: b[[0]], lambda b: b[torch.tensor([0])], lambda b: next(iter(b))]


@pytest.mark.parametrize("act", INDEXING)
@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_write_only_blob_cannot_be_indexed(path: Path, mode: str, act) -> None:
    with tb.TensorBlob.open(path, mode) as blob:
        blob.write(rows(10))
        blob.seek(0)
        with pytest.raises(tb.NotReadable) as caught:
            act(blob)
    assert str(caught.value) == f"Blob is not open for reading (mode='{mode}')"


@pytest.mark.parametrize("act", INDEXING)
@pytest.mark.parametrize("mode", ["r", "r+", "a+"])
def test_a_closed_blob_cannot_be_indexed(path: Path, mode: str, act) -> None:
    with tb.TensorBlob.open(path, mode) as blob:
        blob.seek(0)
    with pytest.raises(tb.BlobClosed) as caught:
        act(blob)
    assert str(caught.value) == "I/O operation on closed blob."


def test_two_iterators_do_not_share_a_cursor(path: Path) -> None:
    with tb.TensorBlob.open(path) as blob:
        blob.seek(2)
        pairs = list(zip(iter(blob), iter(blob), strict=True))
        assert [numbers(torch.stack(pair)) for pair in pairs] == [[i, i] for i in range(2, 10)]


@pytest.mark.parametrize("size", [-1, -3])
def test_reading_a_negative_size_reads_to_the_end_as_files_do(path: Path, size: int) -> None:
    with tb.TensorBlob.open(path) as blob:
        blob.seek(6)
        assert numbers(blob.read(size)) == [6, 7, 8, 9]
        assert blob.tell() == 10


# ---- a batch of the wrong trailing shape is silently re-cut


@pytest.mark.parametrize(
    "batch_shape", [(1, 6), (2, 6), (3, 2), (6, 1), (1, 2, 4), (2, 3, 2), (2, 2, 3, 1), (7,), (5,), ()]
)
def test_only_flat_input_is_cut_into_rows(tmp_path: Path, batch_shape: tuple[int, ...]) -> None:
    with tb.TensorBlob.open(tmp_path / "x", "w+", dtype="float32", shape=(2, 3)) as blob:
        with pytest.raises(tb.SchemaMismatch):
            blob.write(torch.zeros(batch_shape))
        assert (len(blob), blob.tell()) == (0, 0)
        assert blob.write(torch.arange(12.0)) == 2
        assert torch.equal(blob[:], torch.arange(12.0).reshape(2, 2, 3))


# ---- an exception inside `with` still commits


def test_an_exception_inside_a_transaction_commits_nothing(path: Path) -> None:
    with pytest.raises(KeyError), tb.TensorBlob.open(path, "r+") as blob, blob.transaction():
        blob.write(rows(100))
        blob.seek(0, 2)
        blob.write(rows(10, 11))
        raise KeyError
    assert stored(path) == list(range(10))


def test_a_write_that_raises_inside_with_leaves_only_the_writes_before_it(path: Path) -> None:
    with pytest.raises(TypeError), tb.TensorBlob.open(path, "a") as blob:
        blob.write(rows(10, 11))
        blob.write(rows(12, 13).double())
    assert stored(path) == list(range(12))


# ---- "w" on an existing blob ignores the dtype and shape passed; a failed creation leaves a path no mode can open


@pytest.mark.parametrize("mode", ["w", "w+"])
@pytest.mark.parametrize("asked", [{"dtype": "int32", "shape": SHAPE}, {"dtype": "float32", "shape": (512, 2)}])
def test_w_never_ignores_the_dtype_and_shape_passed(path: Path, mode: str, asked: dict[str, Any]) -> None:
    with pytest.raises(tb.SchemaConflict):
        tb.TensorBlob.open(path, mode, **asked)
    assert stored(path) == list(range(10))
    with tb.TensorBlob.open(path, mode, dtype=torch.float32, shape=[1024]) as blob:
        assert len(blob) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"dtype": "floaty"},
        {"shape": (2, -1)},
        {"shape": "ab"},
        {"block_size": 0},
        {"block_size": "a"},
        {"max_cached_blocks": -1},
    ],
)
def test_a_failed_creation_leaves_nothing_behind(tmp_path: Path, bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"dtype": "float32", "shape": SHAPE}
    with pytest.raises((TypeError, ValueError)):
        tb.TensorBlob.open(tmp_path / "x", "w", **(good | bad))
    assert list(tmp_path.iterdir()) == []
    with tb.TensorBlob.open(tmp_path / "x", "w", **good) as blob:
        blob.write(rows(1))
    assert stored(tmp_path / "x") == [1]


# ---- several fields

FIELDS = {"obs": ("float32", 3), "reward": "int64"}


def fields(first: int, count: int) -> dict[str, torch.Tensor]:
    reward = torch.arange(first, first + count)
    return {"obs": reward.reshape(-1, 1).expand(-1, 3).float(), "reward": reward}


@pytest.mark.parametrize("bad", ["obs", "reward"])
def test_a_bad_dtype_in_one_field_leaves_all_fields_aligned(tmp_path: Path, bad: str) -> None:
    with tb.TensorBlob.open(tmp_path / "x", "w+", schema=FIELDS) as blob:
        blob.write(fields(0, 4))
        batch = fields(4, 2)
        with pytest.raises(tb.DTypeMismatch):
            blob.write(batch | {bad: batch[bad].to(torch.float64)})
        assert len(blob) == 4
        blob.write(batch)
    with tb.TensorBlob.open(tmp_path / "x") as blob:
        got = blob[:]
        assert got["reward"].tolist() == list(range(6))
        assert torch.equal(got["obs"], fields(0, 6)["obs"])


def test_unlink_never_deletes_a_directory_that_is_no_blob(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "thesis" / "chapter.txt").write_text("years of work")
    with tb.TensorBlob.open(home / "x", "w", schema=FIELDS) as blob:
        blob.write(fields(0, 4))
    before = photograph(home)
    for target in (home, home / "thesis"):
        with pytest.warns(UserWarning, match="Failed to unlink blob at"):
            assert tb.TensorBlob.unlink(target) is False
    assert photograph(home) == before
    assert tb.TensorBlob.unlink(home / "x") is True
    assert [entry.name for entry in home.iterdir()] == ["thesis"]


# ---- sizes and costs


def test_one_large_row_makes_a_file_of_one_row(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "x", "w", dtype="float32", shape=(3, 224, 224)) as blob:
        blob.write(torch.zeros(1, 3, 224, 224))
    assert [block.stat().st_size for block in block_files(tmp_path / "x")] == [3 * 224 * 224 * 4]
    on_disk = sum(entry.stat().st_blocks * 512 for entry in (tmp_path / "x").rglob("*"))
    assert on_disk < 4 << 20


def test_a_slice_of_a_million_small_rows_does_nothing_per_row_in_python(tmp_path: Path) -> None:
    count = 1_000_000
    with tb.TensorBlob.open(tmp_path / "x", "w+", dtype="int32", shape=()) as blob:
        blob.write(torch.arange(count, dtype=torch.int32))
        calls = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        for wanted in (slice(None), slice(None, None, -1), slice(5, None, 3)):
            expected = torch.arange(count, dtype=torch.int32)[range(count)[wanted]]
            calls = 0
            tracemalloc.start()
            sys.setprofile(profile)
            got = blob[wanted]
            sys.setprofile(None)
            peak_nbytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert torch.equal(got, expected)
            assert calls < 2_000 and peak_nbytes < 1 << 20
