"""The plan of a pre-training run: options, command, and predicted time and memory."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from unveil.atomic_files import write_text
from unveil.data.parts import Roles
from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.json_files import json_text
from unveil.methods import METHODS
from unveil.plain_text import count_of
from unveil.planning.dry_run import DryRun
from unveil.planning.rules import Choice, Choices, DataSummary, Hardware, choose, choose_epochs
from unveil.reports.html import element, table_element
from unveil.reports.notebook import output
from unveil.runs.image_pretraining import ImagePlan, PretrainConfig
from unveil.runs.images import IMAGES
from unveil.runs.open_data import natural_side
from unveil.train.memory_trial import matrix_peak, memory_of
from unveil.train.migration import RUN_FORMAT
from unveil.train.parallel import HardwareConfig, World, resolve_precision
from unveil.train.run_cost import machine, spell_bytes, spell_time
from unveil.train.run_folder import PLAN

FEW_STEPS = 500
"""If a run has fewer steps than this, a note suggests more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The prediction of `unveil plan`. `plan.json` has the same content."""

    path: Path
    """The run folder of the command, which contains `plan.json`."""
    command: str
    """The command to run."""
    choices: Choices
    """The chosen options, each with its reason."""
    config: dict[str, Any]
    """Every option of the run, by name."""
    seconds: float
    """Time of the whole run, from the call of `pretrain` to the end of its report."""
    memory: int | None
    """Peak memory in bytes: of the process on a CPU, of tensors on a GPU; None if it cannot be measured."""
    parts: dict[str, float]
    """Seconds of each part of the run."""
    notes: tuple[str, ...]
    """Notes on the prediction."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the command, the choices with their reasons, and the predicted cost."""
        choices = [[name.replace("_", " "), " ".join(flag(name, each.value)[1:]), each.why] for name, each in self.choices.items()]
        times = [[name, spell_time(seconds)] for name, seconds in self.parts.items()]
        times += [["total time", spell_time(self.seconds)], ["peak memory", spell_bytes(self.memory) if self.memory else "unknown"]]
        return output(
            element("p", element("code", self.command)),
            table_element(["option", "value", "why"], choices, title="Chosen for these images and this hardware", class_="choices"),
            table_element(["part", "predicted"], times, title="Predicted cost"),
            *(element("p", f"Note: {note}.", class_="muted") for note in self.notes),
        )


def detect_hardware(world: World, precision: str) -> Hardware:
    """The hardware of this process. Measures the speed of matrix products."""
    fast = resolve_precision(HardwareConfig(), world).precision
    is_gpu = world.device.type == "cuda"
    return Hardware(
        device=world.device.type,
        name=torch.cuda.get_device_name(world.device) if is_gpu else "CPU" if world.device.type == "cpu" else world.device.type,
        memory=memory_of(world.device),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processes=world.size,
        peak=matrix_peak(world.device, fast if precision == "auto" else precision),
        precision=fast,
    )


def load_average() -> float:
    """The number of cores that were busy in the last minute; 0 if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def summarize(opened: Roles, given: Mapping[str, Any]) -> DataSummary:
    """The number and the size of the training images."""
    count = len(opened.train)
    if opened.test is None:
        count -= min(given.get("held_out", PretrainConfig.held_out), int(0.1 * opened.held_out_of))
    return DataSummary(count=count, side=natural_side(opened.train, given.get("max_pixels", PretrainConfig.max_pixels)))


def refuse_used_folder(folder: Path) -> None:
    """Raises `UnveilError` if the folder holds anything besides an earlier plan."""
    if folder.exists() and (not folder.is_dir() or any(each.name != PLAN for each in folder.iterdir())):
        raise UnveilError(f"{folder} is not empty, so no run can be planned there: choose another --out")


def choose_run(
    summary: DataSummary, opened: Roles, data: Data, method: str, given: Mapping[str, Any], hardware: Hardware, budget: float
) -> tuple[Choices, ImagePlan]:
    """Chooses the options that do not depend on the measured speed, and resolves the run.

    Args:
        summary: Number and size of the images.
        opened: DATA, listed.
        data: DATA.
        method: The method.
        given: Options given by the user, which may include `model`.
        hardware: The hardware.
        budget: The seconds that the run may take.
    """
    defaults = data_defaults(data, method)
    names = {"model", *(field.name for config in IMAGES.configs(method) for field in fields(config))}
    choices = choose(summary, hardware, budget, given, defaults, names)
    options = {**defaults, **given, **{name: choice.value for name, choice in choices.items()}}
    return choices, IMAGES.plan_for(opened, data, method, options.pop("model"), options)


def data_defaults(data: Data, method: str) -> dict[str, Any]:
    """Defaults for specific data, such as the digits. Other data has no default for the epochs."""
    defaults = IMAGES.defaults(data, method)
    return defaults if "epochs" in defaults else {}


def choose_measured(run: ImagePlan, trial: DryRun, data: Data, given: Mapping[str, Any], budget: float) -> Choices:
    """Chooses the options that depend on the dry run: microbatches, and the epochs that fit into the budget."""
    accum_steps = Choice(trial.accum_steps, "given" if given.get("accum_steps") else "the fewest that fit into memory")
    if "epochs" in given:
        return {"accum_steps": accum_steps, "epochs": Choice(float(given["epochs"]), "given")}
    training = run.recipe.training
    steps = max(2 * len(trial.steps), 1000)  # beyond the warm-up, the time is linear in the number of steps
    once, twice = (sum(trial.parts(total, training).values()) for total in (steps, 2 * steps))
    per_step = (twice - once) / steps
    fixed_cost, wanted = max(0.0, once - steps * per_step), data_defaults(data, run.method).get("epochs")
    epochs = choose_epochs(trial.train, budget, fixed_cost, per_step / training.batch_size, wanted)
    return {"accum_steps": accum_steps, "epochs": epochs}


def with_choices(run: ImagePlan, choices: Choices) -> ImagePlan:
    """The run with the choices of `choose_measured`."""
    training = replace(run.recipe.training, **{name: choice.value for name, choice in choices.items()})
    return replace(run, recipe=replace(run.recipe, training=training))


def steps_of(run: ImagePlan, trial: DryRun) -> int:
    """The number of steps of the whole run, as in `unveil.train.loop.total_steps`."""
    training = run.recipe.training
    return max(1, round(training.epochs * trial.train / training.batch_size))


def notes_of(run: ImagePlan, trial: DryRun, hardware: Hardware, budget: float, busy: float) -> tuple[str, ...]:
    """Notes on the prediction.

    Args:
        run: The run.
        trial: Its dry run.
        hardware: The hardware.
        budget: The seconds that the run may take.
        busy: The number of cores that other programs used.
    """
    total, notes = steps_of(run, trial), []
    if trial.memory is None:
        notes.append(f"the memory of the device {hardware.device} cannot be measured here")
    if trial.read < 1:
        notes.append(f"only {trial.read:.0%} of the images were read; time and memory for the rest are extrapolated")
    if sum(trial.parts(total, run.recipe.training).values()) > 1.05 * budget:
        notes.append(f"this is longer than the budget of {spell_time(budget)}: consider fewer --epochs or a smaller --model")
    if total < FEW_STEPS:
        notes.append(f"only {count_of(total, 'step')}: consider more --hours or a smaller --batch-size")
    if trial.waiting > 0.05:
        notes.append(f"{trial.waiting:.0%} of the time is spent waiting for images")
    if busy > 0.25 * hardware.cores:
        notes.append(f"other programs used {busy:.1f} of {hardware.cores} cores: without them the run is faster")
    if hardware.processes > 1:
        notes.append("the memory is that of the first process, but each process holds the images")
    notes.append("this prediction is for this machine only: on another one, run `unveil plan` again, or see docs/scaling.md")
    return tuple(notes)


def command_of(run: ImagePlan, data: Data, out: str | Path | None, options: Mapping[str, Any]) -> str:
    """The command for a run."""
    world = run.recipe.world
    name = str(data) if isinstance(data, str | Path) else "DATA"
    names = {METHODS.find(label): label for label in METHODS.names}
    words = ["pretrain", name, "--method", names.get(run.method, run.method), "--out", str(out or run.path(None))]
    for option, value in options.items():
        words += flag(option, value)
    if world.size == 1:
        return shlex.join(["unveil", *words])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    launcher = ["torchrun", "--standalone", "--nproc-per-node", str(local)]
    if local != world.size:  # several machines: the user has to choose a rendezvous
        launcher = ["torchrun", "..."]
    return shlex.join([*launcher, "--module", "unveil", *words])


def flag(name: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    option = "--" + name.replace("_", "-")
    if value is None or value == ():
        return []
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if isinstance(value, tuple | list):
        square = len(value) == 2 and value[0] == value[1] and name in ("image_size", "patch_size")
        return [option, *(str(each) for each in (value[:1] if square else value))]
    return [option, f"{value:g}" if isinstance(value, float) else str(value)]


def write_plan(plan: Plan, run: ImagePlan, trial: DryRun, hardware: Hardware) -> None:
    """Writes `plan.json` into the run folder, where `pretrain` finds it."""
    plan.path.mkdir(parents=True, exist_ok=True)
    facts = {
        "format": RUN_FORMAT,
        "command": plan.command,
        "choices": {name: {"value": choice.value, "why": choice.why} for name, choice in plan.choices.items()},
        "predicted": {"seconds": plan.seconds, "memory": plan.memory, "parts": plan.parts},
        "notes": plan.notes,
        "config": plan.config,
        "data": run.facts,
        "machine": machine(run.recipe.world),
        "hardware": asdict(hardware),
        "trial": asdict(trial),
    }
    write_text(plan.path / PLAN, json_text(facts))
