"""Labels that the nearest images contradict, by the features of a run."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.evaluate.features import MAX_WHITENED
from unveil.evaluate.knn import whiten
from unveil.evaluate.neighbours import nearest_of_many

NEAREST = 10
"""Neighbours that are asked."""
OWN, OTHER = 1, 8
"""A label is suspicious if at most this many neighbours have it, and at least this many have one other label."""
PER_FEATURE = 5
"""Images for each feature that whitening needs: with fewer, all images are about equally far from each other."""
FEWEST = 5
"""Images of a class, without which its labels are not checked: their neighbours are of other classes in any case."""


class LabelCheck(NamedTuple):
    """What the neighbours of each image say."""

    suspicious: Bool[Tensor, " n"]
    winner: Int[Tensor, " n"]
    """The most frequent label among the neighbours."""
    votes: Int[Tensor, " n"]
    """How many neighbours have it."""
    neighbour: Int[Tensor, " n"]
    """The nearest image with the winning label."""

    def agreement(self, labels: Int[Tensor, " n"]) -> float:
        """The share of the labels that their neighbours confirm: the accuracy of k-NN, one image left out at a time."""
        return float((self.winner == labels).float().mean())


def check_labels(features: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: int) -> LabelCheck:
    """Compares the label of each image with those of its `NEAREST` neighbours, by the cosine of whitened features.

    The rule is that of Wilson's editing (1972), but stricter: nearly all neighbours must have one other label. Features are only
    centred if there are too few images to estimate a covariance.
    """
    count, width = features.shape
    rows = features - features.mean(dim=0)
    if width <= MAX_WHITENED and count >= PER_FEATURE * width:
        rows = whiten(features, features)[0]
    near = nearest_of_many(rows, rows, NEAREST + 1).index
    own = near == torch.arange(len(near))[:, None]
    own[~own.any(dim=1), -1] = True  # copies of an image may be as near as itself
    near = near[~own].reshape(len(near), -1)
    voted = labels[near]
    counts = torch.zeros(len(labels), classes, dtype=torch.int64).scatter_add_(1, voted, torch.ones_like(voted))
    votes, winner = counts.max(dim=1)
    first = (voted == winner[:, None]).int().argmax(dim=1)
    enough = torch.bincount(labels, minlength=classes)[labels] >= FEWEST
    agreeing = counts.gather(1, labels[:, None])[:, 0]
    suspicious = (winner != labels) & (agreeing <= OWN) & (votes >= OTHER) & enough
    return LabelCheck(suspicious, winner, votes, near.gather(1, first[:, None])[:, 0])
