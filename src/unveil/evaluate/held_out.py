"""The validation metrics of a method on held-out samples, with the same masks at every call."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import eval_draw, eval_images
from unveil.data.batch import Batch
from unveil.data.splits import Subset
from unveil.evaluate.features import evaluation_batch_size
from unveil.learner import Method
from unveil.models.vit_config import ViTConfig
from unveil.train.log import Record
from unveil.train.parallel import HardwareConfig, World, autocast


@torch.no_grad()
def held_out_metrics(method: Method, batches: Iterable[tuple[Any, float]], hardware: HardwareConfig, world: World) -> Record:
    """The means of `Method.validation_metrics` over batches of (samples, share of all samples); empty without batches.

    If shares do not add up to 1, because some samples could not be read, the means are those of the others.
    """
    totals, covered = dict[str, Any](), 0.0
    for batch, share in batches:
        with autocast(hardware, world):
            found = method.validation_metrics(batch)
        totals = {key: totals.get(key, 0.0) + share * value for key, value in found.items()}
        covered += share
    if covered < 1 - 1e-6:
        totals = {key: value / covered for key, value in totals.items()}
    return {key: float(value) for key, value in method.reduce_metrics(totals).items()} if totals else {}


@torch.no_grad()
def held_out_images(
    subset: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World, most: int = 256
) -> Iterator[tuple[Batch, float]]:
    """Normalised batches of up to `most` held-out images, without those that cannot be read.

    An image has the same key, and so the same mask, at every call.
    """
    indices, draw = subset.indices[:most], eval_draw(vit.image_size, vit.crop_pct)
    for rows in torch.split(torch.arange(len(indices)), evaluation_batch_size(world)) if len(indices) else ():
        batch = subset.dataset.readable(indices[rows], sample_keys(0, int(rows[0]), len(rows)), draw)
        if batch is None:
            continue
        batch = batch.to(world.device)
        with autocast(hardware, world):
            images = eval_images(batch, vit.image_size, vit.mean, vit.std, vit.crop_pct)
        yield batch._replace(images=images), len(images) / len(indices)
