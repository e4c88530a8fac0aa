"""The table of formats. To add a format, write a module in this folder with the functions below, and add a line to `FORMATS`.

    matches(contents: Contents) -> bool             whether a path holds this format (only for formats that can be loaded)
    load(path, *, say, **options) -> Learner        the learner of a path, in eval mode (only for formats that can be loaded)
    writes(learner) -> bool                         whether a learner, or at least its encoder, can be exported
    export(learner, out) -> Path                    writes a file or a folder, and returns its path
    verify(learner, out) -> Verification               reloads the export with the library, and compares the outputs

A module may treat some learners in a special way: it may export an MAE with its decoder, or a fine-tuned model with its head. It
registers a function for their class with `functools.singledispatch`. For all other learners, only the encoder is exported. No code
outside of a format's own module depends on the class of a learner.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from unveil.blocks.patches import Size


class LoadOptions(TypedDict, total=False):
    """Facts about a model that some files do not record. None means unknown."""

    heads: int | None
    """Attention heads of the encoder."""
    decoder_heads: int | None
    """Attention heads of the decoder."""
    image_size: int | Size | None
    """Side of the images, or (height, width)."""
    target: Literal["normalised", "pixel"] | None
    """The target of the decoder."""
    architecture: str | None
    """The name of the model in timm, with or without that of its weights."""


@dataclass(frozen=True)
class Contents:
    """The content of a path, from which formats recognise their files."""

    path: Path
    kind: Literal["folder", "safetensors", "torch"]
    facts: Mapping[str, Any]
    """The JSON of `config.json` in a folder, or our JSON from the header of a .safetensors file; empty for other files."""


@dataclass(frozen=True)
class Format:
    """A line of the table."""

    module: str
    to: str
    """The name for `unveil export --to`. Several formats may have the same name."""
    out: str
    """Default name of the exported file or folder."""
    loads: bool = True
    """Whether `unveil.load` can load this format."""
    options: tuple[str, ...] = ()
    """Facts that its files do not record, which can be passed to `unveil.load`: see `LoadOptions`."""

    def open(self) -> Any:
        """Imports and returns the module. This is lazy so that loading our own runs does not wait for other libraries."""
        return importlib.import_module(self.module)


FILE_OPTIONS = ("heads", "decoder_heads", "image_size", "target", "architecture")
FORMATS = (
    Format("unveil.interop.model_files", to="safetensors", out="unveil.safetensors"),
    Format("unveil.interop.transformers_beit", to="transformers", out="transformers"),
    Format("unveil.interop.transformers_heads", to="transformers", out="transformers", loads=False),
    Format("unveil.interop.transformers_vit", to="transformers", out="transformers"),
    Format("unveil.interop.transformers_bert", to="transformers", out="transformers"),
    Format("unveil.interop.transformers_vit_mae", to="transformers", out="transformers"),
    Format("unveil.interop.timm_vit", to="timm", out="timm"),
    Format("unveil.interop.mae_release", to="mae", out="mae.pth", options=FILE_OPTIONS),
    Format("unveil.interop.onnx_graph", to="onnx", out="model.onnx", loads=False),
)
"""All formats. The first format that matches a path loads it. The first format of a name that can write a learner exports it."""
