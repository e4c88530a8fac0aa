"""Whether the data of a run is still the same, by the fingerprints in `run.json`. The name that the user types does not matter."""

from collections.abc import Mapping
from typing import Any

VERSIONED = "2:"
"""The start of a fingerprint by the formula of this version: see `unveil.data.source.version_2`."""


def data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each part of the data that has changed since a run began.

    Args:
        old: "data" of the `run.json` of a run, possibly of an earlier version, whose fingerprints cover names and sizes only.
        new: The same for the data as it is now. Its "listing_fingerprint" has the formula of earlier versions.
    """
    lines = []
    for prefix, part in (("", "data"), ("test_", "test data")):
        recorded, found = old.get(f"{prefix}fingerprint"), new.get(f"{prefix}fingerprint")
        if recorded and not str(recorded).startswith(VERSIONED):
            found = new.get(f"{prefix}listing_fingerprint") or found
        if recorded == found:
            continue
        counts = [_count(each, prefix) for each in (old, new)]
        if not recorded or not found:
            lines.append(f"  {part}: the run had {counts[0] or 'none'}, now there is {counts[1] or 'none'}")
        elif counts[0] != counts[1]:
            lines.append(f"  {part}: was {counts[0]}, is {counts[1]}")
        elif not counts[0]:
            lines.append(f"  {part} fingerprint: was {recorded!r}, is {found!r}")
        else:
            lines.append(f"  {part}: {counts[1]} as before, but some have other names, sizes, contents or labels")
    return lines


def _count(facts: Mapping[str, Any], prefix: str) -> str:
    """The number of samples of a part of the data, with their noun."""
    nouns = {"count": "images", "texts": "texts"}
    return next((f"{facts[prefix + key]:,} {noun}" for key, noun in nouns.items() if isinstance(facts.get(prefix + key), int)), "")
