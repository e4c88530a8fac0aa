"""Whether an encoder says the same of everything, or says it in few dimensions: two numbers that need no labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def deviation(features: Float[Tensor, "n D"]) -> float:
    """Standard deviation of features of unit length, the mean over dimensions, times sqrt(D) (SimSiam, section 4.1).

    1 where they point everywhere alike; 0 where all are the same.
    """
    return float(F.normalize(features.double(), dim=1).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def rank_me(features: Float[Tensor, "n D"], epsilon: float = 1e-7) -> float:
    """In how many dimensions features vary: exp of the entropy of their singular values' shares (RankMe; Garrido et al., 2023).

    Between 1 and D. The singular values are the roots of the eigenvalues of the features' products, which is much faster for many
    features of few dimensions.
    """
    wide = features.double()
    wide = wide if len(wide) >= wide.shape[1] else wide.T
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=1e-300) + epsilon
    return float((-(shares * shares.log()).sum()).exp())


def collapse(features: Float[Tensor, "n D"]) -> dict[str, float]:
    """Both numbers, as logs and reports call them."""
    return {"feature_deviation": deviation(features), "rank_me": rank_me(features)}
