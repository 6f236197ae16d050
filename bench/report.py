"""RESULTS.md and its plots, from the JSON of a run of `compare.py`.

python bench/report.py bench/results/<date>.json
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from harness import Result, Spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "tensorblob"
COLOURS = {OURS: "#1a7f37", "tensorblob 0.3.0": "#8ac99a"}


def result_of(values: dict[str, Any]) -> Result:
    spreads = {name: Spread(**values[name]) for name in ("cost", "limit_cost", "ratio")}
    return Result(**{name: value for name, value in values.items() if name != "verdict"} | spreads)


def slope_of(curve: Iterable[Result]) -> float:
    """The exponent of a power law fitted to the medians: 0 is flat, 1 grows as the rows do."""
    points = [(math.log(result.size or 1), math.log(result.cost.median)) for result in curve]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return float(sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points))


def file_name(workload: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", workload.lower()).strip("-") + ".png"


def plot_bars(path: Path, workload: str, results: list[Result]) -> None:
    """A bar a system: its ratio to the limit, with the least and the most."""
    is_rate = results[0].unit_nbytes is not None
    results = sorted(results, key=lambda result: result.ratio.median, reverse=not is_rate)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(results)), layout="constrained")
    medians = [result.ratio.median for result in results]
    below = [result.ratio.median - result.ratio.low for result in results]
    above = [result.ratio.high - result.ratio.median for result in results]
    names = [result.contender for result in results]
    axes.barh(names, medians, xerr=(below, above), color=[COLOURS.get(name, "#9aa4b2") for name in names])
    for row, result in enumerate(results):
        axes.annotate(
            result.show_cost(result.cost.median), (result.ratio.high, row), (6, -3), textcoords="offset points"
        )
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.margins(x=0.3)
    axes.set_xlabel(f"× {results[0].limit} ({'higher' if is_rate else 'lower'} is better)")
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
    limits = {result.size or 0: result.limit_cost.median for result in results}
    axes.plot(list(limits), list(limits.values()), "k--", label=results[0].limit, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds")
    axes.set_title(workload, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves_of(results: Iterable[Result]) -> dict[str, list[Result]]:
    ordered = sorted(results, key=lambda result: (result.contender, result.size or 0))
    return {name: list(curve) for name, curve in groupby(ordered, key=lambda result: result.contender)}


def table_of(results: list[Result]) -> list[str]:
    is_curve, is_rate = results[0].size is not None, results[0].unit_nbytes is not None
    lines = [f"| system |{' rows |' if is_curve else ''} median (min–max) | × {results[0].limit} |"]
    lines.append("|---|" + "---:|" * (3 if is_curve else 2))
    for result in sorted(results, key=lambda r: (r.size or 0, -r.ratio.median if is_rate else r.ratio.median)):
        name = f"**{result.contender}**" if result.contender == OURS else result.contender
        rows = f" {result.size:,} |" if is_curve else ""
        lines.append(f"| {name} |{rows} {result.show_costs()} | {result.show_ratios()} |")
    return lines


def glance_of(results: list[Result]) -> list[str]:
    """Ours beside the best of the others, workload by workload; of a curve, its largest size."""
    lines = [
        "| workload | tensorblob | the best of the others | ours is × as fast | limit |",
        "|---|---:|---|---:|---:|",
    ]
    for workload in workload_titles(results):
        found = [result for result in results if result.workload == workload]
        largest = max(result.size or 0 for result in found)
        found = sorted((r for r in found if (r.size or 0) == largest), key=lambda result: result.cost.median)
        ours = next((result for result in found if result.contender == OURS), None)
        other = next((result for result in found if not result.contender.startswith(OURS)), None)
        if ours is None or other is None:
            continue
        title = workload + (f" ({largest:,})" if largest else "")
        shown = [ours.show_cost(ours.cost.median), f"{other.contender}: {other.show_cost(other.cost.median)}"]
        ratio = other.cost.median / ours.cost.median  # of rates too: they are kept as seconds
        lines.append(f"| {title} | {shown[0]} | {shown[1]} | {ratio:.2f} | {ours.show_cost(ours.limit_cost.median)} |")
    return lines


def write_report(json_path: Path) -> list[Path]:
    """Writes RESULTS.md and the plots next to the JSON, and returns their paths."""
    run = json.loads(json_path.read_text())
    results = [result_of(values) for values in run["results"]]
    directory, written = json_path.parent, []
    about = run["machine"]
    load = " to ".join(f"{about[when][0]:.1f}" for when in ("load", "load_after"))
    machine = f"{about['system']}, {about['processors']} processors, {about['filesystem']}, load {load}"
    lines = [
        "# Side by side",
        "",
        f"Run of {json_path.stem}: {machine}, Python {about['python']}.",
        f"Written by `bench/compare.py`; all figures are in [{json_path.name}]({json_path.name}).",
        "",
        "A ratio is to the limit measured in the same round, and the median of the rounds counts. A row whose limit against",
        "itself did not come out at 1.00 ± 0.03 in that race is on unsteady ground; it is marked under the table.",
    ]
    lines += ["", "## At a glance", "", *glance_of(results)]
    for workload in workload_titles(results):
        found = [result for result in results if result.workload == workload]
        plot = directory / file_name(workload)
        (plot_bars if found[0].size is None else plot_curves)(plot, workload, found)
        written.append(plot)
        lines += ["", f"## {workload}", "", *table_of(found), "", f"![{workload}]({plot.name})"]
        if nulls := sorted({f"{result.null:.2f}" for result in found if not result.null_holds}):
            lines += ["", f"Unsteady: the limit against itself was {', '.join(nulls)}."]
        if found[0].size is not None:
            slopes = {name: slope_of(curve) for name, curve in curves_of(found).items() if len(curve) > 1}
            listed = ", ".join(f"{name} {slope:+.2f}" for name, slope in slopes.items())
            lines += ["", f"Fitted exponent of cost against rows (0 is flat, 1 grows as the rows do): {listed}."]
        lines += [
            line for name, reason in run["absent"][workload].items() for line in ("", f"Without {name}: {reason}.")
        ]
    lines += ["", "## How each is used", ""]
    for name, system in run["systems"].items():
        versions = ", ".join(f"{package} {version}" for package, version in system["versions"].items())
        lines.append(f"- **{name}** ({versions}): {system['how']}")
        lines += [f"  *Gives up:* {system['gives_up']}"] if system["gives_up"] else []
    lines += [f"- **{name}**: not measured: {reason}" for name, reason in run["missing"].items()]
    results_path = directory / "RESULTS.md"
    results_path.write_text("\n".join(lines) + "\n")
    return [results_path, *written]


def workload_titles(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result.workload for result in results))


if __name__ == "__main__":
    for path in write_report(Path(sys.argv[1])):
        print(path)
