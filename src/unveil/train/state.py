"""The state of a run as named full tensors. It does not depend on the number of processes, so this may change on resume."""

import torch
from torch import Tensor, nn

from unveil.data.batch import Samples
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.checkpoint import Checkpoints
from unveil.train.optim import OptimConfig, build_optimizer
from unveil.train.parallel import HardwareConfig, World, broadcast_from_main, full_tensor_on_main, shard_like
from unveil.train.wrapping import parallelize


def start_or_resume(
    learner: Learner,
    examples: Samples,
    optim: OptimConfig,
    hardware: HardwareConfig,
    world: World,
    checkpoints: Checkpoints | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """Prepares a learner for its first step, or loads the newest good checkpoint.

    Returns:
        The model to call in place of the learner, its optimiser, and the number of steps done so far.
    """
    parameters = {name for name, _ in learner.named_parameters()}
    first = broadcast_from_main((checkpoints.newest(parameters) or 0) if checkpoints and world.is_main else 0, world)
    if checkpoints and first:
        load_model_state(learner, checkpoints.load(first, "model"))
    else:
        with torch.no_grad():
            learner.prepare(learner.augment(examples.to(world.device)))
    model = parallelize(learner, hardware, world, examples)  # shards the parameters, so the optimiser is built afterwards
    optimizer = build_optimizer(learner, optim)
    if checkpoints and first:
        load_optimizer_state(learner, optimizer, checkpoints.load(first, "optimizer"))
    return model, optimizer, first


def model_state(learner: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, complete only on rank 0. Every process must call it."""
    return {name: full_tensor_on_main(value) for name, value in learner.state_dict().items()}


def load_model_state(learner: Learner, state: dict[str, Tensor]) -> None:
    """Loads a full state before the learner is sharded. Raises `UnveilError` if a tensor is missing or unexpected."""
    missing, unexpected = learner.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UnveilError(
            f"the checkpoint belongs to another model: {len(missing)} tensors are missing and {len(unexpected)} are unexpected"
        )


def optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors of each parameter, as "<parameter>:<key>", complete only on rank 0. Every process must call it."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in learner.named_parameters()}
    return {
        f"{names[parameter]}:{key}": full_tensor_on_main(value)
        for parameter, tensors in optimizer.state.items()
        for key, value in tensors.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Loads a full state, and shards each tensor like its parameter."""
    parameters = dict(learner.named_parameters())
    for key, value in state.items():
        name, _, part = key.rpartition(":")
        if name not in parameters:
            raise UnveilError(f"the checkpoint has optimiser state for {name!r}, a parameter that this model does not have")
        parameter = parameters[name]
        like_parameter = value.shape == parameter.shape and value.ndim > 0
        optimizer.state[parameter][part] = shard_like(value, parameter) if like_parameter else value.to(parameter.device)
