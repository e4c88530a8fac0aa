"""SIGKILL at any moment, then the same command: the run must end as if nothing had happened.

Half of the kills happen when a run does something to a file, as it does while it saves, evaluates and writes results. The others
happen at a share of its CPU time, anywhere, also inside of a computation. Some runs are killed three times.
"""

import json
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.harness import Lab, Problem, Result, Trigger, remove, succeeded
from tests.faults.outcome import differences, leftovers, outcome, without_times
from tests.faults.samples import COMPARE, PACK, VERBS, Samples, prepare_for
from tests.faults.suite import Case

SHARES = {"pretrain": 70, "on demand": 30, "finetune": 35, "translate": 25, "bert": 20, "pack": 15, "compare": 5}


OTHERS: dict[str, tuple[Sequence[str], str]] = {"pack": (PACK, "pack"), "compare": (COMPARE, "runs")}


def cases(chance: random.Random) -> Iterator[Case]:
    found = []
    for verb, count in SHARES.items():
        for number in range(count):
            times = 3 if number % 8 == 7 else 1
            shares = [chance.random() for _ in range(times)]
            at = "a file operation" if number % 2 else "a time"
            spelled = ", ".join(f"{share:.3f}" for share in shares)
            found.append(Case(f"{verb} killed at {at}, {spelled} of the run", partial(killed, verb, bool(number % 2), shares)))
    chance.shuffle(found)
    yield from found


def killed(verb: str, by_file: bool, shares: list[float], lab: Lab, samples: Samples) -> Iterator[Problem]:
    lab.killed = True
    samples.start(lab, verb)
    command, folder = {**VERBS, **OTHERS}[verb]
    whole, cpu = samples.finished(verb) / folder, samples.result(verb).cpu
    for number, share in enumerate(shares):
        if by_file:
            operations = len(samples.writes(verb, command))
            process = lab.start(*command, prepare=prepare_for(verb), triggers=[Trigger("write", "", 1 + int(share * operations))])
            result = lab.end(process)
        else:
            result = killed_in_time(verb, command, share * cpu, lab)
        if result.code != 137 and number == 0:  # what is left after a kill may be done before the next one
            yield Problem("other", f"it ended before it was killed: {result}")
    yield from succeeded(lab.run(*command, prepare=prepare_for(verb)))
    read = outcome if verb in VERBS else files_of
    yield from differences(read(lab.folder / folder), read(whole))
    yield from leftovers(lab.folder / folder)


def files_of(folder: Path) -> dict[str, Any]:
    """What is in a pack, or in the runs of a comparison."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}: {name}": value for name, value in outcome(path).items()}
        elif path.suffix != ".html" and not path.name.startswith("."):
            found[path.name] = without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


def killed_in_time(verb: str, command: Sequence[str], cpu: float, lab: Lab) -> Result:
    """Kills a command when it has computed for some seconds; sooner, and from the start, if it was faster than that."""
    before = lab.home / "before"
    shutil.copytree(lab.folder, before)
    for factor in (1.0, 0.8, 0.6):
        process = lab.start(*command, prepare=prepare_for(verb))
        process.wait_until(lambda process=process, factor=factor: process.cpu() >= factor * cpu)  # type: ignore[misc]
        process.signal(signal.SIGKILL)
        result = lab.end(process)
        if result.code == 137:
            break
        remove(lab.folder)
        shutil.copytree(before, lab.folder)
    remove(before)
    return result
