"""The runs of a verdict: what is trained with each number of labels and each seed, and what is known so far."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
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
from unveil.experiments.jobs import Job, JobsConfig, run_jobs
from unveil.experiments.label_budgets import Budgets, Correct, frozen_model, raw_model, saved_predictions, untrained_model
from unveil.experiments.results_folder import Scope, holds_all_results
from unveil.json_files import json_text
from unveil.plain_text import count_of, csv_cell
from unveil.ranges import Seed, ShareAboveZero
from unveil.reports.failures import Failure, read_failures
from unveil.reports.verdict_page import write_verdict_page
from unveil.reports.verdict_results import FINETUNED, LINEAR, OWN, RAW, SCRATCH, UNTRAINED, Accuracies, GainOver, VerdictResults
from unveil.runs.modality import slug
from unveil.train.run_folder import finished_run
from unveil.train.terminal import printer

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
    """Clauses on test images that were trained on, or whose class was not."""

    def __post_init__(self) -> None:
        self.replaces_complete = holds_all_results(self.folder, "verdict")
        """Whether the folder has a verdict without missing runs, which only a complete one may replace."""
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
        run_jobs(list(self.jobs().values()), self.folder, self.collect, self.config)
        self.read_predictions()

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
        """Writes the page when a run has ended.

        A verdict that was complete before, with fewer seeds or labels, stays until all runs of this one have ended.
        """
        self.read_predictions()
        if self.complete and not self.replaces_complete:
            self.write()

    def read_predictions(self) -> None:
        """Reads the predictions of all runs that have finished, also in an earlier call."""
        failed = {each.run for each in self.failures}
        for (name, count, seed), job in self.jobs().items():
            known = self.found[name, FINETUNED][count]
            if seed not in known and job.name not in failed and finished_run(self.folder / job.name):
                known[seed] = saved_predictions(self.folder / job.name)

    @property
    def failures(self) -> list[Failure]:
        """The runs that failed when they were tried last."""
        names = {job.name for job in self.jobs().values()}
        return [each for each in read_failures(self.folder) if each.run in names]

    @property
    def unfinished(self) -> int:
        """The number of runs of fine-tuning that have neither finished nor failed."""
        failed = {each.run for each in self.failures}
        return sum(job.name not in failed and not finished_run(self.folder / job.name) for job in self.jobs().values())

    @property
    def encoders(self) -> dict[str, str | os.PathLike[str]]:
        """The encoders that are compared, by name."""
        return {OWN: self.run} | {name: name for name in self.config.against}

    @property
    def scope(self) -> Scope:
        """What the results will be of."""
        ways = ["fine-tuning"] * self.config.with_finetune
        labels = [f"{count:,} labels" for count in self.budgets.counts]
        return {"seed": self.config.seeds, "encoder": self.config.against, "": [*ways, *labels]}

    @property
    def complete(self) -> dict[tuple[str, str, int], list[Correct]]:
        """What is correct for each seed, by model, way and number of labels for which all seeds have been trained."""
        return {
            (model, how, count): [of_seed[seed] for seed in self.config.seeds]
            for (model, how), of_count in self.found.items()
            for count, of_seed in of_count.items()
            if len(of_seed) == len(self.config.seeds)
        }

    @property
    def results(self) -> VerdictResults:
        """What is known so far."""
        complete = self.complete
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
        return VerdictResults(
            str(self.run), len(budgets.train_set), tested, accuracies, comparisons, self.cautions, self.unfinished
        )

    @property
    def cautions(self) -> list[str]:
        """Sentences on what makes the numbers of labels or the accuracies other than they look."""
        found = [f"{leak[:1].upper()}{leak[1:]}." for leak in self.leaks]
        if unread := self.budgets.unread.get("training"):
            count, labels = count_of(unread, "training image"), "its label is" if unread == 1 else "their labels are"
            found.append(f"{count} could not be read: {labels} counted as well, without effect.")
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
        runs, left = len(self.jobs()), results.unfinished + len(failed)
        facts = self.facts | ({"runs": runs, "finished": runs - left} if left else {})
        facts |= {"failed": failed} if failed else {}
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
