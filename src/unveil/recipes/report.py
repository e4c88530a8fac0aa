"""`unveil report`: rebuilds the report of a run."""

import os
from pathlib import Path

from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.load import load
from unveil.plugins import trust as allow
from unveil.reports.page import write_page
from unveil.train.run_folder import Run
from unveil.train.run_schema import reading_results
from unveil.train.terminal import printer


def report(run: str | os.PathLike[str], *, trust: str | Path | None = None) -> Path:
    """Rebuilds the report of a run, `<run>/report.html`.

    Args:
        run: A run folder.
        trust: A file or module outside of unveil that the run needs and that may be imported.

    Raises:
        UnveilError: If the path is not a run folder.
    """
    allow(trust)
    folder = Run(run)
    if not folder.facts.get("kind"):
        raise UnveilError(f"{folder.path / 'run.json'} is damaged: it does not say what kind of run it is")
    has_figures = (folder.path / "model.safetensors").exists() and model_files.config_of(folder.path) is not None
    learner = load(run, say=printer(False)) if has_figures else None  # a translator has no figures of images
    with reading_results(folder.path):
        page = write_page(folder, learner)
    printer(True)(f"The report: {page}")
    return page
