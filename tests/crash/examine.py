"""Every state that a power loss may leave of a run is opened, recovered, read, appended to and read again.

A state counts once: two that hold the same files, names and bytes are one. The first of them is put under the engine,
and the whole way is gone: a reader opens it and reads all rows; a writer recovers it, and shows the same; it appends and
closes; a reader finds that (recovery leaves the same of many states, byte for byte: the same is read once). For every further
one the answer is known, and is held against what was promised by then. Of some the way itself is cut short by another power
loss, anywhere, and again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from kernel import EMPTY, Disk, Image, Mount
from power import Moment, moments
from workloads import WORKLOADS, Content, History, Run, content

from tensorblob import cursors, files
from tensorblob.blob import TensorBlob

EXHAUSTIVE = 2048
"""Points with no more choices are gone through one by one; of others samples are drawn."""
DEPTH = 2
AGAIN_SHARE = 1 / 3
"""Of the states, so many are of a power loss during a recovery."""
MISSES = 100
"""A point that gave so many states in a row that it had given before is left for those that still have new ones."""
AGAIN_COUNT = 60
"""States that are drawn of one recovery."""


class Examination:
    """The states of one run of a workload: `count` different ones were gone through, until there were `enough`."""

    def __init__(self, mount: Mount, workload: str, seed: int, enough: int) -> None:
        self.mount, self.enough = mount, enough
        self.rng = random.Random(f"{workload} {seed}")
        self.what = f"{workload}, seed {seed}"
        self.count = self.repeated = 0
        self.by_depth = [0] * (DEPTH + 1)
        self.found: dict[str, set[int]] = {}
        """By path, which of its states were found."""
        self._seen: dict[int, dict[str, Any]] = {}
        self._read: dict[tuple[str, str, int], Content | None] = {}
        """What a reader finds, by path, boot, and what is there."""
        disk = mount.put(Disk(EMPTY, f"{self.what} boot 0"))
        run = Run(disk, self.rng, power=bool(seed % 2))
        WORKLOADS[workload](run)
        self.histories = run.histories
        self.moments = moments(EMPTY, disk.log)
        self.small = {n for n, moment in enumerate(self.moments) if moment.count(EXHAUSTIVE) < EXHAUSTIVE}
        """The points at which all states are gone through, one by one."""

    def go(self) -> None:
        """Draw states of all points in turn, first of each what is there if nothing is that was not synced."""
        for number, moment in enumerate(self.moments):
            if self.count < self.enough:
                self.look(moment.certain(), moment, self.histories, 1, f"point {number}")
        draws = [self._draws(moment) for moment in self.moments]
        drawn: list[set[int]] = [set() for _ in draws]
        misses = [0] * len(draws)
        numbers = list(range(len(draws)))
        while numbers:
            left = []
            for number in numbers:
                is_small = number in self.small
                for _ in range(4):
                    if self.count >= self.enough:
                        return
                    image = next(draws[number], None)
                    if image is None:
                        break
                    key = self.look(image, self.moments[number], self.histories, 1, f"point {number}")
                    misses[number] = misses[number] + 1 if key in drawn[number] else 0
                    if not is_small and misses[number] == MISSES:
                        break
                    drawn[number].add(key)
                else:
                    left.append(number)
            numbers = left

    def _draws(self, moment: Moment) -> Iterator[Image]:
        yield moment.all_present()
        if moment.count(EXHAUSTIVE) < EXHAUSTIVE:
            yield from moment.all(self.rng)
            return
        while True:
            yield moment.any(self.rng)

    def look(self, image: Image, moment: Moment, histories: dict[str, History], depth: int, where: str) -> int:
        """Go through a state, or hold what is known of it against what `moment` promises; return its fingerprint."""
        try:
            print_key = image.fingerprint()
            if (known := self._seen.get(print_key)) is not None:
                self.repeated += 1
                for path, found in known.items():
                    self._check(found, moment, histories[path], path)
                return print_key
            is_cut_again = depth < DEPTH and self.rng.random() < AGAIN_SHARE / AGAIN_COUNT
            disk = self.mount.put(Disk(image, f"{self.what} boot {depth}"))
            after: dict[str, History] = {}
            answers = self._seen[print_key] = {}
            for path, history in histories.items():
                answers[path], after[path] = self._gone_through(disk, moment, history, path)
            self.count += 1
            self.by_depth[depth] += 1
        except BaseException as error:
            error.add_note(f"{self.what}: {where}, state {self.count}, depth {depth}")
            raise
        if is_cut_again:
            points = moments(image, disk.log)
            for number in range(AGAIN_COUNT):
                point = self.rng.choice(points) if number % 2 else points[number * len(points) // AGAIN_COUNT]
                self.look(point.any(self.rng), point, after, depth + 1, f"{where}, then point {points.index(point)}")
        return print_key

    def _check(self, found: Any, moment: Moment, history: History, path: str) -> int:
        """What is found must be something that was: nothing older than promised, nothing that was not attempted."""
        low, high = moment.marks.get(("durable", path), 0), moment.marks.get(("attempted", path), 0)
        for number in range(high, low - 1, -1):
            if history.states[number] == found:
                return number
        be = [number for number, state in enumerate(history.states) if state == found]
        raise AssertionError(f"{path}: found state {be or 'that never was'}, not of {low} to {high}: {_short(found)}")

    def _gone_through(self, disk: Disk, moment: Moment, history: History, path: str) -> tuple[Any, History]:
        """Open, recover, read, append and read again; return what was found, and what there is after it."""
        if "#" in path:
            return self._cursor_gone_through(disk, moment, history, path)
        found = read(path)
        number = self._check(found, moment, history, path)
        found = history.states[number]
        if history is self.histories.get(path):
            self.found.setdefault(path, set()).add(number)
        after = history.followed_by(disk, found)
        extra, tails = history.extra()
        if found is None:
            recovered = Content(0, (b"",) * len(history.fields), (), "{}", (), None)
            after.add(recovered)
            writer = TensorBlob.open(path, "w+", schema=history.schema, io="pread")
        else:
            recovered = found._replace(finish_row=None)
            after.add(recovered)
            writer = TensorBlob.open(path, "a+", io="pread")
            assert writer.history >= 1 << 20, "what may have been lost begins a new history"
        after.promised()
        shown = content(writer)
        assert shown == recovered, f"{path}: a reader finds {_short(found)}, a writer {_short(shown)}"
        assert writer.durable_rows == writer.rows, "what recovery keeps, it makes durable"
        after.add(history.followed(recovered, tails))
        writer.write(extra)
        writer.close()
        after.promised()
        shown = self._read_once(disk, path)
        assert shown == after.states[-1], f"{path}: two rows were appended to {_short(found)}, now {_short(shown)}"
        return found, after

    def _read_once(self, disk: Disk, path: str) -> Content | None:
        key = path, disk.boot, disk.find(path, None).fingerprint()
        if key not in self._read:
            self._read[key] = read(path)
        return self._read[key]

    def _cursor_gone_through(self, disk: Disk, moment: Moment, history: History, path: str) -> tuple[Any, History]:
        after = history.followed_by(disk, None)
        blob, _, name = path.partition("#")
        try:
            dir_fd = files.open_directory(blob)
        except FileNotFoundError:
            self._check(None, moment, history, path)
            after.states = [None]
            return None, after
        found = cursors.read_position(dir_fd, name)
        self.found.setdefault(path, set()).add(self._check(found, moment, history, path))
        after.states = [found]
        with TensorBlob.open(blob, io="pread") as reader:
            assert found is None or found.row <= reader.rows, "of durable rows none is lost"
        consumer = cursors.Cursor(dir_fd, name)
        assert consumer.position == found
        after.add(cursors.Position(0 if found is None else found.row, 1 << 20))
        consumer.acknowledge(*after.states[-1])
        after.promised()
        consumer.close()
        assert cursors.read_position(dir_fd, name) == after.states[-1]
        disk.close(dir_fd)
        return found, after


def read(path: str) -> Content | None:
    try:
        reader = TensorBlob.open(path, io="pread")
    except FileNotFoundError:
        return None
    found = content(reader)
    reader.close()
    return found


def _short(found: Any) -> str:
    if not isinstance(found, Content):
        return str(found)
    return f"{[len(column) for column in found.columns]} bytes from row {found.first_row}, {found[2:]}"
