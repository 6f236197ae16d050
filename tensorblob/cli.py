"""The command line: look into a blob, watch it grow, check it, compact it, copy it or what is intact of it.

What is there is worked out first, as a JSON-like dict, by a reader that maps nothing and takes no lock that a writer waits
for. `--json` prints that dict, and everything else that is printed is made from it. Output is plain where it is not a
terminal. Exit codes: 0 done, 1 an error that a line on stderr explains or damage that `verify` found, 2 wrong usage, 130
interrupted; but Ctrl-C is the way out of `follow`, so there it is 0.

typer and rich are an extra, and imported when a command line is run. (No `from __future__ import annotations`: typer
evaluates the annotations of the commands, which are local to `application`.)
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
import torch

from tensorblob.blob import TensorBlob
from tensorblob.cursors import consumers
from tensorblob.errors import BlobError
from tensorblob.format import is_block_id, manifest_generation
from tensorblob.manifest import generations
from tensorblob.presence import identity, presence
from tensorblob.recover import Recovered, recover
from tensorblob.verify import OnProgress, Report, verify

if TYPE_CHECKING:
    import typer
    from rich.console import Console

Facts: TypeAlias = dict[str, Any]

POLL_S = 0.25
"""How often `follow` looks for the end of the stream, and lets go of generations that a writer wants to remove."""
MIN_INTERVAL_S = 0.1
MANY = 3
"""More living writers than this are only counted."""


# -- what is there ----------------------------------------------------------------------------------------------------


def state_of(blob: TensorBlob) -> Facts:
    """What changes while a blob is in use; it is open for reading. Rows are row ids."""
    assert blob._reader is not None
    snapshot, dir_fd = blob.snapshot, blob._reader.dir_fd
    writers, present = [], presence(dir_fd)
    for producer in (*present.alive, *present.dead):
        writer: Facts = {"producer": producer, "is_alive": producer in present.alive}
        if (who := identity(dir_fd, producer)) is not None:
            writer |= {"pid": who.pid, "host": who.host, "durability": who.durability}
            if who.consumers:
                writer |= {"waits_for": list(who.consumers), "max_lag_rows": who.max_lag_rows}
        writers.append(writer)
    cursors = [
        {"name": name, **position._asdict(), "lag_rows": max(snapshot.rows - position.row, 0), "is_alive": alive, "pid": pid}
        for name, position, alive, pid in consumers(dir_fd)
    ]  # fmt: skip
    totals = ("rows", "first_row", "durable_rows", "history", "commits", "is_finished")
    return {name: getattr(snapshot, name) for name in totals} | {"writers": writers, "consumers": cursors}


def describe(blob: TensorBlob) -> Facts:
    """What `info` shows of a blob that is open for reading."""
    assert blob._reader is not None
    snapshot = blob.snapshot
    fields = [
        msgspec.to_builtins(field) | {"row_nbytes": field.row_nbytes, "blocks": len(column.live())}
        for field, column in zip(blob.schema, snapshot.columns, strict=True)
    ]
    return {
        "path": blob.filename,
        "fields": fields,
        **state_of(blob),
        "generations": generations(blob._reader.dir_fd),
        "rows_nbytes": len(snapshot) * blob.schema.row_nbytes,
        **disk_usage(blob.filename),
        "retention": {"max_rows": snapshot.retention.max_rows, "max_bytes": snapshot.retention.max_bytes},
        "metadata": blob.metadata,
    }


def disk_usage(path: str) -> dict[str, int]:
    """Bytes in block files, in manifests, and what the filesystem has given to all that lies below `path`."""
    found = {"blocks_nbytes": 0, "manifests_nbytes": 0, "allocated_nbytes": 0}
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # removed since it was listed
                stat = os.lstat(os.path.join(directory, name))
                found["allocated_nbytes"] += 512 * stat.st_blocks
                if is_block_id(name):
                    found["blocks_nbytes"] += stat.st_size
                elif manifest_generation(name) is not None:
                    found["manifests_nbytes"] += stat.st_size
    return found


def watch(blob: TensorBlob, interval_s: float) -> Iterator[Facts]:
    """What `follow` shows of a blob that is open for reading: at once, and then with the rates since the time before,
    until the stream has ended.
    """
    now_s, seconds = time.monotonic(), None
    before = blob.snapshot
    while True:
        now = blob.snapshot
        rows = max(now.rows - before.rows, 0)  # a truncation takes rows away
        done = {"rows": rows, "bytes": rows * blob.schema.row_nbytes, "commits": now.commits - before.commits}
        rates = {f"{name}_per_s": seconds and count / seconds for name, count in done.items()}
        yield {"time_s": time.time(), **state_of(blob), **rates}
        if now.is_finished:
            return
        before, before_s = now, now_s
        while (left_s := before_s + interval_s - time.monotonic()) > 0 and not blob.snapshot.is_finished:
            time.sleep(min(left_s, POLL_S))
            blob.refresh()
        now_s = time.monotonic()
        seconds = now_s - before_s


def first_rows(blob: TensorBlob, count: int, fields: Sequence[str] | None) -> list[tuple[str, ...]]:
    """A table of the oldest rows, its header first. Raises `KeyError` for a field that is not there."""
    source = blob if fields is None else blob.select(*fields)
    table = [("row", *(name or "value" for name in source._names))]
    for index in range(min(count, len(blob))):
        row = source[index]
        values = [row] if isinstance(row, torch.Tensor) else [row[path] for path in source._paths]
        table.append((str(blob.first_row + index), *map(_tensor, values)))
    return table


# -- how it reads -----------------------------------------------------------------------------------------------------


def _tensor(value: torch.Tensor) -> str:
    """A tensor in one line: of many numbers the first three and the last, of many lists of them the first."""
    if value.ndim == 0:
        number = value.item()
        return f"{number:.6g}" if isinstance(number, float | complex) else str(number)
    if value.numel() <= 12:
        return f"[{', '.join(map(_tensor, value))}]"
    if value.ndim == 1:
        return f"[{', '.join(map(_tensor, value[:3]))}, ..., {_tensor(value[-1])}]"
    return f"[{_tensor(value[0])}{', ...' if len(value) > 1 else ''}]"


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value == 0 or value >= 100 else f"{value:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _writer(who: Facts) -> str:
    text = f"process {who['pid']} on {who['host']}" if "pid" in who else f"producer {who['producer']}"
    return text if who["is_alive"] else f"{text} (died)"


def _consumer(who: Facts) -> str:
    state = "not running" if not who["is_alive"] else "running" if who["pid"] is None else f"process {who['pid']}"
    return f"{_count(who['lag_rows'], 'row')} behind ({state})"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def _description(info: Facts) -> Iterator[tuple[str, list[str]]]:
    """What `info` prints: labels, and the lines beside them."""
    yield "path", [info["path"]]
    yield "rows", [f"{info['rows'] - info['first_row']:,} (row ids {info['first_row']:,} to {info['rows']:,})"]
    yield "", [f"up to row id {info['durable_rows']:,} durable{', and the stream is finished' * info['is_finished']}"]
    table = [["name", "dtype", "shape", "bytes/row", "rows/block", "blocks"]]
    for field in info["fields"]:
        sizes = [f"{field[name]:,}" for name in ("row_nbytes", "block_rows", "blocks")]
        table.append([field["name"] or "-", field["dtype"], str(tuple(field["shape"])), *sizes])
    yield "fields", _aligned(table)
    yield "size", [f"{_size(info['rows_nbytes'])} of rows, {_size(info['allocated_nbytes'])} on disk"]
    blocks = sum(field["blocks"] for field in info["fields"])
    yield "", [f"{_count(blocks, 'block')} in use, {_size(info['blocks_nbytes'])} in block files"]
    numbers = ", ".join(map(str, info["generations"]))
    yield "commits", [f"{info['commits']:,} (history {info['history']})"]
    yield "", [f"generation {numbers}, {_size(info['manifests_nbytes'])} in manifests"]
    max_rows, max_bytes = info["retention"].values()
    kept = [_count(max_rows, "row")] if max_rows is not None else []
    kept += [_size(max_bytes)] if max_bytes is not None else []
    yield "retention", [f"at most {' and '.join(kept)}" if kept else "all rows are kept"]
    yield "metadata", [json.dumps(info["metadata"]) if info["metadata"] else "none"]
    lines = []
    for who in info["writers"]:
        waits = f", waits for {', '.join(who['waits_for'])}" if "waits_for" in who else ""
        lines.append(_writer(who) + waits + (f" beyond {_count(who['max_lag_rows'], 'row')}" if waits else ""))
    yield "writers", lines or ["none"]
    cursors = [(who["name"], f"at row id {who['row']:,}", _consumer(who)) for who in info["consumers"]]
    yield "consumers", _aligned(cursors) or ["none"]


def _gauges(now: Facts) -> Iterator[tuple[str, str]]:
    """What `follow` shows: labels and values."""
    yield "rows", f"{now['rows']:,}"
    yield "durable", f"{now['durable_rows']:,}"
    yield "rows/s", _rate(now["rows_per_s"])
    yield "MB/s", _rate(None if now["bytes_per_s"] is None else now["bytes_per_s"] / 1e6)
    yield "commits/s", _rate(now["commits_per_s"])
    alive = [_writer(who) for who in now["writers"] if who["is_alive"]]
    dead = [_writer(who) for who in now["writers"] if not who["is_alive"]]
    yield "writer", ", ".join((alive if len(alive) <= MANY else [f"{len(alive)} processes"]) + dead) or "none"
    for who in now["consumers"]:
        yield f"consumer {who['name']}", _consumer(who)
    if now["is_finished"]:
        yield "stream", "finished"


def _findings(report: Report) -> Iterator[str]:
    """What `verify` prints."""
    yield from map(str, report.faults)
    yield from (f"note: {remark}" for remark in report.remarks)
    checked = f"{_count(report.blocks, 'block')}, {_count(report.records, 'record')}"
    if report.is_quick:
        checked += ", of blocks only their sizes"
    else:
        checked += f", {_size(report.nbytes)} of rows"
    verdict = "intact" if report.ok else f"damaged: {_count(len(report.faults), 'fault')}"
    yield f"{verdict} ({checked})"


def _account(found: Recovered) -> Iterator[str]:
    """What `recover` prints."""
    yield from map(str, found.faults)
    yield from (f"note: {remark}" for remark in found.remarks)
    for part in found.kept:
        moved = "" if part.row == part.start else f" (now from {part.row:,} on)"
        yield f"kept row ids {part.start:,} to {part.stop:,}{moved}"
    for gone in found.missing:
        yield f"lost row ids {gone.start:,} to {gone.stop:,}"
    lost = sum(map(len, found.missing))
    more = [_count(number, noun) for number, noun in ((found.notes, "note"), (found.keys, "key")) if number]
    yield f"recovered {_count(found.rows, 'row')} to {found.dest}, lost {', '.join([_count(lost, 'row'), *more])}"


def _say(console: "Console", line: str, style: str | None = None) -> None:
    """Print a line, flushed; what a name may hold and a terminal would obey is escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    console.out(text, style=style, highlight=False)


def _is_screen(console: "Console") -> bool:
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal


def _show_live(console: "Console", blob: TensorBlob, interval_s: float) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        for now in watch(blob, interval_s):
            table = Table(title=Text(blob.filename), title_justify="left", show_header=False)
            for label, value in _gauges(now):
                table.add_row(Text(label, "bold"), Text(value))
            live.update(table, refresh=True)


# -- commands ---------------------------------------------------------------------------------------------------------


def application() -> "typer.Typer":
    """The commands. Raises `ImportError` where the extra `cli` is not installed."""
    import typer
    from rich.console import Console

    app = typer.Typer(
        help="Look into a tensorblob, watch it grow, check it, compact it, copy it.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    Blob = Annotated[str, typer.Argument(help="The blob's directory.")]
    Dest = Annotated[str, typer.Argument(help="The copy's directory, which must not exist.")]
    AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object (a line, if it goes on).")]
    Count = Annotated[int, typer.Option("--rows", "-n", min=0, help="How many.")]
    Fields = Annotated[str | None, typer.Option(metavar="A,B", help="Only these fields.")]
    Interval = Annotated[float, typer.Option(metavar="SECONDS", help="How often to look.")]
    Quick = Annotated[bool, typer.Option("--quick", help="Of blocks check only the sizes.")]
    Timeout = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait so long for a writer to leave.")]

    @contextmanager
    def explained() -> Iterator[None]:
        """An expected error becomes a line on stderr and exit code 1."""
        try:
            yield
        except BrokenPipeError:
            raise  # who read our output has left: typer and rich end quietly
        except (BlobError, OSError, ValueError) as error:
            typer.echo(f"tensorblob: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None

    @contextmanager
    def opened(path: str, mode: str = "r", **options: Any) -> Iterator[TensorBlob]:
        """Open a blob, with its expected errors explained."""
        with explained(), TensorBlob.open(path, mode, io="pread", **options) as blob:
            yield blob

    @contextmanager
    def progress_bar(what: str) -> Iterator[OnProgress | None]:
        """A bar on stderr, if that is a terminal, while bytes are read."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        if not (sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal):
            yield None
            return
        parts = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*parts, console=console, transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @app.command()
    def info(path: Blob, as_json: AsJson = False) -> None:
        """Describe a blob: its schema, sizes, writers and consumers."""
        console = Console()
        with opened(path) as blob:
            facts = describe(blob)
        if as_json:
            console.out(json.dumps(facts, indent=2), highlight=False)
            return
        for label, lines in _description(facts):
            for number, line in enumerate(lines):
                _say(console, f"{'' if number else label:11}{line}")

    @app.command()
    def head(path: Blob, rows: Count = 10, fields: Fields = None) -> None:
        """Print the oldest rows, each with its row id."""
        console = Console()
        with opened(path) as blob:
            try:
                table = first_rows(blob, rows, None if fields is None else fields.split(","))
            except KeyError as error:
                raise typer.BadParameter(error.args[0], param_hint="--fields") from None
        width = console.width if _is_screen(console) else None
        for number, line in enumerate(_aligned(table)):
            _say(console, line[:width], None if number else "bold")

    @app.command()
    def follow(path: Blob, interval: Interval = 1.0, as_json: AsJson = False) -> None:
        """Watch a blob grow, until its stream ends or Ctrl-C."""
        if not interval >= MIN_INTERVAL_S:
            raise typer.BadParameter(f"at least {MIN_INTERVAL_S} seconds are needed", param_hint="--interval")
        console = Console()
        with suppress(KeyboardInterrupt), opened(path) as blob:
            if _is_screen(console) and not as_json:
                _show_live(console, blob, interval)
                return
            for now in watch(blob, interval):
                at = time.strftime("%H:%M:%S", time.localtime(now["time_s"]))
                line = "  ".join([at, *(f"{label} {value}" for label, value in _gauges(now))])
                _say(console, json.dumps(now) if as_json else line)

    @app.command(name="verify")
    def check(path: Blob, quick: Quick = False, as_json: AsJson = False) -> None:
        """Compare a blob with its checksums; exit code 1 if anything is damaged. Nothing is written."""
        console = Console()
        with explained(), progress_bar("checking") as on_progress:
            report = verify(path, quick=quick, on_progress=on_progress)
        if as_json:
            facts = report._asdict() | {"faults": [fault._asdict() for fault in report.faults], "ok": report.ok}
            console.out(json.dumps(facts, indent=2), highlight=False)
        for line in () if as_json else _findings(report):
            _say(console, line)
        if not report.ok:
            raise typer.Exit(1)

    @app.command(name="recover")
    def salvage(path: Blob, dest: Dest) -> None:
        """Write the intact rows of a damaged blob to a new place, and say what is missing; exit code 3 if anything is.

        The blob stays as it is.
        """
        with explained(), progress_bar("recovering") as on_progress:
            found = recover(path, dest, on_progress=on_progress)
        console = Console()
        for line in _account(found):
            _say(console, line)
        if not found.is_complete:
            raise typer.Exit(3)

    @app.command()
    def compact(path: Blob, timeout_s: Timeout = 0.0) -> None:
        """Rewrite the rows into whole blocks, without seams."""
        with opened(path, "r+", timeout_s=timeout_s) as blob:
            before = disk_usage(blob.filename)["allocated_nbytes"]
            blob.compact()
        after = disk_usage(blob.filename)["allocated_nbytes"]
        _say(Console(), f"compacted {_count(len(blob), 'row')}: {_size(after)} on disk, {_size(before)} before")

    @app.command()
    def copy(path: Blob, dest: Dest) -> None:
        """Make an independent blob of the committed rows."""
        with opened(path) as blob:
            blob.copy(dest)
        _say(Console(), f"copied {_count(len(blob), 'row')} to {dest}")

    return app


def main() -> None:
    """Run the command line `tensorblob`."""
    try:
        app = application()
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit("tensorblob: the command line needs typer and rich: pip install tensorblob[cli]")
    try:
        app(prog_name="tensorblob")
    except OSError as error:  # of the printing: a command explains its own
        sys.exit(f"tensorblob: the output could not be written: {error}")
