"""`unveil study`: an ablation of the paper by its name, or several values of one option, all else equal, as a curve."""

import ast
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.experiments.all_studies import all_studies
from unveil.experiments.compare import build_comparison, entry_of, evaluated_images
from unveil.experiments.finished_seeds import seed_counts
from unveil.experiments.jobs import refuse_failures
from unveil.experiments.paper_studies import INFORMATION_DENSITY, STUDIES
from unveil.experiments.results_folder import refuse_fewer_results, refuse_other_results, scope_of
from unveil.experiments.run_paper_study import study_of_paper
from unveil.experiments.runner import Comparison, run_comparisons
from unveil.folder_lock import locked
from unveil.json_files import json_text
from unveil.learner import Method
from unveil.reports.comparison import joined_cautions
from unveil.reports.notebook import ShownList
from unveil.reports.paper_study_page import PaperStudyResult
from unveil.reports.study_page import Finding, Sweep, sweep_table, write_study
from unveil.reports.table import to_terminal, with_warning
from unveil.reports.vocabulary import humanize
from unveil.runs.modality import slug
from unveil.train.terminal import printer, show


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """One curve: a method on DATA with several values of an option."""

    method: str | type[Method]
    data: str
    option: str
    values: tuple[Any, ...]
    title: str = ""
    """The name of the curve; by default the method and DATA."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options for all values of this curve only."""
    labelled_data: str | None = None
    """Labelled data for fine-tuning; by default the shared option."""

    @property
    def label(self) -> str:
        """The short name of the method."""
        return entry_of(self.method).name

    def comparison(self, folder: Path, options: Mapping[str, Any]) -> Comparison:
        """The runs of the curve, as a comparison with one entry per value."""
        base, own = entry_of(self.method), {**self.fixed, **options.get(self.label, {})}
        self.refuse_the_option(options)
        entries = [
            base._replace(name=f"{base.name}-{self.option}-{value}", options={**own, self.option: value}) for value in self.values
        ]
        shared = {key: value for key, value in options.items() if not isinstance(value, Mapping) or key == "finetune"}
        labelled = {"labelled_data": self.labelled_data} if self.labelled_data else {}
        return build_comparison(entries, self.data, folder, shared | labelled)

    def refuse_the_option(self, options: Mapping[str, Any]) -> None:
        """Raises `UnveilError` if the options set what the curve varies."""
        shown = self.option.replace("_", "-")
        if options.get(self.option) is not None:
            raise UnveilError(f"the study varies {self.option} itself: leave --{shown} out")
        if self.option in options.get(self.label, {}):
            raise UnveilError(f"the study varies {self.option} itself: leave --{self.label}.{shown} out")
        if self.option == "epochs" and options.get("seconds"):
            raise UnveilError("the study varies the epochs, which --seconds would choose: leave --seconds out")

    def sweep(self, comparison: Comparison) -> Sweep:
        """The results of the runs that have finished."""
        rows = comparison.rows()
        by_name = {row.name: row for row in rows if not row.baseline}
        counts, values = seed_counts(comparison, rows), dict(zip(comparison.names, map(str, self.values), strict=True))
        finished = [(value, by_name[name]) for value, name in zip(self.values, comparison.names, strict=True) if name in by_name]
        labelled = comparison.other_labelled
        return Sweep(
            title=self.title or f"{self.label} on {self.data}{f', fine-tuned on {labelled}' if labelled else ''}",
            option=self.option,
            values=[value for value, _ in finished],
            rows=[row for _, row in finished],
            baselines=[row for row in rows if row.baseline],
            test_counts=evaluated_images(comparison),
            evaluated_on=comparison.config.evaluate_on,
            seeds=counts._replace(finished={values.get(name, name): count for name, count in counts.finished.items()}),
            labelled=labelled,
        )


def study(
    what: str,
    data: str | Path = "digits",
    *,
    method: str | type[Method] = "mae",
    model: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> list[Sweep] | list[PaperStudyResult]:
    """Repeats an ablation of the paper, or trains a method with several values of one option, and draws a curve.

    A second call with the same arguments trains only what is missing.

    Args:
        what: A name in `unveil.experiments.paper_studies.STUDIES`, such as mask-ratio; "all" for all of them; or
            `option=value,value,...`, such as `mask_ratio=0.25,0.5,0.75`.
        data: As for `pretrain`.
        method: As for `pretrain`.
        model: As for `pretrain`.
        out: The folder for the runs, `study.json` and `report.html`; by default `runs/<data>-study-<name>`, `runs/<data>-studies`
            for all, and `runs/<data>-<method>-<option>` for values of an option.
        **options: As for `unveil.compare`.

    Raises:
        UnveilError: On input that cannot be used.
        FailedRunsError: If a run has failed, after all others have ended and the page was written. Its `results` are what the
            others give.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    if "=" not in what:
        refuse_unknown_study(what)
        name = "studies" if what == "all" else f"study-{what}"
        folder = Path(out) if out else Path("runs") / f"{slug(str(data))}-{name}"
        train = all_studies if what == "all" else partial(study_of_paper, what)
        return train(method, str(data), folder, {"model": model} | options)
    option, values = parse_values(what)
    spec = SweepSpec(method=method, data=str(data), option=option, values=values)
    folder = Path(out) if out else Path("runs") / f"{slug(str(data))}-{spec.label}-{option}"
    title = f"{humanize(option)} of {spec.label} on {data}"
    return run_study({humanize(option): {"": spec}}, folder, title, ("option", option), {"model": model} | options)


def run_study(
    groups: Mapping[str, Mapping[str, SweepSpec]],
    folder: Path,
    title: str,
    subject: tuple[str, str],
    options: Mapping[str, Any],
    judge: Callable[[Mapping[str, Sweep]], Sequence[Finding]] = lambda sweeps: (),
) -> list[Sweep]:
    """Trains all runs of a study, and writes `study.json` and `report.html` after each of them.

    Args:
        groups: The curves of each section of the page: headings, then names of folders inside `folder`.
        folder: The folder of the study.
        title: The title of the page.
        subject: What the folder is of, as for `refuse_other_results`.
        options: As for `study`.
        judge: What the curves say together. It is given those that have results, by the names of their folders.
    """
    specs = {name: spec for curves in groups.values() for name, spec in curves.items()}
    comparisons = {name: spec.comparison(folder / name, options) for name, spec in specs.items()}
    every = list(comparisons.values())

    refuse_other_results(folder, "study", subject)
    refuse_options_for_others(specs.values(), options)

    def write() -> tuple[dict[str, Sweep], Sequence[Finding]]:
        by_name = {name: sweep for name, spec in specs.items() if (sweep := spec.sweep(comparisons[name])).rows}
        findings = judge(by_name)
        sweeps = {heading: [by_name[name] for name in curves if name in by_name] for heading, curves in groups.items()}
        sweeps = {heading: found for heading, found in sweeps.items() if found}
        facts = facts_of(comparisons)
        failed = [
            each._replace(run=f"{name}/{each.run}" if name else each.run)._asdict()
            for name, comparison in comparisons.items()
            for each in comparison.failures
        ]
        finished = sum(comparison.has_finished(job.name) for comparison in every for job in comparison.jobs())
        facts |= {"runs": runs, "finished": finished} if finished < runs else {}
        facts |= {"failed": failed} if failed else {}
        facts |= {"findings": [finding.to_json() for finding in findings]} if findings else {}
        rows = {heading: [sweep.to_json() for sweep in found] for heading, found in sweeps.items()}
        content = facts | dict([subject]) | {"sweeps": rows}
        write_text(folder / "study.json", json_text(content))
        write_study(folder, title, sweeps, facts, findings)
        return by_name, findings

    names = [name for comparison in every for name in comparison.names]
    refuse_fewer_results(folder, "study", scope_of("setting", names, every[0].config.seeds, every[0].finetunings))
    runs = sum(len(comparison.jobs()) for comparison in every)

    def has_finished() -> bool:
        return any(comparison.finished_runs for comparison in every)

    with locked(folder, "training in"):
        failures = run_comparisons(every, folder, lambda run: has_finished() and write())
        if not has_finished():
            refuse_failures(failures, runs)
        sweeps, findings = write()
    tables = [with_warning(sweep_table(sweep), comparisons[name].warning) for name, sweep in sweeps.items()]
    for table in tables:
        show(to_terminal(table))
    for finding in findings:
        show(finding.text)
    printer(True)(f"The report: {folder / 'report.html'}")
    results = ShownList(sweeps.values(), tables, folder)
    refuse_failures(failures, runs, results)
    return results


def facts_of(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    """The data, the config and the environment of all curves. Of several, each has what is its own under the name of its folder."""
    every = list(comparisons.values())
    facts = every[0].facts
    if len(every) == 1:
        return facts
    seeds = [seed for seed in every[0].config.seeds if any(seed in each.facts["finished_seeds"] for each in every)]
    config = {key: value for key, value in facts["config"].items() if key in asdict(every[0].config) or key.startswith("finetune.")}
    config |= every[0].shared_options
    for name, each in comparisons.items():
        own = {"data": each.data, "method": each.entries[0].method, "labelled_data": each.config.labelled_data}
        own |= {
            key: value for key, value in each.entries[0].options.items() if all(e.options.get(key) == value for e in each.entries)
        }
        config |= {f"{name}.{key}": value for key, value in own.items() if value is not None and config.get(key) != value}
    methods = list(dict.fromkeys(name for each in every for name in each.names))
    data = ", ".join(dict.fromkeys(each.data for each in every))
    cautions = joined_cautions(path for each in every for path in each.finished_runs)
    facts |= {"cautions": cautions} if cautions else {}
    return facts | {"methods": methods, "data": data, "config": config, "finished_seeds": seeds}


def refuse_options_for_others(specs: Collection[SweepSpec], options: Mapping[str, Any]) -> None:
    """Raises `UnveilError` if there are options for a method that is not trained."""
    known = list(dict.fromkeys([*(spec.label for spec in specs), "finetune"]))
    if unknown := [key for key, value in options.items() if isinstance(value, Mapping) and key not in known]:
        raise UnveilError(f"there are options for {', '.join(unknown)}, expected one of {', '.join(known)}")


def refuse_unknown_study(name: str) -> None:
    """Raises `UnveilError` if there is no study with this name."""
    if name == INFORMATION_DENSITY[0]:
        raise UnveilError("the study information-density needs images and texts: call unveil.images_vs_words(images, texts)")
    if name not in (*STUDIES, "all"):
        near = difflib.get_close_matches(name.replace("_", "-"), [*STUDIES, INFORMATION_DENSITY[0]], n=1)
        guess = f"; did you mean {near[0]}?" if near else "."
        raise UnveilError(
            f"there is no study {name!r}{guess} The studies are {', '.join(STUDIES)}, {INFORMATION_DENSITY[0]} and all; any other "
            f"option is studied with values, such as mask_ratio=0.25,0.5,0.75"
        )


def parse_values(text: str) -> tuple[str, tuple[Any, ...]]:
    """Parses `option=value,value`."""
    option, sign, listed = text.partition("=")
    words = [word.strip() for word in listed.split(",") if word.strip()]
    if not sign or not words:
        raise UnveilError(f"{text!r} is not an option with values: expected for example mask_ratio=0.25,0.5,0.75")
    if twice := next((word for word in words if words.count(word) > 1), None):
        raise UnveilError(f"{text!r} has the value {twice} twice: give each value once")
    return option.strip().replace("-", "_"), tuple(parse_value(word) for word in words)


def parse_value(word: str) -> Any:
    """Converts a word to a number, True, False or None, if possible."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
