"""RESULTS.md and its plots, from the JSON of a complete run.

python bench/report.py bench/results/<date>.json
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from harness import FEWEST, NULL_TOLERANCE, Result, Spread, Target

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

OURS = "tensorblob"
COLOURS = {OURS: "#1a7f37", "tensorblob 0.3.0": "#8ac99a"}
SUPER_LINEAR = 1.1


WHY = {
    "gather 256 rows, out=": "the same `index_select`, of mapped pages, and 2 µs of checks around it; other runs of the "
    "day gave 0.91 to 0.98",
    "gather 512, small appends": "what was appended in small pieces lies in small pages of the page cache: more of them "
    "to look up",
    "gather 512, small appends, out=": "as without `out=`: smaller pages",
    "bulk append, batches of 25 MB": "with the checksums it is two passes over the data, where the limit is one, and full "
    "blocks are synced meanwhile: without either, and in a bare loop, it has rows of their own",
    "append + commit of one row": "two `pwrite`s and the Python around them, against a commit in C",
    "append + commit of 32 rows": "two `pwrite`s and the Python around them, however few the rows",
    "append + commit at power, beside LMDB": "rows and log are two files, and a commit syncs both, at once; LMDB has one",
    "slice of 10⁶ rows of 16 bytes": "it is one copy, as the limit is",
    "extend, per block": "an absolute time; what `os.link` alone takes of it is in the row above",
    "commit → seen in another process": "who polls never sleeps; a process that is woken has to read the log, to map and to "
    "view before it has the rows",
    "one row, with four followers": "six busy processes on two cores, of this blob or of another; a commit that is followed "
    "also rings the inotify of each follower, in the writer's `pwrite`",
    "ring, 10,000,000 rows": "two moments of one run, between which the machine may have changed: the ring that is followed, "
    "measured next, is flat, and an old ring that races a young one, as it does now, came to 1.07",
    "four writers that share a blob": "four busy processes on two cores wait for each other; what four with blobs of "
    "their own and no lock in common come to is the next row",
}
"""Why a target is missed where it is."""

GIVES_UP = {
    (", synced", "Redis stream"): "room: all rows are in the server's memory, and each read is a message.",
    (
        "open and read the last row",
        "LMDB",
    ): "rows that lie side by side: all are in one file, and that is all it opens.",
}
"""What a system gives up for its lead, by a part of the workload's title, where what it says of itself is beside the point."""


def result_of(values: dict[str, Any]) -> Result:
    more: dict[str, Any] = {name: Spread(**values[name]) for name in ("cost", "limit_cost", "ratio")}
    more["target"] = Target(**values["target"]) if values["target"] else None
    return Result(**{name: value for name, value in values.items() if name != "verdict"} | more)


def cost_of(result: Result) -> float:
    return result.cost.median


def ratio_of(result: Result) -> float:
    return result.slowness


def slope_of(curve: Iterable[Result], value_of: Callable[[Result], float] = cost_of) -> float:
    """The exponent of a power law fitted to the medians: 0 is flat, 1 grows as the size does. Sizes of 0 are left out."""
    points = [
        (math.log(result.size), math.log(value_of(result))) for result in curve if result.size and value_of(result) > 0
    ]
    if len(points) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return float(sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points))


def last_decade_of(curve: list[Result]) -> list[Result]:
    """From a tenth of the largest size on: where growth shows that a fit over all sizes would hide."""
    largest = max(result.size or 0 for result in curve)
    return [result for result in curve if (result.size or 0) >= largest / 10]


def file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png"


def plot_bars(path: Path, workload: str, results: list[Result]) -> None:
    """A bar a system: its ratio to the limit, with the least and the most."""
    is_rate = results[0].unit_nbytes is not None
    results = sorted(results, key=ratio_of, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(results)), layout="constrained")
    medians = [result.ratio.median for result in results]
    below = [result.ratio.median - result.ratio.low for result in results]
    above = [result.ratio.high - result.ratio.median for result in results]
    names = [result.contender for result in results]
    axes.barh(names, medians, xerr=(below, above), color=[COLOURS.get(name, "#9aa4b2") for name in names])
    for row, result in enumerate(results):
        place = (max(result.ratio.high, 0), row)
        axes.annotate(result.show_cost(result.cost.median), place, (6, -3), textcoords="offset points")
    if results[0].null is not None:
        axes.axvline(1, color="black", linewidth=1, linestyle="--")
        axes.set_xscale("log")
    axes.margins(x=0.3)
    measure = f"× {results[0].limit}" if results[0].limit else results[0].unit
    axes.set_xlabel(f"{measure} ({'higher' if is_rate else 'lower'} is better)")
    axes.set_title(workload, loc="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_curves(path: Path, workload: str, results: list[Result]) -> None:
    """Cost against size on log axes, a line a system."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, curve in curves_of(results).items():
        sizes, costs = [result.size or 0 for result in curve], [result.cost for result in curve]
        width = 2.5 if name == OURS else 1.2
        line = axes.plot(
            sizes, [c.median for c in costs], "o-", label=name, linewidth=width, color=COLOURS.get(name), markersize=4
        )
        colour = line[0].get_color()
        axes.fill_between(sizes, [c.low for c in costs], [c.high for c in costs], alpha=0.12, color=colour)
    if results[0].null is not None:
        limits = {result.size or 0: result.limit_cost.median for result in results}
        axes.plot(list(limits), list(limits.values()), "k--", label=results[0].limit, linewidth=1)
    unit = "seconds" if results[0].unit == "s" else results[0].unit
    sizes = sorted({result.size or 0 for result in results})
    axes.set_xscale(**({"value": "log"} if sizes[0] else {"value": "symlog", "linthresh": 1}))
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(yscale="log", xlabel=results[0].axis, ylabel=unit)
    axes.set_title(workload, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_latencies(path: Path, workload: str, latencies: dict[str, Any]) -> None:
    """The share that took longer than so long, both on log axes: the tail is what matters."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, found in latencies.items():
        shares, seconds = zip(*found["curve"], strict=True)
        style = {"color": "black", "linestyle": "--"} if name == "limit" else {"color": COLOURS.get(name)}
        axes.plot([1e6 * s for s in seconds], shares, label=name, linewidth=2.5 if name == OURS else 1.2, **style)
    axes.set(xscale="log", yscale="log", xlabel="µs", ylabel="share that took longer")
    axes.set_yticks([1, 0.5, 0.1, 0.01, 0.001], ["all", "half", "1 in 10", "1 in 100", "1 in 1000"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(workload, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves_of(results: Iterable[Result]) -> dict[str, list[Result]]:
    ordered = sorted(results, key=lambda result: (result.contender, result.size or 0))
    return {name: list(curve) for name, curve in groupby(ordered, key=lambda result: result.contender)}


def table_of(results: list[Result]) -> list[str]:
    is_curve, is_race = results[0].size is not None, results[0].null is not None
    headings = ["system", *([results[0].axis] if is_curve else []), "median (min–max)"]
    headings += [*([f"× {results[0].limit}"] if results[0].limit else []), *(["rounds"] if is_race else [])]
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for result in sorted(results, key=lambda result: (result.size or 0, result.slowness)):
        name = f"**{result.contender}**" if result.contender == OURS else result.contender
        cells = [name, *([f"{result.size:,}"] if is_curve else []), result.show_costs()]
        cells += [*([result.show_ratios()] if result.limit else []), *([rounds_of(result)] if is_race else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rounds_of(result: Result) -> str:
    return result.show_rounds() + ("" if result.null_holds else "?")


def targets_of(results: Iterable[Result]) -> list[str]:
    """The engine's and the live service's targets, and beside them what was measured for information."""
    lines = [
        "| work | what | median (min–max) | limit | ratio (min–max) | target | | rounds |",
        "|---|---|---:|---|---:|---:|---|---:|",
    ]
    for result in results:
        limit = f"{result.limit}: {result.show_cost(result.limit_cost.median)}"
        cells = (result.workload, result.contender, result.show_costs(), limit, result.show_ratios())
        lines.append("| " + " | ".join((*cells, str(result.target or ""), result.verdict, rounds_of(result))) + " |")
    return lines


def glance_of(results: list[Result]) -> list[str]:
    """Ours beside the best of the others, workload by workload; of a curve, at the smallest and largest size both did."""
    lines = [
        "| workload | tensorblob | the best of the others | ours is × as fast | limit |",
        "|---|---:|---|---:|---:|",
    ]
    for workload, found in by_workload(results):
        if found[0].null is None:  # no race: memory and disk
            continue
        pairs = ours_and_best(found)
        for ours, other in dict.fromkeys((pairs[0], pairs[-1])) if pairs else ():
            title = workload if ours.size is None else f"{workload} ({ours.size:,})"
            best = f"{other.contender}: {other.show_cost(other.cost.median)}"
            ratio = f"{other.slowness / ours.slowness:.2f}" + ("" if ours.null_holds and other.null_holds else "?")
            limit = ours.show_cost(ours.limit_cost.median)
            lines.append(f"| {title} | {ours.show_cost(ours.cost.median)} | {best} | {ratio} | {limit} |")
    return lines


def ours_and_best(results: list[Result]) -> list[tuple[Result, Result]]:
    """By size, where there are both."""
    pairs = []
    for size in sorted({result.size or 0 for result in results}):
        found = sorted((result for result in results if (result.size or 0) == size), key=ratio_of)
        ours = next((result for result in found if result.contender == OURS), None)
        other = next((result for result in found if result.contender != OURS), None)
        if ours is not None and other is not None:
            pairs.append((ours, other))
    return pairs


def ahead_of_ours(results: list[Result]) -> dict[str, list[int]]:
    """Who is ahead, and at which sizes (none: of no curve); the earlier version of ours too."""
    ours = {result.size: result.slowness for result in results if result.contender == OURS}
    ahead: dict[str, list[int]] = {}
    for result in sorted(results, key=lambda result: (result.contender, result.size or 0)):
        if result.slowness < ours.get(result.size, 0.0):
            ahead.setdefault(result.contender, []).extend([] if result.size is None else [result.size])
    return ahead


def slopes_of(results: list[Result]) -> list[str]:
    """How the cost of each grows with the size, and whether that of ours is a bug."""
    axis, is_race = results[0].axis, results[0].null is not None
    shown = {
        name: f"{name} {slope_of(curve):+.2f}" + (f" ({slope_of(curve, ratio_of):+.2f})" if is_race else "")
        for name, curve in curves_of(results).items()
        if not math.isnan(slope_of(curve))
    }
    what = "cost (and of its ratio to the limit)" if is_race else "cost"
    said = f"Fitted exponent of {what} against {axis}, where 0 is flat and 1 grows as the {axis} do"
    lines = ["", f"{said}: {', '.join(shown.values())}."]
    ours = curves_of(results).get(OURS, [])
    slopes = [slope_of(ours), slope_of(last_decade_of(ours))] if ours else []
    if any(slope > SUPER_LINEAR for slope in slopes):
        lines += [
            "",
            f"**Ours grows faster than its size: a bug** ({slopes[0]:+.2f}, in the last decade {slopes[1]:+.2f}).",
        ]
    return lines


def latencies_of(latencies: dict[str, Any]) -> list[str]:
    lines = ["| one by one | p50 | p99 | p99.9 | longest | of |", "|---|" + "---:|" * 5]
    for name, found in sorted(latencies.items(), key=lambda pair: pair[1]["p50"]):
        shown = [f"{found[share] * 1e6:,.1f} µs" if share in found else "" for share in ("p50", "p99", "p99.9")]
        name = f"**{name}**" if name == OURS else name
        lines.append(f"| {name} | {' | '.join(shown)} | {found['curve'][-1][1] * 1e6:,.0f} µs | {found['count']:,} |")
    return lines


def section(directory: Path, run: dict[str, Any], workload: str, found: list[Result]) -> list[str]:
    """A workload's table and plot, and what has to be said about them."""
    gives_up = {name: system["gives_up"] for name, system in run["systems"].items()}
    is_curve, is_race = found[0].size is not None, found[0].null is not None
    plot = directory / file_name(workload)
    (plot_curves if is_curve else plot_bars)(plot, workload, found)
    lines = ["", f"## {workload}", "", *table_of(found), "", f"![{workload}]({plot.name})"]
    if workload in run["notes"]:
        lines += ["", run["notes"][workload]]
    nulls = sorted({f"{r.null:.2f}" for r in found if is_race and abs(r.null - 1) > NULL_TOLERANCE})
    unsteady = [f"the limit against itself was {', '.join(nulls)}"] if nulls else []
    unsteady += [] if all(r.is_steady for r in found) else [f"the limit held still in fewer than {FEWEST} rounds"]
    if unsteady:
        lines += ["", f"Unsteady (`?`): {'; '.join(unsteady)}."]
    if is_curve:
        lines += slopes_of(found)
    for name, sizes in ahead_of_ours(found).items() if is_race else ():
        here = (price for (part, system), price in GIVES_UP.items() if part in workload and system == name)
        price = next(here, gives_up.get(name)) or "nothing that we know of."
        at = f" ({found[0].axis}: {', '.join(f'{size:,}' for size in sizes)})" if sizes else ""
        lines += ["", f"{name} is ahead{at}; it gives up {price}"]
    if latencies := run["latencies"].get(workload):
        plot = directory / file_name(f"{workload} latencies")
        plot_latencies(plot, workload, latencies)
        lines += ["", *latencies_of(latencies), "", f"![{workload}, one by one]({plot.name})"]
    absent = run["absent"].get(workload, {})
    return lines + [line for name, reason in absent.items() for line in ("", f"Without {name}: {reason}.")]


def write_report(json_path: Path) -> list[Path]:
    """Writes RESULTS.md and the plots next to the JSON, and returns its path. Plots of the RESULTS.md that was there go."""
    run = json.loads(json_path.read_text())
    directory = json_path.parent
    about = run["machine"]
    load = " to ".join(f"{about[when][0]:.1f}" for when in ("load", "load_after"))
    machine = f"{about['system']}, {about['processors']} processors, {about['filesystem']}, load {load}"
    results_path = directory / "RESULTS.md"
    before = results_path.read_text() if results_path.exists() else ""
    for plot in re.findall(r"^!\[.*\]\(([a-z0-9-]+\.png)\)$", before, re.MULTILINE):
        (directory / plot).unlink(missing_ok=True)
    lines = [
        "# Side by side",
        "",
        f"Run of {json_path.stem}: {machine}, Python {about['python']}.",
        *(
            [f"{run['repetitions']} rounds a race were asked for, of a curve at most 5."]
            if "repetitions" in run
            else []
        ),
        f"Written by `make bench`; all figures are in [{json_path.name}]({json_path.name}).",
        "",
        "A ratio is to the limit measured in the same round, and the median of the rounds counts: who is ahead is decided by",
        "it, and “× as fast” is one ratio by the other. Rounds are those that were kept, and after the dash those that were",
        f"thrown away because the limit had moved. A `?` marks unsteady ground: fewer than {FEWEST} were kept, or the limit",
        f"against itself did not come out at 1.00 ± {NULL_TOLERANCE}.",
    ]
    missing = [] if run.get("full", True) else ["the targets are without `--full`, with fewer rounds"]
    missing += ["what is named at the end is not in it, or in part"] if run.get("left_out") else []
    if missing:
        lines += ["", f"Not a complete run: {', and '.join(missing)}."]
    if run.get("note"):
        lines += ["", run["note"]]
    results = [result_of(values) for values in run["results"]]
    targets = [result_of(values) for values in run["targets"]]
    if results:
        lines += ["", "## At a glance", "", *glance_of(results)]
    if targets:
        missed = [result for result in targets if result.verdict.startswith("MISS")]
        lines += ["", "## Targets", "", *targets_of(targets)]
        lines += ["", f"{len(missed)} missed. A `?` marks a verdict on unsteady ground; no target: for information."]
        reasons = {result.workload: WHY.get(result.workload, "no reason is known") for result in missed}
        lines += ["", *(f"- {workload}: {reason}." for workload, reason in reasons.items())]
    for workload, found in by_workload(results):
        lines += section(directory, run, workload, found)
    measured = {workload for workload, _ in by_workload(results)}
    for workload in run["absent"]:  # those that have only figures under other titles
        if workload not in measured and (absent := run["absent"][workload]):
            lines += ["", f"Of “{workload}”:"]
            lines += [line for name, reason in absent.items() for line in ("", f"Without {name}: {reason}.")]
    if run.get("left_out"):
        lines += [
            "",
            "## Not measured in this run, or not all of it",
            "",
            *(f"- {title}" for title in run["left_out"].values()),
        ]
    lines += ["", "## How each is used", ""]
    for name, system in run["systems"].items():
        versions = ", ".join(f"{package} {version}" for package, version in system["versions"].items())
        lines.append(f"- **{name}** ({versions}): {system['how']}")
        lines += [f"  *Gives up:* {system['gives_up']}"] if system["gives_up"] else []
    lines += [f"- **{name}**: not measured: {reason}" for name, reason in run["missing"].items()]
    results_path.write_text("\n".join(lines) + "\n")
    return [results_path]


def by_workload(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.workload, []).append(result)
    return list(found.items())


if __name__ == "__main__":
    for path in write_report(Path(sys.argv[1])):
        print(path)
