"""What is measured: a job is the same work for every system, told to its process as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

BULK_ROWS = 8192

Fields = dict[str, tuple[str, tuple[int, ...]]]
WIDE: Fields = {"rows": ("float32", (768,))}
SMALL: Fields = {"rows": ("float32", (16,))}
CLOCK: Fields = {"rows": ("float64", (8,))}
ATARI: Fields = {
    "observation": ("uint8", (4, 84, 84)),
    "action": ("int64", ()),
    "reward": ("float32", ()),
    "done": ("bool", ()),
}
WIDE_NBYTES = 768 * 4
RING_ROWS = 20_000
RING_COMMIT_ROWS = 8


@dataclass(frozen=True)
class Job:
    """One kind of work (`work.KINDS`) on a store of `rows` rows, in steps of `batch_rows`."""

    kind: str
    fields: Fields
    rows: int = 0
    batch_rows: int = 1
    sync: bool = False
    most: int = 3000
    """Calls in a repetition, at most."""
    budget_s: float = 0.1
    """About how long a repetition takes."""
    prepare_rows: int = BULK_ROWS
    """Rows of each append that the store is made with."""
    prepare_s: float = 60.0
    """A system that would take longer than this to make the store takes no part."""
    block_rows: int = 0
    """Given: the store is made of blocks of so many rows, by those who have blocks."""
    together: int = 1
    """Producers or readers at the same time."""
    is_cold: bool = False
    """The store's pages are dropped from memory before each repetition."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        fields = {name: (dtype, tuple(shape)) for name, (dtype, shape) in values.pop("fields").items()}
        return cls(fields=fields, **values)


@dataclass(frozen=True)
class Workload:
    """A line of the report: its jobs (more than one: a curve against size), and what the limit is called there."""

    title: str
    limit: str
    jobs: dict[int, Job] = field(default_factory=dict)
    """By size."""
    axis: str = "rows"
    """What the sizes count."""
    is_rate: bool = False
    """Reported in bytes a second instead of seconds."""
    weighs: tuple[str, ...] = ()
    """Figures that are taken of the store and its process besides (of `work.figures`)."""
    is_quick: bool = False
    """Part of a quick run."""
    note: str = ""
    """What a reader of the figures has to know."""
    without: dict[str, str] = field(default_factory=dict)
    """Systems that would be measured on other work here, and why."""

    @property
    def is_curve(self) -> bool:
        return len(self.jobs) > 1


def columns(count: int) -> Fields:
    return {f"field{number:02}": ("float32", (16,)) for number in range(count)}


def named(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of the known workloads that are called so, or have it among the words of their name."""
    wanted = list(names)
    return [one for one in known if any(f"-{name}-" in f"-{one}-" for name in wanted)]


def workloads(quick: bool) -> dict[str, Workload]:
    wide_rows = 20_000 if quick else 100_000
    small_rows = 20_000 if quick else 1_000_000
    atari_rows = 1_000 if quick else 10_000
    decades = [1_000, 100_000] if quick else [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
    budget_s, curve_s = (0.04, 0.02) if quick else (0.2, 0.1)
    prepare_s = 3.0 if quick else 60.0
    watched = 20 if quick else 300
    pwrite, synced, select = "os.pwrite", "os.pwrite + fdatasync", "index_select in memory"
    one_loop, one_synced_loop = "os.pwrite, one loop", "os.pwrite + fdatasync, one loop"

    not_opened = {"redis": "a server, which loads its data when it starts"}
    no_commits = not_opened | dict.fromkeys(
        ("tensordict", "torchrl"), "its appends leave no trace but the number of rows, which is overwritten"
    )
    no_blocks = not_opened | dict.fromkeys(
        ("mmap_ninja", "tensordict", "torchrl", "lmdb", "h5py", "lance", "zarr"),
        "its rows are not in blocks of a file each",
    )
    reopened = "a reader opens it anew to see more, and may find a file that is just being rewritten"
    not_looked = dict.fromkeys(("mmap_ninja", "published", "zarr"), reopened)
    not_looked["torchrl"] = "another process does not see the live buffer"
    not_changed = {
        "redis": "an entry of a stream cannot be changed",
        "lance": "updates by expression or by a key column, which these rows do not have",
    }
    no_ring = dict.fromkeys(
        ("published", "mmap_ninja", "tensordict", "h5py", "lance", "zarr"), "no call that drops the oldest rows"
    )
    in_memory = {"redis": "all rows are in the server's memory: nothing is read from the disk"}

    def job(kind: str, fields: Fields, rows: int = 0, batch_rows: int = 1, **more: Any) -> Job:
        return Job(kind, fields, rows, batch_rows, **({"budget_s": budget_s, "prepare_s": prepare_s} | more))

    def append(title: str, fields: Fields, batch_rows: int, sync: bool = False, **more: Any) -> Workload:
        is_quick, most = more.pop("is_quick", False), more.pop("most", 10_000)
        jobs = {0: job("append", fields, 0, batch_rows, sync=sync, most=most)}
        return Workload(title, synced if sync else pwrite, jobs, is_quick=is_quick)

    def produce(title: str, batch_rows: int, sync: bool) -> Workload:
        counts = [1, 8] if quick else [1, 8, 32]
        most = 2_000 if sync else 20_000 if batch_rows == 1 else 5_000
        return Workload(
            title,
            one_synced_loop if sync else one_loop,
            {n: job("produce", SMALL, 0, batch_rows, sync=sync, most=most, together=n) for n in counts},
            axis="producers",
        )

    def grown(
        kind: str, sizes: Iterable[int], fields: Fields = SMALL, batch_rows: int = 1, **more: Any
    ) -> dict[int, Job]:
        return {n: job(kind, fields, n, batch_rows, **({"budget_s": curve_s} | more)) for n in sizes}

    cold = (
        "As with data much larger than memory: the store's pages are dropped from it before each repetition (that they are is "
        "checked), so that all is read from the disk. Not in it is what the system spends on finding pages to drop."
    )
    wide_nbytes = f"{wide_rows * WIDE_NBYTES / 1e6:.0f} MB"
    column_counts = [1, 8] if quick else [1, 2, 4, 8, 16, 32]
    return {
        "bulk": Workload(
            f"bulk append, {wide_rows:,} × 3 KiB",
            pwrite,
            {wide_rows: job("bulk", WIDE, wide_rows)},
            is_rate=True,
            is_quick=True,
        ),
        "append1": append("append 1 row of 64 bytes", SMALL, 1, is_quick=True),
        "append32": append("append 32 rows of 64 bytes", SMALL, 32, most=3000),
        "append1-sync": append("append 1 row, synced", SMALL, 1, sync=True, most=500, is_quick=True),
        "append32-sync": append("append 32 rows, synced", SMALL, 32, sync=True, most=500),
        "produce1": produce("append 1 row, by producers", 1, sync=False),
        "produce32": produce("append 32 rows, by producers", 32, sync=False),
        "produce1-sync": produce("append 1 row, synced, by producers", 1, sync=True),
        "produce32-sync": produce("append 32 rows, synced, by producers", 32, sync=True),
        "latency1": Workload("each append of 1 row", pwrite, {0: job("latency", SMALL, most=3000)}),
        "latency1-sync": Workload(
            "each append of 1 row, synced",
            synced,
            {0: job("latency", SMALL, sync=True, most=500, budget_s=5 * budget_s)},
        ),
        "scan": Workload(
            f"scan, {wide_rows:,} × 3 KiB",
            "slices in memory",
            {wide_rows: job("scan", WIDE, wide_rows)},
            is_rate=True,
            is_quick=True,
        ),
        "row": Workload(
            "one random row of 3 KiB", "clone in memory", {wide_rows: job("row", WIDE, wide_rows)}, is_quick=True
        ),
        "batch256": Workload(
            "random batch of 256 × 3 KiB", select, {wide_rows: job("batch", WIDE, wide_rows, 256)}, is_quick=True
        ),
        "batch512": Workload("random batch of 512 × 3 KiB", select, {wide_rows: job("batch", WIDE, wide_rows, 512)}),
        "atari-append": append("append 1 Atari step (4 fields)", ATARI, 1, most=500),
        "atari-batch": Workload(
            "random batch of 256 Atari steps", select, {atari_rows: job("batch", ATARI, atari_rows, 256)}
        ),
        "overwrite": Workload(
            "overwrite 32 rows of 64 bytes",
            pwrite,
            {small_rows: job("overwrite", SMALL, small_rows // 10, 32, most=1000)},
            note="Ours writes the rows to a new place and commits: who holds a snapshot keeps the old ones, and a crash "
            "leaves all or nothing, as with LMDB. The others change them in place, under their readers.",
            without=not_changed,
        ),
        "extend": Workload(
            f"extend by a store of {wide_nbytes}",
            "shutil.copyfile",
            {wide_rows: job("extend", WIDE, wide_rows)},
            note="Ours links the files and copies no row. Those without a call for it read the rows and append them.",
            without={"redis": "no call that merges: each row would be a message to one server and from the other"},
        ),
        "follow": Workload(
            "append → seen by a process that sleeps",
            "a busy fstat",
            {0: job("follow", CLOCK, 10, most=watched)},
            without=not_looked | dict.fromkeys(("lmdb", "h5py", "tensordict", "lance"), "no call that waits for rows"),
            is_quick=True,
        ),
        "look": Workload(
            "append → seen by a process that looks all the time",
            "a busy fstat",
            {0: job("look", CLOCK, 10, most=watched)},
            without=not_looked | {"redis": "has a call that waits, and is used with it"},
        ),
        "readers": Workload(
            "append 1 row each 2 ms, by live readers in processes of their own",
            "os.pwrite, and as many that ask fstat each ms",
            {n: job("readers", CLOCK, 10, most=watched, together=n) for n in ([0, 2] if quick else [0, 1, 2, 4, 8])},
            axis="readers",
            note="Readers wait by the library's own call, or else look each ms; they begin before the writer does.",
            without=not_looked,
        ),
        "memory": Workload(
            f"after reading all of {wide_nbytes}",
            "bytes of data",
            {wide_rows: job("weigh", WIDE, wide_rows)},
            weighs=("private memory", "mapped memory", "mappings", "bytes on disk", "files"),
        ),
        "cold-scan": Workload(
            f"scan from the disk, {wide_rows:,} × 3 KiB",
            "os.preadv",
            {wide_rows: job("scan", WIDE, wide_rows, is_cold=True)},
            is_rate=True,
            note=cold,
            without=in_memory,
        ),
        "cold-batch": Workload(
            "random batch of 256 × 3 KiB from the disk",
            "an os.preadv a row",
            {wide_rows: job("batch", WIDE, wide_rows, 256, is_cold=True)},
            note=cold,
            without=in_memory,
        ),
        "append-rows": Workload("append 1 row of 64 bytes, by rows there", pwrite, grown("append", decades)),
        "batch-rows": Workload(
            "random batch of 256 × 64 bytes, by rows there",
            select,
            grown("batch", [1_000, 100_000] if quick else [300, 3_000, 30_000, 300_000, 3_000_000], batch_rows=256),
        ),
        "open-rows": Workload(
            "open and read the last row, by rows",
            "open + pread",
            grown("open", decades, most=200),
            without=not_opened,
            is_quick=True,
        ),
        "append-columns": Workload(
            "append 1 row, by fields of 64 bytes",
            pwrite,
            {n: job("append", columns(n), most=2000, budget_s=curve_s) for n in column_counts},
            axis="fields",
        ),
        "batch-columns": Workload(
            "random batch of 256, by fields of 64 bytes",
            select,
            {n: job("batch", columns(n), small_rows // 10, 256, budget_s=curve_s) for n in column_counts},
            axis="fields",
        ),
        "ring": Workload(
            f"append {RING_COMMIT_ROWS} rows to a full ring of {RING_ROWS:,}, by rows that went through",
            pwrite,
            grown(
                "ring",
                [40_000, 100_000] if quick else [40_000, 200_000, 1_000_000, 3_000_000, 10_000_000],
                batch_rows=RING_COMMIT_ROWS,
                prepare_rows=RING_COMMIT_ROWS,
                prepare_s=prepare_s * 3,
            ),
            axis="rows that went through",
            weighs=("private memory", "mappings", "bytes on disk", "files"),
            without=no_ring,
        ),
        "open-commits": Workload(
            "open and read the last row, by commits",
            "open + pread",
            grown("open", decades, most=200, prepare_rows=1, prepare_s=prepare_s * 3),
            axis="commits",
            without=no_commits,
        ),
        "open-blocks": Workload(
            "open and read the last row, by blocks",
            "open + pread",
            {
                n: job("open", SMALL, 64 * n, most=200, block_rows=64, budget_s=curve_s, prepare_s=prepare_s * 10)
                for n in ([10, 1_000] if quick else [10, 100, 1_000, 10_000, 100_000])
            },
            axis="blocks",
            without=no_blocks,
        ),
    }
