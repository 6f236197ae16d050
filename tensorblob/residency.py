"""Whether the rows of a column are in memory, as far as a process can tell.

A gather of rows that have to come from the disk gains much if the kernel is asked for all of them at once: else each is
waited for by a page fault of its own, which moreover reads much around it. One of rows that are in memory must not pay for
asking. The kernel does not say beforehand which it will be, but it counts what it has read from disks, for each thread and
process (`getrusage(2)`, `ru_inblock`; where it does not, all is taken to be in memory after a first look).

So at first rows are looked at: the kernel is asked for them, a few from everywhere before the rest, and whether it read.
When enough of them turned out to be in memory, it is trusted that they are. A gather that was slow, while the process read
from disks, ends the trust, and it takes the longer to come back.
"""

from __future__ import annotations

import resource

SAMPLE_ROWS = 32
"""So many rows are looked at before the rest of them is asked for, too."""
FIRST_LOOK_ROWS = 64
MAX_LOOK_ROWS = 1 << 14
"""So many rows have to be found in memory before it is trusted that they are: at first, and after it often was not so."""
SLOW_NS = 100_000
SLOW_ROW_NS = 500
"""A gather that takes longer than this, so much for each row, and 1 ns for each two bytes, is slow. (None need be told of that
takes less than the first.)"""

_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)


def _read_by(who: int | None) -> int:
    """How much was ever read from disks for this process or thread, in blocks of 512 bytes."""
    return 0 if who is None else resource.getrusage(who).ru_inblock


class Look:
    """From its beginning on, whether this thread has had to read."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before = _read_by(_THREAD)

    def has_read(self) -> bool:
        return _read_by(_THREAD) > self._before


class Residency:
    """What is known of one column. Threads may use it at once: what they lose is a look."""

    __slots__ = ("_look_rows", "_read", "rows_to_look_at")

    def __init__(self) -> None:
        self._look_rows = self.rows_to_look_at = FIRST_LOOK_ROWS
        self._read = 0

    def looked(self, rows: int, look: Look) -> None:
        """So many rows were looked at, since that look began."""
        if look.has_read():
            self.rows_to_look_at = self._look_rows
            self._read = _read_by(resource.RUSAGE_SELF)
        elif self.rows_to_look_at > rows:
            self.rows_to_look_at -= rows
        else:
            self.rows_to_look_at = 0
            self._look_rows = max(self._look_rows // 2, FIRST_LOOK_ROWS)
            self._read = _read_by(resource.RUSAGE_SELF)

    def gathered(self, rows: int, row_nbytes: int, ns: int) -> None:
        """So many rows were gathered in so many nanoseconds."""
        if ns > SLOW_NS + rows * (SLOW_ROW_NS + row_nbytes // 2):
            read = _read_by(resource.RUSAGE_SELF)
            if read != self._read:  # a forked child counts from 0
                self._read = read
                if not self.rows_to_look_at:
                    self._look_rows = min(4 * self._look_rows, MAX_LOOK_ROWS)
                self.rows_to_look_at = self._look_rows
