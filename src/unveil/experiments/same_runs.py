"""Runs that several studies have in common, such as the one with all defaults of the paper. They are trained once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unveil.experiments.runner import FINETUNE, Comparison, Entry
from unveil.options import configure
from unveil.runs.modality import modality


def with_same_runs(comparison: Comparison, earlier: Sequence[Comparison]) -> Comparison:
    """A comparison that uses the runs which earlier ones have with the same settings, perhaps under other names.

    The settings and the seed decide every number of a run, so training it again would give the same. A run that has a folder in
    the comparison stays there. With a budget in seconds, each comparison measures its own epochs, so nothing is shared with it.

    Args:
        comparison: The comparison that may use runs of earlier ones.
        earlier: Those whose runs are trained before its own.
    """
    found = dict[str, Path]()
    if comparison.config.seconds:
        return comparison
    for seed in comparison.config.seeds:
        for entry in comparison.entries:
            own = comparison.path(entry.name, seed)
            twin = None if own.exists() else same_run(comparison, entry, seed, earlier)
            if twin is None:
                continue
            other, name = twin
            found[own.name] = other.path(name, seed)
            if entry in comparison.transferred and same_finetuning(comparison, other):
                found[comparison.path(entry.name, seed, FINETUNE).name] = other.path(name, seed, FINETUNE)
    return replace(comparison, elsewhere=found)


def same_run(comparison: Comparison, entry: Entry, seed: int, earlier: Sequence[Comparison]) -> tuple[Comparison, str] | None:
    """The first comparison with a run of the same settings, and the name of the entry there; None if there is none."""
    settings = settings_of(comparison, entry, seed)
    for other in (each for each in earlier if not each.config.seconds):
        for twin in other.entries:
            if seed in other.config.seeds and settings_of(other, twin, seed) == settings:
                return other, twin.name
    return None


def settings_of(comparison: Comparison, entry: Entry, seed: int) -> list[Any]:
    """All that decides the numbers of a run, with defaults filled in."""
    samples = modality(entry.kind.modality)
    options = {**samples.defaults(comparison.data, entry.method), **comparison.options(entry, seed)}
    model = options.pop("model")
    return [comparison.data, entry.method, model, *configure(options, *samples.configs(entry.method))]


def same_finetuning(one: Comparison, other: Comparison) -> bool:
    """Whether two comparisons fine-tune in the same way."""
    if not all("finetune" in each.finetunings for each in (one, other)):
        return False
    return one.finetune_options == other.finetune_options and one.config.labelled_data == other.config.labelled_data
