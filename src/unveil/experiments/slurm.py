"""Runs as jobs of Slurm, through `submitit`. Those that start together are one array."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unveil.errors import UnveilError
from unveil.experiments.calls import Call, Outcome
from unveil.experiments.side_by_side import perform
from unveil.plugins import trusted

LONGEST_ARRAY = 1000
"""Jobs of an array: Slurm's MaxArraySize is 1001 by default."""
MAX_TIMEOUTS = 100
"""How often a run that has reached its time limit goes on in a new job."""


class SlurmJobs:
    """Jobs of Slurm.

    Args:
        folder: The folder of all runs; `slurm` inside of it is for what Slurm and submitit write.
        options: Options of sbatch, as submitit names them, such as "partition=gpu".
        count: How many run at a time.

    Raises:
        UnveilError: If there is no Slurm or no submitit, or an option is unknown.
    """

    pause = 1.0

    def __init__(self, folder: Path, options: Sequence[str], count: int) -> None:
        try:
            import submitit
        except ImportError:
            raise UnveilError("--slurm needs the package `submitit`: pip install 'unveil[slurm]'") from None
        if not (shutil.which("sbatch") and shutil.which("srun")):
            raise UnveilError("--slurm needs the commands sbatch and srun, which this machine does not have: use --jobs instead")
        self.folder = folder / "slurm"
        self._executor: Any = submitit.SlurmExecutor(self.folder, max_num_timeout=MAX_TIMEOUTS)
        given = {"job_name": "unveil", "array_parallelism": count} | parse(options)
        try:
            self._executor.update_parameters(**given)
        except (TypeError, ValueError) as error:
            raise UnveilError(f"--slurm {' '.join(options)}: {' '.join(str(error).split())}") from None
        self._started = list[SlurmJob]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in self._started:
            each.cancel()

    def start(self, calls: Sequence[tuple[str, Call]]) -> "list[SlurmJob]":
        """Submits an array of jobs, or several if there are too many for one."""
        started = list[SlurmJob]()
        for first in range(0, len(calls), LONGEST_ARRAY):
            with self._executor.batch():
                jobs = [
                    self._executor.submit(SlurmTask(call, trusted(), sys.argv)) for _, call in calls[first : first + LONGEST_ARRAY]
                ]
            started += [SlurmJob(job) for job in jobs]
        self._started += started
        return started


class SlurmTask:
    """What a job does. It starts again where it was if Slurm stops it at its time limit, since the run resumes.

    Args:
        call: The call.
        plugins: What the user has trusted.
        argv: As for `perform`.
    """

    def __init__(self, call: Call, plugins: Sequence[str], argv: Sequence[str]) -> None:
        self.call, self.plugins, self.argv = call, plugins, argv

    def __call__(self) -> Outcome:
        return perform(self.call, self.plugins, self.argv)

    def checkpoint(self) -> Any:
        """What submitit submits in its place. The run itself has saved checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmJob:
    """A job that has been submitted.

    Args:
        job: A `submitit.Job`.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self._ended = False

    def outcome(self) -> Outcome | None:
        """What has become of it; None as long as it waits or goes on."""
        if not self.job.done():
            return None
        self._ended = True
        try:
            found: Outcome = self.job.result()
        except Exception as error:  # what submitit raises if a job was cancelled, or lost with its machine
            return Outcome(
                "failed", f"Slurm job {self.job.job_id} has failed; what it printed is in {self.job.paths.stderr}", str(error)
            )
        return Outcome("failed", found.text) if found.kind == "interrupted" else found

    def cancel(self) -> None:
        """Cancels it, if it has not ended."""
        if not self._ended:
            with suppress(OSError):
                self.job.cancel(check=False)


def parse(options: Sequence[str]) -> dict[str, Any]:
    """Options such as "time=240" by name; numbers become numbers.

    Raises:
        UnveilError: If one is not of this form.
    """
    found = dict[str, Any]()
    for each in options:
        name, sign, value = each.partition("=")
        if not (sign and name and value):
            raise UnveilError(f"--slurm has {each!r}, expected options with values, such as partition=gpu time=240")
        found[name] = int(value) if value.isdecimal() else value
    return found
