"""Whether the memory of a long run stays flat: thousands of steps of the whole loop, with its monitors, checkpoints and log.

    python benchmarks/memory.py                  # 5,000 steps, images in memory, then images that are read when they are needed
    python benchmarks/memory.py --steps 20000

Pre-trains a tiny encoder on 1,000 labelled JPEGs, evaluates it 20 times on the way and saves a checkpoint every 5 s. Resident
memory is read twice a second. The slope is that of a line through the samples after the first fifth of the steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from start import make

IMAGES, BATCH, EVALUATIONS = 1000, 16, 20
PARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--child", nargs=4, metavar=("DATA", "OUT", "KEEP", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        data, out, keep, steps = args.child
        child(data, out, int(keep), int(steps))
        return
    print(" | ".join(["MB, images", *(f"at {100 * (i + 1) // PARTS} %" for i in range(PARTS)), "slope in 1,000 steps"]))
    for title, keep in (("in memory", 1000), ("read each time", 0)):
        with tempfile.TemporaryDirectory(prefix="unveil-memory-") as folder:
            print(" | ".join([title, *measured(Path(folder), keep, args.steps)]), flush=True)
    import torch  # late, because the processes that are measured import it themselves
    from turns import receipt

    print(receipt(torch.device("cpu")))


def child(data: str, out: str, keep: int, steps: int) -> None:
    """Pre-trains for about `steps` steps."""
    from unveil.cli import imported

    pretrain = imported("unveil.recipes.pretrain", "pretrain")  # as the command does
    from unveil.data.dataset import ImageDataset

    ImageDataset.__init__.__kwdefaults__["memory"] = keep * 1_000_000
    options = {"model": "vit-nano", "image_size": 32, "num_evals": EVALUATIONS, "save_seconds": 5.0, "device": "cpu"}
    pretrain(data, out=out, epochs=steps * BATCH / IMAGES, batch_size=BATCH, **options)


def measured(folder: Path, keep: int, steps: int) -> list[str]:
    """Resident memory at each tenth of the training steps, and its slope, as text."""
    data = make("folder", IMAGES, folder)
    run = subprocess.Popen(
        [sys.executable, __file__, "--child", str(data), str(folder / "run"), str(keep), str(steps)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    samples = list[tuple[int, float]]()
    while run.poll() is None:
        if (step := last_step(folder / "run" / "log.jsonl")) is not None:
            samples.append((step, resident(run.pid)))
        time.sleep(0.5)
    if run.returncode:
        sys.exit(f"the run has failed: {run.communicate()[1][-2000:]}")
    trained = np.array([sample for sample, after in pairwise(samples) if sample[0] < after[0]])  # not the final evaluation
    late = trained[trained[:, 0] > trained[-1, 0] / 5]
    slope = 1000 * np.polyfit(late[:, 0], late[:, 1], 1)[0]
    places = np.searchsorted(trained[:, 0], [trained[-1, 0] * (i + 1) / PARTS for i in range(PARTS)])
    return [*(f"{trained[place, 1]:.0f}" for place in places), f"{slope:+.2f}"]


def last_step(log: Path) -> int | None:
    """The step of the last whole line of the log, which is short."""
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines[-2:] if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else None


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    main()
