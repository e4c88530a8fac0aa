"""A finding holds, does not hold, or cannot be told: by made-up numbers of every outcome."""

import math
from statistics import mean, variance

import pytest
from scipy.stats import spearmanr, t

from unveil.reports.findings import Ahead, BestAmong, Claim, Faster, RaisesMore, difference, judge_finding
from unveil.reports.rank_correlation import rank_correlation

HIGH, LOW, MIDDLE = [0.70, 0.71, 0.69], [0.50, 0.51, 0.49], [0.60, 0.72, 0.66]


def cells(**scores: list[float]) -> dict[str, dict[str, list[float]]]:
    return {label: {"linear": values} for label, values in scores.items()}


def test_the_interval_is_that_of_the_t_test() -> None:
    found = difference(HIGH, LOW, None)
    pooled = (variance(HIGH) + variance(LOW)) / 2
    assert found.value == pytest.approx(mean(HIGH) - mean(LOW))
    assert found.margin == pytest.approx(t.ppf(0.975, 4) * math.sqrt(pooled * 2 / 3))
    assert difference(HIGH, LOW, 100).margin > found.margin  # the choice of 100 images adds to it
    wide = difference([1.0, 0.0], [0.0, 1.0], 12)
    assert wide.margin == 1
    assert wide.interval() == "-100.0 to +100.0"  # accuracies cannot differ by more


@pytest.mark.parametrize(
    ("first", "second", "answer", "start"),
    [
        (HIGH, LOW, "holds", 'The finding holds here: "a" is 20.0 points ahead of "b" by linear probe (+17.7 to +22.3).'),
        (LOW, HIGH, "fails", 'The finding does not hold here: "a" is 20.0 points behind "b" by linear probe (-22.3 to -17.7).'),
        (HIGH, MIDDLE, "open", 'Whether the finding holds cannot be told from 3 seeds: the difference between "a" and "b" by'),
        (HIGH[:1], LOW[:1], "open", "Whether the finding holds cannot be told from 1 seed: there is only one result for a"),
        ([], LOW, "open", "Whether the finding holds cannot be told from 3 seeds: there is no result for a (linear probe)"),
    ],
)
def test_one_cell_ahead_of_another(first: list[float], second: list[float], answer: str, start: str) -> None:
    found = judge_finding([Ahead("a", "b")], cells(a=first, b=second), {})
    assert found.answer == answer
    assert found.reason.startswith(start)
    if first is MIDDLE or second is MIDDLE:
        assert "which includes 0" in found.reason


def test_two_accuracies_of_one_cell() -> None:
    numbers = {"all labels": {"finetune": HIGH, "scratch": LOW}}
    found = judge_finding([Ahead("all labels", "all labels", "finetune", "scratch")], numbers, {})
    assert found.reason == (
        "The finding holds here: with all labels, fine-tuning is 20.0 points ahead of training from scratch (+17.7 to +22.3)."
    )


def test_a_finding_fails_with_one_claim_and_holds_with_all() -> None:
    numbers = cells(a=HIGH, b=LOW, c=MIDDLE)
    claims: dict[str, Claim] = {"holds": Ahead("a", "b"), "fails": Ahead("b", "a"), "open": Ahead("a", "c")}
    for names, answer in [
        (("holds", "holds"), "holds"),
        (("holds", "open"), "open"),
        (("holds", "open", "fails"), "fails"),
        ((), "open"),
    ]:
        assert judge_finding([claims[name] for name in names], numbers, {}).answer == answer


def test_step_times() -> None:
    def timed(fast: list[float], slow: list[float]) -> str:
        numbers = {"a": {"step": fast}, "b": {"step": slow}}
        return judge_finding([Faster("a", "b")], numbers, {}).reason

    assert (
        timed([10.0, 10.1, 9.9], [30.0, 30.2, 29.8]) == 'The finding holds here: a step of "a" is 3.00 times as fast as one of "b".'
    )
    assert 'does not hold here: a step of "a" takes 3.00 times as long' in timed([30.0, 30.2, 29.8], [10.0, 10.1, 9.9])
    assert "cannot be told" in timed([0.010, 0.012, 0.011], [0.011, 0.010, 0.012])


@pytest.mark.parametrize(
    ("linear", "finetune", "answer"),
    [
        ((LOW, HIGH), (HIGH, HIGH), "holds"),
        ((HIGH, HIGH), (LOW, HIGH), "fails"),
        ((LOW, HIGH), (LOW, HIGH), "open"),
        ((HIGH, HIGH), (HIGH, LOW), "open"),  # fine-tuning falls, and the linear probe may not rise
        ((HIGH, [0.60, 0.61, 0.59]), (HIGH, LOW), "fails"),  # both fall
    ],
)
def test_one_accuracy_rises_more_than_another(
    linear: tuple[list[float], list[float]], finetune: tuple[list[float], list[float]], answer: str
) -> None:
    numbers = {label: {"linear": linear[i], "finetune": finetune[i]} for i, label in enumerate(("1", "8"))}
    found = judge_finding([RaisesMore("1", "8")], numbers, {"linear": 2000, "finetune": 2000})
    assert found.answer == answer
    rises = [100 * (mean(values[1]) - mean(values[0])) for values in (linear, finetune)]
    assert f"linear probe by {rises[0]:+.1f} and fine-tuning by {rises[1]:+.1f} points" in found.reason


def test_the_part_of_a_finding_that_holds_is_said() -> None:
    """The study of epochs said nothing of its seven points, only that the last doubling could not be told."""
    numbers = cells(a=HIGH, b=LOW, c=MIDDLE)
    for other, start in (
        (Ahead("a", "c"), "Whether the finding holds cannot be told"),
        (Ahead("b", "a"), "The finding does not hold here"),
    ):
        found = judge_finding([Ahead("a", "b"), other], numbers, {"linear": 2000})
        part = judge_finding([Ahead("a", "b")], numbers, {"linear": 2000}).reason.removeprefix("The finding holds here: ")
        assert found.reason.startswith(start)
        assert found.reason.endswith(f". A part of it does: {part}")


def test_the_best_cell() -> None:
    claim = BestAmong(("0.6", "0.75"), "a ratio of 0.6 or more", ("0.25",))
    assert judge_finding([claim], cells(**{"0.25": LOW, "0.75": HIGH}), {"linear": 2000}).answer == "holds"
    assert judge_finding([claim], cells(**{"0.25": HIGH, "0.6": LOW}), {"linear": 2000}).answer == "fails"
    tied = judge_finding([claim], cells(**{"0.25": HIGH, "0.6": MIDDLE}), {"linear": 2000})
    assert tied.answer == "open"
    assert tied.reason.endswith("by linear probe, all settings are within chance of each other.")
    assert judge_finding([claim], cells(**{"0.6": HIGH, "0.75": LOW}), {"linear": 2000}).answer == "open"  # nothing to compare with
    for more, others in (
        ({}, "but another setting is within chance of it, 0.25 (66.0 %)."),
        ({"0.75": [0.69, 0.70, 0.70]}, "but 2 others are within chance of it, among them 0.25 (66.0 %)."),
    ):
        open_ = judge_finding([claim], cells(**{"0.1": LOW, "0.25": MIDDLE, "0.6": HIGH, **more}), {"linear": 2000})
        assert open_.answer == "open"
        assert open_.reason.endswith(f": by linear probe, the best is 0.6 (70.0 %), {others}")


def test_a_cell_without_results_may_be_the_best_one() -> None:
    """A ratio of 0.5 with one of three seeds, the highest of all, was left out without a word."""
    every = ("0.1", "0.5", "0.6", "0.75")
    claim = BestAmong(("0.6", "0.75"), "a ratio of 0.6 or more", every)
    found = judge_finding([claim], cells(**{"0.1": LOW, "0.5": [0.80], "0.75": HIGH}), {"linear": 2000})
    assert found.answer == "open"
    assert found.reason.endswith("the best is 0.75 (70.0 %), but there are no results of 2 seeds for 0.5.")  # 0.6 would not matter
    found = judge_finding([claim], cells(**{"0.1": HIGH, "0.5": LOW, "0.6": LOW}), {"linear": 2000})
    assert found.answer == "open"
    assert found.reason.endswith("the best is 0.1 (70.0 %), but there are no results of 2 seeds for 0.75.")
    assert judge_finding([claim], cells(**{"0.1": LOW, "0.5": LOW, "0.75": HIGH}), {"linear": 2000}).answer == "holds"


def test_the_rank_correlation_is_that_of_scipy() -> None:
    paper = [54.6, 58.9, 73.5, 73.5, 66.1]
    ours = [[0.30, 0.31, 0.305], [0.29, 0.33, 0.31], [0.41, 0.40, 0.405], [0.39, 0.43, 0.41], [0.41, 0.36, 0.385]]
    found = rank_correlation(ours, paper)
    assert found is not None
    assert found.value == pytest.approx(spearmanr([mean(cell) for cell in ours], paper).statistic)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < found.value <= found.high <= 1
    assert rank_correlation(ours, paper) == found  # the bootstrap is seeded
    apart = rank_correlation([[0.1, 0.11, 0.12], [0.2, 0.21, 0.22], [0.3, 0.31, 0.32]], [1, 2, 3])
    assert apart == (1.0, 1.0, 1.0, 3)
    assert rank_correlation(ours[:2], paper[:2]) is None
    assert rank_correlation([[0.5]] * 3, [1, 2, 3]) is None
    for few in (1, 2):
        single = rank_correlation([cell[:few] for cell in ours], paper)
        assert single is not None
        assert single.low is None
        assert str(single) == f"{single.value:.2f} (an interval takes 3 seeds), 5 settings"
