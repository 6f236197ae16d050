"""Replay: one manifest generation to the snapshot that it proves.

Within one boot the kernel keeps what was written, so every valid record counts, and a bad one before the end is
damage. After a power loss only what a durable mark claims is certain; each later edit counts as far as the bytes that
it names still have the checksums that it gives, and the first that fails ends the blob (`is_cut`). Nothing here
writes: a reader serves that prefix, the next writer makes it a new history.
"""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from tensorblob import files
from tensorblob.edit import MAX_ROWS, Durable, Edit, Grow, Session, State
from tensorblob.errors import Corrupt, UnsupportedFormat
from tensorblob.format import (
    Record,
    Store,
    block_path,
    crc32c,
    decode_log,
    decode_record,
    find_later_records,
    log_seed,
    manifest_name,
)
from tensorblob.schema import Field
from tensorblob.snapshot import Column, Snapshot

VERIFY_NBYTES = 4 << 20
_UNKNOWABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)
"""How a system says that it has no such thing, or not for us; other errors pass."""
MAX_READ = MAX_ROWS // 2
"""No blob has come so far; and whoever goes on from there has numbers left."""


class Replay(NamedTuple):
    """What a generation says: `stop` is the file offset after the last record that counts, `edits` how many do.

    `is_torn`: bytes follow that do not count. `is_same_boot`: its writer's boot and inode are still ours. `is_cut`:
    valid records were dropped, because the bytes that they name are gone. `is_flushed`: all of it was marked durable.
    """

    snapshot: Snapshot
    stop: int
    edits: int
    is_torn: bool
    is_same_boot: bool
    is_cut: bool
    is_flushed: bool


@functools.cache
def boot_id() -> str:
    """Return what identifies this boot of the kernel, or "" where it cannot be known (then no boot is ever
    the same).
    """
    try:
        if sys.platform == "linux":
            with open("/proc/sys/kernel/random/boot_id") as file:
                return file.read().strip()
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and error.errno not in _UNKNOWABLE:
            raise  # not to know it now would mean that power was lost
        return ""


def replay(fd: int, dir_fd: int, store: Store, generation: int) -> Replay:
    """Return what the open manifest `fd` proves, reading blocks below `dir_fd` where checksums have to decide.

    Raises `Corrupt` where damage cannot be a torn tail, `UnsupportedFormat` for valid records of a newer format.
    """
    name = files.path_of(dir_fd, manifest_name(generation))
    seed = log_seed(store.uuid, generation)
    data, beyond = read_log(fd)
    records = list(decode_log(data, seed, 0, name))
    if not records or not records[0].edit or type(records[0].edit[0]) is not State:
        raise Corrupt("The manifest does not begin with a valid checkpoint", path=name, offset=0)
    stop = records[-1].stop
    session = next((op for record in reversed(records) for op in record.edit if type(op) is Session), None)
    stat = os.fstat(fd)
    is_same_boot = (
        session is not None
        and session.boot_id == boot_id() != ""
        and (session.device, session.inode) == (stat.st_dev, stat.st_ino)
    )
    _check_tail(data[stop:], beyond, seed, stop, name, is_same_boot=is_same_boot)

    marks = [op.offset for record in records for op in record.edit if type(op) is Durable]
    durable_stop = max([records[0].stop, *marks])
    snapshot = Snapshot.empty(len(store.schema))
    is_cut, edits, counted = False, 0, 0
    index = 0
    while index < len(records):
        record, commits = records[index], 1
        is_certain = is_same_boot or record.stop <= durable_stop
        if is_certain and (tails := _all_grown(record.edit)) is not None:
            # Nearly every record says only how far the tails have grown: of a row of those, the last says it all.
            limit = len(data) if is_same_boot else durable_stop
            while index + 1 < len(records) and records[index + 1].stop <= limit:
                later = _all_grown(records[index + 1].edit)
                if later is None or len(later) != len(tails):
                    break
                if later[0][0] < tails[0][0] if len(tails) == 1 else _shrink(tails, later):
                    break
                tails, commits, index = later, commits + 1, index + 1
            record = records[index]
        after = _applied(snapshot, record, commits, counted, name)
        if not is_certain and not _is_intact(dir_fd, store, snapshot, after):
            is_cut = True
            break
        snapshot, counted, edits = after, record.stop, edits + len(record.edit) + commits - 1
        index += 1
    edits -= len(records[0].edit)
    is_flushed = all(_is_mark(record.edit) for record in records if record.stop > durable_stop)
    is_torn = counted < len(data) or bool(beyond)
    return Replay(snapshot, counted, edits, is_torn, is_same_boot, is_cut, is_flushed)


def apply(snapshot: Snapshot, edit: Edit, path: str, offset: int) -> Snapshot:
    """Apply an edit read from disk; one that breaks the rules of edits is `Corrupt`."""
    try:
        after = snapshot.apply(edit)
    except (AssertionError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f"An edit does not fit the ones before it: {error}", path=path, offset=offset) from error
    if len(edit) == 1 and type(edit[0]) is Grow and len(after.columns) == 1:
        return after  # as nearly all are: a tail that grew, within its capacity, moves nothing else
    if not 0 <= after.first_row <= after.rows or max(after.rows, after.history, after.commits) > MAX_READ:
        raise Corrupt("An edit leaves rows or a history that cannot be", path=path, offset=offset)
    for column in after.columns:
        if column.stop != after.rows or column.origin > after.first_row:
            raise Corrupt("An edit leaves columns of unequal length", path=path, offset=offset)
    return after


def _applied(snapshot: Snapshot, record: Record, commits: int, offset: int, name: str) -> Snapshot:
    after = apply(snapshot, record.edit, name, offset)
    if commits > 1:
        after = msgspec.structs.replace(after, commits=after.commits + commits - 1)
    return after


def _all_grown(edit: Edit) -> tuple[tuple[int, int], ...] | None:
    """The tails of an edit that only grows them all, else None."""
    if len(edit) != 1 or type(edit[0]) is not Grow or None in edit[0].tails:
        return None
    return edit[0].tails  # type: ignore[return-value]


def _shrink(tails: tuple[tuple[int, int], ...], later: tuple[tuple[int, int], ...]) -> bool:
    return any(now[0] < then[0] for now, then in zip(later, tails, strict=True))


def _is_mark(edit: Edit) -> bool:
    return all(type(op) in (Durable, Session) for op in edit)


def read_log(fd: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """What an open manifest holds: all of it, and nothing; of a large one what comes before its first hole, in which all
    records that count are, and the parts beyond, as (offset, bytes).
    """
    parts = files.read_data(fd)
    if not parts or parts[0][0] > 0:
        return b"", parts
    return parts[0][1], parts[1:]


def _check_tail(
    rest: bytes, beyond: list[tuple[int, bytes]], seed: int, offset: int, name: str, *, is_same_boot: bool
) -> None:
    """Raise `Corrupt` unless the bytes after the last valid record, and those beyond holes, can be a torn tail."""
    if not rest and not beyond:
        return
    later = list(find_later_records(rest, seed, offset))
    for start, part in beyond:
        later += find_later_records(b"\0" + part, seed, start - 1)
    if is_same_boot:
        # A killed writer leaves a prefix of one line; a whole line that is wrong, or lacks only its newline, was damaged.
        newline = rest.find(b"\n")
        whole = newline >= 0 or decode_record(rest[:-1], seed, offset, name) is not None
        if later or whole:
            raise Corrupt("The manifest is damaged before its end", path=name, offset=offset)
    elif any(type(op) is Durable and op.offset > offset for record in later for op in record.edit):
        raise Corrupt("The manifest is damaged below a durable mark", path=name, offset=offset)


def _is_intact(dir_fd: int, store: Store, before: Snapshot, after: Snapshot) -> bool:
    """True if every byte that `after` names and `before` does not has the checksum that `after` gives."""
    return all(
        _is_block_intact(dir_fd, field, block, start, start_crc, rows, crc)
        for field, old, new in zip(store.schema, before.columns, after.columns, strict=True)
        for block, start, start_crc, rows, crc in _new_bytes(old, new)
    )


def _new_bytes(before: Column, after: Column) -> list[tuple[str, int, int, int, int]]:
    """The block rows that `after` commits: (block, from row, checksum there, to row, checksum there)."""
    known = {block.id: (block.rows, block.crc32c) for block in (before.tail, before.patch) if block is not None}
    grown = [(block.id, block.rows, block.crc32c) for block in (after.tail, after.patch) if block is not None]
    new_sealed = after.sealed.since(before.sealed)
    grown += [(block.id, block.rows, block.crc32c) for block in (after.sealed if new_sealed is None else new_sealed)]
    return [(id, *known.get(id, (0, 0)), rows, crc) for id, rows, crc in grown if known.get(id) != (rows, crc)]


def _is_block_intact(dir_fd: int, field: Field, block: str, start: int, start_crc: int, rows: int, crc: int) -> bool:
    try:
        fd = files.open_file(block_path(field, block), dir_fd=dir_fd)
    except (FileNotFoundError, Corrupt, UnsupportedFormat):
        return False
    try:
        return start <= rows and block_crc(fd, field.row_nbytes, start, rows, start_crc) == crc
    finally:
        os.close(fd)


def block_crc(
    fd: int,
    row_nbytes: int,
    start: int,
    stop: int,
    crc: int = 0,
    on_read: Callable[[int], object] | None = None,
) -> int | None:
    """Extend `crc` by the block rows `start` to `stop` of an open file; None if the file ends before.

    `on_read` is told of each piece how many bytes it has.
    """
    offset, end = start * row_nbytes, stop * row_nbytes
    if files.size_of(fd) < end:
        return None
    while offset < end:
        data = files.read_at(fd, min(VERIFY_NBYTES, end - offset), offset)
        if not data:
            return None
        crc = crc32c(crc, data)
        offset += len(data)
        if on_read is not None:
            on_read(len(data))
    return crc
