"""Feeds bytes that a fuzzer makes up, guided by which code they reach, to everything that opens a blob.

    python tests/fuzz/fuzz_manifest.py [CORPUS DIRECTORY] [-runs=N] [-max_total_time=SECONDS] [-seed=N]

It needs atheris (`pip install atheris`), which is no dependency, and goes on until it is stopped or finds an input of which
something else comes than an error of ours; that input it keeps as crash-<hash>, and shows it again if it is given that file.

The first byte of an input chooses the file and the act, the rest is what the file holds: as it is, or, for a manifest, as the
JSON of its records, signed here, for no fuzzer guesses checksums.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris

with atheris.instrument_imports(include=["tensorblob"]):
    import tensorblob  # noqa: F401

from hostile import (
    ACTS,
    CHECKPOINT,
    DURABLE,
    FIELD,
    ID,
    ROWS,
    TAIL,
    UUID,
    forge,
    signed_counts,
    signed_log,
    signed_schema,
    touch,
)

PLACES = (
    "manifest.000001",
    "schema.json",
    "cursors/trainer.json",
    "writer.lock",
    "commit.lock",
    "producers/ab12",
    f"blocks/data/{ID}",
    "cursors/limiter.default.lock",
)
SIGNED = len(PLACES)
"""The case of a manifest of signed records, one a line."""
NAMES = tuple(ACTS)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    case, act = data[0] % (SIGNED + 3), NAMES[data[0] // (SIGNED + 3) % len(NAMES)]

    def make(directory: Path) -> Path:
        path = forge(directory / "x.blob")
        if case >= SIGNED:  # three times as often: what lies behind the checksums is the most
            records = [[*CHECKPOINT, TAIL], *data[1:].split(b"\n"), [DURABLE]]
            (path / "manifest.000001").write_bytes(signed_log(records))
        else:
            (path / PLACES[case]).write_bytes(data[1:])
        return path

    with tempfile.TemporaryDirectory(prefix="tensorblob-fuzz-", dir=SCRATCH) as directory:
        touch(make, Path(directory), [act])


def seeds(directory: Path) -> None:
    """Begin with what is valid."""
    lines = [
        b'[["grow",[[10,1]]]]', b'[["splice",0,2,5,[["ab12-1",0,3]]]]', b'[["trim",3]]', b'[["splice",0,5,10,[]],["cut",5,1]]',
        b'[["note",0,3,{"a":1}]]', b'[["patch",0,"ab12-1",512,10,1]]', b'[["key","k",1,0,3]]', b'[["retention",5,null]]',
        b'[["block",0,"cd-1",10,1]]', b'[["tail",0,"cd-1",512,0,10,1]]', b'[["finish",10]]', b'[["metadata",{}]]',
    ]  # fmt: skip
    schema = {"format": "tensorblob", "version": 1, "features": [], "uuid": UUID, "fields": [FIELD]}
    texts = [signed_log([[*CHECKPOINT, TAIL]]), signed_schema(schema), b'{"row":1,"history":0,"crc32c":"00000000"}\n']
    texts += [
        b'{"pid":1,"host":"h"}',
        b'{"generation":1,"poisoned":["ab12-1"]}',
        b'{"pid":1,"host":"h","consumers":["t"]}',
        ROWS,
        signed_counts({"step": 1, "inserted": 3, "sampled": 2, "admitted": {"ab12": 4}}),
    ]
    for case, text in enumerate(texts):
        (directory / f"file-{case}").write_bytes(bytes([case]) + text)
    for number, line in enumerate(lines):
        for act in range(len(NAMES)):
            code = act * (SIGNED + 3) + SIGNED
            if code < 256:
                (directory / f"signed-{number}-{act}").write_bytes(bytes([code]) + line + b"\n" + lines[number - 1])


if __name__ == "__main__":
    SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None
    corpus = Path(tempfile.mkdtemp(prefix="tensorblob-corpus-"))
    try:
        seeds(corpus)
        atheris.Setup([*sys.argv, str(corpus)], test_one_input)
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus)
