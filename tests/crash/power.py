"""A disk in memory that can lose its power: what the engine asked of it, and every state that may be left.

`Disk` stands in for the kernel under the whole engine (`mounted`): the engine's own code runs, on files that are bytes in
this process. It keeps a log of every write, sync, and change of a name. `moments` folds such a log into what is on the
platters for certain and what only may be, at each point of it; `Moment.images` builds the states that a power loss may
leave there, and `Disk(image)` is the disk that is found after the next boot.

What may be left, of what was not synced:
- of a file's bytes each sector (512 bytes) as it was after any of the writes to it, or before all of them, whatever
  became of the others. So pages are torn, and written in any order; what is not there reads as zeros;
- of its size the old one, that after any write, or a page boundary that a write had passed;
- of a directory's changes (create, link, rename, unlink, mkdir, rmdir) any subset, each whole, applied in their order.
A sync of a file makes its bytes and its size certain, and none of its names. A sync of a directory makes its names
certain, and nothing of the files.
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
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

SECTOR_NBYTES = 512
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


# ---- the disk and its kernel


class Node:
    """A file (`data`) or a directory (`entries`)."""

    __slots__ = ("data", "entries", "links", "locks", "number")

    def __init__(self, number: int, data: bytes | bytearray = b"", entries: dict[str, Node] | None = None) -> None:
        self.number, self.data, self.entries = number, data, entries
        self.links = 0
        self.locks: dict[Opening, int] = {}


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
        assert name in ("join", "split", "basename", "dirname", "isabs"), f"os.path.{name} looks at the real disk"
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

    def _is_taken(self, path: str, dir_fd: int | None) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self.find(path, dir_fd)
            return True
        return False

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
        if flags & os.O_CREAT and (flags & os.O_EXCL or not self._is_taken(path, dir_fd)):
            node = self._make(is_directory=False)
            self._add(path, dir_fd, node)
        else:
            node = self.find(path, dir_fd)
            if flags & os.O_DIRECTORY and node.entries is None:
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
            return Stat(stat.S_IFDIR, node.number, PAGE_NBYTES, 1)
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


# ---- what a power loss leaves


class FileLoss:
    """The contents that a file may have: `base` is certain, `writes` came after."""

    def __init__(self, base: bytes, writes: tuple[Write, ...]) -> None:
        ends = [write.offset + len(write.data) for write in writes]
        longest = max(len(base), *ends)
        pages = range(len(base) // PAGE_NBYTES * PAGE_NBYTES + PAGE_NBYTES, longest, PAGE_NBYTES)
        self.sizes = sorted({len(base), *(end for end in ends if end > len(base)), *pages})
        padded = -(-longest // SECTOR_NBYTES) * SECTOR_NBYTES
        self._base = base.ljust(padded, b"\0")
        data = bytearray(self._base)
        versions: dict[int, list[bytes]] = {}
        for write, end in zip(writes, ends, strict=True):
            sectors = range(write.offset // SECTOR_NBYTES * SECTOR_NBYTES, end, SECTOR_NBYTES)
            for at in sectors:
                versions.setdefault(at, [bytes(data[at : at + SECTOR_NBYTES])])
            data[write.offset : end] = write.data
            for at in sectors:
                versions[at].append(bytes(data[at : at + SECTOR_NBYTES]))
        self.sectors = [(at, list(dict.fromkeys(found))) for at, found in sorted(versions.items())]
        """Where a sector lies that may be torn from the others, and what it may hold, oldest first."""
        self.new, self.old = bytes(data[:longest]), base
        self.count = len(self.sizes)
        for _, found in self.sectors:
            self.count *= len(found)

    def torn(self, chosen: list[int], size: int) -> bytes:
        """The content with version `chosen[i]` of sector i, and a size."""
        data = bytearray(self._base)
        for (at, found), version in zip(self.sectors, chosen, strict=True):
            if version:
                data[at : at + SECTOR_NBYTES] = found[version]
        return bytes(data[:size])

    def nth(self, number: int) -> bytes:
        """Content `number` of `count`, some of which are equal."""
        number, size = divmod(number, len(self.sizes))
        chosen = []
        for _, found in self.sectors:
            number, version = divmod(number, len(found))
            chosen.append(version)
        return self.torn(chosen, self.sizes[size])

    def any(self, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.3:
            return self.new
        if kind < 0.45:
            return self.old
        size = self.sizes[-1] if rng.random() < 0.7 else rng.choice(self.sizes)
        if kind < 0.7:  # one torn place
            chosen = [len(found) - 1 for _, found in self.sectors]
            place = rng.randrange(len(chosen))
            chosen[place] = rng.randrange(len(self.sectors[place][1]))
        elif kind < 0.85:  # the beginning, or the end
            place, is_begun = rng.randrange(len(self.sectors) + 1), rng.random() < 0.7
            chosen = [(len(found) - 1) * ((n < place) == is_begun) for n, (_, found) in enumerate(self.sectors)]
        else:
            chosen = [rng.randrange(len(found)) for _, found in self.sectors]
        return self.torn(chosen, size)


def renamed(base: dict[str, int], changes: tuple[Name, ...], chosen: int) -> dict[str, int]:
    """The entries of a directory after those of the changes whose bits are set in `chosen`."""
    entries = dict(base)
    for number, change in enumerate(changes):
        if chosen >> number & 1:
            if change.old is not None:
                entries.pop(change.old, None)
            if change.number is None:
                entries.pop(change.name, None)
            else:
                entries[change.name] = change.number
    return entries


class Moment(NamedTuple):
    """One point of a run: what is certain (`files`, `directories`), and what came after that (`writes`, `changes`).

    `marks` are the last that were set, by what and who.
    """

    files: dict[int, bytes]
    directories: dict[int, dict[str, int]]
    losses: dict[int, FileLoss]
    changes: dict[int, tuple[Name, ...]]
    marks: dict[tuple[str, Any], int]

    def _with_names(self, chosen: dict[int, int]) -> tuple[dict[int, dict[str, int]], list[int]]:
        """The directories after the chosen changes, and the files not certain that can be reached in them."""
        directories = dict(self.directories)
        for number, subset in chosen.items():
            directories[number] = renamed(self.directories[number], self.changes[number], subset)
        reached: dict[int, None] = {}
        losses = self.losses

        def walk(number: int) -> None:
            for child in directories[number].values():
                if child in directories:
                    walk(child)
                elif child in losses:
                    reached[child] = None

        walk(ROOT)
        return directories, list(reached)

    def all_present(self) -> Image:
        directories, _ = self._with_names(dict.fromkeys(self.changes, -1))
        return Image(self.files | {number: loss.new for number, loss in self.losses.items()}, directories)

    def any(self, rng: random.Random) -> Image:
        """One of the states that may be left."""
        chosen = {}
        for number, changes in self.changes.items():
            kind = rng.random()
            if kind < 0.5:
                chosen[number] = -1
            elif kind < 0.75:
                chosen[number] = (1 << rng.randrange(len(changes) + 1)) - 1
            else:
                chosen[number] = rng.getrandbits(len(changes))
        directories, reached = self._with_names(chosen)
        files = dict(self.files)
        losses, is_calm = self.losses, rng.random() < 0.3
        troubled = rng.choice(reached) if reached and is_calm else None
        is_new = rng.random() < 0.5
        for number in reached:
            loss = losses[number]
            files[number] = loss.any(rng) if not is_calm or number == troubled else loss.new if is_new else loss.old
        return Image(files, directories)

    def certain(self) -> Image:
        """What is left if nothing is that was not synced."""
        return Image(self.files, self.directories)

    def count(self, limit: int) -> int:
        """How many choices there are; `limit` if at least so many."""
        count = 1
        for changes in self.changes.values():
            count <<= len(changes)
        for loss in self.losses.values():
            count *= loss.count
            if count >= limit:
                return limit
        return min(count, limit)

    def all(self) -> Iterator[Image]:
        """Every state that may be left (some of them more than once)."""
        numbers = list(self.changes)
        for subsets in itertools.product(*[range(1 << len(self.changes[number])) for number in numbers]):
            directories, reached = self._with_names(dict(zip(numbers, subsets, strict=True)))
            for contents in itertools.product(*[range(self.losses[number].count) for number in reached]):
                found = {number: self.losses[number].nth(nth) for number, nth in zip(reached, contents, strict=True)}
                yield Image(self.files | found, directories)


def moments(start: Image, log: list[Act]) -> list[Moment]:
    """The points at which the power may be lost: before each act of the log, and after the last."""
    files, directories = dict(start.files), dict(start.directories)
    writes: dict[int, tuple[Write, ...]] = {}
    losses: dict[int, FileLoss] = {}
    changes: dict[int, tuple[Name, ...]] = {}
    marks: dict[tuple[str, Any], int] = {}
    found = []
    for act in [*log, None]:
        if not isinstance(act, Make):
            found.append(Moment(dict(files), dict(directories), dict(losses), dict(changes), dict(marks)))
        match act:
            case Make(number, True):
                directories[number] = {}
            case Make(number, False):
                files[number] = b""
            case Write(file):
                writes[file] = (*writes.get(file, ()), act)
                losses[file] = FileLoss(files[file], writes[file])
            case Sync(number) if number in directories:
                directories[number] = renamed(directories[number], changes.pop(number, ()), -1)
            case Sync(number):
                if number in losses:
                    files[number] = losses.pop(number).new
                    del writes[number]
            case Name(directory):
                changes[directory] = (*changes.get(directory, ()), act)
            case Mark(what, who, value):
                marks[what, who] = value
    return found
