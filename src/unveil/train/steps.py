"""A step of training: reads its samples, computes its gradients, and applies them, or drops them if they are not finite."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from unveil.data.batch import Samples
from unveil.learner import Learner
from unveil.stop_signals import Stopped
from unveil.train.guards import seed_all
from unveil.train.microbatches import Microbatches
from unveil.train.optim import clip_gradients, drop_if, set_lr
from unveil.train.parallel import autocast
from unveil.train.recipe import Recipe
from unveil.train.recorder import Recorder, reading_failed
from unveil.train.signals import OVERFLOW, Answer, Decision, interruption
from unveil.train.skipped_steps import ComputedStep, zeros_if
from unveil.train.wrapping import no_sync_until_last, records_graphs


class SampleReader:
    """Reads the samples of one step after the other."""

    def __init__(self, batches: Iterator[tuple[int, list[Samples]]], recorder: Recorder) -> None:
        self.failure: Exception | None = None
        """Why the samples of this step could not be read by this process, one of several."""
        self._batches, self._recorder = batches, recorder
        self._alone = recorder.recipe.world.size == 1
        self._samples: list[Samples] | None = None

    def read(self, step: int) -> list[Samples]:
        """The samples of a step, in the parts in which they are loaded.

        One of several processes that cannot read its samples takes part with those of the step before, so that all of them notice.

        Raises:
            Interrupted: On a signal, after saving.
            UnveilError: If the samples cannot be read.
        """
        recorder = self._recorder
        try:
            with recorder.meter.waiting(), recorder.stop.raising(enabled=self._alone):
                self._samples = next(self._batches)[1]
        except Stopped:
            recorder.save(step)
            raise interruption(step, recorder.total, recorder.stop.number) from None
        except Exception as error:
            if self._alone:
                recorder.save(step)
            if self._alone or self._samples is None or recorder.lags(step):
                raise reading_failed(error, recorder.saved, recorder.checkpoints) from error
            self.failure = error
        assert self._samples is not None
        return self._samples


class Stepper:
    """Computes and applies steps.

    Args:
        model: The learner, or what stands for it on several processes.
        learner: The learner.
        optimizer: Its optimiser.
        parts: The microbatches of a step.
        recorder: Counts what was applied and what was skipped.
        recipe: The recipe.
    """

    def __init__(
        self,
        model: nn.Module,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        parts: Microbatches,
        recorder: Recorder,
        recipe: Recipe,
    ) -> None:
        self.model, self.learner, self.optimizer, self.parts, self.recorder = model, learner, optimizer, parts, recorder
        self.training, self.hardware, self.world = recipe.training, recipe.hardware, recipe.world
        self.optim, self.total, self.scale = recorder.optim, recorder.total, recorder.loss_scale
        self._graphs = records_graphs(self.hardware, self.world)

    def compute(self, step: int, samples: Sequence[Samples]) -> ComputedStep:
        """Computes the gradients of a step."""
        seed_all(self.training.seed, step, self.world)  # for dropout and drop path
        set_lr(self.optimizer, *self.recorder.recipe.at(step, self.total))
        self.recorder.skipped.keep_buffers()
        results = []
        for i, batch in enumerate(self.parts.augmented(samples)):
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with no_sync_until_last(self.model, i == self.parts.count - 1), self.parts.alike(i, step):
                with autocast(self.hardware, self.world):
                    result = self.model(batch)
                loss = result.loss / self.parts.count
                (loss if self.scale is None else loss * self.scale.scale).backward()
            found = {"loss": result.loss, **result.metrics}
            results.append({key: value.detach().clone() if self._graphs else value.detach() for key, value in found.items()})
            if self._graphs and i == 0 and self.parts.count > 1:
                own_gradients(self.learner)  # the next microbatches add to them
        if self.scale:
            self.scale.unscale(self.learner)
        return ComputedStep(step, samples, results, clip_gradients(self.learner, self.optim.clip_grad, self.optim.clip_mode))

    def apply(self, step: ComputedStep, failure: Exception | None) -> Decision:
        """Applies a step if its loss and gradient are finite on every process.

        Args:
            step: The step.
            failure: Why this process could not read its samples.

        Raises:
            UnveilError: If a process could not read its samples, or if too many steps were skipped.
        """
        losses, norm = torch.stack(step.losses).isfinite().all(), step.norm.isfinite()
        overflow = self.scale.overflows(losses, norm) if self.scale else None
        answer = self.recorder.agreement.ask(losses & norm, failure is not None, overflow)
        if self.recorder.lags(step.number):
            return self._apply_at_once(step, answer)
        self.recorder.settle()
        decision = self.recorder.agreement.decide(answer)
        if decision.failed:
            self._drop()
            self.recorder.save(step.number)
            raise reading_failed(failure, self.recorder.saved, self.recorder.checkpoints) from failure
        of_step = self._of_step(step)  # with the scale of this step
        self._update_scale(answer)
        if decision.finite:
            self._apply(step, of_step)
        else:
            self._drop()
            if decision.skipped:
                self.recorder.skip([step], step.number + 1)
        return decision

    def _apply(self, step: ComputedStep, of_step: dict[str, Tensor]) -> None:
        drop_if(self.optimizer, None)
        self.learner.before_step(step.number / self.total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(step.results, of_step)
        self.learner.after_step((step.number + 1) / self.total)
        self.recorder.skipped.applied()

    def _drop(self) -> None:
        self.optimizer.zero_grad()
        self.recorder.skipped.restore_buffers()

    def _apply_at_once(self, step: ComputedStep, answer: Answer) -> Decision:
        """Applies a step without waiting for the answer. The GPU drops it if it must, and the host is told in the next step."""
        self.learner.before_step(step.number / self.total)
        drop_if(self.optimizer, answer.dropped)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.recorder.skipped.restore_buffers(answer.dropped)
        results = [zeros_if(answer.dropped, each) for each in step.results]
        self._count(results, zeros_if(answer.dropped, self._of_step(step)))
        self._update_scale(answer)
        return self.recorder.follow(answer, step)

    def _of_step(self, step: ComputedStep) -> dict[str, Tensor]:
        """What is logged of a whole step."""
        return {"gradient_norm": step.norm} | ({"loss_scale": self.scale.scale} if self.scale else {})

    def _update_scale(self, answer: Answer) -> None:
        if self.scale:
            self.scale.update(answer.numbers[0] == OVERFLOW, answer.dropped > 0)

    def _count(self, results: Sequence[dict[str, Tensor]], of_step: dict[str, Tensor]) -> None:
        """Adds the values of each microbatch, and those of the whole step, to the means of the next line of the log."""
        for each in results:
            self.recorder.meter.add(each)
        self.recorder.meter.step(of_step, self.training.batch_size)


def own_gradients(learner: Learner) -> None:
    """Copies the gradients out of the memory of a CUDA graph, which its next replay overwrites."""
    for parameter in learner.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()
