"""The speed of the whole loop, compared with a plain loop, and with its own step on one batch that stays on the device.

    python benchmarks/make_images.py photos/ runs/made --count 20000         # once
    python benchmarks/end_to_end.py runs/made/raw --model vit-base --batch 256 # a pack: the cost of the images
    python benchmarks/end_to_end.py cifar10/train.tar.gz --model vit-tiny --image-size 32 --patch-size 2 \
        --decoder-width 192 --decoder-depth 4 --batch 1024 --plain             # small images

These take turns: the step on one batch that never changes; our loop with its loader and all augmentation; and with --plain a
PyTorch loop as most people write it (DataLoader with workers, transforms of torchvision for each image, the same model and step).
Before a turn, batches that were prefetched during other turns are thrown away, so that the time includes making the batches.
"""

import argparse
import io
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from turns import keep_heap, receipt, table, take_turns

from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader, first_batch, stream
from unveil.data.sources import Source, open_source
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.runs.open_data import stored_side
from unveil.train.memory_trial import matrix_peak
from unveil.train.optim import OptimConfig, build_optimizer
from unveil.train.parallel import HardwareConfig, World, autocast, resolve_precision
from unveil.train.wrapping import parallelize


class Files(Dataset[tuple[Tensor, int]]):
    """One image at a time, decoded by Pillow and augmented by torchvision."""

    def __init__(self, source: Source, side: int) -> None:
        self.source = source
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(side, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raw = self.source.read(index)
        image = Image.fromarray(raw) if isinstance(raw, np.ndarray) else Image.open(io.BytesIO(raw))
        return self.transform(image.convert("RGB")), index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", choices=MODELS, default="vit-base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--decoder-width", type=int, default=512)
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--workers", type=int, default=8, help="worker processes of the plain loop")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", type=int, default=MEMORY, help="bytes of images to keep in memory; 0 reads them in every epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="steps per turn")
    args = parser.parse_args()
    world = World(torch.device(args.device))
    hardware = resolve_precision(HardwareConfig(device=args.device, compile=args.compile), world)
    width, depth, heads = MODELS[args.model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=(args.image_size,) * 2, patch_size=(args.patch_size,) * 2)
    torch.manual_seed(0)
    config = MAEConfig(decoder_width=args.decoder_width, decoder_depth=args.decoder_depth)
    learner = MAE.build(vit, config, AugmentConfig()).to(world.device).train()
    optimizer = build_optimizer(learner, OptimConfig(base_lr=1e-9))
    source = open_source(args.data)
    pairs = plain_batches(args, source, world)
    if args.plain:
        next(pairs)  # its processes must be forked before threads are started
    images = ImageDataset(source, side=stored_side(vit.image_size), memory=args.memory)
    resident = images.to_gpu(world.device)
    loader = ImageLoader(images, batch_size=args.batch, seed=0)
    loader.prefetch = not (resident or (world.device.type == "cpu" and images.in_memory))
    parallelize(learner, hardware, world, first_batch(loader))
    augment = torch.compile(learner.augment) if hardware.compile else learner.augment  # as the loop does
    print(
        f"{args.model}/{args.patch_size} at {args.image_size} px, batch {args.batch}, {len(images):,} images;",
        receipt(world.device),
    )
    print(f"in memory: {images.in_memory}; on the GPU: {resident}")
    fixed = augment(loader.share(0, 0, 1).to(world.device))
    batches: Iterator[tuple[int, list[Batch]]] = stream(loader, range(10**9), 0, 1, 1)

    def ours() -> None:
        _, (batch,) = next(batches)
        with torch.no_grad():
            batch = augment(batch.to(world.device))
        step(learner, optimizer, batch, hardware, world)

    before: dict[str, Callable[[], object]] = {"the loop": lambda: [next(batches) for _ in range(0 if not loader.prefetch else 3)]}
    variants: dict[str, Callable[[], object]] = {
        "the loop": ours,
        "one resident batch": lambda: step(learner, optimizer, fixed, hardware, world),
    }
    if args.plain:
        variants["a plain loop"] = partial(plain_step, pairs, learner, optimizer, hardware, world)
        before["a plain loop"] = lambda: [next(pairs) for _ in range(2 * args.workers)]
    seconds = take_turns(variants, world.device, rounds=args.rounds, repeat=args.steps, before=before)
    print(table(seconds, args.batch))
    share = statistics.median(a / b for a, b in zip(seconds["one resident batch"], seconds["the loop"], strict=True))
    print(f"the loop reaches {share:.1%} of the speed on one resident batch")
    visible = learner.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    cost = mae_cost(
        vit, visible, width=args.decoder_width, depth=args.decoder_depth, predicted=learner.target.size, batch=args.batch
    ).step
    rate = cost * args.batch / min(seconds["the loop"])
    peak = matrix_peak(world.device, hardware.precision)
    where = f"{torch.get_num_threads()} threads" if world.device.type == "cpu" else "the GPU"
    print(
        f"the best round of the loop: {rate / 1e12:.2f} TFLOP/s of matrix products, {rate / peak:.1%} of the {peak / 1e12:.2f} of",
        f"one large product in {hardware.precision} on {where}",
    )


def step(learner: Learner, optimizer: torch.optim.Optimizer, batch: Batch, hardware: HardwareConfig, world: World) -> None:
    """Forward pass, backward pass, optimiser."""
    with autocast(hardware, world):
        loss = learner(batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def plain_batches(args: argparse.Namespace, source: Source, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of images and their indices from a DataLoader."""
    loader = DataLoader(
        Files(source, args.image_size),
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        pin_memory=world.device.type == "cuda",
        persistent_workers=args.workers > 0,
    )
    while True:
        yield from loader


def plain_step(
    pairs: Iterator[tuple[Tensor, Tensor]],
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    hardware: HardwareConfig,
    world: World,
) -> None:
    """The same step on a batch of a DataLoader."""
    images, keys = (part.to(world.device, non_blocking=True) for part in next(pairs))
    sizes = torch.ones(len(images), 2, dtype=torch.int64, device=world.device)
    step(learner, optimizer, Batch(images, sizes, keys), hardware, world)


if __name__ == "__main__":
    keep_heap()
    main()
