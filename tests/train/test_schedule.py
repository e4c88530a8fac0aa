"""The learning rate against its formula."""

import math
from itertools import pairwise

import pytest

from unveil.train.schedule import half_cosine, inverse_sqrt, linear


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 0), (10, 10), (1, 0), (1, 1), (50, 49)])
def test_equals_the_formula(total, warmup):
    for step in range(total):
        cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
        expected = (step + 1) / warmup if step < warmup else cosine
        assert half_cosine(step, total, warmup) == pytest.approx(expected)


def test_shape():
    factors = [half_cosine(step, 200, 20) for step in range(200)]
    assert max(factors) == factors[19] == factors[20] == 1
    assert factors[0] == pytest.approx(1 / 20)
    assert all(b > a for a, b in pairwise(factors[:20]))
    assert all(b < a for a, b in pairwise(factors[20:]))
    assert factors[110] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3  # the last step is not wasted
    assert half_cosine(200, 200, 20) == half_cosine(999, 200, 20) == 0


def test_bert_falls_in_a_line():
    assert [linear(step, 100, 10) for step in (0, 9, 10, 55, 100, 200)] == pytest.approx([0.1, 1, 1, 0.5, 0, 0])
    assert linear(0, 4, 0) == 1


def test_the_transformer_falls_as_one_over_the_root():
    """Section 5.3's formula, with its largest value, 1 / sqrt(width x warmup), as the peak."""
    width, warmup = 512, 4000
    for step in (1, 100, 4000, 4001, 16000):
        formula = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert inverse_sqrt(step - 1, 10**5, warmup) * (width * warmup) ** -0.5 == pytest.approx(formula)
    assert inverse_sqrt(3, 10, 0) == 0.5
