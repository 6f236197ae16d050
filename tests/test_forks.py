"""A forked child is not held up by what threads of its parent were in the middle of, nor misled by it.

Each test runs in a process of its own, which stops a thread where it holds a lock of ours, and forks then. A child that does
not answer hangs: it is killed, and said to have hung.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from api_support import Complaint, complaint, create, elsewhere, numbers, rows, stored
from disk import without_platters

import tensorblob as tb
from tensorblob import columns, files, growth, manifest, memory

PACKAGE = str(Path(tb.__file__).parent)
HANG_S = 20
"""A child answers at once, or never; so long is never."""
COUNT, MORE = 22, 20
"""Rows that are there, and that come: five and a half blocks, and five."""


def in_a_fork(act: Callable[[], Any]) -> Any:
    """The value of `act()` in a forked child of this process, or "hung" and where."""
    here, there = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+") as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of the very thing that is tested
            pid = os.fork()
        if pid == 0:
            try:
                faulthandler.dump_traceback_later(HANG_S / 2, file=stack)
                there.send(act())
            except BaseException as error:
                there.send(repr(error))
            finally:
                os._exit(0)
        there.close()
        try:
            if here.poll(HANG_S):
                return here.recv()
            stack.seek(0)
            return f"hung: {stack.read()}"
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class EndedBefore(Exception):
    """A thread came to its end, not to the stop."""


class Stop:
    """Where the first thread (other than the main one) that comes to `here` waits until `go_on`."""

    def __init__(self) -> None:
        self._reached, self._let_go = threading.Event(), threading.Event()

    def here(self) -> None:
        if threading.current_thread() is not threading.main_thread() and not self._reached.is_set():
            self._reached.set()
            self._let_go.wait()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with the stop before it."""

        def stopped(*args: Any, **options: Any) -> Any:
            self.here()
            return function(*args, **options)

        return stopped

    def while_another_thread(self, act: Callable[[], object], do: Callable[[], Any]) -> Any:
        """`do()` while a thread is stopped in `act()`; returns its value when that thread has come to its end, too."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not self._reached.wait(0.01):
            if not thread.is_alive() and not self._reached.is_set():
                raise EndedBefore(f"the thread did not come to the stop: {failures}")
        try:
            return do()
        finally:
            self._let_go.set()
            thread.join()
            assert not failures, failures


def patched() -> pytest.MonkeyPatch:
    """Patches for as long as this process lives; it needs no disk, and torch no threads."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    without_platters(patch)
    return patch


# ---- readers


def _stop_half_placed(patch: pytest.MonkeyPatch, stop: Stop) -> None:
    add = memory.Layout._add

    def add_in_two(self: Any, placed: list[Any], column: Any) -> None:
        add(self, placed[:3], column)
        stop.here()
        add(self, placed[3:], column)

    patch.setattr(memory.Layout, "_add", add_in_two)


READS: dict[str, tuple[dict[str, Any], Callable[[pytest.MonkeyPatch, Stop], None], Callable[[tb.TensorBlob], object]]] = {
    "maps a block": (
        {},
        lambda patch, stop: patch.setattr(memory, "open_block", stop.before(memory.open_block)),
        lambda reader: reader[9],
    ),
    "maps a block for a view": (
        {},
        lambda patch, stop: patch.setattr(memory, "open_block", stop.before(memory.open_block)),
        lambda reader: reader.view(3, 9),
    ),
    "places the spans": ({}, _stop_half_placed, lambda reader: reader.gather([9, 0, 20])),
    "caches a block": (
        {"max_cached_blocks": 2},
        lambda patch, stop: patch.setattr(columns, "open_block", stop.before(columns.open_block)),
        lambda reader: reader[9],
    ),
    "reads the log": (
        {},
        lambda patch, stop: patch.setattr(manifest, "apply", stop.before(manifest.apply)),
        lambda reader: reader.refresh(),
    ),
    "places the spans of a snapshot it takes over": ({}, _stop_half_placed, lambda reader: reader.refresh()),
    "takes a snapshot over": (
        {},
        lambda patch, stop: patch.setattr(columns.MappedColumn, "follow", stop.before(columns.MappedColumn.follow)),
        lambda reader: reader.refresh(),
    ),
    "takes a snapshot over, by cached blocks": (
        {"max_cached_blocks": 2},
        lambda patch, stop: patch.setattr(columns.CachedColumn, "follow", stop.before(columns.CachedColumn.follow)),
        lambda reader: reader.refresh(),
    ),
}  # fmt: skip
"""What a thread of the parent is in the middle of: how the reader is opened, where the thread stops, what it does."""


def read_every_way(reader: tb.TensorBlob) -> list[list[int]]:
    """The rows as all ways of reading give them."""
    return [
        numbers(torch.stack([reader[position] for position in range(len(reader))])),
        numbers(reader[:]),
        numbers(reader.gather(range(len(reader)))),
        [number for run in reader.runs() for number in numbers(reader.view(*run))],
    ]


def _read_in_a_child_while_a_thread(path: Path, doing: str) -> dict[str, Any]:
    options, set_stop, act = READS[doing]
    patch, stop = patched(), Stop()
    with tb.TensorBlob.open(path, "a") as writer, tb.TensorBlob.open(path, **options) as reader:
        if "over" in doing:
            reader[0], reader[-1]
        writer.write(rows(*range(COUNT, COUNT + MORE)))
        set_stop(patch, stop)

        def read() -> list[Any]:
            before = read_every_way(reader)
            reader.refresh()
            return [before, read_every_way(reader)]

        return {
            "child": stop.while_another_thread(lambda: act(reader), lambda: in_a_fork(read)),
            "parent": [reader.refresh(), *read_every_way(reader)][1:],
        }


@pytest.mark.slow
@pytest.mark.parametrize("doing", READS)
def test_a_child_reads_while_a_thread_of_its_parent(doing: str, tmp_path: Path) -> None:
    found = elsewhere(_read_in_a_child_while_a_thread, create(tmp_path / "x.blob", COUNT), doing)
    before, after = [list(range(COUNT))] * 4, [list(range(COUNT + MORE))] * 4
    assert found["child"] in ([before, after], [after, after])
    assert found["parent"] == after, "and the thread is none the worse for it"


class Place(Stop):
    """A stop at the nth (from 0) place of what a thread does: where a call begins or returns, threads may be switched."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self._left = nth
        self.name = ""

    def of(self, act: Callable[[], object]) -> None:
        sys.setprofile(self._see)
        try:
            act()
        finally:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self._left == -1:
                self.name = f"{event} at {frame.f_code.co_filename}:{frame.f_lineno}"
                self.here()


def _read_in_a_child_at_places(directory: Path, options: dict[str, Any], first: int, step: int) -> dict[str, Any]:
    """What children read while a thread follows the blob and reads, stopped at every `step`-th place: where it is wrong."""
    patched()
    before, after = [list(range(COUNT))] * 4, [list(range(COUNT + MORE))] * 4
    wrong, nth = {}, first
    while True:
        place = Place(nth)
        path = create(directory / f"{nth}.blob", COUNT)
        with tb.TensorBlob.open(path, "a") as writer, tb.TensorBlob.open(path, **options) as reader:
            reader.gather([0, -1])
            writer.write(rows(*range(COUNT, COUNT + MORE)))

            def follow(reader: tb.TensorBlob = reader) -> None:
                reader.refresh()
                reader.gather([0, COUNT, 9]), reader[COUNT + 9], reader[3:]
                reader.view(*reader.runs()[0])

            def read(reader: tb.TensorBlob = reader) -> list[Any]:
                found = read_every_way(reader)
                reader.refresh()
                return [found, read_every_way(reader)]

            try:
                found = place.while_another_thread(partial(place.of, follow), partial(in_a_fork, read))
            except EndedBefore:
                return {"places": nth, "wrong": wrong}
            if found not in ([before, after], [after, after]) or read_every_way(reader) != after:
                wrong[place.name] = str(found)[:200]
        nth += step


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_cached_blocks": 2}], ids=str)
def test_a_child_reads_wherever_a_thread_of_its_parent_is_on_its_way_through_a_blob(
    options: dict[str, Any], tmp_path: Path
) -> None:
    found = elsewhere(_read_in_a_child_at_places, tmp_path, options, 3, 7)
    assert found["wrong"] == {}
    assert found["places"] > 250


# ---- writers


def _commit_a_transaction(writer: tb.TensorBlob, stop: Stop) -> None:
    with writer.transaction():
        writer.write(rows(50))
        stop.here()


WRITES: dict[str, tuple[Callable[[pytest.MonkeyPatch, Stop], object], Callable[[tb.TensorBlob, Stop], object], list[int]]] = {
    "is in a transaction": (lambda patch, stop: None, _commit_a_transaction, [50]),
    "appends": (
        lambda patch, stop: patch.setattr(manifest.Manifest, "append", stop.before(manifest.Manifest.append)),
        lambda writer, stop: writer.write(rows(50)),
        [50],
    ),
    "begins a block": (
        lambda patch, stop: patch.setattr(growth.Growth, "append", stop.before(growth.Growth.append)),
        lambda writer, stop: writer.write(rows(*range(50, 60))),
        list(range(50, 60)),
    ),
    "flushes": (
        lambda patch, stop: patch.setattr(files, "sync_file", stop.before(files.sync_file)),
        lambda writer, stop: writer.flush(),
        [],
    ),
    "reads by it": (
        lambda patch, stop: patch.setattr(columns.MappedColumn, "follow", stop.before(columns.MappedColumn.follow)),
        lambda writer, stop: writer[0],
        [],
    ),
}  # fmt: skip
USES: dict[str, Callable[[tb.TensorBlob], object]] = {
    "write": lambda blob: blob.write(rows(1)),
    "write nothing, with metadata": lambda blob: blob.write(rows(), metadata={"a": 1}),
    "truncate": lambda blob: blob.truncate(0),
    "trim": lambda blob: blob.trim(3),
    "transaction": lambda blob: blob.transaction().__enter__(),
    "set_metadata": lambda blob: blob.set_metadata({}),
    "compact": lambda blob: blob.compact(),
    "flush": lambda blob: blob.flush(),
}


def _use_a_writer_in_a_child_while_a_thread(path: Path, doing: str) -> dict[str, Any]:
    set_stop, act, _ = WRITES[doing]
    patch, stop = patched(), Stop()
    patch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    with tb.TensorBlob.open(path, "a+") as writer:
        writer.write(rows(40))  # by the quick way, of which the snapshot takes note later
        set_stop(patch, stop)

        def use() -> dict[str, Any]:
            found: dict[str, Any] = {"length": len(writer), "rows": writer.rows, "first": numbers(writer[0][None])}
            for name, attempt in USES.items():
                error = complaint(lambda attempt=attempt: attempt(writer))
                found[name] = error.names if isinstance(error, Complaint) else error
            writer.close()
            return found

        return {"child": stop.while_another_thread(lambda: act(writer, stop), lambda: in_a_fork(use))}


@pytest.mark.parametrize("doing", WRITES)
def test_a_child_is_refused_its_parents_writer_at_once_while_a_thread(doing: str, tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", COUNT)
    child = elsewhere(_use_a_writer_in_a_child_while_a_thread, path, doing)["child"]
    assert isinstance(child, dict), child
    assert COUNT + 1 <= child.pop("length") <= COUNT + 2 and COUNT + 1 <= child.pop("rows") <= COUNT + 2
    assert child.pop("first") == [0]
    for use, names in child.items():
        assert names is not None and "ForkedHandle" in names, use
    assert stored(path) == [*range(COUNT), 40, *WRITES[doing][2]], "what the parent was doing, it has done"


# ---- wherever the threads happen to be


def _fork_again_and_again(path: Path, options: dict[str, Any], count: int) -> list[Any]:
    """What children say of the rows that differ from their row ids, while threads read, append and trim all the time."""
    patched()
    done = threading.Event()
    with tb.TensorBlob.open(path, "a+") as writer, tb.TensorBlob.open(path, **options) as reader:

        def append_and_trim() -> None:
            while not done.is_set():
                with writer.transaction():
                    writer.write(rows(writer.rows))
                    writer.write(rows(writer.rows))
                    writer.trim(writer.rows - COUNT)

        def follow(seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            while not done.is_set():
                reader.refresh()
                reader[int(torch.randint(COUNT - 4, (), generator=generator))]
                reader.gather([0, COUNT // 2])

        def look() -> Any:
            first = reader.first_row
            wrong = [position for position in range(len(reader)) if int(reader[position][0]) != first + position]
            reader.refresh()
            first = reader.first_row
            wrong += [n for n, number in enumerate(numbers(reader[:])) if number != first + n]
            error = complaint(lambda: writer.write(rows(1)))
            return wrong, len(writer) > 0, error is not None and "ForkedHandle" in error.names

        threads = [
            threading.Thread(target=append_and_trim),
            *(threading.Thread(target=follow, args=(n,)) for n in (1, 2)),
        ]
        for thread in threads:
            thread.start()
        try:
            return [in_a_fork(look) for _ in range(count)]
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_cached_blocks": 1}, {"io": "pread"}], ids=str)
def test_no_child_of_many_hangs_or_reads_other_rows(options: dict[str, Any], tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", COUNT)
    assert elsewhere(_fork_again_and_again, path, options, 60) == [([], True, True)] * 60
