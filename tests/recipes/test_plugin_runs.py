"""Methods and tasks from files outside of the package, from training to every verb, in this process and in others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil import plugins
from unveil.errors import UnveilError
from unveil.train.run_folder import Run

METHOD = '''
"""Predicts the mean colour of each image from all of its patches."""
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from unveil.data.augment import Augment
from unveil.learner import Method, Step
from unveil.models.vit import ViT

(Path(__file__).parent / "imported").touch()  # an import leaves a trace


@dataclass(frozen=True, kw_only=True)
class Options:
    """Any name."""

    weight: float = 2**0.5
    """Factor of the loss."""


class MeanColour(Method):
    Config = Options

    @classmethod
    def build(cls, vit, config, augment):
        self = cls()
        self.config, self.encoder, self.head = config, ViT(vit), nn.Linear(vit.width, vit.channels)
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        error = self.head(self.encoder.features(batch.images)) - batch.images.mean(dim=(2, 3))
        return Step(self.config.weight * error.square().mean(), {})
'''
TASK = '''
"""Linear segmentation: a frozen encoder, and a linear layer on the patch tokens."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from unveil.data.augment import Augment
from unveil.data.targets import PixelTargets
from unveil.learner import Step, Task
from unveil.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Nothing to choose."""


class Segment(Task):
    Config = SegmentConfig
    DEFAULTS = {"epochs": 2.0, "batch_size": 4, "base_lr": 0.1}
    TargetType = PixelTargets

    @classmethod
    def build(cls, encoder, config, augment, classes):
        self, vit = cls(), encoder.config
        self.encoder, self.config, self.classes = encoder.requires_grad_(False), config, classes
        self.head = nn.Linear(vit.width, len(classes))
        self.augmentation = Augment(augment, vit.image_size, vit.mean, vit.std)
        return self

    def forward(self, batch):
        return Step(F.cross_entropy(self.predict(batch).float(), batch.targets.maps, ignore_index=255), {})

    def predict(self, batch):
        (features,) = self.encoder.eval().forward_features(batch.images, (-1,))  # (B, D, h, w)
        scores = self.head(features.movedim(1, -1)).movedim(-1, 1)
        return F.interpolate(scores, batch.images.shape[2:], mode="bilinear")

    def metric(self):
        return MeanIoU(len(self.classes))


class MeanIoU(Metric):
    primary = "mean_iou"

    def __init__(self, classes):
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predictions, targets):
        true, predicted = targets.maps.cpu(), predictions.argmax(dim=1).cpu()
        known, n = true != 255, len(self.confusion)
        self.confusion += torch.bincount(true[known] * n + predicted[known], minlength=n * n).reshape(n, n)

    def compute(self):
        hits = self.confusion.diagonal()
        union = self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - hits
        each = (hits / union).tolist()
        found = [x for x in each if x == x]
        per_class = [x if x == x else None for x in each]
        return {"mean_iou": sum(found) / len(found), "per_class": per_class, "confusion": self.confusion.tolist(), "unit": "pixels"}
'''
TINY = {"model": "vit-nano", "image_size": (16,), "patch_size": (4,), "batch_size": 4, "epochs": 2.0, "device": "cpu"}
EXACT = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a square, and masks that say where it is: of different sizes, with ignored pixels, in train and test splits."""
    folder, generator = tmp_path_factory.mktemp("plugin"), np.random.default_rng(0)
    (folder / "method.py").write_text(METHOD)
    (folder / "segment.py").write_text(TASK)
    for split, count in (("train", 12), ("test", 5)):
        for i in range(count):
            height, width = 18 + i % 3, 24 - i % 4
            pixels = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
            mask = np.zeros((height, width), dtype=np.uint8)
            top, left = generator.integers(0, 8, 2)
            mask[top : top + 9, left : left + 7] = 1
            pixels[mask == 1] += 150
            mask[:, -1] = 255
            for kind, array in (("images", pixels), ("masks", mask)):
                (folder / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / "data" / split / kind / f"{i}.png")
    (folder / "data" / "classes.txt").write_text("ground\nsquare\n")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    images = folder / "data" / "train" / "images"
    return unveil.pretrain(str(images), method=f"{folder / 'method.py'}:MeanColour", out=folder / "run", **TINY)


def other_process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "unveil", *map(str, words)], capture_output=True, text=True, env=environment, check=False
    )


def test_a_method_from_a_file_is_used_by_every_verb(run: Run, folder: Path) -> None:
    method, data = folder / "method.py", folder / "data" / "train" / "images"
    assert run.config["class"] == f"{method}:MeanColour"
    assert run.config["weight"] == 2**0.5
    learner = unveil.load(run.path, trust=method)
    assert type(learner).__name__ == "MeanColour"
    rows = np.load(unveil.embed(run.path, str(data), out=folder / "rows.npz", **EXACT))
    assert rows["embedding"].shape == (12, 96)
    assert unveil.report(run.path).is_file()
    exported = unveil.export(run.path, to="timm", out=folder / "timm")
    assert (exported / "model.safetensors").is_file()
    again = unveil.pretrain(str(data), method=type(learner), out=run.path, **TINY)  # the class itself names the same run
    assert again.results == run.results
    with pytest.raises(UnveilError, match="reconstruct"):
        unveil.reconstruct(run.path, str(data), out=folder / "figure.png")


@pytest.mark.slow
def test_another_process_imports_it_only_if_it_is_trusted(run: Run, folder: Path) -> None:
    trace, method = folder / "imported", folder / "method.py"
    trace.unlink()
    words = ("embed", run.path, folder / "data" / "train" / "images", "--device", "cpu", "--out")
    refused = other_process(*words, folder / "refused.npz")
    assert refused.returncode == 1
    assert not trace.exists()
    assert f"--trust {method}" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    trusted = other_process(*words, folder / "trusted.npz", "--trust", method)
    assert trusted.returncode == 0, trusted.stderr
    assert trace.exists()
    assert np.load(folder / "trusted.npz")["embedding"].shape == (12, 96)


def test_a_file_that_is_gone_is_one_sentence(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = folder / "method.py"
    monkeypatch.setattr(plugins, "_classes", {})
    monkeypatch.setattr(plugins, "_trusted", set())
    for name in [name for name in sys.modules if name.startswith("unveil_plugin_method")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UnveilError, match="is not part of unveil"):
        unveil.load(run.path)
    method.rename(folder / "moved.py")
    try:
        with pytest.raises(UnveilError, match=r"method\.py does not exist.*restore the file"):
            unveil.load(run.path, trust=method)
    finally:
        (folder / "moved.py").rename(method)


def test_a_task_on_pixels_from_a_file(run: Run, folder: Path) -> None:
    task = f"{folder / 'segment.py'}:Segment"
    options = {"task": task, "out": folder / "segment", "crop": "none", "epochs": 20.0, "trust": folder / "method.py", **EXACT}
    finetuned = unveil.finetune(run.path, str(folder / "data"), **options)
    score = finetuned.results["score"]
    assert finetuned.results["primary"] == "mean_iou"
    assert finetuned.results["classes"] == ["ground", "square"]
    assert score["mean_iou"] > 0.6  # all ground has 0.35
    assert not any("mean_iou" in line for line in finetuned.log)  # without images to validate on: the test set is evaluated once
    page = (folder / "segment" / "report.html").read_text()
    assert "square" in page
    assert "Predictions" in page
    samples = np.load(folder / "segment" / "samples.npz")
    assert samples["maps"].shape == samples["predicted"].shape == (5, 16, 16)
    known = samples["maps"] != 255  # eight samples at most are kept: here the whole test set
    hits = [np.sum(known & (samples["maps"] == c) & (samples["predicted"] == c)) for c in (0, 1)]
    union = [np.sum(known & ((samples["maps"] == c) | (samples["predicted"] == c))) for c in (0, 1)]
    assert score["mean_iou"] == pytest.approx(np.mean([h / u for h, u in zip(hits, union, strict=True)]), rel=1e-6)
    loaded = unveil.load(folder / "segment", trust=folder / "segment.py")
    predicted = loaded.predict(type("Batch", (), {"images": torch.from_numpy(samples["images"])})).argmax(dim=1).numpy()
    assert np.array_equal(predicted, samples["predicted"])


def test_pixel_targets_from_memory(run: Run, folder: Path) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    maps = (images[..., 0] > 127).astype(np.int64)
    task = f"{folder / 'segment.py'}:Segment"
    finetuned = unveil.finetune(
        run.path, (images, maps), task=task, out=folder / "memory", epochs=1.0, trust=folder / "method.py", **EXACT
    )
    assert finetuned.results["trained_on"] == 18
    assert 0 <= finetuned.results["score"]["mean_iou"] <= 1
