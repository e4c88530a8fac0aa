"""The largest scores by blocks are those of `topk`."""

import pytest
import torch

from unveil.blocks.fast import choose
from unveil.blocks.fast.top_words import BLOCK, top_words


@pytest.mark.parametrize("words", [5, 4 * BLOCK * 3 - 1, 4 * BLOCK * 3, 4 * BLOCK * 3 + 1, 8000, 8191])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_largest_scores_are_those_of_topk(words: int, count: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(40, words)
    scores[::2, words - words % BLOCK :] += 2.0  # the largest are often in the incomplete block at the end
    scores[1::4, :BLOCK] += 3.0  # or side by side
    values, indices = top_words(scores, count)
    expected = scores.topk(min(count, words))
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)
    with choose.turned_off("top_by_blocks"):
        assert torch.equal(top_words(scores, count)[1], indices)


def test_equal_and_infinite_scores() -> None:
    scores = torch.full((3, 2000), float("-inf"))
    scores[1] = 1.0
    scores[2, 70], scores[2, 1999] = 0.5, 0.25
    values, indices = top_words(scores, 4)
    assert torch.equal(values, scores.topk(4).values)
    assert all(len(set(row)) == 4 for row in indices.tolist())
    assert indices[2, :2].tolist() == [70, 1999]
