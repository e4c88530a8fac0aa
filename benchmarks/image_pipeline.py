"""Images per second of processor time, from files to normalised images: unveil in batches, others one image at a time.

    python benchmarks/image_pipeline.py photos/                             # JPEG files to random resized crops of 224 px
    python benchmarks/image_pipeline.py photos/ --pack runs/packs           # the same, and from packs, which are made there once
    python benchmarks/image_pipeline.py cifar10/train.tar.gz --image-size 32 --batch 1024

First, crops and flips are compared with Pillow's from the files at full size, with the same boxes, as bytes; and the shares of
crops that are enlarged are counted. Then all take turns. Each does everything that a training step needs: read, decode, random
resized crop, flip, normalise, stack into one tensor. simplejpeg, albumentations and OpenCV are measured if they are installed.
"""

import argparse
import io
import math
import time
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
from torchvision.transforms import v2
from turns import keep_heap, receipt, table, take_turns

import unveil
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, AugmentConfig
from unveil.data.batch import Cropped
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.pixels import CropSide
from unveil.data.sources import Source, open_source
from unveil.runs.open_data import stored_side


class Files(Dataset[Tensor]):
    """One image at a time, decoded by Pillow from a file or kept in memory, and transformed. If not `opened`, a file is given."""

    def __init__(self, source: Source, transform: Callable[[Any], Any], *, kept: bool = False, opened: bool = True) -> None:
        self.source, self.transform, self.opened = source, transform, opened
        self.kept = [open_image(source, i) for i in range(len(source))] if kept else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        if not self.opened:
            found: Tensor = self.transform(self.source.read(index))
            return found
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
    augment = Augment(AugmentConfig(), (side, side), IMAGENET_MEAN, IMAGENET_STD)
    kept = stored_side((side, side), augment.config)
    assert isinstance(kept, CropSide)
    print(f"{args.data}: {len(source):,} images to {side} px, batch {args.batch};", receipt(torch.device("cpu")))
    compare(source, augment, min(len(source), args.batch))

    variants: dict[str, Callable[[], object]] = {}
    if side <= 64:
        variants["unveil, kept in memory"] = ours(source, args, MEMORY)
    variants["unveil, files"] = ours(source, args, 0)
    variants[f"unveil, files, {args.repeats} repeats"] = ours(source, args, 0, repeats=args.repeats)
    for store in ("jpeg", "raw") if args.pack else ():
        packed = open_source(unveil.pack(args.data, args.pack / store, store=store, side=kept.height))
        variants[f"unveil, pack of {store}"] = ours(packed, args, 0)
    variants["torchvision, files"] = theirs(Files(source, torchvision_transform(side)), args)
    variants["timm, files"] = theirs(Files(source, timm_transform(side)), args)
    for name, function in peers(side).items():
        variants[f"{name}, files"] = theirs(Files(source, function, opened=False), args)
    if side <= 64:
        few = Files(limited(source, args.most), torchvision_transform(side), kept=True)
        variants["torchvision, kept in memory"] = theirs(few, args)
    seconds = take_turns(variants, torch.device("cpu"), rounds=args.rounds, warmup=1, clock=time.process_time)
    print(table(seconds, args.batch, "images/s"))


def ours(source: Source, args: argparse.Namespace, memory: int, repeats: int = 1) -> Callable[[], object]:
    """Makes and augments the next batch of our loader."""
    augment = Augment(AugmentConfig(), (args.image_size,) * 2, IMAGENET_MEAN, IMAGENET_STD)
    images = ImageDataset(source, side=stored_side(augment.image_size, augment.config), channels=3, memory=memory)
    loader = ImageLoader(images, batch_size=args.batch, seed=0, repeats=repeats, draw=augment.draw_early)
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


def peers(side: int) -> dict[str, Callable[[Any], Tensor]]:
    """Other fast ways from the bytes of a JPEG file to a normalised crop, as far as their libraries are installed."""
    found: dict[str, Callable[[Any], Tensor]] = {}
    try:
        import simplejpeg
    except ImportError:
        return found
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    crop = v2.RandomResizedCrop(side, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)

    def uint8_resize(raw: bytes) -> Tensor:
        image = crop(torch.from_numpy(simplejpeg.decode_jpeg(raw)).permute(2, 0, 1))
        image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image.float().div_(255).sub_(mean).div_(std)

    found["simplejpeg, torch's uint8 resize"] = uint8_resize
    try:
        import albumentations
        import cv2
        from albumentations.pytorch import ToTensorV2
    except ImportError:
        return found
    cv2.setNumThreads(1)
    for name, kind in (("INTER_LINEAR", cv2.INTER_LINEAR), ("INTER_AREA", cv2.INTER_AREA)):
        steps = [
            albumentations.RandomResizedCrop((side, side), (0.2, 1.0), interpolation=kind),
            albumentations.HorizontalFlip(),
            albumentations.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ToTensorV2(),
        ]
        transform = albumentations.Compose(steps)

        def by_opencv(raw: bytes, transform: Callable[..., Any] = transform) -> Tensor:
            image = cv2.cvtColor(cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            result: Tensor = transform(image=image)["image"]
            return result

        found[f"albumentations, OpenCV's {name}"] = by_opencv
    return found


def limited(source: Source, most: int) -> Source:
    """The first `most` images."""
    return replace(source, names=source.names[:most], labels=None)


def pillows_crop(image: Image.Image, box: list[float], kept: list[int], size: tuple[int, int]) -> np.ndarray:
    """A crop of an image at full size; its box is in pixels of the size at which the image is kept."""
    down, across = image.height / kept[0], image.width / kept[1]
    top, left, height, width = box
    edges = [left * across, top * down, (left + width) * across, (top + height) * down]
    x, y = math.floor(edges[0]), math.floor(edges[1])
    crop = image.crop((x, y, math.ceil(edges[2]), math.ceil(edges[3])))  # the filter must not see more than this
    within = (edges[0] - x, edges[1] - y, edges[2] - x, edges[3] - y)
    return np.array(crop.resize(size[::-1], Image.Resampling.BICUBIC, box=within))


def compare(source: Source, augment: Augment, count: int) -> None:
    """Prints how close our crops are to those of Pillow from the files at full size, and how many of the crops are enlarged."""
    size, config = augment.image_size, augment.config
    images = ImageDataset(source, side=stored_side(size, config), channels=3, memory=0)
    keys, indices = sample_keys(0, 0, count), torch.arange(count)
    read = images.samples(indices, keys, lambda row: iter(()))
    geometry = augment.draw(read.sizes, keys)
    assert geometry.flip is not None
    ours = images.samples(indices, keys, lambda row: iter(()), augment.draw_early)
    pixels = (
        ours.images if isinstance(ours, Cropped) else (Augment(config, size, (0.0,) * 3, (1.0,) * 3)(ours).images * 255).round()
    )
    differences = []
    for index, (box, kept) in enumerate(zip(geometry.boxes.tolist(), read.sizes.tolist(), strict=True)):
        true = torch.from_numpy(pillows_crop(open_image(source, index), box, kept, size)).permute(2, 0, 1)
        true = true.flip(2) if geometry.flip[index] else true
        differences.append((pixels[index].int() - true.int()).abs())
    off = torch.stack(differences)
    print(
        f"compared with Pillow's crops from the files, for the same boxes and flips: {(off == 0).float().mean():.2%} of the values "
        f"are equal, {(off <= 2).float().mean():.3%} are within 2 of 255, and the largest difference is {int(off.max())}"
    )
    for name, side in (("the images as they are kept", stored_side(size, config)), ("images shrunk to 8/7", stored_side(size))):
        sizes = torch.tensor(ImageDataset(source, side=side, channels=3, memory=0).sample_sizes)
        areas = augment.draw(sizes.repeat(100, 1), sample_keys(1, 0, 100 * len(sizes))).boxes[:, 2:].prod(dim=1)
        print(f"of {name}, {(areas < size[0] * size[1]).float().mean():.1%} of the crops are enlarged")


if __name__ == "__main__":
    keep_heap()
    main()
