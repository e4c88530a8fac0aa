"""Tests of fast paths run with all of them, whatever the environment says."""

from collections.abc import Iterator

import pytest

from unveil.blocks.fast import choose


@pytest.fixture(autouse=True)
def all_fast_paths() -> Iterator[None]:
    with choose.turned_off():
        yield
