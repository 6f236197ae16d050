"""Is a blob what its checksums say? Every one that the current generation gives is compared with the bytes on disk.

It reads as any reader does: a snapshot that is pinned meanwhile, no lock that a writer waits for, nothing written. A
*fault* is damage: committed bytes that are missing or wrong, with file and offset. A *remark* is normal life, or costs no
row: a torn tail, a superseded generation that somebody still pins.

The manifest gives the checksum of a block for every length at which a commit left it, and each continues the one before.
So from one of these lengths to the next is the least stretch that can be proved intact or not, and damage is located, and
rows are given up, by stretches.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tensorblob import files
from tensorblob.blob import path_of
from tensorblob.cursors import is_name, read_position
from tensorblob.edit import Block, Grow, Patch, State, Tail
from tensorblob.errors import Corrupt
from tensorblob.format import (
    COUNTS_NBYTES,
    Record,
    Store,
    block_path,
    decode_counts,
    decode_log,
    find_later_records,
    log_seed,
    manifest_name,
)
from tensorblob.manifest import Pin, generations, pin_newest
from tensorblob.reader import open_store
from tensorblob.replay import apply, block_crc, read_log, replay
from tensorblob.schema import Field
from tensorblob.snapshot import Column, Snapshot

OnProgress = Callable[[int, int], object]
"""Told how many bytes of block files are checked, and how many there are to check."""


class Fault(NamedTuple):
    """Damage: somewhere in the bytes `offset` to `stop` of `file` (relative to the blob), and what is wrong there."""

    file: str
    offset: int
    stop: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}: bytes {self.offset} to {self.stop}: {self.what}"


class Report(NamedTuple):
    """What `verify` found: rows `first_row` to `rows`, in how many records, blocks and bytes of rows it looked at.

    `faults` are damage, `remarks` are not. If `is_quick`, of blocks only their sizes were checked.
    """

    path: str
    is_quick: bool
    generation: int
    first_row: int
    rows: int
    records: int
    blocks: int
    nbytes: int
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.faults


class Reading(NamedTuple):
    """One generation as far as it can be read: the snapshot of its first `stop` bytes, which are `records` records.

    `marks` are, by column and block, the checksums of its first so many rows. `has_checkpoint` is False if not even the
    first record is valid: then there is nothing.
    """

    generation: int
    snapshot: Snapshot
    marks: list[dict[str, dict[int, int]]]
    records: int
    stop: int
    has_checkpoint: bool
    faults: list[Fault]
    remarks: list[str]


def verify(path: str | os.PathLike[str], *, quick: bool = False, on_progress: OnProgress | None = None) -> Report:
    """Check every checksum of the blob at `path`, as it is committed now; nothing is written, no writer waits.

    quick: check schema.json, the manifest and the cursors, and of blocks only that they are there and long enough.
    on_progress: is told (bytes checked, bytes to check) after every few megabytes.

    Raises `FileNotFoundError`, `NotABlob` or `UnsupportedFormat` where there is nothing to check; what is damaged is told
    in the report.
    """
    where = path_of(path)
    try:
        dir_fd, store = open_store(where)
    except Corrupt as error:
        fault = _fault_of(error, where, error.offset)
        remark = "nothing else could be checked"
        return Report(where, quick, 0, 0, 0, 0, 0, 0, (fault,), (remark,))
    try:
        faults, remarks = _check_small_files(dir_fd, where)
        try:
            generation, pin = pin_newest(dir_fd)
        except Corrupt as error:
            faults.append(_fault_of(error, where, 0))
            return Report(where, quick, 0, 0, 0, 0, 0, 0, tuple(faults), tuple(remarks))
        try:
            found = read_generation(pin, dir_fd, store, generation)
            checks = list(block_checks(dir_fd, store, found))
            total = 0 if quick else sum(check.nbytes for check in checks)
            done = 0

            def on_read(nbytes: int) -> None:
                nonlocal done
                done = min(done + nbytes, total)  # what is wrong is read again, to say where
                if on_progress is not None:
                    on_progress(done, total)

            for check in checks:
                faults += check.faults(is_quick=quick, on_read=on_read)
            older = [number for number in generations(dir_fd) if number < generation]
            if older:
                remarks.append(f"superseded generations that are still there: {', '.join(map(str, older))}")
        finally:
            pin.close()
        snapshot = found.snapshot
        return Report(
            where,
            quick,
            generation,
            snapshot.first_row,
            snapshot.rows,
            found.records,
            len(checks),
            total,
            tuple(found.faults + faults),
            tuple(found.remarks + remarks),
        )
    finally:
        os.close(dir_fd)


def is_damage(error: OSError) -> bool:
    """True if a file that cannot be opened is damaged; not if this process may not, or has no descriptor or memory left."""
    return isinstance(error, (Corrupt, FileNotFoundError)) or error.errno == errno.EIO


def _fault_of(error: Corrupt, where: str, stop: int) -> Fault:
    """What an exception says, as a fault."""
    file = os.path.relpath(error.path, where) if os.path.isabs(error.path) else error.path
    what = str(error.strerror).removesuffix(f" (at byte {error.offset})")
    return Fault(file, error.offset, max(stop, error.offset), what)


def _check_small_files(dir_fd: int, where: str) -> tuple[list[Fault], list[str]]:
    """Check the cursors, and that what writers need is there."""
    needed = ("writer.lock", "commit.lock", "producers", "cursors")
    absent = [name for name in needed if not files.exists(name, dir_fd=dir_fd)]
    remarks = [f"{name} is missing: writers and consumers need it" for name in absent]
    faults: list[Fault] = []
    for file in [] if "cursors" in absent else files.list_directory("cursors", dir_fd=dir_fd):
        name = file.removesuffix(".json")
        if file.startswith("limiter.") and file.endswith(".lock"):
            _check_counts(dir_fd, f"cursors/{file}", faults, remarks)
        if file.endswith(".json") and is_name(name):
            try:
                read_position(dir_fd, name)
            except Corrupt as error:
                faults.append(_fault_of(error, where, 0))
            except OSError as error:
                faults.append(Fault(f"cursors/{file}", 0, 0, f"it cannot be read: {error.strerror}"))
    return faults, remarks


def _check_counts(dir_fd: int, path: str, faults: list[Fault], remarks: list[str]) -> None:
    """Check the counts of a limiter: one of its two places may be half written."""
    try:
        data = files.read_file(path, dir_fd=dir_fd, limit=2 * COUNTS_NBYTES)
    except OSError as error:
        faults.append(Fault(path, 0, 0, f"it cannot be read: {error.strerror}"))
        return
    written = [start for start in (0, COUNTS_NBYTES) if data[start : start + COUNTS_NBYTES].strip(b"\0")]
    bad = [start for start in written if decode_counts(data[start : start + COUNTS_NBYTES]) is None]
    if bad and len(bad) == len(written):
        faults.append(Fault(path, bad[0], len(data), "neither of its two places agrees with its checksum"))
    elif bad:
        remarks.append(f"{path} does not agree with its checksum from byte {bad[0]} on; its other place counts")


# -- the manifest -----------------------------------------------------------------------------------------------------


def read_generation(pin: Pin, dir_fd: int, store: Store, generation: int) -> Reading:
    """Read the pinned manifest of `generation`, up to what is damaged if something is."""
    name, seed = manifest_name(generation), log_seed(store.uuid, generation)
    faults: list[Fault] = []
    remarks: list[str] = []
    try:
        found = replay(pin.fd, dir_fd, store, generation)
    except Corrupt as error:
        data, _ = read_log(pin.fd)
        stop, snapshot = _readable(data, seed, store, name)
        faults.append(_fault_of(error, os.path.dirname(error.path), len(data)))
        if later := sum(1 for _ in find_later_records(data[stop:], seed, stop)):
            remarks.append(f"{later} valid records follow byte {stop} of {name} and do not count")
    else:
        stop, snapshot = found.stop, found.snapshot
        data = files.read_at(pin.fd, stop, 0)
        if found.is_cut:
            remarks.append(
                f"{name} counts up to byte {stop}: of the later commits the power loss has not left every byte"
            )
        elif found.is_torn:
            remarks.append(f"{name} ends in a torn tail, from byte {stop} on")
    records = list(decode_log(data[:stop], seed, 0, name))
    marks = _marks(len(store.schema), records)
    return Reading(generation, snapshot, marks, len(records), stop, bool(records), faults, remarks)


def _readable(data: bytes, seed: int, store: Store, name: str) -> tuple[int, Snapshot]:
    """How far a damaged manifest goes, and what it says up to there."""
    stop, snapshot = 0, Snapshot.empty(len(store.schema))
    for record in decode_log(data, seed, 0, name):
        if not stop and not (record.edit and isinstance(record.edit[0], State)):
            break
        try:
            after = apply(snapshot, record.edit, name, stop)
        except Corrupt:
            break
        stop, snapshot = record.stop, after
    return stop, snapshot


def _marks(columns: int, records: Sequence[Record]) -> list[dict[str, dict[int, int]]]:
    """By column and block: its checksums, by the number of rows."""
    marks: list[dict[str, dict[int, int]]] = [{} for _ in range(columns)]
    tails = [""] * columns
    for op in (op for record in records for op in record.edit):
        if isinstance(op, Grow):
            for number, grown in enumerate(op.tails):
                if grown is not None:
                    marks[number].setdefault(tails[number], {})[grown[0]] = grown[1]
        elif isinstance(op, (Block, Tail, Patch)):
            marks[op.column].setdefault(op.id, {})[op.rows] = op.crc32c
            if isinstance(op, Tail):
                tails[op.column] = op.id
    return marks


# -- the blocks -------------------------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Block rows that are not what their checksum says, or not there."""

    start: int
    stop: int
    what: str


class BlockCheck:
    """One block of a column: `rows` rows, with checksums `marks` by the number of rows; spans name `used_rows` of them."""

    def __init__(
        self, dir_fd: int, number: int, field: Field, id: str, marks: dict[int, int], rows: int, used_rows: int
    ) -> None:
        self.number, self.id, self.rows, self.used_rows = number, id, rows, used_rows
        self.path = f"blocks/{field.directory}/{id}"
        self._dir_fd, self._field, self._row_nbytes = dir_fd, field, field.row_nbytes
        self._marks = marks
        self._stops = [stop for stop in sorted(marks) if stop <= rows]

    @property
    def nbytes(self) -> int:
        return self.rows * self._row_nbytes

    def faults(self, *, is_quick: bool, on_read: Callable[[int], object] | None = None) -> Iterator[Fault]:
        """What is wrong with the file."""
        return map(self.fault, self.bad(is_quick=is_quick, on_read=on_read))

    def fault(self, bad: Stretch) -> Fault:
        return Fault(self.path, bad.start * self._row_nbytes, bad.stop * self._row_nbytes, bad.what)

    def bad(self, *, is_quick: bool = False, on_read: Callable[[int], object] | None = None) -> list[Stretch]:
        """The stretches that are not intact."""
        bad = self._bad(is_quick, on_read)
        if self.used_rows > self.rows:
            bad.append(Stretch(self.rows, self.used_rows, "no checksum covers these rows"))
        return bad

    def _bad(self, is_quick: bool, on_read: Callable[[int], object] | None) -> list[Stretch]:
        try:
            fd = files.open_file(block_path(self._field, self.id), dir_fd=self._dir_fd)
        except FileNotFoundError:
            return [Stretch(0, self.rows, "the file is missing")]
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not is_damage(error):
                raise
            return [Stretch(0, self.rows, f"the file cannot be opened: {getattr(error, 'strerror', error)}")]
        try:
            there = min(files.size_of(fd) // self._row_nbytes, self.rows)
            if is_quick or there < self.rows:
                missing = f"the file has {files.size_of(fd)} bytes, and {self.nbytes} were committed"
                short = [Stretch(there, self.rows, missing)] if there < self.rows else []
                return short if is_quick else [*self._bad_stretches(fd, there, missing)]
            if self._crc(fd, 0, self.rows, 0, on_read) == self._marks[self.rows]:
                return []
            return [*self._bad_stretches(fd, there, "")]
        finally:
            os.close(fd)

    def _crc(
        self, fd: int, start: int, stop: int, crc: int, on_read: Callable[[int], object] | None = None
    ) -> int | str:
        """The checksum of the first `stop` rows, given that of the first `start`; or why there is none."""
        callers: OSError | None = None

        def tell(nbytes: int) -> None:
            nonlocal callers
            try:
                if on_read is not None:
                    on_read(nbytes)
            except OSError as error:
                callers = error
                raise

        try:
            found = block_crc(fd, self._row_nbytes, start, stop, crc, tell)
        except OSError as error:
            if error is callers:
                raise
            return f"the bytes cannot be read: {error.strerror}"
        return "the file became shorter" if found is None else found

    def _bad_stretches(self, fd: int, there: int, missing: str) -> Iterator[Stretch]:
        """Check from mark to mark, of which the file holds the first `there` rows."""
        start, crc = 0, 0
        for stop in self._stops:
            found = missing if stop > there else self._crc(fd, start, stop, crc)
            if isinstance(found, str):
                yield Stretch(start, stop, found)
            elif found != self._marks[stop]:
                yield Stretch(start, stop, f"checksum {found:08x}, and {self._marks[stop]:08x} was committed")
            start, crc = stop, self._marks[stop]


def block_checks(dir_fd: int, store: Store, found: Reading) -> Iterator[BlockCheck]:
    """The blocks that hold the rows of a snapshot."""
    for number, (field, column) in enumerate(zip(store.schema, found.snapshot.columns, strict=True)):
        named = column.blocks()
        used: dict[str, int] = {}
        for placed in column.placed():
            used[placed.span.block] = max(placed.span.stop, used.get(placed.span.block, 0))
        for id in sorted(_needed(column, found.snapshot), key=lambda id: (len(id), id)):
            rows, crc = named.get(id, (0, 0))
            found.marks[number].setdefault(id, {})[rows] = crc
            yield BlockCheck(dir_fd, number, field, id, found.marks[number][id], rows, used.get(id, 0))


def _needed(column: Column, snapshot: Snapshot) -> set[str]:
    """The blocks that hold rows, and those that may grow further and hold any."""
    needed = {placed.span.block for placed in column.placed_from(snapshot.first_row)}
    return needed | {block.id for block in (column.tail, column.patch) if block is not None and block.rows}
