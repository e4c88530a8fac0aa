"""The embedded data are the same on every machine, for ever."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from unveil.data.digits import COUNTS, canvas, digits, resized_ink, scans, sklearn_table

GOLDEN = {
    ("train", False): {
        "shape": (10000, 16, 16, 3),
        "images": "cf3e83a7a5c2c606bfa3feb54320b4b0e9a8beae3e9931bca9eebf4eaf483134",
        "labels": [1036, 1153, 983, 888, 980, 1145, 1052, 925, 885, 953],
    },
    ("train", True): {
        "shape": (1438, 8, 8, 1),
        "images": "7e4a10b8ab64bd5e1e08f8815901758e7896368a221c648e7744cd1a16e4637a",
        "labels": [151, 161, 143, 131, 147, 154, 150, 136, 127, 138],
    },
    ("test", False): {
        "shape": (2000, 16, 16, 3),
        "images": "773e863f407b6d09728c2cbe4fd39120452bd61374667b8035ee18807f40ec96",
        "labels": [170, 114, 190, 299, 201, 163, 136, 239, 267, 221],
    },
    ("test", True): {
        "shape": (359, 8, 8, 1),
        "images": "ff652b6f02dc1ac62679e4d1be62c61d30721beae84fa43f2691c7a0e858f1ab",
        "labels": [27, 21, 34, 52, 34, 28, 31, 43, 47, 42],
    },
}


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_golden(split, plain):
    images, labels = digits(split, plain=plain)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert {"shape": images.shape, "images": sha256(images), "labels": np.bincount(labels).tolist()} == GOLDEN[split, plain]


def test_scans_are_sklearns_and_the_splits_share_none():
    data = load_digits()
    train, test = scans("train"), scans("test")
    assert len(train[0]) + len(test[0]) == 1797
    t = iter(zip(*train, strict=True)), iter(zip(*test, strict=True))
    for i in range(1797):
        scan, label = next(t[1] if i % 5 == 4 else t[0])
        assert label == data.target[i]
        assert np.abs(scan.astype(float) * 16 / 255 - data.images[i]).max() < 0.04
    assert {split: len(digits(split)[0]) for split in ("train", "test")} == COUNTS


def test_a_canvas_follows_its_draw():
    full = np.full((8, 8), 255, np.uint8)
    draw = np.array([0, 3, 2, 1, 10, 20, 30, 5, 6, 7, 0, 0])  # side 12, at (2, 1)
    image = canvas(resized_ink(full, 9 + int(draw[1]) % 6), draw)
    assert image.shape == (16, 16, 3)
    inside = np.zeros((16, 16), bool)
    inside[2:14, 1:13] = True
    assert (image[inside] == [122, 132, 142]).all()
    assert (image[~inside] == [5, 6, 7]).all()
    assert (canvas(resized_ink(np.zeros((8, 8), np.uint8), 9 + int(draw[1]) % 6), draw) == [5, 6, 7]).all()


def test_images_differ_in_place_size_and_colour():
    images, _ = digits("train")
    assert len({x.tobytes() for x in images[:500]}) == 500
    ground = images[:500].min(axis=(1, 2))
    assert ground.max() < 32
    bright = (images[:500].max(axis=3) > 100).reshape(500, 256)
    assert (bright.mean(axis=0) > 0.02).sum() > 150  # digits stand in most places of the canvas


def test_the_table_is_that_of_sklearn():
    data = load_digits()
    table = sklearn_table()
    assert np.array_equal(table[:, :-1], data.data)
    assert np.array_equal(table[:, -1], data.target)
