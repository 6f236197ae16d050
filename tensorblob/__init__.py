"""tensorblob: a crash-safe, growing tensor store that one writer streams into while any number of readers follow it."""

from tensorblob.blob import TensorBlob
from tensorblob.errors import (
    BlobClosed,
    BlobError,
    BlobReplaced,
    Corrupt,
    DiskFull,
    DTypeMismatch,
    ForkedHandle,
    HistoryRewritten,
    NotABlob,
    NotReadable,
    NotWritable,
    OutcomeUnknown,
    ReadOnlyStore,
    RowsTrimmed,
    SchemaConflict,
    SchemaMismatch,
    SeamError,
    SyncFailed,
    UnsupportedFormat,
    WriterBusy,
)
from tensorblob.schema import Field, Schema
from tensorblob.snapshot import Snapshot
from tensorblob.table import Selection

__version__ = "0.4.0"

__all__ = [
    "BlobClosed",
    "BlobError",
    "BlobReplaced",
    "Corrupt",
    "DTypeMismatch",
    "DiskFull",
    "Field",
    "ForkedHandle",
    "HistoryRewritten",
    "NotABlob",
    "NotReadable",
    "NotWritable",
    "OutcomeUnknown",
    "ReadOnlyStore",
    "RowsTrimmed",
    "Schema",
    "SchemaConflict",
    "SchemaMismatch",
    "SeamError",
    "Selection",
    "Snapshot",
    "SyncFailed",
    "TensorBlob",
    "UnsupportedFormat",
    "WriterBusy",
]
