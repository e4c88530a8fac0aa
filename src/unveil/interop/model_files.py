"""Our own format: tensors as safetensors, and JSON with all that is needed to rebuild the learner.

A run folder holds `model.safetensors` (the whole learner), `encoder.safetensors`, and `config.json`. Both .safetensors files have
the same JSON in their header, so each of them can be used on its own.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn

from unveil.atomic_files import write_text
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.configs import config_from_json
from unveil.interop.encoder_only import ENCODERS, encoder_of, encoder_only, has_encoder
from unveil.interop.files import is_safetensors, read_header, read_tensors, write_tensors
from unveil.interop.formats import Contents
from unveil.interop.migrations import VERSION, migrated
from unveil.interop.state_dict_map import check_names
from unveil.interop.verify_export import Verification, compare_outputs
from unveil.json_files import json_text, read_json
from unveil.learner import Learner, Method, Task
from unveil.methods import METHODS
from unveil.models.build_check import check_build, check_shapes, shapes_of
from unveil.models.vit import ViT
from unveil.models.weights import CHECKSUM, Shapes, read_metadata, read_shapes, refuse_non_finite
from unveil.plugins import Registry, is_path
from unveil.tasks import TASKS
from unveil.train.checkpoint import Checkpoints, Tensors
from unveil.train.terminal import print_to_stderr

FORMAT_NAME = "unveil"
"""The value of `format` in `config.json`, and the key of the JSON in the header of .safetensors files."""


def describe(learner: Learner) -> dict[str, Any]:
    """The content of `config.json`: the method or the task, its options and its classes, and the config of its encoder.

    Raises:
        UnveilError: If the learner cannot be rebuilt from JSON.
    """
    if not has_encoder(learner):
        raise UnveilError(f"{type(learner).__name__} cannot be saved: it has no `encoder`")
    try:
        release = version("unveil")
    except PackageNotFoundError:
        release = "unknown"
    shape = learner.encoder.config
    facts: dict[str, Any] = {"format": FORMAT_NAME, "format_version": VERSION, "version": release}
    facts["modality"] = next((name for name, (config, _) in ENCODERS.items() if isinstance(shape, config)), learner.modality)
    facts["encoder"] = values_of(shape, f"the config of the encoder of {type(learner).__name__}")
    if isinstance(learner, Method):
        facts |= METHODS.describe(type(learner)) | parts_of(learner)
    elif isinstance(learner, Task):
        encoder_of(learner)  # a task needs a ViT or a TextEncoder
        facts |= TASKS.describe(type(learner)) | parts_of(learner)
    elif any(not name.startswith("encoder.") for name in learner.state_dict()):
        raise UnveilError(
            f"{type(learner).__name__} cannot be saved: it has weights outside of its encoder, and is not a Method or Task"
        )
    elif learner.pool != "mean":
        facts["pool"] = learner.pool
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=as_json))
    return plain


def parts_of(learner: Method | Task) -> dict[str, Any]:
    """The options, the augmentation and the classes of a learner."""
    name = type(learner).__name__
    facts: dict[str, Any] = {"options": values_of(learner.config, f"the config of {name}")}
    if learner.augmentation is not None:
        facts["augment"] = values_of(learner.augmentation.config, f"the config of the augmentation of {name}")
    return facts | ({"classes": list(learner.classes)} if learner.classes else {})


def values_of(config: Any, owner: str) -> dict[str, Any]:
    """The fields of a config. Raises `UnveilError` if it is not an instance of a dataclass."""
    if not is_dataclass(config) or isinstance(config, type):
        raise UnveilError(f"{owner} cannot be saved: it is {config!r}, expected an instance of a dataclass")
    return asdict(config)


def as_json(value: Any) -> str:
    """Converts a path to a string. Raises `UnveilError` for other values that JSON does not have."""
    if not isinstance(value, PurePath):
        raise UnveilError(f"the option value {value!r} cannot be saved: use numbers, strings, tuples or paths")
    return str(value)


def rebuild(config: Mapping[str, Any], source: str | Path = "config.json") -> Learner:
    """Builds an untrained learner, in eval mode, from the content of a `config.json`.

    Raises:
        UnveilError: If the JSON has another format or version, or needs code from outside of unveil that is not trusted.
    """
    if config.get("format") != FORMAT_NAME:
        raise UnveilError(f'{source} has the format {config.get("format")!r}, expected "{FORMAT_NAME}"')
    config = migrated(config, source)
    classes, augment = config.get("classes", ()), None
    if config["modality"] == "images":
        augment = config_from_json(AugmentConfig, config.get("augment", {}), f"the augmentation options of {source}")
    if "method" in config:
        method = class_of(METHODS, Method, config, source)
        shape = config_from_json(method.EncoderConfig, config.get("encoder"), f"the encoder options of {source}")
        options = config_from_json(method.Config, config.get("options"), f"the options of {source}")
        learner: Method = method.build(shape, options, augment)
        learner.set_classes(classes)
        return learner.eval()
    if config["modality"] not in ENCODERS:
        raise UnveilError(f"{source} holds a model of {config['modality']!r}, expected {' or '.join(ENCODERS)}")
    config_class, encoder_class = ENCODERS[config["modality"]]
    shape = config_from_json(config_class, config.get("encoder"), f"the encoder options of {source}")
    if "task" not in config:
        encoder = encoder_only(encoder_class(shape), str(source), "class" if config.get("pool") == "class" else "mean")
        return encoder.eval()
    task = class_of(TASKS, Task, config, source)
    options = config_from_json(task.Config, config.get("options"), f"the options of {source}")
    built: Task = task.build(encoder_class(shape), options, augment, classes)
    return built.eval()


def class_of(registry: Registry, base: type, config: Mapping[str, Any], source: str | Path) -> Any:
    """The class of the method or task in a `config.json`. Imports only code that the user trusts.

    Raises:
        UnveilError: If there is no such class, it is not trusted, or it is not a subclass of `base`.
    """
    kind, path = registry.kind, config.get("class")
    if path is not None and not (isinstance(path, str) and is_path(path)):
        raise UnveilError(f'{source} has {path!r} as the class of its {kind}, expected "package.module:Class" or "file.py:Class"')
    found = registry.recorded(config, source)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UnveilError(
            f"{source} has {path!r} as the class of its {kind}, which is not a subclass of unveil.learner.{base.__name__}"
        )
    return found


def config_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON of a run folder or an exported file, in the current format version; None if it is of another format."""
    path = Path(path)
    if path.is_dir():
        found = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    else:
        found = (read_header(path, FORMAT_NAME) if path.is_file() and is_safetensors(path) else None) or {}
    return migrated(found, path) if found.get("format") == FORMAT_NAME else None


def write_config(learner: Learner, folder: str | Path) -> None:
    """Writes `config.json`, with which an unfinished run can be loaded from its newest checkpoint."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json_text(describe(learner)))


def save(learner: Learner, folder: str | Path) -> None:
    """Writes `config.json`, `encoder.safetensors` if the encoder is a ViT, and `model.safetensors`, each atomically."""
    folder = Path(folder)
    write_config(learner, folder)
    if type(learner.encoder) is ViT:  # a subclass would be loaded as a plain ViT, which may compute something else
        export(encoder_only(learner.encoder, pool=learner.pool), folder / "encoder.safetensors")
    export(learner, folder / "model.safetensors")


def load(path: str | os.PathLike[str], *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads the learner of a run folder or of an exported file, in eval mode.

    An unfinished run has no `model.safetensors` yet, so its newest undamaged checkpoint is used.

    Raises:
        UnveilError: If anything is missing, damaged, or in another format.
    """
    path = Path(path)
    if not path.is_dir():
        config = read_header(path, FORMAT_NAME)
        if config is None:
            raise UnveilError(f"{path} was not exported by unveil: its header has no config")
        return with_weights(config, path, path, read_shapes(path), lambda: read_tensors(path), say)
    config = read_json(path / "config.json")
    weights = path / "model.safetensors"
    if weights.is_file():
        refuse_another_config(config, weights)
        return with_weights(config, path, weights, read_shapes(weights), lambda: read_tensors(weights), say)
    checkpoints = Checkpoints(path / "checkpoints", warn=say)
    step = checkpoints.newest()
    if step is not None:
        say(f"{path} is not finished: using its checkpoint of step {step:,}")
        state = checkpoints.load(step, "model")
        learner = with_weights(config, path, checkpoints.path(step), shapes_of(state), lambda: state, say, in_training)
        if isinstance(learner, Task):
            learner.drop_training_parts()
        return learner
    if (path / "encoder.safetensors").is_file():
        return load(path / "encoder.safetensors", say=say)
    raise UnveilError(f"{path} has no weights yet: neither model.safetensors nor an undamaged checkpoint")


def refuse_another_config(config: Mapping[str, Any], weights: Path) -> None:
    """Raises `UnveilError` if `config.json` is not the config in the header of its weights, which has a checksum.

    Files of earlier versions have no checksum, and their folders are not compared.
    """
    if CHECKSUM not in read_metadata(weights):
        return
    header = read_header(weights, FORMAT_NAME) or {}
    changed = sorted(key for key in config.keys() | header.keys() if config.get(key) != header.get(key))
    if changed:
        raise UnveilError(
            f"{weights.parent / 'config.json'} was changed or damaged after training: {', '.join(changed)} "
            f"{'is' if len(changed) == 1 else 'are'} not as in the header of {weights.name}. Restore it, or load {weights}"
        )


def in_training(learner: Learner) -> Learner:
    """A learner with what a task has only during training, such as an average of its weights."""
    if isinstance(learner, Task):
        learner.add_training_parts()
    return learner


def with_weights(
    config: Mapping[str, Any],
    owner: Path,
    source: Path,
    shapes: Shapes,
    read: Callable[[], Tensors],
    say: Callable[[str], None],
    change: Callable[[Learner], Learner] = lambda learner: learner,
) -> Learner:
    """Builds a learner and loads its tensors.

    Args:
        config: The content of `config.json`.
        owner: The folder or the file of the config, for messages.
        source: The file of the tensors, for messages.
        shapes: The shapes of its tensors, which limit the memory for the learner.
        read: Reads the tensors.
        say: Receives log lines.
        change: What happens to the learner before its tensors are loaded.

    Raises:
        UnveilError: If a tensor is missing, unexpected, not finite, or has another shape.
    """

    def built() -> Learner:
        return change(rebuild(config, owner))

    learner = built() if has_plugin(config) else check_build(built, shapes, source)  # the code of a plug-in is trusted
    module = module_to_save(learner)
    compare(module, shapes, source)
    state = read()
    refuse_non_finite(state, source)
    module.load_state_dict(state)
    say(f"{source}: {len(state)} of {len(state)} tensors matched ({type(learner).__name__})")
    return learner.eval()


def has_plugin(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` names a class from outside of unveil."""
    return "class" in config


def compare(module: nn.Module, shapes: Shapes, source: Path) -> None:
    """Raises `UnveilError` if the names or the shapes of tensors are not those of a module."""
    own = module.state_dict()
    check_names(own.keys() - shapes.keys(), shapes.keys() - own.keys(), len(own), source)
    check_shapes(module, shapes, source)


def module_to_save(learner: Learner) -> nn.Module:
    """The module whose state dict is saved: the whole method or task, or the encoder if the learner has nothing else."""
    if isinstance(learner, Method | Task):
        return learner
    encoder: nn.Module = learner.encoder
    return encoder


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.facts.get("format") == FORMAT_NAME


def writes(learner: Learner) -> bool:
    """Always True: every learner can be written in this format."""
    return True


def export(learner: Learner, out: str | Path) -> Path:
    """Writes one .safetensors file with the config in its header."""
    out = Path(out)
    write_tensors(out, module_to_save(learner).state_dict(), {FORMAT_NAME: json.dumps(describe(learner))})
    return out


def verify(learner: Learner, out: Path) -> Verification:
    """Reloads an exported file, and compares its tensors and its outputs with those of the learner."""
    again = load(out, say=lambda text: None)
    wanted, found = learner.state_dict(), again.state_dict()
    if wanted.keys() != found.keys() or not all(torch.equal(found[name], value.cpu()) for name, value in wanted.items()):
        return Verification(float("nan"), "the reloaded file")
    return compare_outputs(learner, again)
