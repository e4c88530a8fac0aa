"""The exceptions whose message is written for the user."""

import signal


class UnveilError(ValueError):
    """Input that cannot be used. The message gives what was found, what was expected, and what to do."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user stopped the run
    """A signal stopped a run. The message says what is safe, and what the same command does. `number` is the signal."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
