"""`unveil export`: writes a model in the format of another library, and keeps it only if that library gives the same outputs."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from unveil import plugins
from unveil.atomic_files import ABANDONED_SECONDS, fresh_name, sweep, telling, write_text
from unveil.errors import UnveilError
from unveil.interop.encoder_only import has_vit, vit_of
from unveil.interop.formats import FORMATS, Format
from unveil.interop.heads import joined
from unveil.interop.hub import Repository, repository_of
from unveil.interop.load import load
from unveil.interop.verify_export import TOLERANCE, Verification
from unveil.learner import Learner
from unveil.paths import is_timm_name, refuse_existing
from unveil.plain_text import count_of
from unveil.recipes.options import command
from unveil.reports.model_card import CardInputs, ancestors, model_card
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
    licence: str | None = None,
    push: str | None = None,
    public: bool = False,
    trust: str | Path | None = None,
    say: Callable[[str], None] = print_to_stderr,
) -> Path:
    """Writes a model in the format of another library, and verifies that its outputs stay the same.

    If a format cannot represent a method or task (for example a plug-in), only the encoder is exported. A model card says what the
    model is, what it was trained on, how good it is and what was not measured: `README.md` in an exported folder, `<name>.md`
    beside an exported file.

    Args:
        run: A run folder, or anything else that `unveil.load` accepts.
        to: "timm": the encoder, with its head if there is one, for `timm.create_model("local-dir:<out>", pretrained=True)`.
            "transformers": a model with a head for `AutoModelForImageClassification.from_pretrained`; an MAE for
            `ViTMAEForPreTraining`, or an encoder for `ViTMAEModel`; a BEiT, without its visual tokenizer, for
            `BeitForMaskedImageModeling`; a BERT for `BertForMaskedLM`, or its encoder for `BertModel`.
            "mae": a checkpoint in the layout of the public MAE release, and its labels and preprocessing in `<out>.json` beside it.
            "safetensors": one file with everything that unveil needs.
            "onnx": a graph from normalised images to features, and to the outputs of a head or else tokens. How images are
            prepared, and the names of the outputs, are in its metadata, and in `config.json` beside it.
            A head that a format has no place for is left out, and `say` is told which formats keep it.
        out: The path to write; `<run>/export/<name>` by default. An existing path is not overwritten.
        licence: The licence of the weights for the model card, as the Hugging Face Hub spells it, such as "apache-2.0".
        push: "hf://user/name": also uploads the export, with its model card, to this repository of the Hugging Face Hub, which must
            not hold files yet. If it does not exist, it is created. The access token is that of `hf auth login`, or `HF_TOKEN`.
        public: Whether a repository that is created is visible to everybody. By default, only its owner sees it.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        say: Receives log lines.

    Returns:
        The path that was written.

    Raises:
        UnveilError: If the path exists, the format cannot represent the model, the reloaded model has different outputs, or the Hub
            refuses the upload; the export stays on this machine then.
    """
    if to not in DEFAULT_NAMES:
        raise UnveilError(f"there is no format {to!r}: use one of {', '.join(DEFAULT_NAMES)}")
    refuse_licence(licence)
    source = run.path if isinstance(run, Run) else Path(run)
    stem = source.name.replace(":", "-") if is_timm_name(source) else source.stem
    folder = source / "export" if source.is_dir() else source.parent / f"{stem}-export"
    target = Path(out) if out is not None else folder / DEFAULT_NAMES[to]
    refuse_existing(target)
    repository = Repository(repository_of(push)) if push is not None else None  # before the work
    plugins.trust(trust)
    learner = load(source, say=say)
    module = format_for(learner, to).open()
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name, ABANDONED_SECONDS)
    fresh = fresh_name(target)
    try:
        with telling(target):
            fresh.mkdir()
            written: Path = module.export(learner, fresh / target.name)
        found: Verification = module.verify(learner, written)
        checked = sentence_of(found)
        inputs = CardInputs(to, licence, joined(checked, found.note), repository.name if repository else None)
        with telling(target):
            write_text(card_path(written), card_of(learner, source, written, inputs))
        names = sorted(path.name for path in fresh.iterdir())
        for name in names:
            refuse_existing(target.parent / name)  # such as the config.json beside a graph
        with telling(target):
            for name in sorted(names, key=lambda name: name == written.name):
                os.replace(fresh / name, target.parent / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if found.note:
        say(f"{target}: {found.note}")
    say(f"{target}: {checked}")
    if repository:
        upload(repository, [target.parent / name for name in names], target, private=not public, say=say)
    return target


def sentence_of(found: Verification) -> str:
    """The result of a comparison. Raises `UnveilError` if the outputs differ."""
    if found.difference is None:
        return f"not verified, as {found.library}"
    if not found.difference <= TOLERANCE:  # this form also rejects NaN
        raise UnveilError(f"{found.library} disagrees by {found.difference:.1e} on the {found.compared}: nothing was kept")
    return f"{found.library} agrees on the {found.compared}, largest difference {found.difference:.1e} of the largest value"


def refuse_licence(licence: str | None) -> None:
    """Raises `UnveilError` for a licence that is not spelled as an identifier."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UnveilError(f"licence is {licence!r}: expected an identifier such as apache-2.0, mit, cc-by-nc-4.0 or other")


def card_path(written: Path) -> Path:
    """Where the model card of an exported file or folder is."""
    return written / "README.md" if written.is_dir() else written.with_name(f"{written.stem}.md")


def card_of(learner: Learner, source: Path, written: Path, inputs: CardInputs) -> str:
    """The model card of an export."""
    run = Run(source) if (source / "run.json").is_file() else None
    runs = [] if run is None else [run, *ancestors(run)]
    commands = [line for each in reversed(runs) if (line := command_of(each))]
    return model_card(learner, runs, written, source=source.name, inputs=inputs, commands=commands)


def command_of(run: Run) -> str:
    """The command that makes a run again; what the user typed for other runs; "" if that was no command of unveil."""
    try:
        return command(run)
    except UnveilError:  # such as a probe, which is not trained
        typed = str(run.facts.get("command") or "")
        return typed if typed.startswith("unveil ") else ""


def upload(repository: Repository, written: Sequence[Path], target: Path, *, private: bool, say: Callable[[str], None]) -> None:
    """Uploads an export, and its model card as `README.md`.

    Raises:
        UnveilError: If the Hub refuses. The message names the export, which stays on this machine.
    """
    files = {str(path.relative_to(target)): path for path in sorted(target.rglob("*")) if path.is_file()} if target.is_dir() else {}
    card = card_path(target)
    files = files or {"README.md" if path == card else path.name: path for path in written}
    try:
        address = repository.upload(files, private=private, message="Export from unveil")
    except UnveilError as error:
        raise UnveilError(f"{error}. The export is complete: {target}") from None
    say(f"uploaded {count_of(len(files), 'file')}: {address}")


def format_for(learner: Learner, to: str) -> Format:
    """The format named `to` that can represent a learner, or at least its encoder. Raises `UnveilError` if there is none."""
    found = next((each for each in FORMATS if each.to == to and each.open().writes(learner)), None)
    if found is None:
        possible = dict.fromkeys(each.to for each in FORMATS if each.open().writes(learner))
        grid = " with windows or decomposed relative positions" if has_vit(learner) and vit_of(learner).config.on_grid else ""
        raise UnveilError(
            f"{to} cannot represent a {type(learner).__name__} of {learner.modality}{grid}: use --to {' or '.join(possible)}"
        )
    return found
