"""Cleaning up after the dead: what a writer does once, when it has become one.

A block is garbage if no manifest that is still present names it and its producer is dead: never by its age. The files of
producers that died, or that left garbage behind, go with it.
"""

from __future__ import annotations

import contextlib
import os

from tensorblob import files
from tensorblob.blocks import Blocks
from tensorblob.edit import Block, Patch, Tail
from tensorblob.format import (
    Store,
    decode_log,
    is_block_id,
    is_producer,
    log_seed,
    manifest_generation,
    manifest_name,
)
from tensorblob.manifest import generations, remove_superseded
from tensorblob.presence import is_dead
from tensorblob.replay import read_log


def sweep(path: str, dir_fd: int, store: Store, blocks: Blocks, producer: str) -> None:
    """Remove what is garbage; `blocks` are those of the writer `producer`, whose generation is current."""
    current = blocks.generation

    def is_gone(name: str) -> bool:
        return name != producer and is_dead(dir_fd, name)

    listed = files.list_directory("producers", dir_fd=dir_fd)
    gone = [name for name in listed if is_producer(name.removeprefix(".")) and is_gone(name)]
    is_alone = generations(dir_fd)[0] == current
    if not is_alone:  # whoever began this generation may have died before its name was durable
        files.sync_directory(".", dir_fd=dir_fd)
    elif current == 1:  # and whoever made the blob, before its path was
        with contextlib.suppress(PermissionError):
            files.sync_directory(os.path.dirname(path))
    if not gone and is_alone:
        return
    pinned = remove_superseded(dir_fd, current)
    named = {generation: _names_in(dir_fd, store, generation) for generation in pinned}
    for number, field in enumerate(store.schema):
        directory = f"blocks/{field.directory}"
        for name in files.list_directory(directory, dir_fd=dir_fd):
            if is_block_id(name) and not blocks.names(number, name) and is_gone(name.partition("-")[0]):
                last = max((generation for generation in pinned if name in named[generation]), default=0)
                blocks.bury(0 if last else 1, last, f"{directory}/{name}")
    blocks.unlink_dead()
    unfinished = [name for name in files.list_directory(".", dir_fd=dir_fd) if _is_unfinished_manifest(name)]
    for path in (*unfinished, *(f"producers/{name}" for name in gone)):
        with contextlib.suppress(OSError):
            files.unlink(path, dir_fd=dir_fd, missing_ok=True)


def _is_unfinished_manifest(name: str) -> bool:
    """Its writer died while it began a generation; one that is at work does so in its turn."""
    return name.startswith(".") and manifest_generation(name[1:]) is not None


def _names_in(dir_fd: int, store: Store, generation: int) -> set[str]:
    """The blocks that a manifest names; none if it has gone meanwhile."""
    try:
        fd = files.open_file(manifest_name(generation), dir_fd=dir_fd)
    except FileNotFoundError:
        return set()
    try:
        data, _ = read_log(fd)
    finally:
        os.close(fd)
    return {
        op.id
        for record in decode_log(data, log_seed(store.uuid, generation), 0)
        for op in record.edit
        if isinstance(op, (Block, Tail, Patch))
    }
