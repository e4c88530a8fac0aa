"""One of two processes is killed, mostly while a checkpoint is saved; then both start again, as torchrun does.

The processes are started with the environment of torchrun. When one is dead the other one gets SIGTERM, and SIGKILL if it is still
there after 30 seconds. A few cases use torchrun itself, which starts both again.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tests.faults.harness import ROOT, Lab, Problem, Process, Result, Trigger, succeeded
from tests.faults.outcome import differences, leftovers, outcome
from tests.faults.samples import VERBS, WAITS, Samples, prepare_for
from tests.faults.suite import Case

VERB_OF = ("pretrain", "on demand", "finetune", "translate")


def cases(chance: random.Random) -> Iterator[Case]:
    for number in range(46):
        verb, victim, share = VERB_OF[number % 5 % 4], number // 2 % 2, chance.random()
        when = "while saving" if number % 4 < 3 else "at a step"
        yield Case(f"{verb}, process {victim} killed {when}, {share:.3f}", partial(killed, verb, victim, when, share))
    for number in range(4):
        yield Case(f"torchrun kills and restarts both, process {number % 2}", partial(torchrun, number % 2, 3 + number))


def killed(verb: str, victim: int, when: str, share: float, lab: Lab, samples: Samples) -> Iterator[Problem]:
    lab.killed = True
    expected = undisturbed(verb, samples)
    samples.start(lab, verb)
    command, folder = VERBS[verb]
    if when == "while saving":  # only the main process writes; the other one dies just before the same moment
        saves = [i for i, what in enumerate(samples.writes(verb)) if "checkpoints" in what]
        moment = Trigger("write", "", 1 + saves[int(share * len(saves))], "SIGKILL" if victim == 0 else "SIGSTOP")
    else:
        moment = Trigger("step", "", 1 + int(share * (6 if verb == "translate" else 9)))
    pair = start_pair(lab, command, {victim if when != "while saving" else 0: [moment]}, prepare=prepare_for(verb))
    if victim == 1 and when == "while saving" and pair[0].paused():
        pair[1].signal(signal.SIGKILL)
        pair[0].resume()
    if end_as_torchrun(lab, pair, victim).code != 137:
        yield Problem("other", "the process was not killed")
    for process in start_pair(lab, command, prepare=prepare_for(verb)):
        yield from succeeded(lab.end(process))
    yield from differences(outcome(lab.folder / folder), expected)
    yield from leftovers(lab.folder / folder)


def undisturbed(verb: str, samples: Samples) -> dict[str, Any]:
    """The outcome of two processes that run to their end."""

    def make(folder: Any) -> dict[str, Any]:
        lab = samples.lab(folder)
        samples.start(lab, verb)
        command, run = VERBS[verb]
        for process in start_pair(lab, command, prepare=prepare_for(verb)):
            result = lab.end(process)
            if result.code:
                raise AssertionError(f"two processes failed: {result.stderr[-2000:]}")
        return outcome(lab.folder / run)

    found: dict[str, Any] = samples.once(f"two processes of {verb}", make)
    return found


def start_pair(lab: Lab, command: Sequence[str], triggers: dict[int, list[Trigger]] | None = None, **options: Any) -> list[Process]:
    """Starts two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    return [
        lab.start(
            *command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, triggers=(triggers or {}).get(rank, ()), **options
        )
        for rank in range(2)
    ]


def end_as_torchrun(lab: Lab, pair: list[Process], victim: int) -> Result:
    """Waits for the victim, then ends the other process. Returns what the victim did."""
    first = lab.end(pair[victim])
    other = pair[1 - victim]
    if first.code == 137:
        other.signal(signal.SIGTERM)
        if not other.wait_until(lambda: False, timeout=30):
            other.signal(signal.SIGKILL)
    lab.end(other)
    return first


def torchrun(victim: int, step: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A process kills itself once, in the program; torchrun starts both processes again."""
    expected = undisturbed("pretrain", samples)
    samples.start(lab, "pretrain")
    script = lab.folder / "main.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.faults import triggers\n"
        f"first = not os.path.exists('killed') and os.environ['RANK'] == '{victim}'\n"
        f"moment = {{'event': 'step', 'match': '', 'count': {step}, 'action': 'SIGKILL'}}\n"
        f"triggers.install([moment] if first else [], {list(WAITS)!r})\n"
        "if first: open('killed', 'w').close()\n"
        "from unveil.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", str(script)]

    done = subprocess.run(
        [*command, *VERBS["pretrain"][0]],
        cwd=lab.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode or "resuming from" not in done.stderr:
        yield Problem("other", f"torchrun ended with {done.returncode}: {done.stderr[-500:]}")
        return
    ours = [line for line in done.stderr.splitlines() if "unveil/" in line and "File" in line]
    if ours:
        yield Problem("traceback", f"under torchrun: {ours[-1]}")
    yield from differences(outcome(lab.folder / "run"), expected)
