"""Run lengths against pycocotools, there and back."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from unveil.data.pixels import Unreadable
from unveil.data.rle import Patch, compressed, decoded, encoded, encoded_patch, is_rectangle, patch, run_lengths


def some_masks(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    masks = [rng.uniform(size=(height, width)) < share for share in (0.01, 0.3, 0.5, 0.99)]
    for top, bottom, left, right in ((0, height, 0, width), (0, 0, 0, 0), (0, height, 1, 3), (1, 4, 0, width), (2, 5, 3, 4)):
        masks.append(np.zeros((height, width), bool))
        masks[-1][top:bottom, left:right] = True
    return np.stack(masks)


@pytest.mark.parametrize(("height", "width"), [(7, 9), (120, 61), (400, 300)])
def test_there_and_back(height: int, width: int) -> None:
    masks = some_masks(height, width)
    for mask, ours in zip(masks, encoded(masks), strict=True):
        theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert ours == {"size": [height, width], "counts": theirs["counts"].decode()}
        assert np.array_equal(decoded(ours, height, width), mask)
        plain = run_lengths(ours["counts"])
        assert plain.sum() == height * width
        assert compressed(plain) == ours["counts"]
        assert np.array_equal(decoded({"size": [height, width], "counts": plain.tolist()}, height, width), mask)
        piece = patch(ours, height, width)
        if mask.any():
            assert piece.pixels.any(axis=0)[[0, -1]].all()
            assert piece.pixels.any(axis=1)[[0, -1]].all()
        assert encoded_patch(piece, height, width) == ours
        assert encoded_patch(Patch(0, 0, mask), height, width) == ours


@pytest.mark.parametrize("seed", range(3))
def test_polygons_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(5, 200, 2))
        polygons = [
            (rng.uniform(-0.2, 1.2, (int(rng.integers(3, 12)), 2)) * [width, height]).round(2).reshape(-1).tolist()
            for _ in range(int(rng.integers(1, 4)))
        ]
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        assert np.array_equal(decoded(polygons, height, width), theirs.astype(bool))


def test_polygons_that_are_far_out_or_not_finite() -> None:
    for polygon in ([0, 0, 5, 5, 1e9, 3], [0, 0, 5, float("nan"), 1, 3], [0, 0, 5, -1e4, 1, 3], [0, 0, float("inf"), 4, 1, 3]):
        with pytest.raises(Unreadable, match="far outside of its image of 20 x 10 pixels"):
            decoded([polygon], 10, 20)
    assert decoded([[0, 0, 20, 0, 20, 10, 0, 10]], 10, 20).all()  # whole numbers


def test_rectangles() -> None:
    box = (1, 2, 5, 9)
    assert is_rectangle([[1, 2, 5, 2, 5, 9, 1, 9]], box)
    assert is_rectangle([[1, 9, 1, 2, 5, 2, 5, 9.01, 1, 9]], box)
    for other in ([[1, 2, 5, 2, 5, 8, 1, 9]], [[1, 2, 5, 2, 5, 9]], [[1, 2, 5, 9, 5, 2, 1, 2]], {"size": [9, 9], "counts": "a"}):
        assert not is_rectangle(other, box)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rectangles_of_any_scale(scale: float) -> None:
    box = [scale * value for value in (1, 2, 5, 9)]
    drawn = [[1, 2, 5, 2, 5, 9, 1, 9], [1, 2, 5.01, 2, 5, 8.99, 1, 9]]
    others = [[3, 2, 5, 5, 3, 9, 1, 5], [1, 2, 5, 2, 5, 9, 1.3, 9], [1, 2, 1.01, 2, 5, 9, 1, 9]]  # the last has a corner twice
    for polygons, expected in ((drawn, True), (others, False)):
        for polygon in polygons:
            assert is_rectangle([[scale * value for value in polygon]], box) == expected
