"""Compares the methods in equal time: each is tuned with four trials on images kept aside, and then trained with three seeds.

    python benchmarks/methods.py TRIALS FINAL RUNS --image-size 32 --patch-size 4

TRIALS and FINAL are labelled images with the same train split. The trials are evaluated on the val split of TRIALS, and the runs of
the table once, on the test split of FINAL. Each method is tried with four learning rates, the fourth of which follows from the
others, and the one with the best linear probe is used. Fine-tuning is tried with three rates, from scratch, and the best one is
used for all methods. Finished runs are not repeated.

The epochs of a method follow from its speed, which is measured when its turn comes: leave the machine alone.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import unveil
from unveil.data.parts import HELD_OUT
from unveil.train.run_folder import Run

METHODS: dict[str, dict[str, Any]] = {
    "mae": {},
    "simmim": {
        "mask_unit": 1,
        "mask_ratio": 0.75,
        "target": "normalised",
        "relative_bias": "none",
        "positions": "sincos",
        "layer_scale": None,
        "drop_path": 0.0,
        "schedule": "cosine",
        "warmup_ratio": 0.05,
    },
    "beit": {"visual_tokenizer": "dvae", "drop_path": 0.0, "crop_scale": 0.2, "warmup_ratio": 0.05, "min_lr": 0.0},
    "dino": {
        "batch_size": 32,
        "momentum": 0.98,
        "teacher_temperature": 0.04,
        "weight_decay_end": 0.04,
        "frozen": 0,
        "prototypes": 256,
        "local_crops": 2,
        "color_jitter": 0.2,
        "crop_scale": 0.3,
        "positions": "sincos",
        "drop_path": 0.0,
        "clip_mode": "global",
        "min_lr": 0.0,
    },
    "mocov3": {"batch_size": 128, "momentum": 0.98, "crop_scale": 0.2, "train_patches": True},
    "supervised": {},
}
"""The methods, with what suits a run of minutes on small images. The recipes of the papers are for hundreds of epochs."""
RATES, FINETUNE_RATES = (0.003, 0.006, 0.012), (0.004, 0.008, 0.016)
FINETUNE = {"epochs": 6.0, "num_evals": 1}


def trial(method: str, rate: float) -> str:
    """The name of a trial."""
    return f"{method}-{rate}"


def next_rate(scores: Mapping[float, float]) -> float:
    """The fourth rate: beyond the best one if that is the lowest or the highest, else between it and its better neighbour."""
    rates = sorted(scores)
    best = max(rates, key=lambda rate: scores[rate])
    if best == rates[0]:
        return best / 2
    if best == rates[-1]:
        return best * 2
    place = rates.index(best)
    neighbour = max(rates[place - 1], rates[place + 1], key=lambda rate: scores[rate])
    return round(math.sqrt(best * neighbour), 5)


def tried(data: str, out: Path, shared: Mapping[str, Any], rates: Mapping[str, Sequence[float]]) -> dict[str, dict[float, float]]:
    """Pre-trains each method with each of its rates. The accuracy of the linear probe on the val split, by method and rate."""
    entries = {trial(method, rate): {**METHODS[method], "base_lr": rate} for method in METHODS for rate in rates[method]}
    rows = unveil.compare(["dvae", *entries], data, out=out, seeds=(0,), with_finetune=False, **shared, **entries)
    linear = {row.name: row.figures["linear"][0] for row in rows if row.name in entries}
    return {method: {rate: linear[trial(method, rate)] for rate in rates[method]} for method in METHODS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", help="images with a train and a val split")
    parser.add_argument("final", help="the same train split, and a test split")
    parser.add_argument("runs", type=Path, help="the folder for all runs")
    parser.add_argument("--model", default="vit-nano")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=180.0, help="training time of each pre-training run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shared: dict[str, Any] = {
        "model": args.model,
        "image_size": (args.image_size,),
        "patch_size": (args.patch_size,),
        "batch_size": 64,
        "num_evals": 1,
        "seconds": args.seconds,
        "dvae": {"base_lr": 0.006},
    }

    trials = args.runs / "trials"
    linear = tried(args.trials, trials, shared, dict.fromkeys(METHODS, RATES))
    linear = tried(args.trials, trials, shared, {method: (*RATES, next_rate(found)) for method, found in linear.items()})
    rates = {method: max(found, key=lambda rate: found[rate]) for method, found in linear.items()}

    start, scores = trials / f"{trial('mae', RATES[0])}-seed0", {}
    for rate in FINETUNE_RATES:
        out = args.runs / f"finetune-{rate}"
        run: Run = unveil.finetune(start, scratch=True, out=out, test_split=HELD_OUT, base_lr=rate, **FINETUNE)
        scores[rate] = run.results["score"]["top1"]
    finetune = {**FINETUNE, "base_lr": max(FINETUNE_RATES, key=lambda rate: scores[rate])}

    chosen = {method: {**options, "base_lr": rates[method]} for method, options in METHODS.items()}
    final = {"out": args.runs / "final", "seeds": tuple(range(args.seeds)), "evaluate_on": "test", "with_partial": True}
    unveil.compare(["dvae", *chosen], args.final, **final, **shared, finetune=finetune, **chosen)

    for method, found in linear.items():
        print(f"{method}, linear probe: {', '.join(f'{rate:g}: {100 * score:.1f} %' for rate, score in sorted(found.items()))}")
    print("fine-tuned from scratch:", ", ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in scores.items()))


if __name__ == "__main__":
    main()
