"""Writing a blob from tasks: any number of producers, one commit for all who wait (group commit).

`append` checks its batch, waits for room, and joins those who wait. All of them are committed as one edit, and each is told
which rows it got. Small commits at "process" are done on the event loop itself: they cost less than the hop to a thread. The
first of a group leads it: once every task that was ready has had its turn, and may have joined, it commits for all.
Whatever may take long (large batches, all syncs, a new generation) is left to the committer, one task in the writer's own task
group, which has it done in a thread of the writer's own limiter, and never abandons it. While it is at work the next group
gathers, so the slower the disk, the larger the groups.

Invariants: a cancelled `append` is wholly committed or wholly absent; a batch is read only until `append` returns or
raises; what was accepted is committed before the writer closes, however its `async with` block is left.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import statistics
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel

from tensorblob.blob import TensorBlob, append_to
from tensorblob.errors import BlobClosed, OutcomeUnknown, WriterBusy
from tensorblob.flow import LagGate, Retainer
from tensorblob.group import Committer, Pending, check_key, fail
from tensorblob.growth import Part
from tensorblob.limiter import RateLimiter
from tensorblob.offload import finished, to_the_end
from tensorblob.snapshot import Snapshot
from tensorblob.writer import Writer, check_metadata

INLINE_NBYTES = 256 << 10
"""Groups of at most so many bytes are committed on the event loop, at "process"."""
COPY_NBYTES = 64 << 10
"""Batches of at most so many bytes are copied on entry."""
LATENCIES = 1024
SAY_S = 0.05


@dataclass(frozen=True)
class Statistics:
    """What a writer did so far, and who waits. Latencies are of the last appends, from the call to the commit."""

    rows: int
    appends: int
    commits: int
    mean_appends_per_commit: float
    max_appends_per_commit: int
    waiting_producers: int
    pending_nbytes: int
    median_latency_s: float
    p99_latency_s: float
    dead_consumers: tuple[str, ...]


@asynccontextmanager
async def open_writer(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shape: Any = None,
    schema: Mapping[Any, Any] | None = None,
    block_rows: int | Mapping[str, int] | None = None,
    durability: str = "process",
    flush_every_s: float | None = None,
    max_rows: int | None = None,
    max_bytes: int | None = None,
    metadata: dict[str, Any] | None = None,
    timeout_s: float = 0.0,
    shared: bool = False,
    max_pending_bytes: int = 64 << 20,
    consumers: Sequence[str] = (),
    max_lag_rows: int | None = None,
    on_dead_consumer: str = "wait",
    retain_for: Sequence[str] = (),
    limiter: RateLimiter | None = None,
) -> AsyncIterator[AsyncWriter]:
    """Open the blob at `path` for appending, in an `async with` block; a missing one is created if its schema is given.

    Args:
        dtype, shape, schema, block_rows, durability, flush_every_s, max_rows, max_bytes, metadata, timeout_s: as of
            `TensorBlob.open`.
        shared: be one of several writers of the blob, in any processes: they take turns, one group commit each.
        max_pending_bytes: producers wait while more than this is accepted and not committed. A larger batch is let in
            alone.
        consumers, max_lag_rows: producers wait while one of these cursors is more than so many rows behind.
        on_dead_consumer: what to do about one that died: "wait" (a warning says so), "raise" `ConsumerDied`, or "drop" it.
        retain_for: cursors whose rows max_rows and max_bytes do not trim before they are acknowledged.
        limiter: what `append` has to wait for (see `limiter`).

    Leaving the block commits what was accepted, flushes, and lets the next writer in, also on an exception or a
    cancellation. Raises as `TensorBlob.open` does, and what a flush at the end raises.
    """
    if not max_pending_bytes >= 1:
        raise ValueError(f"max_pending_bytes must be positive, got {max_pending_bytes!r}")
    if limiter is not None and not isinstance(limiter, RateLimiter):
        raise TypeError(f"limiter must be a RateLimiter, got {limiter!r}")
    gate, retainer = LagGate(consumers, max_lag_rows, on_dead_consumer), Retainer(retain_for, is_shared=shared)
    blob = await to_the_end(
        lambda: append_to(
            path,
            dtype=dtype,
            shape=shape,
            schema=schema,
            block_rows=block_rows,
            durability=durability,
            flush_every_s=flush_every_s,
            max_rows=max_rows,
            max_bytes=max_bytes,
            metadata=metadata,
            timeout_s=timeout_s,
            shared=shared,
        ),
        undo=TensorBlob.close,
    )
    try:
        writer = AsyncWriter(blob, max_pending_bytes, gate, retainer, limiter)
    except BaseException:
        gate.close()
        retainer.close()
        blob.close()
        raise
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer._commit_all)
            try:
                yield writer
            finally:
                writer._is_closing = True
                gate.stop()
                writer._bell.set()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:  # of the block: that there is a task group in here is nobody's business
            raise group.exceptions[0] from None
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await writer._close()


class AsyncWriter:
    """The writing end of a blob for any number of tasks of one event loop; made by `open_writer`."""

    def __init__(
        self,
        blob: TensorBlob,
        max_pending_nbytes: int,
        gate: LagGate,
        retainer: Retainer,
        limiter: RateLimiter | None,
    ) -> None:
        assert blob._writer is not None
        self.blob = blob
        self._writer: Writer = blob._writer
        self._batches = blob._batches
        self._gate = gate
        self._gate.watch(self._writer.dir_fd, self._writer)
        if retainer.names or self._gate.is_active:
            self._writer.announce(*self._gate.waits_for, tuple(retainer.names))
        self._retainer = retainer
        if retainer.names or self._writer.turns is not None:
            retainer.watch(self._writer.dir_fd)
            self._writer.keep_from = retainer.keep_from
        self.limit = None if limiter is None else limiter.open(self._writer.dir_fd, self._writer.producer)
        self._max_pending_nbytes = max_pending_nbytes
        self._pending_nbytes = 0
        self._gathering = threading.Lock()
        """Guards `_waiting`, `_group` and `_done`: a thread takes the group once it has the turn. Nobody waits holding it."""
        self._waiting: list[Pending] = []
        """Accepted, and in the next group."""
        self._group: list[Pending] = []
        """Taken, and being committed."""
        self._outside: deque[Pending] = deque()
        """Waiting for room, in the order of their coming."""
        self._bell = anyio.Event()
        self._done = anyio.Event()
        """Set when the group that gathers now is committed."""
        self._next_done = anyio.Event()
        self._is_led = False
        """The first of those who wait is about to commit for all of them."""
        self._is_committing = False
        """The committer is at work; it will see who comes meanwhile."""
        self._is_closing = False
        self._lost: BaseException | None = None
        """Why a batch of `append_nowait` was not committed, until somebody hears of it."""
        self._threads = anyio.CapacityLimiter(1)
        self._home = threading.get_ident()
        self._committer = Committer(self._writer)
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)

    # -- producers ----------------------------------------------------------------------------------------------------

    async def append(
        self,
        rows: Any,
        *,
        metadata: dict[str, Any] | None = None,
        key: str | None = None,
        sequence: int | None = None,
    ) -> range:
        """Append rows, as `TensorBlob.write` takes them, and return the row ids they got, once they are committed.

        With `key` and `sequence` (which must rise from one append of a key to the next) an append may be repeated
        after an unknown outcome: it is committed once, and each call returns the same row ids. The last 1024 keys are
        remembered. `metadata` is kept with the commit.

        Raises as `TensorBlob.write`, and `ConsumerDied`. Cancelled, it is wholly committed or wholly absent.
        """
        pending = self._accept(rows, metadata, key, sequence)
        return await self._place(pending)

    async def _place(self, pending: Pending) -> range:
        """Let a batch through all that it may have to wait for, until it is committed."""
        self._check_open()
        if self._gate.is_active:
            await self._gate.wait()
        if self.limit is not None:
            await self.limit.wait_to_insert(pending.count, self._check_open)
            pending.is_counted = True
        try:
            self._check_open()
            await self._enter(pending)
            await self._finish(pending)
        finally:
            self._uncount([pending])
        return range(pending.start, pending.stop)

    def _uncount(self, group: list[Pending]) -> None:
        """Let the limiter know which of these rows were inserted; the others are given back. Once for each."""
        if self.limit is None:
            return
        counted = [pending for pending in group if pending.is_counted]
        inserted = sum(pending.count for pending in counted if pending.is_new)
        others = sum(pending.count for pending in counted if not pending.is_new)
        for pending in counted:
            pending.is_counted = False
        if inserted:
            self.limit.inserted(inserted)
        if others:
            self.limit.inserted(-others)

    def append_nowait(
        self,
        rows: Any,
        *,
        metadata: dict[str, Any] | None = None,
        key: str | None = None,
        sequence: int | None = None,
    ) -> None:
        """Accept a copy of rows to be appended with the next commit; raises `anyio.WouldBlock` if there is no room.

        If it cannot be committed, the next `flush` or `finish`, or leaving the block, raises what its commit raised.
        """
        pending = self._accept(rows, metadata, key, sequence)
        if self._outside or not self._has_room(pending) or self._gate.would_wait():
            raise anyio.WouldBlock
        if self.limit is not None:
            try:
                is_admitted = self.limit.try_insert(pending.count)
            except WriterBusy:
                is_admitted = False
            if not is_admitted:
                raise anyio.WouldBlock
            pending.is_counted = True
        pending.copy()
        pending.is_nobodys = True
        self._admit(pending)
        self._bell.set()

    def transaction(self, metadata: dict[str, Any] | None = None) -> Transaction:
        """Return an `async with` block whose appends become one commit; an exception in it drops them all."""
        return Transaction(self, check_metadata(metadata))

    def _accept(self, rows: Any, metadata: dict[str, Any] | None, key: str | None, sequence: int | None) -> Pending:
        """Check a batch. Small ones are copied here, so that a producer may reuse its buffer at once."""
        self._check_open()
        self._writer.check_outside("append")
        check_key(key, sequence)
        columns, count = self._batches.columns(rows)
        parts: list[Sequence[Part]] = []
        nbytes = 0
        for part in columns:
            assert not isinstance(part, list)
            size = len(part) if isinstance(part, bytes) else part.nbytes
            nbytes += size
            parts.append([part.tobytes() if size <= COPY_NBYTES and not isinstance(part, bytes) else part])
        pending = Pending(parts, count, nbytes, began_s=anyio.current_time())
        if metadata is not None:
            pending.metadata = check_metadata(metadata)
        if key is not None and sequence is not None:
            pending.key, pending.sequence = key, sequence
        return pending

    def _check_open(self) -> None:
        if threading.get_ident() != self._home:
            raise RuntimeError("An AsyncWriter belongs to the event loop that opened it; reach it by anyio.from_thread")
        if self._is_closing:
            raise BlobClosed("I/O operation on closed blob.")

    def _has_room(self, pending: Pending) -> bool:
        return not self._pending_nbytes or self._pending_nbytes + pending.nbytes <= self._max_pending_nbytes

    def _admit(self, pending: Pending) -> None:
        self._pending_nbytes += pending.nbytes
        with self._gathering:
            pending.done = self._done
            self._waiting.append(pending)

    async def _enter(self, pending: Pending) -> None:
        """Wait for room, behind those who came before."""
        if not self._outside and self._has_room(pending):
            self._admit(pending)
            return
        pending.admitted = anyio.Event()
        self._outside.append(pending)
        try:
            await pending.admitted.wait()
        except BaseException:
            if pending in self._outside:
                self._outside.remove(pending)
            elif not self._withdraw(pending):
                await self._settled(pending)
            raise

    def _withdraw(self, pending: Pending) -> bool:
        """Take an accepted append back, unless it is being committed already."""
        with self._gathering:
            if pending not in self._waiting:
                return False
            self._waiting.remove(pending)
        self._leave_room(pending.nbytes)
        return True

    def _leave_room(self, nbytes: int) -> None:
        self._pending_nbytes -= nbytes
        while self._outside and self._has_room(self._outside[0]):
            pending = self._outside.popleft()
            self._admit(pending)
            self._bell.set()
            assert pending.admitted is not None
            pending.admitted.set()

    async def _finish(self, pending: Pending) -> None:
        """Wait until an accepted append is committed, or was not; raises what its commit raised."""
        try:
            if not (self._is_led or self._is_committing or self._bell.is_set()):
                await self._lead()
            await self._done_with(pending)
        except BaseException:
            if not self._withdraw(pending):
                await self._settled(pending)
            raise
        if pending.error is not None:
            raise pending.error

    async def _lead(self) -> None:
        """Commit for all who wait, once all that are ready had the chance to join; or let the committer do so.

        What is awaited comes before the commit: no cancellation can interrupt that.
        """
        self._is_led = True
        try:
            if self.limit is None:  # whose word the committer spreads
                await anyio.lowlevel.checkpoint()
                if self._waiting and not self._is_committing and self._is_quick(self._waiting):
                    with self._telling():
                        self._commit_inline()
        finally:
            self._is_led = False
            if self._waiting:
                self._bell.set()

    async def _settled(self, pending: Pending) -> None:
        """Cancelled while its group is being committed: its rows are read until that is over."""
        with anyio.CancelScope(shield=True):
            while pending.stop < 0 and pending.error is None:
                with contextlib.suppress(anyio.get_cancelled_exc_class()):  # asyncio's own goes through the shield
                    await self._done_with(pending)

    @staticmethod
    async def _done_with(pending: Pending) -> None:
        while pending.stop < 0 and pending.error is None:
            assert pending.done is not None
            await pending.done.wait()

    # -- the committer ------------------------------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        """Commit groups until the writer closes and nothing is left."""
        with anyio.CancelScope(shield=True):
            while self._waiting or not self._is_closing:
                try:
                    if self._waiting:
                        await self._commit_group()
                    else:
                        assert not self._outside, "there is room when nothing waits"
                        await self._wait_for_bell()
                except anyio.get_cancelled_exc_class():  # by asyncio itself: its loop comes to an end
                    self._is_closing = True

    async def _wait_for_bell(self) -> None:
        """Until something waits to be committed, or the writer closes. Others are told meanwhile what they could not be."""
        while not self._bell.is_set() and self.limit is not None and self.limit.has_unsaid:
            self.limit.say()
            with anyio.move_on_after(SAY_S):
                await self._bell.wait()
        await self._bell.wait()
        self._bell = anyio.Event()

    async def _commit_group(self) -> None:
        """Take those who wait, and commit them: here if that is quick, else in a thread.

        Where writers share the blob, they are taken once it is our turn: until then they can be withdrawn.
        """
        self._is_committing = True
        try:
            with self._telling():
                if self._is_quick(self._waiting) and self._commit_inline():
                    await anyio.lowlevel.checkpoint()
                elif self._writer.turns is None:
                    group = self._take()
                    await finished(lambda: self._committer.commit(group), limiter=self._threads)
                else:
                    await finished(self._commit_in_turn, limiter=self._threads)
        finally:
            self._is_committing = False

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell each of the group that is taken meanwhile what became of it."""
        self._group, self._next_done = [], anyio.Event()
        try:
            yield
        except Exception as error:  # no thread to be had, or no turn: nothing of it was committed
            fail(self._group or self._take(), error)
        finally:
            group = self._group
            fail(
                group, OutcomeUnknown(errno.EINTR, "The writer was interrupted while it committed this")
            )  # if nothing else
            now_s = anyio.current_time()
            for pending in group:
                if pending.is_new:
                    self._latencies_s.append(now_s - pending.began_s)
                if pending.is_nobodys:
                    self._lost = self._lost or pending.error
            self._uncount(group)
            self._leave_room(sum([pending.nbytes for pending in group]))
            if group and group[0].done is not None:
                group[0].done.set()

    def _take(self) -> list[Pending]:
        """Take the group that has gathered; the next one begins."""
        with self._gathering:
            waiting = self._waiting
            last = next((place for place, pending in enumerate(waiting, 1) if pending.finishes), len(waiting))
            self._group, self._waiting = waiting[:last], waiting[last:]
            self._done = self._next_done
            for pending in self._waiting:  # what came after the end of a stream is another commit
                pending.done = self._done
            return self._group

    def _is_quick(self, group: list[Pending]) -> bool:
        """True if committing the group costs less than the hop to a thread, and cannot get into another task's transaction."""
        if self._writer._uncommitted is not None:
            return False  # whose lock may be this thread's: only another one waits for its end
        if self._writer.is_power or self._writer.is_due or sum([pending.nbytes for pending in group]) > INLINE_NBYTES:
            return False
        return not any(pending.flushes or pending.finishes for pending in group)

    def _commit_inline(self) -> bool:
        """Commit the group here, unless that would mean to wait for a peer's turn; return whether it was done."""
        if self._writer.turns is None:
            self._committer.commit(self._take())
            return True
        if not self._writer.try_turn():
            return False
        try:
            if self._writer.is_due:
                return False
            self._committer.commit(self._take())
            return True
        finally:
            self._writer.end_turn()

    def _commit_in_turn(self) -> None:
        """In a thread: wait for our turn, and commit those who still wait then."""
        with self._writer.turn():
            group = self._take()
            self._committer.change(group)
        self._committer.flush(group)  # not in the turn: the others need not wait for that

    # -- what else a writer does --------------------------------------------------------------------------------------

    async def _order(self, pending: Pending, what: str) -> None:
        self._check_open()
        self._writer.check_outside(what)
        self._admit(pending)
        self._bell.set()
        try:
            await self._finish(pending)
        except Exception:
            self._lost = None  # this tells of it
            raise
        self._raise_lost()

    async def flush(self) -> None:
        """Make everything accepted so far durable. Raises `SyncFailed`. Cancelled, it may have happened or not."""
        await self._order(Pending([], 0, 0, flushes=True), "flush")

    async def finish(self) -> None:
        """Say that the stream ends here, after everything accepted so far: followers end. A later append takes it back."""
        await self._order(Pending([], 0, 0, finishes=True), "finish")

    def _raise_lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost

    def snapshot(self) -> Snapshot:
        """What is committed."""
        return self._writer.snapshot

    @property
    def rows(self) -> int:
        """The row id after the newest committed row."""
        return self._writer.stop_row

    def statistics(self) -> Statistics:
        """What happened so far."""
        latencies, done = sorted(self._latencies_s), self._committer
        return Statistics(
            rows=self._writer.stop_row,
            appends=done.appends,
            commits=done.commits,
            mean_appends_per_commit=done.appends / done.commits if done.commits else math.nan,
            max_appends_per_commit=done.most_appends,
            waiting_producers=len(self._outside) + self._gate.waiting,
            pending_nbytes=self._pending_nbytes,
            median_latency_s=statistics.median(latencies) if latencies else math.nan,
            p99_latency_s=latencies[math.ceil(0.99 * len(latencies)) - 1] if latencies else math.nan,
            dead_consumers=self._gate.dead,
        )

    async def _close(self) -> None:
        self._is_closing = True
        self._gate.close()
        if self.limit is not None:
            self.limit.close()
        try:
            await to_the_end(self.blob.close, limiter=self._threads)
        finally:
            self._retainer.close()
        self._raise_lost()


@dataclass(eq=False)
class Transaction:
    """Appends that become one commit when the `async with` block is left without an exception."""

    _writer: AsyncWriter
    _metadata: dict[str, Any] | None
    _parts: list[Pending] = field(default_factory=list)
    rows: range | None = None
    """The row ids that were committed, after the block."""
    _is_open: bool = False

    def append(self, rows: Any) -> None:
        """Take a copy of rows into the transaction. Raises as `AsyncWriter.append` where they do not fit."""
        if not self._is_open:
            raise RuntimeError("A transaction takes rows inside its `async with` block only")
        pending = self._writer._accept(rows, None, None, None)
        pending.copy()
        self._parts.append(pending)

    async def __aenter__(self) -> Transaction:
        self._writer._check_open()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        parts, self._parts, self._is_open = self._parts, [], False
        if error is not None or not parts:
            return
        columns = [
            [part for pending in parts for part in pending.columns[number]] for number in range(len(parts[0].columns))
        ]
        count, nbytes = sum(p.count for p in parts), sum(p.nbytes for p in parts)
        whole = Pending(list(columns), count, nbytes, self._metadata, began_s=anyio.current_time())
        self.rows = await self._writer._place(whole)
