"""Every learner with a head in every format: the scores of the other library for image files are those of `unveil predict`.

Nothing of unveil touches the files on the side of the other library: Pillow opens them, and its own preprocessing prepares them by
the config.
"""

import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import functional as F

from tests.interop.conftest import SHAPE, perturbed
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.load import load
from unveil.methods.supervised import Supervised, SupervisedConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.recipes.export import export
from unveil.recipes.predict import predict
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.linear import Linear, LinearConfig
from unveil.tasks.multilabel import MultiLabel, MultiLabelConfig
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.tasks.regression import Regression, RegressionConfig

transformers = pytest.importorskip("transformers")
NAMES = ("1", "cat, small", "Größe|ß", 'an "owl"')
TOLERANCE = 1e-4
MEAN, DEVIATION = 2000.0, 3.0


def vit(**options):
    return ViTConfig(**SHAPE | {"crop_pct": 0.875, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.4)} | options)


def task(kind, config, names=NAMES, **shape):
    return lambda: kind.build(ViT(vit(**shape)), config, AugmentConfig(), names)


def supervised(pool, **shape):
    def build():
        learner = Supervised.build(vit(**shape), SupervisedConfig(pool=pool), AugmentConfig())
        learner.set_classes(NAMES)
        return learner

    return build


def numbers(**options):
    return task(Regression, RegressionConfig(**options), ("Größe, cm",))


BARE = {"final_norm": False}
EVERY, NO_MAE = {"timm", "transformers", "mae", "safetensors", "onnx"}, {"timm", "transformers", "safetensors", "onnx"}
LEARNERS = {
    "fine-tuned": (task(Finetune, FinetuneConfig(fc_norm=False)), NO_MAE),
    "fine-tuned, norm after the mean": (task(Finetune, FinetuneConfig(fc_norm=True)), EVERY),
    "fine-tuned, class token": (task(Finetune, FinetuneConfig(fc_norm=False, pool="class")), EVERY),
    "fine-tuned, norm after the class token": (task(Finetune, FinetuneConfig(fc_norm=True, pool="class")), EVERY),
    "fine-tuned with registers": (task(Finetune, FinetuneConfig(fc_norm=False), registers=2, layer_scale=0.1), NO_MAE),
    "fine-tuned, shared biases": (
        task(Finetune, FinetuneConfig(fc_norm=True), relative_bias="shared", positions="none", layer_scale=0.1),
        {"transformers", "safetensors", "onnx"},
    ),
    "fine-tuned with CLIP's activation": (task(Finetune, FinetuneConfig(fc_norm=True), mlp="quick_gelu"), NO_MAE),
    "partly fine-tuned": (task(PartialFinetune, PartialConfig()), EVERY),
    "partly fine-tuned, class token": (task(PartialFinetune, PartialConfig(pool="class")), EVERY),
    "no block fine-tuned": (task(PartialFinetune, PartialConfig(blocks=0)), NO_MAE),
    "linear probe": (task(Linear, LinearConfig()), NO_MAE),
    "linear probe, class token": (task(Linear, LinearConfig(pool="class")), EVERY),
    "linear probe, both": (task(Linear, LinearConfig(pool="both")), {"transformers", "safetensors", "onnx"}),
    "linear probe of a fine-tuned model": (task(Linear, LinearConfig(feature_norm=True), **BARE), EVERY),
    "supervised": (supervised("mean"), NO_MAE),
    "supervised, class token": (supervised("class"), EVERY),
    "supervised, no class token": (supervised("mean", class_token=False), {"timm", "safetensors", "onnx"}),
    "labels": (task(MultiLabel, MultiLabelConfig()), NO_MAE),
    "labels, norm after the mean": (task(MultiLabel, MultiLabelConfig(fc_norm=True)), EVERY),
    "number": (numbers(), NO_MAE),
    "number, norm after the mean": (numbers(fc_norm=True), EVERY),
    "number, class token": (numbers(pool="class"), EVERY),
}
"""The learners, and the formats that keep their heads."""
DROPPED = {
    ("linear probe, both", "timm"): "timm's head takes the class token or the mean of the patch tokens, not both",
    ("supervised, no class token", "transformers"): "cannot represent an encoder without a class token",
    ("supervised, no class token", "mae"): "cannot represent an encoder without a class token",
    ("fine-tuned with registers", "mae"): "cannot represent encoder.registers",
    ("fine-tuned, shared biases", "timm"): "cannot represent encoder.relative.0.table",
    ("fine-tuned, shared biases", "mae"): "cannot represent encoder.relative.0.table",
    ("fine-tuned with CLIP's activation", "mae"): "cannot represent an MLP with quick_gelu",
}
"""What is said of the other formats; by default that the MAE release has no such head."""
MAE = "the public MAE release has a head on the mean only with the norm after it, and else on the class token"
SIZES = [(32, 32), (64, 64), (48, 36), (50, 100), (20, 20)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that gives the run of a learner, a folder of images, and the scores of `unveil predict` by file name."""
    root = tmp_path_factory.mktemp("heads")
    images, found = root / "images", {}
    images.mkdir()
    for i, (height, width) in enumerate(SIZES):
        coarse = np.random.default_rng(i).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1  # a camera that was turned
        (image.convert("L") if i == 1 else image).save(images / f"{i}.png", exif=exif)

    def make(name):
        if name not in found:
            torch.manual_seed(0)
            learner = perturbed(LEARNERS[name][0]())
            with torch.no_grad():
                layer = getattr(learner.head, "linear", learner.head)
                layer.weight.normal_(), layer.bias.normal_()
                for buffer, value in learner.named_buffers():
                    if buffer == "head.norm.running_mean":
                        value.normal_()
                    if buffer == "head.norm.running_var":
                        value.uniform_(0.5, 2)
            if isinstance(learner, Regression):
                learner.mean.fill_(MEAN), learner.deviation.fill_(DEVIATION)
            if isinstance(learner, Supervised):
                learner.after_training()  # keeps the averages
            model_files.save(learner, root / name)
            table = predict(root / name, images)
            found[name] = (root / name, images, table)
        return found[name]

    return make


def opened(path):
    """An image as other programs open it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def compare(run, scores_of):
    """Compares the scores of another library, by a function of an opened image, with those of `unveil predict`."""
    _, images, table = run
    names, wanted = table["path"].tolist(), table.scores.reshape(len(SIZES), -1)
    found = np.stack([np.asarray(scores_of(opened(images / name))).reshape(-1) for name in names])
    assert found.shape == wanted.shape
    spread = wanted.std(axis=0).max()  # of a number, its departures from the mean count
    assert (
        np.abs(found - wanted).max()
        <= TOLERANCE * max(spread, np.abs(wanted - wanted.mean(axis=0)).max()) + 2e-7 * np.abs(wanted).max()
    )
    assert spread > 0.05  # the images do matter


def compare_reloaded(path, run):
    """`unveil.load` gives the same kind of model, and `unveil predict` the same labels."""
    _, images, table = run
    learner, original = load(path, say=lambda text: None), load(run[0], say=lambda text: None)
    assert list(learner.classes) == list(original.classes)
    for kind in (Regression, MultiLabel):
        assert isinstance(learner, kind) == isinstance(original, kind)
    again = predict(path, images)
    assert again.keys() == table.keys()
    assert again["path"].tolist() == table["path"].tolist()
    if isinstance(original, Regression):
        np.testing.assert_allclose(again.scores, table.scores, atol=1e-3 * DEVIATION)
    else:
        assert again.labels == table.labels
        np.testing.assert_allclose(again.probabilities, table.probabilities, atol=1e-5)


def problem_of(name):
    return {"labels": "multi_label_classification", "number": "regression"}.get(name.split(",")[0], "single_label_classification")


def names_of(name):
    return ["Größe, cm"] if name.startswith("number") else list(NAMES)


def kept(to):
    return [name for name, (_, formats) in LEARNERS.items() if to in formats]


@pytest.mark.parametrize("name", kept("timm"))
def test_timm(runs, tmp_path, logged, name):
    run = runs(name)
    out = export(run[0], to="timm", out=tmp_path / "timm", say=logged)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        compare(run, lambda image: model(transform(image)[None])[0])
    assert model.num_classes == len(names_of(name))
    assert model.pretrained_cfg["label_names"] == names_of(name)
    assert "left out" not in " ".join(logged)
    compare_reloaded(out, run)


@pytest.mark.parametrize("name", kept("transformers"))
def test_transformers(runs, tmp_path, logged, name):
    run = runs(name)
    out = export(run[0], to="transformers", out=tmp_path / "transformers", say=logged)
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
    model, info = transformers.AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        compare(run, lambda image: model.eval()(**processor(image, return_tensors="pt")).logits[0])
    assert model.config.id2label == dict(enumerate(names_of(name)))
    assert model.config.label2id == {label: i for i, label in enumerate(names_of(name))}
    assert model.config.problem_type == problem_of(name)
    assert "left out" not in " ".join(logged)
    if name == "linear probe, both":
        assert not hasattr(load(out, say=logged), "classes")  # unveil has no way back for it, and says so
        assert any("the classifier (classifier.bias, classifier.weight) was dropped" in line for line in logged)
    else:
        compare_reloaded(out, run)


ONNX = ["fine-tuned, norm after the mean", "linear probe, class token", "labels", "number, class token"]
"""An export takes up to ten seconds, so each kind of head is tried once."""


@pytest.mark.parametrize("name", ["fine-tuned", "labels", "number"])
def test_the_pipeline_of_transformers_applies_the_right_function(runs, tmp_path, logged, name):
    """A softmax, a sigmoid, or nothing: by `problem_type`. Version 5 resizes by torch there, so probabilities are only close."""
    run, images, table = runs(name)
    out = export(run, to="transformers", out=tmp_path / "out", say=logged)
    pipe = transformers.pipeline("image-classification", str(out), device="cpu")
    for row, path in enumerate(table["path"].tolist()):
        found = {each["label"]: each["score"] for each in pipe(opened(images / path), top_k=len(names_of(name)))}
        wanted = table.scores[row].reshape(-1) if name == "number" else table.probabilities[row]
        scale = DEVIATION if name == "number" else 1.0
        np.testing.assert_allclose([found[label] for label in names_of(name)], wanted, atol=0.02 * scale)


@pytest.mark.parametrize("name", ONNX)
def test_onnx(runs, tmp_path, logged, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = runs(name)
    out = export(run[0], to="onnx", out=tmp_path / "folder" / "model.onnx", say=logged)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts == json.loads((out.parent / "config.json").read_text())
    assert facts["problem_type"] == problem_of(name)
    assert facts["columns" if name.startswith("number") else "classes"] == names_of(name)
    output = "values" if name.startswith("number") else "scores"
    assert [each.name for each in session.get_outputs()] == [output, "features"]
    compare(run, lambda image: session.run([output], {"images": prepared(image, facts).numpy()})[0][0])


def prepared(image, facts):
    """An image as the JSON beside an export says, by torchvision."""
    pixels = F.center_crop(F.resize(image, facts["resize_to"][0], F.InterpolationMode.BICUBIC), facts["image_size"])
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
    values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() * facts["rescale_factor"]
    return ((values - mean) / std)[None]


@pytest.mark.parametrize("name", kept("mae"))
def test_mae(runs, tmp_path, logged, name):
    """The models of the release are timm's `VisionTransformer`, with `global_pool` or not; their probes have a batch norm."""
    run = runs(name)
    out = export(run[0], to="mae", out=tmp_path / "mae.pth", say=logged)
    state, facts = torch.load(out, weights_only=True)["model"], json.loads((tmp_path / "mae.pth.json").read_text())
    assert (facts["label_names"], facts["problem_type"]) == (names_of(name), problem_of(name))
    pool = "avg" if "fc_norm.weight" in state else "token"
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": len(names_of(name))}
    model = timm.models.VisionTransformer(**shape, global_pool=pool, fc_norm=pool == "avg").eval()
    if "head.1.weight" in state:
        model.head = nn.Sequential(nn.BatchNorm1d(48, affine=False, eps=1e-6), nn.Linear(48, len(NAMES))).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        compare(run, lambda image: model(prepared(image, facts))[0])
    assert "left out" not in " ".join(logged)
    compare_reloaded(out, run)


@pytest.mark.parametrize("name", LEARNERS)
def test_one_file(runs, tmp_path, logged, name):
    run = runs(name)
    out = export(run[0], to="safetensors", out=tmp_path / "x.safetensors", say=logged)
    compared = {"number": "numbers", "labels": "label scores"}.get(name.split(",")[0], "class scores")
    assert f"agrees on the features and {compared} of image files" in logged[-1]
    learner, original = load(out, say=logged), load(run[0], say=logged)
    assert type(learner) is type(original)
    assert learner.encoder.config == original.encoder.config  # the preprocessing is part of it
    assert (learner.config, list(learner.classes)) == (original.config, names_of(name))
    compare_reloaded(out, run)


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, (_, found) in LEARNERS.items() for to in sorted(EVERY - found)])
def test_what_has_no_place_is_said(runs, tmp_path, logged, name, to):
    run, *_ = runs(name)
    wanted = DROPPED.get((name, to), MAE)
    if wanted.startswith("cannot"):
        with pytest.raises(UnveilError, match=wanted):
            export(run, to=to, out=tmp_path / "out", say=logged)
        assert list(tmp_path.iterdir()) == []
        return
    out = export(run, to=to, out=tmp_path / "out", say=logged)
    assert any(
        f"the head was left out, as {wanted}" in line and "transformers, safetensors or onnx keeps the " in line for line in logged
    )
    card = out / "README.md" if out.is_dir() else out.with_name(f"{out.stem}.md")
    assert "the head was left out" in card.read_text()
    original, again = load(run, say=logged), load(out, say=logged)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.encoder(images), original.encoder(images), rtol=1e-4, atol=1e-4)


def test_heads_of_own_classes_are_left_out_with_a_sentence(tmp_path, logged):
    class Doubled(Finetune):
        def logits(self, images):
            return 2 * self.outputs(images)

    from unveil.interop import timm_vit, transformers_vit_mae

    learner = perturbed(Doubled.build(ViT(vit()), FinetuneConfig(fc_norm=False), AugmentConfig(), NAMES))
    for module in (timm_vit, transformers_vit_mae):
        found = module.verify(learner, module.export(learner, tmp_path / module.__name__))
        assert "the head of Doubled was left out, as only its own class knows it: --to safetensors keeps it" in found.note
        assert found.difference < TOLERANCE


@pytest.mark.parametrize("name", ["fine-tuned", "labels, norm after the mean", "number, class token", "linear probe, both"])
def test_heads_go_out_without_transformers(runs, tmp_path, monkeypatch, name):
    from unveil.interop import transformers_heads

    learner = load(runs(name)[0], say=lambda text: None)
    out = transformers_heads.export(learner, tmp_path / "out")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda spec: None if spec == "transformers" else find(spec))
    found = transformers_heads.verify(learner, out)
    if name == "linear probe, both":
        assert (found.difference, found.library) == (None, "transformers is not installed")
        return
    assert (found.library, found.difference <= TOLERANCE) == ("the reloaded file", True)
    with torch.no_grad():
        learner.head.bias.add_(0.5)
    assert not transformers_heads.verify(learner, out).difference <= TOLERANCE


@pytest.mark.parametrize("to", ["timm", "transformers", "mae", "safetensors", "onnx"])
def test_a_wrong_number_is_found(runs, tmp_path, monkeypatch, to):
    """A tenth of the deviation is 0.015 % of a year, and far more than a rounding error."""
    if to == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    from unveil.recipes.export import format_for

    run, *_ = runs("number, norm after the mean")
    learner = load(run, say=lambda text: None)
    module = format_for(learner, to).open()
    out = module.export(learner, tmp_path / "out.pth")
    assert module.verify(learner, out).difference <= TOLERANCE
    learner.mean.add_(0.1 * DEVIATION)
    assert not module.verify(learner, out).difference <= TOLERANCE


def test_the_json_of_another_file_is_not_read(runs, tmp_path, logged):
    run = runs("fine-tuned, class token")
    one = export(run[0], to="mae", out=tmp_path / "one.pth", say=logged)
    other = export(runs("supervised, class token")[0], to="mae", out=tmp_path / "other.pth", say=logged)
    (tmp_path / "other.pth.json").write_bytes((tmp_path / "one.pth.json").read_bytes())
    logged.clear()
    learner = load(other, heads=3, say=logged)
    assert list(learner.classes) == ["0", "1", "2", "3"]
    assert any("does not record everything" in line for line in logged)
    (tmp_path / "one.pth.json").unlink()
    assert list(load(one, heads=3, say=logged).classes) == ["0", "1", "2", "3"]
