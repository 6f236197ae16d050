"""The benchmarks: that they run, on a few rows, and that the comparison with committed results says what it should."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

from harness import Result, Spread, at_least, at_most  # noqa: E402
from peers import work  # noqa: E402
from peers.jobs import Workload, named, workloads  # noqa: E402

WORKLOADS = workloads(quick=True)


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_every_script_parses_and_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_word_stands_for_all_that_have_it_in_their_name() -> None:
    assert named(["open", "row"], WORKLOADS) == ["row", "open-rows", "open-commits", "open-blocks"]
    assert named(["commits", "cold"], WORKLOADS) == ["cold-scan", "cold-batch", "open-commits"]
    assert named(["nothing", "app"], WORKLOADS) == []


@pytest.mark.parametrize("is_quick", [False, True])
def test_every_curve_has_sizes_of_its_own_and_a_complete_run_five_of_them(is_quick: bool) -> None:
    for name, workload in workloads(is_quick).items():
        assert all(job.kind in work.KINDS for job in workload.jobs.values())
        if workload.is_curve and not is_quick and workload.axis != "producers":
            assert len(workload.jobs) >= 5, name


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ours", "limits"])
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in ("follow", "look", "readers")])
def test_every_workload_runs_on_a_few_rows(name: str, system: str, tmp_path: Path) -> None:
    workload: Workload = WORKLOADS[name]
    if system in workload.without:
        return
    job = next(iter(workload.jobs.values()))
    job = replace(job, rows=min(job.rows, 704), most=4, budget_s=0.0)
    task = work.KINDS[job.kind](importlib.import_module(f"peers.{system}"), job, tmp_path)
    assert [task.repeat() > 0 for _ in range(2)]
    assert {"files", "bytes on disk", *workload.weighs} <= {"files", "bytes on disk"} | set(work.process_figures())
    task.finish()


def result(workload: str, ratio: float, **more: Any) -> Result:
    once = Spread.of([ratio])
    values: dict[str, Any] = {"contender": "ours", "cost": once, "limit": "limit", "limit_cost": Spread.of([1.0])}
    return Result(workload, **(values | {"ratio": once, "target": at_most(1.0), "null": 1.0} | more))


def test_a_loss_is_a_worse_ratio_to_the_limit_and_nothing_else() -> None:
    check = imported("check")
    before = check.races([result("cost", 0.5), result("rate", 0.9, unit_nbytes=1, target=at_least(0.9))])
    now = check.races([result("cost", 0.65), result("rate", 0.7, unit_nbytes=1), result("new", 9.0)])
    assert check.losses(before, now) == pytest.approx({("cost", "ours"): 1.3, ("rate", "ours"): 0.9 / 0.7})
    better = check.races([result("cost", 0.4), result("rate", 1.2, unit_nbytes=1)])
    assert max(check.losses(before, better).values()) < 1


def test_absolute_figures_and_other_systems_are_not_compared() -> None:
    check = imported("check")
    assert check.races([result("open", 0.5, null=None), result("small", 0.5, contender="LMDB, sync")]) == {}


def test_without_committed_results_the_check_says_so(tmp_path: Path) -> None:
    check = imported("check")
    with pytest.raises(SystemExit, match="nothing to compare with"):
        check.newest(tmp_path)
    for name in ("2026-01-02.json", "2025-12-31.json"):
        (tmp_path / name).write_text("{}")
    assert check.newest(tmp_path).name == "2026-01-02.json"


def test_the_check_fails_only_on_a_loss_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = imported("check")
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"targets": [asdict(result("row", 0.5))]}))
    monkeypatch.setattr(sys, "argv", ["check.py", "row", "--results", str(path)])
    monkeypatch.setattr(check, "warm_memory", lambda nbytes: None)
    for ratios, code in (([0.55], 0), ([0.8, 0.5], 0), ([0.8, 0.7, 0.9], 1)):
        found = iter(ratios)
        measure = lambda bench, found=found: bench.record(result("row", next(found)))  # noqa: E731
        monkeypatch.setitem(check.engine.WORKLOADS, "row", measure)
        assert check.main() == code
        assert list(found) == []


def test_the_slope_is_the_exponent_of_growth(tmp_path: Path) -> None:
    report = imported("report")
    sizes = (10, 100, 1_000, 10_000, 100_000)
    linear = [result("x", 1.0, cost=Spread.of([3e-6 * size]), size=size) for size in sizes]
    flat = [result("x", 1.0, cost=Spread.of([3e-6]), size=size) for size in sizes]
    assert report.slope_of(linear) == pytest.approx(1.0)
    assert report.slope_of(flat) == pytest.approx(0.0)


@pytest.mark.slow
def test_every_target_that_the_committed_results_miss_has_its_reason() -> None:
    newest = max((BENCH / "results").glob("*.json"))
    targets = json.loads(newest.read_text())["targets"]
    missed = {target["workload"] for target in targets if target["verdict"].startswith("MISS")}
    assert missed <= set(imported("report").WHY) <= {target["workload"] for target in targets if target["target"]}


def test_a_comparison_becomes_a_report(tmp_path: Path) -> None:
    report = imported("report")
    path = tmp_path / "results.json"
    command = [sys.executable, str(BENCH / "compare.py"), "append1", "latency1", "follow", "readers", "memory", "ring"]
    options = ["--quick", "--systems", "ours", "lmdb", "--repetitions", "1", "--warm-gib", "0.1", "--json", str(path)]
    subprocess.run([*command, *options, "--dir", str(tmp_path)], check=True, capture_output=True)
    run = json.loads(path.read_text())
    assert not any("failed" in reason for absent in run["absent"].values() for reason in absent.values())
    run["targets"] = [asdict(result("row", 0.5))]
    path.write_text(json.dumps(run))
    (written,) = report.write_report(path)
    text = written.read_text()
    for said in ("## At a glance", "## Targets", "| **tensorblob** |", "p99.9", "Fitted exponent", "private memory"):
        assert said in text
    for plot in (line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")):
        assert (tmp_path / plot).stat().st_size > 0


def imported(name: str) -> Any:
    """Of those that need what only the benchmarks do."""
    for needed in ("lmdb", "matplotlib", "rich"):
        pytest.importorskip(needed)
    return importlib.import_module(name)
