"""All benchmarks, or those that are named: the targets (engine.py, live.py), then side by side (compare.py).

    python bench [workload ...] [--quick] [--systems NAME ...] [--out DIR] [--dir DIR] [--threads N]

A word stands for all workloads that have it in their name ("open" for open-rows too), whichever script they are in. Each
script is a process of its own. A complete run writes `<date>.json`, RESULTS.md and plots into `bench/results/`.
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
from pathlib import Path
from typing import Any

import engine
import live
from harness import Result, disk_directory
from peers import SYSTEMS
from peers.jobs import named, workloads
from report import result_of, write_report
from rich.console import Console
from rich.table import Table

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
QUICK_TARGETS = ("row", "small32", "power", "fields", "cursor")
EMPTY: dict[str, Any] = {
    "systems": {}, "missing": {}, "absent": {}, "latencies": {}, "notes": {}, "results": [], "left_out": {},
}  # fmt: skip
console = Console(highlight=False, markup=False, width=max(160, Console().width))


def run(script: str, names: Iterable[str], arguments: list[str]) -> dict[str, Any]:
    """What that script wrote as JSON; what it prints is seen as it comes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "results.json"
        command = [sys.executable, str(BENCH / script), *names, "--json", str(path), *arguments]
        failed = subprocess.run(command).returncode
        if not path.exists():
            raise SystemExit(f"{script} failed, and had measured nothing: {failed}")
        found: dict[str, Any] = json.loads(path.read_text())
        if failed:
            console.print(f"{script} failed; what it had measured until then is kept", style="red")
        return found


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
    is_complete = not (arguments.quick or arguments.workload or set(arguments.systems) != set(SYSTEMS))
    out = arguments.out or (RESULTS if is_complete else None)

    common = ["--dir", str(arguments.dir)]
    for name in ("repetitions", "threads"):
        if (given := getattr(arguments, name)) is not None:
            common += [f"--{name}", str(given)]
    found: dict[str, Any] = {"targets": []}
    for script, known in targets.items():
        more = ["--full"] if not arguments.quick else [] if arguments.repetitions else ["--repetitions", "3"]
        wanted = arguments.workload or (QUICK_TARGETS if arguments.quick else known)
        if names := named(wanted, known):
            part = run(script, names, [*common, *more])
            found["machine"] = found.get("machine") or part["machine"]
            found["targets"] += part["results"]
    if names := named(arguments.workload or compared, compared):
        more = [*(["--quick"] if arguments.quick else []), "--systems", *arguments.systems]
        more += [] if arguments.within_s is None else ["--within-s", str(arguments.within_s)]
        part = run("compare.py", names if arguments.workload else [], [*common, *more])
        found["machine"] = found.get("machine") or part["machine"]
        found |= {name: part[name] for name in EMPTY}
    found = EMPTY | found | {"full": not arguments.quick, "threads": arguments.threads}
    found["machine"]["load_after"] = os.getloadavg()
    if found["targets"]:
        show_targets(result_of(values) for values in found["targets"])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{datetime.date.today().isoformat()}.json"
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        for written in (path, *write_report(path)):
            console.print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
