"""`unveil reconstruct`: draws a figure of masked and reconstructed images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from unveil.data.sources import Data
from unveil.evaluate.features import views_of
from unveil.interop.encoder_only import image_config_of
from unveil.interop.load import load
from unveil.options import configure
from unveil.paths import refuse_unless_new_figure
from unveil.plugins import trust as allow
from unveil.ranges import Count, Range, Seed, Share
from unveil.reports.reconstruct import reconstruction_figure, require_reconstruct
from unveil.reports.style import save_figure
from unveil.runs.labelled_data import data_of, free_file
from unveil.runs.open_data import open_whole, stored_side
from unveil.train.terminal import printer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """The content of the figure."""

    HIDDEN = ("split", "max_pixels")
    split: str | None = None
    """Parts of DATA to draw: train, val, test, unlabeled, other (beside the splits), several as in train+val, or all; by default
    train."""
    ratios: tuple[Share, ...] = (0.5, 0.75, 0.9)
    """Mask ratios, side by side."""
    count: Annotated[int, Range(1, 100)] = 6
    """Number of images, evenly spaced in DATA."""
    seed: Seed = 0
    """Random seed of the masks."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""


def reconstruct(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> Path:
    """Draws images as they are, masked, reconstructed, and reconstructed with the visible patches pasted in.

    Args:
        run: Anything that `unveil.load` accepts, if it can reconstruct images.
        data: Images to draw; by default those that the run was trained on.
        out: A new .png, .pdf or .svg file; by default `<run>/reconstruction.png`.
        trust: A file or module outside of unveil that the run needs and that may be imported.
        **options: Fields of `ReconstructConfig`.

    Raises:
        UnveilError: If the model cannot reconstruct, or the file exists.
    """
    path = Path(out) if out else free_file((Path(run) if Path(run).is_dir() else Path()) / "reconstruction.png")
    refuse_unless_new_figure(path)
    save_figure(draw_reconstructions(run, data, trust=trust, **options), path)
    printer(True)(f"The figure: {path}")
    return path


def draw_reconstructions(
    run: str | os.PathLike[str], data: Data | None = None, *, trust: str | Path | None = None, **options: Any
) -> "Figure":
    """The figure of `reconstruct` as a matplotlib figure, which a notebook shows. Nothing is written.

    Args:
        run: As for `reconstruct`.
        data: As for `reconstruct`.
        trust: As for `reconstruct`.
        **options: Fields of `ReconstructConfig`.

    Raises:
        UnveilError: If the model cannot reconstruct.
    """
    allow(trust)
    (config,) = configure(options, ReconstructConfig)
    say = printer(True)
    learner = load(run, say=say)
    vit = image_config_of(learner)
    require_reconstruct(learner)  # fails before any image is read
    data = data if data is not None else data_of(run)
    side, limit = stored_side(vit.image_size), config.max_pixels
    subset = open_whole(data, config.split, side=side, channels=vit.channels, max_pixels=limit, show=True)
    chosen = subset.spread_out(config.count)
    views, readable = views_of(chosen, vit)
    if len(readable) < len(chosen):
        say(f"{len(chosen) - len(readable)} of {len(chosen)} images cannot be read, and are left out")
    return reconstruction_figure(
        learner, views, ratios=config.ratios, names=readable.names, seed=config.seed, mean=vit.mean, std=vit.std
    )
