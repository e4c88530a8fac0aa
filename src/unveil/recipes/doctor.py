"""`unveil doctor`: looks for what is wrong with images before anything is trained on them."""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unveil.atomic_files import replacing
from unveil.data.inspect_images import inspect
from unveil.data.python_data import with_columns
from unveil.data.sources import Data, open_parts
from unveil.errors import UnveilError
from unveil.evaluate.examination import KINDS, Examination, Place, find_classes, find_exact, find_faults, find_near
from unveil.evaluate.features import NothingReadableError, features_of, refuse_non_finite
from unveil.evaluate.label_check import check_labels
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.options import configure
from unveil.paths import refuse_existing
from unveil.plain_text import count_of, csv_cell, printable, shorten
from unveil.plugins import trust as allow
from unveil.ranges import Count
from unveil.reports.doctor_page import write_doctor_page
from unveil.runs.labelled_data import free_file
from unveil.runs.modality import slug
from unveil.runs.open_data import open_each, progress_bar
from unveil.train.parallel import HardwareConfig, World, join_processes
from unveil.train.terminal import printer, show

FINDINGS = "findings.csv"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look for."""

    HIDDEN = ("max_pixels",)
    near: bool = True
    """Search for near duplicates. The time grows with the square of the number of images: 30,000 take about a minute."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""


def doctor(
    data: Data,
    *,
    run: str | os.PathLike[str] | None = None,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> Examination:
    """Examines all images of DATA, and writes report.html and findings.csv. Nothing is written into DATA.

    Args:
        data: See `unveil.data.sources.FORMS`.
        run: A trained encoder, anything that `unveil.load` accepts: then labels are compared with those of the nearest images.
        out: A new folder; by default runs/<data>-doctor.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `DoctorConfig` and `HardwareConfig`; for data in Python also `labels` and `split`, as in `probe`.

    Returns:
        What was found: `.findings`, and `.of("leak")` for the images that are in several splits.

    Raises:
        UnveilError: If the folder exists or lies in DATA, or if no image can be read.
    """
    allow(trust)
    data, options = with_columns(data, options)
    config, hardware = configure(options, DoctorConfig, HardwareConfig)
    parts = open_parts(data)
    folder = Path(out) if out else free_file(Path("runs") / f"{slug(parts.name)}-doctor")
    refuse_existing(folder)
    refuse_inside(folder, data)
    world, say = join_processes(hardware), printer(True)
    inspections = {}
    for name in parts.names:
        source = parts.source(name)
        with progress_bar(source.name, True) as progress:
            inspections[name] = inspect(source, max_pixels=config.max_pixels, progress=progress)
    found = Examination(parts.name, inspections, parts.has_splits, near=config.near)
    if not any(part.readable.any() for part in inspections.values()):
        first = next((reason for part in inspections.values() for reason in part.unreadable.values()), "there are none")
        raise UnveilError(f"none of {count_of(len(found), 'file')} of {parts.name} can be read as an image; the first: {first}")
    find_faults(found)
    find_classes(found)
    places = find_exact(found)
    if config.near:
        with progress_bar(parts.name, True, "comparing") as progress:
            find_near(found, places, max_pixels=config.max_pixels, progress=progress)
    if run is not None:
        find_suspicious(found, run, data, config, hardware, world, say)
    order = list(KINDS)
    found.findings.sort(key=lambda each: order.index(each.kind))  # stable
    write_findings(folder / FINDINGS, found)
    write_doctor_page(folder, found, max_pixels=config.max_pixels)
    show(summary(found))
    say(f"The report: {folder / 'report.html'}\nEvery finding: {folder / FINDINGS}")
    return found


def doctor_and_judge(
    data: Data,
    *,
    run: str | os.PathLike[str] | None = None,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> None:
    """`doctor` for the command line. Raises `UnveilError` after it if images are in several splits, so the exit code is 1."""
    found = doctor(data, run=run, out=out, trust=trust, **options)
    if leaks := found.of("leak"):
        count = len({each.place for each in leaks})
        verb = "is" if count == 1 else "are"
        raise UnveilError(
            f"{count_of(count, 'test or validation image')} {verb} also in another split, so scores would be too high: remove the "
            "copies that the findings name"
        )


def refuse_inside(folder: Path, data: Data) -> None:
    """Raises `UnveilError` if a folder lies in DATA, which is never written to."""
    root = Path(data).expanduser() if isinstance(data, str | os.PathLike) else None
    if root and root.is_dir() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise UnveilError(f"{folder} lies in {data}, which is never written to: choose an --out elsewhere")


def find_suspicious(
    found: Examination,
    run: str | os.PathLike[str],
    data: Data,
    config: DoctorConfig,
    hardware: HardwareConfig,
    world: World,
    say: Callable[[str], None],
) -> None:
    """Adds labels that the nearest images contradict, by the features of a run. Needs labels."""
    learner = load(run, say=say).to(world.device).eval()
    vit = vit_of(learner).config
    rows, places = [], list[Place]()
    for split, subset in open_each(data, None, vit, max_pixels=config.max_pixels).items():
        labelled = subset.labelled()
        if not len(labelled):
            continue
        try:
            features = features_of(partial(learner.features, pool=None), labelled, vit, hardware, world)
        except NothingReadableError:
            continue
        refuse_non_finite(features, str(run))
        rows.append(features.rows)
        places += [Place(split, row) for row in features.subset.indices.tolist()]
    names = [found.label(place) for place in places]
    if len(set(names)) < 2:
        say("the images have fewer than two classes, so there are no labels to check")
        return
    classes = sorted(set(names))
    labels = torch.from_numpy(np.searchsorted(np.array(classes), np.array(names)))
    check = check_labels(torch.cat(rows), labels, len(classes))
    found.agreement = check.agreement(labels)
    for index in check.suspicious.nonzero()[:, 0].tolist():
        votes, winner = int(check.votes[index]), classes[int(check.winner[index])]
        detail = f"labelled {names[index]}, but {votes} of the 10 nearest images are {winner}"
        found.add("suspicious label", places[index], detail, places[int(check.neighbour[index])])


def write_findings(path: Path, found: Examination) -> None:
    """Writes one row per finding."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "kind", "detail", "other_path", "other_split"])
        for each in found.findings:
            cells = (each.path, each.split, each.kind, each.detail, each.other, each.other_split)
            writer.writerow([csv_cell(cell) for cell in cells])


def summary(found: Examination) -> RenderableType:
    """The findings of each kind, for a terminal."""
    counts = found.counts
    splits = f" in {', '.join(found.parts)}" if found.has_splits else ""
    head = Text(f"{count_of(len(found), 'image')} of {printable(shorten(found.name, 60))}{splits}", style="bold")
    if not counts:
        return Group(head, Text("Nothing was found."))
    table = Table(header_style="dim", box=None, padding=(0, 3, 0, 0))
    table.add_column("found", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("the first", no_wrap=True)
    for kind, count in counts.items():
        style = "bold" if kind in ("leak", "unreadable", "conflicting labels") else None
        table.add_row(Text(KINDS[kind]), Text(f"{count:,}"), Text(shorten(found.of(kind)[0].path, 30)), style=style)
    return Group(head, table)
