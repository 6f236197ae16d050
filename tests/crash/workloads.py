"""What the engine is doing when the power goes: one run for each thing that it does, on a disk in memory.

A `History` knows what a blob may hold, by a model of plain integers that shares nothing with the engine: `states`, one
after each commit, the first being what was there before. A run marks in the disk's log when a commit is attempted, and
when the engine has promised that what is there by then survives a power loss. Whatever is found later must be one of the
states between the last promise and the last attempt.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from kernel import Act, Disk, Killed, Make, Name

import tensorblob as tb
from tensorblob import cursors
from tensorblob.blob import TensorBlob
from tensorblob.edit import Finish, Key
from tensorblob.staging import Staging

EXTRA = 9000, 9001
"""Rows of no run."""

Fields = dict[str, tuple[str, int]]
"""Name to (dtype, width) of a field; the name of a blob of plain tensors is empty."""

SECTORS: Fields = {"": ("int64", 64)}
"""Rows of one sector."""
QUARTERS: Fields = {"": ("int32", 256)}
"""Rows of a quarter of a page."""
ODD: Fields = {"": ("int32", 75)}
"""Rows of 300 bytes: they cross sectors and pages."""
MANY: Fields = {"a": ("int64", 64), "b.c": ("int32", 256), "d": ("uint8", 96)}
SINGLE = (SECTORS, QUARTERS, ODD)


class Content(NamedTuple):
    """All that a blob says."""

    first_row: int
    columns: tuple[bytes, ...]
    notes: tuple[tuple[int, int, str], ...]
    metadata: str
    keys: tuple[tuple[str, int], ...]
    finish_row: int | None


def content(blob: TensorBlob) -> Content:
    """What the engine says that a blob holds."""
    snapshot, columns, _ = blob._state()
    first, stop = snapshot.first_row, snapshot.rows
    found = [column.copy(first, stop, 1) for column in columns]
    assert all(len(rows) == stop - first for rows in found), "all columns are equally long"
    return Content(
        first,
        tuple([rows.numpy().tobytes() for rows in found]),
        tuple([(note.start, note.stop, str(note.value)) for note in snapshot.notes]),
        str(snapshot.metadata or {}),
        tuple(sorted((key.key, key.sequence) for key in snapshot.keys.values())),
        snapshot.finish_row if snapshot.is_finished else None,
    )


class Held(NamedTuple):
    """The model: rows are numbers."""

    rows: tuple[int, ...] = ()
    first_row: int = 0
    notes: tuple[tuple[int, int, str], ...] = ()
    metadata: str = "{}"
    keys: tuple[tuple[str, int, int], ...] = ()
    """(key, sequence, row id after its rows)."""
    finish_row: int | None = None

    @property
    def stop(self) -> int:
        return self.first_row + len(self.rows)

    def appended(self, *rows: int) -> Held:
        return self._replace(rows=self.rows + rows)

    def noted(self, start: int, note: dict[str, Any] | None) -> Held:
        return self if note is None else self._replace(notes=(*self.notes, (start, self.stop, str(note))))

    def keyed(self, key: str, sequence: int) -> Held:
        others = tuple(known for known in self.keys if known[0] != key)
        return self._replace(keys=(*others, (key, sequence, self.stop)))

    def overwritten(self, at: int, *rows: int) -> Held:
        return self._replace(rows=self.rows[:at] + rows + self.rows[at + len(rows) :])

    def cut(self, at: int) -> Held:
        """Without the rows from position `at` on."""
        row = self.first_row + at
        if row >= self.stop:
            return self
        notes = tuple(note for note in self.notes if note[1] <= row)
        keys = tuple(key for key in self.keys if key[2] <= row)
        return self._replace(rows=self.rows[:at], notes=notes, keys=keys, finish_row=None)

    def trimmed(self, row: int) -> Held:
        row = min(max(row, self.first_row), self.stop)
        notes = list(self.notes)
        while notes and notes[0][1] <= row:
            del notes[0]
        return self._replace(rows=self.rows[row - self.first_row :], first_row=row, notes=tuple(notes))


class History:
    """What there has been at `path`: `states[0]` before the run, and one more with each attempt to change it."""

    def __init__(self, disk: Disk, path: str, fields: Fields, held: Held | None = None) -> None:
        self.disk, self.path, self.fields = disk, path, fields
        self.held = Held() if held is None else held
        self.states: list[Any] = [None if held is None else self.content()]
        self._rows: dict[tuple[str, int], bytes] = {}
        self._extra: tuple[Any, list[bytes]] | None = None
        self._before = self.held
        self.most_rows: int | None = None
        """Of a ring: how many rows it keeps."""

    def followed_by(self, disk: Disk, state: Any) -> History:
        """What comes after the next boot, when `state` was found."""
        after = History.__new__(History)
        after.__dict__ = self.__dict__ | {"disk": disk, "states": [state]}
        return after

    @property
    def schema(self) -> dict[Any, Any]:
        """The fields as a caller gives them."""
        return {tuple(name.split(".")) if "." in name else name: field for name, field in self.fields.items()}

    def extra(self) -> tuple[Any, list[bytes]]:
        """Two rows to append, whatever there is, and their bytes by field."""
        if self._extra is None:
            rows = [b"".join([self._bytes(name, number) for number in EXTRA]) for name in self.fields]
            self._extra = self.batch(*EXTRA), rows
        return self._extra

    def followed(self, found: Content, tails: list[bytes]) -> Content:
        """What there is once the extra rows were appended, in as many rows as the blob keeps."""
        columns = [column + tail for column, tail in zip(found.columns, tails, strict=True)]
        count = len(columns[0]) // (len(tails[0]) // len(EXTRA))
        trimmed = 0 if self.most_rows is None else max(count - self.most_rows, 0)
        if trimmed:
            columns = [column[len(column) // count * trimmed :] for column in columns]
        return found._replace(first_row=found.first_row + trimmed, columns=tuple(columns))

    def row(self, field: str, number: int) -> np.ndarray[Any, Any]:
        """Row `number` of a field: no two are equal, nor zero, nor are two sectors of one."""
        dtype, width = self.fields[field]
        if dtype == "uint8":
            return ((np.arange(width) * 7 + number * 3) % 255 + 1).astype(dtype)
        return (np.arange(width) + 1 + number * 1000).astype(dtype)

    def batch(self, *numbers: int) -> Any:
        """Rows as a caller gives them."""
        made = {name: torch.from_numpy(np.stack([self.row(name, n) for n in numbers])) for name in self.fields}
        return made[""] if "" in made else {tuple(n.split(".")) if "." in n else n: t for n, t in made.items()}

    def content(self) -> Content:
        held = self.held
        columns = tuple(b"".join([self._bytes(name, number) for number in held.rows]) for name in self.fields)
        keys = tuple(sorted(key[:2] for key in held.keys))
        finish_row = held.finish_row if held.finish_row == held.stop else None
        return Content(held.first_row, columns, held.notes, held.metadata, keys, finish_row)

    def _bytes(self, name: str, number: int) -> bytes:
        if (found := self._rows.get((name, number))) is None:
            found = self._rows[name, number] = self.row(name, number).tobytes()
        return found

    def attempt(self, held: Held) -> None:
        """The run is about to bring this about."""
        self._before, self.held = self.held, held
        self.add(self.content())

    def add(self, state: Any) -> None:
        self.states.append(state)
        self.disk.mark("attempted", self.path, len(self.states) - 1)

    def found_again(self) -> None:
        """The writer was killed: the last attempt is there, or the state before it, and nobody has said which."""
        with TensorBlob.open(self.path, io="pread") as reader:
            found = content(reader)
        assert found in self.states[-2:], "a kill costs no commit"
        if found != self.states[-1]:
            self.held = self._before
            self.add(found)

    def promised(self) -> None:
        """The engine has said that the last state survives."""
        self.disk.mark("durable", self.path, len(self.states) - 1)


class Scribe:
    """Changes one blob through its public face, and keeps its `History`."""

    def __init__(self, run: Run, history: History, mode: str = "a+", *, power: bool, **options: Any) -> None:
        self.run, self.history, self.power = run, history, power
        if mode == "w+":
            history.attempt(Held(**({"metadata": str(m)} if (m := options.get("metadata")) else {})))
            options = {"schema": history.schema, "block_rows": run.block_rows(history.fields), **options}
        durability = "power" if power else "process"
        self.blob = TensorBlob.open(history.path, mode, durability=durability, io="pread", **options)
        if history.held == Held() or mode == "w+":
            history.promised()  # blobs are created durably
        self.check()

    def check(self) -> None:
        """The model and the engine agree, as long as nothing has gone wrong."""
        assert content(self.blob) == self.history.states[-1]

    @contextmanager
    def changing(self, held: Held) -> Iterator[None]:
        if self.run.transaction is None:
            self.history.attempt(held)
        else:
            self.history.held = held
        yield
        if self.run.transaction is None:
            self.check()
            if self.power:
                self.history.promised()

    def write(self, count: int, note: dict[str, Any] | None = None) -> None:
        numbers = [self.run.number() for _ in range(count)]
        held = self.history.held
        with self.changing(held.appended(*numbers).noted(held.stop, note)):
            self.blob.seek(0, 2)
            self.blob.write(self.history.batch(*numbers), metadata=note)

    def overwrite(self, at: int, count: int) -> None:
        numbers = [self.run.number() for _ in range(count)]
        with self.changing(self.history.held.overwritten(at, *numbers)):
            self.blob.seek(at)
            self.blob.write(self.history.batch(*numbers))

    def truncate(self, at: int) -> None:
        with self.changing(self.history.held.cut(at)):
            self.blob.truncate(at)

    def trim(self, row: int) -> None:
        with self.changing(self.history.held.trimmed(row)):
            self.blob.trim(row)

    def compact(self) -> None:
        with self.changing(self.history.held):
            self.blob.compact()

    def extend(self, other: Scribe, *, maintain_order: bool = True) -> None:
        with self.changing(self.history.held.appended(*other.history.held.rows)):
            self.blob.extend(other.blob, maintain_order=maintain_order)

    def set_metadata(self, value: dict[str, Any]) -> None:
        with self.changing(self.history.held._replace(metadata=str(value))):
            self.blob.set_metadata(value)

    def append_keyed(self, count: int, key: str, sequence: int) -> None:
        numbers = [self.run.number() for _ in range(count)]
        held = self.history.held.appended(*numbers).keyed(key, sequence)
        with self.changing(held):
            parts = [self.blob._batches.columns(self.history.batch(number))[0] for number in numbers]
            columns = [list(column) for column in zip(*parts, strict=True)]  # as of tasks whose appends are grouped
            writer = self.blob._writer
            assert writer is not None
            writer.append(columns, count, None, lambda at: [Key(key, sequence, at.rows, at.rows + count)])

    def finish(self) -> None:
        held = self.history.held
        with self.changing(held._replace(finish_row=held.stop)):
            assert self.blob._writer is not None
            self.blob._writer.change(lambda snapshot, _: [Finish(snapshot.rows)])

    @contextmanager
    def transaction(self, note: dict[str, Any] | None = None) -> Iterator[None]:
        start = self.history.held.stop
        with self.blob.transaction(note):
            self.run.transaction = self.history
            yield
            self.run.transaction = None
            self.history.attempt(self.history.held.noted(min(start, self.history.held.stop), note))
        self.check()
        if self.power:
            self.history.promised()

    def flush(self) -> None:
        self.blob.flush()
        self.history.promised()

    def close(self) -> None:
        self.blob.close()
        self.history.promised()


class Run:
    """One run of a workload on `disk`. What it does exactly is drawn from `rng`."""

    def __init__(self, disk: Disk, rng: random.Random, root: str = "/d", *, power: bool = True) -> None:
        self.disk, self.rng, self.root = disk, rng, root
        self.histories: dict[str, History] = {}
        self.transaction: History | None = None
        self.dead: list[Scribe] = []
        self._numbers = 0
        self.power = power
        disk.mkdir(root)
        above = disk.open(os.path.dirname(root), os.O_RDONLY)
        disk.fsync(above)
        disk.close(above)

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def few(self, most: int = 5) -> int:
        return self.rng.randint(1, most)

    def block_rows(self, fields: Fields) -> int:
        """Blocks of one to three pages, or so many."""
        return self.rng.choice((1, 9, 17)) if len(fields) == 1 else 1

    def history(self, name: str, fields: Fields | None = None) -> History:
        path = f"{self.root}/{name}"
        fields = self.rng.choice(SINGLE) if fields is None else fields
        self.histories[path] = History(self.disk, path, fields)
        return self.histories[path]

    def scribe(
        self, name: str = "x.blob", fields: Fields | None = None, *, power: bool | None = None, **options: Any
    ) -> Scribe:
        """A writer of a new blob."""
        history = self.history(name, fields)
        return Scribe(self, history, "w+", power=self.power if power is None else power, **options)

    def again(self, scribe: Scribe, *, power: bool | None = None, **options: Any) -> Scribe:
        """Another writer of the same blob."""
        return Scribe(self, scribe.history, "r+", power=self.power if power is None else power, **options)

    @contextmanager
    def killed_after(self, acts: int, *scribes: Scribe) -> Iterator[None]:
        """The process is killed, by -9, in the midst of some act of the body, if it comes that far."""
        self.disk.kill_after(acts)
        with suppress(Killed):
            yield
        for scribe in scribes:
            if scribe.blob._writer is not None:
                scribe.blob._writer._forks = -1  # as in another process: it is not closed, and does not mind
        self.dead += scribes
        self.disk.forget_process()
        for scribe in scribes:
            scribe.history.found_again()


# ---- the workloads


def create(run: Run) -> None:
    with_notes = {"metadata": {"made": run.few()}} if run.rng.random() < 0.5 else {}
    run.scribe("a/b/x.blob", run.rng.choice((*SINGLE, MANY)), **with_notes).close()


def create_killed(run: Run) -> None:
    """A creator is killed about when the blob appears; whoever comes next in that boot finds its blob, or makes one."""
    history = run.history("x.blob")
    history.attempt(Held())
    before = len(run.disk.log)
    TensorBlob.open(f"{run.root}/rehearsal.blob", "w+", schema=history.schema, io="pread").close()
    acts = [act for act in run.disk.log[before:] if isinstance(act, Act) and not isinstance(act, Make)]
    (renamed,) = [place for place, act in enumerate(acts) if isinstance(act, Name) and act.name == "rehearsal.blob"]
    with run.killed_after(renamed + run.rng.randrange(5)):
        TensorBlob.open(history.path, "w+", schema=history.schema, io="pread").close()
    is_there = run.disk.path.lexists(history.path)
    scribe = Scribe(run, history, "r+" if is_there else "w+", power=run.power)
    scribe.write(run.few())
    scribe.close()


def append(run: Run) -> None:
    scribe = run.scribe()
    for _ in range(8):
        scribe.write(run.few())
    scribe.close()


def append_many_columns(run: Run) -> None:
    scribe = run.scribe(fields=MANY)
    for _ in range(6):
        scribe.write(run.few(4))
    scribe.close()


def seal(run: Run) -> None:
    scribe = run.scribe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.blocks.MAX_OPEN", 2)
        for _ in range(6):
            scribe.write(run.few(12))
            if run.rng.random() < 0.2:
                scribe.flush()
        scribe.close()


def checkpoint(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.writer.MAX_EDITS", 5)
        scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
        for _ in range(16):
            scribe.write(run.few(3))
        scribe.close()


def durable_mark(run: Run) -> None:
    scribe = run.scribe(power=False)
    for _ in range(5):
        for _ in range(run.few(3)):
            scribe.write(run.few())
        scribe.flush()
    scribe.write(run.few())
    scribe.close()


def flush_meanwhile(run: Run) -> None:
    """Rows are committed while a flush syncs: its mark covers what was there when it began, and stands behind them."""
    scribe = run.scribe(power=False)
    writer = scribe.blob._writer
    assert writer is not None
    for _ in range(4):
        scribe.write(run.few())
        covered, sync = len(scribe.history.states) - 1, writer._blocks.sync

        def meanwhile(dirty: Any, sync: Callable[[Any], None] = sync) -> None:
            scribe.write(1)
            sync(dirty)
            scribe.write(1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer._blocks, "sync", meanwhile)
            scribe.blob.flush()
        run.disk.mark("durable", scribe.history.path, covered)
    scribe.close()


def transaction(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    scribe.write(3)
    for n in range(4):
        with scribe.transaction({"n": n, "why": "because " * 80} if n % 2 else None):  # an edit of several sectors
            scribe.write(run.few())
            if n == 2:
                scribe.overwrite(1, 2)
            scribe.write(run.few())
    scribe.close()


def overwrite(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    scribe.write(12 + run.few(9))
    for _ in range(6):
        count = run.few(4)
        scribe.overwrite(run.rng.randrange(len(scribe.history.held.rows) - count + 1), count)
        if run.rng.random() < 0.3:
            scribe.write(run.few(3))
    scribe.close()


def truncate(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    for n in range(5):
        scribe.write(4 + run.few(8), {"n": n})
        scribe.truncate(run.rng.randrange(len(scribe.history.held.rows) + 1))
    scribe.write(run.few())
    scribe.close()


def trim(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.writer.RECLAIM_NBYTES", 8192)
        scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
        for n in range(6):
            scribe.write(run.few(12), {"n": n})
            held = scribe.history.held
            scribe.trim(held.first_row + run.rng.randrange(len(held.rows) + 1))
        scribe.close()


def extend(run: Run) -> None:
    fields = run.rng.choice((*SINGLE, MANY))
    source = run.scribe("source.blob", fields, power=run.rng.random() < 0.5)
    target = run.scribe("target.blob", fields)
    source.write(run.few(12))
    target.write(run.few(5))
    for _ in range(3):
        source.write(run.few(5))
        target.extend(source)
        source.write(run.few(3))  # it goes on in files that are linked
        if run.rng.random() < 0.5:
            target.write(run.few(3))
    target.close()
    source.close()


def extend_contiguous(run: Run) -> None:
    """Only sealed blocks of the source, so that what is linked, and what is rewritten, keeps its order."""
    fields = run.rng.choice(SINGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "block_rows", lambda fields: 1)
        source = run.scribe("source.blob", fields)
        target = run.scribe("target.blob", fields)
    source.write(11)
    assert isinstance(source.blob.block_rows, int)
    target.write(2 * source.blob.block_rows if source.blob.block_rows < 100 else 3)
    for _ in range(2):
        held, theirs = target.history.held, source.history.held.rows
        if len(held.rows) % source.blob.block_rows:
            break
        with target.changing(held.appended(*theirs)):
            target.blob.extend(source.blob, maintain_order=False)
        source.write(run.few())
    target.write(run.few())
    target.close()
    source.close()


def compact(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    for _ in range(2):
        scribe.write(8 + run.few(9))
        scribe.overwrite(run.few(), 2)
        held = scribe.history.held
        scribe.trim(held.first_row + run.few(4))
        scribe.compact()
        scribe.write(run.few(3))
    scribe.close()


def copy(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    scribe.write(6 + run.few(9))
    scribe.overwrite(run.few(), 2)
    copied = run.history("copy.blob", scribe.history.fields)
    copied.attempt(scribe.history.held)
    scribe.blob.copy(copied.path)
    copied.promised()
    scribe.write(run.few())
    other = Scribe(run, copied, "r+", power=run.power)
    other.write(run.few())
    scribe.write(run.few())
    other.close()
    scribe.close()


def recovered(run: Run) -> None:
    """What `recover` has written survives, whether or not the blob that it read from does."""
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)), power=False)
    scribe.write(6 + run.few(9), {"n": 1})
    scribe.overwrite(run.few(), 2)
    found = run.history("recovered.blob", scribe.history.fields)
    found.attempt(scribe.history.held)
    assert tb.recover(scribe.history.path, found.path).is_complete
    found.promised()
    other = Scribe(run, found, "r+", power=run.power)
    other.write(run.few())
    other.close()
    scribe.close()


def shared(run: Run) -> None:
    """Two writers that take turns; what either has had acknowledged is there."""
    first = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    first.write(run.few())
    first.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.writer.MAX_EDITS", 12)
        peers = [Scribe(run, first.history, "a+", power=run.power, shared=True) for _ in range(2)]
        for _ in range(7):
            peer = run.rng.choice(peers)
            peer.blob.refresh()
            peer.write(run.few())
            if run.rng.random() < 0.25:
                other = run.rng.choice(peers)
                other.flush()
        for peer in peers:
            peer.blob.refresh()
            peer.close()


def staged(run: Run) -> None:
    """A staged producer beside a shared writer: what it stages shows in one edit, copied or adopted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.staging.COPY_NBYTES", 3 * 1024)
        first = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
        first.write(run.few())
        first.close()
        peers = [Scribe(run, first.history, "a+", power=run.power, shared=True) for _ in range(2)]
        writer = peers[1].blob._writer
        assert writer is not None
        staging = Staging(writer)
        for sequence in range(4):
            numbers = [run.number() for _ in range(run.few(7))]
            for number in numbers:
                staging.append(*peers[1].blob._batches.columns(first.history.batch(number)))
            peers[0].blob.refresh()
            peers[0].write(run.few(2))
            if run.power:
                staging.sync()
            held = first.history.held.appended(*numbers).keyed("p", sequence)
            first.history.attempt(held)
            staging.commit(partial(_keyed, len(numbers), sequence))
            if run.power:
                first.history.promised()
            elif run.rng.random() < 0.5:
                peers[1].flush()
            peers[1].check()
        for peer in peers:
            peer.blob.refresh()
            peer.close()


def _keyed(count: int, sequence: int, start: int) -> list[Any]:
    return [Key("p", sequence, start, start + count)]


def stream(run: Run) -> None:
    """Retries, settings and an end: what goes with the rows."""
    scribe = run.scribe()
    for sequence in range(4):
        scribe.append_keyed(run.few(), run.rng.choice("pq"), sequence)
        if run.rng.random() < 0.4:
            scribe.set_metadata({"step": sequence})
        if run.rng.random() < 0.3:
            scribe.truncate(run.rng.randrange(len(scribe.history.held.rows) + 1))
    scribe.finish()
    scribe.close()


def cursor(run: Run) -> None:
    """A consumer of durable rows; its position is the last that it acknowledged, or one that it was about to."""
    scribe = run.scribe(power=True)
    dir_fd = tb.files.open_directory(scribe.history.path)
    held = cursors.Cursor(dir_fd, "c")
    path = f"{scribe.history.path}#c"
    positions = run.histories[path] = History(run.disk, path, {})
    positions.states = [None]
    for _ in range(6):
        scribe.write(run.few())
        row = run.rng.randint(held.position.row if held.position else 0, scribe.history.held.stop)
        positions.add(cursors.Position(row, 0))
        held.acknowledge(row, 0)
        positions.promised()
    held.close()
    run.disk.close(dir_fd)
    scribe.close()


def unlink(run: Run) -> None:
    scribe = run.scribe(fields=run.rng.choice((SECTORS, MANY)))
    scribe.write(run.few(12))
    scribe.close()
    scribe.history.add(None)
    assert TensorBlob.unlink(scribe.history.path)
    scribe.history.promised()


def reopened(run: Run) -> None:
    """Writers that follow one another in one boot, and go on in the same files."""
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    for _ in range(5):
        scribe.write(run.few())
        scribe.close()
        scribe = run.again(scribe, power=run.rng.random() < 0.5)
    scribe.write(run.few())
    scribe.close()


def ring(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.writer.RECLAIM_NBYTES", 8192)
        most_rows = 6 + run.few()
        scribe = run.scribe(fields=run.rng.choice((SECTORS, QUARTERS)), max_rows=most_rows)
        scribe.history.most_rows = most_rows
        for _ in range(9):
            numbers = [run.number() for _ in range(run.few(6))]
            held = scribe.history.held.appended(*numbers)
            with scribe.changing(held.trimmed(held.stop - most_rows)):
                scribe.blob.seek(0, 2)
                scribe.blob.write(scribe.history.batch(*numbers))
        scribe.close()


def killed(run: Run) -> None:
    """A writer is killed in the midst of anything; others of the same boot go on, and then the power goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.writer.MAX_EDITS", 6)
        scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
        for _ in range(3):
            with run.killed_after(run.rng.randrange(4, 40), scribe):
                for _ in range(9):
                    _anything(run, scribe)
            scribe = run.again(scribe, power=run.rng.random() < 0.5)
            scribe.write(run.few(3))
            scribe.flush()
        scribe.close()


def killed_after_cut(run: Run) -> None:
    """Rows that were cut were never synced, and nobody syncs them: that must cost no later commit."""
    scribe = run.scribe(power=False)
    for _ in range(3):
        scribe.write(8 + run.few(9))
        scribe.truncate(run.few(3))
        with run.killed_after(run.few(3), scribe):
            scribe.write(run.few())
        scribe = run.again(scribe, power=True)
        scribe.write(run.few())
        scribe.close()
        scribe = run.again(scribe, power=False)
    scribe.close()


def mixed(run: Run) -> None:
    """Anything after anything."""
    scribe = run.scribe(fields=run.rng.choice((*SINGLE, MANY)))
    scribe.write(4)
    for _ in range(9):
        _anything(run, scribe)
    scribe.close()


def _anything(run: Run, scribe: Scribe) -> None:
    held = scribe.history.held
    count = len(held.rows)
    match run.rng.randrange(8):
        case 0 | 1 | 2:
            scribe.write(run.few(9), {"n": count} if run.rng.random() < 0.3 else None)
        case 3 if count > 3:
            scribe.overwrite(run.rng.randrange(count - 2), 2)
        case 4:
            scribe.truncate(run.rng.randint(count // 2, count))
        case 5:
            scribe.trim(held.first_row + run.rng.randint(0, count // 2))
        case 6:
            scribe.flush()
        case _:
            scribe.compact()


WORKLOADS: dict[str, Callable[[Run], None]] = {
    workload.__name__: workload
    for workload in (
        create,
        create_killed,
        append,
        append_many_columns,
        seal,
        checkpoint,
        durable_mark,
        flush_meanwhile,
        transaction,
        overwrite,
        truncate,
        trim,
        ring,
        extend,
        extend_contiguous,
        compact,
        copy,
        recovered,
        shared,
        staged,
        stream,
        cursor,
        reopened,
        unlink,
        killed,
        killed_after_cut,
        mixed,
    )
}
