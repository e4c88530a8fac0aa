"""What hiding saves: time and memory of a step at several mask ratios, beside its FLOPs; and the encoder with mask tokens.

    python benchmarks/ratios.py --model vit-large --batch 64                   # on a GPU
    python benchmarks/ratios.py --model vit-small --image-size 224 --batch 8   # on a CPU

At ratio 0 nothing is hidden, so there the loss is taken on all patches. The paper's table 1c: an encoder that sees mask tokens
costs ViT-L 3.3 times the FLOPs. All contestants take turns in one process.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from step import our_step, peak_bytes
from turns import keep_heap, receipt, take_turns

from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.cost import mae_cost
from unveil.models.vit import MODELS, ViTConfig

PAPER = 3.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-small")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--decoder-width", type=int, help="512, or the encoder's where that is smaller")
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 0.9])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device, (width, depth, heads) = torch.device(args.device), MODELS[args.model]
    side, patch = (args.image_size,) * 2, (args.patch_size,) * 2
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=patch)
    shape = {"decoder_width": args.decoder_width or min(512, width), "decoder_depth": args.decoder_depth}
    configs = {
        f"{ratio:g}": MAEConfig(mask_ratio=ratio, loss_on_all=ratio == 0, **shape) for ratio in args.ratios
    } | {"0.75, mask tokens in the encoder": MAEConfig(mask_ratio=0.75, mask_tokens_in_encoder=True, **shape)}
    decoder = f"{shape['decoder_width']} x {args.decoder_depth}"
    print(f"{args.model}/{args.patch_size} at {args.image_size} px, decoder {decoder}, batch {args.batch}, {args.precision}")
    print(f"{receipt(device)}\n")
    steppers: dict[str, Callable[[], object]] = {}
    flops, peaks = {}, {}
    for name, config in configs.items():
        torch.manual_seed(0)
        mae = MAE.build(vit, config, AugmentConfig())
        step = our_step(mae, args.batch, args.precision, False, device)
        step()
        steppers[name], peaks[name], flops[name] = step, peak_bytes(step, device), cost(mae, args.batch)
    seconds = {name: statistics.median(times) for name, times in take_turns(steppers, device, rounds=args.rounds).items()}
    base = "0.75" if "0.75" in seconds else next(iter(seconds))
    print(f"| hidden | visible patches | GFLOPs a picture | to {base} | ms a step | to {base} | MiB of tensors | to {base} |")
    print("| " + " | ".join(["---"] * 8) + " |")
    for name, config in configs.items():
        visible = int(vit.grid[0] * vit.grid[1] * (1 - config.mask_ratio))
        seen = vit.grid[0] * vit.grid[1] if config.mask_tokens_in_encoder else visible
        cells = [
            f"{name}{', loss on all' if config.loss_on_all else ''}", f"{seen}", f"{flops[name] / 1e9:.2f}",
            f"{flops[name] / flops[base]:.2f}", f"{1e3 * seconds[name]:.0f}", f"{seconds[name] / seconds[base]:.2f}",
            f"{peaks[name] / 2**20:,.0f}", f"{peaks[name] / peaks[base]:.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    masked = list(configs)[-1]
    more, longer = flops[masked] / flops[base], seconds[masked] / seconds[base]
    print(f"\nWith mask tokens in the encoder: {more:.2f} times the FLOPs and {longer:.2f} times the time;", end=" ")
    print(f"the paper says {PAPER} times the FLOPs, for ViT-L with its decoder of 512 x 8.")


def cost(mae: MAE, batch: int) -> float:
    """FLOPs of a step, for one picture."""
    config, vit = mae.config, mae.encoder.config
    visible = mae.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    assert config.decoder_width is not None
    assert config.decoder_depth is not None
    return mae_cost(
        vit, visible, width=config.decoder_width, depth=config.decoder_depth, predicted=mae.target.size, batch=batch,
        every=config.loss_on_all, mask_tokens_in_encoder=config.mask_tokens_in_encoder,
    ).step  # fmt: skip


if __name__ == "__main__":
    keep_heap()
    main()
