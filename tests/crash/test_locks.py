"""Every act is done under the locks that make it safe, in every workload.

On a disk in memory it can be seen who holds which lock at the moment of each act. What those locks keep out is a matter of
the tests with processes; that they are held is claimed here, for all that the engine does.
"""

import errno
import fcntl
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel import Disk, Mount, Node, Write
from workloads import WORKLOADS, Run

from tensorblob import files
from tensorblob.blob import TensorBlob, append_to
from tensorblob.cursors import Cursor, Position
from tensorblob.errors import BlobReplaced, Corrupt, SyncFailed
from tensorblob.limiter import Limit, MinSize
from tensorblob.staging import Staging

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH


class WatchedDisk(Disk):
    """Fails an act that is not done under its locks; `seen` says which claims were put to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def _is_held(self, path: str, kind: int) -> bool:
        return kind in self.find(path, None).locks.values()

    def _path_of(self, node: Node) -> str:
        """The path of a file or directory; "" if it has none."""

        def search(directory: Node, path: str) -> str:
            for name, child in (directory.entries or {}).items():
                below = f"{path}/{name}"
                if child is node or (found := search(child, below)):
                    return below if child is node else found
            return ""

        return search(self.root, "")

    def claim(self, what: str, is_so: bool) -> None:
        self.seen.add(what)
        assert is_so or self.is_dead, what

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        path = self._path_of(self.openings[fd].node)
        blob, _, name = path.rpartition("/")
        if re.fullmatch(r"manifest\.\d+", name):
            is_alone = self._is_held(f"{blob}/writer.lock", EXCLUSIVE)
            has_turn = self._is_held(f"{blob}/writer.lock", SHARED) and self._is_held(f"{blob}/commit.lock", EXCLUSIVE)
            self.claim("edits are appended by a sole writer" if is_alone else "or in a turn", is_alone or has_turn)
        if name == "commit.lock" and ".new/" not in path:
            is_alone = self._is_held(f"{blob}/writer.lock", EXCLUSIVE)
            self.claim("trouble is told in a turn", is_alone or self._is_held(path, EXCLUSIVE))
        if name.startswith("limiter."):
            self.claim("counts of a limiter change under its lock", self._is_held(path, EXCLUSIVE))
        if "/blocks/" in path and ".new/" not in path:
            producer = f"{blob.rpartition('/blocks/')[0]}/producers/{name.partition('-')[0]}"
            if self.path.lexists(producer):
                self.claim("rows are written by a live producer", self._is_held(producer, EXCLUSIVE))
        return super().pwrite(fd, data, offset)

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if path.endswith(".new"):
            parent = os.path.dirname(path)
            self.claim("who begins a blob has its parent locked", self._is_held(parent, EXCLUSIVE))
        super().mkdir(path, mode, dir_fd=dir_fd)

    def rename(self, source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        node = self.find(source, src_dir_fd)
        if source.startswith("producers/."):
            self.claim("a producer is locked before it is seen", EXCLUSIVE in node.locks.values())
        if source.endswith(".new"):
            self.claim("what is built is locked", EXCLUSIVE in node.locks.values())
        if source.startswith("cursors/"):
            name = os.path.basename(target).removesuffix(".json")
            lock = self.find(f"cursors/.{name}.lock", src_dir_fd)
            self.claim("a cursor is moved by its only consumer", EXCLUSIVE in lock.locks.values())
        super().rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        if re.fullmatch(r"manifest\.\d+", path):
            self.claim("a generation is removed locked", EXCLUSIVE in self.find(path, dir_fd).locks.values())
            following = f"manifest.{int(path[-6:]) + 1:06d}"
            fd = self.openings[dir_fd].node if dir_fd is not None else self.root
            self.claim("and once the next one is there", following in (fd.entries or {}))
        super().unlink(path, dir_fd=dir_fd)

    def rmtree(self, path: str, *, dir_fd: int | None = None) -> None:
        node = self.find(path, dir_fd)
        lock = (node.entries or {}).get("writer.lock")
        is_locked = EXCLUSIVE in node.locks.values() or (lock is not None and EXCLUSIVE in lock.locks.values())
        self.claim("what is removed is locked", is_locked)
        super().rmtree(path, dir_fd=dir_fd)


SEEN: dict[str, set[str]] = {
    "append": {"edits are appended by a sole writer", "who begins a blob has its parent locked"}
    | {"what is built is locked", "a producer is locked before it is seen", "rows are written by a live producer"},
    "checkpoint": {"a generation is removed locked", "and once the next one is there"},
    "shared": {"or in a turn"},
    "staged": {"or in a turn"},
    "cursor": {"a cursor is moved by its only consumer"},
    "unlink": {"what is removed is locked"},
}


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_act_is_done_under_the_locks_that_make_it_safe(workload: str) -> None:
    disk = WatchedDisk()
    with Mount() as mount:
        mount.put(disk)
        WORKLOADS[workload](Run(disk, random.Random(2)))
    assert SEEN.get(workload, set()) <= disk.seen
    assert not any(opening.node.locks for opening in disk.openings.values()), "and lets go of all of them"


def test_a_reader_pins_its_generation_for_as_long_as_it_reads_there() -> None:
    disk = Disk()
    with Mount() as mount:
        mount.put(disk)
        disk.mkdir("/d")
        TensorBlob.open("/d/x.blob", "w", dtype="int64", shape=(), io="pread").close()
        first = disk.find("/d/x.blob/manifest.000001", None)
        with (
            TensorBlob.open("/d/x.blob", io="pread") as reader,
            TensorBlob.open("/d/x.blob", "a", io="pread") as writer,
        ):
            assert list(first.locks.values()) == [SHARED]
            writer.write(torch.arange(9))
            writer.compact()
            assert first.links == 1, "what is pinned stays"
            assert reader.refresh() and len(reader) == 9
            second = disk.find("/d/x.blob/manifest.000002", None)
            assert (list(first.locks.values()), list(second.locks.values())) == ([], [SHARED])
        assert not second.locks and not disk.openings


def test_a_limiter_counts_under_its_lock() -> None:
    disk = WatchedDisk()
    with Mount() as mount:
        mount.put(disk)
        disk.mkdir("/cursors")
        limit = Limit(MinSize(2), disk.open("/", os.O_RDONLY), "p")
        held = disk.find("/cursors/limiter.default.lock", None).locks
        assert limit.try_insert(2) and not held, "it lets go at once"
        limit.inserted(2)
        assert limit.try_sample(1) and limit.counts == (2, 1) and not held
        limit.close()
    assert disk.seen == {"counts of a limiter change under its lock"}
    assert [act for act in disk.log if isinstance(act, Write)][2:], "each of them was written"


@pytest.mark.parametrize("durability", ["process", "power"])
def test_each_edit_of_writers_that_share_is_made_in_a_turn(durability: str) -> None:
    disk = WatchedDisk()
    with Mount() as mount:
        mount.put(disk)
        disk.mkdir("/d")
        TensorBlob.open("/d/x.blob", "w", dtype="int64", shape=(), io="pread").close()
        with TensorBlob.open("/d/x.blob", "a", io="pread", shared=True, durability=durability) as blob:
            for act in (
                lambda: blob.write(torch.arange(3)),
                blob.flush,
                lambda: blob.truncate(1),
                lambda: blob.set_metadata({"a": 1}),
                blob.compact,
            ):
                before = len([written for written in disk.log if isinstance(written, Write)])
                act()
                assert (
                    len([written for written in disk.log if isinstance(written, Write)]) > before or act == blob.flush
                )
    assert "or in a turn" in disk.seen


@pytest.mark.parametrize("shared", [False, True])
def test_trouble_is_told_in_a_turn(shared: bool) -> None:
    disk = WatchedDisk()

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Mount() as mount:
        mount.put(disk)
        disk.mkdir("/d")
        TensorBlob.open("/d/x.blob", "w", dtype="int64", shape=(), io="pread").close()
        with TensorBlob.open("/d/x.blob", "a", io="pread", shared=shared) as blob:
            blob.write(torch.arange(3))
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SyncFailed):
                patch.setattr(files, "fdatasync", fail)
                blob.flush()
            assert blob.durable_rows == 0
    assert "trouble is told in a turn" in disk.seen


# ---- what comes in between


class InterruptedDisk(Disk):
    """Does something else, once, just before the next act of a kind: what others may do at just that moment."""

    def __init__(self) -> None:
        super().__init__()
        self._when: tuple[str, Callable[[Any], bool], Callable[[], object]] | None = None

    def before(self, what: str, is_it: Callable[[Any], bool], act: Callable[[], object]) -> None:
        self._when = what, is_it, act

    def _come_in_between(self, what: str, argument: Any) -> None:
        if self._when is not None and self._when[0] == what and self._when[1](argument):
            act, self._when = self._when[2], None
            act()

    def flock(self, fd: int, kind: int) -> None:
        self._come_in_between("flock", self.openings[fd].node)
        super().flock(fd, kind)

    def rename(self, source: str, target: str, **options: Any) -> None:
        self._come_in_between("rename", target)
        super().rename(source, target, **options)


@pytest.fixture
def disk() -> Iterator[InterruptedDisk]:
    with Mount() as mount:
        disk = InterruptedDisk()
        mount.put(disk)
        disk.mkdir("/d")
        yield disk


def open_ints(mode: str, path: str = "/d/x.blob", **options: Any) -> TensorBlob:
    more = {"dtype": "int64", "shape": ()} if mode[0] == "w" else {}
    return TensorBlob.open(path, mode, io="pread", **more, **options)


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_generation_that_ends_before_it_is_pinned_is_not_read(disk: InterruptedDisk, is_pinned: bool) -> None:
    """Removed, or kept for another reader: what it names may be gone."""
    with open_ints("w") as writer:
        writer.write(torch.arange(5))
        other = open_ints("r") if is_pinned else None
        first = disk.find("/d/x.blob/manifest.000001", None)

        def supersede() -> None:
            writer.truncate(2)
            writer.compact()
            writer.write(torch.arange(7))
            if not is_pinned:
                writer.compact()  # so that the generation after the first is gone, too

        disk.before("flock", lambda node: node is first, supersede)
        with open_ints("r") as reader:
            assert reader[:].tolist() == [0, 1, *range(7)]
            assert first.links == is_pinned
        if other is not None:
            assert other[:].tolist() == list(range(5))
            other.close()


def replace_it(disk: Disk) -> None:
    disk.rename("/d/x.blob", "/d/old.blob")
    open_ints("w").close()


def test_a_blob_that_is_replaced_while_a_writer_opens_it_is_not_written_to(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    lock = disk.find("/d/x.blob/writer.lock", None)
    disk.before("flock", lambda node: node is lock, lambda: replace_it(disk))
    with pytest.raises(FileNotFoundError, match="replaced"):
        open_ints("a")
    open_ints("a").close()


def test_a_blob_that_is_replaced_while_it_is_unlinked_is_left(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    lock = disk.find("/d/x.blob/writer.lock", None)
    disk.before("flock", lambda node: node is lock, lambda: replace_it(disk))
    with pytest.warns(UserWarning, match="another blob"):
        assert not TensorBlob.unlink("/d/x.blob")
    assert disk.listdir("/d") == ["old.blob", "x.blob"]


def test_rows_of_a_blob_that_was_replaced_are_not_taken_for_those_of_the_one_in_its_place(
    disk: InterruptedDisk,
) -> None:
    with open_ints("w") as blob:
        blob.write(torch.arange(3))
        replace_it(disk)
        with pytest.raises(BlobReplaced):
            blob.copy("/d/copy.blob")
    assert disk.listdir("/d") == ["old.blob", "x.blob"]


def test_who_builds_beside_another_leaves_what_that_one_builds(disk: InterruptedDisk) -> None:
    def build() -> None:
        with open_ints("w") as other:
            other.write(torch.arange(3))

    disk.before("rename", lambda target: target == "manifest.000001", build)
    with append_to("/d/x.blob", dtype="int64", shape=(), io="pread") as blob:
        assert len(blob.snapshot) == 3, "the other one's was there first"
    assert disk.listdir("/d") == ["x.blob"]


def test_a_turn_that_another_has_is_not_had(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    with open_ints("a", shared=True) as one, open_ints("a", shared=True) as other:
        assert one._writer is not None and other._writer is not None
        with one._writer.turn():
            assert not other._writer.try_turn()
        assert other._writer.try_turn()
        other._writer.end_turn()


def test_a_record_that_a_peer_died_in_stays_as_it_is(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    with open_ints("a+", shared=True) as blob:
        blob.write(torch.arange(3))
        fd = disk.open("/d/x.blob/manifest.000001", os.O_RDWR)
        size = disk.fstat(fd).st_size
        disk.pwrite(fd, b"01234567 [[" + b"9" * 500, size)
        blob.write(torch.arange(2))
        assert blob[:].tolist() == [0, 1, 2, 0, 1]
        assert disk.path.lexists("/d/x.blob/manifest.000002")
        assert disk.pread(fd, 600, size) == b"01234567 [[" + b"9" * 500
        disk.close(fd)


def test_a_record_that_a_peer_died_in_stays_as_it_is_in_the_generation_that_it_began(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    with open_ints("a+", shared=True) as blob, open_ints("a+", shared=True) as peer:
        blob.write(torch.arange(3))
        peer.refresh()
        peer.compact()
        fd = disk.open("/d/x.blob/manifest.000002", os.O_RDWR)
        size = disk.fstat(fd).st_size
        disk.pwrite(fd, b"01234567 [[" + b"9" * 500, size)
        blob.write(torch.arange(2))
        assert blob[:].tolist() == [0, 1, 2, 0, 1]
        assert disk.pread(fd, 600, size) == b"01234567 [[" + b"9" * 500
        disk.close(fd)


def test_a_cursor_is_where_the_last_consumer_left_it_when_it_let_go(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    dir_fd = files.open_directory("/d/x.blob")
    before = Cursor(dir_fd, "c")
    before.acknowledge(1, 0)

    def go_on_and_leave() -> None:
        before.acknowledge(2, 0)
        before.close()

    lock = disk.find("/d/x.blob/cursors/.c.lock", None)
    disk.before("flock", lambda node: node is lock, go_on_and_leave)
    after = Cursor(dir_fd, "c")
    assert after.position == Position(2, 0)
    after.close()
    disk.close(dir_fd)


def test_staged_rows_that_are_not_what_was_staged_are_not_committed(disk: InterruptedDisk) -> None:
    open_ints("w").close()
    with open_ints("a+", shared=True) as blob:
        assert blob._writer is not None
        staging = Staging(blob._writer)
        staging.append(*blob._batches.columns(torch.arange(3)))
        (block,) = disk.listdir("/d/x.blob/blocks/data")
        fd = disk.open(f"/d/x.blob/blocks/data/{block}", os.O_RDWR)
        disk.pwrite(fd, b"?", 5)
        with pytest.raises(Corrupt, match="Staged"):
            staging.commit(lambda start: [])
        assert len(blob) == 0
        disk.close(fd)
        staging.discard()
