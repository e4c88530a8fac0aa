"""Comparisons: all entries are trained with equal budgets, for several seeds, and evaluated in the same way."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unveil.atomic_files import write_text
from unveil.data.parts import HELD_OUT
from unveil.errors import UnveilError
from unveil.experiments.calls import Call
from unveil.experiments.finished_probes import finished_probe, refuse_other_probe
from unveil.experiments.jobs import Job, JobsConfig, is_finished, run_jobs
from unveil.json_files import json_text, read_json
from unveil.learner import Method
from unveil.methods import method_class
from unveil.options import known_to
from unveil.paths import absolute_data
from unveil.planning.dry_run import dry_run
from unveil.ranges import Positive, Seed
from unveil.reports.comparison import ComparisonRow, caution_note, figures_of, finetune_score, joined_cautions, row_of
from unveil.reports.failures import Failure, failures_of
from unveil.runs.images import IMAGES
from unveil.runs.modality import modality
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.run_folder import Run, finished_run, receipt
from unveil.train.run_schema import check, reading_results
from unveil.train.terminal import printer

FINETUNE = "-finetune"
"""The end of the name of a run that fine-tunes an encoder."""
LAST_BLOCK = {"blocks": 1.0}
"""The options of a run that fine-tunes the last block."""
FIRST_STAGE_SHARE = 0.25
"""Share of a budget in seconds for a first stage, such as the visual tokenizer of BEiT. The second stage gets the rest."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(JobsConfig):
    """Seeds, budget and fine-tuning of a comparison."""

    HIDDEN = ("slurm", "with_partial")
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Random seeds. Each method is trained once with each seed."""
    seconds: Positive | None = None
    """Training time per method in seconds, instead of equal epochs. A short trial measures how many epochs fit."""
    labelled_data: str | None = None
    """Labelled data for fine-tuning; by default DATA itself."""
    with_finetune: bool = True
    """Also fine-tune each encoder, for 10 epochs unless --finetune.epochs says otherwise."""
    with_partial: bool = False
    """Also fine-tune the last block of each encoder alone, in the same way as the whole encoder (figure 9)."""
    evaluate_on: Literal["held-out", "test"] = "held-out"
    """The samples to evaluate on. To choose among methods or values, use held-out samples: the validation split or, without one, a
    part of the train set. Then evaluate your choice once on the test set."""


class Entry(NamedTuple):
    """A method in a comparison."""

    name: str
    """The name of its row and of its run folders: the method, or an extended name such as mae-pixel."""
    method: str
    """A name in `unveil.methods.METHODS`, "package.module:Class", or "file.py:Class"."""
    options: dict[str, Any]
    """Options of `pretrain` for this entry only."""

    @property
    def kind(self) -> type[Method]:
        """The class of the method."""
        return method_class(self.method)


class Evaluation(NamedTuple):
    """A probe or a fine-tuning run of every encoder of a comparison."""

    suffix: str
    """What is added to the name of the pre-training run, for the folder."""
    command: Literal["finetune", "probe"]
    options: "Callable[[Comparison, Run], Mapping[str, Any]]"
    """The options of the command, which may follow from the pre-training run."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The entries, and the options that they share. Every run has an ordinary run folder inside `folder`."""

    folder: Path
    data: str
    config: ComparisonConfig
    shared_options: dict[str, Any]
    """Options of `pretrain` for all entries, which may include `model`."""
    finetune_options: dict[str, Any]
    """Options of `finetune`."""
    entries: Sequence[Entry]
    evaluations: "Sequence[Evaluation]" = ()
    """Further evaluations of every encoder, besides fine-tuning."""
    finetunes_whole: bool = True
    """Whether every encoder is fine-tuned as a whole, unless the config leaves that out."""
    finetunes_untrained: bool = True
    """Whether an untrained encoder is fine-tuned as well, as a baseline."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """Folders of runs that another comparison trains with the same settings, by the names that they would have here."""

    def path(self, name: str, seed: int, suffix: str = "") -> Path:
        """A run folder."""
        return self.folder_of(f"{name}-seed{seed}{suffix}")

    def folder_of(self, run: str) -> Path:
        """The folder of a run."""
        return self.elsewhere.get(run) or self.folder / run

    def options(self, entry: Entry, seed: int) -> dict[str, Any]:
        """The options of a run. A value that is the name of another entry becomes the run folder of that entry with this seed."""
        paths = {key: str(self.path(value, seed)) for key, value in entry.options.items() if value in self.names}
        return self.test_split(entry) | self.shared_options | entry.options | paths | {"seed": seed}

    def test_split(self, entry: Entry) -> dict[str, str]:
        """The option that keeps the test set of images for later. Encoders of texts are evaluated by fine-tuning alone."""
        return {"test_split": HELD_OUT} if self.config.evaluate_on == "held-out" and entry.kind.modality == "images" else {}

    @property
    def other_labelled(self) -> str:
        """The labelled data of fine-tuning, if they are not the data of pre-training; "" otherwise."""
        labelled = self.config.labelled_data or self.data
        same = labelled == self.data or ((path := absolute_data(labelled)) is not None and path == absolute_data(self.data))
        return "" if same else labelled

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def first_stages(self) -> set[str]:
        """Names of entries that are not compared: they are only trained because an option of another entry names them."""
        values = [value for entry in self.entries for value in entry.options.values() if isinstance(value, str)]
        return {name for name in self.names if name in values}

    @property
    def compared(self) -> list[Entry]:
        """The entries to compare: all but the first stages."""
        return [entry for entry in self.entries if entry.name not in self.first_stages]

    @property
    def transferred(self) -> list[Entry]:
        """The entries whose encoder can be trained further."""
        return [entry for entry in self.compared if entry.kind.supports_finetuning]

    @property
    def finetunings(self) -> dict[str, dict[str, Any]]:
        """The ways in which every encoder is fine-tuned: their options, by a key of `ACCURACIES`."""
        whole = {"finetune": dict[str, Any]()} if self.config.with_finetune and self.finetunes_whole else {}
        return whole | ({"partial": LAST_BLOCK} if self.config.with_partial else {})

    def stages_of(self, entry: Entry, seed: int) -> list[Run]:
        """The runs that the options of an entry name. They were trained in this comparison or elsewhere."""
        values = [value for key, value in self.options(entry, seed).items() if key in entry.options and isinstance(value, str)]
        return [Run(value) for value in values if (Path(value) / "run.json").is_file()]

    def jobs(self) -> list[Job]:
        """The runs of this comparison, in their order."""
        return [job for job in self.all_jobs() if job.name not in self.elsewhere]

    def jobs_in(self, folder: Path) -> list[Job]:
        """The runs of this comparison, with the names that they have in a folder of several comparisons."""

        def name_of(run: str) -> str:
            return self.folder_of(run).relative_to(folder).as_posix()

        return [job._replace(name=name_of(job.name), needs=tuple(map(name_of, job.needs))) for job in self.jobs()]

    def all_jobs(self) -> list[Job]:
        """All runs, in their order, with those that another comparison trains."""
        jobs = []
        for seed in self.config.seeds:
            for entry in self.entries:
                own = f"{entry.name}-seed{seed}"
                stages = tuple(f"{value}-seed{seed}" for value in entry.options.values() if value in self.names)
                jobs.append(Job(own, partial(self.pretraining, entry, seed), stages))
                for way, options in self.finetunings.items() if entry in self.transferred else ():
                    out = self.path(entry.name, seed, f"-{way}")
                    jobs.append(Job(f"{own}-{way}", partial(self.finetuning, entry.name, seed, out, **options), (own,)))
                jobs += [
                    Job(f"{own}-{each.suffix}", partial(self.evaluating, entry.name, seed, each), (own,))
                    for each in self.evaluations
                ]
            for entry in self.transferred[: 1 if self.finetunes_untrained else 0]:
                for way, options in self.finetunings.items():
                    out = self.path("untrained", seed, f"-{way}")
                    call = partial(self.finetuning, entry.name, seed, out, scratch=True, **options)
                    jobs.append(Job(f"untrained-seed{seed}-{way}", call, (f"{entry.name}-seed{seed}",)))
        return jobs

    def pretraining(self, entry: Entry, seed: int) -> Call:
        """The pre-training run of an entry."""
        options = self.options(entry, seed) | {"epochs": self.epochs(entry, seed)}
        epochs, path = f"{options['epochs']:.4g}", self.path(entry.name, seed)
        printer(True)(f"\n{path}: {epochs} epoch{'s' * (epochs != '1')}")
        return Call("pretrain", (self.data,), {"method": entry.method, "out": path, **options})

    def finetuning(self, name: str, seed: int, out: Path, **options: Any) -> Call:
        """Fine-tunes the encoder of an entry or, with `scratch`, an untrained encoder of the same shape."""
        run = Run(self.path(name, seed))
        is_text = next(entry.kind.modality for entry in self.entries if entry.name == name) == "text"
        held_out = self.config.evaluate_on == HELD_OUT if is_text else run.config.get("test_split") == HELD_OUT
        kept = {"test_split": HELD_OUT} if held_out else {}
        given = {"out": out, "seed": seed}
        return Call("finetune", (run.path, self.config.labelled_data), {**given, **kept, **self.finetune_options, **options})

    def evaluating(self, name: str, seed: int, evaluation: "Evaluation") -> Call | None:
        """One more evaluation of the encoder of an entry."""
        run = Run(self.path(name, seed))
        options = dict(evaluation.options(self, run))
        out = self.path(name, seed, f"-{evaluation.suffix}")
        if evaluation.command == "finetune":
            return self.finetuning(name, seed, out, **options)
        kept = {"test_split": HELD_OUT} if run.config.get("test_split") == HELD_OUT else {}
        given = known_to(self.finetune_options, HardwareConfig) | kept | options | {"seed": seed}
        if finished_probe(out):
            refuse_other_probe(out, run, self.config.labelled_data or self.data, given)
            return None
        return Call("probe", (run.path, self.config.labelled_data), {"out": out, **given})

    def probed(self, name: str, seed: int, suffix: str) -> dict[str, float]:
        """The accuracies of a probe that has finished, of the encoder and perhaps of baselines; nothing if it has not."""
        folder = self.path(name, seed, f"-{suffix}")
        if not finished_probe(folder):
            return {}
        with reading_results(folder):
            return {model: float(accuracy) for model, accuracy in Run(folder, {}).results["top1"].items()}

    def epochs(self, entry: Entry, seed: int) -> float:
        """The epochs of a run: as given, or as many as fit into the seconds.

        In the second case, the speed is measured once per entry and the epochs are saved, so that all seeds, and later calls, train
        for the same number of epochs.
        """
        options = self.options(entry, seed)
        if self.config.seconds is None or "epochs" in entry.options:
            defaults = modality(entry.kind.modality).defaults(self.data, entry.method)
            return float(options.get("epochs") or defaults.get("epochs") or TrainConfig.epochs)
        budget = self.config.seconds * (FIRST_STAGE_SHARE if entry.name in self.first_stages else 1.0)
        budget -= sum(stage.results["seconds"] for stage in self.stages_of(entry, seed))
        if self.measured_epochs().get(entry.name, {}).get("seconds") != self.config.seconds:
            start = time.monotonic()
            plan = IMAGES.plan(self.data, entry.method, options.pop("model", None), options)
            printer(True)(f"measuring the speed of {entry.name} ...")
            seconds = min(30.0, max(1.0, self.config.seconds / 10))
            trial = dry_run(plan, self.path(entry.name, seed), time.monotonic() - start, seconds)
            steps = trial.steps_within(budget)
            if not steps:
                first = trial.training(max(1, trial.warmup))
                raise UnveilError(
                    f"{entry.name} has {budget:.3g} seconds, but its first steps, in which everything is set up, take {first:.3g}: "
                    f"give more --seconds"
                )
            epochs = steps * plan.recipe.training.batch_size / trial.train
            measured = self.measured_epochs() | {entry.name: {"seconds": self.config.seconds, "epochs": epochs}}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "epochs.json", json_text(measured))
        return float(self.measured_epochs()[entry.name]["epochs"])

    def measured_epochs(self) -> dict[str, Any]:
        """The epochs of each entry from earlier trials."""
        path = self.folder / "epochs.json"
        found = read_json(path) if path.is_file() else {}
        check(found, dict.fromkeys(found, dict[str, float]), path)
        return found

    def rows(self) -> list[ComparisonRow]:
        """The results of the runs that have finished: a row for each entry, then for each baseline."""
        rows, first = [], self.baselines_of.name
        baselines: dict[str, dict[int, dict[str, float]]] = {"untrained": {}, "raw pixels": {}}
        for entry in self.entries:
            seeds = dict[int, dict[str, float]]()
            for seed in self.config.seeds:
                run = finished_run(self.path(entry.name, seed))
                if run:
                    with reading_results(run.path):
                        figures = figures_of(run, self.stages_of(entry, seed))
                    seeds[seed] = figures | self.finetuned(entry.name, seed)
                if run and entry.name == first:
                    features = run.results.get("features") or {}
                    baselines["untrained"][seed] = features.get("untrained", {}) | self.finetuned("untrained", seed)
                    baselines["raw pixels"][seed] = features.get("raw pixels", {})
            if seeds:
                rows.append(row_of(entry.name, [*seeds.values()], seeds=[*seeds]))
        every = [(name, seeds) for name, seeds in baselines.items() if any(seeds.values())]
        return rows + [row_of(name, [*seeds.values()], baseline=True, seeds=[*seeds]) for name, seeds in every]

    @property
    def baselines_of(self) -> Entry:
        """The entry whose runs have the baselines: an encoder of its shape without training, and raw pixels."""
        return (self.transferred or self.compared)[0]

    def has_finished(self, run: str) -> bool:
        """Whether a run, or a probe, has finished."""
        return is_finished(self.folder_of(run))

    def finetuned(self, name: str, seed: int) -> dict[str, float]:
        """The scores after fine-tuning of an entry or of the untrained encoder, by metric, of the runs that have finished."""
        scores = dict[str, float]()
        for way in self.finetunings:
            if run := finished_run(self.path(name, seed, f"-{way}")):
                with reading_results(run.path):
                    scores[way] = finetune_score(run)
        return scores

    @property
    def finished_runs(self) -> list[Path]:
        """The folders of the runs that have finished."""
        paths = [self.folder_of(job.name) for job in self.all_jobs()]
        return [path for path in paths if finished_run(path)]

    @property
    def warning(self) -> str:
        """A sentence if runs were trained on test samples, and "" otherwise."""
        return caution_note(self.finished_runs)

    @property
    def facts(self) -> dict[str, Any]:
        """All options by name, and the environment."""
        config = {**asdict(self.config), **self.shared_options}
        config |= {f"{entry.name}.{key}": value for entry in self.entries for key, value in entry.options.items()}
        config |= {f"finetune.{key}": value for key, value in self.finetune_options.items()}
        every = self.all_jobs()
        failed = [each._asdict() for each in self.failures_of(every)]
        ended = [self.has_finished(job.name) for job in every]
        runs: dict[str, Any] = {} if all(ended) else {"runs": len(ended), "finished": sum(ended)}
        runs |= {"failed": failed} if failed else {}
        cautions = joined_cautions(self.finished_runs)
        runs |= {"cautions": cautions} if cautions else {}
        seeds = [seed for seed in self.config.seeds if any(finished_run(self.path(name, seed)) for name in self.names)]
        return {"methods": self.names, "data": self.data, "config": config, "finished_seeds": seeds, **runs, **receipt()}

    def failures_of(self, jobs: Sequence[Job]) -> list[Failure]:
        """Those of these runs that failed when they were tried last."""
        found = failures_of(self.folder_of(job.name) for job in jobs)
        return [found[path]._replace(run=job.name) for job in jobs if (path := self.folder_of(job.name)) in found]

    @property
    def failures(self) -> list[Failure]:
        """The runs that failed when they were tried last."""
        return self.failures_of(self.jobs())


def run_comparisons(comparisons: Sequence[Comparison], folder: Path, after_each: Callable[[Path], object]) -> list[Failure]:
    """Trains what is missing, and calls `after_each` with the folder of every run that ends. Returns what has failed.

    Args:
        comparisons: One, or several that share their seeds and how many runs are trained at a time: no run waits for the end of
            another comparison, unless it needs one of its runs. Those with a budget in seconds come first, one run at a time.
        folder: Of all comparisons, or of the only one.
        after_each: What to do after every run.
    """
    failures = list[Failure]()
    for is_timed in (True, False):
        chosen = [each for each in comparisons if bool(each.config.seconds) == is_timed]
        if chosen:
            jobs = [job for each in chosen for job in each.jobs_in(folder)]
            failures += run_jobs(jobs, folder, lambda name: after_each(folder / name), chosen[0].config)
    return failures
