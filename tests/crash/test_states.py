"""Whatever the power takes with it, what is found is what was promised: all states of many runs, gone through one by one.

Each shard is another run of a workload, drawn from its own seed; see `examine` for what counts as a state, and what is
done with each. `TENSORBLOB_CRASH_STATES` says how many there are in all (a million by default), `TENSORBLOB_SEED` which
runs and which states (0 by default). Where a point of a run has few enough states, all of them are taken.
"""

import contextlib
import fcntl
import gc
import os
import random
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest
import torch
from examine import DEPTH, Examination
from kernel import Disk, Mount, Write
from workloads import WORKLOADS, Run

STATES = int(os.environ.get("TENSORBLOB_CRASH_STATES", "1_000_000"))
SEED = int(os.environ.get("TENSORBLOB_SEED", "0"))

SMALL = ("create",)
"""They have few states, and are gone through to the end."""
RUNS = dict.fromkeys(WORKLOADS, 8) | {"create": 2, "unlink": 1, "append": 12, "mixed": 16, "killed": 12}
WEIGHTS = (
    dict.fromkeys(WORKLOADS, 3)
    | {"unlink": 1, "append_many_columns": 2}
    | dict.fromkeys(("extend", "extend_contiguous", "copy", "recovered"), 1)
)
"""Two blobs take twice the time of one."""
TOTAL = sum(RUNS[name] * WEIGHTS[name] for name in WORKLOADS if name not in SMALL)
SHARDS = [(name, run) for name in WORKLOADS for run in range(RUNS[name])]
SHARDS = sorted(SHARDS, key=lambda shard: shard[1])


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    """Tensors of a few rows gain nothing by threads."""
    gc.collect()  # what an earlier test left open would be closed on a disk that never had it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of more workers than processors, some take turns: three at once on two make a state a fifth dearer to each."""
    with contextlib.ExitStack() as opened:
        folder = tmp_path_factory.getbasetemp().parent  # of all workers
        cores = [opened.enter_context(open(folder / f"core {n}", "w")) for n in range(os.cpu_count() or 1)]
        with open(folder / "next core", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # who asked first gets the first one that is free
            while not any(map(_is_taken, cores)):
                time.sleep(0.02)
        yield


def _is_taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def examined(workload: str, seed: int, enough: int) -> Examination:
    print(f"{workload}: seed {seed}, {enough} states")
    with Mount() as mount:
        examination = Examination(mount, workload, seed, enough)
        examination.go()
    print(
        f"{examination.count} states, {examination.by_depth[1:]} by depth, of {len(examination.moments)} points, "
        f"of which {len(examination.small)} have few enough to be gone through one by one"
    )
    return examination


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_some_states_of_each_workload_are_as_promised(workload: str) -> None:
    examination = examined(workload, SEED - 1, 100)
    assert examination.count >= 100


class HastyDisk(Disk):
    """Its writes end after so many bytes, as the kernel's may."""

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return super().pwrite(fd, bytes(data)[:100], offset)


@pytest.mark.parametrize("workload", ["append_many_columns", "stream", "mixed"])
def test_writes_that_end_early_are_gone_on_with(workload: str) -> None:
    disk = HastyDisk()
    with Mount() as mount:
        mount.put(disk)
        WORKLOADS[workload](Run(disk, random.Random(1)))  # which looks what is there after each change
    assert any(len(act.data) == 100 for act in disk.log if isinstance(act, Write))


@pytest.mark.slow
@pytest.mark.usefixtures("core")
@pytest.mark.parametrize(("workload", "run"), SHARDS)
def test_every_state_that_a_power_loss_may_leave_is_as_promised(workload: str, run: int) -> None:
    enough = 1 << 30 if workload in SMALL else -(-STATES * WEIGHTS[workload] // TOTAL)
    count = 0
    for more in range(20):  # a run that has no new states left is followed by another, of other changes
        examination = examined(workload, SEED * 1000 + run + 50 * more, enough - count)
        count += examination.count
        if examination.count > 1000:
            assert all(examination.by_depth[1 : DEPTH + 1]), "recoveries were cut short, too"
            for path, history in examination.histories.items():
                assert len(examination.found[path]) > len(history.states) // 2, "the power was lost all along the run"
        if count >= enough or workload in SMALL:
            break
    assert count >= enough or workload in SMALL
