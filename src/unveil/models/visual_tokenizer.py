"""The visual tokenizers of BEiT and of MAE's table 1d: k-means of patches, or a trained dVAE."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unveil.blocks.visual_tokenizer import KMeansTokenizer, MissingTokenizer, VisualTokenizer
from unveil.errors import UnveilError
from unveil.json_files import parse_json
from unveil.models.build_check import check_build, shapes_of
from unveil.models.dvae import DiscreteVAE, DVAETokenizer
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import read_weights, refuse_non_finite


def visual_tokenizer_from(source: str, codebook_size: int, vit: ViTConfig) -> tuple[VisualTokenizer, str]:
    """Returns a visual tokenizer, and a record to save in place of `source`, so that it can be rebuilt without the run folder.

    Args:
        source: "kmeans"; "absent" for weights that came without a tokenizer; the run folder of a dVAE; or such a record.
        codebook_size: The number of tokens, unless `source` is a dVAE.
        vit: The config of the encoder. The tokenizer gets the same images.

    Raises:
        UnveilError: If the folder has no trained dVAE, or one for other images.
    """
    if source == "kmeans":
        return KMeansTokenizer(vit.patch_size, vit.channels, codebook_size), source
    if source == "absent":
        return MissingTokenizer(codebook_size), source
    if source.startswith("{"):
        dvae = dvae_from_record(parse_json(source, "the recorded visual tokenizer"))
    else:
        dvae = load_dvae(Path(source))
    for name, found, expected in (
        ("channels", dvae.config.channels, vit.channels),
        ("mean", dvae.config.mean, vit.mean),
        ("std", dvae.config.std, vit.std),
    ):
        if found != expected:
            raise UnveilError(
                f"the visual tokenizer {source} is for images with {name} {found}, but these have {expected}: train one on them"
            )
    return DVAETokenizer(dvae, vit.grid), json.dumps({"codebook": dvae.size, "encoder": asdict(dvae.config)})


def dvae_from_record(record: dict[str, Any]) -> DiscreteVAE:
    """An untrained dVAE of the recorded shape."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record["encoder"].items()}
    if "recompute" in values:  # the name of the option in older records
        values["grad_checkpointing"] = values.pop("recompute")
    return DiscreteVAE(ViTConfig(**values), record["codebook"])


def load_dvae(folder: Path) -> DiscreteVAE:
    """The trained dVAE of a run folder. Raises `UnveilError` if there is none."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UnveilError(f"{folder} is not the folder of a finished run: use kmeans, or a run of `unveil pretrain --method dvae`")
    try:
        tensors, metadata = read_weights(path)
        facts = parse_json(metadata.get("unveil", "{}"), f"the header of {path}")
        if facts.get("method") != "dvae":
            raise UnveilError(f"{folder} is a run of {facts.get('method', 'another kind')}, expected a run of dvae")
        size = facts["options"].get("codebook_size", facts["options"].get("codebook"))  # the latter in older files
        record = {"encoder": facts["encoder"], "codebook": size}
        own = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
        refuse_non_finite(own, path)
        dvae = check_build(lambda: dvae_from_record(record), shapes_of(own), path)
        dvae.load_state_dict(own)
    except UnveilError:
        raise
    except (ArithmeticError, AttributeError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnveilError(f"{path} is damaged, or was written by another version: {str(error).splitlines()[0]}") from None
    return dvae
