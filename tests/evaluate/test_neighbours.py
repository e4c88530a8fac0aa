"""The neighbour search against a full table of cosines, and faiss against the exact search."""

import sys

import numpy as np
import pytest
import torch

from unveil.errors import UnveilError
from unveil.evaluate import neighbours
from unveil.evaluate.neighbours import nearest, nearest_by_faiss, nearest_of_many


def test_blocks_give_what_a_full_table_gives(monkeypatch):
    chance = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(103, 5, generator=chance), torch.randn(41, 5, generator=chance)
    bank[7] = 0  # has no direction
    monkeypatch.setattr(neighbours, "ROWS", 10)
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    found = nearest(queries, bank, 6)
    unit = [
        each.double().numpy() / np.maximum(np.linalg.norm(each.double().numpy(), axis=1, keepdims=True), 1e-12)
        for each in (queries, bank)
    ]
    cosine = unit[0] @ unit[1].T
    order = np.argsort(-cosine, axis=1)[:, :6]
    assert (found.index.numpy() == order).all()
    np.testing.assert_allclose(found.similarity.numpy(), np.take_along_axis(cosine, order, axis=1), atol=1e-6)


def test_a_bank_smaller_than_what_is_asked_for():
    found = nearest(torch.eye(3), torch.eye(3)[:2], 10)
    assert found.index.shape == (3, 2)
    assert found.index[0, 0] == 0
    assert nearest(torch.ones(2, 4), torch.ones(0, 4), 3).index.shape == (2, 0)


def test_faiss_finds_what_the_exact_search_finds():
    pytest.importorskip("faiss", reason="faiss-cpu is not installed (unveil[faiss])")
    chance = torch.Generator().manual_seed(1)
    centres = torch.randn(50, 16, generator=chance)
    bank = centres[torch.randint(0, 50, (4000,), generator=chance)] + 0.5 * torch.randn(4000, 16, generator=chance)
    queries = bank[:200] + 0.01 * torch.randn(200, 16, generator=chance)
    exact, found = nearest(queries, bank, 10), nearest_by_faiss(queries, bank, 10)
    shared = [len(set(one) & set(two)) / 10 for one, two in zip(exact.index.tolist(), found.index.tolist(), strict=True)]
    assert np.mean(shared) > 0.98
    np.testing.assert_allclose(found.similarity[:, 0].numpy(), exact.similarity[:, 0].numpy(), atol=1e-5)


def test_without_faiss_many_rows_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 10)
    assert nearest_of_many(torch.ones(1, 2), torch.ones(10, 2), 1).index.shape == (1, 1)
    with pytest.raises(UnveilError, match=r"11 images are too many .* pip install 'unveil\[faiss\]'"):
        nearest_of_many(torch.ones(1, 2), torch.ones(11, 2), 1)
