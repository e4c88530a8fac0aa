"""UperNet against transformers' with the same weights, and the light head against a computation by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, UperNetForSemanticSegmentation
from transformers import UperNetConfig as TheirConfig

from unveil.blocks.map_norms import MapBatchNorm
from unveil.models.pyramid import PyramidConfig, build_pyramid
from unveil.models.upernet import LinearHead, UperNet, UperNetConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

CHANNELS, K = (6, 8, 10, 12), 5


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.2, 0.6) if value.ndim == 1 else value.normal_(std=0.3)
    return module.eval()


def maps(height: int = 16, width: int = 24, count: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(count, c, height // f, width // f) for c, f in zip(CHANNELS, (1, 2, 4, 8), strict=True)]


def their_names(ours: str) -> str:
    """The name of a tensor of ours in transformers."""
    part, *rest = ours.split(".")
    leaf = rest[-1]
    if part in ("classify", "auxiliary") and rest[-2] == "1" and (part == "classify" or rest[0] == "1"):
        return f"{'decode_head' if part == 'classify' else 'auxiliary_head'}.classifier.{leaf}"
    layer = "conv" if rest[-2] == "0" else "batch_norm"
    place = {
        "pools": f"decode_head.psp_modules.{rest[0]}.1",
        "top": "decode_head.bottleneck",
        "lateral": f"decode_head.lateral_convs.{rest[0]}",
        "levels": f"decode_head.fpn_convs.{rest[0]}",
        "fusion": "decode_head.fpn_bottleneck",
        "auxiliary": "auxiliary_head.convs.0",
    }[part]
    return f"{place}.{layer}.{leaf}"


def both() -> tuple[UperNet, UperNetForSemanticSegmentation]:
    backbone = ConvNextConfig(hidden_sizes=list(CHANNELS), depths=[1] * 4, out_features=[f"stage{i}" for i in (1, 2, 3, 4)])
    shape = {"hidden_size": 7, "auxiliary_channels": 9, "num_labels": K, "use_auxiliary_head": True}
    peer = UperNetForSemanticSegmentation(TheirConfig(backbone_config=backbone, **shape)).eval()
    ours = shaken(UperNet(CHANNELS, K, UperNetConfig(channels=7, auxiliary_channels=9, norm="batch")))
    state = {their_names(name): value for name, value in ours.state_dict().items()}
    heads = {name for name in peer.state_dict() if name.startswith(("decode_head.", "auxiliary_head."))}
    assert state.keys() == heads
    peer.load_state_dict(state, strict=False)
    return ours, peer


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 24), (8, 8), (56, 40)])
def test_scores_equal_those_of_transformers(size):
    ours, peer = both()
    found = ours(maps(*size))
    torch.testing.assert_close(found.logits, peer.decode_head(maps(*size)), rtol=1e-4, atol=1e-5)
    assert found.auxiliary is None
    assert ours.auxiliary is not None
    torch.testing.assert_close(ours.auxiliary(maps(*size)[2]), peer.auxiliary_head(maps(*size)), rtol=1e-4, atol=1e-5)
    assert found.logits.shape == (2, K, *size)


def test_gradients_equal_those_of_transformers_in_training():
    ours, peer = both()
    for module in (ours, peer):
        module.train()
        for dropout in module.modules():
            if isinstance(dropout, nn.Dropout2d):
                dropout.p = 0.0
    found = ours(maps())
    (found.logits.square().mean() + found.auxiliary.square().mean()).backward()
    (peer.decode_head(maps()).square().mean() + peer.auxiliary_head(maps()).square().mean()).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[their_names(name)].grad, rtol=1e-3, atol=1e-5)
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, peer.state_dict()[their_names(name)])


@pytest.mark.parametrize("head", [UperNet, LinearHead])
def test_an_image_does_not_see_its_batch(head):
    """With the default norm: a batch of one, of odd size, trains like a part of a larger batch."""
    model = head(CHANNELS, K, UperNetConfig(channels=8, auxiliary_channels=8, dropout=0.0)).train()
    together, alone = model(maps(count=3)), model([m[1:2] for m in maps(count=3)])
    torch.testing.assert_close(together.logits[1:2], alone.logits)
    if head is UperNet:
        torch.testing.assert_close(together.auxiliary[1:2], alone.auxiliary)
    (alone.logits.square().mean() + (0 if alone.auxiliary is None else alone.auxiliary.square().mean())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    evaluated = model.eval()([m[1:2] for m in maps(count=3)])
    torch.testing.assert_close(evaluated.logits, alone.logits)


def test_without_an_auxiliary_head():
    model = UperNet(CHANNELS, K, UperNetConfig(channels=8, auxiliary_channels=0)).train()
    assert model.auxiliary is None
    assert model(maps()).auxiliary is None


def test_dropout_takes_whole_channels():
    model = UperNet(CHANNELS, K, UperNetConfig(channels=64, dropout=0.5)).train()
    seen = []
    model.classify[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(maps())
    dead = (seen[0] == 0).flatten(2).all(dim=2)
    assert 0.3 < dead.float().mean() < 0.7
    seen.clear()
    model.eval()(maps())
    assert not (seen[0] == 0).flatten(2).all(dim=2).all()


@torch.no_grad()
def test_the_light_head_by_hand():
    model = shaken(LinearHead((4, 6), K, UperNetConfig(channels=3)))
    first, second = torch.randn(2, 4, 2, 3), torch.randn(2, 6, 1, 2)
    second_resized = F.interpolate(second, size=(2, 3), mode="bilinear")

    def layer_norm(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return F.layer_norm(x.movedim(1, 3), (x.shape[1],), layer.weight, layer.bias, 1e-6).movedim(3, 1)

    normed = F.interpolate(layer_norm(second, model.norms[1]), size=(2, 3), mode="bilinear")
    assert not torch.allclose(normed, layer_norm(second_resized, model.norms[1]), atol=1e-3)
    x = torch.cat([layer_norm(first, model.norms[0]), normed], dim=1)
    x = layer_norm(torch.einsum("bchw,dc->bdhw", x, model.mix[0].weight[:, :, 0, 0]), model.mix[1]).relu()
    for step, size in zip(model.finer, ((4, 6), (8, 12)), strict=True):
        x = F.interpolate(x, size=size, mode="bilinear")
        x = layer_norm(F.conv2d(x, step[0].weight, padding=1), step[1]).relu()
    last = model.classify[1]
    true = torch.einsum("bchw,kc->bkhw", x, last.weight[:, :, 0, 0]) + last.bias[:, None, None]
    torch.testing.assert_close(model([first, second]).logits, true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("levels", "head"), [("depths", UperNet), ("last", UperNet), ("patches", LinearHead)])
def test_on_a_pyramid_in_half_precision(levels, head):
    encoder = ViT(ViTConfig(width=16, depth=4, heads=2, image_size=(32, 32), patch_size=(8, 8)))
    pyramid = build_pyramid(encoder, PyramidConfig(levels=levels, channels=8))
    model = head(pyramid.channels, K, UperNetConfig(channels=8, auxiliary_channels=8)).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(pyramid(torch.randn(1, 3, 40, 24)))
    assert found.logits.shape == (1, K, 20, 12)
    found.logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in pyramid.parameters() if p.grad is not None)


def test_batch_norm_keeps_running_statistics():
    model = UperNet(CHANNELS, K, UperNetConfig(channels=8, norm="batch")).train()
    model(maps())
    norms = [module for module in model.modules() if isinstance(module, MapBatchNorm)]
    assert len(norms) == 4 + 1 + 3 + 3 + 1 + 1
    assert all(norm.num_batches_tracked == 1 for norm in norms)
