"""Imports the library `tokenizers`, which is an optional dependency."""

from typing import Any

from unveil.errors import UnveilError


def tokenizers_library() -> Any:
    """The module `tokenizers`. Raises `UnveilError` if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise UnveilError("text needs the package `tokenizers`: install it with `pip install 'unveil[text]'`") from None
    return tokenizers
