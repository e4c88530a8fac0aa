"""Where the visual tokens of BEiT, and of MAE's table 1d, come from: k-means of patches, or a dVAE that was trained before."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unveil.blocks.visual_tokenizer import KMeans, MissingTokenizer, VisualTokenizer
from unveil.errors import UnveilError
from unveil.models.dvae import DiscreteVAE, FrozenDVAE
from unveil.models.vit import ViTConfig


def visual_tokenizer_from(source: str, codebook: int, vit: ViTConfig) -> tuple[VisualTokenizer, str]:
    """A tokenizer, and what to write down in place of `source` so that it is built again without the folder.

    Args:
        source: "kmeans"; "absent", for weights that came without one; the run folder of a dVAE; or what this function wrote down.
        codebook: How many tokens there are, where `source` is no dVAE.
        vit: What the encoder takes in, which the tokenizer sees too.

    Raises:
        UnveilError: When the folder holds no trained dVAE, or one of other images.
    """
    if source == "kmeans":
        return KMeans(vit.patch_size, vit.channels, codebook), source
    if source == "absent":
        return MissingTokenizer(codebook), source
    dvae = built(json.loads(source)) if source.startswith("{") else read(Path(source))
    for name in ("channels", "mean", "std"):
        found, wanted = getattr(dvae.config, name), getattr(vit, name)
        if found != wanted:
            raise UnveilError(f"the tokenizer {source} is for images with {name} {found}, these have {wanted}: train one on them")
    return FrozenDVAE(dvae, vit.grid), json.dumps({"codebook": dvae.size, "encoder": asdict(dvae.config)})


def built(facts: dict[str, Any]) -> DiscreteVAE:
    """An untrained dVAE of the shape that was written down."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["encoder"].items()}
    return DiscreteVAE(ViTConfig(**values), facts["codebook"])


def read(folder: Path) -> DiscreteVAE:
    """The trained dVAE of a run folder. Raises `UnveilError` where there is none."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UnveilError(f"the tokenizer {folder} is no finished run: use kmeans, or a run of `unveil pretrain --method dvae`")
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get("unveil", "{}"))
            if note.get("method") != "dvae":
                raise UnveilError(f"the tokenizer {folder} is a run of {note.get('method', 'another kind')}, expected one of dvae")
            dvae = built({"encoder": note["encoder"], "codebook": note["options"]["codebook"]})
            names = [name for name in file.keys() if name.startswith("encoder.")]  # noqa: SIM118
            dvae.load_state_dict({name.removeprefix("encoder."): file.get_tensor(name) for name in names})
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnveilError(f"{path} is damaged, or of another version: {str(error).splitlines()[0]}") from None
    return dvae
