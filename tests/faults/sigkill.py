"""SIGKILL at any moment, then the same command: the run must end as if nothing had happened.

Half of the kills happen when a run does something to a file, as it does while it saves, evaluates and writes results. The others
happen at a share of its CPU time, anywhere, also inside of a computation. Some runs are killed three times.
"""

import random
import signal
from collections.abc import Iterator
from functools import partial

from tests.faults.harness import Lab, Problem, Process, Trigger, succeeded
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.samples import VERBS, Samples, prepare_for
from tests.faults.suite import Case

SHARES = {"pretrain": 80, "on demand": 30, "finetune": 40, "translate": 25, "bert": 25}


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
    command, folder = VERBS[verb]
    samples.finished(verb)
    for share in shares:
        if by_file:
            operations = len(samples.writes(verb))
            process = lab.start(*command, prepare=prepare_for(verb), triggers=[Trigger("write", "", 1 + int(share * operations))])
        else:
            process = lab.start(*command, prepare=prepare_for(verb))
            kill_at(process, share * samples.result(verb).cpu)
        lab.end(process)
    yield from succeeded(lab.run(*command, prepare=prepare_for(verb)))
    yield from differences(outcome(lab.folder / folder), samples.expected(verb))
    yield from leftovers(lab.folder / folder)


def kill_at(process: Process, cpu: float) -> None:
    """Kills a process when it has computed for some seconds."""
    process.wait_until(lambda: process.cpu() >= cpu)
    process.signal(signal.SIGKILL)
