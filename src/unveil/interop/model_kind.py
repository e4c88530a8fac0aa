"""What a model takes in, told by its files alone: neither torch nor the weights are needed."""

import json
import struct
from pathlib import Path
from typing import Literal

Kind = Literal["images", "texts"]


def model_kind(path: str | Path) -> Kind:
    """Whether a run folder, an exported file or a folder of transformers is a model of texts; what is neither is of images."""
    path = Path(path)
    try:
        if path.is_dir():
            facts = json.loads((path / "config.json").read_text())
        else:
            with path.open("rb") as file:
                header = json.loads(file.read(min(struct.unpack("<Q", file.read(8))[0], 2**26)))
            facts = json.loads(header["__metadata__"]["unveil"])
        return "texts" if facts.get("reads") == "texts" or facts.get("model_type") == "bert" else "images"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return "images"
