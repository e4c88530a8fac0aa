"""The parts of a report that show images and curves; each says why where it has nothing to show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.reports import attention, reconstruct
from unveil.reports.confusion import class_section
from unveil.reports.curves import curves
from unveil.reports.html import Markup, element, join
from unveil.reports.style import inline
from unveil.train.run_folder import Run


class Samples(NamedTuple):
    """Held-out images of a run."""

    images: Tensor
    """(n, C, H, W), normalised."""
    names: list[str]


def curve_section(run: Run) -> Markup:
    """The curves side by side."""
    drawn = [
        element(
            "figure",
            element("h3", curve.title),
            inline(curve.figure, f"curve{i}", f"{curve.title}. {curve.summary}"),
            element("figcaption", curve.summary),
        )
        for i, curve in enumerate(curves(run.log))
    ]
    return element("div", *drawn, class_="figures") if drawn else element("p", "The log has no lines yet.")


def reconstruction_section(samples: Samples, learner: Learner) -> Markup | None:
    """A figure for each ratio, side by side, or one below the other on a phone; None for a learner that paints nothing."""
    if not hasattr(learner, "reconstruct"):
        return None
    numbers = [str(i + 1) for i in range(len(samples.names))]
    drawn = []
    for ratio in reconstruct.suitable_ratios(learner):
        figure = reconstruct.figure(learner, samples.images, ratios=(ratio,), names=numbers, noted=False)
        told = f" with {ratio:.0%} of their patches hidden" if ratio else ""
        alt = f"{len(numbers)} images{told}, and what the model makes of them."
        drawn.append(element("figure", inline(figure, f"hidden{round(1000 * ratio)}", alt)))
    if not drawn:
        raise UnveilError("the images have too few patches to hide some")
    notes = ["These images were not trained on.", *reconstruct.notes(learner)]
    figures = element("div", *drawn, class_="figures three")
    return join([figures, element("p", " ".join(notes)), name_list(samples.names)])


def attention_section(samples: Samples, learner: Learner) -> Markup:
    """The attention maps of a few images."""
    encoder: Any = getattr(learner, "encoder", None)
    if not hasattr(encoder, "attention"):
        raise UnveilError(f"{type(learner).__name__} has no encoder whose attention could be shown")
    drawn = []
    for i, name in enumerate(samples.names[:4]):
        figure = attention.figure(encoder, samples.images[i : i + 1], names=[str(i + 1)], noted=False)
        alt = f"Where the class token looks in image {i + 1}, {name}."
        drawn.append(element("figure", inline(figure, f"attention{i}", alt)))
    notes = ["Where the class token looks in the last block: with all heads together, and with each."]
    notes += attention.notes(encoder.config.channels)
    figures = element("div", *drawn, class_="figures")
    return join([figures, element("p", " ".join(notes)), name_list(samples.names[:4])])


def drawn(run: Run, learner: Learner | None, make: Callable[[Samples, Learner], Markup | None]) -> Markup | None:
    """What the model draws of the samples, or why it does not."""
    samples = read_samples(run.path / "samples.npz")
    if samples is None:
        return None
    if learner is None:
        return element("p", "The trained model was not at hand when this page was written.")
    try:
        return make(samples, learner)
    except UnveilError as error:
        return element("p", f"Not shown: {error}.")


def read_samples(path: Path) -> Samples | None:
    """The images of `samples.npz`; None where there are none."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            images = torch.from_numpy(found["images"]).float()[:8]
            names = [str(name) for name in found["names"]] if "names" in found else []
    except (ValueError, KeyError, OSError, TypeError):
        return None
    if images.ndim != 4 or not len(images):
        return None
    return Samples(images, (names + [f"image {i + 1}" for i in range(len(names), len(images))])[: len(images)])


def class_results(run: Run) -> Markup | None:
    """Accuracy of each class, where the run has judged a classifier."""
    score = run.results.get("score")
    return class_section(score, run.results.get("classes") or []) if score else None


def name_list(names: list[str]) -> Markup:
    """The names of numbered images."""
    shown = [element("li", element("code", name.replace("\n", " "))) for name in names]
    return element("ol", *shown, class_="names")
