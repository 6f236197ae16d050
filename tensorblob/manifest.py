"""The manifest: the append-only log of edits, from its two ends.

`Log` is a reader's end: it holds the current generation open, pinned by a shared flock, and folds what is appended.
`Manifest` is the writer's end: `append` is the one commit point of every change. Generations follow each other by
rename: a new one is written aside and synced before it gets its name, so the highest number is always whole.

Invariants: a `Manifest` is appended to only by the sole holder of `writer.lock`, or in a turn; a generation is removed
only by who got it locked exclusively while the next one was in place, oldest first (so g + 1 exists for as long as g
does); a `Log` lets its pin go only by closing.
"""

from __future__ import annotations

import contextlib
import os
import socket

from tensorblob import files
from tensorblob.edit import Edit, Moved, Session
from tensorblob.errors import Corrupt
from tensorblob.format import Store, decode_log, encode_record, log_seed, manifest_generation, manifest_name
from tensorblob.replay import Replay, apply, boot_id, replay
from tensorblob.snapshot import Snapshot

MAX_EDITS = 10_000


def generations(dir_fd: int) -> list[int]:
    """The numbers of all manifests present, ascending."""
    return sorted(found for name in os.listdir(dir_fd) if (found := manifest_generation(name)) is not None)


def _newest(dir_fd: int) -> int:
    found = generations(dir_fd)
    if not found:
        raise Corrupt("There is no manifest", path=files.path_of(dir_fd, manifest_name(1)))
    return found[-1]


class Pin(files.Descriptor):
    """An open generation with a shared flock: blocks that it names stay. It lets go when closed, or not referred to."""


def pin_newest(dir_fd: int) -> tuple[int, Pin]:
    """Pin the current generation; return its number, and the pin by which it is read."""
    while True:
        generation = _newest(dir_fd)
        try:
            pin = Pin(files.open_file(manifest_name(generation), dir_fd=dir_fd))
        except FileNotFoundError:
            continue  # superseded and removed since it was listed
        try:
            is_pinned = files.try_lock(pin.fd, shared=True) and os.fstat(pin.fd).st_nlink > 0
            if is_pinned and not files.exists(manifest_name(generation + 1), dir_fd=dir_fd):
                return generation, pin
        except BaseException:
            pin.close()
            raise
        pin.close()  # a writer is removing it, or has moved on: start over


class Log:
    """The current generation as a reader follows it: `snapshot` is the fold of its first `offset` bytes.

    `pin` keeps the blocks of that generation; who still reads an older snapshot holds the pin that it came with.
    """

    def __init__(self, dir_fd: int, store: Store) -> None:
        self._dir_fd = dir_fd
        self._store = store
        self._open_newest()

    def _open_newest(self) -> None:
        generation, pin = pin_newest(self._dir_fd)
        try:
            found = replay(pin.fd, self._dir_fd, self._store, generation)
        except BaseException:
            pin.close()
            raise
        seed = log_seed(self._store.uuid, generation)
        is_over = found.is_cut or (found.is_torn and not found.is_same_boot)
        self.pin, self.generation, self._seed, self._is_over = pin, generation, seed, is_over
        self._name, self._next_name = manifest_name(generation), manifest_name(generation + 1)
        self.offset, self.snapshot = found.stop, found.snapshot

    def poll(self) -> bool:
        """Fold what was committed since; return whether the snapshot moved. One `fstat` and one `stat` if nothing was.

        Raises `Corrupt` at a whole line that is no valid record, unless the log has moved on.
        """
        before = self.snapshot
        is_damaged = self._read_on()
        if files.exists(self._next_name, dir_fd=self._dir_fd):
            self._open_newest()
        elif is_damaged:
            path = files.path_of(self._dir_fd, self._name)
            raise Corrupt("The manifest is damaged", path=path, offset=self.offset)
        return self.snapshot is not before

    def _read_on(self) -> bool:
        """Fold the valid records that follow; return whether something follows them that cannot be half a record."""
        if self._is_over or not (data := files.read_on(self.pin.fd, self.offset)):
            return False
        start, name = self.offset, self._name
        for record in decode_log(data, self._seed, self.offset, name):
            snapshot = apply(self.snapshot, record.edit, name, self.offset)
            self.snapshot, self.offset = snapshot, record.stop  # at once, for a fork or an interrupt in between
        return b"\n" in data[self.offset - start :]


class Manifest:
    """The current generation as its writer appends to it. `offset` is where the next record goes."""

    def __init__(self, dir_fd: int, store: Store, generation: int, fd: int, offset: int, edits: int) -> None:
        self._dir_fd = dir_fd
        self.generation, self.fd, self.offset = generation, fd, offset
        self.edits = edits
        """The operations since the checkpoint: what a reader has to fold."""
        self._seed = log_seed(store.uuid, generation)
        self.is_broken = False
        """An append or a sync failed: nothing more may be appended here, only a new generation can follow."""
        self.pin: Pin | None = None
        """What keeps the blocks of this generation for those who read by this writer."""

    @classmethod
    def open(cls, dir_fd: int, store: Store, *, is_read: bool = False) -> tuple[Manifest, Replay]:
        """Open the newest generation for appending, and replay it. The caller holds `writer.lock`, or has a turn.

        is_read: pin it, too.
        """
        generation = _newest(dir_fd)
        fd = files.open_for_append(manifest_name(generation), dir_fd=dir_fd)
        try:
            found = replay(fd, dir_fd, store, generation)
            manifest = cls(dir_fd, store, generation, fd, found.stop, found.edits)
            if is_read:
                manifest._hold(manifest_name(generation))
        except BaseException:
            os.close(fd)
            raise
        return manifest, found

    def _hold(self, name: str) -> None:
        """Pin this generation, which is the newest, or about to be: nobody removes it meanwhile.

        By a descriptor that is nobody else's: the pin goes when that is closed.
        """
        self.pin = pin = Pin(files.open_file(name, dir_fd=self._dir_fd))
        try:
            if not files.try_lock(pin.fd, shared=True):
                raise AssertionError("only superseded generations are locked exclusively")
        except BaseException:
            pin.close()
            raise

    @classmethod
    def create(
        cls, dir_fd: int, store: Store, generation: int, checkpoint: Edit, producer: str, *, is_read: bool = False
    ) -> Manifest:
        """Begin a generation with `checkpoint` and a session; it is current, and durable, when this returns.

        Everything that the checkpoint names is durable already: starting a generation is a flush. What fails before
        the rename leaves the old generation current. If the directory's sync fails after it, `SyncFailed` is raised
        and the new generation is current all the same (`generations` tells).
        """
        name = manifest_name(generation)
        assert not files.exists(name, dir_fd=dir_fd), "generation numbers are never reused"
        files.unlink(f".{name}", dir_fd=dir_fd, missing_ok=True)
        fd = files.create_file(f".{name}", dir_fd=dir_fd)
        manifest = cls(dir_fd, store, generation, fd, 0, 0)
        try:
            manifest.append((*checkpoint, session(fd, producer)))
            manifest.edits = 0
            if is_read:
                manifest._hold(f".{name}")
            files.sync_file(fd, name)
            files.rename(f".{name}", name, dir_fd=dir_fd)
        except BaseException:
            if manifest.pin is not None:
                manifest.pin.close()
            os.close(fd)
            with contextlib.suppress(OSError):
                files.unlink(f".{name}", dir_fd=dir_fd, missing_ok=True)
            raise
        return manifest

    def append(self, edit: Edit) -> None:
        """Commit `edit`: it is visible when this returns.

        If it raises, the edit is absent and `offset` is where it was; only an interrupt (`KeyboardInterrupt`) can
        raise after the edit became visible, and then `offset` has moved.
        """
        assert not self.is_broken, "a broken generation is not appended to"
        line = encode_record(edit, self._seed, self.offset)
        stop = self.offset + len(line)
        try:
            files.write_at(self.fd, line, len(line), self.offset)
            self.offset = stop
        except BaseException as error:
            self.is_broken = True
            is_visible = self.offset == stop or files.read_at(self.fd, len(line), self.offset) == line
            if is_visible:
                self.offset = stop
            if not is_visible or not isinstance(error, OSError):
                raise
        self.edits += len(edit)

    def is_superseded(self) -> bool:
        """True if another writer has begun the next generation, or more: we hold no pin, so ours may be gone by then, and
        the next one too.
        """
        following, ours = manifest_name(self.generation + 1), manifest_name(self.generation)
        return files.exists(following, dir_fd=self._dir_fd) or not files.exists(ours, dir_fd=self._dir_fd)

    def has_grown(self) -> bool:
        """True if another writer has appended here since `offset`."""
        return files.size_of(self.fd) > self.offset

    def read_on(self, snapshot: Snapshot) -> tuple[bool, Snapshot]:
        """Go behind what other writers have appended; return whether all of it is whole, and `snapshot` with it."""
        size = files.size_of(self.fd)
        data = files.read_at(self.fd, size - self.offset, self.offset)
        name = manifest_name(self.generation)
        for record in decode_log(data, self._seed, self.offset, name):
            snapshot = apply(snapshot, record.edit, name, self.offset)
            self.offset = record.stop
            self.edits += len(record.edit)
        return self.offset == size, snapshot

    def folded(self, snapshot: Snapshot, offset: int) -> Snapshot:
        """Return `snapshot`, which is that of `offset`, with what was appended since."""
        data = files.read_at(self.fd, self.offset - offset, offset)
        for record in decode_log(data, self._seed, offset):
            snapshot = snapshot.apply(record.edit)
        return snapshot

    def sync(self) -> None:
        """Make everything appended so far durable. If it raises, the caller has to say that this is broken."""
        files.sync_file(self.fd, manifest_name(self.generation))

    def ring_doorbell(self, generation: int) -> None:
        """Tell who watches this generation that `generation` has taken its place; failing to does no harm."""
        if not self.is_broken:
            with contextlib.suppress(OSError):
                self.append((Moved(generation),))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.pin = -1, None


def session(fd: int, producer: str) -> Session:
    """The session edit of a writer in this process and boot, appending to the manifest `fd`."""
    stat = os.fstat(fd)
    return Session(producer, boot_id(), stat.st_dev, stat.st_ino, os.getpid(), socket.gethostname())


def remove_superseded(dir_fd: int, current: int) -> list[int]:
    """Remove the generations before `current` that nobody pins; return the pinned ones.

    They go oldest first, up to the first pinned one: so whoever holds generation g open finds g + 1 if there ever was
    one.
    """
    pinned: list[int] = []
    for generation in generations(dir_fd):
        if generation >= current:
            break
        name = manifest_name(generation)
        try:
            fd = files.open_file(name, dir_fd=dir_fd)
        except FileNotFoundError:
            continue
        try:
            if not files.try_lock(fd, shared=False):
                pinned.append(generation)
            elif not pinned:
                files.unlink(name, dir_fd=dir_fd)
        finally:
            os.close(fd)
    return pinned
