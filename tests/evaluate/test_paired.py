"""Gains with intervals: compared with SciPy's paired t-test, with sums by hand, and with simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from unveil.evaluate.paired import first_where, needed, paired_gain, quantile


def simulated(chance: np.random.Generator, seeds: int, images: int, gain: float, of_seeds: float, of_images: float):
    """Which images two classifiers get right. Their logits have effects of seeds, of images, and of both."""
    easy = chance.normal(0, 1.5, images)
    better = easy + chance.normal(gain, of_images, images) + chance.normal(0, of_seeds, (seeds, 1))
    other = easy + chance.normal(0, of_seeds, (seeds, 1))
    logits = np.stack([better, other]) + chance.normal(0, 0.5, (2, seeds, images))
    return chance.random(logits.shape) < 1 / (1 + np.exp(-logits))


def test_with_equal_seeds_it_is_the_paired_t_test_over_images() -> None:
    """With one right and one wrong image more for the variance, whose mean is zero, too."""
    chance = np.random.default_rng(0)
    first, second = chance.random(40) < 0.8, chance.random(40) < 0.5
    found = paired_gain(np.tile(first, (3, 1)), np.tile(second, (3, 1)))
    added = np.concatenate([first.astype(float) - second, [1, -1]])
    error = added.std(ddof=1) / np.sqrt(40)
    half = stats.t.ppf(0.975, 39) * error
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert (found.of_seeds, found.of_both) == pytest.approx((0, 0))


def test_with_equal_images_it_is_the_t_test_over_seeds() -> None:
    """Whole seeds are right or wrong, so all images behave alike, and a t-test of the means of seeds is nearly all there is."""
    first = np.repeat(np.array([[True], [True], [True], [False], [True]]), 5000, axis=1)
    second = np.repeat(np.array([[False], [True], [False], [False], [False]]), 5000, axis=1)
    found = paired_gain(first, second)
    plain = stats.ttest_rel(first.mean(axis=1), second.mean(axis=1)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((plain.low, min(1.0, plain.high)), abs=1e-3)


def test_mean_squares_are_those_of_a_table_by_hand() -> None:
    """Of the two-way layout without repetition (Scheffe, 1959), with loops."""
    first, second = simulated(np.random.default_rng(1), 4, 30, 0.5, 0.3, 0.5)
    difference = first.astype(float) - second
    grand, of_both = difference.mean(), 0.0
    for s in range(4):
        for i in range(30):
            of_both += (difference[s, i] - difference[s].mean() - difference[:, i].mean() + grand) ** 2
    of_both /= 3 * 29
    found = paired_gain(first, second)
    assert found.of_both == pytest.approx(of_both)
    assert found.of_seeds == pytest.approx(max(0, difference.mean(axis=1).var(ddof=1) - of_both / 30))
    assert (found.seeds, found.images) == (4, 30)


def half_by_hand(difference: np.ndarray, added: tuple[float, ...]) -> float:
    """Half of Satterthwaite's interval for differences (S, I), with these images in the variance over images."""
    seeds, images = difference.shape
    by_seed, by_image = difference.mean(axis=1), difference.mean(axis=0)
    rest = sum((difference[s, i] - by_seed[s] - by_image[i] + difference.mean()) ** 2 for s in range(seeds) for i in range(images))
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    variance = [by_seed.var(ddof=1) / seeds, np.append(by_image, added).var(ddof=1) / images, rest / freedom[2] / seeds / images]
    total = max(variance[0] + variance[1] - variance[2], variance[0], variance[1])
    return float(stats.t.ppf(0.975, max(1, total**2 / (np.square(variance) / freedom).sum())) * np.sqrt(total))


def test_the_added_pair_never_narrows_the_interval() -> None:
    """Three seeds that differ, on 200 images with few that only one classifier gets right: the pair adds degrees of freedom."""
    difference = np.zeros((3, 200))
    for seed, count in enumerate((1, 6, 9)):
        difference[seed, 20 * seed : 20 * seed + count] = 1
    found = paired_gain(difference == 1, difference == -1)
    plain, paired = half_by_hand(difference, ()), half_by_hand(difference, (1.0, -1.0))
    over_seeds = stats.t.ppf(0.975, 2) * difference.mean(axis=1).std(ddof=1) / np.sqrt(3)
    assert paired < 0.9 * plain
    assert plain > over_seeds > paired
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((plain, plain))
    chance, wider = np.random.default_rng(9), []
    for _ in range(40):
        first, second = simulated(chance, 3, 60, 0.3, 0.3, 0.0)
        halves = [half_by_hand(first.astype(float) - second, added) for added in ((), (1.0, -1.0))]
        found = paired_gain(first, second)
        assert found.high - found.low == pytest.approx(2 * max(halves))
        wider.append(halves[0] > halves[1])
    assert 0 < sum(wider) < 40


@pytest.mark.parametrize(("seeds", "images", "gain", "of_seeds", "of_images"), [
    (3, 100, 0.0, 0.0, 0.0),
    (3, 500, 0.5, 0.3, 0.5),
    (3, 2000, 0.0, 0.1, 0.5),
    (5, 500, -0.5, 0.3, 1.0),
])  # fmt: skip
def test_intervals_hold_the_truth(seeds: int, images: int, gain: float, of_seeds: float, of_images: float) -> None:
    chance = np.random.default_rng(2)
    many = [simulated(chance, 50, 2000, gain, of_seeds, of_images) for _ in range(30)]
    truth = np.mean([first.mean() - second.mean() for first, second in many])
    found = [paired_gain(*simulated(chance, seeds, images, gain, of_seeds, of_images)) for _ in range(100)]
    assert sum(each.low <= truth <= each.high for each in found) >= 90
    if not gain:
        assert sum(each.sign != 0 for each in found) <= 10


def test_a_clear_gain_is_seen() -> None:
    chance = np.random.default_rng(3)
    signs = [paired_gain(*simulated(chance, 3, 1000, 1.0, 0.02, 0.5)).sign for _ in range(50)]
    assert signs == [1] * 50
    assert paired_gain(*simulated(chance, 3, 1000, -1.0, 0.02, 0.5)).sign == -1


def test_copies_of_an_image_count_as_one() -> None:
    first, second = simulated(np.random.default_rng(4), 3, 50, 0.5, 0.0, 3.0)
    alone = paired_gain(first, second)
    copied = paired_gain(np.repeat(first, 7, axis=1), np.repeat(second, 7, axis=1), np.repeat(np.arange(50) * 3, 7))
    assert copied == pytest.approx(alone)
    first, second = np.tile(first[:1], (3, 7)), np.tile(second[:1], (3, 7))  # all seeds alike
    careful = paired_gain(first, second, np.tile(np.arange(50), 7))
    careless = paired_gain(first, second)
    assert (careful.high - careful.low) / (careless.high - careless.low) == pytest.approx(7**0.5, rel=0.1)


def test_groups_of_different_sizes_keep_the_mean_over_images() -> None:
    first, second = simulated(np.random.default_rng(5), 3, 60, 0.5, 0.1, 0.5)
    groups = np.sort(np.random.default_rng(6).integers(0, 20, 60))
    found = paired_gain(first, second, groups)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.images == len(set(groups))


def test_classifiers_that_are_always_right_differ_by_chance_only() -> None:
    found = paired_gain(np.ones((3, 8), bool), np.ones((3, 8), bool))
    assert found.mean == 0
    assert found.low < -0.1
    assert found.high > 0.1


def test_needed_seeds_and_images_follow_the_formula() -> None:
    first, second = simulated(np.random.default_rng(7), 3, 300, 0.15, 0.15, 0.5)
    gain = paired_gain(first, second)
    assert gain.sign == 0
    asked = needed(gain)

    def half(seeds: int, images: int) -> float:
        both = gain.of_both / seeds / images
        one, two = gain.of_seeds / seeds + both, gain.of_images / images + both
        freedom = (one + two - both) ** 2 / (one**2 / (seeds - 1) + two**2 / (images - 1))
        return stats.t.ppf(0.975, max(1, freedom)) * np.sqrt(one + two - both)

    assert asked.seeds is None or half(asked.seeds, 300) < abs(gain.mean) <= half(asked.seeds - 1, 300)
    assert asked.images is None or half(3, asked.images) < abs(gain.mean) <= half(3, asked.images - 1)
    assert asked.seeds or asked.images


def test_no_number_is_enough_for_no_gain() -> None:
    first, second = simulated(np.random.default_rng(8), 3, 100, 0.0, 0.3, 0.5)
    gain = paired_gain(first, second)._replace(mean=0.0)
    assert needed(gain) == (None, None)


def test_other_shapes_are_refused() -> None:
    right = np.ones((3, 5), bool)
    for first, second in ((right, right[:2]), (right[:1], right[:1]), (right[:, :1], right[:, :1]), (right[0], right[0])):
        with pytest.raises(ValueError, match="at least 2 seeds"):
            paired_gain(first, second)
    with pytest.raises(ValueError, match="2 originals"):
        paired_gain(right, right, np.zeros(5, np.int64))


def test_quantiles_and_searches() -> None:
    assert quantile(2) == pytest.approx(stats.t.ppf(0.975, 2))
    assert quantile(0.1) == pytest.approx(stats.t.ppf(0.975, 1))
    assert first_where(lambda n: n >= 17, 3, 100) == 17
    assert first_where(lambda n: n >= 17, 20, 100) == 20
    assert first_where(lambda n: n > 200, 3, 100) is None
    assert first_where(lambda n: True, 5, 4) is None
