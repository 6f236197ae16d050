"""Lance: a columnar, versioned dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import torch

from .contract import Fields, Seen, look_all_the_time, one_array, refuse_sync

NAME = "Lance"
PACKAGES = ("pylance", "pyarrow")
HOW = (
    "Rows as a fixed-size list; `lance.write_dataset(mode='append')`, a version an append, without a sync; merging is the "
    "same call, given the other dataset. Reads: `take`, `to_batches`; Arrow's memory is handed to torch without a copy."
)
GIVES_UP = "small appends: each makes files and a version, which are compacted later; a sync of what was committed."


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        refuse_sync(sync, "on local files `write_dataset` writes and renames, and never syncs")
        _, self.shape = one_array(fields)
        self.path = str(path)
        self.dataset: lance.LanceDataset | None = None

    def append(self, rows: torch.Tensor) -> None:
        values = pa.array(rows.numpy().reshape(-1))
        self._write(pa.table({"rows": pa.FixedSizeListArray.from_arrays(values, int(np.prod(self.shape)))}))

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
        self.shape = fields["rows"][1]
        self.dataset = lance.dataset(str(path))

    def _tensor(self, column: pa.FixedSizeListArray) -> torch.Tensor:
        return torch.from_dlpack(column.flatten()).view(-1, *self.shape)

    def row(self, index: int) -> torch.Tensor:
        return self._tensor(self.dataset.take([index])["rows"].combine_chunks())[0]

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return self._tensor(self.dataset.take(indices.tolist())["rows"].combine_chunks())

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        for batch in self.dataset.to_batches(batch_size=chunk_rows):
            yield self._tensor(batch["rows"])

    def close(self) -> None:
        del self.dataset


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    dataset = lance.dataset(str(path))

    def count_rows() -> int:
        dataset.checkout_latest()
        return dataset.count_rows()

    def row(index: int) -> torch.Tensor:
        return torch.from_dlpack(dataset.take([index])["rows"].combine_chunks().flatten())

    look_all_the_time(count_rows, row, ready, seen)
