"""Lance: a columnar, versioned dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import torch

from .contract import Fields, Rows, Seen, columns_of, is_one_array, look_all_the_time, refuse_sync

NAME = "Lance"
PACKAGES = ("pylance", "pyarrow")
HOW = (
    "A table of a column a field, each a fixed-size list (bool as uint8, which Arrow would pack); `lance.write_dataset("
    "mode='append')`, a version an append, without a sync; merging is the same call, given the other dataset. Reads: "
    "`take`, `to_batches`; Arrow's memory is handed to torch without a copy."
)
GIVES_UP = "small appends: each makes files and a version, which are compacted later; a sync of what was committed."


def list_of(rows: torch.Tensor) -> pa.FixedSizeListArray:
    values = (rows.view(torch.uint8) if rows.dtype == torch.bool else rows).numpy().reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), int(np.prod(rows.shape[1:])))


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "on local files `write_dataset` writes and renames, and never syncs")
        self.path = str(path)
        self.dataset: lance.LanceDataset | None = None

    def append(self, rows: Rows) -> None:
        self._write(pa.table({name: list_of(column) for name, column in columns_of(rows).items()}))

    def extend(self, path: Path) -> None:
        self._write(lance.dataset(str(path)))

    def _write(self, rows: pa.Table | lance.LanceDataset) -> None:
        if self.dataset is None:
            self.dataset = lance.write_dataset(rows, self.path)
        else:
            self.dataset = lance.write_dataset(rows, self.dataset, mode="append")

    def close(self) -> None:
        del self.dataset


class Reader:
    def __init__(self, path: Path, fields: Fields) -> None:
        self.fields, self.one = fields, is_one_array(fields)
        self.dataset = lance.dataset(str(path))

    def _tensor(self, name: str, column: pa.FixedSizeListArray) -> torch.Tensor:
        dtype, shape = self.fields[name]
        return torch.from_dlpack(column.flatten()).view(getattr(torch, dtype)).view(-1, *shape)

    def _take(self, indices: list[int]) -> dict[str, torch.Tensor]:
        table = self.dataset.take(indices)
        return {name: self._tensor(name, table[name].combine_chunks()) for name in self.fields}

    def row(self, index: int) -> Rows:
        row = {name: column[0] for name, column in self._take([index]).items()}
        return row["rows"] if self.one else row

    def batch(self, indices: torch.Tensor) -> Rows:
        rows = self._take(indices.tolist())
        return rows["rows"] if self.one else rows

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for batch in self.dataset.to_batches(batch_size=chunk_rows):
            yield self._tensor("rows", batch["rows"])

    def close(self) -> None:
        del self.dataset


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    reader = Reader(path, fields)

    def count_rows() -> int:
        reader.dataset.checkout_latest()
        return reader.dataset.count_rows()

    look_all_the_time(count_rows, reader.row, ready, seen)
