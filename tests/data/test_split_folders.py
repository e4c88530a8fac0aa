"""Layouts of public datasets, written as tiny folders, tars and zips: which images are trained on, which are tested on, and what
their classes are. The right answer is written by hand beside each layout."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from unveil.data.sources import open_both, open_parts, open_roles
from unveil.data.split_folders import class_level, layout_of, split_of
from unveil.errors import UnveilError


def image(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value % 256).save(stream, "PNG")
    return stream.getvalue()


def write(form: str, place: Path, names: list[str]) -> Path:
    if form == "folder":
        for number, name in enumerate(names):
            (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "data" / name).write_bytes(image(number))
        return place / "data"
    if form == "zip":
        with zipfile.ZipFile(place / "data.zip", "w") as packed:
            for number, name in enumerate(names):
                packed.writestr(name, image(number))
        return place / "data.zip"
    with tarfile.open(place / "data.tar", "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(image(number))
            tar.addfile(member, io.BytesIO(image(number)))
    return place / "data.tar"


def files(pattern: str, count: int = 2) -> list[str]:
    """`a/{b,c}/*.png` gives a/b/0.png, a/b/1.png, a/c/0.png, a/c/1.png."""
    names = [pattern]
    while "{" in names[0]:
        middle = names[0].split("{", 1)[1].split("}", 1)[0]
        names = [name.replace("{" + middle + "}", word, 1) for name in names for word in middle.split(",")]
    return [name.replace("*", str(i)) for name in names for i in range(count)] if "*" in pattern else names


class Expected(NamedTuple):
    train: int
    test: int | None
    classes: list[str]
    validation: int | None = None
    said: tuple[str, ...] = ()
    unlabelled: int = 0
    test_classes: list[str] | None = None


LAYOUTS: dict[str, tuple[list[str], Expected]] = {
    "ImageNet": (files("{train,val}/{n01,n02,n03}/*.jpg"), Expected(6, 6, ["n01", "n02", "n03"])),
    "ImageNet with a test split without labels": (
        files("{train,val}/{n01,n02}/*.jpg") + files("test/*.jpg"),
        Expected(4, 4, ["n01", "n02"], said=("test/ (2 images) not used",)),
    ),
    "VOC 2007, whose trainval is train and val again": (
        files("{train,val,trainval,test}/{cat,dog}/*.jpg"),
        Expected(4, 4, ["cat", "dog"], 4, said=("trainval/ (4 images) not used",)),
    ),
    "CIFAR-10 as files": (files("cifar10/{train,test}/{cat,dog}/*.png"), Expected(4, 4, ["cat", "dog"])),
    "CIFAR-100 in one folder, whose class train is no split": (
        files("{apple,bus,train}/*.png"),
        Expected(6, None, ["apple", "bus", "train"]),
    ),
    "Kaggle brain tumours": (files("{Training,Testing}/{glioma,no tumor}/*.jpg"), Expected(4, 4, ["glioma", "no tumor"])),
    "Intel": (
        files("{seg_train/seg_train,seg_test/seg_test}/{sea,street}/*.jpg") + files("seg_pred/seg_pred/*.jpg"),
        Expected(4, 4, ["sea", "street"], said=("seg_pred/ (2 images) not used",)),
    ),
    "COCO": ([*files("coco/{train2017,val2017}/*.jpg"), "coco/annotations/x.json"], Expected(2, 2, [])),
    "COCO with pixel maps": (
        files("{train2017,val2017}/*.jpg") + files("annotations/{train2017,val2017}/*.png"),
        Expected(2, 2, [], said=("left out annotations/ (4 images): masks or annotations",)),
    ),
    "STL-10": (files("{train,test}/{1,2,10}/*.png") + files("unlabeled/*.png", 5), Expected(6, 6, ["1", "2", "10"])),
    "IMDB-like unsup": (files("{train,test}/{neg,pos}/*.png") + files("unsup/0/*.png"), Expected(4, 4, ["neg", "pos"])),
    "Oxford-IIIT Pet": (
        files("images/*.jpg") + files("annotations/trimaps/*.png"),
        Expected(2, None, [], said=("left out annotations/ (2 images): masks or annotations of images/",)),
    ),
    "ISIC with masks": (
        files("ISIC2018_Task1-2_{Training,Validation,Test}_Input/*.jpg") + files("ISIC2018_Task1_Training_GroundTruth/*_s.png"),
        Expected(2, 2, [], 2, said=("left out ISIC2018_Task1_Training_GroundTruth/ (2 images)",)),
    ),
    "chest X-ray": (
        files("chest_xray/train/{NORMAL,PNEUMONIA}/*.jpeg", 4)
        + files("chest_xray/val/{NORMAL,PNEUMONIA}/*.jpeg", 1)
        + files("chest_xray/test/{NORMAL,PNEUMONIA}/*.jpeg", 3),
        Expected(
            8,
            6,
            ["NORMAL", "PNEUMONIA"],
            2,
            said=(
                "train/ (8 images) for training; val/ (2 images) evaluated during training; test/ (6 images) as the test set",
                "took the folders as classes: NORMAL, PNEUMONIA (4 images each)",
            ),
        ),
    ),
    "EuroSAT": (
        files("2750/{AnnualCrop,Forest,River}/*.jpg"),
        Expected(
            6, None, ["AnnualCrop", "Forest", "River"], said=("took the folders as classes: AnnualCrop, Forest, River (2 images",)
        ),
    ),
    "MVTec": (
        files("{screw,cable}/{train,test}/good/*.png") + files("{screw,cable}/ground_truth/x/*_mask.png"),
        Expected(4, 4, ["cable", "screw"], said=("left out",)),
    ),
    "CamVid": (
        files("{train,val,test}/*.png") + files("{train,val,test}_labels/*_L.png"),
        Expected(2, 2, [], 2, said=("left out train_labels/ (2 images)", "left out val_labels/", "left out test_labels/")),
    ),
    "CamVid of SegNet": (files("{train,trainannot,test,testannot}/*.png"), Expected(2, 2, [], said=("left out trainannot/",))),
    "Carvana": (
        files("train/*.jpg") + files("train_masks/*_mask.gif") + files("test/*.jpg"),
        Expected(2, 2, [], said=("left out train_masks/ (2 images)",)),
    ),
    "ADE20K": (
        files("ADEChallengeData2016/{images,annotations}/{training,validation}/*.png"),
        Expected(2, 2, [], said=("left out ADEChallengeData2016/annotations/ (4 images)",)),
    ),
    "VOC": (
        files("VOC2012/{JPEGImages,SegmentationClass,SegmentationObject,Annotations}/*.png"),
        Expected(2, None, [], said=("left out VOC2012/SegmentationClass/",)),
    ),
    "nuclei: a folder with images and masks each": (
        files("{a1,b2,c3}/{images,masks}/*.png"),
        Expected(6, None, ["a1", "b2", "c3"], said=("left out a1/masks/",)),
    ),
    "DRIVE": (files("{training,test}/{images,mask,1st_manual}/*.png"), Expected(2, 2, [], said=("left out training/1st_manual/",))),
    "YOLO": (files("images/{train,val}/*.jpg") + files("labels/{train,val}/*.png"), Expected(2, 2, [])),
    "masks beside their images": (
        files("*.jpg", 4) + files("masks/*_mask.png", 4),
        Expected(4, None, [], said=("left out masks/ (4 images)",)),
    ),
    "faces with masks, a class": (files("{masks,no_masks}/*.jpg"), Expected(4, None, ["masks", "no_masks"])),
    "a stray file beside classes": (
        [*files("{cat,dog}/*.png"), "cover.png"],
        Expected(
            5, None, ["cat", "dog"], unlabelled=1, said=("1 image lies beside the class folders, without a class: cover.png",)
        ),
    ),
    "a stray file beside the classes of a split": (
        [*files("{train,test}/{cat,dog}/*.png"), "train/cover.png"],
        Expected(5, 4, ["cat", "dog"], unlabelled=1),
    ),
    "a stray file beside the splits": (
        [*files("{train,test}/{cat,dog}/*.png"), "cover.png"],
        Expected(4, 4, ["cat", "dog"], said=("images beside the splits", "(1 image) not used")),
    ),
    "an unknown folder beside the splits": (
        files("{train,test,extra}/{cat,dog}/*.png"),
        Expected(4, 4, ["cat", "dog"], said=("extra/ (4 images) not used",)),
    ),
    "an unknown folder beside one split": (
        files("train/{cat,dog}/*.png") + files("{misc,more}/*.png"),
        Expected(4, None, ["cat", "dog"], said=("misc/ and more/ (4 images) not used",)),
    ),
    "eval and dev": (files("{train,dev,eval}/{a,b}/*.png"), Expected(4, 4, ["a", "b"], 4)),
    "valid": (files("{train,valid}/{a,b}/*.png"), Expected(4, 4, ["a", "b"])),
    "valid and invalid are classes": (files("{valid,invalid}/*.png"), Expected(4, None, ["invalid", "valid"])),
    "labelled and unlabelled": (files("labelled/{a,b}/*.png") + files("unlabelled/*.png"), Expected(4, None, ["a", "b"])),
    "images beside test": (files("images/{a,b}/*.png") + files("test/{a,b}/*.png"), Expected(4, 4, ["a", "b"])),
    "train and test of one dataset with a common word": (
        files("flowers_{train,test}/{rose,tulip}/*.png"),
        Expected(4, 4, ["rose", "tulip"]),
    ),
    "words of splits in class names": (files("{test_tube,bullet_train}/*.png"), Expected(4, None, ["bullet_train", "test_tube"])),
    "one class": (files("only/*.png"), Expected(2, None, [])),
    "flat": (files("*.png", 3), Expected(3, None, [])),
    "flat and deep": (files("a/b/c/d/*.png", 3), Expected(3, None, [])),
    "odd nesting": (
        files("{my photos,deep/er/still,loop}/*.png"),
        Expected(
            6, None, ["deep", "loop", "my photos"], said=("took the folders as classes: deep, loop, my photos (2 images each)",)
        ),
    ),
    "a test class that training lacks": (
        files("train/{cat,dog}/*.png") + files("test/{bee,cat,dog}/*.png"),
        Expected(4, 6, ["cat", "dog"], test_classes=["cat", "dog", "bee"]),
    ),
    "a test set with one class": (files("train/{cat,dog}/*.png") + files("test/dog/*.png"), Expected(4, 2, ["cat", "dog"])),
}


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_public_datasets(layout: str, form: str, tmp_path: Path) -> None:
    names, expected = LAYOUTS[layout]
    roles = open_roles(write(form, tmp_path, names))
    train, test, validation = roles.train, roles.test, roles.validation
    assert (len(train), None if test is None else len(test)) == (expected.train, expected.test)
    assert (None if validation is None else len(validation)) == expected.validation
    assert train.classes == expected.classes
    assert (train.labels is None) == (not expected.classes)
    for source in (train, test):
        if source is None or source.labels is None:
            continue
        for name, label in zip(source.names, source.labels.tolist(), strict=True):
            assert label < 0 or source.classes[label] in name.split("/")[:-1]
    if train.labels is not None:
        assert (train.labels < 0).sum() == expected.unlabelled
    if test is not None and test.labels is not None:
        assert test.classes == (expected.test_classes or expected.classes)
    for sentence in expected.said:
        assert any(sentence in note for note in (roles.sentence, *train.notes)), (sentence, roles.sentence, train.notes)


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_parts_of_stl10(form: str, tmp_path: Path) -> None:
    data = write(form, tmp_path, LAYOUTS["STL-10"][0])
    parts = open_parts(data)
    assert {part: len(parts.source(part)) for part in parts.names} == {"train": 6, "test": 6, "unlabeled": 5}
    pretraining = open_roles(data, unlabeled=True)
    assert len(pretraining.train) == 11
    assert pretraining.train.labels is not None
    assert (pretraining.train.labels == -1).sum() == 5
    assert pretraining.train.classes == ["1", "2", "10"]
    assert pretraining.splits == {"train": ["train", "unlabeled"], "test": ["test"]}
    assert open_roles(data).splits == {"train": ["train"], "test": ["test"], "unused": ["unlabeled"]}
    assert {pretraining.train.read(i) for i in range(11)} == {image(i) for i in (*range(6), *range(12, 17))}


def test_split_chooses(tmp_path: Path) -> None:
    data = write("folder", tmp_path, files("{train,validation,test,extra}/{cat,dog}/*.png"))
    assert open_roles(data).splits == {"train": ["train"], "validation": ["validation"], "test": ["test"], "unused": ["extra"]}
    both = open_roles(data, split="train+val")
    assert (len(both.train), both.validation, len(both.test)) == (8, None, 4)
    assert both.train.classes == ["cat", "dog"]
    everything = open_roles(data, split="all")
    assert (len(everything.train), everything.test) == (16, None)
    chosen = open_roles(data, test_split="valid")
    assert chosen.test.names[0] == "validation/cat/0.png"
    assert chosen.validation is None
    assert open_parts(data).source("other").labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UnveilError, match=r"has the splits train, val, test, other: --split unlabeled is not among them"):
        open_roles(data, split="unlabeled")
    with pytest.raises(UnveilError, match=r"--test-split val of .* is trained on"):
        open_roles(data, split="train+val", test_split="val")
    flat = write("zip", tmp_path, files("{cat,dog}/*.png"))
    assert len(open_roles(flat, split="all").train) == 4
    with pytest.raises(UnveilError, match="has no splits: --split val is not among them"):
        open_roles(flat, split="val")


def test_no_training_split_is_an_error_that_names_the_folders(tmp_path: Path) -> None:
    data = write("folder", tmp_path, files("{test,cat,dog}/*.png"))
    with pytest.raises(UnveilError, match=r"has test/ and beside it cat/, dog/, but no training split: rename the folder"):
        open_both(data)
    assert len(open_roles(data, split="other").train) == 4


@pytest.mark.parametrize("stem", ["train-{0000..0001}", "imagenet-train-{0000..0001}"])
def test_shards_named_after_splits(stem: str, tmp_path: Path) -> None:
    for name in (stem.replace("{0000..0001}", each) for each in ("0000", "0001")):
        write("tar", tmp_path, ["a.png", "b.png"]).rename(tmp_path / f"{name}.tar")
    for name in ("validation-0000", "test-0000"):
        write("tar", tmp_path, ["c.png"]).rename(tmp_path / f"{stem.replace('train-{0000..0001}', name)}.tar")
    roles = open_roles(tmp_path)
    assert (len(roles.train), len(roles.test), len(roles.validation)) == (4, 1, 1)
    write("tar", tmp_path, ["d.png"]).rename(tmp_path / f"{stem.replace('train-{0000..0001}', 'extra-0000')}.tar")
    roles = open_roles(tmp_path)
    assert len(roles.train) == 4
    assert roles.train.labels is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Training", "seg_train", "train2017", "train_images", "images-train", "TrainSet")],
        *[(name, "val") for name in ("val", "valid", "Validation", "dev", "val2014", "val_256")],
        *[(name, "test") for name in ("test", "Testing", "eval", "seg_test", "test1", "test_set")],
        *[(name, "unlabeled") for name in ("unlabeled", "Unlabelled", "unsup")],
        *[(name, None) for name in ("trains", "bullet_train", "contest", "test tube", "device", "extra", "evaluate", "", "2017")],
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_class_level() -> None:
    assert class_level([("a",), ("b", "x")]) == 0
    assert class_level([("photos", "a"), ("photos", "b"), ("photos",)]) == 1
    assert class_level([("photos",), ()]) is None
    assert class_level([("dog",)], {"cat", "dog"}) == 0
    assert class_level([("batch1", "dog"), ("batch2", "cat")], {"cat", "dog"}) == 1


def test_a_million_images_and_deep_folders_take_seconds() -> None:
    names = [f"set/{split}/class{i % 1000:04d}/{i:07d}.jpg" for split in ("train", "val") for i in range(200_000)]
    layout = layout_of(names)
    assert {part: len(members) for part, members in layout.parts.items()} == {"train": 200_000, "val": 200_000}
    deep = "/".join(["d"] * 20_000)
    assert layout_of([f"{deep}/1.png", f"{deep}/2.png"]).parts == {"train": [0, 1]}
