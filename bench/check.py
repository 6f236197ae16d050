"""Fails when the engine is slower than it was: ratios to limits, compared with the newest results that are committed.

    python bench/check.py [workload ...] [--results FILE] [--dir DIR] [--repetitions N]

Never absolute times: each ratio is to a limit measured in the same rounds, here and then. A ratio more than 20 % worse
is measured again, twice at most, and is a loss only if it is one every time that the limit stood still. What was, or is, on
unsteady ground says nothing, and is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import engine
import torch
from harness import Bench, Result, available_nbytes, disk_directory, print_result, warm_memory
from report import result_of

RESULTS = Path(__file__).resolve().parent / "results"
WORKLOADS = ("gather", "scan", "row", "fields", "bulk", "small1", "small32", "power", "extend")
NOT_OURS = ("LMDB", "pwrite")
OF_MEMORY = ("gather", "scan")
"""Workloads that end at the speed of memory: to have been ahead of it was the machine's luck."""
MOST_LOSS = 1.2
ATTEMPTS = 3

Key = tuple[str, str]


def newest(directory: Path) -> Path:
    """The results of the last complete run that is committed; raises SystemExit if there are none.

    Outside a git checkout all count.
    """
    found = {path.name: path for path in directory.glob("*.json") if not path.stem.endswith("incomplete")}
    with suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(["git", "ls-files"], cwd=directory, capture_output=True, text=True, check=True).stdout
        found = {name: found[name] for name in listed.splitlines() if name in found}
    if not found:
        raise SystemExit(
            f"nothing to compare with: no results in {directory}. `make bench` on a quiet machine makes them."
        )
    return found[max(found)]


def races(results: Iterable[Result]) -> dict[Key, Result]:
    """Ours, held against a limit in the same rounds: what may be compared from one run to another."""
    return {
        (result.workload, result.contender): result
        for result in results
        if result.null is not None and not result.contender.startswith(NOT_OURS)
    }


def loss(before: Result, now: Result) -> float:
    """How many times as slow as before, each held against its limit."""
    was, ratio = before.ratio.median, now.ratio.median
    if before.unit_nbytes:  # rates are better the higher they are
        was, ratio = 1 / was, 1 / ratio
    return ratio / (max(was, 1.0) if before.workload.startswith(OF_MEMORY) else was)


def losses(before: dict[Key, Result], now: dict[Key, Result]) -> dict[Key, float]:
    return {key: loss(before[key], now[key]) for key in now if key in before}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(WORKLOADS)}; none: all of them")
    parser.add_argument("--results", type=Path, help="compare with these (default: the newest in bench/results)")
    parser.add_argument("--dir", type=Path, default=disk_directory(), help="the disk to measure (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=9, help="rounds a race (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.workload) - set(WORKLOADS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    path = arguments.results or newest(RESULTS)
    run = json.loads(path.read_text())
    before = races(result_of(values) for values in run["targets"])
    unsteady = {key for key, result in before.items() if not result.null_holds}
    for key in unsteady:
        del before[key]
    if run.get("threads"):
        torch.set_num_threads(run["threads"])  # as it was then
    print(f"compared with {path.name}")
    warm_memory(min(2 << 30, available_nbytes() // 2))
    best: dict[Key, float] = {}
    seen: dict[Key, str] = {}
    waiting = list(arguments.workload or WORKLOADS)
    for attempt in range(ATTEMPTS):
        again = []
        for name in waiting:
            bench = Bench(arguments.dir, False, arguments.repetitions, show=lambda result: None)
            engine.WORKLOADS[name](bench)
            measured = races(bench.results)
            suspicious = []
            for key, slower in losses(before, measured).items():
                print_result(measured[key])
                if measured[key].null_holds or slower <= MOST_LOSS:
                    best[key] = min(slower, best.get(key, slower))
                if best.get(key, slower) > MOST_LOSS:
                    suspicious.append(f"{key[1]} {slower:.2f} × as slow")
            seen |= {key: "not in those results" for key in measured if key not in before}
            seen |= {key: "on unsteady ground then" for key in measured if key in unsteady}
            seen |= {key: "on unsteady ground now" for key in measured if key in before and key not in best}
            if suspicious and attempt + 1 < ATTEMPTS:
                print(f"  {name} again: {', '.join(suspicious)}")
                again.append(name)
        waiting = again
    if not best:
        raise SystemExit(f"nothing to compare with: {path.name} has none of these workloads")
    for (workload, contender), reason in seen.items():
        if (workload, contender) not in best:
            print(f"  not judged: {workload}, {contender}: {reason}")
    lost = {key: slower for key, slower in best.items() if slower > MOST_LOSS}
    print(f"\n{len(best) - len(lost)} of {len(best)} ratios are as they were, or within {100 * (MOST_LOSS - 1):.0f} %")
    for (workload, contender), slower in sorted(lost.items(), key=lambda item: -item[1]):
        was = before[workload, contender].ratio.median
        print(f"  lost: {workload}, {contender}: {slower:.2f} × as slow against its limit; the ratio was {was:.2f}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
