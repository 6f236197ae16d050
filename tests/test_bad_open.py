"""Opening what cannot be opened (so) raises a precise exception, and leaves the path exactly as it was."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, create, manifest_of, photograph, stored

import tensorblob as tb

MODES = ["r", "w", "a", "r+", "w+", "a+"]
FIELDS: dict[Any, Any] = {"obs": ("uint8", (4, 8)), ("next", "reward"): "float32", "nested": {"x": ("int64", 3)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


@pytest.fixture
def fields_path(tmp_path: Path) -> Path:
    tb.TensorBlob.open(tmp_path / "fields.blob", "w", schema=FIELDS).close()
    return tmp_path / "fields.blob"


def photograph_but_for_the_lock(path: Path) -> dict[str, tuple[Any, ...]]:
    """A writer that was refused may have named itself in the lock file; that is no change of the blob."""
    return {name: entry for name, entry in photograph(path).items() if name not in (".", "writer.lock")}


# ---- opening what cannot be opened so

CONFLICTS: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": "float64"},
    "dtype as torch has it": {"dtype": torch.int32},
    "shape": {"shape": 1025},
    "shape cut otherwise": {"shape": (2, 512)},
    "both": {"dtype": "int8", "shape": ()},
    "fields": {"schema": {"x": ("float32", 1024)}},
}
FIELD_CONFLICTS: dict[str, dict[str, Any]] = {
    "an unnamed field": {"dtype": "uint8", "shape": (4, 8)},
    "a field more": {"schema": FIELDS | {"more": "float32"}},
    "a field less": {"schema": {key: FIELDS[key] for key in ("obs", "nested")}},
    "another name": {
        "schema": {"obs": ("uint8", (4, 8)), ("next", "reward"): "float32", "nested": {"y": ("int64", 3)}}
    },
    "another dtype": {"schema": FIELDS | {"obs": ("int8", (4, 8))}},
    "another shape": {"schema": FIELDS | {"obs": ("uint8", (8, 4))}},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "case"), [*(("path", case) for case in CONFLICTS), *(("fields_path", case) for case in FIELD_CONFLICTS)]
)
def test_a_schema_that_conflicts_is_refused_in_every_mode(request, mode: str, kind: str, case: str) -> None:
    path = request.getfixturevalue(kind)
    before = photograph_but_for_the_lock(path)
    with pytest.raises(tb.SchemaConflict) as caught:
        tb.TensorBlob.open(path, mode, **(CONFLICTS | FIELD_CONFLICTS)[case])
    assert isinstance(caught.value, ValueError)
    assert photograph_but_for_the_lock(path) == before


@pytest.mark.parametrize("mode", MODES)
def test_a_schema_that_agrees_may_be_repeated_in_every_mode(path: Path, fields_path: Path, mode: str) -> None:
    with tb.TensorBlob.open(path, mode, dtype="float32", shape=[1024]) as blob:
        assert (blob.dtype, blob.shape) == ("float32", SHAPE)
    with tb.TensorBlob.open(path, mode, dtype=torch.float32) as blob:
        assert blob.dtype == "float32"
    nested = {"nested": {"x": (torch.int64, (3,))}, "next": {"reward": ("float32", ())}, "obs": ("uint8", [4, 8])}
    with tb.TensorBlob.open(fields_path, mode, schema=nested) as blob:
        assert (blob.dtype, blob.shape) == (None, None)


OPTIONS_THAT_CANNOT_BE: dict[str, dict[str, Any]] = {
    "mode": {"mode": "x"},
    "two modes": {"mode": "rw"},
    "durability": {"durability": "maybe"},
    "io": {"io": "uring"},
    "block_rows of none": {"block_rows": 0},
    "block_rows below zero": {"block_rows": -4},
    "block_rows by half": {"block_rows": 2.5},
    "block_size of none": {"block_size": 0},
    "both names of block_rows": {"block_rows": 4, "block_size": 8},
    "max_cached_blocks below zero": {"max_cached_blocks": -1},
    "max_rows of none": {"max_rows": 0},
    "max_rows below zero": {"max_rows": -1},
    "max_bytes below zero": {"max_bytes": -1},
    "flush_every_s below zero": {"flush_every_s": -1.0},
    "metadata that is no dict": {"metadata": [1]},
    "metadata that is no JSON": {"metadata": {"x": object()}},
    "dtype beside schema": {"schema": {"x": "float32"}},
    "no such dtype": {"dtype": "floaty"},
    "quantised dtype": {"dtype": torch.quint8},
    "negative shape": {"shape": (2, -1)},
    "no fields": {"dtype": None, "shape": None, "schema": {}},
    "a list of fields": {"dtype": None, "shape": None, "schema": ["x"]},
    "a field name that climbs": {"dtype": None, "shape": None, "schema": {"../x": "float32"}},
    "a field name with a slash": {"dtype": None, "shape": None, "schema": {"a/b": "float32"}},
    "an empty field name beside another": {"dtype": None, "shape": None, "schema": {"": "float32", "x": "float32"}},
    "a field name that is no string": {"dtype": None, "shape": None, "schema": {3: "float32"}},
    "a field that is also a parent": {"dtype": None, "shape": None, "schema": {"a": "float32", ("a", "b"): "float32"}},
    "the same field twice": {"dtype": None, "shape": None, "schema": {("a", "b"): "float32", "a": {"b": "float32"}}},
    "a field of no dtype": {"dtype": None, "shape": None, "schema": {"a": None}},
}


@pytest.mark.parametrize("case", OPTIONS_THAT_CANNOT_BE)
def test_an_option_that_cannot_be_creates_nothing(tmp_path: Path, case: str) -> None:
    options = {"mode": "w", "dtype": "float32", "shape": SHAPE} | OPTIONS_THAT_CANNOT_BE[case]
    with pytest.raises((ValueError, TypeError)):
        tb.TensorBlob.open(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


# ---- what is no blob, or no longer a whole one


def _edit_json(path: Path, **changes: object) -> None:
    value = json.loads((path / "schema.json").read_text())
    (path / "schema.json").write_text(json.dumps(value | changes, separators=(",", ":")) + "\n")


def _flip(file: Path, where: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(where)] ^= 1
    file.write_bytes(content)


def _foreign_directory(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def _schema_directory(path: Path) -> None:
    (path / "schema.json").unlink()
    (path / "schema.json").mkdir()


def _foreign_file(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.write_text("mine")


DAMAGES = {
    "a foreign directory": (_foreign_directory, tb.NotABlob, ValueError),
    "a file": (_foreign_file, tb.NotABlob, ValueError),
    "no schema.json": (lambda p: (p / "schema.json").unlink(), tb.BlobError, (ValueError, OSError)),
    "an empty schema.json": (lambda p: os.truncate(p / "schema.json", 0), tb.BlobError, (ValueError, OSError)),
    "a short schema.json": (lambda p: os.truncate(p / "schema.json", 40), tb.Corrupt, OSError),
    "a foreign schema.json": (lambda p: (p / "schema.json").write_text("{}"), tb.NotABlob, ValueError),
    "a schema.json of no text": (lambda p: (p / "schema.json").write_bytes(b"\xff\xfe\0"), tb.NotABlob, ValueError),
    "a changed schema.json": (lambda p: _edit_json(p, uuid="0" * 32), tb.Corrupt, OSError),
    "a schema.json that is a directory": (_schema_directory, tb.BlobError, (ValueError, OSError)),
    "a later version": (lambda p: _edit_json(p, version=2), tb.UnsupportedFormat, ValueError),
    "an unknown feature": (lambda p: _edit_json(p, features=["holograms"]), tb.UnsupportedFormat, ValueError),
    "no manifest": (lambda p: manifest_of(p).unlink(), tb.BlobError, (ValueError, OSError)),
    "an empty manifest": (lambda p: os.truncate(manifest_of(p), 0), tb.Corrupt, OSError),
    "a manifest of zeros": (lambda p: manifest_of(p).write_bytes(bytes(manifest_of(p).stat().st_size)), tb.Corrupt, OSError),
    "a foreign manifest": (lambda p: manifest_of(p).write_text("mine\n"), tb.Corrupt, OSError),
    "a flipped bit in the checkpoint": (lambda p: _flip(manifest_of(p), b'"state"'), tb.Corrupt, OSError),
    "a flipped bit in the middle": (lambda p: _flip(manifest_of(p), b'"tail"'), tb.Corrupt, OSError),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_or_foreign_path_is_named_and_left_alone(path: Path, mode: str, case: str) -> None:
    damage, ours, builtin = DAMAGES[case]
    damage(path)
    before = photograph_but_for_the_lock(path)
    with pytest.raises(ours) as caught:
        tb.TensorBlob.open(path, mode)
    assert isinstance(caught.value, builtin)
    assert os.fspath(path) in str(caught.value)
    if isinstance(caught.value, tb.Corrupt):
        assert Path(caught.value.path).is_relative_to(path) and caught.value.offset >= 0
    assert photograph_but_for_the_lock(path) == before


@pytest.mark.parametrize("mode", ["r", "a", "r+", "a+"])
def test_an_empty_directory_is_no_blob(tmp_path: Path, mode: str) -> None:
    with pytest.raises(tb.NotABlob):
        tb.TensorBlob.open(tmp_path, mode)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_may_become_a_blob(tmp_path: Path) -> None:
    assert stored(create(tmp_path, 3)) == [0, 1, 2]
