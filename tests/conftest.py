"""What every test may ask for."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401 - trio's generators are registered with it, which does not find them once they are frozen
import pytest
from disk import without_platters


def pytest_collection_finish() -> None:
    """What was imported for the tests is no garbage: who collects need not look through all of torch each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests that are marked `anyio` run on both."""
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a filesystem with room: what is done ten thousand times should not wear a disk."""
    where = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free >= 1 << 30 else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


@pytest.fixture
def no_platters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs return at once."""
    without_platters(monkeypatch)
