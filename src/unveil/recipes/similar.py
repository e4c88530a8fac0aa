"""`unveil similar`: the images that are nearest to an image, as a figure and a table."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from unveil.atomic_files import replacing
from unveil.data.dataset import ImageDataset
from unveil.data.eval_transform import EvalTransform
from unveil.data.images import read_image
from unveil.data.pixels import Pixels, Unreadable
from unveil.data.regular_files import read_file
from unveil.data.source import Raw, Source
from unveil.data.sources import Data, open_parts
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.evaluate.features import features_of, refuse_non_finite
from unveil.evaluate.neighbours import nearest_of_many
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.models.vit_config import ViTConfig
from unveil.options import configure
from unveil.paths import refuse_existing
from unveil.plain_text import count_of, csv_cell, shorten
from unveil.plugins import trust as allow
from unveil.ranges import Count, Range
from unveil.reports.neighbour_figure import neighbour_figure
from unveil.reports.style import save_figure
from unveil.runs.labelled_data import free_file
from unveil.runs.modality import slug
from unveil.runs.open_data import open_each, say_notes, stored_side
from unveil.runs.skipped_files import skipped_lines
from unveil.train.parallel import HardwareConfig, join_processes
from unveil.train.terminal import printer, show

PICTURE = 224
"""Maximum short side of an image in the figure, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SimilarConfig:
    """What to search, and how much to show."""

    HIDDEN = ("max_pixels",)
    split: str | None = None
    """Parts of DATA to search: train, val, test, unlabeled, other (beside the splits), or several as in train+val; by default
    all."""
    count: Annotated[int, Range(1, 100)] = 12
    """Images to find."""
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    """Images per batch."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""


class Similar(NamedTuple):
    """An image of DATA that is near to a given image."""

    image: str
    """The given image."""
    rank: int
    """1 is the nearest."""
    similarity: float
    """The cosine of the features: 1 for the same image."""
    path: str
    label: str
    """"" if it has none."""
    split: str
    """"" if DATA has no splits."""


def similar(
    run: str | os.PathLike[str],
    image: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: Data,
    *,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> list[Similar]:
    """Finds the images of DATA whose features have the largest cosine to those of an image, and writes similar.png and similar.csv.

    If the image is one of DATA, it is left out: that is, if its path is that of a file in the folder DATA.

    Args:
        run: Anything that `unveil.load` accepts.
        image: An image file, or several.
        data: The images to search: see `unveil.data.sources.FORMS`. Up to 200,000 are all compared; more need the extra `faiss`.
        out: A new folder; by default <name of the image>-similar.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `SimilarConfig` and `HardwareConfig`. By default, features are computed in float32.

    Returns:
        The nearest images of each image, nearest first.

    Raises:
        UnveilError: If an image cannot be read, the folder exists, or features are not finite.
    """
    allow(trust)
    config, hardware = configure(options, SimilarConfig, HardwareConfig)
    paths = [Path(each).expanduser() for each in ([image] if isinstance(image, str | os.PathLike) else image)]
    if not paths:
        raise UnveilError("no image is given: expected the path of at least one")
    if out is not None and Path(out).suffix.lower() in (".png", ".csv", ".pdf", ".svg", ".jpg"):
        raise UnveilError(f"out is {str(out)!r}, but it is a folder for similar.png and similar.csv: give a name without an ending")
    folder = Path(out) if out else free_file(Path(f"{slug(paths[0].stem)}-similar"))
    refuse_existing(folder)
    world, say = join_processes(hardware), printer(True)
    if hardware.precision == "auto":
        hardware = replace(hardware, precision="float32")  # features are a result: rounding is for those who ask for it
    learner = load(run, say=say).to(world.device).eval()
    vit = vit_of(learner).config
    function = partial(learner.features, pool=None)
    asked = features_of(function, given_images(paths, vit, config.max_pixels), vit, hardware, world)
    refuse_non_finite(asked, str(run))
    parts = open_each(data, config.split, vit, max_pixels=config.max_pixels)
    say_notes(say, "", *(part.dataset.source for part in parts.values()))
    tables, places = [], list[tuple[str, Subset, int]]()
    for split, part in parts.items():
        features = features_of(function, part, vit, hardware, world, config.batch_size)
        refuse_non_finite(features, str(run))
        tables.append(features.rows)
        places += [(split, part, index) for index in features.subset.indices.tolist()]
    bank = tables[0] if len(tables) == 1 else torch.cat(tables)
    near = nearest_of_many(asked.rows, bank, config.count + 1)  # one more, for the image itself
    has_splits = open_parts(data).has_splits
    found, pictures = list[Similar](), list[tuple[Pixels, list[Pixels]]]()
    for row, path in enumerate(paths):
        own = own_path(path, data)
        kept = [(float(cosine), *places[index]) for cosine, index in zip(near.similarity[row], near.row[row].tolist(), strict=True)]
        if own and any(part.dataset.names[index] == own for _, _, part, index in kept):
            say(f"{path} is one of the images of {data}, and is left out")
        kept = [each for each in kept if not own or each[2].dataset.names[each[3]] != own][: config.count]
        found += [
            Similar(
                str(path), rank, round(cosine, 6), part.dataset.names[index], label_of(part, index), split if has_splits else ""
            )
            for rank, (cosine, split, part, index) in enumerate(kept, 1)
        ]
        pictures.append((seen(path, config.max_pixels), [seen_of(part, index, config.max_pixels) for _, _, part, index in kept]))
    write_similar(folder / "similar.csv", found)
    groups = [[each for each in found if each.image == str(path)] for path in paths]
    labels = [[(f"{each.similarity:.3f}", each.label or Path(each.path).name) for each in group] for group in groups]
    save_figure(neighbour_figure([path.name for path in paths], pictures, labels), folder / "similar.png", dpi=150)
    for line in skipped_lines(*parts.values()):
        say(f"skipped {line}")
    show(table_of(found, has_splits, len(paths)))
    say(f"Of {count_of(len(bank), 'image')}. The figure: {folder / 'similar.png'}, the table: {folder / 'similar.csv'}")
    return found


def given_images(paths: Sequence[Path], vit: ViTConfig, max_pixels: int) -> Subset:
    """The given images, preprocessed for a model. Raises `UnveilError` if one cannot be read."""
    for path in paths:
        try:
            read_image(path, max_pixels=max_pixels)
        except Unreadable as error:
            raise UnveilError(f"{path} cannot be used: {error.reason}") from None
    source = Source("the given images", [str(path) for path in paths], None, [], "", lambda index: read_file(paths[index]))
    dataset = ImageDataset(
        source,
        side=stored_side(vit.image_size),
        channels=vit.channels,
        dtype=torch.uint16 if vit.bit_depth == 16 else torch.uint8,
        max_pixels=max_pixels,
        transform=EvalTransform.of(vit),
    )
    return Subset(dataset, torch.arange(len(paths)))


def own_path(image: Path, data: Data) -> str:
    """The path of an image within the folder DATA; "" if it does not lie there."""
    if not isinstance(data, str | os.PathLike) or not (root := Path(data).expanduser()).is_dir():
        return ""
    file, folder = Path(os.path.realpath(image)), Path(os.path.realpath(root))
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""


def label_of(part: Subset, index: int) -> str:
    """The class of an image; "" if it has none."""
    label = int(part.dataset.labels[index])
    return part.dataset.classes[label] if label >= 0 else ""


def seen(raw: Path | Raw, max_pixels: int) -> Pixels:
    """An image as the figure shows it; a black one if it cannot be read any more."""
    try:
        return read_image(raw, shrink_to=PICTURE, max_pixels=max_pixels)
    except Unreadable:
        return np.zeros((PICTURE, PICTURE, 3), np.uint8)


def seen_of(part: Subset, index: int, max_pixels: int) -> Pixels:
    """An image of DATA as the figure shows it."""
    try:
        return seen(part.dataset.source.read(index), max_pixels)
    except Unreadable:
        return np.zeros((PICTURE, PICTURE, 3), np.uint8)


def write_similar(path: Path, found: Sequence[Similar]) -> None:
    """Writes one row per image that was found."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Similar._fields)
        for each in found:
            writer.writerow([each.rank if name == "rank" else csv_cell(value) for name, value in each._asdict().items()])


def table_of(found: Sequence[Similar], has_splits: bool, images: int) -> Table:
    """What was found, for a terminal of 80 columns."""
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0))
    labelled = any(each.label for each in found)
    optional = {"image": images > 1, "": True, "cosine": True, "label": labelled, "split": has_splits, "path": True}
    heads = [head for head, wanted in optional.items() if wanted]
    for head in heads:
        table.add_column(head, justify="right" if head in ("", "cosine") else "left", no_wrap=True)
    for each in found:
        path = shorten(each.path, 32 if images == 1 else 22)
        cells = {"image": shorten(Path(each.image).name, 14), "": str(each.rank), "cosine": f"{each.similarity:.3f}"}
        cells |= {"label": shorten(each.label, 16), "split": each.split, "path": path}
        table.add_row(*(Text(cells[head]) for head in heads))
    return table
