"""`unveil plan`: what to train on these images with this hardware, how long it takes and how much memory, before it begins."""

import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from unveil.data.sources import Data, open_both
from unveil.errors import UnveilError
from unveil.options import refuse_unknown
from unveil.planning.dry_run import DryRun, rehearse
from unveil.planning.rules import Choice, Choices, DataSummary, Machine, budget, choose, epochs_for
from unveil.runs.open_data import natural_side
from unveil.runs.pretrain_setup import PretrainPlan, configs_of, resolve, usual_for
from unveil.train.checkpoint import write_whole
from unveil.train.memory_trial import matrix_peak, memory_of
from unveil.train.parallel import HardwareConfig, World, join_processes, resolve_precision, shutdown
from unveil.train.run_cost import machine, spell_bytes, spell_time
from unveil.train.run_folder import PLAN, show, tell

PARTS = {
    "reading": "until the first step: reading the images, building the model",
    "training": "steps",
    "looking": "looks at the encoder on the side",
    "saving": "checkpoints",
    "judging": "closing evaluation and report",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `unveil plan` found; `plan.json` holds the same."""

    path: Path
    """The run folder that the command uses; `plan.json` is in it."""
    command: str
    """What to type."""
    choices: Choices
    """Each knob that was chosen, with its reason."""
    config: dict[str, Any]
    """Every option of the run, by name."""
    seconds: float
    """The whole run, from the call of `pretrain` to the end of its report."""
    memory: int | None
    """The most bytes at any time: of the process on a CPU, of tensors on a GPU; None where nobody counts."""
    parts: dict[str, float]
    """The seconds by what they are for."""
    notes: tuple[str, ...]
    """What could not be known, and what should be."""


def plan(
    data: Data = "digits",
    *,
    method: str = "mae",
    model: str | None = None,
    out: str | Path | None = None,
    hours: float | None = None,
    seconds: float = 30.0,
    **options: Any,
) -> Plan:
    """Chooses what to train on DATA with the hardware at hand, tries it for a moment, and predicts time and memory.

    Args:
        data: As for `pretrain`.
        method: As for `pretrain`.
        model: As for `pretrain`; chosen where it is not given.
        out: The run folder of the command that is printed; `plan.json` goes there.
        hours: The time that the run may take: 1 on a CPU and 8 on a GPU by default. It decides the epochs, and the model.
        seconds: About how long the trial takes; a step that is slower than a quarter of that makes it longer.
        **options: Any option of `pretrain`: what is given is not chosen.

    Raises:
        UnveilError: On input that cannot be used, and where the budget is too short for anything.
    """
    train_set = {"model", *(field.name for config in configs_of(method) for field in fields(config))}
    refuse_unknown(options, train_set)
    if not 1 <= seconds <= 3600:
        raise UnveilError(f"--seconds is {seconds:g}: give the seconds that the trial may take, 1 to 3600; 30 are enough")
    given = options | ({"model": model} if model else {})
    others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    world = join_processes(HardwareConfig(device=options.get("device", "auto")))
    found = hardware_found(world, options.get("precision", "auto"))
    allowed, start = budget(found, hours), time.monotonic()
    opened = open_both(data)
    listing = time.monotonic() - start
    glance = glance_at(opened, given)
    usual = usual_for(data, method)
    usual = usual if "epochs" in usual else {}  # those of the digits, which were made for them
    choices = choose(glance, found, allowed, given, usual, train_set)
    chosen = {name: choice.value for name, choice in choices.items()}
    start = time.monotonic()
    setting = resolve(
        data, method, chosen.pop("model"), {k: v for k, v in usual.items() if k != "model"} | options | chosen, opened
    )
    folder = setting.path(out)
    refuse_run(folder)
    say = tell(world.is_main)
    say(f"trying {setting.model} on {glance.count:,} images for about {seconds:g} seconds ...")
    trial = rehearse(setting, folder, listing + time.monotonic() - start, seconds)
    whole = replace(glance, count=trial.train)
    choices["accumulate"] = Choice(trial.parts, "as given" if options.get("accumulate") else "as few parts as fit the memory")
    choices["epochs"] = epochs_of(setting, whole, allowed, trial, given, usual)
    training = replace(setting.training, epochs=choices["epochs"].value, accumulate=trial.parts)
    setting = replace(setting, training=training)
    total = max(1, round(training.epochs * trial.train / training.batch_size))  # as `unveil.train.loop.total_steps`
    bill = trial.bill(total, training)
    options |= {name: choice.value for name, choice in choices.items()}
    made = Plan(
        path=folder,
        command=command_of(setting, data, method, out, options, world),
        choices=choices,
        config=setting.config,
        seconds=sum(bill.values()),
        memory=trial.memory,
        parts=bill,
        notes=tuple(notes_of(trial, total, sum(bill.values()), allowed, found, others)),
    )
    if world.is_main:
        write_plan(made, setting, trial, found)
        show_plan(made, setting, trial, found, total)
    shutdown(world)
    return made


def hardware_found(world: World, precision: str) -> Machine:
    """The hardware at hand."""
    fast = resolve_precision(HardwareConfig(), world).precision
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = world.device.type == "cuda"
    name = torch.cuda.get_device_name(world.device) if gpu else "CPU" if world.device.type == "cpu" else world.device.type
    return Machine(
        device=world.device.type,
        name=name,
        memory=memory_of(world.device),
        cores=cores,
        processes=world.size,
        peak=matrix_peak(world.device, fast if precision == "auto" else precision),
        precision=fast,
    )


def glance_at(opened: Any, given: Mapping[str, Any]) -> DataSummary:
    """How many images there are to train on, and how large they are."""
    source, test = opened
    count = len(source)
    if test is None:
        count -= min(given.get("held_out", 1000), int(0.1 * count))
    return DataSummary(count=count, side=natural_side(source, given.get("pixel_limit", 64_000_000)))


def epochs_of(
    setting: PretrainPlan, glance: DataSummary, allowed: float, trial: DryRun, given: Mapping[str, Any], usual: Mapping[str, Any]
) -> Choice:
    """As given; or as many as fit into the budget at the speed that was measured."""
    if "epochs" in given:
        return Choice(float(given["epochs"]), "as given")
    batch = setting.training.batch_size
    probe = max(2 * len(trial.steps), 1000)  # the bill is a line in the number of steps
    one, two = (sum(trial.bill(total, setting.training).values()) for total in (probe, 2 * probe))
    each = (two - one) / probe
    return epochs_for(glance, allowed, max(0.0, one - probe * each), each / batch, usual.get("epochs"))


def refuse_run(folder: Path) -> None:
    """Raises `UnveilError` where the folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(each.name != PLAN for each in folder.iterdir())):
        raise UnveilError(f"{folder} holds something already, so no run can be planned there: choose another --out")


def notes_of(trial: DryRun, total: int, seconds: float, allowed: float, found: Machine, others: float) -> list[str]:
    """What the reader should know beside the numbers."""
    notes = []
    if trial.memory is None:
        notes.append(f"nobody counts the memory of {found.device} here, so it is not known")
    if trial.read < 1:
        notes.append(f"{trial.read:.0%} of the images were read; time and memory of reading the rest are extrapolated")
    if seconds > 1.05 * allowed:
        limit = spell_time(allowed)
        notes.append(f"this is longer than the {limit} that it may take: think of fewer --epochs, or of a smaller --model")
    if total < 500:
        notes.append(f"{total} steps are few to learn from: think of more --hours, or of a smaller --batch-size")
    if trial.waiting > 0.05:
        notes.append(f"{trial.waiting:.0%} of the time goes by waiting for images")
    if others > 0.25 * found.cores:
        notes.append(f"other programs kept {others:.1f} of {found.cores} cores busy when this began: times are for such company")
    if found.processes > 1:
        notes.append("the memory is that of the first process; the images are kept by each")
    notes.append("other hardware is not guessed at: there, run `unveil plan` again, or see docs/scaling.md")
    return notes


def command_of(
    setting: PretrainPlan, data: Data, method: str, out: str | Path | None, options: Mapping[str, Any], world: World
) -> str:
    """The command that makes this run."""
    named = "DATA" if isinstance(data, np.ndarray) else str(data)
    words = ["pretrain", named, "--method", method, "--out", str(out or setting.path(None))]
    for name, value in options.items():
        words += flag(name, value)
    if world.size == 1:
        return shlex.join(["unveil", *words])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    start = ["torchrun", "--standalone", "--nproc-per-node", str(local)]
    if local != world.size:  # several machines: only the user knows how they meet
        start = ["torchrun", "..."]
    return shlex.join([*start, "--module", "unveil", *words])


def flag(name: str, value: Any) -> list[str]:
    """An option as it is typed."""
    typed = "--" + name.replace("_", "-")
    if value is None or value == ():
        return []
    if isinstance(value, bool):
        return [typed if value else typed.replace("--", "--no-", 1)]
    if isinstance(value, tuple | list):
        same = len(value) == 2 and value[0] == value[1] and name in ("image_size", "patch_size")
        return [typed, *(str(each) for each in (value[:1] if same else value))]
    return [typed, f"{value:g}" if isinstance(value, float) else str(value)]


def write_plan(made: Plan, setting: PretrainPlan, trial: DryRun, found: Machine) -> None:
    """Writes `plan.json` into the run folder."""
    made.path.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": made.command,
        "choices": {name: {"value": choice.value, "why": choice.why} for name, choice in made.choices.items()},
        "predicted": {"seconds": made.seconds, "memory": made.memory, "parts": made.parts},
        "notes": made.notes,
        "config": made.config,
        "data": setting.facts,
        "machine": machine(setting.world),
        "hardware": asdict(found),
        "trial": asdict(trial),
    }
    write_whole(made.path / PLAN, json.dumps(facts, indent=1) + "\n")


def show_plan(made: Plan, setting: PretrainPlan, trial: DryRun, found: Machine, total: int) -> None:
    """The tables, and the command as a line of its own."""
    chip = f"{found.name} with {found.cores} cores" if found.device == "cpu" else found.name
    many = f"{found.processes} processes, each on " if found.processes > 1 else ""
    say = f"{setting.source.name}: {trial.train:,} images to train on; {many}{chip}, {spell_bytes(found.memory)} of memory"
    chosen = table()
    for name, choice in made.choices.items():
        chosen.add_row(name.replace("_", " "), " ".join(flag(name, choice.value)[1:]), choice.why)
    show(Group(Text(say, style="bold"), chosen, Text("")))
    told = {
        "training": f"{total:,} {PARTS['training']} of {trial.step:.3g} s",
        "looking": f"{trial.looks(total, setting.training)} {PARTS['looking']}",
        "saving": f"{trial.saves(total, setting.training)} {PARTS['saving']}",
    }
    times = table()
    for name, seconds in made.parts.items():
        times.add_row(name, spell_time(seconds), told.get(name, PARTS[name]))
    times.add_row("time in all", spell_time(made.seconds), "from when Python and torch have loaded", style="bold")
    memory = "not known" if made.memory is None else spell_bytes(made.memory)
    whose = "of the GPU, by tensors" if found.device == "cuda" else "of the process"
    times.add_row("memory", memory, f"{whose}, at the most", style="bold")
    show(Group(Text("What it will take", style="bold"), times, Text("")))
    for note in made.notes:
        show(Text(f"Note: {note}."))
    print(f"\n{made.command}")


def table() -> Table:
    """An empty table of names, values and remarks."""
    made = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(justify="right")
    made.add_column(style="dim")
    return made
