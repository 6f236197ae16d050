"""Makes the golden blobs: one of each kind of thing that format version 1 can hold, a few KiB each.

    python tests/golden/make.py [DIRECTORY]     # default: v1 beside this file

They were made once, by the first version that wrote this format, and are never made again: every later version has to read
those bytes. A new format version gets a directory of its own. What each blob holds lies beside it as JSON: rows are told by
one number each, from which `made` makes them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import torch

import tensorblob as tb

HERE = Path(__file__).parent
DTYPES = (
    "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64",
    "complex32", "complex64", "complex128", "bool", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
FIELDS: dict[Any, Any] = {"obs": ("uint8", (2, 3)), "action": "int64", "next": {"reward": "float32", "done": "bool"}}
SHAPE = (64,)
"""Of float32: 16 rows a page."""


def made(numbers: Sequence[int], dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The rows that carry these numbers: integers that the dtype holds exactly."""
    row = torch.arange(torch.Size(shape).numel()).reshape(shape)
    of = torch.tensor(numbers, dtype=torch.int64).reshape(-1, *[1] * len(shape))
    most = 2 if dtype == "bool" else 8 if dtype.startswith("float8") else 97
    return ((3 * of + row) % most).to(getattr(torch, dtype))


def batch(blob: tb.TensorBlob, *numbers: int) -> Any:
    """Rows of any blob."""
    if blob.schema.is_single:
        return made(numbers, blob.schema.fields[0].dtype, blob.schema.fields[0].shape)
    rows: dict[str, Any] = {}
    for field in blob.schema:
        *parents, name = field.name.split(".")
        place = rows
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = made(numbers, field.dtype, field.shape)
    return rows


def plain(path: Path) -> list[int]:
    """One field, two blocks, one note."""
    with tb.TensorBlob.open(
        path, "w", dtype="float32", shape=SHAPE, block_rows=16, metadata={"é": [1.5, None]}
    ) as blob:
        blob.write(batch(blob, *range(10)), metadata={"part": 1})
        blob.write(batch(blob, *range(10, 20)))
    return list(range(20))


def dtypes(path: Path) -> list[int]:
    """Every dtype, in shapes of none to three dimensions."""
    schema = {dtype: (dtype, (1, 2, 3)[: index % 4]) for index, dtype in enumerate(DTYPES)}
    with tb.TensorBlob.open(path, "w", schema=schema) as blob:
        blob.write(batch(blob, *range(7)))
    return list(range(7))


def nested(path: Path) -> list[int]:
    """Several fields, in blocks of different lengths."""
    with tb.TensorBlob.open(path, "w", schema=FIELDS) as blob:
        with blob.transaction(metadata={"episode": 1}):
            blob.write(batch(blob, 0, 1, 2))
            blob.write(batch(blob, 3))
        blob.write(batch(blob, 4, 5))
    return list(range(6))


def changed(path: Path) -> list[int]:
    """Overwritten, cut, trimmed within a block, extended with a seam, and then written on."""
    more = path.parent / "more"
    with tb.TensorBlob.open(more, "w", dtype="float32", shape=SHAPE, block_rows=16) as blob:
        blob.write(batch(blob, 500, 501, 502))
    with tb.TensorBlob.open(path, "w", dtype="float32", shape=SHAPE, block_rows=16) as blob:
        blob.write(batch(blob, *range(40)))
        blob.seek(7)
        blob.write(batch(blob, 107, 108))
        blob.truncate(36)
        blob.trim(3)
        blob.extend(more)
        blob.seek(0, os.SEEK_END)
        blob.write(batch(blob, 600, 601))
    return [3, 4, 5, 6, 107, 108, *range(9, 36), 500, 501, 502, 600, 601]


def compacted(path: Path) -> list[int]:
    """The same some generations later; the one before the last is still there, for a reader had it pinned."""
    numbers = changed(path)
    for _ in range(2):
        with tb.TensorBlob.open(path) as reader:
            with tb.TensorBlob.open(path, "r+") as blob:
                blob.write(batch(blob, 700))
                blob.compact()
            assert len(reader) == len(numbers)
    return [700, *numbers[1:]]


def stream(path: Path) -> list[int]:
    """A ring with producer keys, a durable cursor, and the end of its stream."""

    async def run() -> None:
        async with tb.open_writer(path, dtype="int64", shape=(), max_rows=12) as writer:
            for number in range(0, 30, 3):
                await writer.append(made(range(number, number + 3), "int64", ()), key=f"p{number % 2}", sequence=number)
            await writer.finish()
        async with tb.open_reader(path) as reader, reader.follow(cursor="trainer", start=20, batch_size=4) as batches:
            async for _ in batches:
                await batches.ack()
                break

    anyio.run(run)
    return list(range(18, 30))


def torn(path: Path) -> list[int]:
    """Its writer was killed: some rows durable, some not, and half a record at the end."""
    with tb.TensorBlob.open(path.parent / "live", "w", dtype="float32", shape=SHAPE, block_rows=16) as blob:
        blob.write(batch(blob, *range(10)))
        blob.flush()
        blob.write(batch(blob, *range(10, 22)))
        blob.truncate(18)
        blob.write(batch(blob, 800, 801))
        shutil.copytree(path.parent / "live", path)
    (manifest,) = path.glob("manifest.*")
    with manifest.open("ab") as file:
        file.write(b'0123abcd [["grow",[[5,12')
    return [*range(18), 800, 801]


KINDS: tuple[Callable[[Path], list[int]], ...] = (plain, dtypes, nested, changed, compacted, stream, torn)


def make(kind: Callable[[Path], list[int]], directory: Path) -> None:
    """Make one blob, and its description from what was meant and what the blob says of itself."""
    path = directory / kind.__name__
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        numbers = kind(Path(scratch) / "blob")
        shutil.move(Path(scratch) / "blob", path)
    with tb.TensorBlob.open(path) as blob:
        snapshot = blob.snapshot
        about = {
            "is": kind.__doc__,
            "numbers": numbers,
            "first_row": blob.first_row,
            "history": blob.history,
            "cuts": snapshot.cuts,
            "commits": snapshot.commits,
            "is_finished": snapshot.is_finished,
            "metadata": blob.metadata,
            "notes": blob.commit_metadata(),
            "keys": {name: (key.sequence, key.start, key.stop) for name, key in snapshot.keys.items()},
            "max_rows": snapshot.retention.max_rows,
            "fields": {field.name: (field.dtype, field.shape) for field in blob.schema},
        }
    lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in about.items()]
    (directory / f"{kind.__name__}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "v1"
    directory.mkdir()
    boot = "00000000-0000-4000-8000-000000000000"
    with (
        mock.patch("socket.gethostname", return_value="golden"),  # a manifest says who wrote it
        mock.patch("tensorblob.manifest.boot_id", return_value=boot),
        mock.patch("tensorblob.replay.boot_id", return_value=boot),
    ):
        for kind in KINDS:
            make(kind, directory)


if __name__ == "__main__":
    main()
