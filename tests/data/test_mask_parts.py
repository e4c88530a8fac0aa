"""Masks from the file on: layouts, names of classes, zero as other, ignored values, binary, colour, 16-bit and panoptic masks."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from unveil.data.dataset import ImageDataset
from unveil.data.mask_values import MaskConfig, MaskValues
from unveil.data.pixels import IGNORE, Unreadable
from unveil.data.sources import open_parts
from unveil.data.targets import PixelTargets
from unveil.errors import UnveilError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CITY = {"masks": ("leftImg8bit/{split}/aachen/{i}_leftImg8bit.png", "gtFine/{split}/aachen/{i}_gtFine_labelTrainIds.png")}
LAYOUTS = {
    "ade20k": ("images/{split}ing/{i}.jpg", "annotations/{split}ing/{i}.png"),
    "short": ("images/{split}/{i}.jpg", "annotations/{split}/{i}.png"),
    "inside": ("{split}/image/{i}.png", "{split}/label/{i}_mask.png"),
    "voc": ("JPEGImages/{i}.jpg", "SegmentationClass/{i}.png"),
    "segnet": ("{split}/{i}.png", "{split}annot/{i}.png"),
    "carvana": ("{split}/{i}.jpg", "{split}_masks/{i}_mask.png"),
    "beside": ("{split}/{i}.jpg", "{split}/{i}_mask.png"),
    "within": ("{split}/{i}.jpg", "{split}/masks/{i}.png"),
    "cityscapes": CITY["masks"],
}


def png(values: np.ndarray, mode: str = "") -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(values)
    if mode == "P":
        image.putpalette([(40 * channel + 7 * i) % 256 for i in range(256) for channel in range(3)])
    elif mode:
        image = image.convert(mode)
    image.save(stream, "PNG")
    return stream.getvalue()


def picture(seed: int, height: int, width: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def write(root: Path, masks: list[bytes], layout: str = "short", sizes: tuple[int, int] = (9, 7), split: str = "train") -> Path:
    image, mask = LAYOUTS[layout]
    for i, raw in enumerate(masks):
        for name, content in ((image, picture(i, *sizes, kind="PNG" if image.endswith("png") else "JPEG")), (mask, raw)):
            path = root / name.format(split=split, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def maps_of(data: Path, **options: Any) -> tuple[list[np.ndarray], Any]:
    source = open_parts(str(data), targets=PixelTargets, masks=MaskConfig(**options)).source("train")
    dataset = ImageDataset(source, side=None, memory=0)
    return [dataset.read_sample(i).classes for i in range(len(source))], source


def some(count: int = 4, top: int = 3, shape: tuple[int, int] = (9, 7)) -> list[np.ndarray]:
    chance = np.random.default_rng(5)
    maps = [chance.integers(0, top + 1, shape).astype(np.uint8) for _ in range(count)]
    for each in maps:
        each[0, :3] = (0, top, 255)
    return maps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_each_image_has_its_mask_in_every_layout(layout: str, form: str, tmp_path: Path) -> None:
    maps = some()
    data = write(tmp_path / "set", [png(each) for each in maps], layout)
    if layout == "cityscapes":  # other masks of the same images
        for i in range(4):
            for end in ("labelIds", "instanceIds", "color"):
                (data / f"gtFine/train/aachen/{i}_gtFine_{end}.png").write_bytes(png(np.zeros((9, 7), np.uint8)))
    if form == "tar":
        with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
            tar.add(data, "set")
        data = tmp_path / "set.tar.gz"
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in data.rglob("*.*"):
                archive.write(path, path.relative_to(tmp_path))
        data = tmp_path / "set.zip"
    found, source = maps_of(data)
    assert len(found) == 4
    assert all(np.array_equal(a, b) for a, b in zip(found, maps, strict=True))
    assert source.classes == ["0", "1", "2", "3"]


def test_shards_with_the_names_of_classes_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "val"):
        data = write(tmp_path / split, [png(each) for each in some()], split=split)
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for name in ("images", "annotations"):
                tar.add(data / name, name)
    (folder / "classes.txt").write_text("0\tunlabelled\t0\n1\tperson\t1\n2\tcar, red\t9\n3\tsky\t44\n")
    found, source = maps_of(folder, ignore=("unlabelled",))
    assert source.classes == ["person", "car, red", "sky"]
    assert source.mask_values.stored == (1, 2, 3)
    assert all(np.array_equal(a, np.where((b == 0) | (b == 255), 255, b - 1)) for a, b in zip(found, some(), strict=True))


@pytest.mark.parametrize("names", ["", "wall\nsky\nsea\n", "other\nwall\nsky\nsea\n", "0,background\n1,wall\n2,sky\n3,sea\n"])
def test_zero_as_other_is_applied_once(names: str, tmp_path: Path) -> None:
    maps = some()
    data = write(tmp_path / "ade", [png(each) for each in maps], "ade20k")
    if names:
        (data / "classes.txt").write_text(names)
    wanted = [np.where((each == 0) | (each == 255), IGNORE, each - 1) for each in maps]
    for _ in range(2):  # opening the data again shifts nothing
        found, source = maps_of(data, reduce_zero=True)
        assert source.classes == (["wall", "sky", "sea"] if names else ["1", "2", "3"])
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    part = open_parts(data, targets=PixelTargets, masks=MaskConfig(reduce_zero=True)).source("train")
    dataset = ImageDataset(part.with_classes(source.classes).taken([1, 3]), side=None)  # in memory
    for view in (dataset, dataset.whole()):
        batch = view.readable(torch.arange(2))
        assert all(np.array_equal(a, b) for a, b in zip(batch.targets.maps.numpy(), wanted[1::2], strict=True))
    with pytest.raises(Unreadable, match="the value 4, which is none of its 3 classes"):
        source.mask_values.classes_of(np.array([[4]]))


def test_ignored_values_and_names(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(each) for each in some()])
    (data / "classes.txt").write_text("road\nvoid\nsky\nsea\n")
    found, source = maps_of(data, ignore=("void", "3"))
    assert source.classes == ["road", "sky"]
    table = np.array([0, 255, 1, 255])
    assert all(np.array_equal(a, np.where(b == 255, 255, table[b % 4])) for a, b in zip(found, some(), strict=True))
    assert any("road" in note and "without a class: 1, 3, 255" in note for note in source.notes)
    assert any("--ignore void leaves it out" in note for note in maps_of(data)[1].notes)
    with pytest.raises(UnveilError, match=r"--ignore tree: .* has no such class.*road, void, sky, sea"):
        maps_of(data, ignore=("tree",))
    with pytest.raises(UnveilError, match="only one class, road"):
        maps_of(data, ignore=("void", "sky", "sea"))


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    maps = [np.where(each > 1, 255, 0).astype(np.uint8) for each in some()]
    data = write(tmp_path / "binary", [png(each) for each in maps])
    found, source = maps_of(data)
    assert source.classes == ["0", "255"]
    assert source.mask_values.stored == (0, 255)
    assert all(np.array_equal(a, b // 255) for a, b in zip(found, maps, strict=True))
    assert any("255 is taken as a class" in note for note in source.notes)
    (data / "classes.txt").write_text("cell\nnucleus\n")
    assert maps_of(data)[1].classes == ["cell", "nucleus"]
    one_bit = write(tmp_path / "bits", [png(each > 0) for each in maps])
    assert all(np.array_equal(a, b // 255) for a, b in zip(maps_of(one_bit)[0], maps, strict=True))
    (data / "classes.txt").unlink()
    with pytest.raises(UnveilError, match="only one class"):
        maps_of(data, ignore=("255",))


@pytest.mark.parametrize("kind", ["palette", "16 bits", "4 bits", "grey as RGB", "grey as RGBA"])
def test_values_are_read_as_they_are_stored(kind: str, tmp_path: Path) -> None:
    maps = some()
    raws = {
        "palette": [png(each, "P") for each in maps],
        "16 bits": [png(np.where(each == 255, 65535, each).astype(np.uint16)) for each in maps],
        "grey as RGB": [png(each, "RGB") for each in maps],
        "grey as RGBA": [png(each, "RGBA") for each in maps],
    }
    if kind == "4 bits":
        maps = [np.where(each == 255, 3, each) for each in maps]
        raws[kind] = [four_bits(each) for each in maps]
    found, source = maps_of(write(tmp_path / "data", raws[kind]))
    assert all(np.array_equal(a, b) for a, b in zip(found, maps, strict=True))
    if kind == "palette":  # by which predictions are coloured
        assert source.mask_values.colours[2] == (14, 54, 94)


def four_bits(values: np.ndarray) -> bytes:
    import struct
    import zlib

    height, width = values.shape
    packed = np.zeros((height, (width + 1) // 2), np.uint8)
    packed |= np.pad(values, ((0, 0), (0, width % 2)))[:, 0::2] << 4
    packed |= np.pad(values, ((0, 0), (0, width % 2)))[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


COLOURS = np.array([[128, 64, 128], [0, 0, 0], [70, 130, 180], [255, 255, 255]], np.uint8)


@pytest.mark.parametrize("names", ["", "name,r,g,b\nroad,128,64,128\nvoid,0,0,0\nsky,70,130,180\nhaze,255,255,255\n", "txt"])
def test_colour_masks(names: str, tmp_path: Path) -> None:
    maps = [each % 4 for each in some()]
    maps.append(np.full((9, 7), 1, np.uint8))  # a mask with grey colours only
    data = write(tmp_path / "data", [png(COLOURS[each]) for each in maps])
    if names == "txt":
        (data / "colors.txt").write_text("128 64 128\troad\n0 0 0\tvoid\n70 130 180\tsky\n255 255 255\thaze\n")
    elif names:
        (data / "class_dict.csv").write_text(names)
    void = "void" if names else "#000000"
    found, source = maps_of(data, ignore=(void,))
    if names:
        assert source.classes == ["road", "sky", "haze"]
        table = np.array([0, 255, 1, 2])
    else:  # in the order of their numbers
        assert source.classes == ["#4682b4", "#804080", "#ffffff"]
        table = np.array([1, 255, 0, 2])
    assert source.mask_values.in_colour
    assert all(np.array_equal(a, table[b]) for a, b in zip(found, maps, strict=True))
    with pytest.raises(UnveilError, match="--reduce-zero is for masks of values"):
        maps_of(data, reduce_zero=True)


def test_colours_that_no_class_has(tmp_path: Path) -> None:
    maps = [each % 4 for each in some()]
    data = write(tmp_path / "data", [png(COLOURS[each]) for each in maps])
    (data / "colors.txt").write_text("128 64 128 road\n0 0 0 void\n70 130 180 sky\n")
    with pytest.raises(
        UnveilError, match=r"mask annotations/train/0\.png has the colour \(255, 255, 255\), which colors\.txt does not"
    ):
        maps_of(data)
    (data / "colors.txt").write_text("128 64 128 road\nsky is blue\n")
    with pytest.raises(UnveilError, match=r"line 2 of colors\.txt is 'sky is blue'"):
        maps_of(data)
    chance = np.random.default_rng(0)
    smooth = write(
        tmp_path / "smooth", [png(chance.integers(0, 255, (20, 20, 3), dtype=np.uint8)) for _ in range(2)], sizes=(20, 20)
    )
    with pytest.raises(UnveilError, match="more than 255 colours"):
        maps_of(smooth)


def test_an_index_above_the_class_count(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(each) for each in some()])
    (data / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(
        UnveilError,
        match=r"train/0\.png has the value 2, but classes\.txt names 2 classes, 0 to 1; 1 other value has no name either",
    ):
        maps_of(data)


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(each) for each in some()])
    (data / "annotations/train/1.png").unlink()
    (data / "images/train/2.jpg").unlink()
    _, source = maps_of(data)
    assert [name.rpartition("/")[2] for name in source.names] == ["0.jpg", "3.jpg"]
    assert source.skipped["images/train/1.jpg"] == "it has no mask annotations/train/1.png"
    assert source.skipped["annotations/train/2.png"] == "a mask without an image"
    assert any("left out 1 image without a mask" in note for note in source.notes)
    assert any("left out 1 mask without an image" in note for note in source.notes)


def test_files_with_classes_that_cannot_be_used(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(each) for each in some()])
    for text, message in (("road\nroad\nsky\nsea\n", "the name 'road' twice"), ("1\ta\n1\tb\n", "the value 1 twice")):
        (data / "classes.txt").write_text(text)
        with pytest.raises(UnveilError, match=message):
            maps_of(data)


def panoptic(root: Path, **changes: Any) -> Path:
    """Images and panoptic masks, whose segments have numbers above 255."""
    ids = np.array([[0, 7, 300], [66000, 300, 7]])
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    for split in ("train", "val"):
        for folder, raw in ((f"images/{split}", picture(1, 2, 3)), (f"panoptic/{split}", png(colours))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / ("5.jpg" if folder.startswith("images") else "5.png")).write_bytes(raw)
        segments = [{"id": 7, "category_id": 1}, {"id": 300, "category_id": 90}, {"id": 66000, "category_id": 1}]
        facts = {
            "categories": [{"id": 90, "name": "sky"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
            "annotations": [{"image_id": 5, "file_name": "5.png", "segments_info": segments}],
        }
        (root / f"panoptic_{split}.json").write_text(json.dumps(facts | changes))
    return root


def test_coco_panoptic(tmp_path: Path) -> None:
    data = panoptic(tmp_path / "coco")
    found, source = maps_of(data)
    assert source.classes == ["person", "car", "sky"]
    assert source.mask_values.stored == (1, 3, 90)
    assert np.array_equal(found[0], [[255, 0, 2], [0, 2, 0]])
    assert np.array_equal(maps_of(data, ignore=("person",))[0][0], [[255, 255, 1], [255, 1, 255]])
    with pytest.raises(UnveilError, match=r"panoptic_train\.json has no list 'categories'"):
        maps_of(panoptic(tmp_path / "broken", categories={}))
    strange = {"annotations": [{"file_name": "5.png", "segments_info": [{"id": 7, "category_id": 4}]}]}
    with pytest.raises(UnveilError, match=r"5\.png has a segment of the category 4, which is not listed"):
        maps_of(panoptic(tmp_path / "strange", **strange))
    few = {"annotations": [{"file_name": "5.png", "segments_info": [{"id": 7, "category_id": 1}]}]}
    with pytest.raises(Unreadable, match=r"5\.png with the segment 300, which its json does not have"):
        maps_of(panoptic(tmp_path / "few", **few))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_panoptic_and_index_masks_of_coco_agree(tmp_path: Path) -> None:
    data = SHARED / "coco_panoptic_mini"
    with tarfile.open(data / "val.tar") as tar:
        some = [member for member in tar.getmembers() if member.name[-5] == "5"]
        for kind in ("annotations", "panoptic"):
            members = [member for member in some if member.name.split("/")[0] in ("images", kind)]
            tar.extractall(tmp_path / kind, filter="data", members=members)
    (tmp_path / "annotations" / "classes.txt").write_bytes((data / "classes.txt").read_bytes())
    (tmp_path / "panoptic" / "panoptic_val.json").write_bytes((data / "panoptic_val.json").read_bytes())
    options = {"targets": PixelTargets}
    index = open_parts(tmp_path / "annotations", **options, masks=MaskConfig(reduce_zero=True)).source()
    other = open_parts(tmp_path / "panoptic", **options).source()
    assert index.classes == other.classes
    place = {name.rpartition("/")[2]: i for i, name in enumerate(index.names)}
    first, second = (ImageDataset(source, side=None, memory=0) for source in (index, other))
    assert len(other) > 3
    for i, name in enumerate(other.names):
        assert np.array_equal(second.read_sample(i).classes, first.read_sample(place[name.rpartition("/")[2]]).classes)


def test_colours_and_values_one_by_one() -> None:
    values = MaskValues((4, 200), ignored=(0, 255))
    mask = np.array([[4, 0], [255, 200]], np.uint8)
    assert values.classes_of(mask).tolist() == [[0, 255], [255, 1]]
    colours = MaskValues((0, 1), ((1, 2, 3), (3, 2, 1)), True, (0,))
    assert colours.classes_of(np.array([[[1, 2, 3], [3, 2, 1], [0, 0, 0]]], np.uint8)).tolist() == [[0, 1, 255]]
    with pytest.raises(Unreadable, match=r"the colour \(9, 9, 9\)"):
        colours.classes_of(np.full((1, 1, 3), 9, np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_with_their_images_or_left_out(orientation: int, tmp_path: Path) -> None:
    """A mask of the stored pixels, one of the upright image, one with the same orientation, and one that may be either."""
    chance, exif = np.random.default_rng(3), Image.Exif()
    exif[0x0112] = orientation
    values = chance.integers(0, 3, (16, 24)).astype(np.uint8)
    pixels = np.repeat((values * 100)[:, :, None], 3, axis=2)
    for folder in ("images", "annotations"):
        (tmp_path / folder / "train").mkdir(parents=True)
    upright = np.asarray(ImageOps.exif_transpose(with_exif(Image.fromarray(values), exif)))
    for name, mask, kept in (("stored", values, None), ("upright", upright, None), ("both", values, exif)):
        Image.fromarray(pixels).save(tmp_path / "images/train" / f"{name}.png", exif=exif)
        Image.fromarray(mask).save(tmp_path / "annotations/train" / f"{name}.png", **({"exif": kept} if kept else {}))
    source = open_parts(tmp_path, targets=PixelTargets).source("train")
    dataset = ImageDataset(source, side=None, memory=0)
    for i, path in enumerate(source.names):
        if orientation in (2, 3, 4) and "both" not in path:
            with pytest.raises(Unreadable, match="the image has an EXIF orientation, and its mask has none"):
                dataset.read_sample(i)
            continue
        image, classes = dataset.read_sample(i)[:2]
        assert np.array_equal(image[:, :, 0] // 100, classes)
        assert np.array_equal(classes, upright)


def with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    return Image.open(stream)
