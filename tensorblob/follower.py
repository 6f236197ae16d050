"""Following a blob: its rows as a stream of batches, each as soon as it is committed, in order and without a copy.

A `Follower` is an async iterator with a place of its own (`start` and `stop` of the batch it yielded last). With a
cursor that place is durable: `ack` writes it down, and asking for the next batch acknowledges the one before. So a
consumer that is killed gets again what it had not acknowledged, and nothing else is repeated or left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from tensorblob.cursors import Cursor, check_name
from tensorblob.errors import HistoryRewritten, RowsTrimmed, SeamError, StreamFinished, WriterDied
from tensorblob.offload import to_the_end
from tensorblob.presence import present
from tensorblob.snapshot import Snapshot
from tensorblob.table import Batch, Rows

if TYPE_CHECKING:
    from tensorblob.async_reader import AsyncReader


LAG_LOOK_S = 0.5


class Follower:
    """Batches of rows as they are committed; made by `AsyncReader.follow`, which says what the arguments mean.

    Use it as an async iterator; with a cursor, inside `async with`, which lets the cursor go.
    """

    def __init__(
        self,
        reader: AsyncReader,
        start: int | str,
        *,
        batch_size: int | None,
        max_wait_s: float | None,
        fields: Sequence[str | tuple[str, ...]] | None,
        durable: bool,
        cursor: str | None,
        on_trim: str,
        on_dead_writer: str,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        if isinstance(fields, str):
            raise TypeError(f"fields must be a sequence of field names, got {fields!r}")
        if max_wait_s is not None and not max_wait_s >= 0:
            raise ValueError(f"max_wait_s must not be negative, got {max_wait_s!r}")
        if on_trim not in ("raise", "skip"):
            raise ValueError(f"on_trim must be 'raise' or 'skip', got {on_trim!r}")
        if on_dead_writer not in ("raise", "wait", "end"):
            raise ValueError(f"on_dead_writer must be 'raise', 'wait' or 'end', got {on_dead_writer!r}")
        if start != "now" and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise ValueError(f"start must be a row id or 'now', got {start!r}")
        self._reader = reader
        self._source: Rows = reader.blob if fields is None else reader.blob.select(*fields)
        self._batch_size, self._max_wait_s = batch_size, max_wait_s
        self._is_durable = durable
        self._skips, self._on_dead_writer = on_trim == "skip", on_dead_writer
        snapshot = reader.snapshot()
        self.start = self.stop = self._end(snapshot) if start == "now" else int(start)
        self._history = snapshot.history
        self._cursor_name = None if cursor is None else check_name(cursor)
        self._cursor: Cursor | None = None
        self.is_finished = False
        """The stream has ended, and all of it was yielded."""

    # -- the cursor ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Follower:
        await self._take_cursor()
        return self

    async def _take_cursor(self) -> None:
        if self._cursor_name is None or self._cursor is not None:
            return
        self._reader.blob._check_open()
        name, dir_fd = self._cursor_name, self._reader.dir_fd
        self._cursor = await to_the_end(lambda: Cursor(dir_fd, name), undo=Cursor.close)
        try:
            position = self._cursor.position
            if position is not None:
                self.start = self.stop = position.row
                self._history = position.history
            else:
                await self.ack()  # from now on a writer can wait for it
        except BaseException:
            self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the cursor go; what was yielded and not acknowledged is yielded again to whoever takes it next."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    async def ack(self) -> None:
        """Acknowledge the rows before `stop`: a consumer that resumes by this cursor goes on there. Durable on return.

        A cancellation leaves it acknowledged or not. Does nothing without a cursor.
        """
        self._reader.blob._check_open()
        cursor, row, history = self._cursor, self.stop, self._history
        if cursor is None or cursor.position == (row, history):
            await anyio.lowlevel.checkpoint()
        else:
            await to_the_end(partial(cursor.acknowledge, row, history))

    def seek(self, row: int) -> None:
        """Go on at the row id `row`, in the present history: the way on after `HistoryRewritten` or `RowsTrimmed`.

        With a cursor, the next `ack` or batch writes that down.
        """
        if not isinstance(row, int) or isinstance(row, bool) or row < 0:
            raise ValueError(f"row must be a row id, got {row!r}")
        self.start = self.stop = row
        self._history = self._reader.snapshot().history

    # -- the rows -----------------------------------------------------------------------------------------------------

    @property
    def lag_rows(self) -> int:
        """How many rows the reader's snapshot holds beyond the last batch."""
        return max(self._reader.rows - self.stop, 0)

    def _end(self, snapshot: Snapshot) -> int:
        return snapshot.durable_rows if self._is_durable else snapshot.rows

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Batch:
        """The next batch. Raises `StopAsyncIteration` at the end of the stream, and as `AsyncReader.follow` says."""
        if self._cursor_name is not None:
            await self._take_cursor()
            await self.ack()
        await anyio.lowlevel.checkpoint()
        reader, give_up_s, is_short = self._reader, math.inf, False
        look_s = math.inf if self._cursor_name is None or self._batch_size is None else LAG_LOOK_S
        reader.refresh()
        most_lag_rows = sys.maxsize
        while True:
            wanted = min(self._batch_size or 1, most_lag_rows, self._most_rows(reader.snapshot()))
            has_rows = self._check(reader.snapshot())
            if has_rows and self._end(reader.snapshot()) - self.stop >= wanted:
                return self._take()
            if has_rows and not is_short:
                is_short = True
                give_up_s = anyio.current_time() + (math.inf if self._max_wait_s is None else self._max_wait_s)
                most_lag_rows = self._most_lag_rows()
                wanted = min(wanted, most_lag_rows)
            try:
                left_s = give_up_s - anyio.current_time() if has_rows else math.inf
                needed = wanted if has_rows else 1
                has_needed = partial(self._has, count=needed)
                if await reader._wait(has_needed, self._on_dead_writer, min(left_s, look_s), self._is_over):
                    continue
                if has_rows and anyio.current_time() >= give_up_s:
                    return self._take()  # a short one, after max_wait_s
                most_lag_rows = self._most_lag_rows()  # a writer may have come meanwhile
            except (StreamFinished, WriterDied) as error:
                if self._check(reader.snapshot()):
                    return self._take()
                if isinstance(error, WriterDied) and self._on_dead_writer == "raise":
                    raise
                self.is_finished = True
                self.close()
                raise StopAsyncIteration from None

    def _is_over(self, snapshot: Snapshot) -> bool:
        """True if no more rows will come. Rows of a finished stream may still have to become durable."""
        return snapshot.is_finished and self._end(snapshot) >= snapshot.rows

    def _has(self, snapshot: Snapshot, count: int) -> bool:
        """True if `count` rows follow those that were yielded, or something has to be said of them."""
        if snapshot.history != self._history or snapshot.first_row > self.stop:
            return True
        return self._end(snapshot) - self.stop >= min(count, self._most_rows(snapshot))

    def _most_rows(self, snapshot: Snapshot) -> int:
        """How many rows one may wait for, if the blob is a ring (which it may become): half of it, or they are trimmed."""
        most_rows = snapshot.retention.most_rows(self._reader.blob.schema.row_nbytes)
        return sys.maxsize if most_rows is None else max(most_rows // 2, 1)

    def _most_lag_rows(self) -> int:
        """How far a writer that waits for this cursor lets it fall behind: it would never see a longer batch."""
        if self._cursor_name is None:
            return sys.maxsize
        return min(
            (who.max_lag_rows for who in present(self._reader.dir_fd) if self._cursor_name in who.consumers),
            default=sys.maxsize,
        )

    def _take(self) -> Batch:
        snapshot = self._reader.snapshot()
        start, stop = self.stop, self._end(snapshot)
        if self._batch_size is not None:
            stop = min(stop, start + self._batch_size)
        first = snapshot.first_row
        try:
            batch = self._source.view(start - first, stop - first)
        except SeamError:
            if self._batch_size is not None:
                batch = self._source[start - first : stop - first]  # one copy
            else:
                stop = self._source.runs(start - first, stop - first)[0][1] + first
                batch = self._source.view(start - first, stop - first)
        if stop < self._end(snapshot):  # behind: the next batch is there already, perhaps not in memory
            self._source.will_need(stop - first, 2 * stop - start - first)
        self.start, self.stop = start, stop
        return batch

    def _check(self, snapshot: Snapshot) -> bool:
        """Go on in `snapshot`, and return whether it has rows to yield; raises `HistoryRewritten` or `RowsTrimmed`."""
        path = self._reader.blob.filename
        if snapshot.history != self._history:
            cut = snapshot.cut_after(self._history)
            if self._history > snapshot.history or (cut is not None and cut < self.stop):
                raise HistoryRewritten(
                    f"Rows from {cut or 0} on were cut from {path!r}, and rows to {self.stop} were read", row=cut or 0
                )
            self._history = snapshot.history
        if snapshot.first_row > self.stop:
            if not self._skips:
                raise RowsTrimmed(
                    f"Rows {self.stop} to {snapshot.first_row} were trimmed from {path!r} before they were read; "
                    "follow(on_trim='skip') goes on at the oldest that is left",
                    first_row=snapshot.first_row,
                )
            self.start = self.stop = snapshot.first_row
        return self._end(snapshot) > self.stop
