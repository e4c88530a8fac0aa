"""What `unveil plan` predicts beside what the run takes, for several configurations one after the other.

    python benchmarks/planned.py --out runs/planned "digits" "digits --model vit-tiny --epochs 1.5" "photos/ --image-size 64"

Each argument is what stands behind `unveil plan`. Prints a table in Markdown, with the share of the cores that other programs took
during the run (Linux): where that is not near 0, the ratio says little.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from turns import receipt

from unveil.train.bill import spell_bytes, spell_time

HEADS = ("configuration", "time: planned", "actual", "ratio", "memory: planned", "actual", "ratio", "others on the cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="+")
    parser.add_argument("--out", default="runs/planned", help="a folder that is not there yet")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{receipt(device)}\n\n| {' | '.join(HEADS)} |\n| {' | '.join(['---'] * len(HEADS))} |", flush=True)
    for number, configuration in enumerate(args.configurations):
        out = folder / str(number)
        called(["plan", *shlex.split(configuration), "--out", str(out)])
        plan = json.loads((out / "plan.json").read_text())
        others = called(shlex.split(plan["command"])[1:])
        cost, planned = json.loads((out / "results.json").read_text())["cost"], plan["predicted"]
        cells = [configuration]
        for key, spell in (("seconds", spell_time), ("memory", spell_bytes)):
            cells += [spell(planned[key]), spell(cost[key]), f"{cost[key] / planned[key]:.2f}"]
        print("| " + " | ".join([*cells, "unknown" if others is None else f"{others:.0%}"]) + " |", flush=True)


def called(words: list[str]) -> float | None:
    """Runs a command of unveil; the share of the cores that others took meanwhile, where the system tells."""
    before, mine, clock = busy(), own(), os.times().elapsed
    done = subprocess.run([sys.executable, "-m", "unveil", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after, took = busy(), (os.times().elapsed - clock) * (os.cpu_count() or 1)
    return None if before is None or after is None else max(0.0, after - before - (own() - mine)) / took


def own() -> float:
    """Processor seconds of the commands that ran."""
    times = os.times()
    return times.children_user + times.children_system


def busy() -> float | None:
    """Processor seconds of everybody, but for what idles or runs niced."""
    try:
        found = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    return (sum(found) - found[1] - found[3] - found[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
