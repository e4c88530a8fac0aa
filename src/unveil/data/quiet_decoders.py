"""Silences image decoders while a file is read, and restores the settings of the process afterwards.

A damaged tag makes Pillow warn, tifffile log, and libtiff write to stderr, once per file. Real errors are raised as exceptions
anyway. All three settings are global, not per thread, and files are read from many threads. So the first reader silences the
decoders, and the last one to finish restores them. Importing unveil changes nothing.
"""

import contextlib
import ctypes
import functools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

from PIL import Image

LOGGERS = ("PIL.TiffImagePlugin", "tifffile")

_lock = threading.Lock()
_readers = 0
_restore = contextlib.ExitStack()
_this_thread = threading.local()


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silences Pillow, tifffile and libtiff for the duration of the block."""
    global _readers
    with _lock:
        _readers += 1
        if _readers == 1:
            _silence(_restore)
    _this_thread.depth = getattr(_this_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _this_thread.depth -= 1
        with _lock:
            _readers -= 1
            if _readers == 0:
                _restore.close()


def _silence(restore: contextlib.ExitStack) -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_not_from_a_reader)
        restore.callback(logging.getLogger(name).removeFilter, _not_from_a_reader)
    # `warnings.filterwarnings` would also forget which warnings were already shown, so the host program would show its own warnings
    # again and again. The entry goes to the end of the list, after all filters of the host program.
    filters, entry = cast(list[Any], warnings.filters), ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)
    if entry not in filters:
        filters.append(entry)
        restore.callback(_remove, entry)
    set_handler = _libtiff_error_handler()
    if set_handler is not None:
        restore.callback(set_handler, set_handler(None))


def _not_from_a_reader(record: logging.LogRecord) -> bool:
    return not getattr(_this_thread, "depth", 0)  # a filter runs in the thread that logs


def _remove(entry: Any) -> None:
    with contextlib.suppress(ValueError):  # the host program has replaced the list meanwhile, as `warnings.catch_warnings` does
        cast(list[Any], warnings.filters).remove(entry)


@functools.cache
def _libtiff_error_handler() -> Callable[[int | None], int | None] | None:
    """A function that sets libtiff's error handler and returns the earlier one; None if Pillow's libtiff cannot be reached."""
    try:
        function = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # type: ignore[attr-defined]  # not in Pillow's stubs
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    return cast(Callable[[int | None], int | None], function)
