"""Compares the outputs of an exported and reloaded model with those of the original, on random inputs."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.data.augment import normalise
from unveil.learner import Learner
from unveil.models.bert import TextConfig
from unveil.models.vit_config import ViTConfig
from unveil.protocols import Classifies, Reconstructs

TOLERANCE = 1e-4
"""Maximum difference of outputs, as a share of the largest value."""


class Verification(NamedTuple):
    """The result of a comparison."""

    difference: float | None
    """Maximum difference as a share of the largest value; NaN if shapes or tensors differ; None if nothing was compared."""
    library: str
    """The library that loaded the export, such as "timm"; or the reason why nothing was compared."""
    compared: str = "tensors"
    """The outputs that were compared, such as "class scores of random images"."""


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Maximum difference as a share of the largest value; NaN if the shapes differ."""
    if found.shape != wanted.shape:
        return float("nan")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def random_images(config: ViTConfig) -> Float[Tensor, "2 C H W"]:
    """Two normalised images, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return normalise(torch.rand(2, config.channels, *config.image_size, generator=generator), config.mean, config.std)


def every_other_patch(config: ViTConfig) -> Bool[Tensor, "2 N"]:
    """A mask of every other patch, for two images."""
    return (torch.arange(config.grid[0] * config.grid[1]) % 2 == 0).expand(2, -1)


def random_texts(config: TextConfig) -> tuple[Int[Tensor, "2 T"], Bool[Tensor, "2 T"]]:
    """Two rows of token ids, the same at every call, and True for tokens without padding. Half of the second row is padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(config.vocabulary), (2, min(16, config.length)), generator=generator)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, ids.shape[1] // 2 :] = False
    return ids, real


@torch.no_grad()
def outputs_for_images(learner: Learner, images: Float[Tensor, "B C H W"]) -> tuple[Tensor, str]:
    """The class scores of a classifier, or else the tokens of the encoder; and a name for this output."""
    if isinstance(learner, Classifies):
        return learner.logits(images), "class scores of random images"
    return learner.encoder(images), "tokens of random images"


@torch.no_grad()
def outputs_for_texts(learner: Learner, ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"]) -> tuple[Float[Tensor, "_ _"], str]:
    """The class scores of a classifier, or else the tokens of the encoder without padding; and a name for this output."""
    if isinstance(learner, Classifies):
        return learner.logits(ids), "class scores of random texts"
    return learner.encoder(ids, real=real)[real], "tokens of random texts"


@torch.no_grad()
def compare_outputs(learner: Learner, again: Learner) -> Verification:
    """Compares the outputs of a learner with those of its reloaded copy."""
    config, library = learner.encoder.config, "the reloaded file"
    if isinstance(config, TextConfig):
        texts = random_texts(config)
        (found, _), (wanted, compared) = outputs_for_texts(again, *texts), outputs_for_texts(learner, *texts)
    elif not isinstance(config, ViTConfig):
        return Verification(0.0, library)  # the encoder of a plug-in has unknown inputs, but its tensors are equal
    elif isinstance(learner, Reconstructs) and isinstance(again, Reconstructs):
        images, hidden = random_images(config), every_other_patch(config) if learner.reconstructs_hidden else None
        found, wanted = (each.reconstruct(images, hidden).pixels for each in (again, learner))
        compared = "reconstructions of random images"
    else:
        images = random_images(config)
        (found, _), (wanted, compared) = outputs_for_images(again, images), outputs_for_images(learner, images)
    return Verification(relative_difference(found, wanted), library, compared)
