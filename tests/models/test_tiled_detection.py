"""Tiles cover an image, and objects that several tiles show are found once."""

from itertools import pairwise

import pytest
import torch

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


def test_a_box_that_every_tile_cuts_is_kept_once() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 40], [32, 0, 96, 40], [64, 0, 128, 40]])
    kept = merged(boxes, torch.tensor([0.6, 0.9, 0.5]), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), 0.5, 10)
    assert kept.tolist()[0] == 1
