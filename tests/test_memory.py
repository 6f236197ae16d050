"""One tensor over many files: contiguous where it can be, private to who holds it, and gone when nobody does."""

import gc
import multiprocessing
import os
import pickle
import resource
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_support import SHAPE, create, elsewhere, numbers, process, rows, stored
from tensordict import MemoryMappedTensor, TensorDict

import tensorblob as tb
from tensorblob import memory
from tensorblob.columns import BlockCache
from tensorblob.schema import _DTYPES, HUGE_PAGE_NBYTES

pytestmark = pytest.mark.usefixtures("no_platters")

ROW_NBYTES = 4096
WAYS: list[dict[str, Any]] = [{}, {"io": "pread"}, {"max_cached_blocks": 2}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows 0 … 17 in blocks of four."""
    return create(tmp_path / "x.blob", 18)


def maps_of(path: Path) -> int:
    """How many mappings this process has of a blob's files."""
    with open("/proc/self/maps") as file:
        return sum(str(path) in line for line in file)


def maps() -> int:
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def address_nbytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096


# ---- contiguous


def test_many_blocks_are_one_contiguous_tensor(path: Path) -> None:
    assert len(list((path / "blocks" / "data").iterdir())) == 5
    with tb.TensorBlob.open(path) as reader:
        view = reader.view()
        assert view.is_contiguous() and numbers(view) == list(range(18))
        assert reader.runs() == [(0, 18)]
        for start, stop in [(0, 1), (3, 5), (7, 18), (4, 8)]:
            part = reader.view(start, stop)
            assert part.data_ptr() == view.data_ptr() + start * ROW_NBYTES
            assert part.untyped_storage().nbytes() == (stop - start) * ROW_NBYTES, "exactly its rows"
        assert reader.view(5, 5).shape == (0, *SHAPE)
        assert numbers(reader.view(-3)) == [15, 16, 17]


def test_rows_that_are_appended_continue_the_same_addresses(path: Path) -> None:
    with tb.TensorBlob.open(path) as reader, tb.TensorBlob.open(path, "a") as writer:
        address = reader.view().data_ptr()
        for number in range(18, 50):
            writer.write(rows(number))
            reader.refresh()
            view = reader.view()
            assert view.data_ptr() == address and numbers(view) == list(range(number + 1))
        writer.trim(9)
        reader.refresh()
        assert reader.view().data_ptr() == address + 9 * ROW_NBYTES, "trimming moves nothing either"
        assert numbers(reader.view()) == list(range(9, 50))


def test_one_row_of_many_blocks_is_read_without_placing_them_all(tmp_path: Path) -> None:
    """Until that has cost as much as to place them; a reader that is only ever asked for the newest row gets there, too."""
    path = create(tmp_path / "x.blob", 200, block_size=1)
    spans = len(list((path / "blocks" / "data").iterdir()))
    assert spans >= 4 * memory.READ_SPANS
    with tb.TensorBlob.open(path) as reader, tb.TensorBlob.open(path, "a") as writer:
        assert numbers(reader[-1:]) == [199] and maps_of(path) == 0
        placed = []
        for number in range(200, 220):
            writer.write(rows(number))
            reader.refresh()
            assert torch.equal(reader[-1], rows(number)[0])
            assert numbers(reader[-2:]) == [number - 1, number]
            placed.append(bool(reader._state()[1][0]._shared.cells))
        assert placed == sorted(placed) and not placed[0] and placed[-1]
        assert maps_of(path) > 0 and numbers(reader[:]) == list(range(220))
    with tb.TensorBlob.open(path) as reader:
        span = reader._state()[0].columns[0].between(3, 4)[0]
        os.truncate(path / "blocks" / "data" / span.block, 100)
        assert torch.equal(reader[2], rows(2)[0])
        with pytest.raises(tb.Corrupt, match=rf"holds 100 bytes .*{span.block}"):
            reader[3]
        assert maps_of(path) == 0


def test_blocks_and_the_first_row_lie_on_huge_pages(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="float32", shape=SHAPE, block_rows=512) as blob:
        blob.write(rows(*range(1200)))
        for start in (0, 512, 1024):
            assert blob.view(start).data_ptr() % HUGE_PAGE_NBYTES == 0


def test_a_seam_is_named_and_the_runs_around_it_can_be_viewed(path: Path) -> None:
    """Rows of half a page: an adopted blob that ends within a page leaves a seam."""
    row = lambda *values: torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 512)  # noqa: E731
    for name, count in (("a", 5), ("b", 3)):
        with tb.TensorBlob.open(path.with_name(name), "w", dtype="float32", shape=512, block_rows=4) as blob:
            blob.write(row(*range(count)))
    with tb.TensorBlob.open(path.with_name("a"), "r+") as blob:
        blob.extend(path.with_name("b"))
        assert blob.runs() == [(0, 5), (5, 8)] and blob.runs(1, 5) == [(1, 5)] and blob.runs(4, 6) == [(4, 5), (5, 6)]
        with pytest.raises(tb.SeamError, match=r"runs\(start, stop\)"):
            blob.view()
        with pytest.raises(tb.SeamError, match="5"):
            blob.view(4, 6)
        assert [blob.view(*run)[:, 0].tolist() for run in blob.runs()] == [[0, 1, 2, 3, 4], [0, 1, 2]]
        for way in WAYS:
            with tb.TensorBlob.open(path.with_name("a"), **way) as reader:
                assert reader[:][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
                assert reader[::-3][:, 0].tolist() == [2, 4, 1]
                assert reader.gather([7, 0, 5, 4, 4])[:, 0].tolist() == [2, 0, 0, 4, 4]
                assert [row for run in reader.runs() for row in range(*run)] == list(range(8))
        blob.compact()
        assert blob.runs() == [(0, 8)]
        assert blob.view()[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


# ---- private


def test_in_place_operations_reach_neither_the_disk_nor_other_views_nor_copies(path: Path) -> None:
    with (
        tb.TensorBlob.open(path) as reader,
        tb.TensorBlob.open(path) as other,
        tb.TensorBlob.open(path, "r+") as writer,
    ):
        theirs, copied = other.view(), reader[:]
        view = reader.view(2, 17)
        view.add_(1000)
        assert numbers(view) == list(range(1002, 1017))
        assert numbers(reader[:]) == numbers(reader.gather(range(18))) == list(range(18))
        assert numbers(copied) == numbers(theirs) == numbers(other[:]) == numbers(writer[:]) == list(range(18))
        with tb.TensorBlob.open(path) as late:
            assert numbers(late.view()) == list(range(18))
    assert stored(path) == list(range(18))


def test_a_refresh_lets_the_page_that_grew_follow_the_file_again(tmp_path: Path) -> None:
    """A page that was scribbled on is private; rows that were appended to it must be seen all the same."""
    path = tmp_path / "x.blob"
    with (
        tb.TensorBlob.open(path, "w", dtype="int64", shape=(), block_rows=512) as writer,
        tb.TensorBlob.open(path) as reader,
    ):
        for stop in range(1, 2000, 37):
            writer.write(torch.arange(len(writer), stop))
            reader.refresh()
            view = reader.view()
            assert view.tolist() == list(range(stop))
            view[-1:].fill_(-1)
            assert reader[-1] == stop - 1


# ---- how long it lives


def test_views_outlive_everything(path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as writer:
        reader = tb.TensorBlob.open(path)
        views = [(reader.view(), list(range(18))), (reader.view(5, 9), [5, 6, 7, 8]), (writer.view(1, 3), [1, 2])]

        def check() -> None:
            gc.collect()
            for view, expected in views:
                assert numbers(view) == expected

        writer.trim(7)
        check()
        writer.truncate(3)
        writer.write(rows(*range(100, 140)))
        writer.compact()
        views.append((writer.view(0, 4), numbers(writer[0:4])))
        reader.refresh()
        views.append((reader.view(), numbers(reader[:])))
        check()
        reader.close()
        check()
    check()
    assert tb.TensorBlob.unlink(path) and not path.exists()
    check()
    for view, _ in views:
        view.zero_()


def test_what_nobody_holds_is_unmapped(path: Path) -> None:
    before = maps_of(path)
    reader = tb.TensorBlob.open(path)
    assert maps_of(path) == before == 0, "blocks are mapped on first use"
    view = reader.view(0, 8)
    assert 0 < maps_of(path) <= 2
    reader[:]
    reader.close()
    del reader
    gc.collect()
    assert 0 < maps_of(path) <= 2, "a view keeps its own blocks, and no others"
    del view
    gc.collect()
    assert maps_of(path) == 0


def descriptors() -> list[str]:
    return sorted(
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_leaks_over_many_opens_refreshes_and_trims(way: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    options = {"dtype": "float32", "shape": SHAPE, "block_rows": 4}

    def use(count: int) -> None:
        with tb.TensorBlob.open(path, "w+", **options) as writer, tb.TensorBlob.open(path, **way) as follower:
            for number in range(count):
                writer.write(rows(number, number))
                if number % 3 == 2:
                    writer.trim(writer.rows - 5)
                if number % 10 == 9:
                    writer.truncate(2)
                    writer.compact()
                follower.refresh()
                follower.view(0, 1)
                assert len(follower[:]) == len(writer)
                with tb.TensorBlob.open(path, **way) as reader:
                    reader[0]
                    reader.gather([0, -1])

    use(20)
    gc.collect()
    before = maps(), len(descriptors())
    address = address_nbytes()
    for _ in range(3):
        use(20)
    gc.collect()
    assert maps_of(path) == 0
    assert len(descriptors()) == before[1], descriptors()
    assert maps() <= before[0] + 4
    assert address_nbytes() <= address + (64 << 20), "no reservation is left"


def test_a_follower_of_a_ring_maps_what_is_left_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x.blob"
    with (
        tb.TensorBlob.open(path, "w", dtype="float32", shape=SHAPE, block_rows=4, max_rows=16) as writer,
        tb.TensorBlob.open(path) as follower,
    ):
        most = 0
        for number in range(400):
            writer.write(rows(number))
            follower.refresh()
            assert numbers(follower.view())[-1] == number == numbers(follower[-1:])[0]
            most = max(most, maps_of(path))
        assert most <= 2 * 6


def test_a_part_of_a_view_keeps_what_it_shows(path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        part = reader.view()[3:5]
    del reader
    gc.collect()
    assert numbers(part) == [3, 4]


# ---- where address space is scarce


def _limited(path: Path, spare_nbytes: int) -> tuple[list[int], list[tuple[int, int]], list[int], list[int]]:
    limit = address_nbytes() + spare_nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tb.TensorBlob.open(path) as reader:
        first = numbers(torch.stack([reader[position] for position in range(0, len(reader), 100)]))
        low, high = reader.runs()[0]
        gathered = numbers(reader.gather([0, -1, 700, 3]))
        return first, reader.runs(), gathered, numbers(reader.view(low, min(high, low + 5)))


@pytest.mark.parametrize(("spare_nbytes", "is_one_run"), [(2 << 30, True), (64 << 20, True), (20 << 20, False)])
def test_a_refused_reservation_shrinks_and_then_does_without(
    spare_nbytes: int, is_one_run: bool, tmp_path: Path
) -> None:
    count = 3072  # 12 MiB, in blocks of 1 MiB
    path = create(tmp_path / "x.blob", count, block_size=256)
    first, runs, gathered, viewed = elsewhere(_limited, path, spare_nbytes)
    assert first == list(range(0, count, 100))
    assert gathered == [0, count - 1, 700, 3] and viewed == [0, 1, 2, 3, 4]
    assert (len(runs) == 1) == is_one_run
    assert runs[0][0] == 0 and runs[-1][1] == count


def test_a_blob_that_outgrows_its_address_space_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 8 << 20

    class Small(memory.Reservation):
        def __init__(self, nbytes: int, *args: Any) -> None:
            if nbytes > limit:
                raise memory.ReservationRefused("as the kernel would")
            super().__init__(nbytes, *args)

    monkeypatch.setattr("tensorblob.memory.Reservation", Small)
    monkeypatch.setattr("tensorblob.columns.Reservation", Small)
    path = create(tmp_path / "x.blob", 100, block_size=256)
    with tb.TensorBlob.open(path, "r+") as blob, tb.TensorBlob.open(path) as reader, tb.TensorBlob.open(path) as lazy:
        assert len(reader.runs()) == len(blob.runs()) == 1
        views = []
        for stop in range(100, 5000, 100):  # 20 MiB
            blob.seek(0, 2)
            blob.write(rows(*range(stop, stop + 100)))
            assert reader.refresh()
            views.append((reader.view(stop - 100, stop - 97), stop - 100))
            assert numbers(reader[-102:]) == numbers(blob[-102:]) == list(range(stop - 2, stop + 100))
        assert len(reader.runs()) == len(blob.runs()) == 20, "blocks are mapped one by one now"
        assert lazy.refresh() and numbers(lazy[::100]) == list(range(0, 5000, 100))
        for view, start in views:
            assert numbers(view) == [start, start + 1, start + 2]


@pytest.mark.parametrize("capacity", [1, 3])
def test_cached_blocks_are_never_more_than_asked_for(capacity: int, tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 400)
    with tb.TensorBlob.open(path, max_cached_blocks=capacity) as reader:
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            index = torch.randint(0, 400, (16,), generator=generator)
            assert numbers(reader.gather(index)) == index.tolist()
            assert numbers(reader[int(index[0])][None]) == [int(index[0])]
            assert maps_of(path) <= capacity
        assert numbers(reader[:]) == list(range(400))
        assert maps_of(path) <= capacity
    del reader
    gc.collect()
    assert maps_of(path) == 0


def test_the_least_recently_used_block_goes_first_and_they_are_memory_mapped_tensors(path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        field, dir_fd = reader.schema.fields[0], os.open(path, os.O_RDONLY)
        ids = [placed.span.block for placed in reader.snapshot.columns[0].placed()]
    cache = BlockCache(2)
    a = cache.block(dir_fd, field, ids[0], 4)
    cache.block(dir_fd, field, ids[1], 4)
    assert isinstance(a, MemoryMappedTensor)
    assert cache.block(dir_fd, field, ids[0], 2) is a
    cache.block(dir_fd, field, ids[2], 4)
    assert cache.block(dir_fd, field, ids[0], 4) is a, "block 1 went, not 0"
    assert len(cache) == 2
    os.close(dir_fd)


def test_many_threads_read_a_growing_blob_through_few_cached_blocks(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 40)
    failures: list[BaseException] = []
    done = threading.Event()
    with tb.TensorBlob.open(path, "a") as writer, tb.TensorBlob.open(path, max_cached_blocks=2) as reader:

        def read(seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            try:
                while not done.is_set():
                    length = len(reader)
                    index = torch.randint(0, length, (8,), generator=generator)
                    assert numbers(reader.gather(index)) == index.tolist()
                    one = int(index[0])
                    assert int(reader[one][0]) == one
                    found = numbers(reader[one : one + 6])
                    assert found == list(range(one, one + len(found))), "rows in order"
                    assert min(6, length - one) <= len(found) <= 6, "at least those that were there before"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for number in range(40, 160):
            writer.write(rows(number))
            reader.refresh()
        done.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert maps_of(path) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_many_threads_read_while_one_refreshes_over_every_change(way: dict[str, Any], tmp_path: Path) -> None:
    """Each row carries its row id, so a row that was read of the wrong snapshot or of freed memory shows."""
    path = tmp_path / "x.blob"
    failures: list[BaseException] = []
    done = threading.Event()
    with (
        tb.TensorBlob.open(path, "w+", dtype="float32", shape=SHAPE, block_rows=4) as writer,
        tb.TensorBlob.open(path, **way) as reader,
    ):
        writer.write(rows(*range(20)))
        reader.refresh()

        seen = 1 if way.get("max_cached_blocks") else 4  # blocks in a cache are runs of their own

        def read() -> None:
            try:
                while not done.is_set():
                    found = numbers(reader[:])
                    assert found == list(range(found[0], found[0] + len(found)))
                    found = numbers(reader.view(2, 2 + seen))
                    assert found == list(range(found[0], found[0] + seen))
                    found = numbers(reader.gather([5, 2, 4]))
                    assert found == [found[1] + 3, found[1], found[1] + 2]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for round in range(150):
            writer.seek(0, 2)
            writer.write(rows(*range(writer.rows, writer.rows + 3)))
            if round % 4 == 1:
                writer.trim(writer.rows - 15)
            if round % 4 == 2:
                writer.seek(3)
                writer.write(rows(writer.first_row + 3, writer.first_row + 4))
            if round % 10 == 3:
                writer.compact()
            reader.refresh()
        done.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]


# ---- every dtype, every way


def random_rows(dtype: torch.dtype, count: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Rows of any bits (bools of the two that are)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, (count, *shape), generator=generator).bool()
    size = torch.Size((count, *shape)).numel()
    return (
        torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        .view(dtype)
        .view(count, *shape)
    )


def same(found: Any, expected: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit (NaNs have many)."""
    found, expected = found.contiguous(), expected.contiguous()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return bool((found.reshape(-1).view(torch.uint8) == expected.reshape(-1).view(torch.uint8)).all())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # torch says so of every tensor of complex32
@pytest.mark.parametrize("shape", [(), (3, 5)], ids=str)
@pytest.mark.parametrize("name", sorted(_DTYPES))
def test_every_dtype_comes_back_bit_for_bit_in_every_way_of_reading(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    dtype = _DTYPES[name]
    path, other = tmp_path / "x.blob", tmp_path / "y.blob"
    expected = random_rows(dtype, 700, shape, 1)
    with tb.TensorBlob.open(path, "w+", dtype=dtype, shape=shape, block_rows=100) as blob:
        quantum = blob.schema.fields[0].quantum
        assert blob.dtype == name and blob.block_rows % quantum == 0
        for start in range(0, 700, 90):
            blob.write(expected[start : start + 90])
        blob.seek(33)
        patch = random_rows(dtype, 7, shape, 2)
        blob.write(patch)
        expected = torch.cat([expected[:33], patch, expected[40:]])
        with tb.TensorBlob.open(other, "w", dtype=name, shape=shape, block_rows=100) as second:
            more = random_rows(dtype, 150, shape, 3)
            second.write(more)
        blob.extend(other)
        blob.write(patch[0])
        expected = torch.cat([expected, more, patch[:1]])
        assert same(blob[:], expected)
    index = torch.tensor([0, 850, 33, 700, 33, 849, 5])
    for way in WAYS:
        with tb.TensorBlob.open(path, **way) as reader:
            assert same(reader[:], expected)
            assert same(reader[-1], expected[-1]) and same(reader[34], expected[34])
            assert same(reader[700:30:-13], expected[torch.arange(700, 30, -13)])
            assert same(reader.gather(index), expected[index])
            out = torch.empty((len(index), *shape), dtype=dtype)
            assert reader.gather(index, out=out) is out and same(out, expected[index])
            assert all(same(reader.view(*run), expected[slice(*run)]) for run in reader.runs())
            assert all(
                same(row, expected[i]) for row, i in zip(reader.__getitems__(index.tolist()), index, strict=True)
            )


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_a_schema_of_every_dtype_reads_back(tmp_path: Path) -> None:
    schema = {name: (name, (2, 3)) for name in sorted(_DTYPES)}
    expected = {name: random_rows(dtype, 10, (2, 3), 5) for name, dtype in _DTYPES.items()}
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", schema=schema) as blob:
        blob.write(expected)
        found = blob[2:8]
        assert isinstance(found, TensorDict)
        for name in schema:
            assert same(found[name], expected[name][2:8])


# ---- travelling


def _show(view: torch.Tensor) -> tuple[list[int], list[int]]:
    found = numbers(view)
    view.add_(1)
    return found, numbers(view)


def test_a_view_pickles_small_and_is_mapped_again_where_it_arrives(path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        view = reader.view(3, 15)
        data = pickle.dumps(view)
        assert len(data) < 500
        assert numbers(pickle.loads(data)) == list(range(3, 15))
        view.zero_()  # what was scribbled stays behind
        assert elsewhere(_show, view) == (list(range(3, 15)), list(range(4, 16)))
        assert numbers(pickle.loads(pickle.dumps(pickle.loads(data)))) == list(range(3, 15))
    assert numbers(pickle.loads(data)) == list(range(3, 15)), "the handle may be closed"
    assert stored(path) == list(range(18))


def test_a_pickled_view_is_refused_when_its_rows_are_gone(path: Path) -> None:
    with tb.TensorBlob.open(path, "r+") as blob:
        early, late, whole = (pickle.dumps(blob.view(*part)) for part in ((0, 4), (10, 18), (5, 8)))
        blob.trim(2)
        with pytest.raises(tb.RowsTrimmed) as caught:
            pickle.loads(early)
        assert caught.value.first_row == 2
        blob.truncate(10)
        blob.write(rows(*range(100, 110)))
        with pytest.raises(tb.HistoryRewritten):
            pickle.loads(late)
        assert numbers(pickle.loads(whole)) == [5, 6, 7]
    tb.TensorBlob.unlink(path)
    create(path, 18)
    with pytest.raises(tb.BlobReplaced):
        pickle.loads(whole)


def test_saving_a_view_saves_exactly_its_rows(path: Path, tmp_path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        view = reader.view(3, 7)
        torch.save(view, tmp_path / "view.pt")
        torch.save({"part": view[1:3]}, tmp_path / "part.pt")
    assert (tmp_path / "view.pt").stat().st_size < 4 * ROW_NBYTES + 4096
    loaded = torch.load(tmp_path / "view.pt", weights_only=True)
    assert type(loaded) is torch.Tensor and numbers(loaded) == [3, 4, 5, 6]
    assert numbers(torch.load(tmp_path / "part.pt", weights_only=True)["part"]) == [4, 5]
    tb.TensorBlob.unlink(path)
    assert numbers(torch.load(tmp_path / "view.pt", weights_only=True)) == [3, 4, 5, 6]


def test_operations_on_a_view_give_plain_tensors_and_numpy_and_dlpack_see_its_memory(path: Path) -> None:
    with tb.TensorBlob.open(path) as reader:
        view = reader.view(2, 6)
        assert type(view + 1) is torch.Tensor and type(view[0]) is torch.Tensor
        assert numbers(view.clone()) == [2, 3, 4, 5] and numbers(torch.stack([view[0], view[3]])) == [2, 5]
        array = np.asarray(view)
        assert array.shape == (4, *SHAPE) and array.__array_interface__["data"][0] == view.data_ptr()
        assert torch.from_dlpack(view).data_ptr() == view.data_ptr()
        assert np.from_dlpack(view.as_subclass(torch.Tensor)).shape == array.shape
        row = reader[5]
        assert np.asarray(row)[0] == 5 and torch.from_dlpack(row)[0] == 5
        assert np.asarray(reader[3:5])[:, 0].tolist() == [3, 4]
        del reader, view
        gc.collect()
        assert array[:, 0].tolist() == [2, 3, 4, 5], "an array keeps what it shows mapped"


class _Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, blob: tb.TensorBlob) -> None:
        self.blob = blob

    def __len__(self) -> int:
        return len(self.blob)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.blob[index]

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return self.blob.__getitems__(indices)


def _load(path: Path, how: str, ways: list[dict[str, Any]]) -> list[list[int]]:
    torch.set_num_threads(1)
    found = []
    for way in ways:
        with tb.TensorBlob.open(path, **way) as reader:
            dataset: Any = _Rows(reader) if way else reader
            loader = torch.utils.data.DataLoader(
                dataset, batch_size=4, shuffle=True, num_workers=2, multiprocessing_context=how
            )
            found.append(sorted(number for batch in loader for number in numbers(batch)))
    return found


@pytest.mark.slow
def test_a_data_loader_reads_every_row_once_in_spawned_workers(path: Path) -> None:
    assert elsewhere(_load, path, "spawn", WAYS[:1]) == [list(range(18))]


def test_a_data_loader_reads_every_row_once_in_forked_workers(path: Path) -> None:
    assert elsewhere(_load, path, "fork", WAYS) == [list(range(18))] * 3


def _answer(connection: Connection) -> None:
    while (got := connection.recv()) is not None:
        if isinstance(got, tb.TensorBlob):
            with got:
                connection.send((numbers(got[:]), got.tell(), got.mode))
        else:
            connection.send((numbers(got), 0, ""))


@pytest.mark.parametrize("how", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_handles_and_views_travel_to_workers_as_what_they_showed(how: str, path: Path) -> None:
    assert elsewhere(_travel, path, how) == [
        (list(range(18)), 5, "r"),
        (list(range(18)), 18, "r"),
        ([3, 4, 5], 0, ""),
    ]


def _travel(path: Path, how: str) -> list[Any]:
    torch.set_num_threads(1)
    context: Any = multiprocessing.get_context(how)
    ours, theirs = context.Pipe()
    worker = context.Process(target=_answer, args=(theirs,))
    worker.start()
    theirs.close()
    found = []
    with tb.TensorBlob.open(path) as reader, tb.TensorBlob.open(path, "a+") as writer:
        reader.seek(5)
        for thing in (reader, writer, reader.view(3, 6)):
            ours.send(thing)
            found.append(ours.recv())
        writer.write(rows(18))
    ours.send(None)
    worker.join()
    return found


def _use_in_child(connection: Connection, path: Path) -> None:
    """A forked child reads by the handle it inherited, whatever the threads of its parent were doing."""
    torch.set_num_threads(1)
    with tb.TensorBlob.open(path) as reader:
        view = reader.view(1, 4)
        reader[0]
        for _ in range(5):
            pid = os.fork()
            if not pid:
                good = numbers(reader[:]) == list(range(18)) and numbers(view) == [1, 2, 3]
                reader.refresh()
                view.zero_()
                os._exit(0 if good else 1)
            connection.send(os.waitpid(pid, 0)[1])
        connection.send(numbers(view))


def test_a_forked_child_reads_by_what_it_inherited(path: Path) -> None:
    with process(_use_in_child, path) as (connection, _):
        assert [connection.recv() for _ in range(5)] == [0] * 5
        assert connection.recv() == [1, 2, 3], "a child's scribbles are its own"


def iterate(blob: tb.TensorBlob) -> Iterator[int]:
    for row in blob:
        yield int(row[0])


def test_pread_maps_nothing(path: Path) -> None:
    with tb.TensorBlob.open(path, io="pread") as reader:
        reader[:], reader.view(), reader.gather([1, 2]), list(iterate(reader))
        assert maps_of(path) == 0


def test_pread_turns_a_file_that_shrank_into_an_error(path: Path) -> None:
    with tb.TensorBlob.open(path, io="pread") as reader:
        assert numbers(reader[:]) == list(range(18))
        os.truncate(sorted((path / "blocks" / "data").iterdir(), key=lambda p: int(p.name.split("-")[1]))[2], 100)
        assert numbers(reader[:8]) == list(range(8))
        for read in (lambda: reader[9], lambda: reader[:], lambda: reader.gather([10]), lambda: reader.view(8, 9)):
            with pytest.raises(tb.Corrupt) as caught:
                read()
            assert caught.value.offset == 100 and "/blocks/data/" in caught.value.path
