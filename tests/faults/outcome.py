"""What a run has produced, without times, so that two runs can be compared bit by bit."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.faults.harness import Problem

TIMES = ("samples_per_second", "peak_share", "waiting", "seconds", "took", "cost", "started")
"""Keys of the log and of the results that differ from run to run."""


def outcome(run: Path) -> dict[str, Any]:
    """Tensors, results, log and tables of a run folder, by name."""
    found: dict[str, Any] = {}
    for file in sorted(run.glob("*.safetensors")):
        for name, value in tensors(file).items():
            found[f"{file.name}: {name}"] = value
    for number, line in enumerate((run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []):
        found[f"log line {number + 1}"] = without_times(json.loads(line))
    for name in ("results.json", "config.json"):
        if (run / name).exists():
            found[name] = without_times(json.loads((run / name).read_text()))
    for name in ("predictions.csv", "skipped.txt"):
        if (run / name).exists():
            found[name] = (run / name).read_bytes()
    found["report"] = (run / "report.html").exists()
    return found


def without_times(value: Any) -> Any:
    """The same JSON value without times."""
    if isinstance(value, Mapping):
        return {key: without_times(each) for key, each in value.items() if key not in (*TIMES, "checksum")}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def tensors(path: Path) -> dict[str, str]:
    """Shape, type and checksum of each tensor of a .safetensors file. Reads the format by hand."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    note = header.pop("__metadata__", {})
    found = {"the note": str(sorted((key, value) for key, value in note.items()))}
    for name, each in header.items():
        first, last = each["data_offsets"]
        found[name] = f"{each['dtype']} {each['shape']} {hashlib.sha256(raw[start + first : start + last]).hexdigest()}"
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem if two outcomes differ."""
    keys = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    if keys:
        first = keys[0]
        text = f"{first} is {str(found.get(first))[:120]}, expected {str(expected.get(first))[:120]}"
        yield Problem("silent", f"{len(keys)} of {len(expected)} facts differ from an undisturbed run; {text}")


def leftovers(folder: Path) -> Iterator[Problem]:
    """A problem for each temporary file that nobody has removed."""
    for path in sorted(folder.rglob("*")):
        if re.search(r"^\..*-[0-9a-f]{8,}|\.part|\.tmp", path.name):
            yield Problem("other", f"a leftover: {path.relative_to(folder)}")


def numbers_shown(text: str) -> str:
    """What a command printed, without times and sizes of processes."""
    kept = [line for line in text.splitlines() if not re.search(r"took|\bs left|MiB|samples/s|/s\b", line)]
    return "\n".join(kept)
