"""Fails when the engine is slower than it was: ratios to limits, compared with the newest results that are committed.

    python bench/check.py [workload ...] [--results FILE] [--dir DIR] [--repetitions N]

Never absolute times: each ratio is to a limit measured in the same rounds, here and then. A ratio more than 20 % worse
is measured again, twice at most, and is a loss only if it is one every time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import engine
import torch
from harness import Bench, Result, available_nbytes, disk_directory, print_result, warm_memory
from report import result_of

RESULTS = Path(__file__).resolve().parent / "results"
WORKLOADS = ("gather", "scan", "row", "fields", "bulk", "small1", "small32", "power", "extend")
NOT_OURS = ("LMDB", "pwrite")
MOST_LOSS = 1.2
ATTEMPTS = 3

Key = tuple[str, str]


def newest(directory: Path) -> Path:
    """The results of the last complete run; raises SystemExit if there are none."""
    found = sorted(directory.glob("*.json"))
    if not found:
        raise SystemExit(
            f"nothing to compare with: no results in {directory}. `make bench` on a quiet machine makes them."
        )
    return found[-1]


def races(results: Iterable[Result]) -> dict[Key, Result]:
    """Ours, held against a limit in the same rounds: what may be compared from one run to another."""
    return {
        (result.workload, result.contender): result
        for result in results
        if result.null is not None and not result.contender.startswith(NOT_OURS)
    }


def loss(before: Result, now: Result) -> float:
    """How many times as slow as before, each held against its limit."""
    slower = now.ratio.median / before.ratio.median
    return 1 / slower if now.unit_nbytes else slower  # rates are better the higher they are


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
    unsteady = [key for key, result in before.items() if not result.null_holds]
    for key in unsteady:
        del before[key]
    if run.get("threads"):
        torch.set_num_threads(run["threads"])  # as it was then
    print(f"compared with {path.name}; {len(unsteady)} of its races were on unsteady ground and say nothing")
    warm_memory(min(2 << 30, available_nbytes() // 2))
    best: dict[Key, float] = {}
    waiting = list(arguments.workload or WORKLOADS)
    for attempt in range(ATTEMPTS):
        again = []
        for name in waiting:
            bench = Bench(arguments.dir, False, arguments.repetitions, show=lambda result: None)
            engine.WORKLOADS[name](bench)
            measured = races(bench.results)
            for key, slower in losses(before, measured).items():
                best[key] = min(slower, best.get(key, slower))
                print_result(measured[key])
            suspicious = [key for key in measured if best.get(key, 0.0) > MOST_LOSS]
            if suspicious and attempt + 1 < ATTEMPTS:
                print(f"  {name} again: {', '.join(f'{key[1]} {best[key]:.2f} × as slow' for key in suspicious)}")
                again.append(name)
        waiting = again
    if not best:
        raise SystemExit(f"nothing to compare with: {path.name} has none of these workloads")
    lost = {key: slower for key, slower in best.items() if slower > MOST_LOSS}
    print(f"\n{len(best) - len(lost)} of {len(best)} ratios are as they were, or within {100 * (MOST_LOSS - 1):.0f} %")
    for (workload, contender), slower in sorted(lost.items(), key=lambda item: -item[1]):
        was = before[workload, contender].ratio.median
        print(f"  lost: {workload}, {contender}: {slower:.2f} × as slow against its limit; the ratio was {was:.2f}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
