"""Time and memory of pre-training on many GPUs: tables of a model, and checks of what can be measured without GPUs.

    python benchmarks/scaling.py                                               # the tables in docs/scaling.md, modelled
    python benchmarks/scaling.py --peak 312e12 --traffic 1.6e12 --memory 40e9 --inside 240e9 --between 20e9     # other hardware
    python benchmarks/scaling.py --measure                                     # memory, and one and two processes, measured

`--measure` needs no GPU: two processes with one thread each communicate by gloo. It prints the values of the model beside the
measured ones.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from turns import receipt

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.planning.cluster import Cluster, Work, activations, bytes_sent, forecast, parameters
from unveil.train.memory_trial import cost_of
from unveil.train.optim import OptimConfig, build_optimizer
from unveil.train.parallel import HardwareConfig, autocast, join_processes, shutdown
from unveil.train.wrapping import parallelize

PATCH = {"vit-huge": 14}
HEADS = (
    "GPUs",
    "parallel",
    "GB per GPU",
    "state",
    "activations",
    "microbatches",
    "ms per step",
    "work",
    "network, exposed",
    "optimiser",
    "GB sent",
    "images/s",
    "of peak",
    "hours",
    "bottleneck",
)
MEASURED = ("vit-tiny", 32, 4, 192, 4)
"""What `--measure` trains: the encoder, image size, patch size, width and depth of the decoder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vit-base", "vit-large", "vit-huge"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4096, help="batch size over all GPUs")
    parser.add_argument("--epochs", type=float, default=800.0)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--grad-checkpointing", action="store_true")
    for field in dataclasses.fields(Cluster):
        if field.name != "gpus":
            kind = int if field.name == "per_node" else float
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--local-batch", type=int, default=128, help="batch size for --measure")
    parser.add_argument("--steps", type=int, default=20, help="steps for --measure")
    parser.add_argument("--worker", choices=["ddp", "fsdp"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
    elif args.measure:
        measure(args)
    else:
        tables(args)


def tables(args: argparse.Namespace) -> None:
    """Prints the tables of the model as Markdown."""
    shape = {field.name: getattr(args, field.name) for field in dataclasses.fields(Cluster) if field.name != "gpus"}
    print(f"Modelled, not measured. {', '.join(f'{name} {value:g}' for name, value in shape.items())}.")
    for model in args.models:
        width, depth, heads = MODELS[model]
        side, patch = (args.image_size,) * 2, (PATCH.get(model, 16),) * 2
        vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=patch)
        work = Work(vit=vit, batch=args.batch, epochs=args.epochs, images=args.images, grad_checkpointing=args.grad_checkpointing)
        size, effort = f"{parameters(work) / 1e6:.0f} M parameters", f"{work.flops / 1e9:.1f} GFLOPs per image"
        print(f"\n{model}: {size}, {effort}, {work.steps:,} steps\n")
        print(f"| {' | '.join(HEADS)} |\n| {' | '.join(['---'] * len(HEADS))} |")
        for gpus in args.gpus:
            for parallel in ("ddp", "fsdp") if gpus > 1 else ("ddp",):
                predicted = forecast(work, Cluster(gpus=gpus, **shape), parallel)
                t, m = predicted.time, predicted.memory
                busy = max(t.compute + t.traffic, t.launches)
                cells = [
                    f"{gpus}",
                    {"ddp": "DDP", "fsdp": "FSDP2"}[parallel] if gpus > 1 else "",
                    f"{m.total / 1e9:.1f}",
                    f"{m.state / 1e9:.1f}",
                    f"{m.activations / 1e9:.1f}",
                    f"{predicted.accum_steps}",
                    f"{1e3 * t.step:.1f}",
                    f"{1e3 * busy:.1f}",
                    f"{1e3 * t.exposed:.1f} of {1e3 * t.network:.1f}",
                    f"{1e3 * t.optimizer:.1f}",
                    f"{predicted.sent / 1e9:.2f}",
                    f"{work.batch / t.step:,.0f}",
                    f"{t.compute / t.step:.0%}",
                    f"{predicted.hours:,.1f}",
                    predicted.bottleneck,
                ]
                print("| " + " | ".join(cells) + " |")


def measured_learner() -> tuple[MAE, Work]:
    """The learner that is measured, and the same as an input of the model."""
    model, side, patch, decoder, blocks = MEASURED
    width, depth, heads = MODELS[model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=(side, side), patch_size=(patch, patch))
    torch.manual_seed(0)
    learner = MAE.build(vit, MAEConfig(decoder_width=decoder, decoder_depth=blocks), AugmentConfig(crop="none"))
    return learner, Work(vit=vit, decoder_width=decoder, decoder_depth=blocks)


def batch_of(vit: ViTConfig, count: int) -> Batch:
    """Random images."""
    images = torch.randint(0, 256, (count, vit.channels, *vit.image_size), dtype=torch.uint8)
    return Batch(images, torch.tensor([vit.image_size] * count), sample_keys(0, 0, count))


def measure(args: argparse.Namespace) -> None:
    """Measures memory, and the speed of one process and of two."""
    encoder, side, patch, *_ = MEASURED
    print(f"Measured: {receipt(torch.device('cpu'))}, one thread per process; {encoder}/{patch} at {side} px, float32\n")
    learner, work = measured_learner()
    state = sum(p.numel() * p.element_size() for p in learner.parameters() if p.requires_grad)
    print(f"weights: {state:,} bytes; the model predicts {4 * parameters(work):,.0f}")
    world = join_processes(HardwareConfig(device="cpu"))
    for precision in ("bfloat16", "float32"):
        hardware = HardwareConfig(device="cpu", precision=precision)
        low, high = (cost_of(learner, batch_of(work.vit, n), hardware, world).kept for n in (8, 24))
        each = (high - low) / 16
        print(
            f"activations of an image in {precision}: {each:,.0f} bytes; the model, for bfloat16 with fused attention, predicts "
            f"{activations(work, 1):,.0f}: ratio {each / activations(work, 1):.2f}"
        )
    alone = launch(args, 1, "ddp", args.local_batch)
    half = launch(args, 1, "ddp", args.local_batch // 2)
    whole, part = args.local_batch, args.local_batch // 2
    print(f"\none process, batch {whole}: {alone['step']:.4f} s per step; batch {part}: {half['step']:.4f} s")
    for parallel in ("ddp", "fsdp"):
        both = launch(args, 2, parallel, args.local_batch)
        sent = bytes_sent(parameters(work), 2, parallel)
        model = half["step"] + sent / both["bandwidth"]
        print(
            f"two processes, {parallel}, batch {args.local_batch}: {both['step']:.4f} s per step, "
            f"{alone['step'] / both['step']:.2f} times as fast as one; "
            f"the model predicts {model:.4f} s ({sent / 1e6:.1f} MB sent at the measured "
            f"{both['bandwidth'] / 1e6:,.0f} MB/s, without overlap): ratio {both['step'] / model:.2f}"
        )
        held = both["held"] / (16 * parameters(work))
        print(f"  weights, gradients and moments on the first process: {both['held']:,} bytes, {held:.3f} of 16 per parameter")


def launch(args: argparse.Namespace, processes: int, parallel: str, batch: int) -> dict[str, float]:
    """Runs this script under torchrun. Returns what its main process prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
    command += ["--worker", parallel, "--local-batch", str(batch), "--steps", str(args.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(args: argparse.Namespace) -> None:
    """One process: measures seconds per step, bytes per second of an all-reduce, and bytes of the state."""
    hardware = HardwareConfig(device="cpu", precision="float32", parallel=args.worker)
    world = join_processes(hardware)
    learner, work = measured_learner()
    batch = batch_of(work.vit, args.local_batch // world.size)
    model = parallelize(learner.train(), hardware, world, batch)
    batch = learner.augment(batch)
    optimizer = build_optimizer(learner, OptimConfig(base_lr=1e-9))

    def step() -> None:
        with autocast(hardware, world):
            loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = median_seconds(step, args.steps)
    held = 0
    for parameter in learner.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        held += 4 * local.numel() * local.element_size() * parameter.requires_grad
    numbers, bandwidth = torch.zeros(round(parameters(work))), float("inf")
    if world.size > 1:
        sent = bytes_sent(numbers.numel(), world.size, "ddp")
        bandwidth = sent / median_seconds(lambda: dist.all_reduce(numbers), 10)
    if world.is_main:
        print(json.dumps({"step": seconds, "bandwidth": min(bandwidth, 1e30), "held": held}))
    shutdown(world)


def median_seconds(run: Callable[[], object], times: int) -> float:
    """The median time of several calls, after two that do not count."""
    found = []
    for _ in range(times + 2):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return sorted(found[2:])[times // 2]


if __name__ == "__main__":
    main()
