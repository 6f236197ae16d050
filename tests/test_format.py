"""The format on disk: what is valid is read back as it was, and nothing else ever passes for it.

Tables of bytes, every prefix, and every single bit.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import create, manifest_of, numbers, photograph, rows
from hypothesis import given
from hypothesis import strategies as st
from spec_reader import crc32c, read_blob, read_schema, records

import tensorblob as tb
from tensorblob import edit as ops
from tensorblob import format
from tensorblob.errors import Corrupt, NotABlob, UnsupportedFormat
from tensorblob.format import Store, decode_log, decode_record, encode_record, encode_store, log_seed
from tensorblob.schema import Field, Schema

UUID = "000102030405060708090a0b0c0d0e0f"
STORE = Store(
    UUID,
    Schema(
        (
            Field(name="obs", dtype="uint8", shape=(4, 84, 84), block_rows=4096),
            Field(name="next.reward", dtype="float32", shape=(), block_rows=1024),
        )
    ),
)
SEED = log_seed(UUID, 1)
DETECTED = (Corrupt, UnsupportedFormat, NotABlob)


# ---- golden bytes: whoever changes these changes the format


def test_schema_json_is_exactly_these_bytes() -> None:
    assert encode_store(STORE) == (
        b'{"format":"tensorblob","version":1,"features":[],"uuid":"000102030405060708090a0b0c0d0e0f","fields":'
        b'[{"name":"obs","dtype":"uint8","shape":[4,84,84],"block_rows":4096},'
        b'{"name":"next.reward","dtype":"float32","shape":[],"block_rows":1024}],"crc32c":"788ba3af"}\n'
    )


GROW = (ops.Grow(((3, 0x1234), None)),)
GOLDEN: list[tuple[int, int, ops.Edit, bytes]] = [
    (1, 0, GROW, b'11cb2a66 [["grow",[[3,4660],null]]]\n'),
    (1, 77, GROW, b'bd925196 [["grow",[[3,4660],null]]]\n'),
    (2, 0, GROW, b'005fd727 [["grow",[[3,4660],null]]]\n'),
    (1, 0, (ops.State(2, ((1, 5), (2, 9)), ((0, 2),), 3, 4),), b'8ee61444 [["state",2,[[1,5],[2,9]],[[0,2]],3,4]]\n'),
    (1, 0, (ops.Block(0, "ab-1", 8, 9),), b'311244a6 [["block",0,"ab-1",8,9]]\n'),
    (1, 0, (ops.Tail(1, "ab-2", 64, 1, 7, 9),), b'166f6f1e [["tail",1,"ab-2",64,1,7,9]]\n'),
    (1, 0, (ops.Patch(1, "ab-3", 64, 7, 9),), b'14c22f11 [["patch",1,"ab-3",64,7,9]]\n'),
    (1, 0, (ops.Splice(1, 4, 6, (ops.Span("ab-3", 0, 2),)),), b'471faa2f [["splice",1,4,6,[["ab-3",0,2]]]]\n'),
    (1, 0, (ops.Trim(4),), b'213b8e62 [["trim",4]]\n'),
    (1, 0, (ops.Cut(4, 3),), b'19cab67c [["cut",4,3]]\n'),
    (1, 0, (ops.Note(1, 2, {"é": [1.5, None]}),), 'f721394d [["note",1,2,{"é":[1.5,null]}]]\n'.encode()),
    (1, 0, (ops.Metadata({}),), b'44394665 [["metadata",{}]]\n'),
    (1, 0, (ops.Retention(None, 5),), b'94ca0cfc [["retention",null,5]]\n'),
    (1, 0, (ops.Session("ab", "boot", 1, 2, 3, "host"),), b'6505ae1a [["session","ab","boot",1,2,3,"host"]]\n'),
    (1, 0, (ops.Durable(70, 4),), b'ef441a3b [["durable",70,4]]\n'),
    (1, 0, (ops.Moved(2),), b'eef88e6b [["moved",2]]\n'),
    (1, 0, (ops.Key("é", 7, 1, 4),), '5b0afc4c [["key","é",7,1,4]]\n'.encode()),
    (1, 0, (ops.Finish(4),), b'4b86c985 [["finish",4]]\n'),
]


@pytest.mark.parametrize(("generation", "offset", "edit", "line"), GOLDEN)
def test_a_record_is_exactly_these_bytes(generation: int, offset: int, edit: ops.Edit, line: bytes) -> None:
    seed = log_seed(UUID, generation)
    assert encode_record(edit, seed, offset) == line
    assert decode_record(line[:-1], seed, offset) == edit
    prefix = bytes.fromhex(UUID) + generation.to_bytes(8, "little") + offset.to_bytes(8, "little")
    assert line[:8] == b"%08x" % crc32c(prefix + line[9:-1])  # as the docstring says it, in plain Python


def test_every_operation_has_golden_bytes() -> None:
    assert {type(op) for _, _, edit, _ in GOLDEN for op in edit} == set(ops.Op.__args__)


# ---- round trips

_ids = st.from_regex(r"[0-9a-z]{1,12}-[0-9]{1,6}", fullmatch=True)
_count = st.integers(0, 2**53)
_pairs = st.lists(st.tuples(_count, _count), max_size=3).map(tuple)
_crc = st.integers(0, 2**32 - 1)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_object = st.dictionaries(st.text(), _json, max_size=4)
_maybe = st.none() | _count
_spans = st.builds(ops.Span, _ids, _count, _count)
OPERATIONS = st.one_of(
    st.builds(ops.Block, _count, _ids, _count, _crc),
    st.builds(ops.Tail, _count, _ids, _count, _count, _count, _crc),
    st.builds(ops.Patch, _count, _ids, _count, _count, _crc),
    st.builds(ops.Grow, st.lists(st.none() | st.tuples(_count, _crc), min_size=1, max_size=4).map(tuple)),
    st.builds(ops.Splice, _count, _count, _count, st.lists(_spans, max_size=3).map(tuple)),
    st.builds(ops.Trim, _count),
    st.builds(ops.Cut, _count),
    st.builds(ops.State, _count, _pairs, _pairs, _count, _count),
    st.builds(ops.Durable, _count, _count),
    st.builds(ops.Session, _ids, st.text(), _count, _count, _count, st.text()),
    st.builds(ops.Metadata, _object),
    st.builds(ops.Note, _count, _count, _object),
    st.builds(ops.Retention, _maybe, _maybe),
    st.builds(ops.Moved, _count),
    st.builds(ops.Key, st.text(), _count, _count, _count),
    st.builds(ops.Finish, _count),
)
EDITS = st.lists(st.lists(OPERATIONS, max_size=4).map(tuple), max_size=5)


def log_of(edits: list[ops.Edit], seed: int, offset: int = 0) -> bytes:
    data = b""
    for edit in edits:
        data += encode_record(edit, seed, offset + len(data))
    return data


@given(edits=EDITS, generation=st.integers(1, 2**40), offset=st.integers(0, 2**50))
def test_a_log_reads_back_as_it_was_written(edits: list[ops.Edit], generation: int, offset: int) -> None:
    seed = log_seed(UUID, generation)
    data = log_of(edits, seed, offset)
    assert data.count(b"\n") == len(edits), "one line each, whatever the metadata holds"
    found = list(decode_log(data, seed, offset))
    assert [record.edit for record in found] == edits
    assert not found or found[-1].stop == offset + len(data)


@given(
    names=st.lists(
        st.from_regex(r"[a-zé_ ]{1,8}(\.[a-z]{1,8})?", fullmatch=True), unique=True, min_size=2, max_size=4
    ).filter(lambda names: not {name.partition(".")[0] for name in names if "." in name} & set(names)),
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    block_rows=st.integers(1, 2**40),
)
def test_a_schema_reads_back_as_it_was_written(names: list[str], shape: tuple[int, ...], block_rows: int) -> None:
    fields = (Field(name=name, dtype="bfloat16", shape=shape, block_rows=block_rows) for name in names)
    store = Store(UUID, Schema(tuple(fields)))
    assert format.decode_store(encode_store(store), "schema.json") == store


@pytest.mark.parametrize("number", [1, 9, 10, 999_999, 1_000_000, 12_345_678])
def test_a_manifest_name_gives_its_generation_back(number: int) -> None:
    assert format.manifest_generation(format.manifest_name(number)) == number


@pytest.mark.parametrize(
    "name",
    ["manifest", "manifest.", "manifest.1", "manifest.000000", "manifest.0000001", "manifest.00000x", "manifest.-00001",
     ".manifest.000001", "manifest.000001~", "manifest.000001.bak", "manifest.٠٠٠٠٠١", "Manifest.000001", "manifest. 00001"],
)  # fmt: skip
def test_other_names_are_no_manifests(name: str) -> None:
    assert format.manifest_generation(name) is None


@pytest.mark.parametrize(
    "id", ["", "a", "a-", "-1", "a-b", "../a-1", "a/b-1", "a-1/b", ".a-1", "a-1\0", "a-1.x", "a-１２/"]
)
def test_a_block_id_that_is_no_plain_name_leads_nowhere(id: str) -> None:
    with pytest.raises(ValueError, match="block id"):
        format.block_path(STORE.schema.fields[0], id)


# ---- what is not valid: the codec


def flips(data: bytes, bits: range = range(8)) -> Iterator[tuple[int, bytes]]:
    for position in range(len(data)):
        for bit in bits:
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            yield position, bytes(damaged)


LOG_EDITS = [edit for _, _, edit, _ in GOLDEN]
LOG = log_of(LOG_EDITS, SEED)
STOPS = [record.stop for record in decode_log(LOG, SEED, 0)]


def test_a_cut_log_is_exactly_its_whole_records() -> None:
    for cut in range(len(LOG) + 1):
        whole = sum(stop <= cut for stop in STOPS)
        assert [record.edit for record in decode_log(LOG[:cut], SEED, 0)] == LOG_EDITS[:whole], cut


def test_any_flipped_bit_ends_the_log_before_its_record() -> None:
    for position, damaged in flips(LOG):
        intact = sum(stop <= position for stop in STOPS)
        assert [record.edit for record in decode_log(damaged, SEED, 0)] == LOG_EDITS[:intact], position


def test_a_record_is_valid_only_where_it_was_written() -> None:
    line = encode_record(GROW, SEED, 100)[:-1]
    assert decode_record(line, SEED, 100) == GROW
    for moved in {0, 99, 101, 100 + 4096, 100 + 2**32, 2**40}:
        assert decode_record(line, SEED, moved) is None
    assert decode_record(line, log_seed(UUID, 2), 100) is None, "another generation"
    assert decode_record(line, log_seed("0" * 31 + "1", 1), 100) is None, "another blob"


def test_a_record_that_is_repeated_or_swapped_or_spliced_in_ends_the_log() -> None:
    lines = [LOG[start:stop] for start, stop in zip([0, *STOPS], STOPS, strict=False)]
    for place, line in enumerate(lines):
        twice = b"".join(lines[: place + 1]) + line + b"".join(lines[place + 1 :])
        assert len(list(decode_log(twice, SEED, 0))) == place + 1
        without = b"".join(lines[:place] + lines[place + 1 :])
        assert len(list(decode_log(without, SEED, 0))) == place
        foreign = encode_record(LOG_EDITS[place], log_seed(UUID, 2), len(b"".join(lines[:place])))
        assert len(list(decode_log(b"".join(lines[:place]) + foreign + b"".join(lines[place + 1 :]), SEED, 0))) == place
    swapped = [lines[1], lines[0], *lines[2:]]
    assert list(decode_log(b"".join(swapped), SEED, 0)) == []


def test_zeros_are_never_valid() -> None:
    for count in [*range(600), 4095, 4096, 4097, 65536]:
        zeros = bytes(count)
        assert list(decode_log(zeros, SEED, 0)) == []
        assert list(decode_log(zeros + b"\n", SEED, 0)) == []
        assert decode_record(zeros, SEED, count) is None
        with pytest.raises(DETECTED):
            format.decode_store(zeros, "schema.json")


def test_records_after_a_hole_are_found_wherever_it_ends() -> None:
    """Whole records that follow damage tell a torn tail from lost rows, so none may hide in the line that the damage tore."""
    for start in range(0, len(LOG), 7):
        for stop, later in zip(STOPS, range(1, len(STOPS) + 1), strict=True):
            if start < stop:
                hole = bytes(stop - start) + LOG[stop:]
                found = [record.edit for record in format.find_later_records(hole, SEED, start)]
                assert found == LOG_EDITS[later:], (start, stop)


def test_records_after_a_line_that_lost_its_end_are_found() -> None:
    for index, stop in enumerate(STOPS[:-1]):
        damaged = bytearray(LOG)
        damaged[stop - 1] ^= 1
        start = STOPS[index - 1] if index else 0
        found = [record.edit for record in format.find_later_records(bytes(damaged[start:]), SEED, start)]
        assert found == LOG_EDITS[index + 1 :]


@pytest.mark.parametrize(
    "text", ["00000000 [", "00000000 [[", '00000000 [["grow"', '00000000 [ [\t"grow', "00000000 [[\\", "00000000 []"]
)
def test_a_record_that_speaks_of_records_is_found_after_a_hole(text: str) -> None:
    """What looks like the beginning of a record hides none that it is in, and none behind it."""
    edits: list[ops.Edit] = [
        (ops.Note(0, 1, {text: [text, text, {"grow": text}, "grow"]}), ops.Key(text, 1, 0, 1), ops.Metadata({text: 1})),
        (ops.Key("grow", 2, 1, 1), ops.Metadata({"": text})),
    ]
    log = log_of([GROW, *edits, GROW], SEED)
    stops = [record.stop for record in decode_log(log, SEED, 0)]
    for start in range(stops[0]):
        found = [
            record.edit for record in format.find_later_records(bytes(stops[0] - start) + log[stops[0] :], SEED, start)
        ]
        assert found == [*edits, GROW]
    damaged = bytearray(log)
    damaged[stops[1] - 1] ^= 1
    found = [record.edit for record in format.find_later_records(bytes(damaged[stops[0] :]), SEED, stops[0])]
    assert found == [edits[1], GROW]


@pytest.mark.parametrize(
    "start", [b"00000000 [", b'00000000 [["grow"', b'00000000 [["grow",[[1,2]]]]\n', b"00000000", b"\n"]
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_looking_for_later_records_checksums_no_byte_twice(
    start: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, nbytes = b"x" + start * 1000 + end, 0

    def counted(crc: int, data: bytes) -> int:
        nonlocal nbytes
        nbytes += len(data) - 8  # without the offset
        return crc32c(data, crc)

    monkeypatch.setattr(format, "crc32c", counted)
    assert not list(format.find_later_records(data, SEED, 0))
    assert nbytes <= len(data)


def sign(text: bytes, offset: int = 0) -> bytes:
    """A line with the right checksum."""
    prefix = bytes.fromhex(UUID) + (1).to_bytes(8, "little") + offset.to_bytes(8, "little")
    return b"%08x " % crc32c(prefix + text) + text


@pytest.mark.parametrize(
    "text",
    [
        b'[["frobnicate",1]]',
        b'[["trim",4],["frobnicate"]]',
        b"[[]]",
        b'[["trim"]]',
        b'[["trim",4,"a field that a newer version added"]]',
        b'[["tail",1,"ab-2",64,1,7,9,{}]]',
        b'[["splice",0,4,6,[["ab-3",0,2,"lz4"]]]]',
        b'[["trim","4"]]',
        b'[["trim",4.5]]',
        b'[["trim",null]]',
        b'{"op":"trim"}',
        b'"trim"',
        b"not json",
        b"",
    ],
)
def test_a_right_checksum_over_an_unknown_operation_is_a_newer_format(text: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="upgrade tensorblob"):
        decode_record(sign(text), SEED, 0, "manifest.000001")


def sign_store(value: dict[str, Any]) -> bytes:
    def encode(crc: str) -> bytes:
        return json.dumps(value | {"crc32c": crc}, separators=(",", ":")).encode()

    return encode(f"{crc32c(encode('')):08x}") + b"\n"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 0},
        {"version": 2, "compression": "lz4"},
        {"features": ["ragged"]},
        {"features": ["ragged"], "fields": "anything"},
    ],
)
def test_another_version_or_an_unknown_feature_is_refused(change: dict[str, Any]) -> None:
    value = json.loads(encode_store(STORE))
    assert format.decode_store(sign_store(value), "schema.json") == STORE
    with pytest.raises(UnsupportedFormat, match="upgrade tensorblob"):
        format.decode_store(sign_store(value | change), "schema.json")


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "00"},
        {"uuid": "0" * 33},
        {"uuid": "x" * 32},
        {"fields": []},
        {"fields": [{"name": "", "dtype": "float33", "shape": [], "block_rows": 4}]},
        {"fields": [{"name": "", "dtype": "qint8", "shape": [], "block_rows": 4}]},
        {"fields": [{"name": "", "dtype": "uint8", "shape": [0], "block_rows": 4}]},
        {"fields": [{"name": "", "dtype": "uint8", "shape": [-1], "block_rows": 4}]},
        {"fields": [{"name": "", "dtype": "uint8", "shape": [], "block_rows": 0}]},
        {"fields": [{"name": "../x", "dtype": "uint8", "shape": [], "block_rows": 4}]},
        {"fields": [{"name": "x", "dtype": "uint8", "shape": [], "block_rows": 4}] * 2},
        {"extra": 1},
    ],
)
def test_a_schema_that_cannot_be_is_refused_even_with_a_right_checksum(change: dict[str, Any]) -> None:
    value = json.loads(encode_store(STORE))
    with pytest.raises(Corrupt):
        format.decode_store(sign_store({k: v for k, v in (value | change).items() if k != "crc32c"}), "schema.json")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"format":"zarr","version":1}', b"\xff\xfe", b"tensor"])
def test_something_else_is_not_a_blob(data: bytes) -> None:
    with pytest.raises(NotABlob):
        format.decode_store(data, "schema.json")


# ---- what is not valid: a blob on disk


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """Four commits of several rows: 0 1 2, 3 4, 5, 6 7 8 9."""
    path = create(tmp_path / "x.blob", 0)
    with tb.TensorBlob.open(path, "a") as writer:
        for batch in ([0, 1, 2], [3, 4], [5], [6, 7, 8, 9]):
            writer.write(rows(*batch))
    return path


def overwritten(path: Path, data: bytes) -> None:
    """Put other bytes in a file, in place: it stays the same inode."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_any_flipped_bit_of_schema_json_is_detected(blob: Path) -> None:
    schema = blob / "schema.json"
    for _, damaged in flips(schema.read_bytes()):
        overwritten(schema, damaged)
        with pytest.raises(DETECTED):
            tb.TensorBlob.open(blob)


def test_any_cut_or_longer_schema_json_is_detected(blob: Path) -> None:
    schema = blob / "schema.json"
    data = schema.read_bytes()
    for other in [*(data[:cut] for cut in range(len(data))), data + b" ", data + b"\n", data * 2, b"\n" + data]:
        overwritten(schema, other)
        for mode in ("r", "a"):
            with pytest.raises(DETECTED):
                tb.TensorBlob.open(blob, mode)


@pytest.mark.slow
def test_any_flipped_bit_of_a_manifest_is_detected_and_located(blob: Path) -> None:
    """Within one boot: whoever was killed leaves a prefix of a line, so a bit is wrong only if the medium is."""
    manifest = manifest_of(blob)
    data = manifest.read_bytes()
    starts = [offset for offset, _ in records(data, read_schema(blob)["uuid"], 1)]
    for position, damaged in flips(data):
        overwritten(manifest, damaged)
        with pytest.raises(Corrupt) as caught:
            tb.TensorBlob.open(blob)
        assert caught.value.path.endswith(manifest.name)
        assert caught.value.offset == max(start for start in starts if start <= position)


@pytest.mark.slow
def test_a_writer_refuses_a_damaged_manifest_and_changes_nothing(blob: Path) -> None:
    manifest = manifest_of(blob)
    data = manifest.read_bytes()
    for position, damaged in flips(data, range(5, 6)):
        overwritten(manifest, damaged)
        before = photograph(blob)
        with pytest.raises(Corrupt):
            tb.TensorBlob.open(blob, "a")
        after = photograph(blob)
        for name in (".", "producers", "writer.lock"):  # a producer came and went, and wrote its name in the lock
            before.pop(name, None), after.pop(name, None)
        assert after == before, position
    overwritten(manifest, data)
    with tb.TensorBlob.open(blob, "r+") as writer:
        assert numbers(writer[:]) == list(range(10))


def test_a_manifest_cut_anywhere_is_exactly_its_whole_records(blob: Path) -> None:
    manifest = manifest_of(blob)
    data = manifest.read_bytes()
    log = records(data, read_schema(blob)["uuid"], 1)
    stops = [*(offset for offset, _ in log[1:]), len(data)]
    seen = set()
    for cut in range(len(data)):
        overwritten(manifest, data[:cut])
        if cut < stops[0]:
            with pytest.raises(Corrupt):
                tb.TensorBlob.open(blob)
            continue
        with tb.TensorBlob.open(blob) as reader:
            found = numbers(reader[:])
        assert found == list(range(len(found)))
        seen.add((sum(stop <= cut for stop in stops), len(found)))
    assert sorted({count for _, count in seen}) == [0, 3, 5, 6, 10]
    assert len({whole for whole, _ in seen}) == len(seen), "what is found is decided by how many records are whole"


def test_a_record_from_another_blob_or_generation_does_not_count(blob: Path, tmp_path: Path) -> None:
    twin = create(tmp_path / "twin.blob", 0)
    for mine, theirs in [(blob, twin), (twin, blob)]:
        data = manifest_of(mine).read_bytes()
        overwritten(manifest_of(mine), manifest_of(theirs).read_bytes())
        with pytest.raises(Corrupt):
            tb.TensorBlob.open(mine)
        overwritten(manifest_of(mine), data)
    os.rename(manifest_of(blob), blob / "manifest.000002")
    with pytest.raises(Corrupt):
        tb.TensorBlob.open(blob)


def test_a_newer_format_is_refused_by_reader_and_writer_and_left_alone(blob: Path) -> None:
    manifest = manifest_of(blob)
    data, uuid = manifest.read_bytes(), read_schema(blob)["uuid"]
    with tb.TensorBlob.open(blob) as follower:
        with manifest.open("ab") as file:
            text = b'[["frobnicate",7]]'
            prefix = bytes.fromhex(uuid) + (1).to_bytes(8, "little") + len(data).to_bytes(8, "little")
            file.write(b"%08x %b\n" % (crc32c(prefix + text), text))
        for mode in ("r", "a", "r+", "w"):
            with pytest.raises(UnsupportedFormat, match="upgrade tensorblob"):
                tb.TensorBlob.open(blob, mode)
        with pytest.raises(UnsupportedFormat, match="upgrade tensorblob"):
            follower.refresh()
        assert numbers(follower[:]) == list(range(10)), "what was known before stays readable"
    assert manifest.read_bytes().startswith(data)


def test_a_follower_reports_damage_that_is_followed_by_more(blob: Path) -> None:
    manifest = manifest_of(blob)
    data = manifest.read_bytes()
    with tb.TensorBlob.open(blob) as follower, tb.TensorBlob.open(blob, "a") as writer:
        follower.refresh()
        start = manifest.stat().st_size
        for row in (10, 11, 12):
            writer.write(rows(row))
        damaged = bytearray(manifest.read_bytes())
        damaged[start + 20] ^= 4
        overwritten(manifest, bytes(damaged))
        with pytest.raises(Corrupt) as caught:
            follower.refresh()
        assert caught.value.offset == start
        assert numbers(follower[:]) == list(range(10))
        overwritten(manifest, data)
        os.truncate(manifest, len(data))


# ---- the specification


def test_a_reader_written_from_the_docstring_alone_reads_every_operation(tmp_path: Path) -> None:
    schema = {"x": ("float32", (512,)), ("deep", "y"): ("int64", (128,))}  # quanta of two rows and of four

    def batch(*values: int) -> dict[str, Any]:
        column = torch.tensor(values)[:, None]
        return {"x": column.float().expand(-1, 512), "deep": {"y": column.expand(-1, 128)}}

    def check() -> None:
        first_row, found = read_blob(tmp_path / "a.blob")
        with tb.TensorBlob.open(tmp_path / "a.blob") as reader:
            assert first_row == reader.first_row
            for key in ("x", ("deep", "y")):
                expected = reader[:].get(key)
                name = key if isinstance(key, str) else ".".join(key)
                assert found[name].tobytes() == expected.numpy().tobytes(), name
                assert len(found[name]) == len(reader)

    with tb.TensorBlob.open(tmp_path / "b.blob", "w", schema=schema, block_rows=8) as other:
        other.write(batch(*range(100, 121)))
    with tb.TensorBlob.open(tmp_path / "a.blob", "w+", schema=schema, block_rows=8, metadata={"k": 1}) as blob:
        steps = [
            lambda: blob.write(batch(*range(5))),
            lambda: blob.write(batch(*range(5, 30)), metadata={"n": 1}),
            lambda: (blob.seek(3), blob.write(batch(-1, -2, -3))),
            lambda: (blob.seek(25), blob.write(batch(*range(-30, -10)))),
            lambda: blob.truncate(33),
            lambda: blob.write(batch(*range(200, 210))),
            lambda: blob.trim(13),
            lambda: blob.extend(tmp_path / "b.blob"),
            lambda: blob.write(batch(7, 8, 9)),
            lambda: blob.extend(tmp_path / "b.blob", maintain_order=False),
            lambda: blob.compact(),
            lambda: blob.write(batch(10)),
            lambda: blob.truncate(0),
            lambda: blob.write(batch(11, 12)),
        ]
        for step in steps:
            step()
            check()
    check()
