"""The jobs as they are done: one class a kind, each for one system, from the empty store to the last repetition.

A repetition returns seconds per unit of work. Nothing but the library's documented calls runs while the watch does:
opening, closing, random numbers and other processes come before and after.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from harness import mean_cost

from .contract import CannotDo, Fields, Rows, columns_of, is_one_array
from .jobs import BULK_ROWS, RING_ROWS, Job

BENCH = Path(__file__).resolve().parent.parent
PAUSE_S = 0.002
COLD_BATCHES = 3  # in a repetition: with more of them they would find in memory what the ones before have read
STAYED = 0.02


def made_rows(fields: Fields, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same rows in every process."""
    numbers = torch.Generator().manual_seed(seed)
    columns = {}
    for name, (dtype, shape) in fields.items():
        if dtype.startswith("float"):
            columns[name] = torch.randn(count, *shape, generator=numbers, dtype=getattr(torch, dtype))
        else:
            top = 2 if dtype == "bool" else 200
            columns[name] = torch.randint(0, top, (count, *shape), generator=numbers, dtype=getattr(torch, dtype))
    return columns


def how_many(call: Callable[[Any], object], inputs: Sequence[Any], budget_s: float) -> int:
    """How many of those calls take about that long, at least 3."""
    count = 1
    while (seconds := count * mean_cost(call, inputs[:count])()) < budget_s / 4 and count < len(inputs):
        count = min(len(inputs), 4 * count)
    return max(min(3, len(inputs)), min(len(inputs), int(count * budget_s / seconds)))


def files_of(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


class Work:
    """What all kinds have in common: the rows, the store, and that nothing is timed before it gave back what it took."""

    def __init__(self, system: Any, job: Job, directory: Path) -> None:
        self.system, self.job, self.directory = system, job, directory
        self.store = directory / "store"
        self.one = is_one_array(job.fields)
        self.source = made_rows(job.fields, self.source_rows())
        self.latencies_s: list[float] = []
        self.writer: Any = None
        self.reader: Any = None
        self._check()
        try:
            self.prepare()
        except BaseException:
            with suppress(Exception):
                self.finish()
            raise

    def source_rows(self) -> int:
        """Larger stores are made of these rows, again and again."""
        return max(300, self.job.batch_rows, min(self.job.rows, BULK_ROWS))

    def prepare(self) -> None:
        raise NotImplementedError

    def repeat(self) -> float:
        raise NotImplementedError

    def finish(self) -> None:
        for store in (self.writer, self.reader):
            if store is not None:
                store.close()
        self.writer = self.reader = None

    def rows_of(self, start: int, stop: int) -> Rows:
        columns = {name: column[start:stop] for name, column in self.source.items()}
        return columns["rows"] if self.one else columns

    def new_writer(self, path: Path, capacity_rows: int) -> Any:
        if self.job.block_rows and hasattr(self.system, "writer_of_blocks"):
            return self.system.writer_of_blocks(path, self.job.fields, self.job.block_rows)
        return self.system.Writer(path, self.job.fields, capacity_rows, self.job.sync)

    def fill(self, writer: Any) -> None:
        """Append the job's rows, unless that would take too long."""
        job, append = self.job, writer.append
        size = min(job.prepare_rows, len(next(iter(self.source.values()))))
        batches = [self.rows_of(at, at + size) for at in range(0, self.source_rows() - size + 1, size)]
        appends, left = divmod(job.rows, size)
        start = time.perf_counter()
        for n in range(appends):
            append(batches[n % len(batches)])
            if n & (n - 1) == 0 and n >= 8:  # now and then
                passed_s = time.perf_counter() - start
                if passed_s > 1 and passed_s / n * appends > job.prepare_s:
                    raise CannotDo(f"its {appends:,} appends would have taken about {passed_s / n * appends:.0f} s")
        if left:
            append(self.rows_of(0, left))

    def fill_and_close(self) -> None:
        self.writer = self.new_writer(self.store, self.job.rows)
        self.fill(self.writer)
        self.writer.close()
        self.writer = None

    def _check(self) -> None:
        """What was appended one by one, and many at a time, is what comes back."""
        path = self.directory / "check"
        with closing(self.system.Writer(path, self.job.fields, 300, self.job.sync)) as writer:
            for row in range(3):
                writer.append(self.rows_of(row, row + 1))
            writer.append(self.rows_of(3, 300))
        self.expect(path, lambda index: index)
        remove(path)

    def expect(self, path: Path, origin: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """The first 300 rows of that store are those of the source whose numbers `origin` gives."""
        picks = torch.tensor([2, 299, 7, 2, 150])
        with closing(self.system.Reader(path, self.job.fields)) as reader:
            for given, index in ((reader.row(201), torch.tensor(201)), (reader.batch(picks), picks)):
                assert set(columns_of(given).keys()) == set(self.source), "other fields came back"
                for name, column in columns_of(given).items():
                    assert torch.equal(column, self.source[name][origin(index)]), f"{name} came back different"
            if self.one:
                rows = torch.cat([chunk.clone() for chunk in reader.chunks(128)])[:300]
                assert torch.equal(rows, self.source["rows"][origin(torch.arange(300))]), "the scan gave other rows"


class Calls(Work):
    """Work that is calls of one function: as many a repetition as take about `budget_s`; cost: seconds a call."""

    call: Callable[[Any], object]
    inputs: Sequence[Any]
    count: int | None = None

    def repeat(self) -> float:
        if self.count is None:
            self.count = how_many(self.call, self.inputs, self.job.budget_s)
        return mean_cost(self.call, self.inputs[: self.count])()


class Append(Calls):
    def prepare(self) -> None:
        job = self.job
        self.writer = self.new_writer(self.store, job.rows + 40 * job.most * job.batch_rows)
        self.fill(self.writer)
        self.call, self.inputs = self.writer.append, [self.rows_of(0, job.batch_rows)] * job.most


class Latency(Append):
    """Each append by a watch of its own; cost: the median."""

    def repeat(self) -> float:
        if self.count is None:
            self.count = how_many(self.call, self.inputs, self.job.budget_s)
        self.latencies_s = timed_one_by_one(self.call, self.inputs[: self.count])
        return statistics.median(self.latencies_s)


def timed_one_by_one(call: Callable[[Any], object], inputs: Sequence[Any], pause_s: float = 0.0) -> list[float]:
    clock, latencies_s = time.perf_counter, []
    for value in inputs:
        if pause_s:
            time.sleep(pause_s)
        start = clock()
        call(value)
        latencies_s.append(clock() - start)
    return latencies_s


class Ring(Append):
    def prepare(self) -> None:
        self.before = process_figures(self.store)
        super().prepare()

    def new_writer(self, path: Path, capacity_rows: int) -> Any:
        if not hasattr(self.system, "Ring"):
            raise CannotDo("no call that drops the oldest rows")
        return self.system.Ring(path, self.job.fields, RING_ROWS, self.job.sync)


class Bulk(Work):
    """From the empty store to the last append's return; creating and closing it are not counted."""

    def source_rows(self) -> int:
        return max(300, self.job.rows)

    def prepare(self) -> None:
        rows = self.job.rows
        self.batches = [self.rows_of(at, min(at + BULK_ROWS, rows)) for at in range(0, rows, BULK_ROWS)]

    def repeat(self) -> float:
        let_the_disk_settle()
        self.writer = self.new_writer(self.store, self.job.rows)
        append = self.writer.append
        start = time.perf_counter()
        for batch in self.batches:
            append(batch)
        seconds = time.perf_counter() - start
        Work.finish(self)
        remove(self.store)
        return seconds


def let_the_disk_settle() -> None:
    """Have written what others left to be written, or whose turn it is would wait for it.

    Before the store is created: what a writer has made ready for the first rows is its own.
    """
    os.sync()


class Tasks:
    """Producers of a library that has no asynchronous append: tasks of one loop, each of which appends and gives way.

    A call of microseconds is made from a task as it is. One that waits for the disk stops the loop meanwhile; threads at a
    lock would wait as long, since the library commits one append at a time, and pay for changing threads besides.
    """

    def __init__(self, writer: Any, producers: int) -> None:
        self.writer, self.producers, self.runner = writer, producers, asyncio.Runner()

    def append_all(self, rows: Rows, count: int) -> None:
        self.runner.run(self._append_all(rows, count))

    async def _append_all(self, rows: Rows, count: int) -> None:
        append, give_way = self.writer.append, asyncio.sleep

        async def produce() -> None:
            for _ in range(count // self.producers):
                append(rows)
                await give_way(0)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.producers):
                tasks.create_task(produce())

    def close(self) -> None:
        self.runner.close()
        self.writer.close()


class Threads:
    """Producers of a library whose append many threads may be in at once."""

    def __init__(self, writer: Any, producers: int) -> None:
        self.writer, self.producers = writer, producers
        self.pool = ThreadPoolExecutor(producers)

    def append_all(self, rows: Rows, count: int) -> None:
        append = self.writer.append_concurrently

        def produce() -> None:
            for _ in range(count // self.producers):
                append(rows)

        for future in [self.pool.submit(produce) for _ in range(self.producers)]:
            future.result()

    def close(self) -> None:
        self.pool.shutdown()
        self.writer.close()


class Produce(Work):
    """So many producers at once, each waiting for its own append before the next; cost: seconds an append, of all."""

    def prepare(self) -> None:
        job, self.count = self.job, 0
        capacity_rows = 20 * job.most * job.batch_rows
        if hasattr(self.system, "Producers"):
            self.writer = self.system.Producers(self.store, job.fields, capacity_rows, job.sync, job.together)
        else:
            writer = self.new_writer(self.store, capacity_rows)
            self.writer = (Threads if hasattr(writer, "append_concurrently") else Tasks)(writer, job.together)
        self.rows = self.rows_of(0, job.batch_rows)

    def _seconds(self, count: int) -> float:
        start = time.perf_counter()
        self.writer.append_all(self.rows, count)
        return time.perf_counter() - start

    def repeat(self) -> float:
        job = self.job
        if not self.count:
            count = 4 * job.together
            while (seconds := self._seconds(count)) < job.budget_s / 4 and 4 * count <= job.most:
                count *= 4
            wanted = min(job.most, int(count * job.budget_s / seconds))
            self.count = max(4 * job.together, wanted // job.together * job.together)
        return self._seconds(self.count) / self.count


class Overwrite(Calls):
    """Rows at random places become others, each time one commit."""

    def prepare(self) -> None:
        if not hasattr(self.system.Writer, "overwrite"):
            raise CannotDo("no call that changes rows")
        job = self.job
        path = self.directory / "check"
        with closing(self.system.Writer(path, job.fields, 300, job.sync)) as writer:
            writer.append(self.rows_of(0, 300))
            writer.overwrite(140, self.rows_of(0, 32))
        self.expect(path, lambda index: torch.where((index >= 140) & (index < 172), index - 140, index))
        remove(path)
        self.writer = self.new_writer(self.store, job.rows)
        self.fill(self.writer)
        overwrite, rows = self.writer.overwrite, self.rows_of(0, job.batch_rows)
        self.call = lambda first_row: overwrite(first_row, rows)
        self.inputs = random.Random(0).choices(range(job.rows - job.batch_rows), k=job.most)


class Extend(Work):
    """A store takes over all rows of another; cost: seconds for the whole of it."""

    def prepare(self) -> None:
        self.fill_and_close()
        self.merged = self.directory / "merged"
        self._extend()
        self.expect(self.merged, lambda index: index)
        remove(self.merged)

    def _extend(self) -> float:
        let_the_disk_settle()
        self.writer = writer = self.new_writer(self.merged, self.job.rows)
        start = time.perf_counter()
        if hasattr(writer, "extend"):
            writer.extend(self.store)
        else:
            with closing(self.system.Reader(self.store, self.job.fields)) as reader:
                for chunk in reader.chunks(BULK_ROWS):
                    writer.append(chunk)
        seconds = time.perf_counter() - start
        Work.finish(self)
        return seconds

    def repeat(self) -> float:
        seconds = self._extend()
        remove(self.merged)
        return seconds


class Read(Work):
    """A store that is there and a reader of it; cold, nothing of it is in memory when the watch starts."""

    cold_readers: tuple[str, ...] = ("DiskReader",)
    """Classes that take the place of a system's Reader where the store is cold. The limit's keeps all in memory otherwise."""

    def prepare(self) -> None:
        self.fill_and_close()
        self.source = {}
        self.open_reader()

    def open_reader(self) -> None:
        kind = self.system.Reader
        for name in self.cold_readers if self.job.is_cold else ():
            kind = getattr(self.system, name, kind)
        self.reader = kind(self.store, self.job.fields)

    def make_cold(self) -> None:
        self.reader.close()
        self.reader = None
        gc.collect()  # pages that are mapped would stay
        drop_pages(self.store)
        self.open_reader()


class Scan(Read):
    def repeat(self) -> float:
        if self.job.is_cold:
            self.make_cold()
        rows = 0
        start = time.perf_counter()
        for chunk in self.reader.chunks(BULK_ROWS):
            chunk.sum()
            rows += len(chunk)
        seconds = time.perf_counter() - start
        assert rows == self.job.rows, f"a scan of {rows} rows"
        return seconds


class Row(Read, Calls):
    def prepare(self) -> None:
        super().prepare()
        self.call = self.reader.row
        self.inputs = random.Random(0).choices(range(self.job.rows), k=self.job.most)


class Batch(Read, Calls):
    cold_readers = ("DiskReader", "RandomDiskReader")

    def prepare(self) -> None:
        super().prepare()
        self.chosen = random.Random(0)
        batches = self._picks(min(self.job.most, 200))
        self.call, self.inputs = self.reader.batch, [batches[n % len(batches)] for n in range(self.job.most)]

    def _picks(self, count: int) -> list[torch.Tensor]:
        rows, batch_rows = self.job.rows, self.job.batch_rows
        return [torch.tensor(self.chosen.choices(range(rows), k=batch_rows)) for _ in range(count)]

    def repeat(self) -> float:
        if not self.job.is_cold:
            return super().repeat()
        picks = self._picks(COLD_BATCHES)
        self.make_cold()
        return mean_cost(self.reader.batch, picks)()


def drop_pages(path: Path) -> None:
    """Have all of the store on the disk and none of it in memory; raises CannotDo if it stays there all the same."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    stayed = pages = 0
    for file in files_of(path):
        if not (nbytes := file.stat().st_size):
            continue
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(fd, nbytes, flags=mmap.MAP_PRIVATE) as mapped:  # private and writable for ctypes; never written
            count = -(-nbytes // mmap.PAGESIZE)
            resident = ctypes.create_string_buffer(count)
            start = ctypes.c_char.from_buffer(mapped)
            assert libc.mincore(ctypes.addressof(start), nbytes, resident) == 0, os.strerror(ctypes.get_errno())
            del start
        os.close(fd)
        pages += count
        stayed += sum(byte & 1 for byte in resident.raw[:count])
    if stayed > STAYED * pages:
        raise CannotDo(f"{stayed:,} of its {pages:,} pages could not be dropped from memory")


class Open(Calls):
    """Open, read the last row, close."""

    def prepare(self) -> None:
        self.fill_and_close()
        self.source = {}
        self.call, self.inputs = self._open_and_read_last, [self.store] * self.job.most
        if hasattr(self.system, "opening"):  # the limit, which keeps its rows in memory otherwise
            self.call = self.system.opening(self.store, self.job.fields, self.job.rows - 1)

    def _open_and_read_last(self, path: Path) -> None:
        reader = self.system.Reader(path, self.job.fields)
        reader.row(self.job.rows - 1)
        reader.close()


class Watched(Work):
    """Others in processes of their own see the rows come; they have imported their library before the store is made."""

    def start(self, kind: str, *more: str) -> None:
        if not hasattr(self.system, kind):
            raise CannotDo(f"nothing to {kind} with")
        name = self.system.__name__.split(".")[-1]
        command = [sys.executable, "-m", "peers.follower", name, kind, str(self.store), *more]
        self.follower = subprocess.Popen(command, cwd=BENCH, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, count: int, readers: int = 1) -> None:
        """Have them open the store and watch for so many rows; returns when all do."""
        assert self.follower.stdin is not None
        self.follower.stdin.write(f"{count}\n")
        self.follower.stdin.flush()
        for _ in range(readers):
            if self.answer() != "ready\n":
                raise RuntimeError("a follower ended before it began")

    def answer(self) -> str:
        assert self.follower.stdout is not None
        if not (line := self.follower.stdout.readline()):
            raise RuntimeError("a follower did not see a row")
        return line

    def make_store(self) -> None:
        self.writer = self.new_writer(self.store, self.job.rows + 40 * self.job.most)
        self.fill(self.writer)

    def finish(self) -> None:
        if hasattr(self, "follower"):
            self.follower.communicate()  # it ends with its input
        super().finish()


class Seen(Watched):
    """How long after the beginning of its append each row was seen, one at a time, after a pause; cost: the median."""

    def prepare(self) -> None:
        self.start(self.job.kind)
        self.make_store()

    def repeat(self) -> float:
        self.begin(self.job.most)
        self.latencies_s = []
        for _ in range(self.job.most):
            time.sleep(PAUSE_S)
            self.writer.append(torch.full((1, 8), time.monotonic(), dtype=torch.float64))
            self.latencies_s.append(float(self.answer()))
        return statistics.median(self.latencies_s)


class Readers(Watched):
    """What an append costs the writer while others follow, or else look each ms; cost: the median."""

    def prepare(self) -> None:
        if self.job.together:
            self.start("follow" if hasattr(self.system, "follow") else "look", str(self.job.together))
        self.make_store()

    def repeat(self) -> float:
        job = self.job
        if job.together:
            self.begin(job.most, job.together)
        rows = torch.full((1, 8), time.monotonic(), dtype=torch.float64)
        self.latencies_s = timed_one_by_one(self.writer.append, [rows] * job.most, PAUSE_S)
        for _ in range(job.together):
            self.answer()
        return statistics.median(self.latencies_s)


class Fill(Work):
    """Makes the store and leaves it there: the first half of `Weigh`."""

    def prepare(self) -> None:
        self.fill_and_close()

    def repeat(self) -> float:
        raise CannotDo("there is nothing to repeat")


class Weigh(Read):
    """Reads all rows in order and some at random; what that took of memory is in `figures`.

    The store was made by another process (`processes.py`): what this one keeps of filling it would hide what reading takes.
    """

    def prepare(self) -> None:
        if not self.store.exists():
            self.fill_and_close()
        self.source = {}
        self.before = process_figures(self.store)
        self.open_reader()

    def repeat(self) -> float:
        start = time.perf_counter()
        for chunk in self.reader.chunks(BULK_ROWS):
            chunk.sum()
        for _ in range(20):
            self.reader.batch(torch.randint(0, self.job.rows, (256,)))
        return time.perf_counter() - start


def figures(work: Work) -> dict[str, float]:
    """What the store takes: of this process and those it started, in MB and mappings, and on the disk."""
    before = getattr(work, "before", {})
    found = {name: value - before.get(name, 0) for name, value in process_figures(work.store).items()}
    files = [file.stat() for file in files_of(work.store)]
    return found | {"files": len(files), "bytes on disk": sum(512 * file.st_blocks for file in files) / 1e6}


def process_figures(store: Path = Path("/")) -> dict[str, float]:
    """Resident memory, a page that is mapped twice counted once, and mappings; of this process and those below it.

    Mapped is what is of the store's files: a library's pages are shared with other systems' processes, which come and go.
    """
    gc.collect()
    with suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not this reader's, or is not kept by it
    processes, seen = [os.getpid()], []
    while processes:
        seen.append(pid := processes.pop())
        for task in Path(f"/proc/{pid}/task").iterdir():
            processes += map(int, (task / "children").read_text().split())
    private = mapped = 0
    for pid in seen:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        private += int(rollup.split("Pss_Anon:")[1].split()[0])
        is_of_the_store = False
        with Path(f"/proc/{pid}/smaps").open() as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    mapped += is_of_the_store * int(line.split()[1])
                elif not line.split(maxsplit=1)[0].endswith(":"):  # a mapping begins: addresses, rights, …, path
                    is_of_the_store = f" {store}" in line
    return {
        "private memory": private * 1024 / 1e6,
        "mapped memory": mapped * 1024 / 1e6,
        "mappings": sum(len(Path(f"/proc/{pid}/maps").read_text().splitlines()) for pid in seen),
    }


KINDS: dict[str, type[Work]] = {
    "append": Append,
    "latency": Latency,
    "ring": Ring,
    "bulk": Bulk,
    "produce": Produce,
    "overwrite": Overwrite,
    "extend": Extend,
    "scan": Scan,
    "row": Row,
    "batch": Batch,
    "open": Open,
    "follow": Seen,
    "look": Seen,
    "readers": Readers,
    "fill": Fill,
    "weigh": Weigh,
}
