"""The optimiser: which parameters decay, and how fast each layer learns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unveil.learner import Learner
from unveil.train.schedule import SCHEDULES, half_cosine


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, SGD with momentum, or LARS (the paper's for linear probing)."""
    base_lr: float = 1.5e-4
    """Peak learning rate for a batch of 256; the real one is this times batch size / 256."""
    schedule: Literal["cosine", "line", "root"] = "cosine"
    """How the rate falls after its rise: along half a cosine, in a line (BERT), or as 1 / sqrt(step) (Transformer)."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises; the paper's 40 of 800 epochs."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, tokens and positions."""
    last_weight_decay: float | None = None
    """What weight decay grows or falls to along half a cosine (DINO: 0.04 to 0.4); by default it stays."""
    beta1: float = 0.9
    """Momentum."""
    beta2: float = 0.95
    """Memory of AdamW's second moment: 0.95 to pre-train, 0.999 to fine-tune."""
    epsilon: float = 1e-8
    """AdamW's smallest divisor (Transformer: 1e-9)."""
    layer_decay: float = 1.0
    """Each layer learns at this share of the rate of the layer above it; 1 means all alike (fine-tuning: 0.75, ViT-B 0.65)."""
    clip: float = 0.0
    """Largest norm of all gradients together; 0 does not clip, as the paper."""

    def peak(self, batch_size: int) -> float:
        """The peak learning rate of a batch size."""
        return self.base_lr * batch_size / 256

    def at(self, step: int, total: int, batch_size: int) -> tuple[float, float]:
        """Learning rate and weight decay of a step."""
        last = self.weight_decay if self.last_weight_decay is None else self.last_weight_decay
        decay = last + (self.weight_decay - last) * half_cosine(step, total, 0)
        return self.peak(batch_size) * SCHEDULES[self.schedule](step, total, round(self.warmup * total)), decay


def build_optimizer(learner: Learner, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser whose groups carry `scale`: the factor of their layer on the learning rate."""
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    top = max((learner.layer_of(name) for name in trained), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim > 1 and not name.endswith("positions")
        groups.setdefault((config.layer_decay ** (top - learner.layer_of(name)), decays), []).append(parameter)
    settings = [
        {"params": parameters, "scale": scale, "weight_decay": config.weight_decay if decays else 0.0, "decays": decays}
        for (scale, decays), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=config.base_lr, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.base_lr, momentum=config.beta1)
    from timm.optim.lars import Lars

    for group in settings:  # without this, LARS without decay is plain SGD
        group["always_adapt"] = group["decays"]
    lars: torch.optim.Optimizer = Lars(settings, lr=config.base_lr, momentum=config.beta1)
    return lars


def gradient_norm(learner: nn.Module, clip: float = 0.0) -> Tensor:
    """The norm of all gradients together; where `clip` is above 0 they are scaled down to it, else they are left untouched."""
    trained = [p for p in learner.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return norm


def set_pace(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Sets the learning rate of every group, times the factor of its layer, and the weight decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
