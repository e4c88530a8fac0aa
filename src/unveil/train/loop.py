"""The training loop. It trains any `Learner`, and does not depend on a method or task."""

from collections.abc import Callable, Sequence

import torch

from unveil.data.loader import Loader, first_batch, stream
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.guards import check_finite, restored_generators, seed_all
from unveil.train.log import Meter, Record, Screen, Sink
from unveil.train.memory_trial import fit_batch_in_memory, matrix_peak
from unveil.train.microbatches import Microbatches
from unveil.train.optim import clip_gradients, set_lr
from unveil.train.parallel import autocast, compile_limits, is_replicated, no_sync_until_last
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.signals import Agreement, Interrupted, stop_signals
from unveil.train.state import model_state, optimizer_state, start_or_resume

Monitor = Callable[[Learner], Record]  # evaluates a learner a few times during a run


def train(
    learner: Learner,
    loader: Loader,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    sinks: Sequence[Sink] = (),
    screen: Screen | None = None,
    monitors: Sequence[Monitor] = (),
) -> int:
    """Trains a learner in place, starting from the newest checkpoint if there is one. Returns the number of the first step.

    Raises:
        Interrupted: On SIGTERM or Ctrl-C, after saving.
        UnveilError: If the loss is not finite, with the likely cause; the last checkpoint is kept.
    """
    config, hardware, world = recipe.training, recipe.hardware, recipe.world
    total, optim = total_steps(config, loader), recipe.optim.resolve_warmup(config.epochs)
    eval_steps = {round(total * (i + 1) / config.num_evals) for i in range(config.num_evals)}
    outputs = [*sinks, screen] if screen else sinks
    with restored_generators(world.device):
        examples = first_batch(loader)
        learner.to(world.device).train()
        trial = fit_batch_in_memory(learner, examples, config.batch_size, config.accum_steps, hardware, world)
        model, optimizer, first = start_or_resume(learner, examples, optim, hardware, world, checkpoints)
        parts = Microbatches(learner, trial.accum_steps, hardware, world)
        meter = Meter(world, trial.flops / matrix_peak(world.device, hardware.precision))
        if checkpoints and first:
            meter.load_state(checkpoints.manifest(first).get("meter"))
        for output in outputs:
            output.start(first)
        if screen and not config.accum_steps and trial.accum_steps > 1:
            screen.say(f"each step is computed in {trial.accum_steps} microbatches to fit into memory")

        with stop_signals() as stop, compile_limits(learner, hardware, world):
            agreement = Agreement(stop, config.save_seconds, world)
            batches = stream(loader, range(first, total), world.rank, world.size, parts.loaded)
            for step, samples in meter.timed(batches):
                seed_all(config.seed, step, world)  # for dropout and drop path
                lr, weight_decay = optim.at(step, total, config.batch_size)
                set_lr(optimizer, lr, weight_decay)
                for i, batch in enumerate(parts.augmented(samples)):
                    with no_sync_until_last(model, i == parts.count - 1), parts.alike(i, samples):
                        with autocast(hardware, world):
                            result = model(batch)
                        (result.loss / parts.count).backward()
                    meter.add({"loss": result.loss, **result.metrics})
                norm = clip_gradients(learner, optim.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
                meter.step({"gradient_norm": norm}, config.batch_size)
                done = step + 1
                learner.after_step(done / total)
                if screen:
                    screen.advance(done)

                log_due = done == total or done % config.log_every == 0 or done in eval_steps
                if log_due:
                    record = {"step": done, "epoch": done * config.batch_size / loader.samples, "learning_rate": lr} | meter.read()
                    check_finite(learner, record, samples)
                    if done in eval_steps and world.is_main and is_replicated(hardware, world):
                        record |= run_monitors(learner, monitors)
                    for output in outputs:
                        output.write(record)
                    meter.restart()
                stopping, saving = agreement.after(done)
                if checkpoints and (stopping or saving or done == total):
                    if not log_due:  # never save a state that is not finite
                        check_finite(learner, {"step": done, "learning_rate": lr} | meter.read(), samples)
                    with meter.paused(), agreement.saving():
                        files = {"model": model_state(learner), "optimizer": optimizer_state(learner, optimizer)}
                        facts = {"total": total, "meter": meter.state()}
                        if world.is_main:  # only after all processes have gathered the states
                            checkpoints.save(done, files, facts)
                if stopping and done < total:
                    raise Interrupted(done, total, saved=checkpoints is not None)
    return first


def total_steps(config: TrainConfig, loader: Loader) -> int:
    """Number of steps of the whole run."""
    if not config.batch_size:
        raise UnveilError("batch_size is 0, which only probes and linear classifiers choose by themselves: use 1 or more")
    return max(1, round(config.epochs * loader.samples / config.batch_size))


def run_monitors(learner: Learner, monitors: Sequence[Monitor]) -> Record:
    """The results of all monitors, in eval mode."""
    learner.eval()
    with torch.no_grad():
        results = {key: value for monitor in monitors for key, value in monitor(learner).items()}
    learner.train()
    return results
