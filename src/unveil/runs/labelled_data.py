"""Labelled images for a probe or for fine-tuning, and what is written down about predictions."""

import csv
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unveil.data.sources import Data, open_both
from unveil.errors import UnveilError
from unveil.learner import Task
from unveil.models.vit import ViTConfig
from unveil.evaluate.features import features_of
from unveil.runs.open_data import Subset, open_parts, stored_side
from unveil.train.checkpoint import write_whole
from unveil.train.parallel import World, HardwareConfig
from unveil.train.run_folder import Run


def labelled_parts(
    run: str | Path, data: Data | None, test: Data | None, vit: ViTConfig, *, pixel_limit: int, show: bool
) -> tuple[Subset, Subset, bool]:
    """Labelled images to train on and to judge on, and whether the latter were cut off the former.

    Args:
        run: Where the encoder comes from: its data is taken where none is given.
        data: Labelled images to train on.
        test: Labelled images to judge on; by default the test split of `data`, or a tenth of it.
        vit: What the encoder takes.
        pixel_limit: No file is decoded beyond this many pixels.
        show: Whether to show a progress bar.

    Raises:
        UnveilError: Where there are no labels, or only one class.
    """
    source, test_source = open_both(data if data is not None else data_of(run))
    if test is not None:
        training, testing = open_both(test)
        test_source = training if testing is None else testing
    train_set, test_set, cut = open_parts(
        source,
        test_source,
        side=stored_side(vit.image_size),
        channels=vit.channels,
        pixel_limit=pixel_limit,
        share=0.1,
        most=kept_aside(run),
        show=show,
    )
    train_set, test_set = train_set.labelled(), test_set.labelled()
    for part, role in ((train_set, "to train on"), (test_set, "to judge on")):
        if not len(part):
            raise UnveilError(
                f"{part.dataset.source.name} has no labelled images {role}: put each class into a folder of its own, or add a "
                f"labels.csv with the columns file,label"
            )
    if len(train_set.dataset.classes) < 2:
        raise UnveilError(f"{train_set.dataset.source.name} has one class only: {train_set.dataset.classes[0]}")
    return train_set, test_set, cut


def kept_aside(run: str | Path) -> int:
    """The most images that are kept aside: as many as the run had, so that none was seen in pre-training."""
    if (Path(run) / "run.json").is_file():
        return int(Run(run).config.get("held_out", 1000))
    return 1000


def data_of(run: str | Path) -> str:
    """The data that a run was trained on. Raises `UnveilError` where the path is no run folder."""
    if (Path(run) / "run.json").is_file():
        name: str = Run(run).facts["data"]["name"]
        return name
    raise UnveilError(f"{run} does not say what it was trained on: give the labelled images as the second argument")


def beside(run: str | Path, suffix: str) -> Path:
    """A folder next to a run, or in `runs` for a file that is none."""
    path = Path(run)
    return path.with_name(f"{path.name}-{suffix}") if path.is_dir() else Path("runs") / f"{path.stem}-{suffix}"


def predicted(task: Task, part: Subset, hardware: HardwareConfig, world: World) -> Float[Tensor, "n K"]:
    """The scores that a task gives to images seen without augmentation."""
    task.eval()
    return features_of(task.predict, part, task.encoder.config, hardware, world)


def write_predictions(path: Path, part: Subset, scores: Float[Tensor, "n K"]) -> None:
    """A table with a row an image: its name, its class, the predicted one and its probability, and the score of each class."""
    classes, labels = part.dataset.classes, part.labels
    sure, best = scores.softmax(dim=1).max(dim=1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted", "probability", *(f"score {name}" for name in classes)])
        for name, label, guess, p, row in zip(
            part.names, labels.tolist(), best.tolist(), sure.tolist(), scores.tolist(), strict=True
        ):
            writer.writerow([name, classes[label], classes[guess], f"{p:.4f}", *(f"{x:.4f}" for x in row)])


def fresh_folder(path: Path) -> Path:
    """A new folder of this name, or of the first free one of path-2, path-3, ...: nothing is overwritten."""
    for number in range(1, 10_000):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        return free
    raise UnveilError(f"there are 10,000 folders called {path}-...: remove some")


def free_file(path: Path) -> Path:
    """This path, or the first of name-2, name-3, ... that is not there: nothing is overwritten."""
    number = 1
    while (free := path if number == 1 else path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return free


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Writes facts as JSON, whole or not at all."""
    write_whole(path, json.dumps(facts, indent=1) + "\n")
