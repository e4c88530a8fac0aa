"""Segmentation from files to predictions: training, exact resume, evaluation at the original size, folders of masks, ONNX."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

import unveil
from tests.processes import Command
from unveil.data.images import read_image
from unveil.data.rle import encoded
from unveil.errors import UnveilError
from unveil.runs.folder_job import relative_names
from unveil.tasks.segment import Segment
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

TINY = {"model": "vit-nano", "image_size": (16,), "patch_size": (4,), "batch_size": 8, "epochs": 1.0, "device": "cpu"}
TUNE: dict[str, Any] = {
    "task": "segment",
    "head": "linear",
    "reduce_zero": True,
    "batch_size": 4,
    "epochs": 6.0,
    "base_lr": 0.1,
    "layer_decay": 1.0,
    "device": "cpu",
    "precision": "float32",
}
NAMES = ("ground", "square", "disc")


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, and a mask with 0 for its border ("other"), 1 ground, 2 a square, 3 a disc."""
    chance = np.random.default_rng(seed)
    mask = np.ones((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    top, left, y, x = (*chance.integers(0, height // 2, 1), *chance.integers(0, width // 3, 1), height * 0.6, width * 0.7)
    mask[top : top + height // 3, left : left + width // 3] = 2
    mask[(rows - y) ** 2 + (columns - x) ** 2 < (height / 4) ** 2] = 3
    mask[:, :2] = 0
    colours = np.array([[0, 0, 0], [60, 60, 60], [230, 60, 60], [60, 60, 230]])
    image = (colours[mask] + chance.integers(-20, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return image, mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ADE20K's layout, images of many sizes, grey ones and palettes among them, pixels without a class, and a broken file."""
    folder = tmp_path_factory.mktemp("segment") / "ade"
    for split, count in (("training", 10), ("validation", 4)):
        for i in range(count):
            image, mask = scene(i + 100 * count, 20 + 5 * (i % 4), 32 - 3 * (i % 3))
            mask[-1, 4:8] = 255
            for kind, picture, end in (("images", image, "png"), ("annotations", mask, "png")):
                path = folder / kind / split / f"scene {i}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                found = Image.fromarray(picture)
                if kind == "annotations" and i % 2:
                    found.putpalette([0, 0, 0, 90, 90, 90, 200, 0, 0, 0, 0, 200] + [0, 0, 0] * 252)
                found.save(path)
    (folder / "images" / "validation" / "scene 9.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Image.fromarray(mask).save(folder / "annotations" / "validation" / "scene 9.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return folder


@pytest.fixture(scope="module")
def source(data: Path) -> Run:
    return unveil.pretrain(str(data / "images" / "training"), out=data.parent / "run", **TINY)


@pytest.fixture(scope="module")
def run(source: Run, data: Path) -> Run:
    return unveil.finetune(source.path, str(data), out=data.parent / "segment", **TUNE)


def test_it_learns_and_is_judged_at_the_original_size(run: Run, data: Path) -> None:
    score = run.results["score"]
    assert run.results["classes"] == list(NAMES)
    assert run.results["trained_on"] == 10
    assert run.results["unreadable"] == {"train": 0, "test": 1}
    model = unveil.load(run.path)
    true, predicted = [], []
    for i in range(4):
        path = data / "images" / "validation" / f"scene {i}.png"
        (found,) = model.predict_images([path])
        mask = np.asarray(Image.open(data / "annotations" / "validation" / path.name))
        assert found.shape == mask.shape
        known = (mask != 0) & (mask != 255)
        true.append(mask[known] - 1)
        predicted.append(found[known])
    table = confusion_matrix(np.concatenate(true), np.concatenate(predicted), labels=range(3))
    assert score["confusion"] == table.tolist()
    ious = np.diag(table) / (table.sum(axis=0) + table.sum(axis=1) - np.diag(table))
    assert score["mean_iou"] == pytest.approx(ious.mean())
    assert score["mean_iou"] > 0.4  # all ground has 0.2
    samples = np.load(run.path / "maps.npz")
    assert samples["worst"].tolist() == [False] * 4 + [True] * 4
    assert (np.diff(samples["scores"][4:]) >= 0).all()


def test_a_stopped_run_ends_with_the_same_weights(run: Run, source: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, steps = data.parent / "stopped", Segment.forward, []

    def stop(self: Segment, batch: Any) -> Any:
        steps.append(1)
        if len(steps) == 7:
            raise OSError("stopped")
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "forward", stop)
        with pytest.raises(OSError, match="stopped"):
            unveil.finetune(source.path, str(data), out=out, save_seconds=0.0, **TUNE)
    assert Run(out).checkpoints().steps()
    again = unveil.finetune(source.path, str(data), out=out, save_seconds=0.0, **TUNE)
    first, second = (unveil.load(each.path).state_dict() for each in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.results["score"] == run.results["score"]


def test_masks_are_those_of_the_training_data(run: Run, data: Path) -> None:
    out = data.parent / "maps"
    found = unveil.predict(run.path, str(data / "images" / "validation"), out=out, device="cpu")
    assert found == out
    pairs = [f"{kind}/scene {i}.{end}" for i in range(4) for kind, end in (("masks", "png"), ("overlays", "jpg"))]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == sorted(
        ["classes.csv", "skipped.txt", *pairs]
    )
    assert "scene 9.png" in (out / "skipped.txt").read_text()
    with (out / "classes.csv").open() as file:
        assert [list(row.values()) for row in csv.DictReader(file)] == [
            ["1", "ground", "90", "90", "90"],
            ["2", "square", "200", "0", "0"],
            ["3", "disc", "0", "0", "200"],
        ]
    maps = unveil.predict(run.path, str(data / "images" / "validation"), device="cpu")
    assert maps.names == [f"scene {i}.png" for i in range(4)]
    assert list(maps.skipped) == ["scene 9.png"]
    for i, classes in enumerate(maps):
        mask = Image.open(out / "masks" / f"scene {i}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), classes + 1)  # 0 was taken away for the training, and is added again
        overlay = np.asarray(Image.open(out / "overlays" / f"scene {i}.jpg")).astype(int)
        image = np.asarray(Image.open(data / "images" / "validation" / f"scene {i}.png")).astype(int)
        wanted = (image + np.array([[90, 90, 90], [200, 0, 0], [0, 0, 200]])[classes] + 1) // 2
        assert np.abs(overlay - wanted).mean() < 12
    with pytest.raises(UnveilError, match="exists, and is not overwritten"):
        unveil.predict(run.path, str(data / "images" / "validation"), out=out, device="cpu")


def test_a_stopped_prediction_goes_on(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out, real, seen = str(data / "images"), data.parent / "again", Segment.predict, []

    def stop(self: Segment, batch: Any) -> Any:
        seen.append(1)
        if len(seen) == 6:
            raise OSError("stopped")
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "predict", stop)
        with pytest.raises(OSError, match="stopped"):
            unveil.predict(run.path, images, out=out, device="cpu", overlays=False)
    assert not out.exists()
    with pytest.raises(UnveilError, match=r"was begun with --overlays False, not True"):
        unveil.predict(run.path, images, out=out, device="cpu")
    done = len(list((out.with_name("again.unfinished") / "files").rglob("*.png")))
    assert done == 5
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "predict", lambda self, batch: seen.append(1) or real(self, batch))
        unveil.predict(run.path, images, out=out, device="cpu", overlays=False)
    assert len(seen) == 14 - done
    assert len(list((out / "masks").rglob("*.png"))) == 14
    assert not (out / "overlays").exists()
    assert not out.with_name("again.unfinished").exists()


def test_options_that_do_not_fit(run: Run, data: Path, tmp_path: Path) -> None:
    images = str(data / "images" / "validation")
    for options, message in (
        ({"out": tmp_path / "x.csv"}, "x.csv is a table"),
        ({"top_k": 2}, "top_k is 2, but"),
        ({"scores": True}, "scores is on, but"),
        ({"batch_size": 8}, "takes one whole image at a time"),
    ):
        with pytest.raises(UnveilError, match=message):
            unveil.predict(run.path, images, device="cpu", **options)
    assert list(tmp_path.iterdir()) == []


def test_another_test_set_must_have_the_same_classes(source: Run, data: Path, tmp_path: Path) -> None:
    for kind in ("images", "annotations"):
        (tmp_path / "other" / kind).mkdir(parents=True)
        for i in range(3):
            name = f"scene {i}.png"
            (tmp_path / "other" / kind / name).write_bytes((data / kind / "validation" / name).read_bytes())
    (tmp_path / "other" / "classes.txt").write_text("square\nground\ndisc\n")
    with pytest.raises(UnveilError, match=r"have the value 1 for the class 'square', but .* has the value 2 for it: give both"):
        unveil.finetune(source.path, str(data), test=str(tmp_path / "other"), out=tmp_path / "run", **TUNE)
    assert not (tmp_path / "run").exists()


def test_masks_of_objects(source: Run, tmp_path: Path) -> None:
    """Images with objects of two classes, in an order of ids that is another than that of names."""
    entries, listed = [], []
    for i in range(4):
        image, mask = scene(i, 24, 32)
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"data/images/{i}.png")
        listed.append({"id": i, "file_name": f"{i}.png", "height": 24, "width": 32})
        for value, category in ((3, 5), (2, 9)):
            pixels = mask == value
            rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            (segment,) = encoded(pixels[None])
            entry = {"id": len(entries) + 1, "image_id": i, "category_id": category, "bbox": box, "segmentation": segment}
            entries.append(entry | {"area": int(pixels.sum()), "iscrowd": 0})
    categories = [{"id": 5, "name": "disc"}, {"id": 9, "name": "square"}]
    content = {"images": listed, "annotations": entries, "categories": categories}
    (tmp_path / "data/annotations.json").write_text(json.dumps(content))
    data, options = str(tmp_path / "data"), TUNE | {"reduce_zero": False, "epochs": 1.0}
    with pytest.raises(UnveilError, match="With --instances, the masks of objects"):
        unveil.finetune(source.path, data, test=data, out=tmp_path / "run", **options)
    found = unveil.finetune(source.path, data, test=data, out=tmp_path / "run", instances=True, **options)
    assert 0 < found.results["score"]["mean_iou"] <= 1
    assert found.config["instances"] is True
    assert unveil.load(found.path).classes == ["background", "disc", "square"]
    unveil.predict(found.path, data, out=tmp_path / "maps", device="cpu", overlays=False)
    legend = list(csv.DictReader((tmp_path / "maps/classes.csv").open()))
    assert [(row["value"], row["class"]) for row in legend] == [("0", "background"), ("1", "disc"), ("2", "square")]


@pytest.mark.parametrize("options", [{"inference": "whole"}, {"resize": "none"}, {"head": "upernet", "auxiliary": 0.0}])
def test_other_ways_from_scratch(options: dict[str, Any], source: Run, data: Path, tmp_path: Path) -> None:
    found = unveil.finetune(source.path, str(data), out=tmp_path / "run", scratch=True, **(TUNE | {"epochs": 1.0} | options))
    assert 0 < found.results["score"]["mean_iou"] <= 1
    again = unveil.load(found.path)
    assert not any("auxiliary" in name for name, _ in again.named_parameters())  # they would get no gradient
    image = read_image(data / "images" / "validation" / "scene 3.png")
    (first,) = again.predict_images([image])
    assert first.shape == image.shape[:2]
    large = np.tile(image, (3, 2, 1))  # the pixels of a larger image are as large, if images are not resized
    (second,) = again.predict_images([large])
    assert second.shape == large.shape[:2]
    assert found.config["reduce_zero"] is True
    if options.get("inference") == "whole":
        with pytest.raises(UnveilError, match=r"a graph has one size of images.*use --to safetensors"):
            unveil.export(found.path, to="onnx", out=tmp_path / "model.onnx")


def test_pairs_of_arrays(source: Run, tmp_path: Path) -> None:
    pairs = [scene(i, 20, 24) for i in range(12)]
    images, maps = (np.stack(each) for each in zip(*pairs, strict=True))
    options = TUNE | {"reduce_zero": False, "epochs": 1.0}
    found = unveil.finetune(source.path, (images, maps), out=tmp_path / "run", validation=0.2, num_evals=2, **options)
    assert found.results["classes"] == ["0", "1", "2", "3"]
    assert found.results["validation"]["metric"] == "mean_iou"
    assert found.results["validated_on"] == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_onnx_gives_the_same_maps_from_the_file_on(run: Run, data: Path, tmp_path: Path) -> None:
    import onnxruntime

    lines: list[str] = []
    path = unveil.export(run.path, to="onnx", out=tmp_path / "model.onnx", say=lines.append)
    assert any("agrees on the class maps of image files" in line for line in lines)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = json.loads((tmp_path / "config.json").read_text())
    assert (facts["outputs"], facts["window"], facts["stride"], facts["values"]) == (["scores"], [16, 16], [11, 11], [1, 2, 3])
    image = read_image(data / "images" / "validation" / "scene 2.png")  # 30 x 26: written out from the facts alone
    scale = min(facts["window"]) / min(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    normalised = ((small * facts["rescale_factor"] - facts["mean"]) / facts["std"]).transpose(2, 0, 1).astype(np.float32)
    sums, counts = np.zeros((3, *small.shape[:2])), np.zeros(small.shape[:2])
    for top in sorted({0, small.shape[0] - 16}):
        for left in sorted({0, small.shape[1] - 16}):
            window = normalised[None, :, top : top + 16, left : left + 16]
            sums[:, top : top + 16, left : left + 16] += session.run(None, {"images": window})[0][0]
            counts[top : top + 16, left : left + 16] += 1
    mean = torch.from_numpy(sums / counts)[None]
    classes = torch.nn.functional.interpolate(mean, image.shape[:2], mode="bilinear")[0].argmax(dim=0).numpy()
    (wanted,) = unveil.load(run.path).predict_images([image])
    assert (classes == wanted).mean() > 0.98


@pytest.mark.slow
def test_two_processes_write_the_same_folder(run: Run, data: Path, tmp_path: Path) -> None:
    folders = []
    for processes in (1, 2):
        folders.append(tmp_path / str(processes))
        words = ["predict", str(run.path), str(data / "images"), "--device", "cpu", "--out", str(folders[-1])]
        command = Command(words, processes)
        text = command.communicate()[0]
        assert command.returncode == 0, text
    first, second = ({path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()} for each in folders)
    assert len(first) == 30
    assert first == second


def test_names_of_files_are_unique_and_stay_inside() -> None:
    assert relative_names(["a/1.jpg", "a/1.png", "b/1.jpg"]) == ["a/1.jpg", "a/1.png", "b/1"]
    assert relative_names(["/home/me/x/1.jpg", "/home/me/y/1.jpg"]) == ["x/1", "y/1"]
    assert relative_names(["/home/me/1.jpg", "/home/me/1.jpg"]) == ["1.jpg", "1.jpg-2"]
    assert relative_names(["../../etc/passwd", "."]) == ["etc/passwd", "image"]
    assert relative_names(["image-000001", "image-000002"]) == ["image-000001", "image-000002"]
