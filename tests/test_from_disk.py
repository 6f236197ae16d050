"""Rows that are not in memory: a gather asks the disk for all of them at once, and for little else."""

import gc
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorblob as tb
from tensorblob import columns, memory

ROWS, WIDTH = 6_000, 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.blob"


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the kernel was told what will be needed, as (address, bytes). A gather that is only kept waiting for a core is
    not taken for one from the disk."""
    given: list[tuple[int, int]] = []
    advise = memory._madvise

    def recorded(address: int, nbytes: int, advice: int) -> Any:
        if advice == memory._MADV_WILLNEED:
            given.append((address, nbytes))
        return advise(address, nbytes, advice)

    monkeypatch.setattr(memory, "_madvise", recorded)
    monkeypatch.setattr(columns, "SLOW_NS", 1 << 60)
    return given


def blob_of(path: Path, seams: int = 0) -> torch.Tensor:
    """A blob of ROWS rows of 4 KiB, and of a third of them again at each seam; returns its rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1 << 30, (ROWS, WIDTH), dtype=torch.int32, generator=generator)
    with tb.TensorBlob.open(path, "w", dtype=torch.int32, shape=(WIDTH,)) as blob:
        blob.write(rows)
    part, parts = path.with_name("part.blob"), [rows]
    for _ in range(seams):
        with tb.TensorBlob.open(part, "w", dtype=torch.int32, shape=(WIDTH,)) as blob:
            blob.write(rows[: ROWS // 3 - 1])
        with tb.TensorBlob.open(path, "a") as blob, tb.TensorBlob.open(part) as other:
            blob.extend(other)
        parts.append(rows[: ROWS // 3 - 1])
    return torch.cat(parts)


def drop_pages(path: Path) -> None:
    """Have nothing of the blob in memory, where a disk is below it."""
    gc.collect()  # pages that are mapped would stay
    for block in path.glob("blocks/**/*"):
        if block.is_file():
            fd = os.open(block, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bytes_read_by(call: Callable[[], object]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    call()
    return 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before)


@pytest.mark.parametrize("seams", [0, 2])
@pytest.mark.parametrize("count", [1, memory.SAMPLE_ROWS + 1, 5_000])
def test_rows_from_the_disk_are_the_rows(count: int, seams: int, path: Path) -> None:
    rows = blob_of(path, seams)
    chosen = torch.randint(-len(rows), len(rows), (count,), generator=torch.Generator().manual_seed(count))
    drop_pages(path)
    with tb.TensorBlob.open(path) as blob:
        assert torch.equal(blob[chosen], rows[chosen])
    drop_pages(path)
    with tb.TensorBlob.open(path) as blob:
        out = torch.empty(count, WIDTH, dtype=torch.int32)
        assert torch.equal(blob.gather(chosen, out=out), rows[chosen])
        with pytest.raises(IndexError):
            blob[torch.tensor([0, len(rows)])]


def test_a_gather_reads_what_it_needs_at_once(path: Path, hints: list[tuple[int, int]]) -> None:
    rows = blob_of(path)
    chosen = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:256]
    drop_pages(path)
    with tb.TensorBlob.open(path) as blob:
        nbytes = bytes_read_by(lambda: blob[chosen])
        if not nbytes:
            pytest.skip("no disk is below the temporary directory: nothing is ever read from it")
        assert len(hints) == len(chosen)
        needed = len(chosen) * rows[0].nbytes
        assert needed <= nbytes <= 2 * needed, "and not the neighbourhood of each row"
        assert bytes_read_by(lambda: blob[chosen]) == 0


def test_where_all_is_in_memory_a_few_hints_find_it_out(path: Path, hints: list[tuple[int, int]]) -> None:
    rows = blob_of(path)
    chosen = torch.arange(0, ROWS, 2)
    with tb.TensorBlob.open(path) as blob:
        assert torch.equal(blob[:], rows)
        for _ in range(2):
            assert torch.equal(blob[chosen], rows[chosen])
            assert len(hints) == memory.SAMPLE_ROWS


def test_a_slow_gather_makes_the_next_one_look_again(
    path: Path, hints: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in memory may have had to leave it."""
    blob_of(path)
    chosen = torch.arange(100)
    with tb.TensorBlob.open(path) as blob:
        blob[:], blob[chosen], blob[chosen]
        assert len(hints) == memory.SAMPLE_ROWS
        with monkeypatch.context() as patch:
            for name in ("SLOW_NS", "SLOW_ROW_NS", "SLOW_BYTE_NS"):
                patch.setattr(columns, name, 0)
            blob[chosen]
        assert len(hints) == memory.SAMPLE_ROWS
        blob[chosen], blob[chosen]
        assert len(hints) == 2 * memory.SAMPLE_ROWS


def test_a_reader_that_goes_on_remembers_that_all_is_in_memory(path: Path, hints: list[tuple[int, int]]) -> None:
    rows = blob_of(path)
    chosen = torch.arange(100)
    with tb.TensorBlob.open(path, "a") as writer, tb.TensorBlob.open(path) as blob:
        blob[:], blob[chosen]
        for count in range(1, 4):
            writer.write(rows[:10])
            writer.trim(10 * count)
            blob.refresh()
            assert torch.equal(blob[:5], rows[10 * count : 10 * count + 5])
            blob[chosen]
        assert len(hints) == memory.SAMPLE_ROWS
