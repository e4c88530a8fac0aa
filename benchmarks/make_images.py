"""Makes many images from a few: random crops of photographs, from a quarter to all of their side, as JPEG files and as two packs.

    python benchmarks/make_images.py photos/ runs/made --count 20000         # 256 px: about 0.5 GB, and 4 GB of raw pixels

Reading them costs as much as reading the same number of photographs, but nothing can be learned from them. The same command makes
the same files.
"""

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

import unveil
from unveil.data.images import read_image
from unveil.data.pack_writer import cores
from unveil.data.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    source = open_source(args.photographs)
    files = args.out / "files"
    files.mkdir(parents=True, exist_ok=True)

    def make(name: str, image: Image.Image) -> None:
        rng = random.Random(name)
        side = rng.randint(min(image.size) // 4, min(image.size))
        left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        crop = image.resize((args.side, args.side), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        crop.save(files / name, quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        for each in range(min(len(source), args.count)):  # one photograph in memory at a time
            image = Image.fromarray(read_image(source.read(each), channels=3))
            list(pool.map(lambda i, image=image: make(f"{i:06d}.jpg", image), range(each, args.count, len(source))))
    for store in ("jpeg", "raw"):
        unveil.pack(files, args.out / store, store=store, side=args.side)


if __name__ == "__main__":
    main()
