"""Rows over columns: what a snapshot reads as, by position.

A `Table` holds, for one handle, the newest snapshot and one reader per column, and steps both together. `Rows` is how
a caller asks: by int, slice or indices, for all fields or a selection of them. Positions count from the oldest
retained row; row ids (position + first_row) stay inside.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.data._utils.collate import default_collate_fn_map

from tensorblob import forks
from tensorblob.columns import REFUSED_CACHE_BLOCKS, BlockCache, CachedColumn, ColumnRows, MappedColumn, PreadColumn
from tensorblob.errors import Corrupt, SchemaMismatch
from tensorblob.format import Store
from tensorblob.memory import ReservationRefused, max_map_count
from tensorblob.schema import Field, Schema
from tensorblob.snapshot import Column, Snapshot

Batch: TypeAlias = Any
"""A `torch.Tensor`, or a `TensorDict` from a blob of several fields: which one, the blob knows and a type checker cannot."""

State: TypeAlias = tuple[Snapshot, tuple[ColumnRows, ...], object]
"""A snapshot, the readers of its columns, and what keeps its blocks from being unlinked while someone reads."""

UNREADABLE = (Corrupt, OSError)

WrapView: TypeAlias = Callable[[torch.Tensor, Snapshot, int, int, int], torch.Tensor]
"""Makes what `view` hands out of (tensor, snapshot, field number, start row, stop row)."""


class Table:
    """One handle's view of a blob: `state` is the snapshot and the readers of its columns, replaced together."""

    def __init__(
        self,
        dir_fd: int,
        store: Store,
        snapshot: Snapshot,
        *,
        pin: object = None,
        io: str = "map",
        max_cached_blocks: int | None = None,
    ) -> None:
        self._dir_fd = dir_fd
        self.schema = store.schema
        self._io = io
        self._budget = max_map_count() // 2
        self._spans = self._budget // len(store.schema)
        self._cache = None if max_cached_blocks is None else BlockCache(max_cached_blocks)
        self._lock = forks.lock()
        columns = tuple(map(self._column, self.schema, snapshot.columns))
        self.state: State = snapshot, columns, pin

    def _column(self, field: Field, column: Column) -> ColumnRows:
        if self._io == "pread":
            return PreadColumn(field, self._dir_fd, column)
        if self._cache is None and len(column.spans) >= self._spans:
            self._cache = BlockCache(self._budget)
        if self._cache is None:
            try:
                return MappedColumn(field, self._dir_fd, column)
            except ReservationRefused:
                self._cache = BlockCache(REFUSED_CACHE_BLOCKS)
        return CachedColumn(field, self._dir_fd, column, self._cache)

    def update(self, snapshot: Snapshot, pin: object = None) -> None:
        """Step to a newer snapshot of the same blob, kept by `pin`."""
        assert all(c.origin <= snapshot.first_row and snapshot.rows <= c.stop for c in snapshot.columns)
        with self._lock:
            before, readers, _ = self.state
            if snapshot is before:
                return
            columns = []
            for field, reader, column in zip(self.schema, readers, snapshot.columns, strict=True):
                if column is reader.column:
                    columns.append(reader)
                    continue
                try:
                    if isinstance(reader, MappedColumn) and len(column.spans) >= self._spans:
                        raise ReservationRefused("more spans than the kernel should map")
                    columns.append(reader.follow(column))
                except ReservationRefused:
                    columns.append(self._column(field, column))
            self.state = snapshot, tuple(columns), pin

    @property
    def snapshot(self) -> Snapshot:
        return self.state[0]


class Rows:
    """Rows by position, all fields or some: `[ ]`, `gather`, `view`, `runs`. What has rows says by `_state`
    which they are.
    """

    def __init__(self, schema: Schema, numbers: Sequence[int], wrap: WrapView) -> None:
        self._schema = schema
        self._fields = schema.fields
        self._numbers = tuple(numbers)
        self._wrap = wrap
        self._single = self._numbers[0] if schema.is_single else None
        self._names = [schema.fields[number].name for number in numbers]
        self._paths = [tuple(name.split(".")) for name in self._names]
        self._is_flat = all(len(path) == 1 for path in self._paths)

    def _state(self) -> State:
        """What to read now."""
        raise NotImplementedError

    def refresh(self) -> bool:
        """Step to the newest snapshot; return whether it moved."""
        raise NotImplementedError

    def _blame_closing(self) -> None:
        """Rows could not be read: raise `BlobClosed` if another thread has closed the handle meanwhile."""
        raise NotImplementedError

    def select(self, *fields: str | tuple[str, ...]) -> Selection:
        """The same rows with these fields only (a parent key selects all below it); other columns are not touched."""
        self._state()
        numbers: list[int] = []
        for field in fields:
            name = ".".join(field) if isinstance(field, tuple) else field
            mine = zip(self._numbers, self._names, strict=True)
            found = [number for number, own in mine if own == name or own.startswith(f"{name}.")]
            if not found or self._single is not None:
                raise KeyError(f"No field {field!r}; fields are {self._names}")
            numbers += [number for number in found if number not in numbers]
        if not numbers:
            raise ValueError("select needs at least one field")
        return Selection(self, numbers)

    def held(self) -> Rows:
        """The rows as they are now: the same whatever a refresh moves meanwhile."""
        return _Held(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """All rows as a numpy array, for a blob of plain tensors of a dtype that numpy has (it is always a copy)."""
        if self._single is None:
            raise TypeError("Rows of several fields are no one array; select a field and index it")
        if copy is False:
            raise ValueError("An array of all rows is a copy; view() gives rows without one")
        rows = self[:]
        assert isinstance(rows, torch.Tensor)
        array = rows.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        snapshot = self._state()[0]
        return snapshot.rows - snapshot.first_row

    def _assemble(self, leaves: list[torch.Tensor], batch_size: list[int]) -> TensorDict:
        if self._is_flat:
            source: dict[str, Any] = dict(zip(self._names, leaves, strict=True))
        else:
            source = {}
            for path, leaf in zip(self._paths, leaves, strict=True):
                parent = source
                for part in path[:-1]:
                    parent = parent.setdefault(part, {})
                parent[path[-1]] = leaf
        return TensorDict._new_unsafe(source, batch_size=torch.Size(batch_size))

    # -- copies -------------------------------------------------------------------------------------------------------

    def _row(self, index: int) -> Batch:
        """A copy of the row at a position (negative: from the end); `IndexError` beyond."""
        snapshot, columns, _pin = self._state()
        length = snapshot.rows - snapshot.first_row
        if index < 0:
            index += length
        if not 0 <= index < length:
            index -= length if index < 0 else 0
            raise IndexError(f"Index out of bounds: {index!r} (length: {length})")
        row = index + snapshot.first_row
        try:
            if self._single is not None:
                return columns[self._single].row(row)
            return self._assemble([columns[number].row(row) for number in self._numbers], [])
        except UNREADABLE:
            self._blame_closing()
            raise

    def __getitem__(self, index: Any) -> Batch:
        """Copies: one row for an int, rows for a slice (any step) or a sequence, array or tensor of ints."""
        if type(index) is int:
            return self._row(index)
        if isinstance(index, slice):
            return self._slice(index)
        if isinstance(index, torch.Tensor) and index.ndim == 0 and index.dtype in _INTEGERS:
            return self._row(int(index))
        if isinstance(index, (list, tuple, torch.Tensor)):
            return self.gather(index)
        if not hasattr(index, "__array__") or hasattr(index, "__index__"):
            try:
                return self._row(operator.index(index))
            except TypeError:
                if not hasattr(index, "__array__"):
                    raise TypeError(
                        f"Index must be int, slice, or a sequence of int, got {type(index).__name__!r}!"
                    ) from None
        return self.gather(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """The rows at `indices`, one by one but read in one gather (what a torch DataLoader asks for)."""
        return list(self.gather(indices).unbind(0))

    def _slice(self, index: slice) -> Batch:
        snapshot, columns, _pin = self._state()
        positions = range(*index.indices(snapshot.rows - snapshot.first_row))
        flip = positions.step < 0
        rows = positions[::-1] if flip else positions
        first = snapshot.first_row
        leaves = []
        for number in self._numbers:
            if not rows:
                leaves.append(columns[number].empty(0))
                continue
            try:
                leaf = columns[number].copy(rows[0] + first, rows[-1] + 1 + first, rows.step)
            except UNREADABLE:
                self._blame_closing()
                raise
            leaves.append(_flipped(leaf) if flip else leaf)
        return leaves[0] if self._single is not None else self._assemble(leaves, [len(rows)])

    def gather(self, indices: Any, out: Batch | None = None) -> Batch:
        """Copies of the rows at `indices`, in their order, at memory speed.

        `indices` is a 1-D sequence, array or tensor of ints (negative: from the end). `out`, if given, has
        the rows' dtype and shape (len(indices), *shape), or is a TensorDict of such, and is returned.
        Raises `IndexError` beyond the rows, (`out` may be partly written then, as by `index_select`),
        `TypeError` for indices that are not integers, `ValueError` for ones that are not 1-D.
        """
        state = self._state()
        rows = _as_indices(indices)
        try:
            return self._gather(state, rows, out)
        except UNREADABLE:
            self._blame_closing()
            raise

    def _gather(self, state: State, rows: torch.Tensor, out: Batch | None) -> Batch:
        snapshot, columns, _pin = state
        first, length = snapshot.first_row, snapshot.rows - snapshot.first_row
        count = rows.shape[0]
        if self._single is not None and isinstance(column := columns[self._single], MappedColumn):
            if out is not None:
                _check_out(out, self._fields[0], count)
            if (found := column.take_positions(rows, out, first, snapshot.rows)) is not None:
                return found
        if count:
            low, high = rows.aminmax()
            if int(low) < 0:
                if int(low) < -length:
                    raise IndexError(f"Index out of bounds (length: {length})")
                rows = torch.where(rows < 0, rows + length, rows)
            if int(high) >= length:
                raise IndexError(f"Index out of bounds (length: {length})")
            if first:
                rows = rows + first
        if self._single is not None:
            if out is not None:
                _check_out(out, self._fields[0], count)
            return columns[self._single].take(rows, out)
        if out is None:
            return self._assemble([columns[number].take(rows, None) for number in self._numbers], [count])
        targets = []
        for number, path in zip(self._numbers, self._paths, strict=True):
            target = out.get(path) if isinstance(out, TensorDictBase) else None
            _check_out(target, self._fields[number], count)
            targets.append(target)
        for number, target in zip(self._numbers, targets, strict=True):
            columns[number].take(rows, target)
        return out

    # -- zero-copy ----------------------------------------------------------------------------------------------------

    def runs(self, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """The parts of positions `start` to `stop` (as in a slice) that are each contiguous in memory, as (start,
        stop).
        """
        snapshot, columns, _pin = self._state()
        first = snapshot.first_row
        low, high = _range(snapshot, start, stop)
        bounds = {low, high}
        for number in self._numbers:
            bounds.update(row - first for run in columns[number].runs(low + first, high + first) for row in run)
        ordered = sorted(bounds)
        return list(pairwise(ordered))

    def will_need(self, start: int, stop: int) -> None:
        """Have the kernel begin to read positions `start` to `stop` in, for a `view` to come. Waits for nothing."""
        snapshot, columns, _pin = self._state()
        first = snapshot.first_row
        low, high = _range(snapshot, start, stop)
        for number in self._numbers if low < high else ():
            columns[number].will_need(low + first, high + first)

    def view(self, start: int = 0, stop: int | None = None) -> Batch:
        """Rows `start` to `stop` (as in a slice) without a copy.

        The tensors are yours: they stay valid, and keep showing these rows, whatever the writer and this handle do.
        Changing them in place changes your private copy of the touched pages only, which a refresh may undo. Pickled,
        they travel by reference (path, history, rows). Raises `SeamError` where the rows are not contiguous in memory
        (`runs`).
        """
        snapshot, columns, _pin = self._state()
        first = snapshot.first_row
        low, high = _range(snapshot, start, stop)
        try:
            leaves = [
                self._wrap(columns[number].view(low + first, high + first), snapshot, number, low + first, high + first)
                for number in self._numbers
            ]
        except UNREADABLE:
            self._blame_closing()
            raise
        return leaves[0] if self._single is not None else self._assemble(leaves, [high - low])


class _Held(Rows):
    """Rows of one state."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows._schema, rows._numbers, rows._wrap)
        self._handle, self._held = rows, rows._state()

    def _state(self) -> State:
        return self._held

    def _blame_closing(self) -> None:
        self._handle._blame_closing()


class Selection(Rows):
    """Some fields of a handle's rows, without touching the others; made by `select`.

    It follows its handle: a refresh of either moves both, and closing the handle ends it. Pickled, it travels with a
    handle of its own.
    """

    def __init__(self, handle: Rows, numbers: Sequence[int]) -> None:
        super().__init__(handle._schema, numbers, handle._wrap)
        self._handle = handle

    def _state(self) -> State:
        return self._handle._state()

    def _blame_closing(self) -> None:
        self._handle._blame_closing()

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted names of the fields that are read."""
        return tuple(self._names)

    def refresh(self) -> bool:
        """Step the handle to the newest snapshot; return whether it moved."""
        return self._handle.refresh()

    def __reduce__(self) -> Any:
        return _select, (self._handle, self.fields)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self[index]


def _select(handle: Rows, fields: Sequence[str]) -> Selection:
    return handle.select(*fields)


def _range(snapshot: Snapshot, start: int, stop: int | None) -> tuple[int, int]:
    low, high, _ = slice(start, stop).indices(len(snapshot))
    return low, max(low, high)


_INTEGERS = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


def _as_indices(indices: Any) -> torch.Tensor:
    if type(indices) is torch.Tensor and indices.dtype is torch.int64 and indices.ndim == 1 and indices.is_cpu:
        return indices
    try:
        tensor = torch.as_tensor(indices, device="cpu")
    except (RuntimeError, ValueError) as error:  # what torch says of None, of slices, of strings
        raise TypeError(f"Batch index must be a sequence of integers: {error}") from None
    if tensor.numel() and tensor.dtype not in _INTEGERS:
        if isinstance(indices, torch.Tensor) or np.ndim(indices) == 0:
            got = f"dtype {indices.dtype}"
        else:
            got = f"elements of type {type(indices[0]).__name__!r}"
        raise TypeError(f"Batch index must have an integer dtype, got {got}!")
    if tensor.ndim != 1:
        raise ValueError(f"Batch index must be 1-dimensional, got {tensor.ndim}!")
    rows = tensor.to(torch.int64)
    if tensor.dtype is torch.uint64:
        rows = rows.masked_fill(rows < 0, torch.iinfo(torch.int64).max)  # beyond int64, and so beyond any blob
    return rows


def _check_out(out: Any, field: Field, count: int) -> None:
    if not isinstance(out, torch.Tensor) or out.dtype != field.torch_dtype or out.shape != (count, *field.shape):
        raise SchemaMismatch(
            f"out must be a {field.dtype} tensor of shape {(count, *field.shape)} for field {field.name!r}, "
            f"got {getattr(out, 'dtype', type(out).__name__)} {tuple(getattr(out, 'shape', ()))}"
        )
    if not out.is_cpu or not out.is_contiguous() or out.requires_grad:
        raise SchemaMismatch(f"out must be a contiguous CPU tensor without grad for field {field.name!r}")


def _flipped(rows: torch.Tensor) -> torch.Tensor:
    """`rows` in reverse order; by their bytes, because flip is not implemented for every dtype."""
    return rows.reshape(len(rows), -1).view(torch.uint8).flip(0).view(rows.dtype).view(rows.shape)


def _collate(batch: Sequence[TensorDictBase], *, collate_fn_map: object = None) -> TensorDictBase:
    stacked: TensorDictBase = torch.stack(list(batch))
    return stacked


default_collate_fn_map.setdefault(
    TensorDictBase, _collate
)  # as `default_collate` documents it: a DataLoader takes our rows
