"""The map of the features: its numbers against scikit-learn, and its place in a page."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from unveil.evaluate.feature_map import feature_map
from unveil.reports.map_section import MOST, map_section
from unveil.reports.page import write_page
from unveil.train.run_folder import Run


def write_map(path: Path, count: int = 40, **changed: np.ndarray) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "pca": random.normal(size=(count, 2)).astype(np.float32),
        "tsne": random.normal(size=(count, 2)).astype(np.float32),
        "explained": np.array(0.42, np.float32),
        "labels": np.arange(count) % 13 - 1,
        "classes": np.array([f"<b>{index}" for index in range(12)]),
        "names": np.array([f"a/{index}.png" for index in range(count)]),
        "thumbnails": random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8),
    }
    np.savez(path / "map.npz", **(arrays | changed))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run.json").write_text("{}")
    return Run(tmp_path)


def test_places_are_those_of_scikit_learn_and_the_same_at_each_call() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 70)) @ random.normal(size=(70, 70))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found, again, peer = feature_map(rows), feature_map(rows), PCA(2, svd_solver="full").fit(unit)
    np.testing.assert_allclose(np.abs(found.pca), np.abs(peer.transform(unit)), atol=1e-5)
    assert found.explained == pytest.approx(peer.explained_variance_ratio_.sum(), abs=1e-6)
    assert found.tsne is not None
    assert again.tsne is not None
    assert (found.tsne == again.tsne).all()


def test_tsne_keeps_two_groups_apart() -> None:
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(30, 8)) + 9, random.normal(size=(30, 8)) - 9])
    tsne = feature_map(rows).tsne
    assert tsne is not None
    distance = np.linalg.norm(tsne[:, None] - tsne[None], axis=2) + np.where(np.eye(60), np.inf, 0)
    assert (distance.argmin(axis=1) // 30 == np.arange(60) // 30).all()


@pytest.mark.parametrize("rows", [np.ones((1, 5)), np.ones((3, 5)), np.ones((9, 5)), np.arange(4.0)[:, None], np.zeros((6, 2))])
def test_few_or_equal_rows_have_a_map(rows: np.ndarray) -> None:
    found = feature_map(rows)
    assert found.pca.shape == (len(rows), 2)
    assert np.isfinite(found.pca).all()
    assert found.tsne is None or np.isfinite(found.tsne).all()


def test_each_image_is_a_dot_at_its_place(run: Run) -> None:
    pca = np.array([[0, 0], [4, 0], [2, 1], [4, 2]], np.float32)
    labels, thumbnails = np.array([0, 1, -1, 1]), np.zeros((4, 8, 8, 3), np.uint8)
    names = np.array(["w.png", "x.png", "y.png", "z.png"])
    write_map(run.path, 4, pca=pca, tsne=pca, labels=labels, thumbnails=thumbnails, names=names)
    text = str(map_section(run))
    first = re.findall(r'<i style="margin:([\d.]+)% 0 0 ([\d.]+)%;--u:(\d+);--v:(\d+)" class="(k\d*)" data-text="([^"]*)"', text)[
        :4
    ]
    # The longer axis fills the square, the other one is in its middle; the first row is at the bottom.
    assert first == [
        ("75.0", "0.0", "0", "0", "k0", "&lt;b&gt;0"),
        ("75.0", "100.0", "1", "0", "k1", "&lt;b&gt;1"),
        ("50.0", "50.0", "2", "0", "k", "y.png"),
        ("25.0", "100.0", "3", "0", "k1", "&lt;b&gt;1"),
    ]
    assert "hold 42 % of the variance" in text
    assert "t-SNE keeps neighbours" in text


def test_many_classes_and_old_runs(run: Run) -> None:
    assert map_section(run) is None
    write_map(run.path, 60)
    text = str(map_section(run))
    assert "2 other classes" in text
    page = write_page(run, None).read_text()
    assert '<section id="map">' in page
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    write_map(run.path, MOST + 5)
    assert str(map_section(run)).count("<i ") == 2 * MOST


@pytest.mark.parametrize(
    "changed",
    [
        {"pca": np.zeros((40, 3), np.float32)},
        {"tsne": np.full((40, 2), np.nan, np.float32)},
        {"labels": np.full(40, 99)},
        {"labels": np.full(40, "a")},
        {"names": np.array(["a"])},
        {"thumbnails": np.zeros((40, 9000, 1, 3), np.uint8)},
        {"thumbnails": np.zeros((39, 8, 8, 3), np.uint8)},
        {"explained": np.array("much")},
        {"pca": np.zeros((0, 2), np.float32)},
        {"pca": np.array(3.0)},
    ],
)
def test_a_damaged_map_is_told_in_a_sentence(run: Run, changed: dict[str, np.ndarray]) -> None:
    write_map(run.path, **changed)
    assert "map.npz is damaged" in str(map_section(run))
    assert '<section id="map">' in write_page(run, None).read_text()


def test_a_truncated_map(run: Run) -> None:
    write_map(run.path)
    whole = (run.path / "map.npz").read_bytes()
    (run.path / "map.npz").write_bytes(whole[: len(whole) // 2])
    assert "map.npz is damaged" in str(map_section(run))
