"""The top-1 errors of classifiers on corrupted images, and the mean corruption error (Hendrycks and Dietterich, 2019)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from unveil.data.batch import Batch
from unveil.data.pack_writer import cores
from unveil.data.read_ahead import read_ahead
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.evaluate.corruption_workers import CorruptionWorkers
from unveil.evaluate.corruptions import CORRUPTIONS, SEVERITIES, VERSIONS, Pixels, library_version
from unveil.evaluate.features import evaluation_batch_size, independent_count, prepared, read_batch, variance_of_mean
from unveil.models.vit_config import ViTConfig
from unveil.train.parallel import HardwareConfig, World

Classifier = Callable[[Batch], Float[Tensor, "B K"]]
"""Class scores, on the CPU, of a batch that is preprocessed for evaluation."""
IMAGES_PER_WORKER = 64
"""A process that corrupts images takes five seconds to start, so one is started for at least this many images."""


class CorruptionErrors(NamedTuple):
    """The top-1 errors of a classifier, as shares of the images."""

    clean: float
    """The error on the same images without a corruption."""
    corrupted: Mapping[str, list[float]]
    """The error at each severity, by corruption."""
    independent: float | None = None
    """How many independent images are as informative about the clean error as these images; None if that is not known."""
    independent_mean: float | None = None
    """How many independent images, with one answer for each, are as informative about the mean."""

    @property
    def mean(self) -> float:
        """The mean over all corruptions and severities."""
        return float(np.mean(list(self.corrupted.values())))


def refuse_other_images(subset: Subset) -> None:
    """Raises `UnveilError` unless the images have 8 bits and 1 or 3 channels, for which the corruptions are made."""
    dataset = subset.dataset
    if dataset.dtype != torch.uint8:
        raise UnveilError(
            f"{dataset.source.name} has 16-bit images, but the corruptions are made for 8 bits: convert the images, or leave "
            "--corrupt out"
        )
    if dataset.channels not in (1, 3):
        raise UnveilError(
            f"the images of {dataset.source.name} have {dataset.channels} channels, but the corruptions are made for grey images "
            "and RGB: leave --corrupt out"
        )


def images_of(subset: Subset, vit: ViTConfig, size: int) -> Iterator[tuple[int, Pixels]]:
    """The index and the pixels (S, T, C) of each image that can be read, at the size of the model. The subset is preprocessed."""
    for batch in read_ahead(partial(read_batch, subset, vit=vit), torch.split(subset.indices, size)):
        if batch is not None:
            yield from zip(batch.keys.tolist(), batch.images.movedim(1, -1).contiguous().numpy(), strict=True)


@torch.no_grad()
def corruption_errors(
    classifiers: Mapping[str, Classifier],
    subset: Subset,
    vit: ViTConfig,
    hardware: HardwareConfig,
    world: World,
    *,
    seed: int,
    batch_size: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, CorruptionErrors], int]:
    """The errors of classifiers on the same corrupted images. Each image is read once.

    Args:
        classifiers: What classifies a batch, by name.
        subset: Labelled images of 8 bits, preprocessed for the model.
        vit: Their size and normalisation.
        hardware: Precision.
        world: The device.
        seed: The seed of the corruptions.
        batch_size: 0 means `evaluation_batch_size`.
        progress: Called with the number of images that are done, and of all images.

    Returns:
        The errors by name, and the number of images that could be read.

    Raises:
        UnveilError: If a classifier returns scores that are not finite.
    """
    size = batch_size or evaluation_batch_size(world, hardware)
    labels, correct, keys = subset.dataset.labels, {name: list[Tensor]() for name in classifiers}, list[int]()

    def batches(versions: UInt8[Tensor, "V C S T"]) -> Iterator[Batch]:
        for part in versions.split(size):
            sizes, none = torch.tensor(part.shape[2:]).expand(len(part), 2), torch.zeros(len(part), dtype=torch.int64)
            yield prepared(Batch(part, sizes, none), subset, vit, hardware, world)

    with CorruptionWorkers(max(1, min(cores(), len(subset) // IMAGES_PER_WORKER)), seed) as workers:
        for key, image, corrupted in workers.corrupted(images_of(subset, vit, size)):
            versions = np.concatenate([image[None], corrupted.reshape(VERSIONS, *image.shape)])  # (76, S, T, C)
            found = are_correct(classifiers, batches(torch.from_numpy(versions).movedim(-1, 1)), int(labels[key]))
            for name, each in found.items():
                correct[name].append(each)
            keys.append(key)
            progress(len(keys), len(subset))
    groups = Subset(subset.dataset, torch.tensor(keys)).groups
    return {name: errors_of(torch.stack(rows), groups) for name, rows in correct.items()}, len(keys)


def are_correct(classifiers: Mapping[str, Classifier], batches: Iterable[Batch], label: int) -> dict[str, Bool[Tensor, " V"]]:
    """Whether each classifier is right about each version of an image of the class `label`."""
    found: dict[str, list[Tensor]] = {name: [] for name in classifiers}
    for batch in batches:
        for name, classify in classifiers.items():
            scores = classify(batch)
            if not scores.isfinite().all():
                raise UnveilError(f"the class scores of {name} are not finite for corrupted images: try --precision float32")
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices[:, 0]  # as `ClassificationMetric`, also among equal votes
            found[name].append(best == label)
    return {name: torch.cat(parts) for name, parts in found.items()}


def errors_of(correct: Bool[Tensor, "n V"], groups: Int[Tensor, " n"] | None = None) -> CorruptionErrors:
    """The errors from whether each image is classified correctly: first without a corruption, then each version.

    Args:
        correct: The answers for each image.
        groups: The number of the original of each image; None if all differ.
    """
    shares = (~correct).double().mean(dim=0)
    table = shares[1:].reshape(len(CORRUPTIONS), len(SEVERITIES)).tolist()
    independent = float(len(correct)) if groups is None else independent_count(correct[:, 0], groups)
    # The versions of an image share its difficulty, so the spread of the mean is that of one number for each image.
    of_image = (~correct[:, 1:]).double().mean(dim=1)
    mean, variance = float(of_image.mean()), variance_of_mean(of_image, torch.arange(len(correct)) if groups is None else groups)
    informative = round(mean * (1 - mean) / variance, 2) if variance > 1e-12 else independent
    return CorruptionErrors(float(shares[0]), dict(zip(CORRUPTIONS, table, strict=True)), round(independent, 2), informative)


def relative_to(own: CorruptionErrors, baseline: CorruptionErrors) -> dict[str, Any]:
    """The errors as multiples of those of a baseline, which the paper takes from AlexNet (its section 4.1).

    Returns:
        "corruption_error", for each corruption the sum of the errors over the severities, divided by that of the baseline; "mce",
        their mean; and "relative_mce", the mean of the same quotients after the clean error of each classifier is subtracted from
        each of its errors. A number is None if it is not defined: the baseline has no errors or, for "relative_mce", its errors do
        not rise under a corruption.
    """
    quotients, increases = dict[str, float | None](), list[float | None]()
    for name in CORRUPTIONS:
        ours, theirs = sum(own.corrupted[name]), sum(baseline.corrupted[name])
        quotients[name] = ours / theirs if theirs > 0 else None
        rise = theirs - len(SEVERITIES) * baseline.clean
        increases.append((ours - len(SEVERITIES) * own.clean) / rise if rise > 1e-9 else None)
    return {"corruption_error": quotients, "mce": mean_if_all(list(quotients.values())), "relative_mce": mean_if_all(increases)}


def mean_if_all(values: list[float | None]) -> float | None:
    """The mean; None if a value is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def corruption_facts(errors: Mapping[str, CorruptionErrors], baseline: str | None, images: int, seed: int) -> dict[str, Any]:
    """What `results.json` holds of the errors.

    Args:
        errors: The errors by the name of the classifier.
        baseline: The name of the one to which others are relative; None if there is only one.
        images: The number of images.
        seed: The seed of the corruptions.
    """
    facts: dict[str, Any] = {
        "images": images,
        "severities": list(SEVERITIES),
        "library": library_version(),
        "seed": seed,
        "clean_error": {name: each.clean for name, each in errors.items()},
        "errors": {name: dict(each.corrupted) for name, each in errors.items()},
        "mean_error": {name: each.mean for name, each in errors.items()},
        "independent": {
            name: {"clean_error": each.independent or images, "mean_error": each.independent_mean or images}
            for name, each in errors.items()
        },
    }
    if baseline is not None:
        relative = {name: relative_to(each, errors[baseline]) for name, each in errors.items() if name != baseline}
        facts["baseline"] = baseline
        facts |= {key: {name: each[key] for name, each in relative.items()} for key in ("corruption_error", "mce", "relative_mce")}
    return facts
