"""A second process of a system, which says of each row when it saw it: the other half of `follow` and `look`.

    python -m peers.follower SYSTEM follow|look STORE        (in bench/)

Each line on standard input is a number of rows to watch for; the answers are "ready", then, a line for each row, how many
seconds had passed since the moment that the row itself says it was written. Between such watches it waits for its input,
so that those who look all the time do so only while it is their turn.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .jobs import CLOCK

PATIENCE_S = 60


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


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    system = importlib.import_module(f"peers.{sys.argv[1]}")
    for line in sys.stdin:
        watch(getattr(system, sys.argv[2]), Path(sys.argv[3]), int(line), answers.write)
