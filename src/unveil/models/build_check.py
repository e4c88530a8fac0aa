"""Builds a model from a config that may be damaged or made to do harm, in the memory that the tensors of its file take.

A config is a few bytes that anybody can write: a depth of a billion would take all memory, although the file next to it has four
blocks. So building stops as soon as it has many more tensors than the file, or is about to allocate a tensor that is larger than
all of them. (Building on torch's meta device needs no memory either, but imports torch's compiler, which takes seconds.)
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from unveil.errors import UnveilError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
COPIES = 8
"""A model registers each tensor of its file this many times at most, as copies for a teacher or an average also count."""
SPARE_TENSORS = 1000
SPARE_VALUES = 2**22
"""Values in a table that is not in the file, such as one of positions."""
SPARE_INDICES = 2**25
"""The same for whole numbers: the offsets between all pairs of patches, for up to 5,792 patches."""
BY_SIZE = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full)
REPEATING = (torch.Tensor.repeat_interleave, torch.Tensor.repeat, torch.repeat_interleave)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_build(build: Callable[[], ModuleT], shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> ModuleT:
    """Builds a model.

    Args:
        build: Builds the model from its config.
        shapes: The shapes of the tensors in the file, by name.
        source: The file, for error messages.

    Raises:
        UnveilError: If the config describes a model that is far larger than the file. Whether all names and shapes agree is for the
            caller to compare.
    """
    values = sum(math.prod(shape) for shape in shapes.values())
    with limited_to(COPIES * len(shapes) + SPARE_TENSORS, COPIES * values + SPARE_INDICES, source), LimitedSizes(values, source):
        return build()


class LimitedSizes(TorchFunctionMode):
    """Raises `UnveilError` before a tensor is allocated that has more values than a file, and than any table beside it."""

    def __init__(self, values: int, source: str | Path) -> None:
        super().__init__()
        self.values, self.source = values, source

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted, whole = size_of_result(func, args)
        if wanted > self.values + (SPARE_INDICES if whole else SPARE_VALUES):
            raise UnveilError(f"{self.source} is damaged: its config describes a larger model than the tensors of the file")
        return func(*args, **(kwargs or {}))


def size_of_result(func: Any, args: tuple[Any, ...]) -> tuple[int, bool]:
    """The number of values that a function of torch is about to allocate, 0 if unknown; and whether they are whole numbers."""
    if func in BY_SIZE:
        sizes = args[0] if args and isinstance(args[0], tuple | list) else args
        return math.prod(size for size in sizes if isinstance(size, int)), False
    if func is torch.arange:
        return int(max(args[-1] if len(args) < 3 else args[1], 0)), True
    tensors = [each for each in args if isinstance(each, Tensor)]
    if func in (torch.cat, torch.stack):
        tensors = [each for each in args[0] if isinstance(each, Tensor)]
        size = sum(each.numel() for each in tensors)
    elif func in REPEATING and tensors:
        size = tensors[0].numel() * math.prod(each for each in args[1:] if isinstance(each, int))
    elif len(tensors) > 1:
        size = math.prod(max(sides) for sides in zip_longest(*(reversed(each.shape) for each in tensors), fillvalue=1))  # broadcast
    else:
        return 0, False
    return size, all(each.dtype in WHOLE for each in tensors)


@contextmanager
def limited_to(most: int, values: int, source: str | Path) -> Iterator[None]:
    """Limits the parameters and buffers that this thread registers in modules.

    Args:
        most: Maximum number of parameters and buffers.
        values: Maximum number of their values.
        source: The file, for error messages.

    Raises:
        UnveilError: As soon as there are more.
    """
    own, count, total = threading.get_ident(), 0, 0

    def register(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal count, total
        if threading.get_ident() != own or value is None:
            return
        count, total = count + 1, total + value.numel()
        if count > most or total > values:
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
