"""Random crops against torchvision's, by distribution and draw by draw."""

import math

import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from unveil.blocks.stateless_random import sample_keys, uniform
from unveil.data.augment import random_resized_boxes


@pytest.mark.parametrize("image_size", [(16, 16), (12, 24)])
@pytest.mark.parametrize("scale", [0.08, 0.2, 0.7])
def test_random_boxes_obey_the_ranges(image_size, scale):
    count, height, width = 4000, 200, 260
    boxes = random_resized_boxes(
        torch.tensor([[height, width]] * count).float(), sample_keys(0, 0, count), scale, image_size
    ).double()
    top, left, h, w = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert bool(((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width)).all())
    area, aspect = h * w / (height * width), w / h / (image_size[1] / image_size[0])
    assert scale * 0.97 < area.min() < scale * 1.1  # rounding to pixels moves it a little
    assert area.max() <= 1
    assert aspect.min() > 0.75 * 0.97
    assert aspect.max() < 4 / 3 * 1.03
    torch.manual_seed(0)
    canvas, wanted = torch.zeros(3, height, width), image_size[1] / image_size[0]
    peer = [RandomResizedCrop.get_params(canvas, [scale, 1.0], [wanted * 3 / 4, wanted * 4 / 3]) for _ in range(count)]
    for i in range(4):  # distributed as torchvision's
        assert stats.ks_2samp(boxes[:, i].numpy(), [box[i] for box in peer]).pvalue > 0.001


def slow_box(height: int, width: int, u: list[float], scale: float, tries: int = 10) -> list[int]:
    """torchvision's RandomResizedCrop.get_params, with its draws given; square results."""
    for i in range(tries):
        area = height * width * (scale + (1 - scale) * u[i])
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[tries + i])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w]
    ratio = width / height
    w, h = width, height
    if ratio < 3 / 4:
        h = round(w / (3 / 4))
    elif ratio > 4 / 3:
        w = round(h * 4 / 3)
    return [(height - h) // 2, (width - w) // 2, h, w]


def test_random_boxes_equal_torchvisions_loop():
    keys = sample_keys(2, 0, 400)
    sizes = torch.tensor([(32, 32), (40, 60), (100, 4), (5, 90), (7, 3), (1, 1), (3, 300), (48, 36)] * 50)
    found = random_resized_boxes(sizes.float(), keys, 0.2, (16, 16))
    drawn = uniform(keys, 22, stream=11).tolist()
    slow = [slow_box(h, w, u, 0.2) for (h, w), u in zip(sizes.tolist(), drawn, strict=True)]
    same = [a == b for a, b in zip(found.int().tolist(), slow, strict=True)]
    assert sum(same) >= 398  # a side at x.5 may round the other way in float32
    assert found.int().tolist()[2] == [(100 - 5) // 2, 0, 5, 4]  # the fallback: no square fits
