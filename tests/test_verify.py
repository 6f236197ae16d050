"""`verify` finds every flipped bit of what was committed, says where it is, and calls nothing else damage.

Exhaustive where the blob is small: each bit of each committed byte. What it promises beside that: it writes nothing, waits for
nobody, and looks at one snapshot however the blob changes meanwhile.
"""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, elsewhere, manifest_of, mount_read_only, photograph, private_mounts, rows
from spec_reader import read_schema, records
from test_cli import run

import tensorblob as tb
from tensorblob.cursors import Cursor

COMMITS = (2, 3, 1, 4)
ROW_NBYTES = 8


def small(path: Path) -> Path:
    """Ten rows of eight bytes in four commits, all in one block, and a cursor."""
    with tb.TensorBlob.open(path, "w", dtype="uint8", shape=ROW_NBYTES, metadata={"a": 1}) as blob:
        for number, count in enumerate(COMMITS):
            blob.write(torch.full((count, ROW_NBYTES), number, dtype=torch.uint8))
    dir_fd = os.open(path, os.O_RDONLY)
    cursor = Cursor(dir_fd, "trainer")
    cursor.acknowledge(4, 0)
    cursor.close()
    os.close(dir_fd)
    return path


def flipped(path: Path, stop: int | None = None) -> Iterator[int]:
    """Have the file at `path` with each of its first bits flipped in turn; yield the byte it is in."""
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(len(data) if stop is None else stop):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([data[position] ^ 1 << bit]), position)
                yield position
            os.pwrite(file.fileno(), data[position : position + 1], position)


def block_of(path: Path) -> Path:
    (block,) = (path / "blocks" / "data").iterdir()
    return block


def fault_in(path: Path, **options: Any) -> tb.Fault:
    """The only fault of a blob."""
    report = tb.verify(path, **options)
    assert not report.ok
    (fault,) = report.faults
    return fault


# ---- what is damaged


def test_any_flipped_bit_of_committed_rows_is_found_within_its_commit(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    bounds = [sum(COMMITS[:count]) * ROW_NBYTES for count in range(len(COMMITS) + 1)]
    for position in flipped(block_of(path), stop=bounds[-1]):
        fault = fault_in(path)
        assert fault.file == f"blocks/data/{block_of(path).name}"
        assert (fault.offset, fault.stop) in itertools.pairwise(bounds)
        assert fault.offset <= position < fault.stop
        assert tb.verify(path, quick=True).ok, "whoever asks for the metadata only gets no more"
    assert tb.verify(path).ok, "as it was"


def test_any_flipped_bit_of_a_manifest_is_found_in_its_record(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    manifest = manifest_of(path)
    starts = [offset for offset, _ in records(manifest.read_bytes(), read_schema(path)["uuid"], 1)]
    for position in flipped(manifest):
        fault = fault_in(path, quick=True)
        assert fault.file == manifest.name
        assert fault.offset == max(start for start in starts if start <= position)


@pytest.mark.parametrize("name", ["schema.json", "cursors/trainer.json"])
def test_any_flipped_bit_of_a_small_file_is_found(tmp_path: Path, name: str) -> None:
    path = small(tmp_path / "x.blob")
    for _ in flipped(path / name):
        try:
            assert fault_in(path, quick=True).file == name
        except (tb.NotABlob, tb.UnsupportedFormat):
            assert name == "schema.json", "which may say by one bit that it is of another format"
    assert tb.verify(path).ok


@pytest.mark.parametrize("quick", [False, True])
def test_a_missing_and_a_short_block_are_found_also_quickly(tmp_path: Path, quick: bool) -> None:
    path = create(tmp_path / "x.blob", 12)
    first, _, third = sorted((path / "blocks" / "data").iterdir(), key=lambda block: int(block.name.split("-")[1]))
    first.unlink()
    os.truncate(third, 2 * 4096 + 1)
    missing, short = tb.verify(path, quick=quick).faults
    assert missing[:3] == (f"blocks/data/{first.name}", 0, 4 * 4096)
    assert (short.file, short.stop) == (f"blocks/data/{third.name}", 4 * 4096)
    assert short.offset == (2 * 4096 if quick else 0), "in full, it is the stretch that cannot be proved"


def test_damage_in_one_file_hides_none_in_another(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 12)
    damaged = [manifest_of(path), *(path / "blocks" / "data").iterdir()]
    for file in damaged:
        with file.open("r+b") as opened:
            opened.seek(-20 if file is damaged[0] else 100, os.SEEK_END if file is damaged[0] else os.SEEK_SET)
            opened.write(b"\1\1")
    assert {fault.file for fault in tb.verify(path).faults} == {os.fspath(file.relative_to(path)) for file in damaged}


def test_what_is_no_blob_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tb.verify(tmp_path / "nothing")
    with pytest.raises(tb.NotABlob):
        tb.verify(tmp_path)


# ---- what is not


def test_what_was_never_committed_is_no_damage(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    with block_of(path).open("ab") as file:
        file.write(b"rows of a writer that was killed")
    (path / "blocks" / "data" / "dead-1").write_bytes(b"garbage")
    (path / ".manifest.000002").write_bytes(b"half a gener")
    assert tb.verify(path)[6:] == (1, 80, (), ())


def test_a_torn_tail_is_a_remark(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    size = manifest_of(path).stat().st_size
    with manifest_of(path).open("ab") as file:
        file.write(b'12345678 [["gro')
    report = tb.verify(path)
    assert report.ok and report.rows == 10
    assert report.remarks == (f"{manifest_of(path).name} ends in a torn tail, from byte {size} on",)


def test_every_kind_of_change_leaves_an_intact_blob(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 13)
    with tb.TensorBlob.open(path, "r+") as blob:
        for change in (
            lambda: blob.seek(3) and blob.write(rows(1, 2)),
            lambda: blob.trim(2),
            lambda: blob.truncate(9),
            lambda: blob.extend(path),
            blob.compact,
            blob.flush,
        ):
            change()
            report = tb.verify(path)
            assert report.ok, report.faults
            assert (report.first_row, report.rows) == (blob.first_row, blob.rows)
    assert tb.verify(path).ok


# ---- how it goes about it


def test_it_touches_nothing(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    before = photograph(tmp_path)
    tb.verify(path)
    tb.verify(path, quick=True)
    assert photograph(tmp_path) == before


def _verify_read_only(path: Path) -> bool | None:
    if not private_mounts():
        return None
    mount_read_only(path)
    return tb.verify(path).ok


def test_it_needs_no_write_permission(tmp_path: Path) -> None:
    found = elsewhere(_verify_read_only, small(tmp_path / "x.blob"))
    if found is None:
        pytest.skip("this system lets us mount nothing")
    assert found


def test_a_writer_goes_on_meanwhile_and_what_is_checked_stays_there(tmp_path: Path) -> None:
    """The blocks that it has yet to read are superseded while it reads the first."""
    path = create(tmp_path / "x.blob", 12)
    seen: list[tuple[int, int]] = []
    with tb.TensorBlob.open(path, "r+") as writer:

        def overwrite(done: int, total: int) -> None:
            if not seen:
                writer.truncate(0)
                writer.write(rows(*range(100, 130)))
                writer.compact()
                writer.flush()
            seen.append((done, total))

        report = tb.verify(path, on_progress=overwrite)
        assert report.ok and report.rows == 12
        assert tb.verify(path).rows == 30
    assert seen == [(4 * 4096, 12 * 4096), (8 * 4096, 12 * 4096), (12 * 4096, 12 * 4096)]


# ---- on the command line


def test_the_command_line_says_intact_by_0_and_damaged_by_1(tmp_path: Path) -> None:
    path = small(tmp_path / "x.blob")
    what = f"1 block, {tb.verify(path).records} records"
    result = run("verify", path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"intact ({what}, 80 B of rows)\n", "")
    block = block_of(path)
    os.truncate(block, 79)
    result = run("verify", path, "--quick")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == (
        f"blocks/data/{block.name}: bytes 72 to 80: the file has 79 bytes, and 80 were committed\n"
        f"damaged: 1 fault ({what}, of blocks only their sizes)\n"
    )
    found = json.loads(run("verify", path, "--json").stdout)
    report = tb.verify(path)
    assert found == json.loads(json.dumps(report._asdict())) | {
        "ok": False,
        "faults": [fault._asdict() for fault in report.faults],
    }
    result = run("verify", tmp_path / "nothing")
    assert result.exit_code == 1 and result.stderr.startswith("tensorblob: Blob not found")


@pytest.mark.parametrize("error", [BrokenPipeError, FileNotFoundError, KeyboardInterrupt, ValueError])
def test_what_on_progress_raises_is_raised(tmp_path: Path, error: type[BaseException]) -> None:
    """And is not taken for a fault of the blob."""
    path = create(tmp_path / "x.blob", 3)

    def complain(done: int, total: int) -> None:
        raise error("not now")

    with pytest.raises(error, match="not now"):
        tb.verify(path, on_progress=complain)
    with pytest.raises(error, match="not now"):
        tb.recover(path, tmp_path / "y.blob", on_progress=complain)
    assert tb.verify(path).ok and not (tmp_path / "y.blob").exists()
