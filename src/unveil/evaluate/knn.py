"""k-nearest-neighbour classification of features, which needs no training (Wu et al., 2018; as in DINO)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def knn_scores(
    queries: Float[Tensor, "Q D"],
    bank: Float[Tensor, "S D"],
    labels: Int[Tensor, " S"],
    classes: int,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "Q K"]:
    """Class scores: each of the nearest neighbours in the bank adds exp(cosine / temperature) to the score of its class.

    Args:
        queries: Features to classify.
        bank: Features whose classes are known.
        labels: Classes of the features in the bank.
        classes: Number of classes.
        neighbours: Number of nearest neighbours that vote.
        temperature: A lower one gives the nearest neighbours more weight.
    """
    shrink, votes = 1 / bank.float().norm(dim=1).clamp(min=1e-12), []  # normalising the bank would need a copy of it
    for part in torch.split(queries, 1024):
        cosine = (F.normalize(part.float(), dim=1) @ bank.float().T).mul_(shrink)
        near, nearest = cosine.topk(min(neighbours, len(bank)), dim=1)  # (q, k)
        weight = (near / temperature).exp()
        votes.append(torch.zeros(len(part), classes, device=part.device).scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes)
