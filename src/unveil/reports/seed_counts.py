"""How many seeds each row of a comparison has, and what can be said about rows that lack some."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unveil.reports.findings import FEWEST_SEEDS


class SeedCounts(NamedTuple):
    """How many seeds were asked for, and for how many of them all runs of a row have finished."""

    asked: int
    finished: Mapping[str, int]
    """By the name of the row, also of rows without any results."""

    @property
    def sentence(self) -> str:
        """The rows that lack seeds; "" if none does."""
        listed = [f"{name} ({count} of {self.asked})" for name, count in self.finished.items() if count < self.asked]
        return f"Seeds are missing: {'; '.join(listed)}." if listed else ""

    @property
    def without_results(self) -> list[str]:
        """The rows of which no seed has finished."""
        return [name for name, count in self.finished.items() if not count]


def with_one_seed(accuracies: Mapping[str, Sequence[float]], asked: int) -> list[str]:
    """The names with one seed where several were asked for.

    Nobody knows how much of such an accuracy the seed has made, so it is neither the best nor beaten. Where one seed was asked for,
    all have one, and the choice of the test images alone says what chance is.

    Args:
        accuracies: Accuracies by name, one for each seed.
        asked: How many seeds were asked for.
    """
    most = max([asked, *map(len, accuracies.values())])
    return [name for name, values in accuracies.items() if len(values) < FEWEST_SEEDS] if most >= FEWEST_SEEDS else []


def one_seed_phrase(names: Sequence[str], asked: int) -> str:
    """A phrase such as "mae and dino have only one of 3 seeds"."""
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"{listed} {'has' if len(names) == 1 else 'have'} only one of {asked} seeds"
