"""The evaluation of an image encoder after pre-training: its features, compared with an untrained encoder and raw pixels."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from unveil.data.splits import Subset
from unveil.evaluate.collapse import collapse
from unveil.evaluate.feature_map import feature_map
from unveil.evaluate.features import (
    Features,
    NothingReadableError,
    evaluate_features,
    features_of,
    features_of_each,
    independent_count,
    raw_pixels,
    refuse_non_finite,
    views_of,
)
from unveil.learner import Method
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.reports.image_grid import to_rgb
from unveil.runs.labelled_data import unseen_classes, write_arrays
from unveil.train.log import Record
from unveil.train.recipe import Recipe

MAP_IMAGES, MAP_THUMBNAIL = 1000, 32
"""Images on the map of the features, and the side of their thumbnails in pixels."""


def evaluation_subsets(train_set: Subset, test_set: Subset, train: int, test: int) -> tuple[Subset, Subset | None]:
    """Labelled images to fit classifiers on, and others to test them on. Without labels: any images, and None."""
    bank, queries = train_set.labelled(train), test_set.labelled(test)
    return (bank, queries) if len(bank) and len(queries) else (train_set.spread_out(min(test, 2000)), None)


def compare_features(
    learner: Method, baselines: Mapping[str, ViT], train_set: Subset, test_set: Subset, recipe: Recipe, most: int = 20_000
) -> Record:
    """Measures of the features of the encoder: their variation and, with labels, their k-NN and linear accuracy.

    Other encoders, such as an untrained one, and, with labels, raw pixels are evaluated as baselines.
    """
    bank, queries = evaluation_subsets(train_set, test_set, most, most // 2)
    vit, classes = learner.encoder.config, bank.dataset.classes
    others = {name: encoder.to(recipe.world.device).eval() for name, encoder in baselines.items()}
    encoders = {"encoder": learner.encoder, **others}
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(encoder.features, pool=learner.pool) for name, encoder in encoders.items()
    }
    functions |= {"raw pixels": raw_pixels} if queries else {}
    train, bank = features_of_each(list(functions.values()), bank, vit, recipe.hardware, recipe.world)
    for rows in train:
        refuse_non_finite(Features(rows, bank), "the encoder")
    spread = {name: collapse(rows) for name, rows in zip(functions, train, strict=True) if name in encoders}
    found: Record = {"spread": spread, "width": vit.width}
    if not queries:
        return found
    try:
        test, queries = features_of_each(list(functions.values()), queries, vit, recipe.hardware, recipe.world)
    except NothingReadableError:  # of a small test set; what could be evaluated is not lost
        return found
    correct = {
        name: evaluate_features(rows, bank.labels, test_rows, queries.labels, classes, bank.groups)
        for name, rows, test_rows in zip(functions, train, test, strict=True)
    }
    accuracy = {name: {probe: int(each.sum()) / len(each) for probe, each in found.items()} for name, found in correct.items()}
    judged_on: Record = {"train": len(bank), "test": len(queries), "classes": len(classes)}
    if queries.groups is not None:
        judged_on["independent"] = round(min(independent_count(each, queries.groups) for each in correct["encoder"].values()))
    unseen = unseen_classes(bank, queries)
    return found | {"features": accuracy, "judged_on": judged_on | ({"unseen_classes": unseen} if unseen else {})}


def save_samples(path: Path, subset: Subset, vit: ViTConfig, count: int = 8) -> None:
    """Saves a few normalised images for the report, if they can be read."""
    with suppress(NothingReadableError):
        views = views_of(subset.spread_out(count), vit)
        write_arrays(path, {"images": views.rows.numpy(), "names": np.array(views.subset.names)})


def save_map(path: Path, learner: Method, subset: Subset, recipe: Recipe, count: int = MAP_IMAGES) -> None:
    """Saves a map of the features of some held-out images for the report, with a thumbnail of each, if they can be read.

    The file holds "pca" and, for 50 images or more, "tsne" (n, 2), "explained" (the share of the variance in "pca"), "labels"
    (n,) with -1 for images without a class, "classes", "names" and "thumbnails" (n, 32, 32, 3).
    """
    vit = learner.encoder.config
    seen: list[np.ndarray] = []

    def features(images: Tensor) -> Tensor:
        side = (MAP_THUMBNAIL, MAP_THUMBNAIL)
        small = images if images.shape[2:] == side else F.interpolate(images.float(), side, mode="bilinear", antialias=True)
        seen.append(np.rint(255 * to_rgb(small, vit.mean, vit.std)).astype(np.uint8))
        rows: Tensor = learner.encoder.features(images, pool=learner.pool)
        return rows

    try:
        found = features_of(features, subset.spread_out(count), vit, recipe.hardware, recipe.world)
    except NothingReadableError:
        return
    places = feature_map(found.rows.numpy())
    arrays = {"pca": places.pca, "explained": np.array(places.explained, np.float32)}
    arrays |= {} if places.tsne is None else {"tsne": places.tsne}
    arrays |= {"labels": found.subset.labels.numpy(), "classes": np.array(found.subset.dataset.classes, dtype=np.str_)}
    write_arrays(path, arrays | {"names": np.array(found.subset.names), "thumbnails": np.concatenate(seen)})
