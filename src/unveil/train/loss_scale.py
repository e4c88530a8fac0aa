"""The factor on the loss that keeps small gradients in the range of float16.

float16 rounds values below 3e-8 to 0, and has none above 65,504. So the loss is multiplied by a large power of two before the
backward pass, and the gradients are divided by it afterwards, before they are clipped. If they overflow, the step is dropped, and
the factor is halved; after many steps without an overflow it is doubled (Micikevicius et al. 2018, "Mixed precision training",
section 3.2). This is the rule of `torch.amp.GradScaler`. But that class reads a number from the GPU in each step, and with it each
process would decide for itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from unveil.learner import Learner
from unveil.train.parallel import local_tensor

FIRST, LARGEST = 2.0**16, 2.0**32
GROWTH_STEPS = 2000
"""Steps without an overflow after which the scale is doubled."""


class LossScale:
    """The scale, and the number of steps since it has changed, as tensors on the device, so that nothing waits for a GPU.

    At a scale of 1, the gradients themselves are too large. Then a step counts as one that is not finite, and many of them end the
    run.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), FIRST, device=device)
        self._good = torch.zeros((), device=device)

    @torch.no_grad()
    def unscale(self, learner: Learner) -> None:
        """Divides all gradients by the scale. Both are exact, since the scale is a power of two."""
        gradients = [local_tensor(p.grad) for p in learner.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.scale)

    def overflows(self, losses: Bool[Tensor, ""], norm: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether a smaller scale may help, from whether all losses and the norm of the gradient are finite."""
        return losses & ~norm & (self.scale > 1)

    def update(self, overflow: Bool[Tensor, ""], dropped: Bool[Tensor, ""]) -> None:
        """Adapts the scale after a step, without waiting for a GPU.

        Args:
            overflow: Whether the gradients have overflown, on any process.
            dropped: Whether the step was dropped, for this or another reason.
        """
        self._good = torch.where(dropped, 0.0, self._good + 1)
        grows = self._good >= GROWTH_STEPS
        factor = torch.where(overflow, 0.5, torch.where(grows, 2.0, 1.0))
        self.scale = (self.scale * factor).clamp(1.0, LARGEST)
        self._good = torch.where(grows, 0.0, self._good)

    def state(self) -> dict[str, float]:
        """The state as JSON values for a checkpoint."""
        return {"scale": float(self.scale), "good_steps": float(self._good)}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Loads the result of `state`; None is that of a run in another precision."""
        if state:
            self.scale = torch.full_like(self.scale, state["scale"])
            self._good = torch.full_like(self._good, state["good_steps"])
