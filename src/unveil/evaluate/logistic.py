"""Multinomial logistic regression on features that were computed once, by L-BFGS on all of them.

It converges, so it has no learning rate, batch size or number of epochs. Its penalty is chosen on a part of the train set that is
kept aside. It has the loss of scikit-learn's `LogisticRegression(C=1 / (n * penalty))` on standardised features.
"""

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
MAX_SWEEP = 10_000
"""Maximum number of rows on which candidates are fitted."""
MAX_STEPS, TOLERANCE = 200, 1e-5
"""Maximum number of steps, and the largest slope at which L-BFGS stops."""
MAX_ROWS = 2**12
"""Maximum number of rows that are standardised and computed at once. A standardised copy of all could need too much memory."""


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
    weight, bias = minimise(features, labels, len(classes), penalty)
    mean, deviation = moments(features)
    task = Linear(features.shape[1], classes).to(features.device)
    norm, linear = task.head.norm, task.head.linear
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(deviation.square() - norm.eps)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return task.eval(), penalty


def choose_penalty(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    classes: int,
    penalties: Sequence[float],
    groups: Int[Tensor, " n"] | None,
    seed: int,
) -> float:
    """The penalty with the best accuracy on a part kept aside; the larger of two that are equally good."""
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.arange(len(features)) if groups is None else groups.unique(return_inverse=True)[1].cpu()
    place = torch.rand(int(numbers.max()) + 1, generator=chance)[numbers]  # the same for a whole group
    order = place.argsort(stable=True)[: round(MAX_SWEEP / (1 - KEPT_ASIDE))]
    border = place[order[min(len(order) - 1, round(KEPT_ASIDE * len(order)))]]
    aside, rest = (order[each].to(features.device) for each in (place[order] < border, place[order] >= border))
    if not len(aside) or not len(rest):
        return penalties[0]
    train = features[rest]
    start, found = None, []
    for penalty in sorted(penalties, reverse=True):  # each one starts from the solution before it
        start = minimise(train, labels[rest], classes, penalty, start=start)
        mean, deviation = moments(train)
        scores = F.linear((features[aside] - mean) / deviation, *start)
        found.append((int((scores.argmax(dim=1) == labels[aside]).sum()), penalty))
    return max(found)[1]


def moments(features: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of each feature, as in the batch norm of a probe."""
    count, mean = len(features), features.mean(dim=0)
    squares = sum(((part - mean).square().sum(dim=0) for part in features.split(MAX_ROWS)), torch.zeros_like(mean))
    return mean, (squares / count + 1e-6).sqrt()


def minimise(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    classes: int,
    penalty: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    max_steps: int = MAX_STEPS,
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """The classifier of standardised features with the least loss: the mean cross-entropy, plus the penalty.

    Args:
        features: The features, which are standardised here.
        labels: Their classes.
        classes: The number of classes.
        penalty: The weight of half the squared norm of the weights.
        start: Weights and biases to start from; by default zeros.
        max_steps: The maximum number of steps.

    Returns:
        Weights and biases, for standardised features.
    """
    from scipy.optimize import minimize  # imported here, since it takes a while

    count, width = features.shape
    mean, deviation = moments(features)
    first = torch.zeros(classes, width + 1) if start is None else torch.cat([start[0], start[1][:, None]], dim=1)

    def as_pair(flat: np.ndarray) -> tuple[Tensor, Tensor]:
        joint = torch.from_numpy(flat.reshape(classes, width + 1)).to(features)
        return joint[:, :width], joint[:, width]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = as_pair(flat)
        loss, gradient, sums = penalty / 2 * weight.square().sum(), penalty * weight, torch.zeros_like(bias)
        for rows, truth in zip(features.split(MAX_ROWS), labels[:, None].split(MAX_ROWS), strict=True):
            rows = (rows - mean) / deviation
            logarithms = F.log_softmax(torch.addmm(bias, rows, weight.T), dim=1)
            loss = loss - logarithms.gather(1, truth).sum() / count
            error = logarithms.exp_().div_(count)
            error.scatter_add_(1, truth, error.new_full(truth.shape, -1 / count))
            gradient = gradient + error.T @ rows
            sums = sums + error.sum(dim=0)
        return float(loss), torch.cat([gradient, sums[:, None]], dim=1).double().flatten().cpu().numpy()

    options = {"maxiter": max_steps, "gtol": TOLERANCE, "ftol": 0.0}
    with torch.no_grad():
        found = minimize(loss_and_gradient, first.double().flatten().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    return as_pair(found.x)
