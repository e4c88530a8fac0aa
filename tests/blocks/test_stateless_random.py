"""Random numbers as a pure function: the same for ever, however the batch is cut, and evenly spread."""

import numpy as np
import pytest
import torch
from scipy import stats

from unveil.blocks.stateless_random import Stream, combine, mix, sample_keys, uniform


def slow_mix(x: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> shift
        x = x * factor % 2**32
    return x ^ (x >> 16)


def slow_combine(key: int, value: int) -> int:
    return slow_mix((slow_mix(key % 2**32) + 0x9E3779B9 + value % 2**32) % 2**32)


def test_mix_and_combine_equal_plain_integers():
    values = [0, 1, 2, 12345, 2**31, 2**32 - 1]
    assert mix(torch.tensor(values)).tolist() == [slow_mix(v) for v in values]
    keys = [0, 7, 2**40 + 3, -5, 2**63 - 1]
    for value in (0, 1, 2**35 + 9, -1):
        assert combine(torch.tensor(keys), value).tolist() == [slow_combine(k, value) for k in keys]
        assert combine(torch.tensor(keys), torch.tensor(value)).tolist() == [slow_combine(k, value) for k in keys]


def test_golden_values():
    """Committed: a change here changes every run's crops and masks, and breaks the resume of old ones."""
    assert sample_keys(0, 0, 4).tolist() == [9053559187601941842, 6047783060358846004, 1166477308431650510, 4905919380435209014]
    assert sample_keys(2**40 + 7, 2**33, 2).tolist() == [532987547774734345, 3550384351570715544]
    drawn = uniform(sample_keys(0, 0, 2), 3, stream=1) * 2**24
    assert drawn.tolist() == [[13906351, 3235094, 11722290], [14724658, 15762764, 10536679]]


def test_keys_do_not_depend_on_how_the_batch_is_cut():
    whole = sample_keys(3, 0, 10)
    assert torch.equal(whole, torch.cat([sample_keys(3, 0, 5), sample_keys(3, 5, 5)]))
    drawn = uniform(whole, 7, stream=2)
    assert torch.equal(drawn, torch.cat([uniform(whole[:4], 7, stream=2), uniform(whole[4:], 7, stream=2)]))
    assert torch.equal(uniform(whole.flip(0), 7, stream=2), drawn.flip(0))
    assert torch.equal(uniform(whole, 3, stream=2), drawn[:, :3])  # more numbers do not move the first ones


@pytest.mark.parametrize(("seed", "first"), [(1, 0), (2**32, 0), (0, 1000), (0, 2**32)])
def test_other_seeds_and_other_places_have_other_keys(seed, first):
    assert not set(sample_keys(0, 0, 1000).tolist()) & set(sample_keys(seed, first, 1000).tolist())


def test_no_two_of_a_million_samples_share_a_key():
    keys = sample_keys(5, 0, 1_000_000)
    assert len(torch.unique(keys)) == 1_000_000
    assert keys.min() >= 0


@pytest.mark.parametrize("first", [0, 2**20, 2**32 - 2**18])
def test_mix_is_one_to_one(first):
    x = torch.arange(first, first + 2**18)
    mixed = mix(x)
    assert len(torch.unique(mixed)) == 2**18
    assert mixed.min() >= 0
    assert mixed.max() < 2**32

    def undo(x: torch.Tensor, shift: int) -> torch.Tensor:  # of x ^ (x >> shift)
        y = x
        for _ in range(32 // shift + 1):
            y = x ^ (y >> shift)
        return y

    back = undo(mixed, 16) * pow(0x846CA68B, -1, 2**32) & 0xFFFFFFFF  # the inverse, step by step
    back = undo(back, 15) * pow(0x7FEB352D, -1, 2**32) & 0xFFFFFFFF
    assert torch.equal(undo(back, 16), x)


def test_uniform_is_uniform():
    drawn = uniform(sample_keys(0, 0, 4000), 50, stream=11)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    flat = drawn.flatten().double().numpy()
    n = flat.size
    assert abs(flat.mean() - 0.5) < 4 / np.sqrt(12 * n)
    assert abs(flat.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)
    assert stats.kstest(flat, "uniform").pvalue > 0.001
    assert stats.chisquare(np.bincount((flat * 256).astype(int), minlength=256)).pvalue > 0.001


def test_streams_places_and_samples_are_independent():
    keys = sample_keys(1, 0, 20_000)
    a, b = uniform(keys, 4, stream=1).double(), uniform(keys, 4, stream=2).double()
    columns = torch.cat([a, b, a.roll(1, 0)], dim=1)  # 12 columns: places, streams, the sample before
    assert (torch.corrcoef(columns.T) - torch.eye(12)).abs().max() < 4.5 / np.sqrt(20_000)


def test_the_integers_of_streams_never_change():
    """A resumed run must draw what it would have drawn."""
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == {
        "MASK": 1,
        "REPLACEMENT": 2,
        "GUMBEL_SHIFT": 1,
        "GUMBEL": 2,
        "CROP": 11,
        "FLIP": 12,
        "JITTER": 13,
        "SPAN": 16,
        "VIEW_EVENTS": 21,
        "VIEW_AMOUNTS": 22,
        "SUBSTITUTE": 31,
        "VIEW": 1000,
    }
    keys = sample_keys(0, 0, 5)
    assert torch.equal(uniform(keys, 4, Stream.CROP), uniform(keys, 4, 11))
    assert not torch.equal(uniform(keys, 4, Stream.CROP), uniform(keys, 4, Stream.FLIP))
