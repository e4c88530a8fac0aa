"""The studies that evaluate one pre-trained encoder in several ways: with more blocks fine-tuned, or with more labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unveil.experiments.finished_probes import finished_probe, probed_subsets
from unveil.experiments.paper_study import PaperStudy, Setting, folder_name
from unveil.experiments.runner import FINETUNE, Comparison, Evaluation
from unveil.options import known_to
from unveil.reports.comparison import finetune_score
from unveil.reports.paper_study_page import Point
from unveil.runs.probing import ProbeConfig
from unveil.train.run_folder import Run, finished_run
from unveil.train.run_schema import reading_results


def evaluations_of(study: PaperStudy, settings: Sequence[Setting]) -> list[Evaluation]:
    """The evaluations of every pre-trained encoder that a study needs."""
    found = []
    for setting in settings:
        if study.varies == "partial":
            if not setting.cell.default:  # the whole encoder is fine-tuned in any comparison
                found.append(Evaluation(suffix_of("partial", setting), "finetune", last_blocks(setting)))
            continue
        share = setting.options["share"]
        found.append(Evaluation(suffix_of("linear", setting), "probe", few_labels(share, {"kind": "linear", "compare": False})))
        found.append(Evaluation(suffix_of("finetune", setting), "finetune", few_labels(share, {})))
        found.append(Evaluation(suffix_of("scratch", setting), "finetune", few_labels(share, {"scratch": True})))
    return found


def suffix_of(kind: str, setting: Setting) -> str:
    """What the folder of an evaluation ends with, such as partial-1-of-4."""
    return f"{kind}-{folder_name(setting.ours)}"


def last_blocks(setting: Setting) -> Callable[[Comparison, Run], Mapping[str, Any]]:
    """Options of fine-tuning the last blocks."""
    return lambda comparison, run: {"blocks": setting.options["blocks"]}


def few_labels(share: float, fixed: Mapping[str, Any]) -> Callable[[Comparison, Run], Mapping[str, Any]]:
    """Options with a share of the labels."""

    def options(comparison: Comparison, run: Run) -> Mapping[str, Any]:
        return {**fixed, "labels": 0 if share == 1 else labels_of(comparison, run, share)}

    return options


def labels_of(comparison: Comparison, run: Run, share: float) -> int:
    """The number of labels that a share is: at least one for each class."""
    given = {"test_split": run.config.get("test_split"), **known_to(comparison.finetune_options, ProbeConfig)}
    _, opened = probed_subsets(run, comparison.config.labelled_data or comparison.data, given)
    train = opened.train
    return min(len(train.labelled()), max(len(train.dataset.classes), round(share * len(train.labelled()))))


def label_count(comparison: Comparison, setting: Setting, name: str) -> int | None:
    """The number of labels of a setting that varies it, if a linear probe with it has ended. It is the same for all seeds."""
    for seed in comparison.config.seeds:
        folder = comparison.path(name, seed, f"-{suffix_of('linear', setting)}")
        if finished_probe(folder):
            with reading_results(folder):
                return int(Run(folder, {}).results["trained_on"])
    return None


def with_label_counts(
    comparison: Comparison, settings: Sequence[Setting], names: Mapping[str, str], points: Sequence[Point]
) -> tuple[list[Point], list[str]]:
    """The points of a study of the labels with the number of labels, at the share that they really are.

    Of several points with the same labels, the one of the largest share is kept. Returns the labels of the others as well.

    Args:
        comparison: The runs.
        settings: The settings of the study.
        names: The entry of the comparison that each setting belongs to.
        points: The point of each setting.
    """
    numbers = {setting.label: label_count(comparison, setting, names[setting.label]) for setting in settings}
    total = next((numbers[setting.label] for setting in settings if setting.options["share"] == 1), None)
    kept = {numbers[point.label] or point.label: point for point in points}  # a later point takes the place of an earlier one
    found = [
        point._replace(labels=count, position=count / total if total else point.position)
        if (count := numbers[point.label])
        else point
        for point in kept.values()
    ]
    return found, [point.label for point in points if point not in kept.values()]


def figures_of_setting(comparison: Comparison, study: PaperStudy, setting: Setting, name: str, seed: int) -> dict[str, float]:
    """The accuracies of a setting for one seed, by metric, from the evaluations that have finished."""
    run = finished_run(comparison.path(name, seed))
    if run is None:
        return {}
    if study.varies == "partial":
        suffix = FINETUNE if setting.cell.default else f"-{suffix_of('partial', setting)}"
        tuned = finished_run(comparison.path(name, seed, suffix))
        return {"finetune": finetune_score(tuned)} if tuned else {}
    linear = comparison.probed(name, seed, suffix_of("linear", setting))
    figures = {"linear": linear["encoder"]} if linear else {}
    for metric in ("finetune", "scratch"):
        if tuned := finished_run(comparison.path(name, seed, f"-{suffix_of(metric, setting)}")):
            figures[metric] = finetune_score(tuned)
    return figures
