"""tensorblob beside what a user would pick instead, on the same work in one run.

    python bench/compare.py [workload ...] [--quick] [--systems NAME ...] [--out DIR] [--dir DIR] [--threads N]

Systems and their adapters are in `peers/`, the workloads in `peers/jobs.py`. Each system has a process of its own, in
which the watch runs; here is only said whose turn it is. How a ratio to the limit of the same round is taken, and what
keeps it honest, is said in `harness.py`. A complete run writes `<date>.json`, RESULTS.md and plots into `bench/results/`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness import Bench, Contender, Result, available_nbytes, disk_directory, machine, warm_memory, write_json
from peers import LIMIT, SYSTEMS
from peers.jobs import Job, Workload, workloads
from peers.processes import Missing, Refused, System
from report import write_report
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
console = Console(highlight=False, width=max(110, Console().width))


def start(keys: Sequence[str], threads: int | None) -> tuple[dict[str, System], dict[str, str]]:
    """Those systems that are installed, each in its process, and why the others are missing."""
    running, missing = {}, {}
    for key in (LIMIT, *keys):
        try:
            running[key] = System(key, threads)
        except Missing as reason:
            missing[key] = str(reason)
    for key in list(running):
        try:
            running[key].introduce()
        except (Missing, Refused) as reason:
            missing[key] = str(reason)
            del running[key]
    if LIMIT not in running:
        raise SystemExit(f"without the limits there is no ratio: {missing[LIMIT]}")
    return running, missing


def race(bench: Bench, workload: Workload, size: int, job: Job, systems: dict[str, System]) -> dict[str, str]:
    """Race the systems on one job; returns those that took no part, with their reasons."""
    absent = {system.name: workload.without[key] for key, system in systems.items() if key in workload.without}
    with ExitStack() as stack:
        racing: list[System] = []
        for key, system in systems.items():
            if key in workload.without:
                continue
            try:
                system.prepare(job, stack.enter_context(bench.fresh_directory(key[:5])))
                system.repeat()  # decides how many calls a repetition makes; warms caches, code and files
            except Refused as reason:
                absent[system.name] = str(reason)
            else:
                racing.append(system)
        assert systems[LIMIT] in racing, f"the limit failed: {absent}"
        while True:
            contenders = [Contender(system.name, system.repeat) for system in racing if system.key != LIMIT]
            try:
                bench.race(
                    workload.title,
                    Contender(workload.limit, systems[LIMIT].repeat),
                    *contenders,
                    unit_nbytes=job.rows * 768 * 4 if workload.is_rate else None,
                    size=size if len(workload.jobs) > 1 else None,
                )
                break
            except Refused as reason:  # it fell on the way: the others race again without it
                absent[reason.system.name] = str(reason)
                racing.remove(reason.system)
                if reason.system.key == LIMIT:
                    raise
        for system in racing:
            try:
                system.finish()
            except Refused as reason:
                absent[system.name] = f"it was measured, but did not close: {reason}"
    return absent


def show(workload: Workload, results: Sequence[Result], absent: dict[str, str]) -> None:
    title = workload.title + (" (higher is better)" if workload.is_rate else " (lower is better)")
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    sizes = len(workload.jobs) > 1
    for heading in (
        "system",
        *(["rows"] if sizes else []),
        "median (min–max)",
        f"× {workload.limit}",
        "null",
        "rounds",
    ):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for result in sorted(results, key=lambda r: (r.size or 0, -r.ratio.median if workload.is_rate else r.ratio.median)):
        null = f"{result.null:.2f}" + ("" if result.null_holds else "!")
        rounds = f"{result.rounds}" + (f"-{result.thrown_away}" if result.thrown_away else "")
        cells = (result.contender, *([f"{result.size:,}"] if sizes else []), result.show_costs(), result.show_ratios())
        table.add_row(*cells, null, rounds, style="green" if result.contender == "tensorblob" else None)
    console.print(table)
    for name, reason in absent.items():
        console.print(f"  without {name}: {reason}", style="dim")
    console.print()


def main() -> int:
    every = workloads(quick=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(every)}; none: all of them")
    parser.add_argument("--quick", action="store_true", help="less of everything: about two minutes")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--out", type=Path, help="where results go (default: bench/results, but nowhere if quick or in part)"
    )
    parser.add_argument("--dir", type=Path, default=disk_directory(), help="the disk to measure (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, help="rounds a race (default: 9, quick 5)")
    parser.add_argument("--threads", type=int, help="of torch, in every process; 1 is steadier on a busy machine")
    parser.add_argument("--warm-gib", type=float, default=2.0, help="memory to touch first (default: %(default)s)")
    arguments = parser.parse_args()
    for given, known in ((arguments.workload, every), (arguments.systems, SYSTEMS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    is_complete = not (arguments.quick or arguments.workload or set(arguments.systems) != set(SYSTEMS))
    out = arguments.out or (RESULTS if is_complete else None)
    repetitions = arguments.repetitions or (5 if arguments.quick else 9)

    about = machine(arguments.dir)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), style="dim")
    warm_memory(min(int(arguments.warm_gib * (1 << 30)), available_nbytes() // 2))
    started = time.perf_counter()
    patience = 2 if arguments.quick else 3
    bench = Bench(arguments.dir, not arguments.quick, repetitions, patience=patience, show=lambda result: None)
    chosen = workloads(arguments.quick)
    absent: dict[str, dict[str, str]] = {}
    systems, missing = start(arguments.systems, arguments.threads)
    for key, reason in missing.items():
        console.print(f"without {key}: {reason}", style="yellow")
    for name in arguments.workload or chosen:
        workload, before = chosen[name], len(bench.results)
        absent[workload.title] = {}
        for size, job in workload.jobs.items():
            absent[workload.title] |= race(bench, workload, size, job, systems)
        show(workload, bench.results[before:], absent[workload.title])
    for system in systems.values():
        system.close()
    console.print(f"in {time.perf_counter() - started:.0f} s", style="dim")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{datetime.date.today().isoformat()}.json"
        about["load_after"] = os.getloadavg()
        used = {
            system.name: {"versions": system.versions, "how": system.how, "gives_up": system.gives_up}
            for system in systems.values()
        }
        write_json(path, bench, about, systems=used, missing=missing, absent=absent, threads=arguments.threads)
        for written in (path, *write_report(path)):
            console.print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
