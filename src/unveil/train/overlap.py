"""What a run does at the same time as its steps. No other file decides this, so each of them can be turned off and measured.

Those that no GPU has measured yet are off. `UNVEIL_WAIT` in the environment names those to turn off instead, as in
`UNVEIL_WAIT=save,copy`; 1 means all of them, 0 none. `benchmarks/gpu.py` measures what each of them saves.

| name   | while a GPU computes a step                                                      | file           |
| ------ | -------------------------------------------------------------------------------- | -------------- |
| lag    | the host starts the next one, and learns afterwards whether this one was applied | recorder.py    |
| save   | a thread writes a checkpoint, from a copy in page-locked memory                  | snapshot.py    |
| copy   | a thread sends the next batches to the GPU, in a stream of their own             | data/loader.py |
| gather | FSDP2 gathers the weights of the next block                                      | wrapping.py    |
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from unveil.errors import UnveilError

NAMES = ("lag", "save", "copy", "gather")
UNMEASURED = frozenset({"save", "copy", "gather"})


def names_in(value: str) -> frozenset[str]:
    """What a value of `UNVEIL_WAIT` turns off. Raises `UnveilError` for an unknown name."""
    named = {"": UNMEASURED, "0": frozenset[str](), "1": frozenset(NAMES)}
    if value in named:
        return named[value]
    names = frozenset(value.split(","))
    if not names <= set(NAMES):
        raise UnveilError(f"UNVEIL_WAIT is {value!r}: use 0, 1, or names from {', '.join(NAMES)}, separated by commas")
    return names


_off = names_in(os.environ.get("UNVEIL_WAIT", ""))


@contextmanager
def turned_off(*names: str) -> Iterator[None]:
    """A context in which exactly these are turned off, for tests and benchmarks."""
    global _off
    before, _off = _off, frozenset(names)
    try:
        yield
    finally:
        _off = before


def enabled(name: str) -> bool:
    """Whether this may be done at the same time."""
    return name not in _off
