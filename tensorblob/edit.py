"""Edits: what one commit says, as frozen values.

An edit is a tuple of operations that become visible together. `snapshot.Snapshot.apply` folds them, `format` writes
them. Row numbers are of two kinds, and names say which: a *row* (or row id) counts the rows of a column since the
blob began; a *block row* counts the rows of one block file. Columns are numbered in schema order.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

MAX_ROWS = 2**53
"""Row ids, and what is counted, stay below it; every JSON reader knows these numbers exactly."""

Count = Annotated[int, Meta(ge=0, le=MAX_ROWS)]
BlockId = Annotated[str, Meta(pattern=r"^[0-9A-Za-z]+-[0-9]+\Z", max_length=100)]
"""Bounds are given where they cost nothing: not for the operations that a checkpoint has by the ten thousand, `Block` and
`Span`, nor for `Grow`. What those say is checked where it is used.
"""


class Span(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Rows `start` to `stop` (block rows) of the block `block`."""

    block: str
    start: int
    stop: int


class Block(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag="block"):
    """A sealed block of `column`: `rows` rows whose bytes have the checksum `crc32c`. It will never be
    written again.
    """

    column: int
    id: str
    rows: int
    crc32c: int


class Tail(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag="tail"):
    """The block that `column` grows in. Its rows from `start` end the column; the previous tail is sealed by this.

    `rows` are committed, with checksum `crc32c` over all of them (from block row 0); the file may grow to
    `capacity_rows`.
    """

    column: Count
    id: BlockId
    capacity_rows: Count
    start: Count
    rows: Count
    crc32c: int


class Patch(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag="patch"):
    """The block that overwritten quanta of `column` go to, grown to `rows`. Another id seals the previous patch
    block.
    """

    column: Count
    id: BlockId
    capacity_rows: Count
    rows: Count
    crc32c: int


class Grow(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag="grow"):
    """The tails grew: for every column `(rows, crc32c)` of its tail from now on, or None where it did not grow."""

    tails: tuple[tuple[int, int] | None, ...]


class Splice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="splice"):
    """Rows `start` to `stop` of `column` are replaced by the rows of `spans`.

    The column ends earlier or later if the counts differ, which only a splice up to its end may do. A tail whose last
    row does not end the column any more is sealed. On an empty column, `start` is where it begins.
    """

    column: Count
    start: Count
    stop: Count
    spans: tuple[Span, ...]


class Trim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="trim"):
    """Rows before `first_row` are gone."""

    first_row: Count


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="cut"):
    """The history `history` begins: rows from `row` on may differ from what they were in the ones before."""

    row: Count
    history: int


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="state"):
    """Opens a checkpoint: the totals that no other operation carries. `cuts` are `(history begun, row of the cut)`,
    `lost` pairs of histories between whose numbers some may have been that a power loss took.
    """

    history: Count
    cuts: tuple[tuple[Count, Count], ...]
    lost: tuple[tuple[Count, Count], ...]
    first_row: Count
    commits: Count


class Durable(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="durable"):
    """Everything this generation says before `offset`, and every byte it names there, is synced: `rows` rows."""

    offset: Count
    rows: Count


class Session(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="session"):
    """A writer begins: its producer id, the boot it runs in, the inode it writes this generation to, and who it is."""

    producer: str
    boot_id: str
    device: int
    inode: int
    pid: int
    host: str


class Metadata(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="metadata"):
    """The blob's user metadata from now on (a JSON object)."""

    value: dict[str, Any]


class Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="note"):
    """User metadata of one commit, which holds rows `start` to `stop`."""

    start: Count
    stop: Count
    value: dict[str, Any]


class Key(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag="key"):
    """The append number `sequence` of the producer `key` is rows `start` to `stop`: asked for again, it is not repeated."""

    key: str
    sequence: int
    start: Count
    stop: Count


class Finish(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="finish"):
    """The stream ends at `row`: who follows need not wait for more. Rows appended later take it back."""

    row: Count


class Retention(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="retention"):
    """Each commit trims the blob to at most so many rows or bytes of rows; None is no limit."""

    max_rows: Annotated[int, Meta(ge=0)] | None
    max_bytes: Annotated[int, Meta(ge=0)] | None

    def most_rows(self, row_nbytes: int) -> int | None:
        """How many rows of so many bytes that is, at least one; None is no limit."""
        by_bytes = None if self.max_bytes is None else max(self.max_bytes // row_nbytes, 1)
        return min((limit for limit in (self.max_rows, by_bytes) if limit is not None), default=None)


class Moved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="moved"):
    """The log goes on in `generation`. Only a doorbell: that generation was in place before this was written."""

    generation: Count


Op: TypeAlias = (
    Block
    | Tail
    | Patch
    | Grow
    | Splice
    | Trim
    | Cut
    | State
    | Durable
    | Session
    | Metadata
    | Note
    | Key
    | Finish
    | Retention
    | Moved
)
Edit: TypeAlias = tuple[Op, ...]
