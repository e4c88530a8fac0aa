"""Comparisons in which some runs have failed or not finished: the page says so, and one of several seeds decides nothing."""

import json
from collections.abc import Mapping
from pathlib import Path

from unveil.experiments.calls import Outcome
from unveil.experiments.compare import entry_of, write_results
from unveil.experiments.jobs import Notes
from unveil.experiments.runner import Comparison, ComparisonConfig
from unveil.experiments.study import SweepSpec
from unveil.reports.comparison import comparison_verdict, row_of
from unveil.reports.seed_counts import SeedCounts, with_one_seed
from unveil.reports.study_page import Sweep, best_value, sweep_table, write_study
from unveil.train.run_folder import Run

Accuracies = dict[int, float]
"""The accuracy of the linear probe, by seed."""


def comparison_of(folder: Path, runs: Mapping[str, Accuracies], seeds: tuple[int, ...] = (0, 1, 2)) -> Comparison:
    """A comparison whose runs have these accuracies; that of an untrained encoder is a tenth of the seed."""
    for name, of_seed in runs.items():
        for seed, accuracy in of_seed.items():
            path = folder / f"{name}-seed{seed}"
            path.mkdir(parents=True)
            for file in ("run.json", "report.html"):
                (path / file).write_text("{}")
            features = {"encoder": {"linear": accuracy}, "untrained": {"linear": 0.1 * seed}}
            judged = {"train": 4000, "test": 1000, "classes": 10}
            Run(path).write_results({"seconds": 2.0, "images_seen": 80, "features": features, "judged_on": judged})
    config = ComparisonConfig(seeds=seeds, with_finetune=False)
    entries = [entry_of("mae")._replace(name=name) for name in runs]
    return Comparison(folder=folder, data="photos", config=config, shared_options={}, finetune_options={}, entries=entries)


def test_failures_of_a_name_with_a_slash(tmp_path: Path) -> None:
    """`failed.json` lies beside the folder of a run, which `study init=runs/a,runs/b` has in a folder of its own."""
    comparison = comparison_of(tmp_path, {"mae-init-runs/a": {0: 0.5}}, (0,))
    job = next(job for job in comparison.jobs_in(tmp_path) if job.name == "mae-init-runs/a-seed0")
    notes = Notes(tmp_path, [job])
    notes.take(job, Outcome("failed", "no memory"))
    assert [(each.run, each.error) for each in comparison.failures] == [(job.name, "no memory")]
    assert comparison.facts["failed"][0]["run"] == job.name
    notes.take(job, Outcome())
    assert not comparison.failures


def swept(asked: int, *scores: list[float]) -> Sweep:
    values = [0.25, 0.5, 0.75][: len(scores)]
    rows = [row_of(f"mae-{value}", [{"linear": score} for score in each]) for value, each in zip(values, scores, strict=True)]
    counts = SeedCounts(asked, {str(value): len(each) for value, each in zip(values, scores, strict=True)})
    return Sweep("mae", "mask_ratio", values, rows, [], {"linear": 1000}, seeds=counts)


def test_one_of_several_seeds_is_neither_the_best_nor_beaten() -> None:
    sweep = swept(3, [0.40, 0.41, 0.42], [0.60])
    assert best_value(sweep, "linear") == "linear: no best mask ratio; 0.5 has only one of 3 seeds."
    assert best_value(sweep._replace(seeds=None), "linear") == best_value(sweep, "linear")  # 3, since another row has them
    best = best_value(swept(3, [0.40, 0.41, 0.42], [0.20], [0.60, 0.61]), "linear")
    assert best == (
        "linear: best at mask ratio 0.75, with 60.5 %; the worst value is 19.5 points lower. Left out: 0.5 has only one of 3 seeds."
    )
    level = best_value(swept(3, [0.40, 0.41, 0.42], [0.60], [0.40, 0.42, 0.41]), "linear")
    assert level.endswith("all differences can be due to chance. Left out: 0.5 has only one of 3 seeds.")
    assert best_value(swept(3, [0.2], [0.6]), "linear") == "linear: no best mask ratio; 0.25 and 0.5 have only one of 3 seeds."
    assert best_value(swept(1, [0.2], [0.6]), "linear").startswith("linear: best at mask ratio 0.5")  # one was asked for
    assert "Seeds are missing: 0.5 (1 of 3)." in sweep_table(sweep).sentences
    assert not any("missing" in sentence for sentence in sweep_table(swept(1, [0.2], [0.6])).sentences)
    assert with_one_seed({"a": [0.1], "b": [0.2], "c": []}, 3) == ["a", "b", "c"]
    assert with_one_seed({"a": [0.1], "b": [0.2, 0.3]}, 3) == ["a"]


def test_the_table_and_the_page_name_the_rows_that_lack_seeds(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path, {"mae": {0: 0.40, 1: 0.41, 2: 0.42}, "mae-b": {0: 0.60}, "mae-c": {}})
    rows, table = write_results(comparison)
    assert [row.name for row in rows] == ["mae", "mae-b", "untrained"]
    assert table.sentences[:2] == [
        "Mean and standard deviation over 3 seeds.",
        "Seeds are missing: mae-b (1 of 3); mae-c (0 of 3).",
    ]
    page = (tmp_path / "report.html").read_text()
    assert "Unfinished: 4 of 9 runs have finished. Without results: mae-c." in page
    assert "No winner by linear accuracy: mae-b has only one of 3 seeds." in page
    facts = json.loads((tmp_path / "compare.json").read_text())
    assert (facts["runs"], facts["finished"]) == (9, 4)


def test_the_page_of_a_comparison_that_was_killed_says_so(tmp_path: Path) -> None:
    comparison = comparison_of(tmp_path, {"mae": {0: 0.40}, "mae-b": {}})
    _, table = write_results(comparison)
    assert "Seeds are missing: mae (1 of 3); mae-b (0 of 3); untrained (1 of 3)." in table.sentences
    page = (tmp_path / "report.html").read_text()
    assert "Unfinished: 1 of 6 runs has finished. Without results: mae-b." in page
    assert "mae reaches a linear accuracy of 40.0 %." in page  # one seed does not place it beside the baselines
    complete = comparison_of(tmp_path / "complete", {"mae": {0: 0.40}}, (0,))
    write_results(complete)
    assert "nfinished" not in (tmp_path / "complete" / "report.html").read_text()
    assert "finished" not in json.loads((tmp_path / "complete" / "compare.json").read_text())


def test_a_baseline_is_compared_by_the_seeds_of_both(tmp_path: Path) -> None:
    rows = comparison_of(tmp_path, {"mae": {1: 0.2, 2: 0.2}, "mae-b": {0: 0.90, 1: 0.60, 2: 0.60}}).rows()
    assert rows[2].figures["linear"] == [0.1, 0.2]
    assert rows[2].seeds["linear"] == [1, 2]
    assert rows[1].beside(rows[2], "linear") == ([0.60, 0.60], [0.1, 0.2])
    sentence = comparison_verdict(rows, {"linear": 10**6}, SeedCounts(3, {}))
    assert sentence.endswith(", 45.0 points ahead of an untrained encoder (by the 2 seeds of both).")  # 55 by all of its seeds
    one = [row_of("mae", [{"linear": 0.6}] * 3, seeds=(0, 1, 2)), row_of("untrained", [{"linear": 0.1}], True, seeds=(1,))]
    assert comparison_verdict(one, {"linear": 10**6}, SeedCounts(3, {})) == "mae reaches a linear accuracy of 60.0 ± 0.0 %."


def test_the_page_of_a_sweep_says_which_values_are_missing(tmp_path: Path) -> None:
    spec = SweepSpec(method="mae", data="photos", option="mask_ratio", values=(0.5, 0.75, 0.9))
    runs: dict[str, Accuracies] = {f"mae-mask_ratio-{value}": {} for value in spec.values}
    comparison = comparison_of(tmp_path, runs | {"mae-mask_ratio-0.5": {0: 0.4}})
    sweep = spec.sweep(comparison)
    assert sweep.seeds == SeedCounts(3, {"0.5": 1, "0.75": 0, "0.9": 0, "untrained": 1})
    write_study(tmp_path, "title", {"": [sweep]}, comparison.facts)
    assert "Unfinished: 1 of 9 runs has finished. Without results: 0.75, 0.9." in (tmp_path / "report.html").read_text()
