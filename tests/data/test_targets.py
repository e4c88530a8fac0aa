"""Targets follow their images: against images that are their own maps, against torchvision, and by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment, AugmentConfig, eval_geometry, eval_images
from unveil.data.batch import Batch
from unveil.data.pixels import IGNORE
from unveil.data.targets import BoxTargets, ClassTargets, Geometry, PixelTargets, Targets, source_indices

PLAIN = (0.0,), (1.0,)


def asymmetric_maps(count: int = 40, height: int = 24, width: int = 36) -> Tensor:
    """(B, H, W) classes 0 to 3, another one in each quarter, and a corner of its own."""
    maps = torch.zeros(count, height, width, dtype=torch.int64)
    maps[:, : height // 3, width // 4 :] = 1
    maps[:, height // 2 :, : width // 3] = 2
    maps[:, 2 * height // 3 :, 2 * width // 3 :] = 3
    return maps


def batch_of(maps: Tensor, sizes: Tensor | None = None) -> Batch:
    """Images that are their own maps: class k has the value 80 k."""
    sizes = torch.tensor([maps.shape[1:]] * len(maps)) if sizes is None else sizes
    return Batch((80 * maps)[:, None].to(torch.uint8), sizes, sample_keys(0, 0, len(maps)), PixelTargets(maps))


@pytest.mark.parametrize("crop", ["resized", "fixed", "none"])
@pytest.mark.parametrize("size", [(16, 16), (48, 20), (70, 80)])
def test_maps_follow_the_crop_of_their_images(crop: str, size: tuple[int, int]) -> None:
    """But for blur and ringing at the edges between classes, the augmented image is the augmented map."""
    batch = batch_of(asymmetric_maps())
    augment = Augment(AugmentConfig(crop=crop), size, *PLAIN)
    augmented, geometry = augment(batch), augment.draw(batch.sizes, batch.keys)
    assert isinstance(augmented.targets, PixelTargets)
    maps, images = augmented.targets.maps, augmented.images[:, 0] * 255 / 80
    assert maps.shape == (40, *size)
    assert maps.dtype == torch.int64
    inside = maps != IGNORE
    assert inside.float().mean() > 0.85
    assert not images[~inside].any()  # black, where a fixed crop reaches over the edge
    assert (images.round() == maps)[inside].float().mean() > 0.9
    if geometry.flip is not None:
        mirrored = batch.targets.transformed(geometry._replace(flip=~geometry.flip)).maps
        assert (images.round() == mirrored)[inside].float().mean() < 0.85


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (11, 50), (70, 80)])
def test_no_part_of_a_pixel_is_lost_between_maps_and_images(axis: int, size: tuple[int, int]) -> None:
    """On a ramp, where the value of a pixel is its position, the image has the position of each centre, and the map rounds it."""
    ramp = torch.arange(60).reshape((1, 60, 1) if axis == 1 else (1, 1, 60)).expand(40, 60, 60).contiguous()
    batch = Batch((4 * ramp)[:, None].to(torch.uint8), torch.tensor([[60, 60]] * 40), sample_keys(0, 0, 40), PixelTargets(ramp))
    augmented = Augment(AugmentConfig(), size, *PLAIN)(batch)
    difference = (augmented.images[:, 0] * 255 / 4 - augmented.targets.maps)[:, 3:-3, 3:-3]  # the filter is one-sided at the border
    assert difference.abs().max() < 0.65  # half a pixel, and the rounding of bytes
    assert difference[difference.abs() < 0.45].mean().abs() < 0.05  # without centres that are between two pixels


def test_the_geometry_is_that_of_the_images_and_depends_on_keys_alone() -> None:
    batch = batch_of(asymmetric_maps())
    augment = Augment(AugmentConfig(), (16, 16), *PLAIN)
    geometry = augment.draw(batch.sizes, batch.keys)
    assert geometry.flip is not None
    assert 0.2 < geometry.flip.float().mean() < 0.8
    both = augment(batch)
    assert torch.equal(both.targets.maps, batch.targets.transformed(geometry).maps)
    assert torch.equal(both.images, augment(batch._replace(targets=None)).images)
    part = augment(batch.first(5))
    assert torch.equal(part.targets.maps, both.targets.maps[:5])


def boxes_and_flips(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    chance = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        h, w = int(chance.integers(1, height + 1)), int(chance.integers(1, width + 1))
        boxes.append([int(chance.integers(0, height - h + 1)), int(chance.integers(0, width - w + 1)), h, w])
    return torch.tensor(boxes).float(), torch.from_numpy(chance.random(count) < 0.5)


@pytest.mark.parametrize("size", [(7, 12), (13, 5), (31, 64)])
def test_maps_equal_torchvision_with_pixel_centres(size: tuple[int, int]) -> None:
    maps = torch.randint(0, 9, (30, 23, 17), generator=torch.Generator().manual_seed(0))
    boxes, flips = boxes_and_flips(30, 23, 17)
    found = PixelTargets(maps).transformed(Geometry(boxes, size, flips)).maps
    for ours, x, (top, left, height, width), flip in zip(found, maps, boxes.int().tolist(), flips, strict=True):
        crop = V.crop(x[None], top, left, height, width)
        expected = V.resize_image(crop.float(), list(size), InterpolationMode.NEAREST_EXACT)[0].long()
        assert torch.equal(ours, expected.flip(1) if flip else expected)


def test_maps_equal_torchvisions_masks_where_nothing_is_between_pixels() -> None:
    """Torchvision looks at corners instead of centres: the same pixels when maps keep their size or grow by a whole factor."""
    maps = torch.randint(0, 9, (12, 10, 14), generator=torch.Generator().manual_seed(0))
    for factor in (1, 2, 3):
        boxes = torch.tensor([[i % 5, i % 7, 5, 7] for i in range(12)])
        flips = torch.arange(12) % 2 == 0
        found = PixelTargets(maps).transformed(Geometry(boxes.float(), (5 * factor, 7 * factor), flips)).maps
        for ours, x, box, flip in zip(found, maps, boxes.tolist(), flips, strict=True):
            expected = V.resized_crop(tv_tensors.Mask(x), *box, [5 * factor, 7 * factor])
            assert torch.equal(ours, torch.as_tensor(V.horizontal_flip(expected) if flip else expected))


def test_maps_by_hand() -> None:
    maps = PixelTargets(torch.arange(12).reshape(1, 3, 4))
    whole = torch.tensor([[0.0, 0, 3, 4]])
    assert maps.transformed(Geometry(whole, (3, 4))).maps.tolist() == maps.maps.tolist()
    flipped = maps.transformed(Geometry(whole, (3, 4), torch.tensor([True]))).maps
    assert flipped.tolist() == [[[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]]
    third = maps.transformed(Geometry(torch.tensor([[0.0, 0, 3, 3]]), (1, 1))).maps  # its centre is the centre of pixel (1, 1)
    assert third.tolist() == [[[5]]]
    over = maps.transformed(Geometry(torch.tensor([[-1.0, 2, 3, 4]]), (3, 4), torch.tensor([True]))).maps
    assert over.tolist() == [[[255, 255, 255, 255], [255, 255, 3, 2], [255, 255, 7, 6]]]
    assert source_indices(torch.tensor([10]), torch.tensor([4]), 2).tolist() == [[11, 13]]


def test_the_padding_of_a_canvas_is_ignored() -> None:
    maps = asymmetric_maps(2)
    maps[1, 20:], maps[1, :, 30:] = IGNORE, IGNORE
    batch = batch_of(maps, torch.tensor([[24, 36], [20, 30]]))
    geometry = (
        Augment(AugmentConfig(crop="fixed"), (16, 16), *PLAIN)
        .draw(batch.sizes, batch.keys)
        ._replace(boxes=torch.tensor([[-2.0, -2, 26, 38]] * 2))
    )
    found = batch.targets.transformed(geometry).maps
    assert bool((found[0] == IGNORE).any())
    assert (found[1] == IGNORE).sum() > (found[0] == IGNORE).sum()


@pytest.mark.parametrize(("height", "width"), [(24, 36), (16, 16), (60, 50)])
def test_the_evaluation_crop_moves_maps_too(height: int, width: int) -> None:
    batch = batch_of(asymmetric_maps(1, height, width))
    geometry = eval_geometry(batch.sizes, (16, 16))
    assert geometry.flip is None
    maps, images = batch.targets.transformed(geometry).maps, eval_images(batch, (16, 16), *PLAIN)[:, 0] * 255 / 80
    assert ((images - maps).abs() < 0.51).float().mean() > 0.9
    if (height, width) == (16, 16):
        assert torch.equal(maps, batch.targets.maps)


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("size", [(16, 16), (30, 12)])
def test_boxes_equal_torchvisions(size: tuple[int, int]) -> None:
    height, width = 40, 60
    chance = torch.Generator().manual_seed(0)
    corners = torch.rand(25, 6, 2, 2, generator=chance) * torch.tensor([width, height])
    objects = torch.cat([corners.amin(2), corners.amax(2)], dim=2)  # (B, M, 4)
    labels = torch.randint(0, 5, (25, 6), generator=chance)
    labels[::3, 4:] = -1  # fewer objects in some images
    crops, flips = boxes_and_flips(25, height, width)
    found = BoxTargets(objects, labels).transformed(Geometry(crops, size, flips))
    dropped = 0
    for i, (crop, flip) in enumerate(zip(crops.int().tolist(), flips, strict=True)):
        boxes = tv_tensors.BoundingBoxes(objects[i], format="XYXY", canvas_size=(height, width))
        boxes = V.clamp_bounding_boxes(V.resized_crop(boxes, *crop, list(size)))
        boxes = torch.as_tensor(V.horizontal_flip(boxes) if flip else boxes)
        kept = (labels[i] >= 0) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        assert torch.equal(found.labels[i], torch.where(kept, labels[i], -1))
        torch.testing.assert_close(found.boxes[i][kept], boxes[kept], rtol=1e-4, atol=1e-3)
        assert not found.boxes[i][~kept].any()
        dropped += int((~kept & (labels[i] >= 0)).sum())
    assert dropped > 5


def test_boxes_by_hand() -> None:
    targets = BoxTargets(torch.tensor([[[2.0, 1, 6, 3], [0, 0, 1, 1], [0, 0, 0, 0]]]), torch.tensor([[4, 7, -1]]))
    geometry = Geometry(torch.tensor([[0.0, 2, 4, 8]]), (8, 8), torch.tensor([True]))
    found = targets.transformed(geometry)
    assert found.labels.tolist() == [[4, -1, -1]]  # the second is outside of the crop
    assert found.boxes.tolist() == [[[4.0, 2, 8, 6], [0, 0, 0, 0], [0, 0, 0, 0]]]


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize(
    "targets",
    [
        ClassTargets(torch.arange(6)),
        ClassTargets(torch.rand(6, 3)),
        PixelTargets(asymmetric_maps(6)),
        BoxTargets(
            torch.rand(6, 2, 4),
            torch.zeros(6, 2, dtype=torch.int64),
            torch.zeros(6, 2, dtype=torch.bool),
            torch.rand(6, 2),
            torch.ones(6, 2, 4, 4, dtype=torch.bool),
        ),
    ],
)
def test_every_kind_of_targets_moves_and_shrinks_with_its_batch(targets: Targets) -> None:
    assert isinstance(targets, Targets)
    batch = Batch(torch.zeros(6, 1, 4, 4), torch.full((6, 2), 4), torch.arange(6), targets)
    for changed, count in ((batch.first(2), 2), (batch.to(torch.device("cpu")), 6)):
        assert isinstance(changed, Batch)
        assert type(changed.targets) is type(targets)
        for ours, original in zip(changed.targets, targets, strict=True):
            assert torch.equal(ours, original[:count])
    assert Batch(*batch[:3]).first(2).targets is None
    meta = batch.to(torch.device("meta"))
    assert all(x.device.type == "meta" for x in (meta.images, meta.keys, *meta.targets))


def test_classes_stay_whatever_the_crop() -> None:
    targets = ClassTargets(torch.arange(3))
    assert targets.transformed(Geometry(torch.zeros(3, 4), (2, 2))) is targets
