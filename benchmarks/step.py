"""One pre-training step of unveil and of other implementations, with the same weights, images, masks and loss.

    python benchmarks/step.py --model vit-base --batch 16            # bfloat16 on both sides
    python benchmarks/step.py --model vit-tiny --image-size 96 --patch-size 8 --batch 64 --peer-precision float32
    python benchmarks/step.py --model vit-base vit-large vit-huge --batch best --compile default --compiled-peer \
        --public ~/mae --out step.jsonl                # on a GPU; ~/mae is a checkout of the public code

A step is the forward pass, the backward pass and the optimiser. Prints the losses, images per second, ratios with their spread, the
share of the measured matrix peak (from the FLOPs of the plain method, for all implementations), and the peak memory of tensors in a
step. The tensors of a CUDA graph are allocated once and are not counted. `--out` gets a JSON line for each batch size and for each
finished model, so that an interruption loses nothing.
"""

import argparse
import importlib
import json
import math
import statistics
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
from turns import at_batches, free, keep_heap, receipt, table, take_turns, wait

from unveil.blocks.masks import as_bool
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.interop import mae_release, transformers_vit_mae
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.train.memory_trial import LiveTensors, matrix_peak

Stepper = Callable[[], Tensor]
Side = Callable[[int, str | None], Stepper]  # the step for a batch size, compiled in a mode or not
Context = Callable[[], AbstractContextManager[object]]
LADDER = [2**i for i in range(4, 13)]
MODES = ["default", "reduce-overhead", "max-autotune-no-cudagraphs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["vit-base"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, help="16 by default, and 14 for vit-huge")
    parser.add_argument("--decoder-width", type=int, default=512)
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--decoder-heads", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument(
        "--batch",
        default="16",
        help="one batch size; or several (64,128,256), or best (16 to 4096), of which each side takes its fastest",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--peer-precision", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", choices=MODES, help="compile unveil, at the batch size that was fastest without")
    parser.add_argument("--compiled-peer", action="store_true", help="also measure the model of transformers compiled")
    parser.add_argument("--public", help="a folder with the public MAE code")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=1, help="steps per turn")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, appended to")
    args = parser.parse_args()
    args.peer_precision = args.peer_precision or args.precision
    if args.threads:
        torch.set_num_threads(args.threads)
    for model in args.model:
        compare(model, args, torch.device(args.device))
        torch.compiler.reset()
        free()


def compare(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """Compares one model: checks that the losses agree, finds the best batch sizes, and measures in turns."""
    facts: dict[str, Any] = {
        "model": name,
        "image_size": args.image_size,
        "patch_size": args.patch_size or (14 if name == "vit-huge" else 16),
        "receipt": receipt(device),
        "command": sys.argv,
    }
    print(f"\n{name}/{facts['patch_size']} at {args.image_size} px, {args.mask_ratio:.0%} masked; {facts['receipt']}", flush=True)
    width, depth, heads = MODELS[name]
    side = (args.image_size,) * 2
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=(facts["patch_size"],) * 2)
    config = MAEConfig(
        mask_ratio=args.mask_ratio,
        decoder_width=args.decoder_width,
        decoder_depth=args.decoder_depth,
        decoder_heads=args.decoder_heads,
    )
    torch.manual_seed(0)
    ours = MAE.build(vit, config, AugmentConfig())
    sides = {"transformers": transformers_side(ours, args.peer_precision, device)}
    if args.public:
        sides["public"] = public_side(args.public, ours, device)
    sides = {"unveil": our_side(ours, args.precision, device)} | sides

    batches = LADDER if args.batch == "best" else sorted(map(int, args.batch.split(",")))
    losses = {peer: float(side(batches[0], None)()) for peer, side in sides.items()}
    print("losses:", ", ".join(f"{peer} {loss:.6f}" for peer, loss in losses.items()), flush=True)
    tolerance = 1e-4 if {args.precision, args.peer_precision} == {"float32"} else 1e-2
    for peer, loss in losses.items():
        if not math.isclose(loss, losses["unveil"], rel_tol=tolerance):
            sys.exit(f"the loss of {peer} is {loss}, expected {losses['unveil']}")
    best = dict.fromkeys(sides, batches[0])
    for peer, at in sides.items() if len(batches) > 1 else ():
        speeds = {}
        for count, speed in at_batches(lambda count, at=at: at(count, None), batches, device):
            speeds[count] = speed
            print(f"{peer}: {speed:,.1f} images/s in batches of {count}", flush=True)
            write(args.out, facts | {"tried": peer, "batch": count, "images_per_second": speed})
        best[peer] = max(speeds, key=speeds.__getitem__)

    variants = {peer: (peer, args.compile if peer == "unveil" else None) for peer in sides}
    if args.compiled_peer:
        variants["transformers, compiled"] = ("transformers", args.compile or "default")
    sizes = {variant: best[peer] for variant, (peer, _) in variants.items()}
    steps = {variant: sides[peer](sizes[variant], mode) for variant, (peer, mode) in variants.items()}
    peaks = {variant: peak_bytes(step, device) for variant, step in steps.items()}
    seconds = take_turns(steps, device, rounds=args.rounds, repeat=args.repeat, warmup=3)
    per_image = {variant: [t / sizes[variant] for t in times] for variant, times in seconds.items()}
    print(table(per_image, 1))
    visible = ours.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    shape = {"width": args.decoder_width, "depth": args.decoder_depth, "predicted": ours.target.size}
    plain, own = mae_cost(vit, visible, plain=True, **shape).step, mae_cost(vit, visible, **shape).step
    peak = matrix_peak(device, args.precision)
    print(
        f"GFLOPs per image: {plain / 1e9:.1f} for the plain method, {own / 1e9:.1f} for unveil;",
        f"measured {args.precision} matrix peak {peak / 1e12:.2f} TFLOP/s",
    )
    result = {}
    for variant, times in per_image.items():
        share = plain / statistics.median(times) / peak
        print(
            f"{variant}: batch {sizes[variant]}, {share:.1%} of the peak,",
            f"at most {peaks[variant] / 2**20:,.0f} MiB of tensors in a step",
        )
        result[variant] = {
            "batch": sizes[variant],
            "compiled": variants[variant][1],
            "loss": losses[variants[variant][0]],
            "seconds": seconds[variant],
            "images_per_second": 1 / statistics.median(times),
            "images_per_second_best": 1 / min(times),
            "peak_share": share,
            "peak_bytes": peaks[variant],
        }
    write(args.out, facts | {"plain_flops": plain, "own_flops": own, "matrix_peak": peak, "variants": result})


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Appends a JSON line."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


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


if __name__ == "__main__":
    keep_heap()
    main()
