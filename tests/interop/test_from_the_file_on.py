"""An export is the same function from the image file on: other libraries and their preprocessing give the features of `embed`.

Nothing of unveil touches the files here: Pillow opens them, and timm, transformers or torchvision prepare them by the config.
"""

import importlib.util
import json
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import functional as F

from tests.interop.conftest import perturbed
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files, timm_vit
from unveil.interop.load import load
from unveil.methods.dino import DINO, DINOConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.recipes.embed import embed
from unveil.recipes.export import export
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune

transformers = pytest.importorskip("transformers")
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
TOLERANCE = 1e-4
"""Of the largest feature of an image."""
SIZES = [(32, 32), (36, 36), (33, 34), (64, 64), (100, 57), (57, 100), (20, 20), (32, 96), (90, 31), (250, 40), (12, 15)]


def shape(**options):
    return ViTConfig(**{"width": 48, "depth": 2, "heads": 3, "image_size": (32, 32), "patch_size": (8, 8)} | options)


def mae(vit):
    return MAE.build(vit, MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), AugmentConfig())


def finetuned(vit):
    return Finetune.build(ViT(vit), FinetuneConfig(), AugmentConfig(), ("cat", "dog"))


def partly_finetuned(vit):
    return PartialFinetune.build(ViT(vit), PartialConfig(pool="class"), AugmentConfig(), ("cat", "dog"))


def dino(vit):
    return DINO.build(vit, DINOConfig(prototypes=16), AugmentConfig())


GREY = {"channels": 1, "mean": (0.4,), "std": (0.2,)}
MODELS = {
    "native": (mae, shape()),
    "cropped": (mae, shape(crop_pct=0.875)),
    "an odd size": (mae, shape(image_size=(40, 40), crop_pct=0.875)),
    "own mean": (mae, shape(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))),
    "grey": (mae, shape(**GREY)),
    "four channels": (mae, shape(channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8), crop_pct=0.875)),
    "16 bits": (mae, shape(**GREY, bit_depth=16, crop_pct=0.875)),
    "wide": (mae, shape(image_size=(16, 48), crop_pct=0.875)),
    "high": (mae, shape(image_size=(40, 24))),
    "fine-tuned": (finetuned, shape(crop_pct=0.875)),
    "partly fine-tuned": (partly_finetuned, shape()),
    "class token": (dino, shape(crop_pct=0.875)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run folder of each model, and a function that writes image files for it and returns their features."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for name, (build, vit) in MODELS.items():
        torch.manual_seed(0)
        learner = perturbed(build(vit))
        model_files.save(learner, root / name)
        images = root / f"images of {name}"
        images.mkdir()
        for i, size in enumerate(SIZES):
            write_image(images / f"{i:02}.png", size, vit.channels, vit.bit_depth, i)
        table = embed(root / name, images, out=root / f"{name}.npz")
        with np.load(table) as columns:
            rows = dict(zip(columns["path"].tolist(), columns["embedding"], strict=True))
        found[name] = (root / name, images, rows)
    return found


def write_image(path, size, channels, bits, seed):
    generator = np.random.default_rng(seed)
    if bits == 16:  # far from black and white: where a bicubic filter overshoots, transformers' 16-bit values wrap around
        Image.fromarray(generator.integers(20_000, 46_000, size).astype(np.uint16)).save(path)
        return
    coarse = generator.integers(0, 256, (size[0] // 3 + 2, size[1] // 3 + 2, channels)).astype(np.uint8)
    coarse = coarse[:, :, 0] if channels == 1 else coarse
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


def compare(features, model, *, leave_out=lambda size: False):
    """Compares another library's features, by a function of an opened image, with those of `embed`."""
    _, images, rows = model
    assert len(rows) == len(SIZES)
    compared = 0
    for name, wanted in rows.items():
        with Image.open(images / name) as image:
            if leave_out(image.size[::-1]):
                continue
            with torch.no_grad():
                found = np.asarray(features(image))
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max(), (name, image.size)
        compared += 1
    assert compared >= 7
    values = np.stack(list(rows.values()))
    assert values.std(axis=0).mean() > 0.01 * np.abs(values).max()  # the images do matter


@pytest.mark.parametrize("name", [name for name in MODELS if name != "16 bits"])
def test_timm_gives_the_features_of_embed(models, tmp_path, name):
    run, *_ = models[name]
    out = export(run, to="timm", out=tmp_path / "timm", say=lambda text: None)
    model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    compare(lambda image: model(transform(image)[None])[0], models[name])
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"  # the nearest to 48 values per token
    compare_reloaded(out, models[name], tmp_path)


def compare_reloaded(path, model, folder):
    """Compares the features of an export that unveil loads again."""
    _, images, rows = model
    with np.load(embed(path, images, out=folder / "again.npz")) as columns:
        for name, found in zip(columns["path"].tolist(), columns["embedding"], strict=True):
            assert np.abs(found - rows[name]).max() <= TOLERANCE * np.abs(found).max()


def one_pixel_off(vit):
    """Whether transformers rounds half a pixel down where torchvision rounds it up."""
    edge = int(vit.image_size[0] / vit.crop_pct)

    def differs(size):
        longer = int(edge * max(size) / min(size))
        return (longer - vit.image_size[0]) % 4 == 3 or (edge - vit.image_size[0]) % 4 == 3

    return differs


@pytest.mark.parametrize(
    "name", ["native", "cropped", "an odd size", "own mean", "grey", "four channels", "16 bits", "class token"]
)
def test_transformers_gives_the_features_of_embed(models, tmp_path, name):
    run, *_ = models[name]
    vit, pool = MODELS[name][1], "class" if name == "class token" else "mean"
    out = export(run, to="transformers", out=tmp_path / "transformers", say=lambda text: None)
    backend = "torchvision" if vit.bit_depth == 16 else "pil"
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend=backend)
    model = transformers.AutoModel.from_pretrained(out, mask_ratio=0.0).eval()

    def features(image):
        tokens = model(**processor(image, return_tensors="pt")).last_hidden_state[0]
        return tokens[0] if pool == "class" else tokens[1:].mean(dim=0)

    compare(features, models[name], leave_out=one_pixel_off(vit))
    if name == "16 bits":
        assert json.loads((out / "preprocessor_config.json").read_text())["rescale_factor"] == 1 / 65535
    compare_reloaded(out, models[name], tmp_path)


def test_default_processor_of_transformers_is_close(models, tmp_path):
    """torch's resizing differs from Pillow's by a grey level here and there."""
    run, images, rows = models["cropped"]
    out = export(run, to="transformers", out=tmp_path / "transformers", say=lambda text: None)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    model = transformers.AutoModel.from_pretrained(out, mask_ratio=0.0).eval()
    for name in ("00.png", "01.png", "03.png"):
        with Image.open(images / name) as image, torch.no_grad():
            found = model(**processor(image, return_tensors="pt")).last_hidden_state[0, 1:].mean(dim=0).numpy()
        assert np.abs(found - rows[name]).max() <= 5e-3 * np.abs(found).max()


@needs_onnx
@pytest.mark.parametrize("name", ["own mean", "four channels", "16 bits", "wide", "fine-tuned", "class token"])
def test_onnx_gives_the_features_of_embed_by_its_metadata(models, tmp_path, name):
    import onnxruntime

    run, *_ = models[name]
    out = export(run, to="onnx", out=tmp_path / "folder" / "model.onnx", say=lambda text: None)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts == json.loads((tmp_path / "folder" / "config.json").read_text())
    assert facts.get("classes") == (["cat", "dog"] if "fine-tuned" in name else None)
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))

    def features(image):
        if image.mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.float32))
        (rows, columns), (height, width) = facts["resize_to"], (image.height, image.width)
        if rows == columns:
            image = F.resize(image, rows, F.InterpolationMode.BICUBIC)
        else:
            ratio = min(height / rows, width / columns)
            image = F.resize(image, [round(height / ratio), round(width / ratio)], F.InterpolationMode.BICUBIC)
        pixels = (
            torch.from_numpy(np.array(F.center_crop(image, facts["image_size"])))
            .float()
            .clamp(0, round(1 / facts["rescale_factor"]))
        )
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        normalised = (pixels * facts["rescale_factor"] - mean) / std
        return session.run(["features"], {"images": normalised[None].numpy()})[0][0]

    compare(features, models[name])


@pytest.mark.parametrize("name", MODELS)
def test_one_file_gives_the_features_of_embed(models, tmp_path, name):
    run, *_ = models[name]
    compare_reloaded(export(run, to="safetensors", out=tmp_path / "x.safetensors", say=lambda text: None), models[name], tmp_path)
    if "fine-tuned" not in name:  # their norm is not a part of the encoder
        (tmp_path / "encoder").mkdir()
        compare_reloaded(run / "encoder.safetensors", models[name], tmp_path / "encoder")


def test_fine_tuned_features_are_what_the_classifier_sees(models):
    run, _, rows = models["fine-tuned"]
    learner = load(run, say=lambda text: None)
    assert list(learner.classes) == ["cat", "dog"]
    row = torch.from_numpy(rows["00.png"])
    assert row.mean().abs() < 0.2  # a norm comes last
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(learner.logits(images), learner.head(learner.features(images)))
        torch.testing.assert_close(learner.features(images), learner.norm(learner.encoder.features(images)))


def test_wrong_preprocessing_is_found_by_the_export(models, tmp_path, monkeypatch):
    written = timm_vit.config_json

    def wrong(vit, model):
        facts = written(vit, model)
        facts["pretrained_cfg"]["crop_pct"] = 0.9
        return facts

    monkeypatch.setattr(timm_vit, "config_json", wrong)
    with pytest.raises(UnveilError, match=r"timm disagrees by .* on the features and tokens of image files: nothing was kept"):
        export(models["native"][0], to="timm", out=tmp_path / "timm", say=lambda text: None)


def test_what_is_beside_a_graph_is_not_overwritten(models, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(UnveilError, match=r"config\.json exists, and is not overwritten"):
        export(models["native"][0], to="onnx", out=tmp_path / "model.onnx", say=lambda text: None)
    assert (tmp_path / "config.json").read_text() == "mine"
    assert not (tmp_path / "model.onnx").exists()


def test_transformers_reports_nothing(models, tmp_path, caplog):
    """No tensor is missing or left over, for the class that an export names."""
    run, *_ = models["native"]
    whole = export(run, to="transformers", out=tmp_path / "whole", say=lambda text: None)
    encoder = export(run / "encoder.safetensors", to="transformers", out=tmp_path / "encoder", say=lambda text: None)
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, folder in (("ViTMAEForPreTraining", whole), ("AutoModelForPreTraining", whole), ("AutoModel", encoder)):
            _, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
    assert "UNEXPECTED" not in caplog.text
