"""Every durable act on the filesystem, and nothing else: the one seam where a test can pull the plug.

All other modules write, sync, rename, link, unlink and lock through these functions. Paths are relative to a
directory descriptor that the caller holds, so that a blob stays itself when its path is renamed or replaced, and no
symlink below it is followed. Errors that a caller can act on become our own (`DiskFull`, `ReadOnlyStore`,
`SyncFailed`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
from filelock import FileLock, Timeout

from tensorblob.errors import Corrupt, DiskFull, ReadOnlyStore, SyncFailed, WriterBusy
from tensorblob.kernel_aio import SyncQueue

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

if sys.platform not in ("linux", "darwin"):
    raise ImportError(f"tensorblob needs Linux or macOS (flock, mmap with MAP_FIXED); this is {sys.platform!r}")

STOPPED_S, SLOW_S = 10.0, 120.0
"""Who holds a lock of moments for so long was stopped; or is very slow, and gets so long in all."""
COPY_NBYTES = 8 << 20
READ_NBYTES = 16 << 10
SPARSE_NBYTES = 16 << 20
_IOV_MAX = 1024
_FALLOC_FL_KEEP_SIZE = 1
_FICLONE = 0x40049409

_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform == "linux":
    _libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

fdatasync = os.fdatasync if sys.platform == "linux" else lambda fd: fcntl.fcntl(fd, 51)  # macOS: F_FULLFSYNC


def _fail(error: OSError, what: str) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise DiskFull(
            error.errno, f"{what}: {error.strerror}; nothing was committed, free space and write again", error.filename
        ) from error
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        raise ReadOnlyStore(error.errno, f"{what}: {error.strerror}; reading still works", error.filename) from error
    raise error


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an `OSError` of the body into ours, where we have one for it."""
    try:
        yield
    except OSError as error:
        _fail(error, what)


class Descriptor:
    """An open descriptor: closed by `close`, or when nobody refers to it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()


# -- directories and names --------------------------------------------------------------------------------------------


def open_directory(path: str, *, dir_fd: int | None = None) -> int:
    """Open a directory; below another one a symlink, or anything else, is refused as `Corrupt`."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if dir_fd is not None else 0)
    try:
        return os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if dir_fd is None or error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise Corrupt("Not a directory of the blob's own", path=path_of(dir_fd, path)) from error


def check_directory(path: str, *, dir_fd: int) -> None:
    """Raise `Corrupt` if `path` is there, and no directory but perhaps a symlink to one: paths through it lead elsewhere."""
    try:
        mode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        raise Corrupt("Not a directory of the blob's own", path=path_of(dir_fd, path))


def make_directory(path: str, *, dir_fd: int | None = None) -> None:
    with explained(f"Cannot create the directory {path!r}"):
        os.mkdir(path, dir_fd=dir_fd)


def path_of(dir_fd: int | None, path: str) -> str:
    """The full path of `path` below an open directory, for messages; `path` itself where the system does not say."""
    if dir_fd is None:
        return path
    try:
        if sys.platform == "linux":
            return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        return os.path.join(fcntl.fcntl(dir_fd, 50, b"\0" * 1024).rstrip(b"\0").decode(), path)  # F_GETPATH
    except OSError:
        return path


def list_directory(path: str, *, dir_fd: int | None = None) -> list[str]:
    fd = open_directory(path, dir_fd=dir_fd)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, each durably; raises `ReadOnlyStore` or the `OSError`."""
    if exists(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent)
    with contextlib.suppress(FileExistsError):
        make_directory(path)
    sync_directory(parent)


def rename(source: str, target: str, *, dir_fd: int | None = None) -> None:
    with explained(f"Cannot rename {source!r} to {target!r}"):
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def mark_changed(path: str, *, dir_fd: int | None = None) -> None:
    """Make a directory look changed."""
    os.utime(path, dir_fd=dir_fd, follow_symlinks=False)


def unlink(path: str, *, dir_fd: int | None = None, missing_ok: bool = False) -> None:
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        if not missing_ok:
            raise
    except IsADirectoryError as error:
        raise Corrupt("Not a regular file", path=path_of(dir_fd, path)) from error


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove an unfinished directory of our own making; symlinks in it are not followed."""
    shutil.rmtree(path, dir_fd=dir_fd)


def exists(path: str, *, dir_fd: int | None = None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: str, *, dir_fd: int | None = None) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


# -- reading ----------------------------------------------------------------------------------------------------------


_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG})


def _open_regular(path: str, flags: int, dir_fd: int | None) -> int:
    """Open a regular file. Whatever else lies there (a symlink, a pipe, a directory) is refused as `Corrupt`, and not waited
    for.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise Corrupt(f"Not a regular file: {error.strerror}", path=path_of(dir_fd, path)) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Corrupt("Not a regular file", path=path_of(dir_fd, path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(path: str, *, dir_fd: int | None = None) -> int:
    """Open a file for reading; what is no regular file is `Corrupt`, a symlink too."""
    return _open_regular(path, os.O_RDONLY, dir_fd)


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """Return `nbytes` bytes from `offset`, fewer only where the file ends."""
    data = os.pread(fd, nbytes, offset)
    if len(data) == nbytes or not data:
        return data
    parts = [data]
    while data and (got := sum(map(len, parts))) < nbytes:
        data = os.pread(fd, nbytes - got, offset + got)
        parts.append(data)
    return b"".join(parts)


def read_on(fd: int, offset: int) -> bytes:
    """Return what lies from `offset` to the end of the file; one call if that is little."""
    data = os.pread(fd, READ_NBYTES, offset)
    if len(data) < READ_NBYTES:
        return data
    return data + read_at(fd, size_of(fd) - offset - len(data), offset + len(data))


def read_data(fd: int) -> list[tuple[int, bytes]]:
    """Return what an open file holds, as (offset, bytes); of a large file only what is not a hole, where the system tells."""
    size = size_of(fd)
    if size <= SPARSE_NBYTES:
        return [(0, read_at(fd, size, 0))]
    parts, stop = [], 0
    try:
        while stop < size:
            start = os.lseek(fd, stop, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
            parts.append((start, read_at(fd, stop - start, start)))
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that no data follows
            return [(0, read_at(fd, size, 0))]
    return parts


def read_into(fd: int, buffer: Any, offset: int) -> int:
    """Fill `buffer` from `offset`; return how many bytes there were."""
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_file(path: str, *, dir_fd: int | None = None, limit: int = 64 << 20) -> bytes:
    fd = open_file(path, dir_fd=dir_fd)
    try:
        return read_at(fd, min(os.fstat(fd).st_size, limit), 0)
    finally:
        os.close(fd)


def size_of(fd: int) -> int:
    return os.fstat(fd).st_size


# -- writing ----------------------------------------------------------------------------------------------------------


def create_file(path: str, *, dir_fd: int | None = None) -> int:
    """Create a file that must not exist, for reading and writing."""
    with explained(f"Cannot create {path!r}"):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o666, dir_fd=dir_fd)


def open_for_append(path: str, *, dir_fd: int | None = None) -> int:
    """Open an existing file for reading and writing; it is not changed."""
    with explained(f"Cannot open {path!r} for writing"):
        return _open_regular(path, os.O_RDWR, dir_fd)


def open_or_create(path: str, *, dir_fd: int | None = None) -> int:
    """Open a file for reading and writing; it is made, empty, if it is not there."""
    with explained(f"Cannot open {path!r} for writing"):
        return _open_regular(path, os.O_RDWR | os.O_CREAT, dir_fd)


def replace_file(path: str, data: bytes, *, dir_fd: int | None = None) -> None:
    """Make `path` hold `data`, at once and durably: it is written aside, and renamed there."""
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}")
    unlink(aside, dir_fd=dir_fd, missing_ok=True)
    write_new_file(aside, data, dir_fd=dir_fd)
    rename(aside, path, dir_fd=dir_fd)
    sync_directory(directory, dir_fd=dir_fd)


def write_at(fd: int, data: Buffer, nbytes: int, offset: int) -> None:
    """Write all `nbytes` of `data` at `offset`; raises `DiskFull` or the `OSError`, with some prefix
    perhaps written.
    """
    try:
        done = os.pwrite(fd, data, offset)
        if done != nbytes:
            view = memoryview(data).cast("B")
            while done < nbytes:
                if not (more := os.pwrite(fd, view[done:], offset + done)):
                    raise OSError(errno.EIO, "nothing is written, and no error is given")
                done += more
    except OSError as error:
        _fail(error, "Cannot write")


def write_parts_at(fd: int, parts: Sequence[Buffer], nbytes: int, offset: int) -> None:
    """As `write_at`, of several buffers one after the other, by as few calls as the system allows."""
    try:
        left = [memoryview(part).cast("B") for part in parts if len(memoryview(part).cast("B"))]
        while left:
            if not (done := os.pwritev(fd, left[:_IOV_MAX], offset)):
                raise OSError(errno.EIO, "nothing is written, and no error is given")
            offset, nbytes = offset + done, nbytes - done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]
        assert nbytes == 0, "all of it was written"
    except OSError as error:
        _fail(error, "Cannot write")


def allocate(fd: int, offset: int, nbytes: int) -> None:
    """Reserve space for bytes to come without changing the file's size, where the filesystem can; raises `DiskFull`."""
    if sys.platform != "linux" or nbytes <= 0:
        return
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, nbytes) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(code, f"Cannot reserve {nbytes} bytes: {os.strerror(code)}; free space and write again")


def release_allocation(fd: int) -> None:
    """Give back space reserved beyond the end of the file (its size stays)."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, os.fstat(fd).st_size)


def sync_file(fd: int, what: str) -> None:
    """Make a file's bytes and size durable; raises `SyncFailed`, after which the file must never be synced again."""
    try:
        fdatasync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, f"Cannot make {what} durable: {error.strerror}") from error


def open_sync_queue() -> SyncQueue | None:
    """What `sync_together` syncs by; None where the system has no such thing."""
    try:
        return SyncQueue()
    except OSError:
        return None


def sync_together(named: Sequence[tuple[int, str]], queue: SyncQueue | None) -> list[SyncFailed | None]:
    """As `sync_file` of each, in no order: all are tried. Returns what `sync_file` would have raised of each.

    `queue` is for one thread at a time; without one they are synced in turn.
    """
    codes = [None] * len(named) if queue is None else queue.fdatasync([fd for fd, _ in named])
    failed: list[SyncFailed | None] = []
    for (fd, what), code in zip(named, codes, strict=True):
        try:
            if code is None:
                sync_file(fd, what)
            elif code:
                raise SyncFailed(code, f"Cannot make {what} durable: {os.strerror(code)}")
            failed.append(None)
        except SyncFailed as error:
            failed.append(error)
    return failed


def sync_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Make the names in a directory durable."""
    fd = open_directory(path, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, f"Cannot make the directory {path!r} durable: {error.strerror}") from error
    finally:
        os.close(fd)


def write_new_file(path: str, data: bytes, *, dir_fd: int | None = None) -> None:
    """Create a file with these bytes, durable (its name is not yet)."""
    fd = create_file(path, dir_fd=dir_fd)
    try:
        write_at(fd, data, len(data), 0)
        sync_file(fd, path)
    finally:
        os.close(fd)


def clone_file(source: str, target: str, *, source_dir_fd: int, dir_fd: int) -> str:
    """Make `target` hold what `source` holds, as cheaply as the filesystem can; return "link", "reflink" or "copy".

    A hard link shares the file; where one cannot be made (another filesystem, link limits, no permission), the bytes
    are shared by reflink or copied by the kernel. A copy is not durable until it is synced.
    """
    try:
        os.link(source, target, src_dir_fd=source_dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        return "link"
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES):
            _fail(error, f"Cannot link {target!r}")
    source_fd = open_file(source, dir_fd=source_dir_fd)
    try:
        target_fd = create_file(target, dir_fd=dir_fd)
        try:
            return _copy(source_fd, target_fd)
        except BaseException:
            os.unlink(target, dir_fd=dir_fd)
            raise
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy(source_fd: int, target_fd: int) -> str:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.ioctl(target_fd, _FICLONE, source_fd)
            return "reflink"
    offset, nbytes = 0, os.fstat(source_fd).st_size
    in_kernel = hasattr(os, "copy_file_range")
    with explained("Cannot copy a block"):
        while offset < nbytes:
            count = 0
            if in_kernel:
                try:
                    count = os.copy_file_range(source_fd, target_fd, nbytes - offset, offset, offset)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                        raise
            if count == 0:
                in_kernel = False
                data = read_at(source_fd, COPY_NBYTES, offset)
                if not data:
                    break
                write_at(target_fd, data, len(data), offset)
                count = len(data)
            offset += count
    return "copy"


# -- locks ------------------------------------------------------------------------------------------------------------


def try_lock(fd: int, *, shared: bool) -> bool:
    """Take a flock on an open file if it is free now. It goes when the last descriptor of this opening is closed."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            return False
        raise
    return True


def lock_within(fd: int, timeout_s: float, *, shared: bool = False) -> bool:
    """Take a flock within so many seconds, by looking again and again; return whether it was had."""
    wait_s, deadline = 20e-6, time.monotonic() + timeout_s
    while not try_lock(fd, shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, 2e-3)
    return True


def try_lock_soon(fd: int) -> bool:
    """Take an exclusive flock, unless somebody keeps it: who only looks whether it is taken holds it for an instant."""
    return lock_within(fd, 0.04)


def lock(fd: int) -> None:
    """Take an exclusive flock on an open file or directory, waiting for it as long as it takes."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def unlock(fd: int) -> None:
    """Let go of a flock."""
    fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(fd: int, what: str, timeout_s: float | None = None) -> Iterator[None]:
    """Hold an exclusive flock on an open file or directory, for a few calls' time only.

    Raises `WriterBusy` if somebody else keeps it for `timeout_s` seconds (None: as long as only a stopped process does).
    """
    timeout_s = STOPPED_S if timeout_s is None else timeout_s
    if not lock_within(fd, timeout_s):
        raise busy(fd, what, timeout_s)
    try:
        yield
    finally:
        unlock(fd)


def busy(fd: int, what: str, after_s: float) -> WriterBusy:
    """What to raise when somebody keeps the flock on an open file that is only ever held for a moment."""
    pid = lock_holder(fd)
    who = "Another process" if pid is None else f"Process {pid}"
    return WriterBusy(
        f"{who} has kept {what} for {after_s:g} s; if it was stopped, continue or kill it",
        pid=pid,
        host=None if pid is None else socket.gethostname(),
    )


def is_stopped(pid: int | None) -> bool:
    """True if that process is known to be stopped, by a signal or a debugger."""
    if pid is None:
        return False
    with (
        contextlib.suppress(OSError, IndexError),
        open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat,
    ):
        return stat.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def lock_holder(fd: int) -> int | None:
    """Return the process that holds the exclusive flock on an open file, where the system says so."""
    found = os.fstat(fd)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError), open("/proc/locks", encoding="ascii") as locks:
        for line in locks:
            match line.split():
                case [_, "FLOCK", _, "WRITE", pid, where, *_] if where == file and int(pid) > 0:
                    return int(pid)
    return None


# -- what locked files say --------------------------------------------------------------------------------------------

T = TypeVar("T")
SAID_NBYTES = 64 << 10


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock."""

    pid: int
    host: str

    @classmethod
    def me(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname())


def say(fd: int, value: object) -> None:
    """Make a small open file say `value`, as JSON; blanks take the place of what it said beyond."""
    text = msgspec.json.encode(value)
    text = text.ljust(size_of(fd))
    write_at(fd, text, len(text), 0)


def said(fd: int, kind: type[T]) -> T | None:
    """Return what a small open file says, or None if that is nothing, or was torn by a power loss."""
    try:
        return msgspec.json.decode(read_at(fd, SAID_NBYTES, 0).rstrip(b"\0"), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def said_in(path: str, kind: type[T], *, dir_fd: int | None = None) -> T | None:
    """As `said`, of the file at `path`; None, too, if it cannot be read."""
    try:
        fd = open_file(path, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        return said(fd, kind)
    except OSError:
        return None
    finally:
        os.close(fd)


# -- the writers' lock ------------------------------------------------------------------------------------------------


def lock_writer(path: str, timeout_s: float) -> FileLock:
    """Take the exclusive lock of a sole writer, and say in the file who holds it.

    Raises `WriterBusy` if it stays taken for `timeout_s` seconds, `ReadOnlyStore` if the file cannot be written.
    """
    os.close(open_or_create(path))  # a regular file, with the mode that ours have
    lock = FileLock(path, timeout=timeout_s, thread_local=False, fallback_to_soft=False, poll_interval=0.01)
    try:
        with explained(f"Cannot lock {path!r}"):
            lock.acquire()
    except Timeout:
        if (holder := said_in(path, Holder)) is None:
            raise WriterBusy(f"Another writer holds {path!r}; pass timeout_s to wait for it") from None
        raise WriterBusy(
            f"Process {holder.pid} on {holder.host} is writing ({path!r} is locked); pass timeout_s to wait for it",
            pid=holder.pid,
            host=holder.host,
        ) from None
    with contextlib.suppress(OSError):
        fd = open_for_append(path)
        try:
            say(fd, Holder.me())
        finally:
            os.close(fd)
    return lock


def share_writer_lock(path: str, timeout_s: float) -> int:
    """Take the lock shared, as one of several writers; return the descriptor that holds it until it is closed.

    Raises `WriterBusy` if a sole writer keeps it for `timeout_s` seconds.
    """
    fd = open_for_append(path)
    try:
        if not lock_within(fd, timeout_s, shared=True):
            raise WriterBusy(f"A sole writer holds {path!r}; let it open the blob with shared=True, too")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unlock_writer(lock: FileLock) -> None:
    lock.release(force=True)
