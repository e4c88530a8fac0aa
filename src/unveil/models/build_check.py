"""Compares a config with the tensors of its file before anything is built from it.

A config is a few bytes that anybody can write: a depth of a billion would take all memory, although the file next to it has four
blocks. So a model is first built on torch's meta device, where tensors have a shape and no memory, and this stops as soon as it has
many more tensors than the file.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook

from unveil.errors import UnveilError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
COPIES = 8
"""A model registers each tensor of its file this many times at most, as copies for a teacher or an average also count."""
SPARE_TENSORS = 1000
SPARE_VALUES = 2**24
"""Values in tables that are not in the file, such as those of positions: a table of 4096 places of 4096 values is the largest."""


def check_build(build: Callable[[], ModuleT], shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> ModuleT:
    """Builds a model without memory for its tensors, on torch's meta device.

    Args:
        build: Builds the model from its config.
        shapes: The shapes of the tensors in the file, by name.
        source: The file, for error messages.

    Raises:
        UnveilError: If the config describes a model that is far larger than the file. Whether all names and shapes agree is for the
            caller to compare.
    """
    with limited_to(COPIES * len(shapes) + SPARE_TENSORS, source), torch.device("meta"):
        model = build()
    saved = model.state_dict().keys()
    tables = sum(value.numel() for name, value in model.named_buffers() if name not in saved)
    if tables > SPARE_VALUES + sum(map(torch.Size.numel, map(torch.Size, shapes.values()))):
        raise UnveilError(f"{source} is damaged: its config needs tables of {tables:,} values, which no model of its size has")
    return model


@contextmanager
def limited_to(most: int, source: str | Path) -> Iterator[None]:
    """Raises `UnveilError` as soon as this thread has registered more than `most` parameters and buffers in modules."""
    own, count = threading.get_ident(), 0

    def register(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal count
        if threading.get_ident() != own or value is None:
            return
        count += 1
        if count > most:
            raise UnveilError(f"{source} is damaged: its config describes a larger model than the tensors of the file")

    hooks = [register_module_parameter_registration_hook(register), register_module_buffer_registration_hook(register)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """Raises `UnveilError` for the first tensor whose shape is not that of the model. All names must agree already."""
    for name, value in model.state_dict().items():
        if tuple(value.shape) != tuple(shapes[name]):
            raise UnveilError(f"{source}: {name} has shape {tuple(shapes[name])}, but its config needs {tuple(value.shape)}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
