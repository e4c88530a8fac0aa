"""Batches in the order of a run, made ahead of their time in a thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch, Samples
from unveil.data.dataset import ImageDataset
from unveil.data.shuffle import shuffled
from unveil.errors import UnveilError


class Loader(Protocol):
    """What the loop takes its batches from."""

    samples: int
    """Samples in an epoch."""
    batch_size: int
    """Samples in a step, over all processes."""
    instant: bool
    """Whether a batch costs next to nothing, so that a thread which makes it ahead of its time would only be in the way."""

    def share(self, step: int, share: int, shares: int) -> Samples:
        """One of the equal shares of a step's samples."""


class ImageLoader:
    """Shuffled images: which ones a step sees depends on the seed and the step alone.

    Args:
        images: Where they are taken from.
        places: The images to use; all by default.
        batch_size: Samples in a step, over all processes and parts.
        seed: Of the order, and of all that is drawn for a sample.
        repeats: Samples in a row that are made of an image, each with its own key; an epoch has as many samples as ever.
    """

    def __init__(
        self, dataset: ImageDataset, *, batch_size: int, seed: int, places: Int[Tensor, " n"] | None = None, repeats: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.repeats = dataset, batch_size, seed, repeats
        share_size(batch_size, repeats, "repeats")
        self.places = torch.arange(len(dataset)) if places is None else places
        self.samples, self.ring = len(self.places), self.places.sort().values
        self.instant = dataset.in_memory

    def share(self, step: int, share: int, shares: int) -> Batch:
        """See `Feed`."""
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        order = shuffled(self.seed, torch.arange(first, first + size) // self.repeats, self.samples)
        places = self.places[order]
        images, sizes = self.dataset.batch(places, among=self.ring)
        batch = Batch(images, sizes, sample_keys(self.seed, first, size), self.dataset.labels_of(places))
        return batch.pinned() if images.is_cuda else batch


class FeatureLoader:
    """Shuffled rows of a table of features, fed like images."""

    instant = True

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.features, self.labels, self.batch_size, self.seed = features, labels, batch_size, seed
        self.samples = len(features)

    def share(self, step: int, share: int, shares: int) -> Batch:
        """See `Feed`."""
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        order = shuffled(self.seed, torch.arange(first, first + size), self.samples)
        keys = sample_keys(self.seed, first, size)
        return Batch(self.features[order], torch.ones(size, 2, dtype=torch.int64), keys, self.labels[order])


def share_size(batch_size: int, shares: int, why: str = "processes x accumulation") -> int:
    """Samples in each of the equal shares of a batch. Raises `UnveilError` where it does not divide."""
    if shares < 1 or batch_size % shares:
        better = f"use {max(batch_size // shares, 1) * shares}" if shares > 0 else "use 1 or more"
        raise UnveilError(f"batch size {batch_size} does not divide by {shares} ({why}): {better}")
    return batch_size // shares


def first_batch(loader: Loader, most: int = 256) -> Samples:
    """Some of the first samples of a run, at most so many: the same ones on any number of processes."""
    shares = next(n for n in range(1, loader.batch_size + 1) if loader.batch_size % n == 0 and loader.batch_size // n <= most)
    return loader.share(0, 0, shares)


def batches(loader: Loader, step: int, rank: int, world: int, parts: int) -> list[Samples]:
    """What process `rank` of `world` sees in a step, in `parts` equal batches."""
    return [loader.share(step, part * world + rank, world * parts) for part in range(parts)]


def pinned_batches(loader: Loader, step: int, rank: int, world: int, parts: int) -> list[Samples]:
    """The same, in memory that a GPU reads without making the processor wait."""
    made = batches(loader, step, rank, world, parts)
    return [batch.pinned() for batch in made] if torch.cuda.is_available() else made


def stream(loader: Loader, steps: range, rank: int, world: int, parts: int, ahead: int = 2) -> Iterator[tuple[int, list[Samples]]]:
    """The steps and their batches, up to `ahead` of them made in advance."""
    if loader.instant:
        for step in steps:
            yield step, batches(loader, step, rank, world, parts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        waiting: deque[tuple[int, Future[list[Samples]]]] = deque()
        for step in steps:
            waiting.append((step, pool.submit(pinned_batches, loader, step, rank, world, parts)))
            if len(waiting) > ahead:
                first, made = waiting.popleft()
                yield first, made.result()
        for first, made in waiting:
            yield first, made.result()
