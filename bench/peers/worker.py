"""The process that one system runs in: does the work it is told to over a pipe, and holds the watch itself.

    python -m peers.worker SYSTEM        (in bench/)

Requests come as lines of JSON on standard input, answers go out the same way; what a library prints goes to standard
error. The first line is unasked for: name, versions, how the library is used, or `missing`. Then, for each workload,

    {"do": "prepare", "job": {...}, "directory": …}   make the rows and the store, and check what it gives back
    {"do": "repeat"}                                  {"cost": seconds per unit of work, "latencies_s": [...]}; the first
                                                      decides how much work fits into `budget_s`
    {"do": "weigh"}                                   {"figures": {...}}, of memory and the disk
    {"do": "finish"}                                  close it; the caller removes the directory
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from .contract import CannotDo
from .jobs import Job
from .work import KINDS, Work, figures


def introduction(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        system = importlib.import_module(f"peers.{name}")
        versions = {package: importlib.metadata.version(package) for package in system.PACKAGES}
    except ImportError as error:  # of a distribution, too
        return None, {"missing": str(error)}
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
                job = Job.from_json(request["job"])
                work = KINDS[job.kind](system, job, Path(request["directory"]))
                gc.collect()
                gc.freeze()  # a collection inside a repetition now only looks at that repetition's objects
            elif request["do"] == "repeat":
                assert work is not None
                answer = {"cost": work.repeat(), "latencies_s": work.latencies_s}
            elif request["do"] == "weigh":
                assert work is not None
                answer = {"figures": figures(work)}
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
