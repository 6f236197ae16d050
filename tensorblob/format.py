r"""The format on disk, version 1: bytes to values and back. No I/O happens here.

A blob is a directory:

    schema.json              immutable: what the blob holds
    manifest.000001          append-only log of edits; the highest number is current
    writer.lock              flock'ed for as long as a writer lives: exclusively by a sole one, shared by those that share
    commit.lock              flock'ed by one of those that share, for each of its turns
    blocks/<column>/<id>     rows of one column; <column> is the dotted field name, "data" for the unnamed field
    producers/<producer>     one file per live writer, flock'ed by it
    cursors/<name>.json      how far a consumer has read
    cursors/.<name>.lock     flock'ed by that consumer for as long as it lives
    cursors/limiter.<name>.lock  the counts of a rate limiter, flock'ed while they are changed

A name that begins with a dot is unfinished work or a lock, and means nothing to who reads rows. Lock files are permanent.
What is written in them, and in producers/, is JSON that informs; if it is missing or torn nothing is lost. Block ids are
<producer>-<n>, letters and digits on both sides of the dash, 100 bytes at most, and are never used twice. All integers
are decimal JSON numbers, those that count rows from 0 to 2^53 (and a blob ends before row id 2^52); "checksum" is always
CRC-32C (Castagnoli). Columns are numbered from 0 in the order of the schema's fields. Files are regular files, and
directories are directories: a symlink, or a pipe, is damage, and no name that is read from a file leads out of the blob.

schema.json
-----------
One JSON object and a newline. Members, in this order: format ("tensorblob"), version (1), features (list of names that a
reader must know; none are defined), uuid (32 hex digits, of this blob alone: a copy gets another), fields (list of
objects with name, dtype, shape, block_rows, in this order), crc32c (8 lower-case hex digits). No white space. The
checksum is that of the object written with crc32c as the empty string, without the newline. The file is valid if and only
if encoding what was decoded gives the same bytes. Another version, or an unknown feature, must be refused.

A field is named by its TensorDict key, nested keys joined by dots; "" is the one field of a blob of plain tensors. dtype
is a torch dtype's name, shape that of one row, of at most 30 sizes; row_nbytes is the itemsize times the product of shape,
never 0 and at most 2^40.
block_rows is the capacity that writers give new blocks; a reader does not need it.

blocks
------
Row i of a block lies at byte i * row_nbytes, little-endian, C order, no header, no padding: `numpy.memmap` opens it. The
checksum of a block of n rows is that of its first n * row_nbytes bytes. What follows them is undefined: rows that are
being written, or were never committed. Committed bytes never change, and files are never shortened.

manifest.<generation>
---------------------
The generation is written with at least six digits, counts from 1, and is never reused. The file is a sequence of
records, each one line:

    <checksum: 8 lower-case hex digits> <space> <edit: a JSON array> <newline>

The checksum is over: the 16 bytes of the uuid; the generation, and the file offset of the record's first byte, as
little-endian unsigned 64-bit integers; the JSON text. A record is valid if and only if it has this form and its checksum
agrees. So one that is torn, or was moved or copied from another place, generation or blob, is not valid, and neither are
zeros. A valid record with an operation that is not listed here is of a newer format, and the blob must be refused.

An edit is a list of operations, applied in order, that become visible together. The state they change is: for each column
an ordered list of spans (block id, start, stop: rows of that block), numbered through by row ids from the column's origin
on; its tail block and its patch block, if any; and for the blob first_row, history, cuts, commits, metadata, notes,
retention. An operation is an array, its name first:

    ["state", history, [[history, row], ...], [[history, history], ...], first_row, commits]
        Begins a checkpoint, and stands nowhere else: sets these totals (current history, cuts, lost, ...).
    ["block", column, id, rows, checksum]
        Names a sealed block: it will never be written again.
    ["tail", column, id, capacity, start, rows, checksum]
        The column grows in this block from now on; the previous tail, if any, is sealed. It has `rows` rows, of which those
        from `start` on are appended to the column. The file may grow to `capacity` rows.
    ["grow", [[rows, checksum] or null, ...]]
        One item per column: its tail has `rows` rows now, and the new ones are appended to the column.
    ["patch", column, id, capacity, rows, checksum]
        The block that overwritten rows go to, with its length; another id seals the previous patch block.
    ["splice", column, start, stop, [[id, start, stop], ...]]
        The rows start..stop of the column are replaced by these spans. The counts are equal unless stop is the column's end.
        If the last span does not end at the tail's last row then, the tail is sealed. On an empty column, start becomes its
        origin.
    ["trim", first_row]
        Rows before first_row are gone. Spans before it are dropped from the list.
    ["cut", row, history]
        A new history, with a greater number than those before: rows from `row` on are not what they were in them. If numbers
        are left out, histories between the old and the new one were lost: no row is what it was in those. Notes that reach
        beyond `row` go.
    ["note", start, stop, object]       user metadata of the commit that brought these rows
    ["metadata", object]                user metadata of the blob, replaced
    ["key", key, sequence, start, stop]
        The producer `key` calls these rows its append number `sequence`. Of each key the last one counts; writers remember
        the 1024 keys that were used last, in the order of their last use.
    ["finish", row]
        The stream ends here, at the last row. It does not any more once the blob ends elsewhere, or was cut.
    ["retention", max_rows, max_bytes]  what each commit trims to; null is no limit
    ["session", producer, boot_id, device, inode, pid, host]
        A writer begins: where it runs, and the device and inode of the manifest it appends to.
    ["durable", offset, rows]
        Everything in this file before `offset`, and every block byte named there, is synced: `rows` is the row count there.
    ["moved", generation]
        The log goes on in that generation, which was in place before this was written. Only a doorbell.

After each edit all columns end at the same row, and begin at first_row or before it: the blob's rows are first_row to that
end. An edit counts as a commit if it holds grow, tail, splice, trim, cut, note, metadata or finish, and no state.

The first record of a generation is a checkpoint: applied to nothing, it gives the whole state. It names no bytes that were
not synced before it got its name, so it is as good as a durable mark.

Reading
-------
Open the highest generation g; take a shared flock on it without waiting; if that fails, or the file has no link any more,
or g + 1 exists, start over. Apply its valid records from the start. While the lock is held no block that g names, at any of
its records, is unlinked (a writer whose rows are read takes that lock on each generation in which it writes). To follow,
apply records as they appear; to notice that g was superseded, look for g + 1. Generations are removed oldest first, so
g + 1 exists as long as g does, if it ever did.

Everything from the first record that is not valid on is a torn tail, and does not count. It is damage instead (the blob is
corrupt) if the session's boot_id, device and inode are those that the reader finds and either a valid record follows, or the
bad record is a whole line, or it is one but for its newline: within one boot a killed writer leaves only the beginning of a
line. If they are not (power was lost, or files were copied), it is damage if a durable mark with a greater offset follows.

In that second case edits after the last durable mark count only while the bytes that they name have the checksums that they
give: the first edit that fails this ends the blob, for the reader in memory, for the next writer by a new generation and, as
rows may have been lost, a new history. Its number is that of the history before plus 2^20, while others follow one by one:
the edits that were lost may have begun histories too, and nobody may take theirs for this one.

A column's rows are contiguous in a reader's memory wherever a span stops, and the next one starts, at a multiple of the page
size; elsewhere there is a seam. Writers leave seams only where blocks of another blob were taken over.

Writing
-------
A sole writer holds an exclusive flock on writer.lock (whose text, {pid, host}, names it), and has all turns. Writers that
share the blob hold it shared, and write to the blob in turns: a turn is an exclusive flock on commit.lock, and begins by
applying what others have appended, in whatever generation is current by then. Who shares a blob commits at one durability.

If a sync failed, whoever's it was, commit.lock says {"generation": g, "poisoned": [id, ...]}: nobody appends to generation g
any more, and the rows of those blocks have to move. (The kernel tells of it only once.)

A writer also holds an exclusive flock on a file in producers/, from before that gets its name. It says {pid, host,
consumers, max_lag_rows, durability, retain_for}: who waits for which cursors. A writer that closes removes the file, or hides
it by a dot if it leaves garbage; one whose file is there and not locked has died.

In its turn a writer writes rows only beyond the committed length of a tail or patch block that was written in this boot, to
which nothing was cut, and that has one link; else it begins a new block. It appends an edit only once its rows are in the
block files, and begins a generation by syncing everything that the checkpoint will name, writing and syncing the file under a
hidden name, renaming it, and syncing the directory; after that it may unlink blocks that are named by no manifest that is
pinned. Without a turn a writer may fill blocks of its own (their ids begin with its producer) that no manifest names yet:
they are staged, until an edit names them. A block whose producer is not live and that no manifest names is garbage.

Consumers
---------
cursors/<name>.json is {"row": r, "history": h, "crc32c": "<8 lower-case hex digits>"}: rows before r, as they were in history
h, are done. The checksum is that of the text "<r> <h>". It is replaced by renaming cursors/.<name>.json, synced, and the
directory is synced. A consumer resumes at r if no history since h began at a row before r.

A limiter's file has two places, at 0 and at 32768, which are written in turn, each a line: the checksum of what follows, a
space, {"step": n, "inserted": rows, "sampled": rows, "admitted": {producer: rows}}. The valid line with the greater step
counts. Rows that were let in and are not committed yet count for as long as their producer lives.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

import google_crc32c
import msgspec

from tensorblob.edit import MAX_ROWS, Count, Edit, Op
from tensorblob.errors import Corrupt, NotABlob, UnsupportedFormat
from tensorblob.schema import MAX_ASKED_NBYTES, MAX_DIMENSIONS, Field, Schema, check_name, dtype_name

VERSION = 1
FEATURES: frozenset[str] = frozenset()

MAX_ID_NBYTES = 100
MAX_GENERATION = 2**53
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding may raise; also `RecursionError`, for the deepest nesting that somebody could think of."""

_encoder = msgspec.json.Encoder()
_encode_edit = _encoder.encode
_decode_edit = msgspec.json.Decoder(tuple[Op, ...]).decode
_pack_offset = struct.Struct("<Q").pack
_RECORD_START = re.compile(rb'(?=[0-9a-f]{8} \[[ \t\r]*\[[ \t\r]*"\w)')
"""A checksum, and the name of an edit's first operation (there is one: nobody commits nothing).

Within the JSON text of a record there is no such thing: a space that follows a digit and precedes a bracket is in a string,
where the quote is the string's end, or has a backslash before it; and behind its end no name begins.
"""
crc32c = google_crc32c.extend
"""`crc32c(crc, data)` extends a running CRC-32C by `data`: `bytes` or a contiguous ndarray (read without a copy)."""


class Store(NamedTuple):
    """What schema.json says: which blob this is, and what it holds."""

    uuid: str
    schema: Schema


class _StoreFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: str
    version: int
    features: tuple[str, ...]
    uuid: str
    fields: tuple[Field, ...]
    crc32c: str


class _Header(msgspec.Struct, kw_only=True):
    format: str
    version: int
    features: tuple[str, ...] = ()


def encode_store(store: Store) -> bytes:
    value = _StoreFile(
        format="tensorblob", version=VERSION, features=(), uuid=store.uuid, fields=store.schema.fields, crc32c=""
    )
    value.crc32c = f"{crc32c(0, _encoder.encode(value)):08x}"
    return _encoder.encode(value) + b"\n"


@functools.lru_cache(maxsize=16)
def decode_store(data: bytes, path: str) -> Store:
    """Return what the bytes of a schema.json say.

    Raises `NotABlob` if they are of something else, `UnsupportedFormat` for another version or unknown features,
    `Corrupt` if they were damaged.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
    except _UNREADABLE as error:
        if data.startswith(b'{"format":"tensorblob"'):
            raise Corrupt(f"schema.json is damaged: {error}", path=path) from error
        raise NotABlob(f"Not a tensorblob schema: {path!r}") from error
    if header.format != "tensorblob":
        raise NotABlob(f"Not a tensorblob schema: {path!r} is of format {header.format!r}")
    if header.version != VERSION:
        raise UnsupportedFormat(
            f"{path!r} has format version {header.version}, this tensorblob reads version {VERSION}; upgrade tensorblob"
        )
    if unknown := set(header.features) - FEATURES:
        raise UnsupportedFormat(f"{path!r} needs features unknown here: {sorted(unknown)}; upgrade tensorblob")
    try:
        value = msgspec.json.decode(data, type=_StoreFile)
        store = Store(value.uuid, Schema(value.fields))
        intact = encode_store(store) == data and len(bytes.fromhex(value.uuid)) == 16
        for field in value.fields:
            if field.name or len(value.fields) > 1:
                check_name(field.name)
            intact &= dtype_name(field.dtype) == field.dtype and min(field.shape, default=1) > 0
            intact &= 0 < field.block_rows <= MAX_ROWS
            intact &= len(field.shape) <= MAX_DIMENSIONS and field.row_nbytes <= MAX_ASKED_NBYTES
        names = {field.name for field in value.fields}
        intact &= len(names) == len(value.fields) > 0
        intact &= not any(parent in names for name in names for parent in _parents(name))
    except (*_UNREADABLE, ValueError) as error:
        raise Corrupt(f"schema.json is damaged: {error}", path=path) from error
    if not intact:
        raise Corrupt("schema.json does not agree with its checksum", path=path)
    return store


def _parents(name: str) -> Iterator[str]:
    """The names of what a field is nested in."""
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def log_seed(uuid: str, generation: int) -> int:
    """The checksum state that every record of this generation starts from, before its offset."""
    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))


def encode_record(edit: Edit, seed: int, offset: int) -> bytes:
    """Return the line for `edit` at file offset `offset` of the generation with `log_seed` `seed`."""
    text: bytes = _encode_edit(edit)
    return b"%08x %b\n" % (crc32c(seed, _pack_offset(offset) + text), text)


def check_edit(edit: Edit) -> None:
    """Raise `AssertionError` unless `edit` reads back as it is: what is written must be readable for good."""
    try:
        is_same = _decode_edit(_encode_edit(edit)) == edit
    except (msgspec.MsgspecError, TypeError):
        is_same = False
    if not is_same:
        raise AssertionError(f"an edit that would not read back: {str(edit)[:200]}")


class Record(NamedTuple):
    """A valid record: its edit, and the file offset after it."""

    edit: Edit
    stop: int


def decode_record(line: bytes, seed: int, offset: int, path: str = "") -> Edit | None:
    """Return the edit of a record (without its newline) that begins at `offset`, or None if it is not valid.

    Raises `UnsupportedFormat` if the checksum is right and an operation is unknown.
    """
    text = line[9:]
    if line[8:9] != b" " or line[:8] != b"%08x" % crc32c(seed, _pack_offset(offset) + text):
        return None
    try:
        return _decode_edit(text)
    except _UNREADABLE as error:
        raise UnsupportedFormat(
            f"{path!r} has a record at byte {offset} that this tensorblob does not know ({error}); upgrade tensorblob"
        ) from error


def decode_log(data: bytes, seed: int, offset: int, path: str = "") -> Iterator[Record]:
    """Yield the valid records of `data`, which lies at `offset` of its file, up to the first that is not."""
    position = 0
    while (newline := data.find(b"\n", position)) >= 0:
        edit = decode_record(data[position:newline], seed, offset + position, path)
        if edit is None:
            return
        position = newline + 1
        yield Record(edit, offset + position)


def find_later_records(data: bytes, seed: int, offset: int) -> Iterator[Record]:
    """Yield valid records that follow the invalid one at the start of `data`, wherever one may begin.

    A hole can end in the middle of a line, and damage can hide a newline, so a record may begin anywhere in a line. But none
    has what looks like a start within it: only the last of a line can be one, and no byte is checksummed twice, whoever
    wrote them.
    """
    starts = (found.start() for found in _RECORD_START.finditer(data, 1))
    for position, next_start in pairwise(chain(starts, [len(data)])):
        newline = data.find(b"\n", position, next_start)
        edit = None if newline < 0 else decode_record(data[position:newline], seed, offset + position)
        if edit is not None:
            yield Record(edit, offset + newline + 1)


def manifest_name(generation: int) -> str:
    return f"manifest.{generation:06d}"


def manifest_generation(name: str) -> int | None:
    """Return the generation that a file name belongs to, or None if it is no manifest."""
    if not name.startswith("manifest."):
        return None
    digits = name[len("manifest.") :]
    if not digits.isascii() or not digits.isdigit():
        return None
    generation = int(digits)
    return generation if 0 < generation <= MAX_GENERATION and name == manifest_name(generation) else None


def copy_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` as it will be read back; raises `TypeError` if it is not a JSON object."""
    copied: dict[str, Any] = msgspec.json.decode(_encoder.encode(value))
    if copied != value:
        raise TypeError("metadata must be a JSON object (string keys; numbers, strings, lists, dicts, booleans, None)")
    return copied


class Counts(msgspec.Struct, forbid_unknown_fields=True):
    """What a limiter counts: rows inserted and sampled, and by producer those that were let in and are not inserted yet;
    `step` rises with each change.
    """

    step: Count = 0
    inserted: Count = 0
    sampled: Count = 0
    admitted: dict[str, Count] = msgspec.field(default_factory=dict)


COUNTS_NBYTES = 32 << 10
"""A limiter's file has two places of so many bytes."""
_decode_counts = msgspec.json.Decoder(Counts).decode


def encode_counts(counts: Counts) -> bytes:
    """Return the line that says `counts`."""
    text = _encoder.encode(counts)
    return b"%08x %b\n" % (crc32c(0, text), text)


def decode_counts(place: bytes) -> Counts | None:
    """Return the counts in one place of a limiter's file, or None if none were written there, or not all of them."""
    line = place.partition(b"\n")[0]
    if line[:9] != b"%08x " % crc32c(0, line[9:]):
        return None
    try:
        counts = _decode_counts(line[9:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return counts if all(is_producer(name) and len(name) <= 100 for name in counts.admitted) else None


def is_producer(name: str) -> bool:
    """True if `name` can be a producer's: letters and digits."""
    return name.isascii() and name.isalnum()


def is_block_id(name: str) -> bool:
    producer, dash, number = name.partition("-")
    return bool(dash) and is_producer(producer) and number.isascii() and number.isdigit() and len(name) <= MAX_ID_NBYTES


def block_path(field: Field, block: str) -> str:
    """Return where a block of `field` lies, relative to the blob.

    Raises `UnsupportedFormat` (a `ValueError`) for an id that is no plain name: no path out of the blob is ever made of one.
    """
    if not is_block_id(block):
        raise UnsupportedFormat(f"Not a block id: {block[:200]!r}")
    return f"blocks/{field.directory}/{block}"
