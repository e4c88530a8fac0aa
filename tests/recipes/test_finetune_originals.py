"""The number of independent test images of fine-tuning, from the files of a run on."""

import csv
from pathlib import Path

import numpy as np

import unveil
from tests.recipes.test_end_to_end import TINY
from unveil.data.sources import open_source
from unveil.reports.chance import accuracy_interval
from unveil.reports.table import metric_table


def test_images_of_one_original_count_once(tmp_path: Path) -> None:
    """The 2,000 test images of the digits are made from 358 scans, so their interval is wider than that of 2,000 images."""
    shape = {key: TINY[key] for key in ("model", "device", "precision")} | {"image_size": (16,), "patch_size": (4,)}
    run = unveil.pretrain("digits", out=tmp_path / "run", epochs=0.05, num_evals=0, **shape)
    tuned = unveil.finetune(
        run, "digits", labels=100, epochs=1.0, validation=0.0, num_evals=0, device="cpu", out=tmp_path / "tuned"
    )
    with (tuned.path / "predictions.csv").open(newline="") as file:
        right = {row["file"]: row["label"] == row["predicted"] for row in csv.DictReader(file)}
    source = open_source("digits", split="test")
    correct = np.array([right[name] for name in source.names], dtype=float)
    # By hand: deviations are added up within each scan before they are squared (Liang and Zeger, 1986).
    deviation = correct - correct.mean()
    scans = [deviation[source.groups == scan].sum() for scan in np.unique(source.groups)]
    variance = np.square(scans).sum() / len(correct) ** 2 * len(scans) / (len(scans) - 1)
    share, score = correct.mean(), tuned.results["score"]
    expected = min(len(correct), round(share * (1 - share) / variance))
    assert (score["count"], score["independent"]) == (2000, expected)
    assert expected < 1900
    low, high = accuracy_interval(share, expected)
    page = (tuned.path / "report.html").read_text()
    assert (
        f"on 2,000 test images, worth {expected:,} independent ones (95 % interval: {100 * low:.1f} to {100 * high:.1f} %)" in page
    )
    assert "independent" not in {row[0] for row in metric_table(tuned.results).rows}
