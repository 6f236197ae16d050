"""What every test may ask for."""

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests that are marked `anyio` run on both."""
    return str(request.param)
