"""The command line, as typer's runner runs it; and as a process of its own, where it waits, is interrupted or piped.

What it prints is compared with what the API says. No error that a user can cause ends in a traceback.
"""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
import torch
from api_support import create, numbers, photograph, process, rows
from typer.testing import CliRunner, Result

import tensorblob as tb
from tensorblob import TensorBlob
from tensorblob.cli import application

pytestmark = pytest.mark.timeout(180)

LIMIT_S = 60.0
ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have asked for colours, or for none."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(application(), [str(argument) for argument in arguments], prog_name="tensorblob")


def output(*arguments: object) -> str:
    """What a command prints that succeeds."""
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output("info", path, "--json"))
    return found


@contextmanager
def running(*arguments: object, module: str = "tensorblob", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the command line in a process of its own, which is killed if it has not ended after `LIMIT_S`."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tb.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job would hand down that it is ignored
    try:
        child = subprocess.Popen(command, env=environment, text=True, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    watchdog = threading.Timer(LIMIT_S, child.kill)
    watchdog.start()
    with child:
        try:
            yield child
        finally:
            child.kill()
            watchdog.cancel()


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it wrote to stderr."""
    assert child.stderr is not None
    complaint = child.stderr.read()
    return child.wait(), complaint


def lines_until(child: subprocess.Popen[str], is_enough: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The JSON lines that a process prints, up to the first that is enough."""
    found: list[dict[str, Any]] = []
    assert child.stdout is not None
    for line in child.stdout:
        found.append(json.loads(line))
        if is_enough(found[-1]):
            return found
    raise AssertionError(f"it ended after {found}")


def ring_of_fields(path: Path) -> Path:
    schema = {"obs": ("uint8", (2, 3)), "action": "int64", "next": {"reward": "float32", "done": "bool"}}
    with TensorBlob.open(path, "w", schema=schema, max_rows=100, metadata={"env": "Pong"}) as blob:
        for start in range(0, 150, 50):
            action = torch.arange(start, start + 50)
            blob.write(
                {
                    "obs": action.to(torch.uint8).reshape(-1, 1, 1).expand(-1, 2, 3),
                    "action": action,
                    "next": {"reward": action / 4, "done": action % 2 == 0},
                }
            )
    return path


def _die_writing(connection: Connection, path: Path) -> None:
    blob = TensorBlob.open(path, "a")
    blob.write(rows(1, 2, 3))
    os.kill(os.getpid(), signal.SIGKILL)


# ---- info


def test_info_as_json_says_what_the_api_says(tmp_path: Path) -> None:
    path = ring_of_fields(tmp_path / "ring.blob")
    found = facts(path)
    with TensorBlob.open(path) as blob:
        assert found["path"] == blob.filename
        assert {f["name"]: (f["dtype"], tuple(f["shape"])) for f in found["fields"]} == blob.schema.layout()
        assert {f["name"]: f["block_rows"] for f in found["fields"]} == blob.block_rows
        assert [f["row_nbytes"] for f in found["fields"]] == [6, 8, 4, 1]
        for name in ("rows", "first_row", "durable_rows", "history", "metadata"):
            assert found[name] == getattr(blob, name), name
        assert found["commits"] == blob.snapshot.commits
        assert found["rows_nbytes"] == len(blob) * blob.schema.row_nbytes
    assert (found["rows"], found["first_row"], found["is_finished"]) == (150, 50, False)
    assert found["retention"] == {"max_rows": 100, "max_bytes": None}
    assert (found["writers"], found["consumers"]) == ([], [])


def test_info_counts_the_files_and_their_bytes(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 10)
    found = facts(path)
    blocks = [file for file in path.glob("blocks/*/*") if file.is_file()]
    manifests = list(path.glob("manifest.*"))
    assert [field["blocks"] for field in found["fields"]] == [len(blocks)] == [3]
    assert found["blocks_nbytes"] == sum(file.stat().st_size for file in blocks)
    assert found["manifests_nbytes"] == sum(file.stat().st_size for file in manifests)
    assert found["allocated_nbytes"] == sum(512 * file.stat().st_blocks for file in path.rglob("*") if file.is_file())
    assert [f"manifest.{number:06}" for number in found["generations"]] == [file.name for file in manifests]


def test_info_as_text_is_plain_and_has_units(tmp_path: Path) -> None:
    text = output("info", ring_of_fields(tmp_path / "ring.blob"))
    assert ESCAPE not in text
    for line in (
        "rows       100 (row ids 50 to 150)",
        "           up to row id 150 durable",
        "retention  at most 100 rows",
        'metadata   {"env": "Pong"}',
        "writers    none",
        "consumers  none",
    ):
        assert line in text.splitlines()
    assert re.search(r"^ +next\.reward  float32  \(\) +4 ", text, re.MULTILINE)
    assert re.search(r"^size +1\.9 kB of rows, [0-9.]+ [kM]B on disk$", text, re.MULTILINE)


def test_info_says_who_writes_and_who_died_while_it_did(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob")
    with TensorBlob.open(path, "a", durability="power"):
        (alive,) = facts(path)["writers"]
        assert f"process {os.getpid()} on {socket.gethostname()}\n" in output("info", path)
    assert (alive["is_alive"], alive["pid"], alive["durability"]) == (True, os.getpid(), "power")
    assert facts(path)["writers"] == [], "it left"
    with process(_die_writing, path) as (_, child):
        child.join(LIMIT_S)
    (dead,) = facts(path)["writers"]
    assert (dead["is_alive"], dead["pid"]) == (False, child.pid)
    assert f"process {child.pid} on {socket.gethostname()} (died)\n" in output("info", path)


def test_info_says_where_consumers_are_and_who_waits_for_them(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"

    async def consume() -> None:
        async with (
            tb.open_writer(path, dtype="int64", shape=(), consumers=["trainer"], max_lag_rows=1_000) as writer,
            tb.open_reader(path) as reader,
        ):
            async with reader.follow(cursor="trainer", batch_size=4) as follower:
                await writer.append(torch.arange(10))
                await anext(follower)
                await follower.ack()
                found = facts(path)
                (held,), (waiting,) = found["consumers"], found["writers"]
                assert held == {
                    "name": "trainer", "row": 4, "history": 0, "lag_rows": 6, "is_alive": True, "pid": os.getpid()
                }  # fmt: skip
                assert (waiting["waits_for"], waiting["max_lag_rows"]) == (["trainer"], 1_000)
                text = output("info", path)
                assert f"trainer  at row id 4  6 rows behind (process {os.getpid()})\n" in text
                assert "waits for trainer beyond 1,000 rows\n" in text
            assert "trainer  at row id 4  6 rows behind (not running)\n" in output("info", path)
            await writer.finish()
        assert "durable, and the stream is finished\n" in output("info", path)

    anyio.run(consume)


def test_what_a_terminal_would_obey_is_escaped(tmp_path: Path) -> None:
    path = create(tmp_path / "red\x1b[31m\nblob", 1)
    assert "red\\x1b[31m\\nblob" in output("info", path)
    assert ESCAPE not in output("info", path)
    assert facts(path)["path"] == os.path.realpath(path)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    path = ring_of_fields(tmp_path / "ring.blob")
    anyio.run(_finish, path)
    before = photograph(path)
    for command in ("info", "head", "follow"):
        output(command, path)
    assert photograph(path) == before


# ---- head


def test_head_prints_the_oldest_rows_with_their_row_ids(tmp_path: Path) -> None:
    path = ring_of_fields(tmp_path / "ring.blob")
    assert output("head", path, "-n", 3).splitlines() == [
        "row  obs                           action  next.reward  next.done",
        "50   [[50, 50, 50], [50, 50, 50]]  50      12.5         True",
        "51   [[51, 51, 51], [51, 51, 51]]  51      12.75        False",
        "52   [[52, 52, 52], [52, 52, 52]]  52      13           True",
    ]
    assert output("head", path, "-n", 1, "--fields", "next,action").splitlines() == [
        "row  next.reward  next.done  action",
        "50   12.5         True       50",
    ]
    assert len(output("head", path).splitlines()) == 1 + 10
    assert len(output("head", path, "--rows", 1_000).splitlines()) == 1 + 100, "there are no more"
    assert len(output("head", path, "-n", 0).splitlines()) == 1


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((), "0"),
        ((12,), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]"),
        ((13,), "[0, 1, 2, ..., 12]"),
        ((2, 3), "[[0, 1, 2], [3, 4, 5]]"),
        ((4, 4), "[[0, 1, 2, 3], ...]"),
        ((1, 100, 100), "[[[0, 1, 2, ..., 99], ...]]"),
    ],
)
def test_head_shortens_long_rows(tmp_path: Path, shape: tuple[int, ...], line: str) -> None:
    row = torch.arange(torch.Size(shape).numel()).reshape(1, *shape)
    with TensorBlob.open(tmp_path / "x.blob", "w", dtype="int64", shape=shape) as blob:
        blob.write(row)
    assert output("head", tmp_path / "x.blob").splitlines() == [
        "row  value",
        f"0    {line}",
    ]


@pytest.mark.parametrize(
    ("dtype", "line"),
    [
        ("bool", "True"),
        ("uint64", "1"),
        ("float64", "1.5"),
        ("bfloat16", "1.5"),
        ("float8_e4m3fn", "1.5"),
        ("complex64", "1.5+0j"),
    ],
)
def test_head_shows_every_kind_of_number(tmp_path: Path, dtype: str, line: str) -> None:
    with TensorBlob.open(tmp_path / "x.blob", "w", dtype=dtype, shape=()) as blob:
        blob.write(torch.tensor([1.5]).to(getattr(torch, dtype)))
    assert output("head", tmp_path / "x.blob").splitlines()[1] == f"0    {line}"


# ---- compact and copy


def test_compact_leaves_no_seam_and_the_same_rows(tmp_path: Path) -> None:
    for name in ("x.blob", "y.blob"):
        with TensorBlob.open(tmp_path / name, "w", dtype="int64", shape=()) as blob:
            blob.write(torch.arange(5))
    path = tmp_path / "x.blob"
    with TensorBlob.open(path, "a+") as blob:
        blob.extend(tmp_path / "y.blob")
        assert len(blob.runs()) == 2
    assert output("compact", path).startswith("compacted 10 rows: ")
    with TensorBlob.open(path) as blob:
        assert len(blob.runs()) == 1
        assert blob.read().tolist() == [*range(5), *range(5)]


def test_compact_waits_for_another_writer_as_long_as_it_is_told(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    with TensorBlob.open(path, "a") as blob:
        result = run("compact", path, "--timeout-s", 0.01)
        assert result.exit_code == 1
        assert f"Process {os.getpid()} on " in result.stderr
        leaving = threading.Timer(0.05, blob.close)
        leaving.start()
        assert output("compact", path, "--timeout-s", LIMIT_S).startswith("compacted 5 rows")
        leaving.join()


def test_copy_makes_a_blob_of_its_own(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    assert output("copy", path, tmp_path / "y.blob") == f"copied 5 rows to {tmp_path / 'y.blob'}\n"
    assert TensorBlob.unlink(path)
    with TensorBlob.open(tmp_path / "y.blob") as blob:
        assert numbers(blob.read()) == [*range(5)]


# ---- errors


@pytest.mark.parametrize("command", ["info", "head", "follow", "compact", "copy"])
@pytest.mark.parametrize("what", ["nothing", "a file", "a directory", "a damaged blob", "a blob of the future"])
def test_an_expected_error_is_one_line_and_exit_code_1(tmp_path: Path, command: str, what: str) -> None:
    path = tmp_path / "x.blob"
    if what == "a file":
        path.write_text("not a blob")
    elif what == "a directory":
        path.mkdir()
    elif what == "a damaged blob":
        next(create(path).glob("manifest.*")).unlink()
    elif what == "a blob of the future":
        schema = create(path) / "schema.json"
        schema.write_text(schema.read_text().replace('"version":1', '"version":99'))
    arguments = [command, path, tmp_path / "y.blob"][: 3 if command == "copy" else 2]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.stderr
    assert re.fullmatch(r"tensorblob: [^\n]+\n", result.stderr)
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "y.blob").exists()


def test_a_copy_never_replaces_what_is_there(tmp_path: Path) -> None:
    path, other = create(tmp_path / "x.blob", 5), create(tmp_path / "y.blob", 6)
    result = run("copy", path, other)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "it exists" in result.stderr
    assert run("copy", path, path / "inside").exit_code == 1
    with TensorBlob.open(other) as blob:
        assert len(blob) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["info"],
        ["info", "x.blob", "--nonsense"],
        ["head", "x.blob", "-n", "-1"],
        ["head", "x.blob", "-n", "many"],
        ["follow", "x.blob", "--interval", "0"],
        ["follow", "x.blob", "--interval", "nan"],
        ["compact", "x.blob", "--timeout-s", "-1"],
        ["copy", "x.blob"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: tensorblob" in result.output
    assert "Traceback" not in result.output


def test_a_field_that_is_not_there_is_wrong_usage_and_says_which_there_are(tmp_path: Path) -> None:
    result = run("head", ring_of_fields(tmp_path / "ring.blob"), "--fields", "action,reward")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'reward'" in result.stderr
    assert "'next.reward'" in result.stderr
    assert run("head", create(tmp_path / "x.blob"), "--fields", "value").exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    command = f"import sys; sys.modules[{missing!r}] = None; import runpy; runpy.run_module('tensorblob', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(Path(tb.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"tensorblob: .*pip install tensorblob\[cli\]\n", result.stderr)


def test_the_console_script_is_registered() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"tensorblob": "tensorblob.cli:main"}


# ---- follow


async def _finish(path: Path) -> None:
    async with tb.open_writer(path) as writer:
        await writer.finish()


def test_follow_ends_at_once_where_the_stream_has_ended(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    anyio.run(_finish, path)
    (line,) = output("follow", path).splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  rows 5  durable 5  rows/s -  MB/s -  commits/s -  writer none  stream finished", line
    )
    found = json.loads(output("follow", path, "--json"))
    assert (found["rows"], found["is_finished"], found["rows_per_s"]) == (5, True, None)


@pytest.mark.slow
def test_follow_shows_what_is_committed_until_the_stream_ends(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    with running("follow", path, "--interval", 0.1, "--json") as child:
        with TensorBlob.open(path, "a") as blob:
            (first,) = lines_until(child, lambda line: True)
            assert (first["rows"], first["commits"]) == (5, blob.snapshot.commits)
            for number in range(5, 10):
                blob.write(rows(number))
            last = lines_until(child, lambda line: bool(line["rows"] == 10))[-1]
            assert last["rows_per_s"] > 0
            assert last["bytes_per_s"] == pytest.approx(4096 * last["rows_per_s"])
            assert last["commits_per_s"] == pytest.approx(last["rows_per_s"]), "a commit each"
            assert [writer["pid"] for writer in last["writers"]] == [os.getpid()]
        anyio.run(_finish, path)
        assert lines_until(child, lambda line: bool(line["is_finished"]))[-1]["durable_rows"] == 10
        assert child.stdout is not None
        assert child.stdout.read() == ""
        assert ended(child) == (0, "")


@pytest.mark.slow
def test_ctrl_c_is_the_way_out_of_follow(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    with running("follow", path, "--interval", 1_000) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert "  rows 5  durable 5  rows/s -  " in line
        assert ESCAPE not in line
        child.send_signal(signal.SIGINT)
        assert ended(child) == (0, "")


@pytest.mark.slow
def test_follow_shows_a_table_on_a_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    ours, theirs = pty.openpty()
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with (
        open(ours, "r+b", buffering=0) as terminal,
        running("follow", path, "--interval", 0.1, start_new_session=True, **ends) as child,
    ):
        os.close(theirs)
        shown = _read_until(terminal, b"rows/s")
        with TensorBlob.open(path, "a") as blob:
            blob.write(rows(*range(1_229)))
            shown += _read_until(terminal, b"1,234")
        child.send_signal(signal.SIGINT)
        shown += _read_until(terminal, None)
        assert child.wait() == 0
    assert b"\x1b[1A" in shown, "the table is drawn over itself"
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is shown again"
    assert b"Traceback" not in shown


def _read_until(terminal: IO[bytes], part: bytes | None) -> bytes:
    """What a terminal shows up to `part`, or to the end."""
    shown = b""
    while part is None or part not in shown:
        try:
            data = terminal.read(65536)
        except OSError:  # EIO: nobody has the other end open any more
            data = b""
        if not data:
            break
        shown += data
    assert part is None or part in shown, shown
    return shown


@pytest.mark.slow
def test_follow_ends_quietly_when_nobody_reads_it_any_more(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    with running("follow", path, "--interval", 0.1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        assert ended(child) == (1, "")


@pytest.mark.slow
def test_follow_says_that_the_blob_was_moved_away(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 5)
    with running("follow", path, "--interval", 0.1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        path.rename(tmp_path / "elsewhere.blob")
        exit_code, complaint = ended(child)
    assert exit_code == 1
    assert re.fullmatch(r"tensorblob: .*was renamed or removed.*\n", complaint)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["info", "head", "verify", "follow", "copy", "recover"])
def test_output_that_cannot_be_written_is_one_line_on_stderr(tmp_path: Path, command: str) -> None:
    path = create(tmp_path / "x.blob", 3)
    arguments = [command, path, *([tmp_path / "y.blob"] if command in ("copy", "recover") else [])]
    with open("/dev/full", "w") as full, running(*arguments, stdout=full) as child:
        _, said = child.communicate()
    assert child.returncode == 1
    assert said.startswith("tensorblob: ") and "No space left on device" in said and said.count("\n") == 1
