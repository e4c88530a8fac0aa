"""Scale jitter: distribution, determinism, and images that move with their targets."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.data.resize import crop_resize
from unveil.data.scale_jitter import ScaleJitter, inside, jittered_boxes
from unveil.data.targets import BoxTargets, PixelTargets, boxes_of_masks
from unveil.errors import UnveilError

PLAIN = {"mean": (0.5,), "std": (0.25,)}


@pytest.mark.parametrize("fit", ["inside", "pixels"])
@pytest.mark.parametrize("size", [(480, 640), (640, 400)])
def test_scales_are_uniform(fit: str, size: tuple[int, int]) -> None:
    """Scale 1 fits the image into the result, or keeps its pixels; both sides have the same scale."""
    count, image_size, (low, high) = 3000, (512, 384), (0.1, 2.0)
    boxes = jittered_boxes(torch.tensor([size] * count).float(), sample_keys(0, 0, count), image_size, (low, high), fit)
    assert torch.equal(boxes, boxes.round())
    steps = boxes[:, 2:] / torch.tensor(image_size)
    assert (steps[:, 0] / steps[:, 1] - 1).abs().max() < 0.02  # rounding to pixels
    sides = [size[0] / image_size[0], size[1] / image_size[1]]
    scales = (max(sides) if fit == "inside" else 1) / steps[:, 0]
    assert stats.kstest(scales.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.001
    top, left, height, width = boxes.unbind(1)
    for start, side, whole in ((top, height, size[0]), (left, width, size[1])):
        smaller = side >= whole
        assert not start[smaller].any()  # the image is at the upper left, and the padding after it
        room = (whole - side)[~smaller]
        assert bool(((start[~smaller] >= 0) & (start[~smaller] <= room)).all())
        wide = room > 50  # otherwise few places are possible
        share = (start[~smaller] + 0.5)[wide] / (room + 1)[wide]
        assert stats.kstest(share.double().numpy(), "uniform").pvalue > 0.001


def test_a_draw_depends_on_the_key_alone() -> None:
    jitter, sizes, keys = ScaleJitter(image_size=(64, 64), **PLAIN), torch.randint(20, 200, (50, 2)), sample_keys(3, 0, 50)
    whole = jitter.draw(sizes, keys)
    parts = [jitter.draw(sizes[i : i + 1], keys[i : i + 1]) for i in range(50)]
    assert torch.equal(whole.boxes, torch.cat([part.boxes for part in parts]))
    assert torch.equal(whole.flip, torch.cat([part.flip for part in parts]))
    assert 10 < int(whole.flip.sum()) < 40
    assert torch.equal(jitter.draw(sizes, keys).boxes, whole.boxes)
    assert ScaleJitter(image_size=(64, 64), flip=False, **PLAIN).draw(sizes, keys).flip is None


def test_without_jitter_an_image_fits() -> None:
    sizes, keys = torch.tensor([[100, 200], [64, 64], [300, 100]]), sample_keys(0, 0, 3)
    fits = ScaleJitter(image_size=(64, 64), scales=(1, 1), flip=False, **PLAIN)
    assert fits.draw(sizes, keys).boxes.tolist() == [[0, 0, 200, 200], [0, 0, 64, 64], [0, 0, 300, 300]]
    for scales in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(UnveilError, match="the scales are"):
            ScaleJitter(image_size=(64, 64), scales=scales, **PLAIN)


@pytest.mark.parametrize(("size", "box", "image_size"), [((40, 60), 160, 32), ((60, 40), 480, 96), ((90, 120), 360, 72)])
def test_an_image_far_smaller_than_its_crop_equals_pillow(size: tuple[int, int], box: int, image_size: int) -> None:
    """What Pillow makes of the whole image, where its sides are whole pixels of the result."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    boxes = torch.tensor([[0.0, 0, box, box]])
    found = crop_resize(images, boxes, torch.tensor([size]), (image_size, image_size), max_shrink=box / image_size)
    height, width = (side * image_size // box for side in size)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    ours = (found[0, :, :height, :width] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1
    assert not found[0, :, height:].any()
    assert not found[0, :, :, width:].any()


@pytest.mark.parametrize("image_size", [(96, 80), (40, 56)])
def test_images_boxes_masks_and_maps_move_together(image_size: tuple[int, int]) -> None:
    """A light square on grey is found again in the pixels, and what is outside of the image is 0."""
    count, rng = 40, np.random.default_rng(0)
    images = torch.zeros(count, 1, 90, 120, dtype=torch.uint8)
    masks, sizes = torch.zeros(count, 1, 90, 120, dtype=torch.bool), torch.zeros(count, 2, dtype=torch.int64)
    for i in range(count):
        height, width = int(rng.integers(50, 91)), int(rng.integers(60, 121))
        top, left = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
        sizes[i] = torch.tensor([height, width])
        images[i, 0, :height, :width] = 64
        masks[i, 0, top : top + 30, left : left + 24] = True
        images[i][masks[i]] = 255
    labels = torch.zeros(count, 1, dtype=torch.int64)
    crowd, area = torch.zeros(count, 1, dtype=torch.bool), torch.full((count, 1), 720.0)
    boxes = BoxTargets(boxes_of_masks(masks).float(), labels, crowd, area, masks)
    jitter = ScaleJitter(image_size=image_size, **PLAIN)
    batch = Batch(images, sizes, sample_keys(1, 0, count), boxes)
    found = jitter(batch)
    seen = inside(jitter.draw(batch.sizes, batch.keys), sizes)
    maps = jitter(batch._replace(targets=PixelTargets(masks[:, 0].long()))).targets.maps
    assert found.images.shape == (count, 1, *image_size)
    values = (found.images * 0.25 + 0.5) * 255
    padded = 0
    for i in range(count):
        height, width = found.sizes[i].tolist()
        assert seen[i, :height, :width].all()  # the image is at the upper left, also after a flip
        assert seen[i].sum() == height * width
        outside = ~seen[i]
        assert not found.images[i, 0][outside].any()
        padded += bool(outside.any())
        assert values[i, 0][seen[i]].min() > 40  # grey, and never the black beyond the edge
        light, mask = values[i, 0] > 160, found.targets.masks[i, 0]
        assert torch.equal(maps[i] == 1, mask)
        assert (light & seen[i] ^ mask).sum() <= 2 * (sum(mask.any(dim=d).sum() for d in (0, 1)) + 4)  # a pixel around it
        if found.targets.labels[i, 0] < 0:
            assert not mask.any()
            continue
        left, top, right, bottom = found.targets.boxes[i, 0].tolist()
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        assert [left, top, right, bottom] == [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        assert right > left
        assert bottom > top
        assert found.targets.area[i, 0] == mask.sum()
    assert 5 < padded < count
    assert 20 < int((found.targets.labels >= 0).sum()) <= count


@pytest.mark.parametrize("fit", ["inside", "pixels"])
@pytest.mark.parametrize(("size", "image_size"), [((60, 60), 128), ((200, 90), 64)])
def test_the_filter_is_never_cut_off(fit: str, size: tuple[int, int], image_size: int) -> None:
    """Whatever the scale is, all pixels under the filter count, also if the box is longer than the canvas."""
    images = torch.randint(0, 256, (40, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sizes, keys = torch.tensor([size] * 40), sample_keys(0, 0, 40)
    jitter = ScaleJitter(image_size=(image_size, image_size), mean=(0.0,) * 3, std=(1.0,) * 3, scales=(0.3, 1.5), fit=fit)
    geometry = jitter.draw(sizes, keys)
    wanted = crop_resize(images, geometry.boxes, sizes, geometry.size, geometry.flip, max_shrink=50.0)
    seen = inside(geometry, sizes)[:, None]
    assert torch.allclose(jitter.apply(Batch(images, sizes, keys), geometry).images, wanted * seen, atol=1e-6)
