"""The state of a run as named tensors: the same on one process or many, so any number of them may resume."""

import torch
from torch import Tensor, nn

from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.parallel import full_tensor_on_main, shard_like


def model_state(learner: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, whole on the lead; every process must call it."""
    return {name: full_tensor_on_main(value) for name, value in learner.state_dict().items()}


def load_model_state(learner: Learner, state: dict[str, Tensor]) -> None:
    """Puts a whole state back, before the learner is spread. Raises `UnveilError` when a tensor is missing or left over."""
    missing, left = learner.load_state_dict(state, strict=False)
    if missing or left:
        raise UnveilError(f"the checkpoint is of another model: {len(missing)} tensors missing, {len(left)} left over")


def optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers of each parameter, whole on the lead, as "<parameter>:<key>"; every process must call it."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in learner.named_parameters()}
    return {
        f"{names[parameter]}:{key}": full_tensor_on_main(value)
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Puts a whole memory back, sharded as the parameters are."""
    parameters = dict(learner.named_parameters())
    for key, value in state.items():
        name, _, part = key.rpartition(":")
        if name not in parameters:
            raise UnveilError(f"the checkpoint's optimiser remembers {name!r}, which this model does not have")
        parameter = parameters[name]
        sharded = value.shape == parameter.shape and value.ndim > 0
        optimizer.state[parameter][part] = shard_like(value, parameter) if sharded else value.to(parameter.device)
