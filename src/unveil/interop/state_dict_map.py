"""Maps between the state dicts of two libraries for the same weights. Names differ, and shapes differ by a view.

A map has one entry for each of our tensors: its name in the other library, and its shape there. It is used in both directions, so
every model that can be loaded can also be exported.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from unveil.blocks.patches import PatchEmbed, Size
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.models.build_check import check_build, shapes_of
from unveil.models.weights import refuse_non_finite
from unveil.train.checkpoint import Tensors

LearnerT = TypeVar("LearnerT", bound=Learner)
Shape = Literal["same", "token", "table", "convolution"]


class TensorName(NamedTuple):
    """The name and the shape of one of our tensors in another library."""

    names: tuple[str, ...]
    """One name, or three if query, key and value are separate there. An empty name means zeros that are not stored."""
    shape: Shape = "same"
    """The shape there. `token`: (1, 1, D) for our (D); `table`: (1, T, D) for (T, D); `convolution`: (D, C, p, q) for (D, pqC)."""
    patches: int | None = None
    """The number of patches, for a table of positions that may have fewer rows there: the last leading tokens then have 0."""


StateDictMap = dict[str, TensorName]
BlockNames = Mapping[str, str | tuple[str, ...]]


def weight_and_bias(ours: str, theirs: str | tuple[str, ...]) -> StateDictMap:
    """The map of the two tensors of a linear layer, a convolution or a norm."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    return {f"{ours}.{leaf}": TensorName(tuple(f"{name}.{leaf}" for name in names)) for leaf in ("weight", "bias")}


def block_map(ours: str, theirs: str, depth: int, layers: BlockNames) -> StateDictMap:
    """The map of the blocks of a Transformer."""
    result: StateDictMap = {}
    for i in range(depth):
        for layer, there in layers.items():
            names = (there,) if isinstance(there, str) else there
            result |= weight_and_bias(f"{ours}.{i}.{layer}", tuple(f"{theirs}.{i}.{name}" for name in names))
    return result


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """The number of blocks in a file, from the different words after a prefix such as "blocks."."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def build_and_load(
    build: Callable[[], LearnerT], names: Callable[[LearnerT], StateDictMap], state: Mapping[str, Tensor], source: str | Path
) -> tuple[LearnerT, int]:
    """A learner with the tensors of a file, in eval mode, and the number of tensors.

    Args:
        build: Builds the learner from the config of the file.
        names: The map of a learner, which may depend on its depth.
        state: The tensors of the file.
        source: The file, for error messages.

    Raises:
        UnveilError: If a tensor is missing, unexpected, not finite, or has another shape than the config says. A config that does
            not fit takes little memory: see `check_build`.
    """
    learner = check_build(build, shapes_of(state), source)
    matched = load_state(learner, names(learner), state, source)
    refuse_non_finite(state, source)
    return learner.eval(), matched


def load_state(module: nn.Module, names: StateDictMap, state: Mapping[str, Tensor], source: str | Path) -> int:
    """Loads the tensors of a file into a module, and returns their number.

    Raises:
        UnveilError: If a tensor is missing, unexpected, or has another shape.
    """
    wanted = {name for entry in names.values() for name in entry.names if name}
    check_names(wanted - state.keys(), state.keys() - wanted, len(wanted), source)
    own = module.state_dict()
    for ours, entry in names.items():
        if not any(entry.names):
            own[ours] = torch.zeros_like(own[ours])
            continue
        theirs = [state[name] if name else torch.zeros_like(state[entry.names[0]]) for name in entry.names]
        try:
            tensor = to_our_shape(torch.cat(theirs) if len(theirs) > 1 else theirs[0], entry.shape)
        except RuntimeError:
            tensor = theirs[0]
        if entry.patches is not None and tensor.ndim == 2 and entry.patches <= len(tensor) < len(own[ours]):
            given = len(tensor) - entry.patches  # leading tokens that have a position
            zeros = tensor.new_zeros(len(own[ours]) - len(tensor), tensor.shape[1])
            tensor = torch.cat([tensor[:given], zeros, tensor[given:]])
        if tensor.shape != own[ours].shape:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(entry.names, theirs, strict=True) if name)
            raise UnveilError(f"{source}: {shapes} does not fit the other tensors, which need {tuple(own[ours].shape)} for {ours}")
        own[ours] = tensor.to(own[ours].dtype)
    module.load_state_dict(own)
    return len(wanted)


def check_names(missing: set[str], left_over: set[str], wanted: int, source: str | Path) -> None:
    """Raises `UnveilError` if tensors are missing or unexpected."""
    if missing or left_over:
        found = [f"{len(x)} {what} ({abbreviated(x)})" for x, what in ((missing, "missing"), (left_over, "left over")) if x]
        matched = f"{wanted - len(missing)} of {wanted} tensors matched"
        raise UnveilError(f"{source} holds another model: {matched}, {' and '.join(found)}")


def abbreviated(names: set[str], most: int = 12) -> str:
    """The first names in alphabetical order, and the number of the others."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def to_state_dict(module: nn.Module, names: StateDictMap, patch_size: Size, skip: str | None = None) -> Tensors:
    """The tensors of a module under another library's names and in its shapes.

    Args:
        module: The module.
        names: The map, with an entry for each tensor of the module.
        patch_size: Height and width of a patch, which our flat patch embedding does not record.
        skip: A prefix of our names. Tensors with this prefix are left out.

    Raises:
        UnveilError: If a tensor has no entry.
    """
    own = {name: value.detach() for name, value in module.state_dict().items() if skip is None or not name.startswith(skip)}
    return renamed(own, names, patch_size)


def renamed(own: Mapping[str, Tensor], names: StateDictMap, patch_size: Size) -> Tensors:
    """Tensors under another library's names and in its shapes: see `to_state_dict`."""
    unmatched = own.keys() ^ names.keys()
    if unmatched:
        raise UnveilError(f"this format cannot represent {abbreviated(set(unmatched))}: export as safetensors instead")
    result: Tensors = {}
    for ours, entry in names.items():
        tensor = to_their_shape(own[ours], entry.shape, patch_size)
        for name, piece in zip(entry.names, tensor.chunk(len(entry.names)), strict=True):
            if name:
                result[name] = piece.clone(memory_format=torch.contiguous_format).cpu()
    return result


def fits(module: nn.Module, names: StateDictMap, skip: str | None = None) -> bool:
    """Whether a map has an entry for each tensor of a module, and no others: see `to_state_dict`."""
    return {name for name in module.state_dict() if skip is None or not name.startswith(skip)} == names.keys()


def to_our_shape(tensor: Tensor, shape: Shape) -> Tensor:
    """Converts a tensor of another library to our shape."""
    if shape == "convolution" and tensor.ndim == 4:
        return PatchEmbed.from_convolution(tensor)
    return tensor.reshape(tensor.shape[{"token": 2, "table": 1}[shape] :]) if shape in ("token", "table") else tensor


def to_their_shape(tensor: Tensor, shape: Shape, patch_size: Size) -> Tensor:
    """Converts one of our tensors to the shape of another library."""
    if shape == "convolution":
        return tensor.reshape(len(tensor), *patch_size, -1).permute(0, 3, 1, 2)
    return tensor.reshape({"token": (1, 1, *tensor.shape), "table": (1, *tensor.shape)}.get(shape, tensor.shape))
