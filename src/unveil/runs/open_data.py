"""Opening DATA for a run: how large its images are, which are kept aside, what was skipped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.data.dataset import ImageDataset, sample_images
from unveil.data.shuffle import shuffled
from unveil.data.sources import Data, Source, open_source
from unveil.errors import UnveilError
from unveil.train.checkpoint import write_whole
from unveil.train.parallel import World

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subset:
    """Some images of a set, by their places."""

    dataset: ImageDataset
    places: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each, -1 where it has none."""
        return self.dataset.labels[self.places]

    @property
    def names(self) -> list[str]:
        """The name of each."""
        names = self.dataset.names
        return [names[i] for i in self.places.tolist()]

    def spread_out(self, count: int) -> "Subset":
        """Up to `count` of them, from all over the set."""
        return Subset(self.dataset, self.places[torch.linspace(0, len(self) - 1, min(count, len(self))).long()])

    def labelled(self, most: int | None = None) -> "Subset":
        """Those that have a class; at most so many, from all over the set."""
        places = self.places[self.labels >= 0]
        if most is not None and len(places) > most:
            places = places[shuffled(1, torch.arange(most), len(places))]
        return Subset(self.dataset, places)


def few_labels(part: Subset, count: int, seed: int) -> Subset:
    """`count` labelled images, as many of each class as there can be; which ones depends on the seed."""
    part = part.labelled()
    labels = part.labels
    if not 0 < count <= len(part):
        raise UnveilError(f"{count} labels were asked for, and there are {len(part)}: use --labels up to that, or 0 for all")
    order = shuffled(seed, torch.arange(len(part)), len(part))
    turn = torch.zeros(len(part), dtype=torch.int64)  # an image's turn within its class
    for c in torch.unique(labels):
        members = order[labels[order] == c]
        turn[members] = torch.arange(len(members))
    chosen = order[turn[order].argsort(stable=True)][:count]
    return Subset(part.dataset, part.places[chosen.sort().values])


def natural_side(source: Source, pixel_limit: int) -> int:
    """The short side that half of the images have at least, up to 512."""
    sides = [min(x.shape[:2]) for x in sample_images(source, 64, shrink_to=512, pixel_limit=pixel_limit)]
    return int(np.median(sides))


def sizes_for(natural: int, image_size: tuple[int, ...], patch_size: tuple[int, ...], huge: bool = False) -> tuple[Size, Size]:
    """Image and patch size: as given, or what suits images whose short side is `natural`."""
    patch = pair(patch_size, "patch_size")
    image = pair(image_size, "image_size")
    if patch is None:
        side = min(image) if image else min(natural, 224)
        step = max(1, round(side / 8)) if side < 128 else 14 if huge else 16
        patch = (step, step)
    if image is None:
        side = 224 if natural >= 224 else natural
        image = (max(side // patch[0], 1) * patch[0], max(side // patch[1], 1) * patch[1])
    return image, patch


def pair(value: tuple[int, ...] | int, name: str) -> Size | None:
    """A side as (height, width). Raises `UnveilError` where there are more than two."""
    value = (value,) if isinstance(value, int) else tuple(value)
    if not value:
        return None
    if len(value) > 2 or min(value) < 1:
        raise UnveilError(f"{name} is {' '.join(map(str, value))}: give one side, or height and width, in pixels")
    return value[0], value[-1]


def stored_side(image_size: Size) -> int:
    """The short side that images are shrunk to when they are read: 256 px for images of 224."""
    return -(-max(image_size) * 8 // 7)


def open_parts(
    source: Source,
    test_source: Source | None,
    *,
    side: int,
    channels: int | None,
    pixel_limit: int,
    share: float,
    most: int,
    show: bool,
) -> tuple[Subset, Subset, bool]:
    """The images to train on, those to judge on, and whether the latter were cut off the former.

    Args:
        source: What to train on.
        test_source: What to judge on; where there is none, a share of `source` is kept aside.
        side: As for `Images`.
        channels: As for `Images`.
        pixel_limit: As for `Images`.
        share: How much is kept aside; the same images each time.
        most: The largest number that is kept aside.
        show: Whether to show a progress bar.
    """
    with reading(source.name, show) as progress:
        dataset = ImageDataset(source, side=side, channels=channels, pixel_limit=pixel_limit, progress=progress)
    if test_source is not None:
        test_source = test_source.with_classes(source.classes)
        with reading(test_source.name, show) as progress:
            judged = ImageDataset(
                test_source, side=side, channels=dataset.channels, dtype=dataset.dtype, pixel_limit=pixel_limit, progress=progress
            )
        return Subset(dataset, torch.arange(len(dataset))), Subset(judged, torch.arange(len(judged))), False
    count = min(most, int(len(dataset) * share))
    order = shuffled(0, torch.arange(len(dataset)), len(dataset))
    return Subset(dataset, order[count:].sort().values), Subset(dataset, order[:count].sort().values), True


@contextmanager
def reading(name: str, show: bool, doing: str = "reading") -> Iterator[Callable[[int, int], None]]:
    """A progress bar for reading images, in a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield lambda done, of: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{doing} {name}", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def skipped_lines(*parts: Subset) -> list[str]:
    """A line "name<TAB>reason" for each file that could not be used."""
    found: dict[str, str] = {}
    for part in parts:
        found |= dict(part.dataset.source.skipped) | part.dataset.skipped
    clean = str.maketrans("\t\r\n", "   ")
    return [f"{name.translate(clean)}\t{reason.translate(clean)}" for name, reason in sorted(found.items())]


def write_skipped(folder: Path, parts: Sequence[Subset], world: World, say: Say) -> None:
    """Lists what could not be used in `skipped.txt`."""
    lines = skipped_lines(*parts)
    if lines and world.is_main:
        write_whole(folder / "skipped.txt", "\n".join(lines) + "\n")
        say(f"{len(lines):,} file{'s' * (len(lines) > 1)} could not be used: see {folder / 'skipped.txt'}")


def open_whole(data: Data, *, side: int, channels: int | None, pixel_limit: int, show: bool) -> Subset:
    """Every image of DATA, without holding any back; of data with splits, the training split."""
    source = open_source(data)
    with reading(source.name, show) as progress:
        dataset = ImageDataset(source, side=side, channels=channels, pixel_limit=pixel_limit, progress=progress)
    return Subset(dataset, torch.arange(len(dataset)))
