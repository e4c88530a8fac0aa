"""Trains the cells of an ablation of the MAE paper, and compares them with what the paper reports."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.experiments.compare import build_comparison, entry_of, evaluated_images, existing_weights, refuse_without_blocks
from unveil.experiments.jobs import refuse_failures
from unveil.experiments.paper_evaluations import evaluations_of, figures_of_setting, with_label_counts
from unveil.experiments.paper_studies import STUDIES
from unveil.experiments.paper_study import PaperStudy, Setting, Shape, folder_name
from unveil.experiments.results_folder import refuse_fewer_results, refuse_other_results, scope_of
from unveil.experiments.runner import FINETUNE, Comparison, Entry, run_comparisons
from unveil.experiments.same_steps import without_same_steps
from unveil.experiments.step_cost import flops_per_step, seconds_per_step
from unveil.folder_lock import locked
from unveil.json_files import json_text
from unveil.learner import Method
from unveil.options import known_to
from unveil.reports.comparison import finetune_score
from unveil.reports.failures import Failure
from unveil.reports.findings import judge_finding
from unveil.reports.notebook import ShownList
from unveil.reports.paper_study_page import PaperStudyResult, Point, study_table, write_paper_study
from unveil.reports.table import to_terminal, with_warning
from unveil.runs.images import IMAGES
from unveil.runs.initial_weights import open_initial_weights
from unveil.runs.modality import modality
from unveil.train.recipe import TrainConfig
from unveil.train.run_folder import finished_run
from unveil.train.terminal import printer, show

FINETUNE_VARIED: dict[str, tuple[str, ...]] = {"partial": ("blocks",), "labels": ("labels",)}
"""The options of fine-tuning that a study varies, by what it varies."""


class Plan(NamedTuple):
    """A study with its options resolved, before anything is trained."""

    study: PaperStudy
    settings: list[Setting]
    left_out: list[str]
    """The labels of the cells that the encoder cannot have."""
    comparison: Comparison
    names: dict[str, str]
    """The entry of the comparison that each setting belongs to, by the label of the setting."""


def plan_study(study: PaperStudy, method: str | type[Method], data: str, folder: Path, options: Mapping[str, Any]) -> Plan:
    """Resolves the options of a study.

    Args:
        study: The study.
        method: As for `pretrain`; a method that has the options of the study.
        data: As for `pretrain`.
        folder: The folder for all runs of the study.
        options: As for `unveil.compare`.

    Raises:
        UnveilError: If the options cannot be used, or are those that the study itself varies.
    """
    base = entry_of(method)
    refuse_other_results(folder, "study", ("study", study.name))
    if base.kind.modality != "images":
        raise UnveilError(
            f"the study {study.name} is of images, but {base.name} learns from {base.kind.modality}: use --method mae"
        )
    needed = {key: value for cell in study.cells for key, value in cell.options.items() if key != "model"}
    known = known_to(needed, *modality(base.kind.modality).configs(base.method))
    if unknown := next((key for key in needed if key not in known), None):
        raise UnveilError(f"the study {study.name} varies {unknown}, which {base.name} does not have: use --method mae")
    own = {key: value for key, value in {**options, **options.get(base.name, {})}.items() if not isinstance(value, Mapping)}
    patches = patches_of(base, data, own) if study.counts_patches else 0
    shape = shape_of(base, data, own)._replace(patches=patches)
    if study.scaled == "epochs" and options.get("seconds"):
        raise UnveilError("the study epochs varies the length of training: give --epochs, and leave --seconds out")
    if options.get("with_partial"):
        raise UnveilError(
            f"the study {study.name} has no column for the last block: leave --with-partial out, or use study partial"
        )
    own_finetune = next((name for name in FINETUNE_VARIED.get(study.varies, ()) if name in options.get("finetune", {})), None)
    if own_finetune:
        raise UnveilError(f"the study {study.name} varies {own_finetune} itself: leave --finetune.{own_finetune} out")
    if study.varies != "pretraining" and options.get("with_finetune") is False:
        raise UnveilError(f"the study {study.name} is about fine-tuning: leave --no-with-finetune out")
    if study.varies == "partial":
        refuse_without_blocks(base, options.get("finetune", {}), "the study partial")
    settings = study.settings(shape)
    varied = {key for setting in settings for key in setting.options} if study.varies == "pretraining" else set()
    fixed = [key for key in varied - {"epochs"} if own.get(key) is not None]
    if fixed:
        raise UnveilError(f"the study {study.name} varies {fixed[0]} itself: leave --{fixed[0].replace('_', '-')} out")
    stages = [entry_of(name) for name in study.first_stages]
    shared = {key: value for key, value in options.items() if not isinstance(value, Mapping)}
    only = for_method_only(base, stages, shared)
    mine = {**only, **options.get(base.name, {})}
    rest = {key: value for key, value in options.items() if key not in only and key != base.name}
    if study.varies == "pretraining":
        entries = [
            base._replace(name=f"{base.name}-{folder_name(each.label)}", options={**mine, **each.options}) for each in settings
        ]
        comparison = replace(build_comparison([*stages, *entries], data, folder, rest), finetunes_untrained=False)
        names = {setting.label: entry.name for setting, entry in zip(settings, entries, strict=True)}
    else:
        comparison = build_comparison([base._replace(options=mine)], data, folder, rest)
        evaluations, whole = evaluations_of(study, settings), study.varies == "partial"
        comparison = replace(comparison, evaluations=evaluations, finetunes_whole=whole, finetunes_untrained=False)
        names = dict.fromkeys((setting.label for setting in settings), base.name)
    is_finetuned = comparison.config.with_finetune or study.varies != "pretraining"
    labels, ways = [setting.label for setting in settings], ["finetune"] * is_finetuned
    refuse_fewer_results(folder, "study", scope_of("setting", labels, comparison.config.seeds, ways))
    return Plan(study, settings, study.left_out(shape), comparison, names)


def shape_of(entry: Entry, data: str, given: Mapping[str, Any]) -> Shape:
    """The encoder and the epochs of a run."""
    samples = modality(entry.kind.modality)
    resolved = {**samples.defaults(data, entry.method), **{key: value for key, value in given.items() if value is not None}}
    epochs = float(resolved.get("epochs") or TrainConfig.epochs)
    if init := existing_weights(resolved):
        vit = open_initial_weights(init, Path(init), (), lambda text: None).vit
        return Shape(vit.width, vit.depth, epochs)
    if resolved["model"] not in samples.models:
        raise UnveilError(f"there is no model {resolved['model']!r}: use one of {', '.join(samples.models)}")
    width, depth, _ = samples.models[resolved["model"]]
    return Shape(width, depth, epochs)


def patches_of(entry: Entry, data: str, given: Mapping[str, Any]) -> int:
    """The patches of an image in a run."""
    options = known_to({key: value for key, value in given.items() if value is not None}, *IMAGES.configs(entry.method))
    plan = IMAGES.plan(data, entry.method, given.get("model"), options)
    (height, width), patch = plan.run_config.image_size, plan.run_config.patch_size
    return (height // patch[0]) * (width // patch[1])


def for_method_only(base: Entry, stages: Sequence[Entry], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the method has and that its first stages do not have, such as a mask ratio beside a tokenizer."""
    if not stages:
        return {}
    samples = modality(base.kind.modality)
    mine = known_to(options, *samples.configs(base.method))
    return {
        key: value
        for key, value in mine.items()
        if any(key not in known_to(mine, *samples.configs(each.method)) for each in stages)
    }


def result_of(plan: Plan) -> PaperStudyResult:
    """The results of the runs that have finished."""
    study, comparison = plan.study, plan.comparison
    every = [point_of(plan, setting) for setting in plan.settings]
    same = list[str]()
    if study.varies == "labels":
        every, same = with_label_counts(comparison, plan.settings, plan.names, every)
    elif study.scaled == "epochs":
        every, same = without_same_steps(comparison, plan.names, every)
    points = [point for point in every if point.figures]
    counts = dict(evaluated_images(comparison))
    if study.varies == "labels" and "finetune" in counts:
        counts["linear"] = counts["finetune"]  # its linear probes are trained and tested on the same images
    judgement = judge_finding(
        study.claims([point.label for point in every]), {point.label: point.figures for point in points}, counts
    )
    notes = [study.note] if study.note else []
    if missing := [point.ours for point in every if not point.figures]:
        notes.append(f"Without results: {', '.join(missing)}.")
    if left_out := [*plan.left_out, *same]:
        notes.append(f"Left out, because they are impossible here or the same as another setting: {', '.join(left_out)}.")
    return PaperStudyResult(
        name=study.name,
        source=study.source,
        question=study.question,
        finding=study.finding,
        data=comparison.data,
        points=points,
        judgement=judgement,
        metrics=study.metrics,
        axis=study.axis,
        axis_title=study.axis_title,
        test_counts=counts,
        evaluated_on=comparison.config.evaluate_on,
        notes=notes,
        labelled=comparison.other_labelled,
        labelled_metrics=study.metrics if study.varies == "labels" else ("finetune",),
    )


def point_of(plan: Plan, setting: Setting) -> Point:
    """Our numbers for a setting, seed by seed, beside those of the paper."""
    study, comparison, name = plan.study, plan.comparison, plan.names[setting.label]
    flops, figures = None, dict[str, list[float]]()
    for seed in comparison.config.seeds:
        found: dict[str, float] = {}
        run = finished_run(comparison.path(name, seed))
        if study.varies != "pretraining":
            found = figures_of_setting(comparison, study, setting, name, seed)
        elif run:
            step = seconds_per_step(run)
            found = {"seconds": run.results["seconds"]} | ({} if step is None else {"step": step})
            found |= {
                key: value for key, value in (run.results.get("features") or {}).get("encoder", {}).items() if key == "linear"
            }
            tuned = finished_run(comparison.path(name, seed, FINETUNE)) if comparison.config.with_finetune else None
            found |= {"finetune": finetune_score(tuned)} if tuned else {}
            flops = flops_per_step(run)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
    return Point(
        setting.label, setting.ours, setting.theirs, setting.position, figures, setting.cell.paper, flops, setting.cell.default
    )


def write_result(plan: Plan) -> PaperStudyResult | None:
    """Writes `study.json` and `report.html` of a study, as soon as a run has finished."""
    result, folder = result_of(plan), plan.comparison.folder
    if not result.points:
        return None
    facts = plan.comparison.facts
    write_text(folder / "study.json", json_text(facts | result.to_json()))
    write_paper_study(folder, result, facts, plan.comparison.finished_runs)
    return result


def study_of_paper(
    name: str, method: str | type[Method], data: str, folder: Path, options: Mapping[str, Any]
) -> list[PaperStudyResult]:
    """One study of the paper by its name. See `unveil.study` for the arguments."""
    plan = plan_study(STUDIES[name], method, data, folder, options)
    with locked(folder, "training in"):
        failures = run_comparisons([plan.comparison], folder, lambda run: write_result(plan))
        result = write_result(plan)
    return end([(plan, result)] if result else [], folder, failures, len(plan.comparison.jobs()))


def end(
    found: Sequence[tuple[Plan, PaperStudyResult]], folder: Path, failures: Sequence[Failure], runs: int
) -> list[PaperStudyResult]:
    """Prints the tables, the answers and the path of the report. Returns the results.

    Args:
        found: The studies with results.
        folder: The folder of the report.
        failures: What has failed.
        runs: How many runs there are.

    Raises:
        FailedRunsError: If a run has failed.
    """
    tables = [with_warning(study_table(result), plan.comparison.warning) for plan, result in found]
    for (_, result), table in zip(found, tables, strict=True):
        show(to_terminal(table))
        show(result.judgement.reason)
    if found:
        printer(True)(f"The report: {folder / 'report.html'}")
    results = ShownList([result for _, result in found], tables, folder)
    refuse_failures(failures, runs, results)
    return results
