"""Producers that are killed, over and over, at any moment: what was acknowledged is there, once, and in its place.

A process that has imported everything forks the producers, so that a kill costs milliseconds. Each producer appends batches
of rows that say what they are (slot, number, place, count, and a payload that follows from these), and acknowledges each over
a pipe once its commit returned. It is killed from outside after so many acknowledgements, or by itself before its k-th
filesystem call, wherever that is: while it opens, commits, begins a generation, sweeps or closes. Its successor goes on with
the number after the last one acknowledged, under the same key: so a commit that nobody heard of is repeated, and must not be
there twice.

TENSORBLOB_KILLS says how many kills (500), TENSORBLOB_SEED where they fall.
"""

import contextlib
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from api_support import elsewhere
from disk import Act, put_between, without_platters

import tensorblob as tb

KILLS = int(os.environ.get("TENSORBLOB_KILLS", "500"))
SEED = int(os.environ.get("TENSORBLOB_SEED", "0"))
LIMIT_S = 60.0
ROUNDS_PER_BLOB = 8
WAYS = ("sole", "shared", "staged", "together")
"""How the producers of a round write; together: some of them shared, some staged."""
SCHEMA = {"head": ("int64", (4,)), "payload": ("uint8", (250,))}
ACK = struct.Struct("<qqqq")
"""What a producer says of a commit: slot, number, start, stop."""


def batch(slot: int, number: int) -> dict[str, torch.Tensor]:
    """The rows of one append: one to a hundred, of which mostly few."""
    chosen = random.Random(slot * 1_000_003 + number)
    count = chosen.choice((1, 2, 3, 7, 7, 20, 100))
    head = torch.empty(count, 4, dtype=torch.int64)
    head[:, 0], head[:, 1], head[:, 2], head[:, 3] = slot, number, torch.arange(count), count
    return {"head": head, "payload": payload(head)}


def payload(head: torch.Tensor) -> torch.Tensor:
    """250 bytes that only this slot, number and place have."""
    seeds = (head[:, 0] * 7919 + head[:, 1] * 104_729 + head[:, 2] * 31).numpy()[:, None]
    return torch.from_numpy(((seeds + np.arange(250) * (seeds % 251 + 1)) % 256).astype(np.uint8))


def appends_in(found: Any, first_row: int, *, is_ring: bool) -> list[tuple[int, int, int, int]]:
    """The appends in these rows as (slot, number, start, stop), all whole but the first of a ring."""
    head = found["head"]
    assert torch.equal(found["payload"], payload(head)), (
        "all columns of a row are of one append, and as they were written"
    )
    lines, seen, position = head.tolist(), [], 0
    while position < len(lines):
        slot, number, place, count = lines[position]
        assert place == 0 or (is_ring and position == 0), "an append begins with its first row"
        assert lines[position : position + count - place] == [[slot, number, at, count] for at in range(place, count)]
        start = first_row + position - place
        seen.append((slot, number, start, start + count))
        position += count - place
    return seen


# ---- the producers


class Setting:
    """What the producers of one blob have in common."""

    def __init__(self, path: Path, way: str, chosen: random.Random) -> None:
        self.path, self.way = path, way
        self.durability = chosen.choice(("process", "process", "power"))
        self.most_rows = chosen.choice((None, None, 300))
        self.edits = chosen.choice((4, 40, 10_000))
        self.block_rows = chosen.choice((16, 64, 4096))

    def __str__(self) -> str:
        return f"{self.way}, {self.durability}, max_rows={self.most_rows}, MAX_EDITS={self.edits}"

    def open(self, mode: str = "a+", **options: Any) -> tb.TensorBlob:
        if mode != "r":
            options = {"durability": self.durability, "timeout_s": LIMIT_S} | options
        return tb.TensorBlob.open(self.path, mode, **options)


def produce(setting: Setting, slot: int, number: int, seed: int, say: int) -> None:
    """Append batches from `number` on until killed, closing and opening the blob again now and then."""
    chosen = random.Random(seed)
    way = chosen.choice(("shared", "staged")) if setting.way == "together" else setting.way
    if way == "staged":
        tb.staging.COPY_NBYTES = chosen.choice((1, 4096, 1 << 20))  # adopt, or copy

    def told(number: int, rows: range) -> None:
        os.write(say, ACK.pack(slot, number, rows.start, rows.stop))

    async def append(first: int) -> None:
        options = {"durability": setting.durability, "timeout_s": LIMIT_S}
        while True:
            appends = chosen.randrange(1, 12)
            if way == "shared":
                async with tb.open_writer(setting.path, shared=True, **options) as writer:
                    for number in range(first, first + appends):
                        told(number, await writer.append(batch(slot, number), key=f"{slot}", sequence=number))
            else:
                async with tb.open_producer(setting.path, **options) as producer:
                    for number in range(first, first + appends):
                        rows = batch(slot, number)
                        half = len(rows["head"]) // 2
                        if half:
                            await producer.append({name: part[:half] for name, part in rows.items()})
                        await producer.append({name: part[half:] for name, part in rows.items()})
                        told(number, await producer.commit(key=f"{slot}", sequence=number))
            first += appends

    if way != "sole":
        anyio.run(append, number)
    while True:
        with setting.open() as blob:
            for _ in range(chosen.randrange(1, 12)):
                before = blob.rows
                if chosen.random() < 0.2:
                    with blob.transaction():
                        rows = batch(slot, number)
                        blob.write({name: part[:1] for name, part in rows.items()})
                        blob.write({name: part[1:] for name, part in rows.items()})
                else:
                    blob.write(batch(slot, number))
                told(number, range(before, blob.rows))
                number += 1
                if chosen.random() < 0.1:
                    blob.flush()
                if chosen.random() < 0.05:
                    blob.compact()


class Child:
    """A producer at work. It dies before its `calls`-th filesystem call, or once it has acknowledged `acks` appends."""

    def __init__(self, setting: Setting, slot: int, number: int, chosen: random.Random) -> None:
        self.slot = slot
        by_call = chosen.random() < 0.5
        self.calls = int(chosen.expovariate(1 / 150)) if by_call else -1
        self.acks = -1 if by_call else int(chosen.expovariate(1 / 6))
        self.delay_s = chosen.choice((0.0, 0.0, 0.0003, 0.001, 0.003))
        self.told = 0
        self.hears, says = os.pipe()
        seed = chosen.randrange(1 << 30)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(says)
            os.set_blocking(self.hears, False)
            return
        try:
            if by_call:
                self._die_by_call(setting.path.parent)
            produce(setting, slot, number, seed, says)
        except BaseException:
            setting.path.with_name(f"error.{os.getpid()}").write_text(traceback.format_exc())
        finally:
            os._exit(1)

    def _die_by_call(self, root: Path) -> None:
        left = self.calls

        def die(_: Act) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        put_between(pytest.MonkeyPatch(), root).before = die

    def heard(self) -> list[tuple[int, ...]]:
        """What it has acknowledged since the last time."""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self.hears, ACK.size * 2000)
            self.told += len(said) // ACK.size
            return list(ACK.iter_unpack(said))
        return []


def run_to_death(children: list[Child], setting: Setting) -> Iterator[tuple[int, ...]]:
    """Let them work, kill each at its time, and yield what they acknowledge until all are dead."""
    alive = list(children)
    last_s = time.monotonic()
    while alive:
        ready, _, _ = select.select([child.hears for child in alive], [], [], 0.005)
        if ready:
            last_s = time.monotonic()
        assert time.monotonic() - last_s < LIMIT_S, f"{setting}: those that are left do not go on"
        for child in list(alive):
            if 0 <= child.acks <= child.told:
                time.sleep(child.delay_s)
                os.kill(child.pid, signal.SIGKILL)
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            yield from child.heard()
            if pid:
                yield from child.heard()
                os.close(child.hears)
                alive.remove(child)
                errors = [found.read_text() for found in setting.path.parent.glob("error.*")]
                assert not errors, f"{setting}: {errors[0]}"
                assert os.WTERMSIG(status) == signal.SIGKILL, f"{setting}: a producer died by itself, of {status}"


# ---- the loop


def _kill(folder: Path, way: str, kills: int, seed: int) -> int:
    """Kill that many producers of blobs in `folder`; return how many appends survived them."""
    torch.set_num_threads(1)  # the threads of a pool would not be there in a forked child
    without_platters(pytest.MonkeyPatch())
    chosen = random.Random(seed)
    survived = killed = 0
    while killed < kills:
        setting = Setting(folder / f"{killed}.blob", way, chosen)
        tb.writer.MAX_EDITS = setting.edits
        with tb.TensorBlob.open(
            setting.path, "w", schema=SCHEMA, block_rows=setting.block_rows, max_rows=setting.most_rows
        ):
            pass
        checker = Checker(setting)
        for _ in range(ROUNDS_PER_BLOB):
            count = min(1 if way == "sole" else 3, max(kills - killed, 1))
            children = [Child(setting, slot, checker.next_number(slot), chosen) for slot in range(count)]
            checker.hear(run_to_death(children, setting))
            killed += len(children)
            checker.check()
        survived += checker.close()
    return survived


class Checker:
    """Knows what was acknowledged in one blob, and holds the blob against it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.acknowledged: dict[int, int] = {}
        """The newest number of each slot."""
        self.places: dict[tuple[int, int], tuple[int, int]] = {}
        self.order: list[tuple[int, int, int, int]] = []
        self.own = 0
        self.reader = setting.open("r")
        self.held = self._hold()

    def _hold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows as they are now, without a copy, and a copy of them."""
        runs = self.reader.runs(0, len(self.reader))
        view = self.reader.select("payload").view(*runs[0])["payload"] if runs else torch.empty(0)
        return view, view.clone()

    def next_number(self, slot: int) -> int:
        return self.acknowledged.get(slot, -1) + 1 if self.setting.way != "sole" else self.committed(slot)

    def committed(self, slot: int) -> int:
        """How many appends of a slot are there: a sole writer can look."""
        return max((number for found, number, *_ in self.order if found == slot), default=-1) + 1

    def hear(self, told: Iterator[tuple[int, ...]]) -> None:
        for slot, number, start, stop in told:
            assert self.places.setdefault((slot, number), (start, stop)) == (start, stop), (
                "a repeated append gets its rows"
            )
            self.acknowledged[slot] = max(number, self.acknowledged.get(slot, -1))

    def check(self) -> None:
        """After a kill: readers find what was acknowledged; the next writer cleans up and goes on."""
        self._look(self.setting)
        is_shared = self.setting.way != "sole"
        with self.setting.open("a", shared=is_shared) as blob:
            start = blob.rows
            blob.write(batch(99, self.own))
            self.hear(iter([(99, self.own, start, blob.rows)]))
            self.own += 1
        self._look(self.setting)
        self._check_files()
        view, before_it = self.held
        assert torch.equal(view, before_it), "what somebody holds stays as it was"
        self.held = self._hold()

    def _look(self, setting: Setting) -> None:
        self.reader.refresh()
        with setting.open("r") as fresh:
            found, first_row = fresh[:], fresh.first_row
            assert fresh.history == 0, f"{setting}: nothing was cut"
            assert (fresh.rows, fresh.first_row) == (self.reader.rows, self.reader.first_row)
        again = self.reader[:]
        assert all(torch.equal(found[name], again[name]) for name in SCHEMA), "who followed sees what who comes sees"
        is_ring = setting.most_rows is not None
        appends = appends_in(found, first_row, is_ring=is_ring)
        known = [append for append in self.order if append[3] > first_row]
        assert appends[: len(known)] == known, f"{setting}: the order of commits stays"
        self.order += appends[len(known) :]
        count = {slot: self.committed(slot) for slot in {append[0] for append in self.order}}
        for slot in count:
            numbers = [number for found, number, *_ in (appends if is_ring else self.order) if found == slot]
            start = numbers[0] if is_ring and numbers else 0  # what nobody saw may be trimmed by now
            assert numbers == list(range(start, start + len(numbers))), f"{setting}: each once, in order, without a gap"
        for slot, number in self.acknowledged.items():
            assert count.get(slot, 0) <= number + 2, f"{setting}: all that was acknowledged, and one more at most"
        there = {append[:2]: append[2:] for append in self.order}
        for append, place in self.places.items():
            assert there.get(append, place) == place, f"{setting}: where the producer was told"
            assert append in there or place[1] <= first_row, f"{setting}: what was acknowledged is there"

    def _check_files(self) -> None:
        """Nobody is at work: what is there is named."""
        path = self.setting.path
        self.reader.close()  # it would pin what it shows
        with self.setting.open("a", shared=self.setting.way != "sole"):
            pass
        self.reader = self.setting.open("r")
        for column, name in zip(self.reader.snapshot.columns, SCHEMA, strict=True):
            assert set(os.listdir(path / "blocks" / name)) == column.live(), (
                f"{self.setting}: no garbage, nothing missing"
            )
        assert not os.listdir(path / "producers") and len(list(path.glob("manifest.*"))) == 1
        assert not list(path.glob(".*")) and not list(path.parent.glob(".*"))

    def close(self) -> int:
        self.reader.close()
        assert tb.TensorBlob.unlink(self.setting.path)
        return len(self.order)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_producers_that_are_killed_at_any_moment_lose_nothing_that_was_acknowledged(way: str, tmp_path: Path) -> None:
    kills = -(-KILLS // len(WAYS))
    print(f"TENSORBLOB_SEED={SEED} TENSORBLOB_KILLS={KILLS}: {kills} of producers that write {way}")
    survived = elsewhere(_kill, tmp_path, way, kills, SEED)
    assert survived >= kills // 2, "they had time to do something"
