"""VOC xml and YOLO txt: layouts, what is read, and a sentence for everything that is wrong."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from unveil.data.dataset import ImageDataset
from unveil.data.sources import open_parts, open_roles
from unveil.data.targets import BoxTargets
from unveil.errors import UnveilError

from .object_files import objects_of, write_image

SIZE = "<size><width>30</width><height>20</height><depth>3</depth></size>"


def refused(data: Path, message: str) -> str:
    with pytest.raises(UnveilError, match=message) as error:
        open_parts(data, targets=BoxTargets)
    assert "\n" not in str(error.value)
    return str(error.value)


def box(name: str = "cat", corners: tuple[object, ...] = (3, 4, 12, 11), more: str = "") -> str:
    sides = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def voc(*objects: str, file: str = "a.png", size: str = SIZE) -> str:
    return f"<?xml version='1.0'?>\n<annotation><folder>x</folder><filename>{file}</filename>{size}{''.join(objects)}</annotation>"


def voc_data(root: Path, *texts: str) -> Path:
    """Images a.png, b.png, ... and their annotations."""
    (root / "Annotations").mkdir(parents=True)
    for stem, text in zip("abcdefg", texts, strict=False):
        write_image(root / "JPEGImages" / f"{stem}.png", seed=ord(stem))
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root


def test_voc_by_hand(tmp_path: Path) -> None:
    """The first pixel is 1, and the last one belongs to the box (VOC devkit): 3 to 12 are ten columns, from 2 to 12 in torch."""
    data = voc_data(
        tmp_path,
        voc(box("dog"), box("cat", (1, 1, 30, 20), "<difficult>1</difficult>")),
        voc(file="b.png"),
        voc(box(), file="c.png"),
    )
    write_image(tmp_path / "JPEGImages" / "z.png")
    source = open_roles(data, targets=BoxTargets).train
    assert source.names == [f"JPEGImages/{stem}.png" for stem in "abc"]
    assert source.classes == ["cat", "dog"]
    assert source.objects.boxes.tolist() == [[2, 3, 12, 11], [0, 0, 30, 20], [2, 3, 12, 11]]
    assert source.objects.labels.tolist() == [1, 0, 0]
    assert source.objects.counts.tolist() == [2, 0, 1]
    assert source.objects.sizes.tolist() == [[20, 30]] * 3
    notes = "\n".join(source.notes)
    assert "boxes are read as VOC defines them, by their first and last pixel, counted from 1" in notes
    assert "1 object marked as difficult, used like the others" in notes
    assert "left out 1 image that is not in the annotations: JPEGImages/z.png" in notes


def test_one_voc_box_at_zero_does_not_move_the_others(tmp_path: Path) -> None:
    data = voc_data(tmp_path, voc(box(corners=(0, 4, 12, 11)), box(corners=(3.5, 4, 12.25, 11))))
    source = open_roles(data, targets=BoxTargets).train
    assert source.objects.boxes.tolist() == [[0, 3, 12, 11], [2.5, 3, 12.25, 11]]
    assert "counted from 1; but 1 box of them begins before 1" in "\n".join(source.notes)


def test_voc_lists_and_folders_are_splits(tmp_path: Path) -> None:
    texts = [voc(box(), file=f"{stem}.png") for stem in "abcd"]
    data = voc_data(tmp_path / "lists", *texts)
    sets = data / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for name, lines in (("train", "a\nc\n"), ("val", "b"), ("trainval", "a\nb\nc"), ("cat_train", "a 1\nc -1")):
        (sets / f"{name}.txt").write_text(lines)
    roles = open_roles(data, targets=BoxTargets)
    assert [Path(name).stem for name in roles.train.names] == ["a", "c"]
    assert [Path(name).stem for name in roles.test.names] == ["b"]
    assert "left out 1 image that no list in ImageSets has" in "\n".join(roles.train.notes)
    (sets / "val.txt").write_text("a")
    refused(data, "a is in several lists of ImageSets/Main")
    (sets / "train.txt").write_text("x")
    (sets / "val.txt").write_text("y")
    refused(data, "the lists in ImageSets/Main have none of its images: expected names such as a")
    folders = tmp_path / "folders"
    for split, stem in (("train", "a"), ("valid", "b")):  # Roboflow
        write_image(folders / split / f"{stem}.png", seed=ord(stem))
        (folders / split / f"{stem}.xml").write_text(voc(box("cat" if stem == "a" else "emu"), file=f"{stem}.png"))
    roles = open_roles(folders, targets=BoxTargets)
    assert (roles.train.names, roles.test.names) == (["train/a.png"], ["valid/b.png"])
    assert roles.train.classes == roles.test.classes == ["cat", "emu"]
    assert roles.test.objects.labels.tolist() == [1]


def test_voc_images_that_were_renamed_or_are_missing(tmp_path: Path) -> None:
    data = voc_data(tmp_path, voc(box(), file="old name.png"), voc(box(), file="a.png"), voc(box(), file="c.png"))
    (tmp_path / "JPEGImages" / "c.png").unlink()
    source = open_roles(data, targets=BoxTargets).train
    assert source.names == ["JPEGImages/a.png", "JPEGImages/b.png"]  # b.xml says a.png, but is called b
    assert "left out 1 of 3 images, whose files are missing: c.png" in "\n".join(source.notes)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.xml").write_text(voc(box()))
    refused(data, r"Annotations/a.xml and other/a.xml are both annotations of one image")


def test_voc_images_whose_names_end_alike(tmp_path: Path) -> None:
    for stem in ("1", "11"):
        write_image(tmp_path / "JPEGImages" / f"{stem}.png", seed=len(stem))
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text(voc(box(), file="11.png"))
    assert open_roles(tmp_path, targets=BoxTargets).train.names == ["JPEGImages/1.png"]


def test_voc_images_of_another_split_are_not_meant(tmp_path: Path) -> None:
    for split, stem in (("train", "a"), ("train", "b"), ("valid", "a")):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"{stem}.xml").write_text(voc(box(), file=f"{stem}.png"))
    write_image(tmp_path / "train" / "b.png")
    write_image(tmp_path / "valid" / "a.png", seed=1)
    (tmp_path / "valid" / "a.xml").unlink()
    source = open_roles(tmp_path, targets=BoxTargets).train
    assert source.names == ["train/b.png"]
    assert "left out 1 of 2 images, whose files are missing: a.png" in "\n".join(source.notes)


@pytest.mark.parametrize("train", ["my image", "my image.png", "\ufeffmy image\r", "my image.PNG -1"])
def test_lines_of_voc_lists(train: str, tmp_path: Path) -> None:
    """A name with spaces or a suffix, a byte order mark; one word, and whether the image has objects of a class."""
    stem = "my" if "-1" in train else "my image"
    for name in (stem, "b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.png", seed=len(name))
        (tmp_path / f"{name}.xml").write_text(voc(box(), file=f"{name}.png"))
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text(train.replace(" image", "") if stem == "my" else train)
    (sets / "val.txt").write_text("b")
    assert open_roles(tmp_path, targets=BoxTargets).train.names == [f"JPEGImages/{stem}.png"]


@pytest.mark.parametrize("files", ["", "unrelated/a.json unrelated/b.json", "unrelated/train.json"])
@pytest.mark.parametrize("text", ["{}", "["])
def test_other_json_files_beside_voc(files: str, text: str, tmp_path: Path) -> None:
    data = voc_data(tmp_path, voc(box()))
    for file in files.split():
        (data / file).parent.mkdir(exist_ok=True)
        (data / file).write_text(text)
    assert len(open_roles(data, targets=BoxTargets).train) == 1


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_ids_are_paths_where_names_are_not_distinct(form: str, tmp_path: Path) -> None:
    for place in ("a/1", "b/1", "b/2"):
        write_image(tmp_path / "images" / f"{place}.png", seed=ord(place[0]))
        if form == "voc":
            (tmp_path / "images" / f"{place}.xml").write_text(voc(box(), file=f"{place[2:]}.png"))
        else:
            (tmp_path / "labels" / place[0]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / f"{place}.txt").write_text("0 0.5 0.5 0.2 0.2")
    if form == "voc":
        write_image(tmp_path / "SegmentationClass" / "2.png")  # a mask, which is none of the images
    assert objects_of(tmp_path).image_ids == ["images/a/1.png", "images/b/1.png", "2"]


BOMB = "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'><!ENTITY y '&x;&x;&x;&x;&x;&x;&x;&x;'>]>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a.xml is damaged: it is not valid XML \(no element found"),
        ("", r"a.xml is damaged: it is not valid XML"),
        (f"{BOMB}<annotation><filename>&y;</filename></annotation>", r"a.xml: it has a DOCTYPE"),
        ("<annotation>" + "<a>" * 200_000, r"a.xml: its elements are more than 32 deep"),
        (voc("<object><bndbox/></object>"), r"a.xml: object 1 has no name"),
        (voc(box(), "<object><name>cat</name></object>"), r"a.xml: object 2 \(cat\) has no bndbox"),
        (voc(box(corners=(1, 2, 3))), r"a.xml: ymax of object 1 is '': expected a number of pixels"),
        (voc(box(corners=(1, 2, 3, "x"))), r"a.xml: ymax of object 1 is 'x'"),
        (voc(box(corners=(1, 2, 3, "nan"))), r"a.xml: ymax of object 1 is 'nan'"),
        (voc(box(), size="<size><width>30</width><height>x</height></size>"), r"a.xml: size has the height 'x': expected a number"),
        (voc(box(), size="<size><width>-3</width><height>4</height></size>"), r"a.xml: size has the width '-3'|height"),
        (voc(box(corners=(12, 4, 3, 11))), r"a.xml, object 1 has a bndbox of negative width or height"),
        (voc(box(corners=(50, 4, 60, 11))), r"a.xml, object 1 has a bndbox outside of the image"),
        (
            voc(box(), size="<size><width>30</width><height>99999999999999999999</height></size>"),
            r"a.xml: size has the height '9999",
        ),
        (voc(), r"none of its 1 xml file has an object"),
    ],
)
def test_voc_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    refused(voc_data(tmp_path, text), message)


@pytest.mark.parametrize("size", ["", "<size><width/><height></height></size>", "<size><width>30</width></size>"])
def test_voc_without_a_size_takes_that_of_the_image(size: str, tmp_path: Path) -> None:
    source = open_roles(voc_data(tmp_path, voc(box(corners=(3, 4, 40, 11)), size=size)), targets=BoxTargets).train
    targets = ImageDataset(source, side=64).readable(torch.tensor([0])).targets
    assert targets.boxes[0].tolist() == [[2, 3, 30, 11]]  # cut at the edge of the image, which is known only when it is read


# ---------------------------------------------------------------- YOLO


def yolo_data(root: Path, labels: dict[str, str], names: str = "names: [cat, dog]\n", layout: str = "{kind}/{split}") -> Path:
    """Images of 30 x 20 pixels, named as "split/stem"; no file of labels for those that are None."""
    for number, (place, text) in enumerate(labels.items()):
        split, stem = place.split("/")
        write_image(root / layout.format(kind="images", split=split) / f"{stem}.png", seed=number)
        if text is not None:
            target = root / layout.format(kind="labels", split=split) / f"{stem}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    if names:
        (root / "data.yaml").write_text(names)
    return root


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}", "set/images/{split}"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_yolo_by_hand(layout: str, form: str, tmp_path: Path) -> None:
    """x, y, width and height of the box are shares of the image, and x, y is its centre."""
    labels = {"train/a": "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.25 0.2 0.5\n", "train/b": "", "train/c": None, "val/d": "0 0.5 0.5 1 1\n"}
    data = yolo_data(tmp_path / "data", labels, layout=layout)
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for path in sorted(data.rglob("*")):
                archive.write(path, path.relative_to(tmp_path))
        data = tmp_path / "data.zip"
    roles = open_roles(data, targets=BoxTargets)
    assert roles.train.classes == ["cat", "dog"]
    assert [Path(name).stem for name in roles.train.names] == ["a", "b", "c"]
    assert roles.train.objects.counts.tolist() == [2, 0, 0]
    batch = ImageDataset(roles.train, side=64).readable(torch.tensor([0, 1]))
    torch.testing.assert_close(batch.targets.boxes[0], torch.tensor([[12.0, 6, 18, 14], [0, 0, 6, 10]]))
    assert batch.targets.labels.tolist() == [[1, 0], [-1, -1]]
    assert batch.targets.area[0].tolist() == pytest.approx([48, 60])
    test = ImageDataset(roles.test, side=64).readable(torch.tensor([0])).targets
    assert test.boxes[0].tolist() == [[0, 0, 30, 20]]
    assert "1 image without a txt file, taken as images without objects, such as" in "\n".join(roles.train.notes)


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"train/a": "0 0.1 0.1 0.3 0.1 0.3 0.4 0.5 0.4 0.5 0.8 0.1 0.8\n1 0.5 0.5 0.2 0.2\n"})
    batch = ImageDataset(open_roles(data, targets=BoxTargets).train, side=64).readable(torch.tensor([0]))
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[2:16, 3:15] = True
    expected[2:8, 9:15] = False
    assert torch.equal(batch.targets.masks[0, 0], expected)
    assert not batch.targets.masks[0, 1].any()
    torch.testing.assert_close(batch.targets.boxes[0], torch.tensor([[3.0, 2, 15, 16], [12, 8, 18, 12]]))


@pytest.mark.parametrize(
    "names",
    [
        "names: ['cat', \"dog\"]",
        "names:\n  - cat\n  - dog\n",
        "nc: 2\nnames:\n  0: cat\n  1: dog\n",
        "path: x\ntrain: images/train\nnames: [cat, dog]",
    ],
)
def test_yolo_names(names: str, tmp_path: Path) -> None:
    assert open_roles(yolo_data(tmp_path, {"train/a": "1 0.5 0.5 0.2 0.4"}, names), targets=BoxTargets).train.classes == [
        "cat",
        "dog",
    ]


def test_a_class_that_is_no_number_of_one(tmp_path: Path) -> None:
    refused(yolo_data(tmp_path, {"train/a": "4000000000 0.5 0.5 0.2 0.4"}, ""), "has the class 4000000000, but classes are numbers")


def test_yolo_names_in_other_files_or_none(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"train/a": "1 0.5 0.5 0.2 0.4"}, "")
    source = open_roles(data, targets=BoxTargets).train
    assert source.classes == ["0", "1"]
    assert "no data.yaml or classes.txt names the classes, so they are called 0 to 1" in "\n".join(source.notes)
    (tmp_path / "classes.txt").write_text("cat\ndog\nemu\n")
    assert open_roles(data, targets=BoxTargets).train.classes == ["cat", "dog", "emu"]
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    refused(data, r"classes.txt: two classes are called 'cat': expected one name for each")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2", r"a.txt, line 1: has 4 numbers: expected a class and x, y, width, height of the box, as shares"),
        ("0 0.5 0.5 0.2 0.1\n1 0.5 0.5 0.2 0.1 0.9", r"a.txt, line 2: has 6 numbers"),
        ("0 0.5 0.5 1.2 0.1", r"a.txt, line 1: has the value 1.2"),
        ("0 320 240 20 10", r"a.txt, line 1: has the value 320"),
        ("0 0.5 0.5 -0.2 0.1", r"a.txt, line 1: has the value -0.2"),
        ("0 0.5 nan 0.2 0.1", r"a.txt, line 1: has the value nan"),
        ("2 0.5 0.5 0.2 0.1", r"a.txt, line 1: has the class 2, but data.yaml has the classes 0 to 1"),
        ("-1 0.5 0.5 0.2 0.1", r"a.txt, line 1: has the class -1"),
        ("0.5 0.5 0.5 0.2 0.1", r"a.txt, line 1: has the class 0.5"),
        ("nan 0.5 0.5 0.2 0.1", r"a.txt, line 1: has the class nan"),
        ("cat 0.5 0.5 0.2 0.1", r"a.txt, line 1: has 'cat 0.5 0.5 0.2 0.1'"),
        ("0 0.5 0.5 0 0", r"a.txt, line 1 has a box without area"),
    ],
)
def test_yolo_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    refused(yolo_data(tmp_path, {"train/a": text}), message)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: [", r"data.yaml is damaged: it is not valid YAML"),
        ("names: {1: cat, 2: dog}", r"data.yaml: names has the keys 1, 2: expected 0, 1, 2"),
        ("names: [no, yes]", r"data.yaml: names has a class that YAML reads as false, such as yes or no: quote it"),
        ("names: [cat]\nkpt_shape: 3", r"data.yaml: kpt_shape is 3: expected \[keypoints, numbers of each\]"),
        ("names: 7", r"data.yaml: names is no list of classes"),
        ("names: [cat, dog]\nnc: 3", r"data.yaml has nc: 3, but 2 names"),
        ("names: [cat, cat]", r"data.yaml: two classes are called 'cat'"),
        ("names: !!python/object/apply:os.system ['true']", r"data.yaml is damaged: it is not valid YAML"),
        ("names: " + "[" * 5000, r"data.yaml has 5,000 lists"),
    ],
)
def test_yolo_names_that_are_wrong(names: str, message: str, tmp_path: Path) -> None:
    refused(yolo_data(tmp_path, {"train/a": "0 0.5 0.5 0.2 0.1"}, names), message)


def test_corners_in_place_of_a_centre_are_refused(tmp_path: Path) -> None:
    corners = ["0 0.1 0.2 0.5 0.6", "1 0.2 0.1 0.7 0.5", "0 0.3 0.1 0.8 0.9", "1 0.6 0.7 0.8 0.9", "0 0.05 0.05 0.6 0.7"]
    refused(
        yolo_data(tmp_path, {"train/a": "\n".join(corners)}), r"5 of 5 boxes reach beyond their images: the box of .*a.txt, line 1"
    )


def test_txt_files_without_an_image(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.2 0.1"
    data = yolo_data(tmp_path / "one", {"train/a": line, "train/b": line})
    (data / "images" / "train" / "b.png").unlink()
    (data / "labels" / "classes.txt").write_text("cat\ndog\n")
    notes = "\n".join(open_roles(data, targets=BoxTargets).train.notes)
    assert "left out 1 txt file without an image, such as labels/train/b.txt" in notes
    (data / "labels" / "train" / "a.txt").rename(data / "labels" / "train" / "A.txt")
    refused(data, r"2 txt files in labels/ have the name of no image, such as labels/train/A.txt: expected images/7.jpg beside")


def test_yolo_boxes_that_are_rounded_or_twice(tmp_path: Path) -> None:
    line = "0 0.5 0.5 1.000001 0.4"
    found = objects_of(yolo_data(tmp_path, {"train/a": f"{line}\n{line}\n"}))
    assert found.boxes.tolist() == [[0, pytest.approx(0.3), 1, pytest.approx(0.7)]]


def test_yolo_boxes_are_of_the_upright_image(tmp_path: Path) -> None:
    """Labels have no size. Tools for YOLO turn images upright before they are labelled, and again when they are read."""
    write_image(tmp_path / "images" / "train" / "a.jpg", 20, 30, orientation=6)
    data = yolo_data(tmp_path, {"train/b": "0 0.5 0.5 1 1"})
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.25 0.5 0.5 1")
    batch = ImageDataset(open_roles(data, targets=BoxTargets).train, side=64).readable(torch.tensor([0]))
    assert batch.sizes.tolist() == [[30, 20]]
    assert batch.targets.boxes[0].tolist() == [[0, 0, 10, 30]]
    assert np.array_equal(batch.targets.labels[0].numpy(), [0])


LINE = "0 0.5 0.5 0.2 0.2"


def parts_of(data: Path) -> dict[str, list[str]]:
    parts = open_parts(data, targets=BoxTargets)
    return {part: [Path(name).stem for name in parts.source(part).names] for part in parts.names}


@pytest.mark.parametrize(
    "text",
    [
        "train: images/one\nval: images/two",
        "path: ../datasets/mine\ntrain: images/one/\nval: ./images/two\ntest:",
        "train: ../images/one\nval: [../images/two]",
        "train: C:\\work\\images\\one\nval: /home/me/images/two",
        "train: lists/train.txt\nval: lists/val.txt",
    ],
)
def test_yolo_splits_of_data_yaml(text: str, tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"one/a": LINE, "one/b": LINE, "two/c": LINE, "three/d": LINE}, f"names: [cat]\n{text}\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("\ufeff./images/one/a.png\r\n/home/me/images/one/b.png\n")
    (tmp_path / "lists" / "val.txt").write_text("../images/two/c.png\nimages/two/gone.png\n")
    assert parts_of(data) == {"train": ["a", "b"], "val": ["c"]}
    assert "data.yaml: left out 1 image that is in none of its splits" in "\n".join(
        open_roles(data, targets=BoxTargets).train.notes
    )


def test_yolo_splits_that_are_not_there_or_the_same(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"train/a": LINE, "valid/b": LINE}, "names: [cat]\ntrain: x/y\nval: images/valid\n")
    assert parts_of(data) == {"train": ["a"], "val": ["b"]}
    note = "data.yaml: found no images for train (x/y), so splits follow from the names of folders"
    assert note in "\n".join(open_roles(data, targets=BoxTargets).train.notes)
    (data / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/train\ntest: test/images\n")
    assert parts_of(data) == {"train": ["a"]}
    notes = "\n".join(open_roles(data, targets=BoxTargets).train.notes)
    assert "data.yaml: val has the images of train, so it is left out" in notes
    assert "data.yaml: found no images for test (test/images)" in notes
    (data / "data.yaml").write_text("names: [cat]\ntrain: images\nval: images/valid\n")
    refused(data, r"data.yaml: images/valid/b.png is in several of its splits")
    (data / "data.yaml").write_text("names: [cat]\ntrain: {lr: 0.1}\n")  # the settings of a program
    assert parts_of(data) == {"train": ["a"], "val": ["b"]}


def test_which_yaml_is_meant(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"train/a": LINE}, "names: [cat]")
    (data / "a.yaml").write_text("names: [dog]")
    (data / "b.yaml").write_text("x: [1,")
    assert open_roles(data, targets=BoxTargets).train.classes == ["cat"]
    (data / "data.yaml").rename(data / "z.yaml")
    refused(data, r"a.yaml and z.yaml have different names of classes: leave one of them")
    (data / "z.yaml").write_text("names: [cat]\nnc: 1")
    assert open_roles(data, targets=BoxTargets).train.classes == ["cat"]
    (data / "z.yaml").write_text("train: images/train\nnc: 1")  # without names
    assert open_roles(data, targets=BoxTargets).train.classes == ["dog"]
    (data / "a.yaml").unlink()
    (data / "z.yaml").unlink()
    refused(data, r"b.yaml is damaged: it is not valid YAML")


def test_several_yaml_with_other_splits(tmp_path: Path) -> None:
    """As for cross-validation."""
    data = yolo_data(tmp_path, {"one/a": LINE, "two/b": LINE}, "")
    for name, train, val in (("fold1", "one", "two"), ("fold2", "two", "one")):
        (data / f"{name}.yaml").write_text(f"names: [cat]\ntrain: images/{train}\nval: images/{val}")
    assert parts_of(data) == {"train": ["a"], "val": ["b"]}
    notes = "\n".join(open_roles(data, targets=BoxTargets).train.notes)
    assert "splits are read from fold1.yaml, and not from fold2.yaml" in notes


def test_yolo_poses_are_boxes(tmp_path: Path) -> None:
    """Two numbers for each of three keypoints look like a polygon."""
    pose = f"{LINE} 0.45 0.48 0.52 0.5 0.5 0.55"
    data = yolo_data(tmp_path, {"train/a": f"{pose}\n{LINE}\n"}, "names: [cat]\nkpt_shape: [3, 2]")
    found = objects_of(data)
    assert found.segments is None
    np.testing.assert_allclose(found.boxes, [[0.4, 0.4, 0.6, 0.6]])
    (data / "labels" / "train" / "a.txt").write_text(f"{pose} 0.5 0.5")
    refused(data, r"a.txt, line 1: has 13 numbers, and kpt_shape asks for 11")


def test_yolo_folders_in_capitals_and_in_two_zips(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "Images" / "1.png")
    (tmp_path / "a" / "Labels").mkdir()
    (tmp_path / "a" / "Labels" / "1.txt").write_text(LINE)
    assert len(objects_of(tmp_path / "a").boxes) == 1
    data = yolo_data(tmp_path / "b", {"train/a": LINE})
    (tmp_path / "c").mkdir()
    for kind in ("images", "labels"):
        with zipfile.ZipFile(tmp_path / "c" / f"{kind}.zip", "w") as archive:
            for path in (data / kind).rglob("*.*"):
                archive.write(path, path.relative_to(data))
    assert len(objects_of(tmp_path / "c").boxes) == 1


def test_small_yolo_polygons_are_no_rectangles(tmp_path: Path) -> None:
    diamond = "0 0.50 0.49 0.51 0.50 0.50 0.51 0.49 0.50"
    assert objects_of(yolo_data(tmp_path, {"train/a": diamond})).segments is not None
