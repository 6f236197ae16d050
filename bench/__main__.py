"""All benchmarks, or those that are named: the targets (engine.py, live.py), then side by side (compare.py).

    python bench [workload ...] [--quick] [--systems NAME ...] [--out DIR] [--dir DIR] [--threads N]

A word stands for all workloads that have it in their name ("open" for open-rows too), whichever script they are in. Each
script is a process of its own. A complete run writes `<date>.json`, RESULTS.md and plots into `bench/results/`. If
something failed, or the run was interrupted, it is `<date>-incomplete.json`, and RESULTS.md says what is not in it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import engine
import live
from harness import FEWEST, Result, disk_directory, write_json
from peers import SYSTEMS
from peers.jobs import named, workloads
from report import result_of, write_report
from rich.console import Console
from rich.table import Table

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
INTERRUPTED = 130
PATIENCE_S = 20
QUICK_TARGETS = ("row", "small32", "power", "fields", "cursor")
EMPTY: dict[str, Any] = {
    "systems": {}, "missing": {}, "absent": {}, "latencies": {}, "notes": {}, "results": [],
}  # fmt: skip
console = Console(highlight=False, markup=False, width=max(160, Console().width))


def run(script: str, arguments: list[str]) -> tuple[dict[str, Any], int]:
    """What that script saved as JSON, however it ended, and 1 if it failed; what it prints is seen as it comes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "results.json"
        with subprocess.Popen([sys.executable, str(BENCH / script), *arguments, "--json", str(path)]) as child:
            try:
                code = 1 if child.wait() else 0
            except KeyboardInterrupt:  # the terminal has told the child too, which removes its stores and ends
                with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    child.wait(PATIENCE_S)
                child.terminate()
                code = INTERRUPTED
        return (json.loads(path.read_text()) if path.exists() else {}), code


def show_targets(results: Iterable[Result]) -> None:
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for heading in ("work", "what", "median (min–max)", "limit", "ratio (min–max)", "target", ""):
        table.add_column(heading, justify="left" if heading in ("work", "what", "limit") else "right")
    for result in results:
        limit = f"{result.limit}: {result.show_cost(result.limit_cost.median)}"
        style = "red" if result.verdict.startswith("MISS") else "green" if result.verdict else "dim"
        cells = (result.workload, result.contender, result.show_costs(), limit, result.show_ratios())
        table.add_row(*cells, str(result.target or ""), result.verdict, style=style)
    console.print(table)


def main() -> int:
    targets = {"engine.py": engine.WORKLOADS, "live.py": live.WORKLOADS}
    compared = workloads(quick=False)
    every = list(dict.fromkeys([*engine.WORKLOADS, *live.WORKLOADS, *compared]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(every)}; none: all of them (quick: some of them)")
    parser.add_argument("--quick", action="store_true", help="less of everything: about two minutes")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--out", type=Path, help="where results go (default: bench/results, but nowhere if not complete)"
    )
    parser.add_argument("--dir", type=Path, default=disk_directory(), help="the disk to measure (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, help="rounds a race")
    parser.add_argument("--threads", type=int, help="of torch, in every process; 1 is steadier on a busy machine")
    parser.add_argument(
        "--within-s", type=float, help="side by side, begin no workload later than this; RESULTS.md says which"
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.workload if not named([name], every)]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    has_few_rounds = (arguments.repetitions or FEWEST) < FEWEST
    is_complete = not (
        arguments.quick or arguments.workload or has_few_rounds or set(arguments.systems) != set(SYSTEMS)
    )
    out = arguments.out or (RESULTS if is_complete else None)

    common = ["--dir", str(arguments.dir)]
    for name in ("repetitions", "threads"):
        if (given := getattr(arguments, name)) is not None:
            common += [f"--{name}", str(given)]
    parts: list[tuple[str, dict[str, str], list[str]]] = []  # a script, its workloads with their titles, its arguments
    for script, known in targets.items():
        more = ["--full"] if not arguments.quick else [] if arguments.repetitions else ["--repetitions", "3"]
        wanted = arguments.workload or (QUICK_TARGETS if arguments.quick else known)
        if names := named(wanted, known):
            parts.append((script, {name: name for name in names}, [*names, *more]))
    quick = [name for name, one in compared.items() if one.is_quick or not arguments.quick]
    if names := named(arguments.workload, compared) if arguments.workload else quick:
        more = [*(["--quick"] if arguments.quick else []), "--systems", *arguments.systems]
        more += [] if arguments.within_s is None else ["--within-s", str(arguments.within_s)]
        titles = {name: compared[name].title for name in names}
        parts.append(("compare.py", titles, [*(names if arguments.workload else ()), *more]))

    found: dict[str, Any] = EMPTY | {"targets": [], "left_out": {}, "full": not arguments.quick}
    found |= {"threads": arguments.threads}
    code = 0
    for script, titles, more in parts:
        part, ended = ({}, code) if code == INTERRUPTED else run(script, [*more, *common])
        code = max(code, ended)
        for name, title in part.get("left_out", titles).items():
            found["left_out"][f"{script} {name}"] = f"`{script}`: {title}"
        for name in ("machine", "repetitions"):
            found[name] = found.get(name) or part.get(name)
        if script in targets:
            found["targets"] += part.get("results", [])
        else:
            found |= {name: part[name] for name in EMPTY if name in part}
    for title in found["left_out"].values():
        console.print(f"not measured, or not all of it: {title}", style="yellow")
    if not (found["targets"] or found["results"]):
        console.print("nothing was measured", style="red")
        return code
    found["machine"]["load_after"] = os.getloadavg()
    if found["targets"]:
        show_targets(result_of(values) for values in found["targets"])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{datetime.date.today().isoformat()}{'-incomplete' if code else ''}.json"
        write_json(path, found)
        for written in (path, *write_report(path)):
            console.print(f"wrote {written}")
    return code


if __name__ == "__main__":
    sys.exit(main())
