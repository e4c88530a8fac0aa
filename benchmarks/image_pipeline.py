"""Images a second on one thread: from files to normalised images of one size, ours in batches against peers image by image.

    python benchmarks/image_pipeline.py photos/                                      # JPEG files to random resized crops of 224 px
    python benchmarks/image_pipeline.py photos/ --pack runs/packs                    # the same, and from packs that are made there once
    python benchmarks/image_pipeline.py cifar10/train.tar.gz --image-size 32 --batch 1024

First the same boxes and flips are given to both, and the results compared as bytes. Then the contestants take turns; each does all
that a training step needs: read, decode, random resized crop, flip, normalise, one tensor.
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
from unveil.blocks.stateless_random import uniform
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, AugmentConfig, random_boxes
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.resize import crop_resize
from unveil.data.sources import Source, open_source
from unveil.runs.open_data import stored_side


class Files(Dataset[Tensor]):
    """Image after image, decoded by Pillow, from files or kept in memory, and changed by a transform."""

    def __init__(self, source: Source, transform: Callable[[Any], Any], *, kept: bool = False) -> None:
        self.source, self.transform = source, transform
        self.kept = [opened(source, i) for i in range(len(source))] if kept else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Tensor:
        changed = self.transform(opened(self.source, number) if self.kept is None else self.kept[number])
        return torch.as_tensor(np.asarray(changed))


def opened(source: Source, number: int) -> Image.Image:
    """An image as most loaders open it."""
    raw = source.read(number)
    return (Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else Image.fromarray(np.asarray(raw).squeeze())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pack", type=Path, help="a folder for packs of DATA: also read from JPEG and from bare pixels")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4, help="of one more contestant, which reads an image this rarely")
    parser.add_argument("--most", type=int, default=10_000, help="images that peers keep in memory, for small images")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, side = open_source(args.data), args.image_size
    print(f"{args.data}: {len(source):,} images to {side} px, batch {args.batch};", receipt(torch.device("cpu")))
    compare(source, side, min(len(source), args.batch))

    contestants: dict[str, Callable[[], object]] = {}
    if side <= 64:
        contestants["unveil, kept in memory"] = ours(source, args, MEMORY)
    contestants["unveil, files"] = ours(source, args, 0)
    contestants[f"unveil, files, {args.repeats} repeats"] = ours(source, args, 0, repeats=args.repeats)
    for store in ("jpeg", "raw") if args.pack else ():
        packed = open_source(unveil.pack(args.data, args.pack / store, store=store, side=stored_side((side, side))))
        contestants[f"unveil, pack of {store}"] = ours(packed, args, 0)
    contestants["torchvision, files"] = theirs(Files(source, torchvision_transform(side)), args)
    contestants["timm, files"] = theirs(Files(source, timm_transform(side)), args)
    if side <= 64:
        few = Files(limited(source, args.most), torchvision_transform(side), kept=True)
        contestants["torchvision, kept in memory"] = theirs(few, args)
    seconds = take_turns(contestants, torch.device("cpu"), rounds=args.rounds, warmup=1)
    print(table(seconds, args.batch, "images/s"))


def ours(source: Source, args: argparse.Namespace, memory: int, repeats: int = 1) -> Callable[[], object]:
    """The next batch of our feed, augmented."""
    images = ImageDataset(source, side=stored_side((args.image_size,) * 2), channels=3, memory=memory)
    loader = ImageLoader(images, batch_size=args.batch, seed=0, repeats=repeats)
    augment = Augment(AugmentConfig(), (args.image_size,) * 2, IMAGENET_MEAN, IMAGENET_STD)
    steps = iter(range(10**9))
    return lambda: augment(loader.share(next(steps), 0, 1))


def theirs(files: Files, args: argparse.Namespace) -> Callable[[], object]:
    """The next batch of a DataLoader in this process: no workers, as ours has no process of its own here."""
    loader = DataLoader(files, min(args.batch, len(files)), shuffle=True, drop_last=True)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def run() -> None:
        made = 0
        while made < args.batch:
            made += len(next(batches))

    return run


def torchvision_transform(side: int) -> Callable[[Any], Any]:
    """What the public MAE code does to an image."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def timm_transform(side: int) -> Callable[[Any], Any]:
    """The same in timm, whose prefetcher normalises whole batches on the device: bytes until there, so its part is smaller."""
    made: Callable[[Any], Any] = create_transform(
        side, is_training=True, scale=(0.2, 1.0), interpolation="bicubic", color_jitter=None, use_prefetcher=True
    )
    return made


def limited(source: Source, most: int) -> Source:
    """The first so many images."""
    return replace(source, names=source.names[:most], labels=None)


def compare(source: Source, side: int, count: int) -> None:
    """Says how near our crops are to Pillow's of the same boxes, as bytes."""
    images = ImageDataset(source, side=stored_side((side, side)), channels=3, memory=0)
    batch = ImageLoader(images, batch_size=count, seed=0).share(0, 0, 1)
    boxes = random_boxes(batch.sizes.float(), batch.keys, 0.2, (side, side))
    flip = uniform(batch.keys, 1, stream=12)[:, 0] < 0.5
    found = (crop_resize(batch.images, boxes, batch.sizes, (side, side), flip) * 255).round()
    apart = []
    for image, (top, left, height, width), turned, our in zip(batch.images, boxes.int().tolist(), flip, found, strict=True):
        crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        crop = crop.resize((side, side), Image.Resampling.BICUBIC)
        true = to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turned else crop) * 255
        apart.append((our - true.round()).abs())
    off = torch.stack(apart)
    print(
        f"the same boxes and flips by Pillow: {(off == 0).float().mean():.2%} of values are equal, {(off <= 2).float().mean():.3%} "
        f"within 2 of 255, the largest difference is {int(off.max())}"
    )


if __name__ == "__main__":
    keep_heap()
    main()
