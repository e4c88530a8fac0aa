"""Runs on data given in Python train the same weights as on a folder, record what it was, and take functions of the user."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import unveil
from unveil.errors import UnveilError

pytestmark = pytest.mark.usefixtures("without_reports")

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (8,),
    "batch_size": 8,
    "epochs": 2.0,
    "device": "cpu",
    "precision": "float32",
    "num_evals": 1,
}
TUNE = {key: TINY[key] for key in ("batch_size", "epochs", "device", "precision", "num_evals")}
COUNT = 40


def negative(images: Tensor) -> Tensor:
    return 1 - images


def noise(images: Tensor) -> Tensor:
    return images + 0.1 * torch.randn_like(images)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, chance = tmp_path_factory.mktemp("python"), np.random.default_rng(0)
    for index in range(COUNT):
        path = root / "images" / ("cat", "dog")[index * 2 // COUNT] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8) // (1 + index * 2 // COUNT)).save(path)
    unveil.pretrain(root / "images", out=root / "folder", **TINY)
    return root


def paths_of(home: Path) -> list[Path]:
    return sorted((home / "images").rglob("*.png"))


def labels_of(home: Path) -> list[str]:
    return [path.parent.name for path in paths_of(home)]


def arrays_of(home: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths_of(home)])


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def same_weights(run: Path, other: Path) -> None:
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_pretraining_and_probes_equal_those_of_a_folder(home: Path, tmp_path: Path) -> None:
    tensors = torch.from_numpy(arrays_of(home)).movedim(-1, 1)
    wanted = unveil.probe(home / "folder", home / "images", kind="knn", device="cpu")
    named = {"list": paths_of(home), "tensor": tensors, "dataset": torch.utils.data.StackDataset(tensors)}  # type: ignore[arg-type]  # as its documentation shows
    for name, data in named.items():
        run = unveil.pretrain(data, labels=labels_of(home), out=tmp_path / name, **TINY)
        same_weights(run.path, home / "folder")
        assert run.results["features"] == unveil.Run(home / "folder").results["features"]
        facts = run.facts["data"]
        assert facts["count"] == COUNT
        assert facts["name"] == name
        assert facts["path"] is None
        assert facts["form"].startswith(("a list of paths", "a tensor", "a Dataset (StackDataset)")[list(named).index(name)])
        with pytest.raises(UnveilError, match=r"was trained on a .*, which it does not record: give DATA as the second argument"):
            unveil.probe(run, kind="knn")
        found = unveil.probe(run, data, labels=labels_of(home), kind="knn", device="cpu")
        assert found["score"] == wanted["score"]
        assert found["top1"] == wanted["top1"]


def test_resuming_needs_the_same_images_and_labels(home: Path, tmp_path: Path) -> None:
    paths, labels, out = paths_of(home), labels_of(home), tmp_path / "run"
    unveil.pretrain(paths, labels=labels, out=out, **TINY)
    (out / "results.json").unlink()
    others = [(paths[::-1], labels), (paths, ["x", *labels[1:]]), (paths[1:], labels[1:]), (list(arrays_of(home)), labels)]
    for data, given in others:
        with pytest.raises(UnveilError, match="is a run with different settings:\n  data: "):
            unveil.pretrain(data, labels=given, out=out, **TINY)
    assert unveil.pretrain(paths, labels=labels, out=out, **TINY).results


def test_finetuning_predicting_and_embedding(home: Path, tmp_path: Path) -> None:
    paths, labels = paths_of(home), labels_of(home)
    splits = ["test" if index % 4 == 0 else "train" for index in range(COUNT)]
    for path, split in zip(paths, splits, strict=True):
        copy = tmp_path / "split" / split / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    wanted = unveil.finetune(home / "folder", tmp_path / "split", out=tmp_path / "a", **TUNE)
    found = unveil.finetune(home / "folder", paths, labels=labels, split=splits, out=tmp_path / "b", **TUNE)
    same_weights(wanted.path, found.path)
    assert found.results["score"] == wanted.results["score"]
    few = unveil.finetune(home / "folder", (paths, labels), labels=10, out=tmp_path / "c", **TUNE)
    assert few.results["trained_on"] + few.results.get("validated_on", 0) <= 10
    tested = unveil.probe(
        home / "folder", (paths[:30], labels[:30]), test=(paths[20:], labels[20:]), kind="knn", out=tmp_path / "probe", device="cpu"
    )
    assert json.loads((tmp_path / "probe" / "results.json").read_text())["data"]["test_count"] == 20
    assert tested["data"]["form"] == "a list of paths"
    of_paths, of_arrays, of_folder = (
        unveil.predict(found, data, device="cpu") for data in (paths, arrays_of(home), home / "images")
    )
    assert np.array_equal(of_paths.probabilities, of_folder.probabilities)  # type: ignore[union-attr]
    assert np.array_equal(of_arrays.probabilities, of_folder.probabilities)  # type: ignore[union-attr]
    for name, data in (("a.npz", arrays_of(home)), ("b.npz", home / "images")):
        given: dict[str, Any] = {"labels": labels} if name == "a.npz" else {}
        unveil.embed(home / "folder", data, out=tmp_path / name, device="cpu", **given)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["embedding"], b["embedding"])
        assert a["label"].tolist() == b["label"].tolist()


def test_the_doctor_takes_a_list_with_splits(home: Path, tmp_path: Path) -> None:
    paths = [*paths_of(home), paths_of(home)[0]]
    found = unveil.doctor(paths, split=["train"] * COUNT + ["test"], out=tmp_path / "doctor", device="cpu")
    assert found.of("leak")


def test_shared_images_of_lists_are_noticed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, labels = paths_of(home), labels_of(home)
    unveil.probe(home / "folder", home / "images", test=(paths[10:30], labels[10:30]), kind="knn", out=tmp_path / "p", device="cpu")
    assert "20 of 20 test images are trained on as well: the results are too good" in " ".join(capsys.readouterr().err.split())


def test_a_function_of_the_user(home: Path, tmp_path: Path) -> None:
    """Its effect is exact: on the negatives of all images, the negative trains what the identity trains on the images."""
    arrays = arrays_of(home)
    options = {**TINY, "crop": "none"}
    run = unveil.pretrain(arrays, out=tmp_path / "own", augment=negative, **options)
    unveil.pretrain(255 - arrays, out=tmp_path / "negatives", **options)
    plain = unveil.pretrain(arrays, out=tmp_path / "plain", **options)
    a, b, c = (weights(folder) for folder in (run.path, tmp_path / "negatives", plain.path))
    error, effect = (max(float((a[name] - other[name]).abs().max()) for name in a) for other in (b, c))
    assert error < effect / 20  # 1 - x / 255 and (255 - x) / 255 are rounded differently
    assert run.log[-1]["loss"] == pytest.approx(unveil.Run(tmp_path / "negatives").log[-1]["loss"], rel=1e-5)
    assert run.log[-1]["loss"] != pytest.approx(plain.log[-1]["loss"], rel=1e-3)
    assert run.config["augment"] == f"own code: {__name__}.negative"
    assert "augment" not in plain.config
    with pytest.raises(UnveilError, match=r"is a run with augment=.*negative, own code, which run.json cannot hold: resume it"):
        unveil.pretrain(arrays, out=tmp_path / "own", **options)
    with pytest.raises(UnveilError, match=r"is a run with augment=.*negative, own code"):
        unveil.pretrain(arrays, out=tmp_path / "new", resume_from=tmp_path / "own", **options)
    with pytest.raises(UnveilError, match=r"config augment: was 'own code: .*negative', is 'own code: .*noise'"):
        unveil.pretrain(arrays, out=tmp_path / "own", augment=noise, **options)
    assert unveil.pretrain(arrays, out=tmp_path / "own", augment=negative, **options).results


def test_its_random_numbers_do_not_depend_on_microbatches(home: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        unveil.pretrain(paths_of(home), out=tmp_path / str(count), augment=noise, accum_steps=count, **TINY)
    a, b = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


@pytest.mark.parametrize("method", ["dino", "mocov3", "simmim", "supervised"])
def test_every_method_takes_it(home: Path, tmp_path: Path, method: str) -> None:
    calls = []

    def count(images: Tensor) -> Tensor:
        calls.append(tuple(images.shape))
        assert 0 <= images.min() <= images.max() <= 1
        return images

    options = {**TINY, "epochs": 1.0} | ({"patch_size": (2,)} if method == "simmim" else {})
    unveil.pretrain(paths_of(home), method=method, labels=labels_of(home), out=tmp_path / "run", augment=count, **options)
    assert calls
    assert all(shape[1] == 3 for shape in calls)


def test_finetuning_takes_it(home: Path, tmp_path: Path) -> None:
    run = unveil.finetune(home / "folder", home / "images", out=tmp_path / "run", augment=noise, **TUNE)
    assert run.config["augment"] == f"own code: {__name__}.noise"
    with pytest.raises(UnveilError, match=r"is a run with augment=.*noise, own code"):
        unveil.finetune(home / "folder", home / "images", out=tmp_path / "run", **TUNE)
    with pytest.raises(UnveilError, match=r"returned images \(\d+, 1, 16, 16\) on cpu for images \(\d+, 3, 16, 16\)"):
        unveil.finetune(home / "folder", home / "images", out=tmp_path / "wrong", augment=lambda x: x[:, :1], **TUNE)
