"""What a run took, in time and memory, beside what `unveil plan` said that it would take."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from unveil.train.log import Record
from unveil.train.parallel import Place
from unveil.train.run import PLAN, Run


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self._start


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held so far: tensors of a GPU, or all of it on a CPU; None where nobody counts."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        return None
    found = status("VmHWM")                                                    # ru_maxrss would count the parent's, too
    if found is not None:
        return found
    try:
        import resource
    except ImportError:                                                        # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_now() -> int | None:
    """Bytes that this process holds; None where nobody counts."""
    return status("VmRSS")


def status(key: str) -> int | None:
    """A number of bytes that Linux tells of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def cost_of_run(run: Run, clock: Clock, first: int, place: Place) -> Record:
    """What a run took, beside the plan in its folder where that was made for these settings on this hardware.

    A run that went on from step `first` cannot say how long its first part took: then there is no time.
    """
    cost: Record = {"seconds": None if first else clock.seconds, "memory": peak_memory(place.device)}
    plan = planned(run, place)
    return cost if plan is None else cost | {"planned": {key: plan["predicted"][key] for key in ("seconds", "memory")}}


def planned(run: Run, place: Place) -> dict[str, Any] | None:
    """The plan of a run; None where there is none, or where it was made for other settings or other hardware."""
    try:
        plan: dict[str, Any] = json.loads((run.path / PLAN).read_text())
        same = plan["config"] == run.config and plan["data"] == run.facts["data"] and plan["machine"] == machine(place)
        return plan if same and {"seconds", "memory"} <= plan["predicted"].keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def machine(place: Place) -> dict[str, Any]:
    """What a plan holds for: the device, the processes, the threads of each."""
    gpu = place.device.type == "cuda"
    chip = torch.cuda.get_device_name(place.device) if gpu else place.device.type
    return {"device": chip, "processes": place.world, "threads": None if gpu else torch.get_num_threads()}


def cost_line(cost: Record) -> str:
    """The same in a sentence."""
    return f"It took {took(cost, 'seconds', spell_time)}, and {took(cost, 'memory', spell_bytes)} of memory at the most."


def took(cost: Record, key: str, spell: Any) -> str:
    """A number of the bill, beside the planned one."""
    actual, plan = cost.get(key), (cost.get("planned") or {}).get(key)
    told = spell(actual) if actual is not None else "an unknown " + {"seconds": "time", "memory": "amount"}[key]
    if plan is None:
        return str(told)
    ratio = f", {actual / plan:.2f} times that" if actual is not None and plan else ""
    return f"{told} (planned: {spell(plan)}{ratio})"


def spell_time(seconds: float) -> str:
    """Seconds as a person would say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def spell_bytes(count: float) -> str:
    """Bytes as a person would say them."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
