"""`unveil probe --corrupt`: its errors against the image files, Pillow, the package and the saved probe by hand."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tests.evaluate.test_corruptions import by_hand, photo
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.evaluate import corruption_errors
from unveil.evaluate.corruption_workers import Corrupted, CorruptionWorkers
from unveil.evaluate.corruptions import CORRUPTIONS, SEVERITIES, Pixels

TINY: dict[str, Any] = {"model": "vit-nano", "image_size": 32, "patch_size": 8, "epochs": 1.0, "batch_size": 8, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("without_reports")
EXACT: dict[str, Any] = {"device": "cpu", "precision": "float32"}
CHECKED = [name for name in CORRUPTIONS if name != "glass_blur"]  # whose function takes seconds to compile in this process


class Unchanged(CorruptionWorkers):
    """Does not corrupt anything."""

    def __enter__(self) -> "Unchanged":
        return self

    def corrupted(self, images: Iterable[tuple[int, Pixels]]) -> Iterator[Corrupted]:
        return (Corrupted(key, image, np.broadcast_to(image, (15, 5, *image.shape))) for key, image in images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, with stripes in one of two directions that begin anywhere."""
    root = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for label in ("across", "down"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                stripes = (60 * ((np.arange(52) + chance.integers(12)) // 6 % 2)).astype(np.uint8)
                stripes = stripes[:, None, None] if label == "across" else stripes[None, :44, None]
                pixels = (
                    photo(52, 44, seed=int(chance.integers(9))) // 4 + stripes + chance.integers(0, 99, (52, 44, 3), dtype=np.uint8)
                )
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    unveil.pretrain(folder, out=out, **TINY, num_evals=0)
    return out


def test_errors_from_the_files_on(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe"
    results = unveil.probe(run, folder, out=out, corrupt=True, seed=3, **EXACT)
    facts = results["corruptions"]
    assert json.loads((out / "results.json").read_text())["corruptions"] == facts
    assert facts["images"] == 6
    assert facts["baseline"] == "raw pixels"
    assert facts["clean_error"] == pytest.approx({name: 1 - top1 for name, top1 in results["top1"].items()})
    task, paths = unveil.load(out).eval(), sorted((folder / "test").rglob("*.png"))
    vit = task.encoder.config
    assert vit.crop_pct == 0.875
    names = results["classes"]
    table = np.zeros((14, 5))
    for key, path in enumerate(paths):  # the index of an image in its folder
        image = Image.open(path)
        short = int(32 / 0.875)
        width, height = image.size
        size = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
        left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))[top : top + 32, left : left + 32]
        versions = [[by_hand(pixels, name, severity, 3, key) for severity in SEVERITIES] for name in CHECKED]
        batch = torch.from_numpy(np.array(versions).reshape(70, 32, 32, 3)).permute(0, 3, 1, 2)
        images = unveil.normalise(batch, vit.mean, vit.std)
        with torch.no_grad():
            scores = task.predict(Batch(images, torch.full((70, 2), 32), torch.arange(70)))
        wrong = scores.argmax(dim=1) != names.index(path.parent.name)
        table += wrong.reshape(14, 5).numpy() / len(paths)
    assert [facts["errors"]["encoder"][name] for name in CHECKED] == [pytest.approx(row.tolist()) for row in table]
    own, base = (np.array(list(facts["errors"][name].values())) for name in ("encoder", "raw pixels"))
    assert facts["mean_error"]["encoder"] == pytest.approx(own.mean())
    assert facts["mce"]["encoder"] == pytest.approx((own.sum(axis=1) / base.sum(axis=1)).mean())
    shown = capsys.readouterr()
    assert "Classifying 450 corrupted images of 6 test images by each of 3 probes" in " ".join(shown.err.split())
    assert "gaussian noise" in shown.out
    assert "gaussian noise" in results._repr_html_()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "knn", "whiten": True, "neighbours": 3, "corrupt_images": 4},
        {"kind": "partial", "blocks": 1.0, "epochs": 1.0, "batch_size": 12},
        {"protocol": "sgd", "epochs": 1.0, "compare": False},
    ],
)
def test_other_probes(run: Path, folder: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each classifies images as the probe itself has done, if they are not corrupted."""
    monkeypatch.setattr(corruption_errors, "CorruptionWorkers", Unchanged)
    results = unveil.probe(run, folder, out=tmp_path / "probe", corrupt=True, **options, **EXACT)
    facts = results["corruptions"]
    assert facts["images"] == options.get("corrupt_images", 6)
    if facts["images"] == 6:
        assert facts["clean_error"] == pytest.approx({name: 1 - top1 for name, top1 in results["top1"].items()})
    assert facts["mean_error"] == pytest.approx(facts["clean_error"])
    baseline = {"knn": "raw pixels", "partial": "untrained"}.get(options.get("kind", ""))
    assert facts.get("baseline") == baseline
    assert ("mce" in facts) == (baseline is not None)


def test_what_is_refused_before_training(run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.runs.probing.fit_logistic", lambda *args, **kwargs: pytest.fail("trained"))
    for says, options in {
        "corrupt_images is 3, but no image is corrupted: add --corrupt": {"corrupt_images": 3},
        "--corrupt-images is 7, but there are 6 labelled test images": {"corrupt": True, "corrupt_images": 7},
    }.items():
        with pytest.raises(UnveilError, match=says):
            unveil.probe(run, folder, out=tmp_path / "probe", **options, **EXACT)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UnveilError, match="needs the package imagecorruptions-imaug"):
        unveil.probe(run, folder, out=tmp_path / "probe", corrupt=True, **EXACT)
