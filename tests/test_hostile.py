"""Opening a blob that somebody made on purpose: our errors or rows, and not a byte read or written outside of it.

Names that lead elsewhere, things that are no files, numbers that nobody has, records that contradict each other, all with
right checksums (see `hostile`). What is worst to suffer is none of the exceptions: it is a hang, a crash, or all of the
memory; so each test has a time limit, and claims of size are read in processes whose memory is watched.

TENSORBLOB_FUZZ_EXAMPLES is how many forged manifests are made up for each kind of act (default 40).
"""

import itertools
import json
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, elsewhere, photograph, stored
from disk import without_platters
from hostile import (
    ACTS,
    CHECKPOINT,
    DURABLE,
    FIELD,
    ID,
    READS,
    ROWS,
    STATE,
    TAIL,
    crc32c,
    forge,
    signed_counts,
    signed_log,
    touch,
    use_cursor,
    use_limiter,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import tensorblob as tb
from tensorblob import files
from tensorblob.cursors import Cursor
from tensorblob.format import COUNTS_NBYTES, decode_counts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if "TENSORBLOB_FUZZ_EXAMPLES" in os.environ else 120)]

EXAMPLES = int(os.environ.get("TENSORBLOB_FUZZ_EXAMPLES", "40"))
SEED = int(os.environ.get("TENSORBLOB_FUZZ_SEED", "1"))
INTACT = (CHECKPOINT, [TAIL])


@pytest.fixture(autouse=True)
def no_platters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here has to survive a power loss."""
    without_platters(monkeypatch)


def test_what_is_forged_is_a_blob_like_any_other(tmp_path: Path) -> None:
    """Else the tests below would fail at the door."""
    path = forge(tmp_path / "x.blob")
    with tb.TensorBlob.open(path) as blob:
        assert bytes(blob[:].numpy().tobytes()) == ROWS
    assert tb.verify(path).ok
    for name in ACTS:
        (tmp_path / name).mkdir()
        ACTS[name](forge(tmp_path / name / "x.blob"))


# ---- things that are no files, and names that lead elsewhere

PLACES = (
    "schema.json", "manifest.000001", f"blocks/data/{ID}", "blocks/data", "blocks", "producers", "cursors", "writer.lock",
    "commit.lock", "producers/ab12", "producers/.ab12", "cursors/trainer.json", "cursors/.trainer.lock",
    "cursors/limiter.default.lock", ".manifest.000002", "manifest.000002",
)  # fmt: skip


def _elsewhere(path: Path, outside: Path) -> None:
    """A symlink to the same thing, outside."""
    path.symlink_to(outside)


def _directory(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def _socket(path: Path, _: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be a hundred bytes long, and no more
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


SPOILS: dict[str, Callable[[Path, Path], None]] = {
    "a symlink": _elsewhere,
    "a symlink to nothing": lambda path, _: path.symlink_to("nowhere"),
    "a symlink to itself": lambda path, _: path.symlink_to(path.name),
    "a symlink to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a directory": _directory,
    "a socket": _socket,
    "nothing": lambda path, _: None,
}


def spoiled(directory: Path, place: str, spoil: str) -> Path:
    """A blob with something else in one place; what was there lies outside, and more that might be mistaken for it."""
    path, outside = forge(directory / "x.blob"), directory / "outside"
    shutil.copytree(path, outside)
    (outside / "blocks" / "data" / "dead-1").write_bytes(b"a neighbour's")
    for name in ("producers/ab12", "producers/.ab12", "cursors/.trainer.lock", "cursors/limiter.default.lock"):
        (outside / name).write_text('{"pid":1,"host":"other","consumers":["trainer"]}' + "." * 100)
    dir_fd = os.open(outside, os.O_RDONLY)
    cursor = Cursor(dir_fd, "trainer")
    cursor.acknowledge(4, 0)
    cursor.close()
    os.close(dir_fd)
    for name in (".manifest.000002", "manifest.000002"):
        (outside / name).write_bytes(signed_log(INTACT, generation=2))
    there = path / place
    if there.is_dir():
        shutil.rmtree(there)
    else:
        there.unlink(missing_ok=True)
    SPOILS[spoil](there, outside / place)
    return path


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_in_the_place_of_a_file_is_refused_or_left_alone(tmp_path: Path, place: str, spoil: str) -> None:
    touch(lambda directory: spoiled(directory, place, spoil), tmp_path)


@pytest.mark.parametrize("io", ["map", "pread"])
@pytest.mark.parametrize("place", ["schema.json", "manifest.000001", f"blocks/data/{ID}", "blocks/data", "blocks"])
def test_nothing_is_read_through_a_symlink(tmp_path: Path, place: str, io: str) -> None:
    path = spoiled(tmp_path, place, "a symlink")
    with pytest.raises(tb.BlobError), tb.TensorBlob.open(path, io=io) as blob:
        blob[:]
    try:
        report = tb.verify(path)
    except tb.NotABlob:
        assert place == "schema.json"
    else:
        assert [fault.file for fault in report.faults] == [place]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize(
    ("place", "use"),
    [
        ("cursors", use_cursor),
        ("cursors/trainer.json", use_cursor),
        ("cursors/.trainer.json", use_cursor),
        ("cursors/.trainer.lock", use_cursor),
        ("cursors", use_limiter),
        ("cursors/limiter.default.lock", use_limiter),
    ],
)
def test_cursors_and_limiters_write_to_files_of_their_own_only(
    tmp_path: Path, place: str, use: Callable[[Path], None], spoil: str
) -> None:
    path = spoiled(tmp_path, place, spoil)
    before = photograph(tmp_path / "outside")
    try:
        use(path)
    except (tb.BlobError, FileNotFoundError, IsADirectoryError):
        pass
    else:
        replaced = place in ("cursors/trainer.json", "cursors/.trainer.json")
        assert spoil == "nothing" or replaced or (place, spoil) == ("cursors", "a directory")
        assert not (path / place).is_symlink()
    assert photograph(tmp_path / "outside") == before


def test_foreign_files_are_nobodys_business(tmp_path: Path) -> None:
    names = [
        "foreign.txt",
        "~",
        ".hidden~",
        "manifest.000001~",
        "manifest.0",
        "manifest.99999999999999999999",
        "x-1.tmp",
        "-",
        "é",
    ]

    def make(directory: Path) -> Path:
        path = forge(directory / "x.blob")
        for place in ("", "blocks", "blocks/data", "producers", "cursors"):
            for name in names:
                (path / place / name).write_bytes(b"\xff\0foreign")
        return path

    touch(make, tmp_path)
    path = make(tmp_path)
    with tb.TensorBlob.open(path, "r+") as blob:
        assert len(blob) == 10
        blob.write(torch.zeros(1, 8, dtype=torch.uint8))
        blob.compact()
    for place in ("", "blocks", "blocks/data", "producers", "cursors"):
        for name in names:
            assert (path / place / name).read_bytes() == b"\xff\0foreign"
    with pytest.warns(UserWarning, match="not of a blob"):
        assert not tb.TensorBlob.unlink(path)


# ---- records with right checksums

NAMES = (
    "../../outside-1", "/etc/passwd-1", "..", "ab12-1/../ab12-1", "ab12-1\0", "", "-", "ab12-", "é-1", "ab12-١", "ab12-1\n",
    "a" * 90 + "-1", "a" * 5000 + "-1", "x-1",
)  # fmt: skip
CRC = crc32c(ROWS)
HUGE = (2**31, 2**40, 2**53 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
FORGED: dict[str, list[Any]] = {
    **{f"a block called {name[:20]!r}": [CHECKPOINT, [["block", 0, name, 10, CRC], ["splice", 0, 0, 0, [[name, 0, 10]]]]]
       for name in NAMES},
    **{f"a tail called {name[:20]!r}": [CHECKPOINT, [["tail", 0, name, 512, 0, 10, crc32c(ROWS)]]] for name in NAMES},
    **{f"a patch called {name[:20]!r}": [*INTACT, [["patch", 0, name, 512, 10, crc32c(ROWS)]]] for name in NAMES},
    **{f"a tail of {n} rows": [CHECKPOINT, [["tail", 0, ID, max(n, 512), 0, n, 1]]] for n in HUGE},
    **{f"a tail of capacity {n}": [CHECKPOINT, [["tail", 0, ID, n, 0, 10, crc32c(ROWS)]]] for n in (0, 9, *HUGE)},
    **{f"a block of {n} rows": [CHECKPOINT, [["block", 0, ID, n, 1], ["splice", 0, 0, 0, [[ID, 0, n]]]]]
       for n in (-1, *HUGE)},
    **{f"a span to {n}": [CHECKPOINT, [["block", 0, ID, 10, 1], ["splice", 0, 0, 0, [[ID, 3, n], [ID, 0, 5]]]]]
       for n in (-5, *HUGE)},
    **{f"the first row {n}": [[["state", 0, [], [], n, 0], ["splice", 0, n, n, []]], [TAIL]] for n in (-1, *HUGE)},
    **{f"rows before the first span, from {n} on": [[STATE, ["splice", 0, n, n, []]], [TAIL]] for n in (1, *HUGE)},
    **{f"grown to {n}": [*INTACT, [["grow", [[n, 5]]]]] for n in (-1, 0, 9, 513, *HUGE)},
    **{f"trimmed before {n}": [*INTACT, [["trim", n]]] for n in (-1, 11, *HUGE)},
    **{f"cut at {n}": [*INTACT, [["splice", 0, 5, 10, []], ["cut", n, 1]]] for n in (-1, 11, *HUGE)},
    **{f"history {n}": [*INTACT, [["splice", 0, 5, 10, []], ["cut", 5, n]]] for n in (-1, 0, *HUGE)},
    **{f"a note from {n}": [*INTACT, [["note", n, 3, {}]]] for n in (-1, 5, *HUGE)},
    **{f"a key up to {n}": [*INTACT, [["key", "k", n, 0, n]]] for n in (-1, 0, *HUGE)},
    **{f"the end at {n}": [*INTACT, [["finish", n]]] for n in (-1, 0, 10, *HUGE)},
    **{f"retention of {n}": [*INTACT, [["retention", n, n]]] for n in (-1, 0, 1, *HUGE)},
    **{f"durable to {n}": [*INTACT, [["durable", n, n]]] for n in (-1, 0, *HUGE)},
    **{f"moved to {n}": [*INTACT, [["moved", n]]] for n in (-1, 0, *HUGE)},
    **{f"column {n}": [*INTACT, [["tail", n, ID, 512, 0, 10, 1]]] for n in (-1, 1, *HUGE)},
    **{f"a session on device {n}": [*INTACT, [["session", "../x", "boot", n, n, n, "\x1b[2J"]]] for n in (-1, *HUGE)},
    "no state": [[], [TAIL]],
    "a second state": [*INTACT, CHECKPOINT],
    "no columns grown": [*INTACT, [["grow", []]]],
    "too many columns grown": [*INTACT, [["grow", [[11, 1], [11, 1]]]]],
    "a span without a block": [CHECKPOINT, [["splice", 0, 0, 0, [["cd34-1", 0, 10]]]]],
    "ten thousand spans": [CHECKPOINT, [["block", 0, ID, 10, CRC], ["splice", 0, 0, 0, [[ID, 0, 10], [ID, 3, 4]] * 5000]]],
    "one block ten thousand times": [[*CHECKPOINT, *[["block", 0, ID, 10, 1]] * 10_000], [TAIL]],
    "a tail that starts behind its end": [CHECKPOINT, [["tail", 0, ID, 512, 11, 10, 1]]],
    "numbers that are none": [*INTACT, b'[["trim",1e308]]'],
    "a number of ten thousand digits": [*INTACT, b'[["trim",1' + b"0" * 10_000 + b"]]"],
    "metadata ten thousand levels deep": [*INTACT, b'[["metadata",' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"]]"],
    "lists a million levels deep": [*INTACT, b"[" * 1_000_000],
    "half a surrogate": [*INTACT, b'[["metadata",{"\\ud800":1}]]'],
    "bytes that are no text": [*INTACT, b'[["metadata",{"\xff":1}]]'],
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_record_is_refused_or_harmless(tmp_path: Path, case: str) -> None:
    def make(directory: Path) -> Path:
        (directory / "outside-1").write_bytes(ROWS)
        return forge(directory / "x.blob", FORGED[case])

    touch(make, tmp_path)


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_record_of_other_columns_than_there_are_is_refused(tmp_path: Path, columns: int, is_first: bool) -> None:
    """Also among records that are read as one, since all of them say only how far the tails have grown."""
    fields = [FIELD | {"name": "a"}, FIELD | {"name": "b"}]
    checkpoint = [STATE, *(["splice", number, 0, 0, []] for number in range(2))]
    tails = [["tail", number, ID, 512, 0, 10, crc32c(ROWS)] for number in range(2)]
    good, bad = [["grow", [[10, crc32c(ROWS)]] * 2]], [["grow", [[10, crc32c(ROWS)]] * columns]]
    records = [checkpoint, tails, *([bad, good] if is_first else [good, bad, good])]

    def make(directory: Path) -> Path:
        return forge(directory / "x.blob", records, fields)

    (tmp_path / "opened").mkdir()
    with pytest.raises(tb.Corrupt):
        tb.TensorBlob.open(make(tmp_path / "opened"))
    touch(make, tmp_path)


@pytest.mark.parametrize(
    "records",
    [
        [[["splice", 0, 0, 0, []]], [TAIL]],
        [*INTACT, [["grow", [[12, 1]]]], [["grow", [[11, 1]]]]],
        [*INTACT, [["patch", 0, "ab12-2", 5, 6, 1]]],
        [*INTACT, [["block", 0, "ab12-2", 9, 1], ["splice", 0, 2, 4, [["ab12-2", 0, 3]]]]],
        [*INTACT, [["block", 0, "ab12-2", 9, 1], ["splice", 0, 2, 4, [["ab12-2", 4, 2], ["ab12-2", 0, 4]]]]],
    ],
    ids=["no state first", "a tail that shrinks", "a patch beyond its capacity", "rows that move", "a span backwards"],
)
def test_a_manifest_that_contradicts_itself_is_corrupt(tmp_path: Path, records: list[Any]) -> None:
    path = forge(tmp_path / "x.blob", records)
    for mode in ("r", "a"):
        with pytest.raises(tb.Corrupt):
            tb.TensorBlob.open(path, mode)
    assert not tb.verify(path).ok


def test_a_directory_of_the_blob_is_not_opened_through_a_symlink(tmp_path: Path) -> None:
    """Not even through one that took its place since the blob was opened."""
    path = spoiled(tmp_path, "producers", "a symlink")
    dir_fd = os.open(path, os.O_RDONLY)
    try:
        for look in (files.list_directory, files.open_directory):
            with pytest.raises(tb.Corrupt):
                look("producers", dir_fd=dir_fd)
    finally:
        os.close(dir_fd)


FORGED_FIELDS: dict[str, list[Any]] = {
    **{f"a field called {name[:20]!r}": [FIELD | {"name": name}]
       for name in ("..", "/etc", "../x", "a/b", ".", "a..b", "a\0", "x" * 300, "a.b", "é", "\x1b[2J")},
    **{f"rows of {n} bytes": [FIELD | {"shape": [n]}] for n in HUGE},
    **{f"blocks of {n} rows": [FIELD | {"block_rows": n}] for n in HUGE},
    "thirty sizes": [FIELD | {"shape": [1] * 29 + [8]}],
    "a hundred sizes": [FIELD | {"shape": [1] * 100}],
    "a field and one below it": [FIELD | {"name": "a"}, FIELD | {"name": "a.b"}],
    "a field called data": [FIELD | {"name": "data"}, FIELD | {"name": "b"}],
    "a dtype of half bytes": [FIELD | {"dtype": "float4_e2m1fn_x2"}],
    "a dtype that is a module": [FIELD | {"dtype": "nn"}],
    "a dtype with a dot": [FIELD | {"dtype": "nn.Module"}],
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED_FIELDS)
def test_a_forged_schema_is_refused_or_harmless(tmp_path: Path, case: str) -> None:
    fields = FORGED_FIELDS[case]
    checkpoint = [STATE, *(["splice", number, 0, 0, []] for number in range(len(fields)))]
    tails = [["tail", number, ID, 512, 0, 10, crc32c(ROWS)] for number in range(len(fields))]
    touch(lambda directory: forge(directory / "x.blob", [checkpoint, tails], fields), tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"[" * 1_000_000, b'{"format":' * 100_000, b'{"format":"tensorblob","version":1,"x":' + b"[" * 1_000_000, b"\0" * 4096],
)  # fmt: skip
def test_a_schema_of_any_depth_is_refused(tmp_path: Path, text: bytes) -> None:
    path = forge(tmp_path / "x.blob")
    (path / "schema.json").write_bytes(text)
    with pytest.raises((tb.NotABlob, tb.Corrupt)):
        tb.TensorBlob.open(path)
    touch(lambda place: Path(shutil.copytree(path, place / "x.blob")), tmp_path)


@pytest.mark.parametrize("row", [-1, 2**53 + 1, 2**63, 10**30, 1.5, None, "1", [[]]])
def test_a_forged_cursor_is_corrupt(tmp_path: Path, row: Any) -> None:
    path = forge(tmp_path / "x.blob")
    value = {"row": row, "history": 0, "crc32c": f"{crc32c(f'{row} 0'.encode()):08x}"}
    (path / "cursors" / "trainer.json").write_text(json.dumps(value))
    with pytest.raises(tb.Corrupt):
        use_cursor(path)
    assert [fault.file for fault in tb.verify(path).faults] == ["cursors/trainer.json"]


COUNTED = {"step": 4, "inserted": 30, "sampled": 20, "admitted": {"cd34": 2}}
FORGED_COUNTS: dict[str, Any] = {
    **{f"{name} of {n}": COUNTED | {name: n} for name in ("step", "inserted", "sampled") for n in (-1, 1.5, "1", None, *HUGE)},
    **{f"{n} rows let in": COUNTED | {"admitted": {"cd34": n}} for n in (-1, 1.5, None, *HUGE)},
    **{f"rows let in of {name[:20]!r}": COUNTED | {"admitted": {name: 2}}
       for name in ("..", "../x", "/etc/passwd", "", "a\0", "x" * 300, "é")},
    "rows let in of a thousand": COUNTED | {"admitted": {f"p{n}": 1 << 50 for n in range(1000)}},
    "counts of something else": COUNTED | {"rows": 1},
    "a list": [4, 30, 20, {}],
    "nothing": b"",
    "lists ten thousand levels deep": b"[" * 10_000,
    "bytes that are no text": b'{"step":4,"admitted":{"\xff":1}}',
}  # fmt: skip


@pytest.mark.parametrize("place", [0, COUNTS_NBYTES, 2 * COUNTS_NBYTES])
@pytest.mark.parametrize("case", FORGED_COUNTS)
def test_forged_counts_are_refused_or_harmless(tmp_path: Path, case: str, place: int) -> None:
    """With the right checksum, in either place of a limiter's file or behind them."""

    def make(directory: Path) -> Path:
        path = forge(directory / "x.blob")
        text = signed_counts(COUNTED | {"step": 3}).ljust(place or COUNTS_NBYTES, b"\0")
        forged = signed_counts(FORGED_COUNTS[case])
        (path / "cursors" / "limiter.default.lock").write_bytes(
            text + forged if place else forged.ljust(COUNTS_NBYTES) + text
        )
        return path

    touch(make, tmp_path, ["limit", "verify", "append", "info"])


def test_any_flipped_bit_of_a_limiters_counts_is_detected() -> None:
    data = signed_counts(COUNTED)
    assert decode_counts(data.ljust(COUNTS_NBYTES, b"\0")) is not None
    for position in range(len(data)):
        for bit in range(8):
            flipped = data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
            assert decode_counts(flipped.ljust(COUNTS_NBYTES, b"\0")) is None, (position, bit)


_counts = st.sampled_from([*range(13), 511, 512, 513, -1, *HUGE])
_ids = st.sampled_from([ID] * 10 + ["ab12-2", *NAMES])
_crcs = st.sampled_from([crc32c(ROWS), crc32c(ROWS[:40]), 0, 2**32, -1])
_columns = st.sampled_from([0] * 8 + [1, -1, 2**63])
_grown = st.none() | st.tuples(_counts, _crcs)
OPERATIONS = st.one_of(
    st.tuples(st.just("block"), _columns, _ids, _counts, _crcs),
    st.tuples(st.just("tail"), _columns, _ids, _counts, _counts, _counts, _crcs),
    st.tuples(st.just("grow"), st.lists(_grown, min_size=1, max_size=3)),
    st.tuples(st.just("patch"), _columns, _ids, _counts, _counts, _crcs),
    st.tuples(st.just("splice"), _columns, _counts, _counts, st.lists(st.tuples(_ids, _counts, _counts), max_size=3)),
    st.tuples(st.sampled_from(["trim", "finish", "moved"]), _counts),
    st.tuples(st.sampled_from(["cut", "durable", "retention"]), _counts, _counts),
    st.tuples(st.just("note"), _counts, _counts, st.just({})),
    st.tuples(st.just("key"), _ids, _counts, _counts, _counts),
)
EDITS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=3), max_size=3)


@pytest.mark.parametrize("act", ACTS)
@seed(SEED)
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS, is_begun=st.booleans(), columns=st.sampled_from([1, 2]))
def test_whatever_edits_are_forged_nothing_but_our_errors_comes_of_them(
    act: str, edits: list[Any], is_begun: bool, columns: int
) -> None:
    fields = [FIELD] if columns == 1 else [FIELD | {"name": name} for name in "ab"]
    begun = [[STATE, *(["splice", number, 0, 0, []] for number in range(columns))]]
    begun += [[[*TAIL[:1], number, *TAIL[2:]] for number in range(columns)]] if is_begun else []
    with tempfile.TemporaryDirectory(prefix="tensorblob-") as directory:
        touch(lambda place: forge(place / "x.blob", [*begun, *edits], fields), Path(directory), [act])


# ---- bytes that are moved about

WHOLE = signed_log([*INTACT, [["grow", [[10, crc32c(ROWS)]]], ["note", 0, 10, {"a": 1}]], [DURABLE]])


@pytest.mark.parametrize("act", READS)
@seed(SEED)
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    cuts=st.lists(st.integers(0, len(WHOLE)), min_size=2, max_size=6),
    order=st.permutations(range(5)),
    more=st.binary(max_size=9),
)
def test_a_manifest_in_pieces_is_refused_or_a_prefix(act: str, cuts: list[int], order: list[int], more: bytes) -> None:
    """Truncated, repeated, swapped and spliced: a piece counts only where it was written."""
    bounds = sorted(cuts)
    pieces = [WHOLE[low:high] for low, high in itertools.pairwise(bounds)]
    data = WHOLE[: bounds[0]] + b"".join(pieces[index] for index in order if index < len(pieces)) + more
    with tempfile.TemporaryDirectory(prefix="tensorblob-") as directory:

        def make(place: Path) -> Path:
            path = forge(place / "x.blob")
            (path / "manifest.000001").write_bytes(data)
            return path

        touch(make, Path(directory), [act])
        try:
            with tb.TensorBlob.open(make(Path(directory))) as blob:
                found = blob[:].numpy().tobytes()
        except tb.BlobError:
            return
        assert found in (b"", ROWS)


def test_any_flipped_bit_of_a_manifest_from_elsewhere_is_corrupt_or_leaves_a_prefix(tmp_path: Path) -> None:
    """A copy has no boot in common with us: so a bad last record is a torn tail, and never other rows."""
    path = create(tmp_path / "x.blob", 3)
    with tb.TensorBlob.open(path, "a") as blob:
        for number in (3, 4):
            blob.write(torch.full((1, 1024), float(number)))
    shutil.copytree(path, tmp_path / "y.blob")
    path = tmp_path / "y.blob"
    assert stored(path) == [0, 1, 2, 3, 4]
    (manifest,) = path.glob("manifest.*")
    data = manifest.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            manifest.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            report = tb.verify(path, quick=True)
            assert report.faults or report.remarks, (position, bit)
            if report.ok:
                assert stored(path) == [0, 1, 2, 3, 4][: report.rows]


# ---- claims of size


def _memory_for(records: Any, fields: Any, spoil: Callable[[Path], None] | None) -> dict[str, int]:
    """By how many bytes the memory of this process has grown, at its peak, by each act."""
    with tempfile.TemporaryDirectory(prefix="tensorblob-") as directory:

        def make(place: Path) -> Path:
            path = forge(place / "x.blob", records, fields)
            if spoil is not None:
                spoil(path)
            return path

        touch(lambda place: forge(place / "x.blob"), Path(directory))  # what is imported, and made once
        grown = {}
        for act in (act for act in ACTS if act != "unlink"):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            touch(make, Path(directory), [act])
            grown[act] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        return grown


def _sparse_manifest(path: Path) -> None:
    os.truncate(path / "manifest.000001", 1 << 40)


def _sparse_manifest_with_an_end(path: Path) -> None:
    with (path / "manifest.000001").open("r+b") as file:
        file.seek(1 << 40)
        file.write(b"\n01234567 [[]]\n")


def _sparse_schema(path: Path) -> None:
    os.truncate(path / "schema.json", 1 << 40)


def _forged_beginnings(path: Path) -> None:
    with (path / "manifest.000001").open("ab") as file:
        file.write(b"x" + b'00000000 [["grow"' * 200_000 + b"\n")


CLAIMS: dict[str, tuple[Any, Any, Callable[[Path], None] | None]] = {
    "rows that are not there": ([CHECKPOINT, [["tail", 0, ID, 2**40, 0, 2**40, 1]]], [FIELD], None),
    "long rows that are not there": ([CHECKPOINT, [TAIL]], [FIELD | {"shape": [2**36]}], None),
    "a hole for a manifest": (INTACT, [FIELD], _sparse_manifest),
    "a hole in a manifest": (INTACT, [FIELD], _sparse_manifest_with_an_end),
    "beginnings of records without end": (INTACT, [FIELD], _forged_beginnings),
    "a hole for a schema": (INTACT, [FIELD], _sparse_schema),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_blob_claims_to_hold_costs_no_memory_and_little_time(claim: str) -> None:
    grown = elsewhere(_memory_for, *CLAIMS[claim])
    assert not {act: nbytes for act, nbytes in grown.items() if nbytes > 256 << 20}


@pytest.mark.parametrize(
    ("records", "nbytes"),
    [
        ([[*CHECKPOINT, ["block", 0, ID, 10, CRC]], [["splice", 0, 0, 0, [[ID, 0, 20]]]]], 160),
        ([[*CHECKPOINT, ["splice", 0, 0, 0, [[ID, 0, 10]]]]], 80),
        ([[*CHECKPOINT, TAIL]], 79),
        ([[*CHECKPOINT, TAIL]], None),
    ],
    ids=["rows beyond the checksum", "a block without a checksum", "a short block", "a symlink"],
)
def test_rows_that_are_not_there_are_not_taken_over(tmp_path: Path, records: Any, nbytes: int | None) -> None:
    """Linking costs no look at the bytes; but a blob must not become one that cannot be read."""
    path = forge(tmp_path / "x.blob", records)
    block = path / "blocks" / "data" / ID
    if nbytes is None:
        block.rename(tmp_path / "outside")
        block.symlink_to(tmp_path / "outside")
    else:
        block.write_bytes((ROWS * 2)[:nbytes])
    with tb.TensorBlob.open(tmp_path / "mine.blob", "w", dtype="uint8", shape=8, block_rows=512) as mine:
        mine.write(torch.ones(3, 8, dtype=torch.uint8))
        with pytest.raises(tb.Corrupt):
            mine.extend(path)
        assert len(mine) == 3
    assert tb.verify(tmp_path / "mine.blob").ok and not tb.verify(path).ok
    with tb.TensorBlob.open(path) as blob, pytest.raises(tb.Corrupt):
        blob.copy(tmp_path / "copy.blob")
    assert not (tmp_path / "copy.blob").exists()
