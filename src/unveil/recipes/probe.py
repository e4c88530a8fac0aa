"""`unveil probe`: evaluates a frozen, or mostly frozen, encoder with labels."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from unveil.atomic_files import write_text
from unveil.data.python_data import with_columns
from unveil.data.sources import Data
from unveil.data.splits import few_labels
from unveil.errors import UnveilError
from unveil.folder_lock import locked
from unveil.interop import model_files
from unveil.interop.encoder_only import checksums, vit_of
from unveil.interop.load import load
from unveil.json_files import json_text
from unveil.metrics import classification_metrics
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.plain_text import count_of
from unveil.plugins import trust as allow
from unveil.recipes.probe_corruptions import images_to_corrupt, test_on_corruptions
from unveil.reports.notebook import ProbeResults
from unveil.reports.table import unseen_sentence
from unveil.runs.labelled_data import (
    LabelledOptions,
    data_facts,
    data_of,
    fresh_folder,
    labelled_subsets,
    unseen_classes,
    write_class_scores,
)
from unveil.runs.open_data import adapt_to_images, reopened
from unveil.runs.probing import Probe, ProbeConfig, augmentation
from unveil.runs.session import join
from unveil.runs.skipped_files import SkippedFiles
from unveil.tasks.linear import Linear
from unveil.tasks.partial import PartialFinetune
from unveil.train.guards import seeded
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.run_folder import receipt
from unveil.train.terminal import printer


def probe(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    test: Data | None = None,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates an encoder with labels.

    Args:
        run: Anything that `unveil.load` accepts.
        data: Labelled images to train the probe on; by default those that the run was trained on.
        test: Labelled images to test on; by default the test split of `data`, or a tenth of it that is held out.
        out: A folder for the results; by default a new one, `<run>/probe-<kind>`.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `ProbeConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`. For images given in Python, `labels` may
            also be one label for each image, and `split` the name of a split for each.

    Returns:
        The contents of `results.json` in that folder: scores of the encoder, of the same encoder untrained, and of raw pixels.
        The dictionary has the attribute `folder`, and a notebook shows it as a table.

    Raises:
        UnveilError: On input that cannot be used, or if `out` has results already.
    """
    allow(trust)
    data, options = with_columns(data, options)
    if out is None:
        return probe_into(None, run, data, test, options)
    if any((Path(out) / name).exists() for name in ("results.json", "run.json")) or holds_another_model(Path(out)):
        raise UnveilError(f"{out} has results already, of a run or of a probe: choose another --out")
    with locked(Path(out), "probing into"):
        return probe_into(Path(out), run, data, test, options)


def holds_another_model(folder: Path) -> bool:
    """Whether a folder holds a model that no stopped probe has left there."""
    config = model_files.config_of(folder) or {}
    exists = any((folder / name).exists() for name in ("config.json", "model.safetensors"))
    return exists and config.get("task") not in ("linear", "partial")


def refuse_unused(config: ProbeConfig, options: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for options that the kind or the protocol of a probe does not use."""
    if config.pool == "both" and config.sees_images:
        raise UnveilError(
            "pool both needs features that are computed once: leave --views and --kind partial out, or use class or mean"
        )
    if config.corrupt_images and not config.corrupt:
        raise UnveilError(f"corrupt_images is {config.corrupt_images:,}, but no image is corrupted: add --corrupt")
    refuse_other_kinds(config)
    names = {each.name for each in (*fields(TrainConfig), *fields(OptimConfig))} - {"seed"}
    unused = next((name for name in options if name in names), None)
    if unused and config.kind == "knn":
        raise UnveilError(f"{unused} has no effect on k-NN, which is not trained: leave it out")
    if unused and not config.takes_steps:
        raise UnveilError(f"{unused} has no effect on the quick linear probe, which L-BFGS fits: add --protocol sgd or paper")


def refuse_other_kinds(config: ProbeConfig) -> None:
    """Raises `UnveilError` for an option that belongs to another kind of probe."""
    kinds = {"blocks": "partial", "neighbours": "knn", "whiten": "knn", "views": "linear", "protocol": "linear"}
    for name, kind in kinds.items():
        value = getattr(config, name)
        if value != getattr(ProbeConfig, name) and config.kind != kind:
            what = {"linear": "the linear probe", "knn": "k-NN", "partial": "the partial probe"}[kind]
            raise UnveilError(f"{name} is for {what}, but the kind is {config.kind}: leave it out, or use --kind {kind}")
    if config.crop_scale != ProbeConfig.crop_scale and not config.sees_images:
        raise UnveilError("crop_scale has no effect without random crops: add --views or --kind partial")


def used_options(config: ProbeConfig, recipe: Recipe) -> dict[str, Any]:
    """The options of training that a probe has used."""
    return asdict(recipe.training) | asdict(recipe.optim) if config.takes_steps else {"seed": recipe.training.seed}


def probe_into(
    folder: Path | None, run: str | os.PathLike[str], data: Data | None, test: Data | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """`probe`, with its results in this folder or, for None, in a new one."""
    defaults = PartialFinetune.DEFAULTS if options.get("kind") == "partial" else Linear.DEFAULTS
    if options.get("protocol") == "paper":
        if options.get("kind", "linear") != "linear":
            raise UnveilError(f"protocol paper is for the linear probe, not for kind {options['kind']}: leave one of them out")
        defaults = defaults | Linear.PAPER
    config, *rest = configure({**defaults, **options}, ProbeConfig, TrainConfig, OptimConfig, HardwareConfig)
    refuse_unused(config, options)
    recipe, say = join(*rest), printer(True)
    if recipe.world.size > 1:
        raise UnveilError("a probe runs in one process: start it without torchrun")
    learner = load(run, say=say).to(recipe.world.device).eval()
    encoder = vit_of(learner)
    sums = checksums(encoder)  # so that a study notices another encoder in its place
    asked = LabelledOptions(
        split=config.split,
        test_split=config.test_split,
        augment=augmentation(config) if config.views or config.kind == "partial" else None,
        max_pixels=config.max_pixels,
        read=config.sees_images,
        say=say,
        show=True,
    )
    opened = labelled_subsets(run, data if data is not None else data_of(run), test, encoder.config, asked)
    train_set, test_set, held_out = opened.train, opened.test, opened.held_out
    adapt_to_images(encoder, train_set)
    if not config.sees_images:  # features of the pixels that `unveil embed` and `unveil predict` give the model
        train_set, test_set = reopened(encoder.config, train_set, test_set)
    if config.labels:
        train_set = few_labels(train_set, config.labels, recipe.training.seed)
    to_corrupt = images_to_corrupt(test_set, config.corrupt_images, recipe.training.seed) if config.corrupt else None
    pool = config.pool or learner.pool
    setup = Probe(config=config, recipe=recipe, learner=learner, pool=pool, train_set=train_set, test_set=test_set)
    classes, source = train_set.dataset.classes, " held-out" if held_out else ""
    count = count_of(len(train_set), "labelled image")
    if config.kind == "knn" and options.get("neighbours", 0) > len(train_set):
        raise UnveilError(f"neighbours is {config.neighbours:,}, but the train set has {count}: use a smaller number")
    say(f"{config.kind} probe on {count} of {len(classes)} classes, tested on {len(test_set):,}{source}")
    unseen = unseen_classes(train_set, test_set)
    if unseen:
        say(unseen_sentence(unseen, len(test_set)))
    skipped = SkippedFiles(train_set, test_set, None, recipe.world, say)
    encoders: dict[str, ViT | None] = {"encoder": encoder}
    scores, metrics = {}, {}
    with seeded(recipe.training.seed):
        if config.compare:
            encoders["untrained"] = ViT(encoder.config).to(recipe.world.device).eval()
            if config.kind != "partial":
                encoders["raw pixels"] = None
        for name, each in encoders.items():
            scores[name] = setup.scores(name, each, encoder)
            rows, judged = scores[name].features
            metrics[name] = classification_metrics(rows, judged.labels, votes=config.kind == "knn")
            top5 = f"   top-5 {100 * metrics[name]['top5']:5.2f} %" if len(classes) > 5 else ""
            say(f"{name:>10}   top-1 {100 * metrics[name]['top1']:5.2f} %{top5}")
    folder = folder or fresh_folder((Path(run) if Path(run).is_dir() else Path("runs")) / f"probe-{config.kind}")
    skipped.write(folder)
    results = {
        "kind": config.kind,
        "classes": list(test_set.dataset.classes),
        **({"unseen_classes": unseen} if unseen else {}),
        "trained_on": len(train_set),
        "unreadable": skipped.unreadable(),
        "kept_aside": held_out,
        **({"cautions": opened.leaks} if opened.leaks else {}),
        "top1": {name: metric["top1"] for name, metric in metrics.items()},
        "score": metrics["encoder"],
        "config": asdict(config) | {"pool": setup.pool} | used_options(config, recipe) | asdict(recipe.hardware),
        **({"penalty": penalties} if (penalties := {name: each.penalty for name, each in scores.items() if each.penalty}) else {}),
        "run": str(run),
        "encoder": sums,
        "data": data_facts(train_set.dataset.source, test_set.dataset.source, opened.splits),
        **receipt(),
    }
    found = scores["encoder"].features
    write_class_scores(folder / "predictions.csv", found.subset, found.rows, votes=config.kind == "knn")
    model = setup.model(scores["encoder"])
    if model is not None:
        model_files.write_config(model, folder)
        model_files.export(model, folder / "model.safetensors")
    write_text(folder / "results.json", json_text(results))
    if to_corrupt is not None:  # results are written before, since this takes long
        classifiers = {name: each.classify for name, each in scores.items()}
        results["corruptions"] = test_on_corruptions(classifiers, to_corrupt, encoder.config, recipe, say)
        write_text(folder / "results.json", json_text(results))
    say(f"Per-class accuracy, confusion matrix and predictions: {folder}")
    if model is not None:
        say(f"To label images with it: unveil predict {folder} IMAGES")
    elif config.kind != "knn":
        say(f"The probe is not saved, because the features of {type(learner).__name__} are not those of its encoder")
    return ProbeResults(results, folder)
