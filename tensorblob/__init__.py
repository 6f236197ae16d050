"""tensorblob: a crash-safe, growing tensor store that one writer streams into while any number of readers follow it."""

from tensorblob.async_reader import AsyncReader, Sample, open_reader
from tensorblob.async_writer import AsyncWriter, Statistics, open_writer
from tensorblob.blob import TensorBlob
from tensorblob.errors import (
    BlobClosed,
    BlobError,
    BlobReplaced,
    ConsumerDied,
    Corrupt,
    CursorBusy,
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
    StreamFinished,
    SyncFailed,
    UnsupportedFormat,
    WriterBusy,
    WriterDied,
)
from tensorblob.follower import Follower
from tensorblob.limiter import MinSize, Queue, RateLimiter, SampleToInsertRatio
from tensorblob.producer import Producer, open_producer
from tensorblob.recover import Kept, Recovered, recover
from tensorblob.schema import Field, Schema
from tensorblob.snapshot import Snapshot
from tensorblob.table import Selection
from tensorblob.verify import Fault, Report, verify

__version__ = "0.4.0"

__all__ = [
    "AsyncReader",
    "AsyncWriter",
    "BlobClosed",
    "BlobError",
    "BlobReplaced",
    "ConsumerDied",
    "Corrupt",
    "CursorBusy",
    "DTypeMismatch",
    "DiskFull",
    "Fault",
    "Field",
    "Follower",
    "ForkedHandle",
    "HistoryRewritten",
    "Kept",
    "MinSize",
    "NotABlob",
    "NotReadable",
    "NotWritable",
    "OutcomeUnknown",
    "Producer",
    "Queue",
    "RateLimiter",
    "ReadOnlyStore",
    "Recovered",
    "Report",
    "RowsTrimmed",
    "Sample",
    "SampleToInsertRatio",
    "Schema",
    "SchemaConflict",
    "SchemaMismatch",
    "SeamError",
    "Selection",
    "Snapshot",
    "Statistics",
    "StreamFinished",
    "SyncFailed",
    "TensorBlob",
    "UnsupportedFormat",
    "WriterBusy",
    "WriterDied",
    "open_producer",
    "open_reader",
    "open_writer",
    "recover",
    "verify",
]
