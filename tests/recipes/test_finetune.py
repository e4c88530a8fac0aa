"""Fine-tuning from a linear probe: what it starts from, what it validates on and chooses, and what it is compared with."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.errors import UnveilError
from unveil.evaluate.logistic import fit_logistic
from unveil.interop.files import read_tensors
from unveil.runs.labelled_images import START_PENALTY
from unveil.tasks.finetune import Finetune
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

SHORT: dict[str, Any] = {"device": "cpu", "precision": "float32", "base_lr": 4e-3}
COLOURS = {"blue": (60, 80, 190), "green": (70, 170, 90), "red": (190, 70, 60)}


def write_images(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Coloured noise of which a tenth has another class's colour, so that no classifier is always right."""
    chance = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            colour = COLOURS[name] if chance.random() > 0.1 else COLOURS["red"]
            pixels = chance.normal(colour, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "colours"
    for seed, (split, count) in enumerate({"train": 24, "val": 10, "test": 10}.items()):
        write_images(folder / split, dict.fromkeys(COLOURS, count), seed)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {"model": "vit-nano", "image_size": 16, "patch_size": 4, "epochs": 1.0, "batch_size": 16, "device": "cpu"}
    return unveil.pretrain(str(data), out=out, **options)


@pytest.fixture(scope="module")
def tuned(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return unveil.finetune(run, out=tmp_path_factory.mktemp("tuned") / "run-finetune", epochs=3.0, batch_size=8, **SHORT)


def features(learner: Any, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    names = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.array(Image.open(name)) for name in names])
    with torch.no_grad():
        rows = learner.features(unveil.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    return rows, torch.tensor([sorted(COLOURS).index(name.parent.name) for name in names])


def test_the_linear_probe_is_a_candidate_and_its_shrunken_form_the_start(run: Run, data: Path, tmp_path: Path) -> None:
    """With a learning rate of 0, the best weights are the probe, and the last ones the start."""
    still = {"base_lr": 0.0, "weight_decay": 0.0}
    rows, labels = features(unveil.load(run), data / "train")
    tested, truth = features(unveil.load(run), data / "test")
    images = unveil.normalise(torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8))
    cases: dict[str, dict[str, Any]] = {"best": {}, "last": {"penalties": (START_PENALTY,)}}
    for name, options in cases.items():
        kept = unveil.finetune(run, out=tmp_path / name, epochs=1.0, validation=None if name == "best" else 0.0, **SHORT | still)
        probe, _ = fit_logistic(rows, labels, sorted(COLOURS), **options)
        scores = probe.logits(tested).detach()
        assert kept.results["score"]["top1"] == pytest.approx(float((scores.argmax(1) == truth).float().mean()))
        with torch.no_grad():
            expected = probe.logits(unveil.load(run).features(images))
            torch.testing.assert_close(unveil.load(kept).logits(images), expected, rtol=1e-3, atol=1e-3)
        best, _ = fit_logistic(rows, labels, sorted(COLOURS))
        right = best.logits(tested).argmax(1) == truth
        assert kept.results["probe"]["top1"] == pytest.approx(float(right.float().mean()))  # also where it is not the start


def test_the_best_checkpoint_is_chosen_on_the_validation_split(tuned: Run, data: Path) -> None:
    results, log = tuned.results, tuned.log
    assert tuned.facts["data"]["splits"]["validation"] == ["val"]
    assert results["validated_on"] == 30
    assert results["score"]["count"] == 30
    logged = {line["step"]: line["top1"] for line in log if "top1" in line}
    chosen = results["validation"]
    assert chosen["value"] >= max(logged.values())
    assert chosen["step"] == 0 or logged[chosen["step"]] == chosen["value"]
    assert chosen["steps_done"] == chosen["steps_planned"] == 27
    model = unveil.load(tuned)
    rows, truth = features(model, data / "val")
    with torch.no_grad():
        assert float((model.head(rows).argmax(1) == truth).float().mean()) == pytest.approx(chosen["value"])
    kept = read_tensors(next((tuned.path / "best").glob("*/model.safetensors")))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_same_results_after_they_were_lost(tuned: Run, run: Run) -> None:
    before = dict(tuned.results)
    for name in ("results.json", "report.html", "model.safetensors"):
        (tuned.path / name).unlink()
    after = unveil.finetune(run, out=tuned.path, epochs=3.0, batch_size=8, **SHORT).results
    for name in ("score", "probe", "validation", "validated_on"):
        assert after[name] == before[name]


def test_a_tenth_is_kept_aside_if_there_is_no_validation_split(run: Run, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"test": str(data / "test"), "epochs": 1.0, "num_evals": 2, **SHORT}
    few = unveil.finetune(run, str(data / "train"), out=tmp_path / "few", **options)
    assert few.results["trained_on"] == 72  # too few to choose on
    assert "validation" not in few.results
    assert not any("top1" in line for line in few.log)  # the test set is not looked at
    some = unveil.finetune(run, str(data / "train"), out=tmp_path / "some", validation=0.25, **options)
    assert (some.results["trained_on"], some.results["validated_on"]) == (54, 18)
    assert some.results["validation"]["metric"] == "top1"
    with pytest.raises(UnveilError, match=r"^validation is 0\.001, but of 72 training images that is no whole image of any class"):
        unveil.finetune(run, str(data / "train"), out=tmp_path / "none", validation=0.001, **options)
    assert not (tmp_path / "none").exists()


def test_patience(run: Run, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 8.0, "batch_size": 8, "num_evals": 24, "patience": 2}
    stopped = unveil.finetune(run, out=tmp_path / "stopped", **options, **SHORT | {"base_lr": 0.0})  # it never becomes better
    chosen = stopped.results["validation"]
    assert (chosen["step"], chosen["steps_done"], chosen["steps_planned"]) == (0, 6, 72)
    assert "stopped early, at step 6" in unveil.report(stopped.path).read_text()
    with pytest.raises(UnveilError, match=r"patience is 2, but there are no images to validate on: add --validation 0\.1"):
        unveil.finetune(run, str(data / "train"), test=str(data / "test"), out=tmp_path / "none", **options, **SHORT)


@pytest.mark.parametrize("cause", ["num_evals is 0", "sharded weights are not evaluated during training"])
def test_the_probe_is_not_kept_where_nothing_is_validated(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cause: str
) -> None:
    """It would be the only candidate for the best weights, so a trained run would end with an untrained encoder."""
    options: dict[str, Any] = {"epochs": 2.0, "batch_size": 8, **SHORT}
    if cause.startswith("num_evals"):
        options["num_evals"] = 0
    else:
        monkeypatch.setattr("unveil.runs.finetuning.is_replicated", lambda *_: False)
    tuned = unveil.finetune(run, out=tmp_path / "tuned", **options)
    assert cause in capsys.readouterr().err
    assert "validation" not in tuned.results
    last = tuned.checkpoints().load(18, "model")
    assert all(torch.equal(value, last[name]) for name, value in unveil.load(tuned).state_dict().items())
    with pytest.raises(UnveilError, match=f"patience is 3, but nothing is validated: {cause}"):
        unveil.finetune(run, out=tmp_path / "patient", patience=3, **options)


def test_the_recipe_of_the_paper_is_that_of_earlier_versions(run: Run, tmp_path: Path) -> None:
    paper = unveil.finetune(run, out=tmp_path / "paper", recipe="paper", epochs=1.0, batch_size=24, device="cpu")
    wanted = {
        "start": "random",
        "fc_norm": True,
        "mixup": 0.8,
        "cutmix": 1.0,
        "base_lr": 1e-3,
        "layer_decay": 0.75,
        "crop_scale": 0.08,
    }
    assert {name: paper.config[name] for name in wanted} == wanted
    assert "validation" not in paper.results
    assert "probe" not in paper.results
    own = unveil.finetune(run, out=tmp_path / "own", recipe="paper", epochs=1.0, batch_size=24, mixup=0.0, device="cpu")
    assert (own.config["mixup"], own.config["cutmix"]) == (0.0, 1.0)


def test_rare_classes_count_as_much(run: Run, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write_images(tmp_path / "rare" / split, {"blue": 60, "green": 6, "red": 6}, seed)
    balanced = unveil.finetune(run, str(tmp_path / "rare"), out=tmp_path / "b", balance=True, epochs=2.0, batch_size=8, **SHORT)
    score = balanced.results["score"]
    assert balanced.results["primary"] == balanced.results["validation"]["metric"] == "balanced_accuracy"
    assert score["balanced_accuracy"] == pytest.approx(np.mean(score["per_class"]))
    task = unveil.load(balanced)
    assert not any("prior" in name for name in task.state_dict())


def test_with_the_loss_of_mae(run: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1.0, "batch_size": 8, "log_every": 1}
    both = unveil.finetune(run, out=tmp_path / "both", mae_loss=0.5, **options, **SHORT)
    for line in both.log:
        assert line["loss"] == pytest.approx(line["class_loss"] + 0.5 * line["mae_loss"], rel=1e-4)
    assert not any(name.startswith("reconstruction") for name in unveil.load(both).state_dict())
    assert isinstance(unveil.load(both), Finetune)


def test_scratch_stands_beside_and_mistakes_are_shown(run: Run, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1.0, "batch_size": 8, **SHORT}
    scratch = unveil.finetune(run, out=tmp_path / f"{run.path.name}-scratch", scratch=True, **options)
    assert 0 <= scratch.results["probe"]["top1"] <= 1  # of the untrained encoder, from which its head starts as well
    tuned = unveil.finetune(run, out=tmp_path / "finetuned", **options)
    page = unveil.report(tuned.path).read_text()
    assert "from scratch</th>" in page
    assert "linear probe</th>" in page
    with (tuned.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = sorted((-float(row["probability"]), row["file"]) for row in rows if row["label"] != row["predicted"])
    shown = np.load(tuned.path / "mistakes.npz")
    assert shown["names"].tolist() == [name for _, name in wrong][:12]
    assert f"<td>{wrong[0][1]}</td>" in page
    assert json.loads((tuned.path / "results.json").read_text())["score"]["reliability"]
