"""The writer: what changes a blob. One process at a time is it: for life, or for a turn at a time (`turns`).

Every change goes the same way: check → place rows in block files → append one edit to the manifest (the commit point)
→ apply it to the snapshot → tell who asked. Before the commit point nothing is visible and all can be taken back;
after it nothing fails the caller, except that at `durability="power"` a sync that fails then is `OutcomeUnknown`.

Durability: at "power" blocks and their directories are synced before the edit is appended, and the manifest after it,
before the caller hears; a durable mark follows. Rows that only grow the tails of a sole writer are synced at the same
time as their edit: nobody builds upon either before both are durable, and what a power loss leaves of them is held
against their checksum, as always behind the last mark. At "process" only `flush`, `close` and the background flush (on
sealing, and every `flush_every_s`) sync. A file whose sync failed is never synced again: the next commit first moves
its rows to a new file and begins a new generation. Starting a generation is a flush; it happens before a commit,
never after one.

Locks: `_lock` guards the state, `_sync_lock` (taken first, or not waited for) the syncing of what was taken over from
it, so that rows can be appended while earlier ones are made durable; at "power" a flush keeps commits out until then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
from filelock import FileLock

from tensorblob import files, forks
from tensorblob.blocks import Blocks
from tensorblob.edit import Block, Cut, Durable, Grow, Metadata, Note, Op, Patch, Retention, Tail, Trim
from tensorblob.errors import BlobClosed, Corrupt, DiskFull, ForkedHandle, OutcomeUnknown, SyncFailed
from tensorblob.flusher import Flusher
from tensorblob.format import (
    Store,
    block_path,
    check_edit,
    copy_json,
    manifest_name,
)
from tensorblob.garbage import Garbage
from tensorblob.growth import Growth, Rows
from tensorblob.manifest import MAX_EDITS, Manifest, Pin, generations, session
from tensorblob.presence import Announcement, present
from tensorblob.replay import Replay
from tensorblob.snapshot import Column, Snapshot, checkpoint
from tensorblob.sweep import sweep
from tensorblob.turns import Trouble, Turns, trouble_in

RECLAIM_NBYTES = 64 << 20
SPANS_PER_EDIT = 4096
"""Of so many spans, a splice costs who folds it as much again as the rest of its edit."""
LOST_HISTORIES = 1 << 20
"""More histories than one generation begins: by so many numbers recovery steps."""
LONG_EDITS = 1000
BACKGROUND_NBYTES = 32 << 20

Tails: TypeAlias = tuple[tuple[int, int], ...]
"""How far the tails of all columns have grown: (rows, crc32c) of each."""

Place = Callable[[Snapshot, Sequence[Growth]], list[Op]]
"""Places rows at the end of a snapshot's blocks, and returns the operations that commit them."""


class _Superseded(SyncFailed):
    """The files that a change was placed in may not be used any more; nothing of it was committed."""


class _Syncing(OSError):
    """A generation cannot begin in this turn: a flush has to end first."""


class Writer:
    """The open writing end of a blob. Any number of threads may use it, one change at a time.

    shared: be one of several writers, which take turns (see `turns`); all have one durability. is_read: someone reads what
    is `pending`, so that its blocks have to stay.
    path, dir_fd, store: an existing blob; `dir_fd` is the writer's from now on. durability: "process" (survives kill -9) or
    "power" (every commit is synced before it is acknowledged). flush_every_s: at "process", make commits durable this
    often. timeout_s: how long to wait for another writer. Raises `WriterBusy`, `ReadOnlyStore`, `Corrupt` or
    `UnsupportedFormat`, with every committed row as it was.
    """

    def __init__(
        self,
        path: str,
        dir_fd: int,
        store: Store,
        *,
        durability: str = "process",
        flush_every_s: float | None = None,
        timeout_s: float = 0.0,
        shared: bool = False,
        is_read: bool = False,
    ) -> None:
        self.path, self.dir_fd, self.store = path, dir_fd, store
        self._is_read = is_read
        self._pins: list[Pin] = []
        """Of the generation that is read by this writer, and of one that it is about to leave."""
        self.is_closing = False
        """From now on nobody may read by this writer."""
        self.on_step: Callable[[Snapshot], None] | None = None
        """Called with `pending` when who reads by this writer has to go on from there: another generation has begun, and
        garbage is about to go; or rows are taken back, and others may take their place.
        """
        self.keep_from: Callable[[int], int] | None = None
        """Given the first row that retention would keep, the one to keep: its user may know who still needs some."""
        self._durability = durability
        self.is_power = durability == "power"
        """Every commit is durable when it is acknowledged."""
        self._row_nbytes = store.schema.row_nbytes
        self._state_lock = forks.rlock()
        self.turns: Turns | None = None
        """How this writer and its peers in other processes take turns; None for a sole writer."""
        self._lock: Any = self._state_lock
        self._threads_lock: Any = self._state_lock
        """Keeps this process's threads out of a change, without a turn."""
        self._sync_lock = forks.rlock()
        self._forks = forks.count
        self._manifest: Manifest | None = None
        self._announced: Announcement | None = None
        self._uncommitted: Snapshot | None = None
        """Inside a transaction: what it would commit. None outside."""
        self._ops: list[Op] = []
        self._owner = 0
        self._grown: Tails | None = None
        """The tails of the last `_ungrown` commits, which only grew them: not yet applied to `_snapshot`."""
        self._ungrown = 0
        self._marked_rows = -1
        """The durable rows of the last mark among those commits, or -1."""
        self.own_commits = 0
        """Steps with every change of this writer that is committed, also where the change raises after that."""
        self._is_untold = False
        """Peers have yet to hear that a sync failed."""
        self._known_offset = -1
        """The end of the manifest as far as this object has taken note of it (see `_catch_up`)."""
        self._sealed_nbytes = 0
        """Bytes in blocks that were sealed since the flusher was woken."""
        self._is_due = False
        """Something has to be done before the next change: see `_prepare`."""
        self._flusher: Flusher | None = None
        self._writer_lock: FileLock | None = None
        try:
            check_durability(durability, flush_every_s)
            if shared:
                self._lock = self.turns = Turns(path, dir_fd, timeout_s, self._join)
                self._threads_lock = self.turns.threads
            else:
                self._writer_lock = files.lock_writer(os.path.join(path, "writer.lock"), timeout_s)
            with self._lock:
                self._enter()
        except BaseException:
            self._leave()
            raise
        if not self.is_power:
            self._flusher = Flusher(self._flush_in_background, flush_every_s)

    # -- opening and closing ------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Become the writer: announce a producer, recover what is there, and clean up after dead ones."""
        held, now = os.fstat(self.dir_fd), os.stat(self.path)
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise FileNotFoundError(f"Blob not found: {self.path!r} was replaced while it was opened")
        for peer in present(self.dir_fd) if self.turns is not None else ():
            if peer.durability != self._durability:
                raise ValueError(
                    f"Writers that share a blob have one durability: process {peer.pid} on {peer.host} has "
                    f"{peer.durability!r}, asked for {self._durability!r}"
                )
        self._manifest, found = Manifest.open(self.dir_fd, self.store, is_read=self._is_read)
        self._note_pin(self._manifest)
        self._announced = Announcement(self.dir_fd, self._durability)
        self.producer = self._announced.producer
        self._snapshot, self._known_offset = found.snapshot, self._manifest.offset
        self._blocks = Blocks(self.dir_fd, self.store, self.producer, self._manifest.generation, found.snapshot)
        self._garbage = Garbage(self.store.schema, found.snapshot)
        fields = self.store.schema.fields
        self._growths = [
            Growth(number, len(fields), field, self.dir_fd, self._blocks.create) for number, field in enumerate(fields)
        ]
        self._growth = self._growths[0] if len(fields) == 1 else None
        """That of the only column, if there is but one."""
        self._flushed_offset = self._manifest.offset if found.is_flushed else -1
        if not found.is_flushed:
            self._blocks.distrust(found.snapshot)
        is_alone = os.fstat(self._manifest.fd).st_nlink == 1
        had_trouble = self._heed(trouble_in(self.dir_fd))
        if found.is_same_boot and not found.is_torn and is_alone and not had_trouble:
            self._go_on(found)
        else:
            self._recover(found)
        self._garbage.begin(self._snapshot)
        self._settled()
        sweep(self.path, self.dir_fd, self.store, self._blocks, self.producer)

    def _join(self) -> None:
        """At the beginning of a turn: take note of what peers have committed since the last one."""
        manifest = self._manifest
        if manifest is None:
            return
        if manifest.is_superseded():
            self._follow_generation()
        elif manifest.has_grown():
            before = self.snapshot
            is_whole, after = manifest.read_on(before)
            self._blocks.learn(before, after, is_durable=self.is_power)
            self._take(before, after)
            self._settled()  # where they stopped, we go on
            manifest.is_broken |= not is_whole  # a peer died in the middle of a record
        assert self.turns is not None
        if self._is_untold:
            self._tell_trouble()
        self._heed(self.turns.trouble())
        self._notice_due()

    def _follow_generation(self) -> None:
        """A peer has begun a generation: go on in it."""
        manifest, found = Manifest.open(self.dir_fd, self.store, is_read=self._is_read)
        old, before = self._current, self.snapshot
        self._blocks.learn(before, found.snapshot, is_durable=True)  # beginning a generation is a flush
        self._blocks.follow_generation(manifest.generation, found.snapshot)
        self._note_pin(manifest)
        self._manifest, self._snapshot, self._known_offset = manifest, found.snapshot, manifest.offset
        old.close()
        manifest.is_broken = found.is_torn
        self._flushed_offset = manifest.offset if found.is_flushed else -1
        if not found.is_flushed:  # the flush was of what the generation began with, not of what followed
            self._blocks.distrust(found.snapshot)
        self._garbage.begin(self._snapshot)
        self._settled()
        self._leave_generations()

    def _note_pin(self, manifest: Manifest) -> None:
        if manifest.pin is not None:
            self._pins.append(manifest.pin)

    def _let_go(self) -> None:
        """Nobody reads by this writer any more: it keeps no generation, and pins no other."""
        self.is_closing, self._is_read = True, False
        for pin in self._pins:
            pin.close()

    def _leave_generations(self) -> None:
        """Let who reads by this writer step to the current generation, and let the others go."""
        self._step_readers()
        for pin in [pin for pin in self._pins if pin is not self._current.pin]:
            pin.close()
            self._pins.remove(pin)

    def _step_readers(self) -> None:
        if self.on_step is not None:
            with contextlib.suppress(OSError, MemoryError):
                self.on_step(self.pending)

    def _report_trouble(self) -> None:
        """Let peers, and whoever writes next, know that a sync failed: the kernel would not tell them. If no turn is to be
        had now, they hear of it in the next one.
        """
        self._is_untold = True
        with contextlib.suppress(OSError), self._lock:
            if self._is_untold:
                self._tell_trouble()

    def _tell_trouble(self) -> None:
        with contextlib.suppress(OSError):
            fd = files.open_for_append("commit.lock", dir_fd=self.dir_fd)
            try:
                files.say(fd, Trouble(self._current.generation, tuple(sorted(self._blocks.poisoned))))
            finally:
                os.close(fd)
            self._is_untold = False

    def _heed(self, trouble: Trouble | None) -> bool:
        """A writer had a sync fail: trust neither its generation nor those blocks. Return whether it is this generation."""
        if trouble is None or trouble.generation != self._current.generation:
            return False
        self._blocks.poisoned |= {id for id in trouble.poisoned if self._blocks.is_known(id)}
        self._current.is_broken = True
        return True

    def announce(self, consumers: tuple[str, ...], max_lag_rows: int, retain_for: tuple[str, ...]) -> None:
        """Let others know that this writer waits while one of `consumers` is so many rows behind, and for whom it wants
        rows kept.
        """
        assert self._announced is not None
        self._announced.say(consumers, max_lag_rows, retain_for)

    def _go_on(self, found: Replay) -> None:
        """Go on in blocks that may grow further: same boot, and nothing was cut.

        In this generation, too, if all of it is durable. Else begin one, which is a flush: after a power loss everything
        that the log names since its last mark is checked, also blocks that are garbage by then and that nobody syncs.
        """
        for number, column in enumerate(self._snapshot.columns):
            for block in (column.tail, column.patch):
                if block is not None and block.rows < block.capacity_rows:
                    self._blocks.go_on_in(number, block)
        if found.is_flushed:
            manifest = self._current
            manifest.append((session(manifest.fd, self.producer),))
            self._known_offset = manifest.offset
        else:
            self._rotate()

    def _recover(self, found: Replay) -> None:
        """Begin a new generation at what replay proved; a new history too, if committed rows may have been lost.

        After another boot they may have been even where all that is left is durable: later edits can be lost without a trace.
        """
        if not found.is_same_boot:
            self._snapshot = self._snapshot.apply((Cut(self._snapshot.rows, self._snapshot.history + LOST_HISTORIES),))
        self._current.is_broken = True  # what follows the last good record stays as it is
        self._rotate()

    @property
    def closed(self) -> bool:
        return self._manifest is None

    def close(self) -> None:
        """Make everything durable and let the next writer in. Raises `SyncFailed` if it could not, and `WriterBusy` if
        a peer that was stopped has its turn; it is closed all the same.

        In a forked child this only forgets the parent's writer.
        """
        if self._manifest is None:
            return
        if self._forks != forks.count:
            self._manifest, self._is_due = None, True
            return
        self.check_outside("close")
        if self._flusher is not None:
            self._flusher.stop()
        self._let_go()
        try:
            with self._lock:  # or no turn is to be had: then the rest is not even tried
                if self._current.edits >= LONG_EDITS:
                    self._garbage.nbytes += 1  # a short log is quick to open
            self.reclaim(at_least_nbytes=1)
            self.flush()
            with self._lock:
                self._blocks.unlink_dead()
        finally:
            with self._sync_lock, self._threads_lock:  # other threads may be writing, up to here
                self._leave()

    def _leave(self) -> None:
        self._is_due = True
        if hasattr(self, "_blocks"):
            self._blocks.leave()
        with contextlib.ExitStack() as steps:  # from the last to the first, each whatever the ones before raise
            if self.dir_fd >= 0:
                steps.callback(os.close, self.dir_fd)
            if self._writer_lock is not None:
                steps.callback(files.unlock_writer, self._writer_lock)
            if self.turns is not None:
                steps.callback(self.turns.close)
            if self._announced is not None:
                has_garbage = hasattr(self, "_blocks") and self._blocks.has_dead
                steps.callback(self._announced.close, has_garbage=has_garbage)
            if self._manifest is not None:
                steps.callback(self._manifest.close)
            steps.callback(self._let_go)
            if hasattr(self, "_blocks"):
                steps.callback(self._blocks.close, is_shared=self.turns is not None)
            self._manifest = self._writer_lock = None
        self.dir_fd = -1

    def __del__(self, warn: Any = warnings.warn) -> None:
        if getattr(self, "_manifest", None) is not None and self._forks == forks.count:
            warn(
                f"unclosed writer of {self.path!r}: committed rows are there, but not flushed",
                ResourceWarning,
                source=self,
            )
            if self._flusher is not None:
                self._flusher.stop(wait=False)
            with contextlib.suppress(Exception):
                self._leave()

    @property
    def _current(self) -> Manifest:
        manifest = self._manifest
        if manifest is None:
            raise BlobClosed("I/O operation on closed blob.")
        if self._forks != forks.count:
            raise ForkedHandle("A forked child cannot use its parent's writer; open the blob again in the child")
        return manifest

    def check_outside(self, what: str) -> None:
        if self._uncommitted is not None and self._owner == threading.get_ident():
            raise RuntimeError(f"Cannot {what} inside a transaction; leave it first")

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What is committed."""
        if self._ungrown:
            with self._state_lock:
                if self._grown is not None:
                    grown = self._snapshot.grown(self._grown, self._ungrown)
                    if self._marked_rows > grown.durable_rows:
                        grown = msgspec.structs.replace(grown, durable_rows=self._marked_rows)
                    self._snapshot, self._grown, self._ungrown, self._marked_rows = grown, None, 0, -1
        return self._snapshot

    @property
    def is_due(self) -> bool:
        """The next change will take longer: it begins with a new generation."""
        return self._is_due

    @property
    def pending(self) -> Snapshot:
        """What this writer wrote, an open transaction included."""
        return self.snapshot if self._uncommitted is None else self._uncommitted

    def _settled(self) -> None:
        """The pending snapshot was replaced: go on at its end, and note what is read on every append."""
        pending = self.pending
        for growth, column in zip(self._growths, pending.columns, strict=True):
            growth.reset(column, self._blocks.open)
        self.stop_row = pending.rows
        """The row id after the newest row of `pending`."""
        retention = self._snapshot.retention
        self._is_retained = retention.max_rows is not None or retention.max_bytes is not None
        self._is_plain = self._uncommitted is None and not self._is_retained
        self._notice_due()

    def _notice_due(self) -> None:
        manifest = self._manifest
        self._is_due = self._uncommitted is None and (
            manifest is None
            or manifest.edits >= MAX_EDITS
            or manifest.is_broken
            or bool(self._blocks.poisoned)
            or self._garbage.nbytes >= RECLAIM_NBYTES
        )

    def _prepare(self) -> None:
        """Before a change: this must be an open writer of this process, on a generation that may grow."""
        _ = self._current
        with self._lock:
            if self._uncommitted is None:
                self._restore()  # after an interrupt something may be left; else this changes nothing
            self._notice_due()
        if self._is_due:
            try:
                self._rotate()
            except _Syncing:
                if self._current.is_broken or self._blocks.poisoned:
                    raise
                self._is_due = False  # it can wait

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Hold `_lock`, with nothing left to be done before a change."""
        while True:
            self._prepare()
            with self._lock:
                if not self._is_due:
                    yield
                    return

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A turn that may hold several changes: nothing of a peer comes in between.

        If a generation has to begin first, it is flushed before the turn, for all others wait meanwhile.
        """
        with self._lock:
            is_due = self._is_due
            if not is_due:
                yield
        if is_due:
            with contextlib.suppress(OSError):
                self.flush()
            with self._sync_lock, self._lock:
                yield

    def try_turn(self) -> bool:
        """Begin a turn if that can be had now; `end_turn` ends it."""
        assert self.turns is not None
        return self.turns.try_enter()

    def end_turn(self) -> None:
        assert self.turns is not None
        self.turns.__exit__(None, None, None)

    def refresh(self) -> bool:
        """Take note of what peers have committed; return whether there was something. A sole writer has none."""
        before = self.snapshot
        if self.turns is not None:
            with self._lock:
                pass
        return self.snapshot is not before

    # -- changes ------------------------------------------------------------------------------------------------------

    def append(
        self,
        columns: Sequence[Rows],
        count: int,
        metadata: dict[str, Any] | None = None,
        more: Callable[[Snapshot], list[Op]] | None = None,
    ) -> int:
        """Append `count` rows, given as `batch` makes them, and return the row id of the first.

        `more(snapshot)` are operations to commit with them, given what is there before.
        """
        while True:
            if self._is_due or self._forks != forks.count:
                self._prepare()
            try:
                with self._lock:
                    if not self._is_due:
                        try:
                            return self._append(columns, count, metadata, more)
                        except _Superseded:
                            self._is_due = True
            except DiskFull:
                if not self._has_freed():
                    raise

    def _append(
        self,
        columns: Sequence[Rows],
        count: int,
        metadata: dict[str, Any] | None,
        more: Callable[[Snapshot], list[Op]] | None,
    ) -> int:
        try:
            if self._growth is not None:
                tails: Tails | None = None if (tail := self._growth.grow(columns[0], count)) is None else (tail,)
            else:
                tails = self._grow(columns, count)
            if tails is not None:
                # the common case: nothing but the tails changes
                if self._is_plain and metadata is None and more is None:
                    manifest = self._manifest
                    assert manifest is not None
                    is_at_once = self.is_power and self.turns is None and self._blocks.has_only_grown
                    if self.is_power or manifest.is_broken:
                        self._make_appendable(manifest, is_synced_later=is_at_once)
                    manifest.append((Grow(tails),))  # the commit point
                    if self.turns is None:
                        self._grown = tails
                        self._ungrown += 1
                        self.stop_row += count
                        self._known_offset = manifest.offset  # no call since the first: no interrupt comes between
                    else:  # who reads the snapshot has not the turn, so it is always whole
                        grown = self._snapshot.grown(tails)
                        self._snapshot, self._known_offset, self.stop_row = grown, manifest.offset, grown.rows
                    if self.is_power:
                        self._acknowledge_grown(manifest, is_at_once=is_at_once)
                    if manifest.edits >= MAX_EDITS or manifest.is_broken:
                        self._is_due = True
                    return self.stop_row - count
                ops: list[Op] = [Grow(tails)]
            else:
                self._restore()
                ops = self._append_ops(columns)
            start = self.stop_row
            if more is not None:
                ops += more(self.pending)
            self._take_in(ops, metadata)
            return start
        except BaseException:
            self._is_due = True  # if another interrupt comes now, the next change has to restore
            self._restore()
            raise

    def _grow(self, columns: Sequence[Rows], count: int) -> Tails | None:
        """Place rows in the tails, if they fit into all of them."""
        tails = []
        for growth, rows in zip(self._growths, columns, strict=True):
            if (tail := growth.grow(rows, count)) is None:
                return None
            tails.append(tail)
        return tuple(tails)

    def _make_appendable(self, manifest: Manifest, *, is_synced_later: bool = False) -> None:
        """Before the commit point: what the edit names is durable if it must be, and the manifest may be appended to."""
        if manifest.is_broken or (self.is_power and self._blocks.poisoned):
            raise _Superseded(
                errno.EIO, "A sync failed while this change was under way; nothing was committed, try again"
            )
        if self.is_power and not is_synced_later:
            try:
                self._blocks.sync_all()
            except SyncFailed:
                self._report_trouble()
                raise

    def _append_ops(self, columns: Sequence[Rows]) -> list[Op]:
        """Place rows at the end, in new blocks where they are needed; return the operations."""
        ops: list[Op] = []
        for growth, rows, column in zip(self._growths, columns, self.pending.columns, strict=True):
            ops += growth.append(rows, column)
        return ops

    def change(self, place: Place, metadata: dict[str, Any] | None = None) -> None:
        """Make any other change: commit the operations that `place(snapshot, growths)` returns, as one edit."""
        while True:
            try:
                with self._ready():
                    try:
                        if ops := place(self.pending, self._growths):
                            self._take_in(ops, metadata)
                        return
                    except _Superseded:
                        self._restore()
                        self._is_due = True
                    except BaseException:
                        self._is_due = True
                        self._restore()
                        raise
            except DiskFull:
                if not self._has_freed():
                    raise

    def _has_freed(self) -> bool:
        """On a full disk: free what garbage takes up, and return whether that was anything, so that it helps to try
        again.
        """
        if self._uncommitted is not None:
            return False
        before = self._blocks.unlinked
        self.reclaim(at_least_nbytes=1)
        with self._lock:
            self._blocks.unlink_dead()  # what a reader had pinned the last time
        return self._blocks.unlinked > before

    def settings(self, *, retention: Retention | None, metadata: dict[str, Any] | None) -> None:
        """Commit new settings of the blob, where they differ from what it has."""
        ops: list[Op] = []
        if retention is not None and retention != self.pending.retention:
            ops.append(retention)
        if metadata is not None and metadata != self.pending.metadata:
            ops.append(Metadata(metadata))
        self.change(lambda *_: ops)

    def _take_in(self, ops: list[Op], metadata: dict[str, Any] | None = None) -> None:
        """Take `ops` into the transaction, or commit them where there is none."""
        before = self.pending
        after = before.apply(tuple(ops))
        if metadata is not None:
            ops.append(Note(min(before.rows, after.rows), after.rows, metadata))
            after = before.apply(tuple(ops))
        if self._uncommitted is None:
            self._commit(ops, after)
            return
        last = self._ops[-1] if self._ops else None
        if len(ops) == 1 and isinstance(ops[0], Grow) and isinstance(last, Grow):
            pairs = zip(last.tails, ops[0].tails, strict=True)
            self._ops[-1] = Grow(tuple(old if new is None else new for old, new in pairs))
        else:
            self._ops += ops
        self._uncommitted = after
        self._settled()

    @contextlib.contextmanager
    def transaction(self, metadata: dict[str, Any] | None = None) -> Iterator[None]:
        """Commit all changes of the body as one edit; an exception in it takes them all back. They do not nest.

        A change that fails inside it is taken back alone, if the body goes on.
        """
        metadata = check_metadata(metadata)
        with self._ready():
            if self._uncommitted is not None:
                raise RuntimeError("Transactions do not nest: one is open already")
            snapshot, owner = self.snapshot, threading.get_ident()
            try:
                self._uncommitted, self._owner = snapshot, owner
                self._settled()
                yield
                ops, after, self._ops = self._ops, self.pending, []
                before, self._uncommitted = self._snapshot, None
                if ops and metadata is not None:
                    ops.append(Note(min(before.rows, after.rows), after.rows, metadata))
                if ops:
                    self._commit(ops, before.apply(tuple(ops)))
                self._settled()
            except BaseException:
                self._is_due, self._uncommitted, self._ops = True, None, []
                self._step_readers()
                self._restore()
                raise

    def _restore(self) -> None:
        """Forget what was placed since the pending snapshot, and remove the blocks that were created for it."""
        self._catch_up()
        named = {op.id for op in self._ops if isinstance(op, (Block, Tail, Patch))}
        self._blocks.discard_created(named)
        self._settled()

    # -- the commit -----------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Take note of what is in the manifest: an interrupt (Ctrl-C) may have come right after the commit point."""
        manifest = self._manifest
        if manifest is not None and manifest.offset != self._known_offset:
            before = self.snapshot
            self.own_commits += 1
            self._take(before, manifest.folded(before, self._known_offset))

    def _take(self, before: Snapshot, after: Snapshot) -> None:
        """`after` is committed: go on from there."""
        manifest = self._current
        self._is_due = True  # until all is noted: `_settled` looks again
        self._blocks.keep_created()
        self._snapshot, self._known_offset = after, manifest.offset
        if _is_only_grown(before, after):
            self.stop_row = after.rows
            self._notice_due()
        else:
            manifest.edits += sum([len(column.spans) for column in after.columns]) // SPANS_PER_EDIT
            self._note_dead(before, after)
            self._settled()

    def _commit(self, ops: list[Op], after: Snapshot) -> None:
        """Append one edit, after which `after` is the snapshot."""
        before, manifest = self.snapshot, self._current
        if self._is_retained or any(isinstance(op, Retention) for op in ops):
            most_rows = after.retention.most_rows(self._row_nbytes)
            first_row = after.first_row if most_rows is None else max(after.rows - most_rows, after.first_row)
            if self.keep_from is not None and first_row > after.first_row:
                first_row = self.keep_from(first_row)
            if first_row > after.first_row:
                ops, after = [*ops, Trim(first_row)], after.trimmed(first_row)
        assert len({column.stop for column in after.columns}) == 1, "all columns or none"
        check_edit(tuple(ops))
        self._make_appendable(manifest)
        manifest.append(tuple(ops))  # the commit point
        self._take(before, after)
        self.own_commits += 1
        if self.is_power:
            self._acknowledge()

    def _note_dead(self, before: Snapshot, after: Snapshot) -> None:
        """Count garbage, and have sealed blocks synced in the background."""
        self._sealed_nbytes += self._garbage.follow(before, after)
        if self._sealed_nbytes >= BACKGROUND_NBYTES and self._flusher is not None:
            self._sealed_nbytes = 0
            self._flusher.wake()

    def _acknowledge(self) -> None:
        """At "power", after the commit point: make the edit durable and say so."""
        manifest = self._current
        self._sync_manifest(manifest)
        self._mark(manifest, manifest.offset, self.snapshot)

    def _acknowledge_grown(self, manifest: Manifest, *, is_at_once: bool) -> None:
        """As `_acknowledge`, of a commit that only grew the tails, and with what that leaves to do.

        is_at_once: the rows are synced only now, with the edit that names them.
        """
        if is_at_once:
            self._sync_grown(manifest)
        else:
            self._sync_manifest(manifest)
        if self._blocks.may_close:
            self._close_sealed()
        with contextlib.suppress(OSError):
            manifest.append((Durable(manifest.offset, self.stop_row),))
            if self.turns is None:
                self._marked_rows, self._known_offset = self.stop_row, manifest.offset
            else:
                marked = msgspec.structs.replace(self._snapshot, durable_rows=self.stop_row)
                self._snapshot, self._known_offset = marked, manifest.offset
            self._flushed_offset = manifest.offset

    def _sync_manifest(self, manifest: Manifest) -> None:
        with self._or_unknown(manifest):
            manifest.sync()

    def _sync_grown(self, manifest: Manifest) -> None:
        try:
            with self._or_unknown(manifest):
                self._blocks.sync_grown(manifest.fd, manifest_name(manifest.generation))
        except BaseException as error:
            if not isinstance(error, OutcomeUnknown):  # interrupted: what became of the syncs nobody has heard
                manifest.is_broken = self._is_due = True
                self._report_trouble()
            raise

    @contextlib.contextmanager
    def _or_unknown(self, manifest: Manifest) -> Iterator[None]:
        """After the commit point: a sync that fails in the body leaves the outcome unknown."""
        try:
            yield
        except SyncFailed as error:
            manifest.is_broken = self._is_due = True
            self._report_trouble()
            raise OutcomeUnknown(
                error.errno,
                f"The commit up to row {self.stop_row} is visible, but may not be durable: {error.strerror}",
            ) from error

    def _mark(self, manifest: Manifest, offset: int, synced: Snapshot) -> None:
        """Append a durable mark: `synced` was the snapshot at `offset`. It only says what is so: its failure fails nobody."""
        self._close_sealed()
        if manifest is not self._manifest or manifest.is_broken:
            return
        with contextlib.suppress(OSError):
            snapshot, before = self.snapshot, manifest.offset
            cut = snapshot.cut_after(synced.history)
            durable_rows = synced.rows if cut is None else min(synced.rows, cut)
            manifest.append((Durable(offset, durable_rows),))
            marked = msgspec.structs.replace(snapshot, durable_rows=durable_rows)
            self._snapshot, self._known_offset = marked, manifest.offset
            if self._uncommitted is not None:
                self._uncommitted = msgspec.structs.replace(self._uncommitted, durable_rows=self._snapshot.durable_rows)
            if offset == before:
                self._flushed_offset = manifest.offset
        self._notice_due()

    # -- durability ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make every committed row durable: when this returns, `snapshot.durable_rows` is `snapshot.rows`.

        Raises `SyncFailed` if the kernel could not; the next commit or flush then goes to new files.
        """
        self.check_outside("flush")
        with self._syncing(), contextlib.ExitStack() as held:
            with self._lock:
                manifest = self._current
                offset, synced = manifest.offset, self.snapshot
                if self._blocks.poisoned or manifest.is_broken:
                    self._rotate()
                    return
                if offset == self._flushed_offset:
                    return None
                log = files.Descriptor(os.dup(manifest.fd))  # a peer's generation may close ours meanwhile
                held.callback(log.close)
                dirty = self._blocks.dirty()
                if self.is_power:  # a commit must not take for synced what is only about to be
                    held.enter_context(self._lock)
            try:
                self._blocks.sync(dirty)
                files.sync_file(log.fd, manifest_name(manifest.generation))
            except BaseException as error:
                with self._threads_lock:  # not under the feet of a commit: it has looked already
                    if isinstance(error, Corrupt) and (manifest is not self._manifest or manifest.is_superseded()):
                        return  # a peer has begun a generation, which was a flush, and removed what it does not need
                    manifest.is_broken = self._is_due = True
                    if manifest is self._manifest:
                        self._report_trouble()
                raise
            with self._lock:
                self._mark(manifest, offset, synced)

    def _close_sealed(self) -> None:
        if not self._blocks.may_close:
            return
        named = (block for column in self.snapshot.columns for block in (column.tail, column.patch))
        growing = {block.id for block in named if block is not None}
        growing |= {b.id for growth in self._growths for b in (growth.tail, growth.patch) if b is not None}
        self._blocks.close_sealed(growing)

    def _flush_in_background(self) -> None:
        if self._manifest is not None and self._forks == forks.count:
            self.flush()

    # -- generations ----------------------------------------------------------------------------------------------------

    def reclaim(self, at_least_nbytes: int = RECLAIM_NBYTES) -> None:
        """Free the space of blocks that nothing names any more, if it is worth a new generation.

        A hint that fails nobody: what could not be done is done before the next commit, or by the next writer.
        """
        if self._uncommitted is None and self._garbage.nbytes >= at_least_nbytes:
            with contextlib.suppress(OSError):
                self._rotate()

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        """Hold `_sync_lock`. In a turn it is not waited for: who has it may be waiting for a turn."""
        is_in_turn = self.turns is not None and self.turns.is_mine
        if not self._sync_lock.acquire(blocking=not is_in_turn):
            raise _Syncing(errno.EAGAIN, "A flush is under way; nothing was committed, try again")
        try:
            yield
        finally:
            self._sync_lock.release()

    def _rotate(self) -> None:
        """Begin a new generation: everything so far becomes durable, and garbage goes.

        If it raises before the new one has its name, nothing has changed; if it raises later, nothing more is
        appended to the old one.
        """
        with self._syncing(), self._lock:
            old, before = self._current, self.snapshot
            generation = generations(self.dir_fd)[-1] + 1
            try:
                columns = self._healed(before) if self._blocks.poisoned else before.columns
                self._blocks.sync(self._blocks.dirty())
                pruned = tuple(column.pruned() for column in columns)
                snapshot = msgspec.structs.replace(before, columns=pruned, durable_rows=before.rows)
                manifest = Manifest.create(
                    self.dir_fd, self.store, generation, checkpoint(snapshot), self.producer, is_read=self._is_read
                )
                self._note_pin(manifest)
                self._manifest, self._snapshot, self._known_offset = manifest, snapshot, manifest.offset
            except BaseException:
                has_begun = True  # unless we know better: then nothing more goes to the old one
                with contextlib.suppress(OSError):
                    has_begun = files.exists(manifest_name(generation), dir_fd=self.dir_fd)
                old.is_broken |= has_begun
                if self._uncommitted is None and not has_begun:
                    self._blocks.discard_created()  # what was healed is copied again, not left behind each time
                self._notice_due()
                if self._blocks.poisoned:
                    self._report_trouble()
                raise
            old.ring_doorbell(generation)
            old.close()
            self._flushed_offset = manifest.offset
            if self._uncommitted is None:
                self._blocks.keep_created()
                self._blocks.forget_poisoned()
                self._settled()
            try:
                files.sync_directory(".", dir_fd=self.dir_fd)
            except SyncFailed:
                manifest.is_broken = self._is_due = True
                raise
            self._leave_generations()
            self._blocks.begin_generation(generation, snapshot, self.pending)
            # last: until all of it is buried, garbage counts, and is seen to at the latest by close
            self._garbage.begin(self._snapshot)

    def _healed(self, snapshot: Snapshot) -> tuple[Column, ...]:
        """The columns, with the rows of poisoned blocks in new files: a file whose sync failed is never trusted
        again.
        """
        columns = []
        for growth, column in zip(self._growths, snapshot.columns, strict=True):
            named = column.blocks()
            for id in sorted(self._blocks.poisoned & column.live()):
                rows, crc = named[id]
                block = self._blocks.create(growth.number)
                growth.copy_block(id, rows, block)
                if block.crc32c != crc:
                    path = files.path_of(self.dir_fd, block_path(growth.field, id))
                    raise Corrupt("Rows were lost when their sync failed; close the blob and recover it", path=path)
                column = column.renamed(id, block.id)
            columns.append(column)
        return tuple(columns)

    @property
    def blocks(self) -> Blocks:
        """The block files, for who stages some beside the blob."""
        return self._blocks

    def adopt_file(self, number: int, source: str, source_dir_fd: int) -> str:
        """Take a block file of another blob over, for the change under way; return its id here."""
        return self._blocks.adopt(number, source, source_dir_fd)


def _is_only_grown(before: Snapshot, after: Snapshot) -> bool:
    """True if the same blocks hold the rows of both, and the blob is otherwise as it was."""
    return after.retention is before.retention and all(
        new.spans is old.spans
        and new.sealed is old.sealed
        and new.patch is old.patch
        and new.tail is not None
        and old.tail is not None
        and new.tail.id == old.tail.id
        for old, new in zip(before.columns, after.columns, strict=True)
    )


def check_durability(durability: str, flush_every_s: float | None) -> None:
    """Raise `ValueError` for options that no writer has."""
    if durability not in ("process", "power"):
        raise ValueError(f"durability must be 'process' or 'power', got {durability!r}")
    if flush_every_s is not None and not 0 < flush_every_s <= threading.TIMEOUT_MAX:
        raise ValueError(f"flush_every_s must be positive and finite, got {flush_every_s!r}")


def check_metadata(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of `metadata`; raise `TypeError` unless it is None or a JSON object."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__!r}")
    return copy_json(metadata)
