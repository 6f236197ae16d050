"""How blobs begin, multiply and end, each by one rename.

A new blob, and a copy, is built whole in a hidden directory beside its place and then renamed there; so a path leads
to a complete blob or to none. The builder holds a lock on the hidden directory, and whoever builds next removes those
that nobody holds. Unlinking goes the other way: the blob is renamed to a hidden name first, then its files are
removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from tensorblob import files
from tensorblob.edit import Block, Edit, Metadata, Op, Retention, Splice, State
from tensorblob.errors import BlobReplaced, NotABlob
from tensorblob.format import Store, block_path, encode_store, is_block_id, is_producer, manifest_generation
from tensorblob.manifest import Manifest
from tensorblob.memory import check_named
from tensorblob.schema import Schema
from tensorblob.snapshot import Column, Snapshot, Vector, checkpoint

_DIRECTORIES = frozenset({"blocks", "producers", "cursors"})
_TOP_LEVEL = frozenset({"schema.json", "writer.lock", "commit.lock"}) | _DIRECTORIES


def create(
    path: str, schema: Schema, *, metadata: dict[str, Any] | None = None, retention: Retention | None = None
) -> bool:
    """Create an empty blob at `path`, durably; return False if one appeared there meanwhile.

    `path` may be an empty directory. Parent directories are made. Raises `NotABlob` if something else is there.
    """
    edit: list[Op] = [State(0, (), (), 0, 0), *(Splice(number, 0, 0, ()) for number in range(len(schema)))]
    if metadata is not None:
        edit.append(Metadata(metadata))
    if retention is not None and retention != Retention(None, None):
        edit.append(retention)
    return build(path, schema, lambda dir_fd: tuple(edit))


def copy(source_dir_fd: int, store: Store, snapshot: Snapshot, path: str) -> None:
    """Make a blob of its own at `path` that holds the rows of `snapshot`, its files linked where that is possible.

    Row ids, history, metadata and retention are those of the source; all its blocks are sealed, so that neither blob
    writes what the other reads. Raises `FileExistsError` if there is something at `path`.
    """

    def fill(dir_fd: int) -> Edit:
        columns: list[Column] = []
        for field, column in zip(store.schema, snapshot.columns, strict=True):
            spans = column.between(snapshot.first_row, snapshot.rows)
            named = column.blocks()
            check_named(source_dir_fd, field, named, spans)
            ids = dict.fromkeys(span.block for span in spans)
            for id in ids:
                block = block_path(field, id)
                files.clone_file(block, block, source_dir_fd=source_dir_fd, dir_fd=dir_fd)
                fd = files.open_file(block, dir_fd=dir_fd)
                try:
                    files.sync_file(fd, block)
                finally:
                    os.close(fd)
            number = len(columns)
            sealed = Vector(Block(number, id, *named[id]) for id in ids)
            placed = Column(tail_row=snapshot.first_row).spliced(snapshot.first_row, snapshot.first_row, spans)
            columns.append(Column(placed.spans, sealed, placed.tail_row))
        return checkpoint(
            Snapshot(
                tuple(columns),
                **{
                    name: getattr(snapshot, name)
                    for name in Snapshot.__struct_fields__
                    if name not in ("columns", "durable_rows", "session")
                },
            )
        )

    if files.exists(path):
        raise FileExistsError(f"Cannot copy to {path!r}: it exists")
    if not build(path, store.schema, fill):
        raise FileExistsError(f"Cannot copy to {path!r}: it exists")


def build(path: str, schema: Schema, fill: Callable[[int], Edit]) -> bool:
    """Build a blob aside and rename it to `path`; `fill(dir_fd)` adds its blocks and returns the first checkpoint.

    Return False if another blob appeared there meanwhile.
    """
    parent, name = os.path.split(path)
    if (outer := _blob_around(parent)) is not None:
        raise ValueError(f"Cannot make a blob inside of another: {path!r} lies in {outer!r}")
    files.make_directories(parent)
    aside = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.new")
    with _removed_unless_renamed(aside):
        dir_fd = _begin(parent, name, aside)
        try:
            store = Store(secrets.token_hex(16), schema)
            directories = ["blocks", *(f"blocks/{field.directory}" for field in schema), "producers", "cursors"]
            for directory in directories:
                files.make_directory(directory, dir_fd=dir_fd)
            for lock in ("writer.lock", "commit.lock"):
                files.write_new_file(lock, b"", dir_fd=dir_fd)
            files.write_new_file("schema.json", encode_store(store), dir_fd=dir_fd)
            checkpointed = fill(dir_fd)
            for directory in directories:
                files.sync_directory(directory, dir_fd=dir_fd)
            Manifest.create(dir_fd, store, 1, checkpointed, "0").close()
            files.sync_directory(".", dir_fd=dir_fd)
            try:
                files.rename(aside, path)  # the commit point: the blob exists
            except (FileExistsError, OSError) as error:
                if not os.path.isdir(path) or not os.listdir(path):
                    raise
                if not files.exists(os.path.join(path, "schema.json")):
                    raise NotABlob(f"Not a blob, and not empty: {path!r}") from error
                return False
        finally:
            os.close(dir_fd)
    files.sync_directory(parent)
    return True


def _blob_around(path: str) -> str | None:
    """The blob whose directory is, or contains, `path`."""
    while True:
        if all(
            files.exists(os.path.join(path, name)) for name in ("schema.json", "writer.lock", "blocks", "producers")
        ):
            return path
        if path == (path := os.path.dirname(path)):
            return None


def _begin(parent: str, name: str, aside: str) -> int:
    """Make and lock the hidden directory to build in; with the parent locked, so that nobody takes it for abandoned."""
    parent_fd = files.open_directory(parent)
    try:
        with files.locked(parent_fd, f"the directory {parent!r}"):
            _remove_abandoned(parent, name)
            files.make_directory(aside)
            dir_fd = files.open_directory(aside)
            try:
                if not files.try_lock(dir_fd, shared=False):
                    raise AssertionError("nobody else has the name")
            except BaseException:
                os.close(dir_fd)
                raise
            return dir_fd
    finally:
        os.close(parent_fd)


@contextlib.contextmanager
def _removed_unless_renamed(aside: str) -> Iterator[None]:
    try:
        yield
    finally:
        if files.exists(aside):
            with contextlib.suppress(OSError):
                files.remove_tree(aside)


def _remove_abandoned(parent: str, name: str) -> None:
    """Remove hidden directories that a builder or `unlink` of this blob left when it was killed; the parent is locked."""
    ours = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.(new|gone)")
    for found in os.listdir(parent):
        if not ours.fullmatch(found):
            continue
        aside = os.path.join(parent, found)
        with contextlib.suppress(OSError):
            fd = files.open_directory(aside)
            try:
                if not _foreign(fd) and files.try_lock(fd, shared=False):
                    files.remove_tree(aside)
            finally:
                os.close(fd)


def _foreign(dir_fd: int) -> list[str]:
    """What lies in a blob's directory and is not of a blob: paths relative to it."""

    def found_in(directory: str, is_ours: Callable[[str], bool]) -> Iterator[str]:
        """What is in a directory of the blob and not a file of ours."""
        try:
            names = files.list_directory(directory, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        for path, name in ((os.path.join(directory, name), name) for name in names):
            if not is_ours(name) or (name not in _DIRECTORIES and files.is_directory(path, dir_fd=dir_fd)):
                yield path

    def is_top_level(name: str) -> bool:
        return name in _TOP_LEVEL or manifest_generation(name.removeprefix(".")) is not None

    foreign = [os.path.basename(path) for path in found_in(".", is_top_level)]
    foreign += found_in("producers", lambda name: is_producer(name.removeprefix(".")))
    foreign += found_in("cursors", lambda name: name.endswith((".json", ".lock")))
    for directory in found_in("blocks", lambda _: False):
        if files.is_directory(directory, dir_fd=dir_fd):
            foreign += found_in(directory, is_block_id)
        else:
            foreign.append(directory)
    return foreign


def unlink(path: str, dir_fd: int) -> None:
    """Remove a blob: whole, and only a blob. Raises `NotABlob` if the directory holds anything else; then nothing is
    removed.

    The caller holds `writer.lock` and `dir_fd`. Readers keep what they have mapped.
    """
    foreign = _foreign(dir_fd)
    if foreign:
        raise NotABlob(f"{path!r} holds files that are not of a blob ({', '.join(foreign[:3])}); remove them first")
    held, now = os.fstat(dir_fd), os.stat(path, follow_symlinks=False)
    if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
        raise BlobReplaced(f"{path!r} is another blob now")
    parent, name = os.path.split(path)
    gone = os.path.join(parent, f".{name}.{secrets.token_hex(4)}.gone")
    files.rename(path, gone)
    files.sync_directory(parent)  # first: after a power loss the path may lead to all of it or to nothing, not to half
    files.remove_tree(gone)
