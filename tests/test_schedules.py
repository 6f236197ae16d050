"""Two or three actors at one blob, pre-empted at every filesystem call: no interleaving loses, mixes or uncovers anything.

A scenario makes a blob, says what its actors do, and checks what they saw and left. Plans of one pre-emption are tried, and
some of two and three. What fails prints its plan: TENSORBLOB_SCHEDULE="<scenario>: <plan>" tries that alone.
TENSORBLOB_SCHEDULES says how many plans of two and three are tried for each scenario, and four times as many of one;
TENSORBLOB_SEED says which.

That this finds races is claimed, too: each mutant at the end leaves out one step of the protocol, and is found.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, numbers, rows, stored
from disk import put_between, without_platters
from schedule import Plan, Scheduler, collected, plans

import tensorblob as tb
from tensorblob import files, manifest
from tensorblob.blob import append_to
from tensorblob.cursors import Cursor, read_position
from tensorblob.edit import Key
from tensorblob.flow import Retainer
from tensorblob.limiter import MinSize
from tensorblob.staging import Staging

SCHEDULES = int(os.environ.get("TENSORBLOB_SCHEDULES", "60"))
SEED = int(os.environ.get("TENSORBLOB_SEED", "0"))
WAIT_S = 600.0
SHARDS = 2

Actor = Callable[[], object]


class Scenario:
    """A blob of the rows 0 … 5, in blocks of two, and what some do to it."""

    rows_before: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, at: Path) -> None:
        self.at, self.path = at, at / "x.blob"
        self.closing = contextlib.ExitStack()
        self.states: list[list[int]] = [list(self.rows_before)]
        """What the blob holds after each commit of the one who writes, as far as it began."""
        self.acknowledged = 0
        """How many of them have returned."""
        self.prepare()

    def prepare(self) -> None:
        self.create()

    def create(self, **options: Any) -> None:
        options = {"dtype": "float32", "shape": SHAPE, "block_rows": 2} | self.options | options
        with tb.TensorBlob.open(self.path, "w", **options) as blob:
            if self.rows_before:
                blob.write(rows(*self.rows_before))

    def open(self, mode: str = "r", **options: Any) -> tb.TensorBlob:
        if options.get("shared") or mode != "r":
            options = {"timeout_s": WAIT_S} | options
        return self.closing.enter_context(tb.TensorBlob.open(self.path, mode, **options))

    @property
    def actors(self) -> list[Actor]:
        raise NotImplementedError

    def check(self) -> None:
        """All actors have ended well."""

    # -- what actors do

    def commits(self, after: list[int], change: Callable[[], object]) -> None:
        """Make a change that nobody else's can come before."""
        self.states.append(after)
        change()
        self.acknowledged = len(self.states) - 1

    def looks(self, reader: tb.TensorBlob, times: int = 2) -> None:
        """Refresh and read: what is seen is one of the states, none before one that was seen, or acknowledged."""
        held: list[tuple[torch.Tensor, list[int]]] = []
        at = -1
        for _ in range(times):
            least = self.acknowledged
            reader.refresh()
            found = numbers(reader[:])
            assert found in self.states[max(at, least) :], f"{found} after state {at}, acknowledged {least}"
            at = max(at, least) + self.states[max(at, least) :].index(found)
            held += [(reader.view(*run), found[run[0] : run[1]]) for run in reader.runs(0, len(reader))]
            for view, expected in held:
                assert numbers(view) == expected, "what is held stays"

    def opens_and_looks(self) -> None:
        least = self.acknowledged
        with tb.TensorBlob.open(self.path) as reader:
            found = numbers(reader[:])
            assert found in self.states[least:], f"{found}, when state {least} was acknowledged"
            self.looks(reader, 1)
            assert numbers(reader.gather(list(range(len(reader))))) == numbers(reader[:])

    def tidy(self) -> None:
        """Nobody is there any more: what is there is named, and all that is named is there."""
        self.closing.close()
        expected = stored(self.path)
        with tb.TensorBlob.open(self.path, "a"):
            pass
        with tb.TensorBlob.open(self.path) as reader:
            assert numbers(reader[:]) == expected
            assert reader.history == self.history
            (column,) = reader.snapshot.columns
            assert set(os.listdir(self.path / "blocks" / "data")) == column.live(), "no garbage, nothing missing"
        assert (
            not os.listdir(self.path / "producers") and not list(self.path.glob(".*")) and not list(self.at.glob(".*"))
        )

    history = 0


# ---- one writer and readers


class CommitAndRefresh(Scenario):
    def prepare(self) -> None:
        self.create()
        self.writer, self.reader = self.open("r+"), self.open()

    def write(self) -> None:
        self.writer.seek(0, 2)
        self.commits([0, 1, 2, 3, 4, 5, 6], lambda: self.writer.write(rows(6)))
        self.commits([0, 1, 2, 3, 4, 5, 6, 7, 8], lambda: self.writer.write(rows(7, 8)))
        self.writer.seek(1)
        self.commits([0, 91, 92, 3, 4, 5, 6, 7, 8], lambda: self.writer.write(rows(91, 92)))

    @property
    def actors(self) -> list[Actor]:
        return [self.write, lambda: self.looks(self.reader, 3)]

    def check(self) -> None:
        assert stored(self.path) == self.states[-1]


class CompactAndRefresh(CommitAndRefresh):
    """Blocks are unlinked while a reader steps to the generation that no longer names them."""

    def write(self) -> None:
        self.writer.seek(1)
        self.commits([0, 91, 2, 3, 4, 5], lambda: self.writer.write(rows(91)))
        self.commits([0, 91, 2, 3, 4, 5], self.writer.compact)
        self.commits([2, 3, 4, 5], lambda: self.writer.trim(2))
        self.commits([2, 3, 4, 5], self.writer.compact)


class OpenWhileGenerationsPass(CompactAndRefresh):
    """Pin and unlink: who opens a generation that is about to go starts over, or keeps all that it names."""

    def prepare(self) -> None:
        self.create()
        self.writer = self.open("r+")

    @property
    def actors(self) -> list[Actor]:
        return [self.write, self.opens_and_looks]


class OpenWhileOthersRead(CompactAndRefresh):
    """As before, but another reader holds an older generation, which keeps its blocks until it steps on."""

    @property
    def actors(self) -> list[Actor]:
        return [self.write, self.opens_and_looks, lambda: self.looks(self.reader)]


class CloseAndOpen(Scenario):
    """A writer closes, another one waits for it, a reader comes."""

    def prepare(self) -> None:
        self.create()
        self.writer = self.open("a")
        self.writer.trim(1)
        self.states = [[1, 2, 3, 4, 5]]

    def close(self) -> None:
        self.commits([*self.states[-1], 6], lambda: self.writer.write(rows(6)))
        self.writer.close()

    def open_next(self) -> None:
        with tb.TensorBlob.open(self.path, "a", timeout_s=WAIT_S) as blob:
            self.commits([*self.states[-1], 7], lambda: blob.write(rows(7)))

    @property
    def actors(self) -> list[Actor]:
        return [self.close, self.open_next, self.opens_and_looks]

    def check(self) -> None:
        assert sorted(stored(self.path)) == [1, 2, 3, 4, 5, 6, 7]


class CopyAndExtendFromWhatGoes(Scenario):
    """Blocks are linked from a blob that trims, compacts and begins generations meanwhile."""

    def prepare(self) -> None:
        self.create()
        self.writer, self.reader = self.open("r+"), self.open()
        other = self.at / "other.blob"
        options: dict[str, Any] = {"dtype": "float32", "shape": SHAPE, "block_rows": 2}
        self.other = self.closing.enter_context(tb.TensorBlob.open(other, "w+", **options))

    def write(self) -> None:
        self.writer.seek(1)
        self.commits([0, 91, 2, 3, 4, 5], lambda: self.writer.write(rows(91)))
        self.commits([0, 91, 2, 3, 4, 5], self.writer.compact)
        self.commits([4, 5], lambda: self.writer.trim(4))
        self.commits([4, 5], self.writer.compact)

    def extend(self) -> None:
        self.other.extend(self.path)
        assert numbers(self.other[:]) in self.states
        before = numbers(self.other[:])
        self.other.extend(self.reader)
        assert numbers(self.other[:])[len(before) :] == [0, 1, 2, 3, 4, 5], "as that handle shows it"
        self.reader.refresh()
        self.reader.copy(self.at / "copy.blob")

    @property
    def actors(self) -> list[Actor]:
        return [self.write, self.extend]

    def check(self) -> None:
        assert stored(self.at / "copy.blob") in self.states
        self.other.write(rows(7))


class RecoverAndVerifyBesideAWriter(CompactAndRefresh):
    """Both take what they find for what it is: an intact blob, in one state, of which nothing is missing."""

    def salvage(self) -> None:
        least = self.acknowledged
        found = tb.recover(self.path, self.at / "recovered.blob")
        assert found.is_complete and not found.faults, found
        assert stored(self.at / "recovered.blob") in self.states[least:]

    def check_sums(self) -> None:
        report = tb.verify(self.path)
        assert report.ok, report.faults

    @property
    def actors(self) -> list[Actor]:
        return [self.write, self.salvage, self.check_sums]


# ---- several writers


class SharedCommits(Scenario):
    count = 2

    def prepare(self) -> None:
        self.create()
        self.writers = [self.open("a+", shared=True) for _ in range(self.count)]
        self.told: list[tuple[int, int]] = []
        self.seen: list[list[int]] = []

    def append(self, who: int) -> None:
        for number in range(2):
            self.tell(self.writers[who], 100 * (who + 1) + number)

    def tell(self, blob: tb.TensorBlob, value: int) -> None:
        """Append three rows of one value, over two blocks."""
        assert blob._writer is not None
        columns, count = blob._batches.columns(rows(value, value, value))
        self.told.append((value, blob._writer.append(columns, count)))

    def watch(self) -> None:
        with tb.TensorBlob.open(self.path) as reader:
            for _ in range(2):
                told = len(self.told)
                reader.refresh()
                found = numbers(reader[:])
                self.seen.append(found)
                assert all(value in found for value, _ in self.told[:told]), "what was acknowledged is seen"

    @property
    def actors(self) -> list[Actor]:
        return [lambda: self.append(0), lambda: self.append(1)]

    def check(self) -> None:
        found = stored(self.path)
        assert len(found) == 6 + 3 * len(self.told) and found[:6] == list(self.rows_before)
        for value, start in self.told:
            assert found[start : start + 3] == [value] * 3, "whole, and where it was told"
        assert len(set(found[6:])) == len(self.told)
        for snapshot in self.seen:
            assert snapshot == found[: len(snapshot)] and (len(snapshot) - 6) % 3 == 0, "a prefix of whole commits"


class SharedCommitsAndAReader(SharedCommits):
    @property
    def actors(self) -> list[Actor]:
        return [lambda: self.append(0), lambda: self.append(1), self.watch]


class SharedCommitAndAPeersGeneration(SharedCommits):
    """Checkpoint and switch by a peer: who appends next goes on in the new generation."""

    def switch(self) -> None:
        self.tell(self.writers[1], 200)
        self.writers[1].compact()
        self.writers[1].compact()
        self.tell(self.writers[1], 201)

    @property
    def actors(self) -> list[Actor]:
        return [lambda: self.append(0), self.switch, self.watch]


class SharedOpenAndClose(SharedCommits):
    """Peers come and go: each sweeps up after the dead, and nobody else."""

    def come_and_go(self, value: int) -> None:
        with tb.TensorBlob.open(self.path, "a", shared=True, timeout_s=WAIT_S) as blob:
            self.tell(blob, value)

    def leave(self) -> None:
        self.append(0)
        self.writers[0].compact()
        self.writers[0].close()

    @property
    def actors(self) -> list[Actor]:
        return [self.leave, lambda: self.come_and_go(300), lambda: self.come_and_go(400)]


class StagedCommitAndASweep(SharedCommits):
    """What is staged is named by no manifest, and still no garbage: its producer lives."""

    def prepare(self) -> None:
        super().prepare()
        (self.path / "producers" / "dead").touch()  # so that there is something to sweep
        (self.path / "blocks" / "data" / "dead-1").touch()

    def stage(self) -> None:
        blob = self.writers[0]
        assert blob._writer is not None
        staging = Staging(blob._writer)
        for value in (100, 101):
            columns, count = blob._batches.columns(rows(value, value, value))
            staging.append(columns, count)

            def key(start: int, value: int = value) -> list[Any]:
                return [Key("k", value, start, start + 3)]

            self.told.append((value, staging.commit(key, "k", value)))

    def sweep(self) -> None:
        with tb.TensorBlob.open(self.path, "a", shared=True, timeout_s=WAIT_S) as blob:
            self.tell(blob, 300)
            blob.compact()

    @property
    def actors(self) -> list[Actor]:
        return [self.stage, self.sweep, self.watch]

    def check(self) -> None:
        super().check()
        assert not (self.path / "blocks" / "data" / "dead-1").exists()


class StagedCommitThatIsCopiedAndASweep(StagedCommitAndASweep):
    adopts = False


# ---- consumers


class AcknowledgeAndTrim(Scenario):
    """A ring keeps what a consumer has not acknowledged."""

    options = {"max_rows": 4, "block_rows": 1}  # noqa: RUF012
    rows_before = (0, 1, 2, 3)

    def prepare(self) -> None:
        self.create()
        self.reader = self.open()
        assert self.reader._reader is not None
        self.where = self.reader._reader.dir_fd
        cursor = Cursor(self.where, "c")
        cursor.acknowledge(1, 0)
        cursor.close()
        self.writer = self.open("a+", shared=True)
        assert self.writer._writer is not None
        retainer = Retainer(["c"], is_shared=True)
        retainer.watch(self.writer._writer.dir_fd)
        self.writer._writer.keep_from = retainer.keep_from
        self.writer._writer.announce((), 1 << 60, ("c",))

    def append(self) -> None:
        for number in range(4, 9):
            self.writer.write(rows(number))

    def append_too(self) -> None:
        """A peer that retains for nobody, but asks who does."""
        with tb.TensorBlob.open(self.path, "a", shared=True, timeout_s=WAIT_S) as peer:
            assert peer._writer is not None
            retainer = Retainer((), is_shared=True)
            retainer.watch(peer._writer.dir_fd)
            peer._writer.keep_from = retainer.keep_from
            peer.write(rows(50))
            peer.write(rows(51))

    def consume(self) -> None:
        with contextlib.closing(Cursor(self.where, "c")) as cursor:
            assert cursor.position is not None
            for row in range(cursor.position.row, 4):
                self.reader.refresh()
                assert self.reader.first_row <= row, "a row that was not acknowledged is gone"
                assert numbers(self.reader[row - self.reader.first_row : row + 1 - self.reader.first_row]) == [row]
                cursor.acknowledge(row + 1, 0)

    @property
    def actors(self) -> list[Actor]:
        return [self.append, self.consume, self.append_too]

    def check(self) -> None:
        assert read_position(self.where, "c") == (4, 0)
        found = stored(self.path)
        assert sorted(found[-7:]) == [4, 5, 6, 7, 8, 50, 51][-len(found[-7:]) :] or len(found) <= 7


class LimiterCounts(Scenario):
    def prepare(self) -> None:
        self.create()
        reader = self.open()
        assert reader._reader is not None
        self.limits = [MinSize(1).open(reader._reader.dir_fd, producer) for producer in ("a", "b", "")]
        for limit in self.limits:
            self.closing.callback(limit.close)

    def insert(self, who: int) -> None:
        for count in (1, 10):
            assert self.limits[who].try_insert(count)
            self.limits[who].inserted(count)

    def sample(self) -> None:
        sampled = sum(self.limits[2].try_sample(5) for _ in range(3))
        self.sampled = 5 * sampled

    @property
    def actors(self) -> list[Actor]:
        return [lambda: self.insert(0), lambda: self.insert(1), self.sample]

    def check(self) -> None:
        assert self.limits[0].counts == (22, self.sampled)


# ---- the beginning and the end of a blob


class CreateAndCreate(Scenario):
    """Who finds no blob makes one; of two who do, both write the same."""

    def prepare(self) -> None:
        self.found: list[list[int]] = []

    def begin(self, value: int) -> None:
        with append_to(self.path, dtype="float32", shape=SHAPE, block_rows=2, shared=True, timeout_s=WAIT_S) as blob:
            blob.write(rows(value, value))

    def look(self) -> None:
        with contextlib.suppress(FileNotFoundError), tb.TensorBlob.open(self.path) as reader:
            self.found.append(numbers(reader[:]))

    @property
    def actors(self) -> list[Actor]:
        return [lambda: self.begin(1), lambda: self.begin(2), self.look]

    def check(self) -> None:
        found = stored(self.path)
        assert found in ([1, 1, 2, 2], [2, 2, 1, 1])
        assert all(seen == found[: len(seen)] for seen in self.found)


class UnlinkAndOpen(Scenario):
    """A blob that is removed is whole until it is gone, also for who opens it just then."""

    def unlink(self) -> None:
        with contextlib.suppress(UserWarning):
            self.is_gone = tb.TensorBlob.unlink(self.path)

    def look(self) -> None:
        with contextlib.suppress(FileNotFoundError), tb.TensorBlob.open(self.path) as reader:
            assert len(reader) == len(self.rows_before)

    @property
    def actors(self) -> list[Actor]:
        return [self.unlink, self.look]

    def tidy(self) -> None:
        self.closing.close()
        assert not self.path.exists() and not list(self.at.glob(".*"))


SCENARIOS: dict[str, type[Scenario]] = {
    kind.__name__: kind
    for kind in (
        CommitAndRefresh,
        CompactAndRefresh,
        OpenWhileGenerationsPass,
        OpenWhileOthersRead,
        CloseAndOpen,
        CopyAndExtendFromWhatGoes,
        RecoverAndVerifyBesideAWriter,
        SharedCommits,
        SharedCommitsAndAReader,
        SharedCommitAndAPeersGeneration,
        SharedOpenAndClose,
        StagedCommitAndASweep,
        StagedCommitThatIsCopiedAndASweep,
        AcknowledgeAndTrim,
        LimiterCounts,
        CreateAndCreate,
        UnlinkAndOpen,
    )
}


# ---- the claims


class Failed(AssertionError):
    """A plan under which a scenario went wrong."""


def explore(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedules: int = SCHEDULES,
    shard: tuple[int, int] = (0, 1),
) -> int:
    """Try a scenario under many plans, or under the one that the environment asks for; return how many it were."""
    kind = SCENARIOS[name]
    without_platters(monkeypatch)
    scheduler = Scheduler(put_between(monkeypatch, folder), monkeypatch)
    monkeypatch.setattr("tensorblob.staging.COPY_NBYTES", 1 if getattr(kind, "adopts", True) else 1 << 20)
    tried = 0

    def attempt(plan: Plan) -> list[int]:
        nonlocal tried
        tried += 1
        collected(tried)
        at = folder / str(tried)
        at.mkdir()
        scenario = kind(at)
        outcome = scheduler.run(scenario.actors, plan)
        try:
            for error in outcome.errors:
                if error is not None:
                    raise error
            scenario.check()
            scenario.tidy()
        except BaseException as error:
            with contextlib.suppress(Exception):
                scenario.closing.close()
            steps = "\n".join(outcome.trace[-200:])
            raise Failed(f'{error!r}\n{steps}\nto replay: TENSORBLOB_SCHEDULE="{name}: {plan}"') from error
        shutil.rmtree(at)
        return outcome.order

    asked, _, plan = os.environ.get("TENSORBLOB_SCHEDULE", "").partition(": ")
    if asked == name:
        attempt(Plan.parse(plan))
        return tried
    for other in plans(_actors_of(kind, folder), attempt, schedules, SEED, shard):
        attempt(other)
    return tried


def _actors_of(kind: type[Scenario], folder: Path) -> int:
    at = folder / "counted"
    at.mkdir()
    scenario = kind(at)
    with scenario.closing:
        return len(scenario.actors)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_breaks_a_promise(name: str, shard: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = explore(name, folder, monkeypatch, shard=(shard, SHARDS))
    print(f"{name}: {tried} plans; TENSORBLOB_SEED={SEED} TENSORBLOB_SCHEDULES={SCHEDULES}")


def _never(*args: object, **options: object) -> bool:
    return False


def _always(*args: object, **options: object) -> bool:
    return True


@contextlib.contextmanager
def _unlocked(fd: int, what: str, timeout_s: float | None = None) -> Iterator[None]:
    yield


def _ignores_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations and their blocks go, whoever holds them."""
    before = files.try_lock

    def try_lock(fd: int, *, shared: bool) -> bool:
        is_ours = before(fd, shared=shared)
        return is_ours or "/manifest." in os.readlink(f"/proc/self/fd/{fd}")

    monkeypatch.setattr(files, "try_lock", try_lock)


def _pins_and_does_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest generation is pinned, and taken for that, though it may have been removed, and a next one be there."""

    def pin_newest(dir_fd: int) -> tuple[int, manifest.Pin]:
        while True:
            generation = manifest.generations(dir_fd)[-1]
            with contextlib.suppress(FileNotFoundError):
                pin = manifest.Pin(files.open_file(manifest.manifest_name(generation), dir_fd=dir_fd))
                files.try_lock(pin.fd, shared=True)
                return generation, pin

    monkeypatch.setattr(manifest, "pin_newest", pin_newest)


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "generations are removed though they are pinned": ("CompactAndRefresh", _ignores_pins),
    "who pins a generation does not look again": ("OpenWhileGenerationsPass", _pins_and_does_not_look_again),
    "a shared commit does not read on first": (
        "SharedCommits",
        lambda patch: patch.setattr("tensorblob.writer.Writer._join", lambda self: None),
    ),
    "a peer's generation is not noticed": (
        "SharedCommitAndAPeersGeneration",
        lambda patch: patch.setattr("tensorblob.manifest.Manifest.is_superseded", _never),
    ),
    "a turn is had without the lock": (
        "SharedCommits",
        lambda patch: patch.setattr(files, "lock", lambda fd: None),
    ),
    "producers that live are swept": (
        "StagedCommitAndASweep",
        lambda patch: patch.setattr("tensorblob.sweep.is_dead", _always),
    ),
    "who opens what is being removed blames the blob": (
        "UnlinkAndOpen",
        lambda patch: patch.setattr("tensorblob.reader._close_unopened", lambda dir_fd, path, error: os.close(dir_fd)),
    ),
    "counts are changed without the lock": (
        "LimiterCounts",
        lambda patch: patch.setattr(files, "locked", _unlocked),
    ),
    "retention asks nobody": (
        "AcknowledgeAndTrim",
        lambda patch: patch.setattr("tensorblob.flow.present", lambda dir_fd: []),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_protocol_that_lacks_a_step_is_found(mutant: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, mutate = MUTANTS[mutant]
    mutate(monkeypatch)
    with pytest.raises(Failed) as caught:
        explore(name, folder, monkeypatch)
    assert f'TENSORBLOB_SCHEDULE="{name}: ' in str(caught.value)


def test_a_plan_reads_as_it_is_written() -> None:
    for plan in (Plan(), Plan(2, ((17, 1), (40, 0)))):
        assert Plan.parse(str(plan)) == plan
    assert all(a < b for a, b in pairwise(step for step, _ in Plan.parse("0 1>1 2>0 3>1").preemptions))
