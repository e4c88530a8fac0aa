"""The names of tensors and of sizes in two versions of transformers.

Version 5 renamed the modules, but still writes most tensors with the names of version 4. We read both, and write the names of
version 4, which every version can load.
"""

import re
from collections.abc import Mapping
from typing import Any

from unveil.blocks.patches import Size

ATTENTION = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
RENAMED_IN_VERSION_5 = (
    (r"^(vit\.|beit\.)?layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.(\d+)\.relative_position_bias\.", r".\1.attention.attention.relative_position_bias."),
    (r"^(beit\.)?shared_position_bias\.", r"\1encoder.relative_position_bias."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    *ATTENTION,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
"""Patterns of names in version 5, and their replacements in version 4."""


def version4_names(state: Mapping[str, Any], kind: str = "vit") -> dict[str, Any]:
    """Renames tensors to the names of transformers 4; `kind` is the `model_type`, as DINOv2 had some of the new names before."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in ATTENTION if kind.startswith("dinov2") else RENAMED_IN_VERSION_5:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def as_size(side: int | list[int]) -> Size:
    """Converts a side, or [height, width], to (height, width)."""
    return (side, side) if isinstance(side, int) else (side[0], side[1])
