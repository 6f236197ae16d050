"""A reader of blobs in plain Python, written from the docstring of `tensorblob.format` alone and sharing no code with it.

The tests hold the engine and its specification against each other with it: what one writes, the other reads. It folds
rows one by one, checks every checksum, and is as slow as that sounds.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)

ITEM_NBYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli), bit for bit."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def read_schema(path: Path) -> dict[str, Any]:
    text = (path / "schema.json").read_bytes()
    schema: dict[str, Any] = json.loads(text)
    assert schema["format"] == "tensorblob" and schema["version"] == 1 and schema["features"] == []
    emptied = text.rstrip(b"\n").replace(schema["crc32c"].encode(), b"")
    assert int(schema["crc32c"], 16) == crc32c(emptied)
    return schema


def records(data: bytes, uuid: str, generation: int) -> list[tuple[int, list[Any]]]:
    """The valid records at the start of a manifest, as (offset, edit)."""
    found, offset = [], 0
    for line in data.split(b"\n")[:-1]:
        seed = bytes.fromhex(uuid) + generation.to_bytes(8, "little") + offset.to_bytes(8, "little")
        if line[8:9] != b" " or line[:8] != f"{crc32c(seed + line[9:]):08x}".encode():
            break
        found.append((offset, json.loads(line[9:])))
        offset += len(line) + 1
    return found


class _Column:
    def __init__(self) -> None:
        self.places: dict[int, tuple[str, int]] = {}
        """Row to (block, block row)."""
        self.stop = 0
        self.tail = ("", 0)
        self.checksums: dict[str, tuple[int, int]] = {}

    def place(self, block: str, start: int, stop: int) -> None:
        for block_row in range(start, stop):
            self.places[self.stop] = block, block_row
            self.stop += 1

    def splice(self, start: int, stop: int, spans: list[tuple[str, int, int]]) -> None:
        if not self.places:
            self.stop = start
        rest = [self.places.pop(row) for row in range(stop, self.stop)]
        for row in range(start, stop):
            self.places.pop(row, None)
        self.stop = start
        for span in spans:
            self.place(*span)
        assert self.stop == stop or not rest, "only a splice up to the end changes how many rows there are"
        for block, block_row in rest:
            self.place(block, block_row, block_row + 1)


def read_blob(path: Path) -> tuple[int, dict[str, np.ndarray[Any, Any]]]:
    """The first row's id, and the rows of every column as an array of bytes of shape (rows, row_nbytes)."""
    schema = read_schema(path)
    generation = max(int(found.name.split(".")[1]) for found in path.glob("manifest.*"))
    (manifest,) = [found for found in path.glob("manifest.*") if int(found.name.split(".")[1]) == generation]
    columns = [_Column() for _ in schema["fields"]]
    first_row = 0
    log = records(manifest.read_bytes(), schema["uuid"], generation)
    assert log[0][1][0][0] == "state"
    for _, edit in log:
        for name, *values in edit:
            match name:
                case "state":
                    first_row = values[3]
                case "block":
                    number, block, rows, crc = values
                    columns[number].checksums[block] = rows, crc
                case "patch":
                    number, block, _, rows, crc = values
                    columns[number].checksums[block] = rows, crc
                case "tail":
                    number, block, _, start, rows, crc = values
                    columns[number].place(block, start, rows)
                    columns[number].tail = block, rows
                    columns[number].checksums[block] = rows, crc
                case "grow":
                    for column, grown in zip(columns, values[0], strict=True):
                        if grown is not None:
                            block, rows = column.tail
                            column.place(block, rows, grown[0])
                            column.tail = block, grown[0]
                            column.checksums[block] = tuple(grown)
                case "splice":
                    columns[values[0]].splice(*values[1:])
                case "trim":
                    (first_row,) = values
                case "cut" | "note" | "metadata" | "key" | "finish" | "retention" | "session" | "durable" | "moved":
                    pass
                case _:
                    raise AssertionError(name)
    return first_row, {
        field["name"]: _read_column(path, field, column, first_row)
        for field, column in zip(schema["fields"], columns, strict=True)
    }


def _read_column(path: Path, field: dict[str, Any], column: _Column, first_row: int) -> np.ndarray[Any, Any]:
    row_nbytes = ITEM_NBYTES[field["dtype"]] * math.prod(field["shape"])
    directory = path / "blocks" / (field["name"] or "data")
    blocks: dict[str, np.ndarray[Any, Any]] = {}
    for block in {block for block, _ in column.places.values()}:
        rows, crc = column.checksums[block]
        data = (directory / block).read_bytes()[: rows * row_nbytes]
        assert crc32c(data) == crc
        blocks[block] = np.frombuffer(data, np.uint8).reshape(rows, row_nbytes)
    places = [column.places[row] for row in range(first_row, column.stop)]
    found = [blocks[block][block_row] for block, block_row in places]
    return np.stack(found) if found else np.empty((0, row_nbytes), np.uint8)
