"""What a model predicts, as the columns of a table."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unveil.errors import UnveilError

Columns = dict[str, NDArray[Any]]
"""Columns of one length by name: texts, or numbers."""


class Table(Columns):
    """Predictions in memory: a dictionary with one array for each column, so `pandas.DataFrame(table)` takes it.

    Attributes:
        scores: What the model puts out for each sample, such as class scores (n, K) before the softmax.
        probabilities: The probability of each class (n, K).
        skipped: The samples that could not be read, by name, with the reason. They have no row.
    """

    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    skipped: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """The predicted label of each sample."""
        found: list[str] = self["label"].tolist()
        return found

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.values()), ()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, as dictionaries of plain values."""
        for values in zip(*(column.tolist() for column in self.values()), strict=True):
            yield dict(zip(self, values, strict=True))

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`. Raises `UnveilError` if pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]  # it may be absent, or have no stubs
        except ImportError:
            raise UnveilError("pandas is not installed: pip install pandas, or use the columns as they are") from None
        return pandas.DataFrame(dict(self))

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self)
        body = [
            "<tr>" + "".join(f"<td>{html.escape(f'{value:.4g}' if isinstance(value, float) else str(value))}</td>" for value in row)
            for row in zip(*(column[:20].tolist() for column in self.values()), strict=True)
        ]
        more = f"<p>{self.count:,} rows</p>" if self.count > len(body) else ""
        return f"<table><tr>{head}</tr>{''.join(body)}</table>{more}"


class PredictsClasses:
    """The part of a learner that turns class scores into columns. A task whose output means something else overrides it."""

    classes: Sequence[str]

    def probabilities(self, predictions: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The probability of each class, from the result of `predict`."""
        return predictions.float().softmax(dim=1)

    def columns(self, predictions: Float[Tensor, "B K"], *, top_k: int = 1, scores: bool = False) -> Columns:
        """One row per sample: `label` and `probability`; `label_2`, `probability_2`, ... of the next best; `p(NAME)` of each class.

        Args:
            predictions: The result of `predict`, on the CPU.
            top_k: Number of best classes.
            scores: Whether to add the probability of every class.

        Raises:
            UnveilError: If there are no class scores, or fewer classes than `top_k`.
        """
        if predictions.ndim != 2 or predictions.shape[1] != len(self.classes):
            raise UnveilError(
                f"{type(self).__name__} predicts {tuple(predictions.shape[1:])} values for each sample, not the scores of its "
                f"{len(self.classes)} classes: a task of this kind has no labels to write"
            )
        if top_k > len(self.classes):
            raise UnveilError(f"top_k is {top_k}, but the model has {len(self.classes)} classes: use 1 to {len(self.classes)}")
        shares = self.probabilities(predictions)
        best = shares.sort(dim=1, descending=True, stable=True)  # of equal ones, the first class
        names, found = np.array(self.classes), Columns()
        for rank in range(top_k):
            suffix = f"_{rank + 1}" if rank else ""
            found[f"label{suffix}"] = names[best.indices[:, rank].numpy()]
            found[f"probability{suffix}"] = best.values[:, rank].numpy()
        if scores:
            found |= {name: shares[:, index].numpy() for index, name in enumerate(score_names(self.classes))}
        return found


def score_names(classes: Sequence[str]) -> list[str]:
    """The names of the columns of `--scores`. Classes of the same name, such as the two cranes of ImageNet, get their number."""
    counts = Counter(classes)
    return [f"p({name})" if counts[name] == 1 else f"p({name} #{index})" for index, name in enumerate(classes)]
