"""Boxes and masks in batches: of images that are shrunk, cut, cropped by the loader, or replaced because they cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.object_files import CATEGORIES
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Cropped
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader, microbatches
from unveil.data.pixels import CropSide
from unveil.data.sources import open_roles
from unveil.data.targets import BoxTargets


def drawn(root: Path, sizes: list[tuple[int, int]], objects: int = 2) -> Path:
    """Images with rectangles in the greys 120 and 240, which are their masks and boxes."""
    rng, images, entries = np.random.default_rng(0), [], []
    root.mkdir(exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        for place in range(objects):
            h, w = int(rng.integers(height // 4, height // 2)), int(rng.integers(width // 8, width // 4))
            top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width // 2 - w)) + place * (width // 2)
            pixels[top : top + h, left : left + w] = 120 * (place + 1)
            cut = [left, top, left + w, top, left + w, top + h, left + w // 2, top + h, left, top + h]
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": i,
                    "category_id": CATEGORIES[place]["id"],
                    "bbox": [left, top, w, h],
                    "segmentation": [cut, [left, top, left + 1, top, left, top + 1]],
                    "area": h * w,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        images.append({"id": i, "file_name": f"{i:02d}.png", "height": height, "width": width})
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": CATEGORIES}))
    return root


def assert_drawn(images: torch.Tensor, targets: BoxTargets, allowed: float = 0.0) -> int:
    """The grey of each object is in its mask and nowhere else, up to a share of pixels at edges. Returns how many there are."""
    count = 0
    for i in range(len(images)):
        for mask, box, label, area in zip(targets.masks[i], targets.boxes[i], targets.labels[i], targets.area[i], strict=True):
            if label < 0:
                assert not mask.any()
                continue
            count += 1
            shown = (images[i, 0].float() - 120 * (int(label) + 1)).abs() < 45
            assert (shown ^ mask).sum() <= allowed * mask.sum() + (4 if allowed else 0)
            rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
            around = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            assert box.tolist() == pytest.approx(around, abs=1 if allowed else 0.001)
            assert area == pytest.approx(float(mask.sum()), rel=0.25 if allowed else 0.001)
    return count


@pytest.mark.parametrize("memory", [0, MEMORY])
@pytest.mark.parametrize("side", [400, 60, 37])
def test_objects_shrink_with_their_images(side: int, memory: int, tmp_path: Path) -> None:
    source = open_roles(drawn(tmp_path, [(200, 300), (120, 97), (301, 220)]), targets=BoxTargets).train
    dataset = ImageDataset(source, side=side, memory=memory)
    batch = dataset.readable(torch.arange(3))
    assert int(batch.sizes.min()) == min(side, 97)
    assert assert_drawn(batch.images, batch.targets, 0.0 if side == 400 else 0.45) == 6


@pytest.mark.parametrize("memory", [0, MEMORY])
def test_objects_at_the_ends_of_a_long_image_are_cut(memory: int, tmp_path: Path) -> None:
    """At a side of 20, a long image keeps its middle of 80 pixels."""
    source = open_roles(drawn(tmp_path, [(40, 400), (20, 300)], objects=2), targets=BoxTargets).train
    batch = ImageDataset(source, side=20, memory=memory).readable(torch.arange(2))
    assert batch.sizes.max() == 80
    for i in range(2):  # the light one: at its edges it is as grey as the other
        shown = (batch.images[i, 0].float() - 240).abs() < 45
        assert bool(shown.any()) == bool((batch.targets.labels[i] == 1).any())
    assert 1 <= int((batch.targets.labels >= 0).sum()) < 4
    assert_drawn(batch.images, batch.targets, 0.5)


@pytest.mark.parametrize("early", [False, True])
def test_the_loader_crops_objects_with_their_images(early: bool, tmp_path: Path) -> None:
    source = open_roles(drawn(tmp_path, [(200, 300), (220, 197), (301, 220), (150, 260)] * 3), targets=BoxTargets).train
    augment = Augment(AugmentConfig(crop_scale=0.3), (64, 64), (0.0,) * 3, (1 / 255,) * 3)
    batches = []
    for memory in (0, MEMORY):
        dataset = ImageDataset(source, side=CropSide(400, 400), memory=memory)
        loader = ImageLoader(dataset, batch_size=8, seed=1, draw=augment.draw_early if early else None)
        (loaded,) = microbatches(loader, 0, 0, 1, 1)
        assert isinstance(loaded, Cropped) == early
        batches.append(augment(loaded))
    assert torch.equal(batches[0].images, batches[1].images)
    for ours, theirs in zip(batches[0].targets, batches[1].targets, strict=True):
        assert torch.equal(ours, theirs)
    found = batches[0].targets
    seen = found.labels >= 0
    assert 8 < int(seen.sum()) <= 16
    for i, place in seen.nonzero().tolist():
        mask, grey = found.masks[i, place], 120 * (int(found.labels[i, place]) + 1)
        assert ((batches[0].images[i, 0][mask] - grey).abs() < 45).float().mean() > 0.75


def test_an_image_that_cannot_be_read_is_replaced_with_its_objects(tmp_path: Path) -> None:
    data = drawn(tmp_path, [(60, 80)] * 6)
    (data / "03.png").write_bytes((data / "03.png").read_bytes()[:100])
    for memory in (0, MEMORY):
        dataset = ImageDataset(open_roles(data, targets=BoxTargets).train, side=80, memory=memory)
        batch = dataset.samples(torch.tensor([3, 1]), sample_keys(0, 0, 2), lambda row: iter([3, 5]))
        assert assert_drawn(batch.images, batch.targets) == 4
        expected = dataset.readable(torch.tensor([5, 1]))
        assert torch.equal(batch.targets.boxes, expected.targets.boxes)
        assert torch.equal(batch.targets.masks, expected.targets.masks)
