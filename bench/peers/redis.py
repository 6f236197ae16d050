"""Redis streams on a private server, with its append-only file."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import torch

from .contract import CannotDo, Fields, Seen, one_array

if shutil.which("redis-server") is None:
    raise ModuleNotFoundError("no redis-server on this machine")

NAME = "Redis stream"
PACKAGES = ("redis",)
HOW = (
    "A server of its own behind a unix socket, `appendonly yes`, `appendfsync everysec` (sync: `always`). `XADD` of each "
    "row under its number, more than one in a pipeline; a ring: `MAXLEN ~`; many producers are threads, each with a "
    "connection of its own and `XADD *`. Reads: `XRANGE`, batches in a pipeline; another process waits in `XREAD`."
)
GIVES_UP = "room: all rows are in the server's memory, and each read is a message; `everysec` may lose a second."


class Server:
    """A redis-server of our own; data is loaded again from its append-only file."""

    REWRITE_PERCENTAGE = "0"  # no second process while others have their turn

    def __init__(self, path: Path, fields: Fields, sync: bool) -> None:
        dtype, self.shape = one_array(fields)
        self.dtype = getattr(torch, dtype)
        path.mkdir(exist_ok=True)
        socket = path / "s"
        if len(str(socket)) > 100:
            raise CannotDo("the path of its socket would be too long")
        options = {"port": "0", "unixsocket": str(socket), "dir": str(path), "save": "", "appendonly": "yes"}
        options["auto-aof-rewrite-percentage"] = self.REWRITE_PERCENTAGE
        options["appendfsync"] = "always" if sync else "everysec"
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        atexit.register(self.process.kill)  # in case this process ends without close
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
        atexit.unregister(self.process.kill)


class Writer(Server):
    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, sync)
        self.rows = 0

    def append(self, rows: torch.Tensor) -> None:
        if len(rows) == 1:
            self.client.xadd("rows", {b"r": rows.numpy().tobytes()}, id=f"{self.rows}-1")
        else:
            pipeline = self.client.pipeline(transaction=True)
            for n, row in enumerate(rows.numpy(), start=self.rows):
                pipeline.xadd("rows", {b"r": row.tobytes()}, id=f"{n}-1")
            pipeline.execute()
        self.rows += len(rows)

    def append_concurrently(self, rows: torch.Tensor, **more: Any) -> None:
        pipeline = self.client.pipeline(transaction=True)
        for row in rows.numpy():
            pipeline.xadd("rows", {b"r": row.tobytes()}, **more)
        pipeline.execute()


class Ring(Writer):
    REWRITE_PERCENTAGE = "100"  # its default: without it the file would keep what the ring does not

    def __init__(self, path: Path, fields: Fields, capacity_rows: int, sync: bool) -> None:
        super().__init__(path, fields, capacity_rows, sync)
        self.capacity_rows = capacity_rows

    def append(self, rows: torch.Tensor) -> None:
        self.append_concurrently(rows, maxlen=self.capacity_rows, approximate=True)


class Reader(Server):
    def __init__(self, path: Path, fields: Fields) -> None:
        super().__init__(path, fields, sync=False)

    def _rows(self, values: list[bytes]) -> torch.Tensor:
        return torch.frombuffer(bytearray().join(values), dtype=self.dtype).view(-1, *self.shape)

    def row(self, index: int) -> torch.Tensor:
        ((_, fields),) = self.client.xrange("rows", f"{index}-1", f"{index}-1")
        return self._rows([fields[b"r"]])[0]

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        pipeline = self.client.pipeline(transaction=False)
        for index in indices.tolist():
            pipeline.xrange("rows", f"{index}-1", f"{index}-1")
        return self._rows([entries[0][1][b"r"] for entries in pipeline.execute()])

    def chunks(self, chunk_rows: int) -> Iterator[torch.Tensor]:
        first = 0
        while entries := self.client.xrange("rows", f"{first}-1", "+", count=chunk_rows):
            yield self._rows([fields[b"r"] for _, fields in entries])
            first += len(entries)


def follow(path: Path, fields: Fields, ready: Callable[[], object], seen: Seen) -> None:
    client = redis.Redis(unix_socket_path=str(path / "s"))
    last = client.xinfo_stream("rows")["last-generated-id"]
    ready()
    while True:
        for _, entries in client.xread({"rows": last}, block=0):
            for key, row in entries:
                last = key
                if seen(torch.frombuffer(bytearray(row[b"r"]), dtype=getattr(torch, fields["rows"][0]))):
                    client.close()
                    return
