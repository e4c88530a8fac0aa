"""Training inside a run folder: its log, its checkpoints, a bar on the screen."""

from collections.abc import Sequence
from typing import Literal

from unveil.data.loader import Loader, ImageLoader
from unveil.learner import Learner
from unveil.train.log import JsonLines, Screen, Sink, tracker
from unveil.train.loop import Monitor, TrainConfig, total_steps, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import World, HardwareConfig, shutdown
from unveil.train.run_folder import Run, tell


def finished(run: Run, world: World) -> bool:
    """Whether a run has ended already; the user is told so."""
    page = run.path / "report.html"
    if not run.results or not page.exists():
        return False
    tell(world.is_main)(f"{run.path} is finished. Its report: {page}")
    shutdown(world)
    return True


def fit(
    learner: Learner,
    loader: Loader,
    run: Run,
    world: World,
    training: TrainConfig,
    optim: OptimConfig,
    hardware: HardwareConfig,
    monitors: Sequence[Monitor],
    tracked: Literal["none", "tensorboard", "wandb"],
    title: str,
) -> int:
    """Trains, or goes on from the newest whole checkpoint of the run folder; says from which step."""
    say = tell(world.is_main)
    if at_hand(loader, world):
        say("all images fit into the memory of the GPU, and stay there")
    checkpoints = run.checkpoints(training.keep, say)
    first = (checkpoints.newest() or 0) if world.is_main else 0
    sinks: list[Sink] = []
    screen = None
    if world.is_main:
        if first:
            say(f"going on from step {first:,}")
        sinks = [JsonLines(run.path / "log.jsonl", first), *tracker(tracked, run.path, run.config)]
        reads = isinstance(loader, ImageLoader) and not loader.dataset.in_memory
        screen = Screen(title, total_steps(training, loader), first, reads=reads)
        checkpoints.warn = screen.say
    try:
        train(
            learner, loader, training, optim, hardware, world, checkpoints=checkpoints, sinks=sinks, screen=screen, monitors=monitors
        )
    finally:
        for sink in sinks:
            sink.close()
        if screen:
            screen.close()
    return first


def at_hand(loader: Loader, world: World) -> bool:
    """Takes the images as near to the device as they fit; whether they are all on a GPU now."""
    if not isinstance(loader, ImageLoader):
        return False
    resides = loader.dataset.reside(world.device)
    if not resides and world.device.type != "cpu":
        loader.instant = False  # a GPU leaves the processor to make batches ahead
    return resides
