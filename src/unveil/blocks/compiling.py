"""Decorators for functions that torch.compile leaves alone. They import the compiler, so they are for modules that do so anyway."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def in_no_graph(function: Function) -> Function:
    """A function that is never compiled, and nothing that it calls, such as one that would be compiled anew for each input."""
    plain: Function = torch.compiler.disable(function)
    return plain


def above_graphs(function: Function) -> Function:
    """A function of which only the modules that it calls are compiled, each by itself."""
    plain: Function = torch.compiler.disable(function, recursive=False)
    return plain
