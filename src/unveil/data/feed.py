"""Batches in the order of a run, made ahead of their time in a thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.chance import sample_keys
from unveil.data.batch import Batch
from unveil.data.cache import Pictures
from unveil.data.order import shuffled
from unveil.errors import UnveilError


class Feed(Protocol):
    """What the loop takes its batches from."""

    samples: int
    """Samples in an epoch."""
    batch_size: int
    """Samples in a step, over all processes."""
    instant: bool
    """Whether a batch costs next to nothing, so that a thread which makes it ahead of its time would only be in the way."""

    def batches(self, step: int, rank: int, world: int, parts: int) -> list[Batch]:
        """What process `rank` of `world` sees in a step, in `parts` equal batches."""


class PictureFeed:
    """Shuffled pictures: which ones a step sees depends on the seed and the step alone.

    Args:
        pictures: Where they are taken from.
        places: The pictures to use; all by default.
        batch_size: Samples in a step, over all processes and parts.
        seed: Of the order, and of all that is drawn for a sample.
    """

    def __init__(self, pictures: Pictures, *, batch_size: int, seed: int, places: Int[Tensor, " n"] | None = None) -> None:
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed
        self.places = torch.arange(len(pictures)) if places is None else places
        self.samples, self.ring = len(self.places), self.places.sort().values
        self.instant = pictures.in_memory

    def batches(self, step: int, rank: int, world: int, parts: int) -> list[Batch]:
        """See `Feed`."""
        return [self.share(step, part * world + rank, world * parts) for part in range(parts)]

    def share(self, step: int, share: int, shares: int) -> Batch:
        """One of the equal shares of a step's samples."""
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        order = shuffled(self.seed, torch.arange(first, first + size), self.samples)
        places = self.places[order]
        images, sizes = self.pictures.batch(places, among=self.ring)
        return Batch(images, sizes, sample_keys(self.seed, first, size), self.pictures.labels_of(places))


def share_size(batch_size: int, shares: int) -> int:
    """Samples in each of the equal shares of a batch. Raises `UnveilError` where it does not divide."""
    if batch_size % shares:
        better = max(batch_size // shares, 1) * shares
        raise UnveilError(f"batch size {batch_size} does not divide by {shares} (processes x accumulation): use {better}")
    return batch_size // shares


def stream(feed: Feed, steps: range, rank: int, world: int, parts: int, ahead: int = 2) -> Iterator[tuple[int, list[Batch]]]:
    """The steps and their batches, up to `ahead` of them made in advance."""
    if feed.instant:
        for step in steps:
            yield step, feed.batches(step, rank, world, parts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        waiting: deque[tuple[int, Future[list[Batch]]]] = deque()
        for step in steps:
            waiting.append((step, pool.submit(feed.batches, step, rank, world, parts)))
            if len(waiting) > ahead:
                first, batches = waiting.popleft()
                yield first, batches.result()
        for first, batches in waiting:
            yield first, batches.result()


class TableFeed:
    """Shuffled rows of a table of features, fed like pictures."""

    instant = True

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.features, self.labels, self.batch_size, self.seed = features, labels, batch_size, seed
        self.samples = len(features)

    def batches(self, step: int, rank: int, world: int, parts: int) -> list[Batch]:
        """See `Feed`."""
        size = share_size(self.batch_size, world * parts)
        rows = []
        for part in range(parts):
            first = step * self.batch_size + (part * world + rank) * size
            order = shuffled(self.seed, torch.arange(first, first + size), self.samples)
            keys = sample_keys(self.seed, first, size)
            rows.append(Batch(self.features[order], torch.ones(size, 2, dtype=torch.int64), keys, self.labels[order]))
        return rows
