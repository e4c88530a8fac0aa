"""Self-distillation without labels (Caron et al., 2021).

    image -> 2 large crops, n small ones -> student -> head -> softmax / 0.1 ----------------------------> cross-entropy
               2 large crops               -> teacher -> head -> less the centre -> softmax / 0.04 to 0.07 ---^

The teacher is a slow copy of the student, and the encoder that is kept. B images, D width, K prototypes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.distributed import all_gather_with_grad
from unveil.blocks.ema import cosine_to_one, ema_copy, ema_update
from unveil.blocks.fast.recompute import Linear
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.multicrop import View, Views, pair, view_size
from unveil.learner import Method, Step
from unveil.models.vit import ViT, ViTConfig

DEFAULTS = {
    "crop": "resized",
    "crop_scale": 0.4,
    "jitter": 0.4,
    "base_lr": 5e-4,
    "warmup": 0.1,
    "weight_decay": 0.04,
    "last_weight_decay": 0.4,
    "beta2": 0.999,
    "clip": 3.0,
}
"""What differs by default: large crops of 0.4 to 1 of the image, and the paper's optimiser."""
STUDENT, FIRST, BOTTLENECK, LEAST = 0.1, 0.04, 256, 0.05
"""Temperature of the student, first temperature of the teacher, width of the bottleneck, smallest share of a small crop."""


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """The knobs of DINO."""

    local_crops: int | None = None
    """Small crops of an image, that the student alone sees: 8, or 4 of images smaller than 96 px."""
    momentum: float = 0.996
    """Share of itself that the teacher keeps in a step; goes to 1 along half a cosine. Less (0.98) for few thousand steps."""
    prototypes: int | None = None
    """Numbers that student and teacher agree on: 65536, or 1024 with encoders narrower than 384."""
    teacher_temperature: float = 0.07
    """The teacher's, after a rise in a line from 0.04."""
    temperature_warmup: float = 0.3
    """Share of the run in which it rises."""
    frozen: float = 0.01
    """Share of the run in which the prototypes stay as they are: the first of 100 epochs."""


class Crops(NamedTuple):
    """What a step sees of B images, normalised."""

    large: Float[Tensor, "2 B C H W"]
    small: Float[Tensor, "n B C h w"] | None


class Head(nn.Module):
    """Three layers to a bottleneck of unit length, then its cosines to K prototypes."""

    def __init__(self, width: int, hidden: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, hidden), nn.GELU(), Linear(hidden, BOTTLENECK))
        self.prototypes = nn.Parameter(torch.randn(prototypes, BOTTLENECK) * 0.02)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "B D"], learns: Tensor) -> Float[Tensor, "B K"]:
        """Cosines; `learns` is 0 while the prototypes get no gradient, and 1 after that."""
        prototypes = torch.lerp(self.prototypes.detach(), self.prototypes, learns)
        return F.linear(F.normalize(self.layers(tokens), dim=-1), F.normalize(prototypes, dim=-1)).float()


class DINO(Method):
    """A student that says of small crops what its teacher says of large ones."""

    Config = DINOConfig
    pool = "class"
    encoder: ViT
    config: DINOConfig
    centre: Tensor
    temperature: Tensor
    learns: Tensor
    seen: Tensor
    parts: Tensor

    def __init__(self, student: ViT, config: DINOConfig, augment: AugmentConfig) -> None:
        super().__init__()
        vit, narrow = student.config, student.config.width < 384
        count = config.prototypes or (1024 if narrow else 65536)
        self.config, self.student, self.head = config, student, Head(vit.width, 1024 if narrow else 2048, count)
        self.encoder, self.teacher_head = ema_copy(self.student), ema_copy(self.head)
        self.augmentation = Views(augment, vit.image_size, vit.mean, vit.std)
        crops = (8 if min(vit.image_size) >= 96 else 4) if config.local_crops is None else config.local_crops
        self.large = pair(vit.image_size, augment.crop_scale)
        self.small = (View(size=view_size(vit.image_size, vit.patch_size), least=LEAST, most=augment.crop_scale),) * crops
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("temperature", torch.tensor(FIRST))
        self.register_buffer("learns", torch.tensor(float(config.frozen <= 0)))
        self.register_buffer("seen", torch.zeros(count), persistent=False)  # what the teacher said in this step
        self.register_buffer("parts", torch.zeros(()), persistent=False)  # ... of so many parts of its batch

    @classmethod
    def build(cls, vit: ViTConfig, config: DINOConfig, augment: AugmentConfig) -> "DINO":
        """An untrained student and its teacher, which begins as the same."""
        return cls(ViT(vit), config, augment)

    def augment(self, batch: Batch) -> Crops:
        """Draws the crops."""
        small = self.augmentation(batch, self.small, stream=2) if self.small else None
        return Crops(self.augmentation(batch, self.large), small)

    def forward(self, crops: Crops) -> Step:
        """The student's view of each crop against the teacher's of every other large one."""
        with torch.no_grad():
            said = self.speak(self.encoder, self.teacher_head, crops.large)  # (2, B, K)
            wanted = ((said - self.centre) / self.temperature).softmax(dim=-1)
            if self.training:
                self.seen += said.mean(dim=(0, 1))
                self.parts += 1
        loss = disagreement(wanted.flip(0), self.speak(self.student, self.head, crops.large))
        if crops.small is not None:
            loss = loss + disagreement(wanted.sum(dim=0), self.speak(self.student, self.head, crops.small))
        pairs = 2 + 2 * (0 if crops.small is None else len(crops.small))
        return Step(loss / pairs, {})

    def speak(self, encoder: ViT, head: Head, crops: Float[Tensor, "n B C h w"]) -> Float[Tensor, "n B K"]:
        """What the class tokens of some crops are to the prototypes."""
        tokens: Tensor = encoder(crops.flatten(0, 1), any_size=True)[:, 0]
        said: Tensor = head(tokens, self.learns).unflatten(0, crops.shape[:2])
        return said

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Teacher and centre follow; temperature and prototypes keep to their schedules."""
        config, momentum = self.config, cosine_to_one(self.config.momentum, progress)
        ema_update(self.encoder, self.student, momentum)
        ema_update(self.teacher_head, self.head, momentum)
        self.centre.lerp_(all_gather_with_grad((self.seen / self.parts)[None]).mean(dim=0), 0.1)
        self.seen.zero_()
        self.parts.zero_()
        risen = min(progress / config.temperature_warmup, 1.0) if config.temperature_warmup else 1.0
        self.temperature.fill_(FIRST + (config.teacher_temperature - FIRST) * risen)
        self.learns.fill_(float(progress >= config.frozen))


def disagreement(wanted: Float[Tensor, "*n B K"], said: Float[Tensor, "n B K"]) -> Float[Tensor, ""]:
    """Cross-entropy, summed over crops: the mean of the images."""
    return -(wanted * (said / STUDENT).log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1).sum()
