"""Opens images for a run: chooses their size, holds out a test set, and lists files that could not be used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn

from unveil.atomic_files import write_text
from unveil.blocks.patches import Size
from unveil.data.dataset import ImageDataset, sample_images
from unveil.data.sources import Data, Source, open_source
from unveil.data.splits import Subset, held_out_split
from unveil.errors import UnveilError
from unveil.plain_text import count_of, printable, shorten
from unveil.train.parallel import World
from unveil.train.terminal import console, new_bar

Say = Callable[[str], None]
SKIPPED = "skipped.txt"
"""The file in a run folder with the files that could not be used, one "name<TAB>reason" per line."""
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


def stored_side(image_size: Size) -> int:
    """The shorter side to which images are shrunk when they are read: 256 px for an image size of 224."""
    return -(-max(image_size) * 8 // 7)


def open_subsets(
    source: Source, test_source: Source | None, *, side: int, channels: int | None, max_pixels: int, most: int, show: bool
) -> tuple[Subset, Subset, bool]:
    """The train set, the test set, and whether the test set was held out from `source`.

    Args:
        source: Images to train on.
        test_source: Images to test on; if None, a tenth of `source` is held out, the same images each time.
        side: As for `ImageDataset`.
        channels: As for `ImageDataset`.
        max_pixels: As for `ImageDataset`.
        most: Maximum number of images to hold out.
        show: Whether to show a progress bar.
    """
    with progress_bar(source.name, show) as progress:
        train = ImageDataset(source, side=side, channels=channels, max_pixels=max_pixels, progress=progress)
    if test_source is None:
        kept, held_out = held_out_split(len(train), min(most, int(len(train) * HELD_OUT_SHARE)))
        return Subset(train, kept), Subset(train, held_out), True
    test_source = test_source.with_classes(source.classes)
    with progress_bar(test_source.name, show) as progress:
        test = ImageDataset(
            test_source, side=side, channels=train.channels, dtype=train.dtype, max_pixels=max_pixels, progress=progress
        )
    return Subset(train, torch.arange(len(train))), Subset(test, torch.arange(len(test))), False


@contextmanager
def progress_bar(name: str, show: bool, doing: str = "reading") -> Iterator[Callable[[int, int], None]]:
    """A progress bar for reading images, in a terminal."""
    target = console(stderr=True)
    if not (show and target.is_terminal):
        yield lambda done, of: None
        return
    with new_bar(target, MofNCompleteColumn(), width=24, transient=True) as bar:
        task = bar.add_task(f"{doing} {shorten(name)}", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def skipped_lines(*subsets: Subset) -> list[str]:
    """A line "name<TAB>reason" for each file that could not be used."""
    found: dict[str, str] = {}
    for subset in subsets:
        found |= dict(subset.dataset.source.skipped) | subset.dataset.skipped
    return [f"{printable(name)}\t{printable(reason)}" for name, reason in sorted(found.items())]


class SkippedFiles:
    """The files of a run that could not be used, in its `skipped.txt`.

    Args:
        folder: The run folder. Files that an earlier part of the run could not use stay in the list.
        subsets: The train set and the test set.
        world: Only the main process writes.
        say: Prints a message for the user.
    """

    def __init__(self, folder: Path, subsets: Sequence[Subset], world: World, say: Say) -> None:
        self.path, self.subsets, self.world, self.say = folder / SKIPPED, subsets, world, say
        self.count = 0

    def update(self) -> None:
        """Writes the file if it has grown since the last call, and says so."""
        if not self.world.is_main:
            return
        earlier = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        found = {line.partition("\t")[0]: line for line in (*earlier, *skipped_lines(*self.subsets))}
        if len(found) > self.count:
            self.count = len(found)
            write_text(self.path, "".join(f"{line}\n" for _, line in sorted(found.items())))
            self.say(f"{count_of(self.count, 'file')} could not be used: see {self.path}")

    def unreadable(self) -> dict[str, int]:
        """The numbers of unreadable images in the train set and in the test set. Says that evaluations leave them out."""
        counts = {"train": self.subsets[0].unreadable, "test": self.subsets[1].unreadable}
        if any(counts.values()):
            parts = [f"{count:,} of {len(each):,} {name}" for each, (name, count) in zip(self.subsets, counts.items(), strict=True)]
            self.say(f"{' and '.join(parts)} images could not be read: training replaced them by others, evaluations left them out")
        return counts


def open_whole(data: Data, *, side: int, channels: int | None, max_pixels: int, show: bool) -> Subset:
    """All images of DATA, without holding any out. If DATA has splits, the training split."""
    source = open_source(data)
    with progress_bar(source.name, show) as progress:
        dataset = ImageDataset(source, side=side, channels=channels, max_pixels=max_pixels, progress=progress)
    return Subset(dataset, torch.arange(len(dataset)))
