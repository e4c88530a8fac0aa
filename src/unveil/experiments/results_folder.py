"""The folder of a study, a comparison or a verdict, which holds the results of one of them, and never fewer than before."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.json_files import read_json
from unveil.reports.verdict_results import FINETUNED, OWN, RAW, SCRATCH, UNTRAINED

FILES = {"study": "study.json", "comparison": "compare.json", "verdict": "verdict.json", "run": "run.json"}
"""The file that tells what a folder is of."""
Scope = Mapping[str, Sequence[Any]]
"""What results are of: seeds, methods, ... by their noun in the singular; under "", what names itself, such as "fine-tuning"."""
WAYS = {"finetune": "fine-tuning", "partial": "fine-tuning of the last block"}
"""Metrics that a call may leave out, and what measures them."""


def refuse_other_results(folder: Path, kind: str, subject: tuple[str, str] | None = None) -> None:
    """Raises `UnveilError` if a folder has other results, which would be overwritten.

    Args:
        folder: The folder, which need not exist.
        kind: A key of `FILES`.
        subject: Of a study: ("study", name) for a study of the paper, ("option", name) for the values of an option.
    """
    if other := next((name for name, file in FILES.items() if name != kind and (folder / file).is_file()), None):
        raise UnveilError(f"{folder} is the folder of a {other}: choose another --out")
    path = folder / FILES[kind]
    if subject is None or not path.is_file():
        return
    try:
        found = read_json(path)
    except UnveilError:  # damaged: it is written again from the runs
        return
    known = [(key, found.get(key)) for key in ("study", "option")] if isinstance(found, dict) else []
    other = next((str(name) for key, name in known if name and (key, name) != subject), None)
    if other is not None:
        raise UnveilError(f"{folder} has the results of another study, {other}: choose another --out")


def refuse_fewer_results(folder: Path, kind: str, asked: Scope) -> None:
    """Raises `UnveilError` if the results in a folder would be replaced by fewer: without some seeds, or without fine-tuning.

    Args:
        folder: The folder, which need not exist.
        kind: "verdict", "comparison" or "study".
        asked: What the new results are of. More than in the folder is fine.
    """
    path = folder / FILES[kind]
    if not path.is_file():
        return
    try:
        held = HELD[kind](read_json(path))
        lost = {noun: [item for item in items if item not in asked.get(noun, ())] for noun, items in held.items()}
    except (UnveilError, LookupError, TypeError, AttributeError, ValueError):  # damaged: it is written again from the runs
        return
    named = [
        f"{noun}{'s' * (len(items) > 1)} {', '.join(map(str, items))}" if noun else ", ".join(items)
        for noun, items in lost.items()
        if items
    ]
    if named:
        raise UnveilError(
            f"{path} has results that this call leaves out, and that would be lost: {'; '.join(named)}. Ask for them as well, "
            f"choose another --out, or remove that file to have it written anew"
        )


def holds_all_results(folder: Path, kind: str) -> bool:
    """Whether a folder has results of this kind to which nothing was left to add when they were written. See `FILES`."""
    try:
        return "finished" not in read_json(folder / FILES[kind])
    except UnveilError:  # there are none, or they are damaged
        return False


def scope_of(noun: str, names: Iterable[str], seeds: Iterable[int], ways: Iterable[str]) -> Scope:
    """What a comparison or a study is of.

    Args:
        noun: "method" or "setting".
        names: The methods, or the settings.
        seeds: The seeds.
        ways: Keys of `WAYS`.
    """
    return {noun: list(names), "seed": list(seeds), "": [WAYS[way] for way in ways]}


def of_verdict(content: Mapping[str, Any]) -> Scope:
    """What the results in a `verdict.json` are of."""
    rows, usual = content["accuracies"], (RAW, UNTRAINED, SCRATCH, OWN)
    labels = dict.fromkeys(f"{row['labels']:,} labels" for row in rows)
    return {
        "seed": content["config"]["seeds"] if rows else [],
        "encoder": list(dict.fromkeys(row["model"] for row in rows if row["model"] not in usual)),
        "": [*(["fine-tuning"] if any(row["how"] == FINETUNED for row in rows) else []), *labels],
    }


def of_comparison(content: Mapping[str, Any]) -> Scope:
    """What the results in a `compare.json` are of."""
    return of_rows("method", "name", content["rows"], content)


def of_study(content: Mapping[str, Any]) -> Scope:
    """What the results in a `study.json` are of."""
    if "studies" in content:  # all studies: each has a folder of its own
        return {}
    if "cells" in content:
        return of_rows("setting", "label", content["cells"], content)
    rows = [row for sweeps in content["sweeps"].values() for sweep in sweeps for row in sweep["rows"]]
    return of_rows("setting", "name", rows, content)


def of_rows(noun: str, key: str, rows: Iterable[Mapping[str, Any]], content: Mapping[str, Any]) -> Scope:
    """What some rows of a file are of."""
    own = [row for row in rows if not row.get("yardstick")]
    seeds = content.get("finished_seeds")
    if seeds is None:  # by an earlier version; runs are trained seed after seed
        seeds = content["config"]["seeds"][: max((len(values) for row in own for values in row["figures"].values()), default=0)]
    ways = [way for way in WAYS if any(row["figures"].get(way) for row in own)]
    return scope_of(noun, [row[key] for row in own], seeds, ways)


HELD: Mapping[str, Callable[[Mapping[str, Any]], Scope]] = {"verdict": of_verdict, "comparison": of_comparison, "study": of_study}
"""Reads what the results in a file of `FILES` are of."""
