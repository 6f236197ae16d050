"""What a write reads of the caller's memory: exactly the rows it was given, only while it runs, whatever interrupts it."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

import tensorblob as tb
from tensorblob import files


@contextmanager
def switching(interval_s: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_that_write_batches_of_different_sizes_through_one_handle_do_not_mix_them(tmp_path: Path) -> None:
    sizes = (1, 3, 200)
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="int64", shape=(2,)) as blob:

        def write(size: int) -> None:
            for _ in range(300):
                blob._writer.append(*blob._batches.columns(torch.full((size, 2), size)))  # type: ignore[union-attr]

        threads = [threading.Thread(target=write, args=(size,)) for size in sizes]
        with switching(1e-6):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rows = blob[:]
        assert isinstance(rows, torch.Tensor)
        assert {size: int((rows == size).all(1).sum()) for size in sizes} == {size: 300 * size for size in sizes}


class TimeIsUp(Exception):
    pass


def test_a_large_write_that_a_signal_handler_ends_has_let_go_of_its_files_when_it_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stray write would land on the rows that are committed next."""
    begun, go_on = threading.Event(), threading.Event()
    write_at = files.write_at

    def slow_write_at(fd: int, data: Any, nbytes: int, offset: int) -> None:
        if nbytes > 1 << 20:
            begun.set()
            go_on.wait()
        write_at(fd, data, nbytes, offset)

    def on_alarm(*_: object) -> None:
        _thread.start_new_thread(go_on.set, ())
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="int64", shape=(1 << 19,)) as blob:
            blob.write(torch.zeros(1, 1 << 19, dtype=torch.int64))
            monkeypatch.setattr(files, "write_at", slow_write_at)
            threading.Thread(target=lambda: begun.wait() and signal.setitimer(signal.ITIMER_REAL, 0.01)).start()
            with pytest.raises(TimeIsUp):
                blob.write(torch.full((4, 1 << 19), 7))
            monkeypatch.setattr(files, "write_at", write_at)
            blob.write(torch.ones(4, 1 << 19, dtype=torch.int64))
            assert len(blob) == 5
            assert [int(blob[i][-1]) for i in range(5)] == [0, 1, 1, 1, 1]  # type: ignore[call-overload]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_second_interrupt_while_the_first_is_cleaned_up_commits_nothing_of_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"a": "int64", "b": "int64"}
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", schema=schema) as blob:
        assert blob._writer is not None
        batch = {"a": torch.arange(2), "b": torch.arange(2)}
        blob.write(batch)
        second = blob._writer._growths[1]
        with monkeypatch.context() as patch:

            def interrupted(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(second, "grow", interrupted)
            patch.setattr(blob._writer, "_restore", interrupted)
            with pytest.raises(KeyboardInterrupt):
                blob.write(batch)
        blob.write(batch)
        assert len(blob) == 4
    with tb.TensorBlob.open(tmp_path / "x.blob") as blob:
        assert blob.select("a")[:]["a"].tolist() == blob.select("b")[:]["b"].tolist() == [0, 1, 0, 1]


def freed() -> torch.Tensor:
    tensor = torch.ones(4, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("is_primed", [False, True])
@pytest.mark.parametrize("make", [freed, lambda: torch._efficientzerotensor((4, 3))], ids=["freed", "zero tensor"])
def test_a_tensor_without_memory_is_refused(tmp_path: Path, make: Any, is_primed: bool) -> None:
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="float32", shape=3) as blob:
        if is_primed:
            blob.write(torch.ones(4, 3))
        before = len(blob)
        with pytest.raises(tb.SchemaMismatch):
            blob.write(make())
        assert len(blob) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x[::2].repeat_interleave(2, 0)[:4],
        lambda x: x[:, :1].expand(4, 3),
        lambda x: torch._neg_view(x),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.as_subclass(torch.nn.Parameter),
        lambda x: torch.complex(x, x).conj().imag,
    ],
    ids=["transposed", "repeated", "expanded", "negated", "with grad", "parameter", "imaginary part"],
)
def test_small_batches_are_what_torch_says_they_are_however_they_lie_in_memory(tmp_path: Path, make: Any) -> None:
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", dtype="float32", shape=3) as blob:
        rows = torch.arange(12.0).reshape(4, 3)
        blob.write(rows)
        given = make(rows)
        blob.write(given)
        assert torch.equal(blob[4:], given.detach().resolve_neg())  # type: ignore[arg-type]


# ---- batches that are taken quickly, since they are like the one before

SEVERAL = {"a": ("float32", (3,)), "b": ("int64", ()), ("c", "d"): ("bool", (2,))}


def _like(value: int, count: int = 2) -> dict[str, Any]:
    rows = {"a": torch.full((count, 3), float(value)), "b": torch.full((count,), value)}
    return rows | {"c": {"d": torch.tensor([[bool(value % 2), True]]).repeat(count, 1)}}


UNLIKE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the same": lambda rows: rows,
    "in another order": lambda rows: dict(reversed(rows.items())),
    "a TensorDict": lambda rows: TensorDict(rows, [2]),
    "one that is nested by names": lambda rows: {"a": rows["a"], "b": rows["b"], ("c", "d"): rows["c"]["d"]},
    "one that is nested by a dot": lambda rows: {"a": rows["a"], "b": rows["b"], "c.d": rows["c"]["d"]},
    "more rows": lambda _: _like(7, 5),
    "a single row": lambda rows: {"a": rows["a"][0], "b": rows["b"][0], "c": {"d": rows["c"]["d"][0]}},
    "no rows": lambda _: _like(7, 0),
    "a column of other length": lambda rows: rows | {"b": rows["b"][:1]},
    "another dtype": lambda rows: rows | {"b": rows["b"].int()},
    "another shape": lambda rows: rows | {"a": rows["a"][:, :2]},
    "a transposed tensor": lambda rows: rows | {"a": torch.arange(6.0).reshape(3, 2).T},
    "an expanded tensor": lambda rows: rows | {"a": torch.arange(3.0).expand(2, 3)},
    "a negated view": lambda rows: rows | {"a": torch._neg_view(rows["a"])},
    "one that carries grad": lambda rows: rows | {"a": rows["a"].clone().requires_grad_()},
    "a parameter": lambda rows: rows | {"a": torch.nn.Parameter(rows["a"])},
    "an array": lambda rows: rows | {"a": rows["a"].numpy()},
    "a list": lambda rows: rows | {"a": rows["a"].tolist()},
    "a sparse tensor": lambda rows: rows | {"a": rows["a"].to_sparse()},
    "a meta tensor": lambda rows: rows | {"a": rows["a"].to("meta")},
    "a zero tensor": lambda rows: rows | {"a": torch._efficientzerotensor((2, 3))},
    "a missing field": lambda rows: {"a": rows["a"], "c": rows["c"]},
    "an unexpected field": lambda rows: rows | {"e": rows["a"]},
    "an unexpected nested field": lambda rows: rows | {"c": rows["c"] | {"e": rows["a"]}},
    "a field twice and another missing": lambda rows: {"a": rows["a"], "c.d": rows["c"]["d"], "c": rows["c"]},
    "a name that is none": lambda rows: rows | {3: rows["a"]},
    "None": lambda rows: rows | {"a": None},
    "no dict": lambda rows: list(rows.items()),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_a_batch_that_follows_others_is_taken_as_if_it_were_the_first(tmp_path: Path, unlike: str) -> None:
    def outcome(name: str, before: int) -> Any:
        with tb.TensorBlob.open(tmp_path / name, "w+", schema=SEVERAL) as blob:
            for value in range(before):
                blob.write(_like(value))
            count = len(blob)
            try:
                blob.write(UNLIKE[unlike](_like(7)))
            except Exception as error:
                assert len(blob) == count
                return type(error), str(error)
            rows = blob[count:]
            assert len(rows) == len(blob) - count
            return [(name, rows[name].tolist()) for name in ("a", "b", ("c", "d"))]

    assert outcome("after others", 3) == outcome("the first", 0)


def test_what_is_taken_quickly_is_copied(tmp_path: Path) -> None:
    with tb.TensorBlob.open(tmp_path / "x.blob", "w+", schema=SEVERAL) as blob:
        rows = _like(0)
        for value in range(4):
            rows["b"].fill_(value)
            blob.write(rows)
        rows["b"].fill_(9)
        assert blob[:]["b"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
