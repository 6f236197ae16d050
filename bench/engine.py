"""The engine's targets, each printed as a ratio next to what it is held against.

    python bench/engine.py [workload ...] [--full] [--dir DIR] [--json FILE] [--profile]

Limits are the same work done by the hardware's own calls (a tensor in memory, `os.pwrite`, `fdatasync`, `os.link`) or
by LMDB. Rows are 64 bytes or 768 float32. How a ratio is taken, and what keeps it honest, is said in `harness.py`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import lmdb
import msgspec
import numpy as np
import torch
from harness import (
    Bench,
    Contender,
    Repetition,
    Target,
    at_least,
    at_most,
    disk_directory,
    mean_cost,
    median_cost,
    run,
)

import tensorblob as tb
from tensorblob import growth
from tensorblob.flusher import Flusher

ROWS = 100_000
WIDTH = 768
BATCH_ROWS = 8192  # 25 MB of such rows
SMALL_SHAPE = (16,)  # float32: 64 bytes
SMALL_NBYTES = 64
PIECE_NBYTES = 2 << 20
GENERATION_EDITS = 10_000

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
FALLOC_FL_KEEP_SIZE = 1


def wide_rows() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def batches_of(rows: torch.Tensor, batch_rows: int) -> list[torch.Tensor]:
    return [rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows)]


def block_rows_of(blob: tb.TensorBlob) -> int:
    assert isinstance(blob.block_rows, int), "a blob of one field"
    return blob.block_rows


def bytes_of(tensor: torch.Tensor) -> Bytes:
    return tensor.numpy().reshape(-1).view(np.uint8)


@contextmanager
def wide_blob(bench: Bench, rows: torch.Tensor, batch_rows: int = BATCH_ROWS) -> Iterator[Path]:
    """The rows in a blob of blocks of 24 MiB, written in batches of that many."""
    with bench.fresh_directory("wide") as directory:
        path = directory / "wide.blob"
        with tb.TensorBlob.open(path, "w", dtype="float32", shape=WIDTH, block_rows=BATCH_ROWS) as blob:
            for batch in batches_of(rows, batch_rows):
                blob.write(batch)
        yield path


# ---- reading ---------------------------------------------------------------------------------------------------------


def gather(bench: Bench) -> None:
    """Random rows by the batch, over 13 blocks, against `index_select` on a tensor in memory."""
    rows = wide_rows()

    def race(blob: tb.TensorBlob, batch_rows: int, workload: str, target: Target) -> None:
        picks = [torch.randint(0, ROWS, (batch_rows,)) for _ in range(200)]
        out = torch.empty(batch_rows, WIDTH)
        assert torch.equal(blob.gather(picks[0]), rows[picks[0]])
        bench.race(
            f"{workload}, out=",
            Contender("index_select(out=)", median_cost(lambda i: torch.index_select(rows, 0, i, out=out), picks)),
            Contender("gather(out=)", median_cost(lambda i: blob.gather(i, out=out), picks), target),
        )
        bench.race(
            workload,
            Contender("index_select", median_cost(lambda i: torch.index_select(rows, 0, i), picks)),
            Contender("gather", median_cost(blob.gather, picks), target),
            Contender("blob[indices]", median_cost(lambda i: blob[i], picks)),
        )

    with wide_blob(bench, rows) as path, tb.TensorBlob.open(path) as blob:
        race(blob, 256, "gather 256 rows", at_most(1.0))
        race(blob, 512, "gather 512 rows", at_most(1.0))
    with wide_blob(bench, rows, batch_rows=32) as path, tb.TensorBlob.open(path) as blob:
        race(blob, 512, "gather 512, small appends", at_most(1.0))


def scan(bench: Bench) -> None:
    """Every row once, in order, summed by chunks of 8192 rows."""
    rows = wide_rows()

    def scan_of(chunk: Callable[[int, int], torch.Tensor]) -> Callable[[], float]:
        def repetition() -> float:
            start = time.perf_counter()
            for first in range(0, ROWS, BATCH_ROWS):
                chunk(first, min(first + BATCH_ROWS, ROWS)).sum()
            return time.perf_counter() - start

        return repetition

    with wide_blob(bench, rows) as path, tb.TensorBlob.open(path) as blob:
        assert torch.equal(blob.view(5, 70_000), rows[5:70_000])

        def newly_opened() -> float:
            with tb.TensorBlob.open(path) as another:
                return scan_of(another.view)()

        bench.race(
            "scan, 8192 rows at a time",
            Contender("slices of a tensor in memory", scan_of(lambda start, stop: rows[start:stop])),
            Contender("view", scan_of(blob.view), at_least(0.95)),
            Contender("view, newly opened blob", newly_opened),
            Contender("blob[start:stop] (copies)", scan_of(lambda start, stop: blob[start:stop])),
            unit_nbytes=rows.nbytes,
        )


def row(bench: Bench) -> None:
    """One random row, copied."""
    rows = wide_rows()
    picks = random.Random(0).choices(range(ROWS), k=3000)
    with wide_blob(bench, rows) as path, tb.TensorBlob.open(path) as blob:
        bench.race(
            "one row",
            Contender("tensor[i].clone() in memory", mean_cost(lambda i: rows[i].clone(), picks)),
            Contender("blob[i]", mean_cost(blob.__getitem__, picks), at_most(2.0)),
        )
        bench.against("blob[i]", "6 µs", 6e-6)


def slice_(bench: Bench) -> None:
    """A slice of a million small rows."""
    count = 1_000_000
    rows = torch.randn(count + 100, 4)
    with bench.fresh_directory("slice") as directory:
        path = directory / "small.blob"
        with tb.TensorBlob.open(path, "w", dtype="float32", shape=4) as blob:
            blob.write(rows)
        with tb.TensorBlob.open(path) as blob:
            assert torch.equal(blob[50 : 50 + count], rows[50 : 50 + count])
            ten = range(10)
            bench.race(
                "slice of 10⁶ rows of 16 bytes",
                Contender("tensor[a:b].clone() in memory", median_cost(lambda i: rows[i : i + count].clone(), ten)),
                Contender("blob[a:b]", median_cost(lambda i: blob[i : i + count], ten), at_most(1.1)),
            )
            bench.race(
                "every 7th row, backwards",
                Contender("tensor.flip(0)[::7].clone()", median_cost(lambda i: rows.flip(0)[i::7].clone(), ten)),
                Contender("blob[::-7]", median_cost(lambda i: blob[-1 - i :: -7], ten)),
            )


def fields(bench: Bench) -> None:
    """Batches of TensorDict rows of ten small fields, against `index_select` on ten tensors in memory."""
    names = [f"field{number}" for number in range(10)]
    columns = {name: torch.randn(ROWS, *SMALL_SHAPE) for name in names}
    with bench.fresh_directory("fields") as directory:
        path = directory / "fields.blob"
        with tb.TensorBlob.open(path, "w", schema=dict.fromkeys(names, ("float32", SMALL_SHAPE))) as blob:
            blob.write(columns)
        with tb.TensorBlob.open(path) as blob:
            picks = [torch.randint(0, ROWS, (256,)) for _ in range(200)]

            def bare(indices: torch.Tensor) -> dict[str, torch.Tensor]:
                return {name: torch.index_select(column, 0, indices) for name, column in columns.items()}

            bench.race(
                "gather 256 rows of 10 fields",
                Contender("10 × index_select", median_cost(bare, picks)),
                Contender("gather", median_cost(blob.gather, picks)),
                Contender("blob[indices]", median_cost(lambda i: blob[i], picks)),
            )
            one = random.Random(0).choices(range(ROWS), k=1000)
            bench.race(
                "one row of 10 fields",
                Contender(
                    "10 × tensor[i].clone()", mean_cost(lambda i: {n: c[i].clone() for n, c in columns.items()}, one)
                ),
                Contender("blob[i]", mean_cost(blob.__getitem__, one)),
            )


# ---- writing ---------------------------------------------------------------------------------------------------------


def bulk(bench: Bench) -> None:
    """300 MB in batches of 25 MB. The limits write the same bytes to files of the same size, without a manifest."""
    batches = batches_of(wide_rows(), BATCH_ROWS)
    pieces = [bytes_of(batch) for batch in batches]
    nbytes = sum(map(len, pieces))
    with bench.fresh_directory("bulk") as directory:
        path = directory / "bulk.blob"

        def ours() -> float:
            with tb.TensorBlob.open(path, "w", dtype="float32", shape=WIDTH) as blob:
                start = time.perf_counter()
                for batch in batches:
                    blob.write(batch)
                seconds = time.perf_counter() - start
            shutil.rmtree(path)
            return seconds

        def without(module: Any, name: str, nothing: Callable[..., Any]) -> Callable[[], float]:
            """What the engine takes without a part of its work: nobody can have it so."""

            def repetition() -> float:
                part = getattr(module, name)
                setattr(module, name, nothing)
                try:
                    return ours()
                finally:
                    setattr(module, name, part)

            return repetition

        with tb.TensorBlob.open(path, "w", dtype="float32", shape=WIDTH) as blob:
            block_nbytes = block_rows_of(blob) * WIDTH * 4
        shutil.rmtree(path)

        def plain(preallocate: bool, checksum: bool) -> Callable[[], float]:
            def write(fd: int, data: Bytes, offset: int, crc: int) -> int:
                if not checksum:
                    assert os.pwrite(fd, data.data, offset) == len(data)
                    return 0
                for at in range(0, len(data), PIECE_NBYTES):
                    piece = data[at : at + PIECE_NBYTES]
                    crc = google_crc32c.extend(crc, piece)
                    assert os.pwrite(fd, piece.data, offset + at) == len(piece)
                return crc

            def repetition() -> float:
                names: list[Path] = []
                fd, offset, crc = -1, block_nbytes, 0
                start = time.perf_counter()
                for data in pieces:
                    while len(data):
                        if offset == block_nbytes:
                            if fd >= 0:
                                os.close(fd)
                            names.append(directory / str(len(names)))
                            fd, offset = os.open(names[-1], os.O_CREAT | os.O_RDWR), 0
                            if preallocate:
                                libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, block_nbytes)
                        part, data = data[: block_nbytes - offset], data[block_nbytes - offset :]
                        crc = write(fd, part, offset, crc)
                        offset += len(part)
                seconds = time.perf_counter() - start
                os.close(fd)
                for name in names:
                    name.unlink()
                return seconds

            return repetition

        bench.race(
            "bulk append, batches of 25 MB",
            Contender("pwrite, allocated ahead", plain(preallocate=True, checksum=False)),
            Contender("write, with checksums", ours, at_least(0.75)),
            Contender("without checksums", without(growth, "crc32c", lambda crc, data: crc), at_least(0.95)),
            Contender("without syncs in the background", without(Flusher, "wake", lambda flusher: None)),
            Contender("pwrite, not allocated ahead", plain(preallocate=False, checksum=False)),
            Contender("pwrite + crc32c by 2 MiB", plain(preallocate=True, checksum=True)),
            unit_nbytes=nbytes,
        )


class Lmdb:
    """LMDB used as its documentation says: appends in key order, one transaction a commit, with or without sync."""

    def __init__(self, path: Path, sync: bool = False) -> None:
        self.env = lmdb.open(str(path), map_size=16 << 30, sync=sync)
        self.rows = 0

    def commit(self, rows: list[bytes]) -> None:
        with self.env.begin(write=True) as transaction:
            for value in rows:
                transaction.put(self.rows.to_bytes(8, "big"), value, append=True)
                self.rows += 1

    def commit_many(self, rows: list[bytes]) -> None:
        items = [((self.rows + i).to_bytes(8, "big"), value) for i, value in enumerate(rows)]
        self.rows += len(rows)
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti(items, append=True)


@contextmanager
def small_blob(directory: Path, **options: Any) -> Iterator[tb.TensorBlob]:
    with tb.TensorBlob.open(directory / "small.blob", "w", dtype="float32", shape=SMALL_SHAPE, **options) as blob:
        yield blob


def small1(bench: Bench) -> None:
    """Append and commit rows of 64 bytes one by one: every repetition is a whole generation of the manifest."""
    one = torch.randn(1, *SMALL_SHAPE)
    value = [bytes_of(one).tobytes()]
    commits = range(GENERATION_EDITS)
    later = 1_000_000 if bench.full else 300_000
    with bench.fresh_directory("small") as directory, small_blob(directory) as blob:
        peer = Lmdb(directory / "lmdb")
        bench.race(
            "append + commit of one row",
            Contender("LMDB, no sync", mean_cost(lambda _: peer.commit(value), commits)),
            Contender("write", mean_cost(lambda _: blob.write(one), commits), at_most(1.0)),
            Contender("write, median of single calls", median_cost(lambda _: blob.write(one), commits)),
        )
        while len(blob) < later:
            blob.write(one)

        def early() -> float:
            with bench.fresh_directory("early") as aside, small_blob(aside) as fresh:
                for _ in range(1000):
                    fresh.write(one)
                return mean_cost(lambda _: fresh.write(one), commits)()

        bench.race(
            "one row, late in the blob",
            Contender("write at row 10³", early),
            Contender("write, many rows later", mean_cost(lambda _: blob.write(one), commits), at_most(1.1)),
        )


def small32(bench: Bench) -> None:
    """Append and commit 32 rows of 64 bytes."""
    batch = torch.randn(32, *SMALL_SHAPE)
    values = [bytes_of(row).tobytes() for row in batch]
    commits = range(2000)
    with bench.fresh_directory("small") as directory, small_blob(directory) as blob:
        peer = Lmdb(directory / "lmdb")
        bench.race(
            "append + commit of 32 rows",
            Contender("LMDB, no sync, 32 puts", mean_cost(lambda _: peer.commit(values), commits)),
            Contender("write", mean_cost(lambda _: blob.write(batch), commits), at_most(0.3)),
            Contender("LMDB, no sync, putmulti", mean_cost(lambda _: peer.commit_many(values), commits)),
        )


def power(bench: Bench) -> None:
    """Append and commit one row of 64 bytes that survives a power loss, against the two syncs it takes, and LMDB's."""
    one = torch.randn(1, *SMALL_SHAPE)
    value = bytes_of(one).tobytes()
    commits = range(200)
    with bench.fresh_directory("power") as directory, small_blob(directory, durability="power") as blob:
        manifest = max((directory / "small.blob").glob("manifest.*"))
        before = manifest.stat().st_size
        for _ in range(100):
            blob.write(one)
        edit = bytes((manifest.stat().st_size - before) // 100)
        rows_fd, log_fd = (os.open(directory / name, os.O_CREAT | os.O_RDWR) for name in ("rows", "log"))
        libc.fallocate(rows_fd, FALLOC_FL_KEEP_SIZE, 0, PIECE_NBYTES)
        offsets = iter(range(1 << 40))

        def two_syncs(_: int) -> None:
            n = next(offsets)
            os.pwrite(rows_fd, value, n * len(value))
            os.fdatasync(rows_fd)
            os.pwrite(log_fd, edit, n * len(edit))
            os.fdatasync(log_fd)

        peer = Lmdb(directory / "lmdb", sync=True)
        bench.race(
            "append + commit at power",
            Contender("2 × (pwrite + fdatasync)", mean_cost(two_syncs, commits)),
            Contender("write", mean_cost(lambda _: blob.write(one), commits), at_most(1.3)),
        )
        bench.race(
            "append + commit at power, beside LMDB",
            Contender("LMDB, sync", mean_cost(lambda _: peer.commit([value]), commits)),
            Contender("write", mean_cost(lambda _: blob.write(one), commits), at_most(1.0)),
        )


# ---- whole blobs -----------------------------------------------------------------------------------------------------


def extend(bench: Bench) -> None:
    """Extend an empty blob by another of 600 full blocks: links and one edit, no row copied."""
    blocks = 600
    with bench.fresh_directory("extend") as directory, small_blob(directory, block_rows=64) as source:
        block_rows = block_rows_of(source)
        source.write(torch.randn(blocks * block_rows, *SMALL_SHAPE))
        source.flush()
        files = [path for path in (directory / "small.blob" / "blocks").rglob("*") if path.is_file()]
        assert len(files) == blocks, f"{len(files)} block files, expected {blocks}"

        def ours() -> float:
            with bench.fresh_directory("extended") as aside:
                with small_blob(aside, block_rows=64) as blob:
                    start = time.perf_counter()
                    blob.extend(source)
                    seconds = time.perf_counter() - start
                    linked = [path for path in (aside / "small.blob" / "blocks").rglob("*") if path.is_file()]
                    copied = sum(path.stat().st_nlink == 1 for path in linked)
                    assert len(blob) == len(source) and copied == 0, f"{copied} of {len(linked)} blocks were copied"
                return seconds / blocks

        def links() -> float:
            with bench.fresh_directory("links") as aside:
                start = time.perf_counter()
                for path in files:
                    os.link(path, aside / path.name)
                return (time.perf_counter() - start) / blocks

        bench.race("extend, per block", Contender("os.link", links), Contender("extend(blob of 600 blocks)", ours))
        bench.against("extend(blob of 600 blocks)", "30 µs", 30e-6)


def open_(bench: Bench) -> None:
    """Open for reading a blob of very many blocks, and one of very many commits with the longest tail there is."""

    def opening(path: Path, read: bool = False) -> Callable[[], float]:
        def repetition() -> float:
            start = time.perf_counter()
            blob = tb.TensorBlob.open(path)
            if read:
                blob[-1]
            seconds = time.perf_counter() - start
            blob.close()
            return seconds

        return repetition

    def parsing(path: Path) -> Callable[[], float]:
        def repetition() -> float:
            manifest = max(path.glob("manifest.*"))
            start = time.perf_counter()
            for line in manifest.read_bytes().splitlines():
                google_crc32c.value(line)
                msgspec.json.decode(line[9:])
            return time.perf_counter() - start

        return repetition

    def race(workload: str, path: Path, bound_s: float) -> None:
        bench.race(
            workload,
            Contender("read, check and parse the manifest", parsing(path)),
            Contender("open", opening(path)),
            Contender("open + blob[-1]", opening(path, read=True)),
        )
        bench.against("open", f"{bound_s * 1e3:.0f} ms", bound_s, workload)

    for checkpointed in (True, False):  # written block by block, past a checkpoint that names 10 000; or in one commit
        with bench.fresh_directory("blocks") as directory:
            with small_blob(directory, block_rows=64) as blob:
                block_rows = block_rows_of(blob)
                rows = torch.randn(10_000 * block_rows, *SMALL_SHAPE)
                for batch in batches_of(rows, block_rows) if checkpointed else [rows]:
                    blob.write(batch)
                if checkpointed:
                    blob.write(rows[: 10 * block_rows])
            workload = "open, 10 000 blocks" if checkpointed else "open, 10 000 blocks in an edit"
            race(workload, directory / "small.blob", 10e-3)

    one = torch.randn(1, *SMALL_SHAPE)
    generations = 100 if bench.full else 10
    with bench.fresh_directory("commits") as directory, small_blob(directory) as blob:

        def commit_until(more: Callable[[], bool]) -> None:
            while more():
                blob.write(one)

        path = directory / "small.blob"
        commit_until(lambda: len(blob) < (generations - 1) * GENERATION_EDITS)
        current = max(path.glob("manifest.*"))
        commit_until(lambda: max(path.glob("manifest.*")) == current)
        race(f"open, {len(blob):,} commits, no tail", path, 60e-3)
        for _ in range(GENERATION_EDITS - 100):
            blob.write(one)
        race(f"open, {len(blob):,} commits, longest tail", path, 60e-3)


def ring(bench: Bench) -> None:
    """Very many rows through a ring of fixed size: nothing may grow from the first tenth of the run to the last.

    What a commit costs at the end races the same into a young ring: between two tenths of one run the machine itself changes.
    """
    ring_rows, commit_rows = 20_000, 8
    commits_a_tenth = (10_000_000 if bench.full else 1_000_000) // 10 // commit_rows
    batch = torch.randn(commit_rows, *SMALL_SHAPE)

    def resident_nbytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def commits(blob: tb.TensorBlob, reader: tb.TensorBlob | None, count: int) -> Iterator[float]:
        """What a commit costs, of each hundred in turn; a reader follows."""
        start = time.perf_counter()
        for n in range(1, count + 1):
            blob.write(batch)
            if n % 100 == 0:
                if reader is not None:
                    reader.refresh()
                    reader[-1]
                now = time.perf_counter()
                yield (now - start) / 100
                start = now

    def go_on(blob: tb.TensorBlob, reader: tb.TensorBlob | None) -> Repetition:
        return lambda: statistics.mean(commits(blob, reader, 10_000))

    for followed in (False, True):
        workload = f"ring, {10 * commits_a_tenth * commit_rows:,} rows" + (", followed" if followed else "")
        with (
            bench.fresh_directory("ring") as directory,
            bench.fresh_directory("young") as aside,
            small_blob(directory, max_rows=ring_rows) as blob,
            small_blob(aside, max_rows=ring_rows) as young,
            tb.TensorBlob.open(directory / "small.blob") as reader,
            tb.TensorBlob.open(aside / "small.blob") as young_reader,
        ):
            following = reader if followed else None
            seconds, resident, files, mappings = [], [], [], []
            for _ in range(10):
                seconds.append(statistics.median(commits(blob, following, commits_a_tenth)))
                gc.collect()
                resident.append(resident_nbytes())
                files.append(sum(1 for _ in (directory / "small.blob").rglob("*")))
                mappings.append(len(Path("/proc/self/maps").read_text().splitlines()))
                if not followed:
                    reader.close()  # held through the first tenth only: what it pinned must go
            assert len(blob) == ring_rows, f"{len(blob)} rows retained"
            if not followed:
                young_reader.close()  # as above
            following_young = young_reader if followed else None
            for _ in commits(young, following_young, 2 * ring_rows // commit_rows):  # until it is full, and drops rows
                pass
            bench.race(
                workload,
                Contender("a commit into a young ring", go_on(young, following_young)),
                Contender("a commit after all of them", go_on(blob, following), at_most(1.1)),
            )
        bench.compare(workload, "a commit, last tenth", seconds[-1], "first tenth", seconds[0], None)
        megabytes = [nbytes / 1e6 for nbytes in resident]
        bench.compare(workload, "resident memory", megabytes[-1], "2nd tenth", megabytes[1], at_most(1.02), "MB")
        bench.compare(workload, "files", files[-1], "2nd tenth", files[1], at_most(1.25), "files")
        bench.compare(workload, "mappings", mappings[-1], "2nd tenth", mappings[1], at_most(1.1), "maps")

    with (
        bench.fresh_directory("ring") as directory,
        bench.fresh_directory("plain") as aside,
        small_blob(directory, max_rows=ring_rows) as blob,
        small_blob(aside) as plain,
    ):
        for _ in range(2 * ring_rows // commit_rows):
            blob.write(batch)
        bench.race(
            "append + commit of 8 rows",
            Contender("write", mean_cost(lambda _: plain.write(batch), range(10_000))),
            Contender("write into a full ring", mean_cost(lambda _: blob.write(batch), range(10_000))),
        )


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "gather": gather,
    "scan": scan,
    "row": row,
    "slice": slice_,
    "fields": fields,
    "bulk": bulk,
    "small1": small1,
    "small32": small32,
    "power": power,
    "extend": extend,
    "open": open_,
    "ring": ring,
}


def main(workloads: dict[str, Callable[[Bench], None]], description: str | None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(workloads)}; none: all of them")
    parser.add_argument("--full", action="store_true", help="the long ones at their full length")
    parser.add_argument(
        "--dir",
        type=Path,
        default=disk_directory(),
        help="where to write, on the disk to measure (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--repetitions", type=int, default=9, help="rounds a race (default: %(default)s)")
    parser.add_argument(
        "--warm-gib", type=float, default=2.0, help="memory to touch before timing (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of torch; 1 keeps ratios steady on a machine that is not idle")
    parser.add_argument(
        "--profile", action="store_true", help="after each race, print where its contenders spent their time"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.workload) - set(workloads):
        parser.error(f"no workload named {', '.join(sorted(unknown))}; there are {', '.join(workloads)}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.dir, arguments.full, arguments.repetitions, arguments.profile)
    run(workloads, arguments.workload, bench, int(arguments.warm_gib * (1 << 30)), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(WORKLOADS, __doc__))
