"""The table of formats: every line offers what the table promises."""

import inspect
from dataclasses import replace

import pytest
import torch

from tests.interop.conftest import SHAPE, perturbed
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.encoder_only import TextEncoderOnly, encoder_only
from unveil.interop.formats import FORMATS, Format, LoadOptions
from unveil.interop.load import load
from unveil.interop.verify_export import TOLERANCE
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.methods.bert import BERT, BERTConfig
from unveil.methods.dvae import DVAE, DVAEConfig
from unveil.methods.wordmae import WordMAE, WordMAEConfig
from unveil.models.bert import TextConfig, TextEncoder
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.recipes.export import DEFAULT_NAMES, export, format_for
from unveil.tasks.text_classification import TextClassification, TextClassificationConfig


def test_encoders_with_windows_go_out_as_safetensors_and_onnx_only(tmp_path, logged) -> None:
    shape = ViTConfig(width=24, depth=2, heads=3, image_size=(16, 24), patch_size=(4, 4), class_token=False, window=3)
    encoder = perturbed(ViT(replace(shape, global_blocks=(1,), relative_bias="decomposed")))
    model_files.save(encoder_only(encoder, pool="mean"), tmp_path / "run")
    again = load(export(tmp_path / "run", to="safetensors", say=logged), say=logged).encoder
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(again(images), encoder.eval()(images))
    assert again.config == encoder.config
    for to in ("timm", "transformers", "mae"):
        match = f"{to} cannot represent .* with windows or decomposed relative positions: use --to safetensors or onnx"
        with pytest.raises(UnveilError, match=match):
            export(tmp_path / "run", to=to, say=logged)


@pytest.mark.parametrize("line", FORMATS, ids=lambda line: line.module.rpartition(".")[2])
def test_modules_offer_what_the_table_promises(line: Format) -> None:
    module = line.open()
    names = {"writes", "export", "verify"} | ({"matches", "load"} if line.loads else set())
    assert all(callable(vars(module).get(name)) for name in names)
    assert set(line.options) <= LoadOptions.__annotations__.keys()
    if line.loads:
        accepted = inspect.signature(module.load).parameters.keys() - {"path", "folder", "say"}
        assert accepted == set(line.options)


def test_names_share_one_default_path() -> None:
    assert all(DEFAULT_NAMES[line.to] == line.out for line in FORMATS)


def test_mae_goes_to_every_format(make_mae) -> None:
    learner = make_mae()
    found = {to: format_for(learner, to).module.rpartition(".")[2] for to in DEFAULT_NAMES}
    assert found == {
        "safetensors": "model_files",
        "transformers": "transformers_vit_mae",
        "timm": "timm_vit",
        "mae": "mae_release",
        "onnx": "onnx_graph",
    }


def test_unknown_options_get_a_hint(tmp_path) -> None:
    with pytest.raises(UnveilError, match=r"there is no option 'head'; did you mean heads\?"):
        load(tmp_path, head=3)


VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(20)))
TEXT = TextConfig(width=48, depth=1, heads=3, vocabulary=VOCABULARY, length=12)


def test_text_methods_go_to_transformers_as_their_encoder(tmp_path, logged) -> None:
    pytest.importorskip("transformers")
    learner = perturbed(WordMAE.build(TEXT, WordMAEConfig(decoder_width=48)))
    model_files.save(learner, tmp_path / "run")
    again = load(export(tmp_path / "run", to="transformers", say=logged), say=logged)
    assert type(again) is TextEncoderOnly
    assert again.modality == "text"
    ids = torch.randint(5, 25, (2, 12))
    torch.testing.assert_close(again.encoder(ids), learner.encoder(ids))
    for to in ("timm", "mae", "onnx"):
        with pytest.raises(UnveilError, match=f"{to} cannot represent a WordMAE of text: use --to safetensors or transformers"):
            export(tmp_path / "run", to=to, say=logged)


def test_text_classifiers_go_out_as_safetensors_only(tmp_path, logged) -> None:
    config = TextClassificationConfig()
    learner = perturbed(TextClassification.build(TextEncoder(TEXT), config, None, ("bad", "good")))
    model_files.save(learner, tmp_path / "run")
    again = load(export(tmp_path / "run", to="safetensors", say=logged), say=logged)
    assert "agrees on the class scores of random texts" in logged[-2]
    ids = torch.randint(5, 25, (2, 12))
    assert torch.equal(again.logits(ids), learner.logits(ids))
    with pytest.raises(UnveilError, match="cannot represent the head of a TextClassification"):
        export(tmp_path / "run", to="transformers", say=logged)
    assert not (tmp_path / "run" / "export" / "transformers").exists()


def test_learners_without_a_transformer_go_out_as_safetensors_only(tmp_path, logged) -> None:
    shape = ViTConfig(width=24, depth=4, heads=3, image_size=(8, 8), patch_size=(4, 4))
    model_files.save(perturbed(DVAE.build(shape, DVAEConfig(codebook_size=6), AugmentConfig())), tmp_path / "run")
    export(tmp_path / "run", to="safetensors", say=logged)
    assert "agrees on the features and reconstructions of image files" in logged[-1]
    for to in ("timm", "transformers", "mae", "onnx"):
        with pytest.raises(UnveilError, match=f"{to} cannot represent a DVAE of images: use --to safetensors"):
            export(tmp_path / "run", to=to, say=logged)


@pytest.mark.parametrize("line", FORMATS, ids=lambda line: line.module.rpartition(".")[2])
def test_every_check_finds_a_wrong_export(line: Format, make_mae, make_finetune, tmp_path) -> None:
    """A learner whose weights have changed since the export disagrees with it."""
    if line.to == "onnx":
        pytest.importorskip("onnxruntime")
    if line.to == "transformers":
        pytest.importorskip("transformers")
    learner = make_mae()
    if "beit" in line.module:
        learner = perturbed(BEiT.build(ViTConfig(**SHAPE), BEiTConfig(codebook_size=11), AugmentConfig()))
    if "bert" in line.module:
        learner = perturbed(BERT.build(TEXT, BERTConfig()))
    if line.module.endswith("transformers_heads"):
        learner = make_finetune()
    if line.module.endswith("transformers_vit"):
        learner = make_mae(layer_scale=0.1, registers=2)
    module = line.open()
    assert module.writes(learner)
    out = module.export(learner, tmp_path / line.out)
    assert module.verify(learner, out).difference <= TOLERANCE
    with torch.no_grad():
        for block in learner.encoder.transformer.blocks:
            block.mlp[0].weight.mul_(1.1)
    assert not module.verify(learner, out).difference <= TOLERANCE
