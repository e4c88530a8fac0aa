"""`unveil verdict`: whether pre-training paid off on the user's own images, with few, more and all labels."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unveil.atomic_files import write_text
from unveil.data.copies import copies_within
from unveil.data.sources import Data
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.evaluate.paired import paired_gain
from unveil.experiments.calls import Call
from unveil.experiments.jobs import Job, JobsConfig, refuse_failures, run_jobs
from unveil.experiments.label_budgets import (
    Budgets,
    Correct,
    frozen_model,
    label_counts,
    raw_model,
    saved_predictions,
    untrained_model,
)
from unveil.folder_lock import locked
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.json_files import json_text, read_json
from unveil.learner import Task
from unveil.options import configure, known_to
from unveil.plain_text import count_of, csv_cell
from unveil.plugins import trust as allow
from unveil.ranges import Seed, ShareAboveZero
from unveil.reports.failures import Failure, read_failures
from unveil.reports.notebook import Verdict
from unveil.reports.table import to_terminal, unseen_sentence
from unveil.reports.verdict_page import (
    FINETUNED,
    LINEAR,
    OWN,
    RAW,
    SCRATCH,
    UNTRAINED,
    Accuracies,
    GainOver,
    VerdictResults,
    verdict_sentence,
    verdict_tables,
    write_verdict_page,
)
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
FOLDERS = {SCRATCH: "scratch", OWN: "finetune"}
"""The beginning of the names of run folders."""


@dataclass(frozen=True, kw_only=True)
class VerdictConfig(JobsConfig):
    """What the run is compared with, and how often."""

    against: tuple[str, ...] = ()
    """Other encoders to compare with: run folders, files, or names in timm such as timm:vit_base_patch16_224.mae."""
    shares: tuple[ShareAboveZero, ...] = (0.01, 0.1, 1.0)
    """Shares of the labels to train with; at least one label for each class is used."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Random seeds, at least 3. Each draws other labels, and other weights from scratch."""
    with_finetune: bool = True
    """Also fine-tune the encoders, and train from scratch, with each number of labels and each seed. Without it, linear probes
    give the answer, in minutes."""


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
    data = data if data is not None else data_of(run)
    request = LabelledOptions(max_pixels=MAX_PIXELS, read=False, say=say, show=True)
    opened = labelled_subsets(run, data, test, vit_of(learner).config, request)
    train_set, classes = opened.train.labelled(), opened.train.dataset.classes
    counts = label_counts(len(train_set), len(classes), config.shares)
    folder = Path(out) if out else beside(run, "verdict")
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
            **receipt(),
        },
    )
    labels = " and ".join(f"{count:,}" for count in counts)
    tests = count_of(len(runs.budgets.test_set), "test image")
    say(f"verdict with {labels} labels of {len(classes):,} classes and {len(config.seeds)} seeds, on {tests}")
    if len(runs.budgets.test_set) < 2:
        raise UnveilError(f"{tests}, expected at least 2 with a label: give more, with --test")
    if unseen := unseen_classes(train_set, opened.test):
        say(unseen_sentence(unseen, len(opened.test)))
    refuse_other(folder, runs.facts | {"run": str(run)})
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
    own = [name for name in ("seed", "labels", "scratch", "task", "test", "out") if name in finetune_options]
    if own:
        raise UnveilError(f"finetune.{own[0]} is set by the verdict itself: leave it out")
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
    """Raises `UnveilError` if a folder has a verdict on another run, or on other images."""
    path = folder / "verdict.json"
    if not path.is_file():
        return
    earlier = read_json(path)
    known = earlier.get("data") if isinstance(earlier, dict) else None
    images = [known.get(key) if isinstance(known, dict) else None for key in FINGERPRINTS]
    if images != [facts["data"].get(key) for key in FINGERPRINTS] or earlier.get("run") != facts["run"]:
        raise UnveilError(f"{folder} has a verdict on another run or on other images: choose another --out")


@dataclass(kw_only=True)
class VerdictRuns:
    """A verdict in the making: what is trained, and what is known so far."""

    config: VerdictConfig
    run: str | os.PathLike[str]
    folder: Path
    data: Data
    test: Data | None
    budgets: Budgets
    finetune_options: dict[str, Any]
    facts: dict[str, Any]
    leaks: list[str] = field(default_factory=list)
    """Sentences on test images that were trained on."""

    def __post_init__(self) -> None:
        self.failures: list[Failure] = []
        self.originals = originals_of(self.budgets.test_set)
        """The number of the original of each test image, by name; None if all originals differ."""
        self.found: dict[tuple[str, str], dict[int, dict[int, Correct]]] = defaultdict(lambda: defaultdict(dict))
        """What is correct, by model and way, then by labels and seed."""

    def probe(self) -> None:
        """Fits linear classifiers to raw pixels, to untrained encoders, and to those that are compared."""
        world, seeds, say = self.budgets.recipe.world, self.config.seeds, printer(True)
        models = [(RAW, partial(raw_model, self.run, world), seeds)]
        models += [(UNTRAINED, partial(untrained_model, self.run, seed, world), (seed,)) for seed in seeds]
        models += [(name, partial(frozen_model, weights, world, say), seeds) for name, weights in self.encoders.items()]
        for name, build, own in models:
            for count, seed, correct in self.budgets.probed(*build(), own):
                self.found[name, LINEAR][count][seed] = correct

    def finetune(self) -> None:
        """Fine-tunes the encoders, and trains from scratch."""
        self.failures = run_jobs(list(self.jobs().values()), self.folder, self.collect, self.config)

    def jobs(self) -> dict[tuple[str, int, int], Job]:
        """The runs of fine-tuning, by model, number of labels and seed; the smallest numbers of labels come first."""
        if not self.config.with_finetune:
            return {}
        models = [(SCRATCH, self.run, {"scratch": True}), *((name, weights, {}) for name, weights in self.encoders.items())]
        found = {}
        for count in self.budgets.counts:
            for seed in self.config.seeds:
                for name, weights, own in models:
                    path = self.folder / f"{FOLDERS.get(name) or slug(name)}-{count}-seed{seed}"
                    prepare = partial(self.tuning, name, weights, path, count, seed, self.finetune_options | own)
                    found[name, count, seed] = Job(path.name, prepare)
        return found

    def tuning(
        self, name: str, weights: str | os.PathLike[str], path: Path, count: int, seed: int, options: dict[str, Any]
    ) -> Call:
        """One run, whose turn has come."""
        printer(True)(f"\n{name}, {count_of(count, 'label')}, seed {seed}")
        return self.budgets.tuned(weights, path, self.data, self.test, count, seed, options)

    def collect(self, ended: str) -> None:
        """Reads the predictions of a run that has ended. Writes the page when all seeds of a model and number of labels have."""
        if any(each.run == ended for each in read_failures(self.folder)):
            return
        name, count, seed = next(key for key, job in self.jobs().items() if job.name == ended)
        known = self.found[name, FINETUNED][count]
        known[seed] = saved_predictions(self.folder / ended)
        if len(known) == len(self.config.seeds):
            self.write()

    @property
    def encoders(self) -> dict[str, str | os.PathLike[str]]:
        """The encoders that are compared, by name."""
        return {OWN: self.run} | {name: name for name in self.config.against}

    @property
    def results(self) -> VerdictResults:
        """What is known so far: models and numbers of labels for which all seeds have been trained."""
        complete = {
            (model, how, count): [of_seed[seed] for seed in self.config.seeds]
            for (model, how), of_count in self.found.items()
            for count, of_seed in of_count.items()
            if len(of_seed) == len(self.config.seeds)
        }
        accuracies = [Accuracies(*key, [float(each.right.mean()) for each in correct]) for key, correct in complete.items()]
        comparisons = [
            GainOver(
                model, how, count, paired_gain(*self.paired(complete[OWN, how, count], correct), self.groups(correct[0].names))
            )
            for (model, how, count), correct in complete.items()
            if model != OWN and (OWN, how, count) in complete
        ]
        budgets = self.budgets
        tested = next((len(correct[0].names) for correct in complete.values()), len(budgets.test_set))  # that could be read
        return VerdictResults(str(self.run), len(budgets.train_set), tested, accuracies, comparisons, self.cautions)

    @property
    def cautions(self) -> list[str]:
        """Sentences on what makes the numbers of labels or the accuracies other than they look."""
        found = [f"{leak[:1].upper()}{leak[1:]}." for leak in self.leaks]
        if unread := self.budgets.unread.get("training"):
            count = count_of(unread, "training image")
            found.append(f"{count} could not be read: their labels are among those that are counted, but teach nothing.")
        if unread := self.budgets.unread.get("test"):
            found.append(f"{count_of(unread, 'test image')} could not be read, and are left out.")
        if self.originals is not None:
            copies = len(self.originals) - len(set(self.originals.values()))
            found.append(f"{count_of(copies, 'test image')} are copies, or parts, of others: those of one original count as one.")
        return found

    def paired(self, first: list[Correct], second: list[Correct]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Both as arrays (S, I). Raises `UnveilError` if they are not of the same test images."""
        names = first[0].names
        if any(each.names != names for each in (*first, *second)):
            raise UnveilError(
                f"the runs in {self.folder} were tested on different images: choose another --out, or remove the runs of other data"
            )
        return np.stack([each.right for each in first]), np.stack([each.right for each in second])

    def groups(self, names: list[str]) -> NDArray[np.int64] | None:
        """The number of the original of each of these test images; None if all originals differ."""
        return None if self.originals is None else np.array([self.originals[name] for name in names])

    def write(self) -> dict[str, Any]:
        """Writes `verdict.json` and `report.html` from what is known so far."""
        results = self.results
        failed = [each._asdict() for each in self.failures]
        facts = self.facts | ({"runs": len(self.jobs()), "failed": failed} if failed else {})
        content = facts | results.to_json()
        write_text(self.folder / "verdict.json", json_text(content))
        write_verdict_page(self.folder, results, facts)
        return content


def originals_of(tests: Subset) -> dict[str, int] | None:
    """The number of the original of each test image, by name: exact copies are one, and so are parts of one image.

    None if all originals differ.
    """
    copies = copies_within(tests.dataset.source, tests.indices.numpy())
    if tests.groups is None and not copies:
        return None
    numbers = dict(zip(tests.indices.tolist(), range(len(tests)) if tests.groups is None else tests.groups.tolist(), strict=True))
    for index, first in copies.items():
        one, other = numbers[index], numbers[first]
        numbers = {key: other if number == one else number for key, number in numbers.items()} if one != other else numbers
    return {csv_cell(name): number for name, number in zip(tests.names, numbers.values(), strict=True)}
