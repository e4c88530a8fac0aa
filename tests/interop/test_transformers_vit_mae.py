import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unveil.errors import UnveilError
from unveil.interop import transformers_vit_mae
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.load import load
from unveil.methods.mae import MAE

transformers = pytest.importorskip("transformers")

HIDDEN = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1) < 12


def config(**changes):
    return transformers.ViTMAEConfig(
        **{
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "image_size": 32,
            "patch_size": 8,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 128,
        }
        | changes
    )


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("normalised", [True, False])
def test_reads_what_transformers_wrote(tmp_path, images, logged, normalised):
    theirs = perturbed(transformers.ViTMAEForPreTraining(config(norm_pix_loss=normalised, mask_ratio=0.6)))
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, say=logged)
    found = theirs(images, noise=torch.rand(2, 16))
    assert isinstance(ours, MAE)
    assert ours.config.target == ("normalised" if normalised else "pixel")
    assert ours.config.mask_ratio == 0.6
    assert ours.encoder.transformer.norm.eps == 1e-12  # transformers' default
    assert ours.loss(images, found.mask.bool()) == pytest.approx(float(found.loss), rel=1e-5)
    count = len(theirs.state_dict())
    assert f"{count} of {count} tensors matched" in logged[0]


@torch.no_grad()
def test_reads_an_encoder_without_decoder(tmp_path, images):
    theirs = perturbed(transformers.ViTMAEModel(config(mask_ratio=0.0)))
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = theirs(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    assert (ours.encoder(images) - tokens).abs().max() < 1e-5
    with pytest.raises(UnveilError, match="has no decoder"):
        ours.reconstruct(images)


def test_reads_the_names_of_both_versions(make_mae, tmp_path, images):
    learner = make_mae()
    transformers_vit_mae.export(learner, tmp_path)
    state = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).state_dict()
    assert any("q_proj" in name for name in state)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path).loss(images, HIDDEN), learner.loss(images, HIDDEN))
    (tmp_path / "model.safetensors").unlink()
    torch.save(transformers_vit_mae.transformers_model(learner).state, tmp_path / "pytorch_model.bin")
    assert torch.equal(load(tmp_path).loss(images, HIDDEN), learner.loss(images, HIDDEN))


@torch.no_grad()
@pytest.mark.parametrize("target", ["normalised", "pixel"])
def test_transformers_loads_what_was_exported(make_mae, tmp_path, images, target):
    learner = make_mae(target=target)
    transformers_vit_mae.export(learner, tmp_path)
    theirs, found = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logged = theirs.eval()(images, noise=torch.rand(2, 16))
    assert learner.loss(images, logged.mask.bool()) == pytest.approx(float(logged.loss), rel=1e-5)
    again = load(tmp_path)
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in again.state_dict().items())
    assert (again.encoder.config, again.config.target) == (learner.encoder.config, target)


@torch.no_grad()
def test_transformers_loads_an_encoder_alone(make_mae, tmp_path, images):
    encoder = make_mae().encoder
    transformers_vit_mae.export(EncoderOnly(encoder), tmp_path)
    theirs, found = transformers.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = theirs.eval()(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    assert (encoder(images) - tokens).abs().max() < 1e-5


def test_images_are_prepared_alike(make_mae, tmp_path):
    from unveil.data.augment import normalise

    transformers_vit_mae.export(make_mae(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), tmp_path)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt").pixel_values[0]
    assert (theirs - normalise(image, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))).abs().max() < 1e-5
    assert load(tmp_path).encoder.config.std == (0.4, 0.5, 0.6)


def test_what_transformers_cannot_express_is_refused(make_mae, make_finetune, tmp_path):
    out = tmp_path / "out"
    for learner, match in (
        (make_mae(image_size=(32, 48)), "only square images"),
        (make_mae(patch_size=(8, 4)), "square"),
        (make_mae(target="pca"), "no PCA target"),
        (make_mae(layer_scale=0.1), "cannot represent"),
        (make_finetune(), "no final norm"),
    ):
        with pytest.raises(UnveilError, match=match):
            transformers_vit_mae.export(learner, out)
    assert not out.exists()


def test_what_our_model_does_not_do_is_refused(make_mae, tmp_path):
    transformers_vit_mae.export(make_mae(), tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"hidden_act": "relu"}, "relu"),
        ({"decoder_intermediate_size": 64}, "decoder MLP of 64"),
        ({"qkv_bias": False}, "no biases in its attention"),
        ({"image_size": "large"}, "expected 2 integers from 1 to 16,384"),
        ({"num_hidden_layers": 3}, "16 missing"),
        ({"image_size": 64}, "does not fit"),
        ({"model_type": "swin"}, "config.json of swin"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(facts | change))
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(facts))
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"classifier.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnveilError, match=r"1 left over \(classifier.weight\)"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnveilError, match=r"no model\.safetensors"):
        load(tmp_path)
