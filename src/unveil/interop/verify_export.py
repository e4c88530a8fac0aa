"""Compares an exported and reloaded model with the original, from image files on. Texts are random token ids."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from unveil.data.augment import normalise
from unveil.data.batch import Batch
from unveil.interop.encoder_only import encoder_only, vit_of
from unveil.interop.heads import head_for, left_out
from unveil.interop.image_files import image_files, read_prepared, sizes_to_try
from unveil.learner import Learner
from unveil.models.bert import TextConfig
from unveil.models.vit_config import ViTConfig
from unveil.protocols import Classifies, MapsClasses, Reconstructs
from unveil.tasks.multilabel import MultiLabel
from unveil.tasks.regression import Regression

TOLERANCE = 1e-4
"""Maximum difference of outputs, as a share of the largest value."""
Prepare = Callable[[Image.Image], Float[Tensor, "C H W"]]
"""The preprocessing of another library, from an opened file to a normalised image."""


class Verification(NamedTuple):
    """The result of a comparison."""

    difference: float | None
    """Maximum difference as a share of the largest value; NaN if shapes or tensors differ; None if nothing was compared."""
    library: str
    """The library that loaded the export, such as "timm"; or the reason why nothing was compared."""
    compared: str = "tensors"
    """The outputs that were compared, such as "class scores of image files"."""
    note: str = ""
    """What the export does not include, for the user; a sentence."""


class ImagePair(NamedTuple):
    """The same images for both models."""

    ours: Float[Tensor, "B C H W"]
    """As `unveil embed` prepares them."""
    theirs: Float[Tensor, "B C H W"]
    """As the other library prepares them."""
    source: str
    """What they were made of: "image files", or "random images" if no file or no other library holds such images."""


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Maximum difference as a share of the largest value; NaN if the shapes differ."""
    if found.shape != wanted.shape:
        return float("nan")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def largest(*differences: float) -> float:
    """The largest difference; NaN if one is NaN."""
    return float(torch.tensor(differences).max())


def image_pair(config: ViTConfig, prepare: Prepare | None, sizes: list[tuple[int, int]] | None = None) -> ImagePair:
    """Image files as two libraries prepare them.

    Args:
        config: The size and the kind of the images.
        prepare: The preprocessing of the other library; None if it has none for such images.
        sizes: Sizes of the files (height, width); by default `sizes_to_try`.
    """
    with image_files(config, sizes or sizes_to_try(config)) as paths:
        if not paths or prepare is None:
            images = random_images(config)
            return ImagePair(images, images, "random images")
        opened = []
        for path in paths:
            with Image.open(path) as image:
                image.load()
                opened.append(prepare(image))
        return ImagePair(read_prepared(paths, config), torch.stack(opened), "image files")


def prepare_like(config: ViTConfig) -> Prepare:
    """Our own preprocessing of a model that was reloaded."""

    def prepare(image: Image.Image) -> Tensor:
        return read_prepared([image], config)[0]

    return prepare


def random_images(config: ViTConfig) -> Float[Tensor, "2 C H W"]:
    """Two normalised images, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return normalise(torch.rand(2, config.channels, *config.image_size, generator=generator), config.mean, config.std)


def every_other_patch(config: ViTConfig, count: int = 2) -> Bool[Tensor, "B N"]:
    """A mask of every other patch, for `count` images."""
    return (torch.arange(config.grid[0] * config.grid[1]) % 2 == 0).expand(count, -1)


def random_texts(config: TextConfig) -> tuple[Int[Tensor, "2 T"], Bool[Tensor, "2 T"]]:
    """Two rows of token ids, the same at every call, and True for tokens without padding. Half of the second row is padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(config.vocabulary), (2, min(16, config.length)), generator=generator)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, ids.shape[1] // 2 :] = False
    return ids, real


@torch.no_grad()
def outputs_for_images(learner: Learner, images: Float[Tensor, "B C H W"]) -> tuple[Tensor, str]:
    """The outputs of a head (B, K), or else the tokens of the encoder; and a name for this output."""
    if isinstance(learner, Regression):
        keys, sizes = torch.arange(len(images)), torch.tensor(images.shape[2:]).expand(len(images), 2)
        return learner.predict(Batch(images, sizes, keys))[:, None], "numbers"
    if isinstance(learner, MapsClasses):
        return learner.map_logits(images), "class scores of pixels"
    if isinstance(learner, Classifies):
        return learner.logits(images), "label scores" if isinstance(learner, MultiLabel) else "class scores"
    return learner.encoder(images), "tokens"


def difference_of_outputs(learner: Learner, found: Tensor, images: Float[Tensor, "B C H W"]) -> tuple[float, str]:
    """Compares the outputs of another model with those of a learner, as a share of the largest value; and a name for these outputs.

    A number of a regression is measured from the mean of its train set: a share of a year would be decades. What float32 cannot
    tell apart at that mean is no difference.
    """
    wanted, compared = outputs_for_images(learner, images)
    if not isinstance(learner, Regression) or found.shape != wanted.shape:
        return relative_difference(found, wanted), compared
    rounding = 4 * torch.finfo(torch.float32).eps * learner.mean.abs()
    scale = torch.maximum((wanted - learner.mean).abs().max(), 1e-3 * learner.deviation)
    return float(((found - wanted).abs().max() - rounding).clamp(min=0) / scale), compared


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
        return Verification(relative_difference(found, wanted), library, compared)
    if not isinstance(config, ViTConfig):
        return Verification(0.0, library)  # the encoder of a plug-in has unknown inputs, but its tensors are equal
    pair = image_pair(config, prepare_like(again.encoder.config))
    features = relative_difference(again.features(pair.theirs), learner.features(pair.ours))
    if isinstance(learner, Reconstructs) and isinstance(again, Reconstructs):
        hidden = every_other_patch(config, len(pair.ours)) if learner.reconstructs_hidden else None
        found, wanted = again.reconstruct(pair.theirs, hidden).pixels, learner.reconstruct(pair.ours, hidden).pixels
        difference, compared = relative_difference(found, wanted), "reconstructions"
    else:
        difference, compared = difference_of_outputs(learner, outputs_for_images(again, pair.theirs)[0], pair.ours)
    return Verification(largest(features, difference), library, f"features and {compared} of {pair.source}")


@torch.no_grad()
def compare_reloaded(learner: Learner, again: Learner, to: str) -> Verification:
    """Compares what a format keeps of a learner with our reloaded copy of the export: all of it, or only its encoder."""
    whole = isinstance(again, Reconstructs) or head_for(learner, to) is not None
    kept = learner if whole else encoder_only(vit_of(learner), pool="class" if learner.pool == "class" else "mean")
    return compare_outputs(kept, again)._replace(note=left_out(learner, to))
