"""How many bytes block files take up that no span names any more: what a new generation would free.

It is counted from what each change seals and cuts, not by walking the blob.
"""

from __future__ import annotations

from tensorblob.schema import Schema
from tensorblob.snapshot import Snapshot


class Garbage:
    """The count of one writer: `nbytes` since the generation began (at opening: of all there is)."""

    def __init__(self, schema: Schema, snapshot: Snapshot) -> None:
        self._fields = schema.fields
        self.begin(snapshot)

    def begin(self, snapshot: Snapshot) -> None:
        """Count anew: a new generation has removed what it could (at opening, it has not yet)."""
        columns = snapshot.columns
        self._sealed_rows = [sum(block.rows for block in column.sealed) for column in columns]
        self.nbytes = 0
        for field, column in zip(self._fields, columns, strict=True):
            live = column.live()
            self.nbytes += sum(b.rows for b in column.sealed if b.id not in live) * field.row_nbytes
        self._kept_nbytes = self._unnamed(snapshot) - self.nbytes

    def follow(self, before: Snapshot, after: Snapshot) -> int:
        """Count what changed; return how many bytes were sealed."""
        sealed_nbytes = 0
        for number, (old, new) in enumerate(zip(before.columns, after.columns, strict=True)):
            if new.sealed is not old.sealed:
                added = new.sealed.since(old.sealed)
                rows = sum(block.rows for block in (new.sealed if added is None else added))
                self._sealed_rows[number] = rows + (0 if added is None else self._sealed_rows[number])
                sealed_nbytes += rows * self._fields[number].row_nbytes
        self.nbytes = self._unnamed(after) - self._kept_nbytes
        return sealed_nbytes

    def _unnamed(self, snapshot: Snapshot) -> int:
        """Bytes of rows in blocks beyond those that the columns hold."""
        unnamed = 0
        for field, column, sealed in zip(self._fields, snapshot.columns, self._sealed_rows, strict=True):
            growing = sum(block.rows for block in (column.tail, column.patch) if block is not None)
            unnamed += (sealed + growing - (column.stop - column.origin)) * field.row_nbytes
        return unnamed
