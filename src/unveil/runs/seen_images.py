"""Test images that a run was trained on before. They make its results too good.

What a run was trained on is found again by its `run.json`: the data are listed again, if their fingerprint is still the one that
is recorded. The test images are looked for by path and by content. A run that started from another one (`--init`, or fine-tuning)
was trained on the images of that run as well. If the data are gone, have changed, or were given in Python, nothing can be told.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.copies import checked_rows, copies_of
from unveil.data.parts import Roles
from unveil.data.python_data import absolute_paths
from unveil.data.source import Source
from unveil.data.sources import open_roles
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.paths import absolute_data
from unveil.plain_text import count_of
from unveil.runs.open_data import kept_and_held_out
from unveil.train.data_changes import VERSIONED
from unveil.train.run_folder import Run

Indices = NDArray[np.int64]
HELD_OUT = 1000
"""The default of --held-out."""


class Trained(NamedTuple):
    """The images that a run was trained on."""

    source: Source
    rows: Indices
    """Indices of those that were trained on."""
    aside: Indices
    """Indices of those that were held out, if training images that are copies of them were left out; else empty."""


def recorded_run(run: str | os.PathLike[str]) -> Path | None:
    """The run folder that `run` is, or in which it lies as a file or as an export; None if there is none."""
    path = Path(os.path.abspath(run))
    if not path.exists():  # such as a name in timm
        return None
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "run.json").is_file()), None)


def recorded_data(run: str | os.PathLike[str], data: str) -> dict[str, Any]:
    """What a run records of its data; nothing if it was trained on other data than this, or there is no run folder."""
    folder = recorded_run(run)
    facts: dict[str, Any] = Run(folder).facts["data"] if folder else {}
    same = facts.get("path") == absolute_data(data) if facts.get("path") else facts.get("name") == data
    return facts if same else {}


def lineage(run: str | os.PathLike[str]) -> Iterator[Run]:
    """The run in whose folder `run` is, the one that it started from, and so on, as far as they are found."""
    known, folder, later = set[Path](), recorded_run(run), ""
    while folder is not None and folder not in known:
        known.add(folder)
        try:
            found = Run(folder)
        except UnveilError:  # damaged; that of the run itself was read before
            return
        started = str(found.facts.get("started", ""))
        if later and not began_before(started, later):  # another run has taken the place of the one that this started from
            return
        yield found
        later = started
        start, inputs = found.config.get("init") or found.config.get("from"), found.facts.get("inputs") or {}
        paths = [inputs.get("init_path"), inputs.get("run_path"), None if start == "scratch" else start]
        folder = next((place for path in paths if path and (place := recorded_run(path))), None)


def beginning(run: str | os.PathLike[str], number: int, ancestor: Run) -> str:
    """The beginning of a clause on what a run, or the one at this place of its lineage, was trained on."""
    return f"{run} was" if number == 0 else f"{run} started from {ancestor.path}, which was"


def began_before(one: str, other: str) -> bool:
    """Whether a run was begun before another one, or in the same second, by what `run.json` records as "started"."""
    try:
        first, second = (datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z") for text in (one, other))
    except ValueError:
        return False
    return first <= second


def held_out_count(run: str | os.PathLike[str]) -> int:
    """The maximum number of images to hold out: that of the pre-training run, so that it was trained on none of them."""
    return int(next((each.config["held_out"] for each in lineage(run) if "held_out" in each.config), HELD_OUT))


def trained_images(run: Run, roles: Roles) -> Trained | None:
    """The images that a run was trained on; None if they cannot be told any more.

    Args:
        run: The run. Of one that was fine-tuned with a part of the labels, it cannot be told.
        roles: The data of today, which are not opened again if the run was trained on the same images.
    """
    facts, config = run.facts.get("data") or {}, run.config
    if config.get("labels"):
        return None
    if not is_recorded(facts, roles.train):
        path = facts.get("path")
        if not path or str(path).startswith("hf://") or absolute_data(str(path)) is None:
            return None
        try:
            own, unlabeled = (config.get("split"), config.get("test_split")), run.facts.get("kind") == "pretrain"
            roles = open_roles(path, split=own[0], test_split=own[1], unlabeled=unlabeled)
        except (UnveilError, OSError):
            return None
        if not is_recorded(facts, roles.train):
            return None
    every = np.arange(len(roles.train))
    if facts.get("test_fingerprint") not in (None, facts["fingerprint"]):  # it had a test set, so it was trained on all
        return Trained(roles.train, every, every[:0])
    kept, aside = (each.numpy() for each in kept_and_held_out(roles.train, roles.held_out_of, held_out_count(run.path)))
    return Trained(roles.train, kept, aside if config.get("leave_out_copies") else aside[:0])


def is_recorded(facts: Mapping[str, Any], source: Source) -> bool:
    """Whether a source has the images that a run was trained on, by the fingerprint in "data" of its `run.json`."""
    recorded = facts.get("fingerprint")
    return recorded == (source.fingerprint if str(recorded).startswith(VERSIONED) else source.listing_fingerprint)


def seen_rows(test: Source, rows: Indices, trained: Trained) -> tuple[set[int], bool]:
    """The test images that were trained on, and whether all were looked for: by content, only some of a large set are."""
    source, all_checked = trained.source, True
    if test is source:
        seen = set(np.intersect1d(rows, trained.rows).tolist())
    else:
        own, others = (absolute_paths(each, absolute_data(each.name)) for each in (test, source))
        wanted = {others[row] for row in trained.rows.tolist()} if own and others else set[str]()
        seen = {row for row in rows.tolist() if own and own[row] in wanted}
    if test is not source or not len(trained.aside):  # else the copies of its test images were left out
        rest = np.array([row for row in rows.tolist() if row not in seen], dtype=np.int64)
        checked = checked_rows(test, rest, source)
        all_checked = len(checked) == len(rest)
        seen |= copies_of(source, trained.rows, test, checked).keys()
    if seen and len(trained.aside):  # copies of images that were held out were left out
        seen -= copies_of(source, trained.aside, test, np.array(sorted(seen), dtype=np.int64)).keys()
    return seen, all_checked


def sentences_on_seen_images(run: str | os.PathLike[str], roles: Roles, test: Subset) -> list[str] | None:
    """Sentences on test images that a run, or a run that it started from, was trained on.

    Args:
        run: The run.
        roles: The data of today. That a test set of its own has copies of images in `roles.train` is not told here.
        test: The test images.

    Returns:
        None if it cannot be told what the run itself was trained on.
    """
    found, known = list[str](), False
    source, rows = test.dataset.source, test.indices.numpy()
    of = count_of(len(rows), "test image")
    for number, each in enumerate(lineage(run)):
        trained = trained_images(each, roles)
        known = known or (trained is not None and number == 0)
        if trained is None or (trained.source is roles.train and source is not roles.train):
            continue
        seen, all_checked = seen_rows(source, rows, trained)
        if not seen:
            continue
        rows = rows[~np.isin(rows, list(seen))]
        who = beginning(run, number, each)
        validated = each.facts.get("kind") == "finetune" and each.config.get("validation") != 0
        how = f"trained{' or validated' * validated} on{' at least' * (not all_checked)}"
        found.append(f"{who} {how} {len(seen):,} of {of}: its results are too good")
    return found if known or found else None
