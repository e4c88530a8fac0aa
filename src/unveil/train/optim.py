"""The optimiser: learning rate, weight decay and layer-wise decay of each parameter group."""

import inspect
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.ranges import NonNegative, Positive, Share, ShareAboveZero, ShareBelowOne
from unveil.train.parallel import full_tensor
from unveil.train.schedule import SCHEDULES, half_cosine


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    HIDDEN = ("weight_decay_end", "beta1", "eps", "min_lr", "clip_mode")
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """Optimiser: AdamW, SGD with momentum, or LARS (used for linear probing by the MAE paper)."""
    base_lr: NonNegative = 1.5e-4
    """Peak learning rate for a batch size of 256; it is scaled by batch size / 256."""
    schedule: Literal["cosine", "linear", "inverse_sqrt", "multistep"] = "cosine"
    """Decay of the learning rate after warm-up: half a cosine, linear (BERT), 1 / sqrt(step) (Transformer), or a tenth in the last
    eighth of the run (SimMIM)."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine, for any batch size (MAE's fine-tuning and DINO: 1e-6)."""
    warmup_ratio: Share = 0.05
    """Share of the run during which the learning rate rises linearly; the MAE paper uses 40 of 800 epochs."""
    warmup_epochs: NonNegative | None = None
    """Epochs during which the learning rate rises linearly; overrides --warmup-ratio."""
    weight_decay: NonNegative = 0.05
    """Weight decay of matrices. It is not applied to biases, norms, tokens and positions."""
    weight_decay_end: NonNegative | None = None
    """Weight decay at the end of the run, reached along half a cosine (DINO: 0.04 to 0.4); constant by default."""
    beta1: ShareBelowOne = 0.9
    """Momentum of SGD and LARS, and decay rate of AdamW's first moment."""
    beta2: ShareBelowOne = 0.95
    """Decay rate of AdamW's second moment: 0.95 for pre-training, 0.999 for fine-tuning."""
    eps: Positive = 1e-8
    """Term added to AdamW's denominator (Transformer: 1e-9)."""
    layer_decay: ShareAboveZero = 1.0
    """Factor on the learning rate from each layer to the layer below; 1 means equal rates (fine-tuning: 0.75, ViT-B 0.65)."""
    clip_grad: NonNegative = 0.0
    """Maximum norm of the gradients; 0 turns clipping off."""
    clip_mode: Literal["global", "parameter"] = "global"
    """Which norm is clipped: that of all gradients together, or that of each parameter by itself (DINO)."""

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

    def peak(self, batch_size: int) -> float:
        """The peak learning rate for a batch size."""
        return self.base_lr * batch_size / 256

    def at(self, step: int, total: int, batch_size: int) -> tuple[float, float]:
        """Learning rate and weight decay at a step; see `resolve_warmup`."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        decay = end + (self.weight_decay - end) * half_cosine(step, total, 0)
        peak, warmup = self.peak(batch_size), round(self.warmup_ratio * total)
        factor = SCHEDULES[self.schedule](step, total, warmup)
        floor = min(self.min_lr, peak) if self.schedule == "cosine" and step >= warmup else 0.0
        return floor + (peak - floor) * factor, decay


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that keep `torch.compile` out of these methods.

    Their first call imports torch._dynamo, which would double the time to the first step. The loop never compiles the optimiser.
    """

    found_inf: Tensor | None = None
    """Read by the fused kernels of torch; see `drop_if`."""
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


def clip_gradients(learner: nn.Module, max_norm: float = 0.0, mode: Literal["global", "parameter"] = "global") -> Tensor:
    """Scales gradients down to a norm of `max_norm`, unless this is 0. Returns the global norm before scaling.

    Every process must call it, since gradients may be sharded.

    Args:
        learner: The learner, after the backward pass.
        max_norm: The largest norm.
        mode: "global" scales all gradients by one factor, "parameter" each gradient by its own norm (DINO).
    """
    trained = [p for p in learner.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if max_norm and mode == "global":
        nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    elif max_norm:
        for p in trained:
            assert p.grad is not None
            nn.utils.clip_grads_with_norm_([p], max_norm, nn.utils.get_total_norm([p.grad]))
    return full_tensor(norm)


def drop_if(optimizer: torch.optim.Optimizer, dropped: Float[Tensor, ""] | None) -> None:
    """Lets the next step of a fused optimiser change nothing if `dropped` is 1, as a tensor on its device; None is 0."""
    if isinstance(optimizer, AdamW):
        optimizer.found_inf = dropped


def set_lr(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Sets the learning rate of each group, times the factor of its layer, and the weight decay of groups with weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
