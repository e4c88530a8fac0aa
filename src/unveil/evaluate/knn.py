"""k-nearest-neighbour classification of features, which needs no training (Wu et al., 2018; as in DINO)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.evaluate.neighbours import nearest


def whitening(bank: Float[Tensor, "S D"]) -> Callable[[Float[Tensor, "n D"]], Float[Tensor, "n D"]]:
    """The transform of features after which all directions have the same variance in the bank.

    A few directions with a large variance, such as place and brightness, may hide all others from k-NN, but not from a linear
    classifier. The covariance is shrunk towards a multiple of the identity by Ledoit and Wolf (2004), since a small bank does not
    determine it. Features are standardised first, so that none sets the scale of the others.
    """
    variance, mean = torch.var_mean(bank.double(), dim=0, correction=0)
    scale = (variance + 1e-6).sqrt()
    covariance = shrunk_covariance((bank.double() - mean) / scale)
    factor = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance)).to(covariance))  # features may be constant

    def whitened(features: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        found: Tensor = torch.linalg.solve_triangular(factor, ((features.double() - mean) / scale).T, upper=False)
        return found.T.float()

    return whitened


def whiten(bank: Float[Tensor, "S D"], queries: Float[Tensor, "Q D"]) -> tuple[Float[Tensor, "S D"], Float[Tensor, "Q D"]]:
    """Both, by the `whitening` of the bank."""
    transform = whitening(bank)
    return transform(bank), transform(queries)


def shrunk_covariance(centred: Float[Tensor, "n D"]) -> Float[Tensor, "D D"]:
    """The covariance of centred samples, shrunk as in Ledoit and Wolf (2004) and in scikit-learn, whose import takes seconds."""
    count, width = centred.shape
    covariance = centred.T @ centred / count
    mean, squares = covariance.trace() / width, covariance.square().sum()
    spread = (squares - width * mean**2) / width
    noise = (centred.square().sum(dim=1).square().sum() / count - squares) / (count * width)
    share = float((noise.minimum(spread) / spread).nan_to_num(0.0))
    return (1 - share) * covariance + share * mean * torch.eye(width, dtype=centred.dtype, device=centred.device)


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
    votes = []
    for part in torch.split(queries, 1024):
        near, index = nearest(part, bank, neighbours)  # (q, k)
        weight = (near / temperature).exp()
        votes.append(torch.zeros(len(part), classes, device=part.device).scatter_add_(1, labels[index], weight))
    return torch.cat(votes)
