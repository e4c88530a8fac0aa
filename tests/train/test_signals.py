"""When to save and when to stop, on one process and on many that have to agree."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from unveil.train import signals
from unveil.train.parallel import World
from unveil.train.signals import Agreement, Interrupted, stop_signals

CPU = torch.device("cpu")


def test_signals_are_noted_and_the_handlers_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with ThreadPoolExecutor(1) as pool:  # only the main thread may set handlers
        assert not pool.submit(lambda: stop_signals().__enter__().is_set()).result()


def test_an_interruption_tells_how_to_resume():
    assert str(Interrupted(3, 10, True)) == "stopped after step 3 of 10, and saved a checkpoint: run the same command to resume"
    assert str(Interrupted(3, 10, False)) == "stopped after step 3 of 10"


def test_saving_takes_a_fiftieth_of_the_time_at_most(monkeypatch):
    now = 0.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    agreement = Agreement(threading.Event(), 20.0, World(CPU))
    due = []
    for second in range(1, 1001):
        now += 1
        if agreement.after(second)[1]:
            due.append(second)
            with agreement.saving():
                now += 0.125 if len(due) < 3 else 2.0
    assert due[:3] == [21, 42, 63]
    assert all(later - earlier == 101 for earlier, later in pairwise(due[2:]))
    assert len(due) > 10


class Reduction:
    """`max_over_processes` for threads."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values, self.calls = threading.Barrier(size), list[list[int]](), 0

    def __call__(self, values: list[int], world: World) -> list[int]:
        self.values.append(values)
        self.barrier.wait(timeout=20)
        result = [max(column) for column in zip(*self.values, strict=True)]
        if self.barrier.wait(timeout=20) == 0:
            self.values.clear()
            self.calls += 1
        self.barrier.wait(timeout=20)
        return result


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_many_processes_agree(monkeypatch, seconds):
    """Each has its own clock and signal; all stop and save after the same steps, and they do not ask each other at every step."""
    size, steps, reduction = 3, 120, Reduction(3)
    monkeypatch.setattr(signals, "max_over_processes", reduction)

    def loop(rank: int) -> list[tuple[int, bool, bool]]:
        stop, decisions = threading.Event(), []
        agreement = Agreement(stop, 0.1, World(CPU, rank, size), seconds)
        for done in range(1, steps + 1):
            time.sleep(0.002 * (1 + rank))
            if rank == 2 and done == 50:
                stop.set()
            stopping, saving = agreement.after(done)
            if stopping or saving:
                decisions.append((done, stopping, saving))
            if saving:
                with agreement.saving():
                    pass
            if stopping:
                break
        return decisions

    with ThreadPoolExecutor(size) as pool:
        first, *others = pool.map(loop, range(size), timeout=60)
    assert all(other == first for other in others)
    assert first[-1][1]
    assert 50 <= first[-1][0] < 100
    assert any(saving for _, _, saving in first)
    assert (reduction.calls == 50) if seconds == 0 else (4 <= reduction.calls < 40)
