"""The writer: the one process that changes a blob.

Every change goes the same way: check → place rows in block files → append one edit to the manifest (the commit point) →
apply it to the snapshot → tell who asked. Before the commit point nothing is visible and all can be taken back; after it nothing
fails the caller, except that at `durability="power"` a failed manifest sync is `OutcomeUnknown`.

Durability: at "power" blocks and their directories are synced before the edit is appended, and the manifest after it, before the
caller hears; a durable mark follows. At "process" only `flush`, `close` and the background flush (on sealing, and every
`flush_every_s`) do so. A file whose sync failed is never synced again: the next commit first moves its rows to a new file and
begins a new generation. Starting a generation is a flush; it happens before a commit, never after one.

A block is unlinked after a generation that does not name it is durably in place, and once no generation in which it was live is
pinned.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch

from tensorblob import files
from tensorblob.edit import Block, Cut, Durable, Grow, Metadata, Note, Op, Patch, Retention, Tail, Trim
from tensorblob.errors import BlobClosed, Corrupt, DiskFull, ForkedHandle, OutcomeUnknown, SyncFailed
from tensorblob.format import Store, block_path, decode_log, encode_note, log_seed, manifest_name
from tensorblob.growth import BlockFile, Growth
from tensorblob.manifest import MAX_EDITS, Manifest, generations, remove_superseded, session
from tensorblob.snapshot import Column, Snapshot, checkpoint

RECLAIM_NBYTES = 64 << 20

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Writer:
    """The open writing end of a blob. Any number of threads may use it, one change at a time.

    path: an existing blob's directory. durability: "process" (survives kill -9) or "power" (every commit is synced before it is
    acknowledged). flush_every_s: make what was committed durable this often. timeout_s: how long to wait for another writer.
    Raises `WriterBusy`, `ReadOnlyStore`, `NotABlob`, `Corrupt` or `UnsupportedFormat`, having changed nothing.
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
    ) -> None:
        if durability not in ("process", "power"):
            raise ValueError(f"durability must be 'process' or 'power', got {durability!r}")
        if flush_every_s is not None and not flush_every_s > 0:
            raise ValueError(f"flush_every_s must be positive, got {flush_every_s!r}")
        self.path, self.dir_fd, self.store = path, dir_fd, store
        self._is_power = durability == "power"
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()
        self._forks = _forks
        self._writer_lock = files.lock_writer(os.path.join(path, "writer.lock"), timeout_s)
        self._producer_fd = -1
        self._manifest: Manifest | None = None
        try:
            self._enter()
        except BaseException:
            self._leave()
            raise
        self._flusher = _Flusher(self, flush_every_s) if not self._is_power or flush_every_s else None

    # -- opening and closing ------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Become the writer: announce a producer, recover what is there, and clean up after dead ones."""
        self._check_same_directory()
        self.producer = secrets.token_hex(5)
        self._blocks_made = 0
        self._announce()
        manifest, found = Manifest.open(self.dir_fd, self.store)
        self._manifest = manifest
        self.snapshot = self._pending = found.snapshot
        self._ops: list[Op] = []
        self._depth = 0
        self._owner = 0
        self._blocks: dict[str, BlockFile] = {}
        self._created: list[BlockFile] = []
        self._adopted: dict[str, None] = {}
        self._dirty_dirs: set[str] = set()
        self._poisoned: set[str] = set()
        self._dead_nbytes = 0
        self._births: list[dict[str, int]] = [dict.fromkeys(column.live(), 0) for column in self.snapshot.columns]
        self._dead: list[tuple[int, int, str]] = []
        fields = self.store.schema.fields
        self._growths = [
            Growth(number, len(fields), field, self.dir_fd, self._new_block) for number, field in enumerate(fields)
        ]
        self._row_nbytes = self.store.schema.row_nbytes
        self._is_retained = (
            found.snapshot.retention.max_rows is not None or found.snapshot.retention.max_bytes is not None
        )
        is_clean = found.is_same_boot and not found.is_torn and not found.is_cut
        self._flushed_offset = manifest.offset if found.is_flushed else -1
        if not found.is_flushed:  # by whoever wrote them: they are ours to make durable
            for field, column in zip(fields, self.snapshot.columns, strict=True):
                self._adopted.update((block_path(field, id), None) for id in column.live())
                self._dirty_dirs.add(f"blocks/{field.directory}")
        if is_clean:
            self._may_go_on()
            manifest.append((session(manifest.fd, self.producer),))
        else:
            self._recover(found.is_cut or not (found.is_same_boot or found.is_flushed))
        for growth, column in zip(self._growths, self.snapshot.columns, strict=True):
            growth.reset(column, self._blocks)
        self._sweep()

    def _check_same_directory(self) -> None:
        """After the lock is held: the path must still lead to the directory that was opened."""
        held, now = os.fstat(self.dir_fd), os.stat(self.path)
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise FileNotFoundError(f"Blob not found: {self.path!r} was replaced while it was opened")

    def _announce(self) -> None:
        """Make our producers/ file visible, already locked."""
        name = f"producers/{self.producer}"
        self._producer_fd = files.create_file(f"producers/.{self.producer}", dir_fd=self.dir_fd)
        assert files.try_lock(self._producer_fd, shared=False)
        text = msgspec.json.encode({"pid": os.getpid(), "host": socket.gethostname()})
        files.write_at(self._producer_fd, text, len(text), 0)
        files.rename(f"producers/.{self.producer}", name, dir_fd=self.dir_fd)

    def _may_go_on(self) -> None:
        """Open the blocks that may still grow: same store and boot, nothing cut, and exactly one link."""
        for field, column in zip(self.store.schema, self.snapshot.columns, strict=True):
            for block in (column.tail, column.patch):
                if block is None or block.rows >= block.capacity_rows:
                    continue
                path = block_path(field, block.id)
                with contextlib.suppress(OSError):
                    fd = files.open_for_append(path, dir_fd=self.dir_fd)
                    stat = os.fstat(fd)
                    if stat.st_nlink != 1 or stat.st_size < block.rows * field.row_nbytes:
                        os.close(fd)
                        continue
                    opened = BlockFile(block.id, path, fd, block.capacity_rows, block.rows, block.crc32c)
                    opened.allocated = stat.st_size
                    self._blocks[block.id] = opened

    def _recover(self, is_cut: bool) -> None:
        """Begin a new generation at what replay proved; a new history if committed rows may have been lost."""
        if is_cut:
            self.snapshot = self._pending = self.snapshot.apply((Cut(self.snapshot.rows),))
        self._rotate()

    def _sweep(self) -> None:
        """Remove blocks that no manifest names and whose producer is dead, and the dead producers' files."""
        free = [name for name in files.list_directory("producers", dir_fd=self.dir_fd) if self._is_dead(name)]
        older = [generation for generation in generations(self.dir_fd) if generation < self._current.generation]
        if not free and not older:
            return
        pinned = remove_superseded(self.dir_fd, self._current.generation)
        named = {generation: self._names_in(generation) for generation in generations(self.dir_fd)}
        for field, births in zip(self.store.schema, self._births, strict=True):
            for name in files.list_directory(f"blocks/{field.directory}", dir_fd=self.dir_fd):
                if name in births or not self._is_dead(name.partition("-")[0]):
                    continue
                path = f"blocks/{field.directory}/{name}"
                holders = [generation for generation in pinned if name in named[generation]]
                if holders:
                    self._dead.append((0, max(holders), path))
                else:
                    files.unlink(path, dir_fd=self.dir_fd, missing_ok=True)
        for name in free:
            files.unlink(f"producers/{name}", dir_fd=self.dir_fd, missing_ok=True)

    def _is_dead(self, producer: str) -> bool:
        if producer == self.producer:
            return False
        try:
            fd = files.open_file(f"producers/{producer.removeprefix('.')}", dir_fd=self.dir_fd)
        except FileNotFoundError:
            return True
        try:
            return files.try_lock(fd, shared=True)
        finally:
            os.close(fd)

    def _names_in(self, generation: int) -> set[str]:
        data = files.read_file(manifest_name(generation), dir_fd=self.dir_fd, limit=1 << 40)
        return {
            op.id
            for record in decode_log(data, log_seed(self.store.uuid, generation), 0)
            for op in record.edit
            if isinstance(op, (Block, Tail, Patch))
        }

    @property
    def closed(self) -> bool:
        return self._manifest is None

    def close(self) -> None:
        """Make everything durable and let the next writer in. Raises `SyncFailed` if it could not, and is closed all the same."""
        if self.closed:
            return
        if self._forks != _forks:
            self._manifest = None  # a forked child lets its parent's descriptors and locks be
            return
        self._check_outside("close")
        if self._flusher is not None:
            self._flusher.stop()
        try:
            if self._dead_nbytes or self._poisoned or self._current.is_broken:
                self._rotate()
            self.flush()
        finally:
            self._leave()

    def _leave(self) -> None:
        for block in getattr(self, "_blocks", {}).values():
            if block.fd >= 0:
                files.release_allocation(block.fd)
            block.close()
        if self._manifest is not None:
            self._manifest.close()
            self._manifest = None
        if self._producer_fd >= 0:
            with contextlib.suppress(OSError):
                files.unlink(f"producers/{self.producer}", dir_fd=self.dir_fd, missing_ok=True)
            os.close(self._producer_fd)
            self._producer_fd = -1
        files.unlock_writer(self._writer_lock)

    @property
    def _current(self) -> Manifest:
        assert self._manifest is not None
        return self._manifest

    def _check(self) -> None:
        if self._manifest is None:
            raise BlobClosed("I/O operation on closed blob.")
        if self._forks != _forks:
            raise ForkedHandle("A forked child cannot use its parent's writer; open the blob again in the child")

    def _check_outside(self, what: str) -> None:
        if self._depth and self._owner == threading.get_ident():
            raise RuntimeError(f"Cannot {what} inside a transaction; leave it first")

    # -- changes ------------------------------------------------------------------------------------------------------

    def append(self, columns: Sequence[torch.Tensor], count: int, metadata: dict[str, Any] | None = None) -> None:
        """Append `count` rows: one contiguous CPU tensor of shape (count, *shape) per field, checked by `batch`."""
        if self._manifest is None or self._forks != _forks:
            self._check()
        if self._is_due():
            self._rotate()
        with self._lock:
            growths, is_simple = self._growths, True
            try:
                tails = []
                for growth, rows in zip(growths, columns, strict=True):
                    if growth.is_carried:
                        rows = rows.view(growth.carrier)
                    tail = growth.grow(rows, count)
                    if tail is None:
                        is_simple = False
                        break
                    tails.append(tail)
                if is_simple:
                    ops: list[Op] = [Grow(tuple(tails))]
                else:
                    self._restore()
                    ops = self._append_ops(columns, self._pending)
                if metadata is not None:
                    rows_before = self._pending.rows
                    ops.append(Note(rows_before, rows_before + count, metadata))
                self._stage(ops)
            except BaseException:
                self._restore()
                raise

    def _append_ops(self, columns: Sequence[torch.Tensor], snapshot: Snapshot) -> list[Op]:
        """Place rows at the end of `snapshot`, whatever is open there; return the operations."""
        ops: list[Op] = []
        for growth, rows, column in zip(self._growths, columns, snapshot.columns, strict=True):
            if len(rows):
                ops += growth.append(rows.view(growth.carrier) if growth.is_carried else rows, column)
        return ops

    def change(
        self, place: Callable[[Snapshot, Sequence[Growth]], list[Op]], metadata: dict[str, Any] | None = None
    ) -> None:
        """Make any other change: `place(snapshot, growths)` places rows and returns the operations that commit them."""
        self._check()
        if self._is_due():
            self._rotate()
        with self._lock:
            try:
                before = self._pending.rows
                ops = place(self._pending, self._growths)
                if metadata is not None:
                    ops.append(Note(before, max(before, self._pending.apply(tuple(ops)).rows), metadata))
                if ops:
                    self._stage(ops)
            except BaseException:
                self._restore()
                raise

    @property
    def pending(self) -> Snapshot:
        """What this writer wrote, an open transaction included."""
        return self._pending

    def settings(self, *, retention: Retention | None, metadata: dict[str, Any] | None) -> None:
        """Commit new settings of the blob, where they differ from what it has."""
        snapshot = self._pending
        ops: list[Op] = []
        if retention is not None and retention != snapshot.retention:
            ops.append(retention)
        if metadata is not None and metadata != snapshot.metadata:
            ops.append(Metadata(metadata))
        self.change(lambda *_: ops)

    def _stage(self, ops: list[Op]) -> None:
        """Take `ops` into the transaction, or commit them where there is none."""
        if not self._depth:
            self._commit(ops)
            return
        pending = self._pending.apply(tuple(ops))
        if len(ops) == 1 and type(ops[0]) is Grow and self._ops and type(self._ops[-1]) is Grow:
            pairs = zip(self._ops[-1].tails, ops[0].tails, strict=True)
            self._ops[-1] = Grow(tuple(new if new is not None else old for old, new in pairs))
        else:
            self._ops += ops
        self._settle(pending)
        self._pending = pending

    @contextlib.contextmanager
    def transaction(self, metadata: dict[str, Any] | None = None) -> Iterator[None]:
        """Commit all changes of the body as one edit; an exception in it takes them all back.

        Transactions do not nest.
        """
        self._check()
        check_metadata(metadata)
        if self._is_due():
            self._rotate()
        with self._lock:
            if self._depth:
                raise RuntimeError("Transactions do not nest: one is open already")
            self._depth = 1
            self._owner = threading.get_ident()
            try:
                before = self._pending.rows
                yield
                ops, self._ops = self._ops, []
                self._depth = 0
                if ops and metadata is not None:
                    ops.append(Note(min(before, self._pending.rows), self._pending.rows, metadata))
                self._pending, staged = self.snapshot, self._pending
                if ops:
                    try:
                        self._commit(ops)
                    except OutcomeUnknown:
                        raise
                    except BaseException:
                        self._pending = staged
                        raise
            except OutcomeUnknown:
                raise
            except BaseException:
                self._rollback()
                raise

    def _rollback(self) -> None:
        self._ops, self._depth = [], 0
        self._pending = self.snapshot
        self._restore()

    def _restore(self) -> None:
        """Forget what was placed since `_pending`, and remove the blocks that were created for it."""
        pending = self._pending
        kept = []
        live = {block.id for column in pending.columns for block in (column.tail, column.patch) if block is not None}
        if self._depth:
            live |= {id for column in pending.columns for id in column.live()}
        for block in self._created:
            if block.id in live:
                kept.append(block)
                continue
            block.close()
            self._blocks.pop(block.id, None)
            self._adopted.pop(block.path, None)
            for births in self._births:
                births.pop(block.id, None)
            with contextlib.suppress(OSError):
                files.unlink(block.path, dir_fd=self.dir_fd, missing_ok=True)
        self._created = kept
        for growth, column in zip(self._growths, pending.columns, strict=True):
            growth.reset(column, self._blocks)

    def _settle(self, snapshot: Snapshot) -> None:
        for growth, column in zip(self._growths, snapshot.columns, strict=True):
            growth.settle(column)

    # -- the commit -----------------------------------------------------------------------------------------------------

    def _commit(self, ops: list[Op]) -> None:
        before, manifest = self.snapshot, self._current
        edit = tuple(ops)
        after = before.apply(edit)
        if self._is_retained and (first_row := self._retained_from(after)) > after.first_row:
            edit = (*edit, Trim(first_row))
            after = after.apply((Trim(first_row),))
        assert len({column.stop for column in after.columns}) == 1, "all columns or none"
        if self._is_power:
            self._sync_blocks()
        offset = manifest.offset
        try:
            manifest.append(edit)  # the commit point
            self.snapshot = self._pending = after
        except BaseException:
            if manifest.offset != offset:  # interrupted after the edit was visible: it counts
                self.snapshot = self._pending = after
                self._created.clear()
            raise
        if self._created:
            self._created.clear()
        if len(edit) > 1 or type(edit[0]) is not Grow:
            self._after_structural(before, after)
        if self._is_power:
            self._acknowledge()

    def _after_structural(self, before: Snapshot, after: Snapshot) -> None:
        """Bookkeeping after an edit that did more than grow the tails; it cannot fail the commit."""
        self._settle(after)
        self._is_retained = after.retention.max_rows is not None or after.retention.max_bytes is not None
        is_sealed = False
        for field, old, new in zip(self.store.schema, before.columns, after.columns, strict=True):
            old_rows = old.stop - (old.spans[0].row if old.spans else old.tail_row)
            new_rows = new.stop - (new.spans[0].row if new.spans else new.tail_row)
            grown = new.stop - old.stop
            self._dead_nbytes += max(old_rows + max(grown, 0) - new_rows, 0) * field.row_nbytes
            if new.patch is not None and new.patch is not old.patch:
                self._dead_nbytes += (
                    new.patch.rows - (old.patch.rows if old.patch is not None else 0)
                ) * field.row_nbytes
            is_sealed |= old.tail is not None and (new.tail is None or new.tail.id != old.tail.id)
        if is_sealed and self._flusher is not None:
            self._flusher.wake()

    def _retained_from(self, snapshot: Snapshot) -> int:
        keep = snapshot.rows - snapshot.first_row
        if snapshot.retention.max_rows is not None:
            keep = min(keep, snapshot.retention.max_rows)
        if snapshot.retention.max_bytes is not None:
            keep = min(keep, max(snapshot.retention.max_bytes // self._row_nbytes, 1))
        return snapshot.rows - keep

    def _acknowledge(self) -> None:
        """At "power", after the commit point: make the edit durable and say so."""
        manifest = self._current
        try:
            manifest.sync()
        except SyncFailed as error:
            raise OutcomeUnknown(
                error.errno,
                f"The commit of rows up to {self.snapshot.rows} is visible, but may not be durable: {error.strerror}",
            ) from error
        self._mark(manifest, manifest.offset, self.snapshot.rows)

    def _mark(self, manifest: Manifest, offset: int, rows: int) -> None:
        """Append a durable mark; it is a hint about the past, and failing to leave it fails nobody."""
        if manifest is not self._manifest or manifest.is_broken:
            return
        with contextlib.suppress(OSError):
            mark = (Durable(offset, rows),)
            before = manifest.offset
            manifest.append(mark)
            self.snapshot = self.snapshot.apply(mark)
            if not self._depth:
                self._pending = self.snapshot
            if offset == before:
                self._flushed_offset = manifest.offset

    # -- durability ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make every committed row durable: when this returns, `snapshot.durable_rows` is `snapshot.rows`."""
        self._check()
        self._check_outside("flush")
        if self._poisoned or self._current.is_broken:
            self._rotate()
            return
        with self._sync_lock:
            with self._lock:
                manifest = self._current
                offset, rows = manifest.offset, self.snapshot.rows
                if offset == self._flushed_offset:
                    return
                dirty = self._take_dirty()
            self._sync(*dirty)
            manifest.sync()
            with self._lock:
                self._mark(manifest, offset, rows)

    def _take_dirty(self) -> tuple[list[BlockFile], list[str], list[str]]:
        """What is not synced yet, taken over by the caller."""
        blocks = [block for block in self._blocks.values() if block.is_dirty and block.id not in self._poisoned]
        for block in blocks:
            block.is_dirty = False
        adopted, dirs = list(self._adopted), list(self._dirty_dirs)
        self._adopted.clear()
        self._dirty_dirs.clear()
        return blocks, adopted, dirs

    def _sync(self, blocks: list[BlockFile], adopted: list[str], dirs: list[str]) -> None:
        """Sync all of it; a block whose sync fails is poisoned, and so is what was not reached."""
        try:
            for block in blocks:
                if block.fd >= 0:
                    files.sync_file(block.fd, block.path)
                adopted = [path for path in adopted if path != block.path]
            for path in adopted:
                self._sync_path(path)
            for path in dirs:
                files.sync_directory(path, dir_fd=self.dir_fd)
        except BaseException:
            with self._lock:
                self._poisoned.update(block.id for block in blocks)
                self._poisoned.update(os.path.basename(path) for path in adopted)
                self._dirty_dirs.update(dirs)
            raise
        with self._lock:
            growing = {id(block) for growth in self._growths for block in (growth.tail, growth.patch)}
            committed = {b.id for c in self.snapshot.columns for b in (c.tail, c.patch) if b is not None}
            for block in blocks:
                if not block.is_dirty and id(block) not in growing and block.id not in committed:
                    files.release_allocation(block.fd)
                    block.close()
                    self._blocks.pop(block.id, None)

    def _sync_path(self, path: str) -> None:
        try:
            fd = files.open_file(path, dir_fd=self.dir_fd)
        except FileNotFoundError as error:
            raise Corrupt("A block with committed rows is missing", path=path) from error
        try:
            files.sync_file(fd, path)
        finally:
            os.close(fd)

    def _sync_blocks(self) -> None:
        self._sync(*self._take_dirty())

    # -- generations ----------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        manifest = self._manifest
        assert manifest is not None
        return not self._depth and (
            manifest.edits >= MAX_EDITS
            or manifest.is_broken
            or bool(self._poisoned)
            or self._dead_nbytes >= RECLAIM_NBYTES
        )

    def reclaim(self, at_least_nbytes: int = RECLAIM_NBYTES) -> None:
        """Begin a new generation without the blocks that nothing names any more, and unlink those that nobody pins.

        A hint that fails nobody: what could not be done is done before the next commit, or by the next writer.
        """
        if self._dead_nbytes >= at_least_nbytes and not self._depth:
            with contextlib.suppress(OSError):
                self._rotate()

    def _rotate(self) -> None:
        """Begin a new generation: everything so far becomes durable, and garbage goes.

        If it raises before the new one has its name, nothing has changed; if it raises later, nothing more is appended to
        the old one.
        """
        with self._sync_lock, self._lock:
            old = self._current
            healed = self._healed() if self._poisoned else self.snapshot.columns
            self._sync_blocks()
            columns = tuple(map(_without_dead, healed))
            snapshot = msgspec.structs.replace(self.snapshot, columns=columns, durable_rows=self.snapshot.rows)
            generation = generations(self.dir_fd)[-1] + 1
            try:
                manifest = Manifest.create(self.dir_fd, self.store, generation, checkpoint(snapshot), self.producer)
                self._manifest, self.snapshot = manifest, snapshot
            except BaseException:
                old.is_broken |= files.exists(manifest_name(generation), dir_fd=self.dir_fd)
                raise
            old.ring_doorbell(generation)
            old.close()
            self._flushed_offset = manifest.offset
            if not self._depth:
                self._pending = snapshot
                self._created.clear()
                if self._poisoned:
                    self._drop_poisoned()
            try:
                files.sync_directory(".", dir_fd=self.dir_fd)
            except SyncFailed:
                manifest.is_broken = True
                raise
            self._dead_nbytes = 0
            self._bury(old.generation)

    def _healed(self) -> tuple[Column, ...]:
        """The columns, with the rows of poisoned blocks in new files: a file whose sync failed is never trusted again."""
        columns = []
        for growth, column in zip(self._growths, self.snapshot.columns, strict=True):
            named = column.blocks()
            for id in sorted(self._poisoned & column.live()):
                rows, crc = named[id]
                block = self._new_block(growth.number)
                growth.copy_block(id, rows, block)
                if block.crc32c != crc:
                    path = block_path(growth.field, id)
                    raise Corrupt("Rows were lost when their sync failed; close the blob and recover it", path=path)
                column = column.renamed(id, block.id)
            columns.append(column)
        return tuple(columns)

    def _drop_poisoned(self) -> None:
        for id in self._poisoned:
            if (block := self._blocks.pop(id, None)) is not None:
                block.close()
        self._poisoned.clear()
        for growth, column in zip(self._growths, self.snapshot.columns, strict=True):
            growth.reset(column, self._blocks)

    def _bury(self, generation: int) -> None:
        """After `generation` was superseded: unlink the blocks that died in it or before, where no pin forbids it."""
        for field, births, column, pending in zip(
            self.store.schema, self._births, self.snapshot.columns, self._pending.columns, strict=True
        ):
            live = column.live() if pending is column else column.live() | pending.live()
            for id in [id for id in births if id not in live]:
                self._dead.append((births.pop(id), generation, block_path(field, id)))
                if (block := self._blocks.pop(id, None)) is not None:
                    block.close()
        with contextlib.suppress(OSError):
            pinned = remove_superseded(self.dir_fd, self._current.generation)
            kept = []
            for birth, death, path in self._dead:
                if any(birth <= pin <= death for pin in pinned):
                    kept.append((birth, death, path))
                else:
                    files.unlink(path, dir_fd=self.dir_fd, missing_ok=True)
            self._dead = kept

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _next_id(self) -> str:
        self._blocks_made += 1
        return f"{self.producer}-{self._blocks_made}"

    def _new_block(self, number: int) -> BlockFile:
        """Create the next block file of a column."""
        field = self.store.schema.fields[number]
        id = self._next_id()
        path = block_path(field, id)
        block = BlockFile(id, path, files.create_file(path, dir_fd=self.dir_fd), field.block_rows)
        self._dirty_dirs.add(os.path.dirname(path))
        self._blocks[id] = block
        self._created.append(block)
        self._births[number][id] = self._current.generation
        return block

    def adopt_file(self, number: int, source: str, source_dir_fd: int) -> str:
        """Take a block file of another blob over, by link where that is possible; return its id here."""
        field = self.store.schema.fields[number]
        id = self._next_id()
        path = block_path(field, id)
        self._created.append(BlockFile(id, path, -1, 0))
        files.clone_file(source, path, source_dir_fd=source_dir_fd, dir_fd=self.dir_fd)
        self._dirty_dirs.add(os.path.dirname(path))
        self._adopted[path] = None
        self._births[number][id] = self._current.generation
        return id


def _without_dead(column: Column) -> Column:
    live = column.live()
    if all(block.id in live for block in column.sealed):
        return column
    return column.pruned(live)


def check_metadata(metadata: dict[str, Any] | None) -> None:
    """Raise `TypeError` unless `metadata` is None or a JSON object."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__!r}")
    encode_note(metadata)


class _Flusher:
    """A thread that flushes a writer in the background: when a block was sealed, and every `every_s` seconds.

    What fails shows in the writer itself (poisoned files), so nothing is reported from here.
    """

    def __init__(self, writer: Writer, every_s: float | None) -> None:
        self._writer = weakref.ref(writer)
        self._every_s = every_s
        self._event = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None
        if every_s is not None:
            self.wake()

    def wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tensorblob-flush", daemon=True)
            self._thread.start()
        self._event.set()

    def _run(self) -> None:
        while True:
            self._event.wait(self._every_s)
            self._event.clear()
            writer = self._writer()
            if self._is_stopped or writer is None:
                return
            with contextlib.suppress(SyncFailed, DiskFull, BlobClosed, OSError):
                writer.flush()
            del writer

    def stop(self) -> None:
        self._is_stopped = True
        if self._thread is not None:
            self._event.set()
            self._thread.join()
