"""Labelled images for probes and fine-tuning, and the files with their predictions."""

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.augment import AugmentConfig
from unveil.data.mask_values import PLAIN, MaskConfig
from unveil.data.parts import Roles
from unveil.data.python_data import absolute_paths
from unveil.data.sources import Data, Source, label_kind, open_parts
from unveil.data.splits import Subset
from unveil.data.targets import PER_IMAGE, ClassTargets, Targets
from unveil.errors import UnveilError
from unveil.models.vit_config import ViTConfig
from unveil.paths import absolute_data
from unveil.plain_text import count_of, csv_cell
from unveil.runs.open_data import ImageSubsets, Say, open_subsets, pack_sentence, say_notes, stored_side
from unveil.runs.seen_images import held_out_count, recorded_data, recorded_run, sentences_on_seen_images
from unveil.runs.table_formats import save_arrays
from unveil.train.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class LabelledOptions:
    """What labelled images to open, and how."""

    targets: type[Targets] = ClassTargets
    """The kind of label: a class per image, boxes, or a class per pixel."""
    split: str | None = None
    """The parts of DATA to train on; by default the training split."""
    test_split: str | None = None
    """The part to test on; by default the test split, or the validation split if that is missing or has no labels."""
    classes: Sequence[str] = ()
    """The classes of the run that is resumed: labels keep their numbers, even if a new version would number them differently."""
    masks: MaskConfig = PLAIN
    """What the values of masks mean."""
    whole: bool = False
    """Whether images are kept for a task that takes whole images, and are shrunk to `side`."""
    side: int | None = None
    """With `whole`, the length of the short side to which they are shrunk for training; None keeps their size."""
    augment: AugmentConfig | None = None
    """The crops to train on, for which images are kept large enough; None if they are only evaluated."""
    max_pixels: int
    """Files with more pixels than this are not decoded."""
    leave_out_copies: bool = True
    """Whether training images that are exact copies of test images held out, or of validation images, are left out."""
    scratch: bool = False
    """Whether the encoder is not used, only its shape, so that it does not matter what it was trained on."""
    read: bool = True
    """Whether images are read into memory if they fit; if not, only a sample is, and `reopened` reads them."""
    say: Say
    """Prints a message for the user."""
    show: bool
    """Whether to show a progress bar."""


class LabelledSubsets(NamedTuple):
    """Labelled images, opened."""

    train: Subset
    test: Subset
    held_out: bool
    """Whether the test set was held out from the training images."""
    validation: Subset | None
    """The images to evaluate during training; None means the test set."""
    splits: dict[str, list[str]]
    """See `Roles.splits`."""
    leaks: list[str]
    """Clauses on test images that the encoder, or the model, is trained on as well."""


def labelled_subsets(
    run: str | os.PathLike[str], data: Data, test: Data | None, vit: ViTConfig, request: LabelledOptions
) -> LabelledSubsets:
    """Opens labelled images.

    Args:
        run: The run of the encoder. The same number of images is held out as in that run, so that it was trained on none of them.
        data: Labelled images to train on.
        test: Labelled images to test on; by default the test split of `data`, or a tenth of it.
        vit: The shape of the encoder.
        request: What to open, and how.

    Raises:
        UnveilError: If there are no labels, or only one class.
    """
    parts = open_parts(data, targets=request.targets, masks=request.masks)
    roles = parts.roles(request.split, None if test is not None else request.test_split)
    if test is not None:
        of_test = open_parts(test, targets=request.targets, masks=request.masks, like=roles.train).roles(
            test_split=request.test_split
        )
        chosen = of_test.train if of_test.test is None else of_test.test
        roles = roles._replace(test=chosen, validation=None)
    roles = roles.numbered_as(request.classes)
    say_notes(request.say, roles.sentence, roles.train, *([roles.test] if test is not None and roles.test else []))
    side = request.side if request.whole else stored_side(vit.image_size, request.augment)
    if side is not None:
        say_notes(request.say, pack_sentence(roles.train, side))
    refuse_one_class(roles.train, request)
    opened = open_subsets(
        roles,
        side=side,
        channels=vit.channels,
        max_pixels=request.max_pixels,
        most=held_out_count(run),
        show=request.show,
        read=request.read,
        leave_out_copies=request.leave_out_copies,
    )
    leaks = leak_sentences(None if request.scratch else run, roles, opened, is_given=test is not None)
    for leak in leaks:
        request.say(leak)
    say_notes(request.say, opened.note * opened.held_out)
    name, test_name = roles.train.name, opened.test.dataset.source.name
    if not len(opened.test):
        count = count_of(len(opened.train), "image")
        raise UnveilError(f"{name} has {count}, too few to hold out a tenth: give a test set with --test")
    if not issubclass(request.targets, PER_IMAGE):  # every image has its target, or was left out on opening
        has_objects = opened.train.dataset.source.objects is not None
        train_set = opened.train.labelled() if has_objects else opened.train  # without images that have only crowds
        if crowds := len(opened.train) - len(train_set):
            request.say(f"left out {count_of(crowds, 'training image')} with crowds only, from which nothing can be learned")
        if unscored := opened.test.dataset.source.unscored:
            request.say(unscored)
        return LabelledSubsets(train_set, opened.test, opened.held_out, opened.validation, roles.splits, leaks)
    train_set, test_set = opened.train.labelled(), opened.test.labelled()
    if not len(test_set):
        whose = f"none of the {count_of(len(opened.test), 'image')} held out from {name}" if opened.held_out else "no test image of"
        raise UnveilError(f"{whose}{'' if opened.held_out else f' {test_name}'} has a label: give a test set with --test")
    for each, role in ((train_set, "train"), (test_set, "test")):
        if len(each) and each.unreadable == len(each):
            first, reason = next(iter(each.dataset.skipped.items()))
            count = count_of(len(each), f"labelled {role} image")
            raise UnveilError(f"none of the {count} of {each.dataset.source.name} can be read; the first: {first}: {reason}")
    distinct = train_set.labels.unique().tolist()
    if request.targets is ClassTargets and len(distinct) < 2:
        only = f"only one class, {train_set.dataset.classes[distinct[0]]}" if distinct else "no label"
        raise UnveilError(f"the images of {name} to train on have {only}: give images of two classes or more")
    if not len(train_set):
        raise UnveilError(f"no image of {name} to train on has a label: they were all held out, so give a test set with --test")
    if unscored := test_set.dataset.source.unscored:
        request.say(unscored)
    unlabelled = len(opened.test) - len(test_set)
    if unlabelled:
        request.say(f"left out {count_of(unlabelled, 'test image')} without a label")
    validation = opened.validation and opened.validation.labelled()
    return LabelledSubsets(train_set, test_set, opened.held_out, validation, roles.splits, leaks)


def refuse_one_class(source: Source, request: LabelledOptions) -> None:
    """Raises `UnveilError` if labels of images are needed, and there are none, or they are all the same class."""
    if not issubclass(request.targets, PER_IMAGE):
        return
    if not source.is_labelled and source.form:
        raise UnveilError(f"{source.name} has no labels for the train set: give one for each image with labels=")
    if request.targets is not ClassTargets and not source.is_labelled:
        needed = label_kind(request.targets)
        raise UnveilError(f"{source.name} has no labels for the train set: add {needed.expected if needed else 'labels'}")
    if not source.is_labelled:
        folder = os.path.dirname(source.names[0])
        if folder and all(os.path.dirname(name) == folder for name in source.names):
            raise UnveilError(
                f"{source.name} has only one class: all of its {count_of(len(source), 'image')} are in the folder {folder}. Give "
                f"images of two classes or more, each class in a folder of its own, or a labels.csv with the columns file,label. "
                f"For boxes or masks, add --task detect or --task segment"
            )
        raise UnveilError(
            f"{source.name} has no labelled images for the train set: put each class into a folder of its own, or add a "
            f"labels.csv with the columns file,label"
        )


def leak_sentences(run: str | os.PathLike[str] | None, roles: Roles, opened: ImageSubsets, *, is_given: bool) -> list[str]:
    """Clauses on test images that are trained on, or that the run was trained on.

    Args:
        run: The run; None if its weights are not used.
        roles: The images to train on, and to test on.
        opened: The same, opened.
        is_given: Whether the test images were given beside DATA.
    """
    found = [] if run is None else clauses_on_run(run, roles, opened, is_given=is_given)
    shared = shared_images(roles.train, roles.test) if is_given and roles.test else 0
    if shared and roles.test:
        found.append(f"{shared:,} of {count_of(len(roles.test), 'test image')} are trained on as well: the results are too good")
    elif opened.note and not opened.held_out:
        found.append(opened.note)
    return found


def clauses_on_run(run: str | os.PathLike[str], roles: Roles, opened: ImageSubsets, *, is_given: bool) -> list[str]:
    """Clauses on test images that a run was trained on; see `leak_sentences`."""
    seen = sentences_on_seen_images(run, roles, opened.test)
    trained = "" if is_given else trained_on_test(run, roles)
    if seen:
        return seen
    if trained:
        return [f"{run} was {trained}, which is the test set now: its results are too good"]
    if seen is None and other_images_held_out(run, roles):
        return [
            f"the files of {roles.train.name}, or its test set, are not those that {run} was trained on, so it may have been "
            f"trained on images that are held out now: its accuracy may be too high"
        ]
    return []


def trained_on_test(run: str | os.PathLike[str], roles: Roles) -> str:
    """What a run on the same data did with the folders of the test set, such as "trained on val/" because of --split; else "".

    Fine-tuning validated on a folder if it chose its best checkpoint there.
    """
    splits, folder = recorded_data(run, roles.train.name).get("splits") or {}, recorded_run(run)
    found = Run(folder) if folder else None
    chose = found is not None and found.facts.get("kind") == "finetune" and found.config.get("validation") != 0
    for verb, used in (("trained on", splits.get("train", [])), ("validated on", splits.get("validation", []) if chose else [])):
        if names := [f"{name}/" for name in roles.splits.get("test", []) if name in used]:
            return f"{verb} {' and '.join(names)}"
    return ""


def other_images_held_out(run: str | os.PathLike[str], roles: Roles) -> bool:
    """Whether a run on the same data held out other images, or none: it had a test set, or files have come, gone or changed."""
    facts = recorded_data(run, roles.train.name)
    if roles.test is not None or (facts.get("splits") or {}).get("train", []) != roles.splits.get("train", []):
        return False
    had_test_set = facts.get("test_fingerprint") not in (None, facts.get("fingerprint"))
    listing = facts.get("listing_fingerprint")
    return had_test_set or bool(listing and listing != roles.train.listing_fingerprint)


def shared_images(train: Source, test: Source) -> int:
    """The number of test images that are training images as well, by their paths."""
    if test.fingerprint == train.fingerprint:
        return len(test)
    first, second = (absolute_paths(source, absolute_data(source.name)) for source in (train, test))
    return 0 if first is None or second is None else len(set(first) & set(second))


def unseen_classes(train_set: Subset, test_set: Subset) -> dict[str, int]:
    """The classes of test images that no training image has, with the number of their test images, which count as wrong."""
    trained = set(train_set.labels.tolist())
    counts = Counter(label for label in test_set.labels.tolist() if label >= 0 and label not in trained)
    return {test_set.dataset.classes[label]: count for label, count in sorted(counts.items())}


def data_of(run: str | os.PathLike[str]) -> str:
    """The data that a run was trained on: as the user typed it or, from another working directory, its absolute path.

    Raises:
        UnveilError: If the path is not a run folder, or the run was trained on data given in Python.
    """
    if not (Path(run) / "run.json").is_file():
        raise UnveilError(f"{run} does not record its training data: give DATA as the second argument")
    facts = Run(run).facts["data"]
    name, path = str(facts["name"]), facts.get("path")
    if facts.get("form") or (name == "array" and "path" in facts):  # earlier versions recorded no form
        form = facts.get("form") or "an array in memory"
        raise UnveilError(f"{run} was trained on {form}, which it does not record: give DATA as the second argument")
    return str(path) if path and absolute_data(name) != path and absolute_data(str(path)) else name


def data_facts(train: Source, test: Source | None, splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What `run.json` records of the data. On resume, the fingerprints are compared."""
    facts: dict[str, Any] = {
        "name": train.name,
        "path": None if train.form else absolute_data(train.name),
        "count": len(train),
        "fingerprint": train.fingerprint,
        "listing_fingerprint": train.listing_fingerprint,
    }
    if train.form:
        facts["form"] = train.form
    if test is not None:
        facts |= {
            "test_count": len(test),
            "test_fingerprint": test.fingerprint,
            "test_listing_fingerprint": test.listing_fingerprint,
        }
    return facts | ({"splits": dict(splits)} if splits else {})


def recorded_classes(folder: Path) -> list[str]:
    """The classes of the run in a folder, in the order of their numbers; empty if it has not begun."""
    try:
        classes = json.loads((folder / "config.json").read_bytes()).get("classes")
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [str(name) for name in classes] if isinstance(classes, list) else []


def beside(run: str | os.PathLike[str], suffix: str) -> Path:
    """A path next to a run folder; or in the folder `runs`, if `run` is a file."""
    path = Path(run)
    return path.with_name(f"{path.name}-{suffix}") if path.is_dir() else Path("runs") / f"{path.stem}-{suffix}"


def write_class_scores(path: Path, subset: Subset, scores: Float[Tensor, "n K"], *, votes: bool = False) -> None:
    """Writes a table with one row per image: its name, its class, the predicted class, its probability, and every class score.

    Args:
        path: The file.
        subset: The images.
        scores: Their class scores, whose softmax is the probability.
        votes: Whether the scores are weights of votes (k-NN), whose share is the probability.
    """
    classes, labels = subset.dataset.classes, subset.labels
    cells = [csv_cell(name) for name in classes]
    shares = scores / scores.sum(dim=1, keepdim=True) if votes else scores.softmax(dim=1)
    probability, best = shares.max(dim=1)
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        known = classes[: scores.shape[1]]  # test images may have further classes, which training lacks
        writer.writerow(["file", "label", "predicted", "probability", *(csv_cell(f"score {name}") for name in known)])
        for name, label, guess, p, row in zip(
            subset.names, labels.tolist(), best.tolist(), probability.tolist(), scores.tolist(), strict=True
        ):
            writer.writerow([csv_cell(name), cells[label], cells[guess], f"{p:.6g}", *(f"{x:.6g}" for x in row)])


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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an .npz file, atomically."""
    with replacing(path, sum(array.nbytes for array in arrays.values())) as fresh, fresh.open("wb") as file:
        save_arrays(file, arrays)
