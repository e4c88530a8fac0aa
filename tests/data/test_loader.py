"""Batches: the same samples on one process or many, in the order of the run."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import FeatureLoader, ImageLoader, first_batch, microbatches, share_size, stream
from unveil.data.shuffle import shuffled
from unveil.data.sources import array_source
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError

COUNT, SIZE = 22, 8


def image_loader(places: torch.Tensor | None = None, memory: int = MEMORY, repeats: int = 1) -> ImageLoader:
    array = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), dtype=np.uint8)
    images = ImageDataset(array_source(array, np.arange(COUNT) % 7), side=4, memory=memory)
    return ImageLoader(images, batch_size=SIZE, seed=3, indices=places, repeats=repeats)


def feature_loader() -> FeatureLoader:
    features = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(0))
    return FeatureLoader(features, torch.arange(COUNT) % 7, batch_size=SIZE, seed=3)


def joined(parts: list[Batch]) -> Batch:
    tensors = [flat(part) for part in parts]
    *columns, labels = (torch.cat(column) for column in zip(*tensors, strict=True))
    return Batch(*columns, ClassTargets(labels))


def flat(batch: Batch) -> list[torch.Tensor]:
    assert isinstance(batch.targets, ClassTargets)
    return [batch.images, batch.sizes, batch.keys, batch.targets.labels]


@pytest.mark.parametrize(
    "make", [image_loader, feature_loader, partial(image_loader, repeats=4), partial(image_loader, memory=0, repeats=2)]
)
@pytest.mark.parametrize(("world", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (4, 2)])
def test_shares_make_up_the_same_step(make, world, parts):
    loader = make()
    for step in (0, 1, 2, 7):  # step 2 crosses the end of an epoch
        (whole,) = microbatches(loader, step, 0, 1, 1)
        by_rank = [microbatches(loader, step, rank, world, parts) for rank in range(world)]
        shares = [by_rank[rank][part] for rank in range(world) for part in range(parts)]
        assert {len(share.keys) for share in shares} == {SIZE // (world * parts)}
        for ours, true in zip(flat(joined(shares)), flat(whole), strict=True):
            assert torch.equal(ours, true)


def test_a_step_is_what_the_order_says():
    loader = image_loader()
    array = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), dtype=np.uint8)
    for step in range(6):
        (batch,) = microbatches(loader, step, 0, 1, 1)
        for i in range(SIZE):
            number = step * SIZE + i
            place = int(shuffled(3, torch.tensor([number]), COUNT))
            assert torch.equal(batch.images[i].permute(1, 2, 0), torch.from_numpy(array[place]))
            assert batch.targets.labels[i] == place % 7
            assert batch.keys[i] == sample_keys(3, number, 1)
            assert batch.sizes[i].tolist() == [4, 5]


def test_an_epoch_shows_each_image_once():
    places = torch.tensor([1, 4, 9, 16, 0, 21])
    loader = image_loader(places)
    assert loader.samples == 6
    seen = torch.cat([microbatches(loader, step, 0, 1, 1)[0].images for step in range(3)])  # 24 samples: 4 epochs of 6
    array = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), dtype=np.uint8)
    wanted = sorted(array[i].transpose(2, 0, 1).tobytes() for i in places.tolist())
    for epoch in range(4):
        assert sorted(x.numpy().tobytes() for x in seen[epoch * 6 : epoch * 6 + 6]) == wanted


@pytest.mark.parametrize("repeats", [1, 2, 4, 8])
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_repeats_are_samples_of_one_image_with_keys_of_their_own(repeats, memory):
    loader = image_loader(repeats=repeats, memory=memory)
    assert loader.samples == COUNT  # an epoch has as many samples as ever
    array = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), dtype=np.uint8)
    for step in range(7):
        (batch,) = microbatches(loader, step, 0, 1, 1)
        assert len(set(batch.keys.tolist())) == SIZE
        for i in range(SIZE):
            number = step * SIZE + i
            place = int(shuffled(3, torch.tensor([number // repeats]), COUNT))
            assert torch.equal(batch.images[i].permute(1, 2, 0), torch.from_numpy(array[place]))
            assert batch.targets.labels[i] == place % 7
            assert batch.keys[i] == sample_keys(3, number, 1)
    passes = torch.cat([microbatches(loader, step, 0, 1, 1)[0].images for step in range(11 * repeats)])[::repeats]  # 4 passes
    wanted = sorted(x.transpose(2, 0, 1).tobytes() for x in array)
    for i in range(0, len(passes), COUNT):
        assert sorted(x.numpy().tobytes() for x in passes[i : i + COUNT]) == wanted


@pytest.mark.parametrize(("repeats", "shares", "reads"), [(1, 1, 8), (2, 1, 4), (4, 1, 2), (8, 1, 1), (4, 2, 1), (4, 4, 1)])
def test_a_share_reads_a_repeated_image_once(repeats, shares, reads):
    loader, asked = image_loader(memory=0, repeats=repeats), []
    whole = microbatches(loader, 1, 0, 1, 1)[0]
    read = loader.dataset.source.reader
    loader.dataset.source = replace(loader.dataset.source, reader=lambda number: asked.append(number) or read(number))
    parts = []
    for share in range(shares):
        asked.clear()
        parts.append(loader.share(1, share, shares))
        assert len(asked) == reads
    for ours, true in zip(flat(joined(parts)), flat(whole), strict=True):
        assert torch.equal(ours, true)


def test_on_demand_equals_in_memory():
    kept, fresh = image_loader(), image_loader(memory=0)
    assert kept.dataset.in_memory
    assert not fresh.dataset.in_memory
    for step in range(4):
        for a, b in zip(*(flat(microbatches(loader, step, 0, 1, 1)[0]) for loader in (kept, fresh)), strict=True):
            assert torch.equal(a, b)


def test_batches_that_do_not_divide_are_refused():
    assert share_size(12, 3) == 4
    with pytest.raises(UnveilError, match=r"batch size 8 is not a multiple of 3 \(processes x accum_steps\): use 6"):
        microbatches(image_loader(), 0, 0, 3, 1)
    with pytest.raises(UnveilError, match=r"batch size 2 is not a multiple of 4 .*use 4"):
        share_size(2, 4)
    with pytest.raises(UnveilError, match=r"batch size 8 is not a multiple of 3 \(repeats\): use 6"):
        image_loader(repeats=3)
    with pytest.raises(UnveilError, match=r"batch size 8 is not a multiple of 0 \(repeats\): use 1 or more"):
        image_loader(repeats=0)


class Slow:
    """A loader that records its calls."""

    samples, batch_size = 4, 2

    def __init__(self, broken: int | None = None) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.threads: set[str] = set()
        self.broken, self.prefetch = broken, True

    def share(self, step: int, share: int, shares: int) -> Batch:
        self.asked.append((step, share, shares))
        self.threads.add(threading.current_thread().name)
        if step == self.broken:
            raise UnveilError(f"step {step} cannot be read")
        return Batch(torch.tensor([step]), torch.ones(1, 2), torch.tensor([step]))


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
@pytest.mark.parametrize("steps", [range(5, 12), range(3, 4), range(2, 2)])
def test_the_stream_keeps_the_order_and_runs_ahead(ahead, steps):
    loader = Slow()
    for wanted, (step, parts) in zip(steps, stream(loader, steps, 1, 2, 3, ahead=ahead), strict=True):
        assert [step] * 3 == [wanted] * 3 == [int(part.images) for part in parts]
        assert len(loader.asked) <= 3 * (step - steps.start + 1 + ahead)  # no further ahead than asked
    assert loader.asked == [(step, share, 6) for step in steps for share in (3, 4, 5)]
    assert threading.current_thread().name not in loader.threads


def test_an_error_comes_out_at_its_step():
    seen = []
    with pytest.raises(UnveilError, match="step 4 cannot be read"):
        seen.extend(step for step, _ in stream(Slow(broken=4), range(8), 0, 1, 1))
    assert seen == [0, 1, 2, 3]


def test_without_prefetching_there_is_no_thread():
    loader = Slow()
    loader.prefetch = False
    assert [step for step, _ in stream(loader, range(3), 0, 1, 1)] == [0, 1, 2]
    assert loader.threads == {threading.current_thread().name}


@pytest.mark.parametrize(("size", "most", "wanted"), [(12, 12, 12), (12, 5, 4), (7, 6, 1)])
def test_the_first_batch_is_the_first_share_that_is_small_enough(size, most, wanted):
    loader = ImageLoader(image_loader().dataset, batch_size=size, seed=5)
    few = first_batch(loader, most)
    (whole,) = microbatches(loader, 0, 0, 1, 1)
    assert torch.equal(few.images, whole.images[:wanted])
    assert torch.equal(few.keys, whole.keys[:wanted])
