"""Masks in boxes, by hand."""

import pytest
import torch
from torch.nn import functional as F

from unveil.models.paste_masks import paste_masks
from unveil.models.roi_heads import mask_targets


def by_hand(mask: torch.Tensor, box: tuple[float, ...], height: int, width: int) -> torch.Tensor:
    """One pixel at a time; -1 outside of the box."""
    left, top, right, bottom = box
    cells, out = len(mask), torch.full((height, width), -1.0)
    for i in range(height):
        for j in range(width):
            if top <= i + 0.5 < bottom and left <= j + 0.5 < right:
                y = min(max((i + 0.5 - top) / (bottom - top) * cells - 0.5, 0), cells - 1)
                x = min(max((j + 0.5 - left) / (right - left) * cells - 0.5, 0), cells - 1)
                a, b = min(int(y), cells - 2), min(int(x), cells - 2)
                v, u = y - a, x - b
                corner = mask[a : a + 2, b : b + 2]
                upper, lower = (row[0] * (1 - u) + row[1] * u for row in corner)
                out[i, j] = upper * (1 - v) + lower * v
    return out


BOXES = [(3.2, 2.0, 17.9, 11.5), (-4.0, 5.5, 6.0, 30.0), (10.0, -3.0, 40.0, 4.0), (7.5, 7.5, 8.5, 8.5), (7.6, 7.6, 8.4, 8.4)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_pixels_by_hand(box, threshold):
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(2))
    found = paste_masks(mask[None], torch.tensor([box]), (16, 20), threshold)
    true = by_hand(mask, box, 16, 20)
    assert torch.equal(found[0], true >= threshold)
    assert (true >= 0).any() == (box != BOXES[4])  # the last one has the centre of no pixel


def test_a_full_mask_is_its_box():
    box = torch.tensor([[2.0, 3.0, 9.0, 11.0]])
    found = paste_masks(torch.full((1, 28, 28), 0.51), box, (16, 16))
    assert found[0, 3:11, 2:9].all()
    assert found.sum() == 8 * 7


def test_pasted_masks_are_what_was_learned_from():
    """A true mask, drawn in cells as the detector learns it, and pasted again."""
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, 10:40, 20:70] = True
    mask[0, 10:25, 20:35] = False
    box = torch.tensor([[20.0, 10.0, 70.0, 40.0]])
    cells = mask_targets(mask, box, torch.tensor([0]), 28)
    again = paste_masks(cells, box, (64, 96))
    assert (again & mask).sum() / (again | mask).sum() > 0.97
    twice = paste_masks(cells, 2 * box, (128, 192))  # in an image of twice the size
    larger = F.interpolate(mask[:, None].float(), scale_factor=2)[:, 0] > 0
    assert (twice & larger).sum() / (twice | larger).sum() > 0.97


def test_no_mask_and_half_precision():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (8, 9)).shape == (0, 8, 9)
    mask, box = torch.rand(2, 28, 28), torch.tensor([[1.0, 1, 6, 6], [0, 0, 9, 8]])
    half = paste_masks(mask.bfloat16(), box, (8, 9))
    assert (half == paste_masks(mask, box, (8, 9))).float().mean() > 0.9
    assert not paste_masks(mask, torch.tensor([[20.0, 20, 30, 30], [-9, -9, -1, -1]]), (8, 9)).any()
