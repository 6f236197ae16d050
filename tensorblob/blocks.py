"""The block files of one writer, from creation to removal: which are open, not yet synced, poisoned, or garbage.

A block is created (or adopted from another blob) before any edit names it, and taken back if the edit is not
committed. It stays open until it is sealed and synced. A file whose sync failed is poisoned: it is never synced
again, and its rows have to move. Once nothing names a block any more it is dead, and is unlinked when no generation
in which it was live is pinned. Blocks may also be staged: filled while no edit names them, for one that will. What peers
commit in their turns is learned, so that each of them knows all blocks and when they were born.

This class decides nothing: the writer says when to sync, what is committed, and which generation begins.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tensorblob import files
from tensorblob.edit import Patch, Tail
from tensorblob.errors import Corrupt
from tensorblob.format import Store, block_path
from tensorblob.growth import BlockFile
from tensorblob.kernel_aio import SyncQueue
from tensorblob.manifest import remove_superseded
from tensorblob.snapshot import Snapshot

MAX_OPEN = 64


class Dirty(NamedTuple):
    """What has to be synced for everything so far to be durable."""

    blocks: list[tuple[BlockFile, int]]
    """With a descriptor of the sync's own: the block's may be closed, and its number used again, meanwhile."""
    adopted: list[str]
    directories: list[str]

    def close(self) -> None:
        for _, fd in self.blocks:
            os.close(fd)


class Blocks:
    """The block files of the writer `producer`; `generation` is the current one."""

    def __init__(self, dir_fd: int, store: Store, producer: str, generation: int, snapshot: Snapshot) -> None:
        self._dir_fd = dir_fd
        self._fields = store.schema.fields
        self._producer = producer
        self.generation = generation
        self._ids = itertools.count(1)
        self.open: dict[str, BlockFile] = {}
        self._created: list[BlockFile] = []
        self._adopted: dict[str, None] = {}
        self._names_lock = threading.Lock()
        self._new_names: dict[str, set[str]] = {}
        """Directories whose names are not synced yet, and the blocks that would be lost with them."""
        self.poisoned: set[str] = set()
        self._births: list[dict[str, int]] = [
            dict.fromkeys((*column.live(), *column.blocks()), 0) for column in snapshot.columns
        ]
        """By column: the blocks that may be named, and the generation in which each began to be (0: before this
        writer).
        """
        self._queue: SyncQueue | None = None
        self._has_asked_for_queue = False
        self.unlinked = 0
        """How many files were removed so far."""
        self._dead: list[tuple[int, int, str]] = []
        """Blocks to unlink: (first, last generation in which it was live, path)."""

    # -- creating -----------------------------------------------------------------------------------------------------

    def _new_id(self, number: int) -> tuple[str, str]:
        id = f"{self._producer}-{next(self._ids)}"
        return id, block_path(self._fields[number], id)

    def _next_path(self, number: int) -> tuple[str, str]:
        id, path = self._new_id(number)
        self._births[number][id] = self.generation
        with self._names_lock:
            self._new_names.setdefault(os.path.dirname(path), set()).add(id)
        return id, path

    def create(self, number: int) -> BlockFile:
        """Create the next block file of a column."""
        if len(self.open) >= MAX_OPEN:
            self._close_full()
        id, path = self._next_path(number)
        fd = files.create_file(path, dir_fd=self._dir_fd)
        block = self.open[id] = BlockFile(id, path, fd, self._fields[number].block_rows)
        self._created.append(block)
        return block

    def stage(self, number: int) -> BlockFile:
        """Create a block that stays outside of all this until it is taken."""
        id, path = self._new_id(number)
        fd = files.create_file(path, dir_fd=self._dir_fd)
        return BlockFile(id, path, fd, self._fields[number].block_rows)

    def take_staged(self, blocks: Iterable[BlockFile]) -> None:
        """Staged blocks are about to be named by an edit; what is not synced of them yet has to be."""
        for block in blocks:
            with self._names_lock:
                self._new_names.setdefault(os.path.dirname(block.path), set()).add(block.id)
            if block.is_dirty:
                self._adopted[block.path] = None

    def sync_staged(self, blocks: Iterable[BlockFile]) -> None:
        """Make staged blocks durable, before anybody waits for it. Raises `SyncFailed`: then they have to be dropped."""
        for block in blocks:
            if block.is_dirty:
                fd = self._open_named(block.path) if block.fd < 0 else block.fd
                try:
                    block.is_dirty = False
                    files.sync_file(fd, block.path)
                finally:
                    if fd != block.fd:
                        os.close(fd)

    def drop_staged(self, blocks: Iterable[BlockFile]) -> None:
        """Remove staged blocks, also ones that were about to be named. What cannot be removed is tried again later."""
        for block in blocks:
            block.close()
            assert not self.is_known(block.id), "what is committed is not staged any more"
            with self._names_lock:
                self._new_names.get(os.path.dirname(block.path), set()).discard(block.id)
            self._remove(block.path)

    def keep_staged(self, number: int, blocks: Iterable[BlockFile]) -> None:
        """Staged blocks are named by now: from here on they are as any others that are sealed."""
        for block in blocks:
            self._births[number][block.id] = self.generation
            if block.fd >= 0:
                files.release_allocation(block.fd)
            block.close()

    def _close_full(self) -> None:
        """Spend no descriptors on full blocks: what is not synced of them is synced by path."""
        for block in [block for block in self.open.values() if block.rows == block.capacity_rows]:
            del self.open[block.id]
            if block.is_dirty:
                self._adopted[block.path] = None
            block.close()

    def adopt(self, number: int, source: str, source_dir_fd: int) -> str:
        """Take over a block file of another blob, by link where that is possible; return its id here."""
        id, path = self._next_path(number)
        self._created.append(BlockFile(id, path, -1, 0))
        files.clone_file(source, path, source_dir_fd=source_dir_fd, dir_fd=self._dir_fd)
        self._adopted[path] = None
        return id

    def go_on_in(self, number: int, block: Tail | Patch) -> None:
        """Open a committed block to grow further, if only this blob has it and it is whole; else it is sealed as it
        is.
        """
        field = self._fields[number]
        path = block_path(field, block.id)
        with contextlib.suppress(OSError):
            fd = files.open_for_append(path, dir_fd=self._dir_fd)
            try:
                stat = os.fstat(fd)
                if stat.st_nlink == 1 and stat.st_size >= block.rows * field.row_nbytes:
                    self.open[block.id] = BlockFile(block.id, path, fd, block.capacity_rows, block.rows, block.crc32c)
                    self.open[block.id].allocated = stat.st_size
            finally:
                if block.id not in self.open:
                    os.close(fd)

    def keep_created(self) -> None:
        """What was created is committed."""
        self._created.clear()

    def discard_created(self, live: Iterable[str] = ()) -> None:
        """Remove what was created and not committed, except what `live` names."""
        kept = set(live)
        for block in [block for block in self._created if block.id not in kept]:
            self._created.remove(block)
            self.open.pop(block.id, None)
            self._adopted.pop(block.path, None)
            self._new_names.get(os.path.dirname(block.path), set()).discard(block.id)
            for births in self._births:
                births.pop(block.id, None)
            block.close()
            self._remove(block.path)

    # -- syncing ------------------------------------------------------------------------------------------------------

    def distrust(self, snapshot: Snapshot) -> None:
        """Sync everything that `snapshot` names with the next sync: whoever wrote it did not say that it is durable."""
        for field, column in zip(self._fields, snapshot.columns, strict=True):
            live = column.live()
            self._adopted.update((block_path(field, id), None) for id in live)
            self._new_names.setdefault(f"blocks/{field.directory}", set()).update(live)

    def _dirty_blocks(self) -> list[BlockFile]:
        return [block for block in self.open.values() if block.is_dirty and block.id not in self.poisoned]

    def dirty(self) -> Dirty:
        """What is not synced yet, for one `sync`. Poisoned files are not among it."""
        blocks = self._dirty_blocks()
        for block in blocks[MAX_OPEN:]:  # no second descriptor for each of very many
            block.is_dirty = False
            self._adopted[block.path] = None
        adopted = [path for path in self._adopted if os.path.basename(path) not in self.poisoned]
        dirty = Dirty([], adopted, list(self._new_names))
        try:
            for block in blocks[:MAX_OPEN]:
                dirty.blocks.append((block, os.dup(block.fd)))
        except BaseException:
            dirty.close()
            raise
        return dirty

    def sync_all(self) -> None:
        """Make everything so far durable; no block is closed meanwhile. Raises as `sync`."""
        if not self.has_only_grown:
            self.sync(self.dirty())
            return
        for block in self._dirty_blocks():
            block.is_dirty = False
            try:
                files.sync_file(block.fd, block.path)
            except BaseException:
                self.poisoned.add(block.id)
                raise

    @property
    def has_only_grown(self) -> bool:
        """Rows in open files are all that is not synced yet: no names, and nothing that came from elsewhere."""
        return not (self._adopted or self._new_names)

    def sync_grown(self, manifest_fd: int, manifest: str) -> None:
        """Make all rows durable, and the manifest at the same time, where blocks have only grown. Raises `SyncFailed`, and
        then poisons the blocks that failed.
        """
        assert self.has_only_grown
        if not self._has_asked_for_queue:
            self._queue, self._has_asked_for_queue = files.open_sync_queue(), True
        dirty = self._dirty_blocks()
        unsynced = {block.id for block in dirty}
        try:
            for block in dirty:
                block.is_dirty = False
            named = [*((block.fd, block.path) for block in dirty), (manifest_fd, manifest)]
            failed = files.sync_together(named, self._queue)
            unsynced = {block.id for block, error in zip(dirty, failed, strict=False) if error is not None}
            for error in failed:
                if error is not None:
                    raise error
        except BaseException:
            self.poisoned |= unsynced
            raise

    def sync(self, dirty: Dirty) -> None:
        """Make it durable; rows may be written meanwhile. Raises `SyncFailed`, and then poisons the file that failed."""
        try:
            for block, fd in dirty.blocks:
                block.is_dirty = False  # before the sync: a row written during it sets it again
                self._adopted.pop(block.path, None)  # so does one that fills the block, which may be closed at once
                with self._poisoning({block.id}):
                    files.sync_file(fd, block.path)
        finally:
            dirty.close()
        for path in dirty.adopted:
            if self._adopted.pop(path, path) is None:
                fd = self._open_named(path)
                try:
                    with self._poisoning({os.path.basename(path)}):
                        files.sync_file(fd, path)
                finally:
                    os.close(fd)
        for directory in dirty.directories:
            with self._names_lock:
                names = self._new_names.pop(directory, set())
            with self._poisoning(names):
                files.sync_directory(directory, dir_fd=self._dir_fd)

    @contextlib.contextmanager
    def _poisoning(self, ids: set[str]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.poisoned |= ids
            raise

    def _open_named(self, path: str) -> int:
        try:
            return files.open_file(path, dir_fd=self._dir_fd)
        except FileNotFoundError as error:
            full = files.path_of(self._dir_fd, path)
            raise Corrupt("A block with committed rows is missing", path=full) from error

    @property
    def may_close(self) -> bool:
        """More files are open than columns need to grow."""
        return len(self.open) > 2 * len(self._fields)

    def close_sealed(self, growing: set[str]) -> None:
        """Close the synced files that will not grow any more."""
        for block in [b for b in self.open.values() if not b.is_dirty and b.id not in growing]:
            del self.open[block.id]
            files.release_allocation(block.fd)
            block.close()

    def forget_poisoned(self) -> None:
        """The rows of the poisoned files have moved; who still pins those keeps them, and nobody syncs them again."""
        for path in [path for path in self._adopted if os.path.basename(path) in self.poisoned]:
            del self._adopted[path]
        for id in self.poisoned:
            if (block := self.open.pop(id, None)) is not None:
                block.close()
        self.poisoned.clear()

    def leave(self) -> None:
        """From now on nothing is created or removed: the directory's descriptor is about to be closed."""
        self._dir_fd = -1

    def close(self, *, is_shared: bool = False) -> None:
        """Close the files. Space that was reserved ahead is given back, unless peers may be growing them."""
        for block in self.open.values():
            if not is_shared:
                files.release_allocation(block.fd)
            block.close()
        self.open.clear()
        if self._queue is not None:
            self._queue.close()

    # -- removing -----------------------------------------------------------------------------------------------------

    def begin_generation(self, generation: int, *snapshots: Snapshot) -> None:
        """`generation` is current and durable: bury what none of `snapshots` names, and unlink what nobody pins."""
        superseded, self.generation = self.generation, generation
        for number, (field, births) in enumerate(zip(self._fields, self._births, strict=True)):
            live: set[str] = set().union(*(snapshot.columns[number].live() for snapshot in snapshots))
            for id in [id for id in births if id not in live]:
                self.bury(births[id], superseded, block_path(field, id))
                births.pop(id, None)
                if (block := self.open.pop(id, None)) is not None:
                    block.close()
        self.unlink_dead()

    def bury(self, first: int, last: int, path: str) -> None:
        """Unlink `path` once none of the generations `first` to `last` is pinned."""
        self._dead.append((first, last, path))

    def unlink_dead(self) -> None:
        """Remove superseded generations, and dead blocks, as far as no reader pins them. What cannot be removed is kept."""
        with contextlib.suppress(OSError):
            pinned = remove_superseded(self._dir_fd, self.generation)
            left = []
            for first, last, path in self._dead:  # which stays as it is meanwhile: an interrupt forgets nothing
                if any(first <= pin <= last for pin in pinned) or not self._unlinked(path):
                    left.append((first, last, path))
            self._dead = left

    def _remove(self, path: str) -> None:
        """Remove a file that nothing names, now or later."""
        if not self._unlinked(path):
            self.bury(1, 0, path)

    def _unlinked(self, path: str) -> bool:
        """Remove a file that nothing names; return whether it is gone."""
        self._adopted.pop(path, None)
        try:
            files.unlink(path, dir_fd=self._dir_fd, missing_ok=True)
        except OSError:
            return False
        self.unlinked += 1
        return True

    @property
    def has_dead(self) -> bool:
        """Some garbage could not be removed yet."""
        return bool(self._dead)

    # -- peers --------------------------------------------------------------------------------------------------------

    def learn(self, before: Snapshot, after: Snapshot, *, is_durable: bool) -> None:
        """Peers have committed what lies between two snapshots: note their blocks, go on in those that grow, and have
        what they wrote synced with the next sync, unless they have done so.
        """
        for number, (field, old, new) in enumerate(zip(self._fields, before.columns, after.columns, strict=True)):
            if new is old:
                continue
            known, named = old.blocks(), new.blocks()
            changed = [id for id, length in named.items() if known.get(id) != length]
            for id in changed:
                path = block_path(field, id)
                self._births[number].setdefault(id, self.generation)
                if not is_durable:
                    self._note_dirty(id, path)
            for block in (new.tail, new.patch):
                if block is not None and block.id not in self.open and block.rows < block.capacity_rows:
                    self.go_on_in(number, block)

    def _note_dirty(self, id: str, path: str) -> None:
        if (block := self.open.get(id)) is not None:
            block.is_dirty = True
        else:
            self._adopted[path] = None
            with self._names_lock:
                self._new_names.setdefault(os.path.dirname(path), set()).add(id)

    def follow_generation(self, generation: int, snapshot: Snapshot) -> None:
        """A peer began `generation`, and buried what it does not name: let go of that."""
        self.generation = generation
        for number, births in enumerate(self._births):
            named = snapshot.columns[number].blocks()
            for id in [id for id in births if id not in named]:
                if id.startswith(f"{self._producer}-"):  # the peer may be gone before it can remove it
                    self.bury(births[id], generation - 1, block_path(self._fields[number], id))
                del births[id]
                if (block := self.open.pop(id, None)) is not None:
                    block.close()
                self.poisoned.discard(id)
        for block in self.open.values():
            block.is_dirty = False
        self._adopted.clear()
        self._new_names.clear()

    def is_known(self, id: str) -> bool:
        """True if some column may name the block."""
        return any(id in births for births in self._births)

    def names(self, number: int, id: str) -> bool:
        """True if `id` is a block of this writer's snapshot or making."""
        return id in self._births[number]
