"""The other end of `worker.py`: a system as the comparison sees it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import SYSTEMS
from .jobs import Job

BENCH = Path(__file__).resolve().parent.parent
PATIENCE_S = 1800
PUBLISHED_PYTHON = BENCH.parent / ".venv-bench-published" / "bin" / "python"


class Missing(Exception):
    """This system is not installed here; the message says what is not."""


class Refused(Exception):
    """It cannot do this job, or did it wrong; the message says why."""

    def __init__(self, system: System, reason: str) -> None:
        super().__init__(reason)
        self.system = system


class System:
    """A system in a process of its own, which lives as long as the run: libraries are imported once, before any watch."""

    def __init__(self, key: str, threads: int | None) -> None:
        self.key = key
        environment = dict(os.environ)
        python = sys.executable
        if SYSTEMS.get(key) == "published":
            python = str(PUBLISHED_PYTHON)
            environment.pop("PYTHONPATH", None)
            if not PUBLISHED_PYTHON.exists():
                raise Missing(f"no {PUBLISHED_PYTHON.relative_to(BENCH.parent)}: `make bench` installs it")
        elif key == "ours":
            environment["PYTHONPATH"] = str(BENCH.parent)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._command, self._environment = [python, "-m", "peers.worker", key], environment
        self._start()
        self.name, self.how, self.gives_up = key, "", ""
        self.versions: dict[str, str] = {}
        self.latencies_s: list[list[float]] = []
        """Of the repetitions of this job, one by one, where the job takes such."""

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            cwd=BENCH,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def introduce(self) -> None:
        """Wait until it has imported its library; raises Missing."""
        introduction = self._answer()
        if "missing" in introduction:
            self.close()
            raise Missing(introduction["missing"])
        self.name, self.versions = introduction["name"], introduction["versions"]
        self.how, self.gives_up = introduction["how"], introduction["gives_up"]

    def prepare(self, job: Job, directory: Path) -> None:
        if self._process.poll() is not None:  # it fell over what it did before
            self._start()
            self.introduce()
        self.latencies_s = []
        if job.kind == "weigh":  # in a process that has done nothing else
            self._prepare(replace(job, kind="fill"), directory)
            self.finish()
            self.close()
            self._start()
            self.introduce()
        self._prepare(job, directory)

    def _prepare(self, job: Job, directory: Path) -> None:
        self._ask({"do": "prepare", "job": asdict(job), "directory": str(directory)})

    def repeat(self) -> float:
        answer = self._ask({"do": "repeat"})
        if answer["latencies_s"]:
            self.latencies_s.append(answer["latencies_s"])
        return float(answer["cost"])

    def weigh(self) -> dict[str, float]:
        figures: dict[str, float] = self._ask({"do": "weigh"})["figures"]
        return figures

    def finish(self) -> None:
        self._ask({"do": "finish"})

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()  # it ends with its input
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Refused(self, "its process is gone") from None
        answer = self._answer()
        for word in ("cannot", "failed"):
            if word in answer:
                raise Refused(self, f"{word}: {answer[word]}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            self._process.kill()
            self._process.wait()
            raise Refused(self, f"did not answer within {PATIENCE_S} s")
        if not (line := self._process.stdout.readline()).endswith("\n"):  # cut short, or nothing at all
            raise Refused(self, f"its process ended: {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
