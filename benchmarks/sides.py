"""A training step of each implementation that `step.py` compares: the same weights, images, masks and loss."""

import importlib
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from turns import wait

from unveil.blocks.masks import as_bool
from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.interop import mae_release, transformers_vit_mae
from unveil.methods.mae import MAE
from unveil.models.vit_config import ViTConfig
from unveil.train.memory_trial import LiveTensors

Stepper = Callable[[], Tensor]
Side = Callable[[int, str | None], Stepper]  # the step for a batch size, compiled in a mode or not
Context = Callable[[], AbstractContextManager[object]]


def stacked(vit: ViTConfig, count: int, device: torch.device) -> Tensor:
    """Random images, the same for all."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, vit.channels, *vit.image_size, generator=generator).to(device)


def noise_of(ours: MAE, count: int) -> Tensor:
    """Noise that gives our mask in the other implementations, which keep the patches with the lowest noise."""
    _, hide = ours.mask(sample_keys(0, 0, count))
    return as_bool(hide, ours.patches).float() + torch.linspace(0, 0.5, ours.patches)


def half(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or no autocast."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with a learning rate so small that the loss does not change."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-12, betas=(0.9, 0.95), fused=True)


def stepper(forward: Stepper, optimizer: torch.optim.Optimizer, context: Context) -> Stepper:
    """Forward pass, backward pass, optimiser. Gradients are freed even if memory runs out."""

    def step() -> Tensor:
        try:
            with context():
                loss = forward()
            loss.backward()
            optimizer.step()
        finally:
            optimizer.zero_grad()
        return loss.detach()

    return step


def compiled(model: nn.Module, mode: str | None) -> nn.Module:
    """The model, compiled in a mode or not; the weights are shared."""
    return model if mode is None else torch.compile(model, mode=mode, dynamic=False)


def our_side(ours: MAE, precision: str, device: torch.device) -> Side:
    """unveil, as the training loop calls it."""
    model = ours.to(device).train()
    vit, optimizer = ours.encoder.config, fused_adamw(model)

    def at(count: int, mode: str | None) -> Stepper:
        call, sizes = compiled(model, mode), torch.tensor([vit.image_size] * count, device=device)
        batch = Batch(stacked(vit, count, device), sizes, sample_keys(0, 0, count).to(device))
        return stepper(lambda: call(batch).loss, optimizer, lambda: half(precision, device))

    return at


def transformers_side(ours: MAE, precision: str, device: torch.device) -> Side:
    """ViTMAEForPreTraining with our weights and masks, and with sdpa attention."""
    from transformers import ViTMAEForPreTraining

    with tempfile.TemporaryDirectory() as folder:
        written = transformers_vit_mae.export(ours, Path(folder) / "ours")
        model = ViTMAEForPreTraining.from_pretrained(written, attn_implementation="sdpa")
    model = model.to(device).train()
    optimizer = fused_adamw(model)

    def at(count: int, mode: str | None) -> Stepper:
        call, images = compiled(model, mode), stacked(ours.encoder.config, count, device)
        noise = noise_of(ours, count).to(device)
        return stepper(lambda: call(images, noise=noise).loss, optimizer, lambda: half(precision, device))

    return at


def public_side(folder: str, ours: MAE, device: torch.device) -> Side:
    """The public MAE code with our weights and masks; on a GPU in float16 with gradient scaling, as it trains, else in float32.

    It was written for timm 0.3.2 and numpy before 1.24. Names that they have removed since are restored while the model is built.
    The attention is that of the present timm, by sdpa, which makes the public code faster. Its own loop waits for the GPU in each
    step, and this one does not.
    """
    import timm.models.vision_transformer as timm_vit

    def block(*args: Any, qk_scale: Literal[None] = None, **options: Any) -> nn.Module:
        module: nn.Module = timm_block(*args, **options)
        return module

    def norm(size: int, **options: Any) -> nn.Module:
        return nn.LayerNorm(size, eps=1e-6, **options)

    timm_block, vit, config = timm_vit.Block, ours.encoder.config, ours.config
    with (
        patch.object(timm_vit, "Block", block),
        patch.object(np, "float", float, create=True),
        patch.object(sys, "path", [folder, *sys.path]),
    ):
        model = importlib.import_module("models_mae").MaskedAutoencoderViT(
            img_size=vit.image_size[0],
            patch_size=vit.patch_size[0],
            in_chans=vit.channels,
            embed_dim=vit.width,
            depth=vit.depth,
            num_heads=vit.heads,
            decoder_embed_dim=config.decoder_width,
            decoder_depth=config.decoder_depth,
            decoder_num_heads=config.decoder_heads,
            norm_layer=norm,
            norm_pix_loss=config.target == "normalised",
        )
    model.load_state_dict(mae_release.state_of(ours))
    model = model.to(device).train()
    on_gpu = device.type == "cuda"
    scaler, half = torch.amp.GradScaler(device.type, enabled=on_gpu), torch.autocast(device.type, torch.float16, enabled=on_gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, betas=(0.9, 0.95))

    def at(count: int, mode: str | None) -> Stepper:
        call, images, noise = compiled(model, mode), stacked(vit, count, device), noise_of(ours, count).to(device)

        def step() -> Tensor:
            try:
                with half, patch.object(torch, "rand", lambda *args, **options: noise):  # the public code draws its mask from this
                    loss, _, _ = call(images, mask_ratio=config.mask_ratio)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            finally:
                optimizer.zero_grad()
            return loss.detach()

        return step

    return at


def peak_bytes(step: Stepper, device: torch.device) -> int:
    """The peak memory of tensors made within a step. Weights and optimiser state, the same on all sides, are not counted."""
    if device.type == "cuda":
        for _ in range(3):  # compiling and tuning need memory too
            step()
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as live:
        step()
    return live.peak
