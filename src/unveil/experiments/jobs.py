"""Runs of a comparison or a study, one after another. One that fails is recorded, and stops only those that need it."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unveil.atomic_files import WriteError
from unveil.errors import Interrupted, UnveilError
from unveil.recipes.finetune import finetune
from unveil.recipes.pretrain import pretrain
from unveil.recipes.probe import probe
from unveil.reports.failures import Failure, failure_of, failure_sentence, read_failures, write_failures
from unveil.train.run_folder import ChangedSettingsError
from unveil.train.terminal import printer

COMMANDS: Mapping[str, Callable[..., Any]] = {"pretrain": pretrain, "finetune": finetune, "probe": probe}


class FailedRunsError(UnveilError):
    """Some runs of a comparison or a study have failed, after all others have ended."""


class Call(NamedTuple):
    """What a job does: a command with its arguments, which another process can be given."""

    command: Literal["pretrain", "finetune", "probe"]
    inputs: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self) -> None:
        COMMANDS[self.command](*self.inputs, **self.options)


class Job(NamedTuple):
    """A run of a comparison or a study."""

    name: str
    """The name of its folder."""
    prepare: Callable[[], Call | None]
    """Resolves its options, when its turn comes; None if there is nothing left to do."""
    needs: tuple[str, ...] = ()
    """Names of jobs that must have succeeded before."""


def run_jobs(jobs: Sequence[Job], folder: Path, after_each: Callable[[], object]) -> list[Failure]:
    """Does all jobs, and calls `after_each` after every one. Returns what has failed, which `failed.json` in `folder` records.

    Raises:
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
        ChangedSettingsError: If a run has been trained with other settings: that is a mistake of this call, and no failure.
        WriteError: If the disk is full, since all other runs would fail as well.
    """
    notes = Notes(folder, jobs)
    for job in jobs:
        if notes.may_start(job):
            try:
                if call := job.prepare():
                    call()
            except (Interrupted, ChangedSettingsError):
                raise
            except Exception as error:
                notes.failed(job, error)
            else:
                notes.succeeded(job)
            after_each()
    return notes.failures


class Notes:
    """Which jobs have failed, on disk and in the terminal."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        names = [job.name for job in jobs]
        self.folder, self.lost = folder, set[str]()
        # A call with fewer seeds or entries leaves the other failures as they are.
        self.found = {each.run: each for each in read_failures(folder)}
        self.names = names

    @property
    def failures(self) -> list[Failure]:
        """The failures of this call, in the order of its jobs."""
        return [self.found[name] for name in self.names if name in self.found]

    def may_start(self, job: Job) -> bool:
        """Whether all that a job needs has succeeded. If not, says that it is left out."""
        missing = [name for name in job.needs if name in self.lost]
        if missing:
            self.lost.add(job.name)
            printer(True)(f"\n{job.name} is left out, because {missing[0]} has failed")
        return not missing

    def failed(self, job: Job, error: Exception, details: str = "") -> None:
        """Records the error of a job. Raises it again if the disk is full."""
        if isinstance(error, WriteError) and error.is_full:
            raise error
        if not details and not isinstance(error, UnveilError):
            details = "".join(traceback.format_exception(error))
        self.lost.add(job.name)
        self.found[job.name] = failure_of(job.name, error, details)
        write_failures(self.folder, list(self.found.values()))
        printer(True)(f"\n{job.name} has failed, the other runs go on: {self.found[job.name].error}")

    def succeeded(self, job: Job) -> None:
        """Forgets an earlier failure of a job."""
        if self.found.pop(job.name, None):
            write_failures(self.folder, list(self.found.values()))


def refuse_failures(failures: Sequence[Failure], runs: int) -> None:
    """Raises `FailedRunsError` if a run has failed. To be called after all others have ended."""
    if failures:
        raise FailedRunsError(f"{failure_sentence(failures, runs)} The others have ended. The same command tries them again.")
