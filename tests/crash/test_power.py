"""The disk in memory leaves exactly what a power loss may leave, and is otherwise as real ones are.

Logs that are written by hand have a set of states that can be written by hand, too. The engine's own runs are made again
on a real disk, under the recorder of `disk`: the acts, and what is there in the end, have to be the same.
"""

import fcntl
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from disk import KINDS, put_between, reboot
from examine import Examination, read
from kernel import EMPTY, PAGE_NBYTES, ROOT, Act, Disk, Image, Killed, Make, Mount, Name, Sync, Write
from power import SECTOR_NBYTES, Moment, moments
from workloads import WORKLOADS, Run, content

from tensorblob import files
from tensorblob.blob import TensorBlob

A, B, C = (letter * SECTOR_NBYTES for letter in (b"A", b"B", b"C"))
ZERO = bytes(SECTOR_NBYTES)


def file(disk: Disk, path: str, *writes: tuple[int, bytes], synced: bool = False) -> int:
    fd = disk.open(path, os.O_RDWR | os.O_CREAT)
    for offset, data in writes:
        disk.pwrite(fd, data, offset)
    if synced:
        disk.fsync(fd)
    return fd


def sync_directory(disk: Disk, path: str = "/") -> None:
    fd = disk.open(path, os.O_RDONLY)
    disk.fsync(fd)
    disk.close(fd)


def tree(image: Image, number: int = 0) -> frozenset[tuple[str, object]]:
    """What an image holds, by name."""
    return frozenset(
        (name, tree(image, child) if child in image.directories else image.files[child])
        for name, child in image.directories[number].items()
    )


def last(disk: Disk, start: Image = EMPTY) -> Moment:
    return moments(start, disk.log)[-1]


def left(moment: Moment) -> set[frozenset[tuple[str, object]]]:
    return {tree(image) for image in moment.all()}


def contents(disk: Disk, start: Image = EMPTY) -> set[object]:
    """What the only file may hold at the end, its name being certain."""
    return {dict(found)["f"] for found in left(last(disk, start))}


def test_each_sector_of_what_was_not_synced_is_there_or_not_and_the_size_is_old_or_new() -> None:
    disk = Disk()
    file(disk, "/f", (0, A + B))
    sync_directory(disk)
    assert contents(disk) == {b"", A + B, A + ZERO, ZERO + B, ZERO + ZERO}


def test_what_was_synced_is_there_and_a_sector_that_is_written_again_is_of_any_age() -> None:
    disk = Disk()
    fd = file(disk, "/f", (0, A + A), synced=True)
    sync_directory(disk)
    assert contents(disk) == {A + A}
    disk.pwrite(fd, B, 0)
    disk.pwrite(fd, C + C, 0)
    assert contents(disk) == {first + second for first in (A, B, C) for second in (A, C)}
    disk.fsync(fd)
    assert contents(disk) == {C + C}


def test_the_size_may_be_that_after_any_write_and_what_lies_before_may_be_missing() -> None:
    disk = Disk()
    file(disk, "/f", (0, b"one"), (3, b"two"), (SECTOR_NBYTES, b"three"))
    sync_directory(disk)
    zero = bytes(SECTOR_NBYTES - 6)
    found = {b"", bytes(3), b"one", bytes(6), b"one" + bytes(3), b"onetwo"}
    found |= {start + zero + end for start in (bytes(6), b"one" + bytes(3), b"onetwo") for end in (bytes(5), b"three")}
    assert contents(disk) == found


def test_a_long_write_may_end_at_any_page() -> None:
    disk = Disk()
    file(disk, "/f", (100, b"x" * 2 * PAGE_NBYTES))
    sync_directory(disk)
    moment = last(disk)
    (loss,) = moment.losses.values()
    assert loss.sizes == [0, PAGE_NBYTES, 2 * PAGE_NBYTES, 2 * PAGE_NBYTES + 100]
    assert len(loss.sectors) == 17 and loss.choices == 4 << 17


def test_a_name_that_was_not_synced_is_there_or_not_whatever_became_of_the_file() -> None:
    disk = Disk()
    file(disk, "/f", (0, A), synced=True)
    assert left(last(disk)) == {frozenset(), frozenset({("f", A)})}
    sync_directory(disk)
    assert left(last(disk)) == {frozenset({("f", A)})}


def test_names_change_in_any_subset_and_a_rename_is_one_change() -> None:
    disk = Disk()
    file(disk, "/old", (0, A), synced=True)
    file(disk, "/new", (0, B), synced=True)
    sync_directory(disk)
    disk.rename("/old", "/new")
    assert left(last(disk)) == {frozenset({("old", A), ("new", B)}), frozenset({("new", A)})}
    file(disk, "/third", (0, C), synced=True)
    third = {("third", C)}
    whole = {frozenset({("old", A), ("new", B)}), frozenset({("new", A)})}
    assert left(last(disk)) == whole | {found | third for found in whole}
    disk.unlink("/third")
    assert left(last(disk)) == whole | {found | third for found in whole}


def test_directories_are_independent_and_what_is_below_a_name_goes_with_it() -> None:
    disk = Disk()
    disk.mkdir("/one")
    disk.mkdir("/two")
    sync_directory(disk)
    file(disk, "/one/f", (0, A), synced=True)
    fd = disk.open("/", os.O_RDONLY)
    disk.link("one/f", "two/g", src_dir_fd=fd, dst_dir_fd=fd)
    one, two = ("one", frozenset({("f", A)})), ("two", frozenset({("g", A)}))
    none = ("one", frozenset[tuple[str, object]]()), ("two", frozenset[tuple[str, object]]())
    assert left(last(disk)) == {frozenset({a, b}) for a in (one, none[0]) for b in (two, none[1])}
    sync_directory(disk, "/two")
    assert left(last(disk)) == {frozenset({a, two}) for a in (one, none[0])}
    disk.rmtree("/two")
    assert frozenset({one}) in left(last(disk))
    disk = Disk()
    disk.mkdir("/a")
    disk.mkdir("/a/b")
    sync_directory(disk, "/a")
    file(disk, "/a/b/f", synced=True)
    sync_directory(disk, "/a/b")
    inner = frozenset({("b", frozenset({("f", b"")}))})
    assert left(last(disk)) == {frozenset(), frozenset({("a", inner)})}


def test_there_is_a_point_before_each_act_and_it_knows_what_was_said_by_then() -> None:
    disk = Disk()
    fd = file(disk, "/f")
    disk.mark("durable", "x", 1)
    disk.pwrite(fd, A, 0)
    disk.mark("durable", "x", 2)
    points = moments(EMPTY, disk.log)
    assert [point.marks.get(("durable", "x")) for point in points] == [None, None, 1, 1, 2]
    assert [len(left(point)) for point in points] == [1, 2, 2, 4, 4]  # nothing, no name, empty, zeros, A


def test_what_is_drawn_is_one_of_all_and_all_of_them_are_drawn() -> None:
    disk, rng = Disk(), random.Random(1)
    disk.mkdir("/d")
    fd = file(disk, "/f", (0, A))
    disk.rename("/f", "/g")
    disk.pwrite(fd, B, 10)
    for point in moments(EMPTY, disk.log):
        everything = left(point)
        assert len(everything) <= point.count(1 << 20)
        assert {tree(point.any(rng)) for _ in range(4000)} == everything
        assert tree(point.all_present()) in everything


def test_the_next_boot_finds_the_files_and_no_lock() -> None:
    disk = Disk()
    fd = file(disk, "/f", (0, A), synced=True)
    disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other = disk.open("/f", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        disk.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    disk.flock(disk.dup(fd), fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same opening has it
    disk = Disk(last(disk).all_present())
    fd = disk.open("/f", os.O_RDONLY)
    disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert disk.pread(fd, 4, 0) == b"AAAA" and disk.fstat(fd).st_nlink == 1


def test_a_killed_process_leaves_a_prefix_of_its_acts_and_half_of_a_write() -> None:
    for acts in range(4):
        disk = Disk()
        disk.kill_after(acts)
        with pytest.raises(Killed):
            file(disk, "/f", (0, b"abcd"), (4, b"efgh"), synced=True)
        with pytest.raises(Killed):
            disk.mkdir("/d")
        disk.forget_process()
        disk.mkdir("/d")
        data = {node.number: bytes(node.data) for node in (disk.root.entries or {}).values() if node.entries is None}
        assert list(data.values()) == [[], [b"ab"], [b"abcdef"], [b"abcdefgh"]][acts]


# ---- as real disks are


def acts_of(log: list[Act]) -> list[tuple[str, str]]:
    """What was done to which path, in the words of `disk`."""
    paths: dict[int, str] = {ROOT: ""}
    directories, made = {ROOT}, set()
    done: list[tuple[str, str]] = []
    for act in log:
        match act:
            case Make(number, is_directory):
                directories |= {number} if is_directory else set()
            case Write(number):
                done.append(("write", paths[number]))
            case Sync(number):
                done.append(("syncdir" if number in directories else "sync", paths[number] or "."))
            case Name(directory, name, None):
                done.append(("unlink", os.path.join(paths[directory], name)))
            case Name(directory, name, int(number), old):
                path = os.path.join(paths[directory], name)
                kind = "link" if number in made else "mkdir" if number in directories else "create"
                done.append((kind, path) if old is None else ("rename", os.path.join(paths[directory], old)))
                if old is not None:
                    before = paths[number]
                    for known, at in paths.items():
                        if known == number or at.startswith(f"{before}/"):
                            paths[known] = path + at[len(before) :]
                elif number not in made:
                    paths[number] = path
                made.add(number)
    return done


@pytest.mark.parametrize(
    "workload", [name for name in WORKLOADS if name not in ("killed", "killed_after_cut", "create_killed", "unlink")]
)
def test_the_engine_does_the_same_on_a_real_disk(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same acts in the same order, and in the end the same names and the same rows."""
    disk, tokens = Disk(), Disk()
    with Mount() as mount, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_sync_queue", lambda: None)  # by which things happen in any order
        mount.put(disk)
        WORKLOADS[workload](Run(disk, random.Random(7)))
    for module in ("create", "presence"):
        monkeypatch.setattr(f"tensorblob.{module}.secrets", SimpleNamespace(token_hex=tokens.token))
    real = put_between(monkeypatch, tmp_path)
    kernel = SimpleNamespace(mkdir=os.mkdir, open=os.open, fsync=os.fsync, close=os.close, mark=lambda *_: None)
    WORKLOADS[workload](Run(kernel, random.Random(7), root=f"{tmp_path}/d"))
    noted: list[tuple[str, str]] = []
    first_names: dict[str, str] = {}  # of what has several
    for act in real.since(0, *KINDS):
        if act.kind == "link":
            first_names[act.target] = first_names.get(act.path, act.path)
            noted.append(("link", act.target))
        elif act.kind not in ("allocate", "truncate") and (act.data or act.kind != "write"):
            noted.append((act.kind, act.path if act.kind == "unlink" else first_names.get(act.path, act.path)))
    made = ("mkdir", "d"), ("syncdir", ".")  # by the run itself
    assert acts_of(disk.log) == [*made, *noted]
    assert names(last(disk).all_present()) == {
        os.path.relpath(path, tmp_path): path.read_bytes() if "/blocks/" in str(path) else b""
        for path in tmp_path.rglob("*")
        if path.is_file()
    }


def names(image: Image, number: int = ROOT, path: str = "") -> dict[str, bytes]:
    """The files of an image, and what those hold that hold rows."""
    found: dict[str, bytes] = {}
    for name, child in image.directories[number].items():
        below = os.path.join(path, name)
        if child in image.directories:
            found |= names(image, child, below)
        else:
            found[below] = image.files[child] if "/blocks/" in below else b""
    return found


def write_out(image: Image, at: Path) -> None:
    """Make real files of an image."""
    made: dict[int, Path] = {}

    def make(number: int, at: Path) -> None:
        if number in image.directories:
            at.mkdir(exist_ok=True)
            for name, child in image.directories[number].items():
                make(child, at / name)
        elif number in made:
            os.link(made[number], at)
        else:
            made[number] = at
            at.write_bytes(image.files[number])

    make(ROOT, at)


@pytest.mark.parametrize("workload", ["append_many_columns", "extend", "mixed"])
def test_what_is_found_in_memory_is_found_in_real_files_by_mapping_them(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    with Mount() as mount:
        examination = Examination(mount, workload, 0, 0)
        images = [point.any(rng) for point in rng.choices(examination.moments, k=30)]
        expected = []
        for image in images:
            mount.put(Disk(image, "another"))
            expected.append({path: read(path) for path in examination.histories})
    reboot(monkeypatch)
    assert len({str(found) for found in expected}) > 5
    for number, (image, answers) in enumerate(zip(images, expected, strict=True)):
        write_out(image, root := tmp_path / str(number))
        for path, found in answers.items():
            if found is None:
                assert not (root / path[1:]).exists()
                continue
            with TensorBlob.open(root / path[1:], "a+", io="map") as blob:
                assert content(blob) == found._replace(finish_row=None)
