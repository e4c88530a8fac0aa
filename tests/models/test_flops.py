"""FLOPs by formula, against torch's own count of what is really run, and against the published figures."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unveil.blocks.fast import choose
from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost, vit_cost
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig

SMALL = ViTConfig(width=48, depth=3, heads=3, image_size=(24, 16), patch_size=(4, 2), channels=2, mean=(0.5,) * 2, std=(0.5,) * 2)
B = 6


@pytest.fixture(autouse=True)
def all_fast_paths() -> Iterator[None]:
    """The formula is that of the fast paths, which compute less."""
    with choose.turned_off():
        yield


def paper(model: str, patch: int) -> ViTConfig:
    width, depth, heads = MODELS[model]
    return ViTConfig(width=width, depth=depth, heads=heads, image_size=(224, 224), patch_size=(patch, patch))


def counted(mae: MAE, back: bool) -> int:
    """FLOPs of a batch in bfloat16, where the CPU's attention is two plain products (the fused one computes the scores twice)."""
    vit = mae.encoder.config
    batch = Batch(torch.randn(B, vit.channels, *vit.image_size), torch.tensor([vit.image_size] * B), sample_keys(0, 0, B))
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        loss = mae(batch).loss
        if back:
            loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "options", [{}, {"loss_on_all": True}, {"mask_tokens_in_encoder": True}, {"mask_ratio": 0.5, "target": "pca"}]
)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_formula_counts_what_is_run(options, depth):
    mae = MAE(ViT(SMALL), MAEConfig(decoder_width=32, decoder_depth=depth, decoder_heads=2, **options))
    visible = mae.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    kept = {"every": mae.config.loss_on_all, "mask_tokens_in_encoder": mae.config.mask_tokens_in_encoder}
    cost = mae_cost(SMALL, visible, width=32, depth=depth, predicted=mae.target.size, batch=B, **kept)
    target = 2 * B * kept_patches(mae, visible) * 16 * mae.target.size if mae.config.target == "pca" else 0
    assert counted(mae, back=False) == round(B * cost.forward) + target
    assert counted(mae, back=True) == round(B * cost.step) + target


def kept_patches(mae: MAE, visible: int) -> int:
    """Patches that a target is computed of."""
    return mae.patches if mae.config.loss_on_all else mae.patches - visible


def test_an_encoder_alone():
    images = torch.randn(B, 2, 24, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ViT(SMALL)(images)
    assert counter.get_total_flops() == B * vit_cost(SMALL).forward


@pytest.mark.parametrize(
    ("model", "patch", "visible", "giga", "ratio", "saved"),
    [("vit-base", 16, 49, 58.5, 2.35, 3.7), ("vit-large", 16, 49, 124.2, 3.23, 1.9), ("vit-huge", 14, 64, 291.0, 3.60, 1.0)],
)
def test_figures_of_the_paper_s_models(model, patch, visible, giga, ratio, saved):
    """GFLOPs of a step of the plain method; with mask tokens in the encoder; what the exact savings take off the forward pass."""
    vit = paper(model, patch)
    shape = {"width": 512, "depth": 8, "predicted": patch * patch * 3}
    plain, full = (
        mae_cost(vit, visible, plain=True, **shape),
        mae_cost(vit, visible, plain=True, mask_tokens_in_encoder=True, **shape),
    )
    assert plain.step / 1e9 == pytest.approx(giga, rel=0.002)
    assert full.step / plain.step == pytest.approx(ratio, abs=0.01)
    assert 100 * (1 - mae_cost(vit, visible, **shape).forward / plain.forward) == pytest.approx(saved, abs=0.3)


@pytest.mark.parametrize("blocks", [(), (1,)])
def test_windows_cost_what_they_compute(blocks):
    shape = replace(SMALL, window=4, global_blocks=blocks, class_token=False)  # 6 x 8 patches, so the grid is padded
    vit = ViT(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        vit(torch.randn(B, 2, 24, 16))
    assert counter.get_total_flops() == round(B * vit_cost(shape).forward)
