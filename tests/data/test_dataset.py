"""Images by number: in memory or on demand, of mixed sizes and depths, with files that cannot be read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.dataset import MEMORY, ImageDataset, channel_moments, common_channels, sample_images
from unveil.data.loader import ImageLoader, microbatches
from unveil.data.pixels import Unreadable
from unveil.data.sources import Source
from unveil.errors import UnveilError

BROKEN = (2, 3, 7)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def images_of(count: int, same: bool = True) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (6, 8, 3) if same else (6 + i % 3, 8 + i % 2, 3), dtype=np.uint8) for i in range(count)]


def source(files: list[object], labelled: bool = True) -> Source:
    def read(i: int) -> object:
        if files[i] is None:
            raise Unreadable("gone")
        return files[i]

    labels = np.arange(len(files), dtype=np.int64) * 10 if labelled else None
    names = [f"{i:02d}.png" for i in range(len(files))]
    return Source("made", names, labels, [str(i) for i in range(10 * len(files))] if labelled else [], "0", read)


def with_faults(count: int = 10) -> tuple[list[np.ndarray], list[object]]:
    arrays = images_of(count)
    return arrays, [None if i == 3 else b"junk" if i in BROKEN else png(x) for i, x in enumerate(arrays)]


@pytest.mark.parametrize("same", [True, False])
def test_on_demand_equals_in_memory(same):
    arrays = images_of(7, same)
    kept, fresh = (ImageDataset(source([png(x) for x in arrays]), side=100, memory=memory) for memory in (MEMORY, 0))
    assert kept.in_memory
    assert not fresh.in_memory
    for places in (torch.tensor([6, 0, 3, 3]), torch.arange(7)):
        (a, a_sizes), (b, b_sizes) = kept.batch(places), fresh.batch(places)
        assert torch.equal(a, b)
        assert torch.equal(a_sizes, b_sizes)
        for image, (h, w), place in zip(a, a_sizes.tolist(), places.tolist(), strict=True):
            assert (h, w) == arrays[place].shape[:2]
            assert np.array_equal(image[:, :h, :w].permute(1, 2, 0).numpy(), arrays[place])
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
    assert kept.labels.tolist() == fresh.labels.tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_images_are_shrunk_never_enlarged():
    big, small = np.full((30, 40, 3), 90, np.uint8), np.full((5, 9, 3), 90, np.uint8)
    dataset = ImageDataset(source([png(big), png(small)]), side=10)
    _, sizes = dataset.batch(torch.tensor([0, 1]))
    assert min(sizes[0].tolist()) == 10
    assert sizes[1].tolist() == [5, 9]


def test_unreadable_files_are_left_out_in_memory():
    arrays, files = with_faults()
    calls: list[tuple[int, int]] = []
    dataset = ImageDataset(source(files), side=100, progress=lambda done, of: calls.append((done, of)))
    good = [i for i in range(10) if i not in BROKEN]
    assert len(dataset) == 7
    assert dataset.names == [f"{i:02d}.png" for i in good]
    assert dataset.labels.tolist() == [10 * i for i in good]
    assert sorted(dataset.skipped) == [f"{i:02d}.png" for i in BROKEN]
    assert dataset.skipped["03.png"] == "gone"
    assert all(dataset.skipped.values())
    images, _ = dataset.batch(torch.arange(7))
    for image, i in zip(images, good, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[i])
    assert calls[-1] == (10, 10)


def test_unreadable_files_are_replaced_on_demand():
    """The next readable one stands in, always the same, with its own class."""
    arrays, files = with_faults()
    instead = {2: 4, 3: 4, 7: 8}
    for order in (torch.arange(10), torch.arange(10).flip(0), torch.tensor([3, 3, 2, 7, 1])):
        dataset = ImageDataset(source(files), side=100, memory=0)
        assert len(dataset) == 10
        for _ in range(2):
            images, _ = dataset.batch(order)
            for image, i in zip(images, order.tolist(), strict=True):
                assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[instead.get(i, i)])
            assert dataset.labels_of(order).tolist() == [10 * instead.get(i, i) for i in order.tolist()]
        assert sorted(dataset.skipped) == [f"{i:02d}.png" for i in BROKEN]


def test_a_stand_in_brings_its_label_into_the_batch():
    arrays, files = with_faults()
    loader = ImageLoader(ImageDataset(source(files), side=100, memory=0), batch_size=10, seed=0)
    (batch,) = microbatches(loader, 0, 0, 1, 1)
    for image, label in zip(batch.images, batch.targets.labels.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[label // 10])


def test_the_last_one_is_replaced_by_the_first():
    arrays = images_of(3)
    dataset = ImageDataset(source([png(arrays[0]), png(arrays[1]), b"junk"]), side=100, memory=0)
    images, _ = dataset.batch(torch.tensor([2]))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), arrays[0])


def test_without_any_readable_file():
    with pytest.raises(UnveilError, match=r"none of the 2 files of made can be read as an image; the first: 00\.png: "):
        ImageDataset(source([b"junk", None]), side=10)
    files: list[object] = [png(x) for x in images_of(2)]
    dataset = ImageDataset(source(files), side=10, memory=0)
    files[:] = [None, None]
    with pytest.raises(UnveilError, match="no image of made can be read any more"):
        dataset.batch(torch.tensor([0]))


@pytest.mark.parametrize("memory", [MEMORY, 0])
@pytest.mark.parametrize("deep", [False, True])
def test_mixed_depths_become_one(memory, deep):
    shallow = np.arange(48, dtype=np.uint8).reshape(6, 8)
    deeper = (np.arange(48, dtype=np.uint16) * 1000 + 7).reshape(6, 8)
    files = [png(shallow), png(deeper), png(deeper if deep else shallow)]
    dataset = ImageDataset(source(files), side=100, memory=memory)
    assert dataset.dtype == (torch.uint16 if deep else torch.uint8)
    images, _ = dataset.batch(torch.tensor([0, 1]))
    assert images.dtype == dataset.dtype
    wanted = [shallow.astype(np.uint16) * 257, deeper] if deep else [shallow, (deeper // 256).astype(np.uint8)]
    for image, expected in zip(images, wanted, strict=True):
        assert np.array_equal(image[0].numpy(), expected)
    if deep:
        forced = ImageDataset(source(files), side=100, memory=memory, dtype=torch.uint8)
        assert forced.batch(torch.tensor([0]))[0].dtype == torch.uint8


def test_channels_and_labels():
    grey, colour, odd = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8)
    assert common_channels([grey, grey, colour]) == 3
    assert common_channels([grey, grey]) == 1
    assert common_channels([odd, odd, grey]) == 5
    files = [png(np.full((4, 4), 50, np.uint8)), png(np.full((4, 4, 3), 60, np.uint8))]
    dataset = ImageDataset(source(files, labelled=False), side=4)
    assert dataset.channels == 3
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.batch(torch.tensor([0]))[0].unique().tolist() == [50]
    assert ImageDataset(source(files), side=4, channels=1).batch(torch.tensor([1]))[0].shape == (1, 1, 4, 4)


def test_a_sample_comes_from_all_over():
    files = [png(np.full((2, 2), i, np.uint8)) for i in range(100)]
    found = [int(x[0, 0, 0]) for x in sample_images(source(files), 5, shrink_to=10, max_pixels=100)]
    assert found == [0, 24, 49, 74, 99]
    files[49] = b"junk"
    assert len(sample_images(source(files), 5, shrink_to=10, max_pixels=100)) == 5


def test_moments_equal_numpys():
    arrays = images_of(9, same=False)
    mean, deviation = channel_moments(ImageDataset(source([png(x) for x in arrays]), side=100))
    pixels = np.concatenate([x.reshape(-1, 3) for x in arrays]) / 255
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-4)
    assert deviation == pytest.approx(pixels.std(axis=0), abs=1e-4)


def test_stand_ins_come_from_the_same_part():
    """An image that is kept aside does not slip into training in place of one that cannot be read."""
    arrays, files = with_faults()
    dataset = ImageDataset(source(files), side=100, memory=0)
    images, _ = dataset.batch(torch.tensor([3]), among=torch.tensor([0, 3, 9]))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), arrays[9])
