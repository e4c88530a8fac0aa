"""Images by number: in memory or on demand, of mixed sizes and depths, with files that cannot be read."""

import errno
import io
import tracemalloc
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.channel_moments import channel_moments
from unveil.data.dataset import MEMORY, ImageDataset, ImagesLostError
from unveil.data.faults import Fault
from unveil.data.image_samples import common_channels, sample_images
from unveil.data.loader import ImageLoader
from unveil.data.pixels import Unreadable
from unveil.data.retries import OUTAGE, PAUSES
from unveil.data.shuffle import shuffled
from unveil.data.sources import Source
from unveil.data.splits import Subset
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
        (a, a_sizes, *_), (b, b_sizes, *_) = kept.readable(places), fresh.readable(places)
        assert torch.equal(a, b)
        assert torch.equal(a_sizes, b_sizes)
        for image, (h, w), place in zip(a, a_sizes.tolist(), places.tolist(), strict=True):
            assert (h, w) == arrays[place].shape[:2]
            assert np.array_equal(image[:, :h, :w].permute(1, 2, 0).numpy(), arrays[place])
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
    assert kept.labels.tolist() == fresh.labels.tolist() == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("odd", [(), (5, 130), (0, 1)])
@pytest.mark.parametrize("with_maps", [False, True])
def test_other_sizes_than_those_of_the_sample_are_kept_as_they_are(odd, with_maps):
    """64 of 200 images are the sample, from which it seems that all have one size. Two of the others cannot be read."""
    arrays = images_of(200)
    for i in odd:
        arrays[i] = arrays[i][:4, : 5 + i % 2]
    files = [None if i in (7, 131) else png(x) for i, x in enumerate(arrays)]
    images = source(files, labelled=not with_maps)
    if with_maps:
        maps = [png(x[..., 0] // 64) for x in arrays]
        images = replace(images, classes=["a", "b", "c", "d"], map_reader=lambda i: maps[i])
    kept, fresh = (ImageDataset(images, side=100, memory=memory) for memory in (MEMORY, 0))
    assert isinstance(kept._images, torch.Tensor) == (not odd)
    for places in torch.arange(200).split(33):
        a, b = kept.readable(places), fresh.readable(places)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.sizes, b.sizes)
        assert torch.equal(a.keys, b.keys)
        assert a.keys.tolist() == [i for i in places.tolist() if files[i] is not None]
        assert all(map(torch.equal, a.targets, b.targets))
    assert dict(kept.faults()).keys() == {7, 131}
    assert kept.names == fresh.names


def test_no_image_is_in_memory_twice():
    arrays = [np.full((96, 96, 3), i % 256, np.uint8) for i in range(400)]  # files of 300 bytes, so that only pixels count
    images = source([png(x) for x in arrays])
    ImageDataset(source([png(x) for x in arrays[9:11]]), side=96)  # imports the decoders
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = ImageDataset(images, side=96)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert isinstance(kept._images, torch.Tensor)
    size = kept._images.nbytes
    assert size == 400 * 96 * 96 * 3
    assert size < peak < 1.3 * size


def test_images_are_shrunk_never_enlarged():
    big, small = np.full((30, 40, 3), 90, np.uint8), np.full((5, 9, 3), 90, np.uint8)
    dataset = ImageDataset(source([png(big), png(small)]), side=10)
    sizes = dataset.readable(torch.tensor([0, 1])).sizes
    assert min(sizes[0].tolist()) == 10
    assert sizes[1].tolist() == [5, 9]


def test_reading_reports_its_progress():
    calls: list[tuple[int, int]] = []
    ImageDataset(source(with_faults()[1]), side=100, progress=lambda done, of: calls.append((done, of)))
    assert calls[-1] == (10, 10)


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_unreadable_images_keep_their_place_and_are_left_out(memory):
    arrays, files = with_faults()
    good = [i for i in range(10) if i not in BROKEN]
    dataset = ImageDataset(source(files), side=100, memory=memory)
    assert len(dataset) == 10
    assert dataset.names == [f"{i:02d}.png" for i in range(10)]
    assert dataset.labels.tolist() == [10 * i for i in range(10)]
    for order in (torch.arange(10), torch.arange(10).flip(0), torch.tensor([3, 3, 2, 7, 1])):
        batch = dataset.readable(order)
        assert batch.keys.tolist() == [i for i in order.tolist() if i in good]
        assert batch.targets.labels.tolist() == [10 * i for i in batch.keys.tolist()]
        for image, i in zip(batch.images, batch.keys.tolist(), strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[i])
    assert dataset.readable(torch.arange(10), torch.arange(10) + 50).keys.tolist() == [50 + i for i in good]
    assert dataset.readable(torch.tensor(BROKEN)) is None
    assert sorted(dataset.skipped) == [f"{i:02d}.png" for i in BROKEN]
    assert dataset.skipped["03.png"] == "gone"
    assert all(dataset.skipped.values())
    subset = Subset(dataset, torch.tensor([1, 2, 7]))
    assert subset.unreadable == 2
    assert Subset(dataset, torch.tensor([0, 1])).unreadable == 0


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_training_replaces_an_unreadable_image_and_its_label_by_a_drawn_one(memory):
    arrays, files = with_faults()
    indices = torch.tensor([9, 3, 0, 2, 5])
    loader = ImageLoader(ImageDataset(source(files), side=100, memory=memory), batch_size=5, seed=4, indices=indices)
    assert loader.samples == 5  # as if all could be read
    instead = Counter()
    for step in range(100):
        batch = loader.share(step, 0, 1)
        order = indices[shuffled(4, torch.arange(5 * step, 5 * step + 5), 5)]
        for image, label, wanted in zip(batch.images, batch.targets.labels.tolist(), order.tolist(), strict=True):
            index = label // 10
            assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[index])
            if wanted in BROKEN:
                instead[index] += 1
            else:
                assert index == wanted
    # 200 draws from the three readable images of the loader, and from no other: 67 each, give or take 4 standard deviations
    assert sorted(instead) == [0, 5, 9]
    assert all(abs(count - 200 / 3) < 4 * (200 * 1 / 3 * 2 / 3) ** 0.5 for count in instead.values())


def test_on_demand_equals_in_memory_with_unreadable_images():
    _, files = with_faults(20)
    for repeats in (1, 2):
        kept, fresh = (
            ImageLoader(ImageDataset(source(files), side=100, memory=memory), batch_size=8, seed=1, repeats=repeats)
            for memory in (MEMORY, 0)
        )
        for step in range(12):
            whole = kept.share(step, 0, 1)
            parts = [fresh.share(step, share, 4) for share in range(4)]
            for name in ("images", "sizes", "keys"):
                assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
            assert torch.equal(whole.targets.labels, torch.cat([part.targets.labels for part in parts]))
            if repeats == 2:  # both samples of an image are replaced by the same one
                assert torch.equal(whole.targets.labels[::2], whole.targets.labels[1::2])
        assert kept.dataset.skipped == fresh.dataset.skipped


def failing(files: list[object], broken: dict[int, list[Exception]]) -> Source:
    """A source whose reads of an image raise the errors of `broken` one after the other, before they succeed."""

    def read(i: int) -> object:
        if broken.get(i):
            raise broken[i].pop(0)
        return files[i]

    return replace(source(files), reader=read)


def test_io_errors_are_tried_again_and_damaged_files_are_not(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("unveil.data.retries.time.sleep", pauses.append)
    files: list[object] = [png(x) for x in images_of(6)]
    broken: dict[int, list[Exception]] = {}
    data = failing(files, broken)
    dataset = ImageDataset(data, side=100, memory=0)
    broken |= {
        1: [OSError(errno.ESTALE, "Stale file handle"), FileNotFoundError(2, "No such file")],
        2: [Unreadable("damaged")] * 2,
    }
    broken |= {4: [PermissionError(13, "Permission denied")] * 2, 5: [OSError(errno.EIO, "Input/output error")] * 9}
    assert dataset.readable(torch.tensor([1])).keys.tolist() == [1]
    assert pauses == [0.1, 0.4]
    assert dataset.readable(torch.tensor([2])) is None
    assert dataset.readable(torch.tensor([4])) is None
    assert pauses == [0.1, 0.4]
    assert dataset.readable(torch.tensor([5])) is None
    assert pauses == [0.1, 0.4, 0.1, 0.4, 1.5]
    assert dataset.unreadable[5] == Fault("cannot be read: Input/output error", lost=True, may_pass=True)
    assert not dataset.unreadable[4].lost  # it may have been so from the start
    assert not dataset.unreadable[2].may_pass
    assert dataset.readable(torch.tensor([2])) is None  # it is not even read again
    assert len(broken[2]) == 1
    for _ in range(5):
        assert dataset.readable(torch.tensor([5])) is None  # tried again, but without a pause
    assert dataset.readable(torch.tensor([5])).keys.tolist() == [5]  # until it is back
    assert len(pauses) == 5
    assert set(dataset.unreadable) == {2, 4}
    assert dataset.skipped["05.png"] == "cannot be read: Input/output error"  # at some time


def test_waiting_ends_when_nothing_can_be_read_for_long(monkeypatch):
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("unveil.data.retries.time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    files: list[object] = [png(x) for x in images_of(40)]
    broken: dict[int, list[Exception]] = {}
    dataset = ImageDataset(failing(files, broken), side=100, memory=0)
    broken |= {i: [OSError(5, "Input/output error")] * 9 for i in range(30)}
    for i in range(30):
        assert dataset.readable(torch.tensor([i])) is None
    assert OUTAGE < sum(pauses) < OUTAGE + sum(PAUSES)
    assert dataset.readable(torch.tensor([35])) is not None  # the share is back, so the next error is waited for again
    broken[36] = [OSError(5, "Input/output error")]
    assert dataset.readable(torch.tensor([36])).keys.tolist() == [36]


def test_an_image_that_was_read_before_is_lost_whatever_the_error():
    files: list[object] = [png(x) for x in images_of(4)]
    dataset = ImageDataset(source(files), side=100, memory=0)
    assert dataset.readable(torch.arange(3)).keys.tolist() == [0, 1, 2]
    files[1], files[3] = b"junk", b"junk"
    assert dataset.readable(torch.arange(4)).keys.tolist() == [0, 2]
    assert [index for index, fault in dataset.faults() if fault.lost] == [1]
    members = np.array([True, False, True, True])
    assert (dataset.lost_among(~members), dataset.lost_among(members)) == (1, 0)
    dataset.add_faults([(3, Fault("elsewhere")), (0, Fault("elsewhere", lost=True))])
    assert {index for index, _ in dataset.faults()[:2]} == {1, 3}  # two threads noticed them
    assert dataset.faults(known=2) == [(0, Fault("elsewhere", lost=True))]
    assert dataset.unreadable[3].reason == "not an image"


@pytest.mark.parametrize(("allowed", "stops"), [(0.01, True), (0.1, True), (0.11, False)])
def test_training_stops_when_too_many_images_are_lost(allowed, stops):
    files: list[object] = [png(x) for x in images_of(20)]
    files[3] = b"junk"  # from the start, so it does not count
    dataset = ImageDataset(source(files), side=100, memory=0)
    loader = ImageLoader(dataset, batch_size=20, seed=0, max_unreadable=allowed)
    for step in range(3):
        loader.share(step, 0, 1)
    for i in (5, 6, 8):
        files[i] = None
    if not stops:
        files[8] = png(images_of(20)[8])  # 2 of 20 are lost
        loader.share(3, 0, 1)
        return
    told = r"3 of 20 training images \(15\.0%\) have become unreadable since the start, more than --max-unreadable 0\.1? allows"
    with pytest.raises(ImagesLostError, match=told if allowed == 0.1 else "more than --max-unreadable 0.01 allows; the first is 0"):
        loader.share(3, 0, 1)


def test_without_any_readable_file():
    with pytest.raises(UnveilError, match=r"none of the 2 files of made can be read as an image; the first: 00\.png: "):
        ImageDataset(source([b"junk", None]), side=10)
    files: list[object] = [png(x) for x in images_of(2)]
    dataset = ImageDataset(source(files), side=10, memory=0)
    files[:] = [None, None]
    with pytest.raises(ImagesLostError, match=r"no image of made can be read any more; the first: 0.\.png: gone"):
        ImageLoader(dataset, batch_size=2, seed=0, max_unreadable=1.0).share(0, 0, 1)


@pytest.mark.parametrize("memory", [MEMORY, 0])
@pytest.mark.parametrize("deep", [False, True])
def test_mixed_depths_become_one(memory, deep):
    shallow = np.arange(48, dtype=np.uint8).reshape(6, 8)
    deeper = (np.arange(48, dtype=np.uint16) * 1000 + 7).reshape(6, 8)
    files = [png(shallow), png(deeper), png(deeper if deep else shallow)]
    dataset = ImageDataset(source(files), side=100, memory=memory)
    assert dataset.dtype == (torch.uint16 if deep else torch.uint8)
    images = dataset.readable(torch.tensor([0, 1])).images
    assert images.dtype == dataset.dtype
    wanted = [shallow.astype(np.uint16) * 257, deeper] if deep else [shallow, (deeper // 256).astype(np.uint8)]
    for image, expected in zip(images, wanted, strict=True):
        assert np.array_equal(image[0].numpy(), expected)
    if deep:
        forced = ImageDataset(source(files), side=100, memory=memory, dtype=torch.uint8)
        assert forced.readable(torch.tensor([0])).images.dtype == torch.uint8


def test_channels_and_labels():
    grey, colour, odd = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8)
    assert common_channels([grey, grey, colour]) == 3
    assert common_channels([grey, grey]) == 1
    assert common_channels([odd, odd, grey]) == 5
    files = [png(np.full((4, 4), 50, np.uint8)), png(np.full((4, 4, 3), 60, np.uint8))]
    dataset = ImageDataset(source(files, labelled=False), side=4)
    assert dataset.channels == 3
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.readable(torch.tensor([0])).images.unique().tolist() == [50]
    assert ImageDataset(source(files), side=4, channels=1).readable(torch.tensor([1])).images.shape == (1, 1, 4, 4)


def test_a_sample_comes_from_all_over():
    files = [png(np.full((2, 2), i, np.uint8)) for i in range(100)]
    found = [int(x[0, 0, 0]) for x in sample_images(source(files), 5, shrink_to=10, max_pixels=100)]
    assert found == [0, 24, 49, 74, 99]
    files[49] = b"junk"
    faults: dict[int, Fault] = {}
    assert len(sample_images(source(files), 5, shrink_to=10, max_pixels=100, faults=faults)) == 5
    assert faults == {49: Fault("not an image")}


def test_moments_equal_numpys():
    arrays = images_of(9, same=False)
    mean, deviation = channel_moments(ImageDataset(source([png(x) for x in arrays]), side=100))
    pixels = np.concatenate([x.reshape(-1, 3) for x in arrays]) / 255
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-4)
    assert deviation == pytest.approx(pixels.std(axis=0), abs=1e-4)
    with_junk = [png(x) for x in arrays]
    with_junk[4:4] = [b"junk"]
    for memory in (MEMORY, 0):
        found = channel_moments(ImageDataset(source(with_junk), side=100, memory=memory))
        assert found == (mean, deviation)
