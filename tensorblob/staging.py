"""Rows that wait beside a blob: placed in blocks of their own, without any lock, until one edit names them.

What is staged belongs to the producer alone: no manifest names it, and its file in producers/ keeps others from taking
it for garbage. Committing adopts the blocks as they are (zero-copy). A few rows are copied into the tail instead, where
a tiny block each would mean a seam each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensorblob.edit import Block, Op, Span, Splice
from tensorblob.errors import Corrupt, SyncFailed
from tensorblob.format import crc32c
from tensorblob.growth import BlockFile, Growth, Rows, as_bytes
from tensorblob.snapshot import Column, Snapshot
from tensorblob.writer import Writer

COPY_NBYTES = 1 << 20
"""Less than this is copied when it is committed."""


class Repeated(Exception):
    """A producer key has committed this sequence number before, as `rows`."""

    def __init__(self, rows: range) -> None:
        self.rows = rows


class Staging:
    """Rows on their way into the blob of `writer`, which takes turns with others."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._fields = writer.store.schema.fields
        self.rows = 0
        self._begin()

    def _begin(self) -> None:
        self.rows = 0
        self._blocks: list[list[BlockFile]] = [[] for _ in self._fields]
        self._growths = [
            Growth(number, len(self._fields), field, self._writer.dir_fd, self._new_block)
            for number, field in enumerate(self._fields)
        ]
        self._begun: list[BlockFile | None] = [None] * len(self._fields)
        """The blocks in which the last append began: taken back, it ends there, so they are open as long as it may be."""

    def _new_block(self, number: int) -> BlockFile:
        blocks = self._blocks[number]
        if blocks and blocks[-1] is not self._begun[number]:
            blocks[-1].close()  # it is full, and costs no descriptor: what is not synced of it is synced by path
        block = self._writer.blocks.stage(number)
        blocks.append(block)
        return block

    def append(self, columns: Sequence[Rows], count: int) -> None:
        """Place rows behind those that are staged. If it raises, they are not staged."""
        for begun in self._begun:
            if begun is not None and begun.rows == begun.capacity_rows:
                begun.close()
        self._begun = [blocks[-1] if blocks else None for blocks in self._blocks]
        marks = [(len(blocks), blocks[-1].rows, blocks[-1].crc32c) if blocks else None for blocks in self._blocks]
        try:
            for growth, rows in zip(self._growths, columns, strict=True):
                growth.append(rows, Column())
        except BaseException:
            for number, mark in enumerate(marks):
                self._take_back(number, mark)
            raise
        self.rows += count

    def _take_back(self, number: int, mark: tuple[int, int, int] | None) -> None:
        blocks = self._blocks[number]
        kept = 0 if mark is None else mark[0]
        self._writer.blocks.drop_staged(blocks[kept:])
        del blocks[kept:]
        self._growths[number].tail = blocks[-1] if blocks else None
        if mark is not None:
            blocks[-1].rows, blocks[-1].crc32c = mark[1:]

    def sync(self) -> None:
        """Make the staged rows durable, before the turn in which they are committed.

        Raises `SyncFailed`; then they are dropped, for the kernel may have lost them.
        """
        try:
            self._writer.blocks.sync_staged([block for blocks in self._blocks for block in blocks])
        except SyncFailed as error:
            self.discard()
            raise SyncFailed(error.errno, f"{error.strerror}; what was staged is dropped, append it again") from error

    def commit(self, more: Callable[[int], list[Op]], key: str | None = None, sequence: int | None = None) -> int:
        """Commit what is staged as one edit, with the operations `more(start)`; return the row id of its first row.

        Raises `Repeated` if the producer key `key` has committed that sequence number before, `ValueError` if a later
        one.
        """
        nbytes = self.rows * self._writer.store.schema.row_nbytes
        start = -1

        def place(snapshot: Snapshot, growths: Sequence[Growth]) -> list[Op]:
            nonlocal start
            if key is not None and sequence is not None:
                if (done := snapshot.committed(key, sequence)) is not None:
                    raise Repeated(range(done.start, done.stop))
            start = snapshot.rows
            if not self.rows:
                return more(start)
            ops = self._copied(snapshot, growths) if nbytes < COPY_NBYTES else self._adopted(snapshot)
            return [*ops, *more(start)]

        before = self._writer.own_commits
        try:
            self._writer.change(place)
        except BaseException:
            if self._writer.own_commits != before:  # it is committed all the same
                self._end(nbytes)
            raise
        self._end(nbytes)
        return start

    def _end(self, nbytes: int) -> None:
        """What was staged is committed."""
        for number, blocks in enumerate(self._blocks):
            if nbytes < COPY_NBYTES:
                self._writer.blocks.drop_staged(blocks)
            else:
                self._writer.blocks.keep_staged(number, blocks)
        self._begin()

    def _adopted(self, snapshot: Snapshot) -> list[Op]:
        named: list[Op] = []
        splices: list[Op] = []
        for number, (blocks, column) in enumerate(zip(self._blocks, snapshot.columns, strict=True)):
            self._writer.blocks.take_staged(blocks)
            named += [Block(number, block.id, block.rows, block.crc32c) for block in blocks]
            spans = tuple([Span(block.id, 0, block.rows) for block in blocks])
            splices.append(Splice(number, column.stop, column.stop, spans))
        return [*named, *splices]

    def _copied(self, snapshot: Snapshot, growths: Sequence[Growth]) -> list[Op]:
        ops: list[Op] = []
        for growth, blocks, column in zip(growths, self._blocks, snapshot.columns, strict=True):
            for block in blocks:
                rows = growth.read([Span(block.id, 0, block.rows)])
                if crc32c(0, as_bytes(rows)) != block.crc32c:
                    raise Corrupt("Staged rows are not what was written", path=block.path)
                ops += growth.append(rows, column)
        return ops

    def discard(self) -> None:
        """Forget what is staged."""
        self._writer.blocks.drop_staged([block for blocks in self._blocks for block in blocks])
        self._begin()
