"""What a model predicts, as the columns of a table."""

import html
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from unveil.data.augment import standardise
from unveil.data.batch import Batch
from unveil.data.eval_transform import EvalTransform
from unveil.data.image_list import for_model, raw_image, with_bits
from unveil.data.images import read_image
from unveil.data.pixels import Pixels, Unreadable
from unveil.errors import UnveilError
from unveil.models.vit_config import ViTConfig

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
    def labels(self) -> list[Any]:
        """The predicted label of each sample; those of a multi-label model are joined by "|", and a number is a number."""
        found: list[Any] = self[next(name for name in ("label", "labels", "value") if name in self)].tolist()
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


class Predictions(list[Any]):
    """Predictions in memory that are no rows of a table, such as class maps: one for each image that could be read.

    Attributes:
        names: The names of the images.
        classes: The names of the classes, which the predictions number.
        skipped: The images that could not be read, by name, with the reason.
    """

    names: list[str]
    classes: list[str]
    skipped: dict[str, str]


class PredictsClasses(nn.Module, ABC):
    """The part of a learner that turns class scores into columns. A task whose output means something else overrides it."""

    classes: Sequence[str]
    encoder: Any

    @abstractmethod
    def predict(self, batch: Any) -> Any:
        """See `unveil.learner.Task.predict`."""

    @torch.inference_mode()
    def predict_images(
        self, images: Iterable[Any], *, top_k: int = 1, scores: bool = False, batch_size: int = 64, max_pixels: int = 64_000_000
    ) -> "Table":
        """Labels images as `unveil predict` does, in float32 unless the caller's autocast says otherwise.

        Args:
            images: Paths, Pillow images, arrays (H, W) or (H, W, C), or tensors (C, H, W), of any size: see `raw_image`.
            top_k: Number of best labels.
            scores: Whether to add the probability of every class.
            batch_size: Images that are computed together.
            max_pixels: An image with more pixels than this is refused.

        Returns:
            The columns `label` and `probability`, and more as in `columns`; with `.labels`, `.probabilities` and `.scores` (n, K).

        Raises:
            UnveilError: If the model takes no images, or one of them cannot be read.
        """
        vit = self.encoder.config
        if not isinstance(vit, ViTConfig):
            raise UnveilError(f"{type(self).__name__} takes no images: for texts, use unveil.predict")
        refuse_single(images)
        transform, device = EvalTransform.of(vit), next(iter(self.state_dict().values())).device
        found, waiting = list[Tensor](), list[Pixels]()
        for number, image in enumerate(chain(images, [None])):
            if image is not None:
                name = str(image) if isinstance(image, str | PathLike) else f"image {number}"
                try:
                    raw, deep = raw_image(image, name, vit.channels), vit.bit_depth == 16
                    waiting.append(for_model(raw, transform, vit.channels, deep=deep, max_pixels=max_pixels, name=name))
                except Unreadable as error:
                    raise UnveilError(f"{error}") from None
            if waiting and (image is None or len(waiting) == batch_size):
                pixels = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).to(device)
                keys = torch.arange(len(waiting), device=device)
                sizes = torch.tensor(vit.image_size, device=device).expand(len(waiting), 2)
                found.append(self.predict(Batch(standardise(pixels, vit.mean, vit.std), sizes, keys)).float().cpu())
                waiting = []
        if not found:
            raise UnveilError(NO_IMAGES)
        return self.table(torch.cat(found), top_k=top_k, scores=scores)

    def table(self, predictions: Tensor, *, top_k: int = 1, scores: bool = False, before: "Columns | None" = None) -> "Table":
        """Predictions in memory, with the columns `before` on their left."""
        table = Table((before or {}) | self.columns(predictions, top_k=top_k, scores=scores))
        table.scores, table.probabilities, table.skipped = predictions.numpy(), self.probabilities(predictions).numpy(), {}
        return table

    def probabilities(self, predictions: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The probability of each class, from the result of `predict`."""
        return predictions.float().softmax(dim=1)

    def check_columns(self, top_k: int, scores: bool, owner: str) -> None:
        """Raises `UnveilError` if a model, whose name is `owner`, cannot write so many best labels, or scores: see `columns`."""
        count = len(self.classes)
        if count and top_k > count:
            raise UnveilError(f"top_k is {top_k}, but {owner} has {count} classes: use 1 to {count}")

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
        self.check_columns(top_k, scores, "the model")
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


def whole_image_predictions(task: Any, images: Iterable[Any], *, max_pixels: int) -> Iterator[Any]:
    """What a task with `whole_images` predicts for each of several images, as a batch of one.

    Args:
        task: The task.
        images: See `raw_image`.
        max_pixels: An image with more pixels than this is refused.

    Raises:
        UnveilError: If there are no images, or one of them cannot be read.
    """
    vit: ViTConfig = task.encoder.config
    refuse_single(images)
    device, number = next(iter(task.state_dict().values())).device, -1
    for number, image in enumerate(images):
        name = str(image) if isinstance(image, str | PathLike) else f"image {number}"
        try:
            raw = raw_image(image, name, vit.channels)
            pixels = with_bits(read_image(raw, channels=vit.channels, max_pixels=max_pixels, name=name), vit.bit_depth == 16)
        except Unreadable as error:
            raise UnveilError(f"{error}") from None
        canvas = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
        size = torch.tensor([pixels.shape[:2]], device=device)
        yield task.predict(Batch(canvas, size, torch.tensor([number], device=device)))
    if number < 0:
        raise UnveilError(NO_IMAGES)


NO_IMAGES = "predict_images was given no images: give a list with at least one"


def refuse_single(images: Any) -> None:
    """Raises `UnveilError` for one image in place of several."""
    if isinstance(images, str | bytes | PathLike | Image.Image) or getattr(images, "ndim", 4) != 4:
        raise UnveilError("predict_images takes several images: give a list, such as [image]")


def score_names(classes: Sequence[str]) -> list[str]:
    """The names of the columns of `--scores`. Classes of the same name, such as the two cranes of ImageNet, get their number."""
    counts = Counter(classes)
    return [f"p({name})" if counts[name] == 1 else f"p({name} #{index})" for index, name in enumerate(classes)]
