"""Initialisation of linear layers, for `module.apply`."""

from torch import nn


def xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as in ViT and MAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def small_normal(module: nn.Module) -> None:
    """Normal weights with a standard deviation of 0.02 and zero biases, as in BERT."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
