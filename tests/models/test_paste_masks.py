"""Masks within boxes, drawn at the size of the image: against torchvision, and by hand at the edges."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from unveil.models.paste_masks import pasted_mask


def drawn(mask: torch.Tensor, box: list[float], size: tuple[int, int]) -> np.ndarray:
    return pasted_mask(mask, box, size).numpy()


def test_a_full_mask_is_the_pixels_whose_centre_is_in_the_box() -> None:
    """The values fall off to 0 within half a cell outside of the outer cells, so the edge is where they are 0.5."""
    pixels = drawn(torch.ones(28, 28), [3.0, 2.0, 9.0, 7.0], (10, 12))
    expected = np.zeros((10, 12), bool)
    expected[2:7, 3:9] = True
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("box", [[-4.0, -3.0, 5.0, 4.0], [8.0, 6.0, 20.0, 15.0]])
def test_what_reaches_over_the_edge_is_cut_off(box: list[float]) -> None:
    pixels = drawn(torch.ones(28, 28), box, (10, 12))
    rows, columns = np.mgrid[:10, :12] + 0.5
    expected = (columns > box[0]) & (columns < box[2]) & (rows > box[1]) & (rows < box[3])
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 9.0], [30.0, 30.0, 40.0, 40.0]])
def test_a_box_without_pixels_has_an_empty_mask(box: list[float]) -> None:
    assert not drawn(torch.ones(28, 28), box, (10, 12)).any()


def test_each_pixel_has_the_value_at_its_centre() -> None:
    mask, (left, top, right, bottom) = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)), (2.3, 1.8, 13.1, 9.2)
    padded = np.pad(mask.numpy(), 1)  # 0 outside
    expected = np.zeros((12, 16), bool)
    for row in range(int(top), 10):
        for column in range(int(left), 14):
            y, x = 6 * (row + 0.5 - top) / (bottom - top) + 0.5, 6 * (column + 0.5 - left) / (right - left) + 0.5  # in padded cells
            i, j = int(np.floor(y)), int(np.floor(x))
            near = padded[i : i + 2, j : j + 2]
            expected[row, column] = [i + 1 - y, y - i] @ near @ [j + 1 - x, x - j] >= 0.5
    assert np.array_equal(drawn(mask, [left, top, right, bottom], (12, 16)), expected)


def test_large_masks_are_torchvisions_but_for_their_edge() -> None:
    """torchvision rounds a box, and makes it a pixel longer."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 1, 4, 4, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")
    boxes = torch.tensor([[10.0, 20, 290, 300], [0, 0, 100, 60], [150, 5, 170, 200], [40, 40, 180, 180], [200, 100, 399, 299]])
    theirs = paste_masks_in_image(masks, boxes, (300, 400))[:, 0] >= 0.5
    ours = [drawn(mask, box, (300, 400)) for mask, box in zip(masks[:, 0], boxes.tolist(), strict=True)]
    for one, other in zip(ours, theirs.numpy(), strict=True):
        assert (one & other).sum() / (one | other).sum() > 0.9
