"""A method whose loss or gradient is not finite for some samples. It writes a checksum of its weights after each step."""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unveil.blocks.patches import patchify
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment
from unveil.learner import Method, Step
from unveil.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Options:
    bad: str = "loss-nan"
    """What is not finite: loss-nan, loss-inf, gradient-nan or gradient-inf."""
    at: str = ""
    """Numbers of the samples for which it is not finite, counted from the first sample of the run."""


class Spoil(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:  # type: ignore[override]
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


class Breaks(Method):
    """A linear layer predicts the pixels of each patch from its token."""

    Config = Options

    @classmethod
    def build(cls, encoder: Any, config: Any, augment: Any) -> "Breaks":
        self, values = cls(), encoder.patch_size[0] * encoder.patch_size[1] * encoder.channels
        self.config, self.encoder, self.head = config, ViT(encoder), nn.Linear(encoder.width, values)
        self.augmentation = Augment(augment, encoder.image_size, encoder.mean, encoder.std)
        self.bad_keys = {int(sample_keys(0, int(number), 1)[0]) for number in config.at.split(",") if number}
        return self

    def forward(self, batch: Any) -> Step:
        tokens = self.encoder(batch.images)[:, 1:]
        what, _, value = self.config.bad.partition("-")
        bad = self.training and torch.is_grad_enabled() and not self.bad_keys.isdisjoint(batch.keys.tolist())
        if bad and what == "gradient":
            tokens = Spoil.apply(tokens, float(value))
        loss = (self.head(tokens) - patchify(batch.images, self.encoder.config.patch_size)).square().mean()
        if bad and what == "loss":
            loss = loss * float(value)
        return Step(loss, {})

    def after_step(self, progress: float) -> None:
        path = f"weights-{os.environ.get('RANK', '0')}.json"
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.parameters())).hexdigest()
        known = json.load(open(path)) if os.path.exists(path) else {}  # noqa: SIM115
        with open(path, "w") as file:
            json.dump(known | {f"{progress:.6f}": digest}, file)
