"""Loads models. The format is recognised from the content of the file or folder."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import torch

from unveil import plugins
from unveil.errors import UnveilError
from unveil.interop.encoder_only import has_encoder
from unveil.interop.files import is_safetensors, is_torch, read_header
from unveil.interop.formats import FORMATS, Contents, LoadOptions
from unveil.json_files import read_json
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import one_line
from unveil.options import refuse_unknown
from unveil.paths import MODEL_FORMS, is_timm_name, refuse_missing_model
from unveil.train.terminal import print_to_stderr

EXPECTED = f"expected {MODEL_FORMS}"


def load(
    path: str | os.PathLike[str],
    *,
    trust: str | Path | None = None,
    say: Callable[[str], None] = print_to_stderr,
    **options: Unpack[LoadOptions],
) -> Learner:
    """Loads a learner in eval mode, on the CPU.

    Args:
        path: A run folder, also of an unfinished run; an exported .safetensors file; a file of tensors with the names of the public
            MAE release or of timm, with or without decoder or head; a folder of timm; a transformers folder of ViT, ViTMAE, DINOv2,
            BEiT or BERT; or a name in timm, such as "timm:vit_base_patch16_224.mae", which is downloaded on first use.
        trust: A Python file or module that may be imported, for a method or task from outside of unveil: "file.py" or
            "package.module". Importing it runs its code.
        say: Receives log lines, such as how many tensors matched.
        options: Facts that files of tensors do not record. `heads`, `decoder_heads`: attention heads of encoder and
            decoder; by default the standard number for the width. `image_size`: side, or height and width; by default that of a
            square grid of patches. `target`: the target of the decoder, "normalised" (the default) or "pixel".
            `architecture`: the name of the model in timm, from which the rest follows.

    Raises:
        UnveilError: If the path holds something else, a tensor is missing or unexpected, or loading needs code that is not trusted.
    """
    path, given = Path(path), {name: value for name, value in options.items() if value is not None}
    refuse_unknown(given, LoadOptions.__annotations__)
    plugins.trust(trust)
    if is_timm_name(path):
        return load_by_name(str(path), given, say)
    refuse_missing_model(str(path))
    contents = contents_of(path)
    for each in FORMATS:
        if not each.loads or not each.open().matches(contents):
            continue
        refused = [name for name in given if name not in each.options]
        if refused:
            raise UnveilError(
                f"{path} records its own {' and '.join(refused)}: do not pass {'it' if len(refused) == 1 else 'them'}"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # a new model draws random weights
                learner: Learner = each.open().load(path, say=say, **given)
            refuse_wrong_normalisation(learner)
            return learner
        except UnveilError as error:
            if str(path) in str(error):
                raise
            raise UnveilError(f"{path}: {error}") from None
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise UnveilError(f"{path} has values that do not describe a model: {one_line(error)}") from error
    raise UnveilError(f"{path} {description_of(contents)}: {EXPECTED}")


def load_by_name(name: str, given: Mapping[str, object], say: Callable[[str], None]) -> Learner:
    """Public weights by their name in timm."""
    from unveil.interop.timm_vit import load_name  # imports timm, which takes seconds

    if given:
        raise UnveilError(f"{name} records its own {' and '.join(given)}: do not pass {'it' if len(given) == 1 else 'them'}")
    with torch.random.fork_rng(devices=[]):
        return load_name(name, say=say)


def refuse_wrong_normalisation(learner: Learner) -> None:
    """Raises `UnveilError` if an image model has not one mean and one standard deviation for each channel."""
    config = learner.encoder.config if has_encoder(learner) else None
    if isinstance(config, ViTConfig) and not len(config.mean) == len(config.std) == config.channels:
        raise UnveilError(
            f"the config has {config.channels} channels, but {len(config.mean)} means and {len(config.std)} standard deviations"
        )


def contents_of(path: Path) -> Contents:
    """Reads the contents of an existing path. Raises `UnveilError` if it cannot be in any of the formats."""
    if not path.is_dir():
        if is_safetensors(path):
            return Contents(path, "safetensors", read_header(path, "unveil") or {})
        if is_torch(path):
            return Contents(path, "torch", {})
        raise UnveilError(f"{path} is a file of another kind: {EXPECTED}")
    if not (path / "config.json").is_file():
        found = "a run that has not started to train" if (path / "run.json").is_file() else "a folder without config.json"
        raise UnveilError(f"{path} is {found}: {EXPECTED}")
    return Contents(path, "folder", read_json(path / "config.json"))


def description_of(contents: Contents) -> str:
    """A description of contents that no format matches, for error messages."""
    facts = contents.facts
    if facts.get("format") == "unveil translator":
        return "is a translator, which is used with `unveil translate`"
    name = facts.get("model_type") or facts.get("architecture") or facts.get("format")
    return f"has a config.json of {name}" if name else "has a config.json of no known format"
