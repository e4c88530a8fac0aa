"""From a folder of pictures to an encoder, its proof and its files, in one go and at tiny size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.errors import UnveilError
from unveil.train.run import Run

TINY = {
    "model": "vit-nano", "image_size": (16,), "patch_size": (4,), "batch_size": 8, "epochs": 2.0, "device": "cpu",
    "precision": "float32", "log_every": 1, "monitor_times": 2,
}  # fmt: skip


def write_pictures(folder: Path, count: int = 12) -> Path:
    """Two classes of pictures, warm and cold, as files of different sizes."""
    chance = np.random.default_rng(0)
    for i in range(count):
        for name, channel in (("warm", 0), ("cold", 2)):
            pixels = chance.integers(0, 90, (16 + i % 3, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pictures(tmp_path_factory.mktemp("pictures"))
    (folder / "warm" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return unveil.pretrain(str(pictures), out=tmp_path_factory.mktemp("runs") / "run", held_out=4, **TINY)


def test_the_run_folder_holds_what_the_house_promises(run: Run) -> None:
    files = {path.name for path in run.path.iterdir()}
    assert files >= {
        "run.json", "log.jsonl", "checkpoints", "model.safetensors", "encoder.safetensors", "config.json", "report.html",
        "results.json", "samples.npz", "skipped.txt",
    }  # fmt: skip
    skipped = dict(line.split("\t") for line in (run.path / "skipped.txt").read_text().splitlines())
    assert set(skipped) == {"warm/broken.jpg", "notes.txt"}
    assert all(skipped.values())
    assert run.results["features"].keys() == {"encoder", "untrained", "raw pixels"}
    assert run.results["pictures"] == 22                                       # 24 readable ones, a tenth kept aside
    assert {"held_out_error", "patch_mean_error", "picture_mean_error"} == run.results["held_out"].keys()
    assert [line["step"] for line in run.log] == [1, 2, 3, 4, 5, 6]
    assert "knn" in run.log[-1]


def test_the_same_command_again_touches_nothing(run: Run, pictures: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    again = unveil.pretrain(str(pictures), out=run.path, held_out=4, **TINY)
    assert again.results == run.results
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_other_settings_and_other_data_are_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"mask_ratio: was 0\.75, is 0\.5"):
        unveil.pretrain(str(pictures), out=run.path, held_out=4, mask_ratio=0.5, **TINY)
    with pytest.raises(UnveilError, match="data count: was 25, is 4"):
        unveil.pretrain(str(write_pictures(tmp_path, 2)), out=run.path, held_out=4, **TINY)


def test_the_loaded_model_honours_the_contract(run: Run, pictures: Path) -> None:
    mae = unveil.load(run.path)
    assert not mae.training
    raw = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    images = unveil.normalise(raw)
    assert mae.encoder(images).shape == (3, 17, 96)
    assert mae.encoder.features(images).shape == (3, 96)
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[:, ::2] = True
    assert mae.loss(images, hidden).ndim == 0
    rebuilt = mae.reconstruct(images, hidden)
    assert rebuilt.pixels.shape == rebuilt.masked.shape == rebuilt.pasted.shape == images.shape
    assert torch.equal(rebuilt.hidden, hidden)


@pytest.mark.parametrize("kind", ["linear", "knn", "partial"])
def test_probe(run: Run, kind: str, tmp_path: Path) -> None:
    results = unveil.probe(run.path, kind=kind, epochs=2.0, batch_size=8, out=tmp_path / "probe", device="cpu")
    assert results["score"]["count"] == 2
    assert np.sum(results["score"]["confusion"]) == 2
    assert json.loads((tmp_path / "probe" / "results.json").read_text())["top1"] == results["top1"]
    assert (tmp_path / "probe" / "predictions.csv").read_text().count("\n") == 3


def test_finetune_goes_on_and_is_loaded_again(run: Run, tmp_path: Path) -> None:
    options = {"epochs": 2.0, "batch_size": 8, "labels": 16, "device": "cpu", "precision": "float32", "out": tmp_path / "tuned"}
    tuned = unveil.finetune(run.path, **options)
    assert tuned.results["trained_on"] == 16
    assert tuned.results["classes"] == ["cold", "warm"]
    task = unveil.load(tuned.path)
    scores = task.predict(torch.randn(2, 3, 16, 16))
    assert scores.shape == (2, 2)
    assert unveil.finetune(run.path, **options).results == tuned.results
    scratch = unveil.finetune(run.path, scratch=True, **options | {"out": tmp_path / "scratch"})
    assert scratch.config["from"] == "scratch"


@pytest.mark.parametrize(
    ("name", "pool", "shape"),
    [("a.npz", "mean", (96,)), ("a.parquet", "class", (96,)), ("b.npz", "patches", (16, 96))],
)
def test_embed(run: Run, pictures: Path, tmp_path: Path, name: str, pool: str, shape: tuple[int, ...]) -> None:
    out = unveil.embed(run.path, str(pictures), out=tmp_path / name, pool=pool, device="cpu", precision="float32")
    if out.suffix == ".npz":
        rows = np.load(out)
        paths, embedding = rows["path"].tolist(), rows["embedding"]
    else:
        from pyarrow import parquet

        table = parquet.read_table(out).to_pydict()
        paths, embedding = table["path"], np.array(table["embedding"])
    assert embedding.shape == (24, *shape)
    at = paths.index("warm/00.png")
    with Image.open(pictures / "warm" / "00.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    mae = unveil.load(run.path)
    from unveil.data.augment import view
    from unveil.data.batch import Batch

    vit = mae.encoder.config
    batch = Batch(pixels, torch.tensor([list(pixels.shape[2:])]), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        tokens = mae.encoder(view(batch, vit.image_size, vit.mean, vit.std))[0]
    expected = {"mean": tokens[1:].mean(0), "class": tokens[0], "patches": tokens[1:]}[pool]
    np.testing.assert_allclose(embedding[at], expected.numpy(), atol=1e-4)
    with pytest.raises(UnveilError, match="exists: choose another --out"):
        unveil.embed(run.path, str(pictures), out=out)


def test_reconstruct_and_report(run: Run, pictures: Path, tmp_path: Path) -> None:
    figure = unveil.reconstruct(run.path, str(pictures), out=tmp_path / "figure.png", count=2)
    with Image.open(figure) as image:
        assert image.width > 400
    page = unveil.report(run.path)
    assert "raw pixels" in page.read_text()


def test_unknown_options_are_refused_with_a_hint(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="there is no option 'epoch'; did you mean epochs"):
        unveil.pretrain(str(pictures), out=tmp_path / "x", epoch=3)
    assert not (tmp_path / "x").exists()


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(pictures: Path, tmp_path: Path) -> None:
    options = TINY | {"epochs": 30.0, "base_lr": 1e12, "warmup": 0.5, "save_seconds": 0.0}
    with pytest.raises(UnveilError, match=r"the loss is nan .* \(learning rate"):
        unveil.pretrain(str(pictures), out=tmp_path / "run", **options)
    checkpoints = Run(tmp_path / "run").checkpoints()
    for step in checkpoints.steps():
        assert checkpoints.fault(step) is None
        assert all(torch.isfinite(x).all() for x in checkpoints.load(step, "model").values())


@pytest.mark.parametrize(("shape", "dtype"), [((20, 18, 5), np.uint16), ((18, 18), np.uint8), ((20, 20, 2), np.uint8)])
def test_any_channel_count_and_depth(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    chance = np.random.default_rng(1)
    for i in range(20):
        np.save(tmp_path / f"{i}.npy", chance.integers(0, np.iinfo(dtype).max // 8, shape).astype(dtype))
    run = unveil.pretrain(str(tmp_path), out=tmp_path / "run", target="pixel", **TINY)
    mae = unveil.load(run.path)
    assert mae.encoder.config.channels == (shape[2] if len(shape) == 3 else 1)
    if dtype == np.uint16:
        assert abs(mae.encoder.config.mean[0] - 1 / 16) < 0.01                 # measured: the upper bits are empty
    assert run.log[-1]["loss"] < 10
