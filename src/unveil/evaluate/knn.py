"""k nearest neighbours: what the features say with nothing trained on them (Wu et al., 2018; as DINO uses it)."""

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
    """A score for each class: the sum over the nearest in the bank, by cosine, of exp(cosine / temperature).

    Args:
        queries: Features to classify.
        bank: Features whose classes are known.
        labels: Those classes.
        classes: How many there are.
        neighbours: How many of the nearest vote.
        temperature: The smaller, the more the nearest outvote the others.
    """
    shrink, votes = 1 / bank.float().norm(dim=1).clamp(min=1e-12), []  # a normalised bank would be held twice
    for part in torch.split(queries, 1024):
        cosine = (F.normalize(part.float(), dim=1) @ bank.float().T).mul_(shrink)
        near, nearest = cosine.topk(min(neighbours, len(bank)), dim=1)  # (q, k)
        weight = (near / temperature).exp()
        votes.append(torch.zeros(len(part), classes, device=part.device).scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes)
