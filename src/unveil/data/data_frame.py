"""DataFrames of pandas or polars with one image a row. Neither library is imported."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unveil.data.label_table import FILE_COLUMNS, LABEL_COLUMNS, examples
from unveil.errors import UnveilError

PATH_COLUMNS = (*FILE_COLUMNS, "filepath", "file_path", "image_path")
LABELS = (*LABEL_COLUMNS, "labels")
SPLITS = ("split",)
"""Names of the columns, in any case. The first one that a table has is used."""


class Columns(NamedTuple):
    """The columns of a DataFrame that are used."""

    images: list[Any]
    """A path or an image of each row."""
    labels: list[Any] | None
    splits: list[Any] | None


def is_frame(data: Any) -> bool:
    """Whether DATA is a DataFrame."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__") and len(getattr(data, "shape", ())) == 2


def columns_of(frame: Any, label: str | None = None, label_names: Sequence[str] = LABELS) -> Columns:
    """The images, labels and splits of a DataFrame.

    Args:
        frame: The table, whose index is not used.
        label: The column of labels; by default the first one of `label_names` that there is.
        label_names: Names of columns, in lower case.

    Raises:
        UnveilError: If there is no column of images or no such column of labels, or a row has no image.
    """
    names = [str(name) for name in frame.columns]
    found = {kind: _first(names, wanted) for kind, wanted in {"image": PATH_COLUMNS, "label": label_names, "split": SPLITS}.items()}
    has = f"its columns are {examples(names[:20])}" if names else "it has no columns"
    if found["image"] is None:
        raise UnveilError(f"the DataFrame has no column of paths: expected one of {', '.join(PATH_COLUMNS[:5])}; {has}")
    if label is not None and label not in names:
        raise UnveilError(f"the DataFrame has no column {label!r} of labels; {has}")
    images = _column(frame, found["image"])
    empty = next((row for row, value in enumerate(images) if is_missing(value)), None)
    if empty is not None:
        raise UnveilError(f"row {empty} of the DataFrame has nothing in its column {found['image']!r}: leave such rows out")
    labels, splits = label or found["label"], found["split"]
    return Columns(images, None if labels is None else _column(frame, labels), None if splits is None else _column(frame, splits))


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NaT, NA or an empty string."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[name] for name in wanted if name in lower), None)


def _column(frame: Any, name: str) -> list[Any]:
    values = list(frame[name])
    if len(values) != len(frame):
        raise UnveilError(f"the DataFrame has several columns {name!r}: rename all but one")
    return values
