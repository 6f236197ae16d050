"""The engine with one step taken out: each `Mutant` is a change of its source, and says which tests have to fail by it.

A mutant is a copy of the package with one text replaced, which must be there exactly once. `fails_states` has the crash
states find it; `fails` names tests of the suite that do, where it takes two processes, a reader, or a failing disk to see it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import tensorblob

PACKAGE = Path(tensorblob.__file__).parent


class Mutant(NamedTuple):
    name: str
    module: str
    old: str
    new: str
    workloads: tuple[str, ...] = ()
    """The crash states of these workloads find it."""
    tests: tuple[str, ...] = ()
    """One of these tests fails."""

    def build(self, at: Path) -> None:
        """Make the changed package below `at`."""
        shutil.copytree(PACKAGE, at / "tensorblob", ignore=shutil.ignore_patterns("__pycache__"))
        path = at / "tensorblob" / self.module
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.name}: the step is not there, or twice: {text.count(self.old)}"
        path.write_text(text.replace(self.old, self.new))


MUTANTS = (
    # ---- files: what every durable act is made of
    Mutant(
        "new directories are not synced",
        "files.py",
        """        make_directory(path)
    sync_directory(parent)
""",
        """        make_directory(path)
""",
    ),
    Mutant(
        "a replaced file's name is not synced",
        "files.py",
        """    rename(aside, path, dir_fd=dir_fd)
    sync_directory(directory, dir_fd=dir_fd)
""",
        """    rename(aside, path, dir_fd=dir_fd)
""",
    ),
    Mutant(
        "a replaced file is written in place",
        "files.py",
        """    write_new_file(aside, data, dir_fd=dir_fd)
    rename(aside, path, dir_fd=dir_fd)
""",
        """    unlink(path, dir_fd=dir_fd, missing_ok=True)
    write_new_file(path, data, dir_fd=dir_fd)
""",
    ),
    Mutant(
        "a new file is not synced",
        "files.py",
        """        write_at(fd, data, len(data), 0)
        sync_file(fd, path)
""",
        """        write_at(fd, data, len(data), 0)
""",
    ),
    Mutant("no file is synced", "files.py", "        fdatasync(fd)\n", "        pass\n"),
    Mutant("no directory is synced", "files.py", "        os.fsync(fd)\n", "        pass\n"),
    Mutant(
        "a failed sync of a file is passed over",
        "files.py",
        """        raise SyncFailed(error.errno, f"Cannot make {what} durable: {error.strerror}") from error
""",
        "        pass\n",
    ),
    Mutant(
        "a failed sync of a directory is passed over",
        "files.py",
        """        raise SyncFailed(error.errno, f"Cannot make the directory {path!r} durable: {error.strerror}") from error
""",
        "        pass\n",
    ),
    Mutant("a short write is taken for a whole one", "files.py", "        if done != nbytes:\n", "        if False:\n"),
    # ---- blocks: what is not durable yet
    Mutant(
        "a flush does not sync open blocks",
        "blocks.py",
        """                with self._poisoning({block.id}):
                    files.sync_file(fd, block.path)
                self._adopted""",
        """                self._adopted""",
    ),
    Mutant(
        "a flush does not sync blocks that are not open",
        "blocks.py",
        """                    with self._poisoning({os.path.basename(path)}):
                        files.sync_file(fd, path)
""",
        "                    pass\n",
    ),
    Mutant(
        "a flush does not sync new names",
        "blocks.py",
        """            with self._poisoning(names):
                files.sync_directory(directory, dir_fd=self._dir_fd)
""",
        "",
    ),
    Mutant(
        "a commit does not sync its blocks",
        "blocks.py",
        """                try:
                    files.sync_file(block.fd, block.path)
                except BaseException:
                    self.poisoned.add(block.id)
                    raise
""",
        "",
    ),
    Mutant(
        "a commit leaves adopted blocks and new names",
        "blocks.py",
        """        if self._adopted or self._new_names:
            self.sync(self.dirty())
            return
""",
        "",
    ),
    Mutant(
        "names of new blocks are not noted",
        "blocks.py",
        """        self._births[number][id] = self.generation
        with self._names_lock:
            self._new_names.setdefault(os.path.dirname(path), set()).add(id)
        return id, path
""",
        """        self._births[number][id] = self.generation
        return id, path
""",
    ),
    Mutant(
        "rows are written and the block is not noted",
        "growth.py",
        """        tail.is_dirty = True  # after the write: a sync that began before it does not count
""",
        "",
    ),
    Mutant(
        "parts are written and the block is not noted",
        "growth.py",
        """        tail.rows, tail.crc32c = stop, crc
        tail.is_dirty = True
        return stop, crc

    def _write""",
        """        tail.rows, tail.crc32c = stop, crc
        return stop, crc

    def _write""",
    ),
    Mutant(
        "large rows are written and the block is not noted",
        "growth.py",
        """        block.is_dirty = True
        block.rows += count
""",
        """        block.rows += count
""",
    ),
    Mutant(
        "staged blocks are not synced before their turn",
        "blocks.py",
        """                block.is_dirty = False
                files.sync_file(block.fd, block.path)

    def drop_staged""",
        """                block.is_dirty = False

    def drop_staged""",
    ),
    Mutant(
        "staged blocks are not noted when they are named",
        "blocks.py",
        """            if block.is_dirty:
                self._adopted[block.path] = None

    def sync_staged""",
        """
    def sync_staged""",
    ),
    Mutant(
        "names of staged blocks are not noted",
        "blocks.py",
        """        for block in blocks:
            with self._names_lock:
                self._new_names.setdefault(os.path.dirname(block.path), set()).add(block.id)
            if block""",
        """        for block in blocks:
            if block""",
    ),
    Mutant(
        "blocks that were closed early are not noted",
        "blocks.py",
        """            if block.is_dirty:
                self._adopted[block.path] = None
            block.close()
""",
        """            block.close()
""",
    ),
    Mutant(
        "linked blocks are not noted",
        "blocks.py",
        """        self._adopted[path] = None
        return id
""",
        """        return id
""",
    ),
    Mutant(
        "blocks of a writer that was killed are not noted",
        "blocks.py",
        """            self._adopted.update((block_path(field, id), None) for id in live)
""",
        "",
    ),
    Mutant(
        "names of blocks of a writer that was killed are not noted",
        "blocks.py",
        """            self._new_names.setdefault(f"blocks/{field.directory}", set()).update(live)
""",
        "",
    ),
    Mutant(
        "what a peer wrote is taken for durable",
        "blocks.py",
        """                if not is_durable:
                    self._note_dirty(id, path)
""",
        "",
    ),
    Mutant(
        "names of blocks of a peer are not noted",
        "blocks.py",
        """            self._adopted[path] = None
            with self._names_lock:
                self._new_names.setdefault(os.path.dirname(path), set()).add(id)

    def follow""",
        """            self._adopted[path] = None

    def follow""",
    ),
    Mutant(
        "a tail that another blob has, too, is continued",
        "blocks.py",
        "            if stat.st_nlink == 1 and stat",
        "            if stat",
    ),
    Mutant(
        "a tail that is too short is continued", "blocks.py", " and stat.st_size >= block.rows * field.row_nbytes:", ":"
    ),
    Mutant(
        "a file whose sync failed is trusted",
        "blocks.py",
        """        except BaseException:
            self.poisoned |= ids
            raise
""",
        """        except BaseException:
            raise
""",
    ),
    Mutant(
        "a file whose sync failed in a commit is trusted",
        "blocks.py",
        """                except BaseException:
                    self.poisoned.add(block.id)
                    raise
""",
        """                except BaseException:
                    raise
""",
    ),
    Mutant(
        "pinned blocks are unlinked",
        "blocks.py",
        "                if any(first <= pin <= last for pin in pinned) or not",
        "                if not",
    ),
    # ---- writer: the order of a commit
    Mutant(
        "a commit syncs nothing before its edit",
        "writer.py",
        """                self._blocks.sync_all()
""",
        """                pass
""",
    ),
    Mutant(
        "a commit is acknowledged before its edit is synced",
        "writer.py",
        """        manifest = self._current
        self._sync_manifest(manifest)
        self._mark(manifest""",
        """        manifest = self._current
        self._mark(manifest""",
    ),
    Mutant(
        "a small commit is acknowledged before its edit is synced",
        "writer.py",
        """        self._sync_manifest(manifest)
        if self._blocks.may_close:""",
        """        if self._blocks.may_close:""",
    ),
    Mutant(
        "an edit is appended before its blocks are synced",
        "writer.py",
        """        self._make_appendable(manifest)
        manifest.append(tuple(ops))  # the commit point
""",
        """        manifest.append(tuple(ops))  # the commit point
        self._make_appendable(manifest)
""",
    ),
    Mutant(
        "a small edit is appended before its blocks are synced",
        "writer.py",
        """                    if self._is_power or manifest.is_broken:
                        self._make_appendable(manifest)
                    manifest.append((Grow(tails),))  # the commit point
""",
        """                    manifest.append((Grow(tails),))  # the commit point
                    if self._is_power or manifest.is_broken:
                        self._make_appendable(manifest)
""",
    ),
    Mutant(
        "a durable mark is appended before the sync",
        "writer.py",
        """        self._sync_manifest(manifest)
        self._mark(manifest, manifest.offset, self.snapshot)
""",
        """        self._mark(manifest, manifest.offset, self.snapshot)
        self._sync_manifest(manifest)
""",
    ),
    Mutant(
        "a flush does not sync blocks",
        "writer.py",
        """                self._blocks.sync(dirty)
                manifest.sync()
""",
        """                manifest.sync()
""",
    ),
    Mutant(
        "a flush does not sync the manifest",
        "writer.py",
        """                self._blocks.sync(dirty)
                manifest.sync()
""",
        """                self._blocks.sync(dirty)
""",
    ),
    Mutant(
        "a flush marks before it syncs",
        "writer.py",
        """                dirty = self._blocks.dirty()
            try:
                self._blocks.sync(dirty)
                manifest.sync()
""",
        """                dirty = self._blocks.dirty()
                self._mark(manifest, offset, synced)
            try:
                self._blocks.sync(dirty)
                manifest.sync()
""",
    ),
    Mutant(
        "a flush passes over what was not synced",
        "writer.py",
        """                if offset == self._flushed_offset:
                    return None
""",
        """                if self._flushed_offset >= 0:
                    return None
""",
    ),
    Mutant(
        "a generation begins without a sync of its blocks",
        "writer.py",
        """                self._blocks.sync(self._blocks.dirty())
                pruned""",
        """                pruned""",
    ),
    Mutant(
        "a generation's name is not synced",
        "writer.py",
        """                files.sync_directory(".", dir_fd=self.dir_fd)
            except SyncFailed""",
        """                pass
            except SyncFailed""",
    ),
    Mutant(
        "blocks are unlinked before the generation's name is synced",
        "writer.py",
        """            try:
                files.sync_directory(".", dir_fd=self.dir_fd)
            except SyncFailed:
                manifest.is_broken = self._is_due = True
                raise
            self._blocks.begin_generation(generation, snapshot, self.pending)
""",
        """            self._blocks.begin_generation(generation, snapshot, self.pending)
            try:
                files.sync_directory(".", dir_fd=self.dir_fd)
            except SyncFailed:
                manifest.is_broken = self._is_due = True
                raise
""",
    ),
    Mutant(
        "rows of a file whose sync failed do not move",
        "writer.py",
        "self._healed(before) if self._blocks.poisoned else before.columns",
        "before.columns",
    ),
    Mutant(
        "rows that a failed sync lost are moved unchecked",
        "writer.py",
        "                if block.crc32c != crc:\n",
        "                if False:\n",
    ),
    Mutant(
        "a writer goes on in a generation that is not all marked",
        "writer.py",
        """        if found.is_flushed:
            manifest = self._current
""",
        """        if True:
            manifest = self._current
""",
    ),
    Mutant(
        "a writer trusts what another wrote",
        "writer.py",
        """        if not found.is_flushed:
            self._blocks.distrust(found.snapshot)
""",
        "",
    ),
    Mutant(
        "another boot is not noticed by the writer",
        "writer.py",
        "        if found.is_same_boot and not found.is_torn and",
        "        if not found.is_torn and",
    ),
    Mutant(
        "a torn tail is appended to",
        "writer.py",
        "        if found.is_same_boot and not found.is_torn and",
        "        if found.is_same_boot and",
    ),
    Mutant("what was cut is appended to", "writer.py", " and not found.is_cut and is_alone:", " and is_alone:"),
    Mutant(
        "a manifest that another blob has, too, is appended to",
        "writer.py",
        " and not found.is_cut and is_alone:",
        " and not found.is_cut:",
    ),
    Mutant(
        "a power loss begins no new history",
        "writer.py",
        "        if not found.is_same_boot:\n            self._snapshot = self._snapshot.apply(",
        "        if False:\n            self._snapshot = self._snapshot.apply(",
    ),
    Mutant(
        "recovery goes on behind what was cut",
        "writer.py",
        """        self._current.is_broken = True  # what follows the last good record stays as it is
""",
        "",
    ),
    Mutant(
        "closing does not flush",
        "writer.py",
        """            self.flush()
            with self._lock:
                self._blocks.unlink_dead()
""",
        """            with self._lock:
                self._blocks.unlink_dead()
""",
    ),
    Mutant(
        "a sole writer takes no lock",
        "writer.py",
        """                self._writer_lock = files.lock_writer(os.path.join(path, "writer.lock"), timeout_s)
""",
        """                pass
""",
    ),
    Mutant(
        "a peer's generation is not noticed",
        "writer.py",
        "        if manifest.is_superseded():\n",
        "        if False:\n",
    ),
    Mutant(
        "a peer's commits are not noticed", "writer.py", "        elif manifest.has_grown():\n", "        elif False:\n"
    ),
    Mutant(
        "a peer's failed sync is not noticed",
        "writer.py",
        "        if trouble is not None and trouble.generation",
        "        if False and trouble is not None and trouble.generation",
    ),
    Mutant(
        "a failed sync is not shown to peers",
        "writer.py",
        """                self.turns.report(Trouble(""",
        """                (lambda _: None)(Trouble(""",
    ),
    Mutant(
        "a peer that died in a record is not noticed",
        "writer.py",
        """            manifest.is_broken |= not is_whole  # a peer died in the middle of a record
""",
        "",
    ),
    Mutant(
        "a directory that was replaced is written to",
        "writer.py",
        """        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise FileNotFoundError""",
        """        if False:
            raise FileNotFoundError""",
    ),
    # ---- manifest: the log and its generations
    Mutant(
        "a generation is not synced before it gets its name",
        "manifest.py",
        """            files.sync_file(fd, name)
            files.rename""",
        """            files.rename""",
    ),
    Mutant(
        "a generation gets its name before it is synced",
        "manifest.py",
        """            files.sync_file(fd, name)
            files.rename(f".{name}", name, dir_fd=dir_fd)
""",
        """            files.rename(f".{name}", name, dir_fd=dir_fd)
            files.sync_file(fd, name)
""",
    ),
    Mutant(
        "a generation is written under its name",
        "manifest.py",
        """        fd = files.create_file(f".{name}", dir_fd=dir_fd)
""",
        """        fd = files.create_file(f".{name}", dir_fd=dir_fd)
        files.rename(f".{name}", name, dir_fd=dir_fd)
        files.write_new_file(f".{name}", b"", dir_fd=dir_fd)
""",
    ),
    Mutant(
        "syncing the manifest does nothing",
        "manifest.py",
        """        files.sync_file(self.fd, manifest_name(self.generation))
""",
        """        pass
""",
    ),
    Mutant(
        "a failed append is followed by another",
        "manifest.py",
        """            self.is_broken = True
            is_visible""",
        """            is_visible""",
    ),
    Mutant(
        "readers do not pin",
        "manifest.py",
        "                pinned = files.try_lock(fd, shared=True) and os.fstat(fd).st_nlink > 0\n",
        "                pinned = os.fstat(fd).st_nlink > 0\n",
    ),
    Mutant(
        "a generation that was removed is pinned",
        "manifest.py",
        "                pinned = files.try_lock(fd, shared=True) and os.fstat(fd).st_nlink > 0\n",
        "                pinned = files.try_lock(fd, shared=True)\n",
    ),
    Mutant(
        "a generation that was superseded is pinned",
        "manifest.py",
        "                if not pinned or self._is_superseded(generation):\n",
        "                if not pinned:\n",
    ),
    Mutant(
        "readers do not look for the next generation",
        "manifest.py",
        """        if files.exists(self._next_name, dir_fd=self._dir_fd):
            self._open_newest()
        elif""",
        """        if False:
            self._open_newest()
        elif""",
    ),
    Mutant(
        "a pinned generation is removed",
        "manifest.py",
        """            if not files.try_lock(fd, shared=False):
                pinned.append(generation)
            elif not pinned:
""",
        """            if not pinned:
""",
    ),
    Mutant(
        "generations are removed in any order",
        "manifest.py",
        """            elif not pinned:
                files""",
        """            else:
                files""",
    ),
    # ---- replay and format: what counts
    Mutant(
        "rows are not checked after a power loss",
        "replay.py",
        "        if not is_certain and not _is_intact(dir_fd, store, snapshot, after):\n",
        "        if False:\n",
    ),
    Mutant(
        "rows of the last mark are checked for nothing that follows",
        "replay.py",
        "        is_certain = is_same_boot or record.stop <= durable_stop\n",
        "        is_certain = is_same_boot or durable_stop > 0\n",
    ),
    Mutant(
        "rows are never taken for certain",
        "replay.py",
        "        is_certain = is_same_boot or record.stop <= durable_stop\n",
        "        is_certain = is_same_boot\n",
    ),
    Mutant(
        "commits beyond the mark are folded unchecked",
        "replay.py",
        "            limit = len(data) if is_same_boot else durable_stop\n",
        "            limit = len(data)\n",
    ),
    Mutant("replay does not ask which boot it is", "replay.py", '        and session.boot_id == boot_id() != ""\n', ""),
    Mutant(
        "replay does not ask which file it is",
        "replay.py",
        "        and (session.device, session.inode) == (stat.st_dev, stat.st_ino)\n",
        "",
    ),
    Mutant(
        "a short block counts",
        "replay.py",
        """    if files.size_of(fd) < end:
        return None
""",
        "",
    ),
    Mutant(
        "the checksum of rows is not compared",
        "replay.py",
        "start, rows, start_crc) == crc\n",
        "start, rows, start_crc) is not None\n",
    ),
    Mutant(
        "a missing block counts",
        "replay.py",
        """    except (FileNotFoundError, ValueError):
        return False
""",
        """    except (FileNotFoundError, ValueError):
        return True
""",
    ),
    Mutant(
        "what follows the last good record is not looked at",
        "replay.py",
        """    _check_tail(data[stop:], seed, stop, name, is_same_boot=is_same_boot)
""",
        "",
    ),
    Mutant(
        "a record's checksum is not compared",
        "format.py",
        """    if line[8:9] != b" " or line[:8] != b"%08x" % crc32c(seed, _pack_offset(offset) + text):
""",
        """    if line[8:9] != b" ":
""",
    ),
    Mutant(
        "a record may lie anywhere",
        "format.py",
        ' != b"%08x" % crc32c(seed, _pack_offset(offset) + text):',
        ' not in {b"%08x" % crc32c(seed, _pack_offset(at) + text) for at in range(1 << 13)}:',
    ),
    Mutant(
        "a record may be of another generation",
        "format.py",
        "    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))\n",
        "    return int(crc32c(0, bytes.fromhex(uuid)))\n",
    ),
    Mutant(
        "a record may be of another blob",
        "format.py",
        "    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))\n",
        "    return int(crc32c(0, _pack_offset(generation)))\n",
    ),
    Mutant(
        "the checksum of schema.json is not compared",
        "format.py",
        "        intact = encode_store(store) == data and len",
        "        intact = len",
    ),
    # ---- blobs come and go
    Mutant(
        "a copy's files are not synced",
        "create.py",
        """                    files.sync_file(fd, block)
""",
        """                    pass
""",
    ),
    Mutant(
        "a new blob's directories are not synced",
        "create.py",
        """            for directory in directories:
                files.sync_directory(directory, dir_fd=dir_fd)
            Manifest""",
        """            Manifest""",
    ),
    Mutant(
        "a new blob's own names are not synced",
        "create.py",
        """            files.sync_directory(".", dir_fd=dir_fd)
            try:""",
        """            try:""",
    ),
    Mutant(
        "a new blob's path is not synced",
        "create.py",
        """            os.close(dir_fd)
    files.sync_directory(parent)
    return True
""",
        """            os.close(dir_fd)
    return True
""",
    ),
    Mutant(
        "a new blob's path is synced before it is there",
        "create.py",
        """            try:
                files.rename(aside, path)  # the commit point: the blob exists
""",
        """            files.sync_directory(parent)
            try:
                files.rename(aside, path)  # the commit point: the blob exists
""",
    ),
    Mutant(
        "a blob is built in its place",
        "create.py",
        """    aside = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.new")
""",
        """    aside = path
""",
    ),
    Mutant(
        "a blob's files go before its path",
        "create.py",
        """    files.sync_directory(parent)  # first: after a power loss the path may lead to all of it or to nothing, not to half
    files.remove_tree(gone)
""",
        """    files.remove_tree(gone)
    files.sync_directory(parent)
""",
    ),
    Mutant(
        "a blob's files go where they are",
        "create.py",
        """    files.rename(path, gone)
    files.sync""",
        """    gone = path
    files.sync""",
    ),
    Mutant("who builds does not lock the parent", "create.py", "        files.lock(parent_fd)\n", ""),
    Mutant(
        "who builds does not lock what is built",
        "create.py",
        """        if not files.try_lock(dir_fd, shared=False):
            raise AssertionError("nobody else has the name")
        return dir_fd
""",
        """        return dir_fd
""",
    ),
    Mutant(
        "what others build is removed",
        "create.py",
        "                if not _foreign(fd) and files.try_lock(fd, shared=False):\n",
        "                if not _foreign(fd):\n",
    ),
    Mutant(
        "a replaced blob is removed",
        "create.py",
        """    if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
        raise BlobReplaced""",
        """    if False:
        raise BlobReplaced""",
    ),
    # ---- cursors, producers, turns
    Mutant(
        "a cursor's checksum is not compared",
        "cursors.py",
        "    if found.crc32c != _checksum(found.row, found.history):\n",
        "    if False:\n",
    ),
    Mutant(
        "a cursor is not locked",
        "cursors.py",
        "            if not files.try_lock_soon(self._fd):\n",
        "            if False:\n",
    ),
    Mutant(
        "a consumer is always taken for dead",
        "cursors.py",
        "        return not files.try_lock(fd, shared=True)\n",
        "        return False\n",
    ),
    Mutant(
        "a producer does not lock its file",
        "presence.py",
        "        if not files.try_lock(self.fd, shared=False):\n",
        "        if False:\n",
    ),
    Mutant(
        "a producer is seen before it has its lock",
        "presence.py",
        """            if not files.try_lock(self.fd, shared=False):
                raise AssertionError("nobody else has the name")
            self.say()
            files.rename(self._hidden, self._path, dir_fd=dir_fd)
""",
        """            files.rename(self._hidden, self._path, dir_fd=dir_fd)
            if not files.try_lock(self.fd, shared=False):
                raise AssertionError("nobody else has the name")
            self.say()
""",
    ),
    Mutant(
        "every producer is taken for dead",
        "presence.py",
        "        return files.try_lock(fd, shared=True)\n",
        "        return True\n",
    ),
    Mutant(
        "staged rows are copied unchecked",
        "staging.py",
        "                if crc32c(0, as_bytes(rows)) != block.crc32c:\n",
        "                if False:\n",
    ),
    Mutant(
        "a generation that a killed writer began is trusted",
        "sweep.py",
        """        files.sync_directory(".", dir_fd=dir_fd)
    elif""",
        """        pass
    elif""",
    ),
    Mutant(
        "a path that a killed creator made is trusted",
        "sweep.py",
        """            files.sync_directory(os.path.dirname(path))
""",
        """            pass
""",
    ),
    Mutant(
        "blocks of live producers are garbage",
        "sweep.py",
        'blocks.names(number, name) and is_gone(name.partition("-")[0]):',
        "blocks.names(number, name):",
    ),
    Mutant(
        "blocks that pinned generations name are garbage",
        "sweep.py",
        '                blocks.bury(0 if last else 1, last, f"{directory}/{name}")\n',
        '                blocks.bury(1, 0, f"{directory}/{name}")\n',
    ),
    Mutant(
        "turns are not taken",
        "turns.py",
        """                files.lock(self._fd)
                try:
                    self._begin()
""",
        """                try:
                    self._begin()
""",
    ),
    Mutant(
        "a turn begins without looking what peers did",
        "turns.py",
        """                files.lock(self._fd)
                try:
                    self._begin()
                except""",
        """                files.lock(self._fd)
                try:
                    pass
                except""",
    ),
    Mutant(
        "a turn is tried without the lock",
        "turns.py",
        "        if not self._depth and (self._fd < 0 or not files.try_lock(self._fd, shared=False)):\n",
        "        if False:\n",
    ),
    Mutant(
        "shared writers let sole ones in",
        "files.py",
        """    while not try_lock(fd, shared=True):
        if time""",
        """    while False:
        if time""",
    ),
    Mutant("the counts of a limiter are not locked", "limiter.py", "PLACEHOLDER", ""),
)
