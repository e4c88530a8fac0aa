"""The keys of `log.jsonl` and `results.json` that have a label in reports.

The keys of "held_out" in `results.json` come from `Method.validation_metrics`, and those of "score" from `Metric.compute`. Any key
may be used. A key that is listed here has a readable label and a format; other numbers are shown under their key. To add a label
for a new quantity, add a line to `QUANTITIES`. To draw its curve, add its key to `CURVES` as well.

`results.json` holds these entries, if they were measured:

    "held_out"   means of `validation_metrics` over held-out samples: any keys; those of `HELD_OUT_ERRORS` share a table
    "features"   accuracy of frozen features: {"encoder" | "before training" | "untrained" | "raw pixels":
                     {"knn" | "whitened" | "linear": share}}; "before training" are the weights of --init
    "judged_on"  the images of "features": {"train": count, "test": count, "classes": count}, "unseen_classes", and
                     "independent" if several images share an original: how many independent images are worth as much
    "unseen_classes"   test samples of classes that no training sample has, which count as wrong: {class: count}; if there are any
    "cautions"   clauses on test samples that the encoder, or the model, was trained on; if there are any
    "spread"     collapse of features: {"encoder" | "before training" | "untrained": {"feature_deviation" | "rank_me": number}};
                     "width": dimensions
    "words"      masked words of held-out texts: "word_loss", "word_accuracy", "frequency_loss", "frequency_accuracy"
    "bleu"       BLEU of a translation run: {test set: {"greedy" | "beam": number}}; "beams": number of beams
    "score"      numbers of a task by name; "primary" is the key of the most important one. Besides numbers it may hold
                     "confusion"   K x K counts, true classes as rows; with "background" true, the last of them is no class
                     "per_class"   a number, or None, for each class; further such lists have keys that begin with "per_class_"
                     "count"       number of test samples; "independent" as in "judged_on"
                     "reliability"   count, mean probability and accuracy in each range of probabilities
                     "unit"        the unit of "confusion", such as "pixels"; by default samples
                     "scatter"     pairs of a true and a predicted number
                     "pr_curves"   precision at each of "recalls": see `unveil.detection_metrics`
    "lower_is_better"   true if the primary number is an error
    "probe"      the numbers of "score" of the linear probe from which fine-tuning started; on a page also "scratch", those of the
                     run from scratch beside it
    "validation"   the checkpoint that was chosen: "metric", "value", "step", "steps_done", "steps_planned"
    "classes"    names of the classes; "samples": "images" or "texts"
    "unreadable"   numbers of images that could not be read: {"train" | "test" | "validation": count}
    "seconds", "images_seen" or "sequences_seen", "kept_aside", "cost"   the cost of the run
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from unveil.plain_text import count_of

Results = Mapping[str, Any]
"""The content of `results.json`."""


class Quantity(NamedTuple):
    """The label and the format of a number."""

    label: str
    is_share: bool = False
    """Whether it is a share between 0 and 1, shown in per cent."""
    digits: int | None = None
    """Digits after the point; four significant ones by default."""


QUANTITIES = {
    "top1": Quantity("top-1 accuracy", True),
    "top5": Quantity("top-5 accuracy", True),
    "balanced_accuracy": Quantity("balanced accuracy", True),
    "mean_ap": Quantity("mAP", True),
    "micro_f1": Quantity("micro F1", True),
    "exact_match": Quantity("all labels correct", True),
    "mae": Quantity("mean absolute error"),
    "rmse": Quantity("root mean squared error"),
    "r2": Quantity("R2"),
    "mae_of_mean": Quantity("mean absolute error of always predicting the mean"),
    "macro_f1": Quantity("macro F1", True),
    "auroc": Quantity("AUROC", digits=3),
    "calibration_error": Quantity("calibration error", True),
    "mean_iou": Quantity("mean IoU", True),
    "pixel_accuracy": Quantity("pixel accuracy", True),
    "mean_accuracy": Quantity("mean accuracy of the classes", True),
    **{f"{kind}_ap": Quantity(f"{kind} AP", True) for kind in ("box", "mask")},
    **{f"{kind}_ap{iou}": Quantity(f"{kind} AP{iou}", True) for kind in ("box", "mask") for iou in (50, 75)},
    **{
        f"{kind}_ap_{size}": Quantity(f"{kind} AP, {size}", True)
        for kind in ("box", "mask")
        for size in ("small", "medium", "large")
    },
    **{f"{kind}_ar": Quantity(f"{kind} AR", True) for kind in ("box", "mask")},
    **{f"{kind}_ar{count}": Quantity(f"{kind} AR, {count} an image", True) for kind in ("box", "mask") for count in (1, 10)},
    **{
        f"{kind}_ar_{size}": Quantity(f"{kind} AR, {size}", True)
        for kind in ("box", "mask")
        for size in ("small", "medium", "large")
    },
    "best_f1": Quantity("best F1 of boxes", True),
    "score_threshold": Quantity("score with the best F1", digits=2),
    "bleu": Quantity("BLEU"),
    "held_out_loss": Quantity("loss"),
    "token_accuracy": Quantity("masked tokens predicted correctly", True),
    "accuracy": Quantity("accuracy", True),
    "rebuilt_error": Quantity("mean squared error of reconstructed images"),
    "codebook_usage": Quantity("share of the codebook in use", True),
    "perplexity": Quantity("perplexity of the tokens"),
    "word_accuracy": Quantity("masked words predicted correctly", True),
    "knn": Quantity("k-NN accuracy", True),
    "whitened": Quantity("whitened k-NN accuracy", True),
}
"""Labels of numbers."""
HELD_OUT_ERRORS = {
    "held_out_error": "this model",
    "patch_mean_error": "the mean of each patch",
    "image_mean_error": "the mean of the image",
}
"""Keys of mean squared errors on masked patches of held-out images, in normalised pixels, with the name of the predictor."""
WORD_PREDICTORS = {"word": "this model", "frequency": "the most frequent word"}
"""Predictors of masked words: the prefix of the keys `..._loss` and `..._accuracy`, and the name of the predictor."""
ENCODER_LABELS = {
    "encoder": "this encoder",
    "before training": "the weights it started from",
    "untrained": "untrained encoder",
    "raw pixels": "raw pixels",
}
"""Labels of the encoders whose features are compared."""
CLASSIFIER_LABELS = {"knn": "k-NN", "whitened": "whitened k-NN", "linear": "linear probe"}
"""Labels of the classifiers of frozen features."""
SPREAD = {"feature_deviation": "standard deviation", "rank_me": "RankMe"}
"""Measures of collapse: see `unveil.evaluate.collapse`."""
CURVES = {
    "knn": "k-NN accuracy on the test set",
    "whitened": "Whitened k-NN accuracy on the test set",
    "accuracy": "Accuracy on the test set",
    "top1": "Top-1 accuracy on the validation set",
    "balanced_accuracy": "Balanced accuracy on the validation set",
    "mean_ap": "mAP on the validation set",
    "mae": "Mean absolute error on the validation set",
    "codebook_usage": "Share of the codebook in use on held-out images",
    "word_accuracy": "Masked words predicted correctly in held-out texts",
    "mean_iou": "Mean IoU on the validation set",
    "box_ap": "Box AP on the validation set",
    "mask_ap": "Mask AP on the validation set",
    "pixel_accuracy": "Pixel accuracy on the validation set",
    "bleu": "BLEU on held-out sentences",
}
"""Keys of `QUANTITIES` whose values in the log are drawn as a curve, and the title of the curve."""


def label_of(key: str) -> str:
    return QUANTITIES[key].label if key in QUANTITIES else humanize(key)


def format_number(key: str, value: float) -> str:
    if key in QUANTITIES and QUANTITIES[key].is_share:
        return percent(value)
    if key in QUANTITIES and QUANTITIES[key].digits is not None:
        return f"{value:.{QUANTITIES[key].digits}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def numbers_of(metric: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metric, without lists, names and numbers of samples."""
    numbers = {key: value for key, value in metric.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {key: value for key, value in numbers.items() if key not in ("count", "independent")}


def independent_count_of(score: Mapping[str, Any]) -> float | None:
    """The number of independent test samples of a "score": fewer than all if several come from one original, as in the digits."""
    count = score.get("independent") or score.get("count")
    return float(count) if count else None


def primary_of(results: Results) -> str | None:
    """The key of the most important number of a task: "primary" of the results, or else the first number."""
    numbers = numbers_of(results.get("score") or {})
    primary = results.get("primary")
    return str(primary) if primary in numbers else next(iter(numbers), None)


def is_behind(results: Results, other: float) -> bool:
    """Whether the primary number of a task is worse than another one."""
    own = results["score"][primary_of(results)]
    return bool(own > other if results.get("lower_is_better") else own < other)


def percent(share: float | None) -> str:
    """Formats a share in per cent."""
    return "no samples" if share is None or share != share else f"{100 * share:.1f} %"


def humanize(key: str) -> str:
    """Converts a key to words."""
    return key.replace("_", " ")


def tests_of(count: int, samples: str) -> str:
    """The number of test samples: "1 test image", "2,000 test images"; `samples` is their plural noun."""
    return count_of(count, f"test {samples.removesuffix('s')}", f"test {samples}")
