"""`--teacher WEIGHTS`: a frozen encoder whose features of the whole image are a second target of MAE and SimMIM."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.errors import UnveilError
from unveil.interop.encoder_only import checksums, vit_of
from unveil.interop.load import load
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.train.parallel import HardwareConfig, World, autocast

Say = Callable[[str], None]


@dataclass(frozen=True)
class TeacherWeights:
    """The weights of a teacher."""

    source: str
    """As the user gave it."""
    encoder: ViT
    checksums: Mapping[str, str]
    """For `run.json`."""

    @property
    def record(self) -> str:
        """What stands in place of `source` in the options of a learner, so that it is rebuilt without the teacher."""
        return json.dumps({"width": self.encoder.config.width})


def open_teacher(source: str, say: Say) -> TeacherWeights:
    """Loads the weights of a teacher.

    Args:
        source: Anything that `unveil.load` accepts.
        say: Receives log lines.

    Raises:
        UnveilError: If they cannot be loaded, or are a text model.
    """
    try:
        encoder = vit_of(load(source, say=say))
    except UnveilError as error:
        raise UnveilError(f"--teacher {'' if source in str(error) else f'{source}: '}{error}") from None
    return TeacherWeights(source, encoder, checksums(encoder))


def open_teacher_of(config: Any, say: Say) -> TeacherWeights | None:
    """The teacher that the options of a method name; None if there is none.

    Raises:
        UnveilError: As for `open_teacher`, and if there is a weight but no teacher.
    """
    source = getattr(config, "teacher", None)
    if source is None and getattr(config, "teacher_weight", None) is not None:
        raise UnveilError(
            "--teacher-weight is the factor on the loss of a teacher's features: give --teacher as well, or leave it out"
        )
    return open_teacher(source, say) if source else None


class Teacher:
    """Maps images that are normalised for a student to the tokens of a frozen teacher, one for each patch of the student.

    It is no module, so that it is neither trained nor saved with the student. The images are resized so that the teacher cuts them
    into as many patches as the student, and its positions are interpolated if that is not its own grid.

    Args:
        weights: The teacher.
        student: The images and patches of the student.
        hardware: For the precision.
        world: For the device.

    Raises:
        UnveilError: If the teacher takes images with other channels.
    """

    def __init__(self, weights: TeacherWeights, student: ViTConfig, hardware: HardwareConfig, world: World) -> None:
        config = weights.encoder.config
        if config.channels != student.channels:
            raise UnveilError(
                f"the teacher {weights.source} takes images with {config.channels} channel{'s' * (config.channels > 1)}, but these "
                f"have {student.channels}: use a teacher for such images, or --channels {config.channels}"
            )
        self.size: Size = (student.grid[0] * config.patch_size[0], student.grid[1] * config.patch_size[1])
        self.hardware, self.world, self.patches = hardware, world, math.prod(student.grid)
        with torch.random.fork_rng(devices=[]):
            encoder = weights.encoder.resized(self.size)
        self.encoder = encoder.to(world.device).eval().requires_grad_(False)
        scale, shift = between(student, config)
        self.scale, self.shift = (values.to(world.device)[:, None, None] for values in (scale, shift))

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """The same teacher, as it never changes. Trials of a step copy a whole learner."""
        return self

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        """The tokens of all patches, after the final norm. Computed in the precision of the run, without gradients."""
        images = images * self.scale + self.shift
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=True)
        with autocast(self.hardware, self.world):
            tokens: Tensor = self.encoder(images)
        return tokens[:, -self.patches :]


def between(student: ViTConfig, teacher: ViTConfig) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Factor and term of each channel that turn images normalised for a student into images normalised for a teacher.

    Exactly 1 and 0 if both normalise alike.
    """
    mean, std, of_teacher, std_of_teacher = (
        torch.tensor(values, dtype=torch.float64) for values in (student.mean, student.std, teacher.mean, teacher.std)
    )
    return (std / std_of_teacher).float(), ((mean - of_teacher) / std_of_teacher).float()
