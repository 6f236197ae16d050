"""Several files made durable at once: `fdatasync` by Linux's own asynchronous I/O.

One after the other, each sync waits for the device alone; asked for together, they share its work, and no thread is needed.
Only `IOCB_CMD_FDSYNC` is used (Linux 4.18; see io_submit(2), and `struct iocb` in linux/aio_abi.h). There is no queue on
other systems and processors, or where the kernel or a sandbox refuses one: then files are synced in turn.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Sequence

_FDSYNC = 3
_MAX_REQUESTS = 32
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
"""By processor: the numbers of io_setup, io_destroy, io_getevents and io_submit."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Request(ctypes.Structure):  # struct iocb
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint64),  # and flags: their order depends on the processor's, both are 0
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("unused", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):  # struct io_event
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class SyncQueue:
    """For one thread at a time. A fork does not inherit it. Raises `OSError` where there is none to be had."""

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        self._pid = os.getpid()
        self._turn = 0
        calls = _CALLS.get(platform.machine(), ()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else ()
        if not calls:
            raise OSError(errno.ENOSYS, "No asynchronous syncs on this system")
        setup, self._destroy, self._get_events, self._submit = map(ctypes.c_long, calls)
        if _syscall(setup, ctypes.c_long(_MAX_REQUESTS), ctypes.byref(self._context)) != 0:
            raise OSError(ctypes.get_errno(), "No asynchronous syncs")
        self._requests = (_Request * _MAX_REQUESTS)()
        start, size = ctypes.addressof(self._requests), ctypes.sizeof(_Request)
        self._pointers = (ctypes.c_uint64 * _MAX_REQUESTS)(*range(start, start + _MAX_REQUESTS * size, size))
        self._events = (_Event * _MAX_REQUESTS)()
        for request in self._requests:
            request.opcode = _FDSYNC
        self._check_calls()

    def _check_calls(self) -> None:
        """A sandbox may give a queue and refuse its use: that must be known before anything depends on an answer."""
        nothing = ctypes.c_long(0)
        for call, more in ((self._submit, (self._pointers,)), (self._get_events, (nothing, self._events, None))):
            if _syscall(call, self._context, nothing, *more) != 0:
                code = ctypes.get_errno()
                self.close()
                raise OSError(code, "No asynchronous syncs")

    def fdatasync(self, fds: Sequence[int]) -> list[int | None]:
        """Sync those files; return for each 0, the errno, or None: the kernel did not take it, and nothing was done."""
        self._turn += 1
        first = self._turn * _MAX_REQUESTS
        found: list[int | None] = [None] * len(fds)
        count = min(len(fds), _MAX_REQUESTS)
        for number in range(count):
            request = self._requests[number]
            request.data, request.fd = first + number, fds[number]
        left = taken = max(_syscall(self._submit, self._context, ctypes.c_long(count), self._pointers), 0)
        while left:
            most = ctypes.c_long(_MAX_REQUESTS)
            got = _syscall(self._get_events, self._context, ctypes.c_long(left), most, self._events, None)
            if got < 0 and (code := ctypes.get_errno()) != errno.EINTR:  # what became of them nobody will hear
                return [code if n < taken and found[n] is None else found[n] for n in range(len(fds))]
            for event in self._events[: max(got, 0)]:
                number = event.data - first
                if number >= 0:  # else of a call that was interrupted
                    found[number] = -event.result
                    left -= 1
        return found

    def close(self) -> None:
        """Waits for what is under way."""
        if self._context and self._pid == os.getpid():
            _syscall(self._destroy, self._context)
        self._context = ctypes.c_ulong(0)

    def __del__(self) -> None:
        self.close()
