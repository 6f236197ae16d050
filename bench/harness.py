"""Time contenders next to a limit and print ratios: what every script in this folder is written with.

A time alone says more about the machine than about the code, so each contender races a *limit* (the hardware, or a
peer) on the same work in one process, and the ratio between the two is the result. What keeps a ratio honest:

- all memory is touched once and every library imported before the first clock starts;
- a *round* is one repetition of every contender and two of the limit, in an order shuffled anew each time;
- the second repetition of the limit is a null control: limit against limit must come out at 1.00 ± 0.03, else the
  row is marked;
- a round whose limit moved away from the median limit is thrown away, and another is run in its place; a race that keeps
  fewer than five is marked too.

A repetition returns its cost: seconds per unit of work. A ratio is taken within a round, and the median of those ratios
is reported: cost / limit's cost (lower is better, targets read "≤"), or in a race of rates (GB/s) rate / limit's rate
(higher is better, targets read "≥").
"""

from __future__ import annotations

import cProfile
import gc
import json
import math
import mmap
import multiprocessing
import os
import platform
import pstats
import random
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Repetition = Callable[[], float]
"""Does the work once and returns its cost in seconds per unit of work."""

FEWEST = 5  # rounds that are kept
LIMIT_MOVED = 0.15  # a round is thrown away when its limit is this far from the median limit
NULL_TOLERANCE = 0.03
MADV_POPULATE_WRITE = 23


@dataclass(frozen=True)
class Target:
    """What a ratio must reach: `at_most(1.0)` for costs, `at_least(0.95)` for rates."""

    sign: str
    ratio: float

    def holds(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.sign == "≤" else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{self.sign} {self.ratio:g}"


def at_most(ratio: float) -> Target:
    return Target("≤", ratio)


def at_least(ratio: float) -> Target:
    return Target("≥", ratio)


@dataclass(frozen=True)
class Contender:
    """One system doing the work of a race; without a target its row is for information."""

    name: str
    repetition: Repetition
    target: Target | None = None


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Result:
    """One line of the table. Costs are in `unit` (seconds per unit of work unless it says otherwise)."""

    workload: str
    contender: str
    cost: Spread
    limit: str
    limit_cost: Spread
    ratio: Spread
    target: Target | None
    null: float | None = None
    rounds: int = 1
    thrown_away: int = 0
    unit: str = "s"
    unit_nbytes: int | None = None  # given: a race of rates, costs print as GB/s
    size: int | None = None  # given: a point of a curve of cost against size
    axis: str = "rows"  # what the sizes count
    is_steady: bool = True  # the limit held still in as many rounds as it takes

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        verdict = "ok" if self.target.holds(self.ratio.median) else "MISS"
        return verdict if self.null_holds else verdict + "?"

    @property
    def null_holds(self) -> bool:
        return self.is_steady and (self.null is None or abs(self.null - 1) <= NULL_TOLERANCE)

    @property
    def slowness(self) -> float:
        """The ratio to the limit so that less is better, of rates too: who is ahead is decided by it."""
        return 1 / self.ratio.median if self.unit_nbytes else self.ratio.median

    def show_cost(self, value: float) -> str:
        """A cost of this result with its unit; all costs of one result come in the same."""
        if self.unit_nbytes is not None:
            return f"{self.unit_nbytes / value / 1e9:.3g} GB/s"
        if self.unit != "s":
            return f"{value:.4g} {self.unit}"
        scale, unit = next((s, u) for s, u in SCALES if self.cost.median * s >= 1 or u == "ns")
        digits = ".3g" if value * scale < 999.5 else ".0f"
        return f"{value * scale:{digits}} {unit}"

    def show_costs(self) -> str:
        """Median (best to worst of what was measured)."""
        low, high = (self.cost.high, self.cost.low) if self.unit_nbytes else (self.cost.low, self.cost.high)
        median = self.show_cost(self.cost.median)
        return median if low == high else f"{median} ({self.show_cost(low).split()[0]}–{self.show_cost(high)})"

    def show_ratios(self) -> str:
        low, median, high = (f"{ratio:.2f}" for ratio in (self.ratio.low, self.ratio.median, self.ratio.high))
        return median if self.ratio.low == self.ratio.high else f"{median} ({low}–{high})"

    def show_rounds(self) -> str:
        """How many were kept, and how many thrown away: 5-2. Nothing, if it was no race."""
        if self.null is None:
            return ""
        return f"{self.rounds}" + (f"-{self.thrown_away}" if self.thrown_away else "")


SCALES = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns"))
COLUMNS: tuple[tuple[str, int], ...] = (
    ("workload", 31),
    ("contender", 30),
    ("cost (min–max)", 25),
    ("limit", 30),
    ("its cost", 9),
    ("ratio (min–max)", 18),
    ("target", 7),
    ("", 6),
    ("null", 6),
    ("rounds", 6),
)


def print_line(cells: Iterable[str]) -> None:
    print("  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip(), flush=True)


def print_result(result: Result) -> None:
    null = "" if result.null is None else f"{result.null:.2f}" + ("" if result.null_holds else "!")
    print_line(
        (
            result.workload,
            result.contender,
            result.show_costs(),
            result.limit,
            result.show_cost(result.limit_cost.median),
            result.show_ratios(),
            str(result.target or ""),
            result.verdict,
            null,
            result.show_rounds(),
        )
    )


@dataclass
class Bench:
    """One run of a script: where its files go, how long it may take, and the results so far."""

    directory: Path
    full: bool = False
    repetitions: int = 9
    profile: bool = False
    results: list[Result] = field(default_factory=list)
    patience: int = 3  # at most so many times the rounds that are wanted, while the limit does not hold still
    patience_s: float = math.inf  # after that a race ends once FEWEST are kept, and after three times that in any case
    show: Callable[[Result], None] = print_result

    def race(
        self,
        workload: str,
        limit: Contender,
        *contenders: Contender,
        unit_nbytes: int | None = None,
        repetitions: int | None = None,
        size: int | None = None,
        axis: str = "rows",
    ) -> None:
        """Race the contenders against the limit and record one result for each."""
        wanted = repetitions or self.repetitions
        entries = [limit, *contenders, limit]  # the limit a second time is the null control
        rounds: list[list[float]] = []
        kept: list[list[float]] = []
        for entry in entries:  # warms caches, code and files; not counted
            entry.repetition()
        gc.unfreeze()  # what a race that failed left
        gc.collect()
        gc.freeze()  # a collection inside a repetition now only looks at that repetition's objects
        start = time.perf_counter()
        while len(kept) < wanted and len(rounds) < self.patience * wanted:
            patience_s = self.patience_s if len(kept) >= FEWEST else 3 * self.patience_s
            if len(rounds) >= FEWEST and time.perf_counter() - start > patience_s:
                break
            costs = [0.0] * len(entries)
            for which in random.sample(range(len(entries)), len(entries)):
                costs[which] = entries[which].repetition()
            rounds.append(costs)
            usual = statistics.median(cost for costs in rounds for cost in (costs[0], costs[-1]))
            kept = [
                costs for costs in rounds if all(abs(cost / usual - 1) <= LIMIT_MOVED for cost in (costs[0], costs[-1]))
            ]
        gc.unfreeze()
        is_steady = len(kept) >= min(wanted, FEWEST)
        if len(kept) < 3:  # the limit never held still: there is nothing to choose by
            kept = rounds
        thrown_away = len(rounds) - len(kept)
        null = statistics.median(costs[-1] / costs[0] for costs in kept)
        for which, contender in enumerate(contenders, start=1):
            in_limits = [costs[which] / ((costs[0] + costs[-1]) / 2) for costs in kept]
            self.record(
                Result(
                    workload,
                    contender.name,
                    Spread.of([costs[which] for costs in kept]),
                    limit.name,
                    Spread.of([cost for costs in kept for cost in (costs[0], costs[-1])]),
                    Spread.of([1 / ratio if unit_nbytes else ratio for ratio in in_limits]),
                    contender.target,
                    null,
                    len(kept),
                    thrown_away,
                    unit_nbytes=unit_nbytes,
                    size=size,
                    axis=axis,
                    is_steady=is_steady,
                )
            )
        if self.profile:
            for contender in contenders:
                print_profile(contender)

    def compare(
        self,
        workload: str,
        name: str,
        value: float,
        limit: str,
        limit_value: float,
        target: Target | None,
        unit: str = "s",
        size: int | None = None,
        axis: str = "rows",
    ) -> None:
        """Record a figure that needs no race next to a number: a given bound, or the same figure earlier in the run."""
        spread, limit_spread = Spread.of([value]), Spread.of([limit_value])
        ratio = Spread.of([value / limit_value if limit_value else float("inf") if value else 1.0])
        self.record(Result(workload, name, spread, limit, limit_spread, ratio, target, unit=unit, size=size, axis=axis))

    def against(self, contender: str, bound: str, bound_s: float, workload: str | None = None) -> None:
        """Hold the last race's figure of that contender against an absolute target, in seconds."""
        last = next(r for r in reversed(self.results) if r.contender == contender and workload in (None, r.workload))
        ratio = Spread(last.cost.median / bound_s, last.cost.low / bound_s, last.cost.high / bound_s)
        spread, is_steady = Spread.of([bound_s]), last.is_steady
        self.record(
            Result(last.workload, contender, last.cost, bound, spread, ratio, at_most(1.0), is_steady=is_steady)
        )

    def record(self, result: Result) -> None:
        self.results.append(result)
        self.show(result)

    @contextmanager
    def fresh_directory(self, name: str) -> Iterator[Path]:
        """A new empty directory for one workload or repetition, removed with all in it on the way out."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def mean_cost(call: Callable[[T], object], inputs: Sequence[T]) -> Repetition:
    """A repetition that calls once per input and returns the mean: what a loop of them costs, stalls included."""

    def repetition() -> float:
        start = time.perf_counter()
        for value in inputs:
            call(value)
        return (time.perf_counter() - start) / len(inputs)

    return repetition


def median_cost(call: Callable[[T], object], inputs: Sequence[T]) -> Repetition:
    """A repetition that calls once per input and returns the median: the usual cost of one call that takes ≥ 10 µs."""

    def repetition() -> float:
        clock, costs = time.perf_counter, []
        for value in inputs:
            start = clock()
            call(value)
            costs.append(clock() - start)
        return statistics.median(costs)

    return repetition


def print_profile(contender: Contender, lines: int = 25) -> None:
    profile = cProfile.Profile()
    profile.runcall(contender.repetition)
    print(f"\n--- profile of: {contender.name}")
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(lines)


def warm_memory(nbytes: int) -> None:
    """Touch that much memory once and give it back: the first touch of a guest's page may cost ten times the second."""
    with mmap.mmap(-1, nbytes) as pages:
        try:
            pages.madvise(MADV_POPULATE_WRITE)
        except OSError:  # Linux before 5.14
            for offset in range(0, nbytes, mmap.PAGESIZE):
                pages[offset] = 1


def available_nbytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def disk_directory() -> Path:
    """A place for temporary files that is on a disk: a blob on tmpfs would never show what syncing costs."""
    for candidate in (tempfile.gettempdir(), "/var/tmp", os.getcwd()):
        if os.path.isdir(candidate) and filesystem_of(Path(candidate)) not in ("tmpfs", "ramfs"):
            return Path(candidate)
    return Path(tempfile.gettempdir())


def filesystem_of(path: Path) -> str:
    """The type of the filesystem a path is on, by the longest mount point that leads to it."""
    resolved, best, found = path.resolve(), "", "unknown"
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return found
    for _, mount_point, filesystem, *_ in mounts:
        if len(mount_point) >= len(best) and resolved.is_relative_to(mount_point):
            best, found = mount_point, filesystem
    return found


def machine(directory: Path) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory_nbytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "filesystem": filesystem_of(directory),
        "load": os.getloadavg(),
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """An entry of the outer lists and mappings a line, floats of six digits. It replaces the file in one step."""

    def lines(values: Any, depth: int) -> str:
        if not depth or not values or not isinstance(values, dict | list):
            return json.dumps(rounded(values), ensure_ascii=False)
        is_list = isinstance(values, list)
        keys = [""] * len(values) if is_list else [f"{json.dumps(key, ensure_ascii=False)}: " for key in values]
        inner = [lines(value, depth - 1) for value in (values if is_list else values.values())]
        start, stop = "[]" if is_list else "{}"
        return f"{start}\n" + ",\n".join(map(str.__add__, keys, inner)) + f"\n{stop}"

    whole = path.with_name(path.name + ".new")
    whole.write_text(lines(values, 2) + "\n")
    whole.replace(path)


def rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values


def found_by(bench: Bench, about: dict[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
    """What there is to save of a run, complete or not."""
    results = [asdict(result) | {"verdict": result.verdict} for result in bench.results]
    found = {"machine": about, "full": bench.full, "repetitions": bench.repetitions, "left_out": left_out}
    return found | {"results": results}


@contextmanager
def survived(name: str, left_out: dict[str, str], save: Callable[[], None]) -> Iterator[None]:
    """Measure one workload and save, come what may: of one that fails the reason is left, and the others go on."""
    try:
        yield
        del left_out[name]
    except Exception as error:
        traceback.print_exc()
        left_out[name] += f": failed: {type(error).__name__}: {error}"
        for process in multiprocessing.active_children():  # they would go on beside the next workload
            process.terminate()
    finally:
        save()


def run(
    workloads: dict[str, Callable[[Bench], None]],
    names: Sequence[str],
    bench: Bench,
    warm_nbytes: int,
    json_path: Path | None = None,
) -> int:
    """Run the named workloads (none named: all), print the table as it grows; returns how many targets were missed.

    A workload that fails does not keep the others from being measured; SystemExit names it at the end.
    """
    about = machine(bench.directory)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    warm_memory(min(warm_nbytes, available_nbytes() // 2))
    print_line(title for title, _ in COLUMNS)
    print_line("─" * width for _, width in COLUMNS)
    started = time.perf_counter()
    left_out = {name: name for name in names or workloads}

    def save() -> None:
        if json_path is not None:
            write_json(json_path, found_by(bench, about, left_out))

    for name in list(left_out):
        with survived(name, left_out, save):
            workloads[name](bench)
    missed = [result for result in bench.results if result.verdict.startswith("MISS")]
    held = [result for result in bench.results if result.verdict.startswith("ok")]
    print(f"\n{len(held)} targets hold, {len(missed)} missed, in {time.perf_counter() - started:.0f} s")
    for result in missed:
        reached = f"{result.ratio.median:.2f} × {result.limit}"
        print(f"  missed: {result.workload}, {result.contender}: {reached}, target {result.target}")
    if left_out:
        raise SystemExit("\n".join(left_out.values()))
    return len(missed)
