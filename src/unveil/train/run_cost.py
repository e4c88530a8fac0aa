"""The time and memory that a run took, compared with the prediction of `unveil plan`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unveil.errors import UnveilError
from unveil.json_files import read_json
from unveil.train.data_changes import data_changes
from unveil.train.log import Record
from unveil.train.migration import migrate_config
from unveil.train.parallel import World
from unveil.train.run_folder import PLAN, Run


def peak_memory(device: torch.device) -> int | None:
    """The peak memory of this process in bytes: of tensors on a GPU, of the whole process on a CPU; None if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return process_bytes("VmHWM") if device.type == "cpu" else None


def process_bytes(key: str) -> int | None:
    """The memory of this process in bytes, from Linux: VmRSS is the current value, VmHWM the peak. None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def run_cost(run: Run, began: float, first: int, world: World) -> Record:
    """The cost of a run, with the prediction if its folder has a plan for the same settings and hardware.

    Args:
        run: The run, at its end.
        began: `time.monotonic()` at its start.
        first: The step from which the run resumed. If this is not 0, the total time is unknown.
        world: The processes.
    """
    cost: Record = {"seconds": None if first else time.monotonic() - began, "memory": peak_memory(world.device)}
    plan = plan_of(run, world)
    return cost if plan is None else cost | {"planned": {key: plan["predicted"][key] for key in ("seconds", "memory")}}


def plan_of(run: Run, world: World) -> dict[str, Any] | None:
    """The plan of a run; None if there is none, or if it is for other settings or other hardware."""
    try:
        plan = read_json(run.path / PLAN)
        config = migrate_config(plan["config"], plan.get("format", 1))
        same = config == run.config and not data_changes(plan["data"], run.facts["data"]) and plan["machine"] == machine(world)
        return plan if same and {"seconds", "memory"} <= plan["predicted"].keys() else None
    except (UnveilError, OSError, KeyError, TypeError, AttributeError):
        return None


def machine(world: World) -> dict[str, Any]:
    """The hardware that a plan is valid for: device, number of processes, and threads of each process."""
    gpu = world.device.type == "cuda"
    chip = torch.cuda.get_device_name(world.device) if gpu else world.device.type
    return {"device": chip, "processes": world.size, "threads": None if gpu else torch.get_num_threads()}


def cost_line(cost: Record) -> str:
    """The cost of a run as a sentence."""
    memory = f"{compared(cost, 'memory', spell_bytes)} of memory"
    if cost.get("seconds") is None:
        return f"The run used {memory}; it was resumed, so its total time is not known."
    return f"The run took {compared(cost, 'seconds', spell_time)} and {memory}."


def compared(cost: Record, key: str, spell: Callable[[float], str]) -> str:
    """A number of the cost, with the prediction of the plan."""
    actual, plan = cost.get(key), (cost.get("planned") or {}).get(key)
    text = spell(actual) if actual is not None else "an unknown amount"
    if plan is None:
        return text
    ratio = f", {actual / plan:.2f} times the plan" if actual is not None and plan else ""
    return f"{text} (planned: {spell(plan)}{ratio})"


def spell_time(seconds: float) -> str:
    """A duration for people, such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def spell_bytes(count: float) -> str:
    """A number of bytes for people, such as "1.50 GiB"."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
