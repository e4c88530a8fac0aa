"""Runs of a comparison or a study that have failed or not finished: `failed.json`, and sentences about them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unveil.atomic_files import write_text
from unveil.json_files import json_text, read_json
from unveil.train.run_schema import check

FAILED = "failed.json"
SHOWN = 3
"""How many errors a sentence spells out."""


class Failure(NamedTuple):
    """A run that has failed."""

    run: str
    """Its folder, relative to that of the comparison or study that tells of it."""
    error: str
    """The error message."""
    when: str
    details: str = ""
    """The traceback of an error that unveil did not expect."""


def failure_of(run: str, error: str, details: str = "") -> Failure:
    """A failure that has just happened."""
    return Failure(run, error, time.strftime("%Y-%m-%dT%H:%M:%S%z"), details)


def read_failures(folder: Path) -> list[Failure]:
    """The failures that a folder records. They are those of the last call that tried the runs."""
    path = folder / FAILED
    if not path.is_file():
        return []
    found = read_json(path)
    check(found, {"failed": list[dict[str, str]]}, path)
    return [Failure(**{key: each.get(key, "") for key in Failure._fields}) for each in found.get("failed", ())]


def failures_of(runs: Iterable[Path]) -> dict[Path, Failure]:
    """The failures of runs, by their folders. `failed.json` is beside the folder of a run, and names it by its last part."""
    paths = list(runs)
    recorded = {parent: {each.run: each for each in read_failures(parent)} for parent in {path.parent for path in paths}}
    return {path: failure for path in paths if (failure := recorded[path.parent].get(path.name))}


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Writes `failed.json`, or removes it if nothing has failed."""
    if failures:
        write_text(folder / FAILED, json_text({"failed": [each._asdict() for each in failures]}))
    else:
        (folder / FAILED).unlink(missing_ok=True)


def failure_sentence(failures: Sequence[Failure], runs: int) -> str:
    """A sentence such as "1 of 12 runs failed: mae-seed0 (out of memory)."; "" if nothing has failed."""
    if not failures:
        return ""
    first = [f"{each.run} ({each.error.strip().splitlines()[0] if each.error.strip() else 'no message'})" for each in failures]
    more = f", and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
    return f"{len(failures)} of {runs} runs failed: {'; '.join(first[:SHOWN])}{more}."


def failure_note(facts: Mapping[str, Any]) -> str:
    """The sentence for a page, from what a comparison records: "failed", the failures, and "runs", how many runs there are."""
    failures = [Failure(**each) for each in facts.get("failed") or ()]
    again = " The same command tries them again." if failures else ""
    return failure_sentence(failures, int(facts.get("runs") or len(failures))) + again


def unfinished_note(facts: Mapping[str, Any], without_results: Sequence[str] = ()) -> str:
    """The sentence for a page some of whose runs have not finished: how many have, and the rows without results; "" if all have.

    Args:
        facts: What a comparison records: "runs", how many there are, and "finished", how many of them have finished.
        without_results: The names of the rows of which no run has finished.
    """
    runs, finished = facts.get("runs"), facts.get("finished")
    if runs is None or finished is None or finished >= runs:
        return ""
    note = f"Unfinished: {finished} of {runs} runs {'has' if finished == 1 else 'have'} finished."
    return f"{note} Without results: {', '.join(without_results)}." if without_results else note
