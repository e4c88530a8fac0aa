"""Masked words against slow loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unveil.blocks.word_masks import WordMask, mask_words, masked_word_loss, masked_word_metrics, vocabulary_logits

SPECIAL = torch.tensor([True] * 3 + [False] * 7)


def test_the_lowest_scores_are_masked_and_special_tokens_last() -> None:
    ids = torch.tensor([[1, 5, 2, 7, 9, 2], [1, 2, 2, 4, 2, 2]])
    score = torch.tensor([[0.0, 0.9, 0.1, 0.5, 0.7, 0.2], [0.0, 0.3, 0.2, 0.9, 0.4, 0.1]])
    mask = mask_words(score, ids, SPECIAL, 1 / 3)
    assert mask.hide.tolist() == [[3, 4], [3, 5]]  # in the second text, a special token has to make up the number
    assert mask.labels.tolist() == [[7, 9], [4, 2]]
    assert mask.counted.tolist() == [[True, True], [True, False]]
    assert mask.keep.tolist() == [[1, 2, 5, 0], [2, 1, 4, 0]]
    assert mask_words(score, ids, SPECIAL, 0.01).hide.shape == (2, 1)


def test_loss_and_metrics() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 10), torch.randint(10, (2, 3))
    labels[0, 0] = logits[0, 0].argmax()
    counted = torch.tensor([[True, True, False], [True, False, False]])
    mask = WordMask(torch.empty(2, 0), torch.empty(2, 3), labels, counted)
    losses, correct = [], 0
    for b in range(2):
        for m in range(3):
            if counted[b, m]:
                losses.append(-float(logits[b, m].log_softmax(dim=0)[labels[b, m]]))
                correct += int(logits[b, m].argmax() == labels[b, m])
    assert float(masked_word_loss(logits, mask)) == pytest.approx(sum(losses) / 6, rel=1e-5)
    found = masked_word_metrics(logits, mask)
    assert found == {"word_loss": pytest.approx(sum(losses) / 6, rel=1e-5), "word_accuracy": pytest.approx(correct / 3)}
    assert correct


def test_the_head() -> None:
    dense, norm, embedding, bias = nn.Linear(6, 4), nn.LayerNorm(4), torch.randn(10, 4), torch.randn(10)
    x = torch.randn(2, 6)
    torch.testing.assert_close(vocabulary_logits(x, dense, norm, embedding, bias), norm(F.gelu(dense(x))) @ embedding.T + bias)
