"""The training loop, from top to bottom. It knows `Learner` and no method by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unveil.data.loader import Loader, first_batch, stream
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Meter, Record, Screen, Sink
from unveil.train.memory_trial import fit_batch_in_memory, matrix_peak
from unveil.train.optim import OptimConfig, build_optimizer, gradient_norm, set_pace
from unveil.train.parallel import (
    HardwareConfig,
    World,
    any_process,
    autocast,
    broadcast_from_main,
    full_tensor,
    is_replicated,
    no_sync_until_last,
    parallelize,
)
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
    loader: Loader,
    config: TrainConfig,
    optim: OptimConfig,
    hardware: HardwareConfig,
    world: World,
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
    total, few = total_steps(config, loader), first_batch(loader)
    learner.to(world.device).train()
    trial = fit_batch_in_memory(learner, few, config.batch_size, config.accumulate, hardware, world)
    count = broadcast_from_main(trial.parts, world)
    start = broadcast_from_main((checkpoints.newest() or 0) if checkpoints and world.is_main else 0, world)
    if checkpoints and start:
        load_model_state(learner, checkpoints.load(start, "model"))
    else:
        with torch.no_grad():
            learner.prepare(learner.augment(few.to(world.device)))
    model = parallelize(learner, hardware, world, few)
    optimizer = build_optimizer(learner, optim)
    if checkpoints and start:
        load_optimizer_state(learner, optimizer, checkpoints.load(start, "optimizer"))

    if screen and not config.accumulate and count > 1:
        screen.say(f"each step is computed in {count} parts, one after the other, to fit the memory")
    meter = Meter(world, trial.flops / matrix_peak(world.device, hardware.precision))
    pace = Pace(config.save_seconds)
    judged_at = {round(total * (i + 1) / config.monitor_times) for i in range(config.monitor_times)}
    with stop_signals() as stop:
        for step, parts in meter.waits(stream(loader, range(start, total), world.rank, world.size, count)):
            seed_all(config.seed, step, world.rank)  # dropout and drop path; all else has keys
            rate, decay = optim.at(step, total, config.batch_size)
            set_pace(optimizer, rate, decay)
            for i, part in enumerate(parts):
                with torch.no_grad():
                    batch = learner.augment(part.to(world.device))
                with no_sync_until_last(model, i == len(parts) - 1):
                    with autocast(hardware, world):
                        result = model(batch)
                    (result.loss / len(parts)).backward()
                meter.add({"loss": result.loss, **result.metrics})
            norm = full_tensor(gradient_norm(learner, optim.clip))
            optimizer.step()
            optimizer.zero_grad()
            meter.step({"gradient_norm": norm}, config.batch_size)
            done = step + 1
            learner.after_step(done / total)
            if screen:
                screen.advance(done)

            stopping = stop.is_set() and world.size == 1  # many processes agree at the next log line
            if not (stopping or done % config.log_every == 0 or done in judged_at or done == total):
                continue
            record = {"step": done, "epoch": done * config.batch_size / loader.samples, "learning_rate": rate} | meter.read()
            check_finite(learner, record, parts)
            if done in judged_at and world.is_main and is_replicated(hardware, world):
                record |= judge(learner, monitors)
            for sink in sinks:
                sink.write(record)
            if screen:
                screen.show(done, record)
            stopping = any_process(stop.is_set(), world)
            if checkpoints and broadcast_from_main(stopping or done == total or pace.due(), world):
                with pace.saving():
                    files = {"model": model_state(learner), "optimizer": optimizer_state(learner, optimizer)}
                    if world.is_main:
                        checkpoints.save(done, files, {"total": total})
            if stopping and done < total:
                raise Interrupted(done, total, checkpoints is not None)
            meter.restart()


def total_steps(config: TrainConfig, loader: Loader) -> int:
    """Steps of the whole run."""
    return max(1, round(config.epochs * loader.samples / config.batch_size))


def judge(learner: Learner, monitors: Sequence[Monitor]) -> Record:
    """What the monitors see."""
    learner.eval()
    with torch.no_grad():
        seen = {key: value for monitor in monitors for key, value in monitor(learner).items()}
    learner.train()
    return seen
