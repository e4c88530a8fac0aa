"""Two processes write to one folder: the second one is told who is there, and the first one's run is as if it had been alone."""

import random
import re
import signal
from collections.abc import Iterator
from functools import partial

from tests.faults.harness import Lab, Problem, Trigger, paused_at, refused, succeeded
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.samples import COMPARE, PACK, VERBS, Samples, prepare_for
from tests.faults.suite import Case


def cases(chance: random.Random) -> Iterator[Case]:
    for verb in ("pretrain", "finetune", "translate", "bert"):
        yield Case(f"a second {verb} while the first one trains", partial(second, verb, "step", "", 4))
    yield Case("a second pretrain while the first one saves", partial(second, "pretrain", "write", r"manifest\.json", 3))
    yield Case("a second pretrain while the first one writes its results", partial(second, "pretrain", "write", "results.json", 1))
    for name, (command, out) in {
        "probe": ("probe run --out probe".split(), "probe"),
        "compare": (COMPARE, "runs"),
        "pack": (PACK, "pack"),
    }.items():
        yield Case(f"a second {name}", partial(other, name, command, out))
    yield Case("a process that was killed is not in the way", stale)
    yield Case("two pretrain start at the same time", together)


def second(verb: str, event: str, match: str, count: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.start(lab, verb)
    command, folder = VERBS[verb]
    expected = samples.expected(verb)
    with paused_at(lab, event, match, count, *command, prepare=prepare_for(verb)) as first:
        result = lab.run(*command, prepare=prepare_for(verb))
        yield from refused(result, folder)
        if result.code == 1 and not re.search(rf"\b{first.pid}\b", result.stderr):
            yield Problem("other", f"the sentence does not name process {first.pid}: {result}")
    yield from succeeded(lab.end(first))
    yield from differences(outcome(lab.folder / folder), expected)
    yield from leftovers(lab.folder / folder)
    yield from succeeded(lab.run(*command, prepare=prepare_for(verb)))


def other(name: str, command: list[str], out: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A second `probe`, `compare` or `pack`."""
    if name == "probe":
        samples.copy(lab, "pretrain")
    else:
        samples.data(lab, "images")
    moments = {"probe": ("call", "unveil.evaluate.logistic:choose_penalty", 1), "pack": ("write", r"pack/shard|shard-0", 1)}
    with paused_at(lab, *moments.get(name, ("step", "", 3)), *command) as first:
        result = lab.run(*command)
        yield from refused(result, out)
        if result.code == 1 and not re.search(rf"\b{first.pid}\b", result.stderr):
            yield Problem("other", f"the sentence does not name process {first.pid}: {result}")
    yield from succeeded(lab.end(first))


def stale(lab: Lab, samples: Samples) -> Iterator[Problem]:
    """What a killed process leaves must not lock anybody out."""
    lab.killed = True
    samples.start(lab, "pretrain")
    command, folder = VERBS["pretrain"]
    lab.run(*command, prepare=prepare_for("pretrain"), triggers=[Trigger("step", "", 5)])
    yield from succeeded(lab.run(*command, prepare=prepare_for("pretrain")))
    yield from differences(outcome(lab.folder / folder), samples.expected("pretrain"))


def together(lab: Lab, samples: Samples) -> Iterator[Problem]:
    """Both stop where the folder is about to be made, and go on at once."""
    samples.start(lab, "pretrain")
    command, folder = VERBS["pretrain"]
    pair = [
        lab.start(*command, prepare=prepare_for("pretrain"), triggers=[Trigger("write", "run", 1, "SIGSTOP")]) for _ in range(2)
    ]
    for process in pair:
        process.paused()
    for process in pair:
        process.signal(signal.SIGCONT)
    codes = sorted(lab.end(process).code for process in pair)
    if codes not in ([0, 0], [0, 1]):
        yield Problem("other", f"exit codes {codes}")
    yield from differences(outcome(lab.folder / folder), samples.expected("pretrain"))
