"""Batches in the order of a run, prefetched in a thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import Stream, combine, sample_keys
from unveil.data.batch import Batch, Samples
from unveil.data.copy_stream import CopyStream, Sent
from unveil.data.dataset import ImageDataset, ImagesLostError
from unveil.data.shuffle import Order, shuffled
from unveil.data.targets import ClassTargets, Draw
from unveil.errors import UnveilError

MAX_UNREADABLE = 0.01
"""Default for the share of the images that may become unreadable during training."""


class Loader(Protocol):
    """The source of batches for the training loop."""

    samples: int
    """Number of samples in an epoch."""
    batch_size: int
    """Number of samples in a step, over all processes."""
    prefetch: bool
    """Whether to prefetch batches in a thread. For batches that cost almost nothing, a thread would only slow things down."""

    def share(self, step: int, share: int, shares: int) -> Samples:
        """Returns one of `shares` equal shares of the samples of a step."""


class ImageLoader:
    """Shuffled images. The images of a step depend only on the seed and the step.

    Args:
        dataset: The images.
        batch_size: Samples in a step, over all processes and microbatches.
        seed: Seed of the order, and of the random numbers of each sample.
        indices: The images to use; by default all.
        repeats: Number of consecutive samples from one image, each with its own key (repeated augmentation). An epoch counts
            samples, so its length does not change.
        max_unreadable: Maximum share of the images that may become unreadable after the dataset was opened.
        draw: Draws the crops, see `ImageDataset.samples` and `Learner.draw_early`. By default, batches have whole images.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        batch_size: int,
        seed: int,
        indices: Int[Tensor, " n"] | None = None,
        repeats: int = 1,
        max_unreadable: float = MAX_UNREADABLE,
        draw: Draw | None = None,
    ) -> None:
        self.draw = draw
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.repeats, self.max_unreadable = repeats, max_unreadable
        share_size(batch_size, repeats, "repeats")
        self.indices = torch.arange(len(dataset)) if indices is None else indices
        self.samples = len(self.indices)
        self.order = Order(seed, self.samples, batch_size, repeats)
        self._members = np.zeros(len(dataset), dtype=bool)
        self._members[self.indices.numpy()] = True
        self.prefetch = not dataset.in_memory

    def move_to(self, device: torch.device) -> bool:
        """Moves the images to the device on which training runs, if it is a GPU and they fit. Returns whether it did.

        If they do not fit, batches are prefetched even if images are in memory, since the CPU is idle while a GPU trains.
        """
        on_gpu = self.dataset.to_gpu(device)
        if not on_gpu and device.type != "cpu":
            self.prefetch = True
        return on_gpu

    def share(self, step: int, share: int, shares: int) -> Batch:
        """Returns one of `shares` equal shares of the samples of a step.

        Raises:
            ImagesLostError: If more than `max_unreadable` of the images have become unreadable.
        """
        self._check_lost()
        size = share_size(self.batch_size, shares)
        keys = sample_keys(self.seed, step * self.batch_size + share * size, size)
        chosen = self.indices[self.order.indices(step, share, shares)]
        places = self.order.places(step, share, shares)
        batch = self.dataset.samples(chosen, keys, lambda row: self._candidates(int(places[row])), self.draw)
        self._check_lost()
        return batch.pinned() if batch.images.is_cuda else batch

    def names(self, step: int, share: int, shares: int) -> list[str]:
        """The names of the images of `share`. Where one cannot be read, `share` has another one."""
        share_size(self.batch_size, shares)
        return [self.dataset.names[i] for i in self.indices[self.order.indices(step, share, shares)].tolist()]

    def _candidates(self, position: int) -> Iterator[int]:
        """All images of the loader, in a random order that depends only on the seed and the position of the sample to replace."""
        seed = int(combine(sample_keys(self.seed, position, 1), Stream.SUBSTITUTE))
        for few in torch.split(torch.arange(self.samples), 16):
            self._check_lost()
            yield from self.indices[shuffled(seed, few, self.samples)].tolist()

    def _check_lost(self) -> None:
        lost = self.dataset.lost_among(self._members)
        if lost > self.max_unreadable * self.samples:
            name, fault = next((self.dataset.names[i], x) for i, x in self.dataset.faults() if x.lost and self._members[i])
            raise ImagesLostError(
                f"{lost:,} of {self.samples:,} training images ({lost / self.samples:.1%}) have become unreadable since the start, "
                f"more than --max-unreadable {self.max_unreadable:g} allows; the first is {name}: {fault.reason}"
            )


class FeatureLoader:
    """Shuffled rows of a table of features, as batches whose `images` are (B, D)."""

    prefetch = False

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.features, self.labels, self.batch_size, self.seed = features, labels, batch_size, seed
        self.samples = len(features)
        self.order = Order(seed, self.samples, batch_size)

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = share_size(self.batch_size, shares)
        keys = sample_keys(self.seed, step * self.batch_size + share * size, size)
        order = self.order.indices(step, share, shares)
        return Batch(self.features[order], torch.ones(size, 2, dtype=torch.int64), keys, ClassTargets(self.labels[order]))


def share_size(batch_size: int, shares: int, reason: str = "processes x accum_steps") -> int:
    """Samples in each of the equal shares of a batch. Raises `UnveilError` if the batch size is not a multiple of `shares`."""
    if shares < 1 or batch_size % shares:
        better = f"use {max(batch_size // shares, 1) * shares}" if shares > 0 else "use 1 or more"
        raise UnveilError(f"batch size {batch_size} is not a multiple of {shares} ({reason}): {better}")
    return batch_size // shares


def first_batch(loader: Loader, max_count: int = 256) -> Samples:
    """Up to `max_count` of the first samples of a run. They are the same for any number of processes."""
    sizes = range(1, loader.batch_size + 1)
    shares = next(n for n in sizes if loader.batch_size % n == 0 and loader.batch_size // n <= max_count)
    return loader.share(0, 0, shares)


def microbatches(loader: Loader, step: int, rank: int, world_size: int, count: int) -> list[Samples]:
    """The samples of process `rank` in a step, as `count` equal microbatches. A process has the same samples for any `count`."""
    return [loader.share(step, rank * count + number, world_size * count) for number in range(count)]


def pinned_microbatches(loader: Loader, step: int, rank: int, world_size: int, count: int) -> list[Samples]:
    """`microbatches` in page-locked memory, if there is a GPU."""
    batches = microbatches(loader, step, rank, world_size, count)
    return [batch.pinned() for batch in batches] if torch.cuda.is_available() else batches


def stream(
    loader: Loader, steps: range, rank: int, world_size: int, count: int, ahead: int = 2, gpu: torch.device | None = None
) -> Iterator[tuple[int, list[Samples]]]:
    """Yields the microbatches of each step, and prefetches up to `ahead` steps.

    Args:
        loader: The loader.
        steps: The steps.
        rank: The number of this process.
        world_size: The number of processes.
        count: Microbatches of a process in a step.
        ahead: Steps to prefetch in a thread, if the loader wants that.
        gpu: Where the thread sends what it prefetches; None leaves it in page-locked memory.
    """
    if not loader.prefetch:
        for step in steps:
            yield step, microbatches(loader, step, rank, world_size, count)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    waiting: deque[tuple[int, Future[Sent]]] = deque()
    copies = None if gpu is None else CopyStream(gpu)

    def prefetched(step: int) -> Sent:
        if copies is not None:
            return copies.send(microbatches(loader, step, rank, world_size, count))
        return pinned_microbatches(loader, step, rank, world_size, count), None

    def received(sent: Sent) -> list[Samples]:
        return sent[0] if copies is None else copies.receive(sent)

    try:
        for step in steps:
            waiting.append((step, pool.submit(prefetched, step)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, received(future.result())
        for first, future in waiting:
            yield first, received(future.result())
    finally:  # without waiting for a read that may hang
        pool.shutdown(wait=False, cancel_futures=True)
