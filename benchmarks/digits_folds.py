"""Repeats the default run on the digits with other test scans and other seeds.

The test scans of the default run are fold 4. Settings are chosen on folds 0 to 3, with other options by `--set`. Prints one line
per run, then the mean and the standard deviation over the runs.

    python benchmarks/digits_folds.py runs/folds --folds 0 1 2 3
    python benchmarks/digits_folds.py runs/shorter --folds 0 1 --set epochs=4 batch_size=32 base_lr=2.4e-2
"""

import argparse
import ast
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

import unveil
from unveil.data.digits import digits
from unveil.runs.images import DIGITS_DEFAULTS

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def write_images(folder: Path, fold: int) -> None:
    """Writes the digits as class folders of PNG files, split into train and test."""
    for split in SPLITS:
        for i, (image, label) in enumerate(zip(*digits(split, fold=fold), strict=True)):
            path = folder / split / str(label) / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def literal(text: str) -> Any:
    """A number, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options in place of the defaults")
    args = parser.parse_args()
    changes = {name: literal(value) for name, _, value in (each.partition("=") for each in args.set)}
    gains = []
    for fold in args.folds:
        folder = args.out / f"fold-{fold}"
        write_images(folder, fold)
        for seed in args.seeds:
            options = {"model": "vit-nano", **DIGITS_DEFAULTS, **changes}
            start = time.process_time()
            run = unveil.pretrain(str(folder), seed=seed, out=args.out / f"run-{fold}-{seed}", **options)
            took = time.process_time() - start
            linear = {name: 100 * row["linear"] for name, row in run.results["features"].items()}
            gains.append([linear["encoder"] - linear["untrained"], linear["encoder"] - linear["raw pixels"]])
            accuracies = "  ".join(f"{name} {value:.1f} %" for name, value in linear.items())
            whitened = 100 * run.results["features"]["encoder"]["whitened"]
            print(
                f"fold {fold}, seed {seed}: {accuracies}; gains {gains[-1][0]:.1f} and {gains[-1][1]:.1f} points; whitened k-NN "
                f"{whitened:.1f} %; error {run.results['held_out']['held_out_error']:.4f}; {took:.0f} s of CPU time",
                flush=True,
            )
    mean, spread = np.mean(gains, axis=0), np.std(gains, axis=0, ddof=len(gains) > 1)
    print(f"{len(gains)} runs: gain over the untrained encoder {mean[0]:.1f} points (standard deviation {spread[0]:.1f}),")
    print(f"over raw pixels {mean[1]:.1f} points (standard deviation {spread[1]:.1f})")


if __name__ == "__main__":
    main()
