"""Labelled images for probes and fine-tuning, and the files with their predictions."""

import csv
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unveil.atomic_files import write_text
from unveil.data.sources import Data, open_both
from unveil.data.splits import Subset
from unveil.data.targets import ClassTargets, Targets
from unveil.errors import UnveilError
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import csv_cell
from unveil.runs.open_data import open_subsets, stored_side
from unveil.train.run_folder import Run


def labelled_subsets(
    run: str | Path,
    data: Data,
    test: Data | None,
    vit: ViTConfig,
    *,
    targets: type[Targets] = ClassTargets,
    max_pixels: int,
    show: bool,
) -> tuple[Subset, Subset, bool]:
    """The train set, the test set, and whether the test set was held out from the training data.

    Args:
        run: The run of the encoder. The same number of images is held out as in that run, so that it was trained on none of them.
        data: Labelled images to train on.
        test: Labelled images to test on; by default the test split of `data`, or a tenth of it.
        vit: The shape of the encoder.
        targets: The kind of label: a class per image, boxes, or a class per pixel.
        max_pixels: Files with more pixels than this are not decoded.
        show: Whether to show a progress bar.

    Raises:
        UnveilError: If there are no labels, or only one class.
    """
    source, test_source = open_both(data, targets=targets)
    if test is not None:
        training, testing = open_both(test, targets=targets)
        test_source = training if testing is None else testing
    train_set, test_set, held_out = open_subsets(
        source,
        test_source,
        side=stored_side(vit.image_size),
        channels=vit.channels,
        max_pixels=max_pixels,
        most=held_out_count(run),
        show=show,
    )
    if targets is not ClassTargets:  # every image has its target, or was left out on opening
        if not len(test_set):
            name, count = train_set.dataset.source.name, len(train_set)
            raise UnveilError(f"{name} has {count} images, too few to hold out a tenth: give a test set with --test")
        return train_set, test_set, held_out
    train_set, test_set = train_set.labelled(), test_set.labelled()
    for subset, role in ((train_set, "train"), (test_set, "test")):
        if not len(subset):
            raise UnveilError(
                f"{subset.dataset.source.name} has no labelled images for the {role} set: put each class into a folder of its own, "
                f"or add a labels.csv with the columns file,label"
            )
    if len(train_set.dataset.classes) < 2:
        name, only = train_set.dataset.source.name, train_set.dataset.classes[0]
        raise UnveilError(f"{name} has only one class, {only}: give images of two classes or more")
    return train_set, test_set, held_out


def held_out_count(run: str | Path) -> int:
    """The maximum number of images to hold out: that of the run, so that no test image was used in pre-training."""
    if (Path(run) / "run.json").is_file():
        return int(Run(run).config.get("held_out", 1000))
    return 1000


def data_of(run: str | Path) -> str:
    """The data that a run was trained on. Raises `UnveilError` if the path is not a run folder."""
    if (Path(run) / "run.json").is_file():
        name: str = Run(run).facts["data"]["name"]
        return name
    raise UnveilError(f"{run} does not record its training data: give DATA as the second argument")


def beside(run: str | Path, suffix: str) -> Path:
    """A path next to a run folder; or in the folder `runs`, if `run` is a file."""
    path = Path(run)
    return path.with_name(f"{path.name}-{suffix}") if path.is_dir() else Path("runs") / f"{path.stem}-{suffix}"


def write_class_scores(path: Path, subset: Subset, scores: Float[Tensor, "n K"]) -> None:
    """Writes a table with one row per image: its name, its class, the predicted class, its probability, and every class score."""
    classes, labels = subset.dataset.classes, subset.labels
    cells = [csv_cell(name) for name in classes]
    probability, best = scores.softmax(dim=1).max(dim=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted", "probability", *(csv_cell(f"score {name}") for name in classes)])
        for name, label, guess, p, row in zip(
            subset.names, labels.tolist(), best.tolist(), probability.tolist(), scores.tolist(), strict=True
        ):
            writer.writerow([csv_cell(name), cells[label], cells[guess], f"{p:.4f}", *(f"{x:.4f}" for x in row)])


def fresh_folder(path: Path) -> Path:
    """Creates a folder with this name or, if it exists, with the first free name of path-2, path-3, ..."""
    for number in range(1, 10_000):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        return free
    raise UnveilError(f"there are 10,000 folders named {path}-...: remove some")


def free_file(path: Path) -> Path:
    """This path or, if it exists, the first free one of name-2, name-3, ..."""
    number = 1
    while (free := path if number == 1 else path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return free


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Writes facts as JSON, atomically."""
    write_text(path, json.dumps(facts, indent=1) + "\n")
