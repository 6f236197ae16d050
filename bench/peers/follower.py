"""A second process of a system, which says of each row when it saw it: the other half of `follow` and `look`.

    python -m peers.follower SYSTEM follow|look STORE [READERS]        (in bench/)

It imports its library before there is a store. Each line on standard input is a number of rows to watch for; the answers
are "ready", then, a line for each row, how many seconds had passed since the moment that the row itself says it was
written. Between such watches it waits for its input, so that those who look all the time do so only while it is their turn.

Given READERS, that many processes watch at once; each answers only "ready" and "done", and looks each millisecond.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from . import contract
from .jobs import CLOCK

PATIENCE_S = 60
LOOK_EACH_S = 0.001


def watch(follow: Callable[..., None], path: Path, count: int, answer: Callable[[str], object]) -> None:
    left = count

    def seen(row: torch.Tensor) -> bool:
        nonlocal left
        answer(f"{time.monotonic() - float(row[0])}\n")
        left -= 1
        return left == 0

    signal.alarm(PATIENCE_S)  # a row that never comes ends this process, and the other end notices
    follow(path, CLOCK, lambda: answer("ready\n"), seen)
    signal.alarm(0)


def watch_quietly(follow: Callable[..., None], path: Path, count: int, answer: Callable[[str], object]) -> None:
    watch(follow, path, count, lambda line: answer(line) if line == "ready\n" else None)
    answer("done\n")


def serve(lines: Iterable[str], answer: Callable[[str], object], is_one: bool) -> None:
    system = importlib.import_module(f"peers.{sys.argv[1]}")
    follow, store = getattr(system, sys.argv[2]), Path(sys.argv[3])
    for line in lines:
        (watch if is_one else watch_quietly)(follow, store, int(line), answer)


def serve_together(readers: int, answer: Callable[[str], object]) -> None:
    """Forks them before the library is imported (not all survive a fork), and says each line to each."""
    pipes: list[int] = []
    for _ in range(readers):
        reading, writing = os.pipe()
        if os.fork() == 0:
            for pipe in (*pipes, writing):  # or it would wait for itself, and for those before it
                os.close(pipe)
            contract.pause_s = LOOK_EACH_S
            with os.fdopen(reading) as lines:
                serve(lines, answer, is_one=False)
            os._exit(0)
        os.close(reading)
        pipes.append(writing)
    for line in sys.stdin:
        for pipe in pipes:
            os.write(pipe, line.encode())
    for pipe in pipes:
        os.close(pipe)
    for _ in pipes:
        os.wait()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if sys.argv[4:]:
        serve_together(int(sys.argv[4]), answers.write)
    else:
        serve(sys.stdin, answers.write, is_one=True)
