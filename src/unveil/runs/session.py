"""The steps that are common to all commands that train, from the beginning of a run to its end.

join the processes -> open the folder -> train, or resume -> reload -> evaluate -> write results and cost -> write the report
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import RenderableType
from torch import nn

from unveil.atomic_files import set_aside
from unveil.data.loader import ImageLoader, Loader
from unveil.errors import Interrupted, UnveilError
from unveil.folder_lock import locked
from unveil.learner import Learner
from unveil.paths import refuse_foreign_folder
from unveil.plain_text import count_of
from unveil.reports.page import write_page
from unveil.train.best import BestWeights
from unveil.train.disk_space import check_disk_space
from unveil.train.extend import extended, restart_sentence, restarts_of
from unveil.train.guards import seeded
from unveil.train.log import JsonLines, Record, Screen, Sink, trackers
from unveil.train.loop import total_steps, train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HALVES, HardwareConfig, World, is_fast, join_processes, resolve_precision, shutdown
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Monitor
from unveil.train.resume_from import copy_newest, refuse_unlike
from unveil.train.run_cost import cost_line, run_cost
from unveil.train.run_folder import Run, open_run
from unveil.train.state import load_model_state
from unveil.train.terminal import printer, show

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LearnerT = TypeVar("LearnerT", bound=Learner)


def join(training: TrainConfig, optim: OptimConfig, hardware: HardwareConfig) -> Recipe:
    """Joins the processes that torchrun started, finds the device, and resolves the precision. Says if that is a slow one."""
    world = join_processes(hardware)
    precision = hardware.precision
    if precision in HALVES and world.device.type in ("cpu", "cuda") and not is_fast(precision, world.device):
        device = "GPU" if world.device.type == "cuda" else "processor"
        printer(world.is_main)(
            f"this {device} has no matrix products in {precision}, which may take ten times as long as in float32: leave "
            "--precision out to use the faster one"
        )
    return Recipe(training, optim, resolve_precision(hardware, world), world)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The description of a run, before anything is written."""

    kind: Literal["pretrain", "finetune", "translate"]
    path: Path
    """The run folder."""
    config: Mapping[str, Any]
    """Every option, by name."""
    data: Mapping[str, Any]
    """The data: name, fingerprint, count."""
    title: str
    """The title of the progress bar."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    extend: bool = False
    """Whether the run may be made longer: see `unveil.train.extend`."""
    resume_from: str | Path | None = None
    """Another run, whose newest checkpoint this run starts from."""
    encoder: Mapping[str, str] | None = None
    """Checksums of the encoder of another run that this run starts from; see `unveil.interop.encoder_only.checksums`."""
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Checksums of all weights of other runs: "encoder", as above, and "teacher"."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Paths as the user gave them: see `unveil.runs.option_files.input_facts`. They may differ on resume."""

    def __post_init__(self) -> None:
        if self.encoder:
            object.__setattr__(self, "weights", {**self.weights, "encoder": self.encoder})
        if self.resume_from is not None:
            object.__setattr__(self, "config", {**self.config, "resume_from": os.path.abspath(self.resume_from)})


def options_by_name(*configs: Any) -> dict[str, Any]:
    """The fields of all configs in one dictionary."""
    return {name: value for config in configs for name, value in asdict(config).items()}


class Session:
    """A run whose folder is open. `fit` trains or resumes; `finish` writes the results and the report.

    Attributes:
        run: The run folder.
        recipe: How to train, and on which device.
        finished: Whether the run was complete when it was opened. A message was printed, and nothing is left to do.
    """

    def __init__(self, spec: RunSpec, recipe: Recipe, run: Run, began: float) -> None:
        self.spec, self.recipe, self.run, self._began = spec, replace(recipe, restarts=restarts_of(run)), run, began
        self.say = printer(recipe.world.is_main)
        without_report = spec.kind == "translate" and run.facts.get("format", 1) < 3  # as earlier versions left it
        self.finished = bool(self.earlier_results()) and (without_report or (run.path / "report.html").exists())
        self._first = self._total = self._last = 0
        self._trained = False
        self._best: BestWeights | None = None

    def earlier_results(self) -> Record:
        """The results of an earlier call. A damaged file is set aside, since the model can be evaluated again."""
        try:
            return self.run.results
        except UnveilError as error:
            if self.is_main:
                name = set_aside(self.run.path / "results.json").name
                self.say(f"{error}: the file is set aside as {name}, and the model is evaluated again")
            return {}

    @classmethod
    @contextmanager
    def open(cls, spec: RunSpec, recipe: Recipe, began: float | None = None) -> Iterator["Session"]:
        """A context that creates the run folder, or opens the existing folder of the same run. Nobody else can write into it.

        Args:
            spec: The run.
            recipe: The result of `join`.
            began: `time.monotonic()` when the run began; now by default.

        Raises:
            UnveilError: If the folder holds something else, another process writes into it, or resuming would change the run.
            Interrupted: On a signal, with a message that says what is safe.
        """
        world = recipe.world
        refuse_foreign_folder(spec.path)
        if spec.resume_from is not None:
            refuse_unlike(Run(spec.resume_from), spec.path, spec.kind, spec.config, spec.data, spec.weights)
        with locked(spec.path, "training in") if world.is_main else nullcontext():
            facts, say = (spec.kind, spec.config, spec.data), printer(world.is_main)
            run = extended(spec.path, *facts, spec.weights, write=world.is_main, say=say) if spec.extend else None
            longer = run is not None
            run = run or open_run(spec.path, *facts, weights=spec.weights, inputs=spec.inputs, write=world.is_main, say=say)
            session = cls(spec, recipe, run, time.monotonic() if began is None else began)
            session.finished &= not longer  # another process may not have seen yet that the old results are put away
            if session.finished:
                session.say(f"{run.path} is finished. Its report: {run.path / 'report.html'}")
                shutdown(world)
            try:
                yield session
            except KeyboardInterrupt as error:
                raise Interrupted(session.what_is_safe(), getattr(error, "number", signal.SIGINT)) from None

    def what_is_safe(self) -> str:
        """The message for a stop outside of the training loop, which saves first."""
        steps = self.run.checkpoints().steps()
        if self._trained:
            return f"stopped while evaluating: the trained model is saved in {self.run.path}, and the same command evaluates it"
        if steps:
            return f"stopped: step {steps[0]} is saved, run the same command to resume"
        return "stopped: no step was saved yet, run the same command to start again"

    @property
    def world(self) -> World:
        """Device, rank and world size of this process."""
        return self.recipe.world

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes all files."""
        return self.recipe.world.is_main

    def announce(self, what: str, total: int) -> None:
        """Prints a line with the model, the data, the number of steps and the hardware."""
        recipe, world = self.recipe, self.world
        processes = f"{world.size} {world.device.type} process{'es' * (world.size > 1)}"
        self.say(f"{what}; {count_of(total, 'step')} of {recipe.training.batch_size} in {recipe.hardware.precision} on {processes}")

    def built(self, build: Callable[[], ModuleT]) -> ModuleT:
        """Builds an untrained module, with the same weights in every process and at every start. Keeps global generators."""
        with seeded(self.recipe.training.seed):
            return build()

    def keep_best(self, key: str, *, lower_is_better: bool = False, patience: int = 0) -> None:
        """Lets `fit` keep the weights that are best by a metric of its monitors; `trained` returns them. See `BestWeights`."""
        folder, warn = self.run.path / "best", self.say
        self._best = BestWeights(folder, key, lower_is_better=lower_is_better, patience=patience, warn=warn)

    def offer(self, step: int, record: Record, learner: Learner) -> None:
        """Keeps the weights of a learner before `fit`, if its metric is the best so far. Only the main process calls this."""
        if self._best is not None:
            self._best.offer(step, record, learner)

    def fit(self, learner: Learner, loader: Loader, monitors: Sequence[Monitor] = ()) -> None:
        """Trains a learner in place, or resumes from the newest good checkpoint.

        Raises:
            Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
            UnveilError: If too many steps are not finite.
        """
        run, recipe, training = self.run, self.recipe, self.recipe.training
        self._total = total_steps(training, loader)
        if recipe.restarts:
            self.say(restart_sentence(recipe, self._total))
        if move_to_device(loader, self.world):
            self.say("keeping all images in GPU memory")
        if self.is_main:
            check_disk_space(run.path, learner, recipe, self.say)
        checkpoints = run.checkpoints(training.keep_checkpoints, self.say)
        if self.is_main and self.spec.resume_from is not None:
            copy_newest(Run(self.spec.resume_from), run, learner, self._total, self.say)
        sinks: list[Sink] = []
        screen = None
        if self.is_main:
            log = JsonLines(run.path / "log.jsonl", self.say)
            sinks = [log, *trackers(self.spec.tracker, run.path, run.config)]
            reads = isinstance(loader, ImageLoader) and not loader.dataset.in_memory
            screen = Screen(self.spec.title, self._total, reads=reads)
        try:
            outputs: dict[str, Any] = {"checkpoints": checkpoints, "sinks": sinks, "screen": screen}
            self._first = train(learner, loader, recipe, **outputs, monitors=monitors, best=self._best)
        finally:
            for sink in sinks:
                sink.close()
            if screen:
                screen.close()
        self._trained = True
        self._last = checkpoints.steps()[0] if self.is_main else self._total  # earlier than planned, if patience was exhausted
        if self._last < self._total and self._best is not None:
            self.say(
                f"stopped early at step {self._last:,} of {self._total:,}: {self._best.patience} evaluations in a row were no "
                f"better than that of step {self._best.step:,}"
            )

    def trained(self, build: Callable[[], LearnerT]) -> LearnerT:
        """The trained learner in eval mode on the device: the best weights, if they were kept, or else the last ones.

        It is neither sharded nor compiled.
        """
        learner, best = self.built(build), self._best
        kept = best is not None and best.step is not None
        state = best.load() if best is not None and kept else self.run.checkpoints().load(self._last, "model")
        load_model_state(learner, state)
        return learner.to(self.world.device).eval()

    @property
    def chosen(self) -> Record:
        """The checkpoint that `trained` returns, for `results.json`; {} if no validation chose it."""
        best = self._best
        if best is None or best.step is None:
            return {}
        return {
            "validation": {
                "metric": best.key,
                "value": best.value,
                "step": best.step,
                "steps_done": self._last,
                "steps_planned": self._total,
            }
        }

    def finish(self, learner: Learner, results: Record, table: Callable[[Record], RenderableType], where: str = "") -> None:
        """Writes the results with their cost, then the report, and prints both. Only the main process calls this.

        Args:
            learner: The trained learner, for the figures of the report.
            results: The results of the evaluation.
            table: Builds the table for the terminal from the results.
            where: A line with the path of the model.
        """
        run = self.run
        skipped = run.checkpoints().manifest(self._last).get("skipped", {}).get("count")
        results = {
            **results,
            **({"skipped_steps": skipped} if skipped else {}),
            "seconds": sum(line.get("seconds", 0.0) for line in run.log),
            "cost": run_cost(run, self._began, self._first, self.world),
        }
        (run.path / "report.html").unlink(
            missing_ok=True
        )  # of `unveil report`, written earlier; with it, the run would be finished
        run.write_results(results)
        page = write_page(run, learner)
        show(table(run.results))
        self.say("\n".join(filter(None, [cost_line(run.results["cost"]), where, f"The report:  {page}"])))

    def close(self) -> Run:
        """Leaves the process group. The other processes wait here until the main process has finished the evaluation."""
        shutdown(self.world)
        return self.run

    @property
    def samples_trained(self) -> int:
        """Number of training samples of the whole run, counted over all epochs."""
        return self._last * self.recipe.training.batch_size


def move_to_device(loader: Loader, world: World) -> bool:
    """Moves all images to the GPU if they fit. Returns whether they are on a GPU now."""
    if not isinstance(loader, ImageLoader):
        return False
    return loader.move_to(world.device)
