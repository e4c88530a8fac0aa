"""Sections of a report about the run: its data, skipped files, options, and environment."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.json_files import read_json
from unveil.reports.html import Markup, element, join_markup, table_element
from unveil.reports.vocabulary import humanize
from unveil.train.run_cost import spell_bytes, spell_time
from unveil.train.run_folder import Run

TIMES = "\N{MULTIPLICATION SIGN}"
MAX_NAMES, MAX_REASONS = 50, 10
"""Maximum numbers of skipped files and of reasons on a page."""
OPEN_AT_0 = ("channels",)
"""Options whose value 0 means that it is chosen for the data."""
MAX_ITEMS = 24
"""Maximum number of items of a list on a page."""
DATA_LABELS = {
    "name": "data",
    "count": "images",
    "texts": "texts",
    "test_count": "held-out images",
    "test_texts": "held-out texts",
    "size": "size, px",
    "channels": "channels",
    "classes": "classes",
    "fingerprint": "fingerprint",
}


def data_section(data: Mapping[str, Any], noun: str = "images") -> Markup:
    """A table about the data: name, count, size, channels, fingerprint; `noun` is the noun for its samples."""
    if held_out_from_train(data):
        data = {**data, "test_count": f"some of these {noun}", "test_fingerprint": None, "test_listing_fingerprint": None}
    labelled = [(noun if key == "count" else label, data[key]) for key, label in DATA_LABELS.items() if data.get(key) is not None]
    hidden = (*DATA_LABELS, "listing_fingerprint", "test_listing_fingerprint")  # of earlier versions, for comparison
    rest = [(humanize(key), value) for key, value in data.items() if key not in hidden and value is not None]
    return key_value_table([*labelled, *rest], "The data")


def held_out_from_train(data: Mapping[str, Any]) -> bool:
    """Whether the test set of a run is a part of its training data that was held out."""
    return bool(data.get("test_fingerprint")) and data["test_fingerprint"] == data.get("fingerprint")


def skipped_section(path: Path, unreadable: Mapping[str, int]) -> Markup | None:
    """The files that could not be read, grouped by reason; None if `skipped.txt` does not exist.

    Args:
        path: `skipped.txt`.
        unreadable: The numbers of images among them by their role: "train", "test", "validation".
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.partition("\t") for line in text.split("\n") if line.strip()]
    files: dict[str, list[str]] = {}
    for name, _, reason in lines:
        files.setdefault(reason or "no reason was recorded", []).append(name)
    most_frequent = sorted(files.items(), key=lambda item: -len(item[1]))[:MAX_REASONS]
    text = f"{len(lines):,} {'file was' if len(lines) == 1 else 'files were'} skipped."
    roles = [f"{count:,} in the {name} set" for name, count in unreadable.items() if count]
    if roles:
        text += f" Of the images, {' and '.join(roles)}: training replaced them by others, evaluations left them out."
    parts: list[object] = [element("p", text)]
    for reason, names in most_frequent:
        listed = names[: MAX_NAMES // len(most_frequent)]
        items = [element("li", element("code", name)) for name in listed]
        if len(names) > len(listed):
            items.append(element("li", f"and {len(names) - len(listed):,} more, in {path.name}"))
        parts += [element("h3", f"{reason} ({len(names):,})"), element("ul", *items, class_="names")]
    if len(files) > len(most_frequent):
        parts.append(element("p", f"{len(files) - len(most_frequent):,} less frequent reasons are in {path.name}."))
    return join_markup(parts) if lines else None


def settings_section(config: Mapping[str, Any], resolved: Mapping[str, Any] | None = None) -> Markup:
    """A table of all options; `resolved` holds the values that were chosen for options that the user left open."""
    rows = [
        (key, f"{format_value(key, resolved[key])} (automatic)" if resolved and key in resolved else config[key]) for key in config
    ]
    rate = [("learning rate, largest", f"{resolved['learning_rate']:.4g}")] if resolved and "learning_rate" in resolved else []
    return key_value_table(rows + rate, "Every option of the run", "settings")


def resolved_options(run: Run) -> dict[str, Any]:
    """The values that a run chose for options that were left open (0, None or empty), and its largest learning rate in the log."""
    try:
        model = read_json(run.path / "config.json")
    except (UnveilError, OSError):
        model = {}
    parts = [part for key in ("options", "encoder") if isinstance(part := model.get(key), Mapping)]
    known = {key: value for part in parts[::-1] for key, value in part.items()}
    left_open = [
        key for key, value in run.config.items() if value is None or value in ([], (), "") or (value == 0 and key in OPEN_AT_0)
    ]
    found = {key: known[key] for key in left_open if known.get(key) not in (None, [], "", 0)}
    rates = [record["learning_rate"] for record in run.log if isinstance(record.get("learning_rate"), int | float)]
    return found | ({"learning_rate": max(rates)} if rates else {})


def environment_section(facts: Mapping[str, Any], results: Mapping[str, Any]) -> Markup:
    """A table of what is needed to reproduce a run or a comparison (command, commit, versions, hardware, seed), and its cost."""
    versions, hardware = facts.get("versions") or {}, facts.get("hardware") or {}
    gpus = hardware.get("gpus") or []
    extensions = [f"at step {each['step']:,}, from {each['epochs']:g} epochs" for each in facts.get("extensions") or []]
    memory = (results.get("cost") or {}).get("memory")
    rows = [
        ("command", element("code", facts["command"]) if facts.get("command") else None),
        ("commit", facts.get("commit")),
        ("started", facts.get("started")),
        ("training time", spell_time(results["seconds"]) if results.get("seconds") is not None else None),
        ("total time", spell_time(total) if (total := (results.get("cost") or {}).get("seconds")) is not None else None),
        ("peak memory", spell_bytes(memory) if memory is not None else None),
        ("made longer", ", ".join(extensions) or None),
        ("seed", (facts.get("config") or {}).get("seed")),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or None),
        ("machine", ", ".join(str(hardware[key]) for key in ("host", "platform") if hardware.get(key)) or None),
        ("cores", hardware.get("cores")),
        ("GPUs", ", ".join(f"{n} {TIMES} {name}" for name, n in Counter(gpus).items()) or "none"),
        ("processes", facts.get("world_size")),
        ("steps skipped, not finite", results.get("skipped_steps")),
        ("images seen", results.get("images_seen")),
        ("sequences seen", results.get("sequences_seen")),
    ]
    return key_value_table([(name, value) for name, value in rows if value is not None], "The environment of the run")


def key_value_table(rows: list[tuple[str, Any]], title: str, class_: str = "") -> Markup:
    """A table of names and values."""
    cells = [[name, value if isinstance(value, Markup) else format_value(name, value)] for name, value in rows]
    return table_element(["name", "value"], cells, title=title, show_title=False, class_=f"pairs {class_}".strip())


def format_value(name: str, value: Any) -> Markup | str:
    if name == "fingerprint":
        return element("code", value)
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if name != "seed" else str(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_value('', each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        separator = f" {TIMES} " if name == "size, px" else ", "
        count = f"{len(value):,}: " if name == "classes" else ""
        more = f", and {len(value) - MAX_ITEMS:,} more" if len(value) > MAX_ITEMS else ""
        return count + separator.join(str(item) for item in value[:MAX_ITEMS]) + more
    return str(value)
