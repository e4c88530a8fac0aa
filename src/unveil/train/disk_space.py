"""Looks at the free space of the disk before a run begins, not when hours of work have to be saved."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from unveil.atomic_files import free_bytes, require_space, spell_size
from unveil.train.recipe import Recipe

MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1}
"""Tensors that an optimiser keeps for each parameter."""


def check_disk_space(folder: Path, learner: nn.Module, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Compares the free space with what a run writes: its checkpoints, and the model twice at its end.

    Args:
        folder: The run folder. Its checkpoints are replaced by later ones, so their space counts as free.
        learner: The learner, not yet sharded.
        recipe: The optimiser, and the number of checkpoints to keep.
        say: Prints a message for the user.

    Raises:
        UnveilError: If there is no room for even one checkpoint and the model.
    """
    weights = sum(value.numel() * value.element_size() for value in learner.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in learner.parameters() if value.requires_grad)
    checkpoint = weights + MOMENTS[recipe.optim.optimizer] * trained
    written = sum(path.stat().st_size for path in folder.glob("checkpoints/step-*/*"))
    keep = recipe.training.keep_checkpoints
    require_space(folder, checkpoint + 2 * weights - written, "a checkpoint and the model need")
    needed = (keep + 1) * checkpoint + 2 * weights - written  # the newest is written before the oldest is removed
    if free_bytes(folder) < needed:
        say(
            f"the disk of {folder} has {spell_size(free_bytes(folder))} free, but {keep} checkpoints and the model need "
            f"{spell_size(needed)}: make room, or use --keep-checkpoints 1"
        )
