"""`unveil compare`: methods side by side under one budget, in one table."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unveil.data.sources import open_both
from unveil.errors import UnveilError
from unveil.experiments.runner import Comparison, ComparisonConfig, Entry
from unveil.methods import IMAGES, TEXTS, base_of, method_class
from unveil.models.vit import MODELS
from unveil.options import configure, known_to, refuse_unknown
from unveil.planning.rules import rate_for
from unveil.recipes.pretrain_text import CorpusConfig
from unveil.reports.comparison import Row, grid_of, write_comparison
from unveil.reports.table import Grid, markdown_grid, terminal_grid
from unveil.runs.pretrain_setup import configs_of, slug, usual_for
from unveil.text.files import open_texts
from unveil.train.checkpoint import write_whole
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.run_folder import Run, show, tell

FINETUNE = {"epochs": 10.0}
"""What differs by default from `unveil finetune`."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is printed."""

    markdown: bool = False
    """Print the table as Markdown."""


def compare(
    methods: str | Sequence[str],
    data: str | Path = "digits",
    *,
    model: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> list[Row]:
    """Trains methods under one budget, judges them alike, and writes one table; the same call again trains what is missing.

    Args:
        methods: Names from `unveil.methods.METHODS`, with commas or as a list. `mae-pixel` is mae under another name, for options
            of its own. An option whose value is the name of an earlier one gets that one's run folder: beit's tokenizer="dvae".
        data: See `unveil.data.sources.FORMS`.
        model: As for `pretrain`.
        out: The folder for the runs, `compare.json` and `report.html`; `runs/<data>-compare` by default.
        **options: Fields of `ComparisonConfig` and `CompareConfig`; options of `pretrain`, for all methods; under the name of a method
            a dictionary of such options for it alone; under `finetune` a dictionary of options of `finetune`.

    Returns:
        A row for each method, then for the yardsticks.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    (shown,) = configure(known_to(options, CompareConfig), CompareConfig)
    options = {"model": model} | {key: value for key, value in options.items() if key not in known_to(options, CompareConfig)}
    folder = Path(out) if out else Path("runs") / f"{slug(str(data))}-compare"
    comparison = contest_of([(name, {}) for name in names], str(data), folder, options)

    def write() -> tuple[list[Row], Grid]:
        return write_results(comparison)

    comparison.run(write)
    rows, grid = write()
    if shown.markdown:
        print(markdown_grid(grid))
    else:
        show(terminal_grid(grid))
    tell(True)(f"The report: {folder / 'report.html'}")
    return rows


def contest_of(entries: Iterable[tuple[str, Mapping[str, Any]]], data: str, folder: Path, options: Mapping[str, Any]) -> Comparison:
    """Settles who takes part, and checks what can be checked before hours have gone by.

    Args:
        contestants: Names, each with options that make it what it is.
        data: What all are trained on.
        folder: Where all runs go.
        options: As for `compare`.

    Raises:
        UnveilError: Where a method or an option is not known, and where nothing could be judged.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UnveilError("a comparison runs in one process: start it without torchrun")
    apart = {key: value for key, value in options.items() if isinstance(value, Mapping)}
    shared = {key: value for key, value in options.items() if key not in apart and value is not None}
    (own,) = configure(known_to(shared, ComparisonConfig), ComparisonConfig)
    shared = {key: value for key, value in shared.items() if key not in known_to(shared, ComparisonConfig)}
    tuning: dict[str, Any] = FINETUNE | known_to(shared, HardwareConfig) | dict(apart.pop("finetune", {}))
    made = tuple(paced(Entry(name, {**fixed, **apart.pop(name, {})}), data, shared) for name, fixed in entries)
    names = [who.name for who in made]
    if apart:
        raise UnveilError(f"there are options for {', '.join(apart)}, which is none of {', '.join([*names, 'finetune'])}")
    if "seed" in shared:
        raise UnveilError("a comparison has several seeds: give --seeds")
    if len(set(names)) < len(names) or not own.seeds:
        raise UnveilError(f"{', '.join(names)}: name each once, such as mae and mae-pixel, and give a seed at least")
    for place, who in enumerate(made):
        texts, kind = base_of(who.name) in TEXTS, method_class(base_of(who.name))
        configs = (CorpusConfig, kind.Config, TrainConfig, OptimConfig, HardwareConfig) if texts else configs_of(base_of(who.name))
        refuse_unknown(shared | who.options, ["model", *(field.name for config in configs for field in fields(config))])
        if own.seconds and texts:
            raise UnveilError(f"how long a step takes is tried on images only: give --epochs for {who.name}")
        later = [value for value in who.options.values() if value in names[place:]]
        if later:
            raise UnveilError(f"{who.name} needs {later[0]}, which has to be trained before it: name {later[0]} first")
    comparison = Comparison(folder=folder, data=data, own=own, shared=shared, tuning=tuning, entries=made)
    if not own.labelled:
        refuse_unlabelled(data, any(base_of(name) in TEXTS for name in names))
    return comparison


def paced(who: Entry, data: str, shared: Mapping[str, Any]) -> Entry:
    """A contestant of images with a learning rate: the one of `unveil plan`, where none is given.

    The papers' rates are for wide encoders and batches of thousands; with them, small ones hardly move in a small budget.
    """
    given = {**shared, **who.options}
    if base_of(who.name) not in IMAGES or "base_lr" in given:
        return who
    usual: dict[str, Any] = {"batch_size": TrainConfig.batch_size, **usual_for(data, base_of(who.name)), **given}
    if usual["model"] not in MODELS:
        return who  # which is refused when it is settled
    return who._replace(options={**who.options, "base_lr": rate_for(MODELS[usual["model"]][0], usual["batch_size"]).value})


def refuse_unlabelled(data: str, texts: bool) -> None:
    """Raises `UnveilError` where DATA has no labels to judge with."""
    labels = open_texts(data)[0].labels if texts else open_both(data)[0].labels
    if labels is None or not (labels >= 0).any():
        raise UnveilError(
            f"{data} has no labelled {'texts' if texts else 'dataset'} to judge with: put each class into a folder of its own, "
            f"add labels as docs/formats.md says, or give --labelled"
        )


def tested_on(comparison: Comparison) -> int | None:
    """How many test images features were judged on, where a run says it."""
    results = [Run(path).results for path in comparison.ended_runs]
    return next((int(each["judged_on"]["test"]) for each in results if "judged_on" in each), None)


def write_results(comparison: Comparison) -> tuple[list[Row], Grid]:
    """Writes `compare.json` and `report.html`; what has not ended yet is left out."""
    rows, facts = comparison.rows(), comparison.facts
    budget = f"{comparison.own.seconds:g} seconds of steps each" if comparison.own.seconds else "equal epochs"
    grid = grid_of(rows, f"{', '.join(comparison.names)} on {comparison.data}, {budget}", tested_on(comparison))
    write_whole(comparison.folder / "compare.json", json.dumps(facts | {"rows": [row._asdict() for row in rows]}, indent=1) + "\n")
    write_comparison(comparison.folder, rows, grid, comparison.ended_runs, facts)
    return rows, grid
