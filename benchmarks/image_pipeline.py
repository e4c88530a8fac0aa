"""Images per second on one thread, from files to normalised images: unveil in batches, torchvision and timm one image at a time.

    python benchmarks/image_pipeline.py photos/                             # JPEG files to random resized crops of 224 px
    python benchmarks/image_pipeline.py photos/ --pack runs/packs           # the same, and from packs, which are made there once
    python benchmarks/image_pipeline.py cifar10/train.tar.gz --image-size 32 --batch 1024

First, crops and flips with the same boxes are compared with Pillow's, as bytes. Then all take turns. Each does everything that a
training step needs: read, decode, random resized crop, flip, normalise, stack into one tensor.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_tensor
from turns import keep_heap, receipt, table, take_turns

import unveil
from unveil.blocks.stateless_random import Stream, uniform
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, AugmentConfig, random_resized_boxes
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.resize import crop_resize
from unveil.data.sources import Source, open_source
from unveil.runs.open_data import stored_side


class Files(Dataset[Tensor]):
    """One image at a time, decoded by Pillow from a file or kept in memory, and transformed."""

    def __init__(self, source: Source, transform: Callable[[Any], Any], *, kept: bool = False) -> None:
        self.source, self.transform = source, transform
        self.kept = [open_image(source, i) for i in range(len(source))] if kept else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        transformed = self.transform(open_image(self.source, index) if self.kept is None else self.kept[index])
        return torch.as_tensor(np.asarray(transformed))


def open_image(source: Source, index: int) -> Image.Image:
    """An image, opened as most loaders do."""
    raw = source.read(index)
    return (Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else Image.fromarray(np.asarray(raw).squeeze())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument(
        "--pack", type=Path, help="a folder for packs of DATA, to measure packs of JPEG files and of raw pixels too"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4, help="also measure this many samples per image that is read")
    parser.add_argument("--most", type=int, default=10_000, help="most images that torchvision keeps in memory, for small images")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, side = open_source(args.data), args.image_size
    print(f"{args.data}: {len(source):,} images to {side} px, batch {args.batch};", receipt(torch.device("cpu")))
    compare(source, side, min(len(source), args.batch))

    variants: dict[str, Callable[[], object]] = {}
    if side <= 64:
        variants["unveil, kept in memory"] = ours(source, args, MEMORY)
    variants["unveil, files"] = ours(source, args, 0)
    variants[f"unveil, files, {args.repeats} repeats"] = ours(source, args, 0, repeats=args.repeats)
    for store in ("jpeg", "raw") if args.pack else ():
        packed = open_source(unveil.pack(args.data, args.pack / store, store=store, side=stored_side((side, side))))
        variants[f"unveil, pack of {store}"] = ours(packed, args, 0)
    variants["torchvision, files"] = theirs(Files(source, torchvision_transform(side)), args)
    variants["timm, files"] = theirs(Files(source, timm_transform(side)), args)
    if side <= 64:
        few = Files(limited(source, args.most), torchvision_transform(side), kept=True)
        variants["torchvision, kept in memory"] = theirs(few, args)
    seconds = take_turns(variants, torch.device("cpu"), rounds=args.rounds, warmup=1)
    print(table(seconds, args.batch, "images/s"))


def ours(source: Source, args: argparse.Namespace, memory: int, repeats: int = 1) -> Callable[[], object]:
    """Makes and augments the next batch of our loader."""
    images = ImageDataset(source, side=stored_side((args.image_size,) * 2), channels=3, memory=memory)
    loader = ImageLoader(images, batch_size=args.batch, seed=0, repeats=repeats)
    augment = Augment(AugmentConfig(), (args.image_size,) * 2, IMAGENET_MEAN, IMAGENET_STD)
    steps = iter(range(10**9))
    return lambda: augment(loader.share(next(steps), 0, 1))


def theirs(files: Files, args: argparse.Namespace) -> Callable[[], object]:
    """Makes the next batch of a DataLoader in this process: without workers, as our loader."""
    loader = DataLoader(files, min(args.batch, len(files)), shuffle=True, drop_last=True)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def run() -> None:
        count = 0
        while count < args.batch:
            count += len(next(batches))

    return run


def torchvision_transform(side: int) -> Callable[[Any], Any]:
    """The augmentation of the public MAE code."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def timm_transform(side: int) -> Callable[[Any], Any]:
    """The same in timm, without the normalisation: its prefetcher normalises whole batches on the device."""
    transform: Callable[[Any], Any] = create_transform(
        side, is_training=True, scale=(0.2, 1.0), interpolation="bicubic", color_jitter=None, use_prefetcher=True
    )
    return transform


def limited(source: Source, most: int) -> Source:
    """The first `most` images."""
    return replace(source, names=source.names[:most], labels=None)


def compare(source: Source, side: int, count: int) -> None:
    """Prints how close our crops are to those of Pillow with the same boxes, as bytes."""
    images = ImageDataset(source, side=stored_side((side, side)), channels=3, memory=0)
    batch = ImageLoader(images, batch_size=count, seed=0).share(0, 0, 1)
    boxes = random_resized_boxes(batch.sizes.float(), batch.keys, 0.2, (side, side))
    flip = uniform(batch.keys, 1, stream=Stream.FLIP)[:, 0] < 0.5
    resized = (crop_resize(batch.images, boxes, batch.sizes, (side, side), flip) * 255).round()
    differences = []
    for image, (top, left, height, width), mirrored, our in zip(batch.images, boxes.int().tolist(), flip, resized, strict=True):
        crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        crop = crop.resize((side, side), Image.Resampling.BICUBIC)
        true = to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop) * 255
        differences.append((our - true.round()).abs())
    off = torch.stack(differences)
    print(
        f"compared with Pillow, for the same boxes and flips: {(off == 0).float().mean():.2%} of the values are equal, "
        f"{(off <= 2).float().mean():.3%} are within 2 of 255, and the largest difference is {int(off.max())}"
    )


if __name__ == "__main__":
    keep_heap()
    main()
