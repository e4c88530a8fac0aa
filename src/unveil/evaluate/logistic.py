"""Multinomial logistic regression on features that were computed once, by L-BFGS on all of them.

It converges, so it has no learning rate, batch size or number of epochs. Its penalty is chosen on a part of the train set that is
kept aside. It has the loss of scikit-learn's `LogisticRegression(C=1 / (n * penalty))` on standardised features.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unveil.tasks.linear import Linear

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Candidates for the weight of half the squared norm of the weights, beside the mean cross-entropy."""
KEPT_ASIDE = 0.2
"""Share of the train set on which the penalty is chosen."""
FEW_ROWS = 1_000
"""Up to this many rows, each fifth of them is kept aside in turn: with one fifth of 279, the choice and the accuracy changed by 16
points with the seed."""
MAX_SWEEP, PER_CLASS = 5_000, 10
"""Maximum number of rows on which candidates are fitted, and of rows for each class if there are many classes."""
MAX_STEPS, TOLERANCE, ROUGH = 200, 1e-4, 1e-3
"""Maximum number of steps, and the largest slope at which L-BFGS stops (as in scikit-learn); and that for candidates."""
MAX_ROWS, MAX_GRAM = 2**12, 2**14
"""Maximum numbers of rows that are computed at once, and that the curvature is estimated from."""
MAX_COPY = 2**27
"""Maximum number of values of which a standardised copy is kept. Of more, a few rows at a time are standardised in every step."""


def fit_logistic(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    classes: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
    groups: Int[Tensor, " n"] | None = None,
    seed: int = 0,
) -> tuple[Linear, float]:
    """Fits a linear classifier to features.

    Args:
        features: In float32, on the device to compute on.
        labels: Their classes.
        classes: The names of the classes.
        penalties: Candidates; if there are several, the one with the best accuracy on a part kept aside is taken.
        groups: Samples with the same number, such as crops of one photo, are kept aside together; by default all are different.
        seed: Draws that part.

    Returns:
        The classifier in eval mode, and the penalty.
    """
    labels = labels.to(features.device)
    penalty = penalties[0] if len(penalties) == 1 else choose_penalty(features, labels, len(classes), penalties, groups, seed)
    regression = LogisticRegression(features, labels, len(classes))
    weight, bias = regression.fit(penalty)
    task = Linear(features.shape[1], classes).to(features.device)
    norm, linear = task.head.norm, task.head.linear
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(regression.mean)
        norm.running_var.copy_(regression.deviation.square() - norm.eps)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return task.eval(), penalty


def choose_penalty(
    features: Float[Tensor, "n D"],
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    groups: Int[Tensor, " n"] | None,
    seed: int,
    kind: "type[LogisticRegression] | None" = None,
) -> float:
    """The penalty with the best `score` on a part kept aside, or of few rows on all parts in turn; the larger of two equal ones."""
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.arange(len(features)) if groups is None else groups.unique(return_inverse=True)[1].cpu()
    place = torch.rand(int(numbers.max()) + 1, generator=chance)[numbers]  # the same for a whole group
    order = place.argsort(stable=True)[: round(max(MAX_SWEEP, PER_CLASS * classes) / (1 - KEPT_ASIDE))]
    splits = parts_of(place, order)[: None if len(order) <= FEW_ROWS else 1]
    if not splits:
        return penalties[0]
    found = dict.fromkeys(sorted(penalties, reverse=True), 0.0)
    for aside, rest in (tuple(each.to(features.device) for each in split) for split in splits):
        regression = (kind or LogisticRegression)(features[rest], labels[rest], classes)
        test, start, right = regression.standardised(features[aside]), None, list[float]()
        for penalty in found:  # each one starts from the solution before it
            if len(splits) == 1 and len(right) > 2 and right[-1] < right[-2] < max(right):
                right.append(-math.inf)  # it becomes worse and worse
                continue
            start = regression.fit(penalty, start, tolerance=ROUGH)
            right.append(regression.score(F.linear(test, *start), labels[aside]))
        found = {penalty: total + score for (penalty, total), score in zip(found.items(), right, strict=True)}
    return max((total, penalty) for penalty, total in found.items())[1]


def parts_of(place: Float[Tensor, " n"], order: Int[Tensor, " k"]) -> list[tuple[Tensor, Tensor]]:
    """Divides rows by their places into five parts: the indices of its rows, and of all others. Empty parts are left out."""
    count = round(1 / KEPT_ASIDE)
    borders = [place[order[min(len(order) - 1, round(i * KEPT_ASIDE * len(order)))]] for i in range(1, count)]
    number = torch.bucketize(place[order], torch.stack(borders), right=True)
    parts = [(order[number == i], order[number != i]) for i in range(count)]
    return [(aside, rest) for aside, rest in parts if len(aside) and len(rest)]


class LogisticRegression:
    """The loss of a linear classifier of standardised features: the mean cross-entropy, plus a penalty.

    L-BFGS works in coordinates in which the curvature is about the same in all directions, which takes half of the steps. With
    fewer samples than features, it works in the space that the samples span, in which the solution of least norm lies.

    Args:
        features: The features.
        labels: Their classes.
        classes: The number of classes.
    """

    def __init__(self, features: Float[Tensor, "n D"], labels: Tensor, classes: int) -> None:
        self.features, self.labels, self.classes = features, labels, classes
        count, self.mean = len(features), features.mean(dim=0)
        squares = sum(((part - self.mean).square().sum(dim=0) for part in features.split(MAX_ROWS)), torch.zeros_like(self.mean))
        self.deviation = (squares / count + 1e-6).sqrt()  # as in the batch norm of a probe
        some = self.standardised(features[:: -(-count // MAX_GRAM)])
        self._copy = self.standardised(features) if features.numel() <= MAX_COPY else None
        self._basis = None
        if self._copy is not None and count < features.shape[1]:
            self._basis = torch.linalg.qr(self._copy.T).Q  # (D, n)
            self._copy = some = self._copy @ self._basis
        self._gram = (some.T @ some).double() / len(some)

    def score(self, logits: Float[Tensor, "m K"], labels: Tensor) -> float:
        """How good logits of other samples are: the number of correct predictions."""
        return int((logits.argmax(dim=1) == labels).sum())

    def standardised(self, features: Float[Tensor, "m D"]) -> Float[Tensor, "m D"]:
        """Features with the mean and the standard deviation of the train set taken out."""
        return (features - self.mean) / self.deviation

    def loss_and_gradient(self, joint: Float[Tensor, "K D+1"], penalty: float) -> tuple[Tensor, Float[Tensor, "K D+1"]]:
        """The loss of weights, whose last column are the biases, and its gradient."""
        weight, bias, count = joint[:, :-1], joint[:, -1], len(self.features)
        loss, gradient = penalty / 2 * weight.double().square().sum(), penalty * weight
        sums = torch.zeros_like(bias)
        plain = self.features if self._copy is None else self._copy
        for part, truth in zip(plain.split(MAX_ROWS), self.labels[:, None].split(MAX_ROWS), strict=True):
            rows = self.standardised(part) if self._copy is None else part
            logarithms = F.log_softmax(torch.addmm(bias, rows, weight.T), dim=1)
            loss = loss - logarithms.gather(1, truth).double().sum() / count
            error = logarithms.exp_().div_(count)
            error.scatter_add_(1, truth, error.new_full(truth.shape, -1 / count))
            gradient = gradient + error.T @ rows
            sums += error.sum(dim=0)
        return loss, torch.cat([gradient, sums[:, None]], dim=1)

    def fit(
        self,
        penalty: float,
        start: tuple[Tensor, Tensor] | None = None,
        *,
        max_steps: int = MAX_STEPS,
        tolerance: float = TOLERANCE,
    ) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
        """The weights and biases, for standardised features, with the least loss.

        Args:
            penalty: The weight of half the squared norm of the weights.
            start: Weights and biases to start from; by default zeros.
            max_steps: The maximum number of steps of L-BFGS.
            tolerance: The largest slope at which it stops.
        """
        from scipy.optimize import minimize  # imported here, since it takes a while

        width = len(self._gram)
        curvature = torch.eye(width + 1, dtype=torch.float64, device=self.mean.device)  # of the biases: 1
        curvature[:width, :width] = self._gram / self.classes
        curvature.diagonal()[:width] += penalty + 1e-5
        root = torch.linalg.cholesky(curvature)

        def back(flat: np.ndarray) -> Float[Tensor, "K D+1"]:
            scaled = torch.from_numpy(flat.reshape(self.classes, width + 1)).to(root)
            found: Tensor = torch.linalg.solve_triangular(root, scaled, upper=False, left=False)
            return found

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = self.loss_and_gradient(back(flat).to(self.mean), penalty)
            scaled = torch.linalg.solve_triangular(root.T, gradient.double(), upper=True, left=False)
            return float(loss), scaled.flatten().cpu().numpy()

        first = torch.zeros(self.classes, width + 1)
        if start is not None:
            weight = start[0] if self._basis is None else start[0] @ self._basis
            first = torch.cat([weight, start[1][:, None]], dim=1)
        options = {"maxiter": max_steps, "gtol": tolerance, "ftol": 1e-9, "maxfun": 2 * max_steps}
        with torch.no_grad():
            scaled = (first.to(root) @ root).flatten().cpu().numpy()
            joint = back(minimize(objective, scaled, jac=True, method="L-BFGS-B", options=options).x).to(self.mean)
        weight = joint[:, :-1] if self._basis is None else joint[:, :-1] @ self._basis.T
        return weight, joint[:, -1]
