"""The disk under the engine, as the tests of its protocol see it: every durable act in its order, and faults on demand.

`tensorblob.files` is the only module of the engine that changes anything on disk. A `Disk` stands between it and the kernel:
it notes each act before it is done, and makes the one that a test chooses fail as the kernel would. Calls that only look
(open, read, list, stat, lock) are not noted, since no order of them is part of the protocol; but they can fail as well.
"""

import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensorblob import files, manifest, replay

KINDS = ("create", "mkdir", "write", "allocate", "sync", "syncdir", "rename", "link", "unlink", "rmdir", "truncate")
SPACE = ("create", "mkdir", "write", "allocate", "link", "rename")
"""What a full disk refuses."""
SYNCS = ("sync", "syncdir")
LOOKS = ("open", "read", "stat", "list", "dup", "lock")
"""Calls that change nothing on disk."""
CALLS = KINDS + LOOKS


@dataclass
class Act:
    """One act: `path` (and `target` of a rename or link) below the disk's root, the file's inode, the bytes written where."""

    kind: str
    path: str
    inode: int = 0
    target: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0
    """Of the file, before the act."""
    failed: bool = False

    @property
    def is_manifest(self) -> bool:
        return os.path.basename(self.path).lstrip(".").startswith("manifest.")

    @property
    def is_block(self) -> bool:
        return "/blocks/" in f"/{self.path}" and self.kind != "syncdir"

    def __repr__(self) -> str:
        extra = f" → {self.target}" if self.target else f" {len(self.data)} at {self.offset}" if self.data else ""
        return f"<{self.kind} {self.path}{extra}{' FAILED' * self.failed}>"


class Disk:
    """What `files` does below `root`: `acts`, newest last. See `failing` and `watch`."""

    def __init__(self, root: Path) -> None:
        self.root = os.fspath(root)
        self.acts: list[Act] = []
        self.watch: Callable[[Act], None] | None = None
        """Called with each act just before it is done."""
        self.after: Callable[[Act], None] | None = None
        """Called with each write when its bytes are in the kernel."""
        self.before: Callable[[Act], None] | None = None
        """Called before each call of any kind, also of those that only look or unlock."""
        self._choose: Callable[[Act], bool] | None = None
        self._error = 0
        self._is_short = False

    # -- faults

    @contextmanager
    def failing(
        self,
        nth: int,
        kinds: tuple[str, ...] = KINDS,
        *,
        error: int = errno.EIO,
        lasting: bool = False,
        short: bool = False,
    ) -> Iterator[SimpleNamespace]:
        """Fail the nth act (from 0) of these kinds with `error`; `fired` of the value tells whether it came to that.

        lasting: fail all that follow it, too. short: half of a failing write's bytes reach the disk first; with error 0 it
        does not fail, but says so: it wrote, or read, only half.
        """
        state = SimpleNamespace(seen=0, fired=False)

        def choose(act: Act) -> bool:
            if act.kind not in kinds:
                return False
            state.seen += 1
            chosen = state.seen > nth if lasting else state.seen == nth + 1
            state.fired |= chosen
            return chosen

        self._choose, self._error, self._is_short = choose, error, short
        try:
            yield state
        finally:
            self._choose = None

    def fail_when(self, choose: Callable[[Act], bool], error: int = errno.EIO) -> None:
        """Fail every act that `choose` picks, until `heal`."""
        self._choose, self._error, self._is_short = choose, error, False

    def heal(self) -> None:
        self._choose = None

    def since(self, mark: int, *kinds: str) -> list[Act]:
        return [act for act in self.acts[mark:] if act.kind in (kinds or KINDS)]

    # -- between `files` and the kernel

    def _name(self, path: Any, dir_fd: int | None) -> str:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if not os.path.isabs(path) and dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        return os.path.relpath(os.path.abspath(path), self.root)

    def note(self, kind: str, path: str, **more: Any) -> bool:
        """Note an act; return whether it is to fail."""
        act = Act(kind, path, **more)
        if self.before is not None:
            self.before(act)
        if self.watch is not None:
            self.watch(act)
        self.acts.append(act)
        act.failed = self._choose is not None and self._choose(act)
        return act.failed

    def do(self, kind: str, path: str, **more: Any) -> None:
        if self.note(kind, path, **more):
            raise OSError(self._error, os.strerror(self._error))

    def look(self, kind: str, path: Any, dir_fd: int | None = None) -> bool:
        """A call that changes nothing: it fails as an act would, or this returns whether it is to be cut short."""
        if self.before is None and self._choose is None:
            return False
        act = Act(kind, self._name(path, dir_fd))
        if self.before is not None:
            self.before(act)
        if self._choose is None or not self._choose(act):
            return False
        if self._error:
            raise OSError(self._error, os.strerror(self._error), act.path)
        return True

    def on_fd(self, fd: int) -> tuple[str, dict[str, int]]:
        found = os.fstat(fd)
        return self._name(os.readlink(f"/proc/self/fd/{fd}"), None), {"inode": found.st_ino, "size": found.st_size}

    def pwritev(self, fd: int, parts: list[Any], offset: int) -> int:
        return self.pwrite(fd, b"".join(bytes(part) for part in parts), offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        path, known = self.on_fd(fd)
        content = bytes(memoryview(data).cast("B"))
        if self.note("write", path, offset=offset, data=content, **known):
            if self._is_short and len(content) > 1:
                count = os.pwrite(fd, content[: len(content) // 2], offset)
                if not self._error:
                    return count
            elif not self._error:
                return os.pwrite(fd, data, offset)
            raise OSError(self._error, os.strerror(self._error))
        count = os.pwrite(fd, data, offset)
        if self.after is not None:
            self.after(self.acts[-1])
        return count

    def fsync(self, fd: int) -> None:
        """Noted, and not done: no test pulls a real plug."""
        path, known = self.on_fd(fd)
        self.do("syncdir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync", path, **known)


def _is_there(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


class _Os:
    """`os` as `files` sees it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and (flags & os.O_EXCL or not _is_there(path, dir_fd)):
            self._disk.do("create", self._disk._name(path, dir_fd))
        else:
            self._disk.look("open", path, dir_fd)
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def pread(self, fd: int, nbytes: int, offset: int) -> bytes:
        is_short = self._disk.look("read", fd)
        return os.pread(fd, max(nbytes // 2, 1) if is_short else nbytes, offset)

    def preadv(self, fd: int, buffers: list[Any], offset: int) -> int:
        is_short = self._disk.look("read", fd)
        (buffer,) = buffers
        return os.preadv(fd, [buffer[: max(len(buffer) // 2, 1)] if is_short else buffer], offset)

    def listdir(self, path: Any) -> list[str]:
        self._disk.look("list", path)
        return os.listdir(path)

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        self._disk.look("stat", path, dir_fd)
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def fstat(self, fd: int) -> os.stat_result:
        self._disk.look("stat", fd)
        return os.fstat(fd)

    def dup(self, fd: int) -> int:
        self._disk.look("dup", fd)
        return os.dup(fd)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._disk.do("mkdir", self._disk._name(path, dir_fd))
        os.mkdir(path, mode, dir_fd=dir_fd)

    def rename(self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        names = self._disk._name(source, src_dir_fd), self._disk._name(target, dst_dir_fd)
        inode = os.stat(source, dir_fd=src_dir_fd).st_ino
        self._disk.do("rename", names[0], target=names[1], inode=inode)
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(self, source: Any, target: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True) -> None:
        names = self._disk._name(source, src_dir_fd), self._disk._name(target, dst_dir_fd)
        self._disk.do("link", names[0], target=names[1])
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        self._disk.do("unlink", self._disk._name(path, dir_fd), inode=found.st_ino)
        os.unlink(path, dir_fd=dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._disk.do("rmdir", self._disk._name(path, dir_fd))
        os.rmdir(path, dir_fd=dir_fd)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._disk.pwrite(fd, data, offset)

    def pwritev(self, fd: int, parts: list[Any], offset: int) -> int:
        return self._disk.pwritev(fd, parts, offset)

    def fsync(self, fd: int) -> None:
        self._disk.fsync(fd)

    def ftruncate(self, fd: int, nbytes: int) -> None:
        path, known = self._disk.on_fd(fd)
        self._disk.do("truncate", path, offset=nbytes, **known)
        os.ftruncate(fd, nbytes)


class _Fcntl:
    """`fcntl` as `files` sees it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(fcntl, name)

    def flock(self, fd: int, operation: int) -> None:
        self._disk.look("unlock" if operation & fcntl.LOCK_UN else "lock", fd)
        fcntl.flock(fd, operation)


def put_between(monkeypatch: pytest.MonkeyPatch, root: Path) -> Disk:
    """Return the `Disk` that the engine uses from now on, as long as `monkeypatch` lasts.

    What changes something goes through `files`; other modules look (`fstat`, `listdir`) by themselves, too.
    """
    disk = Disk(root)
    libc, remove_tree = files._libc, files.remove_tree

    def fallocate(fd: int, mode: int, offset: int, nbytes: int) -> int:
        path, known = disk.on_fd(fd)
        if disk.note("allocate", path, offset=offset, **known):
            ctypes.set_errno(disk._error)
            return -1
        return int(libc.fallocate(fd, mode, offset, nbytes))

    def remove(path: str, *, dir_fd: int | None = None) -> None:
        disk.do("rmdir", disk._name(path, dir_fd))
        remove_tree(path, dir_fd=dir_fd)

    class Lock(files.FileLock):
        def acquire(self, *args: Any, **options: Any) -> Any:
            disk.look("lock", self.lock_file)
            return super().acquire(*args, **options)

    seam = _Os(disk)
    for name, module in list(sys.modules.items()):
        if name.startswith("tensorblob.") and getattr(module, "os", None) is os:
            monkeypatch.setattr(module, "os", seam)

    def open_text(path: str, *args: Any, **options: Any) -> Any:
        disk.look("open", path)
        return open(path, *args, **options)

    for module in (replay, manifest):  # a process asks once; here each opening is another process
        monkeypatch.setattr(module, "boot_id", getattr(module.boot_id, "__wrapped__", module.boot_id))
    monkeypatch.setattr("tensorblob.replay.open", open_text, raising=False)
    monkeypatch.setattr(files, "fcntl", _Fcntl(disk))
    monkeypatch.setattr(files, "FileLock", Lock)
    monkeypatch.setattr(files, "fdatasync", disk.fsync)
    monkeypatch.setattr(files, "open_sync_queue", lambda: None)
    monkeypatch.setattr(files, "_libc", SimpleNamespace(fallocate=fallocate))
    monkeypatch.setattr(files, "remove_tree", remove)
    return disk


def reboot(monkeypatch: pytest.MonkeyPatch, name: str = "another boot") -> None:
    """From now on this is another boot of the kernel: what was not synced before may be gone, which is up to the test."""
    monkeypatch.setattr("tensorblob.replay.boot_id", lambda: name)
    monkeypatch.setattr("tensorblob.manifest.boot_id", lambda: name)


def without_platters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let syncs return at once, for tests of what would be on disk that need no disk."""
    monkeypatch.setattr(files, "fdatasync", lambda fd: None)
    monkeypatch.setattr(files, "open_sync_queue", lambda: None)
    monkeypatch.setattr(files, "sync_directory", lambda path, *, dir_fd=None: None)


def assert_never_synced_again(disk: Disk, what: object = "") -> None:
    """After a sync failed, the kernel may say yes to the next one and mean nothing."""
    failed: dict[int, str] = {}
    for act in disk.acts:
        if act.kind == "unlink":
            failed.pop(act.inode, None)  # the number goes to another file
        if act.kind == "rmdir":
            failed = {inode: path for inode, path in failed.items() if not path.startswith(f"{act.path}/")}
        if act.kind == "sync":
            assert act.inode not in failed, f"{what}: {act} after its sync failed"
        if act.kind == "sync" and act.failed:
            failed[act.inode] = act.path
