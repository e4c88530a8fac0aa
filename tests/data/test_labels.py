"""Labels from folders, arrays, label files and tables: which classes there are, who has which, and what is said about the rest."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.data.label_table import Names
from unveil.data.labels import class_order, classes_sentence, number_array, number_labels, unified
from unveil.data.source import Source
from unveil.data.sources import array_source, open_both, open_roles, open_source
from unveil.errors import UnveilError


def image(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), value % 256).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, names: list[str], **texts: bytes) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number))
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_bytes(text)
    return root


def classes_of(source: Source) -> dict[str, str | None]:
    assert source.labels is not None
    labels = source.labels.tolist()
    return {name: source.classes[label] if label >= 0 else None for name, label in zip(source.names, labels, strict=True)}


# ---------------------------------------------------------------- numbers

NUMBERS = [
    (["1", "-1"], ["-1", "1"]),
    (["0", "1", "5"], ["0", "1", "5"]),
    (["2019", "1999", "2007"], ["1999", "2007", "2019"]),
    (["10000000", "999999999999", "7"], ["7", "10000000", "999999999999"]),
    (["10", "9", "100"], ["9", "10", "100"]),
    (["-10", "-9", "0"], ["-10", "-9", "0"]),
]


@pytest.mark.parametrize(("labels", "classes"), NUMBERS)
@pytest.mark.parametrize("form", ["folders", "labels.csv", ".cls", ".json", "array", "int column", "string column"])
def test_numbers_are_numbered_by_what_occurs_and_keep_their_names(
    form: str, labels: list[str], classes: list[str], tmp_path: Path
) -> None:
    names = [f"{index}.png" for index in range(len(labels))]
    if form == "folders":
        source = open_source(write(tmp_path, [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]))
        found = {name.partition("/")[0]: label for name, label in classes_of(source).items()}
        assert found == {label: label for label in labels}
    else:
        if form == "labels.csv":
            rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
            source = open_source(write(tmp_path, names, labels__csv=f"file,label\n{rows}".encode()))
        elif form in (".cls", ".json"):
            write(tmp_path, names)
            for name, label in zip(names, labels, strict=True):
                text = label if form == ".cls" else json.dumps({"label": int(label)})
                (tmp_path / name).with_suffix(form).write_text(text)
            source = open_source(tmp_path)
        elif form == "array":
            source = array_source(np.zeros((len(labels), 8, 8), np.uint8), np.array(labels, dtype=np.int64))
        else:
            datasets = pytest.importorskip("datasets")
            values = labels if form == "string column" else [int(label) for label in labels]
            rows = {"image": [{"bytes": image(), "path": None} for _ in labels], "label": values}
            kind = datasets.Value("string" if form == "string column" else "int64")
            features = datasets.Features({"image": datasets.Image(), "label": kind})
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
            source = open_source(f"hf://{tmp_path}/set")
        assert list(classes_of(source).values()) == labels
    assert source.classes == classes
    assert any("as classes: " + ", ".join(classes) in note for note in source.notes)


def test_torchvision_sets_without_names_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Images:
        def __init__(self, root: Path, split: str, download: bool) -> None:
            self.labels = np.array([10, 2, -1]) if split == "train" else np.array([2, 99])

        def __len__(self) -> int:
            return len(self.labels)

    monkeypatch.setattr(datasets, "SVHN", Images)
    train, test = open_both("svhn")
    assert test is not None
    assert list(classes_of(train).values()) == ["10", "2", "-1"]
    assert list(classes_of(test).values()) == ["2", "99"]
    assert test.classes[: len(train.classes)] == train.classes == ["-1", "2", "10"]


def test_class_order() -> None:
    assert class_order(["b", "10", "9"]) == ["10", "9", "b"]
    assert class_order(["0.5", "0.25", "1", "-3"]) == ["-3", "0.25", "0.5", "1"]
    assert class_order(["1" * 399, "2"]) == ["2", "1" * 399]
    assert class_order(["1" * 5000, "2"]) == ["1" * 5000, "2"]  # Python refuses to read so many digits
    assert unified(["01", "1", None]) == ["1", "1", None]
    assert unified(["01", "02"]) == ["01", "02"]


def test_arrays_of_any_labels() -> None:
    numbers, classes = number_array(np.array([0.5, np.nan, np.inf, 2.0]))
    assert (numbers.tolist(), classes) == ([0, -1, -1, 1], ["0.5", "2.0"])
    numbers, classes = number_array(np.array([3.0, np.nan, -1.0]))
    assert (numbers.tolist(), classes) == ([1, -1, 0], ["-1", "3"])
    numbers, classes = number_array(np.array(["dog", "", "cat"]))
    assert (numbers.tolist(), classes) == ([1, -1, 0], ["cat", "dog"])
    numbers, classes = number_array(np.array([7, None, float("nan"), 10], dtype=object))
    assert (numbers.tolist(), classes) == ([0, -1, -1, 1], ["7", "10"])
    numbers, classes = number_array(np.array([2**63 + 1, 5], dtype=np.uint64))
    assert (numbers.tolist(), classes) == ([1, 0], ["5", str(2**63 + 1)])
    assert array_source(np.zeros((2, 8, 8), np.uint8), np.array([np.nan, np.nan])).labels is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_by_the_classes_that_occur() -> None:
    code = (
        "import numpy as np; from unveil.data.sources import array_source;"
        "s = array_source(np.zeros((2, 8, 8), np.uint8), np.array([0, 2**62]));"
        "assert s.classes == ['0', str(2**62)]; print(open('/proc/self/status').read())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(re.search(r"VmHWM:\s+(\d+) kB", found.stdout)[1]) < 2**19  # of this process; `ru_maxrss` includes its parent's


def test_classes_of_the_train_split_come_first() -> None:
    numbered = number_labels({"train": ["5", "10", None], "test": ["7", "5"], "unlabeled": [None]})
    assert numbered["train"][0].tolist() == [0, 1, -1]
    assert numbered["train"][1] == ["5", "10"]
    assert numbered["test"][0].tolist() == [2, 0]
    assert numbered["test"][1] == ["5", "10", "7"]
    assert numbered["unlabeled"] == (None, [])


def test_the_sentence_on_classes() -> None:
    assert classes_sentence("the folders", np.array([0, 1, 1, -1]), ["a", "b", "c"]) == (
        "took the folders as classes: a, b (1 to 2 images each)"
    )
    assert (
        classes_sentence("x", np.arange(8), list("abcdefgh"))
        == "took x as classes: a, b, c, d, e, f, ... (8 classes, 1 image each)"
    )


# ---------------------------------------------------------------- labels.csv


def test_every_problem_of_a_table_is_counted_and_named(tmp_path: Path) -> None:
    names = [f"{index:02d}.png" for index in range(12)]
    table = (
        "file,label,by,when\r\n"
        "00.png,dog,me,1\r\n01.png,cat,me,1\r\n02.png,dog,me,1\r\n02.png,cat,me,1\r\n"  # 02 is disputed
        "01.png,cat,me,2\r\n01.png,cat,me,3\r\n"  # 01 is repeated
        "gone.png,cat,me,1\r\nlost.png,cat,me,1\r\n"
        "03.png,,me,1\r\n04.png,dog,me,1,extra\r\n05.png\r\n"
        '02.png,bird,me,4\r\n11.png,cat,,\r\n07.png,"cat,me,1\r\n08.png,dog,me,2\r\n'
    )
    source = open_source(write(tmp_path, names, labels__csv=b"\xef\xbb\xbf" + table.encode()))
    assert {name: label for name, label in classes_of(source).items() if label} == {
        "00.png": "dog",
        "01.png": "cat",
        "11.png": "cat",
    }
    assert source.classes == ["cat", "dog"]
    assert [note.removeprefix("labels.csv: ") for note in source.notes] == [
        "2 columns are not used: by, when",
        "3 rows have other cells than the header, or a line feed, so they are not used: 04.png,dog,me,1,extra, 05.png, 07.png",
        "7 images have no row, so they have no label: 04.png, 05.png, 06.png, ...",
        "1 row has an empty label: 03.png",
        "2 rows name files that are no images: gone.png, lost.png",
        "2 rows repeat earlier rows: 01.png, 01.png",
        "1 image has rows with different labels, so it is left without a label: 02.png: dog, cat, bird",
        "took the labels in labels.csv as classes: cat, dog (1 to 2 images each)",
    ]


def test_a_clean_table_says_nothing_but_its_classes(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, ["a.png", "b.png"], labels__csv=b"file,label\na.png,x\nb.png,y\n"))
    assert source.notes == ("took the labels in labels.csv as classes: x, y (1 image each)",)


PATHS = ["cat/One.PNG", "cat/two.png", "dog/three.png", "four.jpg"]


@pytest.mark.parametrize(
    ("written", "index"),
    [
        ("cat/One.PNG", 0),
        ("./cat/One.PNG", 0),
        ("cat\\One.PNG", 0),
        (".\\cat\\One.PNG", 0),
        ("cat/one.png", 0),
        ("CAT/TWO.PNG", 1),
        ("cat//two.png", 1),
        ("cat/two", 1),
        ("two.png", 1),
        ("Two", 1),
        ("four.jpg", 3),
        ("/home/me/set/cat/two.png", 1),
        ("C:\\set\\dog\\three.png", 2),
        ("D:/other/four.JPG", 3),
        ("cat/four.jpg", None),
        ("bird/two.png", None),
        ("five.png", None),
        ("/", None),
        ("", None),
    ],
)
def test_paths_that_people_write(written: str, index: int | None) -> None:
    assert Names(PATHS).find(written) == index


def test_ambiguous_paths_name_no_image() -> None:
    names = Names(["a/1.png", "b/1.png", "a/1.jpg", "A/1.PNG"])
    assert [names.find(written) for written in ("1.png", "a/1", "A/1.png", "a/1.png", "b/1")] == [None, None, None, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        b"file,label\na.png,x\nb.png,y\n",
        b"file;label\r\na.png;x\r\nb.png;y\r\n",
        b"label\tfile\nx\ta.png\ny\tb.png\n",
        b'"File" , "Label"\n"a.png", "x"\n"b.png", "y"\n',
        b"\xef\xbb\xbffilename,class\na.png,x\n\nb.png,y",
        "file,label\na.png,x\nb.png,y\n".encode("utf-16"),
        b"\n\nfile,label\na.png,x\nb.png,y\n",
    ],
)
def test_dialects_of_tables(text: bytes, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, ["a.png", "b.png"], labels__csv=text))
    assert classes_of(source) == {"a.png": "x", "b.png": "y"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a.png,cat\n", r"labels\.csv begins with 'a\.png, cat': expected file,label in its first line"),
        (b"", r"labels\.csv is empty: expected file,label in its first line"),
        (b"file,label\n", r"no file in labels\.csv is an image: it has no rows, an image is 'a\.png'"),
        (b"file,label\nx.png,1\n", r"no file in labels\.csv is an image: its first row is 'x\.png', an image is 'a\.png'"),
        (b"file,label\na.png,\n", r"labels\.csv has no label: its rows have an empty label"),
        (b"file,label\na.png," + b"x" * 200_000 + b"\n", r"labels\.csv cannot be read as a table: line 2: field larger"),
    ],
)
def test_tables_that_cannot_be_used(text: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=reason):
        open_source(write(tmp_path, ["a.png", "b.png"], labels__csv=text))


def test_a_table_of_excel_on_windows_is_read_and_said(tmp_path: Path) -> None:
    write(tmp_path, ["schön.png", "b.png"])
    (tmp_path / "labels.csv").write_bytes("file;label\nschön.png;Bär\nb.png;Kuh\n".encode("cp1252"))
    source = open_source(tmp_path)
    assert classes_of(source) == {"schön.png": "Bär", "b.png": "Kuh"}
    assert "labels.csv is not in UTF-8, so it is read as Windows-1252: if letters are wrong" in source.notes[0]
    (tmp_path / "labels.csv").write_bytes(b"file;label\nb.png;\x81\n")  # a byte that Windows-1252 lacks
    with pytest.raises(UnveilError, match=r"labels\.csv is not in UTF-8: save it as CSV UTF-8"):
        open_source(tmp_path)


def test_numbers_that_are_written_in_several_ways_are_one_class_and_said(tmp_path: Path) -> None:
    write(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\nb.png,01\nc.png,2\n")
    source = open_source(tmp_path)
    assert source.classes == ["1", "2"]
    assert "all labels are numbers, so 01 and 1 are one class, 1" in source.notes


def test_names_of_any_bytes_in_a_table(tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/gr\xfcn.png", "wb") as file:
        file.write(image())
    (tmp_path / "grün.png").write_bytes(image())
    (tmp_path / "labels.csv").write_bytes(b"file,label\ngr\xfcn.png,a\n" + "grün.png,b\n".encode())
    assert sorted(classes_of(open_source(tmp_path)).values()) == ["a", "b"]


def test_a_table_in_each_split_folder(tmp_path: Path) -> None:
    write(tmp_path, ["set/train/1.png", "set/train/2.png", "set/test/1.png"])
    (tmp_path / "set/train/labels.csv").write_text("file,label\n1.png,a\n2.png,b\n")
    (tmp_path / "set/test/labels.csv").write_text("file,label\n1.png,b\n")
    train, test = open_both(tmp_path)
    assert test is not None
    assert list(classes_of(train).values()) == ["a", "b"]
    assert list(classes_of(test).values()) == ["b"]
    (tmp_path / "set/labels.csv").write_text("file,label\ntrain/1.png,c\ntrain/2.png,d\n")  # the outermost one wins
    assert open_source(tmp_path).classes == ["c", "d"]


def test_labels_of_images_with_and_without_a_label_file(tmp_path: Path) -> None:
    write(tmp_path, [f"{index}.png" for index in range(4)], labels__csv=b"file,label\n0.png,x\n")
    (tmp_path / "0.cls").write_text("5\n")
    (tmp_path / "2.cls").write_text("-1")
    (tmp_path / "3.cls").write_text("  ")
    source = open_source(tmp_path)
    assert list(classes_of(source).values()) == ["5", None, "-1", None]
    assert source.notes[:2] == (
        "2 images have no label in a .cls file: 1.png, 3.png",
        "labels.csv is not used, because the labels are in the .cls files",
    )


def test_labels_change_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, ["a.png", "b.png"], labels__csv=b"file,label\na.png,x\nb.png,y\n")
    before = open_source(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\na.png,y\nb.png,x\n")
    after = open_source(tmp_path)
    assert before.fingerprint != after.fingerprint
    assert before.listing_fingerprint == after.listing_fingerprint
    images = np.zeros((2, 8, 8), np.uint8)
    assert array_source(images, np.array([0, 1])).fingerprint != array_source(images, np.array([1, 0])).fingerprint


def test_accents_in_one_character_or_two_are_the_same_name(tmp_path):
    composed, separate = "Gr\u00fcn", "Gru\u0308n"  # as Linux writes it, and a Mac
    names = [
        f"{split}/{other}/{i}.png"
        for split, own in (("train", composed), ("test", separate))
        for other in (own, "rot")
        for i in range(3)
    ]
    write(tmp_path / "pics", names)
    roles = open_roles(str(tmp_path / "pics"))
    assert roles.train.classes == [composed, "rot"]
    assert roles.test.classes == [composed, "rot"]
    assert np.bincount(roles.test.labels).tolist() == [3, 3]
    write(tmp_path / "table", [f"{separate}.png", "b.png"])
    (tmp_path / "table" / "labels.csv").write_text(f"file,label\n{composed}.png,x\nb.png,y\n", encoding="utf-8")
    source = open_source(str(tmp_path / "table"))
    assert [source.classes[label] for label in source.labels] == [{"b.png": "y"}.get(name, "x") for name in source.names]


def test_one_number_in_several_spellings_is_one_class():
    assert unified(["0", "0.0", None, "1", "1.50"]) == ["0", "0", None, "1", "1.5"]
    assert unified(["0", "0.5"]) == ["0", "0.5"]
    assert unified(["0", "0.0", "a"]) == ["0", "0.0", "a"]
    assert unified(["100", "1e2"]) == ["100", "1e2"]
    assert unified(["200", "200.0"]) == ["200", "200"]


def test_classes_that_may_be_mistakes_are_said():
    labels = np.array([0, 1, 2, 3])
    said = classes_sentence("the labels", labels, ["LEMON", "lemon ", "NaN", "pear"])
    assert said.endswith(
        "(1 image each). 'LEMON' and 'lemon ' differ only in case or spaces, and are 2 classes. 'NaN' is a class as well: leave "
        "the label of an image empty if it has none"
    )
    assert classes_sentence("the labels", labels[:2], ["a", "b"]) == "took the labels as classes: a, b (1 image each)"
