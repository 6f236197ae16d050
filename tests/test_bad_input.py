"""Misuse raises a precise exception of ours that is also the builtin a caller would expect, and changes nothing.

Nothing means nothing: the directory is photographed before and after (names, sizes, inodes, times, bytes).
Opening what cannot be opened is in test_bad_open.py; other processes, users and read-only media are in test_bad_luck.py.
"""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, manifest_of, numbers, photograph, rows, stored
from tensordict import TensorDict

import tensorblob as tb

FIELDS: dict[Any, Any] = {"obs": ("uint8", (4, 8)), ("next", "reward"): "float32", "nested": {"x": ("int64", 3)}}


def batch(first: int, count: int) -> dict[str, Any]:
    """Rows of FIELDS whose every number is the row's own."""
    number = torch.arange(first, first + count)
    return {
        "obs": number.reshape(-1, 1, 1).expand(-1, 4, 8).to(torch.uint8),
        "next": {"reward": number.float()},
        "nested": {"x": number.reshape(-1, 1).expand(-1, 3)},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "ten.blob")


@pytest.fixture
def fields_path(tmp_path: Path) -> Path:
    with tb.TensorBlob.open(tmp_path / "fields.blob", "w", schema=FIELDS) as blob:
        blob.write(batch(0, 10))
    return tmp_path / "fields.blob"


def with_field(key: str, value: object) -> dict[str, Any]:
    return batch(10, 2) | {key: value}


# ---- rows that do not fit

ROWS_THAT_DO_NOT_FIT = {
    "another float dtype": (lambda: rows(1).double(), tb.DTypeMismatch, TypeError),
    "an integer dtype": (lambda: rows(1).int(), tb.DTypeMismatch, TypeError),
    "rows too short": (lambda: torch.zeros(3, 1023), tb.SchemaMismatch, ValueError),
    "rows too long": (lambda: torch.zeros(3, 1025), tb.SchemaMismatch, ValueError),
    "rows of a multiple": (lambda: torch.zeros(3, 2048), tb.SchemaMismatch, ValueError),
    "rows cut otherwise": (lambda: torch.zeros(3, 2, 512), tb.SchemaMismatch, ValueError),
    "flat, no whole rows": (lambda: torch.zeros(1025), tb.SchemaMismatch, ValueError),
    "one number": (lambda: torch.tensor(1.0), tb.SchemaMismatch, ValueError),
    "fields": (lambda: {"obs": rows(1)}, TypeError, TypeError),
    "a string": (lambda: "abc", TypeError, TypeError),
    "nothing": (lambda: None, TypeError, TypeError),
}


@pytest.mark.parametrize("mode", ["r+", "a", "a+", "w", "w+"])
@pytest.mark.parametrize("case", ROWS_THAT_DO_NOT_FIT)
def test_rows_that_do_not_fit_are_refused_before_the_first_byte(path: Path, mode: str, case: str) -> None:
    make, ours, builtin = ROWS_THAT_DO_NOT_FIT[case]
    with tb.TensorBlob.open(path, mode) as blob:
        blob.flush()  # nothing is left to be done in the background
        cursor, snapshot, before = blob.tell(), blob.snapshot, photograph(path)
        with pytest.raises(ours) as caught:
            blob.write(make())
        assert isinstance(caught.value, builtin)
        assert (blob.tell(), blob.snapshot) == (cursor, snapshot)
        assert photograph(path) == before
        blob.seek(0, 2)
        count = len(blob)
        assert blob.write(rows(77)) == 1
    assert stored(path) == [*range(count), 77]


FIELDS_THAT_DO_NOT_FIT = {
    "missing": (lambda: {key: value for key, value in batch(10, 2).items() if key != "obs"}, tb.SchemaMismatch, ValueError),
    "missing nested": (lambda: with_field("nested", {}), tb.SchemaMismatch, ValueError),
    "extra": (lambda: with_field("more", torch.zeros(2)), tb.SchemaMismatch, ValueError),
    "extra nested": (lambda: with_field("next", batch(10, 2)["next"] | {"x": torch.zeros(2)}), tb.SchemaMismatch, ValueError),
    "a tensor for a dict": (lambda: with_field("nested", torch.zeros(2, 3)), tb.SchemaMismatch, ValueError),
    "a dict for a tensor": (lambda: with_field("obs", {"x": torch.zeros(2, 3)}), tb.SchemaMismatch, ValueError),
    "unequal rows": (lambda: with_field("obs", batch(10, 3)["obs"]), tb.SchemaMismatch, ValueError),
    "unequal rows in the last": (lambda: with_field("nested", batch(10, 1)["nested"]), tb.SchemaMismatch, ValueError),
    "one row beside two": (lambda: with_field("obs", batch(10, 2)["obs"][0]), tb.SchemaMismatch, ValueError),
    "trailing shape": (lambda: with_field("obs", batch(10, 2)["obs"].transpose(1, 2)), tb.SchemaMismatch, ValueError),
    "trailing shape in one": (lambda: with_field("nested", {"x": torch.zeros(2, 4).long()}), tb.SchemaMismatch, ValueError),
    "dtype": (lambda: with_field("obs", batch(10, 2)["obs"].int()), tb.DTypeMismatch, TypeError),
    "dtype in the last": (lambda: with_field("nested", {"x": batch(10, 2)["nested"]["x"].int()}), tb.DTypeMismatch, TypeError),
    "a bare tensor": (lambda: torch.zeros(2, 4, 8, dtype=torch.uint8), TypeError, TypeError),
    "no field at all": (dict, tb.SchemaMismatch, ValueError),
    "nothing": (lambda: None, TypeError, TypeError),
}  # fmt: skip


@pytest.mark.parametrize(
    "container",
    [
        lambda value: dict(value) if isinstance(value, dict) else value,
        lambda value: TensorDict(value) if isinstance(value, dict) else value,
    ],
)
@pytest.mark.parametrize("case", FIELDS_THAT_DO_NOT_FIT)
def test_fields_that_do_not_fit_are_refused_before_the_first_byte_of_any(
    fields_path: Path, case: str, container
) -> None:
    make, ours, builtin = FIELDS_THAT_DO_NOT_FIT[case]
    with tb.TensorBlob.open(fields_path, "r+") as blob:
        blob.flush()  # nothing is left to be done in the background
        snapshot, before = blob.snapshot, photograph(fields_path)
        with pytest.raises(ours) as caught:
            blob.write(container(make()))
        assert isinstance(caught.value, builtin)
        assert (blob.tell(), blob.snapshot) == (0, snapshot)
        assert photograph(fields_path) == before
        blob.seek(0, 2)
        assert blob.write(container(batch(10, 2))) == 2
    with tb.TensorBlob.open(fields_path) as blob:
        got, expected = blob[:], batch(0, 12)
        assert torch.equal(got["obs"], expected["obs"])
        assert torch.equal(got["next", "reward"], expected["next"]["reward"])
        assert torch.equal(got["nested", "x"], expected["nested"]["x"])


# ---- calls that cannot be

CALLS_THAT_CANNOT_BE = {
    "truncate below zero": (lambda b: b.truncate(-1), ValueError),
    "truncate to a word": (lambda b: b.truncate("a"), TypeError),
    "seek to a word": (lambda b: b.seek("a"), TypeError),
    "seek from nowhere": (lambda b: b.seek(0, 7), ValueError),
    "read a word": (lambda b: b.read("a"), TypeError),
    "row out of bounds": (lambda b: b[10], IndexError),
    "list out of bounds": (lambda b: b[[0, 10]], IndexError),
    "float index": (lambda b: b[torch.tensor([1.0])], TypeError),
    "0-d float index": (lambda b: b[torch.tensor(1.0)], TypeError),
    "0-d bool index": (lambda b: b[torch.tensor(True)], TypeError),
    "word index": (lambda b: b["a"], TypeError),
    "gather out of bounds": (lambda b: b.gather([0, 10]), IndexError),
    "gather by floats": (lambda b: b.gather([0.5]), TypeError),
    "gather into too few rows": (lambda b: b.gather([0, 1], out=torch.zeros(1, 1024)), ValueError),
    "gather into another shape": (lambda b: b.gather([0, 1], out=torch.zeros(2, 1023)), ValueError),
    "gather into what is not contiguous": (lambda b: b.gather([0, 1], out=torch.zeros(2, 2, 1024)[:, 1]), ValueError),
    "gather into another dtype": (lambda b: b.gather([0, 1], out=torch.zeros(2, 1024).double()), (TypeError, ValueError)),
    "extend by a tensor": (lambda b: b.extend(rows(1)), (TypeError, ValueError)),
    "extend by nothing": (lambda b: b.extend(None), (TypeError, ValueError)),
    "trim a word": (lambda b: b.trim("a"), TypeError),
    "metadata that is no dict": (lambda b: b.set_metadata([1]), TypeError),
    "metadata that is no JSON": (lambda b: b.set_metadata({"x": object()}), TypeError),
    "rows with metadata that is no JSON": (lambda b: b.write(rows(1), metadata={"x": object()}), TypeError),
    "rows with metadata that is no dict": (lambda b: b.write(rows(1), metadata="x"), TypeError),
    "a transaction with metadata that is no JSON": (lambda b: b.transaction(metadata={1: 2}).__enter__(), TypeError),
    "copy onto itself": (lambda b: b.copy(b.filename), (FileExistsError, ValueError)),
    "copy onto a directory": (lambda b: b.copy(Path(b.filename).parent), (FileExistsError, ValueError)),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS_THAT_CANNOT_BE)
def test_a_call_that_cannot_be_changes_nothing(path: Path, case: str) -> None:
    act, builtin = CALLS_THAT_CANNOT_BE[case]
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.seek(4)
        blob.flush()  # nothing is left to be done in the background
        snapshot, before = blob.snapshot, photograph(path.parent)
        with pytest.raises(builtin):
            act(blob)
        assert (blob.tell(), blob.snapshot) == (4, snapshot)
        assert photograph(path.parent) == before
        blob.write(rows(77))
    assert stored(path) == [0, 1, 2, 3, 77, 5, 6, 7, 8, 9]


# ---- use after close

USES = {
    "index": lambda b: b[0],
    "slice": lambda b: b[:],
    "list": lambda b: b[[0]],
    "__getitems__": lambda b: b.__getitems__([0, 1]),
    "iter": lambda b: next(iter(b)),
    "read": lambda b: b.read(),
    "write": lambda b: b.write(rows(1)),
    "seek": lambda b: b.seek(0),
    "tell": lambda b: b.tell(),
    "truncate": lambda b: b.truncate(0),
    "extend": lambda b: b.extend(b),
    "flush": lambda b: b.flush(),
    "refresh": lambda b: b.refresh(),
    "view": lambda b: [b.view(*run) for run in b.runs()],
    "runs": lambda b: b.runs(),
    "gather": lambda b: b.gather([0]),
    "transaction": lambda b: b.transaction().__enter__(),
    "trim": lambda b: b.trim(1),
    "compact": lambda b: b.compact(),
    "copy": lambda b: b.copy(b.filename + ".copy"),
    "set_metadata": lambda b: b.set_metadata({}),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_handle_refuses_every_use(path: Path, use: str) -> None:
    blob = tb.TensorBlob.open(path, "r+")
    blob.seek(0)
    blob.close()
    before = photograph(path.parent)
    with pytest.raises(tb.BlobClosed) as caught:
        USES[use](blob)
    assert isinstance(caught.value, OSError) and isinstance(caught.value, tb.BlobError)
    assert str(caught.value) == "I/O operation on closed blob."
    assert photograph(path.parent) == before


def test_what_was_handed_out_outlives_close(path: Path) -> None:
    with tb.TensorBlob.open(path) as blob:
        view, row = blob.view(2, 9), blob[3]
    assert numbers(view) == list(range(2, 9))
    assert numbers(row[None]) == [3]


# ---- a reader changes nothing


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("options", [{}, {"io": "map"}, {"io": "pread"}, {"max_cached_blocks": 1}])
def test_a_reader_never_creates_grows_or_truncates_a_file(path: Path, options: dict[str, Any], torn: bool) -> None:
    if torn:  # what a writer that was killed leaves behind: rows and half an edit that nobody committed
        for file in [manifest_of(path), *(path / "blocks").rglob("*-*")]:
            with file.open("ab") as stream:
                stream.write(b'12345678 [["grow",[[')
    before = photograph(path.parent)
    with tb.TensorBlob.open(path, **options) as blob:
        for use in (
            "index",
            "slice",
            "list",
            "__getitems__",
            "iter",
            "read",
            "seek",
            "refresh",
            "view",
            "runs",
            "gather",
        ):
            USES[use](blob)
        for use in ("write", "truncate", "extend", "flush", "transaction", "trim", "compact", "set_metadata"):
            with pytest.raises(tb.NotWritable) as caught:
                USES[use](blob)
            assert isinstance(caught.value, OSError)
        _ = blob.snapshot, blob.metadata, blob.commit_metadata(), blob.durable_rows, blob.history, blob.schema
        with pickle.loads(pickle.dumps(blob)) as again:
            assert numbers(again[:]) == list(range(10))
        assert numbers(blob[:]) == list(range(10))
    assert photograph(path.parent) == before
