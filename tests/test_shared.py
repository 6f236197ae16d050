"""Several processes that write one blob, in turns and by staging: one order of commits, nothing lost, repeated or torn.

Each writer's rows say who wrote them and in which order; each reader notes what it sees. A checker then proves that every
snapshot was a prefix of one commit order, and that whoever heard of a commit finds its rows where it was told.
"""

import itertools
import os
import signal
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from api_support import complaint, create, elsewhere, numbers, process, rows, stored
from disk import assert_never_synced_again, put_between

import tensorblob as tb
from tensorblob import files
from tensorblob.edit import Key

pytestmark = pytest.mark.usefixtures("no_platters")

SHAPE = (512,)  # int64: a page


def batch(who: int, number: int, count: int) -> torch.Tensor:
    """Rows that say who wrote them, which append of theirs it was, their place in it, and how many there are."""
    found = torch.zeros(count, *SHAPE, dtype=torch.int64)
    found[:, 0], found[:, 1], found[:, 2], found[:, 3] = who, number, torch.arange(count), count
    return found


def appends_in(found: torch.Tensor) -> list[tuple[int, int]]:
    """The appends in these rows as (who, number), each of which must be whole."""
    seen, position = [], 0
    while position < len(found):
        who, number, place, count = found[position, :4].tolist()
        assert place == 0, "an append begins with its first row"
        assert torch.equal(found[position : position + count, :4], batch(who, number, count)[:, :4]), "and is whole"
        seen.append((who, number))
        position += count
    return seen


def new_blob(path: Path, **options: Any) -> Path:
    tb.TensorBlob.open(path, "w", dtype="int64", shape=SHAPE, block_size=16, **options).close()
    return path


# ---- the processes


def _append_shared(path: Path, who: int, appends: int, tasks: int, durability: str) -> list[tuple[int, int, int]]:
    async def append() -> list[tuple[int, int, int]]:
        told: list[tuple[int, int, int]] = []
        numbers = itertools.count()
        async with tb.open_writer(path, shared=True, durability=durability) as writer:

            async def producer() -> None:
                while (number := next(numbers)) < appends:
                    got = await writer.append(batch(who, number, number % 3 + 1))
                    told.append((number, got.start, got.stop))

            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(producer)
        return told

    return anyio.run(append)


def _append_staged(path: Path, who: int, appends: int, size: int) -> list[tuple[int, int, int]]:
    async def append() -> list[tuple[int, int, int]]:
        told = []
        async with tb.open_producer(path) as producer:
            for number in range(appends):
                rows = batch(who, number, size + number)
                await producer.append(rows[: size // 2])
                await producer.append(rows[size // 2 :])
                got = await producer.commit()
                told.append((number, got.start, got.stop))
        return told

    return anyio.run(append)


def _watch(connection: Connection, path: Path) -> None:
    """Note every snapshot on the way, until told that it is over."""
    seen = []
    with tb.TensorBlob.open(path) as blob:
        while True:
            is_over = connection.poll(0)
            if blob.refresh() or not seen:
                seen.append(appends_in(blob[:]))  # type: ignore[arg-type]
            if is_over:
                break
    connection.send(seen)


def _watch_on(connection: Connection, path: Path) -> None:
    """As `_watch`, of many rows: note what is new in each snapshot, and where that ends."""
    order: list[tuple[int, int]] = []
    ends, row = [], 0
    with tb.TensorBlob.open(path) as blob:
        while True:
            is_over = connection.poll(0)
            if blob.refresh():
                assert blob.rows >= row and blob.first_row == 0
                order += appends_in(blob[row:])  # type: ignore[arg-type]
                row = blob.rows
                ends.append(len(order))
            if is_over:
                break
    connection.send((order, ends))


def _run(path: Path, *jobs: tuple[Any, ...], readers: int = 1) -> tuple[list[Any], list[list[list[tuple[int, int]]]]]:
    """Run jobs at once in processes, and readers beside them; return what the jobs and what the readers say."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack

    with ExitStack() as stack, ThreadPoolExecutor(len(jobs)) as pool:
        watchers = [stack.enter_context(process(_watch, path))[0] for _ in range(readers)]
        told = list(pool.map(lambda job: elsewhere(*job), jobs))
        for watcher in watchers:
            watcher.send("over")
        return told, [watcher.recv() for watcher in watchers]


def check(path: Path, told: dict[int, list[tuple[int, int, int]]], seen: list[list[list[tuple[int, int]]]]) -> None:
    """One order of commits explains all that was said and seen."""
    with tb.TensorBlob.open(path) as blob:
        everything = blob[:]
        assert isinstance(everything, torch.Tensor)
    order = appends_in(everything)
    assert Counter(order) == Counter((who, number) for who, acks in told.items() for number, _, _ in acks)
    for who, acks in told.items():
        for number, start, stop in acks:
            assert everything[start:stop, :2].tolist() == [[who, number]] * (stop - start), "where it was told"
    for reader in seen:
        for before, after in itertools.pairwise(reader):
            assert len(before) <= len(after), "readers do not go back"
        for snapshot in reader:
            assert snapshot == order[: len(snapshot)], "a prefix of the one order"


# ---- the claims


@pytest.mark.parametrize("durability", ["process", "power"])
def test_writers_that_share_a_blob_make_one_order_of_commits(tmp_path: Path, durability: str) -> None:
    path = new_blob(tmp_path / "x.blob")
    jobs = [(_append_shared, path, who, 40, 4, durability) for who in range(3)]
    told, seen = _run(path, *jobs)
    check(path, dict(enumerate(told)), seen)
    assert not os.listdir(path / "producers")


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 300], ids=["copied", "adopted"])
def test_staged_and_shared_writers_make_one_order_of_commits(tmp_path: Path, size: int) -> None:
    path = new_blob(tmp_path / "x.blob")
    told, seen = _run(
        path,
        (_append_staged, path, 0, 8, size),
        (_append_staged, path, 1, 8, size),
        (_append_shared, path, 2, 40, 2, "process"),
    )
    check(path, dict(enumerate(told)), seen)
    assert not os.listdir(path / "producers")
    with tb.TensorBlob.open(path, "a") as blob:
        named = {placed.span.block for column in blob.snapshot.columns for placed in column.placed()}
        assert set(os.listdir(path / "blocks" / "data")) >= named


@pytest.mark.slow
def test_many_writers_and_readers_at_scale_make_one_order_of_commits(tmp_path: Path) -> None:
    """`TENSORBLOB_APPENDS` says how many appends each shared writer makes."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack

    path = new_blob(tmp_path / "x.blob")
    appends = int(os.environ.get("TENSORBLOB_APPENDS", "1500"))
    jobs: list[tuple[Any, ...]] = [(_append_shared, path, who, appends, 8, "process") for who in range(4)]
    jobs += [(_append_staged, path, 4 + who, max(appends // 50, 1), size) for who, size in enumerate((3, 300))]
    with ExitStack() as stack, ThreadPoolExecutor(len(jobs)) as pool:
        watchers = [stack.enter_context(process(_watch_on, path))[0] for _ in range(2)]
        told = list(pool.map(lambda job: elsewhere(*job), jobs))
        for watcher in watchers:
            watcher.send("over")
        seen = [watcher.recv() for watcher in watchers]
    check(path, dict(enumerate(told)), [])
    with tb.TensorBlob.open(path) as blob:
        order = appends_in(blob[:])  # type: ignore[arg-type]
    for who in range(len(jobs)):
        mine = [number for owner, number in order if owner == who]
        assert who < 4 or mine == sorted(mine), "a producer's own commits keep their order"
    for noted, ends in seen:
        assert noted == order[: len(noted)], "each snapshot was a prefix of the one order"
        assert ends == sorted(ends) and len(ends) > 10


@pytest.mark.slow
def test_generations_that_writers_begin_in_turns_lose_nothing(tmp_path: Path) -> None:
    path = new_blob(tmp_path / "x.blob")
    jobs = [(_append_with_short_generations, path, who, 60) for who in range(3)]
    told, seen = _run(path, *jobs, readers=2)
    check(path, dict(enumerate(told)), seen)
    assert int(max(found.name.split(".")[1] for found in path.glob("manifest.*"))) > 10


def _append_with_short_generations(path: Path, who: int, appends: int) -> list[tuple[int, int, int]]:
    import tensorblob.writer

    tensorblob.writer.MAX_EDITS = 7
    return _append_shared(path, who, appends, 2, "process")


def _append_until_killed(connection: Connection, path: Path, who: int) -> None:
    async def append() -> None:
        async with tb.open_writer(path, shared=True) as writer:
            for number in itertools.count():
                got = await writer.append(batch(who, number, number % 3 + 1))
                connection.send((number, got.start, got.stop))

    anyio.run(append)


def test_a_shared_writer_that_is_killed_stops_nobody_and_loses_nothing_it_was_told(tmp_path: Path) -> None:
    path = new_blob(tmp_path / "x.blob")
    told: dict[int, list[tuple[int, int, int]]] = {}
    for who in range(4):
        with (
            process(_append_until_killed, path, who) as (connection, child),
            process(_append_until_killed, path, 10 + who) as (other, survivor),
        ):
            acks = [connection.recv() for _ in range(20)]
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            told[10 + who] = [other.recv() for _ in range(40)]  # goes on
            os.kill(survivor.pid or 0, signal.SIGKILL)
            told[who] = acks
    with tb.TensorBlob.open(path, "a+") as blob:
        found = blob[:]
        assert isinstance(found, torch.Tensor)
        appends = appends_in(found)
        for who, acks in told.items():
            mine = [number for owner, number in appends if owner == who]
            assert mine == list(range(len(mine))) and len(mine) >= len(acks), (
                "each once, in order, and all it was told of"
            )
            for number, start, stop in acks:
                assert found[start:stop, :2].tolist() == [[who, number]] * (stop - start)
    assert not os.listdir(path / "producers"), "the last writer swept up after the dead ones"


def _stage_and_die(_: Connection, path: Path) -> None:
    async def stage() -> None:
        async with tb.open_producer(path) as producer:
            await producer.append(batch(0, 0, 50))
            os.kill(os.getpid(), signal.SIGKILL)

    anyio.run(stage)


def test_blocks_that_a_killed_producer_staged_go_with_the_next_writer(tmp_path: Path) -> None:
    path = new_blob(tmp_path / "x.blob")
    with tb.TensorBlob.open(path, "a") as blob:
        blob.write(batch(1, 0, 4))
    kept = set(os.listdir(path / "blocks" / "data"))
    with process(_stage_and_die, path) as (_, child):
        child.join()
    assert set(os.listdir(path / "blocks" / "data")) > kept
    tb.TensorBlob.open(path, "a").close()
    assert set(os.listdir(path / "blocks" / "data")) == kept
    with tb.TensorBlob.open(path) as blob:
        assert appends_in(blob[:]) == [(1, 0)]  # type: ignore[arg-type]


def test_what_is_staged_is_seen_by_nobody_before_it_is_committed_and_leaves_nothing_if_it_never_is(
    tmp_path: Path,
) -> None:
    path = new_blob(tmp_path / "x.blob")

    async def stage() -> None:
        with tb.TensorBlob.open(path) as reader:
            async with tb.open_producer(path) as producer:
                await producer.append(batch(0, 0, 50))
                reader.refresh()
                assert producer.staged_rows == 50 and len(reader) == 0
                assert await producer.commit(key="p", sequence=1) == range(50)
                await producer.append(batch(0, 0, 50))
                assert await producer.commit(key="p", sequence=1) == range(50), "an append that is repeated is not"
                await producer.append(batch(0, 1, 50))
            reader.refresh()
            assert appends_in(reader[:]) == [(0, 0)]  # type: ignore[arg-type]

    anyio.run(stage)
    assert len(os.listdir(path / "blocks" / "data")) <= 4


def test_a_sole_writer_and_writers_that_share_keep_each_other_out(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 3)
    with tb.TensorBlob.open(path, "a", shared=True) as one, tb.TensorBlob.open(path, "a", shared=True) as two:
        one.write(rows(3))
        two.write(rows(4))
        one.write(rows(5))
        with pytest.raises(tb.WriterBusy):
            tb.TensorBlob.open(path, "a")
        with pytest.raises(ValueError, match="one durability"):
            tb.TensorBlob.open(path, "a", shared=True, durability="power")
    assert stored(path) == [0, 1, 2, 3, 4, 5]
    with tb.TensorBlob.open(path, "a"), pytest.raises(tb.WriterBusy):
        tb.TensorBlob.open(path, "a", shared=True)
    for mode in ("r", "r+", "w", "w+"):
        with pytest.raises(ValueError, match="shared"):
            tb.TensorBlob.open(path, mode, shared=True)
    assert complaint(lambda: tb.TensorBlob.open(tmp_path / "absent", "a", shared=True)) is not None


def test_peers_see_what_the_others_did_at_their_next_turn(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 0)
    with tb.TensorBlob.open(path, "a+", shared=True) as one, tb.TensorBlob.open(path, "a+", shared=True) as two:
        one.write(rows(*range(10)))
        two.write(rows(*range(10, 13)), metadata={"n": 1})
        one.truncate(11)
        two.write(rows(20))
        one.trim(2)
        two.compact()
        one.write(rows(21, 22))
        two.set_metadata({"a": 1})
        one.flush()
        two.flush()
        two.write(rows(23))
        assert numbers(two[:]) == [*range(2, 11), 20, 21, 22, 23]  # type: ignore[arg-type]
        with one.transaction():
            one.write(rows(24))
            one.write(rows(25))
        assert numbers(one[:]) == [*range(2, 11), 20, 21, 22, 23, 24, 25]  # type: ignore[arg-type]
        assert one.metadata == {"a": 1} and one.history == 1
    assert stored(path) == [*range(2, 11), 20, 21, 22, 23, 24, 25]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_failed_sync_of_one_is_known_to_its_peers_who_go_on_in_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    path = create(tmp_path / "x.blob", 3)
    options: dict[str, Any] = {"shared": True, "durability": durability}

    def generation() -> int:
        return max(int(found.name.split(".")[1]) for found in path.glob("manifest.*"))

    with tb.TensorBlob.open(path, "a+", **options) as one, tb.TensorBlob.open(path, "a+", **options) as two:
        two.write(rows(3))
        before = generation()
        disk = put_between(monkeypatch, tmp_path)
        with disk.failing(0, ("sync",)) as fault, pytest.raises(tb.SyncFailed):
            one.write(rows(4))
            one.flush()
        assert fault.fired and generation() == before
        mark = len(disk.acts)
        two.write(rows(5))
        assert generation() == before + 1, "the peer learned of it in its turn"
        (failed,) = (act.path for act in disk.acts[:mark] if act.failed)
        later = [act for act in disk.since(mark, "write", "sync") if act.is_block]
        assert later and failed not in {act.path for act in later}, "and does not trust that file"
        one.write(rows(6))
        expected = [0, 1, 2, 3, 4, 5, 6] if durability == "process" else [0, 1, 2, 3, 5, 6]
        assert numbers(one[:]) == expected  # type: ignore[arg-type]
    assert stored(path) == expected


def test_a_manifest_whose_sync_failed_is_left_by_the_peers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.blob", 3)
    options: dict[str, Any] = {"shared": True, "durability": "power"}
    with tb.TensorBlob.open(path, "a", **options) as one, tb.TensorBlob.open(path, "a", **options) as two:
        disk = put_between(monkeypatch, tmp_path)
        disk.fail_when(lambda act: act.kind == "sync" and act.is_manifest)
        with pytest.raises(tb.OutcomeUnknown):
            one.write(rows(3))
        disk.heal()
        (failed,) = {act.inode for act in disk.acts if act.failed}
        mark = len(disk.acts)
        two.write(rows(4))
        assert failed not in {act.inode for act in disk.since(mark, "sync")}
        assert two.durable_rows == two.rows == 5
    assert stored(path) == [0, 1, 2, 3, 4]


def test_a_sync_that_failed_as_a_generation_began_is_known_to_the_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "x.blob", 3)
    with tb.TensorBlob.open(path, "a", shared=True) as one, tb.TensorBlob.open(path, "a", shared=True) as two:
        one.write(rows(3))
        disk = put_between(monkeypatch, tmp_path)
        with disk.failing(0, ("sync",)) as fault, pytest.raises(tb.SyncFailed):
            assert one._writer is not None
            one._writer._rotate()
        assert fault.fired
        two.flush()
        assert_never_synced_again(disk)
        assert two.durable_rows == 4
    assert stored(path) == [0, 1, 2, 3]


def test_a_failed_sync_that_could_not_be_told_is_told_in_the_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "x.blob", 3)
    with tb.TensorBlob.open(path, "a+", shared=True) as one, tb.TensorBlob.open(path, "a+", shared=True) as two:
        one.write(rows(3))
        disk = put_between(monkeypatch, tmp_path)
        disk.fail_when(lambda act: act.kind == "sync" or (act.kind == "write" and act.path.endswith("commit.lock")))
        with pytest.raises(tb.SyncFailed):
            one.flush()
        disk.heal()
        (failed,) = {os.path.basename(act.path) for act in disk.acts if act.failed and act.kind == "sync"}
        one.refresh()  # a turn, in which nothing else happens
        two.write(rows(4))
        assert failed not in {placed.span.block for placed in two.snapshot.columns[0].placed()}
    assert stored(path) == [0, 1, 2, 3, 4]


def test_a_writer_that_closes_leaves_the_size_of_files_that_its_peers_grow_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the size and the cut a peer may have written more."""
    path = create(tmp_path / "x.blob", 3)
    with tb.TensorBlob.open(path, "a", shared=True) as one:
        one.write(rows(3))
        disk = put_between(monkeypatch, tmp_path)
        with tb.TensorBlob.open(path, "a", shared=True) as two:
            two.write(rows(4))
            (tail,) = {f"x.blob/blocks/data/{column.tail.id}" for column in two.snapshot.columns if column.tail}
        assert [act for act in disk.acts if act.kind == "write" and act.path == tail]
        assert not [act for act in disk.acts if act.kind == "truncate" and act.path == tail]


def test_blocks_that_a_peers_generation_does_not_name_are_removed_by_who_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer may be killed before it comes to that, and a sweep leaves what is of the living."""
    path = create(tmp_path / "x.blob", 0)
    with tb.TensorBlob.open(path, "a", shared=True) as one:
        one.write(rows(*range(9)))
        with tb.TensorBlob.open(path, "a", shared=True) as two, monkeypatch.context() as patch:
            patch.setattr("tensorblob.blocks.Blocks.unlink_dead", lambda self: None)
            two.truncate(1)
            two.compact()
            live = {placed.span.block for placed in two.snapshot.columns[0].placed()}
            assert two._writer is not None
            two._writer._blocks._dead.clear()
        one.refresh()
    assert set(os.listdir(path / "blocks" / "data")) == live


def test_a_staged_commit_is_synced_before_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is as short as its edit, however much was staged."""
    path = new_blob(tmp_path / "x.blob")
    monkeypatch.setattr("tensorblob.staging.COPY_NBYTES", 1)
    disk, free = put_between(monkeypatch, tmp_path), []

    def look(act: Any) -> None:
        if act.kind == "sync" and act.is_block:
            with open(path / "commit.lock", "rb") as lock:
                free.append(files.try_lock(lock.fileno(), shared=False))

    async def stage() -> None:
        async with tb.open_producer(path, durability="power") as producer:
            await producer.append(batch(0, 0, 40))
            disk.watch = look
            await producer.commit()
            disk.watch = None

    anyio.run(stage)
    assert free and all(free)


def test_a_writer_that_slept_through_two_generations_goes_on_in_the_newest(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 1)
    with tb.TensorBlob.open(path, "a", shared=True) as sleeper, tb.TensorBlob.open(path, "a+", shared=True) as other:
        sleeper.write(rows(1))
        assert other._writer is not None
        for number in (2, 3, 4):
            other.write(rows(number))
            with other._writer._lock:
                other._writer._is_due = True
            other._writer._rotate()
        assert len(list(path.glob("manifest.*"))) == 1
        sleeper.write(rows(5))
        other.write(rows(6))
        assert numbers(other[:]) == [0, 1, 2, 3, 4, 5, 6]  # type: ignore[arg-type]
    assert stored(path) == [0, 1, 2, 3, 4, 5, 6]


def test_a_staged_commit_that_is_visible_but_not_durable_keeps_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_blob(tmp_path / "x.blob")
    disk = put_between(monkeypatch, tmp_path)

    async def stage() -> None:
        async with tb.open_producer(path, durability="power") as producer:
            await producer.append(batch(0, 0, 400))
            disk.fail_when(lambda act: act.kind == "sync" and act.is_manifest and not act.path.startswith("x.blob/."))
            with pytest.raises(tb.OutcomeUnknown):
                await producer.commit(key="p", sequence=0)
            disk.heal()
            assert producer.staged_rows == 0
            assert await producer.commit(key="p", sequence=0) == range(400)
            assert producer.blob.durable_rows == 400, "and what it returns is durable"

    anyio.run(stage)
    with tb.TensorBlob.open(path) as blob:
        assert appends_in(blob[:]) == [(0, 0)]


@pytest.mark.parametrize("way", ["staged", "grouped"])
def test_a_commit_that_is_repeated_after_its_writer_died_is_durable_when_that_is_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between the edit and the sync of the edit: it is visible, and no more than that."""
    path = new_blob(tmp_path / "x.blob")
    options: dict[str, Any] = {"durability": "power"}
    disk = put_between(monkeypatch, tmp_path)

    class Died(BaseException):
        pass

    def die(act: Any) -> None:
        if act.kind == "sync" and act.is_manifest:
            disk.watch = None
            raise Died

    async def repeat() -> None:
        opened = tb.open_producer(path, **options) if way == "staged" else tb.open_writer(path, shared=True, **options)
        async with opened as again:
            with tb.TensorBlob.open(path, "a", shared=True, **options) as blob:
                assert blob._writer is not None
                columns, count = blob._batches.columns(batch(0, 0, 3))
                disk.watch = die
                with pytest.raises(Died):
                    blob._writer.append(columns, count, None, lambda at: [Key("p", 0, at.rows, at.rows + count)])
                if isinstance(again, tb.Producer):
                    await again.append(batch(0, 0, 3))
                    assert await again.commit(key="p", sequence=0) == range(3)
                else:
                    assert await again.append(batch(0, 0, 3), key="p", sequence=0) == range(3)
                with tb.TensorBlob.open(path) as reader:
                    assert reader.durable_rows == reader.rows == 3

    anyio.run(repeat)


def test_staged_rows_whose_sync_failed_are_dropped_and_not_trusted_by_a_second_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_blob(tmp_path / "x.blob")
    disk = put_between(monkeypatch, tmp_path)

    async def stage() -> None:
        async with tb.open_producer(path, durability="power") as producer:
            await producer.append(batch(0, 0, 400))
            with disk.failing(0, ("sync",)), pytest.raises(tb.SyncFailed, match="append it again"):
                await producer.commit()
            assert producer.staged_rows == 0 and await producer.commit() == range(0)
            await producer.append(batch(0, 0, 400))
            assert await producer.commit() == range(400)

    anyio.run(stage)
    with tb.TensorBlob.open(path) as blob:
        assert appends_in(blob[:]) == [(0, 0)]


def test_a_snapshot_that_is_read_while_a_shared_writer_commits_takes_nothing_back(tmp_path: Path) -> None:
    import threading

    path = new_blob(tmp_path / "x.blob")
    with tb.TensorBlob.open(path, "a+", shared=True) as blob:
        is_over = threading.Event()

        def look() -> None:
            while not is_over.is_set():
                assert len(blob) <= len(blob)

        thread = threading.Thread(target=look)
        thread.start()
        for number in range(500):
            blob.write(batch(0, number, 1))
        is_over.set()
        thread.join()
        assert appends_in(blob[:]) == [(0, number) for number in range(500)]


def test_a_flush_covers_what_a_peer_committed_in_the_generation_that_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginning a generation is a flush, but only of what it begins with."""
    path = new_blob(tmp_path / "x.blob")
    disk = put_between(monkeypatch, tmp_path)
    monkeypatch.setattr("tensorblob.writer.MAX_EDITS", 2)
    with (
        tb.TensorBlob.open(path, "a", shared=True) as first,
        tb.TensorBlob.open(path, "a", shared=True) as second,
    ):
        for number in range(4):
            first.write(batch(0, number, 1))
        written = {act.inode: act for act in disk.acts if act.kind == "write" and act.is_block}
        mark = len(disk.acts)
        second.flush()
        synced = {act.inode for act in disk.since(mark, "sync")}
        assert written and written.keys() <= synced
