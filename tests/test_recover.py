"""`recover` writes every row that can be proved intact to a new blob, none that cannot, and accounts for each.

What is damaged here is known byte by byte; so the rows that must be kept and those that must be lost are worked out from the
commits that brought them.
"""

import errno
import itertools
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, manifest_of, numbers, photograph, rows, stored
from spec_reader import read_schema, records
from test_cli import run

import tensorblob as tb
from tensorblob import files

COMMITS = (2, 3, 1, 4, 2)
STOPS = list(itertools.accumulate(COMMITS))
SCHEMA: dict[Any, Any] = {"x": ("float32", (1024,)), ("next", "y"): "int64"}


def two_fields(path: Path) -> Path:
    """Twelve rows in five commits, each with a note; of `x` four in a block, of `next.y` all in one."""
    with tb.TensorBlob.open(path, "w", schema=SCHEMA, block_rows={"x": 4, "next.y": 512}, metadata={"a": [1]}) as blob:
        for stop, count in zip(STOPS, COMMITS, strict=True):
            ids = range(stop - count, stop)
            blob.write({"x": rows(*ids), "next": {"y": torch.tensor(ids)}}, metadata={"last": stop - 1})
    return path


def ids_in(path: Path) -> list[int]:
    """The numbers that the rows of such a blob carry, in both fields."""
    with tb.TensorBlob.open(path) as blob:
        if not len(blob):
            return []
        found = blob[:]
    assert numbers(found["x"]) == found["next", "y"].tolist()
    return numbers(found["x"])


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        data = bytearray(path.read_bytes())
        data[offset] ^= 16
        file.write(data)


def blocks_of(path: Path, column: str) -> list[Path]:
    """In the order of their rows."""
    return sorted((path / "blocks" / column).iterdir(), key=lambda block: int(block.name.partition("-")[2]))


def commit_of(row: int) -> set[int]:
    """The rows that came with `row`."""
    (stop,) = [stop for stop, count in zip(STOPS, COMMITS, strict=True) if stop - count <= row < stop]
    return set(range(stop - COMMITS[STOPS.index(stop)], stop))


# ---- rows


@pytest.mark.parametrize("row", range(STOPS[-1]))
@pytest.mark.parametrize("column", ["x", "next.y"])
def test_a_damaged_row_takes_its_commit_within_its_block_and_all_fields_with_it(
    tmp_path: Path, column: str, row: int
) -> None:
    path = two_fields(tmp_path / "x.blob")
    if column == "x":
        flip(blocks_of(path, column)[row // 4], row % 4 * 4096 + 5)
        lost = {other for other in commit_of(row) if other // 4 == row // 4}
    else:
        flip(blocks_of(path, column)[0], row * 8 + 5)
        lost = commit_of(row)
    before = photograph(path)
    found = tb.recover(path, tmp_path / "new.blob")
    assert photograph(path) == before
    left = [other for other in range(STOPS[-1]) if other not in lost]
    assert ids_in(tmp_path / "new.blob") == left
    assert [other for gone in found.missing for other in gone] == sorted(lost)
    kept = [(part.row + number, part.start + number) for part in found.kept for number in range(part.stop - part.start)]
    assert kept == list(enumerate(left)) and found.rows == len(left)
    assert not found.is_complete and len(found.faults) == 1
    with tb.TensorBlob.open(tmp_path / "new.blob") as blob:
        assert blob.metadata == {"a": [1]} and blob.history == 1
        assert blob.snapshot.cuts == ((1, min(lost)),)
        said = {note["last"]: (start, stop) for start, stop, note in blob.commit_metadata()}
    for last in (stop - 1 for stop in STOPS):
        if commit_of(last) & lost:
            assert last not in said
        else:
            assert [left[at] for at in range(*said[last])] == sorted(commit_of(last))
    assert found.notes == len(COMMITS) - len(said)
    assert tb.verify(tmp_path / "new.blob").ok


def test_damage_in_several_places_leaves_what_is_between(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 20)
    first, _, third, _, fifth = blocks_of(path, "data")
    first.unlink()
    os.truncate(third, 4097)
    flip(fifth, 0)
    found = tb.recover(path, tmp_path / "new.blob")
    assert found.missing == (range(4), range(8, 12), range(16, 20))
    assert found.kept == ((4, 8, 0), (12, 16, 4))
    assert stored(tmp_path / "new.blob") == [*range(4, 8), *range(12, 16)]
    assert len(found.faults) == 3


def test_nothing_but_damage_gives_an_empty_blob(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 4)
    blocks_of(path, "data")[0].unlink()
    found = tb.recover(path, tmp_path / "new.blob")
    assert (found.rows, found.kept, found.missing) == (0, (), (range(4),))
    assert stored(tmp_path / "new.blob") == []
    with tb.TensorBlob.open(tmp_path / "new.blob", "a") as blob:
        blob.write(rows(7))
    assert stored(tmp_path / "new.blob") == [7]


def changed(path: Path) -> Path:
    """A ring after every kind of change: trimmed within a block, overwritten, truncated, with seams and keys."""
    with tb.TensorBlob.open(path, "w+", dtype="float32", shape=(1024,), block_rows=4, max_rows=16) as blob:
        blob.write(rows(*range(18)), metadata={"first": True})
        blob.seek(5)
        blob.write(rows(105, 106))
        blob.truncate(14)
        blob.extend(create(path.parent / "more.blob", 3))
        blob.write(rows(200), metadata={"last": True})
    return path


def test_an_intact_blob_is_recovered_as_it_is(tmp_path: Path) -> None:
    path = changed(tmp_path / "x.blob")
    found = tb.recover(path, tmp_path / "new.blob")
    assert found.is_complete and not found.missing and (found.notes, found.keys) == (0, 0)
    with tb.TensorBlob.open(path) as old, tb.TensorBlob.open(tmp_path / "new.blob") as new:
        assert numbers(new[:]) == numbers(old[:])
        for name in ("first_row", "rows", "history", "metadata", "schema"):
            assert getattr(new, name) == getattr(old, name)
        assert new.commit_metadata() == old.commit_metadata()
        assert new.snapshot.retention == old.snapshot.retention and new.snapshot.cuts == old.snapshot.cuts
        assert new.durable_rows == new.rows and new.runs() == [(0, len(new))]
    assert {file.stat().st_nlink for file in blocks_of(tmp_path / "new.blob", "data")} == {1}, "nothing is shared"


def test_row_ids_before_the_first_gap_are_what_they_were(tmp_path: Path) -> None:
    path = changed(tmp_path / "x.blob")
    with tb.TensorBlob.open(path) as blob:
        old, first_row = numbers(blob[:]), blob.first_row
    assert first_row > 0
    flip(blocks_of(path, "data")[2], 0)
    found = tb.recover(path, tmp_path / "new.blob")
    with tb.TensorBlob.open(tmp_path / "new.blob") as blob:
        assert blob.first_row == first_row == found.kept[0].row == found.kept[0].start
        new = numbers(blob[:])
    assert new == [old[row - first_row] for part in found.kept for row in range(part.start, part.stop)]
    assert 0 < len(new) < len(old)


def test_keys_go_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"

    async def append() -> None:
        async with tb.open_writer(path, dtype="float32", shape=1024, block_rows=4) as writer:
            for number in range(4):
                await writer.append(rows(number, number), key=f"k{number}", sequence=number)

    import anyio

    anyio.run(append)
    flip(blocks_of(path, "data")[0], 2 * 4096)
    found = tb.recover(path, tmp_path / "new.blob")
    assert found.keys == 1
    with tb.TensorBlob.open(tmp_path / "new.blob") as blob:
        keys = {name: (key.sequence, key.start, key.stop) for name, key in blob.snapshot.keys.items()}
    assert keys == {"k0": (0, 0, 2), "k2": (2, 2, 4), "k3": (3, 4, 6)}


# ---- manifests


def test_of_a_damaged_manifest_every_record_before_counts(tmp_path: Path) -> None:
    path = two_fields(tmp_path / "x.blob")
    manifest = manifest_of(path)
    data = manifest.read_bytes()
    log = records(data, read_schema(path)["uuid"], 1)
    starts = [offset for offset, _ in log]
    seen = set()
    for count, start in list(enumerate(starts))[1:]:
        flip(manifest, start + 12)
        found = tb.recover(path, dest := tmp_path / f"{count}.blob")
        seen.add(found.rows)
        assert ids_in(dest) == list(range(found.rows)) and not found.missing
        assert (found.faults[0].file, found.faults[0].offset) == (manifest.name, start)
        later = len(starts) - count - 1
        assert any(f"{later} valid records follow" in remark for remark in found.remarks) == bool(later)
        manifest.write_bytes(data)
    assert seen == {0, *STOPS}


def test_without_the_newest_checkpoint_an_older_generation_is_read(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    with tb.TensorBlob.open(path) as pinned:
        with tb.TensorBlob.open(path, "r+") as blob:
            blob.write(rows(50))
            blob.compact()  # which begins a generation
        assert [int(file.name[-6:]) for file in sorted(path.glob("manifest.*"))] == [1, 2]
        flip(path / "manifest.000002", 20)
        found = tb.recover(path, tmp_path / "new.blob")
        assert found.generation == 1 and not found.missing
        assert stored(tmp_path / "new.blob") == [50, 1, 2, 3, 4, 5]
        assert [fault.file for fault in found.faults] == ["manifest.000002"]
        assert any("generation 1 was read" in remark for remark in found.remarks)
        assert numbers(pinned[:]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda p: flip(manifest_of(p), 20), tb.Corrupt),
        (lambda p: manifest_of(p).unlink(), tb.Corrupt),
        (lambda p: flip(p / "schema.json", 60), tb.Corrupt),
        (lambda p: (p / "schema.json").unlink(), tb.NotABlob),
        (lambda p: shutil.rmtree(p), FileNotFoundError),
    ],
)
def test_where_no_byte_can_be_told_from_another_it_says_so(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    path = create(tmp_path / "x.blob", 6)
    damage(path)
    with pytest.raises(error):
        tb.recover(path, tmp_path / "new.blob")
    assert not os.path.lexists(tmp_path / "new.blob")


# ---- where to


def test_it_writes_to_a_new_place_only(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    (path / "writer.lock").unlink()  # so that it is hard to tell for a blob
    (tmp_path / "file").write_text("mine")
    before = photograph(tmp_path)
    for dest in (path, tmp_path / "file", tmp_path):
        with pytest.raises((FileExistsError, ValueError)):
            tb.recover(path, dest)
    for dest in (path / "inside", path / "blocks" / "inside"):
        with pytest.raises(ValueError, match="into itself"):
            tb.recover(path, dest)
    assert photograph(tmp_path) == before


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.blob", 12)
    before = photograph(path)

    def fail(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tb.recover(path, tmp_path / "new.blob", on_progress=fail)
    assert os.listdir(tmp_path) == ["x.blob"] and photograph(path) == before


def test_it_needs_memory_for_a_piece_and_not_for_the_blob(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    with tb.TensorBlob.open(path, "w", dtype="uint8", shape=4096, block_rows=1024) as blob:
        for number in range(24):
            blob.write(torch.full((1024, 4096), number, dtype=torch.uint8))
    flip(blocks_of(path, "data")[3], 0)
    tracemalloc.start()
    try:
        found = tb.recover(path, tmp_path / "new.blob")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.rows == 23 * 1024
    assert peak < 40 << 20, "the blob has 96 MiB"


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 12)
    flip(blocks_of(path, "data")[0], 0)
    seen: list[tuple[int, int]] = []
    tb.recover(path, tmp_path / "new.blob", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (2 * 12 * 4096, 2 * 12 * 4096)


def test_the_command_line_tells_the_account(tmp_path: Path) -> None:
    path, dest = create(tmp_path / "x.blob", 12), tmp_path / "new.blob"
    block = blocks_of(path, "data")[1]
    block.unlink()
    result = run("recover", path, dest)
    assert (result.exit_code, result.stderr) == (3, ""), "it is written, and not complete"
    assert result.stdout.splitlines() == [
        f"blocks/data/{block.name}: bytes 0 to 16384: the file is missing",
        "kept row ids 0 to 4",
        "kept row ids 8 to 12 (now from 4 on)",
        "lost row ids 4 to 8",
        f"recovered 8 rows to {os.path.realpath(dest)}, lost 4 rows",
    ]
    result = run("recover", path, dest)
    assert result.exit_code == 1 and "it exists" in result.stderr


# ---- what is no damage


def test_a_blob_whose_writer_passes_generations_meanwhile_is_recovered_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "x.blob", 12)
    with tb.TensorBlob.open(path, "a+") as blob:
        assert blob._writer is not None
        writer, opened, left = blob._writer, files.open_file, 3

        def open_file(name: str, *, dir_fd: int | None = None) -> int:
            """A generation passes between its listing and its opening, and between its opening and its pinning."""
            nonlocal left
            if left and name.startswith("manifest."):
                left -= 1
                if left == 1:
                    writer._rotate()
                fd = opened(name, dir_fd=dir_fd)
                blob.trim(blob.first_row + 1)
                writer._rotate()
                return fd
            return opened(name, dir_fd=dir_fd)

        monkeypatch.setattr(files, "open_file", open_file)
        found = tb.recover(path, tmp_path / "new.blob")
        monkeypatch.undo()
        assert not left and found.is_complete and not found.missing
        assert found.rows == len(blob)


def test_what_is_recovered_stays_there_though_a_writer_goes_on(tmp_path: Path) -> None:
    """The blocks that it has yet to read are superseded while it reads the first."""
    path = create(tmp_path / "x.blob", 12)
    seen: list[int] = []
    with tb.TensorBlob.open(path, "r+") as writer:

        def go_on(done: int, total: int) -> None:
            if not seen:
                writer.truncate(0)
                writer.write(rows(*range(100, 130)))
                writer.compact()
            seen.append(done)

        found = tb.recover(path, tmp_path / "new.blob", on_progress=go_on)
        assert len(seen) > 3 and found.is_complete
    assert stored(tmp_path / "new.blob") == list(range(12))


@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("part", ["blocks/", "manifest."])
def test_what_cannot_be_opened_now_is_no_damage(
    error: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "x.blob", 12)
    opened = files.open_file

    def open_file(name: str, *, dir_fd: int | None = None) -> int:
        if name.startswith(part):
            raise OSError(error, os.strerror(error))
        return opened(name, dir_fd=dir_fd)

    monkeypatch.setattr(files, "open_file", open_file)
    for act in (lambda: tb.recover(path, tmp_path / "new.blob"), lambda: tb.verify(path)):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == error and not isinstance(caught.value, tb.Corrupt)
    assert not (tmp_path / "new.blob").exists()
