"""What waits to be committed together, and how a group of it becomes one commit.

A group is committed wherever its writer says, on an event loop or in a thread, and nothing here waits for one. Each of
the group is told its rows, or what went wrong: an error of one that is checked beforehand is its own, an error of the
commit is everybody's. Appends that were committed before, by key and sequence number, are told the rows that they got then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorblob.edit import Finish, Key, Note, Op
from tensorblob.growth import Part, Rows
from tensorblob.snapshot import Snapshot, check_rises
from tensorblob.writer import Writer

if TYPE_CHECKING:
    import anyio

MAX_KEY_NBYTES = 1000


@dataclass(eq=False)
class Pending:
    """One append on its way; or somebody who asks for a flush, or for the end of the stream, after those before it."""

    columns: list[Sequence[Part]]
    count: int
    nbytes: int
    metadata: dict[str, Any] | None = None
    key: str | None = None
    sequence: int = 0
    finishes: bool = False
    flushes: bool = False
    start: int = -1
    stop: int = -1
    error: BaseException | None = None
    began_s: float = 0.0
    same: Pending | None = None
    """Another one of the group with the same key and sequence, which is the one that is committed."""
    is_counted: bool = False
    """The limiter has counted it."""
    is_new: bool = False
    """It was committed by this writer, now."""
    is_nobodys: bool = False
    """Nobody waits for it."""
    admitted: anyio.Event | None = None
    """Set when it is let in, if it had to wait for room."""
    done: anyio.Event | None = None
    """Set when its group was committed, or was not."""

    def copy(self) -> None:
        """Be independent of the caller's memory."""
        self.columns = [
            [part if isinstance(part, bytes) else part.tobytes() for part in parts] for parts in self.columns
        ]


class Committer:
    """Commits groups to `writer`, and counts them."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.appends = self.commits = self.most_appends = 0
        """Appends that were committed, the commits that they made, and the most of them in one."""

    def commit(self, group: list[Pending]) -> None:
        """Commit a group, and note in each what became of it. Raises interrupts only."""
        self.change(group)
        self.flush(group)

    def change(self, group: list[Pending]) -> None:
        """Commit the appends of a group, and the end of the stream."""
        barriers = [pending for pending in group if pending.flushes or pending.finishes]
        try:
            self._commit_appends([pending for pending in group if not (pending.flushes or pending.finishes)])
        except BaseException as error:
            fail(group, error)
            for barrier in barriers:  # a flush covers what is committed; a stream that lacks rows is not finished
                if barrier.flushes:
                    barrier.error = None
            if not isinstance(error, Exception):
                fail(barriers, error)
                raise
        try:
            if any(barrier.finishes and barrier.error is None for barrier in barriers):
                self._writer.change(lambda snapshot, _: [Finish(snapshot.rows)])
        except BaseException as error:
            fail(barriers, error)
            if not isinstance(error, Exception):
                raise

    def flush(self, group: list[Pending]) -> None:
        """Flush if somebody in the group asked for it; then the group is done."""
        barriers = [pending for pending in group if (pending.flushes or pending.finishes) and pending.error is None]
        try:
            if any(barrier.flushes for barrier in barriers):
                self._writer.flush()
            for barrier in barriers:
                barrier.start = barrier.stop = self._writer.stop_row
        except BaseException as error:
            fail(barriers, error)
            if not isinstance(error, Exception):
                raise

    def _commit_appends(self, group: list[Pending]) -> None:
        appends = self._without_repeated(group)
        while appends:
            try:
                self._append(appends)
            except _Repeated:  # by a peer, since we looked
                appends = self._without_repeated(appends)
                continue
            self.commits += 1
            self.appends += len(appends)
            self.most_appends = max(self.most_appends, len(appends))
            break
        for pending in group:
            if pending.same is not None:
                pending.start, pending.stop, pending.error = pending.same.start, pending.same.stop, pending.same.error
            elif pending.stop < 0 and pending.error is None:  # no rows
                pending.start = pending.stop = self._writer.stop_row

    def _without_repeated(self, group: list[Pending]) -> list[Pending]:
        """The appends of a group that are not committed yet; the others, by key and sequence, get the rows they had."""
        appends: list[Pending] = []
        repeated: list[tuple[Pending, Key]] = []
        first: dict[str, Pending] = {}
        for pending in group:
            if pending.key is None:
                if pending.count or pending.metadata is not None:
                    appends.append(pending)
                continue
            try:
                if (same := first.get(pending.key)) is not None and same.sequence >= pending.sequence:
                    check_rises(pending.key, pending.sequence, same.sequence)
                    pending.same = same
                elif (done := self._writer.snapshot.committed(pending.key, pending.sequence)) is not None:
                    repeated.append((pending, done))
                else:
                    first[pending.key] = pending
                    appends.append(pending)
            except ValueError as error:
                pending.error = error
        self._repeat(repeated)
        return appends

    def _repeat(self, repeated: list[tuple[Pending, Key]]) -> None:
        """Tell those whose append was committed before where it is; at "power", once that is durable."""
        try:
            stop = max((done.stop for _, done in repeated), default=0)
            if self._writer.is_power and self._writer.snapshot.durable_rows < stop:
                self._writer.flush()
        except Exception as error:
            for pending, _ in repeated:
                pending.error = error
            return
        for pending, done in repeated:
            pending.start, pending.stop = done.start, done.stop

    def _append(self, appends: list[Pending]) -> None:
        """Commit appends as one edit."""
        count = sum([pending.count for pending in appends])
        if len(appends) == 1 and all(len(parts) == 1 for parts in appends[0].columns):
            columns: list[Rows] = [parts[0] for parts in appends[0].columns]
        else:
            columns = [
                _joined([part for pending in appends for part in pending.columns[number]])
                for number in range(len(appends[0].columns))
            ]
        is_plain = all(pending.key is None and pending.metadata is None for pending in appends)
        start = self._writer.append(columns, count, None, None if is_plain else lambda s: _more(appends, s))
        for pending in appends:
            pending.start, pending.stop, pending.is_new = start, start + pending.count, True
            start = pending.stop


def _joined(parts: list[Part]) -> Rows:
    if all(isinstance(part, bytes) for part in parts):
        return b"".join(parts)  # type: ignore[arg-type]
    return parts


def fail(group: list[Pending], error: BaseException) -> None:
    """Note `error` in those of a group of which nothing else became."""
    for pending in group:
        if pending.stop < 0 and pending.error is None:
            pending.error = error


def check_key(key: str | None, sequence: int | None) -> None:
    """Raise `ValueError` or `TypeError` unless these are a producer key and its sequence number, or both None."""
    if (key is None) != (sequence is None):
        raise ValueError("key and sequence go together")
    if key is None:
        return
    if not isinstance(key, str):
        raise TypeError(f"key must be a string, got {key!r}")
    if not isinstance(sequence, int) or isinstance(sequence, bool):
        raise TypeError(f"sequence must be an int, got {sequence!r}")
    if not 0 < len(key.encode()) <= MAX_KEY_NBYTES:
        raise ValueError(f"key must have 1 to {MAX_KEY_NBYTES} bytes, got {len(key)} characters")
    if not abs(sequence) < 1 << 53:
        raise ValueError(f"sequence must be less than 2^53, got {sequence!r}")


class _Repeated(Exception):
    """An append was committed before."""


def _more(appends: list[Pending], before: Snapshot) -> list[Op]:
    """The notes and keys that go with appends, which follow `before`. Raises `_Repeated` if it has one of them."""
    for pending in appends:
        if pending.key is not None and pending.key in before.keys:
            if before.keys[pending.key].sequence >= pending.sequence:
                raise _Repeated
    ops: list[Op] = []
    start = before.rows
    for pending in appends:
        stop = start + pending.count
        ops += notes(start, stop, pending.metadata, pending.key, pending.sequence)
        start = stop
    return ops


def notes(start: int, stop: int, metadata: dict[str, Any] | None, key: str | None, sequence: int | None) -> list[Op]:
    """The operations that say of the rows `start` to `stop` what their append brought beside them."""
    ops: list[Op] = [] if metadata is None else [Note(start, stop, metadata)]
    if key is not None and sequence is not None:
        ops.append(Key(key, sequence, start, stop))
    return ops
