"""What an entry of the table of commands consists of, and the arguments that several commands share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unveil.methods import METHODS
from unveil.paths import TEXT_FORMS

REQUIRED = object()
METHOD, TASK = "METHOD", "TASK"
"""Stand for the `Config` of the method, or of the task, on the command line. Used in place of "module:Class"."""


@dataclass(frozen=True)
class Argument:
    """An argument of a command that is a parameter of its function, and not a field of a config."""

    type: Any
    help: str
    default: Any = REQUIRED
    positional: bool = False
    path: str = ""
    """How to check a path: a key of `unveil.paths.CHECKS`, or "data" (images or text, depending on the method); "" for no path."""
    metavar: str = ""
    """How `--help` shows the value; by default it follows from the type."""


@dataclass(frozen=True)
class Verb:
    """An entry of the table of commands."""

    call: str
    """The function, as "module:name"."""
    summary: str
    """One line of at most 80 columns, which more paragraphs may follow."""
    arguments: Mapping[str, Argument]
    """The parameters of the function."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Dataclasses of options as "module:Class", by the title of their group in `--help`."""
    digits: str = ""
    """Defaults that differ for the embedded digits: a dictionary literal at "module:name"."""
    task: str = ""
    """The default task, whose `DEFAULTS` apply unless an option names another task."""
    task_option: str = "--task"
    """The option that names the task."""
    hides: frozenset[str] = frozenset()
    """Options that only `--help-all` shows, besides those that the configs themselves hide."""
    ignores: Mapping[str, str] = field(default_factory=dict)
    """Fields of the configs that the command does not accept, with the reason. `--help` does not show them."""
    forms: Mapping[str, "Verb"] = field(default_factory=dict)
    """Variants of the command for methods or runs of other modalities than images."""
    may_import: bool = True
    """Whether RUN may need a class from outside of unveil. If so, the command has `--trust`."""
    resumes: bool = False
    """Whether the same command goes on with what a stopped one has done."""
    per_method: bool = False
    """Whether `--NAME.OPTION` is an option of `pretrain` for the method NAME only, and `--finetune.OPTION` one of `finetune`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Options that a file gives (`--config`): defaults that count as given."""
    given_in: str = ""
    """The name of that file, for messages."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Arguments that the file should have but does not, each with the reason. They have to be given."""

    @property
    def has_trust(self) -> bool:
        """Whether the command has `--trust`."""
        return "run" in self.arguments and self.may_import


SHARED = {
    "training": "unveil.train.recipe:TrainConfig",
    "optimizer": "unveil.train.optim:OptimConfig",
    "hardware": "unveil.train.parallel:HardwareConfig",
}
AUGMENT = {"augmentation": "unveil.data.augment:AugmentConfig"}
PRETRAIN = {"run": "unveil.runs.image_pretraining:PretrainConfig"}
PRETRAIN_TEXT = {"run": "unveil.runs.text_pretraining:TextPretrainConfig"}
DIGITS_PATH = "unveil.runs.images:DIGITS_DEFAULTS"

DATA = "a folder, a .tar, .tar.gz or .zip of images, a pack, shards-{000..099}.tar, hf://name, a torchvision dataset, or digits."
IMAGES_ARG = Argument(str, "Images: " + DATA, "digits", True, "data")
CORPUS = Argument(str, f"Texts: {TEXT_FORMS}.", positional=True, path="text")
LABELLED_IMAGES = Argument(str | None, "Labelled images; by default those of the run. Otherwise " + DATA, None, True, "data")
TEST_IMAGES = Argument(str | None, "Labelled test images; by default the test split of DATA, or a tenth of it.", None, path="data")
RUN = Argument(
    str,
    "A run folder, an exported file, a file of the public MAE release or of timm, a folder of timm or transformers, or a name in "
    "timm such as timm:vit_base_patch16_224.mae.",
    positional=True,
    path="model",
)
CLASSIFIER = Argument(
    str,
    "A model with a head: a fine-tuned or supervised run, the folder of a linear or partial probe, or an exported classifier.",
    positional=True,
    path="model",
)
TEXT_RUN = Argument(str, "A run folder of a text method, or a transformers folder of BERT.", positional=True, path="model")
TRUST = Argument(
    str | None, "A Python file or module that may be imported to load RUN; the option may be repeated.", None, path="source"
)
"""An argument of every command with a RUN. It is handled by `unveil.command_line`."""
CLASS_FORMS = '"package.module:Class" or "file.py:Class"'
METHOD_NAME = f"The pre-training method: one of {', '.join(METHODS.names)}, or {CLASS_FORMS}."
TASK_NAME = f"The task to fine-tune on: {{default}}, another name from the table of tasks, or {CLASS_FORMS}."
VIT_NAMES = Literal["vit-nano", "vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge"] | None
VIT_MODEL = Argument(VIT_NAMES, "The encoder: vit-base, or vit-nano for the embedded digits.", None)
BERT_NAMES = Literal["bert-nano", "bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"] | None
BERT_MODEL = Argument(BERT_NAMES, "The encoder: bert-mini by default.", None)
EXPORT_FORMATS = Literal["timm", "transformers", "mae", "safetensors", "onnx"]
PRETRAIN_OUT = Argument(str | None, "The run folder; by default runs/<data>-<method>-<model>.", None, path="run folder")
FINETUNE_OUT = Argument(str | None, "The run folder; by default <run>-<task>, or <run>-scratch.", None, path="run folder")
RESUME_FROM = Argument(
    str | None,
    "Go on from the newest checkpoint of another run, in a new --out, with another length (--epochs), rate or precision.",
    None,
    path="run",
)
EXTEND = Argument(
    bool, "Make the run in --out longer: the same command with more --epochs. The learning rate warms up once more.", False
)
CONFIG = Argument(
    str | None,
    "Options that are not given are those of a run (its folder, or run.json) or of a TOML file; see unveil options.",
    None,
)
ALL_RUNS = "The folder for all runs; by default "
RESUMES = "\n\nRun the same command again to resume."

RARE_IN_TRAINING = frozenset(
    {"optimizer", "schedule", "beta2", "layer_decay", "color_jitter", "parallel", "clip_grad", "warmup_ratio"}
)
"""Options of training that few users change."""
NO_SEED = {"seed": "a comparison has several seeds: give --seeds"}
NO_TRAINING = "nothing is trained"
ONE_PROCESS = "the command runs in one process"
WHOLE_MODEL = "every process has the whole model"


def task_argument(default: str) -> Argument:
    """`--task` of `finetune`."""
    return Argument(str | None, TASK_NAME.format(default=default) + f" By default {default}.", None)
