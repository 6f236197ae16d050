"""Zarr version 3 on a local directory: chunked arrays, a file a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zarr

from .contract import Fields, one_array, refuse_sync

NAME = "Zarr v3"
PACKAGES = ("zarr",)
HOW = (
    "`create_array` with chunks of at least 1 MiB, as its documentation asks, and of a power of two rows, not compressed; "
    "`append`, which writes the chunks and the metadata by renaming, without a sync. Reads: indexing, `oindex` for batches."
)
GIVES_UP = "small appends (the last chunk is rewritten), a commit for more than one chunk, sync."
CHUNK_NBYTES = 1 << 20


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "`LocalStore` writes a file aside and renames it, and never syncs")
        dtype, shape = one_array(fields)
        row_nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        chunk_rows = 1 << (-(-CHUNK_NBYTES // row_nbytes) - 1).bit_length()
        self.array = zarr.create_array(
            str(path), shape=(0, *shape), chunks=(chunk_rows, *shape), dtype=dtype, compressors=None
        )

    def append(self, rows: torch.Tensor) -> None:
        self.array.append(rows.numpy())

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        self.array[first_row : first_row + len(rows)] = rows.numpy()

    def close(self) -> None:
        del self.array


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.array = zarr.open_array(str(path), mode="r")

    def row(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.array[index])

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.array.oindex[indices.numpy()])

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, self.array.shape[0], chunk_rows):
            yield torch.from_numpy(self.array[start : start + chunk_rows])

    def close(self) -> None:
        del self.array
