"""Sentences that interpret the results of a run."""

import math
from collections.abc import Mapping

from unveil.reports.vocabulary import (
    CLASSIFIER_LABELS,
    ENCODER_LABELS,
    HELD_OUT_ERRORS,
    WORD_PREDICTORS,
    Results,
    format_number,
    label_of,
    numbers_of,
    percent,
    primary_of,
)

MIN_DEVIATION, MIN_RANK = 0.02, 1.5
"""Features with a smaller standard deviation, or a smaller RankMe, count as collapsed."""
BASELINE_NOTE = (
    "The mean of each patch is computed from the true pixels. A model with a normalised target also gets this mean, and the "
    "standard deviation."
)


def verdict(results: Results) -> str:
    """One sentence with the most important numbers, after a warning if the features have collapsed."""
    warning = collapse_warning(results)
    return f"{warning} {summary(results)}" if warning else summary(results)


def collapse_warning(results: Results) -> str | None:
    """A warning if the features of the encoder are nearly the same for every image."""
    spread = (results.get("spread") or {}).get("encoder")
    if not spread or not has_collapsed(**spread):
        return None
    return (
        f"The features have collapsed: they are nearly the same for every image (standard deviation "
        f"{spread['feature_deviation']:.2g}, RankMe {spread['rank_me']:.3g} of {results['width']} dimensions). "
        f"Try a lower --base-lr or a larger --batch-size."
    )


def has_collapsed(feature_deviation: float, rank_me: float) -> bool:
    """Whether features are nearly the same for every image."""
    return feature_deviation < MIN_DEVIATION or rank_me < MIN_RANK


def summary(results: Results) -> str:
    """A sentence with the most important numbers."""
    features, errors = results.get("features") or {}, results.get("held_out") or {}
    if results.get("score"):
        return metric_sentence(results)
    if features.get("encoder"):
        parts = []
        for classifier, value in features["encoder"].items():
            compared = ", ".join(differences(results, classifier))
            name = CLASSIFIER_LABELS.get(classifier, classifier)
            parts.append(f"{percent(value)} accuracy with {with_article(name)}{f' ({compared})' if compared else ''}")
        return f"Its features reach {' and '.join(parts)} on the test images."
    if errors.get("held_out_error") is not None:
        return error_sentences(errors)[0]
    if results.get("bleu"):
        name, row = next(iter(results["bleu"].items()))
        return f"Its BLEU is {row['beam']:.1f} on {name}, with a beam of {results['beams']}."
    if results.get("words"):
        return word_sentence(results["words"])
    return "There are no results yet: the run has not finished."


def metric_sentence(results: Results) -> str:
    """A sentence with the primary metric of a task, and the chance level of a classifier."""
    metric, primary = results["score"], primary_of(results)
    if primary is None:
        return "The task has no primary metric."
    count = metric.get("count")
    test_set = f"{count:,} test {results.get('samples', 'images')}" if count is not None else "the test set"
    sentence = f"Its {label_of(primary)} is {format_number(primary, metric[primary])} on {test_set}"
    classes = len(metric.get("per_class") or ())
    if primary == "top1" and classes:
        if classes > 5 and "top5" in numbers_of(metric):
            sentence += f" (top-5: {percent(metric['top5'])})"
        sentence += f"; chance level for {classes} classes is {percent(1 / classes)}"
    return f"{sentence}."


def comparisons(results: Results) -> list[str]:
    """A sentence for each classifier that compares the encoder with the other rows of the table of features."""
    encoder = (results.get("features") or {}).get("encoder") or {}
    sentences = []
    for classifier in encoder:
        parts = differences(results, classifier)
        if parts:
            name = with_article(CLASSIFIER_LABELS.get(classifier, classifier))
            sentences.append(f"With {name}, this encoder is {' and '.join(parts)}.")
    margin = margin_of_error(results)
    if sentences and margin:
        count = results["judged_on"]["test"]
        sentences.append(f"With {count:,} test images, differences of up to about {margin:.1f} points can be due to chance.")
    return sentences


def differences(results: Results, classifier: str) -> list[str]:
    """Phrases with the points by which the encoder is ahead of, or behind, each other row."""
    features, parts = results["features"], []
    for row, values in features.items():
        if row != "encoder" and classifier in values:
            points = 100 * (features["encoder"][classifier] - values[classifier])
            position = "level with" if abs(points) < 0.05 else f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"
            parts.append(f"{position} {'an ' if row == 'untrained' else ''}{ENCODER_LABELS.get(row, row)}")
    return parts


def with_article(name: str) -> str:
    """The name of a classifier, with an article if it needs one."""
    return f"a {name}" if name.endswith("probe") else name


def margin_of_error(results: Results) -> float | None:
    """The difference, in points, that two equally good classifiers exceed once in 20 times; for the least certain accuracy.

    An accuracy p on n images has the variance p (1 - p) / n, and the difference of two accuracies has twice that. The margin is
    1.96 standard deviations.
    """
    test = (results.get("judged_on") or {}).get("test")
    shares = [share for values in (results.get("features") or {}).values() for share in values.values()]
    return 196 * math.sqrt(2 * max(share * (1 - share) for share in shares) / test) if test and shares else None


def error_sentences(errors: Mapping[str, float]) -> list[str]:
    """Sentences that compare the squared error with two baselines without a model."""
    own = errors.get("held_out_error")
    if own is None:
        return []
    parts = []
    for key in ("patch_mean_error", "image_mean_error"):
        if errors.get(key):
            less = 100 * (1 - own / errors[key])
            position = f"{abs(less):.0f} % {'lower' if less > 0 else 'higher'} than" if abs(less) >= 0.5 else "level with"
            parts.append(f"{position} predicting {HELD_OUT_ERRORS[key]} ({errors[key]:.3g})")
    compared = f", {' and '.join(parts)}" if parts else ""
    return [f"On masked patches of held-out images its mean squared error is {own:.3g}{compared}.", BASELINE_NOTE]


def word_sentence(words: Mapping[str, float]) -> str:
    """A sentence with the accuracy of predicted masked words, compared with the most frequent word."""
    own, frequent = (percent(words[f"{key}_accuracy"]) for key in WORD_PREDICTORS)
    baseline = f"always predicting the most frequent word gets {frequent}"
    return f"It predicts {own} of the masked words of held-out texts correctly; {baseline}."
