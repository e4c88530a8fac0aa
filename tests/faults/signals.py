"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP in each phase of a run: a sentence, its exit code, and the same command resumes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.faults.harness import BROKEN, Lab, Problem, Result, Trigger, succeeded
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.samples import VERBS, Samples, prepare_for
from tests.faults.suite import Case
from tests.faults.two_processes import start_pair, undisturbed

SIGNALS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}


@dataclass(frozen=True)
class Phase:
    name: str
    event: str
    match: str
    count: int = 1
    saved: bool = False
    """Whether the sentence must say that something is safe."""


PHASES = (
    Phase("parsing", "call", "unveil.cli:parse_options"),
    Phase("listing the data", "call", "unveil.cli:check_paths"),
    Phase("reading images", "read", r"\.png$", 20),
    Phase("the first step", "step", "", 1, True),
    Phase("training", "step", "", 5, True),
    Phase("saving", "write", r"checkpoints/\.step-0+4-", 2, True),
    Phase("evaluating", "write", "os.rename .*model.safetensors", 1, True),
    Phase("writing the report", "write", "open .*report.html", 1, True),
)


def cases(chance: random.Random) -> Iterator[Case]:
    for phase in PHASES:
        for name in SIGNALS:
            yield Case(f"{name} while {phase.name}", partial(stopped, "pretrain", phase, name))
    for verb in ("finetune", "translate"):
        yield Case(f"SIGTERM while training, {verb}", partial(stopped, verb, PHASES[4], "SIGTERM"))
    yield Case("SIGHUP while training on images on demand", partial(stopped, "on demand", PHASES[4], "SIGHUP"))
    for number, name in enumerate(SIGNALS):
        yield Case(f"{name} to one of two processes while training", partial(both, name, number % 2))


def stopped(verb: str, phase: Phase, name: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.start(lab, verb)
    command, folder = VERBS[verb]
    expected = samples.expected(verb)
    moment = Trigger(phase.event, phase.match, phase.count, name)
    result = lab.run(*command, triggers=[moment], prepare=prepare_for(verb))
    yield from told(result, SIGNALS[name], phase.saved)
    if phase.saved and not list(lab.folder.glob(f"{folder}/checkpoints/step-*")):
        yield Problem("other", "no checkpoint was saved")
    yield from succeeded(lab.run(*command, prepare=prepare_for(verb)))
    yield from differences(outcome(lab.folder / folder), expected)
    yield from leftovers(lab.folder / folder)


def told(result: Result, code: int, saved: bool, quiet: bool = False) -> Iterator[Problem]:
    """Problems unless a command ended with an exit code and a sentence."""
    if BROKEN.search(result.stderr):
        return  # counted as such
    if result.code != code:
        yield Problem("other", f"expected exit code {code}, but {result}")
    if "unveil: " not in result.stderr and not quiet:
        yield Problem("other", f"stopped without a sentence: {result}")
    elif saved and not quiet and not any(word in result.said for word in ("saved", "safe", "resume")):
        yield Problem("other", f"the sentence does not say that the work is safe: {result}")


def both(name: str, rank: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A signal to one process stops both, at the same step."""
    expected = undisturbed("pretrain", samples)
    samples.start(lab, "pretrain")
    command, folder = VERBS["pretrain"]
    pair = start_pair(lab, command, {rank: [Trigger("step", "", 5, name)]}, prepare=prepare_for("pretrain"))
    results: Sequence[Result] = [lab.end(process) for process in pair]
    for number, result in enumerate(results):
        yield from told(result, SIGNALS[name], True, quiet=number > 0)
    for process in start_pair(lab, command, prepare=prepare_for("pretrain")):
        yield from succeeded(lab.end(process))
    yield from differences(outcome(lab.folder / folder), expected)
