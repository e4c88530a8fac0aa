"""What a run took, in time and memory, beside what `unveil plan` said that it would take."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unveil.train.log import Record
from unveil.train.parallel import World
from unveil.train.run_folder import PLAN, Run


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held so far: tensors of a GPU, or all of it on a CPU; None where nobody counts."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return process_bytes("VmHWM") if device.type == "cpu" else None


def process_bytes(key: str) -> int | None:
    """What Linux tells of this process: VmRSS is what it holds now, VmHWM the most that it ever held; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def bill_of(run: Run, began: float, first: int, world: World) -> Record:
    """What a run took, beside the plan in its folder where that was made for these settings on this hardware.

    Args:
        run: The run, at its end.
        began: `time.monotonic()` at its start.
        first: The step that it went on from: if not 0, nobody knows how long the part before took, and there is no time.
        world: Where it ran.
    """
    bill: Record = {"seconds": None if first else time.monotonic() - began, "memory": peak_memory(world.device)}
    plan = plan_of(run, world)
    return bill if plan is None else bill | {"planned": {key: plan["predicted"][key] for key in ("seconds", "memory")}}


def plan_of(run: Run, world: World) -> dict[str, Any] | None:
    """The plan of a run; None where there is none, or where it was made for other settings or other hardware."""
    try:
        plan: dict[str, Any] = json.loads((run.path / PLAN).read_text())
        same = plan["config"] == run.config and plan["data"] == run.facts["data"] and plan["machine"] == machine(world)
        return plan if same and {"seconds", "memory"} <= plan["predicted"].keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def machine(world: World) -> dict[str, Any]:
    """What a plan holds for: the device, the processes, the threads of each."""
    gpu = world.device.type == "cuda"
    chip = torch.cuda.get_device_name(world.device) if gpu else world.device.type
    return {"device": chip, "processes": world.size, "threads": None if gpu else torch.get_num_threads()}


def bill_line(bill: Record) -> str:
    """The same in a sentence."""
    return f"It took {told(bill, 'seconds', spell_time)}, and {told(bill, 'memory', spell_bytes)} of memory at the most."


def told(bill: Record, key: str, spell: Callable[[float], str]) -> str:
    """A number of the bill, beside the planned one."""
    actual, plan = bill.get(key), (bill.get("planned") or {}).get(key)
    text = spell(actual) if actual is not None else "an unknown " + {"seconds": "time", "memory": "amount"}[key]
    if plan is None:
        return text
    ratio = f", {actual / plan:.2f} times that" if actual is not None and plan else ""
    return f"{text} (planned: {spell(plan)}{ratio})"


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
