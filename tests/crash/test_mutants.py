"""Each step of the protocol is needed: with any one of them taken out of the engine, a test fails.

The list is in `mutants`. A mutant runs in a process of its own, where it is the only engine, also in the processes that its
tests start. First it has to do everything right while nothing goes wrong; then the tests that it names have to find it out.

That it is the missing step that is found is claimed, too: with nothing taken out, none of these tests finds anything.
"""

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_support import PRELOADED, elsewhere
from mutants import MUTANTS, TESTS, Mutant

PRELOADED += ["pytest", "pytest_asyncio.plugin", "pytest_timeout", "hypothesis", "_hypothesis_pytestplugin"]
"""A mutant's process runs tests itself."""
STATES = 400
"""Of a run; of them the first are those that lack all that was not synced."""
RUNS = 8
LIMIT_S, HANG_S = 10, 30
"""Who waits for ever without a step is found out, too: the tests that are named take seconds, or give up at these limits."""
SHARDS = 4
CONTROL_STATES, CONTROL_RUNS, CONTROL_EVERY = 50, 1, 4
"""Where nothing is missing, so many states are looked at, and every fourth of the tests: they run by themselves, too."""


def _forget_the_engine(source: str) -> None:
    """Let this process, and those that it starts, find the engine below `source`."""
    os.chdir(source)  # which comes first for a fork server: it would find the whole engine here
    here = [os.fspath(TESTS), os.fspath(TESTS / "crash")]
    for name, module in list(sys.modules.items()):
        at = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] == "tensorblob" or os.path.dirname(at) in here:
            del sys.modules[name]
    sys.path[:0] = [source, *here]
    os.environ["TENSORBLOB_TEST_LIMIT_S"] = str(LIMIT_S)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])


def _verdict(source: str, mutant: Mutant, runs: int = RUNS, states: int = STATES) -> str | None:
    """How the mutant was found out; "" if it was not, None if it could not even be looked at."""
    output = os.open(os.path.join(source, "output"), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        _forget_the_engine(source)
        import tensorblob

        assert tensorblob.__file__.startswith(source), tensorblob.__file__
        return next(_found_out(source, mutant, runs, states), "")
    except BaseException:
        traceback.print_exc()  # not by way of the connection: its classes are those of another import
        return None


def _found_out(source: str, mutant: Mutant, runs: int, states: int) -> Iterator[str]:
    import torch
    from examine import Examination
    from kernel import Mount

    torch.set_num_threads(1)
    gc.freeze()
    for seed in range(runs):
        for workload in mutant.workloads:
            with Mount() as mount:
                examination = Examination(
                    mount, workload, seed, states
                )  # while nothing goes wrong, it is a good engine
                try:
                    examination.go()
                except Exception as error:
                    yield f"{workload} {seed}, state {examination.count}: {error}"
    if mutant.tests:
        tests = [os.fspath(TESTS / test) for test in mutant.tests]
        options = ["-x", "-q", "--assert=plain", f"--rootdir={TESTS.parent}", f"--basetemp={source}/tmp"]
        options += [f"--timeout={HANG_S}", "--tb=native"]
        left_out = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "faulthandler")]
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]
        reports = _Reports()
        try:
            outcome = pytest.main([*tests, *options, *left_out], plugins=[reports])
            assert outcome in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), f"{outcome!r} of {tests}"
        except Exception:  # by something that a test left open when it failed, and that was found on the way out
            if not reports.has_failed:
                raise
        if reports.has_failed:
            yield f"one of {tests} fails"


class _Reports:
    """A plugin that takes note of what becomes of the tests."""

    has_failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.has_failed |= report.failed


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_this_step_a_test_fails(mutant: Mutant, folder: Path) -> None:
    mutant.build(folder)
    how = elsewhere(_verdict, os.fspath(folder), mutant)
    print(how)
    assert how, f"nothing fails without it: {mutant.name}\n{(folder / 'output').read_text()[-3000:]}"


# ---- with all its steps


NAMED_WORKLOADS = sorted({workload for mutant in MUTANTS for workload in mutant.workloads})
NAMED_TESTS = sorted({test for mutant in MUTANTS for test in mutant.tests if "::" in test})


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_with_all_steps_nothing_is_found_out(shard: int, folder: Path) -> None:
    """All workloads, and some of the tests: each of them runs by itself, too."""
    whole = Mutant(
        "nothing is missing",
        "files.py",
        """
-        fdatasync(fd)
+        fdatasync(fd)
""",
        workloads=tuple(NAMED_WORKLOADS[shard::SHARDS]),
        tests=tuple(NAMED_TESTS[shard :: SHARDS * CONTROL_EVERY]),
    )
    whole.build(folder)
    how = elsewhere(_verdict, os.fspath(folder), whole, CONTROL_RUNS, CONTROL_STATES)
    output = (folder / "output").read_text()
    assert how == "", f"{how}\n{output[-3000:]}"
    assert " passed" in output and whole.workloads


def _engine() -> str:
    import tensorblob

    return tensorblob.__file__


def _engine_of_others(source: str) -> str:
    _forget_the_engine(source)
    from api_support import elsewhere
    from test_mutants import _engine

    return str(elsewhere(_engine))


@pytest.mark.slow
def test_processes_that_a_mutants_tests_start_run_the_mutant(folder: Path) -> None:
    MUTANTS[0].build(folder)
    assert elsewhere(_engine_of_others, os.fspath(folder)).startswith(os.fspath(folder))
