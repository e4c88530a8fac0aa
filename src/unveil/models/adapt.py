"""The weights of a trained encoder in an encoder for images of another size, patches of another size, or other channels."""

from unveil.blocks.patch_resize import change_channels, resize_patches
from unveil.blocks.patches import PatchEmbed
from unveil.blocks.positions import resize_biases, resize_positions
from unveil.models.vit import ViT, offset_resizes
from unveil.models.vit_config import ViTConfig


def adapted(encoder: ViT, config: ViTConfig) -> ViT:
    """A new encoder with the weights of a trained one.

    Positions and tables of relative biases are interpolated for another grid of patches, and the patch embedding is changed for
    patches of another size (`resize_patches`) and for other channels (`change_channels`).

    Args:
        encoder: The trained encoder. It does not change.
        config: The new shape. Only the image size, the patch size, the channels, and what has no tensors may differ.
    """
    old, new = encoder.config, ViT(config)
    state = dict(encoder.state_dict())
    kernel = state["embed.weight"].unflatten(1, (*old.patch_size, old.channels)).permute(0, 3, 1, 2)  # (D, C, p, q)
    kernel = change_channels(resize_patches(kernel, config.patch_size), config.channels)
    state["embed.weight"] = PatchEmbed.from_convolution(kernel)
    if "positions" in state:
        state["positions"] = resize_positions(state["positions"], old.grid, config.grid)
    for i in range(len(encoder.relative)):
        name = f"relative.{i}.table"
        state[name] = resize_biases(state[name], old.grid, config.grid)
    for name, change in offset_resizes(config).items():
        state[name] = change(state[name], old.grid, config.grid)
    new.load_state_dict(state)
    return new


def adaptations(old: ViTConfig, new: ViTConfig) -> list[str]:
    """What `adapted` changes, in words; empty if nothing."""

    def size(sides: tuple[int, int]) -> str:
        return f"{sides[0]} x {sides[1]}"

    found = []
    if old.grid != new.grid and (old.positions != "none" or old.relative_bias != "none"):
        found.append(f"positions are interpolated from {size(old.grid)} to {size(new.grid)} patches")
    if old.patch_size != new.patch_size:
        found.append(
            f"the patch embedding is resized from {size(old.patch_size)} to {size(new.patch_size)} px (pseudo-inverse, FlexiViT)"
        )
    if new.channels == 1 < old.channels:
        found.append(f"the weights of its {old.channels} channels are summed into one")
    elif old.channels != new.channels:
        found.append(
            f"the weights of its {old.channels} channel{'s' * (old.channels > 1)} are repeated for {new.channels} channels, times "
            f"{old.channels}/{new.channels}"
        )
    return found
