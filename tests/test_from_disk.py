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
from tensorblob import columns, memory, residency

ROWS, WIDTH = 6_000, 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.blob"


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the kernel was told what will be needed, as (address, bytes). No gather counts as slow: one that is kept waiting
    for a core, while anything is read for the process, would.
    """
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
@pytest.mark.parametrize("count", [1, 33, 5_000])
def test_rows_from_the_disk_are_the_rows(count: int, seams: int, path: Path) -> None:
    rows = blob_of(path, seams)
    chosen = torch.randint(-len(rows), len(rows), (count,), generator=torch.Generator().manual_seed(count))
    for out in (None, torch.empty(count, WIDTH, dtype=torch.int32)):
        drop_pages(path)
        with tb.TensorBlob.open(path) as blob:
            assert torch.equal(blob.gather(chosen, out=out), rows[chosen])
            with pytest.raises(IndexError):
                blob[torch.tensor([0, len(rows)])]


@pytest.mark.parametrize("hot", [0, 32], ids=["all", "but the first few"])
def test_a_gather_reads_what_it_needs_at_once(hot: int, path: Path) -> None:
    rows = blob_of(path)
    others = hot + torch.randperm(ROWS - hot, generator=torch.Generator().manual_seed(1))[:256]
    chosen = torch.cat((torch.arange(hot), others))
    drop_pages(path)
    with tb.TensorBlob.open(path) as blob:
        blob[torch.arange(hot)]  # not a slice: the kernel would go on reading ahead of that
        needed = 256 * rows[0].nbytes
        read = bytes_read_by(lambda: blob[chosen])
        if not read:
            pytest.skip("no disk is below the temporary directory: nothing is ever read from it")
        assert needed // 2 < read < 2 * needed, "and not the neighbourhood of each row"
        assert bytes_read_by(lambda: blob[chosen]) == 0


def test_where_all_is_in_memory_a_few_hints_find_it_out(path: Path, hints: list[tuple[int, int]]) -> None:
    rows = blob_of(path)
    chosen = torch.arange(0, ROWS, 2)[: ROWS // 64 * 32]
    with tb.TensorBlob.open(path) as blob:
        assert torch.equal(blob[:], rows)
        for _ in range(4):
            assert torch.equal(blob[chosen], rows[chosen])
        assert len(hints) == residency.FIRST_LOOK_ROWS
        spread = sorted(address for address, _ in hints)
        assert spread[-1] - spread[0] > ROWS * rows[0].nbytes * 0.9


def test_a_reader_that_goes_on_remembers_that_all_is_in_memory(path: Path, hints: list[tuple[int, int]]) -> None:
    rows = blob_of(path)
    chosen = torch.arange(3 * residency.SAMPLE_ROWS)
    with tb.TensorBlob.open(path, "a") as writer, tb.TensorBlob.open(path) as blob:
        blob[:], blob[chosen], blob[chosen]
        for count in range(1, 4):
            writer.write(rows[:10])
            writer.trim(10 * count)
            blob.refresh()
            assert torch.equal(blob[:5], rows[10 * count : 10 * count + 5])
            blob[chosen]
        assert len(hints) == residency.FIRST_LOOK_ROWS


def test_indices_that_the_rows_would_overwrite_are_refused(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "ids.blob", "w+", dtype=torch.int64, shape=()) as blob:
        blob.write(torch.arange(3 * columns.COLD_ROWS))
    with tb.TensorBlob.open(tmp_path / "ids.blob") as blob:
        for _ in range(4):
            both = torch.randint(len(blob), (2 * columns.COLD_ROWS + 900,))
            with pytest.raises(RuntimeError, match="single memory location"):
                blob.gather(both[: columns.COLD_ROWS + 904], out=both[columns.COLD_ROWS - 4 :])
            blob[:100], blob[torch.arange(100)]


def test_rows_that_no_memory_can_hold_are_a_memory_error_wherever_they_are(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "wide.blob", "w+", dtype=torch.uint8, shape=(1 << 20,)) as blob:
        blob.write(torch.zeros(2, 1 << 20, dtype=torch.uint8))
    many = torch.zeros(1, dtype=torch.int64).expand(1 << 28)
    with tb.TensorBlob.open(tmp_path / "wide.blob") as blob:
        for _ in range(4):
            with pytest.raises(MemoryError):
                blob[many]
            blob[torch.zeros(64, dtype=torch.int64)]


# ---- what is known


class Disk:
    """A process that has read so much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        monkeypatch.setattr(residency, "_read_by", lambda who: self.read)

    def look(self, known: residency.Residency, rows: int, read: int = 0) -> None:
        look = residency.Look()
        self.read += read
        known.looked(rows, look)

    def gather(self, known: residency.Residency, read: int = 0, ns: int = 1 << 40) -> None:
        self.read += read
        known.gathered(256, 4096, ns)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def trusted(disk: Disk) -> residency.Residency:
    known = residency.Residency()
    disk.look(known, residency.FIRST_LOOK_ROWS)
    assert not known.rows_to_look_at
    return known


def test_rows_in_memory_are_trusted_when_enough_were_seen(disk: Disk) -> None:
    known = residency.Residency()
    for _ in range(residency.FIRST_LOOK_ROWS):
        assert known.rows_to_look_at
        disk.look(known, 1)
    assert not known.rows_to_look_at


def test_a_few_hot_rows_between_cold_batches_win_no_trust(disk: Disk) -> None:
    known = residency.Residency()
    for _ in range(10):
        disk.look(known, 256, read=8)
        for _ in range(residency.FIRST_LOOK_ROWS - 1):
            disk.look(known, 1)
        assert known.rows_to_look_at


def test_a_slow_gather_ends_the_trust_if_anything_was_read(disk: Disk) -> None:
    known = trusted(disk)
    disk.gather(known)
    assert not known.rows_to_look_at, "it was kept waiting for a core"
    disk.gather(known, read=8, ns=1000)
    assert not known.rows_to_look_at, "it was quick"
    disk.gather(known, read=8)
    assert known.rows_to_look_at


def test_a_forked_child_that_counts_anew_may_end_the_trust(disk: Disk) -> None:
    disk.read = 1 << 30
    known = trusted(disk)
    disk.read = 0
    disk.gather(known, read=8)
    assert known.rows_to_look_at


def test_trust_that_was_often_wrong_comes_back_late_and_not_never(disk: Disk) -> None:
    known, looked = trusted(disk), []
    for _ in range(8):
        disk.gather(known, read=8)
        looked.append(known.rows_to_look_at)
        disk.look(known, known.rows_to_look_at - 1)
        disk.gather(known, read=8)
        assert known.rows_to_look_at == looked[-1], "it was not trusted meanwhile"
        disk.look(known, known.rows_to_look_at)
        assert not known.rows_to_look_at
    assert looked == sorted(looked) and looked[0] < looked[-1] <= residency.MAX_LOOK_ROWS


def test_where_nothing_is_counted_a_first_look_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_THREAD", None)
    known, look = residency.Residency(), residency.Look()
    known.looked(residency.FIRST_LOOK_ROWS, look)
    assert not known.rows_to_look_at
