"""A run is resumed if its data is the same, whatever it is called; see also tests/recipes/test_data_of_runs.py."""

import pytest

from unveil.train.data_changes import data_changes

NEW = {"name": "pics", "path": "/a/pics", "count": 40, "fingerprint": "2:aa", "listing_fingerprint": "bb", "splits": {}}
TEST = {"test_count": 9, "test_fingerprint": "2:cc", "test_listing_fingerprint": "dd"}


@pytest.mark.parametrize(
    "old",
    [
        {"name": "./pics/", "path": "/elsewhere", "count": 40, "fingerprint": "2:aa"},
        {"name": "pics", "count": 40, "fingerprint": "bb"},  # of an earlier version, over names and sizes
    ],
)
def test_the_same_data(old: dict[str, object]) -> None:
    assert data_changes(old, NEW) == []


def test_other_data() -> None:
    assert data_changes({"count": 39, "fingerprint": "2:ab"}, NEW) == ["  data: was 39 images, is 40 images"]
    replaced = "  data: 40 images as before, but some have other names, sizes, contents or labels"
    assert data_changes({"count": 40, "fingerprint": "2:ab"}, NEW) == [replaced]
    assert data_changes({"count": 40, "fingerprint": "aa"}, NEW) == [replaced]
    assert data_changes({"count": 40, "fingerprint": "bb"}, NEW | TEST) == ["  test data: the run had none, now there is 9 images"]
    assert data_changes(NEW | TEST | {"test_fingerprint": "dd"}, NEW | TEST) == []
    texts = {"texts": 5, "fingerprint": "f" * 64}
    assert data_changes(texts, texts) == []
    assert data_changes(texts, texts | {"fingerprint": "0", "texts": 6}) == ["  data: was 5 texts, is 6 texts"]
