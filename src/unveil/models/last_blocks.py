"""Partial fine-tuning (MAE, section 4.3 and figure 9): the last blocks are trained, and all earlier layers stay frozen."""

from unveil.errors import UnveilError
from unveil.models.vit import ViT


def train_last_blocks(encoder: ViT, blocks: float, *, positions: bool = False) -> None:
    """Freezes an encoder but for its last blocks and, if there are any, its last norm.

    Args:
        encoder: An encoder, whose parameters change their `requires_grad`.
        blocks: Number of blocks to train: 0, 0.5 (the last MLP with its norm and layer scale), 1, ... up to all. With all of them,
            the layers before the blocks are trained as well.
        positions: Whether learned positions are frozen even if all blocks are trained.

    Raises:
        UnveilError: For another number of blocks.
    """
    depth, stack = encoder.config.depth, encoder.transformer
    if blocks not in {0.5, *range(depth + 1)}:
        raise UnveilError(f"cannot fine-tune {blocks:g} blocks of {depth}: use 0, 0.5 (the last MLP), or 1 to {depth}")
    encoder.requires_grad_(blocks == depth)
    if blocks == 0.5:
        stack.blocks[-1].norm2.requires_grad_(True)
        stack.blocks[-1].mlp.requires_grad_(True)
        stack.blocks[-1].branch2.requires_grad_(True)  # its layer scale
    elif blocks:
        stack.blocks[depth - int(blocks) :].requires_grad_(True)
    stack.norm.requires_grad_(blocks > 0)
    if encoder.positions is not None and (positions or encoder.config.positions == "sincos"):
        encoder.positions.requires_grad_(False)


def trained_blocks(task: str, blocks: object) -> str:
    """What partial fine-tuning trains, in words: "the last block".

    "" if the task fine-tunes the whole encoder, or if its option `blocks` is its own and means something else.
    """
    if task not in ("finetune", "partial") or not isinstance(blocks, int | float):
        return ""
    if blocks > 1:
        return f"the last {blocks:g} blocks"
    return {0.0: "the classifier", 0.5: "the last MLP"}.get(blocks, "the last block")
