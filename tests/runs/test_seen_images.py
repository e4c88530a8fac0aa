"""Test images that a run was pre-trained on are counted, wherever DATA lies and however it is given; others never are."""

import json
import shutil
from pathlib import Path

import pytest

import unveil
from tests.recipes.test_end_to_end import write_images
from tests.runs.tiny_runs import FINETUNE, OPTIONS, TINY, write
from unveil.reports.comparison import caution_note
from unveil.reports.table import feature_table, metric_table
from unveil.runs.images import IMAGES
from unveil.runs.labelled_data import LabelledOptions, LabelledSubsets, labelled_subsets
from unveil.runs.seen_images import held_out_count
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA with two splits, and a run on each."""
    home = tmp_path_factory.mktemp("seen")
    write(home / "A", {"train/cat": 20, "train/dog": 20, "test/cat": 6, "test/dog": 6})
    unveil.pretrain(str(home / "A"), out=home / "on-train", **TINY)
    run_on(home, home / "A" / "test", home / "on-test", held_out=1)
    return home


def run_on(home: Path, data: Path, path: Path, **config: object) -> Path:
    """A run that records other data and options, so that not every test has to train one."""
    shutil.copytree(home / "on-train", path)
    return record(path, data=IMAGES.plan(str(data), "mae", "vit-nano", OPTIONS).facts, config=config)


def record(run: Path, *, config: dict[str, object], **facts: object) -> Path:
    """Changes what a run records."""
    recorded = json.loads((run / "run.json").read_text())
    recorded.pop("checksum", None)
    (run / "run.json").write_text(json.dumps(recorded | facts | {"config": recorded["config"] | config}))
    return run


def opened_sets(run: Path, data: object, test: object = None, **options: object) -> LabelledSubsets:
    asked = LabelledOptions(max_pixels=10**6, say=lambda text: None, show=False, **options)
    return labelled_subsets(run, data, test, unveil.load(run).encoder.config, asked)


def told(run: Path, data: object, test: object = None, **options: object) -> list[str]:
    """What is said about test images that were trained on, without the name of the run."""
    return [leak.removeprefix(f"{run} ") for leak in opened_sets(run, data, test, **options).leaks]


def of(seen: int, tests: int) -> str:
    return f"was trained on {seen} of {tests} test images: its results are too good"


def test_the_data_of_a_run_given_by_another_path(home: Path, tmp_path: Path) -> None:
    run, data = home / "on-train", home / "A"
    assert told(run, str(data)) == []  # its test images are others
    assert told(run, str(data / "train")) == [of(4, 4)]  # held out from what the run was trained on
    assert told(run, str(data / "test"), str(data / "train")) == [of(40, 40)]
    copied = tmp_path / "copied"
    shutil.copytree(data / "train", copied)
    assert told(run, str(copied)) == [of(4, 4)]
    write(copied, {"cat": 20}, seed=1)  # other images with the same names and sizes
    held_out = opened_sets(run, str(copied)).test.names
    assert told(run, str(copied)) == [of(sum("dog" in name for name in held_out), 4)]


def test_a_test_set_that_the_run_was_trained_on_apart_from_those_it_held_out(home: Path) -> None:
    run, data = home / "on-test", home / "A"
    assert told(run, str(data)) == [of(11, 12)]
    assert told(run, str(data / "test")) == []  # the same image is held out again
    probed = unveil.probe(run, str(data), kind="knn", compare=False, out=home / "probed", device="cpu")
    assert probed["cautions"] == [f"{run} {of(11, 12)}"]


def test_nothing_false_is_said_of_data_that_are_gone_or_have_changed(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(home / "A" / "train", data)
    run = run_on(home, data, tmp_path / "run", held_out=2)
    assert told(run, str(home / "A"), str(home / "A" / "train")) == [
        of(38, 40),
        "40 of 40 test images are trained on as well: the results are too good",
    ]
    moved = data.rename(tmp_path / "moved")
    assert told(run, str(home / "A" / "test"), str(home / "A" / "train")) == []  # where its images are is not known
    assert told(run, str(moved)) == []  # the same two are held out again
    moved.rename(data)
    write(data, {"cat": 20}, seed=1)
    assert told(run, str(home / "A" / "test"), str(home / "A" / "train")) == []


def test_copies_of_held_out_images_that_training_left_out_are_not_counted(home: Path, tmp_path: Path) -> None:
    data = shutil.copytree(home / "A" / "train", tmp_path / "data")
    write(data, {"more": 1}, seed=2)
    plan = IMAGES.plan(str(data), "mae", "vit-nano", OPTIONS)
    first, *others = plan.open_subsets().test.names
    assert (len(others), "more/0.bmp" in (first, *others)) == (3, False)
    shutil.copy(data / first, data / "more" / "0.bmp")
    run = run_on(home, data, tmp_path / "run")
    assert told(run, str(home / "A" / "test"), str(data)) == [of(41 - 4 - 1, 41)]
    assert told(run, str(data)) == []
    record(run, config={"leave_out_copies": False})
    assert told(run, str(home / "A" / "test"), str(data)) == [of(41 - 4 + 1, 41)]  # also the held-out one, by its copy
    assert told(run, str(data)) == [of(1, 4)]


def test_what_a_run_started_from_counts_as_well(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other", {"cat": 12, "dog": 12}, seed=3)
    monkeypatch.chdir(home)
    run = Path(unveil.pretrain(str(home / "A"), out=tmp_path / "run", init="on-test", **TINY | {"model": None}))
    monkeypatch.chdir(tmp_path)  # the path of the other run was relative
    seen = f"started from {home / 'on-test'}, which {of(11, 12)}"
    assert f"{run} {seen}" in capfd.readouterr().err  # the results of the run itself are of these test images
    assert told(run, str(home / "A")) == [seen]
    assert told(run, str(home / "A" / "test")) == []
    assert held_out_count(run) == 1000
    tuned = Path(unveil.finetune(run, str(other), out=tmp_path / "tuned", **FINETUNE))
    assert told(tuned, str(home / "A")) == [seen]
    record(run, started="2001-01-01T00:00:00+0000", config={})  # so the run in that folder has taken the place of another
    assert told(run, str(home / "A")) == []


def test_fine_tuning_is_training_too(home: Path, tmp_path: Path) -> None:
    """The held-out images are those of the pre-training, in both runs."""
    data = home / "A"
    tuned = Path(unveil.finetune(home / "on-test", str(data / "train"), out=tmp_path / "tuned", **FINETUNE))
    assert held_out_count(tuned) == 1
    assert told(tuned, str(data / "train")) == []
    assert told(tuned, str(data / "test"), str(data / "train")) == [of(39, 40).replace("trained", "trained or validated")]
    assert told(record(tuned, config={"labels": 8}), str(data / "test"), str(data / "train")) == []  # it is not known which


def test_results_and_pages_warn_of_them(home: Path, tmp_path: Path) -> None:
    """They were said before training only. From scratch, the weights of the run do not matter."""
    run, data = home / "on-train", home / "A"
    folder = tmp_path / "comparison"
    options = FINETUNE | {"test": str(data / "train"), "validation": 0.0}
    tuned = unveil.finetune(run, str(data / "test"), out=folder / "tuned", **options)
    scratch = unveil.finetune(run, str(data / "test"), out=folder / "scratch", scratch=True, **options)
    seen = f"{run} {of(40, 40)}"
    assert (tuned.results["cautions"], scratch.results.get("cautions")) == ([seen], None)
    assert f"Warning: {seen}." in metric_table(tuned.results).sentences
    assert caution_note([folder / "tuned", folder / "scratch"]) == f"Warning: {seen}."
    assert caution_note([folder / "scratch"]) == ""
    started = Path(unveil.pretrain(str(data), out=folder / "started", init=str(home / "on-test"), **TINY | {"model": None}))
    clause = f"{started} started from {home / 'on-test'}, which {of(11, 12)}"
    assert Run(started).results["cautions"] == [clause]
    assert feature_table(Run(started).results).sentences[0] == f"Warning: {clause}."
    every = caution_note([folder / "tuned", started, folder / "scratch"])
    assert every == f"Warning: {seen}. Such a warning is on the pages of 2 of 3 runs."


def test_a_validation_split_that_chose_the_checkpoint(home: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "three", {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("cat", "dog")})
    run = record(run_on(home, data, tmp_path / "run"), kind="finetune", config={"validation": None})
    assert told(run, str(data)) == []
    validated = ["was validated on val/, which is the test set now: its results are too good"]
    assert told(run, str(data), test_split="val") == validated
    assert told(record(run, config={"validation": 0}), str(data), test_split="val") == []


def test_of_a_large_set_some_are_looked_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.copies.MOST_CHECKED", 8)
    copied = shutil.copytree(home / "A" / "train", tmp_path / "copied")
    assert told(home / "on-train", str(home / "A" / "test"), str(copied)) == [
        "was trained on at least 8 of 40 test images: its results are too good"
    ]


def test_copies_between_splits_are_told_once_for_every_test_image(home: Path, tmp_path: Path) -> None:
    """Also of two test images that are copies of each other."""
    data = shutil.copytree(home / "A", tmp_path / "A")
    for number in range(3):
        shutil.copy(data / "test" / "cat" / f"{number}.bmp", data / "train" / "cat" / f"copy-{number}.bmp")
    shutil.copy(data / "test" / "cat" / "0.bmp", data / "test" / "cat" / "again.bmp")
    copies = "4 of 13 test images are exact copies of training images: the results are too good (unveil doctor lists them)"
    assert told(home / "on-train", str(data)) == [copies]
    run = run_on(home, data, tmp_path / "run")
    assert told(run, str(data)) == [copies]


def test_copies_between_the_splits_of_the_data_stand_beside_the_results(tmp_path: Path) -> None:
    """They were said once, in the terminal; `probe` and `finetune` recorded them already."""
    for split, count in (("train", 12), ("test", 6)):
        write_images(tmp_path / "data" / split, count)
    run = unveil.pretrain(str(tmp_path / "data"), out=tmp_path / "run", **TINY | {"epochs": 0.5})
    (clause,) = run.results["cautions"]
    assert clause.startswith("12 of 12 test images are exact copies of training images")
    assert f"Warning: {clause}" in feature_table(run.results).sentences[0]
    alone = unveil.pretrain(str(tmp_path / "data" / "train"), out=tmp_path / "alone", held_out=4, **TINY | {"epochs": 0.5})
    assert "cautions" not in alone.results  # held-out images are no copies: those are left out of training
