"""The exception whose message is written for the user."""


class UnveilError(ValueError):
    """Input that cannot be used. The message gives what was found, what was expected, and what to do."""
