"""What the training loop writes: lines of the log with evaluations, and checkpoints."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from unveil.data.loader import Loader
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.stop_signals import StopFlag, Stopped
from unveil.train import overlap
from unveil.train.best import BestWeights
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Meter, Record, Screen, Sink
from unveil.train.loss_scale import LossScale
from unveil.train.optim import AdamW
from unveil.train.parallel import broadcast_from_main, is_replicated, resolve_precision
from unveil.train.recipe import Recipe
from unveil.train.signals import Agreement, Answer, Decision
from unveil.train.skipped_steps import ComputedStep, SkippedSteps, explain, not_finite, refuse_broken_weights, what_is_safe
from unveil.train.snapshot import Snapshot, Writer
from unveil.train.state import model_state, optimizer_state
from unveil.train.wrapping import records_graphs

CAREFUL_STEPS = 100
"""Steps for which the host waits for the GPU after a step that was dropped."""

Monitor = Callable[[Learner], Record]  # evaluates a learner a few times during a run


@dataclass(kw_only=True)
class Recorder:
    """Writes the log and the checkpoints of a run. Every process calls its methods; the main process writes."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    loader: Loader
    recipe: Recipe
    total: int
    """Steps of the whole run."""
    first: int
    """Steps that were done when this process began."""
    parts: int
    """Number of parts in which a process loads the samples of a step."""
    checkpoints: Checkpoints | None
    sinks: Sequence[Sink]
    screen: Screen | None
    monitors: Sequence[Monitor]
    meter: Meter
    stop: StopFlag
    writer: Writer
    best: BestWeights | None = None
    """Keeps the best weights. Only the main process writes them."""

    def __post_init__(self) -> None:
        training, world = self.recipe.training, self.recipe.world
        self.agreement = Agreement(self.stop, training.save_seconds, world)
        self.skipped = SkippedSteps(self.learner, training.max_skipped_steps)
        self.optim = self.recipe.optim.resolve_warmup(training.epochs)
        half = resolve_precision(self.recipe.hardware, world).precision == "float16"
        self.loss_scale = LossScale(world.device) if half else None
        self.outputs = [*self.sinks, self.screen] if self.screen else self.sinks
        self.eval_steps = {round(self.total * (i + 1) / training.num_evals) for i in range(training.num_evals)}
        self.saved = self.first
        """The step of the newest checkpoint."""
        self.pending: tuple[Answer, ComputedStep] | None = None
        """A step that was computed, but whose answer was not read yet: see `lags`."""
        self.line: tuple[Record, Meter] | None = None
        """The line of the log that ends with the step in `pending`."""
        kind, gpu = type(self.learner), self.recipe.world.device.type == "cuda"
        bare = kind.before_step is Learner.before_step and kind.after_step is Learner.after_step
        replicated = is_replicated(self.recipe.hardware, self.recipe.world)
        self._can_lag = gpu and bare and replicated and isinstance(self.optimizer, AdamW) and overlap.enabled("lag")
        self._in_thread = gpu and overlap.enabled("save")
        self._careful = self.first
        if self.checkpoints and self.first:
            manifest = self.checkpoints.manifest(self.first)
            self.meter.load_state(manifest.get("meter"))
            self.skipped.load_state(manifest.get("skipped"))
            if self.loss_scale:
                self.loss_scale.load_state(manifest.get("loss_scale"))
        for output in self.outputs:
            output.start(self.first)

    def say(self, text: str) -> None:
        """Shows a message, if there is a screen."""
        if self.screen:
            self.screen.say(text)

    def log_due(self, done: int) -> bool:
        """Whether a line of the log belongs after this step."""
        return self.evaluation_due(done) or done % self.recipe.training.log_every == 0

    def evaluation_due(self, done: int) -> bool:
        """Whether the host has to wait for this step, because an evaluation or the end follows."""
        return done == self.total or done in self.eval_steps

    def rate(self, done: int) -> float:
        """The learning rate of the last of `done` steps."""
        return self.recipe.at(max(done, 1) - 1, self.total)[0]

    def log(self, done: int) -> bool:
        """Evaluates if that is due, and writes a line of the log. While the host lags, the line is written after the next step.

        Returns:
            False if a signal stopped the evaluation. Then the line is not written, and the run that resumes here begins with it.
        """
        training, world = self.recipe.training, self.recipe.world
        self.notice_written()
        if not self.meter.has_values:  # all steps since the last line were skipped
            return True
        epoch = done * training.batch_size / self.loader.samples
        record = {"step": done, "epoch": epoch, "learning_rate": self.rate(done)}
        if self.pending is not None:
            self.line = record, self.meter.split()
            return True
        record |= self.meter.read()
        if self.skipped.count:
            record["skipped_steps"] = self.skipped.count
        if done in self.eval_steps:
            found = self.evaluate() if world.is_main and is_replicated(self.recipe.hardware, world) else {}
            if broadcast_from_main(int(found is None), world):
                return False
            record |= found or {}
            if found and self.best is not None:
                self.best.offer(done, found, self.learner)
        self.write(record)
        self.meter.restart()
        return True

    def ends_early(self, done: int) -> bool:
        """Whether the patience of early stopping ends with this evaluation. Every process must call it."""
        if self.best is None or not self.best.patience or done not in self.eval_steps:
            return False
        return bool(broadcast_from_main(int(self.best.is_exhausted(done, self.eval_steps)), self.recipe.world))

    def write(self, record: Record) -> None:
        """Writes a line of the log."""
        for output in self.outputs:
            output.write(record)

    def evaluate(self) -> Record | None:
        """The results of all monitors, in eval mode; None if a signal stopped them."""
        try:
            with self.stop.raising():
                graphs = records_graphs(self.recipe.hardware, self.recipe.world)
                with torch.compiler.set_stance("force_eager") if graphs else nullcontext():  # what monitors keep, no replay changes
                    return run_monitors(self.learner, self.monitors)
        except Stopped:
            if not self.stop.is_set():  # there are no checkpoints, so the signal is the caller's
                raise
            return None

    def save(self, done: int, *, stopped: bool = False, goes_on: bool = False) -> None:
        """Saves a checkpoint, unless that of this step exists or there are none.

        Args:
            done: The number of steps done.
            stopped: Whether the run stops because steps were not finite.
            goes_on: Whether training goes on, so that a thread may write the checkpoint.

        Raises:
            UnveilError: If the model or the state of the optimiser is not finite. Then nothing is saved. Also if a thread could not
                write the checkpoint before.
        """
        self.settle()
        self.agreement.wrote(self.writer.wait())
        if self.checkpoints is None or done == self.saved:
            return
        world = self.recipe.world
        with self.meter.paused(), self.agreement.saving():
            files = {"model": model_state(self.learner), "optimizer": optimizer_state(self.learner, self.optimizer)}
            facts = {"total": self.total, "meter": self.meter.state(), "skipped": self.skipped.state(stopped), "finite": True}
            if self.loss_scale:
                facts["loss_scale"] = self.loss_scale.state()
            broken = [name for tensors in files.values() for name in not_finite(tensors)] if world.is_main else []
            refuse_broken_weights(broken, done, self.rate(done), self.checkpoints, world)
            if world.is_main:  # only after all processes have gathered the states
                if goes_on and self._in_thread:
                    self._write_in_thread(self.checkpoints, done, Snapshot(files, world.device), facts)
                else:
                    self.checkpoints.save(done, files, facts)
        self.saved = done

    def _write_in_thread(self, checkpoints: Checkpoints, done: int, snapshot: Snapshot, facts: Record) -> None:
        self.writer.start(lambda: checkpoints.save(done, snapshot.read(), facts))
        self.agreement.writing = True

    def notice_written(self) -> None:
        """Notes that the thread has written a checkpoint. Raises what it has raised."""
        if not self.writer.busy:
            self.agreement.wrote(self.writer.wait())

    def lags(self, step: int) -> bool:
        """Whether the host does not wait for the GPU in this step, but reads in the next one whether it was applied.

        Waiting would cost 9 % of the time of a ViT-B on an H200, which would idle until the host has launched the next kernels. It
        takes an optimiser that can drop a step on the GPU, and a learner that does nothing else after a step.
        """
        return self._can_lag and not self.agreement.slow and step >= self._careful and not self.evaluation_due(step + 1)

    def follow(self, answer: Answer, step: ComputedStep) -> Decision:
        """Reads what was decided in the step before, while the GPU computes this one."""
        last, self.pending = self.pending, (answer, step)
        if last is None:
            return Decision()
        decision = self.learn(*last)
        if decision.finite:
            self.skipped.applied()
        if not decision.skipped:
            return decision
        self.pending, now = None, self.learn(answer, step)
        self.dropped([last[1], step] if now.skipped else [last[1]], step.number + 1)
        if now.finite:
            self.skipped.applied()
        return Decision(True, decision.stop or now.stop, decision.save or now.save)

    def learn(self, answer: Answer, step: ComputedStep) -> Decision:
        """Reads what was decided in a step, takes its values back if it was dropped, and writes the line that ends with it."""
        decision = self.agreement.decide(answer)
        line, self.line = self.line, None
        meter = line[1] if line else self.meter
        if not decision.finite:
            meter.drop(len(step.losses), self.recipe.training.batch_size)
        if line and meter.has_values:
            count = self.skipped.count + decision.skipped
            self.write(line[0] | meter.read() | ({"skipped_steps": count} if count else {}))
        return decision

    def settle(self) -> None:
        """Reads what was decided in the step before, if that was not read yet."""
        if self.pending is None:
            return
        (answer, step), self.pending = self.pending, None
        decision = self.learn(answer, step)
        if decision.finite:
            self.skipped.applied()
        elif decision.skipped:
            self.dropped([step], step.number + 1)

    def dropped(self, steps: Sequence[ComputedStep], done: int) -> None:
        """Notes steps that the GPU has dropped by itself. For a while, the host waits for it again."""
        self._careful = done + CAREFUL_STEPS
        self.skip(steps, done)

    def scale_fell(self) -> str:
        """A sentence about a loss scale that cannot become smaller, for an error."""
        fell = self.loss_scale and float(self.loss_scale.scale) <= 1
        return "The loss scale of float16 has fallen to 1, so the gradients themselves are too large. " if fell else ""

    def skip(self, steps: Sequence[ComputedStep], done: int) -> None:
        """Notes steps that were not applied.

        Args:
            steps: The steps.
            done: The number of steps done, these included.

        Raises:
            UnveilError: If the weights are not finite, so that no later step can be, or if too many steps were skipped. Then a
                checkpoint was saved.
        """
        bad, world, hardware = steps[-1], self.recipe.world, self.recipe.hardware
        weights = dict(self.learner.named_parameters())
        refuse_broken_weights(not_finite(weights), steps[0].number, self.rate(steps[0].number), self.checkpoints, world)
        stops = sum(self.skipped.skip(step.number) for step in steps) > 0
        count = self.skipped.count
        if not stops and count & (count - 1):  # 1, 2, 4, 8, ... are explained
            return
        with self.skipped.same_buffers():
            cause = explain(self.learner, bad, self.loader, hardware, world, self.parts)
        if not stops:
            self.say(f"step {bad.number + 1} was skipped, the {ordinal(count)} one: {cause}")
            return
        self.save(done, stopped=True)
        again = ", as when it was stopped the last time" if self.skipped.repeats else ""
        raise UnveilError(
            f"the run stops{again}, since {self.skipped.count:,} of {done:,} steps were skipped: their loss or gradient was not "
            f"finite. In the last one, {cause}. {self.scale_fell()}{what_is_safe(self.checkpoints, again='tries the next steps')}"
        )


def run_monitors(learner: Learner, monitors: Sequence[Monitor]) -> Record:
    """The results of all monitors, in eval mode."""
    learner.eval()
    try:
        with torch.no_grad():
            return {key: value for monitor in monitors for key, value in monitor(learner).items()}
    finally:
        learner.train()


def reading_failed(error: Exception | None, checkpoint: int, checkpoints: Checkpoints | None) -> UnveilError:
    """The error for samples that cannot be read, on this process or, for None, on another one."""
    safe = f" Step {checkpoint} is saved: the same command resumes from there." if checkpoints and checkpoint else ""
    if isinstance(error, UnveilError):
        return UnveilError(f"{error}.{safe}")
    if error is None:
        return UnveilError(f"another process cannot read its samples.{safe}")
    return UnveilError(f"reading the samples failed with {type(error).__name__}: {str(error) or 'no details'}.{safe}")


def ordinal(count: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    return f"{count}{'th' if 10 <= count % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(count % 10, 'th')}"
