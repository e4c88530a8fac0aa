"""A loss or gradient that is not finite, on one of two processes: both skip the step, stay equal, and their weights stay finite."""

import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tests.faults.harness import Lab, Problem, Result, Trigger, succeeded
from tests.faults.outcome import differences, outcome
from tests.faults.samples import STEPS, TINY, Samples
from tests.faults.suite import Case
from tests.faults.two_processes import start_pair

PLUGIN = Path(__file__).with_name("not_finite_method.py")


def cases(chance: random.Random) -> Iterator[Case]:
    for what in ("loss nan", "loss inf", "gradient nan", "gradient inf"):
        for rank in (0, 1):
            step = chance.randint(0, 8)
            yield Case(f"{what} at step {step} on process {rank} of 2", partial(skipped, what, [step], rank, 2))
    for what in ("loss nan", "gradient inf"):
        yield Case(f"{what} at step 4, one process", partial(skipped, what, [4], 0, 1))
    for rank in (0, 1):
        yield Case(f"two steps are skipped, process {rank} of 2", partial(skipped, "loss nan", [2, 5], rank, 2))
        yield Case(f"loss nan at the last step, process {rank} of 2", partial(skipped, "loss nan", [8], rank, 2))
        yield Case(f"killed after a skipped step, process {rank} of 2", partial(resumed, rank))
    for rank in (0, 1):
        yield Case(f"every step is not finite on process {rank} of 2", partial(hopeless, rank, 2))
    yield Case("every step is not finite, one process", partial(hopeless, 0, 1))
    yield Case(
        "gradient inf with clipping, process 1 of 2", partial(skipped, "gradient inf", [3], 1, 2, extra=("--clip-grad", "1"))
    )


def command(what: str, steps: list[int], rank: int, world: int) -> list[str]:
    """A run whose loss or gradient is not finite at some steps, for the samples of one process."""
    samples = [8 * step + 8 // world * rank for step in steps]
    return [
        *["pretrain", "images", "--method", f"{PLUGIN}:Breaks", *TINY, *STEPS, "--accum-steps", "1", "--out", "run"],
        *["--bad", what.replace(" ", "-"), "--at", ",".join(map(str, samples))],
    ]


def run_all(lab: Lab, words: list[str], world: int, trigger: Trigger | None = None) -> list[Result]:
    triggers = [trigger] if trigger else []
    if world == 1:
        return [lab.run(*words, prepare=("save_always",), triggers=triggers)]
    pair = start_pair(lab, words, {0: triggers, 1: triggers}, prepare=("save_always",))
    return [lab.end(process) for process in pair]


def skipped(
    what: str, steps: list[int], rank: int, world: int, lab: Lab, samples: Samples, extra: Sequence[str] = ()
) -> Iterator[Problem]:
    samples.data(lab, "images")
    results = run_all(lab, [*command(what, steps, rank, world), *extra], world)
    for result in results:
        yield from succeeded(result)
    if not any(word in results[0].stderr for word in ("skip", "not applied", "left out")):
        yield Problem("silent", f"no sentence about a skipped step: {results[0].stderr[-400:]!r}")
    yield from sound(lab, world)


def sound(lab: Lab, world: int) -> Iterator[Problem]:
    """Weights are finite, and equal on all processes."""
    from safetensors.numpy import load_file

    for path in [*lab.folder.glob("run/*.safetensors"), *lab.folder.glob("run/checkpoints/*/*.safetensors")]:
        broken = [name for name, value in load_file(path).items() if not np.isfinite(value).all()]
        if broken:
            yield Problem("silent", f"{path.relative_to(lab.folder)}: {broken[0]} is not finite")
    sums = {}
    for path in lab.folder.glob("weights-*.json"):
        for step, value in json.loads(path.read_text()).items():
            sums.setdefault(step, set()).add(value)
    apart = sorted(step for step, values in sums.items() if len(values) > 1)
    if apart or not sums:
        yield Problem("silent", f"the processes have other weights after step {(apart or ['none'])[0]}")


def resumed(rank: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """The count of skipped steps and the weights survive a stop."""
    words = command("loss nan", [2], rank, 2)

    def make(folder: Path) -> dict[str, object]:
        undisturbed = samples.lab(folder)
        samples.data(undisturbed, "images")
        run_all(undisturbed, words, 2)
        return outcome(undisturbed.folder / "run")

    expected = samples.once(f"not finite on {rank}", make)
    samples.data(lab, "images")
    run_all(lab, words, 2, Trigger("step", "", 5, "SIGTERM"))
    for number, result in enumerate(run_all(lab, words, 2)):
        yield from succeeded(result, *(["resuming from"] if number == 0 else []))
    yield from differences(outcome(lab.folder / "run"), expected)
    yield from sound(lab, 2)


def hopeless(rank: int, world: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """After some steps the run stops, with a sentence about the loss, and with finite weights. So does a second try."""
    samples.data(lab, "images")
    for _ in range(2):
        results = run_all(lab, [*command("loss nan", list(range(2, 9)), rank, world), "--max-skipped-steps", "3"], world)
        if any(result.code != 1 for result in results):
            yield Problem("silent", f"it ended with {results[0]}")
        elif not any("loss" in result.stderr for result in results):
            yield Problem("other", f"the sentence does not name the loss: {results[0]}")
        yield from sound(lab, world)
