"""Training inside a run folder: its log, its checkpoints, a bar on the screen."""

from collections.abc import Sequence
from typing import Literal

from unveil.data.loader import Feed, PictureFeed
from unveil.learner import Learner
from unveil.train.log import JsonLines, Screen, Sink, tracker
from unveil.train.loop import Monitor, TrainConfig, total_steps, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, leave
from unveil.train.run_folder import Run, tell


def finished(run: Run, place: Place) -> bool:
    """Whether a run has ended already; the user is told so."""
    page = run.path / "report.html"
    if not run.results or not page.exists():
        return False
    tell(place.lead)(f"{run.path} is finished. Its report: {page}")
    leave(place)
    return True


def fit(
    learner: Learner,
    feed: Feed,
    run: Run,
    place: Place,
    training: TrainConfig,
    optim: OptimConfig,
    hardware: SpreadConfig,
    monitors: Sequence[Monitor],
    tracked: Literal["none", "tensorboard", "wandb"],
    title: str,
) -> int:
    """Trains, or goes on from the newest whole checkpoint of the run folder; says from which step."""
    say = tell(place.lead)
    if at_hand(feed, place):
        say("all pictures fit into the memory of the GPU, and stay there")
    checkpoints = run.checkpoints(training.keep, say)
    first = (checkpoints.newest() or 0) if place.lead else 0
    sinks: list[Sink] = []
    screen = None
    if place.lead:
        if first:
            say(f"going on from step {first:,}")
        sinks = [JsonLines(run.path / "log.jsonl", first), *tracker(tracked, run.path, run.config)]
        reads = isinstance(feed, PictureFeed) and not feed.pictures.in_memory
        screen = Screen(title, total_steps(training, feed), first, reads=reads)
        checkpoints.warn = screen.say
    try:
        train(
            learner, feed, training, optim, hardware, place, checkpoints=checkpoints, sinks=sinks, screen=screen, monitors=monitors
        )
    finally:
        for sink in sinks:
            sink.close()
        if screen:
            screen.close()
    return first


def at_hand(feed: Feed, place: Place) -> bool:
    """Takes the pictures as near to the device as they fit; whether they are all on a GPU now."""
    if not isinstance(feed, PictureFeed):
        return False
    resides = feed.pictures.reside(place.device)
    if not resides and place.device.type != "cpu":
        feed.instant = False  # a GPU leaves the processor to make batches ahead
    return resides
