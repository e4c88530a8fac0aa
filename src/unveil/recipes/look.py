"""Looking at a run: the reconstruction figure and the report page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.evaluate.features import views_of
from unveil.interop.load import load
from unveil.interop.model_files import shape_of
from unveil.options import configure
from unveil.reports.page import write_page
from unveil.reports.reconstruct import figure, painter
from unveil.runs.labelled_data import data_of, free_file
from unveil.runs.open_data import open_whole, stored_side
from unveil.train.run_folder import Run, tell


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """What the figure shows."""

    ratios: tuple[float, ...] = (0.5, 0.75, 0.9)
    """Mask ratios, side by side."""
    count: int = 6
    """Images, from all over DATA."""
    seed: int = 0
    """Of the masks."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""


def reconstruct(run: str | Path, data: Data | None = None, *, out: str | Path | None = None, **options: Any) -> Path:
    """Draws images as they are, masked, rebuilt, and rebuilt with the visible patches pasted in.

    Args:
        run: Whatever `unveil.load` takes, as long as it has a decoder.
        data: Images to draw; by default those that the run was trained on.
        out: A new .png, .pdf or .svg; by default `<run>/reconstruction.png`.
        **options: Fields of `ReconstructConfig`.

    Raises:
        UnveilError: When the model cannot reconstruct, or the file exists.
    """
    (own,) = configure(options, ReconstructConfig)
    path = Path(out) if out else free_file((Path(run) if Path(run).is_dir() else Path()) / "reconstruction.png")
    if path.exists():
        raise UnveilError(f"{path} exists: choose another --out")
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UnveilError(f"{path} ends in {path.suffix or 'nothing'}: use .png, .pdf or .svg")
    learner = load(run, say=tell(True))
    vit = shape_of(learner)
    painter(learner)  # what draws nothing is refused before reading
    data = data if data is not None else data_of(run)
    part = open_whole(data, side=stored_side(vit.image_size), channels=vit.channels, pixel_limit=own.pixel_limit, show=True)
    part = part.spread_out(own.count)
    drawn = figure(learner, views_of(part, vit), ratios=own.ratios, names=part.names, seed=own.seed, mean=vit.mean, std=vit.std)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    tell(True)(f"The figure: {path}")
    return path


def report(run: str | Path) -> Path:
    """Writes the page of a run, `<run>/report.html`, anew.

    Raises:
        UnveilError: When the path is no run folder.
    """
    folder = Run(run)
    page = write_page(folder, load(run, say=tell(False)) if (folder.path / "model.safetensors").exists() else None)
    tell(True)(f"The report: {page}")
    return page
