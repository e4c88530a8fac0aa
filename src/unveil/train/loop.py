"""The training loop. It trains any `Learner`, and does not depend on a method or task."""

from collections.abc import Sequence
from contextlib import nullcontext

from unveil.data.loader import Loader, first_batch, stream
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.stop_signals import StopFlag, note_signals
from unveil.train import overlap
from unveil.train.best import BestWeights
from unveil.train.checkpoint import Checkpoints
from unveil.train.guards import restored_generators
from unveil.train.log import Meter, Screen, Sink
from unveil.train.memory_trial import fit_batch_in_memory, matrix_peak
from unveil.train.microbatches import Microbatches
from unveil.train.parallel import float32_products, resolve_precision
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Monitor, Recorder
from unveil.train.signals import interruption
from unveil.train.snapshot import Writer
from unveil.train.state import start_or_resume
from unveil.train.steps import SampleReader, Stepper
from unveil.train.wrapping import compile_limits


def train(
    learner: Learner,
    loader: Loader,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    sinks: Sequence[Sink] = (),
    screen: Screen | None = None,
    monitors: Sequence[Monitor] = (),
    best: BestWeights | None = None,
) -> int:
    """Trains a learner in place, starting from the newest checkpoint if there is one. Returns the number of the first step.

    With `best`, the main process keeps the best weights, and training ends early if their patience is exhausted. Without
    checkpoints there is nothing to save, so signals are left to the caller.

    Raises:
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
        UnveilError: If the weights or too many steps are not finite, with the likely cause, or if samples cannot be read. The last
            good checkpoint is kept.
    """
    config, world = recipe.training, recipe.world
    hardware = resolve_precision(recipe.hardware, world)
    total, optim = total_steps(config, loader), recipe.optim.resolve_warmup(config.epochs)
    with restored_generators(world.device), float32_products(hardware.precision, world.device):
        examples = first_batch(loader)
        learner.to(world.device).train()
        trial = fit_batch_in_memory(learner, examples, config.batch_size, config.accum_steps, hardware, world)
        model, optimizer, first = start_or_resume(learner, examples, optim, hardware, world, checkpoints)
        parts = Microbatches(learner, trial.accum_steps, recipe)
        meter = Meter(world, trial.flops / matrix_peak(world.device, hardware.precision))

        signals = note_signals() if checkpoints else nullcontext(StopFlag())
        with signals as stop, compile_limits(learner, hardware, world), Writer() as writer:
            recorder = Recorder(
                learner=learner,
                optimizer=optimizer,
                loader=loader,
                recipe=recipe,
                total=total,
                first=first,
                parts=parts.loaded,
                checkpoints=checkpoints,
                sinks=sinks,
                screen=screen,
                monitors=monitors,
                meter=meter,
                stop=stop,
                writer=writer,
                best=best,
            )
            if not config.accum_steps and trial.accum_steps > 1:
                recorder.say(f"each step is computed in {trial.accum_steps} microbatches to fit into memory")
            # A checkpoint that holds the means of a line that is due: a signal has stopped its evaluation.
            if first and meter.has_values and recorder.log_due(first) and not recorder.log(first):
                raise interruption(first, total, stop.number)
            steps = range(first, total) if not recorder.ends_early(first) else range(0)

            gpu = world.device if world.device.type == "cuda" and overlap.enabled("copy") else None
            batches = stream(loader, steps, world.rank, world.size, parts.loaded, gpu=gpu)
            reader = SampleReader(batches, recorder)
            stepper = Stepper(model, learner, optimizer, parts, recorder, recipe)
            for number in steps:
                step = stepper.compute(number, reader.read(number))
                decision = stepper.apply(step, reader.failure)
                done = number + 1
                if done == total:
                    learner.after_training()
                if screen:
                    screen.advance(done)
                evaluated = not recorder.log_due(done) or recorder.log(done)
                stopping = decision.stop or not evaluated or (world.size == 1 and stop.is_set())
                ends = done == total or (evaluated and recorder.ends_early(done))
                if stopping or decision.save or ends:
                    recorder.save(done, goes_on=not stopping and not ends)
                if stopping:
                    raise interruption(done, total, decision.stop or stop.number)
                if ends:
                    break
            if stop.is_set():  # since the decision of the last step
                raise interruption(total, total, stop.number)
    return first


def total_steps(config: TrainConfig, loader: Loader) -> int:
    """Number of steps of the whole run."""
    if not config.batch_size:
        raise UnveilError("batch_size is 0, which only probes and linear classifiers choose by themselves: use 1 or more")
    return max(1, round(config.epochs * loader.samples / config.batch_size))
