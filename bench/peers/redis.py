"""Redis streams on a private server, with its append-only file."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import torch

from .contract import CannotDo, Fields, Rows, Seen, columns_of, is_one_array

for program in ("redis-server", "setpriv"):
    if shutil.which(program) is None:
        raise ModuleNotFoundError(f"no {program} on this machine")

NAME = "Redis stream"
PACKAGES = ("redis", "hiredis")
HOW = (
    "A server of its own behind a unix socket, `appendonly yes`, `appendfsync everysec` (sync: `always`), redis-py with "
    "hiredis. `XADD` of each row under its number, its fields those of the entry, more than one row in a pipeline; a ring: "
    "`MAXLEN ~`; many producers are threads, each with a connection of its own and `XADD *`. Reads: `XRANGE`, batches in a "
    "pipeline; another process waits in `XREAD`."
)
GIVES_UP = "room: all rows are in the server's memory, and each read is a message; `everysec` may lose a second."
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""However this process ends, by a kill too; the signal comes with the end of the thread that started the server."""


class Server:
    """A redis-server of our own; data is loaded again from its append-only file."""

    REWRITE_PERCENTAGE = "0"  # no second process while others have their turn

    def __init__(self, path: Path, fields: Fields, sync: bool) -> None:
        self.fields, self.one = fields, is_one_array(fields)
        path.mkdir(exist_ok=True)
        socket = path / "s"
        if len(str(socket)) > 100:
            raise CannotDo("the path of its socket would be too long")
        options = {"port": "0", "unixsocket": str(socket), "dir": str(path), "save": "", "appendonly": "yes"}
        options["auto-aof-rewrite-percentage"] = self.REWRITE_PERCENTAGE
        options["appendfsync"] = "always" if sync else "everysec"
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([*DIES_WITH_US, "redis-server", *arguments], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(unix_socket_path=str(socket))
        while True:
            try:
                self.client.ping()
                break
            except (redis.ConnectionError, redis.BusyLoadingError):
                if self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        self.client.close()
        self.process.terminate()  # writes out the append-only file
        self.process.wait()


def entries_of(rows: Rows) -> list[dict[str, bytes]]:
    columns = {name: column.numpy() for name, column in columns_of(rows).items()}
    count = len(next(iter(columns.values())))
    return [{name: column[n].tobytes() for name, column in columns.items()} for n in range(count)]


class Writer(Server):
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, sync)
        self.rows = 0

    def append(self, rows: Rows) -> None:
        entries = entries_of(rows)
        self._add(entries, [f"{n}-1" for n in range(self.rows, self.rows + len(entries))])
        self.rows += len(entries)

    def append_concurrently(self, rows: Rows, **more: Any) -> None:
        entries = entries_of(rows)
        self._add(entries, ["*"] * len(entries), **more)

    def _add(self, entries: list[dict[str, bytes]], ids: list[str], **more: Any) -> None:
        if len(entries) == 1:
            self.client.xadd("rows", entries[0], id=ids[0], **more)
            return
        pipeline = self.client.pipeline(transaction=True)
        for entry, number in zip(entries, ids, strict=True):
            pipeline.xadd("rows", entry, id=number, **more)
        pipeline.execute()


class Ring(Writer):
    REWRITE_PERCENTAGE = "100"  # its default: without it the file would keep what the ring does not

    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, capacity_rows, sync)
        self.capacity_rows = capacity_rows

    def append(self, rows: Rows) -> None:
        self.append_concurrently(rows, maxlen=self.capacity_rows, approximate=True)


class Reader(Server):
    def __init__(self, path: Path, fields: Fields) -> None:
        super().__init__(path, fields, sync=False)

    def _rows(self, entries: list[dict[bytes, bytes]]) -> Rows:
        columns = {}
        for name, (dtype, shape) in self.fields.items():
            key = name.encode()
            data = bytearray().join([entry[key] for entry in entries])
            columns[name] = torch.frombuffer(data, dtype=getattr(torch, dtype)).view(-1, *shape)
        return columns["rows"] if self.one else columns

    def row(self, index: int) -> Rows:
        ((_, entry),) = self.client.xrange("rows", f"{index}-1", f"{index}-1")
        rows = self._rows([entry])
        return rows[0] if self.one else {name: column[0] for name, column in rows.items()}

    def batch(self, indices: torch.Tensor) -> Rows:
        pipeline = self.client.pipeline(transaction=False)
        for index in indices.tolist():
            pipeline.xrange("rows", f"{index}-1", f"{index}-1")
        return self._rows([entry for ((_, entry),) in pipeline.execute()])

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        first = 0
        while entries := self.client.xrange("rows", f"{first}-1", "+", count=chunk_rows):
            yield self._rows([entry for _, entry in entries])
            first += len(entries)


def follow(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    client = redis.Redis(unix_socket_path=str(path / "s"))
    last = client.xinfo_stream("rows")["last-generated-id"]
    ready()
    while True:
        for _, entries in client.xread({"rows": last}, block=0):
            for key, row in entries:
                last = key
                if seen(torch.frombuffer(bytearray(row[b"rows"]), dtype=getattr(torch, fields["rows"][0]))):
                    client.close()
                    return
