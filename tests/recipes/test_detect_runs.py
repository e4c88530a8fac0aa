"""Detection from files to predictions: training, exact resume, evaluation at the original size, folders of detections."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import unveil
from unveil.data.augment import AugmentConfig
from unveil.data.rle import decoded, encoded
from unveil.data.sources import open_roles
from unveil.data.targets import BoxTargets
from unveil.errors import UnveilError
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.runs.box_samples import true_objects
from unveil.tasks.detect import Detect, DetectConfig
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

TINY = {"model": "vit-nano", "image_size": (32,), "patch_size": (4,), "batch_size": 8, "epochs": 1.0, "device": "cpu"}
TUNE: dict[str, Any] = {
    "task": "detect",
    "channels": 16,
    "box_width": 32,
    "samples": 16,
    "proposals": 50,
    "scales": (0.9, 1.1),
    "batch_size": 4,
    "epochs": 5.0,
    "base_lr": 0.4,
    "layer_decay": 1.0,
    "device": "cpu",
    "precision": "float32",
}
SMALL: dict[str, Any] = {"channels": 16, "box_convs": 0, "mask_convs": 1, "box_width": 32}
VIT = ViTConfig(image_size=(32, 32), patch_size=(4, 4), width=24, depth=2, heads=2)
CATEGORIES = [{"id": 5, "name": "disc"}, {"id": 17, "name": "square"}]


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image with a square and a disc, and their annotations."""
    chance = np.random.default_rng(seed)
    image = np.full((height, width, 3), 70) + chance.integers(-15, 15, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    found = []
    for category, colour, left in ((17, (230, 60, 60), 2), (5, (60, 60, 230), width // 2)):
        side = int(chance.integers(height // 3, height // 2))
        top, left = int(chance.integers(1, height - side)), left + int(chance.integers(0, 3))
        mask = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        if category == 5:
            mask &= (rows + 0.5 - top - side / 2) ** 2 + (columns + 0.5 - left - side / 2) ** 2 < side**2 / 4
        image[mask] = colour
        y, x = np.nonzero(mask)
        box = [int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)]
        found.append(
            {"category_id": category, "bbox": box, "area": int(mask.sum()), "iscrowd": 0, "segmentation": encoded(mask[None])[0]}
        )
    return image.clip(0, 255).astype(np.uint8), found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout, images of several sizes, one without objects, a crowd in the test set, and a broken file."""
    folder = tmp_path_factory.mktemp("detect") / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", 12), ("val", 4)):
        (folder / split).mkdir()
        images, annotations = [], []
        for i in range(count + (split == "val")):
            image, objects = scene(i + 100 * count, 30 + 3 * (i % 4), 44 - 4 * (i % 3))
            if split == "train" and i == 0:
                objects = []
            if split == "val" and i == 2:
                objects[1]["iscrowd"] = 1
            name = f"{i} scene.png"
            Image.fromarray(image).save(folder / split / name)
            if i == count:
                (folder / split / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing")
            images.append({"id": 1000 + i, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            annotations += [{"id": 10 * i + j, "image_id": 1000 + i, **each} for j, each in enumerate(objects, 1)]
        whole = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def source(data: Path) -> Run:
    return unveil.pretrain(str(data / "train"), out=data.parent / "run", **TINY)


@pytest.fixture(scope="module")
def run(source: Run, data: Path) -> Run:
    return unveil.finetune(source.path, str(data), out=data.parent / "detect", **TUNE | {"epochs": 20.0})


def test_it_learns_and_pycocotools_gives_the_same_numbers(run: Run, data: Path) -> None:
    score = run.results["score"]
    assert run.results["primary"] == "mask_ap"
    assert run.results["classes"] == ["disc", "square"]
    assert (run.results["trained_on"], run.results["unreadable"]) == (12, {"train": 0, "test": 1})
    truth = COCO(str(data / "annotations" / "instances_val.json"))
    found = truth.loadRes(str(run.path / "predictions.json"))
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        judge = COCOeval(truth, found, kind)
        judge.params.imgIds = [1000, 1001, 1002, 1003]  # the last one cannot be read
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for key, value in zip(("ap", "ap50", "ap75"), judge.stats, strict=False):
            assert score[f"{name}_{key}"] == pytest.approx(value, abs=1e-9), key
    assert score["box_ap50"] > 0.2
    assert score["mask_ap50"] > 0.2
    assert np.array(score["confusion"]).shape == (3, 3)
    samples = np.load(run.path / "boxes.npz")
    assert samples["true"].shape == samples["predicted"].shape
    assert samples["worst"].sum() >= 1
    assert samples["classes"].shape == (len(samples["true"]), 2)
    assert samples["classes"][0].all()  # a disc and a square


def test_the_page_shows_detections(run: Run) -> None:
    page = unveil.report(run.path).read_text()
    assert "mask AP" in page
    assert "background" in page
    assert "Precision at each recall" in page
    assert "missed" in page


def test_a_stopped_run_ends_with_the_same_weights(source: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TUNE | {"epochs": 2.0, "num_evals": 1, "ema": 0.9}
    whole = unveil.finetune(source.path, str(data), out=tmp_path / "whole", **options)
    real, steps = Detect.forward, []

    def stop(self: Detect, batch: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise OSError("stopped")
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Detect, "forward", stop)
        with pytest.raises(OSError, match="stopped"):
            unveil.finetune(source.path, str(data), out=tmp_path / "run", save_seconds=0.0, **options)
    assert Run(tmp_path / "run").checkpoints().steps()
    (found,) = unveil.load(tmp_path / "run").predict_images([scene(1, 30, 30)[0]])  # the average of an unfinished run
    assert found.boxes.shape[1] == 4
    again = unveil.finetune(source.path, str(data), out=tmp_path / "run", save_seconds=0.0, **options)
    first, second = (unveil.load(each.path).state_dict() for each in (whole, again))
    assert first.keys() == second.keys()
    assert not any(name.startswith("average") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_predictions_are_those_of_the_evaluation(run: Run, data: Path, tmp_path: Path) -> None:
    out = unveil.predict(run.path, str(data / "val"), out=tmp_path / "found", device="cpu")
    dataset = COCO(str(out / "detections.json"))
    written = json.loads((run.path / "predictions.json").read_text())
    by_name = {image["file_name"].rpartition("/")[2]: image["id"] for image in dataset.dataset["images"]}
    assert sorted(by_name) == [f"{i} scene.png" for i in range(4)]
    for i in range(4):
        expected = [each for each in written if each["image_id"] == 1000 + i]
        found = dataset.loadAnns(dataset.getAnnIds(imgIds=by_name[f"{i} scene.png"]))
        assert [(each["category_id"], each["bbox"], each["score"], each["segmentation"]) for each in found] == [
            (each["category_id"], each["bbox"], each["score"], each["segmentation"]) for each in expected
        ]
    assert len(list((out / "overlays").rglob("*.jpg"))) == 4
    assert "4 scene.png" in (out / "skipped.txt").read_text()
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(rows) == len(written)
    model = unveil.load(run.path)
    (one,) = model.predict_images([data / "val" / "0 scene.png"])
    best = max((each for each in written if each["image_id"] == 1000), key=lambda each: each["score"])
    top = int(one.scores.argmax())
    assert float(one.scores[top]) == pytest.approx(best["score"], abs=1e-5)
    assert one.boxes[top].tolist() == pytest.approx(
        [*best["bbox"][:2], best["bbox"][0] + best["bbox"][2], best["bbox"][1] + best["bbox"][3]], abs=2e-3
    )
    assert decoded(one.masks[top], 30, 44).sum() > 20


def test_the_lowest_score(run: Run, data: Path, tmp_path: Path) -> None:
    out = unveil.predict(run.path, str(data / "val"), out=tmp_path / "found", device="cpu", min_score=0.2)
    found = json.loads((out / "detections.json").read_text())["annotations"]
    assert found
    assert min(each["score"] for each in found) >= 0.2
    everything = unveil.predict(run.path, str(data / "val"), device="cpu")
    assert len(found) == sum(int((each.scores >= 0.2).sum()) for each in everything)
    assert sum(len(each.scores) for each in everything) > len(found)
    again = Path(shutil.copytree(data / "val", tmp_path / "again" / "train"))
    shutil.copy(out / "detections.json", tmp_path / "again" / "instances_train.json")
    notes = open_roles(again.parent, targets=BoxTargets).train.notes
    assert any(f"{len(found)} annotations with a score, as predictions have: all are used as objects" in note for note in notes)


def test_images_without_any_object(source: Run, data: Path, tmp_path: Path) -> None:
    whole = json.loads((data / "annotations" / "instances_train.json").read_text())
    (tmp_path / "none" / "annotations").mkdir(parents=True)
    (tmp_path / "none" / "train").symlink_to(data / "train")
    (tmp_path / "none" / "annotations" / "instances_train.json").write_text(json.dumps(whole | {"annotations": []}))
    with pytest.raises(UnveilError, match=r"none of .* training images has an object, so there is nothing to learn"):
        unveil.finetune(source.path, str(tmp_path / "none"), out=tmp_path / "x", **TUNE)
    assert not (tmp_path / "x").exists()


def test_boxes_alone(source: Run, data: Path, tmp_path: Path) -> None:
    boxes = unveil.finetune(source.path, str(data), out=tmp_path / "boxes", masks=False, scratch=True, **TUNE | {"epochs": 1.0})
    assert boxes.results["primary"] == "box_ap"
    assert "mask_ap" not in boxes.results["score"]
    assert all("segmentation" not in each for each in json.loads((boxes.path / "predictions.json").read_text()))


def test_a_frozen_encoder_stays_as_it_is(source: Run, data: Path, tmp_path: Path) -> None:
    frozen = unveil.finetune(source.path, str(data), out=tmp_path / "frozen", masks=False, frozen=True, **TUNE | {"epochs": 1.0})
    first, second = (unveil.load(each.path).encoder.state_dict() for each in (source, frozen))
    assert set(first) - set(second) == {"transformer.norm.weight", "transformer.norm.bias"}  # maps do not go through it
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(("frozen", "window", "bias"), [(False, 14, "decomposed"), (True, 0, "none")])
def test_only_a_trained_encoder_gets_windows(frozen: bool, window: int, bias: str) -> None:
    model = Detect(ViT(replace(VIT, image_size=(136, 32))), ["cell"], DetectConfig(frozen=frozen, **SMALL), AugmentConfig())
    assert (model.encoder.config.window, model.encoder.config.relative_bias) == (window, bias)
    again = Detect(model.encoder, ["cell"], DetectConfig(frozen=frozen, **SMALL), AugmentConfig())  # from a run with windows
    assert again.encoder.config == model.encoder.config


def test_as_many_proposals_as_detections() -> None:
    model = Detect(ViT(VIT), ["cell"], DetectConfig(proposals=50, detections=120, **SMALL), AugmentConfig())
    assert model.detector.config.rpn_after_nms == (120, 120)
    model.set_category_ids({"cell": 7})
    assert model.category_ids.tolist() == [7]


def test_ids_of_categories_that_occur_twice_are_not_used() -> None:
    model = Detect(ViT(VIT), ["cell", "dust"], DetectConfig(**SMALL), AugmentConfig())
    model.set_category_ids({"cell": 4, "dust": 4})
    assert model.category_ids.tolist() == [1, 2]
    model.set_category_ids({"cell": 4, "dust": 3})
    assert model.category_ids.tolist() == [4, 3]


def test_results_have_the_ids_of_the_test_set(source: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations of the test set may number the categories otherwise than those of the train set."""
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "val").symlink_to(data / "val")
    whole = json.loads((data / "annotations" / "instances_val.json").read_text())
    swapped = {5: 17, 17: 5}
    for each in whole["categories"]:
        each["id"] = swapped[each["id"]]
    for each in whole["annotations"]:
        each["category_id"] = swapped[each["category_id"]]
    (other / "annotations" / "instances_val.json").write_text(json.dumps(whole))

    def perfect(self: Detect, batch: Any) -> Any:
        sizes = enumerate(batch.sizes.tolist())
        return [true_objects(batch.targets, row, height, width)._replace(masks=None) for row, (height, width) in sizes]

    monkeypatch.setattr(Detect, "predict", perfect)
    judged = unveil.finetune(source.path, str(data), test=str(other), out=tmp_path / "run", masks=False, **TUNE | {"epochs": 1.0})
    truth = COCO(str(other / "annotations" / "instances_val.json"))
    judge = COCOeval(truth, truth.loadRes(str(judged.path / "predictions.json")), "bbox")
    judge.params.imgIds = [1000, 1001, 1002, 1003]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judged.results["score"]["box_ap"] == pytest.approx(1.0)
    assert judge.stats[0] == pytest.approx(1.0)


def test_large_images_are_computed_in_tiles(run: Run, data: Path) -> None:
    """An image of three scenes side by side has the objects of each."""
    model = unveil.load(run.path)
    assert isinstance(model, Detect)
    parts = [scene(400 + 0, 32, 32)[0], scene(401, 32, 32)[0], scene(402, 32, 32)[0]]
    whole = np.concatenate(parts, axis=1)
    object.__setattr__(model.config, "resize", "none")
    object.__setattr__(model.evaluation, "fit", "pixels")
    (found,) = model.predict_images([whole])
    sure = found.scores > 0.3
    assert sure.sum() >= 3
    assert found.boxes[sure][:, 2].max() > 64
    assert decoded(found.masks[0], 32, 96).shape == (32, 96)


@pytest.mark.parametrize(
    ("options", "sentence"), [({"crop": "clipped"}, "crop clipped is for linear probes"), ({"patch_size": (8, 4)}, "patch")]
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], sentence: str, source: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=sentence):
        unveil.finetune(source.path, str(data), out=tmp_path / "x", **TUNE | options)
    assert not (tmp_path / "x").exists()
