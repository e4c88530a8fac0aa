"""What happens to a command while it runs: a signal at a certain moment, or a changed constant. This runs in the command's process.

A moment is the n-th of some events: a step of an optimiser, a call of a function, or something that the process does to a file.
Python itself announces the latter (`sys.addaudithook`), so no code of unveil is replaced, and each run meets the same moments.
"""

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")


def install(wanted: Sequence[dict[str, Any]], prepare: Sequence[str]) -> None:
    """Prepares this process: changes constants, then waits for the moments."""
    for name in prepare:
        globals()[f"prepare_{name}"]()
    for each in wanted:
        _wait_for(each["event"], re.compile(each["match"]), each["count"], _action(each["action"]))


def _action(name: str) -> Callable[[str], None]:
    if name.startswith("log "):  # writes down every moment
        handle = os.open(name[4:], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        return lambda what: void(os.write(handle, f"{what}\n".encode("utf-8", "surrogateescape")))
    number = getattr(signal, name)
    return lambda what: os.kill(os.getpid(), number)


def void(value: Any) -> None:
    """Drops a value."""


def _wait_for(event: str, match: re.Pattern[str], count: int, action: Callable[[str], None]) -> None:
    """Calls `action` at the `count`-th event whose description matches, or at every one if `count` is 0."""
    seen = 0

    def notice(what: str) -> None:
        nonlocal seen
        if match.search(what):
            seen += 1
            if count in (0, seen):
                action(what)

    if event == "step":
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: notice("step"))
    elif event == "call":  # `match` is "module:function"
        module, name = match.pattern.split(":")
        home = importlib.import_module(module)
        plain = getattr(home, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            notice(match.pattern)
            return plain(*args, **kwargs)

        setattr(home, name, called)
    else:
        sys.addaudithook(_hook(event, notice))


def _hook(event: str, notice: Callable[[str], None]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            kind = "write" if writes else "read"
        elif name in WRITES:
            kind = "write"
        else:
            return
        path = args[1] if name in ("os.rename", "os.link", "os.symlink") else args[0]
        if kind == event and isinstance(path, str | bytes | os.PathLike):
            path = os.fsdecode(path)
            if not path.startswith(("/dev/", "/proc/", "/sys/")):
                notice(f"{name} {path}")

    return hook


def prepare_save_always() -> None:
    """A checkpoint after each step, if --save-seconds is tiny. By default saving takes at most 2 % of the time."""
    import unveil.train.signals as signals

    assert hasattr(signals, "SAVE_SHARE")
    signals.SAVE_SHARE = 1e9


def prepare_on_demand() -> None:
    """Images are read from their files in each epoch, as for data of more than 2 GiB."""
    from unveil.data import dataset

    assert hasattr(dataset, "MEMORY")
    dataset.MEMORY = 0
    defaults = dataset.ImageDataset.__init__.__kwdefaults__
    if "memory" in defaults:
        defaults["memory"] = 0
