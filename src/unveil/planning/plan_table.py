"""Tables of a plan, for a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from unveil.plain_text import count_of, printable
from unveil.planning.dry_run import DryRun
from unveil.planning.plan import Plan, flag, steps_of
from unveil.planning.rules import Hardware
from unveil.runs.image_pretraining import ImagePlan
from unveil.train.run_cost import spell_bytes, spell_time
from unveil.train.terminal import show

PARTS = {
    "reading": "until the first step: reading the images, building the model",
    "training": "steps",
    "monitoring": "evaluations during training",
    "saving": "checkpoints",
    "evaluation": "final evaluation and report",
}
"""The parts of a run: see `DryRun.parts`."""


def show_plan(plan: Plan, run: ImagePlan, trial: DryRun, hardware: Hardware) -> None:
    """Prints the choices, the prediction, the notes, and the command on a line of its own."""
    device = f"{hardware.name} with {hardware.cores} cores" if hardware.device == "cpu" else hardware.name
    processes = f"{hardware.processes} processes, each on " if hardware.processes > 1 else ""
    count = count_of(trial.train, "image")
    title = f"{run.source.name}: {count} to train on; {processes}{device}, {spell_bytes(hardware.memory)} of memory"
    choices = new_table()
    for name, choice in plan.choices.items():
        choices.add_row(name.replace("_", " "), " ".join(flag(name, choice.value)[1:]), choice.why)
    show(Group(Text(printable(title), style="bold"), choices, Text("")))
    total, training = steps_of(run, trial), run.recipe.training
    remarks = PARTS | {
        "training": f"{total:,} {PARTS['training']} of {trial.step:.3g} s",
        "monitoring": f"{trial.monitor_count(total, training)} {PARTS['monitoring']}",
        "saving": f"{trial.checkpoint_count(total, training)} {PARTS['saving']}",
    }
    times = new_table()
    for name, seconds in plan.parts.items():
        times.add_row(name, spell_time(seconds), remarks[name])
    times.add_row("total time", spell_time(plan.seconds), "after Python and torch have loaded", style="bold")
    memory = "unknown" if plan.memory is None else spell_bytes(plan.memory)
    times.add_row("peak memory", memory, "of tensors on the GPU" if hardware.device == "cuda" else "of the process", style="bold")
    show(Group(Text("Predicted cost", style="bold"), times, Text("")))
    for note in plan.notes:
        show(Text(f"Note: {note}."))
    print(f"\n{plan.command}")


def new_table() -> Table:
    """An empty table with columns for names, values and remarks."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(style="dim")
    return table
