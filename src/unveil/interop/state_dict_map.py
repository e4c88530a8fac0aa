"""How the same weights are laid out in two libraries: names, and shapes that differ by a view.

A layout has a line for each tensor of ours: where it stands in the other file, and how it is shaped there. It is read in
both directions, so whatever can be loaded can be written back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.blocks.patches import PatchEmbed, Size
from unveil.errors import UnveilError
from unveil.interop.files import Tensors


class TensorName(NamedTuple):
    """Where one of our tensors stands in another library's file."""

    names: tuple[str, ...]
    """Its name there; three when query, key and value stand apart, an empty one for a part that is 0 and not written."""
    shape: Literal["same", "token", "table", "convolution"] = "same"
    """`token`: (D) here and (1, 1, D) there; `table`: (T, D), (1, T, D); `convolution`: (D, p q C), (D, C, p, q)."""


Layout = dict[str, TensorName]
Parts = Mapping[str, str | tuple[str, ...]]

AS_TIMM: Parts = {
    "norm1": "norm1",
    "attention.query_key_value": "attn.qkv",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
"""The parts of a block, as timm and after it the public MAE release call them."""


def affine(ours: str, theirs: str | tuple[str, ...]) -> Layout:
    """A weight and a bias."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    return {f"{ours}.{leaf}": TensorName(tuple(f"{name}.{leaf}" for name in names)) for leaf in ("weight", "bias")}


def stack(ours: str, theirs: str, depth: int, parts: Parts = AS_TIMM) -> Layout:
    """The blocks of a Transformer."""
    layout: Layout = {}
    for i in range(depth):
        for part, there in parts.items():
            names = (there,) if isinstance(there, str) else there
            layout |= affine(f"{ours}.{i}.{part}", tuple(f"{theirs}.{i}.{name}" for name in names))
    return layout


def timm_encoder(depth: int, *, ours: str = "", norm: bool = True) -> Layout:
    """An encoder as timm and the public MAE release lay it out; `ours` stands before our names."""
    layout: Layout = {
        f"{ours}class_token": TensorName(("cls_token",), "token"),
        f"{ours}positions": TensorName(("pos_embed",), "table"),
        f"{ours}embed.weight": TensorName(("patch_embed.proj.weight",), "convolution"),
        f"{ours}embed.bias": TensorName(("patch_embed.proj.bias",)),
    }
    layout |= stack(f"{ours}transformer.blocks", "blocks", depth)
    return layout | affine(f"{ours}transformer.norm", "norm") if norm else layout


def blocks_in(state: Mapping[str, Tensor], start: str) -> int:
    """How many blocks a file has: the different words after `start`, such as "blocks."."""
    return len({name[len(start) :].split(".")[0] for name in state if name.startswith(start)})


def fill(module: nn.Module, layout: Layout, state: Mapping[str, Tensor], source: str | Path) -> int:
    """Puts the tensors of a file into a module, and says how many of them there were.

    Raises:
        UnveilError: When one is missing, left over, or of another shape; names them.
    """
    wanted = {name for place in layout.values() for name in place.names if name}
    refuse_difference(wanted - state.keys(), state.keys() - wanted, len(wanted), source)
    own = module.state_dict()
    for name, place in layout.items():
        there = [state[part] if part else torch.zeros_like(state[place.names[0]]) for part in place.names]
        try:
            tensor = to_ours(torch.cat(there) if len(there) > 1 else there[0], place.shape)
        except RuntimeError:
            tensor = there[0]
        if tensor.shape != own[name].shape:
            shapes = ", ".join(f"{part} {tuple(x.shape)}" for part, x in zip(place.names, there, strict=True) if part)
            wished = tuple(own[name].shape)
            raise UnveilError(f"{source}: {shapes} does not fit the rest, which asks for {wished} as {name}")
        own[name] = tensor.to(own[name].dtype)
    module.load_state_dict(own)
    return len(wanted)


def refuse_difference(missing: set[str], left: set[str], wanted: int, source: str | Path) -> None:
    """Raises `UnveilError` where names are missing or left over."""
    if missing or left:
        parts = [f"{len(x)} {what} ({some(x)})" for x, what in ((missing, "missing"), (left, "left over")) if x]
        matched = f"{wanted - len(missing)} of {wanted} tensors matched"
        raise UnveilError(f"{source} is of another model: {matched}, {' and '.join(parts)}")


def some(names: set[str], most: int = 12) -> str:
    """Names in order, not too many of them."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def lay_out(module: nn.Module, layout: Layout, patch_size: Size, leave: str | None = None) -> Tensors:
    """The tensors of a module under another library's names and in its shapes.

    All of them must have a place there, but for those whose names begin with `leave`, which are left behind.
    """
    own = {name: value.detach() for name, value in module.state_dict().items() if leave is None or not name.startswith(leave)}
    homeless = own.keys() ^ layout.keys()
    if homeless:
        raise UnveilError(f"this format has no place for {some(set(homeless))}: export as safetensors instead")
    result: Tensors = {}
    for name, place in layout.items():
        tensor = to_theirs(own[name], place.shape, patch_size)
        for part, piece in zip(place.names, tensor.chunk(len(place.names)), strict=True):
            if part:
                result[part] = piece.clone(memory_format=torch.contiguous_format).cpu()
    return result


def to_ours(tensor: Tensor, shape: str) -> Tensor:
    """A tensor of theirs in our shape."""
    if shape == "convolution" and tensor.ndim == 4:
        return PatchEmbed.from_convolution(tensor)
    return tensor.reshape(tensor.shape[{"token": 2, "table": 1}[shape] :]) if shape in ("token", "table") else tensor


def to_theirs(tensor: Tensor, shape: str, patch_size: Size) -> Tensor:
    """A tensor of ours in their shape."""
    if shape == "convolution":
        return tensor.reshape(len(tensor), *patch_size, -1).permute(0, 3, 1, 2)
    return tensor.reshape({"token": (1, 1, *tensor.shape), "table": (1, *tensor.shape)}.get(shape, tensor.shape))
