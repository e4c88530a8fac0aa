"""The worst mistakes of a task as images, how far probabilities can be trusted, and predicted beside true numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of
from unveil.reports.html import Markup, element, join_markup, table_element
from unveil.reports.image_grid import ImageGrid, to_rgb
from unveil.reports.sections import refuse_bomb
from unveil.reports.style import LIGHT, inline_svg, new_figure, styled
from unveil.reports.vocabulary import Results, percent

MOST, COLUMNS = 12, 4
"""Maximum number of images, and images in a row."""


class Measure(NamedTuple):
    """How wrong a prediction is."""

    heading: str
    note: str
    is_share: bool = False


LABEL_NOTE = "Where the label is wrong and not the prediction, correct the label."
MEASURES = {
    "probability": Measure(
        "probability", f"The wrong predictions with the highest probability, of the test images. {LABEL_NOTE}", is_share=True
    ),
    "error": Measure(
        "error", f"The predictions of the test images that are furthest from the true number: predicted minus true. {LABEL_NOTE}"
    ),
    "loss": Measure(
        "loss",
        f"The test images with a wrong label and the largest loss, the sum of the cross-entropies of their labels. {LABEL_NOTE}",
    ),
}
"""By the name of the array in `mistakes.npz`."""
FEW = 30
"""Test images below which the mean of their probabilities is not judged."""


class Mistakes(NamedTuple):
    """Test images with a wrong prediction, the worst first: the content of `mistakes.npz`."""

    images: Float[Tensor, "n C H W"]
    """Normalised images."""
    names: list[str]
    true: list[str]
    predicted: list[str]
    measure: Measure
    numbers: list[float]
    """How wrong each prediction is: see `measure`."""


def mistake_section(path: Path, learner: Learner | None) -> Markup | None:
    """The most confident mistakes as images, with a table; None if the run has none. A damaged file is told."""
    if not path.is_file():
        return None
    try:
        found = read_mistakes(path)
        config = getattr(getattr(learner, "encoder", None), "config", None)
        if not isinstance(config, ViTConfig):
            return element("p", "Not shown: the trained model was not available when this page was written.")
        if found.images.shape[1] != config.channels:
            raise UnveilError(f"{path} holds images of {found.images.shape[1]} channels, but the model takes {config.channels}")
    except UnveilError as error:
        return element("p", f"Not shown: {error}.")
    height, width = found.images.shape[2:]
    lines = -(-len(found.names) // COLUMNS)
    grid = ImageGrid(lines, (COLUMNS,), (height, width), headings=False, label_rows=tuple(range(lines)))
    for i, image in enumerate(to_rgb(found.images, config.mean, config.std)):
        grid.add_image(i // COLUMNS, i % COLUMNS, image, str(i + 1))
    alt = f"{count_of(len(found.names), 'test image')} with a wrong prediction."
    figure = element("div", element("figure", inline_svg(grid.figure, "mistakes", alt)), class_="figures")
    numbers = [percent(x) if found.measure.is_share else f"{x:.4g}" for x in found.numbers]
    columns = zip(found.true, found.predicted, numbers, found.names, strict=True)
    rows = [[str(i + 1), *cells] for i, cells in enumerate(columns)]
    heads = ["", "label", "predicted as", found.measure.heading, "file"]
    table = table_element(heads, rows, title="The mistakes shown", show_title=False)
    return join_markup([element("p", found.measure.note), figure, table])


def read_mistakes(path: Path) -> Mistakes:
    """Reads `mistakes.npz`. Raises `UnveilError` if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_bomb(arrays, path)
            images = np.asarray(arrays["images"], dtype=np.float32)[:MOST]
            names, true, predicted = ([str(each) for each in arrays[key][:MOST]] for key in ("names", "true", "predicted"))
            key = next(name for name in MEASURES if name in arrays)
            numbers = [float(each) for each in arrays[key][:MOST]]
    except UnveilError:
        raise
    except Exception as error:  # a damaged archive can raise any exception of zipfile, zlib, NumPy and its parser
        raise UnveilError(f"{path} is damaged ({type(error).__name__})") from None
    if images.ndim != 4 or not len(images) or {len(names), len(true), len(predicted), len(numbers)} != {len(images)}:
        raise UnveilError(f"{path} is damaged: its images have the shape {images.shape}")
    return Mistakes(torch.from_numpy(images), names, true, predicted, MEASURES[key], numbers)


def calibration_section(results: Results) -> Markup | None:
    """A reliability diagram (Guo et al., 2017), if the score has one."""
    score = results.get("score") or {}
    rows: Sequence[Sequence[float]] = [row for row in score.get("reliability") or [] if row[0]]
    if not rows:
        return None
    counts, means, shares = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    figure = new_figure(4.4, 2.9)
    with styled():
        axes = figure.add_axes((0.14, 0.17, 0.82, 0.78), xlim=(0, 100), ylim=(0, 100))
        axes.plot([0, 100], [0, 100], color=LIGHT["muted"], linewidth=1, linestyle=(0, (5, 2)))
        sizes = 12 + 140 * counts / counts.max()
        axes.plot(100 * means, 100 * shares, color=LIGHT["primary"], linewidth=1.4)
        axes.scatter(100 * means, 100 * shares, s=sizes, color=LIGHT["primary"], alpha=0.75, linewidth=0, clip_on=False)
        axes.set(xlabel="probability of the predicted class (%)", ylabel="correct (%)")
    mean = float((counts * means).sum() / counts.sum())
    right = float((counts * shares).sum() / counts.sum())
    chance = 1.96 * (right * (1 - right) / counts.sum()) ** 0.5  # of the share that is correct, by its binomial distribution
    if counts.sum() < FEW:
        tendency = f"{count_of(int(counts.sum()), 'test image')} cannot tell whether its probabilities are right"
    elif abs(mean - right) <= max(chance, 0.01):
        tendency = "On average its probabilities are right, as far as so many images can tell"
    else:
        tendency = f"It is too {'confident' if mean > right else 'cautious'}"
    caption = (
        f"{tendency}: the mean probability of its predictions is {percent(mean)}, and {percent(right)} of them are correct. A "
        f"point is a range of probabilities; its area shows how many test images have them. On the dashed line, probabilities are "
        f"right."
    )
    return element("figure", inline_svg(figure, "calibration", caption), element("figcaption", caption))


def scatter_section(results: Results) -> Markup | None:
    """True and predicted numbers as points, if the score has them."""
    score = results.get("score") or {}
    pairs: Sequence[Sequence[float]] = score.get("scatter") or []
    if not pairs:
        return None
    true, predicted = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    both = np.concatenate([true, predicted])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    room = 0.04 * (high - low) or 1.0
    figure = new_figure(3.6, 3.4)
    with styled():
        limits = (low - room, high + room)
        axes = figure.add_axes((0.18, 0.15, 0.78, 0.8), xlim=limits, ylim=limits)
        axes.plot(limits, limits, color=LIGHT["muted"], linewidth=1, linestyle=(0, (5, 2)))
        axes.scatter(true, predicted, s=12, color=LIGHT["primary"], alpha=0.5, linewidth=0)
        axes.set(xlabel="true number", ylabel="predicted number")
    mean, middle = float(np.mean(predicted - true)), float(np.median(np.abs(predicted - true)))
    shown = count_of(len(pairs), "test image")
    total = score.get("count")
    some = f" of {total:,}" if isinstance(total, int) and total > len(pairs) else ""
    caption = (
        f"Each point is one of {shown}{some}; on the dashed line, the prediction is right. Predictions are {abs(mean):.3g} too "
        f"{'high' if mean > 0 else 'low'} on average, and half of them are within {middle:.3g}."
    )
    return element("figure", inline_svg(figure, "numbers", caption), element("figcaption", caption))
