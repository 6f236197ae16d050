"""What is left on a disk when the power goes: every state that the acts in its log may leave.

`moments` folds such a log into what is on the platters for certain and what only may be, at each point of it; a `Moment`
builds the states that a power loss may leave there, and `Disk(image)` is the disk that is found after the next boot.

What may be left, of what was not synced:
- of a file's bytes each sector (512 bytes) as it was after any of the writes to it, or before all of them, whatever
  became of the others. So pages are torn, and written in any order; what is not there reads as zeros;
- of its size the old one, that after any write, or a page boundary that a write had passed;
- of a directory's changes (create, link, rename, unlink, mkdir, rmdir) any subset, each whole, applied in their order.
A sync of a file makes its bytes and its size certain, and none of its names. A sync of a directory makes its names
certain, and nothing of the files.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from kernel import PAGE_NBYTES, ROOT, Act, Image, Make, Mark, Name, Sync, Write

SECTOR_NBYTES = 512


class FileLoss:
    """The contents that a file may have: `base` is certain, `writes` came after."""

    def __init__(self, base: bytes, writes: tuple[Write, ...]) -> None:
        ends = [write.offset + len(write.data) for write in writes]
        longest = max(len(base), *ends)
        pages = range(len(base) // PAGE_NBYTES * PAGE_NBYTES + PAGE_NBYTES, longest, PAGE_NBYTES)
        self.sizes = sorted({len(base), *(end for end in ends if end > len(base)), *pages})
        padded = -(-longest // SECTOR_NBYTES) * SECTOR_NBYTES
        self._base = base.ljust(padded, b"\0")
        data = bytearray(self._base)
        versions: dict[int, list[bytes]] = {}
        for write, end in zip(writes, ends, strict=True):
            sectors = range(write.offset // SECTOR_NBYTES * SECTOR_NBYTES, end, SECTOR_NBYTES)
            for at in sectors:
                versions.setdefault(at, [bytes(data[at : at + SECTOR_NBYTES])])
            data[write.offset : end] = write.data
            for at in sectors:
                versions[at].append(bytes(data[at : at + SECTOR_NBYTES]))
        self.sectors = [(at, list(dict.fromkeys(found))) for at, found in sorted(versions.items())]
        """Where a sector lies that may be torn from the others, and what it may hold, oldest first."""
        self.new, self.old = bytes(data[:longest]), base
        self.choices = len(self.sizes)
        for _, found in self.sectors:
            self.choices *= len(found)

    def torn(self, chosen: list[int], size: int) -> bytes:
        """The content with version `chosen[i]` of sector i, and a size."""
        data = bytearray(self._base)
        for (at, found), version in zip(self.sectors, chosen, strict=True):
            if version:
                data[at : at + SECTOR_NBYTES] = found[version]
        return bytes(data[:size])

    def count(self, limit: int) -> int:
        """How many contents there are; `limit` if at least so many choices lead to them."""
        return len(self.contents) if self.choices < limit else limit

    @cached_property
    def contents(self) -> list[bytes]:
        """All contents that the file may have, for one of few choices: each of them once."""
        return list(dict.fromkeys(map(self._nth, range(self.choices))))

    def _nth(self, number: int) -> bytes:
        """The content that choice `number` leads to."""
        number, size = divmod(number, len(self.sizes))
        chosen = []
        for _, found in self.sectors:
            number, version = divmod(number, len(found))
            chosen.append(version)
        return self.torn(chosen, self.sizes[size])

    def any(self, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.3:
            return self.new
        if kind < 0.45:
            return self.old
        size = self.sizes[-1] if rng.random() < 0.7 else rng.choice(self.sizes)
        if kind < 0.7:  # one torn place
            chosen = [len(found) - 1 for _, found in self.sectors]
            place = rng.randrange(len(chosen))
            chosen[place] = rng.randrange(len(self.sectors[place][1]))
        elif kind < 0.85:  # the beginning, or the end
            place, is_begun = rng.randrange(len(self.sectors) + 1), rng.random() < 0.7
            chosen = [(len(found) - 1) * ((n < place) == is_begun) for n, (_, found) in enumerate(self.sectors)]
        else:
            chosen = [rng.randrange(len(found)) for _, found in self.sectors]
        return self.torn(chosen, size)


def renamed(base: dict[str, int], changes: tuple[Name, ...], chosen: int) -> dict[str, int]:
    """The entries of a directory after those of the changes whose bits are set in `chosen`."""
    entries = dict(base)
    for number, change in enumerate(changes):
        if chosen >> number & 1:
            if change.old is not None:
                entries.pop(change.old, None)
            if change.number is None:
                entries.pop(change.name, None)
            else:
                entries[change.name] = change.number
    return entries


class Moment(NamedTuple):
    """One point of a run: what is certain (`files`, `directories`), and what came after that (`writes`, `changes`).

    `marks` are the last that were set, by what and who.
    """

    files: dict[int, bytes]
    directories: dict[int, dict[str, int]]
    losses: dict[int, FileLoss]
    changes: dict[int, tuple[Name, ...]]
    marks: dict[tuple[str, Any], int]

    def _with_names(self, chosen: dict[int, int]) -> tuple[dict[int, dict[str, int]], list[int]]:
        """The directories after the chosen changes, and the files not certain that can be reached in them."""
        directories = dict(self.directories)
        for number, subset in chosen.items():
            directories[number] = renamed(self.directories[number], self.changes[number], subset)
        reached: dict[int, None] = {}
        losses = self.losses

        def walk(number: int) -> None:
            for child in directories[number].values():
                if child in directories:
                    walk(child)
                elif child in losses:
                    reached[child] = None

        walk(ROOT)
        return directories, list(reached)

    def all_present(self) -> Image:
        directories, _ = self._with_names(dict.fromkeys(self.changes, -1))
        return Image(self.files | {number: loss.new for number, loss in self.losses.items()}, directories)

    def any(self, rng: random.Random) -> Image:
        """One of the states that may be left."""
        chosen = {}
        for number, changes in self.changes.items():
            kind = rng.random()
            if kind < 0.5:
                chosen[number] = -1
            elif kind < 0.75:
                chosen[number] = (1 << rng.randrange(len(changes) + 1)) - 1
            else:
                chosen[number] = rng.getrandbits(len(changes))
        directories, reached = self._with_names(chosen)
        files = dict(self.files)
        losses, is_calm = self.losses, rng.random() < 0.3
        troubled = rng.choice(reached) if reached and is_calm else None
        is_new = rng.random() < 0.5
        for number in reached:
            loss = losses[number]
            files[number] = loss.any(rng) if not is_calm or number == troubled else loss.new if is_new else loss.old
        return Image(files, directories)

    def certain(self) -> Image:
        """What is left if nothing is that was not synced."""
        return Image(self.files, self.directories)

    def count(self, limit: int) -> int:
        """How many choices there are; `limit` if at least so many."""
        count = 1
        for changes in self.changes.values():
            count <<= len(changes)
        for loss in self.losses.values():
            count *= loss.count(limit)
            if count >= limit:
                return limit
        return min(count, limit)

    def all(self, rng: random.Random | None = None) -> Iterator[Image]:
        """Every state that may be left (some of them more than once), where a file's contents come of few choices.

        In an order drawn by `rng`, if given: who stops early has seen some of everything.
        """
        numbers, seen, order = list(self.changes), set(), []
        for subsets in itertools.product(*[range(1 << len(self.changes[number])) for number in numbers]):
            directories, reached = self._with_names(dict(zip(numbers, subsets, strict=True)))
            named = tuple(frozenset(directories[number].items()) for number in numbers)
            if named not in seen:
                seen.add(named)
                count = math.prod(len(self.losses[number].contents) for number in reached)
                order += [(directories, reached, nth) for nth in range(count)]
        if rng is not None:
            rng.shuffle(order)
        for directories, reached, nth in order:
            found = {}
            for number in reached:
                contents = self.losses[number].contents
                nth, chosen = divmod(nth, len(contents))
                found[number] = contents[chosen]
            yield Image(self.files | found, directories)


def moments(start: Image, log: list[Act]) -> list[Moment]:
    """The points at which the power may be lost: before each act of the log, and after the last."""
    files, directories = dict(start.files), dict(start.directories)
    writes: dict[int, tuple[Write, ...]] = {}
    losses: dict[int, FileLoss] = {}
    changes: dict[int, tuple[Name, ...]] = {}
    marks: dict[tuple[str, Any], int] = {}
    found = []
    for act in [*log, None]:
        if not isinstance(act, Make):
            found.append(Moment(dict(files), dict(directories), dict(losses), dict(changes), dict(marks)))
        match act:
            case Make(number, True):
                directories[number] = {}
            case Make(number, False):
                files[number] = b""
            case Write(file):
                writes[file] = (*writes.get(file, ()), act)
                losses[file] = FileLoss(files[file], writes[file])
            case Sync(number) if number in directories:
                directories[number] = renamed(directories[number], changes.pop(number, ()), -1)
            case Sync(number):
                if number in losses:
                    files[number] = losses.pop(number).new
                    del writes[number]
            case Name(directory):
                changes[directory] = (*changes.get(directory, ()), act)
            case Mark(what, who, value):
                marks[what, who] = value
    return found
