"""Compares the predictions of `unveil plan` with the actual runs, for several configurations.

    python benchmarks/planned.py --out runs/planned "digits" "digits --model vit-tiny --epochs 1" "photos/ --image-size 64"

Each argument is the rest of an `unveil plan` command. Prints a table in Markdown. Its last column is the share of the cores that
other programs used during the plan and during the run (Linux): unless it is near 0, the times mean little.
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

from unveil.train.run_cost import spell_bytes, spell_time

HEADS = (
    "configuration",
    "time: planned",
    "actual",
    "ratio",
    "memory: planned",
    "actual",
    "ratio",
    "steps alone: planned",
    "actual",
    "used by other programs: plan, run",
)
GOALS = {"seconds": 0.15, "memory": 0.10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="+")
    parser.add_argument("--out", default="runs/planned", help="a new folder")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{receipt(device)}\n\n| {' | '.join(HEADS)} |\n| {' | '.join(['---'] * len(HEADS))} |", flush=True)
    met = dict.fromkeys(GOALS, 0)
    for number, configuration in enumerate(args.configurations):
        out = folder / str(number)
        others = [run_command(["plan", *shlex.split(configuration), "--out", str(out)])]
        plan = json.loads((out / "plan.json").read_text())
        others.append(run_command(shlex.split(plan["command"])[1:]))
        results, planned, cells = json.loads((out / "results.json").read_text()), plan["predicted"], [configuration]
        for key, spell in (("seconds", spell_time), ("memory", spell_bytes)):
            ratio = results["cost"][key] / planned[key]
            cells += [spell(planned[key]), spell(results["cost"][key]), f"{ratio:.2f}"]
            met[key] += abs(ratio - 1) <= GOALS[key]
        cells += [spell_time(planned["parts"]["training"]), spell_time(results["seconds"])]
        cells += [", ".join("unknown" if share is None else f"{share:.0%}" for share in others)]
        print("| " + " | ".join(cells) + " |", flush=True)
    lines = [f"{name} within {GOALS[name]:.0%} for {met[name]}" for name in GOALS]
    print(f"\n{' and '.join(lines)} of {len(args.configurations)} configurations")


def run_command(words: list[str]) -> float | None:
    """Runs a command of unveil. Returns the share of the cores that other programs used meanwhile, or None if it is unknown."""
    before, mine, clock = busy(), own(), os.times().elapsed
    done = subprocess.run([sys.executable, "-m", "unveil", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after, took = busy(), (os.times().elapsed - clock) * (os.cpu_count() or 1)
    return None if before is None or after is None else max(0.0, after - before - (own() - mine)) / took


def own() -> float:
    """Processor seconds of the commands that this script has run."""
    times = os.times()
    return times.children_user + times.children_system


def busy() -> float | None:
    """Processor seconds of all programs, and of other guests on the same machine (Linux)."""
    try:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except OSError:
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
