"""Which images a run is trained and tested on, how it says so, and how it finds its data again."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import unveil
from tests.runs.tiny_runs import FINETUNE, OPTIONS, TINY, write
from unveil.errors import UnveilError
from unveil.runs import image_pretraining
from unveil.runs.image_pretraining import ImagePlan
from unveil.runs.images import IMAGES
from unveil.runs.labelled_data import LabelledOptions, data_of, labelled_subsets, recorded_classes, unseen_classes
from unveil.train.data_changes import data_changes
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

SPLITS = {"train/cat": 8, "train/dog": 8, "validation/cat": 3, "validation/dog": 3, "test/cat": 2, "test/dog": 2, "extra": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """DATA with every split, and a run on it, which was begun in the folder of DATA."""
    home = tmp_path_factory.mktemp("home")
    write(home / "pics", SPLITS)
    before = Path.cwd()
    os.chdir(home)
    try:
        run = unveil.pretrain("pics", out=home / "run", **TINY)
    finally:
        os.chdir(before)
    return home / "pics", run.path.resolve()


def unfinished(run: Path, path: Path) -> Path:
    """A copy of a run that has checkpoints, but no results."""
    shutil.copytree(run, path)
    (path / "results.json").unlink()
    return path


def test_run_json_and_the_terminal_say_what_each_folder_is(
    made: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, run = made
    facts = Run(run).facts["data"]
    assert facts["splits"] == {"train": ["train"], "validation": ["validation"], "test": ["test"], "unused": ["extra"]}
    assert (facts["name"], facts["path"], facts["count"], facts["test_count"]) == ("pics", str(data), 16, 4)
    unveil.pretrain(str(data), out=unfinished(run, tmp_path / "again"), **TINY)
    said = capfd.readouterr().err
    assert (
        "pics has splits: train/ (16 images) for training; validation/ (6 images) evaluated during training; "
        "test/ (4 images) as the test set; extra/ (2 images) not used"
    ) in said
    assert "took the folders as classes: cat, dog (8 images each)" in said


def test_the_test_set_is_not_evaluated_during_training(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = made
    real, judged = image_pretraining.features_of, list[set[str]]()

    def features_of(function: object, subset: object, *others: object) -> object:
        judged.append({name.split("/")[0] for name in subset.names})
        return real(function, subset, *others)

    monkeypatch.setattr(image_pretraining, "features_of", features_of)
    plan = plan_of(str(data))
    session = SimpleNamespace(run=Run(run), recipe=plan.recipe, world=plan.recipe.world, say=print)
    pretraining = image_pretraining.ImagePretraining(plan, session)
    learner = pretraining.build()
    found = [monitor(learner) for monitor in pretraining.monitors()]
    assert found[1].keys() >= {"knn"}
    batches = image_pretraining.held_out_images(
        pretraining.validation_set, pretraining.vit, plan.recipe.hardware, plan.recipe.world
    )
    assert found[0] == image_pretraining.held_out_metrics(learner, batches, plan.recipe.hardware, plan.recipe.world)
    assert set.union(*judged) == {"train", "validation"}
    options = LabelledOptions(max_pixels=10**6, say=print, show=False)
    opened = labelled_subsets(run, str(data), None, unveil.load(run).encoder.config, options)
    assert {name.split("/")[0] for name in opened.validation.names} == {"validation"}
    assert {name.split("/")[0] for name in opened.test.names} == {"test"}


def plan_of(data: str) -> ImagePlan:
    return IMAGES.plan(data, "mae", "vit-nano", OPTIONS)


def test_the_same_data_resumes_whatever_it_is_called(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = made
    monkeypatch.chdir(data.parent)
    (tmp_path / "link").symlink_to(data)
    moved = str(shutil.copytree(data, tmp_path / "elsewhere"))
    for form in ("pics", "pics/", "./pics", str(data), f"{tmp_path}/link", moved):
        assert data_changes(Run(run).facts["data"], plan_of(form).facts) == []
    finished = unveil.pretrain(moved, out=unfinished(run, tmp_path / "again"), **TINY)
    assert (finished.path / "results.json").is_file()
    assert len(finished.log) == len(Run(run).log)  # no step was done again


def test_other_images_of_the_same_size_are_noticed(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = made
    again = unfinished(run, tmp_path / "again")
    other = shutil.copytree(data, tmp_path / "pics")
    write(other, {"train/cat": 8}, seed=1)
    with pytest.raises(UnveilError, match="16 images as before, but some have other names, sizes, contents or labels"):
        unveil.pretrain(str(other), out=again, **TINY)
    shutil.rmtree(other)
    shutil.copytree(data, other)
    write(other, {"test/dog": 1}, seed=1)
    with pytest.raises(UnveilError, match="test data: 4 images as before, but some have other"):
        unveil.pretrain(str(other), out=again, **TINY)


def listing(root: Path, split: str) -> str:
    """The fingerprint of earlier versions: SHA-256 of names and sizes."""
    digest = hashlib.sha256()
    for path in sorted((root / split).rglob("*.bmp")):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def test_runs_of_earlier_versions_resume(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = made
    again = unfinished(run, tmp_path / "again")
    facts = json.loads((again / "run.json").read_text())
    del facts["checksum"]
    facts["data"] = {"name": "pics", "count": 16, "test_count": 4}
    facts["data"] |= {"fingerprint": listing(data, "train"), "test_fingerprint": listing(data, "test")}
    for name in ("split", "test_split"):
        del facts["config"][name]
    (again / "run.json").write_text(json.dumps(facts))
    assert unveil.pretrain(str(data), out=again, **TINY).results
    smaller = write(tmp_path / "pics", SPLITS | {"train/cat": 7})
    with pytest.raises(UnveilError, match="data: was 16 images, is 15 images"):
        unveil.pretrain(str(smaller), out=unfinished(again, tmp_path / "third"), **TINY)


def test_later_verbs_find_the_data_from_elsewhere(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = made
    monkeypatch.chdir(tmp_path)
    assert data_of(run) == str(data)
    write(tmp_path / "pics", {"a": 1, "b": 1})  # another folder of that name
    assert data_of(run) == str(data)
    monkeypatch.chdir(data.parent)
    assert data_of(run) == "pics"
    facts = json.loads((run / "run.json").read_text())
    del facts["checksum"]
    del facts["data"]["path"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps(facts))
    assert data_of(tmp_path / "old") == "pics"  # of an earlier version
    facts["data"] |= {"name": "array", "path": None}
    (tmp_path / "old" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UnveilError, match="was trained on an array in memory, which it does not record"):
        data_of(tmp_path / "old")
    facts["data"] |= {"name": "digits", "path": None}
    (tmp_path / "old" / "run.json").write_text(json.dumps(facts))
    assert data_of(tmp_path / "old") == "digits"


def test_classes_that_training_lacks_count_as_wrong(
    made: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made[1]
    data = write(tmp_path / "pics", {"train/cat": 8, "train/dog": 8, "test/cat": 4, "test/dog": 4, "test/elk": 5})
    tuned = unveil.finetune(run, str(data), out=tmp_path / "tuned", **FINETUNE)
    said = capfd.readouterr()
    sentence = "5 of 13 test images have a class that no training sample has (elk: 5): they count as wrong"
    assert sentence in said.err
    assert sentence in " ".join(said.out.split())
    unveil.report(tuned)
    assert sentence in (tuned.path / "report.html").read_text()
    with (tuned.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    score = tuned.results["score"]
    assert len(rows) == score["count"] == 13
    assert score["top1"] == pytest.approx(sum(row["label"] == row["predicted"] for row in rows) / 13)
    assert tuned.results["classes"] == ["cat", "dog", "elk"]
    assert tuned.results["unseen_classes"] == {"elk": 5}
    assert np.array(score["confusion"]).sum(axis=1).tolist() == [4, 4, 5]
    assert score["per_class"][2] == 0
    assert list(rows[0]) == ["file", "label", "predicted", "probability", "score cat", "score dog"]
    assert json.loads((tuned.path / "config.json").read_text())["classes"] == ["cat", "dog"]
    probed = unveil.probe(run, str(data), kind="knn", compare=False, out=tmp_path / "probe", device="cpu")
    assert (probed["score"]["count"], probed["unseen_classes"]) == (13, {"elk": 5})
    with (tmp_path / "probe" / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            votes = [float(row["score cat"]), float(row["score dog"])]
            assert float(row["probability"]) == pytest.approx(max(votes) / sum(votes), abs=1e-4)
    apart = write(tmp_path / "apart", {"elk": 3, "cat": 2, "dog": 1})  # a test set of its own, with another alphabet
    probed = unveil.probe(run, str(data), test=str(apart), kind="knn", compare=False, out=tmp_path / "two", device="cpu")
    assert np.array(probed["score"]["confusion"]).sum(axis=1).tolist() == [2, 1, 3]
    pretrained = unveil.pretrain(str(data), out=tmp_path / "run", **TINY)
    assert pretrained.results["judged_on"] == {"train": 16, "test": 13, "classes": 2, "unseen_classes": {"elk": 5}}
    unveil.report(pretrained)
    assert sentence in (pretrained.path / "report.html").read_text()


def test_split_chooses_for_every_verb(made: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, run = made
    probed = unveil.probe(run, str(data), kind="knn", compare=False, out=tmp_path / "a", device="cpu", split="train+val")
    assert (probed["trained_on"], probed["score"]["count"]) == (22, 4)
    probed = unveil.probe(run, str(data), kind="knn", compare=False, out=tmp_path / "b", device="cpu", test_split="val")
    assert (probed["trained_on"], probed["score"]["count"]) == (16, 6)
    tuned = unveil.finetune(run, str(data), out=tmp_path / "tuned", split="val", **FINETUNE)
    assert (tuned.results["trained_on"], tuned.config["split"]) == (6, "val")
    assert tuned.facts["data"]["splits"]["train"] == ["validation"]
    everything = IMAGES.plan(str(data), "mae", "vit-nano", {**OPTIONS, "split": "all"})
    assert (everything.facts["count"], len(everything.open_subsets().train)) == (28, 26)
    trained = shutil.copytree(run, tmp_path / "all")
    facts = json.loads((trained / "run.json").read_text())
    del facts["checksum"]
    (trained / "run.json").write_text(json.dumps(facts | {"data": everything.facts}))
    capfd.readouterr()
    unveil.probe(trained, str(data), kind="knn", compare=False, out=tmp_path / "c", device="cpu")
    assert "was trained on test/, which is the test set now: its results are too good" in capfd.readouterr().err
    for verb in (unveil.pretrain, lambda *data, **options: unveil.finetune(run, *data, **options)):
        with pytest.raises(UnveilError, match="--split unlabeled is not among them"):
            verb(str(data), out=tmp_path / "refused", split="unlabeled")
    assert not (tmp_path / "refused").exists()
    table = unveil.embed(run, str(data), out=tmp_path / "e.npz", split="val+other", device="cpu")
    assert np.load(table)["split"].tolist() == ["val"] * 6 + ["other"] * 2


def test_labels_keep_the_numbers_of_the_run_that_is_resumed(made: tuple[Path, Path], tmp_path: Path) -> None:
    """An earlier version numbered 1, 2, 10 as 1, 10, 2, and gave an output to labels that do not occur."""
    run = made[1]
    data = write(tmp_path / "pics", {f"{split}/{name}": 4 for split in ("train", "test") for name in (1, 2, 10)})
    tuned = unveil.finetune(run, str(data), out=tmp_path / "tuned", **FINETUNE)
    assert recorded_classes(tuned.path) == ["1", "2", "10"]
    config = json.loads((tuned.path / "config.json").read_text())
    del config["checksum"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | {"classes": ["0", "1", "10", "2"]}))
    assert recorded_classes(tmp_path / "none") == []
    options = LabelledOptions(classes=recorded_classes(tmp_path / "old"), max_pixels=10**6, say=print, show=False)
    opened = labelled_subsets(run, str(data), None, unveil.load(run).encoder.config, options)
    for subset in (opened.train, opened.test):
        assert subset.dataset.classes == ["0", "1", "10", "2"]
        for name, label in zip(subset.names, subset.labels.tolist(), strict=True):
            assert subset.dataset.classes[label] == name.split("/")[1]
    assert unseen_classes(opened.train, opened.test) == {}


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"only": 9}, "has only one class: all of its 9 images are in the folder only"),
        ({"": 9}, "has no labelled images for the train set: put each class into a folder of its own"),
        ({"train/cat": 9, "test/cat": 2, "test/dog": 2}, "has only one class: all of its 9 images are in the folder train/cat"),
        ({"cat": 3, "dog": 3}, "has 6 images, too few to hold out a tenth: give a test set with --test"),
        ({"train/cat": 3, "train/dog": 3, "test": 4}, r"no test image of .* has a label: give a test set with --test"),
    ],
)
def test_sentences_for_data_without_two_classes(
    counts: dict[str, int], reason: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    data = write(tmp_path / "pics", counts)
    for verb in (unveil.finetune, unveil.probe):
        with pytest.raises(UnveilError, match=reason):
            verb(made[1], str(data), out=tmp_path / "out", device="cpu")
    assert not list((tmp_path / "out").glob("*"))


def test_unlabeled_images_do_not_change_what_is_held_out(made: tuple[Path, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "pics", {"train/cat": 20, "train/dog": 20, "unlabeled": 30})
    plan = plan_of(str(data))
    assert plan.facts["splits"]["train"] == ["train", "unlabeled"]
    train_set, test_set, *_ = plan.open_subsets()
    assert len(train_set) == 66
    held_out = test_set.names
    options = LabelledOptions(max_pixels=10**6, say=print, show=False)
    opened = labelled_subsets(made[1], str(data), None, unveil.load(made[1]).encoder.config, options)
    assert len(held_out) == 4
    assert sorted(opened.test.names) == sorted(held_out)


def test_test_images_of_pre_training_are_noticed(
    made: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "all" / "pics", {"cat": 20, "dog": 20})
    run = unveil.pretrain(str(data), out=tmp_path / "run", held_out=2, **TINY).path
    encoder = unveil.load(run).encoder.config
    held_out = plan_of(str(data)).open_subsets().test.names

    def opened(path: Path, test: Path | None = None) -> tuple[list[str], str]:
        said: list[str] = []
        options = LabelledOptions(max_pixels=10**6, say=said.append, show=False)
        found = labelled_subsets(path, str(data), test and str(test), encoder, options)
        return sorted(found.test.names), "\n".join(said)

    names, said = opened(run)
    assert len(names) == 2
    assert set(names) < set(held_out)  # of four
    assert "too high" not in said
    shutil.copytree(run, tmp_path / "moved")
    (run / "export").mkdir()
    shutil.copy(run / "encoder.safetensors", run / "export")
    for path in (run / "encoder.safetensors", run / "export" / "encoder.safetensors", tmp_path / "moved"):
        assert opened(path)[0] == names
    for test in (data, tmp_path / "all"):
        assert "\n40 of 40 test images are trained on as well: the results are too good" in opened(run, test)[1]
    write(data, {"cat": 21}, seed=2)
    assert "so it may have been trained on images that are held out now: its accuracy may be too high" in opened(run)[1]
