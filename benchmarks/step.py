"""One pre-training step of unveil and of other implementations, with the same weights, images, masks and loss.

    python benchmarks/step.py --model vit-base --batch 16            # bfloat16 on both sides
    python benchmarks/step.py --model vit-tiny --image-size 96 --patch-size 8 --batch 64 --peer-precision float32
    python benchmarks/step.py --model vit-base vit-large vit-huge --batch best --compile default --compiled-peer \
        --public ~/mae --out step.jsonl                # on a GPU; ~/mae is a checkout of the public code

A step is the forward pass, the backward pass and the optimiser. It is measured with the decoder that `unveil pretrain` trains by
default, and with the paper's (512 x 8, 16 heads) where that is another one. Prints the losses; images per second, and ratios with
their quartiles, in wall time and on a CPU also in processor time, which other programs on the machine change less; the share of the
speed of the fastest large matrix product that ran in the same rounds; and the peak memory of tensors in a step. The share is of the
FLOPs that a side computes itself, so it is below 100 %. The tensors of a CUDA graph are allocated once and are not counted. `--out`
gets a JSON line for each batch size and for each finished model, so that an interruption loses nothing.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sides import Side, our_side, peak_bytes, public_side, transformers_side
from turns import at_batches, free, keep_heap, matrix_products, receipt, table, take_timed_turns

from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import MODELS, ViTConfig

LADDER = [2**i for i in range(4, 13)]
MODES = ["default", "reduce-overhead", "max-autotune-no-cudagraphs"]
CLOCKS = [("wall time", "seconds"), ("processor time of all threads", "cpu_seconds")]
DECODERS: dict[str, dict[str, int]] = {"default": {}, "paper": {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["vit-base"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, help="16 by default, and 14 for vit-huge")
    parser.add_argument("--decoder", choices=DECODERS, nargs="+", default=[*DECODERS])
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
    for name in args.model:
        done: list[MAEConfig] = []
        for decoder in args.decoder:
            ours = untrained(name, decoder, args)
            if ours.config not in done:  # from vit-base on, the default is the paper's
                done.append(ours.config)
                compare(ours, {"model": name, "decoder": decoder}, args)
            if args.compile or args.compiled_peer:
                torch.compiler.reset()
            free()


def untrained(name: str, decoder: str, args: argparse.Namespace) -> MAE:
    """A new model of unveil."""
    width, depth, heads = MODELS[name]
    side, patch_size = (args.image_size,) * 2, (args.patch_size or (14 if name == "vit-huge" else 16),) * 2
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=patch_size)
    torch.manual_seed(0)
    return MAE.build(vit, MAEConfig(mask_ratio=args.mask_ratio, **DECODERS[decoder]), AugmentConfig())


def compare(ours: MAE, names: dict[str, str], args: argparse.Namespace) -> None:
    """Compares one model: checks that the losses agree, finds the best batch sizes, measures in turns, and prints."""
    device, vit, config = torch.device(args.device), ours.encoder.config, ours.config
    decoder = f"{config.decoder_width} x {config.decoder_depth}, {config.decoder_heads} heads"
    sizes = {"image_size": vit.image_size[0], "patch_size": vit.patch_size[0]}
    facts: dict[str, Any] = names | sizes | {"decoder_shape": decoder, "receipt": receipt(device), "command": sys.argv}
    title = f"{names['model']}/{sizes['patch_size']} at {sizes['image_size']} px, {args.mask_ratio:.0%} masked"
    print(f"\n{title}; {names['decoder']} decoder, {decoder}; {facts['receipt']}", flush=True)
    sides = {"unveil": our_side(ours, args.precision, device), "transformers": transformers_side(ours, args.peer_precision, device)}
    if args.public:
        sides["public"] = public_side(args.public, ours, device)
    batches = LADDER if args.batch == "best" else sorted(map(int, args.batch.split(",")))
    losses = checked_losses(sides, batches[0], 1e-4 if {args.precision, args.peer_precision} == {"float32"} else 1e-2)
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
    steps = {variant: sides[peer](best[peer], mode) for variant, (peer, mode) in variants.items()}
    peaks = {variant: peak_bytes(step, device) for variant, step in steps.items()}
    precisions = {variant: args.precision if variant == "unveil" else args.peer_precision for variant in steps}
    if "public" in steps:
        precisions["public"] = "bfloat16" if device.type == "cuda" else "float32"  # float16 is as fast as bfloat16
    products = {p: matrix_products(device, p) for p in sorted(set(precisions.values()))}
    large = {product: run for each in products.values() for product, (_, run) in each.items()}
    laps = take_timed_turns(steps | large, device, rounds=args.rounds, repeat=args.repeat, warmup=3)
    measured: dict[str, Any] = {}
    for variant, (peer, mode) in variants.items():
        measured[variant] = {
            "batch": best[peer],
            "compiled": mode,
            "loss": losses[peer],
            "seconds": [wall for wall, _ in laps[variant]],
            "cpu_seconds": [cpu for _, cpu in laps[variant]],
            "flops": flops_of(ours, best[peer], plain=peer != "unveil"),
            "peak_bytes": peaks[variant],
        }
    clock, unit = ("cpu_seconds", "CPU second") if device.type == "cpu" else ("seconds", "second")
    rates = {p: fastest(each, laps, device) for p, each in products.items()}
    for rate, product in rates.values():
        print(f"fastest matrix product ({product}): {rate / 1e9:,.1f} GFLOP per {unit}, best of {args.rounds}")
    for title, key in CLOCKS[: 2 if device.type == "cpu" else 1]:
        print(f"{title}\n{table({v: [t / m['batch'] for t in m[key]] for v, m in measured.items()}, 1)}")
    for variant, m in measured.items():
        rate = m["flops"] * m["batch"] / statistics.median(m[clock])
        m["peak_share"] = rate / rates[precisions[variant]][0]
        print(
            f"{variant}: batch {m['batch']}, {m['flops'] / 1e9:.1f} GFLOPs per image,",
            f"{m['peak_share']:.1%} of the speed of the product of {precisions[variant]},",
            f"at most {m['peak_bytes'] / 2**20:,.0f} MiB of tensors in a step",
        )
    write(args.out, facts | {"matrix_products": rates, "variants": measured})


def checked_losses(sides: Mapping[str, Side], batch: int, tolerance: float) -> dict[str, float]:
    """The loss of each side in its first step. Exits if they differ."""
    losses = {peer: float(side(batch, None)()) for peer, side in sides.items()}
    print("losses:", ", ".join(f"{peer} {loss:.6f}" for peer, loss in losses.items()), flush=True)
    for peer, loss in losses.items():
        if not math.isclose(loss, losses["unveil"], rel_tol=tolerance):
            sys.exit(f"the loss of {peer} is {loss}, expected {losses['unveil']}")
    return losses


def flops_of(ours: MAE, batch: int, plain: bool) -> float:
    """FLOPs of a step for one image: of the plain method, or of unveil, which saves some of them without changing the result."""
    visible, config = ours.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1], ours.config
    assert config.decoder_width is not None
    assert config.decoder_depth is not None
    cost = mae_cost(
        ours.encoder.config,
        visible,
        width=config.decoder_width,
        depth=config.decoder_depth,
        predicted=ours.target.size,
        batch=batch,
        plain=plain,
    )
    return cost.step


def fastest(
    products: Mapping[str, tuple[float, Callable[[], object]]], laps: Mapping[str, list[tuple[float, ...]]], device: torch.device
) -> tuple[float, str]:
    """The highest rate of the large products in FLOPs per second (on a CPU: of processor time), and the name of that product."""
    clock = 1 if device.type == "cpu" else 0
    return max((flops / min(lap[clock] for lap in laps[name]), name) for name, (flops, _) in products.items())


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Appends a JSON line."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    keep_heap()
    main()
