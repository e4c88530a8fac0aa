"""Sentences that interpret the results of a run."""

from collections.abc import Mapping

from unveil.reports.chance import accuracy_interval, chance_margin, within_chance
from unveil.reports.vocabulary import (
    CLASSIFIER_LABELS,
    ENCODER_LABELS,
    HELD_OUT_ERRORS,
    QUANTITIES,
    WORD_PREDICTORS,
    Results,
    format_number,
    independent_count_of,
    is_behind,
    label_of,
    numbers_of,
    percent,
    primary_of,
    tests_of,
)

MIN_DEVIATION, MIN_RANK = 0.02, 1.5
"""Features with a smaller standard deviation, or a smaller RankMe, count as collapsed."""
FLAT_ERROR = 1e-6
"""With a smaller error of predicting the mean of each image, images have no detail. Pixels have a variance of about 1."""
BASELINE_NOTE = (
    "The mean of each patch is that of its own pixels, which the model does not see. Only with a normalised target, the model is "
    "given this mean, and the standard deviation."
)
WHITENED_NOTE = (
    "Whitened k-NN first gives all directions of the features the same variance, so that a few strong ones, such as position and "
    "colour, do not decide alone which images are neighbours."
)


def conclusion(results: Results) -> str:
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
        return feature_sentence(results)
    if errors.get("held_out_error") is not None:
        return error_sentences(errors)[0]
    if results.get("bleu"):
        name, row = next(iter(results["bleu"].items()))
        return f"Its BLEU is {row['beam']:.1f} on {name}, with a beam of {results['beams']}."
    if results.get("words"):
        return word_sentence(results["words"])
    return "There are no results yet: the run has not finished."


def feature_sentence(results: Results) -> str:
    """The accuracy of the linear probe, or else of the first classifier, compared with the baselines; then that of the others."""
    found = {key: (CLASSIFIER_LABELS.get(key, key), percent(value)) for key, value in results["features"]["encoder"].items()}
    main = "linear" if "linear" in found else next(iter(found))
    name, accuracy = found.pop(main)
    compared, others = " and ".join(differences(results, main)), " and ".join(" ".join(each) for each in found.values())
    parts = [f"Its features reach {accuracy} accuracy with {with_article(name)} on the test images"]
    return f"{', '.join(filter(None, [*parts, compared]))}{f'; with {others}' if others else ''}."


def metric_sentence(results: Results) -> str:
    """A sentence with the primary metric of a task, and the chance level of a classifier."""
    metric, primary = results["score"], primary_of(results)
    if primary is None:
        return "The task has no primary metric."
    count = metric.get("count")
    test_set = tests_of(count, results.get("samples", "images")) if count is not None else "the test set"
    sentence = f"Its {label_of(primary)} is {format_number(primary, metric[primary])} on {test_set}"
    if primary == "mae" and "mae_of_mean" in metric:
        sentence += f"; always predicting the mean of the train set has {format_number('mae_of_mean', metric['mae_of_mean'])}"
    independent = independent_count_of(metric)
    if primary == "top1" and count and independent:
        low, high = accuracy_interval(metric[primary], independent)
        worth = f", worth {independent:,.0f} independent ones" if independent < count else ""
        sentence += f"{worth} (95 % interval: {100 * low:.1f} to {100 * high:.1f} %)"
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
            last = " and ".join(parts[-2:])
            sentences.append(f"With {name}, this encoder is {', '.join([*parts[:-2], last])}.")
    if "whitened" in encoder:
        sentences.append(WHITENED_NOTE)
        without = [ENCODER_LABELS.get(row, row) for row, values in results["features"].items() if "whitened" not in values]
        if without:
            sentences.append(f"It is left out for more than 1,024 features, which {' and '.join(without)} have.")
    if sentences and (note := chance_note(results)):
        sentences.append(note)
    return sentences


def differences(results: Results, classifier: str) -> list[str]:
    """Phrases with the points by which the encoder is ahead of, or behind, each other row, unless that can be due to chance."""
    features, count, parts = results["features"], independent_tests(results), []
    for row, values in features.items():
        if row != "encoder" and classifier in values:
            own, other = features["encoder"][classifier], values[classifier]
            position = position_of(100 * (own - other), bool(count) and within_chance([own], [other], count))
            parts.append(f"{position} {'an ' if row == 'untrained' else ''}{ENCODER_LABELS.get(row, row)}")
    return parts


def position_of_score(results: Results, other: float, by_chance: bool) -> str:
    """A phrase such as "1.2 points ahead of" or, for a number that is no share, "ahead of", for the primary number of a task."""
    primary = primary_of(results)
    assert primary is not None
    own = results["score"][primary]
    if primary in QUANTITIES and QUANTITIES[primary].is_share:
        return position_of(100 * (own - other), by_chance)
    return "level with" if own == other else "behind" if is_behind(results, other) else "ahead of"


def position_of(points: float, by_chance: bool) -> str:
    """A phrase such as "1.2 points ahead of"; within chance it names no winner."""
    if abs(points) < 0.05:
        return "level with"
    if by_chance:
        return f"within chance ({points:+.1f} points) of"
    return f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"


def with_article(name: str) -> str:
    """The name of a classifier, with an article if it needs one."""
    return f"a {name}" if name.endswith("probe") else name


def independent_tests(results: Results) -> float | None:
    """The number of independent test images: fewer than all of them if several come from one original, as in the digits."""
    judged = results.get("judged_on") or {}
    count = judged.get("independent") or judged.get("test")
    return float(count) if count else None


def margin_of_error(results: Results) -> float | None:
    """The difference, in points, that two equally good classifiers exceed once in 20 times; for the least certain accuracy."""
    count = independent_tests(results)
    shares = [share for values in (results.get("features") or {}).values() for share in values.values()]
    return 100 * max(chance_margin([share], [share], count) for share in shares) if count and shares else None


def chance_note(results: Results) -> str | None:
    """A sentence with the differences that can be due to chance; None if the number of test images is not recorded."""
    margin = margin_of_error(results)
    if margin is None:
        return None
    judged = results["judged_on"]
    count, independent = judged["test"], judged.get("independent")
    images = f"{count:,} test image{'s' * (count != 1)}"
    if independent and independent < count:
        images += f", which are worth {independent:,.0f} independent ones, as several are made from one original"
    return f"With {images}, differences of up to about {margin:.1f} points can be due to chance."


def error_sentences(errors: Mapping[str, float]) -> list[str]:
    """Sentences that compare the squared error with two baselines without a model."""
    own = errors.get("held_out_error")
    if own is None:
        return []
    sentence = f"On masked patches of held-out images its mean squared error is {own:.3g}"
    if errors.get("image_mean_error", 1.0) < FLAT_ERROR:
        return [f"{sentence}. There is nothing to learn from these images: each of them has one colour only, without any detail."]
    parts = []
    for key in ("patch_mean_error", "image_mean_error"):
        if errors.get(key):
            less = 100 * (1 - own / errors[key])
            position = f"{abs(less):.0f} % {'lower' if less > 0 else 'higher'} than" if abs(less) >= 0.5 else "level with"
            parts.append(f"{position} predicting {HELD_OUT_ERRORS[key]} ({errors[key]:.3g})")
    compared = f", {' and '.join(parts)}" if parts else ""
    return [f"{sentence}{compared}.", BASELINE_NOTE]


def word_sentence(words: Mapping[str, float]) -> str:
    """A sentence with the accuracy of predicted masked words, compared with the most frequent word."""
    own, frequent = (percent(words[f"{key}_accuracy"]) for key in WORD_PREDICTORS)
    baseline = f"always predicting the most frequent word gets {frequent}"
    return f"It predicts {own} of the masked words of held-out texts correctly; {baseline}."
