"""The nearest rows of a table by cosine similarity: exactly, block by block, or with faiss for tables of millions of rows."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unveil.errors import UnveilError

EXACT_ROWS = 200_000
"""Up to this many rows, every row is compared with every query."""
QUERIES, ROWS = 1024, 65_536
"""Queries and rows of a block, whose similarities are in memory at a time: 256 MB."""


class Neighbours(NamedTuple):
    """The nearest rows of each query, nearest first."""

    similarity: Float[Tensor, "Q k"]
    """Cosines."""
    index: Int[Tensor, "Q k"]


def nearest(queries: Float[Tensor, "Q D"], bank: Float[Tensor, "S D"], count: int) -> Neighbours:
    """The `count` rows of the bank with the largest cosine to each query; fewer if the bank has fewer.

    All are compared, in blocks, so memory does not grow with Q times S. A row of zeros has the cosine 0 to every other. Rows that
    are equally near come in any order.
    """
    count = min(count, len(bank))
    found = []
    shrinks = [
        1 / part.float().norm(dim=1).clamp(min=1e-12) for part in bank.split(ROWS)
    ]  # a normalised copy would double the bank
    for part in queries.split(QUERIES):
        unit = F.normalize(part.float(), dim=1)
        best = Neighbours(
            torch.empty(len(part), 0, device=unit.device), torch.empty(len(part), 0, dtype=torch.int64, device=unit.device)
        )
        for number, (block, shrink) in enumerate(zip(bank.split(ROWS), shrinks, strict=True)):
            cosine = (unit @ block.float().T).mul_(shrink)
            near, index = cosine.topk(min(count, len(block)), dim=1)
            near, index = torch.cat([best.similarity, near], dim=1), torch.cat([best.index, index + number * ROWS], dim=1)
            near, order = near.topk(min(count, near.shape[1]), dim=1)
            best = Neighbours(near, index.gather(1, order))
        found.append(best)
    return Neighbours(torch.cat([each.similarity for each in found]), torch.cat([each.index for each in found]))


def nearest_of_many(queries: Float[Tensor, "Q D"], bank: Float[Tensor, "S D"], count: int) -> Neighbours:
    """As `nearest`, with faiss if the bank has more than `EXACT_ROWS` rows: then some of the nearest rows may be missed.

    The index is HNSW (Malkov and Yashunin, 2016) over unit vectors.

    Raises:
        UnveilError: If the bank has so many rows, and faiss is not installed.
    """
    if len(bank) <= EXACT_ROWS:
        return nearest(queries, bank, count)
    return nearest_by_faiss(queries, bank, count)


def nearest_by_faiss(queries: Float[Tensor, "Q D"], bank: Float[Tensor, "S D"], count: int) -> Neighbours:
    """As `nearest`, by an approximate search. Raises `UnveilError` if faiss is not installed."""
    try:
        import faiss
    except ImportError:
        raise UnveilError(
            f"{len(bank):,} images are too many to compare one by one, and faiss is not installed: pip install 'unveil[faiss]', or "
            f"search at most {EXACT_ROWS:,} images, such as one split (--split)"
        ) from None
    index = faiss.IndexHNSWFlat(bank.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 80, max(128, 4 * count)
    for part in bank.split(ROWS):
        index.add(F.normalize(part.float(), dim=1).cpu().numpy())
    near, order = index.search(F.normalize(queries.float(), dim=1).cpu().numpy(), min(count, len(bank)))
    return Neighbours(torch.from_numpy(near), torch.from_numpy(order.astype(np.int64)))
