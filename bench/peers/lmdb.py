"""LMDB through py-lmdb: a key-value store in one memory-mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np
import torch

from .contract import Fields, Rows, Seen, columns_of, is_one_array, look_all_the_time

NAME = "LMDB"
PACKAGES = ("lmdb",)
HOW = (
    "Keys in order, `putmulti(append=True)`, one transaction an append (`sync=False` unless asked for). A row is one value, "
    "its fields side by side. A ring deletes the oldest keys in the same transaction. Reads: one read transaction with "
    "`buffers=True`, `get`, `getmulti`, a cursor; `readahead=False` for random rows of more than memory holds."
)
GIVES_UP = "rows that lie side by side (a scan or a batch copies them one by one), growth beyond `map_size`."


def record_of(fields: Fields) -> np.dtype:
    return np.dtype([(name, dtype, tuple(shape)) for name, (dtype, shape) in fields.items()], align=True)


class Writer:
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        self.record = record_of(fields)
        nbytes = capacity_rows * (2 * self.record.itemsize + 4096 * (self.record.itemsize > 1024)) + (64 << 20)
        self.env = lmdb.open(str(path), map_size=nbytes, sync=sync)
        self.one, self.rows = is_one_array(fields), 0

    def append(self, rows: Rows) -> None:
        if self.one:
            data = rows.numpy().tobytes()
        else:
            packed = np.empty(len(next(iter(rows.values()))), self.record)
            for name, column in columns_of(rows).items():
                packed[name] = column.numpy()
            data = packed.tobytes()
        with self.env.begin(write=True) as transaction:
            self.rows += self._put(transaction, self.rows, data, append=True)

    def _put(self, transaction: lmdb.Transaction, first: int, data: bytes, append: bool) -> int:
        size, count = self.record.itemsize, len(data) // self.record.itemsize
        if count == 1:
            transaction.put(first.to_bytes(8, "big"), data, append=append)
        else:
            values = memoryview(data)
            items = [((first + n).to_bytes(8, "big"), values[n * size : (n + 1) * size]) for n in range(count)]
            transaction.cursor().putmulti(items, append=append)
        return count

    def overwrite(self, first_row: int, rows: torch.Tensor) -> None:
        with self.env.begin(write=True) as transaction:
            self._put(transaction, first_row, rows.numpy().tobytes(), append=False)

    def close(self) -> None:
        self.env.close()


class Ring(Writer):
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, 2 * capacity_rows, sync)
        self.capacity_rows = capacity_rows

    def append(self, rows: torch.Tensor) -> None:
        with self.env.begin(write=True) as transaction:
            self.rows += self._put(transaction, self.rows, rows.numpy().tobytes(), append=True)
            cursor = transaction.cursor()
            cursor.first()
            for _ in range(int(transaction.stat()["entries"]) - self.capacity_rows):
                cursor.delete()


class Reader:
    readahead = True

    def __init__(self, path: Path, fields: Fields) -> None:
        self.env = lmdb.open(str(path), readonly=True, readahead=self.readahead)
        self.transaction = self.env.begin(buffers=True)
        self.record, self.fields = record_of(fields), fields
        self.one = is_one_array(fields)
        if self.one:
            self.dtype, self.shape = getattr(torch, fields["rows"][0]), fields["rows"][1]

    def _rows(self, data: bytearray) -> Rows:
        if self.one:
            return torch.frombuffer(data, dtype=self.dtype).view(-1, *self.shape)
        packed = np.frombuffer(data, self.record)
        return {name: torch.from_numpy(np.ascontiguousarray(packed[name])) for name in self.fields}

    def row(self, index: int) -> Rows:
        rows = self._rows(bytearray(self.transaction.get(index.to_bytes(8, "big"))))
        return rows[0] if self.one else {name: column[0] for name, column in rows.items()}

    def batch(self, indices: torch.Tensor) -> Rows:
        keys = [index.to_bytes(8, "big") for index in indices.tolist()]
        return self._rows(bytearray().join([value for _, value in self.transaction.cursor().getmulti(keys)]))

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        values = []
        for value in self.transaction.cursor().iternext(keys=False):
            values.append(value)
            if len(values) == chunk_rows:
                yield self._rows(bytearray().join(values))
                values = []
        if values:
            yield self._rows(bytearray().join(values))

    def close(self) -> None:
        self.transaction.abort()
        self.env.close()


class RandomDiskReader(Reader):
    readahead = False


def look(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    with lmdb.open(str(path), readonly=True) as env:

        def count_rows() -> int:
            with env.begin() as transaction:
                return int(transaction.stat()["entries"])

        def row(index: int) -> torch.Tensor:
            with env.begin() as transaction:
                data = transaction.get(index.to_bytes(8, "big"))
            return torch.frombuffer(bytearray(data), dtype=getattr(torch, fields["rows"][0]))

        look_all_the_time(count_rows, row, ready, seen)
