"""The process that one system runs in: does the work it is told to over a pipe, and holds the watch itself.

    python -m peers.worker SYSTEM        (in bench/)

Requests come as lines of JSON on standard input, answers go out the same way; what a library prints goes to standard
error. The first line is unasked for: name, versions, how the library is used, or `missing`. Then, for each workload,

    {"do": "prepare", "job": {...}, "directory": …}   make the rows and the store, and check what it gives back
    {"do": "repeat"}                                  {"cost": seconds per unit of work}; the first decides how much
                                                      work fits into `budget_s`
    {"do": "finish"}                                  close it; the caller removes the directory

Nothing but the library's documented calls runs while the watch does: pipes, JSON and random numbers come before and after.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import mean_cost

from .contract import CannotDo, Fields, Rows, columns_of, is_one_array
from .jobs import BULK_ROWS, Job

PAUSE_S = 0.002


def made_rows(fields: Fields, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same rows in every process."""
    numbers = torch.Generator().manual_seed(seed)
    columns = {}
    for name, (dtype, shape) in fields.items():
        if dtype.startswith("float"):
            columns[name] = torch.randn(count, *shape, generator=numbers, dtype=getattr(torch, dtype))
        else:
            top = 2 if dtype == "bool" else 200
            columns[name] = torch.randint(0, top, (count, *shape), generator=numbers, dtype=getattr(torch, dtype))
    return columns


class Work:
    """One system on one job, from the empty store to the last repetition."""

    def __init__(self, system: Any, job: Job, directory: Path) -> None:
        self.system, self.job, self.directory = system, job, directory
        self.one = is_one_array(job.fields)
        self.source = made_rows(job.fields, max(job.rows, job.batch_rows, 300))
        self.count: int | None = None
        self._check()
        self.writer = self.reader = None
        self.follower: subprocess.Popen[str] | None = None
        if job.kind in ("append", "bulk", "follow", "look"):
            self._prepare_writing()
        else:
            self._prepare_reading()

    def _slice(self, start: int, stop: int) -> Rows:
        columns = {name: column[start:stop] for name, column in self.source.items()}
        return columns["rows"] if self.one else columns

    def _write(self, path: Path, rows: int, batch_rows: int, capacity_rows: int) -> Any:
        writer = self.system.Writer(path, self.job.fields, capacity_rows, self.job.sync)
        for start in range(0, rows, batch_rows):
            writer.append(self._slice(start, min(start + batch_rows, rows)))
        return writer

    def _check(self) -> None:
        """What was appended one by one, and many at a time, is what comes back; nothing is timed before that is so."""
        path = self.directory / "check"
        writer = self._write(path, 3, 1, 300)
        writer.append(self._slice(3, 300))
        writer.close()
        reader = self.system.Reader(path, self.job.fields)
        picks = torch.tensor([2, 299, 7, 2, 150])
        for given, index in ((reader.row(201), 201), (reader.batch(picks), picks)):
            for name, column in columns_of(given).items():
                assert torch.equal(column, self.source[name][index]), f"{name} came back different"
        if self.one:
            chunks = torch.cat([chunk.clone() for chunk in reader.chunks(128)])
            assert torch.equal(chunks, self.source["rows"][:300]), "the scan gave other rows"
        reader.close()
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _prepare_writing(self) -> None:
        job = self.job
        if job.kind == "bulk":
            return
        capacity_rows = job.rows + 40 * job.most * job.batch_rows
        path = self.directory / "store"
        self.writer = self._write(path, job.rows, BULK_ROWS, capacity_rows)
        if job.kind in ("follow", "look"):
            if not hasattr(self.system, job.kind):
                raise CannotDo(f"nothing to {job.kind} with")
            name = self.system.__name__.split(".")[-1]
            command = [sys.executable, "-m", "peers.follower", name, job.kind, str(path)]
            self.follower = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            return
        self.call, self.inputs = self.writer.append, [self._slice(0, job.batch_rows)] * job.most

    def _prepare_reading(self) -> None:
        job, path = self.job, self.directory / "store"
        self._write(path, job.rows, BULK_ROWS, job.rows).close()
        self.source = {}
        if job.kind == "open":
            self.call, self.inputs = self._open_and_read_last, [path] * job.most
            return
        self.reader = self.system.Reader(path, job.fields)
        chosen = random.Random(0)
        if job.kind == "row":
            self.call, self.inputs = self.reader.row, chosen.choices(range(job.rows), k=job.most)
        elif job.kind == "batch":
            self.call = self.reader.batch
            batches = [
                torch.tensor(chosen.choices(range(job.rows), k=job.batch_rows)) for _ in range(min(job.most, 200))
            ]
            self.inputs = [batches[n % len(batches)] for n in range(job.most)]

    def _open_and_read_last(self, path: Path) -> None:
        if hasattr(self.system, "open_and_read_last"):  # the limit, which keeps its rows in memory otherwise
            self.system.open_and_read_last(path, self.job.fields, self.job.rows - 1)
            return
        reader = self.system.Reader(path, self.job.fields)
        reader.row(self.job.rows - 1)
        reader.close()

    def repeat(self) -> float:
        if self.job.kind == "bulk":
            return self._bulk()
        if self.job.kind == "scan":
            return self._scan()
        if self.follower is not None:
            return self._seen_after()
        if self.count is None:
            self.count = how_many(self.call, self.inputs, self.job.budget_s)
        return mean_cost(self.call, self.inputs[: self.count])()

    def _bulk(self) -> float:
        """From the empty store to the last append's return; creating and closing it are not counted."""
        path = self.directory / "bulk"
        writer = self.system.Writer(path, self.job.fields, self.job.rows, self.job.sync)
        batches = [self._slice(at, min(at + BULK_ROWS, self.job.rows)) for at in range(0, self.job.rows, BULK_ROWS)]
        start = time.perf_counter()
        for batch in batches:
            writer.append(batch)
        seconds = time.perf_counter() - start
        writer.close()
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return seconds

    def _scan(self) -> float:
        rows = 0
        start = time.perf_counter()
        for chunk in self.reader.chunks(BULK_ROWS):
            chunk.sum()
            rows += len(chunk)
        seconds = time.perf_counter() - start
        assert rows == self.job.rows, f"a scan of {rows} rows"
        return seconds

    def _seen_after(self) -> float:
        """The median of how long after the beginning of its append each row was seen; one at a time, after a pause."""
        assert self.follower is not None and self.follower.stdin is not None and self.follower.stdout is not None
        self.follower.stdin.write(f"{self.job.most}\n")
        self.follower.stdin.flush()
        if self.follower.stdout.readline() != "ready\n":
            raise RuntimeError("the follower ended before it began")
        delays_s = []
        for _ in range(self.job.most):
            time.sleep(PAUSE_S)
            self.writer.append(torch.full((1, 8), time.monotonic(), dtype=torch.float64))
            if not (answer := self.follower.stdout.readline()):
                raise RuntimeError("the follower did not see a row")
            delays_s.append(float(answer))
        return statistics.median(delays_s)

    def finish(self) -> None:
        if self.follower is not None:
            self.follower.communicate()  # it ends with its input
        for store in (self.writer, self.reader):
            if store is not None:
                store.close()


def how_many(call: Callable[[Any], object], inputs: Sequence[Any], budget_s: float) -> int:
    """How many of those calls take about that long, at least 3."""
    count = 1
    while (seconds := count * mean_cost(call, inputs[:count])()) < budget_s / 4 and count < len(inputs):
        count = min(len(inputs), 4 * count)
    return max(min(3, len(inputs)), min(len(inputs), int(count * budget_s / seconds)))


def introduction(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        system = importlib.import_module(f"peers.{name}")
    except ImportError as error:
        return None, {"missing": str(error)}
    versions = {package: importlib.metadata.version(package) for package in system.PACKAGES}
    gives_up = getattr(system, "GIVES_UP", "")
    return system, {"name": system.NAME, "versions": versions, "how": system.HOW, "gives_up": gives_up}


def serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints does not disturb the answers
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    system, answer = introduction(name)
    answers.write(json.dumps(answer) + "\n")
    work: Work | None = None
    for line in sys.stdin if system is not None else ():
        request = json.loads(line)
        try:
            answer = {}
            if request["do"] == "prepare":
                work = Work(system, Job.from_json(request["job"]), Path(request["directory"]))
                gc.collect()
                gc.freeze()  # a collection inside a repetition now only looks at that repetition's objects
            elif request["do"] == "repeat":
                assert work is not None
                answer = {"cost": work.repeat()}
            else:
                work = work.finish() if work is not None else None
                gc.unfreeze()
                gc.collect()
        except CannotDo as reason:
            answer = {"cannot": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve(sys.argv[1])
