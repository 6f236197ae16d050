"""What every test may ask for."""

import pytest
from disk import without_platters


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests that are marked `anyio` run on both."""
    return str(request.param)


@pytest.fixture
def no_platters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs return at once."""
    without_platters(monkeypatch)
