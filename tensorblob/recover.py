"""What is intact of a damaged blob, written to a new place, with an account of what is not.

Nothing is repaired where it lies. The newest generation with a valid checkpoint says what there was, as far as its records
are valid; rows in a stretch of a block that is missing or does not agree with its checksum are gone, in all fields, for a
row is whole or not there. What is left closes ranks in the new blob: rows before the first gap keep their row ids, those
behind it get lower ones, and a new history begins at the gap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tensorblob import files
from tensorblob.blob import path_of
from tensorblob.blocks import Blocks
from tensorblob.create import build
from tensorblob.edit import Cut, Edit, Finish, Key, Metadata, Note, Op, Splice, State
from tensorblob.errors import Corrupt
from tensorblob.format import Store, manifest_name
from tensorblob.growth import Growth
from tensorblob.manifest import Pin, generations, pin_newest
from tensorblob.reader import open_store
from tensorblob.snapshot import Snapshot, checkpoint
from tensorblob.verify import Fault, OnProgress, Reading, block_checks, is_damage, read_generation


class Kept(NamedTuple):
    """The rows `start` to `stop` of the damaged blob are those from `row` on of the new one (row ids)."""

    start: int
    stop: int
    row: int


class Recovered(NamedTuple):
    """What `recover` wrote: `kept` rows, and what is not there.

    missing: ranges of row ids whose rows are damaged. notes, keys: how many notes of commits and producer keys went with
    them. faults: what is damaged, and remarks on it; commits that a damaged manifest no longer tells of are only remarked
    upon, for nobody knows how many rows they brought.
    """

    path: str
    dest: str
    generation: int
    kept: tuple[Kept, ...]
    missing: tuple[range, ...]
    notes: int
    keys: int
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return sum(part.stop - part.start for part in self.kept)

    @property
    def is_complete(self) -> bool:
        """Nothing is damaged: everything that was committed was written."""
        return not self.faults


def recover(
    path: str | os.PathLike[str], dest: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> Recovered:
    """Write the intact rows of the blob at `path` to a new blob at `dest`; say what is missing. `path` stays as it is.

    The rows are copied, not linked, through a few megabytes of memory. `dest` appears whole, or not at all. Schema,
    metadata, retention, notes of commits and producer keys go with the rows; cursors do not.

    on_progress: is told (bytes done, bytes to do) now and then; each block is read to check it, and again to copy it.

    Raises `FileExistsError` if there is something at `dest`, `ValueError` if it lies in the blob, `FileNotFoundError`,
    `NotABlob`, `UnsupportedFormat`, and `Corrupt` if schema.json or the checkpoints of all generations are damaged: without
    them no byte can be told from any other.
    """
    where, target = path_of(path), path_of(dest)
    if os.path.commonpath([where, target]) == where:
        raise ValueError(f"Cannot recover {where!r} into itself: {target!r}")
    if files.exists(target):
        raise FileExistsError(f"Cannot recover to {target!r}: it exists")
    dir_fd, store = open_store(where)
    pins: list[Pin] = []
    try:
        found, faults = _newest_readable(dir_fd, where, store, pins)
        checks = list(block_checks(dir_fd, store, found))
        snapshot = found.snapshot
        nbytes = sum(check.nbytes for check in checks)
        total, done = nbytes + len(snapshot) * store.schema.row_nbytes, 0

        def progress(nbytes: int) -> None:
            nonlocal done
            done = min(done + nbytes, total)
            if on_progress is not None:
                on_progress(done, total)

        gone: list[tuple[int, int]] = []
        for check in checks:
            bad = check.bad(on_read=progress)
            faults += [check.fault(stretch) for stretch in bad]
            column = snapshot.columns[check.number]
            for placed in column.placed_from(snapshot.first_row) if bad else ():
                if placed.span.block == check.id:
                    shift = placed.row - placed.span.start
                    for stretch in bad:
                        low, high = max(stretch.start, placed.span.start), min(stretch.stop, placed.span.stop)
                        if low < high:
                            gone.append((low + shift, high + shift))
        missing = _merged(gone, snapshot.first_row, snapshot.rows)
        kept = tuple(_kept(missing, snapshot.first_row, snapshot.rows))
        faults = [*found.faults, *faults]
        moved = _Moved(snapshot, kept, is_whole=not faults)

        def fill(to_fd: int) -> Edit:
            return _copy(dir_fd, to_fd, store, moved, progress)

        if not build(target, store.schema, fill):
            raise FileExistsError(f"Cannot recover to {target!r}: it exists")
    finally:
        for pin in pins:
            pin.close()
        os.close(dir_fd)
    if on_progress is not None:
        on_progress(total, total)
    return Recovered(
        where,
        target,
        found.generation,
        kept,
        tuple(range(*part) for part in missing),
        len(snapshot.notes) - len(moved.notes),
        len(snapshot.keys) - len(moved.keys),
        tuple(faults),
        tuple(found.remarks),
    )


def _newest_readable(dir_fd: int, where: str, store: Store, pins: list[Pin]) -> tuple[Reading, list[Fault]]:
    """The newest generation that begins with a valid checkpoint, and what is wrong with those after it."""
    faults: list[Fault] = []
    newest = -1
    with contextlib.suppress(Corrupt):  # the newest that is there is no file, or there is none: see below
        newest, pin = pin_newest(dir_fd)  # as any reader does, for a writer may be at work
        pins.append(pin)
        found = read_generation(pin, dir_fd, store, newest)
        if found.has_checkpoint:
            return found, faults
        faults += found.faults
    for generation in reversed(generations(dir_fd)):
        name = manifest_name(generation)
        if generation == newest:
            continue
        try:
            pin = Pin(files.open_file(name, dir_fd=dir_fd))
        except FileNotFoundError:
            continue  # superseded and removed since it was listed
        except OSError as error:
            if not is_damage(error):
                raise
            faults.append(Fault(name, 0, 0, f"it cannot be opened: {error.strerror}"))
            continue
        pins.append(pin)
        files.try_lock(pin.fd, shared=True)
        found = read_generation(pin, dir_fd, store, generation)
        if found.has_checkpoint:
            if faults:
                found.remarks.append(f"generation {generation} was read, the newest whose checkpoint is valid")
            return found, faults
        faults += found.faults
    raise Corrupt(
        "No generation has a valid checkpoint: nothing can be recovered",
        path=os.path.join(where, faults[0].file if faults else manifest_name(1)),
    )


def _merged(parts: Iterable[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges in order, those that touch made one, cut to `start` to `stop`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted((max(low, start), min(high, stop)) for low, high in parts):
        if low >= high:
            continue
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return merged


def _kept(missing: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[Kept]:
    """What is between the missing ranges, and where it goes."""
    row = start
    for low, high in [*missing, (stop, stop)]:
        if start < low:
            yield Kept(start, low, row)
            row += low - start
        start = high


class _Moved:
    """What the new blob says beside its rows: notes and keys whose rows were kept, where they are now."""

    def __init__(self, snapshot: Snapshot, kept: tuple[Kept, ...], *, is_whole: bool) -> None:
        self.snapshot, self.kept, self.is_whole = snapshot, kept, is_whole
        self.notes = [
            Note(*place, note.value)
            for note in snapshot.notes
            if (place := self._place(note.start, note.stop)) is not None
        ]
        self.keys = [
            Key(name, key.sequence, *place)
            for name, key in snapshot.keys.items()
            if (place := self._place(key.start, key.stop)) is not None
        ]

    def _place(self, start: int, stop: int) -> tuple[int, int] | None:
        """Where a range of rows is now, or None if not all of them were kept. Trimmed rows are nobody's loss."""
        if self.is_whole:
            return start, stop
        low = max(start, self.snapshot.first_row)
        for part in self.kept:
            if part.start <= low and stop <= part.stop:
                shift = part.row - part.start
                return (start if part is self.kept[0] and not shift else low + shift), stop + shift
        return None

    def edit(self) -> list[Op]:
        """What follows the rows in the first commit."""
        snapshot = self.snapshot
        ops: list[Op] = []
        if not self.is_whole:
            ops.append(Cut(self.first_lost, snapshot.history + 1))
        if snapshot.metadata is not None:
            ops.append(Metadata(snapshot.metadata))
        ops += [*self.notes, *self.keys]
        if self.is_whole and snapshot.finish_row is not None:
            ops.append(Finish(snapshot.finish_row))
        return [*ops, snapshot.retention]

    @property
    def first_lost(self) -> int:
        """The row id from which on the new blob does not hold what the damaged one held."""
        first_row = self.snapshot.first_row
        return self.kept[0].stop if self.kept and self.kept[0].start == first_row else first_row


def _copy(dir_fd: int, to_fd: int, store: Store, moved: _Moved, on_copied: Callable[[int], object]) -> Edit:
    """Copy the kept rows into new blocks at `to_fd`; return the checkpoint that names them."""
    source = moved.snapshot
    columns, first_row = len(store.schema), source.first_row
    row_nbytes = store.schema.row_nbytes
    begin = State(source.history, source.cuts, source.lost, first_row, source.commits)
    placed = Snapshot.empty(columns).apply(
        (begin, *(Splice(number, first_row, first_row, ()) for number in range(columns)))
    )
    blocks = Blocks(to_fd, store, "0", 1, placed)
    growths = [Growth(number, columns, field, to_fd, blocks.create) for number, field in enumerate(store.schema)]
    step = max(files.COPY_NBYTES // row_nbytes, 1)
    try:
        for part in moved.kept:
            for low in range(part.start, part.stop, step):
                high = min(low + step, part.stop)
                ops: list[Op] = []
                for growth, old, new in zip(growths, source.columns, placed.columns, strict=True):
                    ops += growth.append(growth.read(old.between(low, high), dir_fd), new)
                placed = placed.apply(tuple(ops))
                on_copied((high - low) * row_nbytes)
        blocks.sync_all()
    finally:
        blocks.close()
    return checkpoint(placed.apply(tuple(moved.edit())))
