"""Augmentation against Pillow and torchvision, image by image."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    AugmentConfig,
    centre_boxes,
    clipped_boxes,
    color_jitter,
    eval_images,
    normalise,
    random_resized_boxes,
    random_shift,
)
from unveil.data.batch import Batch
from unveil.data.resize import by_products, crop_resize, one_by_one, resize_matrix
from unveil.errors import UnveilError

SIZES = [(24, 31), (40, 17), (9, 12), (33, 33), (40, 31)]


def image(height: int, width: int, seed: int, channels: int = 3) -> np.ndarray:
    """Stripes, a bright square and some noise (H, W, C) uint8."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = 100 + 60 * np.sin(x[..., None] / 3 + np.arange(channels)) + 40 * np.cos(y[..., None] / 5)
    image[height // 4 : height // 2, width // 4 : width // 2] = 255
    return (image + chance.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def canvases(raw: list[np.ndarray], fill: int = 0) -> tuple[Tensor, Tensor]:
    sizes = [x.shape[:2] for x in raw]
    height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
    canvas = np.full((len(raw), raw[0].shape[2], height, width), fill, raw[0].dtype)
    for row, x in zip(canvas, raw, strict=True):
        row[:, : x.shape[0], : x.shape[1]] = x.transpose(2, 0, 1)
    return torch.from_numpy(canvas), torch.tensor(sizes)


def by_pillow(x: np.ndarray, box: list[int], size: tuple[int, int], flip: bool, exact: bool) -> np.ndarray:
    """Crop and resize by Pillow, on bytes or, `exact`, in floats without rounding; (S, T, C), on the input's scale."""
    top, left, height, width = box
    planes = []
    for c in range(x.shape[2]):
        image = Image.fromarray(x[..., c].astype(np.float32) if exact else x[..., c])
        image = image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        planes.append(np.asarray(image, dtype=np.float64))
    out = np.stack(planes, axis=-1)
    return out[:, ::-1] if flip else out


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (20, 48), (5, 33)])
@pytest.mark.parametrize("deep", [False, True])
def test_crop_and_resize_equal_pillow(size, deep):
    chance = np.random.default_rng(1)
    raw = [image(h, w, i) for i, (h, w) in enumerate(SIZES * 4)]
    if deep:
        raw = [x.astype(np.uint16) * 257 for x in raw]
    boxes = []
    for i, x in enumerate(raw):
        h, w = (int(chance.integers(1, side + 1)) for side in x.shape[:2])
        boxes.append([int(chance.integers(0, x.shape[0] - h + 1)), int(chance.integers(0, x.shape[1] - w + 1)), h, w])
        if i % 4 == 0:
            boxes[-1] = [0, 0, *x.shape[:2]]
    flips = [i % 3 == 0 for i in range(len(raw))]
    images, sizes = canvases(raw, fill=255)  # what is outside an image must not leak in
    found = crop_resize(images, torch.tensor(boxes).float(), sizes, size, torch.tensor(flips))
    assert found.shape == (len(raw), 3, *size)
    full, near = 65535 if deep else 255, []
    for ours, x, box, flip in zip(found.permute(0, 2, 3, 1).numpy(), raw, boxes, flips, strict=True):
        exact = by_pillow(x, box, size, flip, exact=True).clip(0, full)
        np.testing.assert_allclose(ours * full, exact, atol=3e-5 * full)
        if not deep:
            apart = np.abs(ours * 255 - by_pillow(x, box, size, flip, exact=False))
            assert apart.mean() < 0.6  # rounding to bytes, no shift
            near.append((apart <= 3).flatten())  # Pillow also clips between its two passes
    assert deep or np.concatenate(near).mean() > 0.995


@pytest.mark.parametrize("how", ["one by one", "float32", "float16"])
def test_large_images_equal_pillow_in_bytes(how):
    """On a CPU in whole numbers; on a GPU by products in half precision, which is tried here on the CPU."""
    chance = np.random.default_rng(2)
    raw = [image(h, w, i) // 2 + 40 for i, (h, w) in enumerate([(150, 200), (120, 90), (70, 70), (128, 128)])]
    boxes = [[int(chance.integers(0, side // 2)) for side in x.shape[:2]] + [x.shape[0] // 2, x.shape[1] // 2] for x in raw]
    boxes[2] = [0, 0, 70, 70]
    flips = [True, False, True, False]
    images, sizes = canvases(raw, fill=255)
    given = (images, torch.tensor(boxes).float(), sizes, (96, 96), torch.tensor(flips))
    found = one_by_one(*given) if how == "one by one" else by_products(*given, getattr(torch, how))
    if how == "one by one":
        assert torch.equal(found, crop_resize(*given))
        strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as `Images` batches what it reads
        assert torch.equal(found, crop_resize(strided, *given[1:]))
    true = np.stack([by_pillow(x, box, (96, 96), flip, exact=False) for x, box, flip in zip(raw, boxes, flips, strict=True)])
    apart = np.abs((found.permute(0, 2, 3, 1).numpy() * 255).round() - true)
    assert apart.max() <= 2
    assert (apart == 0).mean() > 0.75  # the others: which pass is rounded first


def test_large_crops_over_the_edge_see_black():
    images, sizes = canvases([image(80, 90, 0) // 2 + 40] * 2)
    boxes = torch.tensor([[-5.0, 3, 80, 80], [0.0, 0, 80, 80]])
    found = crop_resize(images, boxes, sizes, (64, 64))
    products = by_products(images, boxes, sizes, (64, 64), torch.zeros(2).bool(), torch.float32)
    torch.testing.assert_close(found, products, rtol=0, atol=2 / 255)
    assert not found[0, :, :3].any()


def test_rows_of_the_matrix_sum_to_1_inside():
    rows = resize_matrix(torch.tensor([3.0]), torch.tensor([10.0]), torch.tensor([20]), 32, 7)
    torch.testing.assert_close(rows.sum(2), torch.ones(1, 7))
    assert not rows[:, :, :3].any()
    assert not rows[:, :, 13:].any()


def test_draws_do_not_depend_on_the_batch():
    images, sizes = canvases([image(h, w, i) for i, (h, w) in enumerate(SIZES)])
    batch = Batch(images, sizes, sample_keys(0, 0, 5))
    augment = Augment(AugmentConfig(color_jitter=0.4), (10, 14), (0.5,) * 3, (0.25,) * 3)
    whole = augment(batch).images
    for i, (h, w) in enumerate(SIZES):
        alone = Batch(images[i : i + 1, :, :h, :w], sizes[i : i + 1], batch.keys[i : i + 1])
        torch.testing.assert_close(augment(alone).images[0], whole[i], rtol=1e-4, atol=1e-4)
    other = augment(batch._replace(keys=sample_keys(0, 5, 5))).images
    assert (other - whole).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_flips_half_and_never_without_crop():
    images, sizes = canvases([image(8, 8, 0)] * 400)
    batch = Batch(images, sizes, sample_keys(0, 0, 400))
    plain = eval_images(batch._replace(images=images[:1], sizes=sizes[:1]), (8, 8), (0.0,) * 3, (1.0,) * 3)
    boxes = torch.tensor([[0.0, 0, 8, 8]] * 400)
    flip = uniform(batch.keys, 1, stream=12)[:, 0] < 0.5
    assert abs(flip.float().mean() - 0.5) < 0.1
    found = crop_resize(images, boxes, sizes, (8, 8), flip)
    for x, turned in zip(found, flip, strict=True):
        torch.testing.assert_close(x, plain[0].flip(2) if turned else plain[0], rtol=0, atol=1e-5)
    none = Augment(AugmentConfig(crop="none", flip=True), (8, 8), (0.0,) * 3, (1.0,) * 3)(batch).images
    torch.testing.assert_close(none, plain.expand_as(none), rtol=0, atol=1e-5)
    boxes = random_resized_boxes(sizes.float(), batch.keys, 0.2, (8, 8))
    for wanted in (True, False):
        found = Augment(AugmentConfig(flip=wanted), (8, 8), (0.0,) * 3, (1.0,) * 3)(batch).images
        assert torch.equal(found, crop_resize(images, boxes, sizes, (8, 8), flip if wanted else None))


def test_fixed_crops_move_into_black():
    x = image(16, 16, 0) // 2 + 100  # nowhere black itself
    images, sizes = canvases([x] * 300)
    keys = sample_keys(0, 0, 300)
    boxes = random_shift(torch.tensor([[0.0, 0, 16, 16]] * 300), sizes.float(), keys)
    assert boxes[:, 2:].unique().tolist() == [16]
    for axis in range(2):
        assert sorted(boxes[:, axis].unique().tolist()) == [-2, -1, 0, 1, 2]
    found = crop_resize(images, boxes, sizes, (16, 16))
    padded = np.zeros((20, 20, 3))
    padded[2:18, 2:18] = x
    for ours, (top, left, _, _) in zip(found, boxes.int().tolist(), strict=True):
        expected = padded[2 + top : 18 + top, 2 + left : 18 + left]
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy() * 255, expected, atol=1e-2)
    roomy = random_shift(torch.tensor([[0.0, 0, 16, 16]] * 300), torch.tensor([[32.0, 40.0]] * 300), keys)
    assert roomy[:, :2].min() == 0  # no black where there is room
    assert roomy[:, 0].max() == 16
    assert roomy[:, 1].max() == 24


def test_jitter_equals_torchvision_and_stays_in_bounds():
    keys = sample_keys(4, 0, 40)
    images = torch.rand(40, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found = color_jitter(images, keys, 0.4)
    factors = 1 + 0.4 * (2 * uniform(keys, 3, stream=13) - 1)
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4
    for x, ours, (brightness, contrast, saturation) in zip(images, found, factors.tolist(), strict=True):
        x = V.adjust_contrast(V.adjust_brightness(x, brightness), contrast)
        torch.testing.assert_close(ours, V.adjust_saturation(x, saturation), rtol=0, atol=1e-3)
    assert found.min() >= 0
    assert found.max() <= 1
    assert color_jitter(images[:, :2], keys, 0.4).shape == (40, 2, 6, 7)  # no saturation without three channels
    torch.testing.assert_close(color_jitter(images, keys, 0.0), images)


def test_normalise():
    x = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = torch.stack([(x[:, c] / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalise(x), expected)
    torch.testing.assert_close(normalise(x.float() / 255), expected)
    torch.testing.assert_close(normalise((x.int() * 257).to(torch.uint16)), expected)
    torch.testing.assert_close(normalise(x[0]), expected[0])
    torch.testing.assert_close(normalise(x[:, :2]), (x[:, :2] / 255 - 0.449) / 0.226)
    torch.testing.assert_close(normalise(x[:, :1], (0.5,), (0.25,)), (x[:, :1] / 255 - 0.5) / 0.25)
    with pytest.raises(UnveilError, match="images have 3 channels, but there are 2 means and 3 standard deviations"):
        normalise(x, (0.5, 0.5))
    takes = r"normalise takes a tensor or an array \(B, C, H, W\) or \(C, H, W\) of uint8, uint16, or floats between 0 and 1; "
    for wrong, reason in [
        (x.long(), r"these are torch\.int64"),
        (x.float(), r"these reach from .* to 25\d: divide by the value of white"),
        (x.half(), "these reach from"),
        (x.float().numpy(), "these reach from"),
        ((x / 255 - 0.5) / 0.25, "these reach from -"),
        (torch.full((3, 8, 8), torch.nan), "these reach from nan"),
        (torch.zeros(8, 9, 3), r"the shape \(8, 9, 3\) has the channels last: use images\.movedim\(-1, -3\)"),
        (torch.zeros(8, 9), r"these have the shape \(8, 9\)"),
        ([Image.new("RGB", (4, 4))], "found list: for example, use numpy"),
        (Image.new("RGB", (4, 4)), "found Image: for example, use numpy"),
        (np.zeros((3, 4, 5), np.int32), "these are int32"),
    ]:
        with pytest.raises(UnveilError, match=takes + reason):
            normalise(wrong)


def test_normalise_takes_arrays_in_either_order():
    x = torch.randint(0, 256, (2, 3, 7, 9), dtype=torch.uint8)
    expected = normalise(x)
    for images in (x, x.float() / 255, (x.int() * 257).to(torch.uint16)):
        array = images.numpy()
        before = array.copy()
        last = np.moveaxis(array, 1, -1)
        last.flags.writeable = False
        for each, wanted in ((array, expected), (last, expected), (array[0], expected[0]), (last[0], expected[0])):
            torch.testing.assert_close(normalise(each), wanted)
        assert np.array_equal(array, before)
    many = np.random.default_rng(0).random((7, 9, 13))
    assert normalise(many, [0.5] * 13, [0.5] * 13).shape == (13, 7, 9)
    assert normalise(x[:0]).shape == (0, 3, 7, 9)


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (256, 256, (224, 224), [16, 16, 224, 224]),  # 7/8 of a larger image
        (256, 341, (224, 224), [16, 58, 224, 224]),
        (16, 16, (16, 16), [0, 0, 16, 16]),  # all of one that is not larger
        (18, 24, (16, 16), [0, 3, 18, 18]),
        (100, 50, (32, 32), [28, 3, 44, 44]),
        (64, 64, (16, 32), [18, 4, 28, 56]),
        (10, 10, (32, 32), [0, 0, 10, 10]),
    ],
)
def test_views_show_the_centre(height, width, size, box):
    assert centre_boxes(torch.tensor([[height, width]]).float(), size)[0].int().tolist() == box
    x = image(height, width, 0)
    images, sizes = canvases([x])
    found = eval_images(Batch(images, sizes, torch.zeros(1, dtype=torch.int64)), size, (0.5,) * 3, (0.25,) * 3)
    true = (by_pillow(x, box, size, False, exact=True).clip(0, 255) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), true, atol=1e-3)


def test_clipped_crops_equal_the_public_linear_probe() -> None:
    """util/crop.py of MAE: one box, with sides cut to the image; where it fits, it is the crop of torchvision's first try."""
    sizes, keys = torch.tensor([[60.0, 20], [20, 60], [50, 50], [500, 375]]).repeat(500, 1), sample_keys(4, 0, 2000)
    found, u = clipped_boxes(sizes, keys, 0.08, (16, 16)), uniform(keys, 4, Stream.CROP)
    for box, (height, width), (a, b, c, d) in zip(found.tolist(), sizes.tolist(), u.tolist(), strict=True):
        area, ratio = height * width * (0.08 + 0.92 * a), math.exp(math.log(3 / 4) + b * (math.log(4 / 3) - math.log(3 / 4)))
        h, w = min(round(math.sqrt(area / ratio)), height), min(round(math.sqrt(area * ratio)), width)
        assert box[2:] == pytest.approx([h, w], abs=1)  # float32 rounds halves elsewhere
        assert box[:2] == pytest.approx([int(c * (height - box[2] + 1)), int(d * (width - box[3] + 1))], abs=1)
        assert box[0] + box[2] <= height
        assert box[1] + box[3] <= width
    assert (found[0::4, 3] == 20).float().mean() > 0.3  # many boxes are wider than a narrow image, and are cut
    ours = Augment(AugmentConfig(crop="clipped", crop_scale=0.08), (16, 16), (0.5,) * 3, (0.5,) * 3)
    drawn = Batch(torch.zeros(2000, 3, 1, 1, dtype=torch.uint8), sizes.long(), keys)
    assert torch.equal(ours.draw(drawn.sizes, drawn.keys).boxes, found)
    assert ours.draw(drawn.sizes, drawn.keys).flip is not None
