"""Opening whatever holds an encoder: which format it is follows from what is inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from unveil.blocks.patches import Size
from unveil.errors import UnveilError
from unveil.interop import mae_release, timm_vit, transformers_beit, transformers_bert, transformers_vit_mae
from unveil.interop import model_files as native
from unveil.interop.files import is_safetensors, is_torch, one_line, read_note, read_object, tell
from unveil.learner import Learner

TRANSFORMERS: tuple[Literal["vit_mae", "beit", "bert"], ...] = ("vit_mae", "beit", "bert")
"""What transformers calls the models that are read."""
EXPECTED = (
    "expected a run folder, a file that unveil exported, a checkpoint laid out as the public MAE release "
    "(.pth or .safetensors), a folder of transformers' ViTMAE, BEiT or BERT, or a folder of timm's VisionTransformer"
)


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | Size | None = None,
    target: Literal["normalised", "pixel"] | None = None,
    say: Callable[[str], None] = tell,
) -> Learner:
    """The learner that a path holds, in eval mode, on the CPU.

    Args:
        path: A run folder, also of a run that is not finished; an exported .safetensors file; a checkpoint laid out as the
            public MAE release, with or without its decoder; a folder of transformers' ViTMAE, BEiT or BERT; a folder exported
            for timm.
        heads: Of the encoder. For a checkpoint of the MAE release, which does not tell: by its width, if it is a usual one.
        decoder_heads: Of the decoder, likewise.
        image_size: Side, or height and width, likewise: a square grid of patches is assumed.
        target: What the decoder predicts, likewise: normalised pixels are assumed.
        say: Tells the user how many tensors were matched.

    Raises:
        UnveilError: When the path holds something else, or a tensor is missing or left over.
    """
    path = Path(path)
    if not path.exists():
        raise UnveilError(f"there is no {path}: {EXPECTED}")
    kind = kind_of(path)
    given = {"heads": heads, "decoder_heads": decoder_heads, "image_size": image_size, "target": target}
    useless = [name for name, value in given.items() if value is not None]
    if useless and kind != "mae":
        raise UnveilError(f"{path} tells its own {' and '.join(useless)}: leave that out")
    try:
        with torch.random.fork_rng(devices=[]):  # building draws weights, only to replace them
            if kind == "unveil":
                return native.load(path, say=say)
            if kind == "bert":
                return transformers_bert.load(path, say=say)
            if kind == "vit_mae":
                return transformers_vit_mae.load(path, say=say)
            if kind == "beit":
                return transformers_beit.load(path, say=say)
            if kind == "timm":
                return timm_vit.load(path, say=say)
            return mae_release.load(path, heads=heads, decoder_heads=decoder_heads, image_size=image_size, target=target, say=say)
    except UnveilError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnveilError(f"{path} has values that describe no model: {one_line(error)}") from error


def kind_of(path: Path) -> Literal["unveil", "vit_mae", "beit", "bert", "timm", "mae"]:
    """The format of a path that exists. Raises `UnveilError` for another: says what was found and what is expected."""
    if not path.is_dir():
        if is_safetensors(path):
            return "unveil" if read_note(path, native.NOTE) is not None else "mae"
        if is_torch(path):
            return "mae"
        raise UnveilError(f"{path} is a file of another kind: {EXPECTED}")
    if not (path / "config.json").is_file():
        found = "a run that has not begun to train" if (path / "run.json").is_file() else "a folder without config.json"
        raise UnveilError(f"{path} is {found}: {EXPECTED}")
    facts = read_object(path / "config.json")
    if facts.get("format") == native.NOTE:
        return "unveil"
    for kind in TRANSFORMERS:
        if facts.get("model_type") == kind:
            return kind
    if "pretrained_cfg" in facts or "model_args" in facts:
        return "timm"
    told = facts.get("model_type") or facts.get("architecture") or facts.get("format") or "of no known format"
    raise UnveilError(f"{path} has a config.json that is {told}: {EXPECTED}")
