"""Differences that chance can explain, compared with SciPy and with formulas by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from unveil.reports.chance import accuracy_interval, chance_margin, contenders, within_chance
from unveil.reports.comparison import HELD_OUT_NOTE, NO_TEST_NOTE, comparison_table, comparison_verdict, held_out_note, row_of
from unveil.reports.run_summary import comparisons, summary
from unveil.reports.study_page import Sweep, best_value


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (3, 4), (62, 80), (9990, 10_000)])
def test_the_interval_of_an_accuracy_is_that_of_scipy(correct: int, count: int) -> None:
    wanted = stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert accuracy_interval(correct / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(("first", "second", "count"), [(1, 0, 1), (7, 4, 10), (1420, 1400, 2000)])
def test_the_margin_on_one_seed_is_agresti_and_caffos(first: int, second: int, count: int) -> None:
    p, q = (first + 1) / (count + 2), (second + 1) / (count + 2)
    half = 1.959964 * math.sqrt((p * (1 - p) + q * (1 - q)) / (count + 2))
    assert chance_margin([first / count], [second / count], count) == pytest.approx(min(1.0, half * (count + 2) / count))
    assert within_chance([first / count], [second / count], count) == (abs(p - q) <= half)


def test_the_margin_over_seeds_is_that_of_a_two_sample_t_test() -> None:
    first, second = [0.61, 0.64, 0.62], [0.55, 0.60, 0.58]
    interval = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert chance_margin(first, second, None) == pytest.approx((interval.high - interval.low) / 2)
    assert within_chance(first, second, None) == (stats.ttest_ind(first, second).pvalue >= 0.05)


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.95])
def test_equally_good_models_rarely_differ_by_more_than_chance(accuracy: float, count: int) -> None:
    generator = np.random.default_rng(0)
    pairs = generator.binomial(count, accuracy, (2000, 2)) / count
    assert np.mean([not within_chance([a], [b], count) for a, b in pairs.tolist()]) < 0.07


def features(encoder: float, untrained: float, test: int, **more: float) -> dict[str, object]:
    accuracy = {"encoder": {"linear": encoder}, "untrained": {"linear": untrained}}
    return {"features": accuracy, "judged_on": {"train": 100, "test": test, "classes": 2, **more}}


def test_with_one_test_image_nothing_is_ahead_and_the_note_stays() -> None:
    """At d98af96: "100.0 points ahead of raw pixels", and no note."""
    results = features(1.0, 0.0, 1)
    assert "within chance (+100.0 points) of an untrained encoder" in summary(results)
    assert "ahead" not in summary(results)
    assert comparisons(results)[-1].startswith("With 1 test image, differences of up to about ")


def test_few_independent_test_images_count_less() -> None:
    assert "3.0 points ahead" in summary(features(0.73, 0.70, 4000))
    results = features(0.73, 0.70, 4000, independent=1200)
    assert "within chance (+3.0 points)" in summary(results)
    assert "4,000 test images, which are worth 1,200 independent ones" in comparisons(results)[-1]


def test_a_tuned_accuracy_has_an_interval() -> None:
    results = {"score": {"top1": 0.775, "count": 80, "per_class": [0.8, 0.75]}, "primary": "top1"}
    assert "77.5 % on 80 test images (95 % interval: 67.2 to 85.3 %)" in summary(results)


def test_a_comparison_names_no_winner_within_chance() -> None:
    rows = [row_of(name, [{"linear": x}]) for name, x in {"a": 0.468, "b": 0.466, "c": 0.40}.items()]
    rows.append(row_of("untrained", [{"linear": 0.364}], baseline=True))
    assert comparison_verdict(rows, {"linear": 10_000}) == (
        "No winner by linear accuracy: the differences between a 46.8 %, b 46.6 % can be due to chance."
    )
    assert comparison_verdict([rows[0], *rows[2:]], {"linear": 10_000}).startswith(
        "Best by linear accuracy: a with 46.8 %, 6.8 points ahead of c, 10.4 points ahead of an untrained encoder."
    )
    note = "can be due to chance: the choice of 10,000 samples to evaluate on."
    assert any(note in sentence for sentence in comparison_table(rows, "", {"linear": 10_000}).sentences)


def test_seeds_that_differ_more_than_the_methods_name_no_winner() -> None:
    rows = [row_of("a", [{"linear": 0.50}, {"linear": 0.60}]), row_of("b", [{"linear": 0.53}, {"linear": 0.49}])]
    assert comparison_verdict(rows, {"linear": 10**6}).startswith("No winner")


def test_a_study_names_all_values_that_can_be_the_best() -> None:
    rows = [row_of(str(x), [{"linear": y}]) for x, y in ((0.25, 0.40), (0.5, 0.466), (0.75, 0.468))]
    sweep = Sweep("mae", "mask_ratio", [0.25, 0.5, 0.75], rows, [], {"linear": 10_000})
    assert best_value(sweep, "linear") == (
        "linear: no best mask ratio; the differences between 0.75 (46.8 %), 0.5 (46.6 %) can be due to chance."
    )
    assert best_value(sweep._replace(test_counts={"linear": 10**7}), "linear") == (
        "linear: best at mask ratio 0.75, with 46.8 %; the worst value is 6.8 points lower."
    )


def test_contenders_are_in_order() -> None:
    assert contenders({"a": [0.5], "b": [0.9], "c": [0.89], "d": []}, 100) == ["b", "c"]


@pytest.mark.parametrize(
    ("splits", "note"),
    [
        ({}, NO_TEST_NOTE),
        ({"train": ["train"], "test": ["val"]}, NO_TEST_NOTE),
        ({"train": ["train"], "test": ["val"], "unused": ["unlabeled"]}, NO_TEST_NOTE),
        ({"train": ["train"], "test": ["val"], "unused": ["testing"]}, HELD_OUT_NOTE),
    ],
)
def test_a_comparison_knows_whether_a_test_set_is_left(splits, note, tmp_path):
    (tmp_path / "mae-seed0").mkdir()
    data = {"name": "photos", "count": 10} | ({"splits": splits} if splits else {})
    (tmp_path / "mae-seed0" / "run.json").write_text(json.dumps({"kind": "pretrain", "config": {}, "data": data}))
    assert held_out_note([tmp_path / "mae-seed0"]) == note
