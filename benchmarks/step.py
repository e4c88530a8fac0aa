"""One pre-training step (forward, backward, optimiser) of ours and of its peers: same weights, same images, same mask, same loss.

    python benchmarks/step.py --model vit-base --batch 16            # bf16 on both sides
    python benchmarks/step.py --model vit-tiny --image-size 96 --patch-size 8 --batch 64 --peer-precision float32
    python benchmarks/step.py --model vit-base vit-large vit-huge --batch best --compile default --compiled-peer \
        --public ~/mae --out step.jsonl                # on a GPU; ~/mae is a checkout of the public code

Prints the losses of all, images a second, ratios with their spread, the share of the measured matrix peak (counted on the plain
method's FLOPs, for all alike), and the most memory that tensors took in a step; in a CUDA graph they stay, and count as none.
`--out` gets a JSON line for each batch that was tried and for each model that is done, so that a cut loses nothing.
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
from unveil.models.vit import MODELS, ViTConfig
from unveil.train.memory_trial import Live, matrix_peak

Stepper = Callable[[], Tensor]
Side = Callable[[int, str | None], Stepper]  # the step of a batch size, compiled in this mode or not
Context = Callable[[], AbstractContextManager[object]]
LADDER = [2**i for i in range(4, 13)]
MODES = ["default", "reduce-overhead", "max-autotune-no-cudagraphs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["vit-base"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, help="16, and 14 for vit-huge")
    parser.add_argument("--decoder-width", type=int, default=512)
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--decoder-heads", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--batch", default="16", help="one for all; of several (64,128,256), or of best (16 to 4096), each its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--peer-precision", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", choices=MODES, help="ours compiled, at the batch that was fastest without")
    parser.add_argument("--compiled-peer", action="store_true", help="transformers' model compiled likewise, beside the plain one")
    parser.add_argument("--public", help="a folder with the public MAE code")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=1, help="steps in a turn")
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
    """One model: the same loss, the best batches, the turns."""
    facts: dict[str, Any] = {
        "model": name,
        "image_size": args.image_size,
        "patch_size": args.patch_size or (14 if name == "vit-huge" else 16),
        "receipt": receipt(device),
        "command": sys.argv,
    }
    print(f"\n{name}/{facts['patch_size']} at {args.image_size} px, {args.mask_ratio:.0%} hidden; {facts['receipt']}", flush=True)
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
            sys.exit(f"{peer} computes another loss: {loss} is not {losses['unveil']}")
    best = dict.fromkeys(sides, batches[0])
    for peer, at in sides.items() if len(batches) > 1 else ():
        speeds = {}
        for count, speed in at_batches(lambda count, at=at: at(count, None), batches, device):
            speeds[count] = speed
            print(f"{peer}: {speed:,.1f} images/s in batches of {count}", flush=True)
            write(args.out, facts | {"tried": peer, "batch": count, "images_per_second": speed})
        best[peer] = max(speeds, key=speeds.__getitem__)

    wanted = {peer: (peer, args.compile if peer == "unveil" else None) for peer in sides}
    if args.compiled_peer:
        wanted["transformers, compiled"] = ("transformers", args.compile or "default")
    sizes = {contestant: best[peer] for contestant, (peer, _) in wanted.items()}
    steps = {contestant: sides[peer](sizes[contestant], mode) for contestant, (peer, mode) in wanted.items()}
    peaks = {contestant: peak_bytes(step, device) for contestant, step in steps.items()}
    seconds = take_turns(steps, device, rounds=args.rounds, repeat=args.repeat, warmup=3)
    per_image = {contestant: [t / sizes[contestant] for t in times] for contestant, times in seconds.items()}
    print(table(per_image, 1))
    seen = ours.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    shape = {"width": args.decoder_width, "depth": args.decoder_depth, "predicted": ours.target.size}
    plain, own = mae_cost(vit, seen, plain=True, **shape).step, mae_cost(vit, seen, **shape).step
    peak = matrix_peak(device, args.precision)
    print(
        f"the plain method takes {plain / 1e9:.1f} GFLOPs an image, unveil's savings leave {own / 1e9:.1f};",
        f"measured {args.precision} matrix peak {peak / 1e12:.2f} TFLOP/s",
    )
    result = {}
    for contestant, times in per_image.items():
        share = plain / statistics.median(times) / peak
        print(
            f"{contestant}: batch {sizes[contestant]}, {share:.1%} of the peak,",
            f"at most {peaks[contestant] / 2**20:,.0f} MiB of tensors in a step",
        )
        result[contestant] = {
            "batch": sizes[contestant],
            "compiled": wanted[contestant][1],
            "loss": losses[wanted[contestant][0]],
            "seconds": seconds[contestant],
            "images_per_second": 1 / statistics.median(times),
            "images_per_second_best": 1 / min(times),
            "peak_share": share,
            "peak_bytes": peaks[contestant],
        }
    write(args.out, facts | {"plain_flops": plain, "own_flops": own, "matrix_peak": peak, "contestants": result})


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Appends a JSON line."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def stacked(vit: ViTConfig, count: int, device: torch.device) -> Tensor:
    """The same random images for everybody."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, vit.channels, *vit.image_size, generator=generator).to(device)


def noise_of(ours: MAE, count: int) -> Tensor:
    """Noise whose order hides what ours hides: peers keep the lowest."""
    _, hide = ours.mask(sample_keys(0, 0, count))
    return as_bool(hide, ours.patches).float() + torch.linspace(0, 0.5, ours.patches)


def half(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with a rate so small that the loss stays as it is."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-12, betas=(0.9, 0.95), fused=True)


def stepper(forward: Stepper, optimizer: torch.optim.Optimizer, context: Context) -> Stepper:
    """Forward, backward, optimiser; no gradient stays behind, not even where memory ran out."""

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
    """What to call in place of the model; weights are shared."""
    return model if mode is None else torch.compile(model, mode=mode, dynamic=False)


def our_side(ours: MAE, precision: str, device: torch.device) -> Side:
    """Ours, as the loop calls it."""
    model = ours.to(device).train()
    vit, optimizer = ours.encoder.config, fused_adamw(model)

    def at(count: int, mode: str | None) -> Stepper:
        call, sizes = compiled(model, mode), torch.tensor([vit.image_size] * count, device=device)
        batch = Batch(stacked(vit, count, device), sizes, sample_keys(0, 0, count).to(device))
        return stepper(lambda: call(batch).loss, optimizer, lambda: half(precision, device))

    return at


def transformers_side(ours: MAE, precision: str, device: torch.device) -> Side:
    """ViTMAEForPreTraining with our weights and our mask, with attention by sdpa."""
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
    """The public MAE code with our weights and our mask; float16 with a gradient scale on a GPU, as it trains, else float32.

    It was written for timm 0.3.2 and numpy before 1.24. What they have dropped since is put back while the model is built; timm's
    attention is that of today, by sdpa, which favours the peer. Its loop waits for the GPU in each step, which this one does not.
    """
    import timm.models.vision_transformer as timm_vit

    def block(*args: Any, qk_scale: Literal[None] = None, **options: Any) -> nn.Module:
        made: nn.Module = timm_block(*args, **options)
        return made

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
                with half, patch.object(torch, "rand", lambda *args, **options: noise):  # the code draws its mask from here
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
    """The most memory of tensors made within a step; weights and optimiser state, alike on all sides, are not counted."""
    if device.type == "cuda":
        for _ in range(3):  # compiling and tuning take memory of their own
            step()
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Live() as live:
        step()
    return live.peak


if __name__ == "__main__":
    keep_heap()
    main()
