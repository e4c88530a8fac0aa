"""The one exception that the user is meant to read."""


class UnveilError(ValueError):
    """Input that cannot be used: the message says what was found, what was expected, and what to do."""
