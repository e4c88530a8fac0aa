"""Loss curves of the training loop and of a plain one: the same weights, images and masks in every step.

    python benchmarks/curves.py digits --model vit-nano --steps 500 --out curves.json --plot curves.png
    python benchmarks/curves.py packed/ --model vit-base --batch 256 --steps 500 --compile          # on a GPU

"fast" is the training loop as it is. "slow" is a masked autoencoder that is written out below: a convolution embeds every patch,
mask tokens are inserted at the masked positions, the decoder computes all tokens, attention is the formula, and AdamW updates one
tensor at a time. Rounding alone makes two curves drift apart, and more so the longer they run. So each difference is printed beside
that of two curves that differ in rounding only.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import receipt

from unveil.data.augment import AugmentConfig
from unveil.data.dataset import ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.sources import open_source
from unveil.interop import mae_release
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.runs.open_data import natural_side, sizes_for, stored_side
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.schedule import half_cosine

PAIRS = {
    "fast, bfloat16": "slow, float32",
    "slow, bfloat16": "slow, float32",  # the effect of bfloat16 alone
    "fast, float32": "slow, float32",
    "slow, float64": "slow, float32",  # the effect of rounding in float32 alone
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--model", choices=MODELS, default="vit-nano")
    parser.add_argument("--target", choices=["normalised", "pixel"], default="normalised")
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--crop", choices=["resized", "fixed", "none"], default="resized")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--base-lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="compile the fast path in bfloat16")
    parser.add_argument("--out", type=Path, help="a JSON file for all curves")
    parser.add_argument("--plot", type=Path, help="a PNG file for a plot")
    args = parser.parse_args()
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # by default, a GPU convolves in lower precision than float32
    world, source = World(torch.device(args.device)), open_source(args.data)
    image_size, patch_size = sizes_for(natural_side(source, 10**8), (), (), args.model == "vit-huge")
    width, depth, heads = MODELS[args.model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=image_size, patch_size=patch_size)
    config, optim = MAEConfig(target=args.target, mask_ratio=args.mask_ratio), OptimConfig(base_lr=args.base_lr)
    images = ImageDataset(source, side=stored_side(image_size), channels=vit.channels)
    loader = ImageLoader(images, batch_size=args.batch, seed=0)

    def untrained() -> MAE:
        torch.manual_seed(0)
        return MAE.build(vit, config, AugmentConfig(crop=args.crop))

    print(
        f"{args.model}/{patch_size[0]} at {image_size[0]} px, {args.target} target, {args.mask_ratio:.0%} masked,",
        f"{args.steps} steps of {args.batch}, base learning rate {args.base_lr}; {receipt(world.device)}",
        flush=True,
    )
    curves = {}
    for name in dict.fromkeys([*PAIRS.values(), *PAIRS]):
        path, precision = name.split(", ")
        half, compiled = precision == "bfloat16", args.compile and name == "fast, bfloat16"
        hardware = HardwareConfig(device=args.device, precision="bfloat16" if half else "float32", compile=compiled)
        training = TrainConfig(
            epochs=args.steps * args.batch / loader.samples, batch_size=args.batch, accum_steps=1, log_every=1, num_evals=1
        )
        recipe, dtype = Recipe(training, optim, hardware, world), torch.float64 if precision == "float64" else torch.float32
        curves[name] = fast(untrained(), loader, recipe) if path == "fast" else slow(untrained(), loader, recipe, args.steps, dtype)
        print(f"{name}: from {curves[name][0]:.5f} to {curves[name][-1]:.5f}", flush=True)
    print_curves(curves)
    if args.out:
        args.out.write_text(json.dumps({"command": sys.argv, "receipt": receipt(world.device), "curves": curves}))
    if args.plot:
        plot(curves, args.plot)


class Records:
    """A sink that keeps the records of the log."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def start(self, first: int) -> None: ...

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None: ...


def fast(learner: MAE, loader: ImageLoader, recipe: Recipe) -> list[float]:
    """The losses of the training loop."""
    sink = Records()
    train(learner, loader, recipe, sinks=[sink])
    return [record["loss"] for record in sink.records]


def slow(learner: MAE, loader: ImageLoader, recipe: Recipe, steps: int, dtype: torch.dtype) -> list[float]:
    """The losses of a plain loop around the plain model below. Weights, augmentation and masks are those of the learner."""
    optim, hardware, world = recipe.optim, recipe.hardware, recipe.world
    state = mae_release.state_of(learner)
    weights = {name: x.to(world.device, dtype).requires_grad_("pos_embed" not in name) for name, x in state.items()}
    trained = {name: x for name, x in weights.items() if x.requires_grad}
    decays = [x for name, x in trained.items() if name.endswith("weight") and x.ndim > 1]
    others = [x for x in trained.values() if not any(x is y for y in decays)]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(optim.beta1, optim.beta2),
        foreach=False,
        fused=False,
    )
    losses = []
    for step in range(steps):
        batch = learner.augment(loader.share(step, 0, 1).to(world.device))
        keep, hide = learner.mask(batch.keys)
        for group in optimizer.param_groups:
            group["lr"] = optim.peak(loader.batch_size) * half_cosine(step, steps, round(optim.warmup_ratio * steps))
        with autocast(hardware, world):
            loss = plain_loss(weights, learner, batch.images.to(dtype), keep, hide)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def plain_loss(weights: dict[str, Tensor], learner: MAE, images: Tensor, keep: Tensor, hide: Tensor) -> Tensor:
    """The loss of MAE as in figure 1 of the paper. The weights have the names of the public release."""
    vit, config = learner.encoder.config, learner.config
    b, (p, q) = len(images), vit.patch_size

    def rows(indices: Tensor, size: int) -> Tensor:
        return indices[:, :, None].expand(-1, -1, size)

    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=vit.patch_size)
    x = x.flatten(2).transpose(1, 2) + weights["pos_embed"][:, 1:]  # (B, N, D)
    x = x.gather(1, rows(keep, x.shape[2]))  # (B, V, D)
    first = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(b, -1, -1)
    x = torch.cat([first, x], dim=1)
    for i in range(vit.depth):
        x = plain_block(weights, f"blocks.{i}.", x, vit.heads)
    x = linear(weights, "decoder_embed.", layer_norm(weights, "norm.", x))  # (B, 1 + V, E)

    tokens = weights["mask_token"].expand(b, learner.patches, -1).to(x.dtype)
    tokens = tokens.scatter(1, rows(keep, x.shape[2]), x[:, 1:])
    x = torch.cat([x[:, :1], tokens], dim=1) + weights["decoder_pos_embed"]  # (B, 1 + N, E)
    for i in range(len(learner.decoder.blocks)):
        x = plain_block(weights, f"decoder_blocks.{i}.", x, learner.decoder.config.heads)
    predicted = linear(weights, "decoder_pred.", layer_norm(weights, "decoder_norm.", x))[:, 1:]  # (B, N, P)

    true = F.unfold(images, vit.patch_size, stride=vit.patch_size)  # (B, C p q, N), channels first
    true = true.unflatten(1, (vit.channels, p * q)).permute(0, 3, 2, 1).flatten(2)
    if config.target == "normalised":
        true = (true - true.mean(dim=2, keepdim=True)) / (true.var(dim=2, keepdim=True) + 1e-6).sqrt()
    errors = (predicted.to(true.dtype) - true).square().mean(dim=2)  # (B, N)
    hidden = torch.zeros_like(errors).scatter(1, hide, 1.0)
    return (errors * hidden).sum() / hidden.sum()


def plain_block(weights: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Attention around a residual sum, then the MLP around another."""
    projected = linear(weights, f"{name}attn.qkv.", layer_norm(weights, f"{name}norm1.", x))
    query, key, value = (part.unflatten(2, (heads, -1)) for part in projected.chunk(3, dim=2))  # (B, T, h, d)
    scores = torch.einsum("bthd,bshd->bhts", query, key) / query.shape[3] ** 0.5
    mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(dim=3), value).flatten(2)
    x = x + linear(weights, f"{name}attn.proj.", mixed)
    hidden = F.gelu(linear(weights, f"{name}mlp.fc1.", layer_norm(weights, f"{name}norm2.", x)))
    return x + linear(weights, f"{name}mlp.fc2.", hidden)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}weight"], weights[f"{name}bias"])


def layer_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}weight"], weights[f"{name}bias"], eps=1e-6)


def print_curves(curves: dict[str, list[float]]) -> None:
    """Prints the curves at some steps, and the differences of each pair."""
    count = len(curves["slow, float32"])
    shown = sorted({min(max(0, round(count * part) - 1), count - 1) for part in (0, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1)})
    print(f"{'loss at step':>16}  " + "  ".join(f"{step + 1:>9}" for step in shown))
    for name, losses in curves.items():
        print(f"{name:>16}  " + "  ".join(f"{losses[step]:9.6f}" for step in shown))
    print("relative difference of the losses at each step, and of their mean over the last tenth (end):")
    for name, other in PAIRS.items():
        apart = [abs(a - b) / b for a, b in zip(curves[name], curves[other], strict=True)]
        ends = [sum(curves[key][-max(count // 10, 1) :]) for key in (name, other)]
        print(
            f"{name:>16} from {other}: largest {max(apart):.2e} (step {apart.index(max(apart)) + 1}),",
            f"mean {sum(apart) / count:.2e}, first step {apart[0]:.2e}, end {abs(ends[0] - ends[1]) / ends[1]:.2e}",
        )


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Draws the losses above, and the differences below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for name in ("slow, float32", "fast, bfloat16"):
        above.plot(curves[name], label=name, linewidth=1)
    for name, other in PAIRS.items():
        apart = [max(abs(a - b) / b, 1e-9) for a, b in zip(curves[name], curves[other], strict=True)]
        below.semilogy(apart, label=f"{name}, from {other}", linewidth=0.7)
    above.set_ylabel("loss")
    below.set(xlabel="step", ylabel="relative difference")
    above.legend()
    below.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
