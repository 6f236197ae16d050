"""Every filesystem call of every operation fails in turn, in every way that a kernel knows.

A trial prepares a blob, attempts one operation while the k-th call of it fails, and looks at what is left; k runs until the
operation needs no k-th call. Calls that only look (open, read, stat, list, lock) fail as well as those that change something.
There are three outcomes: the change is committed; it never was; or it is not known to be durable, and can be repeated under
its key. Whatever it was, the error is the kernel's own (nobody is told that a blob is damaged, missing or busy because there
was no descriptor left), the handle goes on as soon as the disk does, nothing is left behind, no descriptor is lost, and a
file whose sync failed is never synced again.

Each call fails in the ways that are its own. TENSORBLOB_FAULTS=all tries all errors on all calls.
"""

import contextlib
import errno
import gc
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
import torch
from api_support import SHAPE, numbers, rows
from disk import CALLS, LOOKS, SPACE, SYNCS, Disk, assert_never_synced_again, put_between, reboot
from live_support import open_files

import tensorblob as tb
from tensorblob.cursors import Cursor, consumers, read_position
from tensorblob.limiter import SampleToInsertRatio

BEFORE = [10, 11, 12, 13, 14, 15]
OTHER = [0, 1, 2, 3, 4, 5]
LARGE = 20
"""Rows that are staged to be adopted, or that two threads write and checksum at once: the test makes both smaller."""


# ---- what can fail, and how


class Fault(NamedTuple):
    """A way to fail. error 0: it does not fail, but is done by half. lasting: all that is of `kinds` fails from then on."""

    error: int
    kinds: tuple[str, ...]
    is_lasting: bool = False
    is_short: bool = False

    def __str__(self) -> str:
        what = errno.errorcode.get(self.error, "nothing")
        return what + " after half of it" * self.is_short + " for good" * self.is_lasting


DESCRIPTORS = ("open", "create", "dup")
INTERRUPTED = ("open", "create", "read", "write", "lock", "allocate", *SYNCS)
FULL = (errno.ENOSPC, errno.EDQUOT)
ERRORS = {
    errno.EIO: CALLS,
    errno.ENOSPC: (*SPACE, *SYNCS),
    errno.EDQUOT: (*SPACE, *SYNCS),
    errno.EINTR: INTERRUPTED,
    errno.EMFILE: DESCRIPTORS,
}
TRIES_ALL = os.environ.get("TENSORBLOB_FAULTS") == "all"


def faults_of(kind: str, nth: int) -> Iterator[Fault]:
    """The ways in which a call of this kind fails; of the two ways to be full the next call gets the other one."""
    for error, kinds in ERRORS.items():
        if not TRIES_ALL and (kind not in kinds or error == FULL[nth % 2]):
            continue
        yield Fault(error, (kind, *kinds))
        if kind == "write" and (TRIES_ALL or error != errno.EINTR):
            yield Fault(error, (kind, *kinds), is_short=True)
        if TRIES_ALL or error != errno.EINTR:
            yield Fault(error, (kind, *kinds), is_lasting=True)
    if kind in ("read", "write"):
        yield Fault(0, ("read", "write"), is_short=True)
        if TRIES_ALL:
            yield Fault(0, ("read", "write"), is_short=True, is_lasting=True)


# ---- one attempt


class Trial:
    """One operation on a blob of its own, of which the call `nth` fails by `fault`."""

    def __init__(self, folder: Path, disk: Disk, durability: str, nth: int, fault: Fault | None) -> None:
        self.folder, self.disk, self.durability = folder, disk, durability
        self.path = folder / "x.blob"
        self.nth, self.fault = nth, fault
        self.kinds: list[str] = []
        """The calls that the operation made."""
        self.error: OSError | None = None
        self.has_fired = False
        self.has_peers = False
        self.most_rows: int | None = None
        """How many rows the blob holds, if it is a ring."""
        self.closing = contextlib.ExitStack()

    def __str__(self) -> str:
        return f"{self.fault} at call {self.nth} ({self.kinds[self.nth] if self.nth < len(self.kinds) else 'none'})"

    # -- blobs

    def new(self, name: str = "x.blob", numbers: list[int] = BEFORE, **options: Any) -> Path:
        """A closed blob of rows, in blocks of four."""
        path = self.folder / name
        self.most_rows = options.get("max_rows", self.most_rows)
        with tb.TensorBlob.open(path, "w", **({"dtype": "float32", "shape": SHAPE, "block_rows": 4} | options)) as blob:
            if numbers:
                blob.write(rows(*numbers))
        return path

    def open(self, mode: str = "a+", **options: Any) -> tb.TensorBlob:
        self.has_peers |= options.get("shared", False)
        if mode != "r":
            options = {"durability": self.durability} | options
        return self.closing.enter_context(tb.TensorBlob.open(self.path, mode, **options))

    def written(self, **options: Any) -> tb.TensorBlob:
        """A writer at work on the rows `BEFORE`: with a tail that grows, a patch block, and something to compact."""
        self.new(numbers=[], **options)
        blob = self.open("r+")
        blob.write(rows(0, *BEFORE[1:5]))
        blob.seek(0)
        blob.write(rows(BEFORE[0]))
        blob.seek(0, 2)
        blob.write(rows(BEFORE[5]))
        return blob

    def peers(self) -> tuple[tb.TensorBlob, tb.TensorBlob]:
        """Two writers that share the blob, the first of which has not seen the last commit of the other."""
        self.new(numbers=[])
        one, two = self.open(shared=True), self.open(shared=True)
        one.write(rows(*BEFORE[:3]))
        two.write(rows(*BEFORE[3:]))
        return one, two

    def stored(self) -> list[int]:
        """What a reader that opens the blob now finds in it."""
        with tb.TensorBlob.open(self.path) as blob:
            found = blob[:]
            if isinstance(found, torch.Tensor):
                return numbers(found)
            assert numbers(found["a"]) == found["b"].tolist(), "all fields are of one commit"
            return numbers(found["a"])

    # -- the attempt and what it leaves

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Within the body calls are counted, and the chosen one fails; an `OSError` of the body is `error` then."""
        disk, fault, seen = self.disk, self.fault, 0

        def choose(act: Any) -> bool:
            nonlocal seen
            if act.kind == "unlock":
                return False  # the one call that does not fail
            seen += 1
            self.kinds.append(act.kind)
            if fault is None or seen <= self.nth or act.kind not in fault.kinds:
                return False
            is_chosen = fault.is_lasting or seen == self.nth + 1
            self.has_fired |= is_chosen
            return is_chosen

        if fault is not None:
            disk._error, disk._is_short = fault.error, fault.is_short
        disk._choose = choose
        try:
            yield
        except OSError as error:
            self.error = error
        finally:
            disk._choose = None
        if self.error is not None:
            assert self.has_fired and fault is not None, f"{self}: {self.error!r}"
            assert self.error.errno == fault.error and fault.error, f"{self}: the error is the kernel's: {self.error!r}"
            assert not isinstance(self.error, tb.Corrupt), f"{self}: nothing is damaged: {self.error!r}"
            if isinstance(self.error, tb.DiskFull):
                assert fault.error in FULL

    @contextlib.contextmanager
    def attempt(self, after: list[int], before: list[int] = BEFORE) -> Iterator[None]:
        """As `failing`, of a change from the rows `before` to `after`; it is whole or was never there."""
        with self.failing():
            yield
        found = self.stored()
        if self.error is None or isinstance(self.error, tb.OutcomeUnknown):
            assert found == after, f"{self}: {self.error!r}"
        else:
            assert found == before, f"{self}: {self.error!r}"

    def goes_on(self, blob: tb.TensorBlob, *more: tb.TensorBlob) -> None:
        """The disk works again, and so do the handles: nothing that failed is trusted, nothing is lost."""
        expected = self.stored()
        for number, handle in enumerate((blob, *more), 200):
            handle.seek(0, 2)
            handle.write(self.batch(handle, number))
            expected = self.kept([*expected, number])
            assert self.stored() == expected, self
        if "+" in blob.mode:
            blob.refresh()
            assert self.of(blob[:]) == expected, self
        if self.has_peers and self.is_unsaid:
            return
        assert_never_synced_again(self.disk, self)
        broken = {os.path.basename(act.path) for act in self.disk.acts if act.failed and act.kind == "sync"}
        named = {block for column in blob.snapshot.columns for block in column.live()}
        assert not broken & named, f"{self}: no row stays in a file whose sync failed"
        if broken:
            names = {act.path for act in self.disk.acts if act.failed and act.kind == "sync"}
            assert f"x.blob/{self.manifest()}" not in names, f"{self}: nor does the log"

    @property
    def is_unsaid(self) -> bool:
        """It could not be written down that a sync failed: on a disk that is broken for good, others cannot know."""
        return self.fault is not None and self.fault.is_lasting

    def kept(self, numbers: list[int]) -> list[int]:
        return numbers if self.most_rows is None else numbers[-self.most_rows :]

    def manifest(self) -> str:
        return max(found.name for found in self.path.glob("manifest.*"))

    @staticmethod
    def batch(blob: tb.TensorBlob, *values: int) -> Any:
        return rows(*values) if blob.schema.is_single else {"a": rows(*values), "b": torch.tensor(values)}

    @staticmethod
    def of(found: Any) -> list[int]:
        return numbers(found if isinstance(found, torch.Tensor) else found["a"])

    def check_what_is_left(self) -> None:
        """All handles are closed: what was stored is, and nothing else."""
        if not self.is_unsaid:
            assert_never_synced_again(self.disk, self)
        if not self.path.exists():
            return
        expected = self.stored()
        with tb.TensorBlob.open(self.path, "a") as blob:
            blob.write(self.batch(blob, 201))
        assert self.stored() == self.kept([*expected, 201]), self
        with tb.TensorBlob.open(self.path) as blob:
            named = [column.live() for column in blob.snapshot.columns]
            fields = [field.directory for field in blob.schema]
        for field, blocks in zip(fields, named, strict=True):
            left = set(os.listdir(self.path / "blocks" / field))
            assert left == blocks, f"{self}: files that nothing names are left behind, or named ones are gone"
        assert not os.listdir(self.path / "producers") and not list(self.path.glob(".*")), self
        assert not list(self.folder.glob(".*")), self


# ---- the operations

Operation = Callable[[Trial], None]
OPERATIONS: dict[str, Operation] = {}
POWER: set[str] = set()


def operation(*, at_power: bool = True) -> Callable[[Operation], Operation]:
    """Have an operation tried at durability "process" and, if that makes a difference, "power"."""

    def note(act: Operation) -> Operation:
        name = act.__name__.replace("_", " ")
        OPERATIONS[name] = act
        if at_power:
            POWER.add(name)
        return act

    return note


# -- changes of a sole writer


def changes(name: str, act: Callable[[tb.TensorBlob], object], after: list[int], **options: Any) -> None:
    def change(trial: Trial) -> None:
        blob = trial.written(**options)
        with trial.attempt(after):
            act(blob)
        trial.goes_on(blob)

    change.__name__ = name
    operation()(change)


def overwrite(blob: tb.TensorBlob, position: int, *values: int) -> None:
    blob.seek(position)
    blob.write(rows(*values))


def transact(blob: tb.TensorBlob) -> None:
    with blob.transaction(metadata={"a": 1}):
        blob.write(rows(16))
        overwrite(blob, 1, 91)
        blob.seek(0, 2)
        blob.write(rows(17, 18, 19))


changes("append_in_the_tail", lambda b: b.write(rows(16)), [*BEFORE, 16])
changes("append_that_fills_the_tail", lambda b: b.write(rows(16, 17)), [*BEFORE, 16, 17])
changes("append_over_blocks", lambda b: b.write(rows(*range(16, 26))), [*BEFORE, *range(16, 26)])
changes("append_with_metadata", lambda b: b.write(rows(16), metadata={"a": 1}), [*BEFORE, 16])
changes("transaction", transact, [10, 91, *BEFORE[2:], 16, 17, 18, 19])
changes("overwrite", lambda b: overwrite(b, 1, 91, 92, 93, 94), [10, 91, 92, 93, 94, 15])
changes("overwrite_beyond_the_end", lambda b: overwrite(b, 4, 94, 95, 96, 97), [*BEFORE[:4], 94, 95, 96, 97])
changes("truncate", lambda b: b.truncate(2), [10, 11])
changes("trim", lambda b: b.trim(5), [15])
changes("append_to_a_ring", lambda b: b.write(rows(16, 17, 18)), [13, 14, 15, 16, 17, 18], max_rows=6, block_rows=1)
changes("compact", lambda b: b.compact(), BEFORE)
changes("metadata", lambda b: b.set_metadata({"a": 1}), BEFORE)


@operation(at_power=False)
def flush(trial: Trial) -> None:
    blob = trial.written()
    with trial.attempt(BEFORE):
        blob.flush()
    assert trial.error is None or blob.durable_rows < blob.rows, trial
    trial.goes_on(blob)


@operation(at_power=False)
def large_append(trial: Trial) -> None:
    batch = torch.arange(LARGE, dtype=torch.float32)[:, None].expand(-1, *SHAPE).contiguous()
    trial.new(block_rows=64)
    blob = trial.open("a+")
    with trial.attempt([*BEFORE, *range(LARGE)]):
        blob.write(batch)
    trial.goes_on(blob)


@operation()
def append_to_several_fields(trial: Trial) -> None:
    tb.TensorBlob.open(
        trial.path, "w", schema={"a": ("float32", SHAPE), "b": "int64"}, block_rows={"a": 2, "b": 512}
    ).close()
    blob = trial.open("a+")
    blob.write(trial.batch(blob, *BEFORE[:5]))
    blob.write(trial.batch(blob, BEFORE[5]))
    with trial.attempt([*BEFORE, 16, 17, 18]):
        blob.write(trial.batch(blob, 16, 17, 18))
    trial.goes_on(blob)


@operation()
def append_that_begins_a_generation(trial: Trial) -> None:
    blob = trial.written()
    assert blob._writer is not None and blob._writer._manifest is not None
    blob._writer._manifest.edits = 10_000
    blob._writer._notice_due()
    with trial.attempt([*BEFORE, 16]):
        blob.write(rows(16))
    trial.goes_on(blob)


@operation()
def extend(trial: Trial) -> None:
    other = trial.new("other.blob", OTHER)
    blob = trial.written()
    with trial.attempt([*BEFORE, *OTHER]):
        blob.extend(other)
    trial.goes_on(blob)


@operation()
def extend_in_any_order(trial: Trial) -> None:
    other = trial.new("other.blob", OTHER)
    blob = trial.written()
    with trial.failing():
        blob.extend(other, maintain_order=False)
    is_absent = trial.error is not None and not isinstance(trial.error, tb.OutcomeUnknown)
    assert sorted(trial.stored()) == sorted(BEFORE if is_absent else [*BEFORE, *OTHER]), trial
    trial.goes_on(blob)


@operation(at_power=False)
def extend_from_another_filesystem(trial: Trial) -> None:
    other = trial.new("other.blob", OTHER)
    blob = trial.written()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", refuse_to_link)
        with trial.attempt([*BEFORE, *OTHER]):
            blob.extend(other)
    trial.goes_on(blob)


def refuse_to_link(*args: object, **options: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@operation()
def close(trial: Trial) -> None:
    blob = trial.written()
    blob.trim(4)
    blob.write(rows(16))
    with trial.attempt([14, 15, 16], [14, 15, 16]):
        blob.close()
    assert blob.closed, trial


@operation(at_power=False)
def read_what_was_written(trial: Trial) -> None:
    blob = trial.written()
    with trial.attempt(BEFORE):
        assert numbers(blob[:]) == BEFORE
        assert numbers(blob.gather([5, 0])) == [15, 10]
    trial.goes_on(blob)


# -- writers that share


@operation()
def shared_append_after_a_peers(trial: Trial) -> None:
    one, two = trial.peers()
    with trial.attempt([*BEFORE, 16]):
        one.write(rows(16))
    trial.goes_on(one, two)


@operation()
def shared_append_after_a_peers_generation(trial: Trial) -> None:
    one, two = trial.peers()
    two.compact()
    two.write(rows(16))
    with trial.attempt([*BEFORE, 16, 17], [*BEFORE, 16]):
        one.write(rows(17))
    trial.goes_on(one, two)


@operation()
def shared_append_over_blocks_that_begins_a_generation(trial: Trial) -> None:
    one, two = trial.peers()
    one.refresh()
    assert one._writer is not None and one._writer._manifest is not None
    one._writer._manifest.edits = 10_000
    one._writer._notice_due()
    with trial.attempt([*BEFORE, 16, 17, 18]):
        one.write(rows(16, 17, 18))
    trial.goes_on(two, one)


@operation()
def shared_overwrite(trial: Trial) -> None:
    trial.new()
    blob = trial.open("a+", shared=True)
    peer = trial.open("a", shared=True)
    peer.write(rows(16))
    with trial.attempt([10, 11, *BEFORE[:4]], [*BEFORE, 16]), blob.transaction():
        blob.truncate(2)
        blob.write(rows(*BEFORE[:4]))
    trial.goes_on(peer, blob)


@operation(at_power=False)
def shared_refresh(trial: Trial) -> None:
    one, two = trial.peers()
    with trial.attempt(BEFORE):
        one.refresh()
    trial.goes_on(one, two)


@operation()
def shared_flush_of_a_peers_rows(trial: Trial) -> None:
    one, two = trial.peers()
    with trial.attempt(BEFORE):
        one.flush()
    trial.goes_on(one, two)


@operation()
def shared_close(trial: Trial) -> None:
    one, two = trial.peers()
    with trial.attempt(BEFORE):
        one.close()
    assert one.closed
    trial.goes_on(two)


# -- beginning


def opens(name: str, prepare: Callable[[Trial], object], mode: str, **options: Any) -> None:
    def open_it(trial: Trial) -> None:
        prepare(trial)
        with trial.attempt(BEFORE):
            blob = trial.open(mode, **options)
            if mode == "r":
                assert numbers(blob[:]) == BEFORE
        if trial.error is None and mode != "r":
            trial.goes_on(blob)
        with tb.TensorBlob.open(trial.path) as reader:
            assert reader.history == 0, f"{trial}: nothing was cut"

    open_it.__name__ = name
    operation(at_power=name == "open_a_writer_after_one_that_died")(open_it)


def abandoned(trial: Trial) -> None:
    """The writer of a blob has died, and left garbage."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.ExitStack())
        blob = trial.written()
        trial.closing.pop_all()
        writer = blob._writer
        assert writer is not None and writer._announced is not None and writer._manifest is not None
        writer._blocks.create(0)
        if writer._flusher is not None:
            writer._flusher.stop()
        writer._blocks.close(is_shared=True)
        for pin in writer._pins:
            pin.close()
        writer._manifest.close()
        writer._announced.close_in_child()
        writer._writer_lock.release(force=True)
        os.close(writer.dir_fd)
        writer._manifest, blob._closed = None, True


opens("open_a_reader", Trial.new, "r")
opens("open_a_reader_that_maps_nothing", Trial.new, "r", io="pread")
opens("open_a_reader_with_few_maps", Trial.new, "r", max_cached_blocks=1)
opens("open_a_writer", Trial.new, "a+")
opens("open_a_shared_writer", Trial.new, "a+", shared=True)
opens("open_a_writer_after_one_that_died", abandoned, "a+")
opens("open_a_shared_writer_after_one_that_died", abandoned, "a+", shared=True)


@operation(at_power=False)
def open_a_reader_after_a_power_loss(trial: Trial) -> None:
    abandoned(trial)
    with pytest.MonkeyPatch.context() as patch:
        reboot(patch)
        with trial.attempt(BEFORE):
            assert numbers(trial.open("r")[:]) == BEFORE
        trial.closing.close()
        trial.check_what_is_left()


@operation(at_power=False)
def open_a_writer_after_a_power_loss(trial: Trial) -> None:
    abandoned(trial)
    with pytest.MonkeyPatch.context() as patch:
        reboot(patch)
        with trial.attempt(BEFORE):
            trial.open("a+")
        trial.closing.close()
        trial.check_what_is_left()


@operation()
def open_anew(trial: Trial) -> None:
    trial.new()
    with trial.failing():
        blob = trial.open("w+", metadata={"a": 1})
    assert trial.stored() in (([],) if trial.error is None else (BEFORE, [])), f"{trial}: these are two commits"
    if trial.error is None:
        trial.goes_on(blob)


@operation(at_power=False)
def create(trial: Trial) -> None:
    with trial.failing():
        trial.open("w+", dtype="float32", shape=SHAPE, block_rows=4)
    if trial.error is None or trial.path.exists():
        assert trial.stored() == [], f"{trial}: what has its name is whole"
    trial.closing.close()
    with tb.TensorBlob.open(trial.path, "w", dtype="float32", shape=SHAPE) as blob:
        blob.write(rows(1))


@operation(at_power=False)
def copy(trial: Trial) -> None:
    trial.new()
    reader, there = trial.open("r"), trial.folder / "copy.blob"
    with trial.attempt(BEFORE):
        reader.copy(there)
    if trial.error is not None and not there.exists():
        reader.copy(there)
    with tb.TensorBlob.open(there, "a+") as copied:
        assert numbers(copied[:]) == BEFORE, f"{trial}: what has its name is whole"


@operation(at_power=False)
def unlink(trial: Trial) -> None:
    trial.new()
    with trial.failing(), contextlib.suppress(UserWarning):
        assert tb.TensorBlob.unlink(trial.path), "a warning says that it is not removed"
    if trial.path.exists():
        assert trial.stored() == BEFORE, f"{trial}: it is removed whole, or not at all"
        assert tb.TensorBlob.unlink(trial.path)
    trial.new()


# -- readers


def refreshes(name: str, **way: Any) -> None:
    def refresh(trial: Trial) -> None:
        blob = trial.written()
        reader = trial.open("r", **way)
        assert numbers(reader[:]) == BEFORE
        blob.write(rows(*range(16, 22)))
        overwrite(blob, 0, 90)
        expected = [90, *BEFORE[1:], *range(16, 22)]
        with trial.failing():
            reader.refresh()
            reader[:], reader.gather([0, len(reader) - 1])
        assert numbers(reader[:]) in (BEFORE, [*BEFORE, *expected[6:]], expected), f"{trial}: one of the snapshots"
        reader.refresh()
        assert numbers(reader[:]) == expected, f"{trial}: what a reader could not do it does the next time"

    refresh.__name__ = name
    operation(at_power=False)(refresh)


refreshes("refresh")
refreshes("refresh_without_maps", io="pread")
refreshes("refresh_with_few_maps", max_cached_blocks=1)


@operation(at_power=False)
def refresh_over_generations(trial: Trial) -> None:
    blob = trial.written()
    reader = trial.open("r")
    blob.truncate(3)
    blob.compact()
    blob.write(rows(16))
    with trial.failing():
        reader.refresh()
        assert numbers(reader[:]) == [10, 11, 12, 16]
    if trial.error is not None:
        assert numbers(reader[:]) in (BEFORE, [10, 11, 12, 16]), f"{trial}: it shows what it did, or what is new"
    reader.refresh()
    assert numbers(reader[:]) == [10, 11, 12, 16]


# -- the live layer


@operation()
def async_append_under_a_key(trial: Trial) -> None:
    """What failed, however, may be repeated: it is there once."""
    trial.new()

    async def append() -> None:
        async with tb.open_writer(trial.path, shared=True, durability=trial.durability) as writer:
            with trial.attempt([*BEFORE, 16, 17]):
                await writer.append(rows(16, 17), key="p", sequence=1)
            assert await writer.append(rows(16, 17), key="p", sequence=1) == range(6, 8)
            assert await writer.append(rows(18), key="p", sequence=2) == range(8, 9)

    anyio.run(append)
    assert trial.stored() == [*BEFORE, 16, 17, 18], trial


@operation()
def async_transaction_flush_and_finish(trial: Trial) -> None:
    trial.new()

    async def append() -> None:
        async with tb.open_writer(trial.path, durability=trial.durability) as writer:
            with trial.failing():
                async with writer.transaction() as transaction:
                    transaction.append(rows(16))
                    transaction.append(rows(17))
                await writer.flush()
                await writer.finish()
            assert trial.stored() in (BEFORE, [*BEFORE, 16, 17]), trial
            if trial.error is None:
                assert writer.snapshot().is_finished
            await writer.append(rows(18))
            await writer.finish()

    anyio.run(append)
    assert trial.stored() in ([*BEFORE, 18], [*BEFORE, 16, 17, 18]), trial


def staged(name: str, count: int) -> None:
    values = [*range(16, 16 + count)]

    def stage(trial: Trial) -> None:
        trial.new(block_rows=128)

        async def commit(producer: Any) -> range:
            if not producer.staged_rows:
                await producer.append(rows(*values[:2]))
                await producer.append(rows(*values[2:]))
            found: range = await producer.commit(key="p", sequence=1)
            return found

        async def attempt() -> None:
            with tb.TensorBlob.open(trial.path, "a", shared=True, durability=trial.durability) as peer:
                async with tb.open_producer(trial.path, durability=trial.durability) as producer:
                    with trial.attempt([*BEFORE, *values]):
                        await commit(producer)
                    if producer.staged_rows not in (0, count):
                        await producer.discard()
                    assert await commit(producer) == range(6, 6 + count), trial
                    peer.write(rows(17))
                    await producer.append(rows(18))
                    assert await producer.commit(key="p", sequence=2) == range(7 + count, 8 + count)

        anyio.run(attempt)
        assert trial.stored() == [*BEFORE, *values, 17, 18], trial

    stage.__name__ = name
    operation()(stage)


staged("staged_rows_that_are_copied", 3)
staged("staged_blocks_that_are_adopted", LARGE)


@operation(at_power=False)
def ring_with_a_peers_consumers(trial: Trial) -> None:
    """A peer retains rows for a consumer: no failing call makes a writer forget that."""
    trial.new(max_rows=6, block_rows=1)

    async def append() -> None:
        async with (
            tb.open_writer(trial.path, shared=True, retain_for=["slow"]),
            tb.open_writer(trial.path, shared=True) as writer,
        ):
            with trial.attempt([*BEFORE, 16]):
                await writer.append(rows(16))

    anyio.run(append)


@operation(at_power=False)
def acknowledge(trial: Trial) -> None:
    trial.new()
    reader = trial.open("r")
    assert reader._reader is not None
    where = reader._reader.dir_fd
    cursor = trial.closing.enter_context(contextlib.closing(Cursor(where, "c")))
    cursor.acknowledge(1, 0)
    with trial.failing():
        cursor.acknowledge(2, 0)
    position = read_position(where, "c")
    assert position is not None and position.row in ((2,) if trial.error is None else (1, 2)), trial
    cursor.acknowledge(2, 0)
    assert read_position(where, "c") == (2, 0)
    cursor.acknowledge(3, 0)
    assert read_position(where, "c") == (3, 0)


@operation(at_power=False)
def open_a_cursor(trial: Trial) -> None:
    trial.new()
    reader = trial.open("r")
    assert reader._reader is not None
    where = reader._reader.dir_fd
    with contextlib.closing(Cursor(where, "c")) as cursor:
        cursor.acknowledge(4, 0)
    with trial.failing(), contextlib.closing(Cursor(where, "c")) as cursor:
        assert cursor.position == (4, 0)
        assert [(found.name, found.is_alive) for found in consumers(where)] == [("c", True)]
    with contextlib.closing(Cursor(where, "c")) as cursor:
        assert cursor.position == (4, 0), f"{trial}: the name is free, and the position as it was"


@operation(at_power=False)
def limit(trial: Trial) -> None:
    """Whatever fails, what was counted before is not forgotten."""
    trial.new()
    reader = trial.open("r")
    assert reader._reader is not None
    where = reader._reader.dir_fd
    with contextlib.closing(SampleToInsertRatio(1.0, 1, 1e6).open(where, "w")) as limit:
        assert limit.try_insert(100)
        limit.inserted(100)
        assert limit.try_sample(99)
        with trial.failing():
            assert limit.try_insert(1000)
            limit.inserted(1000)
            assert limit.try_sample(1000)
        inserted, sampled = limit.counts
        assert inserted in (100, 1100) and sampled in (99, 1099), f"{trial}: {limit.counts}"
        assert limit.try_insert(1)


# ---- the claim


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed writer", "error:Failed to unlink:UserWarning")
@pytest.mark.parametrize(
    ("name", "durability"),
    [(name, durability) for name in OPERATIONS for durability in ("process", "power")[: 1 + (name in POWER)]],
)
def test_whatever_call_fails_the_change_is_committed_or_never_was(
    name: str, durability: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    monkeypatch.setattr("tensorblob.staging.COPY_NBYTES", 16 * 4096)
    disk = put_between(monkeypatch, folder)
    numbered = itertools.count()

    def attempt(nth: int, fault: Fault | None) -> Trial:
        disk.acts.clear()
        trial = Trial(folder / str(next(numbered)), disk, durability, nth, fault)
        trial.folder.mkdir()
        opened = open_files()
        with trial.closing:
            OPERATIONS[name](trial)
        trial.check_what_is_left()
        assert open_files() == opened, f"{trial}: a descriptor is lost"
        shutil.rmtree(trial.folder)
        return trial

    gc.collect()  # what an earlier test left would let go of its files during this one
    kinds = attempt(0, None).kinds
    assert kinds, "there is something that can fail"
    for nth, kind in enumerate(kinds):
        for fault in faults_of(kind, nth):
            trial = attempt(nth, fault)
            assert trial.has_fired and trial.kinds[nth] == kind, f"{trial}: the same calls in the same order each time"


def test_calls_that_only_look_fail_as_well_as_those_that_change_something() -> None:
    """The table of faults leaves no kind of call out."""
    assert all(any(fault.error and not fault.is_lasting for fault in faults_of(kind, 0)) for kind in CALLS)
    assert set(LOOKS) < set(CALLS)
