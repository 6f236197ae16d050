"""What the README and the docstrings show, works: every ```python block of a section runs, in order, in one namespace."""

import doctest
import importlib
import os
import pkgutil
import re
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
