"""What a write reads of the caller's memory: exactly the rows it was given, only while it runs, whatever interrupts it."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

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
