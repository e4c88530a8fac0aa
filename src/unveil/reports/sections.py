"""The sections of a report with images and curves. A section without content gives the reason."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of
from unveil.protocols import Reconstructs
from unveil.reports.attention import attention_figure, attention_notes
from unveil.reports.class_maps import class_colours, class_map_figure, classes_in, legend
from unveil.reports.curves import draw_curves
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.reconstruct import reconstruction_figure, reconstruction_notes, suitable_ratios
from unveil.reports.style import inline_svg
from unveil.reports.vocabulary import Results
from unveil.train.run_folder import Run

MAX_SAMPLES, MAX_ATTENTION = 8, 4
"""Maximum numbers of images on a page, and of images with attention maps."""
LARGEST_SAMPLES = 2**30
"""Maximum number of bytes that `samples.npz` unpacks to."""


class ReportSamples(NamedTuple):
    """Held-out images of a run: the content of `samples.npz`."""

    images: Float[Tensor, "n C H W"]
    """Normalised images."""
    names: list[str]
    maps: Int[np.ndarray, "n H W"] | None = None
    """The true class of each pixel, for a task with one class per pixel."""
    predicted: Int[np.ndarray, "n H W"] | None = None
    """The predicted class of each pixel."""


def curve_section(run: Run) -> Markup:
    """The curves of the log."""
    figures = [
        element(
            "figure",
            element("h3", curve.title),
            inline_svg(curve.figure, f"curve{i}", f"{curve.title}. {curve.summary}"),
            element("figcaption", curve.summary),
        )
        for i, curve in enumerate(draw_curves(run.log, chosen_step(run.results)))
    ]
    drawn = element("div", *figures, class_="figures") if figures else element("p", "The log has no lines yet.")
    damaged = run.damaged_lines
    note = f"Not shown: {count_of(damaged, 'line')} of {run.path / 'log.jsonl'} {'is' if damaged == 1 else 'are'} damaged."
    return join_markup([drawn, element("p", note)]) if damaged else drawn


def chosen_step(results: Results) -> int | None:
    """The step whose weights validation has chosen; None without validation."""
    step = (results.get("validation") or {}).get("step")
    return step if isinstance(step, int) else None


def reconstruction_section(samples: ReportSamples, learner: Learner) -> Markup | None:
    """A figure for each mask ratio; None if the learner cannot reconstruct images."""
    if not isinstance(learner, Reconstructs):
        return None
    numbers = [str(i + 1) for i in range(len(samples.names))]
    figures = []
    for ratio in suitable_ratios(learner):
        figure = reconstruction_figure(learner, samples.images, ratios=(ratio,), names=numbers, with_notes=False)
        masked = f" with {ratio:.0%} of their patches masked" if ratio else ""
        alt = f"{count_of(len(numbers), 'image')}{masked}, and their reconstructions."
        figures.append(element("figure", inline_svg(figure, f"hidden{round(1000 * ratio)}", alt)))
    if not figures:
        raise UnveilError("the images have too few patches to mask some of them")
    notes = ["The model was not trained on these images.", *reconstruction_notes(learner)]
    return join_markup([element("div", *figures, class_="figures three"), element("p", " ".join(notes)), name_list(samples.names)])


def attention_section(samples: ReportSamples, learner: Learner) -> Markup:
    """The attention maps of a few images."""
    encoder: Any = learner.encoder
    figures = []
    for i, name in enumerate(samples.names[:MAX_ATTENTION]):
        figure = attention_figure(encoder, samples.images[i : i + 1], names=[str(i + 1)], with_notes=False)
        alt = f"Attention of the class token to image {i + 1}, {name}."
        figures.append(element("figure", inline_svg(figure, f"attention{i}", alt)))
    notes = ["Attention of the class token in the last block: the mean over all heads, and each head."]
    notes += attention_notes(encoder.config.channels)
    parts = [element("div", *figures, class_="figures"), element("p", " ".join(notes)), name_list(samples.names[:MAX_ATTENTION])]
    return join_markup(parts)


def prediction_section(samples: ReportSamples, learner: Learner, classes: Sequence[str]) -> Markup | None:
    """A figure of true and predicted class maps; None if the samples have none."""
    if samples.maps is None or samples.predicted is None:
        return None
    colours, config = class_colours(len(classes)), learner.encoder.config
    numbers = [str(i + 1) for i in range(len(samples.names))]
    figure = class_map_figure(
        samples.images, samples.maps, samples.predicted, colours=colours, mean=config.mean, std=config.std, names=numbers
    )
    alt = f"{count_of(len(numbers), 'image')}, the true class of each pixel, and the predicted class."
    figures = element("div", element("figure", inline_svg(figure, "predictions", alt)), class_="figures")
    note = element("p", "The model was not trained on these images. Pixels without a class are white.")
    return join_markup(
        [figures, legend(classes, colours, classes_in(samples.maps, samples.predicted)), note, name_list(samples.names)]
    )


def draw_samples(run: Run, learner: Learner | None, draw: Callable[[ReportSamples, Learner], Markup | None]) -> Markup | None:
    """The result of `draw` for the samples of a run, or a sentence with the reason why it cannot be drawn."""
    try:
        samples = read_samples(run.path / "samples.npz")
        if samples is None:
            return None
        if learner is None:
            return element("p", "The trained model was not available when this page was written.")
        refuse_other_size(samples, learner, run.path / "samples.npz")
        return draw(samples, learner)
    except UnveilError as error:
        return element("p", f"Not shown: {error}.")


def read_samples(path: Path) -> ReportSamples | None:
    """Reads the samples of a file; None if it does not exist.

    Raises:
        UnveilError: If the file is damaged, or holds something else.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            refuse_bomb(arrays, path)
            images = np.asarray(arrays["images"])
            names = [str(name) for name in arrays["names"]] if "names" in arrays else []
            maps, predicted = (arrays[key][:MAX_SAMPLES] if key in arrays else None for key in ("maps", "predicted"))
    except UnveilError:
        raise
    except Exception as error:  # a damaged archive can raise any exception of zipfile, zlib, NumPy and its parser
        raise UnveilError(f"{path} is damaged ({type(error).__name__})") from None
    if images.ndim != 4 or not len(images) or images.dtype.kind not in "fiu":
        raise UnveilError(f"{path} is damaged: its images have the shape {images.shape} and the type {images.dtype}")
    images = images[:MAX_SAMPLES].astype(np.float32)
    if any(
        array is not None and not (array.dtype.kind in "iu" and array.shape == maps_shape(images)) for array in (maps, predicted)
    ):
        maps = predicted = None
    names = (names + [f"image {i + 1}" for i in range(len(names), len(images))])[: len(images)]
    return ReportSamples(torch.from_numpy(images), names, maps, predicted)


def maps_shape(images: np.ndarray) -> tuple[int, ...]:
    """The shape of one class per pixel."""
    return len(images), *images.shape[2:]


def refuse_bomb(arrays: Any, path: Path) -> None:
    """Raises `UnveilError` for an archive that unpacks to more than any run writes."""
    size = sum(entry.file_size for entry in arrays.zip.infolist())
    if size > LARGEST_SAMPLES:
        raise UnveilError(f"{path} is damaged: it unpacks to {size:,} bytes, expected at most {LARGEST_SAMPLES:,}")


def refuse_other_size(samples: ReportSamples, learner: Learner, path: Path) -> None:
    """Raises `UnveilError` if images are not of the size that an encoder for images takes."""
    config = getattr(learner.encoder, "config", None)
    if isinstance(config, ViTConfig) and samples.images.shape[1:] != (config.channels, *config.image_size):
        shape = " x ".join(map(str, samples.images.shape[1:]))
        raise UnveilError(f"{path} holds images of {shape}, but the model takes {config.channels} x {config.image_size}")


def name_list(names: list[str]) -> Markup:
    """A numbered list of image names."""
    items = [element("li", element("code", name.replace("\n", " "))) for name in names]
    return element("ol", *items, class_="names")
