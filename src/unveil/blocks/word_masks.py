"""Masks of the tokens of a text, and loss and metrics of their predictions, for BERT and WordMAE.

Letters: B texts, T tokens, V visible, M masked, K words in the vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class WordMask(NamedTuple):
    """The masked tokens of a batch, the same number in each text."""

    keep: Int[Tensor, "B V"]
    """Indices of the visible tokens; [CLS] is the last."""
    hide: Int[Tensor, "B M"]
    """Indices of the masked tokens."""
    labels: Int[Tensor, "B M"]
    """Ids of the masked tokens."""
    counted: Bool[Tensor, "B M"]
    """False for tokens that are masked only to reach the common number. They do not count in the loss."""


def mask_words(score: Float[Tensor, "B T"], ids: Int[Tensor, "B T"], special: Bool[Tensor, " K"], ratio: float) -> WordMask:
    """Masks the tokens with the lowest scores. Special tokens are masked only if no others are left, and [CLS] never is.

    Args:
        score: Numbers in [0, 1).
        ids: Token ids.
        special: True for the special tokens of the vocabulary.
        ratio: Share of the tokens to mask.
    """
    length = ids.shape[1]
    count = max(1, round(ratio * length))
    is_first = torch.arange(length, device=ids.device) == 0  # [CLS]
    order = (score + 2 * special[ids] + is_first).argsort(dim=1, stable=True)
    hide, keep = order[:, :count], order[:, count:]
    labels = ids.gather(1, hide)
    return WordMask(keep, hide, labels, ~special[labels])


def masked_word_loss(logits: Float[Tensor, "B M K"], mask: WordMask) -> Float[Tensor, ""]:
    """Cross-entropy: the mean over all M tokens, counted or not, so that the mean over processes is that of the whole batch."""
    each = F.cross_entropy(logits.flatten(0, 1).float(), mask.labels.flatten(), reduction="none")
    return (each * mask.counted.flatten()).mean()


def masked_word_metrics(logits: Float[Tensor, "B M K"], mask: WordMask) -> dict[str, float]:
    """The loss in nats, and the accuracy of the predicted tokens."""
    correct = ((logits.argmax(dim=2) == mask.labels) & mask.counted).sum() / mask.counted.sum().clamp(min=1)
    return {"word_loss": float(masked_word_loss(logits, mask)), "word_accuracy": float(correct)}


def vocabulary_logits(
    tokens: Float[Tensor, "*B D"], dense: nn.Linear, norm: nn.Module, embedding: Float[Tensor, "K D"], bias: Float[Tensor, " K"]
) -> Float[Tensor, "*B K"]:
    """Logits over the vocabulary: BERT's head, which shares its last matrix with the word embeddings (section 3.1)."""
    return F.linear(norm(F.gelu(dense(tokens))), embedding, bias)
