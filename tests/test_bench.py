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

from harness import Bench, Contender, Result, Spread, at_least, at_most, run, write_json  # noqa: E402
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


def test_a_workload_that_raises_is_named_and_does_not_lose_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"

    def fails(bench: Bench) -> None:
        bench.record(result("half", 0.5))
        raise OSError("no space")

    def interrupts(bench: Bench) -> None:
        assert list(json.loads(path.read_text())["left_out"]) == ["bad", "last", "never"]
        bench.record(result("last", 0.5))
        raise KeyboardInterrupt

    measure: dict[str, Any] = {"good": lambda bench: bench.record(result("good", 0.5)), "bad": fails}
    with pytest.raises(SystemExit, match=r"bad: failed: OSError: no space"):
        run(measure | {"last": measure["good"]}, [], Bench(tmp_path), 4096, path)
    assert [found["workload"] for found in json.loads(path.read_text())["results"]] == ["good", "half", "good"]
    with pytest.raises(KeyboardInterrupt):
        run(measure | {"last": interrupts, "never": fails}, [], Bench(tmp_path), 4096, path)
    saved = json.loads(path.read_text())
    assert [found["workload"] for found in saved["results"]] == ["good", "half", "last"]
    assert saved["left_out"] == {"bad": "bad: failed: OSError: no space", "last": "last", "never": "never"}
    assert saved["repetitions"] == 9
    assert "no space" in capsys.readouterr().err


def test_json_has_a_result_a_line_and_six_digits(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    values = {"threads": None, "empty": {}, "results": [{"cost": 1.23456789e-6, "of": [1 / 3]}, {"cost": 2}]}
    write_json(path, values)
    assert path.read_text().splitlines()[3:6] == [
        '"results": [',
        '{"cost": 1.23457e-06, "of": [0.333333]},',
        '{"cost": 2}',
    ]
    assert list(json.loads(path.read_text())) == list(values)
    assert list(tmp_path.iterdir()) == [path]


def raced(limit_costs: list[float], tmp_path: Path, **more: Any) -> Result:
    costs = iter([1.0, 1.0, *limit_costs])  # the first of each is a warm-up
    bench = Bench(tmp_path, show=lambda result: None, repetitions=5, **more)
    bench.race("race", Contender("limit", lambda: next(costs, 1.0)), Contender("ours", lambda: 1.0, at_most(2.0)))
    return bench.results[0]


def test_a_race_goes_on_until_five_rounds_are_kept_and_is_marked_if_they_never_are(tmp_path: Path) -> None:
    calm = raced([1.0, 9.0, 9.0, 1.0], tmp_path, patience_s=1e9)
    assert (calm.rounds, calm.thrown_away, calm.verdict) == (5, 2, "ok")
    slow = raced([1.0, 9.0] * 3, tmp_path, patience_s=0.0)  # no more rounds, whether it held still or not
    assert (slow.rounds + slow.thrown_away, slow.is_steady) == (5, False)
    wild = raced([1.0, 9.0] * 50, tmp_path)
    assert (wild.rounds, wild.is_steady, wild.null_holds) == (15, False, False)


def reported(directory: Path, results: list[Result], **more: Any) -> str:
    """The report of a run in JSON as it was written before there was `is_steady`."""
    report = imported("report")
    path = directory / "2026-01-02.json"
    about = {"system": "Linux", "processors": 2, "filesystem": "ext4", "python": "3.11", "load": [0], "load_after": [1]}
    values = [asdict(one) for one in results]
    for value in values:
        if value["is_steady"]:
            del value["is_steady"]
    empty: dict[str, Any] = {key: {} for key in ("systems", "missing", "absent", "latencies", "notes")}
    path.write_text(json.dumps(empty | {"machine": about, "targets": [], "results": values} | more))
    (written,) = report.write_report(path)
    text: str = written.read_text()
    return text


def test_a_report_deletes_the_plots_of_the_report_before_and_no_other_picture(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_text("mine")
    reported(tmp_path, [result("append", 1.5, contender="tensorblob")])
    assert {path.name for path in tmp_path.glob("*.png")} == {"holiday.png", "append.png"}
    reported(tmp_path, [result("scan", 1.5, contender="tensorblob")])
    assert {path.name for path in tmp_path.glob("*.png")} == {"holiday.png", "scan.png"}


def test_at_a_glance_has_both_ends_of_a_curve_the_earlier_version_and_marks(tmp_path: Path) -> None:
    curve = [
        result("open", ratio * size, contender=name, size=size, axis="blocks", is_steady=size != 1_000)
        for name, ratio in (("tensorblob", 2.0), ("tensorblob 0.3.0", 1.0))
        for size in (10, 100, 1_000)
    ]
    text = reported(tmp_path, curve, left_out={"row": "`live.py`: cursor: failed: OSError: gone"})
    glance = [line for line in text.splitlines() if line.startswith("| open (")]
    assert ["tensorblob 0.3.0" in line for line in glance] == [True, True]
    assert [line.split(" | ")[0] + line.split(" | ")[3] for line in glance] == [
        "| open (10)0.50",
        "| open (1,000)0.50?",
    ]
    assert "| tensorblob 0.3.0 | 1,000 | 1000 s | 1000.00 | 1? |" in text
    assert "tensorblob 0.3.0 is ahead (blocks: 10, 100, 1,000)" in text
    assert "fewer than 5 rounds" in text
    assert "- `live.py`: cursor: failed: OSError: gone" in text


def test_growth_in_the_last_decade_only_is_said(tmp_path: Path) -> None:
    def curve(*costs: float) -> list[Result]:
        sizes = (10, 100, 1_000, 10_000)
        return [
            result("x", cost, contender="tensorblob", cost=Spread.of([cost]), size=size)
            for size, cost in zip(sizes, costs, strict=True)
        ]

    assert "a bug" not in reported(tmp_path, curve(1, 1, 1, 10))
    assert "a bug** (+0.39, in the last decade +1.30)" in reported(tmp_path, curve(1, 1, 1, 20))


@pytest.mark.parametrize("kind", ["it answers", "its process is gone"])
def test_a_limit_that_fails_is_absent_with_its_reason(kind: str, tmp_path: Path) -> None:
    compare = imported("compare")
    finished = []

    class Broken(compare.System):  # type: ignore[misc]
        def __init__(self, key: str) -> None:
            self.key = self.name = key
            self.latencies_s: list[list[float]] = []

        def prepare(self, job: Any, directory: Path) -> None:
            if self.key == compare.LIMIT:
                raise compare.Refused(self, "no space") if kind == "it answers" else compare.Missing("no space")

        def repeat(self) -> float:
            return 1.0

        def finish(self) -> None:
            finished.append(self.key)
            raise compare.Refused(self, "is gone")

    bench = Bench(tmp_path, show=lambda result: None)
    systems = {key: Broken(key) for key in (compare.LIMIT, "lmdb")}
    absent, latencies = compare.measure(bench, workloads(quick=True)["open-rows"], systems)
    assert absent[compare.LIMIT] == "from 1,000 rows on: no space"
    assert (bench.results, latencies, "lmdb" in finished) == ([], {}, True)


def imported(name: str) -> Any:
    """Of those that need what only the benchmarks do."""
    for needed in ("lmdb", "matplotlib", "rich"):
        pytest.importorskip(needed)
    return importlib.import_module(name)
