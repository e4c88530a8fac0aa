"""`unveil options`: the shortest command that makes a run again, from what its `run.json` records."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import unveil
from unveil.data.sources import open_roles
from unveil.errors import UnveilError
from unveil.interop.load import load
from unveil.learner import Learner, Task
from unveil.methods import METHODS, method_class
from unveil.options import configure
from unveil.plain_text import printable
from unveil.plugins import trust as allow
from unveil.recipes.finetune import recipe_defaults
from unveil.recipes.translate import SearchConfig, TranslateRunConfig
from unveil.runs.initial_weights import OF_DECODER, OF_ENCODER
from unveil.runs.modality import modality
from unveil.runs.open_data import natural_side, sizes_for
from unveil.runs.option_files import OptionFile, read_option_file
from unveil.runs.session import options_by_name
from unveil.tasks import TASKS, task_class
from unveil.tasks.translate import Translation
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, join_processes, resolve_precision
from unveil.train.recipe import TrainConfig
from unveil.train.run_folder import Run
from unveil.train.terminal import printer

TRAINING = (TrainConfig, OptimConfig, HardwareConfig)
POSITIONAL = {"pretrain": ("data",), "finetune": ("run", "data"), "translate train": ("data",)}
USUAL = {"method": "mae"}
"""What the command takes if it is not given, besides what depends on the run."""


def command(run: str | os.PathLike[str], *, toml: bool = False, trust: str | Path | None = None) -> str:
    """The shortest command that makes a run again, in a new folder. It has the options that differ from the defaults.

    An option whose default follows from the data or the hardware is left out only if it is known that the same would follow again.

    Args:
        run: A run folder.
        toml: Whether to return the options as a TOML file for `--config`, with the command as a comment.
        trust: A file or module outside of unveil that the run needs and that may be imported.

    Returns:
        The command, quoted for a shell. What the run does not record, such as an array in memory, stands there in capitals.

    Raises:
        UnveilError: If the folder holds no run that was trained, or needs a class from outside of unveil that is not trusted.
    """
    return describe(run, toml=toml, trust=trust)[0]


def print_command(run: str | os.PathLike[str], toml: bool = False, *, trust: str | Path | None = None) -> None:
    """`command` for the terminal: prints it to standard output, and what the user should know to standard error."""
    text, notes = describe(run, toml=toml, trust=trust)
    for note in notes:
        printer(True)(note)
    print(text)


def describe(run: str | os.PathLike[str], *, toml: bool, trust: str | Path | None) -> tuple[str, list[str]]:
    """The text for `command`, and notes for the user."""
    allow(trust)
    file, opened = read_option_file(run), Run(run)
    arguments = dict(file.arguments)
    for kind, table in (("method", METHODS), ("task", TASKS)):
        if kind in file.missing:
            table.recorded(opened.config, os.fspath(run))  # refuses a class that is not trusted
            arguments[kind] = str(opened.config["class"])
    usual, defaults = DEFAULTS[file.command](file, arguments, opened)
    options = {name: value for name, value in file.options.items() if not same(value, defaults.get(name, ...))}
    unknown = {name: name.upper() for name in file.missing if name not in ("method", "task")}
    arguments = {name: value for name, value in arguments.items() if value != usual.get(name)} | unknown
    notes = [*(why for name, why in file.missing.items() if name in unknown), *file.notes]
    size = int(opened.facts.get("world_size") or 1)
    if size > 1:
        notes.append(f"{run} was trained by {size} processes: start the same number with torchrun for the same rounding")
    line = shlex.join(words(file.command, arguments, options))
    if not toml:
        return line, notes
    started, version = str(opened.facts.get("started", ""))[:10], (opened.facts.get("versions") or {}).get("unveil", "unknown")
    comments = [
        f"Options of {os.fspath(run)}, trained on {started or 'an unknown date'} by unveil {version}: those that differ from the",
        f"defaults of unveil {unveil.__version__}. To use them: unveil {file.command} --config FILE",
        line,
        *notes,
    ]
    return toml_text(comments, {name: value for name, value in {**arguments, **options}.items() if name not in unknown}), notes


def same(value: Any, default: Any) -> bool:
    """Whether a recorded value is the default. JSON has lists for tuples, and no difference between 1 and 1.0."""
    return default is not ... and bool(json.loads(json.dumps(value)) == json.loads(json.dumps(default)))


Defaults = tuple[dict[str, Any], dict[str, Any]]
"""Arguments, and options, that a command takes if they are not given. An option that is not among them has to be given."""


def pretraining_defaults(file: OptionFile, arguments: Mapping[str, Any], run: Run) -> Defaults:
    """The defaults of `pretrain` for the method and the data of a run."""
    method, data, config = arguments["method"], str(arguments.get("data", "")), file.options
    samples = modality(method_class(method).modality)
    defaults = samples.defaults(data, method)
    usual = USUAL | {"model": defaults.pop("model")}
    found = options_by_name(*configure(defaults, *samples.configs(method))) | precision(config)
    if "patch_size" not in found:
        return usual, found
    image, patch = tuple(config["image_size"]), tuple(config["patch_size"])
    if config.get("init"):  # what has its shape, or may have
        follows = {name: config[name] for name in OF_ENCODER if name in config}
        given = {name for name in OF_DECODER if config.get(name) is not None}
        return usual, {k: v for k, v in found.items() if k not in (*given, "image_size", "patch_size")} | follows
    huge = run.config.get("model") == "vit-huge"
    if data.startswith("digits"):  # which are always the same
        natural = natural_side(open_roles(data).train, int(found["max_pixels"]))
        if sizes_for(natural, (), (), huge) == (image, patch):
            return usual, found | {"image_size": image, "patch_size": patch}
    del found["image_size"]
    return usual, found | {"patch_size": sizes_for(0, image, (), huge)[1]}


def finetuning_defaults(file: OptionFile, arguments: Mapping[str, Any], run: Run) -> Defaults:
    """The defaults of `finetune` for the task, the encoder and the number of labels of a run."""
    config = file.options
    samples = modality("images" if "crop" in config else "text")
    usual = {"task": samples.default_task}
    kind: type[Task] = task_class(arguments.get("task") or samples.default_task)
    configs = (*samples.finetune_configs(kind), *TRAINING)
    learner, count = learner_of(arguments.get("run")), run.results.get("trained_on")
    uncertain: set[str] = set()
    if learner is None:
        defaults, uncertain = dict(kind.DEFAULTS), {*kind.DEFAULTS, *kind.PAPER, *kind.CHOSEN, "pool"}
    else:
        defaults = recipe_defaults(kind, config.get("recipe"), learner)
        if config.get("recipe", "auto") == "auto" and count:
            defaults |= kind.settings_for(learner.encoder.config.width, count)
        elif config.get("recipe", "auto") == "auto":
            uncertain |= set(kind.CHOSEN)
    found = options_by_name(*configure(defaults, *configs)) | precision(config)
    if not found["batch_size"]:
        found["batch_size"] = TrainConfig(batch_size=0).with_batch_size(count).batch_size if count else None
    return usual, {name: value for name, value in found.items() if name not in uncertain}


def translation_defaults(file: OptionFile, arguments: Mapping[str, Any], run: Run) -> Defaults:
    """The defaults of `translate train`."""
    configs = (TranslateRunConfig, Translation.Config, SearchConfig, *TRAINING)
    return {"model": "tiny"}, options_by_name(*configure(Translation.DEFAULTS, *configs)) | precision(file.options)


DEFAULTS = {"pretrain": pretraining_defaults, "finetune": finetuning_defaults, "translate train": translation_defaults}


def precision(config: Mapping[str, Any]) -> dict[str, str]:
    """The precision that `auto` stands for on this machine; {} if it does not have the device of the run."""
    hardware = HardwareConfig(device=config.get("device", "auto"))
    try:
        return {"precision": resolve_precision(hardware, join_processes(hardware)).precision}
    except UnveilError:
        return {}


def learner_of(run: str | None) -> Learner | None:
    """The model that a run was fine-tuned from; None if it cannot be loaded any more."""
    try:
        return load(run, say=lambda text: None) if run is not None and Path(run).exists() else None
    except UnveilError:
        return None


def words(command: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """A command line as a list of words."""
    first = POSITIONAL[command]
    found = ["unveil", *command.split(), *(str(arguments[name]) for name in first if name in arguments)]
    for name, value in {**{k: v for k, v in arguments.items() if k not in first}, **options}.items():
        found += option_words(name, value)
    return found


def option_words(name: str, value: Any) -> list[str]:
    """An option as words of a command line. A number has as many digits as it needs."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        square = len(value) == 2 and value[0] == value[1] and name in ("image_size", "patch_size")
        return [flag, *(spelled(each) for each in (value[:1] if square else value))]
    text = spelled(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def spelled(value: Any) -> str:
    """A value as one word."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def toml_text(comments: Sequence[str], values: Mapping[str, Any]) -> str:
    """Values as TOML, below comments."""
    head = (f"# {line}" for comment in comments for line in printable(comment, lines=True).splitlines())
    return "\n".join([*head, *(f"{name} = {toml_value(value)}" for name, value in values.items())])


def toml_value(value: Any) -> str:
    """A value in TOML. Its strings are those of JSON, except that it wants one more character escaped."""
    if value is None:
        return '"None"'  # as on the command line, since TOML has no null
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
