"""Blobs from somebody who means harm, with every checksum right; and what a victim does with them.

A checksum keeps out accidents, not people: whoever makes a file can compute it. So here schemas and manifests are forged from
any JSON at all, and `touch` then does to the blob whatever the package can do, in readers, writers and on the command line.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from api_support import photograph

import tensorblob as tb
from tensorblob.cli import describe, first_rows
from tensorblob.cursors import Cursor, read_position
from tensorblob.limiter import MinSize, Queue
from tensorblob.reader import open_store

UUID = "000102030405060708090a0b0c0d0e0f"
FIELD = {"name": "", "dtype": "uint8", "shape": [8], "block_rows": 512}
ID = "ab12-1"
ROWS = bytes(range(80))
"""Ten rows."""


def crc32c(data: bytes, crc: int = 0) -> int:
    return int(google_crc32c.extend(crc, data))


STATE = ["state", 0, [], [], 0, 0]
CHECKPOINT = [STATE, ["splice", 0, 0, 0, []]]
TAIL = ["tail", 0, ID, 512, 0, 10, crc32c(ROWS)]
DURABLE = ["durable", 1 << 40, 10]
"""Whatever the edits before it name is durable: so they count, whether or not the bytes are there."""


def signed_schema(value: dict[str, Any]) -> bytes:
    """schema.json of these members, with the checksum that they have."""

    def encoded(crc: str) -> bytes:
        return json.dumps(value | {"crc32c": crc}, separators=(",", ":"), ensure_ascii=False).encode()

    return encoded(f"{crc32c(encoded('')):08x}") + b"\n"


def signed_log(records: Sequence[Any], uuid: str = UUID, generation: int = 1) -> bytes:
    """A manifest of these records: JSON values, or bytes that stand where JSON should."""
    data = b""
    for record in records:
        text = record if isinstance(record, bytes) else json.dumps(record, separators=(",", ":")).encode()
        seed = bytes.fromhex(uuid) + generation.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        data += b"%08x %b\n" % (crc32c(seed + text), text)
    return data


def signed_counts(value: Any) -> bytes:
    """What is in a place of a limiter's file: a JSON value, or bytes that stand where JSON should."""
    text = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %b\n" % (crc32c(text), text)


def forge(
    path: Path, records: Sequence[Any] = (CHECKPOINT, [TAIL]), fields: Sequence[Any] = (FIELD,), **members: Any
) -> Path:
    """A blob directory of ten rows in one block, unless `records`, `fields` or other `members` of the schema say otherwise."""
    schema = {"format": "tensorblob", "version": 1, "features": [], "uuid": UUID, "fields": list(fields)} | members
    path.mkdir()
    for name in ("producers", "cursors", "blocks", "blocks/data"):
        (path / name).mkdir()
    for field in fields:
        with contextlib.suppress(OSError, ValueError):  # of names that can be no directory's
            (path / "blocks" / os.path.basename(str(field["name"]))).mkdir(exist_ok=True)
    for name in ("writer.lock", "commit.lock"):
        (path / name).touch()
    (path / "schema.json").write_bytes(signed_schema(schema))
    (path / "manifest.000001").write_bytes(signed_log([*records, [DURABLE]]))
    for directory in (path / "blocks").iterdir():
        (directory / ID).write_bytes(ROWS)
    return path


# ---- what a victim does


def _read(path: Path, **options: Any) -> None:
    with tb.TensorBlob.open(path, **options) as blob:
        repr(blob), blob.commit_metadata(), blob.refresh()
        for act in (
            ()
            if not len(blob)
            else (
                lambda: blob[0],
                lambda: blob[-1],
                lambda: blob[:3],
                lambda: blob[::-1],
                lambda: blob[:],
                lambda: blob.gather([0, len(blob) - 1]),
                lambda: [blob.view(*run) for run in blob.runs()[:100]],
                lambda: blob.read(2),
            )
        ):
            with tolerated():  # each, whatever came of the one before
                act()


def _info(path: Path) -> None:
    with tb.TensorBlob.open(path, io="pread") as blob:
        describe(blob)
        first_rows(blob, 3, None)


def _write(path: Path, mode: str = "a", **options: Any) -> None:
    with tb.TensorBlob.open(path, mode, **options) as blob:
        if blob.schema.row_nbytes > 1 << 20:
            return  # what is written is our own doing
        rows = {field.key: torch.zeros(2, *field.shape, dtype=field.torch_dtype) for field in blob.schema}
        batch = rows[""] if blob.schema.is_single else rows
        blob.write(batch)
        if "+" in mode:
            for act in (
                lambda: blob.seek(0),
                lambda: blob.write(batch),
                blob.compact,
                blob.truncate,
                lambda: blob.trim(1),
            ):
                with tolerated():
                    act()


def _copy(path: Path) -> None:
    with tb.TensorBlob.open(path) as blob:
        blob.copy(path.parent / "copied")


def _extend(path: Path) -> None:
    with tb.TensorBlob.open(path) as blob:
        schema = {field.key: (field.dtype, field.shape) for field in blob.schema}
        block_rows = {field.name: min(field.block_rows, 1 << 16) for field in blob.schema}
    if blob.schema.row_nbytes > 1 << 20:
        return  # of such rows nobody makes a blob
    mine = tb.TensorBlob.open(path.parent / "mine", "w", schema=schema, block_rows=block_rows)
    with mine:
        mine.extend(path)
        with tolerated(ValueError):  # which blocks of other lengths are, here
            mine.extend(path, maintain_order=False)
        mine.flush()
    _read(path.parent / "mine")


def _recover(path: Path) -> None:
    tb.recover(path, path.parent / "recovered")
    report = tb.verify(path.parent / "recovered")
    assert report.ok, report.faults


def use_cursor(path: Path) -> None:
    dir_fd, _ = open_store(os.fspath(path))
    try:
        with contextlib.closing(Cursor(dir_fd, "trainer")) as cursor:
            cursor.acknowledge(5, 0)
        assert read_position(dir_fd, "trainer") == (5, 0)
    finally:
        os.close(dir_fd)


def use_limiter(path: Path) -> None:
    dir_fd, _ = open_store(os.fspath(path))
    try:
        with contextlib.closing(Queue(9).open(dir_fd, "ab12")) as limit:
            before = limit.counts
            assert all(0 <= count < 1 << 54 for count in before)
            if limit.try_insert(3):
                limit.inserted(3)
                assert limit.counts[0] in (before[0] + 3, 3), "3: what it was is more than a file can say"
            limit.try_sample(2)
        with contextlib.closing(MinSize(1).open(dir_fd)) as limit:
            assert all(0 <= count < 1 << 54 for count in limit.counts)
            limit.try_sample(2)
            limit.give_back(1)
    finally:
        os.close(dir_fd)


ACTS: dict[str, Callable[[Path], object]] = {
    "read": _read,
    "pread": lambda path: _read(path, io="pread"),
    "read by a cache": lambda path: _read(path, max_cached_blocks=1),
    "info": _info,
    "verify": tb.verify,
    "verify quickly": lambda path: tb.verify(path, quick=True),
    "recover": _recover,
    "copy": _copy,
    "extend": _extend,
    "append": _write,
    "append shared": lambda path: _write(path, shared=True),
    "change": lambda path: _write(path, "r+"),
    "replace": lambda path: _write(path, "w"),
    "consume": use_cursor,
    "limit": use_limiter,
    "unlink": tb.TensorBlob.unlink,
}
READS = ("read", "pread", "read by a cache", "info", "verify", "verify quickly")
"""What leaves the blob as it is."""


@contextlib.contextmanager
def tolerated(*kinds: type[BaseException]) -> Iterator[None]:
    """Let errors of ours pass, and those of these kinds."""
    with contextlib.suppress(tb.BlobError, FileNotFoundError, *kinds), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def touch(make: Callable[[Path], Path], directory: Path, acts: Sequence[str] = tuple(ACTS)) -> None:
    """Do whatever there is to do to a blob that `make` makes anew in a directory for each act.

    Nothing but our own errors may come of it, and nothing that is in the directory beside the blob may change.
    """
    for number, name in enumerate(acts):
        place = directory / f"{number}"
        place.mkdir()
        victim = make(place)
        before = bystanders(victim)
        try:
            with tolerated():
                ACTS[name](victim)
        except BaseException as error:
            error.add_note(f"while it did {name!r}")
            raise
        after = bystanders(victim)
        assert after == before, f"{name!r} changed {[entry for entry in before if after.get(entry) != before[entry]]}"
        shutil.rmtree(place)


def bystanders(path: Path) -> dict[str, Any]:
    """A photograph of what lies beside a blob, but for what the acts make."""
    ours = {path.name, "copied", "mine", "recovered"}
    beside = [entry for entry in path.parent.iterdir() if entry.name not in ours and entry.name[0] != "."]
    return {entry.name: photograph(entry) for entry in beside}
