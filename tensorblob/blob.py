"""`TensorBlob`: the file-like face of a blob. Wiring and a cursor; rows are stored by `writer` and read by `table`.

Positions (`seek`, `tell`, `[ ]`, `truncate`, `view`) count from the oldest retained row, as in a file; row ids
(`first_row`, `trim`) are absolute. The cursor is kept as a row id, so that trimmed rows do not move it to others.
"""

from __future__ import annotations

import contextlib
import copy
import io as _io
import operator
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tensorblob import create, files, operations
from tensorblob.batch import Batches
from tensorblob.edit import Metadata, Note, Op, Retention
from tensorblob.errors import BlobClosed, BlobReplaced, NotReadable, NotWritable, OutcomeUnknown, SchemaConflict
from tensorblob.memory import max_map_count
from tensorblob.operations import Source
from tensorblob.reader import Reader, RowsReference, choose_io, open_store, wrap_views
from tensorblob.schema import FieldSpec, Schema, dtype_name, make_schema
from tensorblob.snapshot import Snapshot
from tensorblob.table import Batch, Rows, State, Table
from tensorblob.writer import Writer, check_durability, check_metadata

END = sys.maxsize
"""The cursor after an append: at the end, also if another thread appends by the same handle meanwhile."""


class TensorBlob(Rows):
    """A growing, crash-safe store of equally shaped tensors (or of TensorDict rows), used like a file; see `open`."""

    # -- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        filename: str | os.PathLike[str],
        mode: str = "r",
        *,
        dtype: str | torch.dtype | None = None,
        shape: int | tuple[int, ...] | None = None,
        schema: Mapping[Any, FieldSpec | Mapping[Any, Any]] | None = None,
        block_rows: int | Mapping[str, int] | None = None,
        block_size: int | None = None,
        max_cached_blocks: int | None = None,
        durability: str = "process",
        flush_every_s: float | None = None,
        io: str | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        metadata: dict[str, Any] | None = None,
        timeout_s: float = 0.0,
        shared: bool = False,
    ) -> TensorBlob:
        """Open the blob at `filename` (a directory; `~` is expanded).

        Args:
            mode: `r` reads, `r+` also overwrites at the cursor and appends at the end; the blob must exist. `w` writes, `w+`
                also reads; a missing blob is created, an existing one loses its rows. `a` appends, `a+` also reads; the blob
                must exist.
            dtype, shape: of one row, for a blob of plain tensors. Needed to create it; compared with an existing blob.
            schema: the fields, for a blob of TensorDict rows instead: key to dtype or (dtype, shape); nested dicts and
                tuple keys are welcome. Needed to create it; compared with an existing blob.
            block_rows: capacity of a block file in rows, rounded up to whole pages; a dict by field name is possible.
                Default: about 128 MiB of rows, or an eighth of a ring. Used at creation.
            block_size: the older name of block_rows.
            max_cached_blocks: keep at most so many blocks mapped, in an LRU, and copy from them.
            durability: "process" (commits survive the process) or "power" (and a power loss).
            flush_every_s: at "process", make commits durable this often, in seconds.
            io: "map", or "pread" (nothing is mapped, I/O errors are exceptions, views are copies), or None to choose.
            max_rows, max_bytes: with each commit drop the oldest rows beyond this. Remembered by the blob.
            metadata: a JSON dict, kept with the blob. Replaces the one of an existing blob that is opened for writing.
            timeout_s: how long to wait for another writer, in seconds.
            shared: in mode `a` or `a+`, be one of several writers, in any processes, that take turns.

        Raises:
            FileNotFoundError, NotABlob, UnsupportedFormat, Corrupt: there is no such blob, or it cannot be read.
            ValueError, TypeError, SchemaConflict: the arguments are wrong, or do not fit the blob.
            WriterBusy, ReadOnlyStore, DiskFull: it cannot be written now.

        In every case the blob is as it was before.
        """
        _check_mode(mode)
        path = path_of(filename)
        if mode == "r":
            for name, given in (("max_rows", max_rows), ("max_bytes", max_bytes), ("metadata", metadata)):
                if given is not None:
                    raise ValueError(f"{name} is set by a writer, mode 'r' only reads")
        asked = _asked_schema(dtype, shape, schema, block_rows, block_size, max_rows, max_bytes)
        for name, value in (("max_rows", max_rows), ("max_bytes", max_bytes), ("max_cached_blocks", max_cached_blocks)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}!")
        if io not in (None, "map", "pread"):
            raise ValueError(f"io must be 'map', 'pread' or None, got {io!r}")
        if shared and mode[0] != "a":
            raise ValueError(
                f"Only modes 'a' and 'a+' can be shared, got {mode!r}: rows may be appended by others meanwhile"
            )
        check_durability(durability, flush_every_s)
        metadata = check_metadata(metadata)
        retention = Retention(max_rows, max_bytes)
        is_new = mode[0] == "w" and _is_absent(path)
        if is_new:
            if asked is None:
                raise ValueError(
                    f"Arguments ``dtype`` and ``shape`` are required for new blob; got: {dtype!r} and {shape!r}"
                )
            is_new = create.create(path, asked, metadata=metadata, retention=retention)
        if mode == "r":
            reader = Reader(path, io=io, max_cached_blocks=max_cached_blocks)
            try:
                _check_schema(asked, reader.store.schema, dtype, shape)
            except BaseException:
                reader.close()
                raise
            return cls(path, mode, reader=reader, io=reader.io, max_cached_blocks=max_cached_blocks)
        dir_fd, store = open_store(path)
        try:
            _check_schema(asked, store.schema, dtype, shape)
            kind = choose_io(path, io)
        except BaseException:
            os.close(dir_fd)
            raise
        writer = Writer(
            path,
            dir_fd,
            store,
            durability=durability,
            flush_every_s=flush_every_s,
            timeout_s=timeout_s,
            shared=shared,
            is_read="+" in mode,
        )
        try:
            if not is_new:
                writer.settings(retention=None if retention == Retention(None, None) else retention, metadata=metadata)
                if mode[0] == "w":
                    writer.change(lambda snapshot, _: operations.truncate(snapshot, snapshot.first_row))
                    writer.reclaim()
            return cls(path, mode, writer=writer, io=kind, max_cached_blocks=max_cached_blocks)
        except BaseException:
            writer.close()
            raise

    def __init__(
        self,
        path: str,
        mode: str,
        *,
        reader: Reader | None = None,
        writer: Writer | None = None,
        io: str = "map",
        max_cached_blocks: int | None = None,
    ) -> None:
        self.filename = path
        self.mode = mode
        self._reader = reader
        self._writer = writer
        if reader is not None:
            self._store, self._table, wrap = reader.store, reader.table, reader.wrap
        else:
            assert writer is not None
            self._store = writer.store
            self._table = Table(
                writer.dir_fd, writer.store, writer.snapshot, io=io, max_cached_blocks=max_cached_blocks
            )
            if "+" in mode:
                writer.on_step = self._table.update
            wrap = wrap_views(path, writer.store)
        self._io, self._max_cached_blocks = io, max_cached_blocks
        self.max_cached_blocks = max_cached_blocks or max_map_count() // 2
        self._reads = reader is not None or "+" in mode
        self._appends = mode[0] == "a"
        self._closed = False
        super().__init__(self._store.schema, range(len(self._store.schema)), wrap)
        self._batches = Batches(self._store.schema)
        snapshot = self.snapshot
        self._cursor = snapshot.rows if self._appends else snapshot.first_row

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """The fields: names, dtypes, shapes, block_rows."""
        return self._store.schema

    @property
    def dtype(self) -> str | None:
        """The dtype of the rows by name ("float32"); None for a blob of several fields."""
        return self.schema.fields[0].dtype if self.schema.is_single else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one row; None for a blob of several fields."""
        return self.schema.fields[0].shape if self.schema.is_single else None

    @property
    def block_rows(self) -> int | dict[str, int]:
        """The capacity of a block in rows; by field for a blob of several fields."""
        if self.schema.is_single:
            return self.schema.fields[0].block_rows
        return {field.name: field.block_rows for field in self.schema}

    block_size = block_rows

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def snapshot(self) -> Snapshot:
        """What this handle shows: of a writer everything it wrote, of a reader what was committed at the last
        refresh.
        """
        return self._table.snapshot if self._writer is None else self._writer.pending

    @property
    def first_row(self) -> int:
        """The row id of the oldest retained row, which is at position 0."""
        return self.snapshot.first_row

    @property
    def rows(self) -> int:
        """The row id after the newest row."""
        return self.snapshot.rows

    @property
    def durable_rows(self) -> int:
        """Rows before this row id survive a power loss (a row overwritten since the last flush perhaps as it was)."""
        return self.snapshot.durable_rows

    @property
    def history(self) -> int:
        """A number that steps when committed rows are cut."""
        return self.snapshot.history

    @property
    def metadata(self) -> dict[str, Any]:
        """The blob's user metadata."""
        return copy.deepcopy(self.snapshot.metadata or {})

    def commit_metadata(self) -> list[tuple[int, int, dict[str, Any]]]:
        """The metadata given with commits, oldest first: (start, stop, metadata) with the row ids of the commit."""
        return [(note.start, note.stop, copy.deepcopy(note.value)) for note in self.snapshot.notes]

    def __len__(self) -> int:
        snapshot = self.snapshot
        return snapshot.rows - snapshot.first_row

    def __repr__(self) -> str:
        kind = f"dtype={self.dtype}, shape={self.shape}" if self.schema.is_single else f"fields={len(self.schema)}"
        return f"TensorBlob({self.filename!r}, mode={self.mode!r}, {kind}, rows={len(self)}{', closed' * self._closed})"

    # -- state checks ---------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise BlobClosed("I/O operation on closed blob.")

    def _check_readable(self) -> None:
        if not self._reads:
            raise NotReadable(f"Blob is not open for reading (mode='{self.mode}')")
        self._check_open()

    def _check_writable(self) -> Writer:
        if self._writer is None:
            raise NotWritable(f"Blob is not open for writing (mode='{self.mode}')")
        self._check_open()
        return self._writer

    def _state(self) -> State:
        """What to read: the newest state of this handle. Raises if it does not read, or is closed."""
        if self._closed or not self._reads:
            self._check_readable()
        writer = self._writer
        if writer is not None and self._table.state[0] is not writer.pending:
            self._table.update(writer.pending)
        return self._table.state

    def _blame_closing(self) -> None:
        if self._closed or (self._writer is not None and self._writer.is_closing):
            raise BlobClosed("I/O operation on closed blob: it was closed while rows were read.")

    # -- reading ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Rows from the cursor on. Each iterator has its own position; the cursor follows the last row read."""
        self._check_readable()
        return self._iterate(self.tell() + self.snapshot.first_row)

    def _iterate(self, row: int) -> Iterator[Batch]:
        while True:
            snapshot = self.snapshot
            row = max(row, snapshot.first_row)  # rows may have been trimmed meanwhile
            if row >= snapshot.rows:
                return
            found = self._row(row - snapshot.first_row)
            row += 1
            self._cursor = row
            yield found

    def read(self, size: int | None = None) -> Batch:
        """A copy of the next `size` rows (None or negative: all that are left), as one tensor or TensorDict."""
        self._check_readable()
        position = self.tell()
        size = -1 if size is None else operator.index(size)
        stop = len(self) if size < 0 else min(position + size, len(self))
        found = self[position:stop]
        self._cursor = self.snapshot.first_row + stop
        return found

    def refresh(self) -> bool:
        """Step to the newest snapshot; return whether it moved. Of a sole writer, always False: it is at the newest."""
        self._check_open()
        return self._reader.refresh() if self._reader is not None else self._check_writable().refresh()

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def tell(self) -> int:
        """The cursor's position."""
        self._check_open()
        snapshot = self.snapshot
        return min(max(self._cursor, snapshot.first_row), snapshot.rows) - snapshot.first_row

    def seek(self, pos: int = 0, whence: int = _io.SEEK_SET) -> int:
        """Move the cursor, to between the first row and the end; return its position."""
        self._check_open()
        match whence:
            case _io.SEEK_SET:
                base = 0
            case _io.SEEK_CUR:
                base = self.tell()
            case _io.SEEK_END:
                base = len(self)
            case _:
                raise ValueError(f"Invalid whence: {whence!r}")
        self._cursor = self.snapshot.first_row + max(min(base + operator.index(pos), len(self)), 0)
        return self.tell()

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, rows: Any, metadata: dict[str, Any] | None = None) -> int:
        """Write rows at the cursor (modes a and a+: at the end) as one commit; return how many.

        `rows` is a tensor of shape (n, *shape), one row, or flat 1-D; with a schema a dict or TensorDict with every
        field of shape (n, *field shape), or one row. Rows at the cursor are overwritten, those beyond the end
        appended. `metadata` is kept with the commit. Raises `DTypeMismatch`, `SchemaMismatch`, `TypeError`,
        `DiskFull`; then nothing was written. At durability="power" `OutcomeUnknown` says that the commit is visible
        but may not be durable.
        """
        writer = self._writer
        if writer is None or self._closed:
            writer = self._check_writable()
        columns, count = self._batches.columns(rows)
        if metadata is not None:
            metadata = check_metadata(metadata)
        if not count:
            if metadata is not None:
                note = metadata
                writer.change(lambda snapshot, _: [Note(snapshot.rows, snapshot.rows, note)])
            if self._appends:
                self._cursor = writer.stop_row
            return 0
        end = writer.stop_row
        is_appended = self._appends or self._cursor >= end
        cursor = end if is_appended else max(self._cursor, writer.pending.first_row)
        try:
            if is_appended:
                writer.append(columns, count, metadata)
            else:
                place = partial(operations.overwrite, row=cursor, columns=columns, count=count)
                writer.change(place, metadata)
        except BaseException as error:
            if isinstance(error, OutcomeUnknown) or writer.stop_row != end:
                self._cursor = END if is_appended else cursor + count  # they are visible: the next write goes behind
            raise
        self._cursor = END if is_appended else cursor + count
        return count

    @contextlib.contextmanager
    def transaction(self, metadata: dict[str, Any] | None = None) -> Iterator[TensorBlob]:
        """Make all changes of the body one commit; an exception in it takes them all back, and the cursor too."""
        writer, cursor = self._check_writable(), self._cursor
        commits = writer.snapshot.commits
        try:
            with writer.transaction(metadata):
                yield self
        except BaseException:
            if writer.snapshot.commits == commits:  # taken back
                self._cursor = cursor
            raise

    def truncate(self, pos: int | None = None) -> int:
        """Cut the rows from position `pos` (default: the cursor) on; return the cursor's position, which is there."""
        writer = self._check_writable()
        pos = None if pos is None else operator.index(pos)
        if pos is not None and pos < 0:
            raise ValueError(f"Truncate position must be non-negative, got {pos}!")
        row = self.snapshot.first_row + self.tell()

        def cut(snapshot: Snapshot, _: object) -> list[Op]:
            return operations.truncate(snapshot, row if pos is None else snapshot.first_row + pos)

        writer.change(cut)
        writer.reclaim()
        return self.seek(pos) if pos is not None else self.tell()

    def trim(self, before_row: int) -> int:
        """Drop the rows with ids below `before_row`; return the new `first_row`. Row ids and history stay."""
        writer, row = self._check_writable(), operator.index(before_row)
        writer.change(lambda snapshot, _: operations.trim(snapshot, row))
        writer.reclaim()
        return self.first_row

    def extend(self, other: TensorBlob | str | os.PathLike[str], maintain_order: bool = True) -> None:
        """Append all rows of another blob without copying them: its files are linked (or cloned, or copied, where they
        cannot be), and both blobs go on by themselves.

        maintain_order=True keeps the rows in order, and may leave a seam where a block was partial. False keeps
        memory contiguous: whole quanta are linked, the rows of the two tails are rewritten behind them. The cursor
        moves to the end.
        """
        writer = self._check_writable()
        if not isinstance(other, TensorBlob):
            with TensorBlob.open(other) as opened:
                self.extend(opened, maintain_order)
            return
        other._check_open()
        operations.check_same_layout(self._store, other._store)
        if not maintain_order and self.block_rows != other.block_rows:
            raise ValueError("Block sizes must match to extend blobs in non-order-preserving mode!")
        with other._source() as source:
            if maintain_order:
                writer.change(lambda snapshot, _: operations.adopt(writer, snapshot, source))
            else:
                writer.change(partial(operations.adopt_full, writer, source=source))
        self._cursor = writer.pending.rows

    @contextlib.contextmanager
    def _source(self) -> Iterator[Source]:
        """What this handle shows, pinned, for another blob to take over."""
        if self._reader is not None:
            snapshot, _, pin = self._reader.state()
            yield Source(self._reader.dir_fd, self._store, snapshot, pin)
            return
        assert self._writer is not None
        self._writer.check_outside("take over or copy rows")
        reader = Reader(self.filename, io="pread")
        try:
            if not os.path.sameopenfile(reader.dir_fd, self._writer.dir_fd):
                raise BlobReplaced(f"{self.filename!r} is another blob than the one that this handle writes")
            snapshot, _, pin = reader.state()
            yield Source(reader.dir_fd, reader.store, snapshot, pin)
        finally:
            reader.close()

    def compact(self) -> None:
        """Rewrite what is not in full blocks: no seams, no patches, no trimmed rows; the space of the old files is
        freed.
        """
        writer = self._check_writable()
        writer.change(operations.compact)
        writer.reclaim(at_least_nbytes=0)

    def copy(self, dest: str | os.PathLike[str]) -> None:
        """Make an independent blob at `dest` that holds the committed rows: an instant, hard-linked snapshot.

        Works on any open handle, also while a writer is at work. Raises `FileExistsError` if `dest` exists.
        """
        self._check_open()
        path = path_of(dest)
        with self._source() as source:
            create.copy(source.dir_fd, source.store, source.snapshot, path)

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the blob's user metadata (a JSON dict), as one commit."""
        writer = self._check_writable()
        value = check_metadata(metadata)
        if value is None:
            raise TypeError("metadata must be a dict, got 'NoneType'")
        writer.change(lambda *_: [Metadata(value)])

    def flush(self) -> None:
        """Make every committed row durable. Raises `SyncFailed`."""
        self._check_writable().flush()

    def close(self) -> None:
        """Close the handle; a writer makes everything durable and lets the next one in. Views stay valid."""
        if self._reader is not None:
            self._closed = True
            self._reader.close()
        if self._writer is not None:
            try:
                self._writer.close()
            finally:
                self._closed = self._writer.closed

    @classmethod
    def unlink(cls, filename: str | os.PathLike[str]) -> bool:
        """Remove a blob, and only a blob. Returns True if it is gone; warns and returns False if it could not be
        removed.
        """
        path = path_of(filename)
        if not os.path.lexists(path):
            return True
        try:
            dir_fd, _ = open_store(path)
            try:
                lock = files.lock_writer(os.path.join(path, "writer.lock"), 0.0)
                try:
                    create.unlink(path, dir_fd)
                finally:
                    files.unlock_writer(lock)
            finally:
                os.close(dir_fd)
        except (OSError, ValueError) as error:
            warnings.warn(f"Failed to unlink blob at {path!r}: {error}", stacklevel=2)
            return False
        return True

    def __enter__(self) -> TensorBlob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- travelling ---------------------------------------------------------------------------------------------------

    def __reduce__(self) -> Any:
        """Pickle by reference: the blob reopens for reading, at the same rows and cursor, where the pickle arrives."""
        self._check_open()
        snapshot = self._table.snapshot if self._writer is None else self._writer.snapshot
        reference = RowsReference(self.filename, self._store.uuid, snapshot.history, snapshot.first_row, snapshot.rows)
        io = "pread" if self._io == "pread" else None
        return _reopen, (tuple(reference), min(self._cursor, snapshot.rows), io, self._max_cached_blocks)


def _reopen(
    reference: tuple[str, str, int, int, int], cursor: int, io: str | None, max_cached_blocks: int | None
) -> TensorBlob:
    rows = RowsReference(*reference)
    blob = TensorBlob.open(rows.path, io=io, max_cached_blocks=max_cached_blocks)
    assert blob._reader is not None
    try:
        blob._reader.rewind(rows)
    except BaseException:
        blob.close()
        raise
    blob._cursor = cursor
    return blob


def append_to(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    shape: int | tuple[int, ...] | None = None,
    schema: Mapping[Any, Any] | None = None,
    block_rows: int | Mapping[str, int] | None = None,
    max_rows: int | None = None,
    max_bytes: int | None = None,
    metadata: dict[str, Any] | None = None,
    **options: Any,
) -> TensorBlob:
    """Open a blob in mode "a", as `TensorBlob.open`; a missing one is created if the arguments say what it holds."""
    where = path_of(path)
    if _is_absent(where):
        asked = _asked_schema(dtype, shape, schema, block_rows, None, max_rows, max_bytes)
        if asked is None:
            raise FileNotFoundError(f"Blob not found: {where!r}; give dtype= and shape=, or schema=, to create it")
        create.create(where, asked, metadata=check_metadata(metadata), retention=Retention(max_rows, max_bytes))
    options |= {"dtype": dtype, "shape": shape, "schema": schema, "block_rows": block_rows}
    options |= {"max_rows": max_rows, "max_bytes": max_bytes, "metadata": metadata}
    return TensorBlob.open(where, "a", **options)


def path_of(filename: str | os.PathLike[str]) -> str:
    """The path of a blob's directory: absolute, `~` and symlinks resolved."""
    if isinstance(filename, str) and not filename.startswith("~"):
        return os.path.realpath(filename)
    return os.path.realpath(Path(filename).expanduser())


def _check_mode(mode: str) -> None:
    modes = set(mode)
    if modes - set("raw+") or len(mode) > len(modes):
        raise ValueError(f"Invalid mode: {mode}")
    if sum(letter in "raw" for letter in mode) != 1:
        raise ValueError(f"Must have exactly one of read/write/append mode and at most one plus: {mode}")


def _asked_schema(
    dtype: str | torch.dtype | None,
    shape: int | tuple[int, ...] | None,
    schema: Mapping[Any, Any] | None,
    block_rows: int | Mapping[str, int] | None,
    block_size: int | None,
    max_rows: int | None,
    max_bytes: int | None,
) -> Schema | None:
    """The schema that the arguments of `open` describe, or None if they leave it to the blob."""
    if block_size is not None:
        if block_rows is not None:
            raise ValueError("block_size is the older name of block_rows; give only one of them")
        block_rows = block_size
    if schema is not None:
        if dtype is not None or shape is not None:
            raise ValueError("Give either schema, or dtype and shape")
    elif dtype is None or shape is None:
        return None
    else:
        schema = {"": (dtype, shape)}
    return make_schema(schema, block_rows=block_rows, max_rows=max_rows, max_bytes=max_bytes)


def _check_schema(asked: Schema | None, found: Schema, dtype: Any, shape: Any) -> None:
    """Raise `SchemaConflict` unless what was asked for, as far as it was, is what the blob holds."""
    if asked is not None and asked.layout() != found.layout():
        raise SchemaConflict(f"The blob exists with other fields: {found.layout()}, asked for {asked.layout()}")
    if asked is None and dtype is not None and (not found.is_single or found.fields[0].dtype != dtype_name(dtype)):
        raise SchemaConflict(f"The blob exists with other fields: {found.layout()}, asked for dtype {dtype!r}")
    if asked is None and shape is not None:
        wanted = (shape,) if isinstance(shape, int) else tuple(shape)
        if not found.is_single or found.fields[0].shape != wanted:
            raise SchemaConflict(f"The blob exists with other fields: {found.layout()}, asked for shape {shape!r}")


def _is_absent(path: str) -> bool:
    """True if there is nothing at `path`, or an empty directory."""
    try:
        return not os.listdir(path)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
