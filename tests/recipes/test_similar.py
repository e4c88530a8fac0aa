"""`unveil similar` against a search by hand, from the file on."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tests.recipes.test_doctor import photographs, save, snapshot
from unveil.errors import UnveilError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.stack([np.asarray(image.resize((16, 16))) for image in photographs(12)])
    out = tmp_path_factory.mktemp("run") / "run"
    options = {"epochs": 1, "batch_size": 8, "image_size": 16, "patch_size": 4, "held_out": 2, "device": "cpu"}
    return unveil.pretrain(images, model="vit-nano", out=out, **options).path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for index, image in enumerate(photographs(20, seed=5, side=16)):
        save(image, folder / ("train", "val")[index % 2] / ("a", "b, c")[index // 10] / f"{index:02d}.png")
    (folder / "train" / "a" / "broken.png").write_bytes(b"no image")
    return folder


def test_the_nearest_images_are_those_of_a_loop(run: Path, data: Path, tmp_path: Path) -> None:
    before = snapshot(data)
    query = tmp_path / "query.png"
    save(photographs(1, seed=9, side=16)[0], query)
    found = unveil.similar(run, query, data, out=tmp_path / "out", count=7, device="cpu")
    assert snapshot(data) == before
    model = unveil.load(run)
    features = {}
    for path in [query, *sorted(data.rglob("[0-9]*.png"))]:
        batch = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        with torch.no_grad():
            features[path] = model.encoder.features(unveil.normalise(batch))[0].double().numpy()
    own = features.pop(query)
    cosine = {path: float(own @ each / np.linalg.norm(own) / np.linalg.norm(each)) for path, each in features.items()}
    order = sorted(cosine, key=lambda path: -cosine[path])[:7]
    assert [each.path for each in found] == [str(path.relative_to(data)) for path in order]
    assert [each.similarity for each in found] == pytest.approx([cosine[path] for path in order], abs=1e-5)
    assert [each.rank for each in found] == list(range(1, 8))
    assert [(each.split, each.label) for each in found] == [(path.parts[-3], path.parts[-2]) for path in order]
    with (tmp_path / "out" / "similar.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [each.path for each in found]
    assert [row["label"] for row in rows] == [each.label for each in found]
    assert float(rows[0]["similarity"]) == found[0].similarity
    figure = Image.open(tmp_path / "out" / "similar.png")
    assert figure.width > 800


def test_an_image_of_data_is_left_out_but_its_copy_is_found(run: Path, data: Path, tmp_path: Path) -> None:
    image = data / "train" / "a" / "00.png"
    found = unveil.similar(run, [image, data / "val" / "a" / "01.png"], data, out=tmp_path / "out", count=3, device="cpu")
    assert [each.image for each in found] == [str(image)] * 3 + [str(data / "val" / "a" / "01.png")] * 3
    assert "train/a/00.png" not in [each.path for each in found[:3]]
    assert "val/a/01.png" not in [each.path for each in found[3:]]
    copy = tmp_path / "copy.png"
    copy.write_bytes(image.read_bytes())
    (first,) = unveil.similar(run, copy, data, out=tmp_path / "again", count=1, device="cpu")
    assert first.path == "train/a/00.png"
    assert first.similarity == pytest.approx(1, abs=1e-5)
    only = unveil.similar(run, image, data, out=tmp_path / "third", count=100, split="val", device="cpu")
    assert {each.split for each in only} == {""} or {each.split for each in only} == {"val"}
    assert len(only) == 10


def test_what_cannot_be_used_is_refused_in_a_sentence(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"broken.png cannot be used: not an image"):
        unveil.similar(run, data / "train" / "a" / "broken.png", data, out=tmp_path / "out", device="cpu")
    (tmp_path / "there").mkdir()
    with pytest.raises(UnveilError, match=r"there exists, and is not overwritten"):
        unveil.similar(run, data / "train" / "a" / "00.png", data, out=tmp_path / "there", device="cpu")
    with pytest.raises(UnveilError, match="no image is given"):
        unveil.similar(run, [], data, out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_the_name_of_a_figure_is_no_folder(run: Path, data: Path, tmp_path: Path) -> None:
    image = next(iter(sorted(data.rglob("*.png"))))
    with pytest.raises(UnveilError, match=r"but it is a folder for similar\.png and similar\.csv: give a name without an ending"):
        unveil.similar(run, image, data, out=tmp_path / "figure.png", device="cpu")
    assert not (tmp_path / "figure.png").exists()
