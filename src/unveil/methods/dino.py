"""Self-distillation without labels (Caron et al., 2021).

    image -> 2 large crops, n small ones -> student -> head -> softmax / 0.1 ----------------------> cross-entropy
               2 large crops               -> teacher -> head - centre -> softmax / 0.04 to 0.07 ------^

The teacher is a moving average (EMA) of the student, and its encoder is the result. B images, D width, K prototypes.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.distributed import all_gather_with_grad
from unveil.blocks.ema import cosine_to_one, ema_copy, ema_update
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.multicrop import MultiCrop, View, byol_views, view_size
from unveil.learner import Method, Step
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.ranges import Positive, Range, Share, ShareBelowOne

STUDENT_TEMPERATURE = 0.1
FIRST_TEACHER_TEMPERATURE = 0.04
BOTTLENECK_WIDTH = 256
MIN_SMALL_SCALE = 0.05
"""Smallest share of the image in a small crop."""
CENTRE_WEIGHT = 0.1
"""Weight of the current step in the moving average of the centre."""


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """The options of DINO."""

    HIDDEN = ("temperature_warmup", "frozen", "positions")
    local_crops: Annotated[int, Range(0, 100)] | None = None
    """Small crops per image, only for the student; by default 8, or 4 for images smaller than 96 px."""
    momentum: Share = 0.996
    """EMA momentum of the teacher, which rises to 1 along half a cosine. Use about 0.98 for a few thousand steps."""
    prototypes: Annotated[int, Range(2, 2**20)] | None = None
    """Output dimensions of student and teacher; by default 65536, or 1024 for encoders narrower than 384."""
    teacher_temperature: Positive = 0.07
    """Final temperature of the teacher's softmax; it rises linearly from 0.04."""
    temperature_warmup: Share = 0.3
    """Share of the run during which the teacher's temperature rises."""
    frozen: Share = 0.01
    """Share of the run during which the last layer is frozen; the paper uses the first of 100 epochs."""
    drop_path: ShareBelowOne = 0.1
    """Probability that the student skips a block, in the last block; it grows linearly with depth. The teacher skips none."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embeddings: learned as in the paper, or fixed."""


class Crops(NamedTuple):
    """The normalised crops of B images."""

    large: Float[Tensor, "2 B C H W"]
    small: Float[Tensor, "n B C h w"] | None


class Head(nn.Module):
    """Three layers, a normalised bottleneck, and cosine similarities to K prototypes."""

    def __init__(self, width: int, hidden: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, BOTTLENECK_WIDTH)
        )
        bound = BOTTLENECK_WIDTH**-0.5  # torch's default for linear layers
        self.prototypes = nn.Parameter(torch.empty(prototypes, BOTTLENECK_WIDTH).uniform_(-bound, bound))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "B D"], learns: Tensor) -> Float[Tensor, "B K"]:
        """Cosine similarities; `learns` is 0 while the prototypes are frozen, and 1 afterwards."""
        # `requires_grad` is not used, since it would change the graph between steps.
        prototypes = torch.lerp(self.prototypes.detach(), self.prototypes, learns)
        return F.linear(F.normalize(self.layers(tokens), dim=-1), F.normalize(prototypes, dim=-1)).float()


class DINO(Method):
    """A student that predicts, from each crop of an image, the output of its teacher for the large crops."""

    Config = DINOConfig
    DEFAULTS = {
        "crop": "resized",
        "crop_scale": 0.4,
        "crop_from": "shrunk",  # views are cut on the device, from a canvas for the largest image of a batch
        "color_jitter": 0.4,
        "base_lr": 5e-4,
        "warmup_ratio": 0.1,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "beta2": 0.999,
        "clip_grad": 3.0,
        "clip_mode": "parameter",
        "min_lr": 1e-6,
    }
    pool = "class"
    encoder: ViT
    config: DINOConfig
    centre: Tensor
    temperature: Tensor
    learns: Tensor
    output_sum: Tensor
    output_count: Tensor

    def __init__(self, student: ViT, config: DINOConfig, augment: AugmentConfig) -> None:
        super().__init__()
        vit, narrow = student.config, student.config.width < 384
        vit.require_class_token("DINO")
        count = config.prototypes or (1024 if narrow else 65536)
        self.config, self.student, self.head = config, student, Head(vit.width, 1024 if narrow else 2048, count)
        self.encoder = ViT(replace(vit, drop_path=0.0)).requires_grad_(False)
        self.encoder.load_state_dict(self.student.state_dict())
        self.teacher_head = ema_copy(self.head)
        self.augmentation = MultiCrop(augment, vit.image_size, vit.mean, vit.std)
        crops = (8 if min(vit.image_size) >= 96 else 4) if config.local_crops is None else config.local_crops
        small_size = view_size(vit.image_size, vit.patch_size)
        self.large = byol_views(vit.image_size, augment.crop_scale)
        self.small = (View(size=small_size, min_scale=MIN_SMALL_SCALE, max_scale=augment.crop_scale),) * crops
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("temperature", torch.tensor(FIRST_TEACHER_TEMPERATURE))
        self.register_buffer("learns", torch.tensor(float(config.frozen <= 0)))
        # Means of the teacher's outputs, one per microbatch of this step. The centre is updated after the step.
        self.register_buffer("output_sum", torch.zeros(count), persistent=False)
        self.register_buffer("output_count", torch.zeros(()), persistent=False)

    @classmethod
    def build(cls, vit: ViTConfig, config: DINOConfig, augment: AugmentConfig) -> "DINO":
        """An untrained student, and a teacher with the same weights."""
        return cls(ViT(replace(vit, drop_path=config.drop_path, positions=config.positions)), config, augment)

    def augment(self, batch: Batch) -> Crops:
        """Draws the crops."""
        small = self.augmentation(batch, self.small, first=len(self.large)) if self.small else None
        return Crops(self.augmentation(batch, self.large), small)

    def forward(self, crops: Crops) -> Step:
        """Cross-entropy between the student's output for each crop and the teacher's output for every other large crop."""
        with torch.no_grad():
            outputs = self.prototype_scores(self.encoder, self.teacher_head, crops.large)  # (2, B, K)
            targets = ((outputs - self.centre) / self.temperature).softmax(dim=-1)
            if self.training:
                self.output_sum += outputs.mean(dim=(0, 1))
                self.output_count += 1
        loss = cross_entropy_of_crops(targets.flip(0), self.prototype_scores(self.student, self.head, crops.large))
        pairs = 2
        if crops.small is not None:  # small crops have both large crops as targets
            loss = loss + cross_entropy_of_crops(targets.sum(dim=0), self.prototype_scores(self.student, self.head, crops.small))
            pairs += 2 * len(crops.small)
        return Step(loss / pairs, {})

    def prototype_scores(self, encoder: ViT, head: Head, crops: Float[Tensor, "n B C h w"]) -> Float[Tensor, "n B K"]:
        """The similarity of the class token of each crop to each prototype."""
        tokens: Tensor = encoder(crops.flatten(0, 1), any_size=True)[:, 0]
        scores: Tensor = head(tokens, self.learns).unflatten(0, crops.shape[:2])
        return scores

    def before_step(self, progress: float) -> None:
        """Leaves frozen prototypes out of the step: without a gradient they have no weight decay either."""
        if progress < self.config.frozen:
            self.head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Updates the teacher, the centre, and the schedules of the temperature and of the frozen prototypes."""
        config, momentum = self.config, cosine_to_one(self.config.momentum, progress)
        ema_update(self.encoder, self.student, momentum)
        ema_update(self.teacher_head, self.head, momentum)
        mean = all_gather_with_grad((self.output_sum / self.output_count)[None]).mean(dim=0)
        self.centre.lerp_(mean, CENTRE_WEIGHT)
        self.output_sum.zero_()
        self.output_count.zero_()
        rise = min(progress / config.temperature_warmup, 1.0) if config.temperature_warmup else 1.0
        first = FIRST_TEACHER_TEMPERATURE
        self.temperature.fill_(first + (config.teacher_temperature - first) * rise)
        self.learns.fill_(float(progress >= config.frozen))


def cross_entropy_of_crops(targets: Float[Tensor, "*n B K"], scores: Float[Tensor, "n B K"]) -> Float[Tensor, ""]:
    """Cross-entropy of the student: the mean over images, summed over crops."""
    return -(targets * (scores / STUDENT_TEMPERATURE).log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1).sum()
