"""What masking saves: time, memory and FLOPs of a step at several mask ratios, and for an encoder that sees mask tokens.

    python benchmarks/ratios.py --model vit-large --batch 64                   # on a GPU
    python benchmarks/ratios.py --model vit-small --image-size 224 --batch 8   # on a CPU

With a mask ratio of 0 there are no masked patches, so the loss is computed on all patches. Table 1c of the paper: with an encoder
that sees mask tokens, ViT-L needs 3.3 times the FLOPs. All take turns in one process, and a ratio of times is the median of the
ratios within a round. On a CPU, times are processor times, which other programs change less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sides import our_side, peak_bytes
from turns import keep_heap, receipt, take_turns

from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import MODELS, ViTConfig

HEADS = (
    "masked",
    "patches in the encoder",
    "GFLOPs per image",
    "ratio",
    "ms per step",
    "ratio (quartiles)",
    "MiB of tensors",
    "ratio",
)
BASE, MASKED, PAPER = "75%", "75%, mask tokens in the encoder", 3.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-small")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--decoder-width", type=int, help="512 by default, or the width of the encoder if that is smaller")
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    device, (width, depth, heads) = torch.device(args.device), MODELS[args.model]
    side, patch = (args.image_size,) * 2, (args.patch_size,) * 2
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=patch)
    shape: dict[str, Any] = {"decoder_width": args.decoder_width or min(512, width), "decoder_depth": args.decoder_depth}
    configs = {
        "0%, loss on all": MAEConfig(mask_ratio=0.0, loss_on_all=True, **shape),
        "50%": MAEConfig(mask_ratio=0.5, **shape),
        BASE: MAEConfig(mask_ratio=0.75, **shape),
        "90%": MAEConfig(mask_ratio=0.9, **shape),
        MASKED: MAEConfig(mask_ratio=0.75, mask_tokens_in_encoder=True, **shape),
    }
    decoder = f"{shape['decoder_width']} x {args.decoder_depth}"
    print(f"{args.model}/{args.patch_size} at {args.image_size} px, decoder {decoder}, batch {args.batch}, {args.precision}")
    print(f"{receipt(device)}\n")
    steps: dict[str, Callable[[], object]] = {}
    flops, peaks, encoded = {}, {}, {}
    for name, config in configs.items():
        torch.manual_seed(0)
        mae = MAE.build(vit, config, AugmentConfig())
        visible = mae.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
        encoded[name] = vit.grid[0] * vit.grid[1] if config.mask_tokens_in_encoder else visible
        flops[name] = mae_cost(
            vit,
            visible,
            width=shape["decoder_width"],
            depth=shape["decoder_depth"],
            predicted=mae.target.size,
            batch=args.batch,
            every=config.loss_on_all,
            mask_tokens_in_encoder=config.mask_tokens_in_encoder,
        ).step
        steps[name] = our_side(mae, args.precision, device)(args.batch, None)
        steps[name]()  # allocates the moments of the optimiser
        peaks[name] = peak_bytes(steps[name], device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = take_turns(steps, device, rounds=args.rounds, clock=clock)
    slower = {name: sorted(a / b for a, b in zip(seconds[name], seconds[BASE], strict=True)) for name in configs}
    print(f"Ratios are relative to a mask ratio of {BASE}.\n\n| {' | '.join(HEADS)} |\n| {' | '.join(['---'] * len(HEADS))} |")
    for name in configs:
        low, middle, high = statistics.quantiles(slower[name], n=4)
        cells = [
            name,
            f"{encoded[name]}",
            f"{flops[name] / 1e9:.2f}",
            f"{flops[name] / flops[BASE]:.2f}",
            f"{1e3 * statistics.median(seconds[name]):.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{peaks[name] / 2**20:,.1f}",
            f"{peaks[name] / peaks[BASE]:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")
    more, longer = flops[MASKED] / flops[BASE], statistics.median(slower[MASKED])
    print(f"\nWith mask tokens in the encoder: {more:.2f} times the FLOPs and {longer:.2f} times the time;", end=" ")
    print(f"according to the paper {PAPER} times the FLOPs, for ViT-L with its decoder of 512 x 8.")


if __name__ == "__main__":
    keep_heap()
    main()
