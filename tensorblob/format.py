"""The format on disk, version 1: bytes to values and back. No I/O happens here.

A blob is a directory:

    schema.json              immutable
    manifest.000001          append-only log of edits; the highest number is the current generation
    writer.lock              locked (flock) for as long as a writer lives; its text only names that writer
    commit.lock              reserved for writers that share the blob
    blocks/<column>/<id>     rows, little-endian, no header; <column> is the dotted field name, "data" for the unnamed field
    producers/<producer>     one per live writer, locked by it; its blocks are <producer>-<n>, and no <n> is used twice
    cursors/<name>.json      reserved for durable consumer positions

Names that begin with a dot are unfinished (written aside, to be renamed) and mean nothing to a reader.

schema.json
    One JSON object, UTF-8, in exactly the bytes that `encode_store` writes: members in the order format ("tensorblob"),
    version (1), features (names a reader must know; none yet), uuid (32 hex digits), fields (name, dtype, shape,
    block_rows), crc32c (8 hex digits: CRC-32C of the object with that member empty), no spaces, and a final newline. It is
    valid if and only if re-encoding what was decoded gives the same bytes.

manifest.<generation>, at least six decimal digits
    A sequence of records, each one line:

        <8 lower-case hex digits> <JSON array>\n

    The digits are the CRC-32C of: the 16 bytes of the uuid, the generation and the file offset of the record's first
    byte (two little-endian unsigned 64-bit integers), then the JSON text. A record is valid if and only if it has this
    form, its checksum agrees, and every operation in the array is one of those below. So a record that is torn, or was
    copied from another place, generation or blob, is not valid, and neither are zeros. A valid checksum over an unknown
    operation is a newer format, and is refused.

    The array is an edit: operations, each an array whose first item is its name, that become visible together.
    `snapshot.Snapshot.apply` defines what each does; their fields, in order, are those of the classes in `edit`:

        ["state", history, cuts, first_row, commits]   opens a checkpoint, and only that
        ["block", column, id, rows, crc32c]            a sealed block
        ["tail", column, id, capacity, start, rows, crc32c]    the block a column grows in, and its rows that end the column
        ["patch", column, id, capacity, rows, crc32c]  the block that overwritten rows go to
        ["grow", [[rows, crc32c] or null, ...]]        for each column, the tail's new length
        ["splice", column, start, stop, [[id, start, stop], ...]]   rows start..stop become these spans
        ["trim", first_row]                            rows before first_row are gone
        ["cut", row]                                   a new history: rows from row on are not what they were
        ["note", start, stop, object]                  user metadata of the commit that holds these rows
        ["metadata", object]                           user metadata of the blob
        ["retention", max_rows, max_bytes]             each commit trims to this (null: no limit)
        ["session", producer, boot_id, device, inode, pid, host]    a writer begins
        ["durable", offset, rows]                      all before offset in this generation is synced: rows rows
        ["moved", generation]                          the log goes on there; only a hint

    The first record of a generation is a checkpoint: applied to nothing, it gives the whole state. Everything from the first
    record that is not valid to the end of the file is a torn tail: it was never committed, or a power loss took it. If
    a valid durable mark beyond it claims those bytes, or they were written in one boot and valid records follow them, the
    manifest is corrupt instead.

    A reader folds the highest generation, then each record as it appears; when it has read "moved", or now and then, it
    looks whether generation + 1 exists and starts over there. It pins what it reads by a shared flock on the manifest it has
    open; a block is unlinked only when no unpinned generation names it.

rows and blocks
    Block row i lies at byte i * row_nbytes. A block's checksum is the CRC-32C of its bytes from 0 to rows * row_nbytes,
    what lies beyond is undefined. Row r of a column is in the span whose rows hold it, counted from where the first splice of
    the checkpoint begins. Where a span starts and the one before it stops at multiples of the page size, the two are
    contiguous in a reader's memory.

After a power loss (the session names another boot, device or inode than the reader finds) edits after the last durable
mark count only as far as the bytes they name have the checksums they give: the longest intact prefix is the blob. The next
writer begins a new history there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import google_crc32c
import msgspec

from tensorblob.edit import Edit, Op
from tensorblob.errors import Corrupt, NotABlob, UnsupportedFormat
from tensorblob.schema import Field, Schema, check_name, dtype_name

VERSION = 1
FEATURES: frozenset[str] = frozenset()

_encoder = msgspec.json.Encoder()
_encode_edit = _encoder.encode
_decode_edit = msgspec.json.Decoder(tuple[Op, ...]).decode
_pack_offset = struct.Struct("<Q").pack
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


def decode_store(data: bytes, path: str) -> Store:
    """Return what the bytes of a schema.json say.

    Raises `NotABlob` if they are of something else, `UnsupportedFormat` for another version or unknown features, `Corrupt` if
    they were damaged.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
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
            intact &= (
                dtype_name(field.dtype) == field.dtype and min(field.shape, default=1) > 0 and field.block_rows > 0
            )
        intact &= len({field.name for field in value.fields}) == len(value.fields) > 0
    except (msgspec.MsgspecError, ValueError) as error:
        raise Corrupt(f"schema.json is damaged: {error}", path=path) from error
    if not intact:
        raise Corrupt("schema.json does not agree with its checksum", path=path)
    return store


def log_seed(uuid: str, generation: int) -> int:
    """The checksum state that every record of this generation starts from, before its offset."""
    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))


def encode_record(edit: Edit, seed: int, offset: int) -> bytes:
    """Return the line for `edit` at file offset `offset` of the generation with `log_seed` `seed`."""
    text: bytes = _encode_edit(edit)
    return b"%08x %b\n" % (crc32c(seed, _pack_offset(offset) + text), text)


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
    except msgspec.MsgspecError as error:
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
    """Yield valid records that follow the invalid one at the start of `data`, wherever a line begins."""
    position = data.find(b"\n") + 1
    while 0 < position < len(data):
        newline = data.find(b"\n", position)
        if newline < 0:
            return
        edit = decode_record(data[position:newline], seed, offset + position)
        position = newline + 1
        if edit is not None:
            yield Record(edit, offset + position)


def manifest_name(generation: int) -> str:
    return f"manifest.{generation:06d}"


def manifest_generation(name: str) -> int | None:
    """Return the generation that a file name belongs to, or None if it is no manifest."""
    head, dot, digits = name.partition(".")
    if head != "manifest" or not dot or not digits.isascii() or not digits.isdigit():
        return None
    generation = int(digits)
    return generation if generation > 0 and name == manifest_name(generation) else None


def encode_note(value: dict[str, Any]) -> bytes:
    """Return `value` as JSON, to check that user metadata can be stored; raises `TypeError` if it cannot."""
    encoded: bytes = _encoder.encode(value)
    if msgspec.json.decode(encoded) != value:
        raise TypeError("metadata must be a JSON object (string keys; numbers, strings, lists, dicts, booleans, None)")
    return encoded


def block_path(field: Field, block: str) -> str:
    """Return where a block of `field` lies, relative to the blob; raises `ValueError` for an id that is no plain name."""
    producer, dash, number = block.partition("-")
    if not (dash and producer.isascii() and producer.isalnum() and number.isascii() and number.isdigit()):
        raise ValueError(f"Not a block id: {block!r}")
    return f"blocks/{field.directory}/{block}"
