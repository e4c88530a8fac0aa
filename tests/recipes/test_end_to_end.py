"""From a folder of images to an encoder, its proof and its files, in one go and at tiny size."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unveil
from tests.reports.conftest import make_mae
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.errors import UnveilError
from unveil.evaluate.features import features_by
from unveil.interop import model_files
from unveil.train.run_folder import Run

TINY = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 8,
    "epochs": 2.0,
    "device": "cpu",
    "precision": "float32",
    "log_every": 1,
    "num_evals": 2,
}


def write_images(folder: Path, count: int = 12) -> Path:
    """Two classes of images, warm and cold, as files of different sizes."""
    chance = np.random.default_rng(0)
    for i in range(count):
        for name, channel in (("warm", 0), ("cold", 2)):
            pixels = chance.integers(0, 90, (16 + i % 3, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"))
    (folder / "warm" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def run(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return unveil.pretrain(str(raw), out=tmp_path_factory.mktemp("runs") / "run", held_out=4, **TINY)


def test_repeats_reach_the_loader(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fit(session: object, learner: object, loader: object, *others: object) -> None:
        seen.append(loader)
        raise UnveilError("far enough")

    monkeypatch.setattr("unveil.recipes.pretrain.Session.fit", fit)
    with pytest.raises(UnveilError, match="far enough"):
        unveil.pretrain(str(raw), out=tmp_path / "run", held_out=4, repeats=4, **TINY)
    assert (seen[0].repeats, seen[0].samples) == (4, 23)
    with pytest.raises(UnveilError, match=r"batch size 8 is not a multiple of 3 \(repeats\): use 6"):
        unveil.pretrain(str(raw), out=tmp_path / "other", repeats=3, **TINY)


def test_the_run_folder_holds_what_the_house_promises(run: Run) -> None:
    files = {path.name for path in run.path.iterdir()}
    assert files >= {
        "run.json",
        "log.jsonl",
        "checkpoints",
        "model.safetensors",
        "encoder.safetensors",
        "config.json",
        "report.html",
        "results.json",
        "samples.npz",
        "map.npz",
        "skipped.txt",
    }
    with np.load(run.path / "map.npz") as saved:
        held_out = {(str(name), str(saved["classes"][label])) for name, label in zip(saved["names"], saved["labels"], strict=True)}
        assert len(held_out) == 2
        assert all(name.split("/")[0] == label for name, label in held_out)
        assert saved["thumbnails"].shape == (2, 32, 32, 3)
    skipped = dict(line.split("\t") for line in (run.path / "skipped.txt").read_text().splitlines())
    assert set(skipped) == {"warm/broken.jpg", "notes.txt"}
    assert all(skipped.values())
    assert run.results["features"].keys() == {"encoder", "untrained", "raw pixels"}
    assert run.results["images"] == 23  # of 25, a tenth is held out
    assert run.results["unreadable"] == {"train": 1, "test": 0}
    assert run.results["judged_on"] == {"train": 22, "test": 2, "classes": 2}
    assert {"held_out_error", "patch_mean_error", "image_mean_error"} == run.results["held_out"].keys()
    assert [line["step"] for line in run.log] == [1, 2, 3, 4, 5, 6]
    assert {"knn", "whitened"} <= run.log[-1].keys()


def test_methods_that_compare_views_run_whole(raw: Path, tmp_path: Path) -> None:
    """Also where there are no labels: the spread of features is told, and the class token is judged."""
    options = TINY | {"method": "dino", "prototypes": 32, "local_crops": 1, "epochs": 1.0, "num_evals": 1, "held_out": 4}
    run = unveil.pretrain(str(raw), out=tmp_path / "dino", **options)
    assert run.results["spread"].keys() == {"encoder", "untrained"}
    assert run.log[-1]["rank_me"] > 1
    assert run.results["features"]["encoder"].keys() == {"knn", "whitened", "linear"}
    assert unveil.probe(run.path, kind="knn", out=tmp_path / "probe", device="cpu")["config"]["pool"] == "class"
    plain = unveil.pretrain(str(raw / "warm"), out=tmp_path / "plain", **options)
    assert plain.results["spread"]["encoder"]["feature_deviation"] > 0
    assert "features" not in plain.results


def test_the_same_command_again_touches_nothing(run: Run, raw: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    again = unveil.pretrain(str(raw), out=run.path, held_out=4, **TINY)
    assert again.results == run.results
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize("missing", ["report.html", "report.html results.json model.safetensors encoder.safetensors samples.npz"])
def test_a_run_that_was_killed_while_it_was_judged_is_judged_again(run: Run, raw: Path, tmp_path: Path, missing: str) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    for name in missing.split():
        (folder / name).unlink()
    again = unveil.pretrain(str(raw), out=folder, held_out=4, **TINY)
    both = [{key: value for key, value in each.results.items() if key != "cost"} for each in (again, run)]
    assert both[0] == both[1]  # the time of a run that was cut is not known
    assert {path.name for path in folder.iterdir()} == {path.name for path in run.path.iterdir()}
    expected, found = (load_file(path / "model.safetensors") for path in (run.path, folder))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_settings_and_other_data_are_refused(run: Run, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"mask_ratio: was 0\.75, is 0\.5"):
        unveil.pretrain(str(raw), out=run.path, held_out=4, mask_ratio=0.5, **TINY)
    with pytest.raises(UnveilError, match="data: was 25 images, is 4 images"):
        unveil.pretrain(str(write_images(tmp_path, 2)), out=run.path, held_out=4, **TINY)


def test_the_loaded_model_honours_the_contract(run: Run, raw: Path) -> None:
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


def test_features_that_are_not_finite_end_a_run_with_a_sentence(raw: Path, tmp_path: Path) -> None:
    """Finite weights can be so large that the features are not finite."""
    with pytest.raises(UnveilError, match=r"the features of \d+ of \d+ images are not finite, the first of"):
        unveil.pretrain(str(raw), out=tmp_path / "run", **TINY | {"base_lr": 1e30, "warmup_ratio": 0.0})


UNUSED = {
    "epochs has no effect on the quick linear probe": {"epochs": 2.0},
    "base_lr has no effect on the quick linear probe": {"base_lr": 0.1},
    "epochs has no effect on k-NN": {"kind": "knn", "epochs": 2.0},
    "base_lr has no effect on k-NN": {"kind": "knn", "base_lr": 0.1},
    "whiten is for k-NN, but the kind is linear": {"whiten": True},
    "neighbours is for k-NN, but the kind is linear": {"neighbours": 5},
    "neighbours is for k-NN, but the kind is partial": {"kind": "partial", "neighbours": 5},
    "blocks is for the partial probe, but the kind is linear": {"blocks": 2.0},
    "blocks is for the partial probe, but the kind is knn": {"kind": "knn", "blocks": 2.0},
    "views is for the linear probe, but the kind is knn": {"kind": "knn", "views": True},
    "views is for the linear probe, but the kind is partial": {"kind": "partial", "views": True},
    "protocol is for the linear probe, but the kind is knn": {"kind": "knn", "protocol": "sgd"},
    "protocol is for the linear probe, but the kind is partial": {"kind": "partial", "protocol": "sgd"},
    "crop_scale has no effect without random crops": {"crop_scale": 0.5},
    "pool both needs features that are computed once": {"pool": "both", "views": True},
}


@pytest.mark.parametrize(("says", "options"), UNUSED.items(), ids=UNUSED)
def test_options_that_a_probe_does_not_use_are_refused(run: Run, says: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=says):
        unveil.probe(run, out=tmp_path / "probe", device="cpu", **options)


STEPS: dict[str, Any] = {"epochs": 2.0, "batch_size": 8}
PROBES: dict[str, dict[str, Any]] = {
    "quick": {"pool": "both"},
    "sgd": {"protocol": "sgd", **STEPS},
    "views": {"views": True, **STEPS},
    "knn": {"kind": "knn"},
    "whitened": {"kind": "knn", "whiten": True, "pool": "both"},
    "partial": {"kind": "partial", **STEPS},
}


def test_both_poolings_take_one_pass() -> None:
    mae, images, passes = make_mae(), torch.randn(2, 3, 16, 16), list[int]()
    parts = [features_by(mae, "mean", images), features_by(mae, "class", images)]
    mae.encoder.register_forward_hook(lambda *_: passes.append(1))
    for owner in (mae, mae.encoder):
        assert torch.equal(features_by(owner, "both", images), torch.cat(parts, dim=1))
    assert len(passes) == 2


@pytest.mark.parametrize("options", PROBES.values(), ids=PROBES)
def test_probe(run: Run, options: dict[str, Any], tmp_path: Path) -> None:
    results = unveil.probe(run.path, **options, out=tmp_path / "probe", device="cpu")
    assert results["config"]["pool"] == options.get("pool", "mean")
    assert ("penalty" in results) == (options == PROBES["quick"])
    assert ("epochs" in results["config"]) == ("epochs" in options)  # what was not used is not recorded
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
    scores = task.logits(torch.randn(2, 3, 16, 16))
    assert scores.shape == (2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDataset, "_read_all", lambda *given: pytest.fail("the images of a finished run were read"))
        assert unveil.finetune(run.path, **options).results == tuned.results
    scratch = unveil.finetune(run.path, scratch=True, **options | {"out": tmp_path / "scratch"})
    assert scratch.config["from"] == "scratch"


def test_another_encoder_under_the_same_path_is_noticed(run: Run, tmp_path: Path) -> None:
    """A finished run would otherwise show the old numbers as those of the new encoder."""
    options = {"epochs": 1.0, "batch_size": 8, "labels": 16, "device": "cpu", "precision": "float32", "out": tmp_path / "tuned"}
    shutil.copytree(run.path, tmp_path / "run")
    data = str(run.facts["data"]["path"])
    tuned = unveil.finetune(tmp_path / "run", data, **options)
    model = unveil.load(run.path)
    with torch.no_grad():
        model.encoder.class_token += 1
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(run.path, tmp_path / "run")
    model_files.save(model, tmp_path / "run")
    with pytest.raises(UnveilError, match="the encoder: its weights changed since the run began"):
        unveil.finetune(tmp_path / "run", data, **options)
    longer = options | {"out": tmp_path / "longer", "epochs": 2.0}
    with pytest.raises(UnveilError, match="the encoder: its weights changed since the run began"):
        unveil.finetune(tmp_path / "run", data, resume_from=tuned.path, **longer)
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(run.path, tmp_path / "run")
    assert unveil.finetune(tmp_path / "run", data, **options).results == tuned.results


@pytest.mark.parametrize(
    ("name", "pool", "shape"), [("a.npz", "mean", (96,)), ("a.parquet", "class", (96,)), ("b.npz", "patches", (16, 96))]
)
def test_embed(run: Run, raw: Path, tmp_path: Path, name: str, pool: str, shape: tuple[int, ...]) -> None:
    out = unveil.embed(run.path, str(raw), out=tmp_path / name, pool=pool, device="cpu", precision="float32")
    if out.suffix == ".npz":
        rows = np.load(out)
        paths, embedding = rows["path"].tolist(), rows["embedding"]
    else:
        from pyarrow import parquet

        table = parquet.read_table(out).to_pydict()
        paths, embedding = table["path"], np.array(table["embedding"])
    assert embedding.shape == (24, *shape)
    at = paths.index("warm/00.png")
    with Image.open(raw / "warm" / "00.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    mae = unveil.load(run.path)
    from unveil.data.augment import eval_images
    from unveil.data.batch import Batch

    vit = mae.encoder.config
    batch = Batch(pixels, torch.tensor([list(pixels.shape[2:])]), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        tokens = mae.encoder(eval_images(batch, vit.image_size, vit.mean, vit.std))[0]
    expected = {"mean": tokens[1:].mean(0), "class": tokens[0], "patches": tokens[1:]}[pool]
    np.testing.assert_allclose(embedding[at], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("memory", [0, MEMORY])
def test_embed_writes_no_row_for_what_is_unreadable(run: Run, tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read on demand, the next image stands in for it: its features must not go under the broken one's name."""
    monkeypatch.setitem(ImageDataset.__init__.__kwdefaults__, "memory", memory)
    folder = tmp_path / "some"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    rows = np.load(unveil.embed(run.path, str(folder), out=tmp_path / "some.npz", device="cpu", precision="float32"))
    assert rows["path"].tolist() == ["0.png", "1.png", "3.png"]
    assert rows["embedding"].shape == (3, 96)


def test_others_may_read_what_a_run_writes(run: Run) -> None:
    """safetensors writes files that their owner alone can read; a run folder is often shared."""
    expected = run.path.stat().st_mode & 0o666
    modes = {path.relative_to(run.path).as_posix(): path.stat().st_mode & 0o666 for path in run.path.rglob("*") if path.is_file()}
    assert {"encoder.safetensors", "log.jsonl", "report.html"} < modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode != expected} == {}
