"""`--init WEIGHTS`: the encoder of a pre-training run starts from trained weights, of any format that `unveil.load` reads."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.encoder_only import checksums, encoder_only, vit_of
from unveil.interop.load import load
from unveil.learner import Learner, Method
from unveil.models.adapt import adaptations, adapted
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.options import configure, known_to
from unveil.runs.modality import slug
from unveil.train.run_folder import Run

COPY = "init.safetensors"
"""The encoder that a run started from, in its folder: a resumed run compares the trained one with it, and needs no WEIGHTS."""
OF_ENCODER = ("positions", "relative_bias", "layer_scale")
"""Options of methods that shape the encoder. They follow from the weights."""
OF_DECODER = ("decoder_width", "decoder_depth", "decoder_heads")
"""Options that follow from the weights unless others are given."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class InitialWeights:
    """Trained weights to start from."""

    source: str
    """As the user gave it."""
    learner: Learner
    checksums: Mapping[str, str] | None
    """Of the encoder, for `run.json`; None if this is the copy in the run folder, since WEIGHTS does not exist any more."""
    recorded: Mapping[str, Any]
    """The options that the run has recorded, if this is that copy."""

    @property
    def encoder(self) -> ViT:
        """The trained encoder."""
        return vit_of(self.learner)

    @property
    def vit(self) -> ViTConfig:
        """The shape of the trained encoder."""
        return self.encoder.config

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        return self.vit.width, self.vit.depth, self.vit.heads

    @property
    def model(self) -> str:
        """The name of the size: vit-base, or vit-640x10 for a width of 640 and 10 blocks."""
        width, depth, _ = self.size
        return next((name for name, size in MODELS.items() if size == self.size), f"vit-{width}x{depth}")

    def refuse_other_model(self, model: str | None) -> None:
        """Raises `UnveilError` if the user asks for a model of another size."""
        if model and model != self.model:
            raise UnveilError(f"the weights of --init {self.source} are a {self.model}, but --model is {model}: leave --model out")

    def options(self, kind: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a method that follow from the weights.

        Args:
            kind: The method.
            given: The options of the user.

        Raises:
            UnveilError: If an option contradicts the weights, or the method has no encoder of this kind.
        """
        config = getattr(self.learner, "config", None)
        of_source = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
        names = {field.name for field in fields(kind.Config)}
        found = {name: getattr(self.vit, name) for name in OF_ENCODER if name in names}
        for name, value in found.items():
            if name in given and given[name] != value:
                option = name.replace("_", "-")
                raise UnveilError(f"--{option} is {given[name]}, but the weights of --init have {value}: leave --{option} out")
        try:
            configure(found, kind.Config)
        except UnveilError as error:
            raise UnveilError(f"{kind.__name__} cannot start from {self.source}: {error}") from None
        found |= {name: of_source[name] for name in OF_DECODER if name in names and name in of_source}
        return found | known_to({name: value for name, value in self.recorded.items() if name in OF_DECODER}, kind.Config)

    def config_for(self, own: ViTConfig, normalisation: str) -> ViTConfig:
        """The shape of the new encoder: that of the weights, with the sizes, the channels and the facts of the images.

        Args:
            own: The config of an encoder that starts at random.
            normalisation: "auto", to keep mean and standard deviation where they apply, or "data".
        """
        kept = normalisation == "auto" and self.keeps_normalisation(own)
        names = ("image_size", "patch_size", "channels", "crop_pct", "bit_depth", "grad_checkpointing")
        values = {name: getattr(own, name) for name in (*names, *(() if kept else ("mean", "std")))}
        return replace(self.vit, drop_path=0.0, **values)  # drop path is an option of the method

    def keeps_normalisation(self, own: ViTConfig) -> bool:
        """Whether images of this config are of the kind that the weights were trained on: as many channels, as many bits."""
        return (own.channels, own.bit_depth) == (self.vit.channels, self.vit.bit_depth)

    def start(self, learner: Method, say: Say) -> ViT:
        """Copies the weights into a new learner. Says what came in, and what did not. Returns the encoder that it starts from."""
        vit = learner.encoder.config
        if not isinstance(learner.encoder, ViT):
            raise UnveilError(f"{type(learner).__name__} cannot start from --init: its encoder is no Vision Transformer")
        with torch.random.fork_rng(devices=[]):
            encoder = adapted(self.encoder, replace(vit, drop_path=0.0))
        notes = [*adaptations(self.vit, vit), self.normalisation_note(vit), *learner.start_from(encoder, self.learner)]
        count = len(encoder.state_dict())
        say(f"starting from {self.source}: {count} of {count} tensors of the encoder; {'; '.join(filter(None, notes))}")
        return encoder.eval()

    def normalisation_note(self, vit: ViTConfig) -> str:
        """How images are normalised, in words."""
        if (vit.mean, vit.std) == (self.vit.mean, self.vit.std):
            return "images are normalised as for these weights"
        old, new = (
            f"mean {numbers(self.vit.mean)}, std {numbers(self.vit.std)}",
            f"mean {numbers(vit.mean)}, std {numbers(vit.std)}",
        )
        why = "" if self.keeps_normalisation(vit) else self.what_differs(vit)
        return f"images are normalised by {new}{why}; for these weights it was {old}"

    def what_differs(self, vit: ViTConfig) -> str:
        """Why images of this config cannot be normalised as for the weights."""
        if vit.channels != self.vit.channels:
            return f", since they have {vit.channels} channel{'s' * (vit.channels > 1)} and not {self.vit.channels}"
        return f", since they have {vit.bit_depth} bits and not {self.vit.bit_depth}"

    def write_copy(self, encoder: ViT, folder: Path, learner: Method) -> None:
        """Writes the encoder that a run starts from into its folder, unless it is there."""
        if not (folder / COPY).is_file():
            model_files.export(encoder_only(encoder, pool=learner.pool), folder / COPY)


def numbers(values: tuple[float, ...]) -> str:
    """A few numbers in words: "0.485 0.456 0.406"."""
    return " ".join(f"{value:.3g}" for value in values[:4]) + (" ..." if len(values) > 4 else "")


def open_initial_weights(source: str, folder: Path, others: tuple[Path, ...], say: Say) -> InitialWeights:
    """Loads the weights to start from, or the copy of them in a run folder that is resumed.

    Args:
        source: Anything that `unveil.load` accepts.
        folder: The run folder.
        others: Further run folders that may have a copy: that of `--resume-from`.
        say: Receives log lines.

    Raises:
        UnveilError: If they cannot be loaded, or are a text model.
    """
    try:
        learner = load(source, say=say)
    except UnveilError as error:
        if Path(source).exists():
            raise
        for each in (folder, *others):
            if (each / COPY).is_file() and (each / "run.json").is_file() and Run(each).checkpoints().steps():
                say(f"{source} does not exist any more: using the copy of the encoder in {each / COPY}")
                return InitialWeights(source, load(each / COPY, say=lambda text: None), None, Run(each).config)
        raise UnveilError(f"--init {error}") from None
    try:
        encoder = vit_of(learner)
    except UnveilError as error:
        raise UnveilError(f"--init {source}: {error}") from None
    return InitialWeights(source, learner, checksums(encoder), {})


def fixed_choices(source: str, kind: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `unveil plan` cannot choose, because they follow from the weights to start from, unless they are given.

    Raises:
        UnveilError: If the weights cannot be loaded, or are of a size without a name, for which no time can be estimated.
    """
    init = open_initial_weights(source, Path(source), (), lambda text: None)
    init.refuse_other_model(given.get("model"))
    if init.model not in MODELS:
        raise UnveilError(f"unveil plan knows the sizes {', '.join(MODELS)}, but {source} is a {init.model}: use unveil pretrain")
    found = init.options(kind, given) | {"image_size": init.vit.image_size, "patch_size": init.vit.patch_size, "model": init.model}
    return {name: value for name, value in found.items() if name not in OF_ENCODER} | dict(given)


def name_of_weights(source: str) -> str:
    """A short name of WEIGHTS for the name of a run folder: that of the run, the file, the folder or the timm model."""
    path = Path(source.rpartition(":")[2])
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        path = path.with_suffix("")
        if path.name in ("model", "encoder", "init", "unveil", "pytorch_model"):
            path = path.absolute().parent
    return slug(path.name or "weights")
