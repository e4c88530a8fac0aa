"""`unveil study all`: all ablations of the MAE paper, with one page of all answers. What several of them need is trained once."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unveil.atomic_files import write_text
from unveil.errors import Interrupted
from unveil.experiments.jobs import is_finished
from unveil.experiments.paper_studies import STUDIES
from unveil.experiments.paper_study import PaperStudy
from unveil.experiments.results_folder import refuse_other_results
from unveil.experiments.run_paper_study import FINETUNE_VARIED, Plan, end, plan_study, write_result
from unveil.experiments.runner import run_comparisons
from unveil.experiments.same_runs import with_same_runs
from unveil.folder_lock import locked
from unveil.json_files import json_text
from unveil.learner import Method
from unveil.reports.comparison import caution_note, joined_cautions
from unveil.reports.failures import failure_sentence, unfinished_note
from unveil.reports.paper_study_page import PaperStudyResult, write_all_studies
from unveil.train.run_folder import receipt
from unveil.train.terminal import printer

OVERVIEW_EVERY = 60.0
"""Seconds from one writing of all pages to the next, while runs are trained. It takes a few seconds itself."""


def all_studies(method: str | type[Method], data: str, folder: Path, options: Mapping[str, Any]) -> list[PaperStudyResult]:
    """All studies of the paper. A run that several of them need is trained once.

    Args:
        method: As for `unveil.study`.
        data: As for `unveil.study`.
        folder: The folder of all runs, with a folder for each study.
        options: As for `unveil.study`.
    """
    refuse_other_results(folder, "study", ("study", "all"))
    plans, say = list[Plan](), printer(True)
    left_out = [study.name for study in STUDIES.values() if study.varies != "pretraining" and options.get("with_finetune") is False]
    if left_out:
        say(f"Without fine-tuning, there is no study {' and no study '.join(left_out)}.")
    for study in (study for study in STUDIES.values() if study.name not in left_out):
        plan = plan_study(study, method, data, folder / study.name, applicable(study, options))
        plans.append(plan._replace(comparison=with_same_runs(plan.comparison, [each.comparison for each in plans])))
        say(f"\n{study.name}: {study.question}")
        for run, path in plans[-1].comparison.elsewhere.items():
            say(f"{run} is the same run as {path}")
    comparisons, last = [plan.comparison for plan in plans], -math.inf
    needed = {plan.study.name: {plan.comparison.folder_of(job.name) for job in plan.comparison.all_jobs()} for plan in plans}

    def write(run: Path) -> None:
        nonlocal last
        if time.monotonic() - last > OVERVIEW_EVERY:
            write_overview(folder, plans)
            last = time.monotonic()
        else:
            for plan in plans:
                if run in needed[plan.study.name]:
                    write_result(plan)

    with ExitStack() as locks:
        for path in (folder, *(each.folder for each in comparisons)):
            locks.enter_context(locked(path, "training in"))
        try:
            failures = run_comparisons(comparisons, folder, write)
        except Interrupted:
            if last > -math.inf:  # else nothing has been trained
                write_overview(folder, plans)
            raise
        results = write_overview(folder, plans)
    return end(results, folder, failures, sum(len(each.jobs()) for each in comparisons))


def write_overview(folder: Path, plans: Sequence[Plan]) -> list[tuple[Plan, PaperStudyResult]]:
    """Writes the pages of the studies that have results, and `study.json` and `report.html` of all. Returns these studies."""
    found = [(plan, result) for plan in plans if (result := write_result(plan))]
    results = [result for _, result in found]
    failures = {plan.study.name: plan.comparison.failures for plan in plans}
    sentences = [
        f"{plan.study.name}: {failure_sentence(failures[plan.study.name], len(plan.comparison.jobs()))}"
        for plan in plans
        if failures[plan.study.name]
    ]
    begun = {each.name for each in results}
    missing = [plan.study.name for plan in plans if plan.study.name not in begun]
    runs = {plan.study.name: [plan.comparison.folder_of(job.name) for job in plan.comparison.all_jobs()] for plan in plans}
    ended = {path: is_finished(path) for paths in runs.values() for path in paths}
    unfinished = [name for name, paths in runs.items() if not all(ended[path] for path in paths)]
    counts = {"runs": len(ended), "finished": sum(ended.values())}
    note = unfinished_note(counts, missing)
    finished = [path for plan in plans for path in plan.comparison.finished_runs]
    cautions, facts = joined_cautions(finished), receipt()
    facts |= ({"cautions": cautions} if cautions else {}) | (counts if note else {})
    failed = [each._replace(run=f"{study}/{each.run}")._asdict() for study, of_study in failures.items() for each in of_study]
    content = {"study": "all", "studies": [each.to_json() for each in results], "failed": failed}
    write_text(folder / "study.json", json_text(facts | content))
    notes = [*filter(None, [note, caution_note(finished)]), *sentences]
    write_all_studies(folder, results, notes, facts, len(plans), unfinished)
    return found


def applicable(study: PaperStudy, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for one of all studies: without those that it varies itself, which are meant for the others.

    With a budget in seconds, the epochs are meant for the study of the epochs.
    """
    varied = {key for cell in study.cells for key in cell.options}
    varied |= {"seconds"} if study.scaled == "epochs" else {"epochs"} if options.get("seconds") else set()
    varied |= {"decoder_width"} if study.scaled == "width" else {"decoder_depth"} if study.scaled == "depth" else set()
    found = {key: value for key, value in options.items() if key not in varied}
    if finetune := options.get("finetune"):
        own = FINETUNE_VARIED.get(study.varies, ())
        found["finetune"] = {key: value for key, value in finetune.items() if key not in own}
    return found
