"""The learning rate against its formula."""

import math
from itertools import pairwise

import pytest

from unveil.train.schedule import half_cosine


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 0), (10, 10), (1, 0), (1, 1), (50, 49)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_equals_the_formula(total, warmup, floor):
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        assert half_cosine(step, total, warmup, floor) == pytest.approx(expected)


def test_shape():
    factors = [half_cosine(step, 200, 20) for step in range(200)]
    assert max(factors) == factors[19] == factors[20] == 1
    assert factors[0] == pytest.approx(1 / 20)
    assert all(b > a for a, b in pairwise(factors[:20]))
    assert all(b < a for a, b in pairwise(factors[20:]))
    assert factors[110] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3                                              # the last step is not wasted
    assert half_cosine(200, 200, 20) == half_cosine(999, 200, 20) == 0
    assert half_cosine(200, 200, 20, floor=0.1) == pytest.approx(0.1)
