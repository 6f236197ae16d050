"""tensorblob beside what a user would pick instead, on the same work in one run.

    python bench/compare.py [workload ...] [--quick] [--systems NAME ...] [--json FILE] [--dir DIR] [--threads N]

Systems and their adapters are in `peers/`, the workloads in `peers/jobs.py`. A word stands for all workloads that have it
in their name ("open" for open-rows, open-commits and open-blocks). Each system has a process of its own, in which the watch
runs; here is only said whose turn it is. How a ratio to the limit of the same round is taken, and what keeps it honest,
is said in `harness.py`.

What is read from the disk ("cold") is read after the store's pages were dropped from memory, before each repetition, as
all of it would have to be were it much larger than memory; that it is gone is checked. It needs no limit on memory and no
privilege, and leaves out what the system spends on finding pages to drop; for that, run it within such a limit.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness import (
    Bench,
    Contender,
    Result,
    available_nbytes,
    disk_directory,
    found_by,
    machine,
    survived,
    warm_memory,
    write_json,
)
from peers import LIMIT, SYSTEMS
from peers.jobs import Job, Workload, named, workloads
from peers.processes import Missing, Refused, System
from rich.console import Console
from rich.table import Table

UNITS = {"mappings": "maps", "files": "files"}
WARM_UPS = 2
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


def race(
    bench: Bench, workload: Workload, size: int, job: Job, systems: dict[str, System]
) -> tuple[list[System], dict[str, str]]:
    """Race the systems on one job; returns those that took part, and why the others did not. Without the limit none does."""
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        racing: list[System] = []
        for key, system in systems.items():
            try:
                system.prepare(job, stack.enter_context(bench.fresh_directory(key[:5])))
                system.repeat()  # decides how many calls a repetition makes; warms caches, code and files
            except Missing as reason:  # its process had ended, and another cannot be started
                absent[system.name] = str(reason)
            except Refused as reason:
                absent[system.name] = str(reason)
                give_up(system)
            else:
                racing.append(system)
        while job.kind != "weigh" and systems[LIMIT] in racing:
            contenders = [Contender(system.name, system.repeat) for system in racing if system.key != LIMIT]
            try:
                bench.race(
                    workload.title,
                    Contender(workload.limit, systems[LIMIT].repeat),
                    *contenders,
                    unit_nbytes=job.rows * 768 * 4 if workload.is_rate else None,
                    repetitions=min(bench.repetitions, 5) if workload.is_curve else None,
                    size=size if workload.is_curve else None,
                    axis=workload.axis,
                )
                break
            except Refused as reason:  # it fell on the way: the others race again without it
                absent[reason.system.name] = str(reason)
                racing.remove(reason.system)
                give_up(reason.system)
        for system in racing:
            try:
                if workload.weighs and system.key != LIMIT and systems[LIMIT] in racing:
                    weigh(bench, workload, size, job, system)
                system.finish()
            except Refused as reason:
                absent[system.name] = f"it was measured, but did not close: {reason}"
    return racing if systems[LIMIT] in racing else [], absent


def give_up(system: System) -> None:
    """Have it close what it has open, if it still can: a server of its own would go on running."""
    with suppress(Refused):
        system.finish()


def weigh(bench: Bench, workload: Workload, size: int, job: Job, system: System) -> None:
    """Record what it takes of memory and disk; where all rows were read, beside the bytes of the rows."""
    figures = system.weigh()
    for name in workload.weighs:
        unit = UNITS.get(name, "MB")
        bound = ("bytes of data", job.rows * 768 * 4 / 1e6) if unit == "MB" and not workload.is_curve else ("", 1.0)
        title, at = f"{workload.title}: {name}", size if workload.is_curve else None
        bench.compare(title, system.name, figures[name], *bound, None, unit, at, workload.axis)


def measure(bench: Bench, workload: Workload, systems: dict[str, System]) -> tuple[dict[str, str], dict[str, Any]]:
    """Race them at each size; who is refused at one is not asked at larger ones. Returns who was absent, and latencies."""
    absent = {system.name: workload.without[key] for key, system in systems.items() if key in workload.without}
    asked = {key: system for key, system in systems.items() if key not in workload.without}
    latencies: dict[str, Any] = {}
    for size, job in workload.jobs.items():
        racing, refused = race(bench, workload, size, job, asked)
        at = f"from {size:,} {workload.axis} on: " if workload.is_curve else ""
        absent |= {name: at + reason for name, reason in refused.items()}
        asked = {key: system for key, system in asked.items() if system.name not in refused}
        for system in racing:
            if (taken := system.latencies_s[WARM_UPS:]) and not workload.is_curve:
                latencies[system.name] = distribution([delay for repetition in taken for delay in repetition])
        if systems[LIMIT].name in refused:
            break
    return absent, latencies


def distribution(latencies_s: Sequence[float]) -> dict[str, Any]:
    """How many, and as pairs of the share that took longer and the seconds: a half, a tenth, a hundredth…, the longest."""
    ordered = sorted(latencies_s)
    count = len(ordered)
    steps = int(20 * math.log10(count)) + 1
    longer = [10 ** (-step / 20) for step in range(steps)]
    curve = [(share, ordered[min(count - 1, int((1 - share) * count))]) for share in longer]
    return {"count": count, "curve": [*curve, (1 / count, ordered[-1])]} | {
        name: ordered[min(count - 1, int(share * count))]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
        if (1 - share) * count >= 1
    }


def show(title: str, results: Sequence[Result]) -> None:
    is_rate, is_curve = results[0].unit_nbytes is not None, results[0].size is not None
    is_race = results[0].null is not None
    title += " (higher is better)" if is_rate else " (lower is better)"
    console.print(title, style="bold")
    table = Table()
    headings = ["system", *([results[0].axis] if is_curve else []), "median (min–max)"]
    headings += [f"× {results[0].limit}"] if results[0].limit else []
    for heading in [*headings, *(["null", "rounds"] if is_race else [])]:
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for result in sorted(results, key=lambda r: (r.size or 0, r.slowness)):
        cells = [result.contender, *([f"{result.size:,}"] if is_curve else []), result.show_costs()]
        cells += [result.show_ratios()] if result.limit else []
        if is_race:
            cells += [f"{result.null:.2f}" + ("" if result.null_holds else "!"), result.show_rounds()]
        table.add_row(*cells, style="green" if result.contender == "tensorblob" else None)
    console.print(table)


def show_latencies(latencies: dict[str, Any]) -> None:
    names = ("p50", "p99", "p99.9")
    console.print("one by one, µs")
    table = Table()
    for heading in ("system", *names, "longest", "of"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for system, found in sorted(latencies.items(), key=lambda pair: pair[1]["p50"]):
        shown = [f"{found[name] * 1e6:,.1f}" if name in found else "" for name in names]
        table.add_row(system, *shown, f"{found['curve'][-1][1] * 1e6:,.0f}", f"{found['count']:,}")
    console.print(table)


def main() -> int:
    every = workloads(quick=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(every)}; none: all of them (quick: some of them)")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--dir", type=Path, default=disk_directory(), help="the disk to measure (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, help="rounds a race (default: 9, of a curve 5; quick 5 and 3)")
    parser.add_argument("--threads", type=int, help="of torch, in every process; 1 is steadier on a busy machine")
    parser.add_argument("--within-s", type=float, default=math.inf, help="begin no workload later than this")
    parser.add_argument("--warm-gib", type=float, default=2.0, help="memory to touch first (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.workload if not named([name], every)]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    if unknown := sorted(set(arguments.systems) - set(SYSTEMS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    chosen = workloads(arguments.quick)
    names = named(arguments.workload, chosen) or [n for n, one in chosen.items() if one.is_quick or not arguments.quick]
    repetitions = arguments.repetitions or (3 if arguments.quick else 9)

    about = machine(arguments.dir)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), style="dim")
    warm_memory(min(int(arguments.warm_gib * (1 << 30)), available_nbytes() // 2))
    started = time.perf_counter()
    patience = {"patience": 1 if arguments.quick else 4, "patience_s": 60.0}
    bench = Bench(arguments.dir, not arguments.quick, repetitions, **patience, show=lambda result: None)
    absent: dict[str, dict[str, str]] = {}
    latencies: dict[str, dict[str, Any]] = {}
    notes = {chosen[name].title: chosen[name].note for name in names if chosen[name].note}
    systems, missing = start(arguments.systems, arguments.threads)
    for key, reason in missing.items():
        console.print(f"without {key}: {reason}", style="yellow")

    def save() -> None:
        """Write what there is: a run of hours may be cut short."""
        if arguments.json is None:
            return
        about["load_after"] = os.getloadavg()
        used = {
            system.name: {"versions": system.versions, "how": system.how, "gives_up": system.gives_up}
            for system in systems.values()
        }
        more = {"systems": used, "missing": missing, "absent": absent, "latencies": latencies, "notes": notes}
        write_json(arguments.json, found_by(bench, about, left_out) | more | {"threads": arguments.threads})

    left_out = {name: chosen[name].title for name in names}
    late = []
    save()
    for name in names:
        workload, before, began = chosen[name], len(bench.results), time.perf_counter()
        if began - started > arguments.within_s:
            late.append(name)
            continue
        with survived(name, left_out, save):
            absent[workload.title], found = measure(bench, workload, systems)
            results = bench.results[before:]
            for title in dict.fromkeys(result.workload for result in results):
                show(title, [result for result in results if result.workload == title])
            if found:
                latencies[workload.title] = found
                show_latencies(found)
            for system, reason in absent[workload.title].items():
                console.print(f"  without {system}: {reason}", style="dim")
            console.print(f"  {name}: {time.perf_counter() - began:.0f} s\n", style="dim")
    for system in systems.values():
        system.close()
    console.print(f"in {time.perf_counter() - started:.0f} s", style="dim")
    for name, why in left_out.items():
        console.print(f"left out, for lack of time: {name}" if name in late else why, style="yellow")
    return 1 if len(left_out) > len(late) else 0


if __name__ == "__main__":
    sys.exit(main())
