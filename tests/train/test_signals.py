"""When to save and when to stop, on one process and on many that have to agree."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

from unveil.stop_signals import StopFlag
from unveil.train import signals
from unveil.train.parallel import World
from unveil.train.signals import Agreement, Decision, interruption

CPU = torch.device("cpu")


def test_an_interruption_tells_how_to_resume():
    stopped = interruption(3, 10, signal.SIGHUP)
    assert str(stopped) == "stopped after step 3 of 10, and saved a checkpoint: run the same command to resume"
    assert stopped.number == signal.SIGHUP
    assert str(interruption(0, 10, 15)) == "stopped before the first step: run the same command to start again"
    last = "stopped after the last step: the trained model is saved, and the same command evaluates it"
    assert str(interruption(10, 10, 15)) == last


def test_saving_takes_a_fiftieth_of_the_time_at_most(monkeypatch):
    now = 0.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    agreement = Agreement(StopFlag(), 20.0, World(CPU))
    due = []
    for second in range(1, 1001):
        now += 1
        if agreement.decide(agreement.ask(torch.tensor(True))).save:
            due.append(second)
            with agreement.saving():
                now += 0.125 if len(due) < 3 else 2.0
    assert due[:3] == [21, 42, 63]
    assert all(later - earlier == 101 for earlier, later in pairwise(due[2:]))
    assert len(due) > 10


class Reduction:
    """`max_over_processes` for threads."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = threading.Barrier(size), list[list[int]]()

    def __call__(self, values: torch.Tensor, world: World) -> torch.Tensor:
        self.values.append(values.tolist())
        self.barrier.wait(timeout=20)
        result = [max(column) for column in zip(*self.values, strict=True)]
        if self.barrier.wait(timeout=20) == 0:
            self.values.clear()
        self.barrier.wait(timeout=20)
        return torch.tensor(result)


def test_many_processes_agree_in_every_step(monkeypatch):
    """Each has its own clock, signal, loss and files. All do the same, in the step in which one of them has a reason to."""
    size, steps = 3, 60
    monkeypatch.setattr(signals, "max_over_processes", Reduction(size))

    def loop(rank: int) -> list[tuple[int, Decision]]:
        stop, decisions = StopFlag(), []
        agreement = Agreement(stop, 0.1, World(CPU, rank, size))
        for step in range(steps):
            time.sleep(0.002 * (1 + rank))
            if rank == 2 and step == 50:
                stop.set(signal.SIGHUP)
            answer = agreement.ask(torch.tensor((rank, step) != (1, 30)), failed=(rank, step) == (0, 40))
            decision = agreement.decide(answer)
            if decision != (True, 0, False, False):
                decisions.append((step, decision))
            if decision.save:
                with agreement.saving():
                    pass
            if decision.stop:
                break
        return decisions

    with ThreadPoolExecutor(size) as pool:
        first, *others = pool.map(loop, range(size), timeout=60)
    assert all(other == first for other in others)
    decisions = dict(first)
    assert not decisions[30].finite
    assert decisions[40].failed
    assert first[-1][0] == 50
    assert first[-1][1].stop == signal.SIGHUP
    assert sum(not each.finite for each in decisions.values()) == sum(each.failed for each in decisions.values()) == 1
    assert any(each.save for each in decisions.values())
