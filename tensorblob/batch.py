"""What `write` accepts, checked and turned into one contiguous CPU tensor per column before anything changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from tensorblob.errors import DTypeMismatch, SchemaMismatch
from tensorblob.schema import Field, Schema


def as_columns(rows: Any, schema: Schema) -> tuple[list[torch.Tensor], int]:
    """Return one tensor of shape (count, *field.shape) per field of `schema`, and the count.

    `rows` is a tensor for a blob with one unnamed field, else a dict (nested or with tuple keys) or TensorDict with exactly
    the fields of the schema. Tensors that are not contiguous, not on the CPU or carry grad are taken by value; nothing is
    converted. Raises `DTypeMismatch`, `SchemaMismatch`, or `TypeError` for anything that holds no tensors.
    """
    fields = schema.fields
    if schema.is_single:
        tensor = _as_column(rows, fields[0], may_flatten=True)
        return [tensor], tensor.shape[0]
    if not isinstance(rows, (Mapping, TensorDictBase)):
        raise TypeError(f"Rows must be a dict or TensorDict of the blob's fields, got {type(rows).__name__!r}!")
    found = dict(_leaves(rows))
    names = {field.name for field in fields}
    if found.keys() != names:
        raise SchemaMismatch(
            "Writes need exactly the schema fields; "
            f"missing: {sorted(names - found.keys())!r}, unexpected: {sorted(found.keys() - names)!r}"
        )
    is_one_row = all(np.shape(found[field.name]) == field.shape for field in fields)
    columns = [_as_column(found[field.name], field, may_be_row=is_one_row) for field in fields]
    counts = {field.name: tensor.shape[0] for field, tensor in zip(fields, columns, strict=True)}
    if len(set(counts.values())) != 1:
        raise SchemaMismatch(f"All fields must have the same row count; got: {counts!r}")
    return columns, columns[0].shape[0]


def _leaves(rows: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in rows.items():
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError(f"Field names must be strings or tuples of strings, got {key!r}")
        name = prefix + ".".join(parts)
        if isinstance(value, (Mapping, TensorDictBase)):
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, value))
    return found


def _as_column(value: Any, field: Field, *, may_flatten: bool = False, may_be_row: bool = False) -> torch.Tensor:
    tensor = value
    if not isinstance(tensor, torch.Tensor):
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"Rows must be tensors or numpy arrays, got {type(value).__name__!r}{_where(field)}")
        array = np.asarray(value)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.dtype is not field.torch_dtype:
        raise DTypeMismatch(
            f"Tensor dtype {tensor.dtype} does not match blob dtype {field.torch_dtype}!{_where(field)}"
        )
    shape = tuple(tensor.shape)
    if shape[1:] != field.shape or not shape:
        if (may_flatten or may_be_row) and shape == field.shape:
            tensor = tensor.unsqueeze(0)
        elif may_flatten and len(shape) == 1 and shape[0] % math.prod(field.shape) == 0:
            tensor = tensor.reshape(-1, *field.shape)
        else:
            raise SchemaMismatch(
                f"Rows of shape {('n', *field.shape)} expected, got {shape}{_where(field)}".replace("'n'", "n")
            )
    if tensor.requires_grad or not tensor.is_cpu or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.layout is not torch.strided:
        raise SchemaMismatch(f"Rows must be dense tensors, got layout {tensor.layout}{_where(field)}")
    return tensor.contiguous()


def _where(field: Field) -> str:
    return f" (field {field.name!r})" if field.name else ""
