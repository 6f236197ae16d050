"""After a killed writer every committed row is there; after a power loss the longest intact prefix is, and it says so.

A killed writer leaves a prefix of the log (the kernel keeps what was written). A power loss leaves what was synced, and of
the rest any part: bytes missing, or zeros, in the log and in the blocks, one without the other.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_support import SHAPE, create, manifest_of, numbers, photograph, rows, stored
from disk import Act, put_between, reboot, without_platters
from spec_reader import read_schema, records

import tensorblob as tb

COMMITS = [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9, 10], [11]]
STOPS = list(itertools.accumulate(map(len, COMMITS), initial=0))
DURABLE = 6
"""Rows that were flushed, of twelve."""
ROW_NBYTES = 4096


@pytest.fixture(autouse=True)
def no_background_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is durable is decided by these tests alone; so nothing has to reach a platter."""
    monkeypatch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
    without_platters(monkeypatch)


def log_of(path: Path) -> list[tuple[int, list[Any]]]:
    """The records of a blob's only manifest, as (offset, operations)."""
    manifest = manifest_of(path)
    return records(manifest.read_bytes(), read_schema(path)["uuid"], int(manifest.name[-6:]))


def open_blob(path: Path, mode: str = "r", **options: Any) -> tb.TensorBlob:
    return tb.TensorBlob.open(path, mode, **options)


def begin(path: Path) -> tb.TensorBlob:
    """A writer at work: twelve rows in blocks of four, the first six durable."""
    writer = open_blob(path, "w+", dtype="float32", shape=SHAPE, block_rows=4)
    for stop, batch in zip(STOPS[1:], COMMITS, strict=True):
        writer.write(rows(*batch))
        if stop == DURABLE:
            writer.flush()
    return writer


def killed(path: Path) -> Path:
    """A blob whose writer was killed: same boot, nothing lost. (It is closed, and what closing adds is taken off again.)"""
    with begin(path):
        size = manifest_of(path).stat().st_size
    os.truncate(manifest_of(path), size)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the disk held when the power failed, had everything reached it."""
    live, path = tmp_path_factory.mktemp("template") / "live.blob", tmp_path_factory.mktemp("template") / "x.blob"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorblob.flusher.Flusher.wake", lambda self: None)
        with begin(live):
            shutil.copytree(live, path)
    return path


@pytest.fixture
def fresh(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Makes copies of the template, found after a reboot."""
    reboot(monkeypatch)
    numbers = itertools.count()
    return lambda: Path(shutil.copytree(template, tmp_path / f"{next(numbers)}.blob"))


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def blocks_of(path: Path) -> list[Path]:
    """The block files of a blob of one column, in the order of their rows."""
    return sorted((path / "blocks" / "data").iterdir(), key=lambda block: int(block.name.partition("-")[2]))


# ---- a killed writer


@pytest.mark.slow
def test_after_a_kill_at_any_point_of_the_log_the_next_writer_has_every_whole_commit(tmp_path: Path) -> None:
    path = killed(tmp_path / "first.blob")
    starts = [offset for offset, _ in log_of(path)]
    end = manifest_of(path).stat().st_size
    cuts = {offset + step for offset in starts[1:] for step in (-1, 0, 1, 9, 30)} | set(range(starts[-2], end + 1))
    found = set()
    for cut in sorted(cut for cut in cuts if starts[1] <= cut <= end):
        path = killed(tmp_path / f"{cut}.blob")
        os.truncate(manifest_of(path), cut)
        before = photograph(path)
        expected = stored(path)
        assert photograph(path) == before, "readers repair nothing"
        whole = sum(1 for offset in [*starts[1:], end] if offset <= cut) - 1
        found.add((whole, len(expected)))
        with open_blob(path, "r+") as writer:
            assert (numbers(writer[:]), writer.history) == (expected, 0)
            writer.seek(0, 2)
            writer.write(rows(100, 101))
            assert stored(path) == [*expected, 100, 101]
        with open_blob(path, "a") as writer:
            writer.write(rows(102))
        assert stored(path) == [*expected, 100, 101, 102]
        shutil.rmtree(path)
    assert {count for _, count in found} == set(STOPS)
    assert len(dict(found)) == len(found), "the whole records, and nothing else, decide what is found"


def test_a_torn_record_stays_where_it_is_and_a_new_generation_begins(tmp_path: Path) -> None:
    path = killed(tmp_path / "x.blob")
    manifest = manifest_of(path)
    os.truncate(manifest, manifest.stat().st_size - 5)
    torn = manifest.read_bytes()
    with open_blob(path) as reader:
        open_blob(path, "a").close()
        assert manifest.read_bytes().startswith(torn), "a pinned generation is as it was"
        assert manifest_of_newest(path).name == "manifest.000002"
        assert numbers(reader[:]) == list(range(11))


def manifest_of_newest(path: Path) -> Path:
    return max(path.glob("manifest.*"))


def test_damage_before_the_end_of_the_log_is_never_taken_for_a_torn_tail(tmp_path: Path) -> None:
    """Within one boot nothing goes missing in the middle: zeros there are damage, not a tail."""
    path = killed(tmp_path / "x.blob")
    manifest = manifest_of(path)
    data = manifest.read_bytes()
    starts = [offset for offset, _ in log_of(path)]
    for start, stop in itertools.combinations(starts, 2):
        for low, high in {(start, stop), (start + 5, stop), (start, stop - 1), (start + 5, stop + 5)}:
            if low < high:
                rewrite(
                    manifest, lambda bytes_, low=low, high=high: bytes_.__setitem__(slice(low, high), bytes(high - low))
                )
                for mode in ("r", "a"):
                    with pytest.raises(tb.Corrupt) as caught:
                        open_blob(path, mode)
                    assert caught.value.path.endswith(manifest.name) and caught.value.offset == start
                rewrite(manifest, lambda bytes_: bytes_.__setitem__(slice(None), data))


# ---- a power loss


def losses_of_the_log(path: Path) -> Iterator[tuple[str, int, Callable[[bytearray], None]]]:
    """Ways in which the log's end may be lost: (what, commits that are left, how)."""
    log = log_of(path)
    size = manifest_of(path).stat().st_size
    commits = [offset for offset, edit in log[1:] if edit[0][0] in ("tail", "grow")]
    stops = [*(offset for offset, _ in log[1:]), size]
    ends = [min(stop for stop in stops if stop > offset) for offset in commits]
    (durable,) = [offset for offset, edit in log if edit[0][0] == "durable"]
    for cut in sorted({durable, *ends[2:], *(end - 7 for end in ends[3:]), *(end - 1 for end in ends[3:])}):
        left = sum(end <= cut for end in ends)

        def shorten(data: bytearray, cut: int = cut) -> None:
            del data[cut:]

        def zero(data: bytearray, cut: int = cut) -> None:
            data[cut:] = bytes(len(data) - cut)

        yield f"log ends at {cut}", left, shorten
        yield f"log is zero from {cut}", left, zero
    for low, high in itertools.combinations(sorted({durable, *ends[2:]}), 2):  # pages in the middle that never made it
        left = sum(end <= low for end in ends)

        def hole(data: bytearray, low: int = low, high: int = high) -> None:
            data[low + 3 : high - 1] = bytes(high - low - 4)

        yield f"log is zero from {low + 3} to {high - 1}", left, hole


def losses_of_rows() -> Iterator[tuple[str, int, Callable[[Path], None]]]:
    """Ways in which rows may be lost that were not durable: (what, rows that are left, how)."""
    yield "no row", STOPS[-1], lambda path: None
    for row in range(DURABLE, STOPS[-1]):

        def shorten(path: Path, row: int = row) -> None:
            os.truncate(blocks_of(path)[row // 4], row % 4 * ROW_NBYTES)

        def half(path: Path, row: int = row) -> None:
            os.truncate(blocks_of(path)[row // 4], row % 4 * ROW_NBYTES + 1000)

        def zero(path: Path, row: int = row) -> None:
            with blocks_of(path)[row // 4].open("r+b") as file:
                file.seek(row % 4 * ROW_NBYTES)
                file.write(bytes(ROW_NBYTES))

        yield f"block ends at row {row}", row, shorten
        yield f"block ends in row {row}", row, half
        yield f"row {row} is zero", row, zero
    yield "a block is missing", 8, lambda path: blocks_of(path)[2].unlink()
    yield "a block is empty", 8, lambda path: os.truncate(blocks_of(path)[2], 0)

    def both(path: Path) -> None:
        blocks_of(path)[2].unlink()
        os.truncate(blocks_of(path)[1], 3 * ROW_NBYTES)

    yield "a block is missing and another short", 7, both


@pytest.mark.slow
def test_after_a_power_loss_the_longest_intact_prefix_is_served_and_then_built_on(
    fresh: Callable[[], Path], template: Path
) -> None:
    seen = set()
    for (log, commits, lose_log), (block, kept, lose_rows) in itertools.product(
        [("log is whole", len(COMMITS), lambda data: None), *losses_of_the_log(template)], losses_of_rows()
    ):
        path = fresh()
        lose_rows(path)
        rewrite(manifest_of(path), lose_log)
        expected = max(stop for stop in STOPS[: commits + 1] if stop <= max(kept, DURABLE))
        what = f"{log}, {block}: {expected} rows"
        seen.add(expected)
        before = photograph(path)
        with open_blob(path) as reader:
            assert numbers(reader[:]) == list(range(expected)), what
            assert reader.durable_rows in (0, DURABLE), "the mark may be lost with the rest"
            assert photograph(path) == before, "a reader repairs in memory only"
            assert not reader.refresh() and numbers(reader[:]) == list(range(expected)), "what was cut stays cut"
            with open_blob(path, "r+") as writer:
                assert numbers(writer[:]) == list(range(expected)), what
                assert (writer.history, writer.snapshot.cut_after(0)) == (1 << 20, expected), what
                assert writer.durable_rows == expected, "what recovery keeps, it makes durable"
                assert not reader.refresh() or reader.history == 1 << 20
                writer.seek(0, 2)
                writer.write(rows(100, 101))
                assert reader.refresh(), what
                assert numbers(reader[:]) == [*range(expected), 100, 101], what
        assert stored(path) == [*range(expected), 100, 101], what
        shutil.rmtree(path)
    assert seen == {6, 9, 11, 12}


def test_a_power_loss_begins_a_new_history_even_if_no_trace_of_the_lost_rows_is_left(fresh: Callable[[], Path]) -> None:
    """Rows that were seen may be gone with the pages that told of them; who resumes must not take others for them."""
    for ends_after in ("durable", "tail"):
        path = fresh()
        log = log_of(path)
        durable = next(place for place, (_, edit) in enumerate(log) if edit[0][0] == "durable")
        os.truncate(manifest_of(path), log[durable + (ends_after == "durable")][0])
        with open_blob(path, "a") as writer:
            assert (len(writer), writer.history, writer.snapshot.cut_after(0)) == (6, 1 << 20, 6)
    path = fresh()  # torn just behind the mark: rows behind it were visible
    os.truncate(manifest_of(path), log_of(path)[durable + 1][0] + 20)
    with open_blob(path, "a") as writer:
        assert (len(writer), writer.history, writer.snapshot.cut_after(0)) == (6, 1 << 20, 6)


def test_positions_from_before_a_power_loss_know_what_was_cut(fresh: Callable[[], Path]) -> None:
    path = fresh()
    rewrite(manifest_of(path), lambda data: data.__delitem__(slice(len(data) - 10, None)))
    references = {stop: (os.fspath(path), read_schema(path)["uuid"], 0, 0, stop) for stop in (6, 11, 12)}
    with open_blob(path, "a") as writer:
        writer.write(rows(100, 101))
    from tensorblob.blob import _reopen

    for stop in (6, 11):
        with _reopen(references[stop], 0, None, None) as reader:
            assert numbers(reader[:]) == list(range(stop))
    with pytest.raises(tb.HistoryRewritten):
        _reopen(references[12], 0, None, None)


def test_the_background_can_lose_nothing_that_was_durable(fresh: Callable[[], Path]) -> None:
    """All that was not synced is gone at once: the log from the mark's end, every block from the first such row."""
    path = fresh()
    log = log_of(path)
    durable = next(place for place, (_, edit) in enumerate(log) if edit[0][0] == "durable")
    os.truncate(manifest_of(path), log[durable][0])  # the mark itself need not survive
    blocks_of(path)[2].unlink()
    os.truncate(blocks_of(path)[1], 2 * ROW_NBYTES)
    assert stored(path) == list(range(6))
    open_blob(path, "a").close()
    assert stored(path) == list(range(6))


@pytest.mark.parametrize("mode", ["r", "a"])
def test_damage_below_a_durable_mark_is_corrupt_and_nothing_is_repaired(fresh: Callable[[], Path], mode: str) -> None:
    path = fresh()
    manifest = manifest_of(path)
    data = manifest.read_bytes()
    log = log_of(path)
    ((mark, claimed),) = [(offset, edit[0][1]) for offset, edit in log if edit[0][0] == "durable"]
    assert claimed == mark
    starts = [offset for offset, _ in log]
    step = 1 if mode == "r" else 7
    damages: list[tuple[int, int, bytes]] = [(at, at + 1, bytes([data[at] ^ 2])) for at in range(0, claimed, step)]
    damages += [
        (low, high, bytes(high - low)) for low, high in itertools.combinations(starts[: starts.index(mark) + 1], 2)
    ]
    damages += [(at, claimed, bytes(claimed - at)) for at in range(1, claimed, 5 * step)]
    for low, high, other in damages:
        rewrite(manifest, lambda now, low=low, high=high, other=other: now.__setitem__(slice(low, high), other))
        with pytest.raises(tb.Corrupt) as caught:
            open_blob(path, mode)
        assert caught.value.path.endswith(manifest.name), (low, high)
        assert caught.value.offset == max(start for start in starts if start <= low), (low, high)
        rewrite(manifest, lambda now: now.__setitem__(slice(None), data))
    assert stored(path) == list(range(12))


@pytest.mark.parametrize("damage", ["missing", "empty", "short"])
def test_a_lost_block_of_durable_rows_is_corrupt_and_no_shorter_blob(
    fresh: Callable[[], Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was durable cannot have been lost with the power. Who cut it off would hide that the disk is failing."""
    path = fresh()
    block = blocks_of(path)[0]
    if damage == "missing":
        block.unlink()
    else:
        os.truncate(block, 0 if damage == "empty" else 2 * ROW_NBYTES)
    with open_blob(path) as reader:
        assert len(reader) == 12 and numbers(reader[4:]) == list(range(4, 12))
        for row in (0, 3):
            with pytest.raises(tb.Corrupt) as caught:
                reader[row]
            assert caught.value.path.endswith(block.name)
    with contextlib.suppress(tb.Corrupt), open_blob(path, "a") as writer:
        assert len(writer) == 12
    with open_blob(path) as reader:
        assert len(reader) == 12


def test_a_flipped_bit_after_the_mark_is_a_torn_tail_after_a_power_loss(fresh: Callable[[], Path]) -> None:
    path = fresh()
    manifest = manifest_of(path)
    data = manifest.read_bytes()
    log = log_of(path)
    (mark,) = [offset for offset, edit in log if edit[0][0] == "durable"]
    stops = [*(offset for offset, _ in log[1:]), len(data)]
    commits = [stop for stop, (_, edit) in zip(stops, log, strict=True) if edit[0][0] in ("tail", "grow")]
    for position in range(mark, len(data)):
        rewrite(manifest, lambda now, position=position: now.__setitem__(position, data[position] ^ 1))
        assert stored(path) == list(range(STOPS[sum(stop <= position for stop in commits)])), position
        rewrite(manifest, lambda now: now.__setitem__(slice(None), data))


def test_no_rows_are_trusted_that_another_machine_wrote_since_its_last_mark(template: Path, tmp_path: Path) -> None:
    """Without a reboot: a copy lies on another inode, so nothing is known about what of it had been written when."""
    path = Path(shutil.copytree(template, tmp_path / "x.blob"))
    os.truncate(blocks_of(path)[2], ROW_NBYTES)
    assert stored(path) == list(range(9))


def test_no_rows_are_trusted_where_boots_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reboot(monkeypatch, "")
    path = tmp_path / "x.blob"
    with tb.TensorBlob.open(path, "w", dtype="float32", shape=SHAPE, block_size=4) as writer:
        writer.write(rows(0, 1, 2, 3, 4))
        writer.flush()
        writer.write(rows(5))
        shutil.copyfile(manifest_of(path), tmp_path / "manifest")
    shutil.copyfile(tmp_path / "manifest", manifest_of(path))  # the same file, as its writer left it when it was killed
    last = blocks_of(path)[-1]
    rewrite(last, lambda data: data.__setitem__(slice(ROW_NBYTES, ROW_NBYTES + 9), bytes(9)))
    assert stored(path) == [0, 1, 2, 3, 4]


def test_each_column_counts_and_the_shortest_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"a": ("float32", SHAPE), "b": ("int64", (512,))}

    def batch(*values: int) -> dict[str, torch.Tensor]:
        return {"a": rows(*values), "b": torch.tensor(values)[:, None].expand(-1, 512)}

    with open_blob(tmp_path / "live.blob", "w", schema=schema, block_rows=4) as writer:
        for commit in COMMITS:
            writer.write(batch(*commit))
        shutil.copytree(tmp_path / "live.blob", tmp_path / "template.blob")
    reboot(monkeypatch)
    for a, b in itertools.product(range(13), (0, 5, 9, 12)):
        path = Path(shutil.copytree(tmp_path / "template.blob", tmp_path / f"{a}-{b}.blob"))
        for name, left in (("a", a), ("b", b)):
            for place, block in enumerate(
                sorted((path / "blocks" / name).iterdir(), key=lambda p: int(p.name.split("-")[1]))
            ):
                os.truncate(block, min(max(left - 4 * place, 0), 4) * ROW_NBYTES)
        expected = max(stop for stop in STOPS if stop <= min(a, b))
        for _ in range(2):
            with open_blob(path) as reader:
                found = reader[:]
                assert numbers(found["a"]) == found["b"][:, 0].tolist() == list(range(expected))
            with open_blob(path, "a") as writer:
                assert writer.history == 1 << 20


# ---- every other change


def states_of(path: Path) -> tuple[list[list[int]], list[Callable[[tb.TensorBlob], object]]]:
    """What a blob holds after each of these changes, none of them durable."""
    create(path.with_suffix(".other"), 6)
    changes: list[Callable[[tb.TensorBlob], object]] = [
        lambda blob: blob.write(rows(0, 1, 2, 3, 4, 5)),
        lambda blob: (blob.seek(1), blob.write(rows(50, 51))),
        lambda blob: blob.truncate(4),
        lambda blob: blob.write(rows(6, 7, 8)),
        lambda blob: blob.trim(2),
        lambda blob: blob.extend(path.with_suffix(".other")),
        lambda blob: blob.write(rows(9)),
        lambda blob: blob.extend(path.with_suffix(".other"), maintain_order=False),
        lambda blob: (blob.seek(2), blob.write(rows(60))),
    ]
    return [], changes


@pytest.mark.slow
def test_whatever_was_lost_of_any_changes_what_is_found_is_a_state_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "live.blob"
    states, changes = states_of(path)
    with open_blob(path, "w+", dtype="float32", shape=SHAPE, block_rows=4) as blob:
        blob.flush()
        states.append([])
        for change in changes:
            change(blob)
            states.append(numbers(blob[:]))
        shutil.copytree(path, tmp_path / "template.blob")
    reboot(monkeypatch)
    template = tmp_path / "template.blob"
    blocks = [block.name for block in (template / "blocks" / "data").iterdir()]
    assert len(blocks) > 6
    size, starts = manifest_of(template).stat().st_size, [offset for offset, _ in log_of(template)][1:]
    found = set()

    def lose(path: Path, losses: list[tuple[str, str]], cut: int) -> None:
        os.truncate(manifest_of(path), cut)
        for block, how in losses:
            file = path / "blocks" / "data" / block
            if how == "missing":
                file.unlink()
            elif how == "short":
                os.truncate(file, file.stat().st_size // 2)
            else:
                with file.open("r+b") as opened:
                    opened.seek(-ROW_NBYTES, 2)
                    opened.write(bytes(ROW_NBYTES))

    losses = [[(block, how)] for block in blocks for how in ("missing", "short", "zero")]
    losses += [[(one, "missing"), (two, "zero")] for one, two in itertools.permutations(blocks, 2)]
    cases = [*((loss, size) for loss in losses), *(([], cut) for cut in (*starts[1:], size, size - 3))]
    cases += [(loss, starts[-3]) for loss in losses[:30]]
    for number, (loss, cut) in enumerate(cases):
        path = Path(shutil.copytree(template, tmp_path / f"{number}.blob"))
        lose(path, loss, cut)
        state = stored(path)
        assert state in states, (loss, cut)
        found.add(states.index(state))
        with open_blob(path, "a") as writer:
            writer.write(rows(1000))
        assert stored(path) == [*state, 1000], (loss, cut)
        shutil.rmtree(path)
    assert len(found) > 5


# ---- copies and links


def test_a_copy_taken_of_a_live_blob_is_a_prefix_and_goes_its_own_way(tmp_path: Path) -> None:
    path = tmp_path / "live.blob"
    with open_blob(path, "w+", dtype="float32", shape=SHAPE, block_rows=4) as writer:
        for count in range(1, 12):
            manifest_early = manifest_of(path).read_bytes()
            shutil.copytree(path / "blocks", tmp_path / f"blocks-{count}")
            writer.write(rows(count - 1))
            for order in ("manifest first", "blocks first", "at once"):
                copied = Path(shutil.copytree(path, tmp_path / f"{order} {count}.blob"))
                if order == "manifest first":
                    manifest_of(copied).write_bytes(manifest_early)
                if order == "blocks first":
                    shutil.rmtree(copied / "blocks")
                    shutil.copytree(tmp_path / f"blocks-{count}", copied / "blocks")
                expected = list(range(count if order == "at once" else count - 1))
                assert stored(copied) == expected
                with open_blob(copied, "a") as other:
                    other.write(rows(500))
                assert stored(copied) == [*expected, 500]
        assert numbers(writer[:]) == list(range(11))
    assert stored(path) == list(range(11))


def files_of(path: Path) -> dict[str, bytes]:
    return {block.name: block.read_bytes() for block in blocks_of(path)}


def test_a_tail_is_continued_in_its_own_file_by_the_next_writer_of_the_same_boot(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    before = files_of(path)
    with open_blob(path, "a") as writer:
        writer.write(rows(6))
    assert len(before) == 2 and files_of(path).keys() == before.keys()
    assert stored(path) == list(range(7))


@pytest.mark.parametrize("why", ["another boot", "a second link", "a copied blob", "a cut", "a short file"])
def test_a_tail_is_sealed_as_it_is_after(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "x.blob", 6)
    held = tmp_path / "held.blob"
    if why == "another boot":
        reboot(monkeypatch)
    elif why == "a second link":
        os.link(blocks_of(path)[1], tmp_path / "link")
    elif why == "a copied blob":
        with open_blob(path) as reader:
            reader.copy(held)
    elif why == "a cut":
        with open_blob(path, "a") as writer:
            writer.write(rows(6, 7, 8))
            writer.truncate(6)
    before = files_of(path)
    tail = blocks_of(path)[1]
    if why == "a short file":
        os.truncate(tail, ROW_NBYTES)
        before = files_of(path)
    with open_blob(path, "a") as writer:
        writer.write(rows(60))
    after = files_of(path)
    assert {name: after[name] for name in before if name in after} == {n: b for n, b in before.items() if n in after}
    assert tail.name in after and len(set(after) - set(before)) == 1, "rows went on in a new block"
    if why != "a short file":
        assert stored(path) == [0, 1, 2, 3, 4, 5, 60]
    if why == "a copied blob":
        assert stored(held) == [0, 1, 2, 3, 4, 5]
        with open_blob(held, "a") as writer:
            writer.write(rows(70))
        assert stored(held) == [0, 1, 2, 3, 4, 5, 70] and stored(path) == [0, 1, 2, 3, 4, 5, 60]


def test_a_tree_of_hard_links_is_two_blobs_whoever_writes_next(tmp_path: Path) -> None:
    """`cp -al`, as backup tools do: what is written to one must not show, nor be missing, in the other."""
    path = create(tmp_path / "x.blob", 6)
    linked = Path(shutil.copytree(path, tmp_path / "linked.blob", copy_function=os.link))
    for one, other in ((path, linked), (linked, path)):
        mine, theirs = stored(one), stored(other)
        with open_blob(one, "a") as writer:
            writer.write(rows(100, 101, 102))
            assert stored(other) == theirs
        assert stored(one) == [*mine, 100, 101, 102] and stored(other) == theirs


def test_a_copy_is_another_blob(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    with open_blob(path) as reader:
        reader.copy(tmp_path / "copy.blob")
    assert read_schema(path)["uuid"] != read_schema(tmp_path / "copy.blob")["uuid"]


# ---- what dead writers leave behind


def test_garbage_of_dead_producers_is_removed_and_that_of_live_ones_is_not(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    data = path / "blocks" / "data"
    live = (path / "producers" / "aaaa").open("wb")
    fcntl.flock(live, fcntl.LOCK_EX)
    (path / "producers" / "dddd").touch()
    for name in ("aaaa-1", "aaaa-2", "dddd-1", "dddd-99", "eeee-1"):
        (data / name).write_bytes(b"rows that no edit names")
    named = {block.name for block in blocks_of(path)} - {"aaaa-1", "aaaa-2", "dddd-1", "dddd-99", "eeee-1"}
    with open_blob(path, "a") as writer:
        writer.write(rows(6))
        assert {block.name for block in data.iterdir()} == named | {"aaaa-1", "aaaa-2"}
        assert (path / "producers" / "aaaa").exists() and not (path / "producers" / "dddd").exists()
        assert len(list((path / "producers").iterdir())) == 2
    live.close()
    with open_blob(path, "a"):
        assert {block.name for block in data.iterdir()} == named
    assert list((path / "producers").iterdir()) == []
    assert stored(path) == list(range(7))


def test_what_is_no_block_is_none_of_our_business(tmp_path: Path) -> None:
    """A note of the owner, a directory of some tool, a file system's own: neither removed nor in the way."""
    path = create(tmp_path / "x.blob", 6)
    data = path / "blocks" / "data"
    (path / "producers" / "dddd").touch()
    (data / "dddd-1").touch()
    (data / "NOTES.txt").write_text("keep me")
    (data / ".nfs000000001").write_text("held open elsewhere")
    (data / "lost+found").mkdir()
    (path / "producers" / "lost+found").mkdir()
    with open_blob(path, "a") as writer:
        writer.write(rows(6))
    assert {"NOTES.txt", ".nfs000000001", "lost+found"} <= {found.name for found in data.iterdir()}
    assert not (data / "dddd-1").exists()
    assert stored(path) == list(range(7))


def test_torn_hidden_files_mean_nothing(tmp_path: Path) -> None:
    path = create(tmp_path / "x.blob", 6)
    with open_blob(path, "a") as writer:
        writer.write(rows(6))
    data = manifest_of(path).read_bytes()
    (path / ".manifest.000002").write_bytes(data[: len(data) // 2])
    (path / ".manifest.000009").write_bytes(b"")
    (path / "producers" / ".dddd").touch()
    (tmp_path / ".x.blob.12345678.new").mkdir()
    (tmp_path / ".x.blob.12345678.new" / "schema.json").write_text("{")
    assert stored(path) == list(range(7))
    with open_blob(path, "r+") as writer:
        assert not list(path.glob(".*")), "what a dead producer left is cleaned up"
        (path / ".manifest.000002").write_bytes(data[: len(data) // 2])
        writer.truncate(3)
        writer.compact()  # a new generation, under the name that a torn one has
        assert numbers(writer[:]) == [0, 1, 2]
    assert stored(path) == [0, 1, 2] and manifest_of(path).name == "manifest.000002"
    assert not (path / "producers" / ".dddd").exists()


def test_blobs_whose_building_was_cut_short_are_removed_by_the_next_build_there(tmp_path: Path) -> None:
    (tmp_path / ".x.blob.12345678.new" / "blocks").mkdir(parents=True)
    (tmp_path / ".x.blob.87654321.gone" / "blocks").mkdir(parents=True)
    (tmp_path / ".other.blob.12345678.new").mkdir()
    (tmp_path / ".x.blob.bak").mkdir()
    create(tmp_path / "x.blob")
    assert sorted(found.name for found in tmp_path.iterdir()) == [".other.blob.12345678.new", ".x.blob.bak", "x.blob"]


def test_a_recovery_that_is_cut_short_anywhere_is_begun_again(
    fresh: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = put_between(monkeypatch, tmp_path)
    for nth in itertools.count():
        path = fresh()
        blocks_of(path)[2].unlink()
        with disk.failing(nth, lasting=True) as fault:  # as if it died there: no later act reaches the disk either
            try:
                writer = open_blob(path, "a")
            except (tb.BlobError, OSError):
                pass
            else:
                try:
                    writer.close()
                except (tb.BlobError, OSError):
                    assert fault.fired
        assert stored(path) == list(range(6))
        with open_blob(path, "a") as writer:
            assert (writer.history, writer.snapshot.cut_after(0)) in [(1 << 20, 6), (2 << 20, 6)]
            writer.write(rows(100))
        assert stored(path) == [*range(6), 100]
        assert list((path / "producers").iterdir()) == []
        assert not list(path.glob(".manifest.*"))
        if not fault.fired:
            break
    assert nth > 10


def test_a_producers_file_says_who_it_is_and_is_locked_before_anybody_can_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "x.blob")
    disk = put_between(monkeypatch, tmp_path)

    def is_locked(producer: Path) -> bool:
        with producer.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def check(act: Act) -> None:
        if act.kind == "rename" and "/producers/" in act.target:
            assert is_locked(tmp_path / act.path)

    disk.watch = check
    with open_blob(path, "a"):
        (producer,) = (path / "producers").iterdir()
        assert json.loads(producer.read_text())["pid"] == os.getpid()
        assert is_locked(producer)
