"""Tiles cover an image, and objects that several tiles show are found once."""

from itertools import pairwise

import pytest
import torch
from torchvision.ops import batched_nms

from unveil.models.tiled_detection import Tile, cut_by, merged, tiles_of


@pytest.mark.parametrize("size", [(50, 70), (64, 64), (65, 64), (200, 333), (64, 1000)])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int]) -> None:
    seen = torch.zeros(size, dtype=torch.int64)
    tiles = tiles_of(size, (64, 64))
    for tile in tiles:
        assert (tile.height, tile.width) == (min(64, size[0]), min(64, size[1]))
        seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert (seen > 0).all()
    for axis, start in ((0, sorted({tile.top for tile in tiles})), (1, sorted({tile.left for tile in tiles}))):
        assert all(second - first <= 32 for first, second in pairwise(start)), axis


def test_a_box_at_an_inner_edge_may_be_cut() -> None:
    tile, size = Tile(0, 32, 64, 64), (64, 160)  # of the whole height
    boxes = torch.tensor([[40.0, 0, 60, 64], [32.5, 5, 60, 20], [50, 5, 96, 20], [40, 10, 90, 20]])
    assert cut_by(tile, boxes, size).tolist() == [False, True, True, False]


def test_parts_of_an_object_are_dropped_beside_the_whole() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [11, 10, 30, 30], [20, 10, 30, 30], [20, 10, 31, 30], [80, 0, 96, 20]])
    scores, labels = torch.tensor([0.7, 0.6, 0.95, 0.9, 0.5]), torch.tensor([0, 0, 0, 1, 0])
    cut = torch.tensor([False, False, True, True, True])
    kept = merged(boxes, scores, labels, cut, nms=0.5, most=10)
    assert kept.tolist() == [3, 0, 4]  # another class, the better whole one, and a part that no whole one shows
    assert merged(boxes, scores, labels, cut, nms=0.5, most=1).tolist() == [3]


def test_of_an_object_that_every_tile_cuts_the_better_part_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 40], [24, 0, 88, 40], [20, 0, 60, 40], [64, 0, 128, 40]])
    kept = merged(
        boxes, torch.tensor([0.6, 0.9, 0.95, 0.5]), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), 0.5, 9
    )
    assert kept.tolist() == [2, 3]  # the first two have the third, or are in it; the last shares little


def test_a_small_object_within_a_large_one_that_was_cut() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 200, 200], [20, 20, 60, 60]]), torch.zeros(2, dtype=torch.int64)
    kept = merged(boxes, torch.tensor([0.95, 0.06]), labels, torch.tensor([True, False]), nms=0.5, most=10)
    assert kept.tolist() == [0, 1]


def test_many_boxes_equal_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, sides = torch.rand(300, 2, generator=generator) * 200, torch.rand(300, 2, generator=generator) * 40 + 5
    boxes, scores = torch.cat([corner, corner + sides], dim=1), torch.rand(300, generator=generator)
    labels, cut = torch.randint(0, 3, (300,), generator=generator), torch.rand(300, generator=generator) < 0.4
    whole = torch.where(~cut)[0]
    kept = whole[batched_nms(boxes[whole], scores[whole], labels[whole], 0.5)].tolist()
    whole = list(kept)
    for i in sorted(torch.where(cut)[0].tolist(), key=lambda i: -float(scores[i])):
        shares = []
        for j in (each for each in kept if labels[each] == labels[i]):
            left, top = torch.maximum(boxes[i, :2], boxes[j, :2]).tolist()
            right, bottom = torch.minimum(boxes[i, 2:], boxes[j, 2:]).tolist()
            areas = [float((boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1])) for k in (i, j)]
            shares.append(max(right - left, 0) * max(bottom - top, 0) / (areas[0] if j in whole else min(areas)))
        if max(shares, default=0) <= 0.5:
            kept.append(i)
    kept.sort(key=lambda i: -float(scores[i]))
    assert merged(boxes, scores, labels, cut, nms=0.5, most=1000).tolist() == kept
    assert len(whole) < len(kept) < 300
