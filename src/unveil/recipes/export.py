"""`unveil export`: writes a model in the format of another library, and keeps it only if that library gives the same outputs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from unveil import plugins
from unveil.atomic_files import ABANDONED_SECONDS, fresh_name, sweep, telling
from unveil.errors import UnveilError
from unveil.interop.formats import FORMATS, Format
from unveil.interop.load import load
from unveil.interop.verify_export import TOLERANCE
from unveil.learner import Learner
from unveil.paths import is_timm_name, refuse_existing
from unveil.train.run_folder import Run
from unveil.train.terminal import print_to_stderr

FormatName = Literal["timm", "transformers", "mae", "safetensors", "onnx"]
DEFAULT_NAMES: dict[str, str] = {each.to: each.out for each in FORMATS}
"""The default name of the exported file or folder, by format."""


def export(
    run: str | os.PathLike[str],
    *,
    to: FormatName,
    out: str | Path | None = None,
    trust: str | Path | None = None,
    say: Callable[[str], None] = print_to_stderr,
) -> Path:
    """Writes a model in the format of another library, and verifies that its outputs stay the same.

    If a format cannot represent a method or task (for example a plug-in), only the encoder is exported.

    Args:
        run: A run folder, or anything else that `unveil.load` accepts.
        to: "timm": the encoder, or a fine-tuned model with its head, for `timm.create_model("local-dir:<out>", pretrained=True)`.
            "transformers": an MAE for `ViTMAEForPreTraining.from_pretrained`, or an encoder for `ViTMAEModel`; a BEiT, without its
            visual tokenizer, for `BeitForMaskedImageModeling`; a BERT for `BertForMaskedLM`, or its encoder for `BertModel`.
            "mae": a checkpoint in the layout of the public MAE release.
            "safetensors": one file with everything that unveil needs.
            "onnx": a graph from normalised images to features, and to tokens or the class scores of a classifier. How images are
            prepared and the names of the classes are in its metadata, and in `config.json` beside it.
        out: The path to write; `<run>/export/<name>` by default. An existing path is not overwritten.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        say: Receives log lines.

    Returns:
        The path that was written.

    Raises:
        UnveilError: If the path exists, the format cannot represent the model, or the reloaded model has different outputs.
    """
    if to not in DEFAULT_NAMES:
        raise UnveilError(f"there is no format {to!r}: use one of {', '.join(DEFAULT_NAMES)}")
    source = run.path if isinstance(run, Run) else Path(run)
    stem = source.name.replace(":", "-") if is_timm_name(source) else source.stem
    folder = source / "export" if source.is_dir() else source.parent / f"{stem}-export"
    target = Path(out) if out is not None else folder / DEFAULT_NAMES[to]
    refuse_existing(target)
    plugins.trust(trust)
    learner = load(source, say=say)
    module = format_for(learner, to).open()
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name, ABANDONED_SECONDS)
    fresh = fresh_name(target)
    try:
        with telling(target):
            fresh.mkdir()
            written = module.export(learner, fresh / target.name)
        difference, library, compared, note = module.verify(learner, written)
        if difference is not None and not difference <= TOLERANCE:  # this form also rejects NaN
            raise UnveilError(f"{library} disagrees by {difference:.1e} on the {compared}: nothing was kept")
        for path in fresh.iterdir():
            refuse_existing(target.parent / path.name)  # such as the config.json beside a graph
        with telling(target):
            for path in sorted(fresh.iterdir(), key=lambda path: path == written):
                os.replace(path, target.parent / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if note:
        say(f"{target}: {note}")
    if difference is None:
        say(f"{target}: not verified, as {library}")
    else:
        say(f"{target}: {library} agrees on the {compared}, largest difference {difference:.1e} of the largest value")
    return target


def format_for(learner: Learner, to: str) -> Format:
    """The format named `to` that can represent a learner, or at least its encoder. Raises `UnveilError` if there is none."""
    found = next((each for each in FORMATS if each.to == to and each.open().writes(learner)), None)
    if found is None:
        possible = dict.fromkeys(each.to for each in FORMATS if each.open().writes(learner))
        raise UnveilError(
            f"{to} cannot represent a {type(learner).__name__} of {learner.modality}: use --to {' or '.join(possible)}"
        )
    return found
