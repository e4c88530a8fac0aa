"""Lists of labels, and numbers, from labels.csv, files beside images, class folders and arrays."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.dataset import ImageDataset
from unveil.data.source import Source
from unveil.data.sources import open_parts, open_source
from unveil.data.targets import ClassTargets, MultiLabelTargets, NumberTargets
from unveil.errors import UnveilError


def write(root: Path, names: list[str], table: str | None = None) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), number).save(root / name)
    if table is not None:
        (root / "labels.csv").write_text(table)
    return root


def labels_of(source: Source) -> dict[str, Any]:
    """The labels of each image: a list of names, with "?" at the end if one is unknown; None if all are."""
    assert source.values is not None
    found: dict[str, Any] = {}
    for name, row in zip(source.names, source.values.tolist(), strict=True):
        own = [label for label, value in zip(source.classes, row, strict=True) if value == 1]
        unknown = [value for value in row if value != value]
        found[name] = None if len(unknown) == len(row) else own + ["?"] * bool(unknown)
    return found


def opened(data: Any, kind: type) -> Source:
    return open_parts(data, targets=kind).roles().train


NAMES = ["a.png", "b.png", "c.png", "d.png"]
LISTS = 'file,labels\na.png,cat|dog\nb.png,|\nc.png,\n"d.png"," dog | emu, big |dog"\n'
COLUMNS = "file,cat,dog,emu\na.png,1,1,0\nb.png,0,0.0,False\nd.png,,TRUE,-1\nc.png,,,\n"


def test_lists_of_labels(tmp_path: Path) -> None:
    """`|` alone means that an image has none of the labels, and an empty cell that they are unknown."""
    source = opened(str(write(tmp_path, NAMES, LISTS)), MultiLabelTargets)
    assert source.classes == ["cat", "dog", "emu, big"]
    assert labels_of(source) == {"a.png": ["cat", "dog"], "b.png": [], "c.png": None, "d.png": ["dog", "emu, big"]}
    assert source.has_label.tolist() == [True, True, False, True]
    assert source.notes == (
        "labels.csv: 1 row has an empty label: c.png",
        "took the column labels of labels.csv as labels, 1.33 per image on average: cat: 1, dog: 2, emu, big: 1, and 1 image "
        "without any",
    )


def test_a_column_for_each_label(tmp_path: Path) -> None:
    source = opened(str(write(tmp_path, NAMES, COLUMNS)), MultiLabelTargets)
    assert source.classes == ["cat", "dog", "emu"]
    assert labels_of(source) == {"a.png": ["cat", "dog"], "b.png": [], "c.png": None, "d.png": ["dog", "?"]}


def test_rows_of_one_image(tmp_path: Path) -> None:
    """Lists are joined, since some tables have a row for each label; rows of 0 and 1 that differ leave an image without labels."""
    write(tmp_path, NAMES, "file,label\na.png,cat\na.png,dog\nb.png,dog\nb.png,dog\n")
    source = opened(str(tmp_path), MultiLabelTargets)
    assert labels_of(source) == {"a.png": ["cat", "dog"], "b.png": ["dog"], "c.png": None, "d.png": None}
    assert "labels.csv: 1 image has several rows, whose labels are joined: a.png" in source.notes
    (tmp_path / "labels.csv").write_text("file,cat,dog\na.png,1,0\na.png,0,1\nb.png,1,0\n")
    assert labels_of(opened(str(tmp_path), MultiLabelTargets))["a.png"] is None


def test_numbers(tmp_path: Path) -> None:
    table = "id;file;count\n7;a.png;3\n8;b.png;-1.5e2\n9;c.png;\n10;d.png;.25\n"
    source = opened(str(write(tmp_path, NAMES, table.replace("id;", ";"))), NumberTargets)
    np.testing.assert_array_equal(source.values, [3, -150, math.nan, 0.25])
    assert source.classes == ["count"]
    assert source.notes[-1] == "took the column count of labels.csv as a number: -150 to 3, mean -48.92"
    (tmp_path / "labels.csv").write_text(table.replace("count", "Value"))
    assert opened(str(tmp_path), NumberTargets).classes == ["Value"]  # of several columns, the one with a usual name


WRONG = [
    (
        NumberTargets,
        "file,label\na.png,3\nb.png,cat\n",
        r"b\.png has 'cat' in the column label of labels\.csv, which is not a number: a",
    ),
    (NumberTargets, 'file,n\na.png,"1,5"\n', r"a\.png has '1,5' .* write it with a decimal point and without separators"),
    (NumberTargets, "file,n\na.png,12 cells\n", r"a\.png has '12 cells' .* write the number alone, without a unit, as in 12$"),
    (NumberTargets, "file,n\na.png,NaN\n", r"a\.png has 'NaN' .* leave the cell empty if it is unknown"),
    (NumberTargets, "file,n\na.png,-inf\n", r"a\.png has '-inf' .* leave the cell empty if it is unknown"),
    (NumberTargets, "file,n\na.png,1e400\n", r"a\.png has '1e400' .* which is not a number that can be learned"),
    (NumberTargets, "file,n\na.png,1_000\n", r"a\.png has '1_000' .* which is not a number"),
    (
        NumberTargets,
        "file,width,height\na.png,3,4\n",
        r"several columns that may be the number \(width, height\): rename the one to p",
    ),
    (NumberTargets, "name,n\na.png,3\n", r"labels\.csv begins with 'name, n': expected file,value"),
    (MultiLabelTargets, "file,cat,width\na.png,1,640\n", r"a\.png has '640' in the column width of labels\.csv: expected 0, 1"),
    (MultiLabelTargets, "file,cat,dog\na.png,cat|dog,0\n", r"a\.png has 'cat\|dog' in the column cat"),
    (MultiLabelTargets, "file,a|b,c\na.png,1,0\n", r"the name 'a\|b', but \| separates labels: rename it"),
    (MultiLabelTargets, "file,cat,cat\na.png,1,0\n", r"the name cat twice"),
    (MultiLabelTargets, "file\na.png\n", r"labels\.csv begins with 'file': expected file,labels, or file and a column"),
    (
        ClassTargets,
        "file,cat,dog\na.png,1,0\n",
        "begins with 'file, cat, dog': expected file,label in .* are for finetune --task multilabel",
    ),
]


@pytest.mark.parametrize(("kind", "table", "reason"), WRONG)
def test_the_first_cell_that_cannot_be_used(kind: type, table: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=reason):
        opened(str(write(tmp_path, NAMES, table)), kind)


def test_commands_without_labels_pass_over_other_tables(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, ["x/a.png", "y/b.png"], "file,count\nx/a.png,3\n"))
    assert source.classes == ["x", "y"]
    assert source.notes[0] == "labels.csv is not used: it has no column label, but file, count"


def test_classes_of_the_same_table_stay(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, NAMES, LISTS.replace("labels", "label")))
    assert source.classes == ["cat|dog", "dog | emu, big |dog", "|"]
    assert source.values is None


@pytest.mark.parametrize("suffix", [".json", ".cls"])
def test_files_beside_images(suffix: str, tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    lists: list[Any] = [["cat", "dog"], [], None, "dog|7"]
    for name, own in zip(NAMES, lists, strict=True):
        text = "" if own is None else "|".join(own) or "|" if isinstance(own, list) else own
        record = {"labels": own} if own is not None else {"caption": "x"}
        (tmp_path / name).with_suffix(suffix).write_text(json.dumps(record) if suffix == ".json" else text)
    found = labels_of(opened(str(tmp_path), MultiLabelTargets))
    assert found == {"a.png": ["cat", "dog"], "b.png": [], "c.png": None, "d.png": ["7", "dog"]}
    for name, number in zip(NAMES, [1, 2.5, None, "3"], strict=True):
        record = {"value": number} if number is not None else {}
        text = "" if number is None else str(number)
        (tmp_path / name).with_suffix(suffix).write_text(json.dumps(record) if suffix == ".json" else text)
    np.testing.assert_array_equal(opened(str(tmp_path), NumberTargets).values, [1, 2.5, math.nan, 3])


def test_folders_and_archives(tmp_path: Path) -> None:
    write(tmp_path / "set", ["train/10/a.png", "train/2/b.png", "test/10/c.png"])
    roles = open_parts(str(tmp_path / "set"), targets=NumberTargets).roles()
    assert roles.test is not None
    np.testing.assert_array_equal(roles.train.values, [10, 2])
    np.testing.assert_array_equal(roles.test.values, [10])
    (tmp_path / "set" / "labels.csv").write_text("file,labels\ntrain/10/a.png,x|y\ntrain/2/b.png,y\ntest/10/c.png,z\n")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
    for data in ("set", "set.tar"):
        roles = open_parts(str(tmp_path / data), targets=MultiLabelTargets).roles()
        assert roles.test is not None
        assert roles.train.classes == roles.test.classes == ["x", "y", "z"]  # those of the whole table
        assert [*labels_of(roles.train).values(), *labels_of(roles.test).values()] == [["x", "y"], ["y"], ["z"]]


def test_tables_of_splits(tmp_path: Path) -> None:
    write(tmp_path, ["train/a.png", "test/a.png"])
    (tmp_path / "train" / "labels.csv").write_text("file,cat,dog\na.png,1,0\n")
    (tmp_path / "test" / "labels.csv").write_text("file,dog,cat\na.png,1,0\n")
    roles = open_parts(str(tmp_path), targets=MultiLabelTargets).roles()
    assert roles.test is not None
    assert (list(labels_of(roles.train).values()), list(labels_of(roles.test).values())) == ([["cat"]], [["dog"]])
    (tmp_path / "test" / "labels.csv").write_text("file,dog,emu\na.png,1,0\n")
    with pytest.raises(UnveilError, match=r"has the columns .*, expected those of another split"):
        open_parts(str(tmp_path), targets=MultiLabelTargets)


def test_another_test_set(tmp_path: Path) -> None:
    """Its labels are those of the train set. In lists, a label that never occurs is absent; without a column, it is unknown."""
    train = ["cat", "dog"]
    lists = opened(str(write(tmp_path / "lists", NAMES, "file,labels\na.png,dog|emu\nb.png,|\n")), MultiLabelTargets)
    again = lists.with_classes(train)
    assert again.classes == train
    np.testing.assert_array_equal(again.values, [[0, 1], [0, 0], [math.nan] * 2, [math.nan] * 2])
    assert again.unscored == "emu: 1 is a label of test images that the train set does not have, so the model has no score for it"
    columns = opened(str(write(tmp_path / "columns", NAMES, "file,dog\na.png,1\nb.png,0\n")), MultiLabelTargets).with_classes(train)
    np.testing.assert_array_equal(columns.values, [[math.nan, 1], [math.nan, 0], [math.nan] * 2, [math.nan] * 2])
    assert not columns.unscored


def test_arrays() -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    source = opened((images, np.array([[1, 0], [0, -1], [np.nan, np.nan]])), MultiLabelTargets)
    assert labels_of(source) == {"array/000000": ["0"], "array/000001": ["?"], "array/000002": None}
    np.testing.assert_array_equal(opened((images, [[1.5], [2], [np.nan]]), NumberTargets).values, [1.5, 2, math.nan])
    first, second = (opened((images, [1.0, 2.0, last]), NumberTargets) for last in (3.0, 4.0))
    assert first.fingerprint != second.fingerprint
    for labels, kind, reason in [
        ([[2, 0], [0, 1], [1, 1]], MultiLabelTargets, r"the label 0 of image 0 is 2: expected 0, 1"),
        ([1, 0, 1], MultiLabelTargets, r"are not lists of labels: expected \(N, K\)"),
        (["a", "b", "c"], NumberTargets, "'a' in the labels, which is not a number: a regression needs numbers"),
        ([1, np.inf, 3], NumberTargets, r"the label of image 1 is inf"),
    ]:
        with pytest.raises(UnveilError, match=reason):
            opened((images, labels), kind)


def test_batches_have_them(tmp_path: Path) -> None:
    source = opened(str(write(tmp_path, NAMES, COLUMNS)), MultiLabelTargets)
    batch = ImageDataset(source, side=2).readable(torch.tensor([3, 0]))
    assert batch is not None
    assert isinstance(batch.targets, MultiLabelTargets)
    np.testing.assert_array_equal(batch.targets.values, [[math.nan, 1, math.nan], [1, 1, 0]])
    (tmp_path / "labels.csv").write_text("file,n\na.png,1\nd.png,4\n")
    batch = ImageDataset(opened(str(tmp_path), NumberTargets), side=2).readable(torch.tensor([3, 0, 1]))
    assert batch is not None
    assert isinstance(batch.targets, NumberTargets)
    np.testing.assert_array_equal(batch.targets.values, [4, 1, math.nan])


def test_no_labels_at_all(tmp_path: Path) -> None:
    assert not opened(str(write(tmp_path, NAMES)), MultiLabelTargets).is_labelled
    with pytest.raises(UnveilError, match=r"labels\.csv has no label: its rows have an empty label"):
        opened(str(write(tmp_path, NAMES, "file,labels\na.png,\n")), MultiLabelTargets)
