"""The training loop, from top to bottom. It knows `Learner` and no method by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unveil.data.loader import Feed, stream, taste
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Meter, Record, Screen, Sink
from unveil.train.memory_trial import matrix_peak, try_step
from unveil.train.optim import OptimConfig, build_optimizer, gradient_norm, set_pace
from unveil.train.parallel import Place, SpreadConfig, agree, any_process, autocast, last_of, spread, whole, whole_here
from unveil.train.state import load_model_state, load_optimizer_state, model_state, optimizer_state
from unveil.train.watch import Interrupted, Pace, check_finite, seed_all, stop_signals

Monitor = Callable[[Learner], Record]  # says what it sees of a learner now and then


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, on how much at a time."""

    epochs: float = 100.0
    """Passes over the data."""
    batch_size: int = 256
    """Samples in a step, over all processes and parts."""
    accumulate: int = 0
    """Parts in which a step's samples are computed one after the other, with the same result; 0 takes as few as fit the memory."""
    seed: int = 0
    """Of the weights, the order of the samples, and all that is drawn."""
    log_every: int = 10
    """Steps between two lines of the log."""
    monitor_times: int = 10
    """How often in a run the encoder is judged on the side."""
    save_seconds: float = 20.0
    """Seconds between two checkpoints, or more, so that saving takes less than a fiftieth of the time."""
    keep: int = 3
    """Checkpoints that are kept."""


def train(
    learner: Learner,
    feed: Feed,
    config: TrainConfig,
    optim: OptimConfig,
    spread_config: SpreadConfig,
    place: Place,
    *,
    checkpoints: Checkpoints | None = None,
    sinks: Sequence[Sink] = (),
    screen: Screen | None = None,
    monitors: Sequence[Monitor] = (),
) -> None:
    """Trains a learner in place, going on from the newest checkpoint where there is one.

    Raises:
        Interrupted: On SIGTERM or Ctrl-C, after saving.
        UnveilError: On a loss that is not finite, with the cause; the last good checkpoint stays.
    """
    total, few = total_steps(config, feed), taste(feed)
    learner.to(place.device).train()
    trial = try_step(learner, few, config.batch_size, config.accumulate, spread_config, place)
    count = agree(trial.parts, place)
    start = agree((checkpoints.newest() or 0) if checkpoints and place.lead else 0, place)
    if checkpoints and start:
        load_model_state(learner, checkpoints.load(start, "model"))
    else:
        with torch.no_grad():
            learner.prepare(learner.augment(few.to(place.device)))
    model = spread(learner, spread_config, place, few)
    optimizer = build_optimizer(learner, optim)
    if checkpoints and start:
        load_optimizer_state(learner, optimizer, checkpoints.load(start, "optimizer"))

    if screen and not config.accumulate and count > 1:
        screen.say(f"each step is computed in {count} parts, one after the other, to fit the memory")
    meter = Meter(place, trial.flops / matrix_peak(place.device, spread_config.precision))
    pace = Pace(config.save_seconds)
    judged_at = {round(total * (i + 1) / config.monitor_times) for i in range(config.monitor_times)}
    with stop_signals() as stop:
        for step, parts in meter.waits(stream(feed, range(start, total), place.rank, place.world, count)):
            seed_all(config.seed, step, place.rank)  # dropout and drop path; all else has keys
            rate, decay = optim.at(step, total, config.batch_size)
            set_pace(optimizer, rate, decay)
            for i, part in enumerate(parts):
                with torch.no_grad():
                    batch = learner.augment(part.to(place.device))
                with last_of(model, i == len(parts) - 1):
                    with autocast(spread_config, place):
                        result = model(batch)
                    (result.loss / len(parts)).backward()
                meter.add({"loss": result.loss, **result.metrics})
            norm = whole(gradient_norm(learner, optim.clip))
            optimizer.step()
            optimizer.zero_grad()
            meter.step({"gradient_norm": norm}, config.batch_size)
            done = step + 1
            learner.after_step(done / total)
            if screen:
                screen.advance(done)

            stopping = stop.is_set() and place.world == 1  # many processes agree at the next log line
            if not (stopping or done % config.log_every == 0 or done in judged_at or done == total):
                continue
            record = {"step": done, "epoch": done * config.batch_size / feed.samples, "learning_rate": rate} | meter.read()
            check_finite(learner, record, parts)
            if done in judged_at and place.lead and whole_here(spread_config, place):
                record |= judge(learner, monitors)
            for sink in sinks:
                sink.write(record)
            if screen:
                screen.show(done, record)
            stopping = any_process(stop.is_set(), place)
            if checkpoints and agree(stopping or done == total or pace.due(), place):
                with pace.saving():
                    files = {"model": model_state(learner), "optimizer": optimizer_state(learner, optimizer)}
                    if place.lead:
                        checkpoints.save(done, files, {"total": total})
            if stopping and done < total:
                raise Interrupted(done, total, checkpoints is not None)
            meter.restart()


def total_steps(config: TrainConfig, feed: Feed) -> int:
    """Steps of the whole run."""
    return max(1, round(config.epochs * feed.samples / config.batch_size))


def judge(learner: Learner, monitors: Sequence[Monitor]) -> Record:
    """What the monitors see."""
    learner.eval()
    with torch.no_grad():
        seen = {key: value for monitor in monitors for key, value in monitor(learner).items()}
    learner.train()
    return seen
