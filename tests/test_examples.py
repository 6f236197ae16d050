"""The examples run, as a user runs them, and the checks that they end with find what they look for."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensordict import TensorDict

REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 240


def run(name: str, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Run an example with these arguments, warnings being errors; return its status and all that it and its children say."""
    command = [sys.executable, "-W", "error", os.fspath(REPOSITORY / "examples" / name), "--dir", os.fspath(tmp_path)]
    path = os.pathsep.join([os.fspath(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its children, too
    return process.returncode, said


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_pipeline_neither_loses_nor_repeats_a_row_when_its_consumer_is_killed(tmp_path: Path) -> None:
    status, said = run("streaming_pipeline.py", tmp_path, "--seconds", "2", "--kill-every-s", "0.2", "--sensors", "4")
    assert status == 0, said
    lives = [line for line in said.splitlines() if line.startswith("consumer ")]
    assert any("killed" in line for line in lives[:-1]) and "reached the end" in lives[-1]
    assert "Traceback" not in said and said.endswith("every window was summarised once\n")


@pytest.mark.slow
def test_the_replay_buffer_keeps_its_ratio_whoever_is_slow(tmp_path: Path) -> None:
    status, said = run("replay_buffer.py", tmp_path, "--seconds", "3", "--samples-per-insert", "6")
    assert status == 0, said
    assert "Traceback" not in said and "they were in balance" in said


@pytest.mark.slow
def test_the_demo_learns_from_a_blob_that_several_processes_write(tmp_path: Path) -> None:
    for name in ("gymnasium", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install 'tensorblob[examples]'")
    status, said = run("cartpole.py", tmp_path, "--goal", "110", "--seconds", "120", "--collectors", "2")
    assert status == 0, said
    assert "Traceback" not in said and said.endswith(": risen\n")
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000


# ---- what the pipeline checks at its end


def pipeline() -> tuple[ModuleType, TensorDict, list[Any], dict[int, int]]:
    """The example, ten readings of two sensors in windows of four, their summaries, and how many each sensor appended."""
    module = load("streaming_pipeline")
    readings = TensorDict(
        {
            "sensor": torch.tensor([0, 0, 1, 0, 1, 1, 1, 0, 0, 1]),
            "number": torch.tensor([0, 1, 0, 2, 1, 2, 3, 3, 4, 4]),
            "value": torch.randn(10, 3),
        },
        batch_size=[10],
    )
    summaries = [
        {field: value[0] for field, value in module.summary(readings[start : start + 4], start).items()}
        for start in range(0, 10, 4)
    ]
    return module, readings, summaries, {0: 5, 1: 5}


def test_the_pipelines_check_accepts_what_is_right() -> None:
    module, readings, summaries, appended = pipeline()
    assert module.wrong_rows(readings, summaries, appended) == []


@pytest.mark.parametrize("row", range(10))
def test_the_pipelines_check_finds_a_reading_that_is_lost_repeated_or_changed(row: int) -> None:
    module, readings, summaries, appended = pipeline()
    lost = torch.cat([readings[:row], readings[row + 1 :]])
    assert module.wrong_rows(lost, summaries, appended)
    repeated = torch.cat([readings[: row + 1], readings[row:]])
    assert module.wrong_rows(repeated, summaries, appended)
    readings["value"][row, 2] += 1
    assert module.wrong_rows(readings, summaries, appended)


@pytest.mark.parametrize("window", range(3))
def test_the_pipelines_check_finds_a_summary_that_is_lost_or_repeated(window: int) -> None:
    module, readings, summaries, appended = pipeline()
    assert module.wrong_rows(readings, summaries[:window] + summaries[window + 1 :], appended)
    assert module.wrong_rows(readings, summaries[: window + 1] + summaries[window:], appended)


def test_the_pipelines_check_finds_consumers_that_resume_at_the_wrong_row() -> None:
    module = load("streaming_pipeline")
    first = module.Life(resumed=0, read=128, acknowledged=64, repeated=0)
    rights = [module.Life(row, 192, 192, 0) for row in (64, 128)]
    wrongs = [module.Life(row, 192, 192, 0) for row in (0, 63, 129, 192)]
    assert [bool(module.wrong_lives([first, life])) for life in rights + wrongs] == [False] * 2 + [True] * 4
