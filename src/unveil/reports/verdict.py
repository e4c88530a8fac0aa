"""What the numbers of a run say, in sentences."""

import math
from collections.abc import Mapping
from typing import Any

COLUMNS = {"knn": "k-NN classifier", "linear": "linear probe"}
ROWS = {"encoder": "this encoder", "untrained": "untrained encoder", "raw pixels": "raw pixels"}
ERRORS = {"held_out_error": "this model", "patch_mean_error": "the patch's own mean", "image_mean_error": "the image's mean"}
SPREAD = {"feature_deviation": "deviation", "rank_me": "RankMe"}
SPREAD_MEANS = "Deviation is that of features of unit length (0: all the same, 1: all directions alike); RankMe counts dimensions."
FLAT, FEW_DIMENSIONS = 0.02, 1.5
"""Below this deviation, or in fewer dimensions by RankMe, features have collapsed."""
WORDS = {"word": "this model", "frequency": "the most frequent words"}
NUMBERS = {
    "held_out_loss": "loss",
    "token_accuracy": "share of hidden tokens found",
    "accuracy": "share of classes found",
    "rebuilt_error": "squared error of images rebuilt from their tokens",
    "codebook_usage": "share of the codebook in use",
    "perplexity": "perplexity of the tokens",
}
LENT = "The patch's own mean is the true one; a model with a normalised target is lent it too, and the deviation."
Results = Mapping[str, Any]


def verdict(results: Results) -> str:
    """One sentence with the numbers that matter most; before it, a warning where the features have collapsed."""
    warning = collapsed(results)
    return f"{warning} {numbers(results)}" if warning else numbers(results)


def collapsed(results: Results) -> str | None:
    """A warning where the encoder says nearly the same of every image."""
    spread = (results.get("spread") or {}).get("encoder")
    if not spread or not flat(**spread):
        return None
    return (
        f"The features have collapsed: they are nearly the same for every image (deviation {spread['feature_deviation']:.2g}, "
        f"RankMe {spread['rank_me']:.3g} of {results['width']} dimensions); try a lower --base-lr or a larger --batch-size."
    )


def flat(feature_deviation: float, rank_me: float) -> bool:
    """Whether features are nearly the same for every image."""
    return feature_deviation < FLAT or rank_me < FEW_DIMENSIONS


def numbers(results: Results) -> str:
    """The numbers in a sentence."""
    score, features, errors = results.get("score"), results.get("features") or {}, results.get("held_out") or {}
    if score:
        classes = len(score["per_class"])
        five = f", {percent(score['top5'])} within five guesses" if classes > 5 else ""
        guess = f"guessing among {classes} classes would get {percent(1 / classes)}"
        samples = f"{score['count']:,} test {results.get('samples', 'images')}"
        return f"It recognises {percent(score['top1'])} of {samples}{five}; {guess}."
    if features.get("encoder"):
        told = []
        for column, value in features["encoder"].items():
            compared = ", ".join(against(results, column))
            kind = COLUMNS.get(column, column)
            told.append(f"{percent(value)} of the test images with a {kind}{f' ({compared})' if compared else ''}")
        return f"Its features recognise {', and '.join(told)}."
    if errors.get("held_out_error") is not None:
        return held_out(errors)[0]
    if results.get("words"):
        return named_words(results["words"])
    return "There are no results yet: the run has not ended."


def comparisons(results: Results) -> list[str]:
    """How the encoder compares to each other row of the table of features, a sentence for each column."""
    encoder = (results.get("features") or {}).get("encoder") or {}
    sentences = []
    for column in encoder:
        told = against(results, column)
        if told:
            sentences.append(f"With a {COLUMNS.get(column, column)} this encoder is {' and '.join(told)}.")
    margin = chance(results)
    if sentences and margin:
        count = results["judged_on"]["test"]
        sentences.append(f"With {count:,} test images, differences of up to about {margin:.1f} points can be chance.")
    return sentences


def against(results: Results, column: str) -> list[str]:
    """How far the encoder is ahead of each other row, or behind it, in points."""
    features, told = results["features"], []
    for row, values in features.items():
        if row != "encoder" and column in values:
            points = 100 * (features["encoder"][column] - values[column])
            side = "level with" if abs(points) < 0.05 else f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"
            told.append(f"{side} {'an ' if row == 'untrained' else ''}{ROWS.get(row, row)}")
    return told


def chance(results: Results) -> float | None:
    """Points within which two equally good classifiers differ 19 times in 20, for the least certain of the accuracies."""
    test = (results.get("judged_on") or {}).get("test")
    shares = [share for values in (results.get("features") or {}).values() for share in values.values()]
    return 196 * math.sqrt(2 * max(share * (1 - share) for share in shares) / test) if test and shares else None


def held_out(errors: Mapping[str, float]) -> list[str]:
    """How the squared error compares to the two guesses that need no model."""
    mine = errors.get("held_out_error")
    if mine is None:
        return []
    told = []
    for key in ("patch_mean_error", "image_mean_error"):
        if errors.get(key):
            less = 100 * (1 - mine / errors[key])
            side = f"{abs(less):.0f} % {'less' if less > 0 else 'more'} than" if abs(less) >= 0.5 else "level with"
            told.append(f"{side} painting {ERRORS[key]} ({errors[key]:.3g})")
    compared = f": {', and '.join(told)}" if told else ""
    return [f"On hidden patches of held-out images its squared error is {mine:.3g}{compared}.", LENT]


def named_words(words: Mapping[str, float]) -> str:
    """How many hidden words are named at the first guess, beside always saying the most frequent one."""
    mine, frequent = (percent(words[f"{key}_accuracy"]) for key in WORDS)
    return f"Of the hidden words of held-out texts it names {mine} at once; the most frequent word alone gets {frequent}."


def percent(share: float | None) -> str:
    """A share in per cent."""
    return "no images" if share is None or share != share else f"{100 * share:.1f} %"
