"""Our own format: tensors as safetensors, and in JSON all that is needed to build the same learner around them.

A run folder holds `model.safetensors` (the whole learner), `encoder.safetensors`, and `config.json`. The same JSON stands in
the header of both files, so that each can also be taken away alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.configs import configured
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import Tensors, is_safetensors, read_note, read_object, read_tensors, tell, write_tensors
from unveil.interop.state_dict_map import refuse_difference
from unveil.learner import Learner, Method
from unveil.methods import METHODS, method_class
from unveil.models.bert import TextConfig, TextEncoder
from unveil.models.vit import ViT, ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.text_classification import Classify, ClassifyConfig
from unveil.train.checkpoint import Checkpoints, write_whole

NOTE = "unveil"
Encoder = ViT | TextEncoder
READS: dict[str, tuple[type, type[ViT] | type[TextEncoder]]] = {"images": (ViTConfig, ViT), "texts": (TextConfig, TextEncoder)}
"""What an encoder takes in, its config, and its class."""


def describe(learner: Learner, *, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """What `rebuild` needs, as JSON values: the method or the task, the encoder, and every knob of both.

    Args:
        learner: A method, a `Finetune`, a `Classify`, or an `EncoderOnly`.
        classes: The names of the classes of a `Finetune` or `Classify`, in order; their numbers by default.
    """
    try:
        release = version("unveil")
    except PackageNotFoundError:
        release = "unknown"
    encoder: Any = getattr(learner, "encoder", None)
    if not hasattr(encoder, "config"):
        encoder_of(learner)  # says what is wrong
    kind = next(kind for kind, (config_class, _) in READS.items() if isinstance(encoder.config, config_class))
    facts: dict[str, Any] = {"format": NOTE, "version": release, "reads": kind, "encoder": asdict(encoder.config)}
    if isinstance(learner, Finetune | Classify):
        count = learner.head.out_features
        names = list(classes) if classes is not None else [str(i) for i in range(count)]
        if len(names) != count:
            raise UnveilError(f"the model tells {count} classes apart, and {len(names)} names were given")
        facts |= {"task": "finetune", "options": asdict(learner.config), "classes": names}
        if isinstance(learner, Finetune):
            facts["augment"] = asdict(learner.augmentation.config)
    elif isinstance(learner, Method):
        place = f"{type(learner).__module__}:{type(learner).__qualname__}"
        name = next((name for name, known in METHODS.items() if known == place), None)
        if name is None:
            raise UnveilError(f"{place} is in no line of unveil.methods.METHODS, so it could not be loaded again")
        augmentation = getattr(learner, "augmentation", None)
        augment = AugmentConfig() if augmentation is None else augmentation.config
        facts |= {"method": name, "options": asdict(learner.config), "augment": asdict(augment)}
        if learner.classes:
            facts["classes"] = list(learner.classes)
    elif not isinstance(learner, EncoderOnly):
        raise UnveilError(f"a {type(learner).__name__} cannot be saved in this format: save a method, a Finetune, or an encoder")
    if isinstance(learner, EncoderOnly) and isinstance(encoder, ViT) and not isinstance(encoder.transformer.norm, nn.LayerNorm):
        facts["norm"] = False  # fine-tuned: its norm is after the mean
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def rebuild(config: Mapping[str, Any], source: str | Path = "config.json") -> Learner:
    """An untrained learner from what `describe` wrote.

    Raises:
        UnveilError: When it is not of this format, or of a version that knows other options.
    """
    if config.get("format") != NOTE:
        found = config.get("format")
        raise UnveilError(f'{source} is of another format: it says {found!r}, expected "format": "{NOTE}"')
    reads = config.get("reads", "images")  # the first versions knew no texts
    if reads not in READS:
        raise UnveilError(f"{source} is a model of {reads!r}, which this version does not know: expected {' or '.join(READS)}")
    config_class, encoder_class = READS[reads]
    shape: Any = configured(config_class, config.get("encoder"), f"the encoder of {source}")
    learner: Learner
    if config.get("task", "finetune") != "finetune":
        raise UnveilError(f"{source} is of the task {config['task']!r}, which has no model to load: expected finetune")
    if "method" in config or "task" in config:
        kind = method_class(config["method"]) if "method" in config else None
        task = ClassifyConfig if reads == "texts" else FinetuneConfig
        options: Any = configured(kind.Config if kind else task, config.get("options"), f"the options of {source}")
        classes, augment = config.get("classes", ()), None
        if reads == "images":
            augment = configured(AugmentConfig, config.get("augment"), f"the augmentation of {source}")
        if kind:
            method = kind.build(shape, options, augment)
            method.set_classes(classes)
            learner = method
        elif augment:
            learner = Finetune(ViT(shape), len(classes), options, augment)
        else:
            learner = Classify(TextEncoder(shape), len(classes), options)
    else:
        learner = EncoderOnly(encoder_class(shape), str(source))
        if not config.get("norm", True):
            learner.encoder.transformer.norm = nn.Identity()
    return learner.eval()


def config_of(path: str | Path) -> dict[str, Any] | None:
    """What `describe` wrote into a run folder or an exported file; None where it is of another format."""
    path = Path(path)
    if path.is_dir():
        found = read_object(path / "config.json") if (path / "config.json").is_file() else {}
    else:
        found = (read_note(path, NOTE) if path.is_file() and is_safetensors(path) else None) or {}
    return found if found.get("format") == NOTE else None


def encoder_of(learner: Learner) -> Encoder:
    """The encoder of a learner. Raises `UnveilError` where it has none."""
    encoder = getattr(learner, "encoder", None)
    if not isinstance(encoder, ViT | TextEncoder):
        raise UnveilError(f"a {type(learner).__name__} has no Transformer to use further: give the run of another method")
    return encoder


def vit_of(learner: Learner) -> ViT:
    """The encoder of a learner of images. Raises `UnveilError` for another."""
    encoder = encoder_of(learner)
    shape_of(learner)
    assert isinstance(encoder, ViT)
    return encoder


def shape_of(learner: Learner) -> ViTConfig:
    """What a learner takes in, where it sees images: also a dVAE. Raises `UnveilError` for a learner of texts."""
    shape = learner.encoder.config
    if not isinstance(shape, ViTConfig):
        raise UnveilError("this is a model of texts, and images were expected: see `unveil finetune` and `unveil fill`")
    return shape


def write_config(learner: Learner, folder: str | Path, *, classes: Sequence[str] | None = None) -> None:
    """Writes `config.json`: from then on a run can be loaded, from its newest checkpoint."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", json.dumps(describe(learner, classes=classes), indent=1) + "\n")


def save(learner: Learner, folder: str | Path, *, classes: Sequence[str] | None = None) -> None:
    """Writes `config.json`, `encoder.safetensors` where that is a ViT, and `model.safetensors`, each in one move."""
    folder = Path(folder)
    write_config(learner, folder, classes=classes)
    if isinstance(learner.encoder, ViT):
        export(EncoderOnly(learner.encoder), folder / "encoder.safetensors")
    export(learner, folder / "model.safetensors", classes=classes)


def export(learner: Learner, out: str | Path, *, classes: Sequence[str] | None = None) -> Path:
    """Writes one .safetensors file with the config in its header."""
    out = Path(out)
    write_tensors(out, holder(learner).state_dict(), {NOTE: json.dumps(describe(learner, classes=classes))})
    return out


def load(path: str | Path, *, say: Callable[[str], None] = tell) -> Learner:
    """The learner of a run folder or of an exported file, in eval mode.

    A run that is not finished has no `model.safetensors` yet: its newest checkpoint that is whole is used.

    Raises:
        UnveilError: When something is missing, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_dir():
        note = read_note(path, NOTE)
        if note is None:
            raise UnveilError(f"{path} was not exported by unveil: its header has no config")
        return filled(rebuild(note, path), read_tensors(path), path, say)
    config = read_object(path / "config.json")
    if (path / "model.safetensors").is_file():
        return filled(rebuild(config, path), read_tensors(path / "model.safetensors"), path / "model.safetensors", say)
    checkpoints = Checkpoints(path / "checkpoints", warn=say)
    step = checkpoints.newest()
    if step is not None:
        place = checkpoints.path(step)
        say(f"{path} is not finished: using its checkpoint of step {step:,}")
        return filled(rebuild(config, path), checkpoints.load(step, "model"), place, say)
    if (path / "encoder.safetensors").is_file():
        return load(path / "encoder.safetensors", say=say)
    raise UnveilError(f"{path} has no weights yet: neither model.safetensors nor a whole checkpoint")


def holder(learner: Learner) -> nn.Module:
    """The module whose names a file uses: the learner, or, where there is only an encoder, that."""
    return learner.encoder if isinstance(learner, EncoderOnly) else learner


def filled(learner: Learner, state: Tensors, source: Path, say: Callable[[str], None]) -> Learner:
    """A learner with the tensors of a file. Raises `UnveilError` when one is missing, left over, or misshapen."""
    own = holder(learner).state_dict()
    refuse_difference(own.keys() - state.keys(), state.keys() - own.keys(), len(own), source)
    for name, value in state.items():
        if value.shape != own[name].shape:
            wished = tuple(own[name].shape)
            raise UnveilError(f"{source}: {name} is {tuple(value.shape)}, and its config asks for {wished}")
    holder(learner).load_state_dict(state)
    say(f"{source}: {len(state)} of {len(own)} tensors matched ({type(learner).__name__})")
    return learner.eval()
