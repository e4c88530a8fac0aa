"""`unveil verdict`: whether pre-training paid off on the user's own images, with few, more and all labels."""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.experiments.jobs import refuse_failures
from unveil.experiments.label_budgets import Budgets, label_counts
from unveil.experiments.results_folder import refuse_fewer_results, refuse_other_results
from unveil.experiments.verdict_runs import FOLDERS, VerdictConfig, VerdictRuns
from unveil.folder_lock import locked
from unveil.interop.encoder_only import checksums, vit_of
from unveil.interop.load import load
from unveil.json_files import read_json
from unveil.learner import Task
from unveil.options import configure, known_to
from unveil.plain_text import count_of
from unveil.plugins import trust as allow
from unveil.reports.notebook import Verdict
from unveil.reports.table import to_terminal, unseen_sentence
from unveil.reports.verdict_page import verdict_tables
from unveil.reports.verdict_results import OWN, verdict_sentence
from unveil.runs.labelled_data import LabelledOptions, beside, data_facts, data_of, labelled_subsets, unseen_classes
from unveil.runs.modality import slug
from unveil.runs.session import join
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.run_folder import receipt
from unveil.train.terminal import printer, show

MIN_SEEDS = 3
MAX_PIXELS = 64_000_000
FINGERPRINTS = ("fingerprint", "test_fingerprint")


def verdict(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    test: Data | None = None,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> Verdict:
    """Tells whether pre-training paid off: with 1, 10 and 100 % of the labels, and with intervals that say what is chance.

    The run is fine-tuned, and the same model is trained from scratch, with the same recipe, labels and seeds. Linear classifiers on
    raw pixels, on the untrained encoder and on that of the run are fitted as well. A second call with the same arguments trains
    only what is missing.

    Args:
        run: Anything that `unveil.load` accepts.
        data: Labelled images; by default those that the run was trained on.
        test: Labelled images to test on; by default the test split of `data`, or a tenth of it that is held out.
        out: The folder for the runs, `verdict.json` and `report.html`; `<run>-verdict` by default.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `VerdictConfig` and `HardwareConfig`; under `finetune`, a dictionary of options of `finetune`.

    Returns:
        The content of `verdict.json`: `answer` is "yes", "no", "depends" or "cannot tell", `sentence` says it in words, `gains` has
        a row for each other model and number of labels. The dictionary has the attribute `folder`.

    Raises:
        UnveilError: On input that cannot be used.
        FailedRunsError: If a run has failed, after all others have ended and the page was written. Its `results` are what the
            others give.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    allow(trust)
    finetune_options = dict(options.pop("finetune", {}))
    config, training, optim, hardware = configure(options, VerdictConfig, TrainConfig, OptimConfig, HardwareConfig)
    config = replace(config, against=tuple(map(without_slash, config.against)))
    refuse(run, config, options, finetune_options)
    recipe, say = join(training, optim, hardware), printer(True)
    if recipe.world.size > 1:
        raise UnveilError("a verdict runs in one process: start it without torchrun")
    learner = load(run, say=say)
    if learner.modality != "images":
        raise UnveilError(f"{run} is a model of text, expected one of images")
    if isinstance(learner, Task):
        raise UnveilError(
            f"{run} was trained with labels, so its gain is not that of pre-training: give the run that it started from"
        )
    weights = {OWN: checksums(vit_of(learner))}
    weights |= {name: checksums(vit_of(load(name, say=lambda text: None))) for name in config.against}
    data = data if data is not None else data_of(run)
    request = LabelledOptions(max_pixels=MAX_PIXELS, read=False, say=say, show=True)
    opened = labelled_subsets(run, data, test, vit_of(learner).config, request)
    train_set, classes = opened.train.labelled(), opened.train.dataset.classes
    counts = label_counts(len(train_set), len(classes), config.shares)
    folder = Path(out) if out else beside(run, "verdict")
    refuse_other_results(folder, "verdict")
    runs = VerdictRuns(
        config=config,
        run=run,
        folder=folder,
        data=data,
        test=test,
        budgets=Budgets(train_set=train_set, test_set=opened.test.labelled(), counts=counts, recipe=recipe),
        finetune_options={"validation": 0.0} | known_to(options, HardwareConfig) | finetune_options,
        leaks=opened.leaks,
        facts={
            "config": asdict(config) | {f"finetune.{key}": value for key, value in finetune_options.items()} | asdict(hardware),
            "data": data_facts(opened.train.dataset.source, opened.test.dataset.source, opened.splits),
            "weights": weights,
            **receipt(),
        },
    )
    labels = " and ".join(f"{count:,}" for count in counts)
    tests = count_of(len(runs.budgets.test_set), "test image")
    say(f"verdict with {labels} labels of {len(classes):,} classes and {len(config.seeds)} seeds, on {tests}")
    if len(runs.budgets.test_set) < 2:
        raise UnveilError(f"{tests}, expected at least 2 with a label: give more, with --test")
    if unseen := unseen_classes(train_set, opened.test):
        runs.leaks.append(unseen_sentence(unseen, len(opened.test)))
        say(runs.leaks[-1])
    refuse_other(folder, runs.facts | {"run": str(run)})
    refuse_fewer_results(folder, "verdict", runs.scope)
    with locked(folder, "training in"):
        runs.probe()
        if config.with_finetune:
            runs.finetune()
        content = runs.write()
    for table in verdict_tables(runs.results):
        show(to_terminal(table))
    show(verdict_sentence(runs.results))
    say(f"The report: {folder / 'report.html'}")
    found = Verdict(content, verdict_tables(runs.results), folder)
    refuse_failures(runs.failures, len(runs.jobs()), found)
    return found


def without_slash(name: str) -> str:
    """The name of an encoder, without a slash at the end of a path."""
    return os.path.normpath(name) if os.path.exists(name) else name


def refuse(
    run: str | os.PathLike[str], config: VerdictConfig, options: Mapping[str, Any], finetune_options: Mapping[str, Any]
) -> None:
    """Raises `UnveilError` for options that cannot give a verdict."""
    if len(set(config.seeds)) < max(MIN_SEEDS, len(config.seeds)):
        raise UnveilError(
            f"--seeds has {' '.join(map(str, config.seeds)) or 'none'}, expected at least {MIN_SEEDS} different seeds"
        )
    if not config.shares:
        raise UnveilError("--shares is empty: give at least one share of the labels, such as 0.1")
    set_here = ("seed", "labels", "scratch", "task", "test", "split", "test_split", "validation", "out")
    own = [name for name in set_here if name in finetune_options]
    if own:
        raise UnveilError(f"finetune.{own[0]} is set by the verdict itself: leave it out")
    if "blocks" in finetune_options:
        raise UnveilError("the model from scratch is trained as a whole, and so are the others: leave finetune.blocks out")
    others = config.against
    if os.path.exists(run) and any(os.path.exists(name) and os.path.samefile(name, run) for name in others):
        raise UnveilError(f"--against {' '.join(others)} has {run} itself: leave it out")
    if len(set(others)) < len(others):
        raise UnveilError(f"--against {' '.join(others)} has an encoder twice: give each one once")
    folders = dict.fromkeys(FOLDERS.values(), "the verdict itself")
    for name in others:
        if slug(name) in folders:
            whose = folders[slug(name)]
            raise UnveilError(f"--against {name} would have the same run folders as {whose}, so rename or link it")
        folders[slug(name)] = name
    training = known_to(options, TrainConfig) | known_to(options, OptimConfig)
    if training:
        name = next(iter(training))
        raise UnveilError(
            f"{name} is an option of fine-tuning: use --finetune.{name.replace('_', '-')} (in Python, finetune={{...}})"
        )
    if finetune_options and not config.with_finetune:
        raise UnveilError("there are options of fine-tuning, but --no-with-finetune leaves it out")


def refuse_other(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raises `UnveilError` if a folder has a verdict on another run, on other weights under the same name, or on other images."""
    path = folder / "verdict.json"
    if not path.is_file():
        return
    earlier = read_json(path)
    known = earlier.get("data") if isinstance(earlier, dict) else None
    images = [known.get(key) if isinstance(known, dict) else None for key in FINGERPRINTS]
    if images != [facts["data"].get(key) for key in FINGERPRINTS] or earlier.get("run") != facts["run"]:
        raise UnveilError(f"{folder} has a verdict on another run or on other images: choose another --out")
    recorded = earlier.get("weights") or {}  # earlier versions recorded none
    for name, sums in facts["weights"].items():
        if name in recorded and recorded[name] != sums:
            raise UnveilError(
                f"{folder} has a verdict on other weights of {facts['run'] if name == OWN else name}, which have changed since: "
                f"choose another --out"
            )
