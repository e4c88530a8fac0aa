"""A hook of mkdocs: writes tables of all options into configuration.md, from the source, so that they are never out of date."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from unveil import methods, tasks
from unveil.commands import VERBS
from unveil.option_types import described
from unveil.options import Option, literal, options_of
from unveil.verbs import METHOD, REQUIRED, TASK, TRUST, Argument, Verb


def forms() -> Iterator[tuple[str, Verb]]:
    """Every command, and its form for text, with what to call it."""
    for name, verb in VERBS.items():
        yield f"unveil {name}", verb
        for modality, form in verb.forms.items():
            yield f"unveil {name} ({modality})", form


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    if page.file.src_uri == "configuration.md":
        for mark, text in {"commands": commands(), "options": groups(), "defaults": defaults()}.items():
            markdown = markdown.replace(f"<!-- {mark} -->", text)
    return markdown


def commands() -> str:
    """A heading for each command, with its arguments and links to its groups of options."""
    parts = []
    for name, verb in forms():
        arguments = {**verb.arguments, "trust": TRUST} if verb.has_trust else verb.arguments
        rows = [(spelled(key, each), values_of(each.type), default_of(each.default), each.help) for key, each in arguments.items()]
        links = ", ".join(f"[{heading.lower()}](#{anchor(heading)})" for heading in headings(verb))
        unused = ", ".join(f"`{flag(key)}`" for key in verb.ignores)
        text = [f"### {name}", " ".join(verb.summary.split()), table(rows)]
        if links:
            text.append(f"Options: {links}" + (f", but not {unused}." if unused else "."))
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def headings(verb: Verb) -> list[str]:
    """The headings of the groups of options that a command has."""
    return [heading_of(title, path) for title, path in verb.configs.items()]


def anchor(heading: str) -> str:
    """The anchor that mkdocs gives a heading."""
    return heading.lower().replace(" ", "-").translate({ord(sign): None for sign in "()"})


def heading_of(title: str, path: str) -> str:
    """The heading of a group; groups with one title, such as those of the runs of images and of text, are told apart."""
    same = dict.fromkeys(each for _, verb in forms() for name, each in verb.configs.items() if name == title)
    if len(same) == 1 or path == TASK:
        return f"{title.capitalize()} options"
    return f"{title.capitalize()} options of {next(name for name, verb in forms() if path in verb.configs.values())}"


def groups() -> str:
    """A heading and a table for each dataclass of options."""
    parts, done = [], set()
    for _, verb in forms():
        for title, path in verb.configs.items():
            if path in done:
                continue
            done.add(path)
            parts.append(f"### {heading_of(title, path)}")
            if path == METHOD:
                parts += [titled("--method", name, methods.method_source(name).config()) for name in methods.METHODS.builtin]
            elif path == TASK:
                parts += [titled("--task", name, tasks.task_source(name).config()) for name in tasks.TASKS.builtin]
            else:
                parts.append(option_table(options_of(path)))
    return "\n\n".join(parts)


def titled(option: str, name: str, config: str) -> str:
    """The options of a method or a task."""
    found = options_of(config)
    return f"`{option} {name}`:\n\n{option_table(found)}" if found else f"`{option} {name}` has no options of its own."


def defaults() -> str:
    """A table with a row for each command, method or task whose defaults differ."""
    rows: dict[str, Mapping[str, Any]] = {"`unveil pretrain digits`": literal("unveil.runs.images", "DIGITS_DEFAULTS")}
    rows |= {f"`--method {name}`": methods.method_defaults(name) for name in methods.METHODS.builtin}
    rows |= {f"task `{name}`": tasks.task_defaults(name) for name in tasks.TASKS.builtin}
    lines = [f"| {name} | {', '.join(f'`{flag(k)} {v}`' for k, v in values.items())} |" for name, values in rows.items() if values]
    return "\n".join(["| where | defaults |", "| --- | --- |", *lines])


def option_table(found: list[Option]) -> str:
    """The table of a group."""
    return table([(f"`{flag(each.name)}`", values_of(each.type), default_of(each.default), each.help) for each in found])


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """A table in Markdown."""
    lines = ["| option | value | default | description |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape, row))} |" for row in rows)])


def escape(cell: str) -> str:
    """Text inside a table of Markdown."""
    return cell.replace("<", "&lt;").replace("|", "\\|")


def spelled(key: str, argument: Argument) -> str:
    """An argument as it is written on the command line."""
    return f"`{key.upper()}`" if argument.positional else f"`{flag(key)}`"


def default_of(value: Any) -> str:
    """A default as a user would type it; an empty one depends on the data or the model, as the description says."""
    if value is REQUIRED:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def values_of(kind: Any) -> str:
    """The values that an option takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return described(kind).removeprefix("an ").removeprefix("a ")
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(values_of(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"{values_of(parts[0])}, one or more"
    return {int: "integer", float: "number", bool: "on or off", str: "text"}.get(kind, str(kind))


def flag(name: str) -> str:
    """The name of a field as an option."""
    return "--" + name.replace("_", "-")
