"""Staged producers: many processes stream rows into one blob, each at its own pace and without any lock.

Rows go into blocks of the producer's own, which nobody sees; `commit` makes one edit name them, in a turn that is as
short as that edit. Use it where commits are large (an episode, a shard, a file's worth): rows are not written twice, and
the turn does not grow with them. For small commits a shared writer (`open_writer(shared=True)`) is better: it groups
them, and leaves no seams.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tensorblob.async_writer import INLINE_NBYTES
from tensorblob.blob import TensorBlob, append_to
from tensorblob.errors import BlobClosed
from tensorblob.flow import Retainer
from tensorblob.group import check_key, notes
from tensorblob.offload import to_the_end
from tensorblob.staging import Repeated, Staging
from tensorblob.writer import check_metadata


@asynccontextmanager
async def open_producer(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shape: Any = None,
    schema: Mapping[Any, Any] | None = None,
    block_rows: int | Mapping[str, int] | None = None,
    durability: str = "process",
    timeout_s: float = 0.0,
) -> AsyncIterator[Producer]:
    """Open the blob at `path` for staged appends, in an `async with` block; arguments as of `open_writer`.

    Any number of producers and shared writers may have the blob open at once, all with one durability. Leaving the
    block drops what was not committed. Raises as `TensorBlob.open` does.
    """
    blob = await to_the_end(
        lambda: append_to(
            path,
            dtype=dtype,
            shape=shape,
            schema=schema,
            block_rows=block_rows,
            durability=durability,
            timeout_s=timeout_s,
            shared=True,
        ),
        undo=TensorBlob.close,
    )
    try:
        producer = Producer(blob)
    except BaseException:
        blob.close()
        raise
    try:
        yield producer
    finally:
        with anyio.CancelScope(shield=True):
            await producer._close()


class Producer:
    """One producer of a blob; made by `open_producer`. Its appends and commits are one task's at a time."""

    def __init__(self, blob: TensorBlob) -> None:
        assert blob._writer is not None
        self.blob = blob
        self._writer = blob._writer
        self._staging = Staging(self._writer)
        self._retainer = Retainer((), is_shared=True)  # what peers keep rows for
        self._retainer.watch(self._writer.dir_fd)
        self._writer.keep_from = self._retainer.keep_from
        self._is_closing = False
        self._turn = anyio.Lock()

    @property
    def staged_rows(self) -> int:
        """The rows that were appended and not committed yet."""
        return self._staging.rows

    async def append(self, rows: Any) -> None:
        """Stage rows, as `TensorBlob.write` takes them: nobody sees them before `commit`.

        Cancelled, they are staged or not. Raises as `TensorBlob.write`; then they are not.
        """
        self._check_open()
        columns, count = self.blob._batches.columns(rows)
        async with self._turn:
            self._check_open()
            if count * self.blob.schema.row_nbytes <= INLINE_NBYTES:
                self._staging.append(columns, count)
            else:
                await to_the_end(lambda: self._staging.append(columns, count))

    async def commit(
        self, *, metadata: dict[str, Any] | None = None, key: str | None = None, sequence: int | None = None
    ) -> range:
        """Commit what is staged as one edit; return the row ids that it got (none if there is nothing).

        key, sequence: as of `AsyncWriter.append`: a commit that is repeated with the same ones drops what is staged,
        and returns the row ids that it got the first time. Cancelled, all of it is committed, or all is still staged.
        """
        check_key(key, sequence)
        metadata = check_metadata(metadata)
        self._writer.check_outside("commit")
        async with self._turn:
            self._check_open()
            return await to_the_end(lambda: self._commit(metadata, key, sequence))

    def _commit(self, metadata: dict[str, Any] | None, key: str | None, sequence: int | None) -> range:
        if self._writer.is_power:
            self._staging.sync()
        count = self._staging.rows

        try:
            start = self._staging.commit(
                lambda start: notes(start, start + count, metadata, key, sequence), key, sequence
            )
        except Repeated as repeated:
            self._staging.discard()
            if self._writer.is_power and self._writer.snapshot.durable_rows < repeated.rows.stop:
                self._writer.flush()
            return repeated.rows
        return range(start, start + count)

    async def discard(self) -> None:
        """Drop what is staged."""
        async with self._turn:
            self._check_open()
            self._staging.discard()

    def _check_open(self) -> None:
        if self._is_closing:
            raise BlobClosed("I/O operation on closed blob.")

    async def _close(self) -> None:
        self._is_closing = True
        async with self._turn:
            await to_the_end(self._leave)

    def _leave(self) -> None:
        try:
            self._staging.discard()
        finally:
            self._retainer.close()
            self.blob.close()
