"""Ways of computing that the environment turns off or on, and that tests and benchmarks turn off for a while."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from unveil.errors import UnveilError


class Switches:
    """What may be used: all names but those that are off."""

    def __init__(self, off: frozenset[str]) -> None:
        self._off = off

    def enabled(self, name: str) -> bool:
        """Whether this may be used."""
        return name not in self._off

    @contextmanager
    def turned_off(self, *names: str) -> Iterator[None]:
        """A context in which exactly these are turned off."""
        before, self._off = self._off, frozenset(names)
        try:
            yield
        finally:
            self._off = before


def names_in(variable: str, known: Collection[str], unset: Collection[str] = ()) -> frozenset[str]:
    """The names in an environment variable: 1 means all of them, 0 none.

    Args:
        variable: The environment variable, such as "save,copy".
        known: All names.
        unset: The names if the variable is not set, or empty.

    Raises:
        UnveilError: For an unknown name.
    """
    value = os.environ.get(variable, "")
    special = {"": unset, "0": (), "1": known}
    names = frozenset(special[value] if value in special else value.split(","))
    if not names <= set(known):
        raise UnveilError(f"{variable} is {value!r}: use 0, 1, or names from {', '.join(sorted(known))}, separated by commas")
    return names
