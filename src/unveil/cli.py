"""The command line: a command, its inputs, and options. The options are the fields of the configs that the command uses.

Nothing here imports torch before a command runs: options are read from source files, and paths are checked first.
"""

import atexit
import contextlib
import gc
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unveil import methods
from unveil.command_line import HELP, UsageError, flush, form_of, parse_options, verb_name, with_config
from unveil.commands import VERBS
from unveil.errors import Interrupted, UnveilError
from unveil.paths import CHECKS
from unveil.plain_text import printable
from unveil.stop_signals import raise_on_signals
from unveil.verbs import Verb

HELP_WIDTH = 80
"""Width of the list of commands. The help of one command is as wide as the terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 0 (done), 1 (failed, with one sentence on stderr), 2 (wrong usage), or 128 + a signal's number.

    So the exit code is 130 after Ctrl-C, 143 after SIGTERM, and 129 after SIGHUP.
    """
    code: Any = 0
    try:
        with raise_on_signals():
            code = execute(list(sys.argv[1:] if arguments is None else arguments))
        flush()
    except KeyboardInterrupt as error:  # before a command began, or again while it was ending
        code = stopped(getattr(error, "number", signal.SIGINT), "stopped")
    except BrokenPipeError:  # nobody reads the output any more: `unveil --help | head`
        code = 128 + signal.SIGPIPE
        discard_output()
    except OSError as error:  # standard output is on a full disk
        code = complain(str(plain(error)))
        discard_output()
    sys.exit(code)


def execute(argv: list[str]) -> int:
    """Parses the arguments and runs a command. Returns the exit code."""
    if not argv or argv[0] in HELP:
        print(overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from unveil import __version__

        print(f"unveil {__version__}")
        return 0
    try:
        name = verb_name(argv)
        argv = argv[len(name.split()) :]
        verb, argv = with_config(name, VERBS[name], argv)
        verb = form_of(name, verb, argv)
        options = parse_options(name, verb, argv)
    except (UsageError, UnveilError) as error:
        complain(str(error))
        return 2
    return run(verb, options)


def discard_output() -> None:
    """Sends what is still buffered for standard output nowhere. Else Python would report at its end that it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def overview() -> str:
    """The help of `unveil` itself."""
    width = max(map(len, VERBS)) + 4
    verbs = "\n".join(
        textwrap.fill(
            verb.summary.split("\n")[0].split(". ")[0].rstrip("."),
            HELP_WIDTH,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
        )
        for name, verb in VERBS.items()
    )
    return (
        "usage: unveil COMMAND ...\n\n"
        "Pre-trains vision models on images without labels by masked autoencoding,\n"
        "and evaluates what they have learned.\n\n"
        f"{verbs}\n\n"
        "unveil COMMAND --help lists the options of a command that users change,\n"
        "and --help-all every option.\n"
        "Start with: unveil pretrain"
    )


def imported(module: str, name: str) -> Callable[..., Any]:
    """A function of a module, imported without looks for garbage among the million objects of torch, which all stay.

    Each look takes up to half a second, also when it comes later.
    """
    is_alone = "torch" not in sys.modules  # else another program uses this process
    if is_alone:
        gc.disable()
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        if is_alone:
            gc.freeze()
            atexit.register(gc.unfreeze)  # else extensions would report at the end that their objects have leaked
    finally:
        if is_alone:
            gc.enable()
    return function


def run(verb: Verb, options: Mapping[str, Any]) -> int:
    """Checks the paths, then imports and calls the function of a command. Returns the exit code."""
    module, _, name = verb.call.partition(":")
    try:
        check_paths(verb, options)
        imported(module, name)(**options)
    except Interrupted as error:
        return stopped(error.number, str(error))
    except KeyboardInterrupt as error:
        again = "to resume" if verb.resumes else "to start again"
        return stopped(getattr(error, "number", signal.SIGINT), f"stopped: run the same command {again}")
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("UNVEIL_TRACEBACK"):
            raise
        sentence = about_out(error, options.get("out")) or plain(error)
        if sentence is None:
            raise
        return complain(sentence)
    return 0


def check_paths(verb: Verb, options: Mapping[str, Any]) -> None:
    """Raises `UnveilError` if an input does not exist or an output does. This happens before torch is imported."""
    for key, argument in verb.arguments.items():
        value = options[key]
        if argument.path and isinstance(value, str):
            CHECKS[modality_of_data(options) if argument.path == "data" else argument.path](value)


def modality_of_data(options: Mapping[str, Any]) -> str:
    """What DATA holds: "images" or "text"."""
    if "methods" in options:
        first = methods.base_of(options["methods"].split(",")[0].strip())
        return methods.modality_of_method(first) if first in methods.METHODS.names else "images"
    return methods.modality_of_method(options["method"]) if "method" in options else "images"


def about_out(error: Exception, out: str | None) -> str | None:
    """The error message if it is the folder of `--out`, or one above it, that cannot be created."""
    above = getattr(error, "filename", None)
    if not (out and isinstance(error, OSError) and isinstance(above, str) and Path(out).is_relative_to(above)):
        return None
    return f"--out {out} cannot be written ({above}: {error.strerror}): choose another --out"


def plain(error: Exception) -> str | None:
    """The error message for the user; None for a bug in unveil, which is shown with its traceback."""
    if isinstance(error, UnveilError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output, or a file'}: {error.strerror}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "out of memory: use a smaller --batch-size or --accum-steps 2 (or 4, 8), or end other programs"
    if "can't start new thread" in str(error):
        return "the system allows no further thread: raise its limit (see `ulimit -u`), or end other programs"
    if type(error).__name__ == "OutOfMemoryError":
        return "out of memory: try --accum-steps 2 (or 4, 8), --grad-checkpointing, or a smaller --batch-size"
    if "by peer" in str(error) or type(error).__name__ == "DistBackendError":
        cause = str(error).splitlines()[0].split("] ", 1)[-1].split(". This")[0]
        return f"lost contact with another process ({cause}); torchrun restarts the run if --max-restarts is set"
    return None


def stopped(number: int, sentence: str) -> int:
    """Prints what a signal has stopped, once for all processes of torchrun. Returns the exit code of a shell for this signal."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal may be gone
            complain(sentence)
    return 128 + number


def complain(sentence: str) -> int:
    """Prints an error message. Returns the exit code."""
    with contextlib.suppress(OSError):  # the exit code tells it, too
        print(printable(f"unveil: {sentence}", lines=True), file=sys.stderr, flush=True)
    return 1
