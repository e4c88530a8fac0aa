"""`unveil plan`: chooses the options of a run for these images and this hardware, and predicts its time and memory."""

import time
from pathlib import Path
from typing import Annotated, Any

from unveil.data.python_data import with_columns
from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.learner import Method
from unveil.methods import METHODS, method_class
from unveil.option_types import check_value
from unveil.options import check_options
from unveil.plain_text import count_of
from unveil.planning.dry_run import dry_run
from unveil.planning.plan import (
    Plan,
    choose_measured,
    choose_run,
    command_of,
    detect_hardware,
    load_average,
    notes_of,
    refuse_used_folder,
    steps_of,
    summarize,
    with_choices,
    write_plan,
)
from unveil.planning.plan_table import show_plan
from unveil.planning.rules import applies_to, budget
from unveil.ranges import Positive, Range
from unveil.runs.images import IMAGES
from unveil.runs.initial_weights import fixed_choices
from unveil.runs.open_data import say_notes
from unveil.train.parallel import HardwareConfig, join_processes, shutdown
from unveil.train.terminal import printer


def plan(
    data: Data = "digits",
    *,
    method: str | type[Method] = "mae",
    model: str | None = None,
    out: str | Path | None = None,
    hours: float | None = None,
    seconds: float = 30.0,
    **options: Any,
) -> Plan:
    """Chooses the options of a pre-training run on DATA for this hardware, tries them briefly, and predicts time and memory.

    Args:
        data: As for `pretrain`.
        method: As for `pretrain`, but only a method for images.
        model: As for `pretrain`; chosen if it is not given.
        out: The run folder of the printed command; `plan.json` goes there.
        hours: The longest time that the run may take; by default 1 hour on a CPU and 8 hours on a GPU. It determines the epochs
            and the model.
        seconds: The approximate duration of the trial run. It takes longer if a step takes more than a quarter of that.
        **options: Any option of `pretrain`; an option that is given is not chosen.

    Raises:
        UnveilError: On input that cannot be used, and if the budget is too short.
    """
    if not applies_to(method_class(method)):
        raise UnveilError(f"{METHODS.label(method)} is a method for text, but `unveil plan` is for images only")
    method = METHODS.find(method)
    data, options = with_columns(data, options)
    options = check_options(options, *IMAGES.configs(method))
    check_value("seconds", seconds, Annotated[float, Range(1, 3600)])
    check_value("hours", hours, Positive | None)
    given = options | ({"model": model} if model else {})
    if options.get("init"):
        given = fixed_choices(options["init"], method_class(method), given)
    busy, world = load_average(), join_processes(HardwareConfig(device=options.get("device", "auto")))
    hardware = detect_hardware(world, options.get("precision", "auto"))
    limit, start = budget(hardware, hours), time.monotonic()
    opened = IMAGES.open(data, given)
    say_notes(printer(world.is_main), opened.sentence, opened.train)
    listing, summary = time.monotonic() - start, summarize(opened, given)
    start = time.monotonic()
    choices, run = choose_run(summary, opened, data, method, given, hardware, limit)
    refuse_used_folder(run.path(out))
    printer(world.is_main)(f"trying {run.model} on {count_of(summary.count, 'image')} for about {seconds:g} seconds ...")
    trial = dry_run(run, run.path(out), listing + time.monotonic() - start, seconds)
    measured = choose_measured(run, trial, data, given, limit)
    choices, run = choices | measured, with_choices(run, measured)
    parts = trial.parts(steps_of(run, trial), run.recipe.training)
    planned = Plan(
        path=run.path(out),
        command=command_of(run, data, out, options | {name: choice.value for name, choice in choices.items()}),
        choices=choices,
        config=run.config,
        seconds=sum(parts.values()),
        memory=trial.memory,
        parts=parts,
        notes=notes_of(run, trial, hardware, limit, busy),
    )
    if world.is_main:
        write_plan(planned, run, trial, hardware)
        show_plan(planned, run, trial, hardware)
    shutdown(world)
    return planned
