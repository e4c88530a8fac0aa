"""Tests of blocks run twice: with all fast paths, and with none."""

from collections.abc import Iterator

import pytest

from unveil.blocks.fast import choose


@pytest.fixture(params=["fast", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """All fast paths on, or all off, whatever the environment says."""
    with choose.turned_off(*(choose.NAMES if request.param == "plain" else ())):
        yield request.param
