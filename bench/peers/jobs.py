"""What is measured: a job is the same work for every system, told to its process as JSON."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Job:
    """Append, bulk (append all `rows` to an empty store), scan, row, batch, open, follow or look; with `rows` rows there."""

    kind: str
    fields: Fields
    rows: int = 0
    batch_rows: int = 1
    sync: bool = False
    most: int = 3000
    """Calls in a repetition, at most."""
    budget_s: float = 0.1
    """About how long a repetition takes."""

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
    """By size, in rows."""
    is_rate: bool = False
    """Reported in bytes a second instead of seconds."""
    without: dict[str, str] = field(default_factory=dict)
    """Systems that would be measured on other work here, and why."""


def workloads(quick: bool) -> dict[str, Workload]:
    wide_rows = 20_000 if quick else 100_000
    atari_rows = 1_000 if quick else 10_000
    sizes = [1_000, 100_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    budget_s = 0.04 if quick else 0.2
    pwrite, synced, select = "os.pwrite", "os.pwrite + fdatasync", "index_select in memory"
    not_opened = {
        "redis": "a server, which loads its data when it starts",
        "torchrl": "has no opening: `loads` copies all of it",
    }

    reopened = "a reader opens it anew to see more, and may find a file that is just being rewritten"
    not_looked = dict.fromkeys(("mmap_ninja", "published", "zarr"), reopened)
    not_looked["torchrl"] = "another process does not see the live buffer"

    def job(kind: str, fields: Fields, rows: int = 0, batch_rows: int = 1, sync: bool = False, most: int = 3000) -> Job:
        return Job(kind, fields, rows, batch_rows, sync, most, budget_s)

    def append(title: str, fields: Fields, batch_rows: int, sync: bool = False, most: int = 10_000) -> Workload:
        return Workload(title, synced if sync else pwrite, {0: job("append", fields, 0, batch_rows, sync, most)})

    return {
        "bulk": Workload(
            f"bulk append, {wide_rows:,} × 3 KiB", pwrite, {wide_rows: job("bulk", WIDE, wide_rows)}, is_rate=True
        ),
        "append1": append("append 1 row of 64 bytes", SMALL, 1),
        "append32": append("append 32 rows of 64 bytes", SMALL, 32, most=3000),
        "append1-sync": append("append 1 row, synced", SMALL, 1, sync=True, most=500),
        "append32-sync": append("append 32 rows, synced", SMALL, 32, sync=True, most=500),
        "scan": Workload(
            f"scan, {wide_rows:,} × 3 KiB",
            "slices in memory",
            {wide_rows: job("scan", WIDE, wide_rows)},
            is_rate=True,
        ),
        "row": Workload("one random row of 3 KiB", "clone in memory", {wide_rows: job("row", WIDE, wide_rows)}),
        "batch256": Workload("random batch of 256 × 3 KiB", select, {wide_rows: job("batch", WIDE, wide_rows, 256)}),
        "batch512": Workload("random batch of 512 × 3 KiB", select, {wide_rows: job("batch", WIDE, wide_rows, 512)}),
        "atari-append": append("append 1 Atari step (4 fields)", ATARI, 1, most=500),
        "atari-batch": Workload(
            "random batch of 256 Atari steps", select, {atari_rows: job("batch", ATARI, atari_rows, 256)}
        ),
        "follow": Workload(
            "append → seen by a process that sleeps",
            "a busy fstat",
            {0: job("follow", CLOCK, 10, most=20 if quick else 100)},
            without=not_looked | dict.fromkeys(("lmdb", "h5py", "tensordict", "lance"), "no call that waits for rows"),
        ),
        "look": Workload(
            "append → seen by a process that looks all the time",
            "a busy fstat",
            {0: job("look", CLOCK, 10, most=20 if quick else 100)},
            without=not_looked | {"redis": "has a call that waits, and is used with it"},
        ),
        "append-grown": Workload(
            "append 1 row of 64 bytes, by rows there", pwrite, {n: job("append", SMALL, n, most=3000) for n in sizes}
        ),
        "batch-grown": Workload(
            "random batch of 256 × 64 bytes, by rows", select, {n: job("batch", SMALL, n, 256) for n in sizes}
        ),
        "open-grown": Workload(
            "open and read the last row, by rows",
            "open + pread",
            {n: job("open", SMALL, n, most=200) for n in sizes},
            without=not_opened,
        ),
    }
