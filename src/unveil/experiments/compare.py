"""`unveil compare`: trains several methods with equal budgets, evaluates them in the same way, and writes one table."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unveil.atomic_files import write_text
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.experiments.finished_seeds import seed_counts
from unveil.experiments.jobs import refuse_failures
from unveil.experiments.results_folder import refuse_fewer_results, refuse_other_results, scope_of
from unveil.experiments.runner import LAST_BLOCK, Comparison, ComparisonConfig, Entry, run_comparisons
from unveil.folder_lock import locked
from unveil.json_files import json_text
from unveil.learner import Method, Task
from unveil.methods import METHODS, base_of
from unveil.options import check_options, configure, known_to
from unveil.planning.rules import applies_to, choose_base_lr
from unveil.plugins import is_path
from unveil.reports.chance import TestCounts
from unveil.reports.comparison import ComparisonRow, comparison_table
from unveil.reports.comparison_page import write_comparison
from unveil.reports.notebook import ShownList
from unveil.reports.run_summary import independent_tests
from unveil.reports.table import ResultTable, to_markdown, to_terminal, with_warning
from unveil.reports.vocabulary import independent_count_of
from unveil.runs.initial_weights import open_initial_weights
from unveil.runs.modality import modality, slug
from unveil.tasks import TASKS, task_class
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.run_folder import Run
from unveil.train.terminal import printer, show

FINETUNE_DEFAULTS = {"epochs": 10.0}
"""Defaults of fine-tuning in a comparison, where they differ from those of `unveil finetune`."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The format of the table."""

    markdown: bool = False
    """Print the table as Markdown."""


def compare(
    methods: str | Sequence[str | type[Method]],
    data: str | Path = "digits",
    *,
    model: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> list[ComparisonRow]:
    """Trains several methods with equal budgets, evaluates them in the same way, and writes one table.

    A second call with the same arguments trains only what is missing.

    Args:
        methods: Names from `unveil.methods.METHODS`, "package.module:Class", "file.py:Class", or classes; separated by commas or as
            a list. A name may be extended, such as mae-pixel, to train a method several times with different options. If the value
            of an option is the name of an earlier entry, it is replaced by the run folder of that entry:
            beit={"visual_tokenizer": "dvae"}.
        data: As for `pretrain`.
        model: As for `pretrain`.
        out: The folder for the runs, `compare.json` and `report.html`; `runs/<data>-compare` by default.
        **options: Fields of `ComparisonConfig` and `CompareConfig`; options of `pretrain` for all methods; under the name of a
            method, a dictionary of options for this method only; under `finetune`, a dictionary of options of `finetune`.

    Returns:
        A row for each method, then for the untrained encoder and for raw pixels.

    Raises:
        UnveilError: On input that cannot be used.
        FailedRunsError: If a run has failed, after all others have ended and the page was written. Its `results` are the rows.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    listed = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods
    (config,) = configure(known_to(options, CompareConfig), CompareConfig)
    options = {"model": model} | {key: value for key, value in options.items() if key not in known_to(options, CompareConfig)}
    folder = Path(out) if out else Path("runs") / f"{slug(str(data))}-compare"
    refuse_other_results(folder, "comparison")
    comparison = build_comparison([entry_of(method) for method in listed], str(data), folder, options)
    names = [entry.name for entry in comparison.entries]
    refuse_fewer_results(folder, "comparison", scope_of("method", names, comparison.config.seeds, comparison.finetunings))

    def write() -> tuple[list[ComparisonRow], ResultTable]:
        return write_results(comparison)

    with locked(folder, "training in"):
        failures = run_comparisons([comparison], folder, lambda run: comparison.finished_runs and write())
        if not comparison.finished_runs:
            refuse_failures(failures, len(comparison.jobs()))
        rows, table = write()
    table = with_warning(table, comparison.warning)
    if config.markdown:
        print(to_markdown(table))
    else:
        show(to_terminal(table))
    printer(True)(f"The report: {folder / 'report.html'}")
    results = ShownList(rows, [table], folder)
    refuse_failures(failures, len(comparison.jobs()), results)
    return results


def entry_of(method: str | type[Method], options: Mapping[str, Any] | None = None) -> Entry:
    """The entry of a method: mae, an extended name such as mae-pixel, or a plug-in."""
    if isinstance(method, str) and not is_path(method):
        return Entry(method, base_of(method), dict(options or {}))
    return Entry(METHODS.label(method), METHODS.find(method), dict(options or {}))


def build_comparison(entries: Iterable[Entry], data: str, folder: Path, options: Mapping[str, Any]) -> Comparison:
    """Resolves the options. Checks as much as possible before hours of training.

    Args:
        entries: The methods, each with its own options.
        data: The data to train on.
        folder: The folder of all runs.
        options: As for `compare`.

    Raises:
        UnveilError: If a method or an option is unknown, or nothing could be evaluated.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UnveilError("a comparison runs in one process: start it without torchrun")
    separate = {key: value for key, value in options.items() if isinstance(value, Mapping)}
    shared = {key: value for key, value in options.items() if key not in separate and value is not None}
    (config,) = configure(known_to(shared, ComparisonConfig), ComparisonConfig)
    shared = {key: value for key, value in shared.items() if key not in known_to(shared, ComparisonConfig)}
    finetune = FINETUNE_DEFAULTS | known_to(shared, HardwareConfig) | dict(separate.pop("finetune", {}))
    complete = [entry._replace(options={**entry.options, **separate.pop(entry.name, {})}) for entry in entries]
    if not (config.with_finetune or config.with_partial):
        refuse_unused_finetuning(config, options)
    for entry in complete:
        check_entry(entry, shared, finetune)
        if config.with_partial:
            refuse_without_blocks(entry, finetune, "--with-partial")
    complete = [with_base_lr(entry, data, shared) for entry in complete]
    names = [entry.name for entry in complete]
    if separate:
        raise UnveilError(f"there are options for {', '.join(separate)}, expected one of {', '.join([*names, 'finetune'])}")
    if any("seed" in given for given in (shared, finetune, *(entry.options for entry in complete))):
        raise UnveilError("all entries of a comparison or a study have the same seeds: use --seeds in place of seed")
    if "scratch" in finetune:
        raise UnveilError("a comparison trains a model from scratch beside the fine-tuned ones: leave finetune.scratch out")
    refuse_other_images(complete, finetune)
    if len(set(names)) < len(names):
        raise UnveilError(f"a method occurs twice in {', '.join(names)}: give it two names, such as mae and mae-pixel")
    if config.seconds and shared.get("epochs"):
        raise UnveilError("the budget is either --seconds or --epochs: give one of them")
    if config.seconds and (config.slurm or (config.jobs or 1) > 1):
        raise UnveilError(
            "--seconds compares methods by their speed, which runs side by side would change: use --jobs 1, or --epochs"
        )
    if config.seconds:
        config = replace(config, jobs=1)
    if not config.seeds:
        raise UnveilError("--seeds is empty: give at least one seed")
    if len(set(config.seeds)) < len(config.seeds):
        raise UnveilError(f"a seed occurs twice in --seeds {' '.join(map(str, config.seeds))}: its runs would count as two")
    for i, entry in enumerate(complete):
        if config.seconds and not applies_to(entry.kind):
            raise UnveilError(f"the time of a step is measured for images only: give --epochs for {entry.name}")
        later = [value for value in entry.options.values() if value in names[i:]]
        if later:
            raise UnveilError(f"{entry.name} uses the run of {later[0]}, which must be trained first: name {later[0]} before it")
    refuse_few_labels(data, config, complete, int(finetune.get("labels") or 0))
    return Comparison(
        folder=folder, data=data, config=config, shared_options=shared, finetune_options=finetune, entries=tuple(complete)
    )


def check_entry(entry: Entry, shared: Mapping[str, Any], finetune: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for an option of pre-training or of fine-tuning that does not exist, or whose value cannot be used."""
    samples = modality(entry.kind.modality)
    given = {key: value for key, value in {**shared, **entry.options}.items() if key != "model"}
    check_options(given, *samples.configs(entry.method))
    kind = task_of(entry, finetune)
    if kind.TargetType is not ClassTargets:
        raise UnveilError(f"the task {TASKS.label(kind)} has no accuracy, which a comparison needs: leave finetune.task out")
    arguments = ("task", "test")  # of `finetune`, which are no options of its runs
    check_options({name: value for name, value in finetune.items() if name not in arguments}, *finetune_configs(entry, finetune))


def refuse_unused_finetuning(config: ComparisonConfig, options: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for options of fine-tuning in a comparison without it."""
    if options.get("finetune"):
        raise UnveilError("there are options of fine-tuning, but --no-with-finetune leaves it out")
    if config.labelled_data:
        raise UnveilError("--labelled-data is for fine-tuning, but --no-with-finetune leaves it out")


def refuse_other_images(entries: Iterable[Entry], finetune: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for options of one entry, or of fine-tuning, that decide which images runs are evaluated on."""
    same = "all runs of a comparison or a study are evaluated on the same images"
    for entry in entries:
        own = [name for name in ("split", "test_split", "held_out", "leave_out_copies", "max_pixels") if name in entry.options]
        if own:
            raise UnveilError(f"{same}: give --{own[0].replace('_', '-')} for all of them, and not for {entry.name} alone")
    other = [name for name in ("test", "split", "test_split") if name in finetune]
    if other:
        raise UnveilError(f"{same}: leave finetune.{other[0]} out")


def task_of(entry: Entry, finetune: Mapping[str, Any]) -> type[Task]:
    """The task by which the encoder of an entry is fine-tuned."""
    task = finetune.get("task") or modality(entry.kind.modality).default_task
    return task if isinstance(task, type) else task_class(task)


def finetune_configs(entry: Entry, finetune: Mapping[str, Any]) -> tuple[type[Any], ...]:
    """What holds the options of fine-tuning the encoder of an entry."""
    own = modality(entry.kind.modality).finetune_configs(task_of(entry, finetune))
    return (*own, TrainConfig, OptimConfig, HardwareConfig)


def refuse_without_blocks(entry: Entry, finetune: Mapping[str, Any], what: str) -> None:
    """Raises `UnveilError` if the last blocks of an encoder cannot be fine-tuned alone, which `what` would do."""
    if not known_to(LAST_BLOCK, *finetune_configs(entry, finetune)):
        task = TASKS.label(task_of(entry, finetune))
        raise UnveilError(f"{what} fine-tunes the last blocks alone, which the task {task} cannot: leave one of them out")


def with_base_lr(entry: Entry, data: str, shared: Mapping[str, Any]) -> Entry:
    """An entry with the learning rate of `unveil plan`, if there is a rule for its method and the user gave no rate.

    The rates of the papers are for wide encoders and batch sizes of thousands. With them, small encoders hardly learn within a
    small budget.
    """
    given = {**shared, **entry.options}
    if not applies_to(entry.kind) or "base_lr" in given:
        return entry
    samples = modality(entry.kind.modality)
    resolved: dict[str, Any] = {"batch_size": TrainConfig.batch_size, **samples.defaults(data, entry.method), **given}
    if init := existing_weights(given):
        width = open_initial_weights(init, Path(init), (), lambda text: None).vit.width
    elif resolved["model"] in samples.models:
        width = samples.models[resolved["model"]][0]
    else:
        return entry  # planning the run will raise the error
    base_lr = choose_base_lr(width, resolved["batch_size"]).value
    return entry._replace(options={**entry.options, "base_lr": base_lr})


def existing_weights(given: Mapping[str, Any]) -> str | None:
    """The weights that the options of an entry start from; None if there are none, or if an earlier entry will train them."""
    init = given.get("init")
    return os.fspath(init) if init and (":" in os.fspath(init) or os.path.exists(init)) else None


def refuse_few_labels(data: str, config: ComparisonConfig, entries: Iterable[Entry], needed: int) -> None:
    """Raises `UnveilError` if the labelled data have no labels, or fewer than `needed` even before any are held out."""
    labelled = config.labelled_data or data
    for name in dict.fromkeys(entry.kind.modality for entry in entries):
        samples = modality(name)
        count = samples.label_count(labelled)
        if not count:
            other = "other data with --labelled-data" if config.labelled_data else "--labelled-data"
            raise UnveilError(
                f"{labelled} has no {samples.noun} of two classes or more to evaluate with: put each class into a folder of its "
                f"own, add labels as described in docs/getting-started.md, or give {other}"
            )
        if needed > count:
            raise UnveilError(
                f"--finetune.labels is {needed:,}, but {labelled} has only {count:,} labelled {samples.noun} to train on: "
                f"give fewer, or 0 for all"
            )


def evaluated_images(comparison: Comparison) -> TestCounts:
    """The numbers of independent images on which the runs were evaluated, as far as they record them.

    Frozen features are evaluated on images of DATA, and at most 10,000 of them. Where runs differ, the smallest number counts.
    """
    results = [Run(path).results for path in comparison.finished_runs]
    frozen = min(filter(None, map(independent_tests, results)), default=None)
    tuned = min(filter(None, (independent_count_of(each.get("score") or {}) for each in results)), default=frozen)
    kinds = {"knn": frozen, "linear": frozen} | dict.fromkeys(("partial", "finetune", "scratch"), tuned)
    return {key: count for key, count in kinds.items() if count}


def write_results(comparison: Comparison) -> tuple[list[ComparisonRow], ResultTable]:
    """Writes `compare.json` and `report.html` from the runs that have finished."""
    rows, facts, seconds = comparison.rows(), comparison.facts, comparison.config.seconds
    budget = f"{seconds:g} seconds of training each" if seconds else "equal epochs"
    counts, seeds = evaluated_images(comparison), seed_counts(comparison, rows)
    where = f"{comparison.data}{f', fine-tuned on {comparison.other_labelled}' if comparison.other_labelled else ''}"
    untrained = f"the untrained encoder of {comparison.baselines_of.name}" if len(comparison.compared) > 1 else ""
    table = comparison_table(rows, f"{', '.join(comparison.names)} on {where}, {budget}", counts, seeds, untrained)
    content = facts | {"rows": [row.to_json() for row in rows]}
    write_text(comparison.folder / "compare.json", json_text(content))
    write_comparison(comparison.folder, rows, table, comparison.finished_runs, facts, counts, seeds, comparison.other_labelled)
    return rows, table
