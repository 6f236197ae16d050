"""A reader: follows the manifest of one blob, at its own pace, and never writes.

It holds the directory open (so a renamed blob stays readable), its generation pinned, and a `Table`. `refresh` is the
only thing that moves it. Views and handles travel to other processes by reference: what blob, which history, which
rows; the process that gets them maps the files again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from tensorblob import files, forks
from tensorblob.errors import BlobClosed, BlobReplaced, HistoryRewritten, NotABlob, RowsTrimmed
from tensorblob.format import Store, decode_store
from tensorblob.manifest import Log
from tensorblob.snapshot import Snapshot
from tensorblob.table import State, Table

_NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "afs", "gpfs", "beegfs"}
)


class RowsReference(NamedTuple):
    """Which rows of which blob a pickle means: `start` to `stop` (row ids) as they were in `history`."""

    path: str
    uuid: str
    history: int
    start: int
    stop: int


class View(torch.Tensor):
    """What `view` hands out: a tensor over mapped rows that pickles by reference.

    Operations on it give plain tensors. `pickle` and `multiprocessing` send a few hundred bytes, and map the rows
    again where they arrive (in-place changes stay behind); `copy.deepcopy`, `clone` and `torch.save` copy exactly its
    rows.
    """

    _reference: RowsReference
    _field: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol == 2:  # torch.save writes protocol 2, and means the rows
            return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)
        return open_view, (self._reference, self._field)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = memo[id(self)] = self.as_subclass(torch.Tensor).clone()
        return copied


def read_store(dir_fd: int, path: str) -> Store:
    """Return what the schema.json of an open directory says; `NotABlob` if there is none."""
    try:
        data = files.read_file("schema.json", dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise  # it is there, and this process cannot read it now
        raise NotABlob(f"Not a blob (it has no schema.json): {path!r}") from error
    return decode_store(data, os.path.join(path, "schema.json"))


def open_store(path: str) -> tuple[int, Store]:
    """Open a blob's directory; return its descriptor and what it is. `FileNotFoundError` or `NotABlob` if
    it is none, `Corrupt` if a directory in it is somewhere else.
    """
    try:
        dir_fd = files.open_directory(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Blob not found: {Path(path)!r}") from None
    except NotADirectoryError:
        raise NotABlob(f"Not a blob (it is no directory): {path!r}") from None
    try:
        store = read_store(dir_fd, path)
        for name in ("blocks", "producers", "cursors", *(f"blocks/{field.directory}" for field in store.schema)):
            files.check_directory(name, dir_fd=dir_fd)
        return dir_fd, store
    except BaseException as error:
        _close_unopened(dir_fd, path, error)
        raise


def _close_unopened(dir_fd: int, path: str, error: BaseException) -> None:
    """Opening failed. If the blob was removed or replaced meanwhile, nothing is wrong with it: `FileNotFoundError`."""
    try:
        held = os.fstat(dir_fd)
        try:
            now = os.stat(path)
        except FileNotFoundError:
            is_gone = True
        else:
            is_gone = (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino)
    finally:
        os.close(dir_fd)
    if is_gone and isinstance(error, (NotABlob, OSError)):
        raise FileNotFoundError(f"Blob not found: {path!r} was removed while it was opened") from error


def choose_io(path: str, io: str | None) -> str:
    """Return "map" or "pread": what the caller asked for, else "pread" (with a warning) on network filesystems."""
    if io is not None:
        if io not in ("map", "pread"):
            raise ValueError(f"io must be 'map', 'pread' or None, got {io!r}")
        return io
    with contextlib.suppress(OSError):  # who opens it will say what is wrong
        if os.major(os.stat(path).st_dev):
            return "map"  # a device of this machine: filesystems of networks, among others, have none
    kind = filesystem_type(path)
    if kind in _NETWORK_FILESYSTEMS or kind.startswith("fuse."):
        warnings.warn(
            f"{path!r} is on a network filesystem ({kind}), where a lost server under a map kills the process: "
            "reading by pread; pass io='map' or io='pread' to choose",
            stacklevel=4,
        )
        return "pread"
    return "map"


def filesystem_type(path: str, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the filesystem that `path` is on ("ext4"), or "" where the system does not say."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ""
    best, kind = "", ""
    for _, mounted, found, *_ in lines:
        point = mounted.encode("latin-1", "backslashreplace").decode("unicode_escape")
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind


def wrap_views(path: str, store: Store) -> Any:
    """Return what makes a `View` of rows of this blob (a `table.WrapView`)."""

    def wrap(tensor: torch.Tensor, snapshot: Snapshot, field: int, start: int, stop: int) -> torch.Tensor:
        view = tensor.as_subclass(View)
        view._reference = RowsReference(path, store.uuid, snapshot.history, start, stop)
        view._field = field
        return view

    return wrap


class Reader:
    """A blob as a reader sees it: `snapshot` until the next `refresh`. Any number of threads may use it.

    path: the blob's directory. io: "map", "pread" or None to choose. max_cached_blocks: bound the mappings (see
    `columns`). Raises `FileNotFoundError`, `NotABlob`, `UnsupportedFormat` or `Corrupt`. Nothing is created, grown or
    locked for writing.
    """

    def __init__(self, path: str, *, io: str | None = None, max_cached_blocks: int | None = None) -> None:
        self.path = path
        self.io = choose_io(path, io)
        self.dir_fd, self.store = open_store(path)
        try:
            self._log = Log(self.dir_fd, self.store)
            self.table = Table(
                self.dir_fd,
                self.store,
                self._log.snapshot,
                pin=self._log.pin,
                io=self.io,
                max_cached_blocks=max_cached_blocks,
            )
        except BaseException as error:
            _close_unopened(self.dir_fd, path, error)
            raise
        self._lock = forks.lock()
        self.wrap = wrap_views(path, self.store)
        self._closer = weakref.finalize(self, _close, self._log, self.dir_fd)

    @property
    def schema(self) -> Any:
        return self.store.schema

    @property
    def snapshot(self) -> Snapshot:
        return self.table.snapshot

    @property
    def log_fd(self) -> int:
        """The manifest that commits are appended to now, for a doorbell."""
        return self._log.pin.fd

    @property
    def closed(self) -> bool:
        return not self._closer.alive

    def state(self) -> State:
        """What the table shows now; raises `BlobClosed`."""
        if self.closed:
            raise BlobClosed("I/O operation on closed blob.")
        return self.table.state

    def refresh(self) -> bool:
        """Step to the newest snapshot; return whether it moved. Costs a few microseconds where nothing happened.

        Raises `BlobReplaced` if the path leads to another blob now, or to none.
        """
        with self._lock:
            if self.closed:
                raise BlobClosed("I/O operation on closed blob.")
            if not self._log.poll():
                self._check_path()
            moved = self.table.snapshot is not self._log.snapshot
            self.table.update(self._log.snapshot, self._log.pin)
            return moved

    def _check_path(self) -> None:
        held = os.fstat(self.dir_fd)
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            raise BlobReplaced(f"{self.path!r} was renamed or removed; this handle still shows the old rows") from None
        if (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino):
            raise BlobReplaced(
                f"{self.path!r} is another blob now; open it again (this handle still shows the old rows)"
            )

    def rewind(self, reference: RowsReference) -> None:
        """Show exactly the rows of a pickle: raises `HistoryRewritten` or `RowsTrimmed` if they are no longer there."""
        snapshot = self._log.snapshot
        if self.store.uuid != reference.uuid:
            raise BlobReplaced(f"{self.path!r} is another blob than the one that was pickled")
        cut = snapshot.cut_after(reference.history)
        if reference.history > snapshot.history or (cut is not None and cut < reference.stop):
            raise HistoryRewritten(
                f"Rows from {cut} on were cut from {self.path!r} after rows {reference.start} to {reference.stop} were pickled"
            )
        if reference.stop > snapshot.rows:
            raise HistoryRewritten(f"{self.path!r} has {snapshot.rows} rows; rows to {reference.stop} were pickled")
        if snapshot.first_row > reference.start and reference.start < reference.stop:
            raise RowsTrimmed(
                f"Rows before {snapshot.first_row} were trimmed from {self.path!r}; the pickle needs row {reference.start}",
                first_row=snapshot.first_row,
            )
        self.table.update(
            msgspec.structs.replace(
                snapshot,
                first_row=max(reference.start, snapshot.first_row),
                rows=max(reference.stop, snapshot.first_row),
            ),
            self._log.pin,
        )

    def close(self) -> None:
        """Let go of the pin and the descriptors. Views that were handed out stay valid."""
        self._closer()


def _close(log: Log, dir_fd: int) -> None:
    log.pin.close()
    os.close(dir_fd)


def open_view(reference: RowsReference, field: int) -> torch.Tensor:
    """Map the rows of a pickled view again."""
    reader = Reader(reference.path)
    reader.rewind(reference)
    column = reader.table.state[1][field]
    view = reader.wrap(
        column.view(reference.start, reference.stop), reader.snapshot, field, reference.start, reference.stop
    )
    reader.close()
    result: torch.Tensor = view
    return result
