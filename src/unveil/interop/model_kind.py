"""The modality of a saved model, read from its files without torch and without its weights."""

import struct
from pathlib import Path
from typing import Literal

from unveil.json_files import parse_json, read_json

LONGEST_HEADER = 2**26
"""Maximum number of bytes of a .safetensors header to read."""


def model_kind(path: str | Path) -> Literal["images", "text"]:
    """Whether a run folder, an exported file or a transformers folder holds an image model or a text model.

    Returns "images" for other paths.
    """
    path = Path(path)
    try:
        if path.is_dir():
            facts = read_json(path / "config.json")
        elif not path.is_file():  # opening a FIFO would wait for ever
            return "images"
        else:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = parse_json(file.read(min(length, LONGEST_HEADER)), str(path))
            facts = parse_json(header["__metadata__"]["unveil"], str(path))
        modality = facts.get("modality") or facts.get("reads")  # "reads" in files of format version 1, with "texts" for text
        return "text" if modality in ("text", "texts") or facts.get("model_type") == "bert" else "images"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return "images"
