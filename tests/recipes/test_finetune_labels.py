"""Fine-tuning on several labels per image and on numbers: from labels.csv to results, reports and predictions."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as theirs

import unveil
from unveil.errors import UnveilError
from unveil.evaluate.label_fits import fit_labels, fit_ridge
from unveil.interop.files import read_tensors
from unveil.predictions import Table
from unveil.runs.labelled_images import START_PENALTY
from unveil.tasks.multilabel import MultiLabel
from unveil.tasks.regression import Regression
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

NAMES = ["blue, or not", "green", "red"]
SHORT: dict[str, Any] = {"device": "cpu", "precision": "float32", "base_lr": 4e-3, "batch_size": 8}
COUNTS = {"train": 60, "val": 20, "test": 30}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of the same images: which channels are bright, and how bright the image is; some of them without labels."""
    root, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lists, numbers = [["file", "labels"]], [["file", "count"]]
    for split, count in COUNTS.items():
        for folder in ("lists", "numbers"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            bright = chance.random(3) < 0.5
            pixels = chance.normal(90 + 60 * bright, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            for folder in ("lists", "numbers"):
                Image.fromarray(pixels).save(root / folder / split / f"{i:02}.png")
            own = [name for name, here in zip(reversed(NAMES), bright, strict=True) if here]
            unknown = i % 10 == 9
            lists.append([f"{split}/{i:02}.png", "" if unknown else "|".join(own) or "|"])
            numbers.append([f"{split}/{i:02}.png", "" if unknown else f"{pixels.mean() + chance.normal(0, 3):.2f}"])
    for folder, rows in (("lists", lists), ("numbers", numbers)):
        with (root / folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = {"model": "vit-nano", "image_size": 16, "patch_size": 4, "epochs": 1.0, "batch_size": 16, "device": "cpu"}
    return unveil.pretrain(str(data / "lists"), out=tmp_path_factory.mktemp("runs") / "run", **options)


@pytest.fixture(scope="module")
def several(run: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("several") / "tuned"
    return unveil.finetune(run, str(data / "lists"), task="multilabel", out=out, epochs=2.0, **SHORT)


@pytest.fixture(scope="module")
def counted(run: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("counted") / "tuned"
    return unveil.finetune(run, str(data / "numbers"), task="regression", out=out, epochs=2.0, **SHORT)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def truth_of(data: Path, split: str) -> dict[str, str]:
    """The labels of the test images, as they are written; without those that are unknown."""
    rows = rows_of(data / "labels.csv")
    return {row["file"]: own for row in rows if row["file"].startswith(split) and (own := row[next(k for k in row if k != "file")])}


def features(learner: Any, data: Path, names: list[str]) -> torch.Tensor:
    pixels = np.stack([np.array(Image.open(data / name)) for name in names])
    with torch.no_grad():
        found: torch.Tensor = learner.features(unveil.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    return found


def test_labels_from_the_files_to_the_metrics(several: Run, data: Path) -> None:
    """Scores of images read by Pillow, and labels read by csv, give the numbers of results.json by scikit-learn."""
    truth, results = truth_of(data / "lists", "test"), several.results
    assert len(truth) == results["score"]["count"] == 27
    model = unveil.load(several)
    assert isinstance(model, MultiLabel)
    assert list(model.classes) == results["classes"] == NAMES
    with torch.no_grad():
        logits = model.head(features(model, data / "lists", list(truth))).numpy()
    wanted = np.array([[name in own.split("|") for name in NAMES] for own in truth.values()])
    guess = logits >= 0
    score = results["score"]
    assert score["mean_ap"] == pytest.approx(theirs.average_precision_score(wanted, logits), abs=1e-4)
    assert score["auroc"] == pytest.approx(theirs.roc_auc_score(wanted, logits), abs=1e-4)
    assert score["macro_f1"] == pytest.approx(theirs.f1_score(wanted, guess, average="macro"))
    assert score["micro_f1"] == pytest.approx(theirs.f1_score(wanted, guess, average="micro"))
    assert score["exact_match"] == pytest.approx(theirs.accuracy_score(wanted, guess))
    written = rows_of(several.path / "predictions.csv")
    assert [row["file"] for row in written] == list(truth)
    assert [row["labels"] for row in written] == ["" if own == "|" else "|".join(sorted(own.split("|"))) for own in truth.values()]
    scores = np.array([[float(row[f"score {name}"]) for name in NAMES] for row in written])
    np.testing.assert_allclose(scores, logits, rtol=1e-3, atol=1e-3)
    assert [row["predicted"] for row in written] == ["|".join(np.array(NAMES)[row]) for row in guess]


def test_numbers_from_the_files_to_the_metrics(counted: Run, data: Path) -> None:
    truth, results = truth_of(data / "numbers", "test"), counted.results
    trained = np.array([float(x) for x in truth_of(data / "numbers", "train").values()])
    model = unveil.load(counted)
    assert isinstance(model, Regression)
    assert (float(model.mean), float(model.deviation)) == pytest.approx((trained.mean(), trained.std()))
    with torch.no_grad():
        outputs = model.head(features(model, data / "numbers", list(truth)))[:, 0].numpy()
    predicted, wanted = outputs * trained.std() + trained.mean(), np.array([float(x) for x in truth.values()])
    score = results["score"]
    assert (results["primary"], results["lower_is_better"], results["classes"]) == ("mae", True, ["count"])
    assert score["mae"] == pytest.approx(theirs.mean_absolute_error(wanted, predicted), rel=1e-4)
    assert score["rmse"] == pytest.approx(theirs.root_mean_squared_error(wanted, predicted), rel=1e-4)
    assert score["r2"] == pytest.approx(theirs.r2_score(wanted, predicted), rel=1e-3)
    assert score["mae_of_mean"] == pytest.approx(theirs.mean_absolute_error(wanted, np.full_like(wanted, trained.mean())), rel=1e-4)
    written = rows_of(counted.path / "predictions.csv")
    assert [(row["file"], float(row["value"])) for row in written] == [(name, float(own)) for name, own in truth.items()]
    np.testing.assert_allclose([float(row["predicted"]) for row in written], predicted, rtol=1e-4)


def test_a_linear_fit_is_compared_with_and_its_shrunken_form_the_start(run: Run, data: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the last weights are the start. Both are fits to the encoder as it was pre-trained."""
    still: dict[str, Any] = {"epochs": 1.0, **SHORT, "base_lr": 0.0, "weight_decay": 0.0, "validation": 0.0}
    learner = unveil.load(run)
    for task, folder in (("multilabel", "lists"), ("regression", "numbers")):
        train, test = (truth_of(data / folder, split) for split in ("train", "test"))
        rows, tested = (features(learner, data / folder, list(each)) for each in (train, test))
        if task == "multilabel":
            values = torch.tensor([[float(name in own.split("|")) for name in NAMES] for own in train.values()])
            probe, start = fit_labels(rows, values), fit_labels(rows, values, penalties=(START_PENALTY,))
        else:
            values = torch.tensor([float(own) for own in train.values()])
            probe, start = fit_ridge(rows, values), fit_ridge(rows, values, penalties=(START_PENALTY * len(rows),))
        kept = unveil.finetune(run, str(data / folder), task=task, out=tmp_path / task, **still)
        saved = read_tensors(kept.path / "probe.safetensors")
        torch.testing.assert_close(tested @ saved["weight"].T + saved["bias"], tested @ probe[0].T + probe[1], rtol=1e-2, atol=1e-2)
        found = unveil.predict(kept, [str(data / folder / name) for name in test])
        assert isinstance(found, Table)
        wanted = tested @ start[0].T + start[1]
        np.testing.assert_allclose(found.scores.reshape(wanted.shape), wanted, rtol=1e-2, atol=1e-2)
        probed = tested @ probe[0].T + probe[1]
        if task == "multilabel":
            truth = np.array([[name in own.split("|") for name in NAMES] for own in test.values()])
            assert kept.results["probe"]["mean_ap"] == pytest.approx(theirs.average_precision_score(truth, probed), abs=0.01)
        else:
            truth = np.array([float(own) for own in test.values()])
            assert kept.results["probe"]["mae"] == pytest.approx(theirs.mean_absolute_error(truth, probed[:, 0]), rel=0.01)


def test_the_best_weights_are_kept_and_a_stopped_run_goes_on(several: Run, counted: Run, run: Run, data: Path) -> None:
    for tuned, key, task, folder in ((several, "mean_ap", "multilabel", "lists"), (counted, "mae", "regression", "numbers")):
        chosen, results = tuned.results["validation"], dict(tuned.results)
        logged = [line[key] for line in tuned.log if key in line]
        assert chosen["metric"] == key
        assert all(chosen["value"] <= value if key == "mae" else chosen["value"] >= value for value in logged)
        for name in ("results.json", "report.html", "model.safetensors"):
            (tuned.path / name).unlink()
        again = unveil.finetune(run, str(data / folder), task=task, out=tuned.path, epochs=2.0, **SHORT)
        assert {key: again.results[key] for key in ("score", "probe", "validation")} == {
            key: results[key] for key in ("score", "probe", "validation")
        }


def test_the_page(several: Run, counted: Run) -> None:
    labels, numbers = (unveil.report(run.path).read_text() for run in (several, counted))
    assert "blue, or not</th>" in labels or "<td>blue, or not</td>" in labels
    assert "AP of each class" in labels
    assert "mAP on the validation set" in labels
    assert "too high on average" in numbers or "too low on average" in numbers
    assert "always predicting the mean of the train set has" in numbers
    shown = np.load(counted.path / "mistakes.npz")
    written = sorted(rows_of(counted.path / "predictions.csv"), key=lambda row: -abs(float(row["predicted"]) - float(row["value"])))
    assert shown["names"].tolist() == [row["file"] for row in written[:12]]
    assert f"<td>{written[0]['file']}</td>" in numbers


def test_predict(several: Run, counted: Run, data: Path, tmp_path: Path) -> None:
    found = unveil.predict(several, str(data / "lists" / "test"), scores=True)
    assert isinstance(found, Table)
    assert list(found) == ["path", "labels", "probability", *(f"p({name})" for name in NAMES)]
    for row in found.rows():
        own = {name: row[f"p({name})"] for name in NAMES if row[f"p({name})"] >= 0.5}
        assert row["labels"] == "|".join(own)
        assert row["probability"] == "|".join(f"{p:.4g}" for p in own.values())
    by_file = {row["file"]: row["predicted"] for row in rows_of(several.path / "predictions.csv")}
    predicted = dict(zip(found["path"].tolist(), found.labels, strict=True))
    assert {name: predicted[name.removeprefix("test/")] for name in by_file} == by_file
    unveil.predict(counted, str(data / "numbers" / "test"), out=tmp_path / "numbers.csv")
    numbers = {row["path"]: float(row["value"]) for row in rows_of(tmp_path / "numbers.csv")}
    for row in rows_of(counted.path / "predictions.csv"):
        assert numbers[row["file"].removeprefix("test/")] == pytest.approx(float(row["predicted"]), rel=1e-5)
    assert unveil.load(counted).predict_images([str(data / "numbers" / "test" / "00.png")]).labels == pytest.approx(
        [numbers["00.png"]], rel=1e-5
    )
    for run, reason in (
        (several, r"top_k is 2, but .* predicts every label whose"),
        (counted, r"top_k is 2, but .* one number per"),
    ):
        with pytest.raises(UnveilError, match=reason):
            unveil.predict(run, str(data / "lists" / "test"), top_k=2)


def test_from_scratch_and_with_the_loss_of_mae(run: Run, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "regression", "epochs": 1.0, **SHORT}
    beside = tmp_path / f"{run.path.name}-scratch"
    scratch = unveil.finetune(run, str(data / "numbers"), out=beside, scratch=True, **options)
    assert scratch.results["probe"]["mae"] > 0  # of the untrained encoder
    tuned = unveil.finetune(run, str(data / "numbers"), out=tmp_path / "tuned", **options)
    page = unveil.report(tuned.path).read_text()
    better = tuned.results["score"]["mae"] < scratch.results["score"]["mae"]
    assert f"It is {'ahead of' if better else 'behind'} the same model from scratch (" in page
    both = unveil.finetune(
        run, str(data / "lists"), task="multilabel", out=tmp_path / "both", mae_loss=0.5, log_every=1, epochs=1.0, **SHORT
    )
    for line in both.log:
        assert line["loss"] == pytest.approx(line["label_loss"] + 0.5 * line["mae_loss"], rel=1e-4)


def test_arrays(run: Run, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    numbers = images.reshape(40, -1).mean(axis=1)
    tuned = unveil.finetune(run, (images, numbers), task="regression", out=tmp_path / "numbers", epochs=1.0, **SHORT)
    assert tuned.results["trained_on"] == 36
    labels = (numbers[:, None] > [126, 128]).astype(int)
    tuned = unveil.finetune(run, (images, labels), task="multilabel", out=tmp_path / "labels", epochs=1.0, **SHORT)
    assert tuned.results["classes"] == ["0", "1"]


def test_what_cannot_be_learned_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    cases: list[tuple[Any, str, str]] = [
        (str(data / "lists"), "regression", r"has '[a-z|, ]+' in the column labels of labels\.csv, which is not a number"),
        (
            str(data / "lists" / "test"),
            "multilabel",
            r"has no labels for the train set: add a labels\.csv with the columns file,labels",
        ),
        ((images, np.full(40, 3.0)), "regression", r"the numbers of the 36 training images are all the same, or nearly: 3 to 3"),
        ((images, np.zeros((40, 2))), "multilabel", r"no training image has any of the labels 0, 1: there is nothing to learn"),
    ]
    for number, (given, task, reason) in enumerate(cases):
        with pytest.raises(UnveilError, match=reason):
            unveil.finetune(run, given, task=task, out=tmp_path / str(number), epochs=1.0, **SHORT)
    with pytest.raises(UnveilError, match="mixup"):
        unveil.finetune(run, str(data / "lists"), task="multilabel", out=tmp_path / "mixed", mixup=0.8)


@pytest.mark.parametrize("form", ["timm", "onnx", "safetensors"])
def test_exports(form: str, several: Run, counted: Run, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
    for run in (several, counted):
        out = tmp_path / run.path.parent.name / f"model.{form}"
        unveil.export(run, to=form, out=out)
        assert out.exists()
