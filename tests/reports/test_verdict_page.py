"""The sentence of a verdict for each answer, and the page."""

from pathlib import Path

import pytest

from unveil.evaluate.paired import Gain
from unveil.reports.verdict_page import verdict_tables, write_verdict_page
from unveil.reports.verdict_results import (
    FINETUNED,
    LINEAR,
    OWN,
    RAW,
    SCRATCH,
    UNTRAINED,
    Accuracies,
    GainOver,
    VerdictResults,
    points_of,
    verdict_sentence,
)


def gain(mean: float, margin: float) -> Gain:
    return Gain(mean, mean - margin, mean + margin, of_seeds=1e-4, of_images=0.5, of_both=0.1, seeds=3, images=400)


def results(*gains: Gain, how: str = FINETUNED, model: str = SCRATCH) -> VerdictResults:
    counts = (25, 250, 2500)[: len(gains)]
    accuracies = [Accuracies(name, how, count, [0.5, 0.6, 0.7]) for name in (OWN, model) for count in counts]
    over = [GainOver(model, how, count, each) for count, each in zip(counts, gains, strict=True)]
    return VerdictResults("runs/cells", 2500, 400, accuracies, over, [])


@pytest.mark.parametrize(
    ("gains", "answer", "said"),
    [
        ((gain(0.08, 0.02), gain(0.03, 0.01)), "yes", "Yes, pre-training paid off: +8.0 points (95 % interval +6.0 to +10.0)"),
        ((gain(0.08, 0.02), gain(0.01, 0.03)), "yes", "with some numbers of labels"),
        ((gain(-0.08, 0.02), gain(0.01, 0.03)), "no", "No, pre-training did not pay off with some numbers of labels: -8.0 points"),
        ((gain(-0.08, 0.02), gain(0.08, 0.03)), "depends", "It depends on the number of labels"),
        ((gain(0.01, 0.02), gain(-0.01, 0.03)), "cannot tell", "cannot tell whether pre-training paid off"),
    ],
)
def test_the_answer_follows_from_the_intervals(gains: tuple[Gain, ...], answer: str, said: str) -> None:
    found = results(*gains)
    assert found.answer == answer
    sentence = verdict_sentence(found)
    assert said in sentence
    assert "25 labels (1 %)" in sentence
    assert ("would be needed" in sentence) == any(each.sign == 0 for each in gains)
    assert found.to_json()["answer"] == answer


def test_all_labels_are_called_so() -> None:
    assert "with all 2,500 labels" in verdict_sentence(results(*[gain(0.1, 0.01)] * 3))


def test_without_fine_tuning_the_better_baseline_decides() -> None:
    counts, over = (25, 2500), []
    for count, (raw, untrained) in zip(counts, ((0.2, 0.1), (0.05, -0.1)), strict=True):
        over += [GainOver(RAW, LINEAR, count, gain(raw, 0.01)), GainOver(UNTRAINED, LINEAR, count, gain(untrained, 0.01))]
        over += [GainOver("other", LINEAR, count, gain(-0.5, 0.01))]  # another encoder decides nothing
    found = VerdictResults("runs/cells", 2500, 400, [], over, [])
    assert [each.gain.mean for each in found.deciding] == [0.1, -0.1]
    assert found.answer == "depends"
    assert "against a linear probe of untrained" not in verdict_sentence(found)
    assert "a linear probe of the untrained encoder" in verdict_sentence(found)


def test_there_is_no_answer_before_the_first_results() -> None:
    assert verdict_sentence(VerdictResults("runs/cells", 2500, 400, [], [], [])) == "There are no results yet."


def test_a_gain_of_zero_needs_no_numbers() -> None:
    assert "would be needed" not in verdict_sentence(results(gain(0.0, 0.02)))


def test_a_gain_that_is_sure_is_not_rounded_to_zero() -> None:
    assert points_of(gain(0.0006, 0.0003)) == "+0.06 (+0.03 to +0.09)"
    assert points_of(gain(0.0006, 0.0009)) == "+0.1 (-0.0 to +0.1)"
    assert points_of(gain(0.02, 0.01)) == "+2.0 (+1.0 to +3.0)"


def test_without_fine_tuning_yes_holds_against_both_baselines() -> None:
    wide, narrow = gain(0.05, 0.06), gain(0.04, 0.01)  # the smaller gain is sure, the larger one is not
    over = [GainOver(RAW, LINEAR, 25, wide), GainOver(UNTRAINED, LINEAR, 25, narrow)]
    assert VerdictResults("runs/cells", 2500, 400, [], over, []).answer == "cannot tell"
    worse = [GainOver(RAW, LINEAR, 25, gain(-0.02, 0.01)), GainOver(UNTRAINED, LINEAR, 25, gain(0.05, 0.2))]
    assert VerdictResults("runs/cells", 2500, 400, [], worse, []).answer == "no"


def test_fine_tuning_that_failed_asks_for_epochs_and_not_for_seeds() -> None:
    found = results(gain(0.001, 0.02), gain(0.01, 0.03))
    probed = [Accuracies(OWN, LINEAR, 25, [0.8, 0.9, 0.85]), Accuracies(OWN, LINEAR, 250, [0.6, 0.6, 0.6])]
    sentence = verdict_sentence(found._replace(accuracies=found.accuracies + probed, cautions=["Mind this."]))
    assert "Fine-tuning only reached 60.0 % with 25 labels (a linear probe of the same encoder: 85.0 %). Try more" in sentence
    assert sentence.count("would be needed") == 1
    assert sentence.endswith("Mind this.")


def test_tables_and_page(tmp_path: Path) -> None:
    found = results(gain(0.08, 0.02), gain(0.01, 0.03))
    accuracy, gains = verdict_tables(found)
    assert accuracy.rows == [["this run, fine-tuned", "60.0 ± 10.0", "60.0 ± 10.0"], ["from scratch", "60.0 ± 10.0", "60.0 ± 10.0"]]
    assert gains.rows == [["training from scratch", "+8.0 (+6.0 to +10.0)", "+1.0 (-2.0 to +4.0)"]]
    facts = {"config": {"seeds": (0, 1, 2)}, "command": "unveil verdict", "versions": {}, "hardware": {}}
    page = write_verdict_page(tmp_path, found, facts).read_text()
    assert "Did the pre-training of cells pay off?" in page
    assert verdict_sentence(found).split(".")[0] in page
    assert page.count("<svg") == 2
