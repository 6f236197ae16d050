"""Each step of the protocol is needed: with any one of them taken out of the engine, a test fails.

The list is in `mutants`. A mutant runs in a process of its own, where it is the only engine. First it has to do everything
right while nothing goes wrong; then the tests that it names have to find it out.
"""

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_support import elsewhere
from mutants import MUTANTS, Mutant

TESTS = Path(__file__).parents[1]
STATES = 400
"""Of a run; of them the first are those that lack all that was not synced."""
RUNS = 8


def _forget_the_engine(source: str) -> None:
    """Let this process, and those that it starts, find the engine below `source`."""
    here = [os.fspath(TESTS), os.fspath(TESTS / "crash")]
    for name, module in list(sys.modules.items()):
        at = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] == "tensorblob" or os.path.dirname(at) in here:
            del sys.modules[name]
    sys.path[:0] = [source, *here]
    os.environ["PYTHONPATH"] = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])


def _verdict(source: str, mutant: Mutant) -> str:
    """How the mutant was found out; "" if it was not."""
    _forget_the_engine(source)
    output = os.open(os.path.join(source, "output"), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import tensorblob

    assert tensorblob.__file__.startswith(source), tensorblob.__file__
    try:
        return next(_found_out(source, mutant), "")
    except BaseException:
        traceback.print_exc()  # not by way of the connection: its classes are those of another import
        return ""


def _found_out(source: str, mutant: Mutant) -> Iterator[str]:
    import torch
    from examine import Examination
    from kernel import Mount

    torch.set_num_threads(1)
    gc.freeze()
    for seed in range(RUNS):
        for workload in mutant.workloads:
            with Mount() as mount:
                examination = Examination(
                    mount, workload, seed, STATES
                )  # while nothing goes wrong, it is a good engine
                try:
                    examination.go()
                except Exception as error:
                    yield f"{workload} {seed}, state {examination.count}: {error}"
    if mutant.tests:
        tests = [os.fspath(TESTS / test) for test in mutant.tests]
        options = ["-x", "-q", "--assert=plain", f"--rootdir={TESTS.parent}", f"--basetemp={source}/tmp"]
        left_out = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "faulthandler")]
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]
        if pytest.main([*tests, *options, *left_out]) == pytest.ExitCode.TESTS_FAILED:
            yield f"one of {tests} fails"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_this_step_a_test_fails(mutant: Mutant, tmp_path: Path) -> None:
    mutant.build(tmp_path)
    how = elsewhere(_verdict, os.fspath(tmp_path), mutant)
    print(how)
    assert how, f"nothing fails without it: {mutant.name}\n{(tmp_path / 'output').read_text()[-3000:]}"
