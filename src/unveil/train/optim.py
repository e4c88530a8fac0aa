"""The optimiser: learning rate, weight decay and layer-wise decay of each parameter group."""

import inspect
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.parallel import full_tensor
from unveil.train.schedule import SCHEDULES, half_cosine


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    HIDDEN = ("weight_decay_end", "beta1", "eps")
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """Optimiser: AdamW, SGD with momentum, or LARS (used for linear probing by the MAE paper)."""
    base_lr: float = 1.5e-4
    """Peak learning rate for a batch size of 256; it is scaled by batch size / 256."""
    schedule: Literal["cosine", "linear", "inverse_sqrt"] = "cosine"
    """Decay of the learning rate after warm-up: half a cosine, linear (BERT), or 1 / sqrt(step) (Transformer)."""
    warmup_ratio: float = 0.05
    """Share of the run during which the learning rate rises linearly; the MAE paper uses 40 of 800 epochs."""
    warmup_epochs: float | None = None
    """Epochs during which the learning rate rises linearly; overrides --warmup-ratio."""
    weight_decay: float = 0.05
    """Weight decay of matrices. It is not applied to biases, norms, tokens and positions."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, reached along half a cosine (DINO: 0.04 to 0.4); constant by default."""
    beta1: float = 0.9
    """Momentum of SGD and LARS, and decay rate of AdamW's first moment."""
    beta2: float = 0.95
    """Decay rate of AdamW's second moment: 0.95 for pre-training, 0.999 for fine-tuning."""
    eps: float = 1e-8
    """Term added to AdamW's denominator (Transformer: 1e-9)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the layer below; 1 means equal rates (fine-tuning: 0.75, ViT-B 0.65)."""
    clip_grad: float = 0.0
    """Maximum global norm of the gradients; 0 turns clipping off."""

    def resolve_warmup(self, epochs: float) -> Self:
        """Converts `warmup_epochs` to the `warmup_ratio` of a run of `epochs`. Raises `UnveilError` if the warm-up is longer."""
        if self.warmup_epochs is None:
            return self
        if not 0 <= self.warmup_epochs <= epochs:
            raise UnveilError(
                f"the warm-up takes {self.warmup_epochs:g} epochs, but the run has {epochs:g}: use --warmup-epochs between 0 and "
                f"{epochs:g}, or more --epochs"
            )
        return replace(self, warmup_ratio=self.warmup_epochs / epochs, warmup_epochs=None)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_ratio <= 1:
            raise UnveilError(f"warmup_ratio is {self.warmup_ratio}: use a share between 0 and 1, or --warmup-epochs")
        if self.base_lr < 0:
            raise UnveilError(f"base_lr is {self.base_lr}: use 0 or more")

    def peak(self, batch_size: int) -> float:
        """The peak learning rate for a batch size."""
        return self.base_lr * batch_size / 256

    def at(self, step: int, total: int, batch_size: int) -> tuple[float, float]:
        """Learning rate and weight decay at a step; see `resolve_warmup`."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        decay = end + (self.weight_decay - end) * half_cosine(step, total, 0)
        factor = SCHEDULES[self.schedule](step, total, round(self.warmup_ratio * total))
        return self.peak(batch_size) * factor, decay


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that keep `torch.compile` out of these methods.

    Their first call imports torch._dynamo, which would double the time to the first step. The loop never compiles the optimiser.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


def build_optimizer(learner: Learner, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds an optimiser with two parameter groups for each layer: with and without weight decay.

    Besides the options of torch, a group has `lr_scale`, the factor of its layer on the learning rate, and `decays`: see `set_lr`.
    """
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    top = max((learner.layer_of(name) for name in trained), default=0)
    exempt = learner.no_weight_decay()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim > 1 and name not in exempt
        groups.setdefault((config.layer_decay ** (top - learner.layer_of(name)), decays), []).append(parameter)
    settings = [
        {"params": parameters, "lr_scale": scale, "weight_decay": config.weight_decay if decays else 0.0, "decays": decays}
        for (scale, decays), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return AdamW(settings, lr=config.base_lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.base_lr, momentum=config.beta1)
    from timm.optim.lars import Lars

    for group in settings:
        group["always_adapt"] = group["decays"]  # by default, timm adapts only groups whose weight decay is not 0
    lars: torch.optim.Optimizer = Lars(settings, lr=config.base_lr, momentum=config.beta1)
    return lars


def clip_gradients(learner: nn.Module, max_norm: float = 0.0) -> Tensor:
    """Scales gradients down to a global norm of `max_norm`, unless this is 0. Returns the norm before scaling.

    Every process must call it, since gradients may be sharded.
    """
    trained = [p for p in learner.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if max_norm:
        nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return full_tensor(norm)


def set_lr(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Sets the learning rate of each group, times the factor of its layer, and the weight decay of groups with weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
