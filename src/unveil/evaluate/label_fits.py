"""Linear fits of features to labels that are not classes: a logistic regression for each label, and a ridge regression.

With them, fine-tuning on such labels starts (LP-FT, arXiv 2202.10054), as that on classes starts from `unveil.evaluate.logistic`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unveil.evaluate.logistic import MAX_ROWS, PENALTIES, LogisticRegression, choose_penalty

RIDGE_PENALTIES = tuple(10.0**power for power in range(-3, 7))
"""Candidates for the weight of the squared norm of the weights, beside the sum of the squared errors."""
FOLDS = 5
"""Folds on which the penalty of a ridge regression is chosen, if samples have groups."""


class LabelRegressions(LogisticRegression):
    """The loss of a logistic regression for each label of standardised features: cross-entropies, each with a penalty.

    Each label has the mean cross-entropy of the samples for which it is known, so its solution is that of scikit-learn's
    `LogisticRegression(C=1 / (n * penalty))` of this label alone, on these n samples.

    Args:
        features: The features.
        labels: (n, K) 1, 0, or NaN where a label is unknown.
        classes: The number of labels.
    """

    def __init__(self, features: Float[Tensor, "n D"], labels: Float[Tensor, "n K"], classes: int) -> None:
        super().__init__(features, labels, classes)
        self.counts = (~labels.isnan()).sum(dim=0).clamp(min=1)  # (K,)

    def score(self, logits: Float[Tensor, "m K"], labels: Tensor) -> float:
        """The mean binary cross-entropy of the labels that are known, with its sign turned."""
        known = ~labels.isnan()
        return -float(F.binary_cross_entropy_with_logits(logits[known], labels[known])) if bool(known.any()) else 0.0

    def loss_and_gradient(self, joint: Float[Tensor, "K D+1"], penalty: float) -> tuple[Tensor, Float[Tensor, "K D+1"]]:
        weight, bias = joint[:, :-1], joint[:, -1]
        loss, gradient = penalty / 2 * weight.double().square().sum(), penalty * weight
        sums = torch.zeros_like(bias)
        plain = self.features if self._copy is None else self._copy
        for part, truth in zip(plain.split(MAX_ROWS), self.labels.split(MAX_ROWS), strict=True):
            rows = self.standardised(part) if self._copy is None else part
            logits, known = torch.addmm(bias, rows, weight.T), ~truth.isnan()
            wanted = truth.nan_to_num(0.0)
            errors = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            loss = loss + (errors * known / self.counts).double().sum()
            slope = (logits.sigmoid() - wanted) * known / self.counts
            gradient = gradient + slope.T @ rows
            sums += slope.sum(dim=0)
        return loss, torch.cat([gradient, sums[:, None]], dim=1)


def fit_labels(
    features: Float[Tensor, "n D"],
    values: Float[Tensor, "n K"],
    *,
    penalties: Sequence[float] = PENALTIES,
    groups: Int[Tensor, " n"] | None = None,
    seed: int = 0,
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """Fits a logistic regression for each label, all with the same penalty.

    Args:
        features: In float32.
        values: 1, 0, or NaN where a label is unknown.
        penalties: Candidates; if there are several, the one with the least cross-entropy on a part kept aside is taken.
        groups: Samples with the same number are kept aside together; by default all are different.
        seed: Draws that part.

    Returns:
        The weights and the biases, for the features as they are.
    """
    classes = values.shape[1]
    penalty = penalties[0]
    if len(penalties) > 1:
        penalty = choose_penalty(features, values, classes, penalties, groups, seed, LabelRegressions)
    regression = LabelRegressions(features, values, classes)
    weight, bias = regression.fit(penalty)
    weight = weight / regression.deviation
    return weight, bias - weight @ regression.mean


def fit_ridge(
    features: Float[Tensor, "n D"],
    values: Float[Tensor, " n"],
    *,
    penalties: Sequence[float] = RIDGE_PENALTIES,
    groups: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "1 D"], Float[Tensor, " 1"]]:
    """Fits a ridge regression to standardised features.

    Args:
        features: In float32.
        values: The number of each sample.
        penalties: Candidates; if there are several, one is chosen by leaving out each sample, or a fifth of the groups.
        groups: Samples with the same number are left out together; by default all are different.

    Returns:
        The weights and the bias, for the features as they are.
    """
    from sklearn.linear_model import RidgeCV  # imported here, since it takes a while
    from sklearn.model_selection import GroupKFold

    rows = features.double()
    mean, deviation = rows.mean(dim=0), (rows.var(dim=0, correction=0) + 1e-6).sqrt()  # as in `LogisticRegression`
    standardised, folds = ((rows - mean) / deviation).cpu().numpy(), None
    if groups is not None and len(groups.unique()) >= FOLDS:
        folds = list(GroupKFold(FOLDS).split(standardised, groups=groups.cpu().numpy()))
    fit = RidgeCV(list(penalties), cv=folds).fit(standardised, values.double().cpu().numpy())
    weight = torch.from_numpy(np.atleast_1d(fit.coef_)).to(deviation) / deviation
    bias = float(fit.intercept_) - weight @ mean
    return weight.float()[None], bias.float()[None]
