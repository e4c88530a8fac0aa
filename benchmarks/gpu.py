"""What each choice for a GPU is worth, in the whole training loop: with it and without it, in turns.

    python benchmarks/gpu.py                                      # ViT-B at 224 px, all choices
    python benchmarks/gpu.py --model vit-tiny --image-size 32 --patch-size 4 --batch 1024      # short steps
    python benchmarks/gpu.py --only compile --batch 64
    torchrun --nproc-per-node 8 benchmarks/gpu.py --only gather --model vit-huge --patch-size 14
    python benchmarks/gpu.py --device cpu --model vit-nano --image-size 32 --patch-size 4 --batch 16 --steps 8     # a rehearsal

A turn is a run of `train` on images in the memory of the host. The second half of its steps is timed, up to the moment when the
GPU has done them. The names of `unveil.train.overlap` are measured with and without, `save` with one checkpoint in that half;
`lag`, `save` and `copy` change nothing on a CPU. A way is called faster if both quartiles of the ratio say so by 1 % or more.
`--out` gets a JSON line for each choice.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from turns import free, keep_heap, receipt, table

from unveil.blocks.fast import choose
from unveil.data.augment import AugmentConfig
from unveil.data.dataset import ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.sources import open_source
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.train import overlap
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Record
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, is_fast, join_processes, resolve_precision, shutdown
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.signals import Agreement

CHOICES = (*overlap.NAMES, "cast_together", "compile", "precision")
MODES: tuple[Any, ...] = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
SURE = 1.01
Turn = Callable[[], float]  # seconds per step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CHOICES, nargs="+", default=CHOICES)
    parser.add_argument("--model", choices=MODELS, default="vit-base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn, of which the second half is timed")
    parser.add_argument("--out", type=Path, help="a file of JSON lines, appended to")
    args = parser.parse_args()
    world = join_processes(HardwareConfig(device=args.device))
    title = f"{args.model}/{args.patch_size} at {args.image_size} px, batch {args.batch}; {receipt(world.device)}"
    tell(world, f"{title}, {world.size} processes")
    for choice in args.only:
        ways, why_not = ways_of(choice, args, world)
        if why_not:
            tell(world, f"\n{choice}: not measured, {why_not}")
            continue
        seconds = in_turns(ways, args.rounds)
        kept = verdict(seconds)
        tell(world, f"\n{choice}: {kept}\n{table(seconds, args.batch)}")
        if args.out and world.is_main:
            line = {"choice": choice, "verdict": kept, "seconds": seconds, "about": title, "command": sys.argv}
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        free()
    shutdown(world)


def tell(world: World, text: str) -> None:
    """Prints a text once."""
    if world.is_main:
        print(text, flush=True)


def ways_of(choice: str, args: argparse.Namespace, world: World) -> tuple[dict[str, Turn], str]:
    """The ways to compare for a choice, that of the default first; or why there are none."""
    gpu = world.device.type == "cuda"
    hardware = resolve_precision(HardwareConfig(device=args.device, parallel="fsdp" if choice == "gather" else "ddp"), world)
    if choice == "gather" and world.size == 1:
        return {}, "since it takes several processes: use torchrun"
    if choice in overlap.NAMES:
        ways = {"with it": turn(args, world, hardware, choice, ()), "without it": turn(args, world, hardware, choice, (choice,))}
        return ways, ""
    if choice == "cast_together":
        return {"without it": turn(args, world, hardware), "with it": turn(args, world, hardware, choice)}, ""
    if choice == "compile":
        modes = [replace(hardware, compile=True, compile_mode=mode) for mode in (MODES if world.size == 1 else MODES[:1])]
        if not gpu and "compile" not in args.only[:1]:
            return {}, "since a CPU compiles for minutes: give --only compile"
        return {"eager": turn(args, world, hardware)} | {each.compile_mode: turn(args, world, each) for each in modes}, ""
    fast = [each for each in ("bfloat16", "float16") if is_fast(each, world.device)]
    names: list[Any] = [*fast, *(["tf32"] if gpu and "bfloat16" in fast else []), "float32"]
    names.sort(key=lambda name: name != hardware.precision)
    return {name: turn(args, world, replace(hardware, precision=name)) for name in names}, ""


def turn(args: argparse.Namespace, world: World, hardware: HardwareConfig, choice: str = "", off: tuple[str, ...] = ()) -> Turn:
    """A run of the loop with a learner of its own, so that what is compiled for it is kept."""
    width, depth, heads = MODELS[args.model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=(args.image_size,) * 2, patch_size=(args.patch_size,) * 2)
    torch.manual_seed(0)
    learner = MAE.build(vit, MAEConfig(), AugmentConfig())
    epochs = args.steps * args.batch / args.images
    training = TrainConfig(epochs=epochs, batch_size=args.batch, num_evals=2, save_seconds=1e9)
    recipe = Recipe(training, OptimConfig(base_lr=1e-9), hardware, world)

    def run() -> float:
        clock = Clock(args.steps)
        saves: AbstractContextManager[object] = nullcontext()
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), keep=1) if choice == "save" else None
            if checkpoints:
                saves = patch.object(Agreement, "_save_due", at(3 * args.steps // 5))
            casts = choose.turned_off() if choice == "cast_together" else nullcontext()
            with overlap.turned_off(*off), saves, casts:
                trained = learner if hardware.parallel == "ddp" else fresh(learner)
                train(trained, loader(args), recipe, checkpoints=checkpoints, sinks=[clock])
        return clock.seconds

    return run


def fresh(learner: MAE) -> MAE:
    """A copy that is not sharded yet."""
    other = MAE.build(learner.encoder.config, learner.config, AugmentConfig())
    other.load_state_dict(learner.state_dict())
    return other


def at(step: int) -> Callable[[Agreement], bool]:
    """In place of the clock that decides when a checkpoint is due: once, after a step."""
    asked = 0

    def due(agreement: Agreement) -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    return due


def loader(args: argparse.Namespace) -> ImageLoader:
    """Random images in the memory of the host, in batches that are prefetched."""
    side = round(args.image_size * 256 / 224)
    pixels = np.random.default_rng(0).integers(0, 256, (args.images, side, side, 3), dtype=np.uint8)
    found = ImageLoader(ImageDataset(open_source(pixels), side=side), batch_size=args.batch, seed=0)
    found.prefetch = True
    return found


class Clock:
    """A sink that measures the seconds of a step from the middle of the run to its end. The host waits for both lines."""

    def __init__(self, total: int) -> None:
        self.total, self.seconds, self._middle = total, 0.0, 0.0

    def start(self, first: int) -> None: ...

    def write(self, record: Record) -> None:
        if record["step"] == round(self.total / 2):
            self._middle = time.perf_counter()
        elif record["step"] == self.total:
            self.seconds = (time.perf_counter() - self._middle) / (self.total - round(self.total / 2))

    def close(self) -> None: ...


def in_turns(ways: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each way in each round, after a round that does not count. The order rotates from round to round."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(ways[name]())
    return seconds


def verdict(seconds: Mapping[str, list[float]]) -> str:
    """Whether the default is the fastest way, as far as the quartiles of the ratios can tell."""
    default, *others = seconds
    for name in sorted(others, key=lambda name: statistics.median(seconds[name])):
        ratios = [ours / theirs for ours, theirs in zip(seconds[default], seconds[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        if low > SURE:
            return f"{name} is faster than {default}"
        if high * SURE > 1:
            return f"no difference between {default} and {name}"
    return f"{default} is the fastest"


if __name__ == "__main__":
    keep_heap()
    main()
