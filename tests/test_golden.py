"""Blobs that an earlier version wrote are read for good: every row, note, key and cursor of the golden blobs.

They lie in tests/golden, with the script that made them and what each holds. (git keeps no empty directories, so theirs are
missing there: a reader needs none of them.)
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from api_support import photograph
from spec_reader import read_blob

import tensorblob as tb
from tensorblob.cursors import Position, read_position

GOLDEN = Path(__file__).parent / "golden"
BLOBS = sorted(path.with_suffix("") for path in GOLDEN.glob("v*/*.json"))
TORN = {"torn"}

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
every_blob = pytest.mark.parametrize("golden", BLOBS, ids=lambda path: f"{path.parent.name}-{path.name}")


def _load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _load_make()


def about(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(golden.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def copied(golden: Path, to: Path) -> Path:
    """A copy to write to, whole again."""
    shutil.copytree(golden, to)
    for name in ("producers", "cursors"):
        (to / name).mkdir(exist_ok=True)
    return to


def same_bytes(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit; not every dtype can be compared otherwise."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    return bool(torch.equal(got.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)))


def assert_holds(blob: tb.TensorBlob, numbers: list[int]) -> None:
    found = blob[:]
    assert len(blob) == len(numbers)
    for field in blob.schema:
        column = found if blob.schema.is_single else found[field.key]
        assert same_bytes(column, make.made(numbers, field.dtype, field.shape)), field.name


def test_there_is_a_golden_blob_of_every_kind() -> None:
    assert {path.name for path in BLOBS} == {kind.__name__ for kind in make.KINDS}
    assert len(BLOBS) == len(make.KINDS), "of a second version, each kind again"
    holds = {name for golden in BLOBS for file in golden.glob("manifest.*") for name in operations(file)}
    assert holds == {
        "state", "block", "tail", "grow", "patch", "splice", "trim", "cut", "note", "metadata", "key", "finish", "retention",
        "session", "durable", "moved",
    }  # fmt: skip


def operations(manifest: Path) -> set[str]:
    lines = manifest.read_bytes().splitlines(keepends=True)
    return {op[0] for line in lines if line.endswith(b"\n") for op in json.loads(line[9:])}


@every_blob
@pytest.mark.parametrize("io", ["map", "pread"])
def test_a_reader_finds_everything_and_changes_nothing(golden: Path, io: str) -> None:
    meant, before = about(golden), photograph(golden)
    with tb.TensorBlob.open(golden, io=io) as blob:
        assert_holds(blob, meant["numbers"])
        assert (blob.first_row, blob.history) == (meant["first_row"], meant["history"])
        snapshot = blob.snapshot
        assert [list(cut) for cut in snapshot.cuts] == meant["cuts"]
        assert (snapshot.commits, snapshot.is_finished) == (meant["commits"], meant["is_finished"])
        assert blob.metadata == meant["metadata"]
        assert [list(note) for note in blob.commit_metadata()] == meant["notes"]
        keys = {name: [key.sequence, key.start, key.stop] for name, key in snapshot.keys.items()}
        assert keys == meant["keys"]
        assert snapshot.retention.max_rows == meant["max_rows"]
        assert {field.name: [field.dtype, list(field.shape)] for field in blob.schema} == meant["fields"]
    assert photograph(golden) == before


@every_blob
def test_verify_finds_it_intact(golden: Path) -> None:
    report = tb.verify(golden)
    assert report.ok, report.faults
    assert report.rows - report.first_row == len(about(golden)["numbers"])
    assert any("torn tail" in remark for remark in report.remarks) == (golden.name in TORN)


@every_blob
def test_a_writer_goes_on_and_what_it_adds_is_read(golden: Path, tmp_path: Path) -> None:
    meant, path = about(golden), copied(golden, tmp_path / "x.blob")
    keep = slice(3, None) if meant["max_rows"] else slice(None)
    with tb.TensorBlob.open(path, "a+") as blob:
        assert_holds(blob, meant["numbers"])
        blob.write(make.batch(blob, 1, 2, 3))
    with tb.TensorBlob.open(path) as blob:
        assert_holds(blob, [*meant["numbers"], 1, 2, 3][keep])
        assert blob.history > meant["history"], "nothing is known of the boot that it was written in"
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.compact()
    assert tb.verify(path).ok
    with tb.TensorBlob.open(path) as blob:
        assert_holds(blob, [*meant["numbers"], 1, 2, 3][keep])


@every_blob
def test_it_can_be_copied_and_recovered(golden: Path, tmp_path: Path) -> None:
    with tb.TensorBlob.open(golden) as blob:
        blob.copy(tmp_path / "copy.blob")
    assert tb.recover(golden, tmp_path / "new.blob").is_complete
    for path in (tmp_path / "copy.blob", tmp_path / "new.blob"):
        with tb.TensorBlob.open(path) as blob:
            assert_holds(blob, about(golden)["numbers"])


@every_blob
def test_a_reader_written_from_the_specification_alone_finds_the_same(golden: Path) -> None:
    meant = about(golden)
    first_row, columns = read_blob(golden)
    assert first_row == meant["first_row"]
    for name, (dtype, shape) in meant["fields"].items():
        wanted = make.made(meant["numbers"], dtype, shape).reshape(len(meant["numbers"]), -1)
        assert columns[name].tobytes() == wanted.view(torch.uint8).numpy().tobytes()


def test_a_consumer_goes_on_where_its_cursor_stands() -> None:
    for golden in (golden for golden in BLOBS if golden.name == "stream"):
        dir_fd = os.open(golden, os.O_RDONLY)
        try:
            assert read_position(dir_fd, "trainer") == Position(24, 0)
        finally:
            os.close(dir_fd)


def test_the_script_still_makes_blobs_of_the_same_content(tmp_path: Path) -> None:
    """So that the kinds above can be read, and a new format version can begin with them."""
    for kind in make.KINDS:
        make.make(kind, tmp_path)
        fresh, kept = about(tmp_path / kind.__name__), about(GOLDEN / "v1" / kind.__name__)
        assert {**fresh, "commits": 0} == {**kept, "commits": 0}, kind.__name__
