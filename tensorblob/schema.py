"""What a blob stores: fields as the user names them, and the columns of fixed-width rows that hold them.

A schema is a value and never changes once a blob exists. Nested TensorDict keys become dotted column names; a schema
with one unnamed field (name `""`) describes a blob of plain tensors.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import msgspec
import torch

PAGE_NBYTES = mmap.PAGESIZE
HUGE_PAGE_NBYTES = 2 << 20
BLOCK_NBYTES = 128 << 20
MAX_BLOCK_NBYTES = 256 << 20
MAX_ASKED_NBYTES = 1 << 40
MAX_NAME_NBYTES = 200
MAX_DIMENSIONS = 30
"""Of one row; numpy's arrays have at most 32, and rows come in batches."""

FieldSpec: TypeAlias = "str | torch.dtype | tuple[str | torch.dtype, int | tuple[int, ...]]"

_SUB_BYTE_PREFIXES = ("bits", "quint", "qint", "float4")
_NAMED = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
"""Every name of a dtype, its other ones too ("half"). Names that a file gives are only ever looked up here."""
_DTYPES: dict[str, torch.dtype] = {}
for _dtype in set(_NAMED.values()):
    _name = str(_dtype).removeprefix("torch.")
    _is_sub_byte = _name.startswith(_SUB_BYTE_PREFIXES) or (
        _name.lstrip("u").startswith("int") and int(_name.lstrip("u")[3:]) < 8
    )
    if not _is_sub_byte:
        _DTYPES[_name] = _dtype


def dtype_name(dtype: str | torch.dtype) -> str:
    """Return the canonical name ("float32") of a torch dtype with a fixed itemsize.

    Raises `TypeError` if `dtype` is neither a string nor a `torch.dtype`, `ValueError` if there is no such dtype or
    if its elements do not fill whole bytes (quantised and sub-byte dtypes).
    """
    if isinstance(dtype, str):
        found = _NAMED.get(dtype.removeprefix("torch."))
        if found is None:
            raise ValueError(f"Unknown dtype {dtype!r}; use a torch dtype or its name, such as 'float32'")
        dtype = found
    elif not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be str or torch.dtype, got {type(dtype).__name__!r}")
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} has no fixed itemsize and cannot be stored")
    return name


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One column: `name` dotted, `dtype` by name, `shape` of one row, `block_rows` the capacity of its blocks in
    rows.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    block_rows: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def row_nbytes(self) -> int:
        found: int | None = self.__dict__.get("row_nbytes")  # no cached_property: its lock may be held at a fork
        if found is None:
            found = self.__dict__["row_nbytes"] = self.torch_dtype.itemsize * math.prod(self.shape)
        return found

    @property
    def quantum(self) -> int:
        """The fewest rows that fill whole pages."""
        return quantum_rows(self.row_nbytes)

    @property
    def key(self) -> str | tuple[str, ...]:
        """The TensorDict key of this field: `"obs"`, or `("next", "reward")` for a nested one."""
        parts = tuple(self.name.split("."))
        return parts if len(parts) > 1 else self.name

    @property
    def directory(self) -> str:
        """The name of this column's directory below `blocks/`."""
        return self.name or "data"


class Schema(msgspec.Struct, frozen=True):
    """The fields of a blob, in the order in which they are stored."""

    fields: tuple[Field, ...]

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    @property
    def is_single(self) -> bool:
        """True for one unnamed field: rows are plain tensors."""
        return len(self.fields) == 1 and not self.fields[0].name

    @property
    def row_nbytes(self) -> int:
        return sum(field.row_nbytes for field in self.fields)

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What must agree for two blobs to hold the same rows: name to (dtype, shape)."""
        return {field.name: (field.dtype, field.shape) for field in self.fields}


def quantum_rows(row_nbytes: int, page_nbytes: int = PAGE_NBYTES) -> int:
    return page_nbytes // math.gcd(row_nbytes, page_nbytes)


def choose_block_rows(row_nbytes: int, *, asked_rows: int | None = None, ring_rows: int | None = None) -> int:
    """Return the capacity of a block in rows: a multiple of the quantum.

    About 128 MiB, of whole 2 MiB where that still gives at most 256 MiB (the kernel then maps it by huge pages). A
    caller's `asked_rows` is rounded up to the quantum; a ring of `ring_rows` gets blocks of at most an eighth of it.
    """
    quantum = quantum_rows(row_nbytes)
    if max(asked_rows or 0, quantum) * row_nbytes > MAX_ASKED_NBYTES:
        raise ValueError(
            f"A block of {asked_rows or quantum} rows of {row_nbytes} bytes is larger than {MAX_ASKED_NBYTES} bytes"
        )
    if asked_rows is not None:
        return -(-asked_rows // quantum) * quantum
    huge = quantum_rows(row_nbytes, HUGE_PAGE_NBYTES)
    step = huge if huge * row_nbytes <= MAX_BLOCK_NBYTES else quantum
    rows = max(BLOCK_NBYTES // row_nbytes // step, 1) * step
    if ring_rows is not None and rows > ring_rows // 8:
        step = huge if huge <= ring_rows // 8 else quantum
        rows = max(ring_rows // 8 // step, 1) * step
    return rows


def _normal_shape(shape: object) -> tuple[int, ...]:
    if isinstance(shape, int) and not isinstance(shape, bool):
        shape = (shape,)
    if not isinstance(shape, (tuple, list, torch.Size)):
        raise TypeError(f"shape must be an int or a tuple of ints, got {type(shape).__name__!r}")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
        raise TypeError(f"shape must be an int or a tuple of ints, got {shape!r}")
    if any(size < 1 for size in shape):
        raise ValueError(f"shape must have positive sizes (a row needs at least one byte), got {tuple(shape)!r}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape must have at most {MAX_DIMENSIONS} sizes, got {len(shape)}")
    return tuple(shape)


def _flatten(fields: Mapping[Any, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, spec in fields.items():
        path = (*prefix, *(key if isinstance(key, tuple) else (key,)))
        if isinstance(spec, Mapping):
            if not spec:
                raise ValueError(f"Field {'.'.join(map(str, path))!r} is an empty dict")
            yield from _flatten(spec, path)
        else:
            yield path, spec


def check_name(name: str) -> None:
    """Raise `ValueError` unless `name` is a dotted column name that is safe as one directory name."""
    parts = name.split(".")
    if not all(parts) or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_NBYTES:
        raise ValueError(
            f"Invalid field name: {name!r} (non-empty parts, no '/', at most {MAX_NAME_NBYTES} bytes in all)"
        )


def make_schema(
    fields: Mapping[Any, Any],
    *,
    block_rows: int | Mapping[str, int] | None = None,
    max_rows: int | None = None,
    max_bytes: int | None = None,
) -> Schema:
    """Return the schema for `fields`: key (str, tuple, or nested dicts) to dtype or `(dtype, shape)`.

    A field given as a bare dtype holds scalars (`shape=()`). Raises `ValueError` or `TypeError` for names, dtypes or
    shapes that cannot be stored, and for two keys with the same dotted name.
    """
    if not isinstance(fields, Mapping) or not fields:
        raise ValueError("Schema must be a non-empty dict mapping field names to (dtype, shape)!")
    flat: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, spec in _flatten(fields):
        if not all(isinstance(part, str) for part in path):
            raise TypeError(f"Field names must be strings or tuples of strings, got {path!r}")
        if path != ("",) or len(fields) > 1:
            if any("." in part for part in path):
                raise ValueError(
                    f"Invalid field name: {path!r} (dots separate nested keys; use a tuple or a nested dict)"
                )
            check_name(".".join(path))
        name = ".".join(path)
        if name in flat:
            raise ValueError(f"Two fields are called {name!r}")
        dtype, shape = spec if isinstance(spec, (tuple, list)) and len(spec) == 2 else (spec, ())
        flat[name] = dtype_name(dtype), _normal_shape(shape)
    for name in flat:
        if any(other.startswith(f"{name}.") for other in flat):
            raise ValueError(f"Field {name!r} is both a tensor and the parent of nested fields")
    sizes = {n: _DTYPES[dtype].itemsize * math.prod(shape) for n, (dtype, shape) in flat.items()}
    ring_rows = max_rows
    if max_bytes is not None:
        by_bytes = max(max_bytes // sum(sizes.values()), 1)
        ring_rows = by_bytes if ring_rows is None else min(ring_rows, by_bytes)

    if isinstance(block_rows, Mapping):
        block_rows = {".".join(key) if isinstance(key, tuple) else key: rows for key, rows in block_rows.items()}
        if unknown := block_rows.keys() - flat.keys():
            raise ValueError(f"block_rows names fields that there are not: {sorted(map(str, unknown))}")

    def capacity(name: str) -> int:
        asked = block_rows.get(name) if isinstance(block_rows, Mapping) else block_rows
        if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool)):
            raise TypeError(f"block_rows must be an int, got {type(asked).__name__!r}")
        if asked is not None and asked < 1:
            raise ValueError(f"block_rows must be at least 1, got {asked}")
        return choose_block_rows(sizes[name], asked_rows=asked, ring_rows=ring_rows)

    return Schema(
        tuple(
            Field(name=name, dtype=dtype, shape=shape, block_rows=capacity(name))
            for name, (dtype, shape) in flat.items()
        )
    )
