"""A disk in memory, and the kernel that the engine finds on it: every call that the engine makes, and nothing of the real one.

The engine's own code runs, on files that are bytes in this process (`Mount` puts a `Disk` under all its modules). The disk
keeps a log of every write, sync, and change of a name, for `power` to say what of it may be lost. Flocks are those of open
files, and a process can be killed in the midst of any act. A call that the disk does not know fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import os
import random
import stat
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

PAGE_NBYTES = 4096
ROOT = 0
FIRST_FD = 1 << 20
"""No descriptor of ours is one of the kernel's: a call that slips past us fails."""


class Image(NamedTuple):
    """What a disk holds: the bytes of its files, and the names in its directories, by inode number."""

    files: dict[int, bytes]
    directories: dict[int, dict[str, int]]

    def fingerprint(self, number: int = ROOT) -> int:
        """Equal for images that hold the same below a directory."""
        files, directories = self.files, self.directories
        return hash(
            frozenset(
                [
                    (name, self.fingerprint(child)) if child in directories else (name, child, files[child])
                    for name, child in directories[number].items()
                ]
            )
        )


EMPTY = Image({}, {ROOT: {}})


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Sync(NamedTuple):
    number: int


class Name(NamedTuple):
    """A name in a directory leads to `number` from now on, or to nothing; `old` does not any more (a rename)."""

    directory: int
    name: str
    number: int | None
    old: str | None = None


class Make(NamedTuple):
    """A file or directory begins to be, without a name, and empty."""

    number: int
    is_directory: bool


class Mark(NamedTuple):
    """Not an act: what the workload has to say at this point."""

    what: str
    who: Any
    value: int


Act = Write | Sync | Make | Name | Mark


class Node:
    """A file (`data`) or a directory (`entries`)."""

    __slots__ = ("data", "entries", "links", "locks", "number")

    def __init__(self, number: int, data: bytes | bytearray = b"", entries: dict[str, Node] | None = None) -> None:
        self.number, self.data, self.entries = number, data, entries
        self.links = 0
        self.locks: dict[Opening, int] = {}

    def fingerprint(self) -> int:
        """Equal for nodes that hold the same: bytes, or names that lead to the same."""
        if self.entries is None:
            return hash((self.number, bytes(self.data)))
        return hash(frozenset([(name, child.fingerprint()) for name, child in self.entries.items()]))


class Opening:
    """An open file, as `open` makes it and `dup` shares it."""

    __slots__ = ("count", "node")

    def __init__(self, node: Node) -> None:
        self.node, self.count = node, 1


class Killed(BaseException):
    """The process that used the disk is dead: none of its acts reaches the disk any more."""


_fds = itertools.count(FIRST_FD)
"""Of all disks: what lingers of one never closes a file of another."""


class Stat(NamedTuple):
    st_mode: int
    st_ino: int
    st_size: int
    st_nlink: int
    st_dev: int = 1


@functools.cache
def _directory_stat(number: int) -> Stat:
    return Stat(stat.S_IFDIR, number, PAGE_NBYTES, 1)


def _error(number: int, path: Any = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@functools.lru_cache(4096)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


class _Path:
    """`os.path` on the disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        found = getattr(os.path, name)
        assert name in ("join", "split", "basename", "dirname", "isabs", "commonpath"), (
            f"os.path.{name} looks at the real disk"
        )
        setattr(self, name, found)
        return found

    def realpath(self, path: Any) -> str:
        return os.path.normpath(os.fspath(path))

    def lexists(self, path: Any) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._disk.find(os.fspath(path), None)
            return True
        return False

    def isdir(self, path: Any) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._disk.find(os.fspath(path), None).entries is not None
        return False

    def sameopenfile(self, one: int, other: int) -> bool:
        return self._disk.openings[one].node is self._disk.openings[other].node


class _Constants:
    """The constants of `os`."""


for _name in dir(os):
    if _name.isupper():
        setattr(_Constants, _name, getattr(os, _name))


class Disk(_Constants):
    """A disk that holds `image`, and `os` as the engine sees it (and `fcntl`, and what else it calls the kernel by)."""

    def __init__(self, image: Image = EMPTY, boot: str = "boot 0") -> None:
        self.boot = boot
        self.log: list[Act] = []
        self.openings: dict[int, Opening] = {}
        self._left: int | None = None
        self.numbers = itertools.count(1 + max((*image.files, *image.directories)))
        self._tokens = itertools.count()
        self.path = _Path(self)
        made: dict[int, Node] = {}

        def load(number: int) -> Node:
            if (entries := image.directories.get(number)) is not None:
                return Node(number, entries={name: load(child) for name, child in entries.items()})
            if (node := made.get(number)) is None:
                node = made[number] = Node(number, image.files[number])
            node.links += 1
            return node

        self.root = load(ROOT)

    def __getattr__(self, name: str) -> Any:
        assert name in ("strerror", "fspath", "getpid"), f"os.{name} would reach the real disk"
        return getattr(os, name)

    def mark(self, what: str, who: Any = None, value: int = 0) -> None:
        self.log.append(Mark(what, who, value))

    def token(self, nbytes: int) -> str:
        """As `secrets.token_hex`, the same in every run."""
        text = f"{self.boot} {next(self._tokens)}".encode()
        return hashlib.sha256(text).hexdigest()[: 2 * nbytes]

    # -- the end of a process

    def kill_after(self, acts: int) -> None:
        """Have the process killed in the midst of an act to come: so many are still done."""
        self._left = acts

    def forget_process(self) -> None:
        """The kernel closes what the killed process had open, and another one comes."""
        self._left = None
        for opening in self.openings.values():
            opening.node.locks.clear()
        self.openings.clear()

    @property
    def is_dead(self) -> bool:
        """The process has been killed; what it still tries to do is not done."""
        return self._left is not None and self._left < 0

    def _live(self) -> bool:
        """Before an act. True if it is to be done whole; False if this is the one in whose midst the process ends."""
        if self._left is None:
            return True
        self._left -= 1
        if self._left < -1:
            raise Killed
        return self._left >= 0

    def _check_alive(self) -> None:
        if not self._live():
            raise Killed

    # -- names

    def find(self, path: str, dir_fd: int | None) -> Node:
        node = self.root if path[0] == "/" else self.openings[dir_fd].node  # type: ignore[index]
        for part in _parts(path):
            if node.entries is None:
                raise _error(errno.ENOTDIR, path)
            found = node.entries.get(part)
            if found is None:
                raise _error(errno.ENOENT, path)
            node = found
        return node

    def _place(self, path: str, dir_fd: int | None) -> tuple[Node, dict[str, Node], str]:
        """The directory that a path leads to, its entries, and the name there."""
        head, _, name = path.rpartition("/")
        node = self.find(path[: len(path) - len(name)] if head or path[0] == "/" else ".", dir_fd)
        if node.entries is None:
            raise _error(errno.ENOTDIR, path)
        return node, node.entries, name

    def _add(self, path: str, dir_fd: int | None, child: Node) -> None:
        node, entries, name = self._place(path, dir_fd)
        if name in entries:
            raise _error(errno.EEXIST, path)
        self._check_alive()
        entries[name] = child
        child.links += 1
        self.log.append(Name(node.number, name, child.number))

    def _make(self, *, is_directory: bool) -> Node:
        node = Node(next(self.numbers), entries={} if is_directory else None)
        self.log.append(Make(node.number, is_directory))
        return node

    def _forget(self, node: Node, name: str) -> None:
        assert node.entries is not None
        self._check_alive()
        node.entries.pop(name).links -= 1
        self.log.append(Name(node.number, name, None))

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._add(path, dir_fd, self._make(is_directory=True))

    def rename(self, source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        node, entries, name = self._place(source, src_dir_fd)
        there, _, new = self._place(target, dst_dir_fd)
        assert node is there, "the engine renames within a directory: across two it would not be one change"
        if name not in entries:
            raise _error(errno.ENOENT, source)
        moved, replaced = entries[name], entries.get(new)
        if replaced is not None:
            if replaced.entries:
                raise _error(errno.ENOTEMPTY, target)
        self._check_alive()
        if replaced is not None:
            replaced.links -= 1
        del entries[name]
        entries[new] = moved
        self.log.append(Name(node.number, new, moved.number, name))

    def link(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True) -> None:
        self._add(target, dst_dir_fd, self.find(source, src_dir_fd))

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        node, entries, name = self._place(path, dir_fd)
        if name not in entries:
            raise _error(errno.ENOENT, path)
        assert entries[name].entries is None
        self._forget(node, name)

    def rmtree(self, path: str, *, dir_fd: int | None = None) -> None:
        node, entries, name = self._place(path, dir_fd)

        def empty(node: Node) -> None:
            for name, child in list((node.entries or {}).items()):
                empty(child)
                self._forget(node, name)

        if name not in entries:
            raise _error(errno.ENOENT, path)
        empty(entries[name])
        self._forget(node, name)

    def listdir(self, where: str | int) -> list[str]:
        entries = (self.openings[where].node if isinstance(where, int) else self.find(where, None)).entries
        assert entries is not None
        return list(entries)

    # -- files

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        node = None
        if not flags & os.O_EXCL:
            try:
                node = self.find(path, dir_fd)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
        if node is None:
            node = self._make(is_directory=False)
            self._add(path, dir_fd, node)
        elif flags & os.O_DIRECTORY and node.entries is None:
            raise _error(errno.ENOTDIR, path)
        fd = next(_fds)
        self.openings[fd] = Opening(node)
        return fd

    def dup(self, fd: int) -> int:
        opening = self.openings[fd]
        opening.count += 1
        copied = next(_fds)
        self.openings[copied] = opening
        return copied

    def close(self, fd: int) -> None:
        if (opening := self.openings.pop(fd, None)) is None:
            raise _error(errno.EBADF)
        opening.count -= 1
        if not opening.count:
            opening.node.locks.pop(opening, None)

    @staticmethod
    def _stat(node: Node) -> Stat:
        if node.entries is not None:
            return _directory_stat(node.number)
        return Stat(stat.S_IFREG, node.number, len(node.data), node.links)

    def fstat(self, fd: int) -> Stat:
        return self._stat(self.openings[fd].node)

    def stat(self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Stat:
        return self._stat(self.find(path, dir_fd))

    def readlink(self, path: str) -> str:
        return f"inode {self.openings[int(path.rpartition('/')[2])].node.number}"

    def pread(self, fd: int, nbytes: int, offset: int) -> bytes:
        return bytes(self.openings[fd].node.data[offset : offset + nbytes])

    def preadv(self, fd: int, buffers: list[Any], offset: int) -> int:
        (buffer,) = buffers
        data = self.openings[fd].node.data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        node, content = self.openings[fd].node, bytes(data)
        if is_cut := not self._live():
            content = content[: len(content) // 2]
        if type(node.data) is bytes:
            node.data = bytearray(node.data)
        if len(node.data) < offset:
            node.data += bytes(offset - len(node.data))
        node.data[offset : offset + len(content)] = content
        if content:
            self.log.append(Write(node.number, offset, content))
        if is_cut:
            raise Killed
        return len(content)

    def pwritev(self, fd: int, parts: list[Any], offset: int) -> int:
        return self.pwrite(fd, b"".join(parts), offset)

    def fsync(self, fd: int) -> None:
        self._check_alive()
        self.log.append(Sync(self.openings[fd].node.number))

    def ftruncate(self, fd: int, nbytes: int) -> None:
        assert nbytes == len(self.openings[fd].node.data), "no file is ever shrunk"

    # -- locks

    def flock(self, fd: int, kind: int) -> None:
        opening = self.openings[fd]
        locks = opening.node.locks
        if kind & fcntl.LOCK_UN:
            locks.pop(opening, None)
            return
        wanted = kind & (fcntl.LOCK_SH | fcntl.LOCK_EX)
        if any(fcntl.LOCK_EX in (wanted, held) for other, held in locks.items() if other is not opening):
            assert kind & fcntl.LOCK_NB, "one thread would wait for itself"
            raise _error(errno.EAGAIN)
        locks[opening] = wanted


class _SyncQueue:
    """As `kernel_aio.SyncQueue`, on a disk: in any order, and the power may go between any two."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._rng = disk, random.Random(disk.boot)

    def fdatasync(self, fds: list[int]) -> list[int | None]:
        for fd in self._rng.sample(fds, len(fds)):
            self._disk.fsync(fd)
        return [0] * len(fds)

    def close(self) -> None:
        pass


class _FileLock:
    """As `filelock.FileLock`, on a disk."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk, self._path, self._fd = disk, path, -1

    def acquire(self) -> None:
        fd = self._disk.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            self._disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._disk.close(fd)
            from filelock import Timeout

            raise Timeout(self._path) from None
        self._fd = fd

    def release(self, force: bool = False) -> None:
        self._disk.close(self._fd)


class Mount:
    """Puts disks under the engine, for the length of a `with` block: `disk` is the one that it finds there."""

    disk: Disk

    def __init__(self) -> None:
        self._undo: list[tuple[ModuleType, str, Any]] = []

    def put(self, disk: Disk) -> Disk:
        """From now on the engine runs on this disk."""
        self.disk = disk
        for module, name, value in (
            *((module, "os", disk) for module in self._modules),
            (self._files, "fdatasync", disk.fsync),
            (self._files, "shutil", disk),
            (self._files, "fcntl", self._fcntl),
        ):
            setattr(module, name, value)
        self._fcntl.flock = disk.flock
        return disk

    def __enter__(self) -> Mount:
        from tensorblob import create, files, manifest, presence, replay

        loaded = [module for name, module in sys.modules.items() if name.startswith("tensorblob.")]
        self._modules = [module for module in loaded if getattr(module, "os", None) is os]
        self._files = files
        self._fcntl = SimpleNamespace(
            **{name: getattr(fcntl, name) for name in ("LOCK_SH", "LOCK_EX", "LOCK_NB", "LOCK_UN")},
            ioctl=None,
        )
        fakes: list[tuple[ModuleType, str, Any]] = [
            (files, "FileLock", lambda path, **_: _FileLock(self.disk, path)),
            (files, "open_sync_queue", lambda: _SyncQueue(self.disk)),
            (files, "_libc", SimpleNamespace(fallocate=lambda *_: 0)),
            *((module, "boot_id", lambda: self.disk.boot) for module in (manifest, replay)),
            *((m, "secrets", SimpleNamespace(token_hex=lambda n: self.disk.token(n))) for m in (create, presence)),
        ]
        kept = [*((module, "os", None) for module in self._modules), *fakes]
        kept += [(files, name, None) for name in ("fdatasync", "shutil", "fcntl")]
        self._undo = [(module, name, getattr(module, name)) for module, name, _ in kept]
        for module, name, value in fakes:
            setattr(module, name, value)
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, value in self._undo:
            setattr(module, name, value)
