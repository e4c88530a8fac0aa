"""Masks, areas and crowds of objects follow their images, as those of torchvision do where these agree, and by hand."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.collate import box_targets
from unveil.data.objects import ImageObjects
from unveil.data.rle import Patch
from unveil.data.targets import BoxTargets, Geometry, boxes_of_masks, cropped_masks


def scene(images: int, most: int, height: int, width: int, seed: int = 0) -> BoxTargets:
    """Random blobs with their boxes; images have different numbers of them."""
    rng, objects = np.random.default_rng(seed), list[ImageObjects]()
    for i in range(images):
        count = 0 if i == 1 else int(rng.integers(1, most + 1))
        masks = np.zeros((count, height, width), bool)
        for mask in masks:
            top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
            patch = mask[top : top + rng.integers(3, 12), left : left + rng.integers(3, 12)]
            patch[:] = rng.uniform(size=patch.shape) < 0.6
            patch[1, 1] = True
        boxes = boxes_of_masks(torch.from_numpy(masks)[None])[0].double().numpy()
        labels, crowd = rng.integers(0, 5, count), rng.uniform(size=count) < 0.2
        objects.append(ImageObjects(boxes, labels, crowd, masks.sum(axis=(1, 2)).astype(float), [Patch(0, 0, x) for x in masks]))
    return box_targets(objects, [(height, width)] * images)


def geometry(size: tuple[int, int], crops: list[tuple[int, int, int, int]], flips: list[bool]) -> Geometry:
    return Geometry(torch.tensor(crops).float(), size, torch.tensor(flips))


CROPS = [(2, 3, 24, 32), (0, 0, 40, 60), (10, 20, 6, 8), (-5, -7, 50, 80), (30, 44, 20, 28)]
FLIPS = [False, True, True, False, True]


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (48, 64)])
def test_masks_and_boxes_equal_torchvisions_where_no_pixel_lies_between_two(size: tuple[int, int]) -> None:
    """Crops are resized by whole factors, so nearest neighbours are the same by either rule, up to the pixel at an exact edge."""
    targets = scene(5, 6, 40, 60)
    height, width = size
    crops = [(2, 3, 24, 32), (8, 20, 24, 32), (-3, -4, 24, 32), (30, 44, 24, 32), (0, 0, 24, 32)]
    found = targets.transformed(geometry(size, crops, FLIPS))
    for i, (crop, flip) in enumerate(zip(crops, FLIPS, strict=True)):
        masks = tv_tensors.Mask(targets.masks[i])
        masks = V.crop(masks, *crop)
        if size != (24, 32):
            factor = size[0] / 24
            rows = ((torch.arange(height) + 0.5) / factor).long()  # the pixel under the centre, which torchvision does not take
            columns = ((torch.arange(width) + 0.5) / factor).long()
            masks = masks[:, rows][:, :, columns]
        masks = V.horizontal_flip(masks) if flip else masks
        real = targets.labels[i] >= 0
        seen = masks.flatten(1).any(dim=1) & real
        assert torch.equal(found.labels[i], torch.where(seen, targets.labels[i], -1))
        assert torch.equal(found.masks[i][seen], torch.as_tensor(masks)[seen])
        assert not found.masks[i][~seen].any()
        assert torch.equal(found.area[i][seen], torch.as_tensor(masks)[seen].sum(dim=(1, 2)).float())
        assert torch.equal(found.crowd[i], targets.crowd[i] & seen)
        from torchvision.ops import masks_to_boxes

        expected = masks_to_boxes(torch.as_tensor(masks)[seen]) + torch.tensor([0, 0, 1, 1])  # theirs end at the last pixel
        assert torch.equal(found.boxes[i][seen], expected)
        if size == (24, 32):  # SanitizeBoundingBoxes keeps the same objects, but for those whose box is left and whose mask is not
            kept = v2.ClampBoundingBoxes()(
                V.crop(tv_tensors.BoundingBoxes(targets.boxes[i], format="XYXY", canvas_size=(40, 60)), *crop)
            )
            assert bool((((kept[:, 2] > kept[:, 0]) & (kept[:, 3] > kept[:, 1])) >= seen).all())


@pytest.mark.parametrize("size", [(16, 16), (30, 22)])
def test_masks_equal_a_loop_over_pixels(size: tuple[int, int]) -> None:
    targets = scene(5, 4, 40, 60, seed=1)
    moves = geometry(size, CROPS, FLIPS)
    found = cropped_masks(targets.masks, moves)
    for i, ((top, left, height, width), flip) in enumerate(zip(CROPS, FLIPS, strict=True)):
        for y in range(size[0]):
            for x in range(size[1]):
                shown = size[1] - 1 - x if flip else x
                row, column = (
                    int(np.floor(top + (y + 0.5) * height / size[0])),
                    int(np.floor(left + (shown + 0.5) * width / size[1])),
                )
                there = 0 <= row < 40 and 0 <= column < 60
                expected = targets.masks[i, :, row, column] if there else torch.zeros(found.shape[1], dtype=torch.bool)
                assert torch.equal(found[i, :, y, x], expected)


def test_objects_without_masks_keep_their_boxes_and_shares_of_their_area() -> None:
    boxes = torch.tensor([[[0.0, 0, 8, 4], [6, 2, 10, 6], [20, 20, 24, 24], [0, 0, 0, 0]]])
    targets = BoxTargets(
        boxes,
        torch.tensor([[1, 2, 3, -1]]),
        torch.tensor([[True, False, True, False]]),
        torch.tensor([[20.0, 16, 16, 0]]),
        torch.zeros(1, 4, 30, 30, dtype=torch.bool),
    )
    moves = geometry((16, 16), [(0, 4, 8, 8)], [False])
    for each in (targets, targets._replace(masks=None)):
        found = each.transformed(moves)
        assert found.boxes.tolist() == [[[0, 0, 8, 8], [4, 4, 12, 12], [0, 0, 0, 0], [0, 0, 0, 0]]]
        assert found.labels.tolist() == [[1, 2, -1, -1]]
        assert found.crowd.tolist() == [[True, False, False, False]]
        assert found.area.tolist() == [[pytest.approx(20 * 2), 64, 0, 0]]  # half of the first is left, four times as large
    plain = BoxTargets(boxes, targets.labels).transformed(moves)
    assert (plain.crowd, plain.area, plain.masks) == (None, None, None)


def test_a_part_of_a_mask_has_a_smaller_box_than_the_clipped_one() -> None:
    """An L whose upright is cut off: only the foot is left."""
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[0, 0, 2:18, 2:4] = True
    mask[0, 0, 16:18, 2:12] = True
    targets = BoxTargets(torch.tensor([[[2.0, 2, 12, 18]]]), torch.tensor([[0]]), masks=mask)
    found = targets.transformed(geometry((20, 10), [(0, 6, 20, 10)], [False]))
    assert found.boxes.tolist() == [[[0, 16, 6, 18]]]
    gone = targets.transformed(geometry((10, 10), [(2, 8, 10, 10)], [False]))  # the box reaches into the crop, the mask does not
    assert gone.labels.tolist() == [[-1]]
    assert not gone.masks.any()


def test_augmented_images_show_their_masks() -> None:
    """Each object is a square of its own grey: after crop, resize and flip, the pixels of its mask have it."""
    rng = np.random.default_rng(0)
    images, masks = torch.zeros(12, 1, 80, 100, dtype=torch.uint8), torch.zeros(12, 2, 80, 100, dtype=torch.bool)
    for i in range(12):
        for place, grey in ((0, 100), (1, 200)):
            top, left = int(rng.integers(0, 60)), int(rng.integers(0, 35)) + 50 * place
            masks[i, place, top : top + 20, left : left + 15] = True
            images[i, 0][masks[i, place]] = grey
    targets = BoxTargets(boxes_of_masks(masks).float(), torch.tensor([[0, 1]] * 12), masks=masks)
    batch = Batch(images, torch.tensor([[80, 100]] * 12), sample_keys(0, 0, 12), targets)
    found = Augment(AugmentConfig(crop_scale=0.3), (64, 64), (0.0,), (1.0,))(batch)
    assert isinstance(found.targets, BoxTargets)
    right, total = 0, 0
    for i in range(12):
        for place, grey in ((0, 100), (1, 200)):
            if found.targets.labels[i, place] < 0:
                continue
            inner = found.targets.masks[i, place]
            right += int(((found.images[i, 0][inner] * 255 - grey).abs() < 20).sum())
            total += int(inner.sum())
            left, top, end, bottom = found.targets.boxes[i, place].int().tolist()
            assert inner[top:bottom, left:end].sum() == inner.sum()
    assert total > 3000
    assert right / total > 0.9  # the rest are at edges, where the filter mixes
    assert found.targets.labels.unique().tolist() in ([0, 1], [-1, 0, 1])


def test_boxes_of_masks_by_hand() -> None:
    masks = torch.zeros(1, 3, 5, 6, dtype=torch.bool)
    masks[0, 0, 1, 2] = masks[0, 0, 3, 4] = True
    masks[0, 1] = True
    assert boxes_of_masks(masks).tolist() == [[[2, 1, 5, 4], [0, 0, 6, 5], [0, 0, 0, 0]]]


def test_targets_are_batches() -> None:
    targets = scene(6, 3, 20, 24)
    assert [x.shape[0] for x in targets.rows(2, 4)] == [2] * 5
    assert torch.equal(targets.rows(2, 4).masks, targets.masks[2:4])
    assert [len(each.labels) for each in targets.chunks(3)] == [2, 2, 2]
    plain = targets._replace(masks=None, crowd=None, area=None)
    assert plain.first(2).masks is None
    assert [each.crowd for each in plain.chunks(2)] == [None, None]
    assert targets.to(torch.device("meta")).masks.device.type == "meta"
