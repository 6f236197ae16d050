"""Reading a growing blob from tasks: wait for rows, sample them, follow them as they are committed.

An `AsyncReader` is a handle like `TensorBlob` in mode "r", plus the waiting. Whoever waits first waits for the doorbell
and looks; the others wait for that one's news, and when it leaves another takes its place. So there is no background
task, and an idle reader does nothing but a look every two seconds, which is what makes a lost ring harmless.

Row numbers are row ids throughout. Snapshots move only forward; a `Follower` keeps a place of its own among them.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import torch

from tensorblob.blob import TensorBlob
from tensorblob.doorbell import Doorbell
from tensorblob.errors import RowsTrimmed, StreamFinished, WriterDied
from tensorblob.follower import Follower
from tensorblob.limiter import RateLimiter
from tensorblob.presence import presence
from tensorblob.snapshot import Snapshot
from tensorblob.table import Batch

IDLE_POLL_S, LAST_IDLE_POLL_S = 0.25, 2.0
FIRST_POLL_S = 0.0005
PACE_S = 0.001
"""Woken twice within this, a watcher waits so long before it lets itself be woken again: each ring costs the writer."""
SMALL_NBYTES, COLD_S = 1 << 20, 0.002
"""So much is copied or gathered on the event loop, as long as that takes less than COLD_S: then a page was not in memory, and
all goes to threads until one finds its pages there again.
"""

T = TypeVar("T")


def _is_finished(snapshot: Snapshot) -> bool:
    return snapshot.is_finished


class Sample(NamedTuple):
    """Rows chosen at random: `rows` of shape (batch_size, ...) or (batch_size, length, ...), and the row ids they have."""

    rows: Any
    row_ids: torch.Tensor


@asynccontextmanager
async def open_reader(
    path: str | os.PathLike[str],
    *,
    wait_s: float | None = None,
    io: str | None = None,
    max_cached_blocks: int | None = None,
    limiter: RateLimiter | None = None,
) -> AsyncIterator[AsyncReader]:
    """Open the blob at `path` for reading, in an `async with` block.

    wait_s: if there is no blob yet, wait so many seconds for one (`math.inf`: for as long as it takes). io,
    max_cached_blocks: as of `TensorBlob.open`. limiter: what `sample` has to wait for (see `limiter`). Raises as
    `TensorBlob.open` does. A cancellation leaves nothing behind.
    """
    deadline = anyio.current_time() + (wait_s or 0.0)
    pause_s = 0.01
    while True:
        try:
            blob = await anyio.to_thread.run_sync(
                lambda: TensorBlob.open(path, io=io, max_cached_blocks=max_cached_blocks)
            )
            break
        except FileNotFoundError:
            left_s = deadline - anyio.current_time()
            if left_s <= 0:
                raise
            await anyio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, 0.25)
    try:
        reader = AsyncReader(blob, limiter)
    except BaseException:
        blob.close()
        raise
    try:
        yield reader
    finally:
        reader._close()


class AsyncReader:
    """A reader of one blob for any number of tasks of one event loop; made by `open_reader`."""

    def __init__(self, blob: TensorBlob, limiter: RateLimiter | None = None) -> None:
        assert blob._reader is not None
        self.blob = blob
        """The handle that all of this moves; index it, view it, select from it."""
        self._reader = blob._reader
        self.limit = None if limiter is None else limiter.open(self._reader.dir_fd)
        self._bell = Doorbell()
        self._is_watched = False
        self._news = anyio.Event()
        self._listeners = 0
        self._is_cold = False
        """The last read took as long as one that waits for the disk."""
        self._moved_s = -math.inf
        """When the watcher last saw a commit."""
        self._idle_s = IDLE_POLL_S
        """How long to wait for a ring before looking anyway; longer the longer nothing happens."""

    def _close(self) -> None:
        if self._bell.is_working:
            anyio.notify_closing(self._bell.fileno())
        self._bell.close()
        self._news.set()
        if self.limit is not None:
            self.limit.close()
        self.blob.close()

    # -- what is there ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What this reader shows; the same until it waits, refreshes or follows."""
        return self.blob.snapshot

    def refresh(self) -> bool:
        """Step to the newest snapshot; return whether it moved."""
        if not self.blob.refresh():
            return False
        self._tell()
        return True

    def _tell(self) -> None:
        if self._listeners:
            news, self._news = self._news, anyio.Event()
            news.set()

    @property
    def dir_fd(self) -> int:
        """The blob's directory."""
        return self._reader.dir_fd

    @property
    def rows(self) -> int:
        """The row id after the newest row."""
        return self.blob.rows

    @property
    def first_row(self) -> int:
        """The row id of the oldest row."""
        return self.blob.first_row

    @property
    def most_rows(self) -> int | None:
        """How many rows the blob ever holds, if it is a ring."""
        return self.snapshot().retention.most_rows(self.blob.schema.row_nbytes)

    def __len__(self) -> int:
        return len(self.blob)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def wait_rows(self, rows: int) -> Snapshot:
        """Wait until `rows` rows (a row id, the count of all ever appended) are committed; return that snapshot.

        Raises `StreamFinished` if the stream ends before, `WriterDied` if the writer died.
        """
        await self._wait(lambda snapshot: snapshot.rows >= rows)
        return self.snapshot()

    async def wait_durable(self, rows: int) -> Snapshot:
        """As `wait_rows`, until so many rows survive a power loss."""
        await self._wait(
            lambda snapshot: snapshot.durable_rows >= rows,
            is_over=lambda snapshot: snapshot.is_finished and snapshot.rows < rows,
        )
        return self.snapshot()

    async def _wait(
        self,
        is_there: Callable[[Snapshot], bool],
        on_dead_writer: str = "raise",
        timeout_s: float = math.inf,
        is_over: Callable[[Snapshot], bool] = _is_finished,
    ) -> bool:
        """Refresh until `is_there(snapshot)`; return False if that takes longer than `timeout_s`.

        Raises `StreamFinished` if `is_over(snapshot)`, `WriterDied` unless `on_dead_writer` is "wait".
        """
        await anyio.lowlevel.checkpoint()
        self.refresh()
        deadline = anyio.current_time() + timeout_s
        while not is_there(snapshot := self.snapshot()):
            if is_over(snapshot):
                raise StreamFinished(f"The stream ends at row {snapshot.rows}")
            left_s = deadline - anyio.current_time()
            if left_s <= 0:
                return False
            if not await self._changed(left_s) and on_dead_writer != "wait":
                self._check_writer()
        return True

    def _check_stream(self) -> None:
        """Raise `StreamFinished` or `WriterDied` if no rows will come."""
        self.refresh()
        if self.snapshot().is_finished:
            raise StreamFinished(f"The stream ends at row {self.rows}")
        self._check_writer()

    def _check_writer(self) -> None:
        """Raise `WriterDied` if all writers are gone and one of them did not close."""
        self.blob._check_open()
        found = presence(self._reader.dir_fd)
        if found.dead and not found.alive and not self.refresh():
            raise WriterDied(
                f"The writer of {self.blob.filename!r} died at row {self.rows}, without finish() or close()"
            )

    async def _changed(self, timeout_s: float) -> bool:
        """Wait until the snapshot moves, but not much longer than two seconds; return whether it did."""
        before = self.snapshot()
        self.blob._check_open()
        if self._is_watched:
            self._listeners += 1
            try:
                with anyio.move_on_after(min(timeout_s, LAST_IDLE_POLL_S)):
                    await self._news.wait()
            finally:
                self._listeners -= 1
            self.blob._check_open()
            return self.snapshot() is not before
        self._is_watched = True
        try:
            has_moved = await self._watch(before, min(timeout_s, self._idle_s))
            if has_moved:
                self._moved_s = anyio.current_time()
            self._idle_s = IDLE_POLL_S if has_moved else min(1.5 * self._idle_s, LAST_IDLE_POLL_S)
            return has_moved
        finally:
            self._is_watched = False
            self._tell()  # another one has to watch now

    async def _watch(self, before: Snapshot, timeout_s: float) -> bool:
        now_s = anyio.current_time()
        deadline = now_s + timeout_s
        if (early_s := self._moved_s + PACE_S - now_s) > 0:  # commits come thick and fast: take several at once
            await anyio.sleep(early_s)
            if self.blob.refresh() or self.snapshot() is not before:
                return True
        bell, pause_s = self._bell, FIRST_POLL_S  # without a bell, the pauses grow to 20 ms
        while True:
            bell.arm(self._reader.log_fd)
            if self.blob.refresh() or self.snapshot() is not before:
                return True
            left_s = deadline - anyio.current_time()
            if left_s <= 0:
                return False
            if bell.is_working:
                with anyio.move_on_after(left_s), contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(bell.fileno())
            else:
                await anyio.sleep(min(pause_s, left_s))
                pause_s = min(1.5 * pause_s, 0.02)
            # before it is armed again: somebody waits for this
            if self.blob.refresh() or self.snapshot() is not before:
                return True

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, start: int, stop: int) -> Batch:
        """Copies of rows `start` to `stop` (row ids), which must be committed; pages that are not in memory are read in
        a thread.

        Raises `RowsTrimmed` or `IndexError` for rows that are gone or not there yet.
        """
        snapshot = self.snapshot()
        if start < snapshot.first_row:
            raise RowsTrimmed(f"Rows before {snapshot.first_row} are trimmed", first_row=snapshot.first_row)
        if not start <= stop <= snapshot.rows:
            raise IndexError(f"Rows {start} to {stop} are not all there: there are {snapshot.rows}")
        low, high = start - snapshot.first_row, stop - snapshot.first_row
        held = self.blob.held()
        return await self._off_loop(lambda: held[low:high], high - low)

    async def sample(
        self,
        batch_size: int,
        length: int | None = None,
        *,
        generator: torch.Generator | None = None,
        fields: Sequence[str | tuple[str, ...]] | None = None,
    ) -> Sample:
        """Copies of `batch_size` rows chosen uniformly, with replacement, from all that are there, and their row ids.

        With `length`, each is a slice of so many neighbouring rows: the shape is (batch_size, length, ...). Waits for
        the limiter, if the reader was opened with one, and until there are `length` rows. Raises `StreamFinished` if
        there never will be.
        """
        if batch_size < 1 or (length is not None and length < 1):
            raise ValueError(f"batch_size and length must be positive, got {batch_size!r} and {length!r}")
        if self.limit is None:
            return await self._sample(batch_size, length, generator, fields)
        await self.limit.wait_to_sample(batch_size, self._check_stream)
        try:
            return await self._sample(batch_size, length, generator, fields)
        except BaseException:
            self.limit.try_sample(-batch_size)
            raise

    async def _sample(
        self,
        batch_size: int,
        length: int | None,
        generator: torch.Generator | None,
        fields: Sequence[str | tuple[str, ...]] | None,
    ) -> Sample:
        span = length or 1
        if self.most_rows is not None and span > self.most_rows:
            raise ValueError(f"length is {length}, and this ring never holds more than {self.most_rows} rows")
        if len(self.blob) < span:
            await self._wait(lambda snapshot: len(snapshot) >= span)
        else:
            await anyio.lowlevel.checkpoint()
            self.refresh()
        held = (self.blob if fields is None else self.blob.select(*fields)).held()
        snapshot = self.snapshot()
        starts = torch.randint(len(snapshot) - span + 1, (batch_size,), generator=generator)
        positions = starts if length is None else (starts[:, None] + torch.arange(span)).reshape(-1)
        rows = await self._off_loop(lambda: held.gather(positions), len(positions))
        ids = positions + snapshot.first_row
        if length is not None:
            rows, ids = _sliced(rows, batch_size, span), ids.reshape(batch_size, span)
        return Sample(rows, ids)

    async def _off_loop(self, work: Callable[[], T], count: int) -> T:
        """Do small work here, and large work in a thread; small work too while pages turn out not to be in memory."""

        if count * self.blob.schema.row_nbytes > SMALL_NBYTES:
            return await anyio.to_thread.run_sync(work)

        def timed() -> T:
            start_s = time.perf_counter()
            result = work()
            self._is_cold = time.perf_counter() - start_s > COLD_S
            return result

        if self._is_cold:
            return await anyio.to_thread.run_sync(timed)
        await anyio.lowlevel.checkpoint()
        return timed()

    def follow(
        self,
        start: int | str = 0,
        batch_size: int | None = None,
        max_wait_s: float | None = None,
        fields: Sequence[str | tuple[str, ...]] | None = None,
        *,
        durable: bool = False,
        cursor: str | None = None,
        on_trim: str = "raise",
        on_dead_writer: str = "raise",
    ) -> Follower:
        """Return a `Follower`: an async iterator over batches of rows from `start` on, as they are committed.

        Args:
            start: a row id, or "now" for the rows to come. With `cursor`, where it begins if there is no such cursor.
            batch_size: rows in each batch (the last may have fewer); None: what is there, at least one.
            max_wait_s: yield a short batch once its first row has waited so many seconds.
            fields: only these, as of `select`.
            durable: only rows that survive a power loss.
            cursor: the name of a durable position to resume from (see `cursors`). One consumer at a time holds it.
            on_trim: "raise" `RowsTrimmed`, or "skip" to the oldest row that is left.
            on_dead_writer: "raise" `WriterDied`, "wait" for another writer, or "end".

        Batches are views without a copy, valid for as long as they are held (copies where they cross a seam). It ends
        when the writer has called `finish()`. Raises `HistoryRewritten` if rows that were yielded were cut.
        """
        if start == "now":
            self.refresh()
        return Follower(
            self,
            start,
            batch_size=batch_size,
            max_wait_s=max_wait_s,
            fields=fields,
            durable=durable,
            cursor=cursor,
            on_trim=on_trim,
            on_dead_writer=on_dead_writer,
        )


def _sliced(rows: Any, batch_size: int, length: int) -> Any:
    if isinstance(rows, torch.Tensor):
        return rows.view(batch_size, length, *rows.shape[1:])
    return rows.reshape(batch_size, length)
