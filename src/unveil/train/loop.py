"""The training loop. It trains any `Learner`, and does not depend on a method or task."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from unveil.data.loader import Loader, first_batch, stream
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.stop_signals import StopFlag, Stopped, note_signals
from unveil.train.checkpoint import Checkpoints
from unveil.train.guards import restored_generators, seed_all
from unveil.train.log import Meter, Screen, Sink
from unveil.train.memory_trial import fit_batch_in_memory, matrix_peak
from unveil.train.microbatches import Microbatches
from unveil.train.optim import clip_gradients, drop_if, set_lr
from unveil.train.parallel import autocast, compile_limits, no_sync_until_last
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Monitor, Recorder, reading_failed
from unveil.train.signals import interruption
from unveil.train.skipped_steps import BadStep, zeros_if
from unveil.train.state import start_or_resume


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

    Without checkpoints there is nothing to save, so signals are left to the caller.

    Raises:
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
        UnveilError: If the weights or too many steps are not finite, with the likely cause, or if samples cannot be read. The last
            good checkpoint is kept.
    """
    config, hardware, world = recipe.training, recipe.hardware, recipe.world
    total, optim = total_steps(config, loader), recipe.optim.resolve_warmup(config.epochs)
    with restored_generators(world.device):
        examples = first_batch(loader)
        learner.to(world.device).train()
        trial = fit_batch_in_memory(learner, examples, config.batch_size, config.accum_steps, hardware, world)
        model, optimizer, first = start_or_resume(learner, examples, optim, hardware, world, checkpoints)
        parts = Microbatches(learner, trial.accum_steps, recipe)
        meter = Meter(world, trial.flops / matrix_peak(world.device, hardware.precision))

        with note_signals() if checkpoints else nullcontext(StopFlag()) as stop, compile_limits(learner, hardware, world):
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
            )
            if not config.accum_steps and trial.accum_steps > 1:
                recorder.say(f"each step is computed in {trial.accum_steps} microbatches to fit into memory")
            # A checkpoint that holds the means of a line that is due: a signal has stopped its evaluation.
            if first and meter.has_values and recorder.log_due(first) and not recorder.log(first):
                raise interruption(first, total, stop.number)

            batches, samples = stream(loader, range(first, total), world.rank, world.size, parts.loaded), None
            for step in range(first, total):
                failure, lags = None, recorder.lags(step)
                try:
                    with meter.waiting(), stop.raising(enabled=world.size == 1):
                        samples = next(batches)[1]
                except Stopped:
                    recorder.save(step)
                    raise interruption(step, total, stop.number) from None
                except Exception as error:
                    failure = error
                    if world.size == 1:
                        recorder.save(step)
                    if world.size == 1 or samples is None or lags:
                        raise reading_failed(error, recorder.saved, checkpoints) from error
                assert samples is not None  # a process whose samples cannot be read takes part with those of the step before

                seed_all(config.seed, step, world)  # for dropout and drop path
                lr, weight_decay = optim.at(step, total, config.batch_size)
                set_lr(optimizer, lr, weight_decay)
                recorder.skipped.keep_buffers()
                results = []
                for i, batch in enumerate(parts.augmented(samples)):
                    with no_sync_until_last(model, i == parts.count - 1), parts.alike(i, step):
                        with autocast(hardware, world):
                            result = model(batch)
                        (result.loss / parts.count).backward()
                    results.append({key: value.detach() for key, value in {"loss": result.loss, **result.metrics}.items()})
                norm = clip_gradients(learner, optim.clip_grad, optim.clip_mode)
                losses = [each["loss"] for each in results]
                answer = recorder.agreement.ask(torch.stack([*losses, norm]).isfinite().all(), failure is not None)
                this, done = BadStep(step, samples, losses, norm), step + 1

                if lags:  # a fast GPU drops a step that is not finite by itself, and the host is told in the next step
                    learner.before_step(step / total)
                    drop_if(optimizer, answer.dropped)
                    optimizer.step()
                    optimizer.zero_grad()
                    recorder.skipped.restore_buffers(answer.dropped)
                    for each in results:
                        meter.add(zeros_if(answer.dropped, each))
                    meter.step(zeros_if(answer.dropped, {"gradient_norm": norm}), config.batch_size)
                    decision = recorder.follow(answer, this)
                else:
                    recorder.settle()
                    drop_if(optimizer, None)
                    decision = recorder.agreement.decide(answer)
                    if decision.finite and not decision.failed:
                        learner.before_step(step / total)
                        optimizer.step()
                        optimizer.zero_grad()
                        for each in results:
                            meter.add(each)
                        meter.step({"gradient_norm": norm}, config.batch_size)
                        learner.after_step(done / total)
                        recorder.skipped.applied()
                    else:
                        optimizer.zero_grad()
                        recorder.skipped.restore_buffers()
                        if decision.failed:
                            recorder.save(step)
                            raise reading_failed(failure, recorder.saved, checkpoints) from failure
                        recorder.skip([this], done)
                if done == total:
                    learner.after_training()
                if screen:
                    screen.advance(done)

                evaluated = not recorder.log_due(done) or recorder.log(done)
                stopping = decision.stop or not evaluated or (world.size == 1 and stop.is_set())
                if stopping or decision.save or done == total:
                    recorder.save(done)
                if stopping:
                    raise interruption(done, total, decision.stop or stop.number)
            if stop.is_set():  # since the decision of the last step
                raise interruption(total, total, stop.number)
    return first


def total_steps(config: TrainConfig, loader: Loader) -> int:
    """Number of steps of the whole run."""
    if not config.batch_size:
        raise UnveilError("batch_size is 0, which only probes and linear classifiers choose by themselves: use 1 or more")
    return max(1, round(config.epochs * loader.samples / config.batch_size))
