"""The command line: a verb, its inputs, and the knobs of the configs that it turns.

Nothing here imports torch before a verb runs: options are read from the source of the files that they configure.
"""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from unveil.commands import REQUIRED, VERBS, Verb
from unveil.errors import UnveilError
from unveil.interop.model_kind import model_kind
from unveil.methods import METHODS, TEXTS, base_of, defaults_of
from unveil.options import literal, options_of

WORDS: dict[Any, str] = {str: "TEXT", str | None: "TEXT", int | None: "INT", float | None: "FLOAT"}
"""What a type is called where its own name is none for a reader."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 0 (done), 1 (failed, one sentence on stderr) or 2 (usage)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        from unveil import __version__

        print(f"unveil {__version__}")
        sys.exit(0)
    name = next((name for name in (argv[0], " ".join(argv[:2])) if name in VERBS), None)  # some are two words
    if name is None:
        near = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")] or difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else "see unveil --help"
        print(f"unveil: there is no command {argv[0]!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    verb = VERBS[name]
    if verb.of_texts and (method_of(argv) in TEXTS or any(model_kind(part) == "texts" for part in argv[1:])):
        verb = verb.of_texts
    options = parse(name, verb, argv[len(name.split()) :])
    sys.exit(run(verb, options))


def overview() -> str:
    """The help of the command itself."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.says}" for name, verb in VERBS.items())
    return (
        "usage: unveil COMMAND ...\n\n"
        "Learns vision models from unlabelled images by masked autoencoding, and shows whether it worked.\n\n"
        f"{verbs}\n\nunveil COMMAND --help shows its options. Start with: unveil pretrain"
    )


def parse(name: str, verb: Verb, argv: list[str]) -> dict[str, Any]:
    """The options that were given, by name. Exits with 2 and a hint where they make no sense."""
    import tyro

    argv, apart = set_apart(argv) if verb.apart else (argv, {})
    fields = [
        field(key, argument.type, argument.help, argument.default, positional=argument.positional)
        for key, argument in verb.arguments.items()
    ]
    defaults, digits = literals(verb.defaults), literals(verb.digits)
    if "METHOD" in verb.configs.values():
        defaults |= defaults_of(method_of(argv))
    for title, place in verb.configs.items():
        own = []
        for knob in options_of(f"{METHODS[method_of(argv)]}Config" if place == "METHOD" else place):
            special = f"; {plainly(digits[knob.name])} for the digits" if knob.name in digits.keys() - defaults.keys() else ""
            own.append(field(knob.name, knob.type, knob.help, defaults.get(knob.name, knob.default), special))
        group = dataclasses.make_dataclass(title, own, frozen=True)
        fields.append((f"{title}_", Annotated[group, tyro.conf.arg(name=title)], dataclasses.field(default_factory=group)))
    shape = dataclasses.make_dataclass(name.replace(" ", "_"), fields)
    parsed: Any = tyro.cli(shape, prog=f"unveil {name}", description=verb.says, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    given = {part[2:].split("=")[0].replace("-", "_") for part in argv if part.startswith("--")}
    options = {key: getattr(parsed, key) for key in verb.arguments}
    for title in verb.configs:
        values = dataclasses.asdict(getattr(parsed, f"{title}_"))
        options |= {key: value for key, value in values.items() if key in given or f"no_{key}" in given}
    return options | {name: parse_apart(name, words) for name, words in apart.items()}


def set_apart(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is said to all, and what to one alone, by its name: `--dino.base-lr 1e-3` is `--base-lr 1e-3` for dino."""
    shared: list[str] = []
    apart: dict[str, list[str]] = {}
    into = shared
    for word in argv:
        if word.startswith("--"):
            name, dot, option = word[2:].partition(".")
            into = apart.setdefault(name, []) if dot and "=" not in name else shared
            word = word if into is shared else f"--{option}"
        into.append(word)
    return shared, apart


def parse_apart(name: str, words: list[str]) -> dict[str, Any]:
    """Options for one alone, read as `pretrain` or `finetune` would."""
    called, start = ("finetune", ["RUN"]) if name == "finetune" else ("pretrain", ["DATA", "--method", base_of(name)])
    verb = VERBS[called]
    verb = verb.of_texts if verb.of_texts and base_of(name) in TEXTS else verb
    options = parse(called, verb, [*start, *words])
    return {key: value for key, value in options.items() if key not in verb.arguments or (key == "model" and value)}


def literals(place: str) -> dict[str, Any]:
    """The dictionary at "module:name"; an empty one for no place."""
    module, _, name = place.partition(":")
    return dict(literal(module, name)) if module else {}


def field(name: str, kind: Any, says: str, default: Any, special: str = "", *, positional: bool = False) -> tuple[str, Any, Any]:
    """A field of a dataclass that is made on the fly, with what `--help` says of it."""
    import tyro

    marks: list[Any] = [tyro.conf.Positional] if positional else []
    told = "" if default in (None, (), "") else f"(default: {plainly(default)}{special})"
    if default is REQUIRED:
        told = "(required)"
    metavar = name.upper() if positional else WORDS.get(kind)
    if metavar is None and get_origin(kind) in (Union, UnionType):  # of one of these names, or none
        metavar = "{" + ",".join(name for part in get_args(kind) for name in get_args(part)) + "}"
    marks.append(tyro.conf.arg(help=says, metavar=metavar, help_behavior_hint=told))
    return (name, Annotated[kind, *marks], dataclasses.field() if default is REQUIRED else dataclasses.field(default=default))


def plainly(value: Any) -> str:
    """A default as one would type it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def method_of(argv: list[str]) -> str:
    """The method that is asked for; mae where there is no such one, which is refused later."""
    named = [b for a, b in pairwise(argv) if a == "--method"]
    named += [part.removeprefix("--method=") for part in argv if part.startswith("--method=")]
    return named[0] if named and named[0] in METHODS else "mae"


def run(verb: Verb, options: dict[str, Any]) -> int:
    """Calls the function of a verb; the exit code."""
    module, _, name = verb.call.partition(":")
    try:
        getattr(importlib.import_module(module), name)(**options)
    except KeyboardInterrupt:
        return complain("stopped at once: the same command goes on from what it saved last")
    except Exception as error:
        if os.environ.get("UNVEIL_TRACEBACK"):
            raise
        sentence = plain(error)
        if sentence is None:
            raise
        return complain(sentence)
    return 0


def plain(error: Exception) -> str | None:
    """The sentence that the user should read; None for a fault of our own, which deserves its traceback."""
    if isinstance(error, UnveilError) or type(error).__name__ == "Interrupted":
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has too little memory: try --accumulate 2 (or 4, 8), --recompute, or a smaller --batch-size"
    if "by peer" in str(error) or type(error).__name__ == "DistBackendError":
        cause = str(error).splitlines()[0].split("] ", 1)[-1].split(". This")[0]
        return f"lost touch with another process of this run ({cause}): torchrun starts all again where --max-restarts allows"
    return None


def complain(sentence: str) -> int:
    """Says what went wrong; the exit code."""
    print(f"unveil: {sentence}", file=sys.stderr)
    return 1
