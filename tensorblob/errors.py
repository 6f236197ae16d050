"""What can go wrong, as types: each says what happened, where, and what to do next.

Every error is a `BlobError` and also the builtin that a caller of a file, a mapping or a torch function would expect,
so that `except OSError` and `except ValueError` written for other libraries keep working. Broken promises of our own
are `AssertionError`s, never these.
"""

from __future__ import annotations

import errno
import io
import os


class BlobError(Exception):
    """The root of everything that tensorblob raises on purpose."""


class NotABlob(BlobError, ValueError):
    """The path exists and holds something that is not a blob; nothing was touched."""


class UnsupportedFormat(BlobError, ValueError):
    """The blob is intact but was written by a newer or different version of the format."""


class SchemaConflict(BlobError, ValueError):
    """The dtype, shape or fields asked for are not those of the existing blob."""


class SchemaMismatch(BlobError, ValueError):
    """The rows offered do not have the fields, the trailing shape or the equal row counts of the schema."""


class DTypeMismatch(BlobError, TypeError):
    """The rows offered have another dtype than the blob stores."""


class BlobClosed(BlobError, ValueError, OSError):
    """The handle was closed (file objects raise `ValueError`, the published tensorblob raised `OSError`: this is
    both).
    """


class NotReadable(BlobError, io.UnsupportedOperation):
    """The handle was opened in a mode that does not read."""


class NotWritable(BlobError, io.UnsupportedOperation):
    """The handle was opened in a mode that does not write."""


class ReadOnlyStore(BlobError, PermissionError):
    """The directory cannot be written by this process; reading it still works."""


class WriterBusy(BlobError, TimeoutError):
    """Another process holds what one would have: `writer.lock`, or for too long its turn or a lock of moments.

    `pid` and `host` name it where it has said who it is, or the system does (else `None`).
    """

    def __init__(self, message: str, *, pid: int | None = None, host: str | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.host = host


class Corrupt(BlobError, OSError):
    """Bytes that were committed are missing or differ from their checksum.

    `path` is the file and `offset` the first byte that is known to be wrong.
    """

    def __init__(self, message: str, *, path: str | os.PathLike[str], offset: int = 0) -> None:
        super().__init__(errno.EIO, f"{message} (at byte {offset})", os.fspath(path))
        self.path = os.fspath(path)
        self.offset = offset


class DiskFull(BlobError, OSError):
    """The filesystem or the quota is full. Committed rows are intact; free space and write again."""


class SyncFailed(BlobError, OSError):
    """The kernel could not make bytes durable. The file is never synced again; the next commit goes to new files."""


class OutcomeUnknown(SyncFailed):
    """The commit is visible but may not survive a power loss: its sync failed after the commit point."""


class HistoryRewritten(BlobError, LookupError):
    """Rows that this position or pickle depends on were cut by a truncation or by recovery.

    `row` is the first row id that may be another now, where that is known.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class RowsTrimmed(BlobError, IndexError):
    """Rows that were asked for have been trimmed away. `first_row` is the oldest row id that is left."""

    def __init__(self, message: str, *, first_row: int) -> None:
        super().__init__(message)
        self.first_row = first_row


class BlobReplaced(BlobError, OSError):
    """The path no longer leads to the blob that this handle opened; open it again."""


class StreamFinished(BlobError, EOFError):
    """The writer said that the stream ends, before what was waited for."""


class WriterDied(BlobError, OSError):
    """The writer went without closing the blob. What it committed is there; no more comes until another one opens it."""


class ConsumerDied(BlobError, OSError):
    """A consumer that the writer waits for went without closing its cursor. `name` is the cursor's."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class CursorBusy(BlobError, TimeoutError):
    """Another consumer holds the cursor."""


class SeamError(BlobError, ValueError):
    """The rows asked for are not contiguous in memory; `runs(start, stop)` lists the parts that are."""


class ForkedHandle(BlobError, RuntimeError):
    """A writer was used in a forked child; it stays with the process that opened it."""
