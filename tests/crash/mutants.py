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
    Mutant('new directories are not synced', 'files.py', '        make_directory(path)\n    sync_directory(parent)\n', '        make_directory(path)\n', workloads=('create',)),
    Mutant("a replaced file's name is not synced", 'files.py', '    rename(aside, path, dir_fd=dir_fd)\n    sync_directory(directory, dir_fd=dir_fd)\n', '    rename(aside, path, dir_fd=dir_fd)\n', workloads=('cursor',)),
    Mutant('a replaced file is written in place', 'files.py', '    write_new_file(aside, data, dir_fd=dir_fd)\n    rename(aside, path, dir_fd=dir_fd)\n', '    unlink(path, dir_fd=dir_fd, missing_ok=True)\n    write_new_file(path, data, dir_fd=dir_fd)\n', workloads=('cursor',)),
    Mutant('a new file is not synced', 'files.py', '        write_at(fd, data, len(data), 0)\n        sync_file(fd, path)\n', '        write_at(fd, data, len(data), 0)\n', workloads=('create',)),
    Mutant('no file is synced', 'files.py', '        fdatasync(fd)\n', '        pass\n', workloads=('append',)),
    Mutant('no directory is synced', 'files.py', '        os.fsync(fd)\n', '        pass\n', workloads=('append',)),
    Mutant('a failed sync of a file is passed over', 'files.py', '        raise SyncFailed(error.errno, f"Cannot make {what} durable: {error.strerror}") from error\n', '        pass\n', tests=('test_durability.py::test_a_failed_sync_costs_at_most_its_own_commit_and_the_next_goes_to_new_files',)),
    Mutant('a failed sync of a directory is passed over', 'files.py', '        raise SyncFailed(error.errno, f"Cannot make the directory {path!r} durable: {error.strerror}") from error\n', '        pass\n', tests=('test_durability.py::test_a_failed_sync_costs_at_most_its_own_commit_and_the_next_goes_to_new_files',)),
    Mutant('a short write is taken for a whole one', 'files.py', '        if done != nbytes:\n', '        if False:\n', tests=('test_bad_luck.py',)),
    Mutant('a flush does not sync open blocks', 'blocks.py', '                with self._poisoning({block.id}):\n                    files.sync_file(fd, block.path)\n                self._adopted', '                self._adopted', workloads=('append',)),
    Mutant('a flush does not sync blocks that are not open', 'blocks.py', '                    with self._poisoning({os.path.basename(path)}):\n                        files.sync_file(fd, path)\n', '                    pass\n', workloads=('extend',)),
    Mutant('a flush does not sync new names', 'blocks.py', '            with self._poisoning(names):\n                files.sync_directory(directory, dir_fd=self._dir_fd)\n', '', workloads=('durable_mark',)),
    Mutant('a commit does not sync its blocks', 'blocks.py', '                try:\n                    files.sync_file(block.fd, block.path)\n                except BaseException:\n                    self.poisoned.add(block.id)\n                    raise\n', '', workloads=('append',)),
    Mutant('a commit leaves adopted blocks and new names', 'blocks.py', '        if self._adopted or self._new_names:\n            self.sync(self.dirty())\n            return\n', '', workloads=('append',)),
    Mutant('names of new blocks are not noted', 'blocks.py', '        self._births[number][id] = self.generation\n        with self._names_lock:\n            self._new_names.setdefault(os.path.dirname(path), set()).add(id)\n        return id, path\n', '        self._births[number][id] = self.generation\n        return id, path\n', workloads=('durable_mark',)),
    Mutant('rows are written and the block is not noted', 'growth.py', '        tail.is_dirty = True  # after the write: a sync that began before it does not count\n', '', workloads=('append',)),
    Mutant('parts are written and the block is not noted', 'growth.py', '        tail.rows, tail.crc32c = stop, crc\n        tail.is_dirty = True\n        return stop, crc\n\n    def _write', '        tail.rows, tail.crc32c = stop, crc\n        return stop, crc\n\n    def _write', workloads=('stream',)),
    Mutant('large rows are written and the block is not noted', 'growth.py', '        block.is_dirty = True\n        block.rows += count\n', '        block.rows += count\n', workloads=('append',)),
    Mutant('staged blocks are not synced before their turn', 'blocks.py', '                block.is_dirty = False\n                files.sync_file(block.fd, block.path)\n\n    def drop_staged', '                block.is_dirty = False\n\n    def drop_staged', workloads=('staged',)),
    Mutant('staged blocks are not noted when they are named', 'blocks.py', '            if block.is_dirty:\n                self._adopted[block.path] = None\n\n    def sync_staged', '\n    def sync_staged', workloads=('staged',)),
    Mutant('names of staged blocks are not noted', 'blocks.py', '        for block in blocks:\n            with self._names_lock:\n                self._new_names.setdefault(os.path.dirname(block.path), set()).add(block.id)\n            if block', '        for block in blocks:\n            if block', workloads=('staged',)),
    Mutant('blocks that were closed early are not noted', 'blocks.py', '            if block.is_dirty:\n                self._adopted[block.path] = None\n            block.close()\n', '            block.close()\n', workloads=('seal',)),
    Mutant('linked blocks are not noted', 'blocks.py', '        self._adopted[path] = None\n        return id\n', '        return id\n', workloads=('extend',)),
    Mutant('blocks of a writer that was killed are not noted', 'blocks.py', '            self._adopted.update((block_path(field, id), None) for id in live)\n', '', workloads=('killed',)),
    Mutant('names of blocks of a writer that was killed are not noted', 'blocks.py', '            self._new_names.setdefault(f"blocks/{field.directory}", set()).update(live)\n', '', workloads=('killed',)),
    Mutant('what a peer wrote is taken for durable', 'blocks.py', '                if not is_durable:\n                    self._note_dirty(id, path)\n', '', workloads=('shared',)),
    Mutant('names of blocks of a peer are not noted', 'blocks.py', '            self._adopted[path] = None\n            with self._names_lock:\n                self._new_names.setdefault(os.path.dirname(path), set()).add(id)\n\n    def follow', '            self._adopted[path] = None\n\n    def follow', workloads=('shared',)),
    Mutant('a tail that another blob has, too, is continued', 'blocks.py', '            if stat.st_nlink == 1 and stat', '            if stat', tests=('test_recovery.py::test_a_tail_is_sealed_as_it_is_after',)),
    Mutant('a tail that is too short is continued', 'blocks.py', ' and stat.st_size >= block.rows * field.row_nbytes:', ':', tests=('test_recovery.py::test_a_tail_is_sealed_as_it_is_after',)),
    Mutant('a file whose sync failed is trusted', 'blocks.py', '        except BaseException:\n            self.poisoned |= ids\n            raise\n', '        except BaseException:\n            raise\n', tests=('test_durability.py::test_a_failed_flush_says_so_and_the_next_one_makes_all_rows_durable',)),
    Mutant('a file whose sync failed in a commit is trusted', 'blocks.py', '                except BaseException:\n                    self.poisoned.add(block.id)\n                    raise\n', '                except BaseException:\n                    raise\n', tests=('test_durability.py::test_a_failed_sync_costs_at_most_its_own_commit_and_the_next_goes_to_new_files',)),
    Mutant('pinned blocks are unlinked', 'blocks.py', '                if any(first <= pin <= last for pin in pinned) or not', '                if not', tests=('test_pins.py::test_a_block_goes_when_the_last_generation_that_needs_it_is_let_go_and_not_before',)),
    Mutant('a commit syncs nothing before its edit', 'writer.py', '                self._blocks.sync_all()\n', '                pass\n', workloads=('append',)),
    Mutant('a commit is acknowledged before its edit is synced', 'writer.py', '        manifest = self._current\n        self._sync_manifest(manifest)\n        self._mark(manifest', '        manifest = self._current\n        self._mark(manifest', workloads=('append',)),
    Mutant('a small commit is acknowledged before its edit is synced', 'writer.py', '        self._sync_manifest(manifest)\n        if self._blocks.may_close:', '        if self._blocks.may_close:', workloads=('append',)),
    Mutant('an edit is appended before its blocks are synced', 'writer.py', '        self._make_appendable(manifest)\n        manifest.append(tuple(ops))  # the commit point\n', '        manifest.append(tuple(ops))  # the commit point\n        self._make_appendable(manifest)\n', tests=('test_durability.py::test_every_act_is_in_the_order_of_the_protocol',)),
    Mutant('a small edit is appended before its blocks are synced', 'writer.py', '                    if self._is_power or manifest.is_broken:\n                        self._make_appendable(manifest)\n                    manifest.append((Grow(tails),))  # the commit point\n', '                    manifest.append((Grow(tails),))  # the commit point\n                    if self._is_power or manifest.is_broken:\n                        self._make_appendable(manifest)\n', tests=('test_durability.py::test_a_power_commit_is_exactly_these_acts',)),
    Mutant('a durable mark is appended before the sync', 'writer.py', '        self._sync_manifest(manifest)\n        self._mark(manifest, manifest.offset, self.snapshot)\n', '        self._mark(manifest, manifest.offset, self.snapshot)\n        self._sync_manifest(manifest)\n', workloads=('transaction',)),
    Mutant('a flush does not sync blocks', 'writer.py', '                self._blocks.sync(dirty)\n                manifest.sync()\n', '                manifest.sync()\n', workloads=('durable_mark',)),
    Mutant('a flush does not sync the manifest', 'writer.py', '                self._blocks.sync(dirty)\n                manifest.sync()\n', '                self._blocks.sync(dirty)\n', workloads=('durable_mark',)),
    Mutant('a flush marks before it syncs', 'writer.py', '                dirty = self._blocks.dirty()\n            try:\n                self._blocks.sync(dirty)\n                manifest.sync()\n', '                dirty = self._blocks.dirty()\n                self._mark(manifest, offset, synced)\n            try:\n                self._blocks.sync(dirty)\n                manifest.sync()\n', workloads=('durable_mark',)),
    Mutant('a flush passes over what was not synced', 'writer.py', '                if offset == self._flushed_offset:\n                    return None\n', '                if self._flushed_offset >= 0:\n                    return None\n', workloads=('durable_mark',)),
    Mutant('a generation begins without a sync of its blocks', 'writer.py', '                self._blocks.sync(self._blocks.dirty())\n                pruned', '                pruned', workloads=('checkpoint',)),
    Mutant("a generation's name is not synced", 'writer.py', '                files.sync_directory(".", dir_fd=self.dir_fd)\n            except SyncFailed', '                pass\n            except SyncFailed', workloads=('compact',)),
    Mutant("blocks are unlinked before the generation's name is synced", 'writer.py', '            try:\n                files.sync_directory(".", dir_fd=self.dir_fd)\n            except SyncFailed:\n                manifest.is_broken = self._is_due = True\n                raise\n            self._blocks.begin_generation(generation, snapshot, self.pending)\n', '            self._blocks.begin_generation(generation, snapshot, self.pending)\n            try:\n                files.sync_directory(".", dir_fd=self.dir_fd)\n            except SyncFailed:\n                manifest.is_broken = self._is_due = True\n                raise\n', workloads=('compact',)),
    Mutant('rows of a file whose sync failed do not move', 'writer.py', 'self._healed(before) if self._blocks.poisoned else before.columns', 'before.columns', tests=('test_durability.py::test_a_failed_sync_costs_at_most_its_own_commit_and_the_next_goes_to_new_files',)),
    Mutant('rows that a failed sync lost are moved unchecked', 'writer.py', '                if block.crc32c != crc:\n', '                if False:\n', tests=('test_durability.py::test_rows_that_the_kernel_dropped_when_their_sync_failed_are_not_passed_on',)),
    Mutant('a writer goes on in a generation that is not all marked', 'writer.py', '        if found.is_flushed:\n            manifest = self._current\n', '        if True:\n            manifest = self._current\n', workloads=('killed',)),
    Mutant('a writer trusts what another wrote', 'writer.py', '        if not found.is_flushed:\n            self._blocks.distrust(found.snapshot)\n', '', workloads=('killed',)),
    Mutant('another boot is not noticed by the writer', 'writer.py', '        if found.is_same_boot and not found.is_torn and', '        if not found.is_torn and', workloads=('append',)),
    Mutant('a torn tail is appended to', 'writer.py', '        if found.is_same_boot and not found.is_torn and', '        if found.is_same_boot and', tests=('test_recovery.py::test_a_torn_record_stays_where_it_is_and_a_new_generation_begins',)),
    Mutant('what was cut is appended to', 'writer.py', ' and not found.is_cut and is_alone:', ' and is_alone:', workloads=('append',)),
    Mutant('a manifest that another blob has, too, is appended to', 'writer.py', ' and not found.is_cut and is_alone:', ' and not found.is_cut:', tests=('test_recovery.py::test_a_tree_of_hard_links_is_two_blobs_whoever_writes_next',)),
    Mutant('a power loss begins no new history', 'writer.py', '        if not found.is_same_boot:\n            self._snapshot = self._snapshot.apply(', '        if False:\n            self._snapshot = self._snapshot.apply(', workloads=('append',)),
    Mutant('recovery goes on behind what was cut', 'writer.py', '        self._current.is_broken = True  # what follows the last good record stays as it is\n', '', workloads=('append',)),
    Mutant('closing does not flush', 'writer.py', '            self.flush()\n            with self._lock:\n                self._blocks.unlink_dead()\n', '            with self._lock:\n                self._blocks.unlink_dead()\n', workloads=('append',)),
    Mutant('a sole writer takes no lock', 'writer.py', '                self._writer_lock = files.lock_writer(os.path.join(path, "writer.lock"), timeout_s)\n', '                pass\n', tests=('crash/test_locks.py',)),
    Mutant("a peer's generation is not noticed", 'writer.py', '        if manifest.is_superseded():\n', '        if False:\n', tests=('test_shared.py::test_a_writer_that_slept_through_two_generations_goes_on_in_the_newest',)),
    Mutant("a peer's commits are not noticed", 'writer.py', '        elif manifest.has_grown():\n', '        elif False:\n', tests=('test_shared.py::test_peers_see_what_the_others_did_at_their_next_turn',)),
    Mutant("a peer's failed sync is not noticed", 'writer.py', '        if trouble is not None and trouble.generation', '        if False and trouble is not None and trouble.generation', tests=('test_shared.py::test_a_failed_sync_of_one_is_known_to_its_peers_who_go_on_in_new_files',)),
    Mutant('a failed sync is not shown to peers', 'writer.py', '                self.turns.report(Trouble(', '                (lambda _: None)(Trouble(', tests=('test_shared.py::test_a_failed_sync_of_one_is_known_to_its_peers_who_go_on_in_new_files',)),
    Mutant('a peer that died in a record is not noticed', 'writer.py', '            manifest.is_broken |= not is_whole  # a peer died in the middle of a record\n', '', tests=('test_shared.py::test_a_shared_writer_that_is_killed_stops_nobody_and_loses_nothing_it_was_told',)),
    Mutant('a directory that was replaced is written to', 'writer.py', '        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):\n            raise FileNotFoundError', '        if False:\n            raise FileNotFoundError', tests=('test_bad_open.py',)),
    Mutant('a generation is not synced before it gets its name', 'manifest.py', '            files.sync_file(fd, name)\n            files.rename', '            files.rename', workloads=('checkpoint',)),
    Mutant('a generation gets its name before it is synced', 'manifest.py', '            files.sync_file(fd, name)\n            files.rename(f".{name}", name, dir_fd=dir_fd)\n', '            files.rename(f".{name}", name, dir_fd=dir_fd)\n            files.sync_file(fd, name)\n', workloads=('checkpoint',)),
    Mutant('a generation is written under its name', 'manifest.py', '        fd = files.create_file(f".{name}", dir_fd=dir_fd)\n', '        fd = files.create_file(f".{name}", dir_fd=dir_fd)\n        files.rename(f".{name}", name, dir_fd=dir_fd)\n        files.write_new_file(f".{name}", b"", dir_fd=dir_fd)\n', workloads=('checkpoint',)),
    Mutant('syncing the manifest does nothing', 'manifest.py', '        files.sync_file(self.fd, manifest_name(self.generation))\n', '        pass\n', workloads=('append',)),
    Mutant('a failed append is followed by another', 'manifest.py', '            self.is_broken = True\n            is_visible', '            is_visible', tests=('test_durability.py::test_a_commit_whose_record_could_not_be_written_never_was',)),
    Mutant('readers do not pin', 'manifest.py', '                pinned = files.try_lock(fd, shared=True) and os.fstat(fd).st_nlink > 0\n', '                pinned = os.fstat(fd).st_nlink > 0\n', tests=('crash/test_locks.py',)),
    Mutant('a generation that was removed is pinned', 'manifest.py', '                pinned = files.try_lock(fd, shared=True) and os.fstat(fd).st_nlink > 0\n', '                pinned = files.try_lock(fd, shared=True)\n', tests=('test_processes.py::test_opening_never_fails_while_generations_come_and_go',)),
    Mutant('a generation that was superseded is pinned', 'manifest.py', '                if not pinned or self._is_superseded(generation):\n', '                if not pinned:\n', tests=('test_processes.py::test_opening_never_fails_while_generations_come_and_go',)),
    Mutant('readers do not look for the next generation', 'manifest.py', '        if files.exists(self._next_name, dir_fd=self._dir_fd):\n            self._open_newest()\n        elif', '        if False:\n            self._open_newest()\n        elif', tests=('crash/test_locks.py',)),
    Mutant('a pinned generation is removed', 'manifest.py', '            if not files.try_lock(fd, shared=False):\n                pinned.append(generation)\n            elif not pinned:\n', '            if not pinned:\n', tests=('crash/test_locks.py',)),
    Mutant('generations are removed in any order', 'manifest.py', '            elif not pinned:\n                files', '            else:\n                files', tests=('test_pins.py::test_manifests_are_removed_oldest_first',)),
    Mutant('rows are not checked after a power loss', 'replay.py', '        if not is_certain and not _is_intact(dir_fd, store, snapshot, after):\n', '        if False:\n', workloads=('append',)),
    Mutant('rows of the last mark are checked for nothing that follows', 'replay.py', '        is_certain = is_same_boot or record.stop <= durable_stop\n', '        is_certain = is_same_boot or durable_stop > 0\n', workloads=('append',)),
    Mutant('rows are never taken for certain', 'replay.py', '        is_certain = is_same_boot or record.stop <= durable_stop\n', '        is_certain = is_same_boot\n', tests=('test_recovery.py::test_a_lost_block_of_durable_rows_is_corrupt_and_no_shorter_blob',)),
    Mutant('commits beyond the mark are folded unchecked', 'replay.py', '            limit = len(data) if is_same_boot else durable_stop\n', '            limit = len(data)\n', workloads=('durable_mark',)),
    Mutant('replay does not ask which boot it is', 'replay.py', '        and session.boot_id == boot_id() != ""\n', '', workloads=('append',)),
    Mutant('replay does not ask which file it is', 'replay.py', '        and (session.device, session.inode) == (stat.st_dev, stat.st_ino)\n', '', tests=('test_recovery.py::test_no_rows_are_trusted_that_another_machine_wrote_since_its_last_mark',)),
    Mutant('a short block counts', 'replay.py', '    if files.size_of(fd) < end:\n        return None\n', '', workloads=('append',)),
    Mutant('the checksum of rows is not compared', 'replay.py', 'start, rows, start_crc) == crc\n', 'start, rows, start_crc) is not None\n', workloads=('append',)),
    Mutant('a missing block counts', 'replay.py', '    except (FileNotFoundError, ValueError):\n        return False\n', '    except (FileNotFoundError, ValueError):\n        return True\n', workloads=('append',)),
    Mutant('what follows the last good record is not looked at', 'replay.py', '    _check_tail(data[stop:], seed, stop, name, is_same_boot=is_same_boot)\n', '', tests=('test_recovery.py::test_damage_before_the_end_of_the_log_is_never_taken_for_a_torn_tail',)),
    Mutant("a record's checksum is not compared", 'format.py', '    if line[8:9] != b" " or line[:8] != b"%08x" % crc32c(seed, _pack_offset(offset) + text):\n', '    if line[8:9] != b" ":\n', workloads=('append',)),
    Mutant('a record may lie anywhere', 'format.py', ' != b"%08x" % crc32c(seed, _pack_offset(offset) + text):', ' not in {b"%08x" % crc32c(seed, _pack_offset(at) + text) for at in range(1 << 13)}:', tests=('test_format.py::test_a_record_is_valid_only_where_it_was_written',)),
    Mutant('a record may be of another generation', 'format.py', '    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))\n', '    return int(crc32c(0, bytes.fromhex(uuid)))\n', tests=('test_format.py::test_a_record_is_valid_only_where_it_was_written',)),
    Mutant('a record may be of another blob', 'format.py', '    return int(crc32c(0, bytes.fromhex(uuid) + _pack_offset(generation)))\n', '    return int(crc32c(0, _pack_offset(generation)))\n', tests=('test_format.py::test_a_record_is_valid_only_where_it_was_written',)),
    Mutant('the checksum of schema.json is not compared', 'format.py', '        intact = encode_store(store) == data and len', '        intact = len', tests=('test_format.py::test_any_flipped_bit_of_schema_json_is_detected',)),
    Mutant("a copy's files are not synced", 'create.py', '                    files.sync_file(fd, block)\n', '                    pass\n', workloads=('copy',)),
    Mutant("a new blob's directories are not synced", 'create.py', '            for directory in directories:\n                files.sync_directory(directory, dir_fd=dir_fd)\n            Manifest', '            Manifest', workloads=('create',)),
    Mutant("a new blob's own names are not synced", 'create.py', '            files.sync_directory(".", dir_fd=dir_fd)\n            try:', '            try:', workloads=('create',)),
    Mutant("a new blob's path is not synced", 'create.py', '            os.close(dir_fd)\n    files.sync_directory(parent)\n    return True\n', '            os.close(dir_fd)\n    return True\n', workloads=('create',)),
    Mutant("a new blob's path is synced before it is there", 'create.py', '            try:\n                files.rename(aside, path)  # the commit point: the blob exists\n', '            files.sync_directory(parent)\n            try:\n                files.rename(aside, path)  # the commit point: the blob exists\n', workloads=('create',)),
    Mutant('a blob is built in its place', 'create.py', '    aside = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.new")\n', '    aside = path\n', workloads=('create',)),
    Mutant("a blob's files go before its path", 'create.py', '    files.sync_directory(parent)  # first: after a power loss the path may lead to all of it or to nothing, not to half\n    files.remove_tree(gone)\n', '    files.remove_tree(gone)\n    files.sync_directory(parent)\n', workloads=('unlink',)),
    Mutant("a blob's files go where they are", 'create.py', '    files.rename(path, gone)\n    files.sync', '    gone = path\n    files.sync', workloads=('unlink',)),
    Mutant('who builds does not lock the parent', 'create.py', '        files.lock(parent_fd)\n', '', tests=('crash/test_locks.py',)),
    Mutant('who builds does not lock what is built', 'create.py', '        if not files.try_lock(dir_fd, shared=False):\n            raise AssertionError("nobody else has the name")\n        return dir_fd\n', '        return dir_fd\n', tests=('crash/test_locks.py',)),
    Mutant('what others build is removed', 'create.py', '                if not _foreign(fd) and files.try_lock(fd, shared=False):\n', '                if not _foreign(fd):\n', tests=('test_recovery.py::test_blobs_whose_building_was_cut_short_are_removed_by_the_next_build_there',)),
    Mutant('a replaced blob is removed', 'create.py', '    if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):\n        raise BlobReplaced', '    if False:\n        raise BlobReplaced', tests=('test_review_fixes.py',)),
    Mutant("a cursor's checksum is not compared", 'cursors.py', '    if found.crc32c != _checksum(found.row, found.history):\n', '    if False:\n', tests=('test_cursors.py::test_a_damaged_cursor_file_is_corrupt_and_never_another_position',)),
    Mutant('a cursor is not locked', 'cursors.py', '            if not files.try_lock_soon(self._fd):\n', '            if False:\n', tests=('crash/test_locks.py',)),
    Mutant('a consumer is always taken for dead', 'cursors.py', '        return not files.try_lock(fd, shared=True)\n', '        return False\n', tests=('test_cursors.py::test_producers_wait_for_a_slow_consumer_in_another_process',)),
    Mutant('a producer does not lock its file', 'presence.py', '        if not files.try_lock(self.fd, shared=False):\n', '        if False:\n', tests=('crash/test_locks.py',)),
    Mutant('a producer is seen before it has its lock', 'presence.py', '            if not files.try_lock(self.fd, shared=False):\n                raise AssertionError("nobody else has the name")\n            self.say()\n            files.rename(self._hidden, self._path, dir_fd=dir_fd)\n', '            files.rename(self._hidden, self._path, dir_fd=dir_fd)\n            if not files.try_lock(self.fd, shared=False):\n                raise AssertionError("nobody else has the name")\n            self.say()\n', tests=('crash/test_locks.py',)),
    Mutant('every producer is taken for dead', 'presence.py', '        return files.try_lock(fd, shared=True)\n', '        return True\n', tests=('test_recovery.py::test_garbage_of_dead_producers_is_removed_and_that_of_live_ones_is_not',)),
    Mutant('staged rows are copied unchecked', 'staging.py', '                if crc32c(0, as_bytes(rows)) != block.crc32c:\n', '                if False:\n', tests=('test_shared.py',)),
    Mutant('a generation that a killed writer began is trusted', 'sweep.py', '        files.sync_directory(".", dir_fd=dir_fd)\n    elif', '        pass\n    elif', workloads=('killed',)),
    Mutant('a path that a killed creator made is trusted', 'sweep.py', '            files.sync_directory(os.path.dirname(path))\n', '            pass\n', workloads=('create_killed',)),
    Mutant('blocks of live producers are garbage', 'sweep.py', 'blocks.names(number, name) and is_gone(name.partition("-")[0]):', 'blocks.names(number, name):', tests=('test_recovery.py::test_garbage_of_dead_producers_is_removed_and_that_of_live_ones_is_not',)),
    Mutant('blocks that pinned generations name are garbage', 'sweep.py', '                blocks.bury(0 if last else 1, last, f"{directory}/{name}")\n', '                blocks.bury(1, 0, f"{directory}/{name}")\n', tests=('test_pins.py::test_the_next_writer_keeps_what_readers_of_the_current_generation_hold',)),
    Mutant('turns are not taken', 'turns.py', '                files.lock(self._fd)\n                try:\n                    self._begin()\n', '                try:\n                    self._begin()\n', tests=('crash/test_locks.py',)),
    Mutant('a turn begins without looking what peers did', 'turns.py', '                files.lock(self._fd)\n                try:\n                    self._begin()\n                except', '                files.lock(self._fd)\n                try:\n                    pass\n                except', tests=('test_shared.py::test_peers_see_what_the_others_did_at_their_next_turn',)),
    Mutant('a turn is tried without the lock', 'turns.py', '        if not self._depth and (self._fd < 0 or not files.try_lock(self._fd, shared=False)):\n', '        if False:\n', tests=('test_async_writer.py',)),
    Mutant('shared writers let sole ones in', 'files.py', '    while not try_lock(fd, shared=True):\n        if time', '    while False:\n        if time', tests=('crash/test_locks.py',)),
)
