"""Runs of a comparison or a study, one after another or side by side. One that fails stops only those that need it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from unveil.errors import Interrupted, UnveilError
from unveil.experiments.calls import Call, Outcome, outcome_of
from unveil.experiments.finished_probes import finished_probe
from unveil.experiments.side_by_side import Launched, Launcher, WorkerProcesses
from unveil.experiments.slurm import SlurmJobs
from unveil.ranges import Count
from unveil.reports.failures import Failure, failure_of, failure_sentence, read_failures, write_failures
from unveil.stop_signals import note_signals
from unveil.train.run_cost import spell_time
from unveil.train.run_folder import finished_run
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Where the runs are trained, and how many at a time."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("slurm",)
    jobs: Count | None = None
    """Runs to train at a time, each in a process of its own; by default one for each GPU, or one on a CPU. There, one for each
    core trains small models faster, if memory allows and a run takes minutes."""
    slurm: tuple[str, ...] = ()
    """Train the runs as arrays of Slurm jobs with these options of sbatch, such as partition=gpu time=240 gpus_per_node=1; all at
    once, unless --jobs says how many. Needs the extra `slurm`."""


class FailedRunsError(UnveilError):
    """Some runs of a comparison or a study have failed, after all others have ended.

    Args:
        message: What has failed.
        results: What the function would have returned, from the runs that have ended.
    """

    def __init__(self, message: str, results: Any = None) -> None:
        super().__init__(message)
        self.results = results


class Job(NamedTuple):
    """A run of a comparison or a study."""

    name: str
    """Its folder, relative to that of all jobs, such as mae-seed0 or mask-ratio/mae-mask-ratio-0.75-seed0."""
    prepare: Callable[[], Call | None]
    """Resolves its options, when its turn comes; None if there is nothing left to do."""
    needs: tuple[str, ...] = ()
    """Names of jobs that must have succeeded before."""


def run_jobs(
    jobs: Sequence[Job], folder: Path, after_each: Callable[[str], object], config: JobsConfig | None = None
) -> list[Failure]:
    """Does all jobs, and calls `after_each` with the name of every one that ends, or cannot start.

    Runs that have ended before are compared with their settings first, so a call that is refused has trained and written nothing.
    Returns what has failed, which `failed.json` records beside the folders of the runs.

    Raises:
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
        ChangedSettingsError: If a run has been trained with other settings: that is a mistake of this call, and no failure.
        WriteError: If the disk is full, since all other runs would fail as well.
    """
    for job in jobs:  # for the logs of processes and for failures, which come before any run has a folder
        (folder / job.name).parent.mkdir(parents=True, exist_ok=True)
    notes, config = Notes(folder, jobs), config or JobsConfig()
    jobs = without_ended(jobs, folder, notes)
    at_once = config.jobs or (len(jobs) if config.slurm else max(1, torch.cuda.device_count()))
    if config.slurm:
        run_at_once(jobs, notes, SlurmJobs(folder, config.slurm, at_once), at_once, after_each)
    elif at_once > 1:
        run_at_once(jobs, notes, WorkerProcesses(folder, at_once), at_once, after_each)
    else:
        for job in jobs:
            if notes.may_start(job) and (call := notes.prepared(job)) is not None:
                notes.take(job, call())
            after_each(job.name)
    return notes.failures


def without_ended(jobs: Sequence[Job], folder: Path, notes: "Notes") -> list[Job]:
    """The jobs that are left to do, once the settings of those that have ended were compared. Other arguments: see `run_jobs`.

    A job that needs one which is not there any more waits for its turn.
    """
    left = dict[str, Job]()
    for job in jobs:
        path, waits = folder / job.name, any(name in left or name in notes.lost for name in job.needs)
        if waits or not is_finished(path):
            left[job.name] = job
        elif call := notes.prepared(job):
            if call.has_ended:
                notes.take(job, call())
            else:
                left[job.name] = job
    return list(left.values())


def is_finished(path: Path) -> bool:
    """Whether the run, or the probe, in a folder has finished."""
    return bool(finished_run(path)) or (not (path / "run.json").is_file() and finished_probe(path))


def run_at_once(jobs: Sequence[Job], notes: "Notes", launcher: Launcher, at_once: int, after_each: Callable[[str], object]) -> None:
    """Keeps as many jobs running as are wanted. A job starts as soon as all that it needs have ended."""
    waiting, running, say = list(jobs), dict[str, Running](), printer(True)
    with note_signals() as stop, launcher:
        while waiting or running:
            calls, done = next_calls(waiting, running, notes, at_once)
            for (job, _), launched in zip(calls, launcher.start([(job.name, call) for job, call in calls]), strict=True):
                running[job.name] = Running(job, launched, time.monotonic())
                say(f"{job.name} has started")
            for name in done:
                after_each(name)
            for name, (job, launched, since) in list(running.items()):
                if (outcome := launched.outcome()) is not None:
                    del running[name]
                    if outcome.kind == "done":
                        left = len(waiting) + len(running)
                        say(f"{name} has ended after {spell_time(time.monotonic() - since)}; {left} of {len(jobs)} runs are left")
                    notes.take(job, outcome)
                    after_each(job.name)
            if stop.number is not None:
                raise Interrupted("stopped, and the runs have saved checkpoints: run the same command to resume", stop.number)
            if running:
                time.sleep(launcher.pause)


class Running(NamedTuple):
    """A job that has been launched."""

    job: Job
    launched: Launched
    since: float
    """When, on the clock of `time.monotonic`."""


def next_calls(
    waiting: list[Job], running: Mapping[str, object], notes: "Notes", at_once: int
) -> tuple[list[tuple[Job, Call]], list[str]]:
    """Takes jobs whose turn it is from those that wait, as many as may run. Returns them, and the names of those that are not run.

    These cannot start, or there was nothing left to do.
    """
    found, done = list[tuple[Job, Call]](), list[str]()
    unfinished = {each.name for each in waiting} | set(running)
    for job in list(waiting):
        if len(running) + len(found) == at_once:
            break
        if unfinished.isdisjoint(job.needs):
            waiting.remove(job)
            call = notes.prepared(job) if notes.may_start(job) else None
            if call is not None and not call.has_ended:
                found.append((job, call))
                continue
            if call is not None:  # a process of its own would only compare the settings
                notes.take(job, call())
            unfinished.remove(job.name)
            done.append(job.name)
    return found, done


class Notes:
    """Which jobs have failed, on disk and in the terminal."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.folder, self.lost = folder, set[str]()
        self.names = [job.name for job in jobs]
        # A call with fewer seeds or entries leaves the other failures as they are.
        parents = dict.fromkeys((folder / name).parent for name in self.names)
        self.found = {parent: {each.run: each for each in read_failures(parent)} for parent in parents}

    @property
    def failures(self) -> list[Failure]:
        """The failures of this call, in the order of its jobs and by their names."""
        paths = [(name, self.folder / name) for name in self.names]
        return [each._replace(run=name) for name, path in paths if (each := self.found[path.parent].get(path.name))]

    def may_start(self, job: Job) -> bool:
        """Whether all that a job needs has succeeded. If not, says that it is left out."""
        missing = [name for name in job.needs if name in self.lost]
        if missing:
            self.lost.add(job.name)
            printer(True)(f"\n{job.name} is left out, because {missing[0]} has failed")
        return not missing

    def prepared(self, job: Job) -> Call | None:
        """What a job does; None if there is nothing left to do, or if that could not be resolved, which counts as a failure."""
        try:
            call = job.prepare()
        except Exception as error:
            self.take(job, outcome_of(error))
            return None
        if call is None:
            self.take(job, Outcome())
        return call

    def take(self, job: Job, outcome: Outcome) -> None:
        """Records what has become of a job. Raises the error of an outcome that stops all others."""
        if outcome.stops_all:
            outcome.raise_again()
        path = self.folder / job.name
        found = self.found[path.parent]
        if outcome.kind == "done":
            if found.pop(path.name, None):
                write_failures(path.parent, list(found.values()))
            return
        self.lost.add(job.name)
        found[path.name] = failure_of(path.name, outcome.text, outcome.details)
        write_failures(path.parent, list(found.values()))
        printer(True)(f"\n{job.name} has failed, the other runs go on: {outcome.text}")


def refuse_failures(failures: Sequence[Failure], runs: int, results: Any = None) -> None:
    """Raises `FailedRunsError` with these results if a run has failed. To be called after all others have ended."""
    if failures:
        sentence = f"{failure_sentence(failures, runs)} The others have ended. The same command tries them again."
        raise FailedRunsError(sentence, results)
