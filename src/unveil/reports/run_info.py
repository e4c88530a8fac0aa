"""What a run was made of: its data, what was skipped, its settings, and its receipt."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.reports.html import Markup, element, join, table
from unveil.train.run_cost import spell_time

TIMES = "\N{MULTIPLICATION SIGN}"
NAMED, REASONS = 50, 10
"""Skipped images that are named, and reasons that are told."""
DATA = {
    "name": "data",
    "count": "images",
    "test_count": "held-out images",
    "size": "size, px",
    "channels": "channels",
    "classes": "classes",
    "fingerprint": "fingerprint",
}


def data_section(data: Mapping[str, Any]) -> Markup:
    """The data: name, count, size, channels, fingerprint."""
    known = [(label, data[key]) for key, label in DATA.items() if data.get(key) is not None]
    rest = [(spoken(key), value) for key, value in data.items() if key not in DATA and value is not None]
    return pairs([*known, *rest], "The data")


def skipped_section(path: Path) -> Markup | None:
    """What could not be read, grouped by reason; None where nothing was skipped."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.partition("\t") for line in text.split("\n") if line.strip()]
    files: dict[str, list[str]] = {}
    for name, _, reason in lines:
        files.setdefault(reason or "no reason was written down", []).append(name)
    often = sorted(files.items(), key=lambda item: -len(item[1]))[:REASONS]
    parts: list[object] = [element("p", f"{len(lines):,} {'file was' if len(lines) == 1 else 'files were'} left out.")]
    for reason, names in often:
        shown = names[: NAMED // len(often)]
        items = [element("li", element("code", name)) for name in shown]
        if len(names) > len(shown):
            items.append(element("li", f"and {len(names) - len(shown):,} more, in {path.name}"))
        parts += [element("h3", f"{reason} ({len(names):,})"), element("ul", *items, class_="names")]
    if len(files) > len(often):
        parts.append(element("p", f"{len(files) - len(often):,} rarer reasons are in {path.name}."))
    return join(parts) if lines else None


def settings_section(config: Mapping[str, Any]) -> Markup:
    """Every option."""
    return pairs(list(config.items()), "Every option, as it was set", "settings")


def receipt_section(facts: Mapping[str, Any], results: Mapping[str, Any]) -> Markup:
    """What made a run, or a comparison of some: command, commit, time, versions, hardware, seed."""
    versions, hardware = facts.get("versions") or {}, facts.get("hardware") or {}
    gpus = hardware.get("gpus") or []
    rows = [
        ("command", element("code", facts["command"]) if facts.get("command") else None),
        ("commit", facts.get("commit")),
        ("started", facts.get("started")),
        ("took", duration(results.get("seconds"))),
        ("seed", (facts.get("config") or {}).get("seed")),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or None),
        ("machine", ", ".join(str(hardware[key]) for key in ("host", "platform") if hardware.get(key)) or None),
        ("cores", hardware.get("cores")),
        ("GPUs", ", ".join(f"{n} {TIMES} {name}" for name, n in Counter(gpus).items()) or "none"),
        ("processes", facts.get("world_size")),
        ("images seen", results.get("images_seen")),
    ]
    return pairs([(name, value) for name, value in rows if value is not None], "What made this run")


def pairs(rows: list[tuple[str, Any]], title: str, class_: str = "") -> Markup:
    """A table of names and values."""
    cells = [[name, value if isinstance(value, Markup) else written(name, value)] for name, value in rows]
    return table(["name", "value"], cells, title=title, titled=False, class_=f"pairs {class_}".strip())


def written(name: str, value: Any) -> Markup | str:
    """A value as a reader would write it."""
    if name == "fingerprint":
        return element("code", value)
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if name not in ("seed",) else str(value)
    if isinstance(value, list | tuple):
        between = f" {TIMES} " if name == "size, px" else ", "
        count = f"{len(value):,}: " if name == "classes" else ""
        many = f", and {len(value) - 24:,} more" if len(value) > 24 else ""
        return count + between.join(str(x) for x in value[:24]) + many
    return str(value)


def duration(seconds: float | None) -> str | None:
    """Seconds as hours and minutes."""
    return None if seconds is None else spell_time(seconds)


def spoken(key: str) -> str:
    """A key as words."""
    return key.replace("_", " ")
