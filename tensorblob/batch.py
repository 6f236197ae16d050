"""What `write` accepts, checked and turned into one plain array per column, or its bytes, before anything changes."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from tensorblob.errors import DTypeMismatch, SchemaMismatch
from tensorblob.growth import SMALL_NBYTES, Rows
from tensorblob.memory import carrier_dtype
from tensorblob.schema import Field, Schema


class _Like(NamedTuple):
    """What the last small batch gave for one field, and what reads such a tensor's bytes at an address."""

    number: int
    shape: torch.Size
    dtype: torch.dtype
    bytes_at: Callable[[int], Any]


class Batches:
    """Turns what the user writes into the rows of each field of `schema`.

    They are arrays of shape (count, *field.shape) and the field's carrier dtype, or the bytes of such an array.
    """

    def __init__(self, schema: Schema) -> None:
        self._fields = schema.fields
        self._is_single = schema.is_single
        self._shape = schema.fields[0].shape
        dtype = schema.fields[0].torch_dtype
        self._dtype = dtype if schema.is_single and carrier_dtype(dtype) is dtype and not dtype.is_complex else None
        """The dtype of rows that are written as they are."""
        self._small: tuple[torch.Size | None, int, Callable[[int], Any]] = None, 0, ctypes.c_char.from_address
        """The shape of the last small batch, the rows it has, and what reads as many bytes at an address: one value,
        so that threads which write through one handle never mix two batches.
        """
        self._like: tuple[dict[str, _Like], int] = {}, 0
        """As `_small`, of several fields: what the last small batch was like, and the rows it has."""

    def columns(self, rows: Any) -> tuple[Sequence[Rows], int]:
        """Return the rows of each field, and their count.

        Small batches are copied where they are like the one before; all else shares the caller's memory where that is CPU
        memory.

        `rows` is a tensor for a blob with one unnamed field, else a dict (nested or with tuple keys) or TensorDict
        with exactly the fields of the schema. CUDA tensors and ones that carry grad are taken by value; no dtype is
        converted. Raises `DTypeMismatch`, `SchemaMismatch`, or `TypeError` for anything that holds no tensors.
        """
        if self._is_single:
            if type(rows) is torch.Tensor and rows.dtype is self._dtype:
                try:
                    shape, count, bytes_at = self._small
                    if rows.shape == shape:  # as the last time: this has to be quick
                        if rows.is_cpu and rows.is_contiguous() and not rows.is_neg() and (address := rows.data_ptr()):
                            return (bytes_at(address).raw,), count
                    array = rows.numpy()
                except (RuntimeError, TypeError):
                    pass  # it carries grad, is on a device, or has a dtype that numpy lacks
                else:
                    shape = rows.shape
                    if shape[1:] == self._shape and shape and (rows.data_ptr() or not shape[0]):
                        if 0 < array.nbytes <= SMALL_NBYTES:
                            self._small = shape, shape[0], (ctypes.c_char * array.nbytes).from_address
                        return (array,), shape[0]
            array = _as_column(rows, self._fields[0], may_flatten=True, may_be_row=True)
            return [array], len(array)
        if not isinstance(rows, (Mapping, TensorDictBase)):
            raise TypeError(f"Rows must be a dict or TensorDict of the blob's fields, got {type(rows).__name__!r}!")
        like, count = self._like
        if like and (quick := _as_bytes(rows, like)) is not None:
            return quick, count
        found = dict(_leaves(rows))
        names = {field.name for field in self._fields}
        if found.keys() != names:
            raise SchemaMismatch(
                "Writes need exactly the schema fields; "
                f"missing: {sorted(names - found.keys())!r}, unexpected: {sorted(found.keys() - names)!r}"
            )
        is_row = all(_shape_of(found[field.name]) == field.shape for field in self._fields)
        arrays = [_as_column(found[field.name], field, may_be_row=is_row) for field in self._fields]
        counts = {field.name: len(array) for field, array in zip(self._fields, arrays, strict=True)}
        if len(set(counts.values())) != 1:
            raise SchemaMismatch(f"All fields must have the same row count; got: {counts!r}")
        self._note(found, len(arrays[0]))
        return arrays, len(arrays[0])

    def _note(self, found: dict[str, Any], count: int) -> None:
        """Have the next batch taken quickly if it is like this one: small, of plain tensors."""
        like = {}
        for number, field in enumerate(self._fields):
            value = found[field.name]
            if type(value) is not torch.Tensor or carrier_dtype(value.dtype) is not value.dtype or value.is_complex():
                return
            nbytes = value.numel() * value.element_size()
            if not 0 < nbytes <= SMALL_NBYTES:
                return
            like[field.name] = _Like(number, value.shape, value.dtype, (ctypes.c_char * nbytes).from_address)
        self._like = like, count


def _as_bytes(rows: Any, like: dict[str, _Like]) -> list[bytes] | None:
    """The bytes of each field, if all are tensors as the last ones were; None if one is not. This has to be quick."""
    columns = [b""] * len(like)
    try:
        count = _copy_leaves(rows, like, columns, "")
    except (RuntimeError, TypeError, LookupError):  # a name or a kind of tensor that has to be looked at
        return None
    return columns if count == len(like) and b"" not in columns else None


def _copy_leaves(rows: Any, like: dict[str, _Like], columns: list[bytes], prefix: str) -> int:
    """Copy the tensors below `rows` that are as the last ones were; return how many. Raises `LookupError` at another."""
    count = 0
    for name, value in rows.items():
        if prefix:
            name = prefix + name
        if type(value) is torch.Tensor:
            number, shape, dtype, bytes_at = like[name]
            if not (value.shape == shape and value.dtype is dtype and value.is_cpu and value.is_contiguous()):
                raise LookupError
            if value.is_neg() or not (address := value.data_ptr()):
                raise LookupError
            columns[number] = bytes_at(address).raw
            count += 1
        elif isinstance(value, (dict, TensorDictBase)):
            count += _copy_leaves(value, like, columns, f"{name}.")
        else:
            raise LookupError
    return count


def _leaves(rows: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in rows.items():
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError(f"Field names must be strings or tuples of strings, got {key!r}")
        name = prefix + ".".join(parts)
        if isinstance(value, (Mapping, TensorDictBase)):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _shape_of(value: Any) -> tuple[int, ...] | None:
    try:
        return tuple(np.shape(value))
    except RuntimeError:  # a nested tensor has none
        return None


def _as_column(value: Any, field: Field, *, may_flatten: bool = False, may_be_row: bool = False) -> npt.NDArray[Any]:
    where = f" (field {field.name!r})" if field.name else ""
    tensor = value
    if not isinstance(tensor, torch.Tensor):
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"Rows must be tensors or numpy arrays, got {type(value).__name__!r}{where}")
        array = np.asarray(value)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.dtype is not field.torch_dtype:
        raise DTypeMismatch(f"Tensor dtype {tensor.dtype} does not match blob dtype {field.torch_dtype}!{where}")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else tensor.layout
        raise SchemaMismatch(f"Rows must be dense tensors, got {kind}{where}")
    shape = tuple(tensor.shape)
    if shape[1:] != field.shape or not shape:
        if may_be_row and shape == field.shape:
            tensor = tensor.unsqueeze(0)
        elif may_flatten and len(shape) == 1 and shape[0] % math.prod(field.shape) == 0:
            tensor = tensor.reshape(-1, *field.shape)
        else:
            expected = ", ".join(["n", *map(str, field.shape)])
            raise SchemaMismatch(f"Rows of shape ({expected}) expected, got {shape}{where}")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.numel() and not tensor.data_ptr():  # a zero tensor, freed storage, a wrapper of some tracing
        raise SchemaMismatch(f"Rows must be tensors with memory of their own, got {type(value).__name__}{where}")
    carrier = carrier_dtype(tensor.dtype)
    if carrier is not tensor.dtype:
        tensor = tensor.contiguous().view(carrier)
    plain: npt.NDArray[Any] = tensor.as_subclass(torch.Tensor).numpy()
    return plain
