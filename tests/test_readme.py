"""What the README and the docstrings show, works: every ```python block of a section runs, in order, in one namespace."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tensorblob

README = Path(__file__).parent.parent / "README.md"


def sections() -> dict[str, list[tuple[int, str]]]:
    """By heading of level one or two: its ```python blocks, each with the number of its first line."""
    found: dict[str, list[tuple[int, str]]] = {}
    heading, block, start, fence = "", [], 0, ""
    for number, line in enumerate(README.read_text().splitlines() if README.exists() else [], 1):
        if fence:
            if line.strip() == "```":
                if fence == "python":
                    found.setdefault(heading, []).append((start, "\n".join(block) + "\n"))
                fence = ""
            else:
                block.append(line)
        elif opened := re.fullmatch(r"```(\w*).*", line):
            fence, block, start = opened[1] or "text", [], number + 1
        elif re.match(r"##? ", line):
            heading = line.lstrip("# ")
    return found


SECTIONS = sections()


def test_the_readme_has_examples() -> None:
    assert SECTIONS, "README.md shows no ```python block"


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_examples_of_a_section_run_in_order(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, source in SECTIONS[heading]:
        code = compile(
            "\n" * (line - 1) + source, os.fspath(README), "exec"
        )  # so that a traceback shows the README's lines
        exec(code, namespace)
    for value in namespace.values():
        if isinstance(value, tensorblob.TensorBlob):
            value.close()


@pytest.mark.parametrize(
    "name", ["tensorblob", *(f"tensorblob.{module.name}" for module in pkgutil.iter_modules(tensorblob.__path__))]
)
def test_examples_in_docstrings_say_what_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags, extraglobs={"tb": tensorblob}).failed == 0


PROVED = re.compile(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)
"""The lines of the table of promises: the tests, how much they do, and what came of it."""


@pytest.mark.slow
def test_what_is_said_to_be_proved_is_what_the_tests_do() -> None:
    """The numbers of the README's table are those that are collected, and the defaults that run."""
    _, _, section = README.read_text().partition("## What is proved")
    lines = [line for line in PROVED.findall(section.partition("\n## ")[0]) if ".py" in line[0]]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests",
    ]
    collected = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=True).stdout
    tests = Counter(re.findall(r"^tests/(\S+\.py)::", collected, re.MULTILINE))
    assert len(lines) >= 11
    for by, count in lines:
        files = re.findall(r"`([\w/]+\.py)`", by)
        assert files, by
        assert all(tests[name] for name in files), f"no tests in some of {files}"
        if said := re.match(r"([\d ]+) tests", count):
            assert int(said[1].replace(" ", "")) == sum(tests[name] for name in files), files

    def number(noun: str) -> int:
        found = {int(text.replace(" ", "")) for text in re.findall(rf"\b(\d[\d ]*) (?:\w+ )?{noun}", section)}
        assert len(found) == 1, f"{noun}: {found}"
        return found.pop()

    def default(name: str, variable: str) -> int:
        source = (README.parent / "tests" / name).read_text()
        found = re.search(rf'"{variable}", "([\d_]+)"', source)
        assert found, f"{name} has no {variable}"
        return int(found[1])

    killed = len(re.findall(r"^tests/crash/test_mutants\.py::test_without_this_step", collected, re.MULTILINE))
    assert number("mutants") == killed
    workloads = re.findall(r"^tests/crash/test_states\.py::test_some_states_of_each_workload", collected, re.MULTILINE)
    assert number("workloads") == len(workloads)
    scenarios = set(
        re.findall(r"^tests/test_schedules\.py::test_no_interleaving\w+\[(?:\d+-)?(\w+)", collected, re.MULTILINE)
    )
    assert number("scenarios") == len(scenarios)
    assert number("distinct states") == default("crash/test_states.py", "TENSORBLOB_CRASH_STATES")
    assert number("kills") == default("test_kill_loop.py", "TENSORBLOB_KILLS")
    appends = default("test_shared.py", "TENSORBLOB_APPENDS")
    assert number("commits by") == 4 * appends + 2 * (appends // 50)
