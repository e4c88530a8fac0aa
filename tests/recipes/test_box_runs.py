"""A task with boxes from a file, on COCO json: training, resume, scores, the report, and what the user is told."""

import json
from pathlib import Path

import pytest

import unveil
from tests.data.object_files import annotation, coco, write_image
from tests.recipes.test_unreadable_images import lose_from, same_weights
from unveil.errors import UnveilError
from unveil.train.run_folder import Run

TASK = '''
"""One box for each image: a linear layer on the features."""
from dataclasses import dataclass

import torch
from torch import nn

from unveil.data.augment import Augment
from unveil.data.targets import BoxTargets
from unveil.detection_metrics import DetectionMetric
from unveil.detections import Detections
from unveil.learner import Step, Task


@dataclass(frozen=True, kw_only=True)
class OneBoxConfig:
    """Nothing to choose."""


class OneBox(Task):
    Config = OneBoxConfig
    DEFAULTS = {"epochs": 2.0, "batch_size": 4, "base_lr": 0.1}
    TargetType = BoxTargets

    @classmethod
    def build(cls, encoder, config, augment, classes):
        self, vit = cls(), encoder.config
        self.encoder, self.config, self.classes = encoder, config, classes
        self.head = nn.Linear(vit.width, 4 + len(classes))
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        targets, found = batch.targets, self.head(self.encoder.features(batch.images))
        known = (targets.labels[:, 0] >= 0) & ~targets.crowd[:, 0]
        error = (found[:, :4] - targets.boxes[:, 0] / batch.images.shape[3]).abs().mean(dim=1)
        return Step((error * known).mean(), {})

    def predict(self, batch):
        found = self.head(self.encoder.features(batch.images)).float()
        corners = (found[:, :4] * batch.images.shape[3]).reshape(-1, 2, 2)
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        scores, labels = found[:, 4:].softmax(1).max(1)
        return [Detections(boxes[i : i + 1], scores[i : i + 1], labels[i : i + 1]) for i in range(len(boxes))]

    def metric(self):
        return DetectionMetric(len(self.classes))
'''
TINY = {"model": "vit-nano", "image_size": (16,), "patch_size": (4,), "batch_size": 4, "epochs": 1.0, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "onebox.py").write_text(TASK)
    for split, count in (("train", 12), ("val", 5)):
        entries = [annotation(i, i, (3, 4, 12, 9), (3, 90)[i % 2], iscrowd=int(i == 1)) for i in range(1, count + 1)]
        entries.append(annotation(99, 2, (3, 4, 0, 9)))
        (folder / "data" / split).mkdir(parents=True)
        for i in range(1, count + 1):
            write_image(folder / "data" / split / f"{i}.png", seed=i + 100 * len(split))
        (folder / "data" / f"instances_{split}.json").write_text(json.dumps(coco(entries, count)))
    return folder


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> Run:
    return unveil.pretrain(str(folder / "data" / "train"), out=folder / "run", **TINY)


def test_a_task_with_boxes(folder: Path, pretrained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"task": f"{folder / 'onebox.py'}:OneBox", "device": "cpu", "precision": "float32"}
    whole = unveil.finetune(pretrained.path, str(folder / "data"), out=folder / "whole", **given)
    said = " ".join(capsys.readouterr().err.split())
    assert "instances_train.json has 12 objects, 1 of them crowds in 12 images: dog (6), cat (6)" in said
    assert "left out 1 object: annotation 99 has a bbox without area" in said
    assert "left out 1 training image with crowds only" in said
    results = json.loads((whole.path / "results.json").read_text())
    assert results["primary"] == "box_ap"
    assert results["classes"] == ["cat", "dog"]
    assert results["score"]["count"] == 5
    assert 0 <= results["score"]["box_ap"] <= 1
    assert len(results["score"]["confusion"]) == 3
    page = (whole.path / "report.html").read_text()
    assert "box AP50" in page
    assert "background" in page


def test_a_run_with_boxes_resumes(folder: Path, pretrained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"task": f"{folder / 'onebox.py'}:OneBox", "device": "cpu", "precision": "float32", "save_seconds": 0.0}

    def stop() -> None:
        raise UnveilError("stopped")

    with monkeypatch.context() as patch:
        lose_from(3, stop, patch)
        with pytest.raises(UnveilError, match="stopped"):
            unveil.finetune(pretrained.path, str(folder / "data"), out=folder / "parts", **given)
    assert not (folder / "parts" / "results.json").exists()
    again = unveil.finetune(pretrained.path, str(folder / "data"), out=folder / "parts", **given)
    assert same_weights(folder / "whole", again.path)


def test_data_without_boxes(folder: Path, pretrained: Run) -> None:
    with pytest.raises(UnveilError, match=r"no boxes in .*: expected annotations in COCO json"):
        unveil.finetune(
            pretrained.path,
            str(folder / "data" / "train"),
            task=f"{folder / 'onebox.py'}:OneBox",
            out=folder / "none",
            device="cpu",
        )
    assert not (folder / "none").exists()
