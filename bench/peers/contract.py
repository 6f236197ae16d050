"""What a system must do to take part: take rows as torch tensors, and give rows back as torch tensors.

Rows of one array travel as a tensor, rows of several fields as a mapping from field to tensor; the first dimension is
the row. A `Writer` must make an append visible to another process before it returns, and with `sync=True` safe from a
power loss as well. A `Reader` gives `row` and `batch` as copies that stay valid; what `chunks` gives may be views. Where a
library cannot do a thing, it raises `CannotDo` with the reason, which the report prints in place of a figure.

A module whose readers see new rows as they come also has one or both of

    def follow(path, fields, ready: Callable[[], object], seen: Callable[[torch.Tensor], bool]) -> None
    def look(…the same…)

which open a store of one array in another process than the writer's, call `ready`, then `seen` with each row that is new
until that says True. `follow` sleeps until there is more, by the library's own call; `look` asks all the time, at the price
of a core.

And where the library has a way of its own, also

    Writer.overwrite(first_row, rows)     change rows that are there; one array
    Writer.extend(path)                   append all rows of another store of its kind (else they are read and appended)
    Writer.append_concurrently(rows)      an append that many threads may be in at once (see `work.Threads`)
    class Ring                            a Writer of one array that keeps the newest `capacity_rows` rows
    class Producers                       many appends at once, where it has an asynchronous one (else see `work.Tasks`)
    class RandomDiskReader                a Reader opened as it recommends for random rows of more than memory holds
    def writer_of_blocks(path, fields, block_rows)     a Writer whose blocks, a file each, hold so many rows
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from .jobs import Fields

Rows = torch.Tensor | Mapping[str, torch.Tensor]


class CannotDo(Exception):
    """The library has no call for this; the message says which promise is missing."""


class Writer(Protocol):
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        """Create an empty store; those that cannot grow are given `capacity_rows` and begin again when they are full."""

    def append(self, rows: Rows, /) -> object: ...

    def close(self) -> None: ...


class Reader(Protocol):
    def __init__(self, path: Path, fields: Fields) -> None: ...

    def row(self, index: int, /) -> Rows: ...

    def batch(self, indices: torch.Tensor, /) -> Rows: ...

    def chunks(self, chunk_rows: int, /) -> Iterator[torch.Tensor]:
        """The rows of one array in order, `chunk_rows` at a time."""

    def close(self) -> None: ...


def is_one_array(fields: Fields) -> bool:
    return list(fields) == ["rows"]


def one_array(fields: Fields) -> tuple[str, tuple[int, ...]]:
    """Dtype and row shape, for a system that keeps one array and no more."""
    if not is_one_array(fields):
        raise CannotDo("keeps one array: several fields are several stores, with no commit in common")
    return fields["rows"]


def columns_of(rows: Rows) -> Mapping[str, torch.Tensor]:
    return {"rows": rows} if isinstance(rows, torch.Tensor) else rows


Seen = Callable[[torch.Tensor], bool]


def look_all_the_time(
    count_rows: Callable[[], int],
    row: Callable[[int], torch.Tensor],
    ready: Callable[[], object],
    seen: Seen,
) -> None:
    """What `look` is, of a library that can say how many rows there are now."""
    rows = count_rows()
    ready()
    while True:
        if count_rows() > rows:
            rows += 1
            if seen(row(rows - 1)):
                return
        elif pause_s:
            time.sleep(pause_s)


pause_s = 0.0
"""Between two looks; a process with many such readers sets it, or they would take all cores from the writer."""


def refuse_sync(sync: bool, reason: str) -> None:
    if sync:
        raise CannotDo(reason)
