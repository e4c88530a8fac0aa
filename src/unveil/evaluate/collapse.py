"""Two measures of collapse, which need no labels: whether features are the same for all images, or vary in few dimensions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def deviation(features: Float[Tensor, "n D"]) -> float:
    """Standard deviation of the normalised features, averaged over dimensions, times sqrt(D) (SimSiam, section 4.1).

    1 if their directions are uniform; 0 if all features are the same.
    """
    return float(F.normalize(features.double(), dim=1).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def rank_me(features: Float[Tensor, "n D"], epsilon: float = 1e-7) -> float:
    """The effective rank of the features: exp of the entropy of their normalised singular values (RankMe; Garrido et al., 2023).

    Between 1 and D. The singular values are computed as roots of the eigenvalues of the Gram matrix, which is much faster for many
    features of few dimensions.
    """
    wide = features.double()
    wide = wide if len(wide) >= wide.shape[1] else wide.T
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=1e-300) + epsilon
    return float((-(shares * shares.log()).sum()).exp())


def collapse(features: Float[Tensor, "n D"]) -> dict[str, float]:
    """Both measures, under the names that logs and reports use."""
    return {"feature_deviation": deviation(features), "rank_me": rank_me(features)}
