"""What every test may ask for."""

import gc

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
def no_platters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs return at once."""
    without_platters(monkeypatch)
