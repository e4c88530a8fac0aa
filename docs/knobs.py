"""A hook of mkdocs: writes the tables of knobs into configuration.md from the source, so that they cannot go stale."""

import types
import typing
from typing import Any

from unveil.commands import REQUIRED, VERBS, Argument
from unveil.methods import METHODS
from unveil.options import Option, literal, options_of

DIFFERENT = {
    "`pretrain` on the embedded digits": "unveil.runs.pretrain_setup:DIGITS",
    "`probe`": "unveil.recipes.probe:DEFAULTS",
    "`probe --kind partial`": "unveil.recipes.probe:TUNED",
    "`finetune`": "unveil.recipes.finetune:DEFAULTS",
    "`translate train`": "unveil.recipes.translate:DEFAULTS",
    "`finetune` of texts": "unveil.recipes.finetune_text:DEFAULTS",
}
"""Where a command has other defaults than the tables of knobs, and where they are written."""
ALL = {told: each for name, verb in VERBS.items() for told, each in ((name, verb), (f"{name} of texts", verb.of_texts)) if each}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    if page.file.src_uri != "configuration.md":
        return markdown
    for mark, text in {"commands": commands(), "knobs": groups(), "defaults": defaults()}.items():
        markdown = markdown.replace(f"<!-- {mark} -->", text)
    return markdown


def commands() -> str:
    """A heading for each command, with its own arguments and the groups of knobs that it takes."""
    parts = []
    for name, verb in ALL.items():
        rows = [(told(key, each), kinds(each.type), usual(each), each.help) for key, each in verb.arguments.items()]
        headings = [heading_of(title, name) for title in verb.configs]
        links = ", ".join(f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})" for heading in headings)
        parts.append(f"### `unveil {name}`\n\n{verb.says}\n\n{table(rows)}" + (f"\n\nIts knobs: {links}." if links else ""))
    return "\n\n".join(parts)


def groups() -> str:
    """A heading and a table for each dataclass of knobs."""
    parts, seen = [], set()
    for name, verb in ALL.items():
        for title, place in verb.configs.items():
            if place in seen:
                continue
            seen.add(place)
            parts.append(f"### {heading_of(title, name)}")
            if place == "METHOD":
                for method, home in METHODS.items():
                    parts.append(f"Knobs of `--method {method}`:\n\n{knob_table(options_of(home + 'Config'))}")
            else:
                parts.append(knob_table(options_of(place)))
    return "\n\n".join(parts)


def defaults() -> str:
    """A table with a row for each command whose defaults differ."""
    rows = []
    for told_as, place in DIFFERENT.items():
        module, _, name = place.partition(":")
        rows.append(f"| {told_as} | {', '.join(f'`{flag(key)} {value}`' for key, value in literal(module, name).items())} |")
    return "\n".join(["| command | defaults |", "| --- | --- |", *rows])


def knob_table(found: list[Option]) -> str:
    """The table of a group."""
    return table([(f"`{flag(knob.name)}`", kinds(knob.type), default_of(knob.default), knob.help) for knob in found])


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """A table in Markdown."""
    lines = ["| option | value | default | what it does |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape, row))} |" for row in rows)])


def escape(cell: str) -> str:
    """Text inside a table of Markdown."""
    return cell.replace("<", "&lt;").replace("|", "\\|")


def told(key: str, argument: Argument) -> str:
    """An argument as it is written on the command line."""
    return f"`{key.upper()}`" if argument.positional else f"`{flag(key)}`"


def usual(argument: Argument) -> str:
    """The default of an argument."""
    return "required" if argument.default is REQUIRED else default_of(argument.default)


def default_of(value: Any) -> str:
    """A default as a reader would say it; an empty one is chosen from the data, as the last column says."""
    if value is None or value == ():
        return "chosen"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def kinds(kind: Any) -> str:
    """The values that an option takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(kinds(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"{kinds(parts[0])}, one or more"
    return {int: "whole number", float: "number", bool: "on or off", str: "text"}.get(kind, str(kind))


def flag(name: str) -> str:
    """A field's name as a flag."""
    return "--" + name.replace("_", "-")


def heading_of(title: str, command: str) -> str:
    """The heading of a group; every command has settings of its own."""
    own = title in ("settings", "run", "recipe") and (title == "settings" or command.endswith(" of texts"))
    return f"{title.capitalize()} of {command}" if own else title.capitalize()
