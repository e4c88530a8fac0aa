"""Files and names that say little about themselves: public classifiers, shards, names in timm; and what such encoders can do."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.parity import SMALL, randomised, small_timm
from unveil.blocks.fast import choose
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.interop import model_files, timm_facts
from unveil.interop.load import load
from unveil.methods.dino import DINO, DINOConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.methods.simmim import SimMIM, SimMIMConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune
from unveil.tasks.linear import Linear

SHAPE = ViTConfig(width=48, depth=2, heads=3, image_size=(32, 32), patch_size=(8, 8), positions="learned")
UNUSUAL = {
    "registers": {"registers": 3, "layer_scale": 0.1},
    "no class token": {"class_token": False, "norm_after_pooling": True, "final_norm": False},
    "distilled": {"distillation_token": True},
    "swiglu, pre-norm": {"mlp": "swiglu", "pre_norm": True, "mlp_ratio": 2.0},
    "quick gelu": {"mlp": "quick_gelu"},
}


def vit(**options):
    torch.manual_seed(0)
    return randomised(ViT(replace(SHAPE, **options)))


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_public_fine_tuned_file(tmp_path, logged):
    """{"model": ...} with fc_norm and a head, as the public MAE code saves it; its classes have numbers."""
    theirs = randomised(timm.create_model("vit_base_patch16_224", **SMALL, global_pool="avg"))
    torch.save({"model": theirs.state_dict(), "epoch": 99}, tmp_path / "finetuned.pth")
    learner = load(tmp_path / "finetuned.pth", heads=4, say=logged)
    assert isinstance(learner, Finetune)
    assert tuple(learner.classes) == tuple("0123456")
    torch.testing.assert_close(learner.logits(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    assert any("does not name its classes" in line for line in logged)


@torch.no_grad()
def test_public_linear_probe_file(tmp_path, logged):
    """A BatchNorm without parameters and a linear layer on the class token, computed by hand."""
    theirs = randomised(timm.create_model("vit_base_patch16_224", **SMALL | {"num_classes": 0}))
    head = nn.Sequential(nn.BatchNorm1d(64, affine=False, eps=1e-6), nn.Linear(64, 5)).eval()
    head[0].running_mean.normal_()
    head[0].running_var.uniform_(0.5, 2)
    state = theirs.state_dict() | {f"head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"model": state}, tmp_path / "probe.pth")
    learner = load(tmp_path / "probe.pth", heads=4, say=logged)
    assert isinstance(learner, Linear)
    wanted = head(theirs.forward_features(images())[:, 0])
    torch.testing.assert_close(learner.logits(images()), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_classifiers_are_saved_and_loaded_with_their_names(tmp_path, pool):
    names = ["a, b", 'c "d"', "e", "f", "g", "h", "i"]
    theirs = randomised(timm.create_model("vit_base_patch16_224", **SMALL, global_pool=pool, fc_norm=False))
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_config={"label_names": names})  # as pytorch_model.bin
    learner = load(tmp_path / "timm", say=lambda text: None)
    assert list(learner.classes) == names
    model_files.save(learner, tmp_path / "run")
    again = load(tmp_path / "run", say=lambda text: None)
    assert list(again.classes) == names
    assert torch.equal(again.logits(images()), learner.logits(images()))
    torch.testing.assert_close(again.logits(images()), theirs(images()), rtol=1e-5, atol=1e-5)


def test_distilled_heads_are_dropped_with_a_sentence(tmp_path, logged):
    timm.models.save_for_hf(small_timm("deit_tiny_distilled_patch16_224"), tmp_path, safe_serialization=True)
    load(tmp_path, say=logged)
    assert any("the classifier (head.bias, head.weight, head_dist.bias, head_dist.weight) was dropped" in line for line in logged)


@torch.no_grad()
def test_shards_with_an_index(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    theirs = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**shape)))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (load(tmp_path, say=lambda text: None).encoder(images()) - theirs(images()).last_hidden_state).abs().max() < 1e-5
    facts = json.loads(index.read_text())
    for change, match in (
        ({"weight_map": {"x": "../outside.safetensors"}}, "expected files in its own folder"),
        ({"weight_map": facts["weight_map"] | {"extra": shards[0].name}}, "the tensor extra is in only one of them"),
        ({"weight_map": [1]}, "no weight_map"),
    ):
        index.write_text(json.dumps(change))
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)
    index.write_text(json.dumps(facts))
    shards[0].unlink()
    with pytest.raises(UnveilError, match=f"{shards[0].name} does not exist"):
        load(tmp_path)


@torch.no_grad()
def test_names_of_timm_are_downloaded_by_its_hub_code(tmp_path, monkeypatch, logged):
    theirs = randomised(timm.create_model("vit_tiny_patch16_224"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def stand_in(repo_id, filename, **options):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", stand_in)
    learner = load("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", say=logged)
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    config = learner.encoder.config
    assert (config.mean, config.crop_pct, config.heads, learner.pool) == ((0.5, 0.5, 0.5), 0.9, 3, "class")
    torch.testing.assert_close(learner.logits(images(1, 224)), theirs(images(1, 224)), rtol=1e-5, atol=1e-5)
    assert learner.classes[0].startswith("tench")
    assert len(learner.classes) == 1000


def test_names_that_do_not_work_get_a_sentence(monkeypatch):
    for name, match in (
        ("timm:vit_bse_patch16_224", "did you mean vit_base_patch16_224"),
        ("timm:../x", "has no model"),
        ("timm:resnet18.a1_in1k", "cannot be expressed"),
    ):
        with pytest.raises(UnveilError, match=match):
            load(name)

    def fails(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fails)
    with pytest.raises(UnveilError, match=r"could not be downloaded by timm: no route to host\. Check the network"):
        load("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(UnveilError, match="records its own heads"):
        load("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", heads=3)


def test_plain_facts_are_those_of_timm():
    """What is known of plain models without importing timm."""
    for size, heads in timm_facts.PLAIN_HEADS.items():
        name = next(each for each in timm.list_models(f"vit_{size}_patch*_224") if timm_facts.PLAIN.fullmatch(each))
        built = timm_facts.facts_of(timm_facts.built_by_timm(name, {"depth": 1}, "x"), name)
        plain = timm_facts.facts_of_architecture(name, {}, "x")
        assert plain.heads == heads == built.heads
        assert (plain.eps, plain.activation, plain.pool) == (built.eps, built.activation, built.pool)


def test_a_bare_eva_file_is_refused(tmp_path):
    """Its rotary positions are in no tensor."""
    model = timm.create_model("eva02_tiny_patch14_224", depth=1, num_classes=0)
    save_file(model.state_dict(), tmp_path / "eva.safetensors")
    with pytest.raises(UnveilError, match=r"q_bias .*rotary"):
        load(tmp_path / "eva.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("name", UNUSUAL)
def test_masked_tokens_are_those_of_the_whole_image(name):
    encoder, seen = vit(**UNUSUAL[name]).double(), images().double()  # sums of float32 depend on the number of threads
    leading, keep = encoder.config.prefix_tokens, torch.tensor([[3, 0, 9], [1, 15, 4]])
    whole, some = encoder.tokens(seen), encoder.tokens(seen, keep)
    assert some.shape[1] == leading + 3
    assert torch.equal(some[:, :leading], whole[:, :leading])
    for row in range(2):
        assert (some[row, leading:] - whole[row, leading + keep[row]]).abs().max() < 1e-12
    assert encoder.forward_features(seen, (0, 1))[0].shape == (2, 48, 4, 4)
    assert encoder.resized(48).config.prefix_tokens == leading
    if leading and encoder.config.class_token:
        assert encoder.attention(seen).shape == (2, 3, 16)


@torch.no_grad()
@pytest.mark.parametrize("name", UNUSUAL)
def test_fast_blocks_equal_plain_ones(name):
    encoder = vit(**UNUSUAL[name])
    fast = encoder(images())
    with choose.turned_off(*choose.NAMES):
        assert (encoder(images()) - fast).abs().max() < 1e-6


def test_recomputed_swiglu_has_the_same_gradients():
    """In half precision on a CPU, the input of the last layer of an MLP is recomputed: here half as wide as what it is made of."""
    encoder = vit(mlp="swiglu").train()
    batch = torch.randn(64, 3, 32, 32)

    def gradients():
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            encoder.transformer(torch.cat([encoder.tokens(batch)] * 8, dim=1)).float().square().mean().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    fast = gradients()
    with choose.turned_off("recompute"):
        plain = gradients()
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("name", UNUSUAL)
def test_masked_methods_train_such_encoders(name, tmp_path):
    batch = Batch(images(4), torch.full((4, 2), 32), sample_keys(0, 0, 4), None)
    encoder = vit(**UNUSUAL[name])
    mae = MAE(encoder, MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2))
    simmim = SimMIM(vit(**UNUSUAL[name]), SimMIMConfig())
    for method in (mae, simmim):
        loss = method(batch).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
        assert method.reconstruct(images()).pixels.shape == (2, 3, 32, 32)
    assert mae.decoder_positions.shape[0] == encoder.config.prefix_tokens + 16
    built = MAE.build(encoder.config, mae.config, AugmentConfig())
    built.load_state_dict(mae.state_dict())
    model_files.save(built, tmp_path)
    again = load(tmp_path, say=lambda text: None).encoder
    assert torch.equal(again.eval()(images()), encoder.eval()(images()))


def test_methods_that_need_a_class_token_say_so():
    encoder = vit(class_token=False)
    for call in (
        lambda: encoder.features(images(), "class"),
        lambda: encoder.attention(images()),
        lambda: DINO.build(encoder.config, DINOConfig(prototypes=16), AugmentConfig()),
    ):
        with pytest.raises(UnveilError, match="needs a class token, but this encoder has none"):
            call()
    with pytest.raises(UnveilError, match="relative biases are known for patches and one class token"):
        ViTConfig(width=48, depth=2, heads=3, image_size=(32, 32), patch_size=(8, 8), registers=1, relative_bias="block")
