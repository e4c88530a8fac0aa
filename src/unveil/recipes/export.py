"""Export: the weights of a run in another library's format, reloaded by that library and compared before they are kept."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from unveil.errors import UnveilError
from unveil.interop import mae_release, onnx_graph, timm_vit, transformers_beit, transformers_bert, transformers_vit_mae
from unveil.interop import model_files as native
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import fresh_name, tell
from unveil.interop.load import load
from unveil.interop.verify_export import max_difference
from unveil.learner import Learner, Task
from unveil.methods.beit import BEiT
from unveil.methods.mae import MAE
from unveil.models.bert import TextEncoder
from unveil.train.run_folder import Run

Format = Literal["timm", "transformers", "mae", "safetensors", "onnx"]
NAMES: dict[str, str] = {
    "timm": "timm",
    "transformers": "transformers",
    "mae": "mae.pth",
    "safetensors": "unveil.safetensors",
    "onnx": "model.onnx",
}
"""The format, and what its file or folder is called by default."""
LIMIT = 1e-4
"""The largest difference, as a share of the largest value, that an export may make."""


def export(run: str | Path | Run, *, to: Format, out: str | Path | None = None, say: Callable[[str], None] = tell) -> Path:
    """Writes a model in the format of another library, and proves that it still says the same.

    Args:
        run: A run folder, or anything else that `unveil.load` opens.
        to: "timm": the encoder, or a fine-tuned model with its head, for
            `timm.create_model("local-dir:<out>", pretrained=True)`.
            "transformers": the MAE for `ViTMAEForPreTraining.from_pretrained`, or, without decoder, for `ViTMAEModel`; a BEiT
            for `BeitForMaskedImageModeling`, without its tokenizer; BERT for `BertForMaskedLM`, or its encoder for `BertModel`.
            "mae": a checkpoint laid out as the public MAE release.
            "safetensors": one file with everything that unveil needs.
            "onnx": a graph from normalised images to tokens, or to class scores of a fine-tuned model.
        out: `<run>/export/<name>` by default. What is there already is not overwritten.
        say: Tells the user.

    Returns:
        The path that was written.

    Raises:
        UnveilError: When the path exists, the format cannot express the model, or the reloaded model disagrees.
    """
    if to not in NAMES:
        raise UnveilError(f"there is no format {to!r}: use one of {', '.join(NAMES)}")
    source = run.path if isinstance(run, Run) else Path(run)
    folder = source / "export" if source.is_dir() else source.parent / f"{source.stem}-export"
    target = Path(out) if out is not None else folder / NAMES[to]
    if target.exists() or target.is_symlink():
        raise UnveilError(f"{target} exists, and nothing is overwritten: choose another --out, or remove it")
    learner = load(source, say=say)
    facts = native.config_of(source) or {}
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(target)
    fresh.mkdir()
    try:
        written = write(learner, to, fresh / target.name, facts.get("classes"))
        difference, judge = max_difference(learner, to, written)
        if difference is not None and not difference <= LIMIT:  # NaN is no agreement either
            raise UnveilError(f"{judge} disagrees by {difference:.1e} with what was exported: nothing was kept")
        for path in sorted(fresh.iterdir(), key=lambda path: path == written):
            os.replace(path, target.parent / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    given = "texts" if isinstance(native.encoder_of(learner), TextEncoder) else "images"
    agreed = f"{judge} agrees on random {given}, largest difference {difference or 0.0:.1e} of the largest value"
    say(f"{target}: {agreed if difference is not None else f'not checked, as {judge}'}")
    return target


def write(learner: Learner, to: str, out: Path, classes: list[str] | None) -> Path:
    """Writes one format."""
    if to == "safetensors":
        return native.export(learner, out, classes=classes)
    if isinstance(native.encoder_of(learner), TextEncoder):
        if to != "transformers":
            raise UnveilError(f"{to} has no place for a model of texts: use --to transformers or safetensors")
        return transformers_bert.export(learner, out)
    if to == "timm":
        return timm_vit.export(learner, out, classes=classes)
    if to == "onnx":
        return onnx_graph.export(learner, out)
    if to == "transformers" and isinstance(learner, BEiT):
        return transformers_beit.export(learner, out)
    if not isinstance(learner, MAE | EncoderOnly | Task):
        learner = EncoderOnly(native.vit_of(learner))  # of another method the encoder goes
    return transformers_vit_mae.export(learner, out) if to == "transformers" else mae_release.export(learner, out)
