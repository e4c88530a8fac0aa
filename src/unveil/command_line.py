"""Reads a command line by the table of commands: the command, its inputs, and its options, which are fields of configs."""

import contextlib
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from unveil import methods, plugins, tasks
from unveil.commands import ALIASES, OLD_VERBS, VERBS
from unveil.errors import UnveilError
from unveil.interop.model_kind import model_kind
from unveil.option_synonyms import hint
from unveil.option_types import check_value, from_words, plain_type
from unveil.options import Option, literal, options_of
from unveil.plain_text import printable
from unveil.runs.option_files import OptionFile, read_option_file
from unveil.verbs import METHOD, REQUIRED, TASK, TRUST, Argument, Verb

METAVARS: dict[Any, str] = {str: "TEXT", str | None: "TEXT", int | None: "INT", float | None: "FLOAT"}
"""How `--help` shows a type whose Python name would mean nothing to a user."""
HELP = ("-h", "--help", "--help-all")


class UsageError(Exception):
    """An invalid command line. The exit code is 2."""


def verb_name(argv: Sequence[str]) -> str:
    """The command at the start of an argument list. Some commands have two words."""
    for name in (" ".join(argv[:2]), argv[0]):
        if name in VERBS or name in ALIASES:
            return ALIASES.get(name, name)
    first = argv[0]
    near = [OLD_VERBS[first]] if first in OLD_VERBS else [verb for verb in VERBS if verb.startswith(first)]
    near = near or difflib.get_close_matches(first, VERBS, n=1)
    guess = f"did you mean {' or '.join(near)}?" if near else "see unveil --help"
    raise UsageError(f"there is no command {first!r}; {guess}")


def form_of(name: str, verb: Verb, argv: Sequence[str]) -> Verb:
    """The variant of a command for the modality of its method or run."""
    if "method" in verb.arguments:
        method = method_of(verb, argv)
        modality = methods.modality_of_method(method)
        if modality != "images" and modality not in verb.forms:
            raise UsageError(f"{name} needs a method for images, but {method} learns from {modality}")
    elif "methods" in verb.arguments:
        named = [methods.base_of(each.strip()) for each in argv[0].split(",")] if argv else []
        kinds = {methods.modality_of_method(each) if each in methods.METHODS.names else "images" for each in named}
        modality = kinds.pop() if len(kinds) == 1 else "images"
    else:
        words = [*argv, str(verb.arguments["run"].default)] if verb.forms else []
        kinds = {model_kind(word) for word in words if not word.startswith("-") and os.path.exists(word)}
        modality = next((kind for kind in kinds if kind in verb.forms), "images")
    return verb.forms.get(modality, verb)


def with_config(name: str, verb: Verb, argv: Sequence[str]) -> tuple[Verb, list[str]]:
    """Reads the file of `--config`. Returns the command with its options as defaults, and the other arguments.

    Raises:
        UsageError: If the file is not named, or twice.
        UnveilError: If it cannot be used.
    """
    path = value_of("--config", argv)
    if "config" not in verb.arguments or not any(word.split("=")[0] == "--config" for word in argv):
        return verb, list(argv)
    rest = [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if before != "--config" and word != "--config" and not word.startswith("--config=")
    ]
    if not path or path.startswith("--") or len(argv) - len(rest) > 2 - any(word.startswith("--config=") for word in argv):
        raise UsageError("--config needs one run folder, run.json or TOML file, such as --config runs/photos")
    file = read_option_file(path, name)
    for kind in ("method", "task"):
        if kind in verb.arguments:
            given = value_of(f"--{kind}", rest)
            if kind in file.missing and not given:
                raise UsageError(file.missing[kind])
            file = file.with_other(kind, given or None)
    for note in file.notes:
        print(printable(f"unveil: {note}", lines=True), file=sys.stderr)
    return filled(verb, file), rest


def filled(verb: Verb, file: OptionFile) -> Verb:
    """A command whose defaults are those of a file of options."""
    unknown = [key for key in file.arguments if key not in verb.arguments]
    if unknown:
        raise UsageError(f"{file.source} has the option {unknown[0]!r}, which this command does not have")
    texts = dict.fromkeys(file.missing, "") | file.arguments
    arguments = {
        key: dataclasses.replace(argument, default=texts[key]) if key in texts else argument
        for key, argument in verb.arguments.items()
    }
    forms = {modality: filled(form, file) for modality, form in verb.forms.items()}
    task = str(file.arguments.get("task") or verb.task)
    return dataclasses.replace(
        verb, arguments=arguments, task=task, forms=forms, given=file.options, given_in=file.source, missing=file.missing
    )


def with_given(name: str, verb: Verb, groups: Mapping[str, list[Option]]) -> dict[str, list[Option]]:
    """The options of a command, with the values of a file as defaults.

    Raises:
        UsageError: If the file has an option that does not exist, or that the command does not use.
        UnveilError: If a value is no value of its option.
    """
    known = {option.name: option for options in groups.values() for option in options}
    values = {}
    if verb.given_in and "model" in verb.arguments:
        check_value(f"{verb.given_in}: model", verb.arguments["model"].default, verb.arguments["model"].type)
    for key, value in verb.given.items():
        if key in verb.ignores:
            raise UsageError(f"{verb.given_in}: {name} does not use {key}: {verb.ignores[key]}")
        if key not in known:
            guess = hint(key, known) or f"unveil {name} --help-all lists its options"
            raise UsageError(f"{verb.given_in} has the option {key!r}, which unveil {name} does not have; {guess}")
        values[key] = check_value(f"{verb.given_in}: {key}", value, known[key].type)
    return {
        title: [dataclasses.replace(option, default=values.get(option.name, option.default)) for option in options]
        for title, options in groups.items()
    }


def parse_options(name: str, verb: Verb, argv: Sequence[str]) -> dict[str, Any]:
    """The options on the command line, by name. Exits with 0 after `--help`.

    Raises:
        UsageError: For an option that does not exist, or that the command does not use.
    """
    argv, per_method = split_per_method(argv) if verb.per_method else (list(argv), {})
    groups, notes = groups_of(verb, argv)
    groups = with_given(name, verb, groups)
    every = [*verb.arguments, *(option.name for options in groups.values() for option in options)]
    twice = [option for i, option in enumerate(every) if option in every[:i]]
    if twice:
        raise UnveilError(f"the option {twice[0]!r} of this class is an option of unveil {name} already: rename it in its Config")
    wanted = next((word for word in argv if word in HELP), None)
    if wanted:
        show_help(name, verb, groups, notes, everything=wanted == "--help-all")
        flush()
        sys.exit(0)
    argv = apply_trust(argv) if verb.has_trust else argv
    refuse_options(name, verb, argv, every)
    types = {key: argument.type for key, argument in verb.arguments.items() if not argument.positional}
    refuse_values(argv, types | {option.name: option.type for options in groups.values() for option in options})
    parsed = parse_by_tyro(name, verb, argv, shape_of(name, verb.arguments, groups, notes))
    given = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    options = {key: getattr(parsed, key) for key in verb.arguments}
    absent = next((key for key in verb.missing if options.get(key) == ""), None)
    if absent:
        raise UsageError(verb.missing[absent])
    for title in groups:
        values = vars(getattr(parsed, f"{title}_"))
        options |= {key: value for key, value in values.items() if key in given or f"no_{key}" in given or key in verb.given}
    return options | {method: parse_per_method(method, words) for method, words in per_method.items()}


def groups_of(verb: Verb, argv: Sequence[str]) -> tuple[dict[str, list[Option]], dict[str, str]]:
    """The options of a command by the title of their group, with the defaults for this command line.

    The second return value maps options to a note that `--help` adds to their default.
    """
    method = method_of(verb, argv) if METHOD in verb.configs.values() else None
    task = value_of(verb.task_option, argv) or verb.task
    defaults: dict[str, Any] = {}
    chosen: Sequence[str] = ()
    if method:
        defaults |= methods.method_defaults(method)
    if task and task != "knn":
        defaults |= tasks.task_defaults(task)
        chosen = tasks.task_source(task).literal("CHOSEN", ())
    groups = {}
    for title, path in verb.configs.items():
        if path == METHOD:
            path = methods.method_source(str(method)).config()
        elif path == TASK:
            path = tasks.task_source(task).config()
        groups[title] = [
            dataclasses.replace(
                option, default=defaults.get(option.name, option.default), hidden=option.hidden or option.name in verb.hides
            )
            for option in options_of(path)
            if option.name not in verb.ignores
        ]
    notes = {key: f"{plainly(value)} for digits" for key, value in literal_at(verb.digits).items() if key not in defaults}
    notes |= dict.fromkeys(chosen, "default: follows the model and the labels")
    if verb.per_method and not method:
        own = {key for each in methods.METHODS.names for key in methods.method_defaults(each)}
        notes |= dict.fromkeys(own, "default: that of each method")
    if verb.per_method:
        notes["base_lr"] = "default: for images, that of unveil plan"
    names = {option.name for options in groups.values() for option in options}
    return groups, {key: note for key, note in notes.items() if key in names}


def show_help(name: str, verb: Verb, groups: Mapping[str, list[Option]], notes: Mapping[str, str], *, everything: bool) -> None:
    """Prints the help of a command: with `everything` all options, else without the hidden ones."""
    shown = {title: [option for option in options if everything or not option.hidden] for title, options in groups.items()}
    arguments = {**verb.arguments, "trust": TRUST} if verb.has_trust else verb.arguments
    shape = shape_of(name, arguments, {title: options for title, options in shown.items() if options}, notes)
    with contextlib.suppress(SystemExit):
        parse_by_tyro(name, verb, ["--help"], shape)
    count = sum(len(options) for options in groups.values()) + len(arguments)
    if sum(len(options) for options in shown.values()) + len(arguments) < count:
        print(f"unveil {name} --help-all lists all {count} options.")


def flush() -> None:
    """Writes what is buffered for standard output. Python would do it too late, when it cannot say that nobody reads it."""
    if sys.stdout is not None:
        sys.stdout.flush()


def shape_of(name: str, arguments: Mapping[str, Argument], groups: Mapping[str, list[Option]], notes: Mapping[str, str]) -> type:
    """A dataclass with a field for each argument, and one for each group of options."""
    import tyro

    fields = [
        field(key, each.type, each.help, each.default, positional=each.positional, metavar=each.metavar or (each.path and "PATH"))
        for key, each in arguments.items()
    ]
    for title, options in groups.items():
        own = [field(option.name, option.type, option.help, option.default, notes.get(option.name, "")) for option in options]
        group = dataclasses.make_dataclass(title, own, frozen=True)
        fields.append((f"{title}_", Annotated[group, tyro.conf.arg(name=title)], dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass(name.replace(" ", "_").replace("-", "_"), fields)


def parse_by_tyro(name: str, verb: Verb, argv: Sequence[str], shape: type) -> Any:
    """Parses the argument list into an instance of the dataclass `shape`. Exits with 2 if a value is invalid."""
    import tyro

    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(shape, prog=f"unveil {name}", description=verb.summary, args=list(argv), config=config)


def field(
    name: str, kind: Any, text: str, default: Any, note: str = "", *, positional: bool = False, metavar: str = ""
) -> tuple[str, Any, Any]:
    """A field for `dataclasses.make_dataclass`, with its text in `--help`."""
    import tyro

    kind = plain_type(kind)
    shown = "" if default in (None, (), "") else f"default: {plainly(default)}"
    if default is REQUIRED:
        shown = "required"
    if note:
        shown = f"{shown}; {note}" if shown and not note.startswith("default") else note
    metavar = name.upper() if positional else metavar or METAVARS.get(kind, "")
    if not metavar and get_origin(kind) in (Union, UnionType):  # an optional Literal: list its values
        metavar = "{" + ",".join(str(name) for part in get_args(kind) for name in get_args(part)) + "}"
    if not metavar and get_origin(kind) is tuple:
        metavar = f"{get_args(kind)[0].__name__.upper()} ..."
    marks: list[Any] = [tyro.conf.Positional] if positional else []
    marks.append(tyro.conf.arg(help=text, metavar=metavar or None, help_behavior_hint=f"({shown})" if shown else ""))
    return (name, Annotated[kind, *marks], dataclasses.field() if default is REQUIRED else dataclasses.field(default=default))


def plainly(value: Any) -> str:
    """A default value, spelled as a user would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def refuse_options(name: str, verb: Verb, argv: Sequence[str], known: Iterable[str]) -> None:
    """Raises `UsageError` for the first option that the command does not have, and suggests similar names."""
    known = set(known)
    positional = {key for key, argument in verb.arguments.items() if argument.positional}

    def spell(key: str) -> str:
        return key.upper() if key in positional else f"--{key.replace('_', '-')}"

    for word in argv[: argv.index("--")] if "--" in argv else argv:
        given = word.split("=")[0]
        key = given.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or {key, key.removeprefix("no_")} & known - positional:
            continue
        if key in verb.ignores:
            raise UsageError(f"{name} does not use {given}: {verb.ignores[key]}")
        task = value_of(verb.task_option, argv) if TASK in verb.configs.values() else ""
        command = f"{name} {verb.task_option} {task}" if task else name
        guess = hint(key, known, spell) or f"unveil {command} --help-all lists its options"
        raise UsageError(f"{command} has no option {given}; {guess}")


def refuse_values(argv: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Raises `UnveilError` for the first value that is no value of its option; `kinds` has the types of the options."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    for index, word in enumerate(words):
        flag, sign, value = word.partition("=")
        kind = kinds.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        if kind in (None, bool):
            continue
        values = [value] if sign else list(takewhile(lambda word: not word.startswith("--"), words[index + 1 :]))
        values = values if get_origin(kind) is tuple else values[:1]
        if values:  # else the parser says that a value is missing
            check_value(flag, from_words(values, kind), kind, shown=" ".join(values))


def apply_trust(argv: Sequence[str]) -> list[str]:
    """Trusts the PATH of every `--trust PATH`, and returns the remaining words."""
    rest, words = list[str](), iter(argv)
    for word in words:
        if word == "--trust":
            path = next(words, "")
            if not path or path.startswith("--"):
                raise UsageError("--trust needs a file or a module, such as --trust my_method.py")
            plugins.trust(path)
        elif word.startswith("--trust="):
            plugins.trust(word.removeprefix("--trust="))
        else:
            rest.append(word)
    return rest


def split_per_method(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separates the options for all methods from those for one method, such as `--dino.base-lr 1e-3` for dino."""
    shared: list[str] = []
    per_method: dict[str, list[str]] = {}
    into = shared
    for word in argv:
        if word.startswith("--"):
            name, dot, option = word[2:].partition(".")
            into = per_method.setdefault(name, []) if dot and "=" not in name else shared
            word = word if into is shared else f"--{option}"
        into.append(word)
    return shared, per_method


def parse_per_method(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Parses the options for one method as `pretrain` does, or those for fine-tuning as `finetune` does.

    Raises:
        UnveilError: For an argument that follows from the comparison, such as `--mae.out`.
    """
    called, start = ("finetune", ["RUN"]) if name == "finetune" else ("pretrain", ["DATA", "--method", methods.base_of(name)])
    own = {"finetune": ("task", "test"), "pretrain": ("model",)}[called]
    argv = [*start, *words]
    verb = form_of(called, VERBS[called], argv)
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    if fixed := next((key for key in verb.arguments if key in given and key not in own), None):
        raise UnveilError(f"--{name}.{fixed.replace('_', '-')} cannot be given for some of the runs: leave it out")
    options = parse_options(called, verb, argv)
    return {key: value for key, value in options.items() if key not in verb.arguments or (key in own and value)}


def literal_at(path: str) -> dict[str, Any]:
    """The dictionary "module:NAME"; empty if `path` is empty."""
    module, _, name = path.partition(":")
    return dict(literal(module, name)) if module else {}


def value_of(option: str, argv: Sequence[str]) -> str:
    """The value of an option in an argument list; "" if it is not given."""
    values = [b for a, b in pairwise(argv) if a == option]
    values += [word.removeprefix(f"{option}=") for word in argv if word.startswith(f"{option}=")]
    return values[0] if values else ""


def method_of(verb: Verb, argv: Sequence[str]) -> str:
    """The method in an argument list, or else the default of the command."""
    return value_of("--method", argv) or str(verb.arguments["method"].default)
