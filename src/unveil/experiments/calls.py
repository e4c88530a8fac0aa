"""What a run of a comparison or a study does, and what becomes of it. Both can be sent to another process."""

import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from unveil.atomic_files import WriteError
from unveil.errors import Interrupted, UnveilError
from unveil.folder_lock import locked
from unveil.recipes.finetune import finetune
from unveil.recipes.pretrain import pretrain
from unveil.recipes.probe import probe
from unveil.train.run_folder import ChangedSettingsError, finished_run
from unveil.train.terminal import printer

COMMANDS: Mapping[str, Callable[..., Any]] = {"pretrain": pretrain, "finetune": finetune, "probe": probe}
WAIT_SECONDS = 60.0
"""How long a run waits for another process that has its folder locked, such as one that is saving because it was stopped."""


class Outcome(NamedTuple):
    """What has become of a run."""

    kind: Literal["done", "failed", "interrupted", "changed settings", "full disk"] = "done"
    text: str = ""
    """The error message."""
    details: str = ""
    """The traceback of an error that unveil did not expect."""
    number: int = signal.SIGINT
    """The signal that has interrupted it."""

    def raise_again(self) -> NoReturn:
        """Raises the error of a run in another process, if it concerns all runs."""
        raise {
            "interrupted": Interrupted(self.text, self.number),
            "changed settings": ChangedSettingsError(self.text, ""),
            "full disk": WriteError(self.text, is_full=True),
        }[self.kind]

    @property
    def stops_all(self) -> bool:
        """Whether the other runs would end in the same way, or should not go on."""
        return self.kind not in ("done", "failed")


def outcome_of(error: Exception) -> Outcome:
    """What has become of a run that has raised an error."""
    if isinstance(error, Interrupted):
        return Outcome("interrupted", str(error), number=error.number)
    if isinstance(error, ChangedSettingsError):
        return Outcome("changed settings", f"{error.changes}Use the old settings, or choose another --out")
    if isinstance(error, WriteError) and error.is_full:
        return Outcome("full disk", str(error))
    if isinstance(error, UnveilError):
        return Outcome("failed", str(error))
    return Outcome("failed", f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


class Call(NamedTuple):
    """A command with its arguments."""

    command: Literal["pretrain", "finetune", "probe"]
    inputs: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def has_ended(self) -> bool:
        """Whether its run has finished, so that calling it only compares the settings."""
        return finished_run(Path(self.options.get("out") or "")) is not None

    def __call__(self) -> Outcome:
        """Calls the command, and tells what has become of it."""
        try:
            COMMANDS[self.command](*self.inputs, **self.options)
        except Exception as error:
            return outcome_of(error)
        return Outcome()


def wait_until_free(folder: Path) -> None:
    """Waits while another process writes into a folder, but not for ever: then the run itself reports that it is locked."""
    end, told = time.monotonic() + WAIT_SECONDS, False
    while folder.is_dir() and time.monotonic() < end:
        with suppress(UnveilError), locked(folder, "waiting for"):
            return
        if not told:
            printer(True)(f"waiting for another process that writes into {folder}")
            told = True
        time.sleep(0.5)
