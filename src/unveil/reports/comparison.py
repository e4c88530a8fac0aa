"""The rows of a comparison of methods, their table, and the sentence that names the best. All numbers come from run folders."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from unveil.data.split_folders import split_of
from unveil.errors import UnveilError
from unveil.reports.chance import TestCounts, chance_margin, contenders, within_chance
from unveil.reports.findings import FEWEST_SEEDS
from unveil.reports.run_summary import has_collapsed, position_of
from unveil.reports.seed_counts import SeedCounts, one_seed_phrase, with_one_seed
from unveil.reports.table import ResultTable
from unveil.reports.vocabulary import Results, independent_count_of, is_behind, primary_of
from unveil.train.run_cost import spell_time
from unveil.train.run_folder import Run


class ComparisonRow(NamedTuple):
    """The results of a method or a baseline."""

    name: str
    figures: dict[str, list[float]]
    """Numbers by a key of `RESULT_COLUMNS`, one for each seed."""
    baseline: bool = False
    """Whether this is an untrained encoder or raw pixels."""
    seeds: Mapping[str, Sequence[int]] = {}
    """The seeds of these numbers, by the same key, as far as they are known."""

    def beside(self, other: "ComparisonRow", key: str) -> tuple[list[float], list[float]]:
        """The numbers of this row and of another one from the seeds that both have; all numbers if the seeds are not known."""
        own, others = (dict(zip(row.seeds.get(key, ()), row.figures[key], strict=False)) for row in (self, other))
        if not (own and others):
            return self.figures[key], other.figures[key]
        common = [seed for seed in own if seed in others]
        return [own[seed] for seed in common], [others[seed] for seed in common]

    def to_json(self) -> dict[str, Any]:
        """The row in `compare.json` and `study.json`."""
        return {"name": self.name, "figures": self.figures, "yardstick": self.baseline}


ACCURACIES = {"knn": "k-NN", "linear": "linear", "partial": "last block", "finetune": "fine-tuned"}
"""Kinds of accuracy, with their labels; linear is the linear probe, and partial is fine-tuning of the last block."""
EVALUATED_ON = {"held-out": "samples held out from training", "test": "the test set"}
"""Values of `evaluate_on` in words."""
TRANSFERRED = ("partial", "finetune", "scratch")
"""Kinds of accuracy on the labelled data of fine-tuning; others are on those of pre-training."""
HELD_OUT_NOTE = (
    "The test set was not looked at. To report a number, evaluate the run that you choose on it once: unveil probe RUN, or unveil "
    "finetune RUN with the same options."
)
"""What to do after a comparison on held-out images."""
NO_TEST_NOTE = (
    "These are all the images that the data has for tests, so the best of several accuracies on them is too high. To report a "
    "number, evaluate the run that you choose on others: unveil finetune RUN --test OTHER, or unveil probe."
)
"""The same if the data has no test set beside them."""
RESULT_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time", spell_time),
    "samples": ("samples", lambda value: f"{round(value):,}"),
    **{key: (f"{name}, %", lambda value: f"{100 * value:.1f}") for key, name in ACCURACIES.items()},
    "ahead": ("gain, points", lambda value: f"{100 * value:+z.1f}"),
    "rank_me": ("RankMe", lambda value: f"{value:.1f}"),
    "feature_deviation": ("feature deviation", lambda value: f"{value:.2f}"),
    "codebook_usage": ("codebook used, %", lambda value: f"{100 * value:.1f}"),
}
"""The columns of the table, in their order: the heading, and the format of a number."""


def figures_of(run: Run, stages: Sequence[Run]) -> dict[str, float]:
    """The numbers of a run, by a key of `RESULT_COLUMNS`.

    Args:
        run: A finished pre-training run.
        stages: Runs that had to be trained first, such as a visual tokenizer. Their time and samples are added, and the usage of
            their codebook is shown.
    """
    every = [each.results for each in (run, *stages)]
    features = run.results.get("features") or {}
    figures = {"seconds": sum(results["seconds"] for results in every)}
    figures["samples"] = sum(results.get("images_seen") or results["sequences_seen"] for results in every)
    figures |= features.get("encoder", {}) | (run.results.get("spread") or {}).get("encoder", {})
    held_out = {key: value for results in every for key, value in (results.get("held_out") or {}).items()}
    figures |= {key: value for key, value in held_out.items() if key == "codebook_usage"}
    if "linear" in features.get("untrained", {}):
        figures["ahead"] = features["encoder"]["linear"] - features["untrained"]["linear"]
    return figures


def finetune_score(run: Run) -> float:
    """The primary metric of a fine-tuning run, such as the top-1 accuracy."""
    return float(run.results["score"][primary_of(run.results)])


def row_of(
    name: str, figures: Sequence[Mapping[str, float]], baseline: bool = False, seeds: Sequence[int] | None = None
) -> ComparisonRow:
    """A row from the numbers of each seed, and the seeds if they are known."""
    keys = dict.fromkeys(key for each in figures for key in each)
    found = {key: [each[key] for each in figures if key in each] for key in keys}
    if seeds is None:
        return ComparisonRow(name, found, baseline)
    known = {key: [seed for seed, each in zip(seeds, figures, strict=True) if key in each] for key in keys}
    return ComparisonRow(name, found, baseline, known)


def seed_counts_of(rows: Sequence[ComparisonRow]) -> SeedCounts:
    """How many seeds rows have, where it is not known how many were asked for: as many as the row with the most has."""
    asked = max((len(values) for row in rows for values in row.figures.values()), default=0)
    return SeedCounts(asked, {row.name: min(map(len, row.figures.values()), default=0) for row in rows})


def comparison_table(
    rows: Sequence[ComparisonRow], title: str, test_counts: TestCounts, seeds: SeedCounts | None = None, untrained: str = ""
) -> ResultTable:
    """The table of a comparison. Columns without numbers are left out.

    Args:
        rows: The methods, then the baselines.
        title: What is compared.
        test_counts: Numbers of independent images of the evaluations, to estimate which differences can be due to chance.
        seeds: How many seeds were asked for, and how many each row has; by default as many as the row with the most.
        untrained: What the row "untrained" is, in words, if encoders differ from row to row.
    """
    columns = [key for key in RESULT_COLUMNS if any(key in row.figures for row in rows)]
    cells = [[row.name, *(format_mean(key, row.figures.get(key, [])) for key in columns)] for row in rows]
    count = max(len(values) for row in rows for values in row.figures.values())
    notes = [f"Mean and standard deviation over {count} seeds." if count > 1 else "One seed: the spread over seeds is unknown."]
    notes += filter(None, [(seeds or seed_counts_of(rows)).sentence])
    if "ahead" in columns:
        notes.append("Gain: the linear probe accuracy minus that of the same encoder untrained.")
    if untrained and any(row.name == "untrained" for row in rows):
        notes.append(f'The row "untrained" is {untrained}.')
    if with_spread := [row for row in rows if not row.baseline and row.figures.get("rank_me")]:
        notes.append(collapse_note(with_spread))
    notes += chance_notes(rows, test_counts)
    return ResultTable(title, ["", *(RESULT_COLUMNS[key][0] for key in columns)], cells, notes)


def chance_notes(rows: Sequence[ComparisonRow], test_counts: TestCounts) -> list[str]:
    """Sentences with the differences that can be due to chance: one for all accuracies on equally many images."""
    of_count: dict[float | None, dict[str, list[list[float]]]] = {}
    kinds = ACCURACIES | {"scratch": "from scratch"}
    for key in kinds:
        if every := [row.figures[key] for row in rows if row.figures.get(key)]:
            of_count.setdefault(test_counts.get(key), {})[key] = every
    notes = []
    for count, of_key in of_count.items():
        every = [values for listed in of_key.values() for values in listed]
        margin = 100 * max(chance_margin(values, values, count) for values in every)
        causes = [f"the choice of {count:,.0f} samples to evaluate on"] if count else []
        causes += ["the seeds"] if any(len(values) > 1 for values in every) else []
        names = f" ({', '.join(kinds[key] for key in of_key)})" if len(of_count) > 1 else ""
        if margin:
            notes.append(f"Differences of up to about {margin:.1f} points{names} can be due to chance: {' and '.join(causes)}.")
    return notes


def collapse_note(rows: Sequence[ComparisonRow]) -> str:
    """A note on methods with collapsed features, for at least one seed."""
    seeds = [(row.name, zip(row.figures["feature_deviation"], row.figures["rank_me"], strict=True)) for row in rows]
    collapsed = [name for name, pairs in seeds if any(has_collapsed(*pair) for pair in pairs)]
    if not collapsed:
        return "No method has collapsed."
    return f"Collapsed for at least one seed (features that are nearly the same for every image): {', '.join(collapsed)}."


def format_mean(key: str, values: Sequence[float]) -> str:
    """Formats the mean and, for several seeds, the standard deviation. A time or a count has only the mean."""
    if not values:
        return ""
    text = RESULT_COLUMNS[key][1](mean(values))
    if len(values) == 1 or key in ("seconds", "samples"):
        return text
    return f"{text} ± {RESULT_COLUMNS[key][1](stdev(values)).lstrip('+')}"


def comparison_verdict(rows: Sequence[ComparisonRow], test_counts: TestCounts, seeds: SeedCounts | None = None) -> str:
    """A sentence with the best method, and its distance to the next method and to the baselines.

    If several methods are within chance of the best one, it names them all and no winner. A method with one of several seeds is
    neither the best nor beaten. A baseline is compared by the seeds that it shares with the best method.

    Args:
        rows: The methods, then the baselines.
        test_counts: Numbers of independent images of the evaluations.
        seeds: As for `comparison_table`.
    """
    asked = (seeds or seed_counts_of(rows)).asked
    for key in ("linear", "finetune", "knn"):
        methods = {row.name: row for row in rows if row.figures.get(key) and not row.baseline}
        if not methods:
            continue
        every = {name: row.figures[key] for name, row in methods.items()}
        single = with_one_seed(every, asked) if len(every) > 1 else []
        found = {name: values for name, values in every.items() if name not in single}
        if len(found) < 2 <= len(every):
            return f"No winner by {ACCURACIES[key]} accuracy: {one_seed_phrase(single, asked)}."
        left_out = f" Left out: {one_seed_phrase(single, asked)}." if single else ""
        count = test_counts.get(key)
        level = contenders(found, count)
        if len(level) > 1:
            listed = ", ".join(f"{name} {format_mean(key, found[name])} %" for name in level)
            return f"No winner by {ACCURACIES[key]} accuracy: the differences between {listed} can be due to chance.{left_out}"
        order = sorted(found, key=lambda name: -mean(found[name]))
        best, top = methods[order[0]], format_mean(key, found[order[0]])
        distances = [distance(found[best.name], name, found[name], count) for name in order[1:2]]
        for row in rows:
            if row.baseline and row.figures.get(key):
                distances += filter(None, [distance_to_baseline(best, row, key, count, asked)])
        compared = "".join(f", {each}" for each in distances)
        if len(every) == 1:
            return f"{best.name} reaches a {ACCURACIES[key]} accuracy of {top} %{compared}."
        return f"Best by {ACCURACIES[key]} accuracy: {best.name} with {top} %{compared}.{left_out}"
    return "There are no results yet."


def distance_to_baseline(best: ComparisonRow, baseline: ComparisonRow, key: str, count: float | None, asked: int) -> str:
    """A phrase with the points between the best method and a baseline; "" if they share one of several seeds, or none."""
    own, other = best.beside(baseline, key)
    if not own or (baseline.seeds and len(own) < FEWEST_SEEDS <= asked):
        return ""
    shared = f" (by the {len(own)} seeds of both)" if len(own) < len(best.figures[key]) else ""
    return distance(own, baseline.name, other, count) + shared


def distance(own: Sequence[float], name: str, other: Sequence[float], count: float | None) -> str:
    """A phrase with the points between the best method and another row."""
    by_chance = within_chance(own, other, count)
    return f"{position_of(100 * (mean(own) - mean(other)), by_chance)} {'an untrained encoder' if name == 'untrained' else name}"


def evaluated_images_of(key: str, evaluated_on: str, labelled: str = "") -> str:
    """The images, or texts, of an accuracy in words.

    Args:
        key: The kind of accuracy.
        evaluated_on: A key of `EVALUATED_ON`.
        labelled: The labelled data of fine-tuning, if they are not those of pre-training.
    """
    if not labelled or key not in TRANSFERRED:
        return EVALUATED_ON[evaluated_on]
    name = Path(labelled).name or labelled
    return f"a part of {name} held out from training with labels" if evaluated_on == "held-out" else f"the test set of {name}"


def seen_note(labelled: str) -> str:
    """What is not known of labelled data that are not those of pre-training."""
    name = Path(labelled).name or labelled
    return (
        f"Whether pre-training has seen samples of {name} that no warning counts is not known: if it has, accuracies on {name} may "
        f"be too high."
    )


def held_out_note(runs: Iterable[Path]) -> str:
    """What to do after a comparison on held-out images, by what its runs record about the data, or about the labelled data."""
    unused = list[bool]()
    for path in runs:
        with contextlib.suppress(UnveilError):  # a damaged run says nothing
            splits = (Run(path).facts.get("data") or {}).get("splits") or {}
            unused.append(any(split_of(name) == "test" for name in splits.get("unused", ())))
    return HELD_OUT_NOTE if any(unused) or not unused else NO_TEST_NOTE


def results_of(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """The results of runs. A damaged one is left out."""
    found = list[dict[str, Any]]()
    for path in runs:
        with contextlib.suppress(UnveilError):
            found.append(Run(path).results)
    return found


def joined_cautions(runs: Iterable[Path]) -> list[str]:
    """All clauses on test samples that were trained on, each once."""
    return list(dict.fromkeys(clause for results in results_of(runs) for clause in results.get("cautions") or ()))


def caution_note(runs: Sequence[Path]) -> str:
    """Warnings on runs, from what they record; "" if there are none.

    One says that test samples were trained on: it is the first one, of the first run. The other says that fine-tuning is behind
    linear probes.
    """
    every, warnings = results_of(runs), list[str]()
    if found := [clauses for results in every if (clauses := results.get("cautions"))]:
        others = f" Such a warning is on the pages of {len(found):,} of {len(runs):,} runs." if len(found) > 1 else ""
        warnings.append(f"Warning: {found[0][0]}.{others}")
    return " ".join([*warnings, *filter(None, [behind_note(every)])])


def behind_note(every: Iterable[Results]) -> str:
    """A warning if fine-tuning is behind the linear probe of the same encoder by more than chance, in some runs; "" otherwise."""
    tuned = [results for results in every if primary_of(results) in (results.get("probe") or {})]
    behind = [results for results in tuned if is_far_behind(results)]
    if not behind:
        return ""
    return (
        f"Warning: in {len(behind):,} of {len(tuned):,} fine-tuning runs, the accuracy is lower than that of a linear probe of the "
        f"same encoder on the same labels. Use more --finetune.epochs, or another --finetune.base-lr, before you trust fine-tuned "
        f"accuracies."
    )


def is_far_behind(results: Results) -> bool:
    """Whether the accuracy of fine-tuning is below that of its linear probe, by more than the choice of test samples explains."""
    key, score = primary_of(results), results["score"]
    if not is_behind(results, results["probe"][key]):
        return False
    return not within_chance([float(score[key])], [float(results["probe"][key])], independent_count_of(score))
