"""What a blob from a stranger can and cannot do, and who may read what we write.

No pickle lies on disk, and nothing that is read there is ever evaluated, imported or followed out of the directory: Python's
audit events tell each file that is opened, and whatever is compiled or started. (`test_hostile` has the blobs that try; here
it is watched that none gets anywhere.) Files get the modes that the umask leaves.
"""

import ast
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from api_support import create, elsewhere, photograph, rows
from hostile import ACTS, forge, tolerated
from test_golden import BLOBS, copied
from test_hostile import FORGED, FORGED_FIELDS, PLACES, spoiled
from test_layers import MODULES, calls_of, tree_of

import tensorblob as tb
from tensorblob.cursors import Cursor
from tensorblob.limiter import MinSize

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.slow,
]

# ---- nothing that is read is run

RUNNING = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "runpy"}
LOADERS = {"torch.load", "torch.save", "torch.jit", "torch.hub", "np.load", "numpy.load", "numpy.fromfile", "os.system"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_can_run_what_it_reads(module: str) -> None:
    """Views and handles travel between processes by pickle, as references; that is made and read by the caller alone."""
    calls = calls_of(module)
    assert not calls & RUNNING
    assert not {call for call in calls if call.split(".")[0] in UNPICKLING or call in LOADERS}
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree_of(module))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & UNPICKLING


def rich(directory: Path) -> Path:
    """A blob with one of everything that is ever written, live: its writer, consumer and limiter are still at work."""
    path = create(directory / "x.blob", 10)

    async def stream() -> None:
        async with tb.open_writer(path, durability="power", limiter=MinSize(1)) as writer:
            await writer.append(rows(10, 11), key="k", sequence=1)
        async with tb.open_producer(path) as producer:
            await producer.append(rows(*range(300)))
            await producer.commit()
        async with tb.open_reader(path, limiter=MinSize(1)) as reader, reader.follow(cursor="trainer") as batches:
            await anext(batches)
            await batches.ack()

    anyio.run(stream)
    with tb.TensorBlob.open(path, "r+") as blob:
        blob.write(rows(5))
        blob.extend(create(directory / "more.blob", 3))
        blob.copy(directory / "copy.blob")
        with tb.TensorBlob.open(path):
            blob.compact()
        blob.write(rows(7), metadata={"a": 1})
    tb.recover(path, directory / "recovered.blob")
    return path


def test_everything_on_disk_but_rows_is_json(tmp_path: Path) -> None:
    path = rich(tmp_path)
    with tb.TensorBlob.open(path, "a"):
        files = [file for file in path.rglob("*") if file.is_file() and "blocks" not in file.parts]
        kinds = {file.parent.name if file.parent != path else file.name.split(".")[0] for file in files}
        assert kinds == {"schema", "manifest", "writer", "commit", "producers", "cursors"}
        for file in files:
            for line in file.read_bytes().splitlines():
                has_checksum = file.name.startswith(("manifest.", "limiter."))
                text = line.lstrip(b"\0")[9:] if has_checksum else line
                assert not text.strip(b" \0") or json.loads(text) is not None, file


# ---- nothing outside is touched


class Watch:
    """Notes what this process opens beyond `place`, and what it compiles or starts, while it `is_on`."""

    ALLOWED = (
        "/proc/self/mounts",
        "/proc/sys/kernel/random/boot_id",
        "/proc/sys/vm/max_map_count",
        "/sys/",
        "/dev/null",
    )
    STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "exec", "compile", "socket.connect", "import")

    def __init__(self) -> None:
        self.is_on, self.place, self.what = False, "", ""
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            opened = os.fsdecode(arguments[0])
            if not self._may_open(opened):
                self.seen.append(f"{self.what}: open {opened}")
        elif event in self.STARTS or event.split(".")[0] in ("subprocess", "pickle", "marshal"):
            self.seen.append(f"{self.what}: {event} {str(arguments)[:200]}")

    def _may_open(self, opened: str) -> bool:
        if not os.path.isabs(opened):
            return ".." not in opened.split("/")  # below a directory that is open
        normal = os.path.normpath(opened)
        inside = normal == self.place or normal.startswith(f"{self.place}/")
        return (inside and "outside" not in normal) or opened.startswith(self.ALLOWED)


def _watched(directory: str, cases: list[tuple[str, Any]]) -> list[str]:
    """What a process does that it should not, while it does everything there is to do to these blobs."""
    watch = Watch()
    warm_up = [("golden", golden) for golden in BLOBS]  # by then everything is imported, and every decoder made
    for number, (kind, case) in enumerate([*warm_up, *cases]):
        for name, act in ACTS.items():
            place = Path(directory) / "place"
            place.mkdir()
            path = _made(kind, case, place)
            watch.place, watch.what = os.path.realpath(place), f"{case} {name}"
            watch.is_on = number >= len(warm_up)
            with tolerated(Exception):  # which ones may come is test_hostile's matter
                act(path)
            watch.is_on = False
            shutil.rmtree(place)
    return watch.seen


def _made(kind: str, case: Any, place: Path) -> Path:
    if kind == "golden":
        return copied(Path(case), place / "x.blob")
    if kind == "place":
        return spoiled(place, case, "a symlink")
    if kind == "record":
        return forge(place / "x.blob", FORGED[case])
    return forge(place / "x.blob", fields=FORGED_FIELDS[case])


NAMED = [("record", case) for case in FORGED if " called " in case] + [("field", case) for case in FORGED_FIELDS]


@pytest.mark.parametrize(
    "cases",
    [[("golden", golden) for golden in BLOBS], [("place", place) for place in PLACES], NAMED[::2], NAMED[1::2]],
    ids=["golden", "symlinks", "names", "more names"],
)
def test_no_blob_has_anything_run_or_opened_beyond_itself(cases: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(prefix="tensorblob-") as directory:
        assert elsewhere(_watched, directory, cases) == []


def _opens_outside(directory: str) -> list[str]:
    ACTS["verify"] = lambda path: [os.close(os.open("/etc/hostname", os.O_RDONLY)), eval("1")]
    return _watched(directory, [("golden", BLOBS[0])])


def test_the_watch_sees_what_it_is_there_for(tmp_path: Path) -> None:
    seen = elsewhere(_opens_outside, os.fspath(tmp_path))
    assert any("open /etc/hostname" in what for what in seen) and any("exec" in what for what in seen)


def test_a_producer_stages_nothing_through_a_symlink(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 3)
    (tmp_path / "outside").mkdir()
    for place in ("blocks/data", "producers", "commit.lock", "writer.lock"):
        whole = tmp_path / "whole"
        shutil.move(path, whole)
        shutil.copytree(whole, path)
        target = tmp_path / "outside" / place.replace("/", "-")
        shutil.move(path / place, target)
        (path / place).symlink_to(target)
        before = photograph(tmp_path / "outside")

        async def stage() -> None:
            async with tb.open_producer(path) as producer:
                await producer.append(rows(*range(300)))
                await producer.commit()

        with pytest.raises(tb.Corrupt):
            anyio.run(stage)
        assert photograph(tmp_path / "outside") == before, place
        shutil.rmtree(path)
        shutil.move(whole, path)


# ---- who may read it


def _modes_under(umask: int, directory: str) -> dict[str, int]:
    os.umask(umask)
    path = rich(Path(directory))
    with tb.TensorBlob.open(path, "a"):
        found = {
            os.path.relpath(file, directory): stat.S_IMODE(file.lstat().st_mode) for file in Path(directory).rglob("*")
        }
    (path / "writer.lock").unlink()
    tb.TensorBlob.open(path, "a").close()
    return found | {"a writer.lock made again": stat.S_IMODE((path / "writer.lock").stat().st_mode)}


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o000, 0o002])
def test_modes_are_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    found = elsewhere(_modes_under, umask, os.fspath(tmp_path))
    assert len(found) > 40 and {name.split("/")[0] for name in found} >= {"x.blob", "copy.blob", "recovered.blob"}
    for name, mode in found.items():
        is_directory = (tmp_path / name).is_dir()
        assert mode == (0o777 if is_directory else 0o666) & ~umask, (name, oct(mode))


def test_a_cursor_and_a_limit_can_be_taken_by_the_group_where_the_umask_allows(tmp_path: Path) -> None:
    """Else consumers of other users could never share a blob; the locks are what they have to open."""
    path = create(tmp_path / "x.blob", 1)
    dir_fd = os.open(path, os.O_RDONLY)
    before = os.umask(0o002)
    try:
        Cursor(dir_fd, "c").close()
        MinSize(1).open(dir_fd).close()
    finally:
        os.umask(before)
        os.close(dir_fd)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (path / "cursors").iterdir()} == {0o664}


def test_a_dtype_is_looked_up_and_never_fetched() -> None:
    """A name from a file must not reach an attribute of a module, which may import more."""
    for name in ("nn", "hub", "load", "ops", "classes", "float32.__class__", "__doc__", "torch"):
        with pytest.raises(ValueError, match="Unknown dtype"):
            tb.schema.dtype_name(name)  # type: ignore[attr-defined]
    assert {tb.schema.dtype_name(torch.half), tb.schema.dtype_name("half"), tb.schema.dtype_name("torch.half")} == {
        "float16"
    }  # type: ignore[attr-defined]
