"""The linear probe on features that were computed once, beside scikit-learn's logistic regression, in CPU time of one thread.

    python benchmarks/probe.py                                        # 50,000 x 192 synthetic features of 10 classes
    python benchmarks/probe.py --features features.npz --test test.npz    # "features" and "labels", as `unveil embed` writes them

scikit-learn fits one penalty, the one that ours has chosen; ours chooses it among five. Both accuracies are on other samples.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from turns import receipt, table, take_turns

from unveil.evaluate.logistic import PENALTIES, fit_logistic


def synthetic(count: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, in correlated features."""
    fixed, chance = np.random.default_rng(0), np.random.default_rng(seed)
    mixing = fixed.normal(size=(width, width)) * np.logspace(0, -2, width)
    centres = 0.25 * fixed.normal(size=(classes, width))
    labels = chance.integers(classes, size=count)
    return ((chance.normal(size=(count, width)) + centres[labels]) @ mixing).astype(np.float32), labels


def loaded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as arrays:
        return arrays["features"].astype(np.float32), np.unique(arrays["labels"], return_inverse=True)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    features, labels = loaded(args.features) if args.features else synthetic(50_000, 192, 10, 1)
    test, test_labels = loaded(args.test) if args.test else synthetic(10_000, 192, 10, 2)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    names = [str(number) for number in range(int(labels.max()) + 1)]
    rows, answers = torch.from_numpy(features), torch.from_numpy(labels)
    accuracy: dict[str, float] = {}
    _, penalty = fit_logistic(rows, answers, names)

    def ours(name: str, penalties: Sequence[float]) -> None:
        task, _ = fit_logistic(rows, answers, names, penalties=penalties)
        with torch.no_grad():
            accuracy[name] = (task.logits(torch.from_numpy(test)).argmax(dim=1).numpy() == test_labels).mean()

    def peer() -> None:
        model = LogisticRegression(C=1 / (len(features) * penalty), max_iter=200)
        model.fit((features - mean) / deviation, labels)
        accuracy["scikit-learn"] = model.score((test - mean) / deviation, test_labels)

    variants = {
        "unveil": partial(ours, "unveil", PENALTIES),
        "one penalty": partial(ours, "one penalty", [penalty]),
        "scikit-learn": peer,
    }
    seconds = take_turns(variants, torch.device("cpu"), rounds=args.rounds, warmup=1, clock=time.process_time)
    size = f"{len(features):,} x {features.shape[1]} features, {len(names)} classes, penalty {penalty:g}"
    print(f"{size}; {receipt(torch.device('cpu'))}")
    print(table(seconds, 1, "fits/s"))
    for name, share in accuracy.items():
        print(f"{name}: {100 * share:.2f} %")


if __name__ == "__main__":
    main()
