"""The recipes through the commands: fine-tuning at another size, the paper's linear probe, and runs of older versions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unveil
from tests.recipes.test_end_to_end import TINY, write_images
from unveil.blocks.positions import resize_positions
from unveil.errors import UnveilError
from unveil.interop.model_files import rebuild
from unveil.tasks.linear import Linear
from unveil.tasks.partial import PartialFinetune
from unveil.train.loop import train
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

SHORT = {key: value for key, value in TINY.items() if key not in ("model", "image_size", "patch_size")} | {"epochs": 0.5}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return unveil.pretrain(str(raw), out=tmp_path_factory.mktemp("runs") / "run", held_out=4, **TINY)


def test_finetune_at_another_size(raw: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are resized as by the public code; the result is probed, embedded, exported and resumed at its own size."""
    started = {}

    def note(learner, *others, **more):
        started.setdefault("positions", learner.encoder.positions.detach().clone())
        return train(learner, *others, **more)

    monkeypatch.setattr("unveil.runs.session.train", note)
    tuned = unveil.finetune(run.path, str(raw), out=tmp_path / "tuned", image_size=(24, 32), **SHORT)
    small = load_file(run.path / "encoder.safetensors")["positions"]
    torch.testing.assert_close(started["positions"], resize_positions(small, (4, 4), (6, 8)))
    config = json.loads((tuned.path / "config.json").read_text())
    assert config["encoder"]["image_size"] == [24, 32]
    learner = unveil.load(tuned.path)
    assert learner.logits(torch.randn(1, 3, 24, 32)).shape == (1, 2)
    table = unveil.embed(tuned.path, str(raw), out=tmp_path / "rows.npz", device="cpu")
    assert table.is_file()
    found = unveil.probe(tuned.path, str(raw), out=tmp_path / "probe", kind="knn", compare=False, device="cpu")
    assert "encoder" in found["top1"]
    unveil.export(tuned.path, to="safetensors", out=tmp_path / "tuned.safetensors")
    assert unveil.load(tmp_path / "tuned.safetensors").encoder.config.image_size == (24, 32)
    again = unveil.finetune(run.path, str(raw), out=tmp_path / "tuned", image_size=(24, 32), **SHORT)
    assert again.results == tuned.results
    with pytest.raises(UnveilError, match="image side 30 is not a multiple of patch 4"):
        unveil.finetune(run.path, str(raw), out=tmp_path / "other", image_size=(30,), **SHORT)


def test_partial_probes_honour_the_pool(raw: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, whole = [], PartialFinetune.build.__func__

    def build(cls, *parts):
        built.append(whole(cls, *parts))
        return built[-1]

    monkeypatch.setattr(PartialFinetune, "build", classmethod(build))
    options = {"kind": "partial", "compare": False, "epochs": 1.0, "batch_size": 8, "device": "cpu", "precision": "float32"}
    found = {pool: unveil.probe(run.path, str(raw), out=tmp_path / pool, pool=pool, **options) for pool in ("mean", "class")}
    assert [task.pool for task in built] == ["mean", "class"] == [each["config"]["pool"] for each in found.values()]
    assert built[0].augmentation.config.crop_scale == 0.08
    assert found["mean"]["config"]["layer_decay"] == 0.75


def test_the_papers_linear_probe_is_one_option(raw: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(task, loader, recipe, **others):
        seen.append((task, recipe))
        raise KeyboardInterrupt

    monkeypatch.setattr("unveil.runs.probing.train", stop)
    with pytest.raises(KeyboardInterrupt):
        unveil.probe(run.path, str(raw), out=tmp_path / "paper", protocol="paper", device="cpu")
    task, recipe = seen[0]
    assert isinstance(task, Linear)
    assert task.pool == "class"
    assert (task.augmentation.config.crop, task.augmentation.config.crop_scale) == ("clipped", 0.08)
    optim, training = recipe.optim, recipe.training
    assert (optim.optimizer, optim.base_lr, optim.weight_decay, training.epochs) == ("lars", 0.1, 0.0, 90.0)
    assert training.batch_size == 16_384
    assert optim.warmup_ratio == pytest.approx(10 / 90)
    with pytest.raises(KeyboardInterrupt):
        unveil.probe(run.path, str(raw), out=tmp_path / "own", protocol="paper", pool="mean", batch_size=64, crop_scale=0.5)
    assert (seen[1][0].pool, seen[1][1].training.batch_size, seen[1][0].augmentation.config.crop_scale) == ("mean", 64, 0.5)
    with pytest.raises(UnveilError, match="protocol paper is for the linear probe, not for kind knn"):
        unveil.probe(run.path, str(raw), protocol="paper", kind="knn")


def test_a_ratio_of_0_runs_to_its_end(raw: Path, tmp_path: Path) -> None:
    done = unveil.pretrain(str(raw), out=tmp_path / "all", held_out=4, mask_ratio=0.0, loss_on_all=True, **TINY | {"epochs": 0.5})
    assert done.results["held_out"]["held_out_error"] > 0
    assert (done.path / "report.html").is_file()


def age(path: Path, options: dict[str, object]) -> None:
    """Makes a run folder that of format 2: without the options that are new, and with the defaults that were."""
    facts = json.loads((path / "run.json").read_text())
    facts["format"] = 2
    facts.pop("checksum", None)
    for new in ("min_lr", "clip_mode", "max_skipped_steps", "relative_bias", "positions", "layer_scale", "drop_path"):
        facts["config"].pop(new, None)
    facts["config"] |= options
    (path / "run.json").write_text(json.dumps(facts))
    for name in ("results.json", "report.html", "model.safetensors", "encoder.safetensors"):
        (path / name).unlink(missing_ok=True)


def test_a_run_of_an_older_version_keeps_its_defaults(raw: Path, tmp_path: Path) -> None:
    """The same command resumes it, although SimMIM has another rate, schedule and encoder now; its weights are read as they are."""
    old = {"base_lr": 1e-4, "schedule": "cosine", "warmup_ratio": 0.05}
    encoder = {"relative_bias": "none", "positions": "sincos", "layer_scale": None, "drop_path": 0.0}
    first = unveil.pretrain(str(raw), method="simmim", out=tmp_path / "run", held_out=4, **TINY, **old, **encoder)
    weights = load_file(first.path / "model.safetensors")
    age(first.path, old)
    again = unveil.pretrain(str(raw), method="simmim", out=tmp_path / "run", held_out=4, **TINY)
    assert again.results["held_out"] == first.results["held_out"]
    resumed = load_file(again.path / "model.safetensors")
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    age(first.path, old)
    with pytest.raises(UnveilError, match=r"config base_lr: was 0\.0001, is 0\.001"):
        unveil.pretrain(str(raw), method="simmim", out=tmp_path / "run", held_out=4, **TINY, base_lr=1e-3)


@pytest.mark.parametrize(
    ("method", "options", "fixed"),
    [
        ("simmim", {"mask_ratio": 0.6, "mask_unit": 2, "target": "pixel"}, ("relative_bias", "none")),
        ("dino", {"local_crops": 2, "prototypes": 8}, ("positions", "sincos")),
        ("mae", {"decoder_width": 128, "decoder_depth": 1, "decoder_heads": None}, ("decoder_heads", 2)),
    ],
)
def test_a_config_of_version_2_builds_the_model_that_it_was(
    method: str, options: dict[str, object], fixed: tuple[str, object]
) -> None:
    encoder = {"width": 48, "depth": 1, "heads": 3, "image_size": [16, 16], "patch_size": [4, 4]}
    encoder |= {"positions": "sincos", "relative_bias": "none", "drop_path": 0.0, "layer_scale": None}
    facts = {
        "format": "unveil",
        "format_version": 2,
        "modality": "images",
        "method": method,
        "options": options,
        "encoder": encoder,
    }
    learner = rebuild(facts)
    assert getattr(learner.config, fixed[0]) == fixed[1]
    assert learner.encoder.config.positions == "sincos"
    assert learner.encoder.config.layer_scale is None
