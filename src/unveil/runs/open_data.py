"""Opens images for a run: chooses their size, holds out a test set, and lists files that could not be used."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from rich.progress import MofNCompleteColumn
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.augment import AugmentConfig
from unveil.data.copies import copies_of, copies_of_tests
from unveil.data.dataset import ImageDataset
from unveil.data.eval_transform import EvalTransform, crop_pct_for
from unveil.data.image_samples import sample_images
from unveil.data.parts import Roles
from unveil.data.pixels import CropSide, ShrinkTo
from unveil.data.sources import Data, Source, open_parts, open_roles
from unveil.data.splits import Subset, held_out_split
from unveil.errors import UnveilError
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of, shorten
from unveil.train.terminal import console, has_bars, new_bar

Say = Callable[[str], None]
HELD_OUT_SHARE = 0.1
"""Share of the images to hold out if there is no test split."""


def natural_side(source: Source, max_pixels: int) -> int:
    """The median of the shorter sides of the images in pixels, up to 512, estimated from a sample."""
    sides = [min(x.shape[:2]) for x in sample_images(source, 64, shrink_to=512, max_pixels=max_pixels)]
    return int(np.median(sides))


def sizes_for(natural: int, image_size: tuple[int, ...], patch_size: tuple[int, ...], huge: bool = False) -> tuple[Size, Size]:
    """Image and patch size: as given, or suitable for images whose shorter side is `natural`."""
    patch = size_option(patch_size, "patch_size")
    image = size_option(image_size, "image_size")
    if patch is None:
        side = min(image) if image else min(natural, 224)
        step = max(1, round(side / 8)) if side < 128 else 14 if huge else 16
        patch = (step, step)
    if image is None:
        side = 224 if natural >= 224 else natural
        image = (max(side // patch[0], 1) * patch[0], max(side // patch[1], 1) * patch[1])
    return image, patch


def size_option(value: tuple[int, ...] | int, name: str) -> Size | None:
    """Converts a side, or height and width, to (height, width); None if it is empty. Raises `UnveilError` for anything else."""
    value = (value,) if isinstance(value, int) else tuple(value)
    if not value:
        return None
    if len(value) > 2 or min(value) < 1:
        raise UnveilError(f"{name} is {' '.join(map(str, value))}: give one side, or height and width, in pixels")
    return value[0], value[-1]


def stored_side(image_size: Size, augment: AugmentConfig | None = None) -> ShrinkTo:
    """How far images are shrunk when they are read: for an image size of 224, to a short side of 256 px.

    For random crops of the original, it is what the smallest crop of a square image needs: 579 px at 224 px, if crops have at least
    0.2 of the area and sides of up to 4:3.
    """
    height, width = (-(-side * 8 // 7) for side in image_size)
    if augment is None or augment.crop_from == "shrunk" or augment.crop not in ("resized", "clipped"):
        return height if height == width else (height, width)
    smallest = math.sqrt(augment.crop_scale * 3 / 4)  # its shorter side, as a share of that of the image
    return CropSide(max(height, math.ceil(image_size[0] / smallest)), max(width, math.ceil(image_size[1] / smallest)))


def pack_sentence(source: Source, side: ShrinkTo) -> str:
    """What the user should know if random crops need more pixels than a pack has; "" otherwise. For `side` see `stored_side`."""
    needed = side if isinstance(side, int) else max(side)
    if source.shrunk_to is None or source.shrunk_to >= needed:
        return ""
    return (
        f"{source.name} has images of {source.shrunk_to} px on the short side, so random crops may be enlarged: "
        f"if the original images are larger, pack them with --side {needed}"
    )


class ImageSubsets(NamedTuple):
    """The images of a run, opened."""

    train: Subset
    test: Subset
    held_out: bool
    """Whether the test set was held out from the training images."""
    validation: Subset | None
    """The images to evaluate during training, so that the test set is evaluated only at the end; None means the test set."""
    note: str = ""
    """What the user should know about copies of test images; "" if there are none."""


def open_subsets(
    roles: Roles,
    *,
    side: ShrinkTo | None,
    channels: int | None,
    max_pixels: int,
    most: int,
    show: bool,
    read: bool = True,
    leave_out_copies: bool = True,
) -> ImageSubsets:
    """Opens the images of a run.

    Args:
        roles: The images. If there are none to test on, a tenth of the training images is held out, the same images each time.
        side: As for `ImageDataset`.
        channels: As for `ImageDataset`.
        max_pixels: As for `ImageDataset`.
        most: Maximum number of images to hold out.
        show: Whether to show a progress bar.
        read: Whether images are read into memory if they fit; if not, only a sample is.
        leave_out_copies: Whether training images that are exact copies of held-out ones are left out.
    """
    opened = ImageDataset if read else partial(ImageDataset, memory=0)
    with progress_bar(roles.train.name, show) as progress:
        train = opened(roles.train, side=side, channels=channels, max_pixels=max_pixels, progress=progress)
    if roles.test is None:
        kept, held_out = kept_and_held_out(roles.train, roles.held_out_of, most)
        all_kept, test = Subset(train, kept), Subset(train, held_out)
        rest = without_copies(all_kept, test) if leave_out_copies else all_kept
        if not len(rest) and len(all_kept):
            raise UnveilError(
                f"each image of {roles.train.name} is an exact copy of one of the {count_of(len(test), 'image')} held out for the "
                f"test, so none is left to train on"
            )
        return ImageSubsets(rest, test, True, None, left_out_sentence(len(all_kept) - len(rest)))

    def like_train(source: Source) -> Subset:
        source = source.with_classes(roles.train.classes) if roles.train.classes else source
        with progress_bar(source.name, show) as progress:
            dataset = opened(
                source, side=side, channels=train.channels, dtype=train.dtype, max_pixels=max_pixels, progress=progress
            )
        return Subset(dataset, torch.arange(len(dataset)))

    validation = None if roles.validation is None else like_train(roles.validation)
    note = shared_sentence(*copies_of_tests(roles.test, roles.train), len(roles.test))
    return ImageSubsets(Subset(train, torch.arange(len(train))), like_train(roles.test), False, validation, note)


def kept_and_held_out(source: Source, among: int, most: int) -> tuple[Int[Tensor, " t"], Int[Tensor, " c"]]:
    """Indices to train on, and to hold out, of the images of a source: a tenth of the first `among`, at most `most`."""
    groups = None if source.groups is None else torch.from_numpy(source.groups[:among])
    kept, held_out = held_out_split(among, min(most, int(among * HELD_OUT_SHARE)), groups)
    return torch.cat([kept, torch.arange(among, len(source))]), held_out


def without_copies(kept: Subset, aside: Subset) -> Subset:
    """The images of a subset that are no exact copies of images that are kept aside from it, of the same dataset."""
    source = kept.dataset.source
    copies = sorted(copies_of(source, aside.indices.numpy(), source, kept.indices.numpy()))
    return Subset(kept.dataset, kept.indices[~torch.isin(kept.indices, torch.tensor(copies, dtype=torch.int64))])


def left_out_sentence(copies: int) -> str:
    """What the user should know about training images that were left out; "" if there are none."""
    verb = "is an exact copy of a held-out one" if copies == 1 else "are exact copies of held-out ones"
    return f"left out {count_of(copies, 'training image')} that {verb}" if copies else ""


def shared_sentence(shared: int, checked: int, tests: int) -> str:
    """A warning that test images are trained on; "" if none of those that were checked is."""
    of = f"the {checked:,} that were checked of {tests:,} test images" if checked < tests else count_of(tests, "test image")
    verb = "is an exact copy of a training image" if shared == 1 else "are exact copies of training images"
    return f"{shared:,} of {of} {verb}: the results are too good (unveil doctor lists them)" if shared else ""


def image_facts(dataset: ImageDataset, image_size: Size) -> dict[str, Any]:
    """The options of a `ViTConfig` that follow from the images, and how evaluations of a run resize them: see `eval_images`."""
    crop_pct, bits = crop_pct_for(dataset.sample_sizes, image_size), 16 if dataset.dtype == torch.uint16 else 8
    return {"crop_pct": crop_pct, "bit_depth": bits, "crop_mode": "center", "interpolation": "bicubic"}


def adapt_to_images(encoder: ViT, train_set: Subset) -> None:
    """Records the facts of other images than those of pre-training in the config of an encoder, which evaluations follow."""
    encoder.config = replace(encoder.config, **image_facts(train_set.dataset, encoder.config.image_size))


def preprocessed(subset: Subset, vit: ViTConfig) -> Subset:
    """The same images, preprocessed from the file on as `unveil predict`, `unveil embed` and exported models do."""
    return Subset(subset.dataset.preprocessed(EvalTransform.of(vit)), subset.indices)


def reopened(vit: ViTConfig, *subsets: Subset) -> list[Subset]:
    """As `preprocessed`, but opened anew, in memory if the images fit: for images that are needed several times."""
    fresh, transform = dict[int, ImageDataset](), EvalTransform.of(vit)
    for old in (subset.dataset for subset in subsets):
        if id(old) not in fresh:
            with progress_bar(old.source.name, True) as progress:
                fresh[id(old)] = ImageDataset(
                    old.source,
                    side=old.side,
                    channels=old.channels,
                    dtype=old.dtype,
                    max_pixels=old.max_pixels,
                    progress=progress,
                    transform=transform,
                )
    return [Subset(fresh[id(subset.dataset)], subset.indices) for subset in subsets]


def say_notes(say: Say, sentence: str, *sources: Source) -> None:
    """Prints what the user should know about the data before training: see `Roles.sentence` and `Source.notes`."""
    for note in dict.fromkeys([sentence, *(note for source in sources for note in source.notes)]):
        if note:
            say(note)


@contextmanager
def progress_bar(name: str, show: bool, doing: str = "reading") -> Iterator[Callable[[int, int], None]]:
    """A progress bar for reading images, in a terminal."""
    target = console(stderr=True)
    if not (show and has_bars(target)):
        yield lambda done, of: None
        return
    with new_bar(target, MofNCompleteColumn(), width=24, transient=True) as bar:
        task = bar.add_task(f"{doing} {shorten(name)}", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def open_each(
    data: Data, split: str | None, vit: ViTConfig, *, max_pixels: int, adapt: bool = True, whole: bool = False
) -> dict[str, Subset]:
    """The images of DATA, preprocessed for a model, by the name of their split; "train" if DATA has no splits.

    They are read on demand, since each is used once.

    Args:
        data: The images.
        split: The splits to open; by default all.
        vit: The size and the kind of the images that the model takes.
        max_pixels: Files with more pixels than this are not decoded.
        adapt: Whether images are read with 16 bits if most of them have 16, also for a model of 8 bits. If not, the result for an
            image does not depend on the other images.
        whole: Whether images are read as they are stored, for a task that takes whole images.
    """
    subsets, parts = dict[str, Subset](), open_parts(data)
    dtype = torch.uint16 if vit.bit_depth == 16 else None if adapt else torch.uint8
    side, transform = (None, None) if whole else (stored_side(vit.image_size), EvalTransform.of(vit))
    for name in parts.chosen(split or "all"):
        dataset = ImageDataset(
            parts.source(name), side=side, channels=vit.channels, dtype=dtype, max_pixels=max_pixels, memory=0, transform=transform
        )
        dtype = dataset.dtype
        subsets[name] = Subset(dataset, torch.arange(len(dataset)))
    return subsets


def open_whole(data: Data, split: str | None, *, side: ShrinkTo, channels: int | None, max_pixels: int, show: bool) -> Subset:
    """The images of some splits of DATA, by default of the training split, without holding any out."""
    source = open_roles(data, split=split).train
    with progress_bar(source.name, show) as progress:
        dataset = ImageDataset(source, side=side, channels=channels, max_pixels=max_pixels, progress=progress)
    return Subset(dataset, torch.arange(len(dataset)))
