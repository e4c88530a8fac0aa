"""One class per pixel, from disk and from memory: read, shrunk, batched and cropped with the images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.images import read_class_map
from unveil.data.loader import ImageLoader, microbatches
from unveil.data.pixels import IGNORE, Unreadable, shrink_class_map
from unveil.data.sources import array_source, open_both, open_source
from unveil.data.targets import BoxTargets, ClassTargets, PixelTargets
from unveil.errors import UnveilError


def class_map(index: int, height: int = 20, width: int = 26) -> np.ndarray:
    """Another asymmetric map for each index, with classes 0 to 3 and some pixels without a class."""
    classes = np.zeros((height, width), np.uint8)
    classes[: 3 + index % 7, 5:] = 1
    classes[height // 2 :, : 4 + index % 9] = 2
    classes[-5:, -(2 + index % 5) :] = 3
    classes[index % 11, 1] = IGNORE
    return classes


def rendered(classes: np.ndarray) -> np.ndarray:
    return np.where(classes == IGNORE, 0, 80 * classes)[..., None].repeat(3, 2).astype(np.uint8)


def png(array: np.ndarray, palette: bool = False) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(array)
    if palette:
        image = image.convert("L")
        image.putpalette([(37 * i) % 256 for i in range(768)])  # as VOC and ADE20K colour their masks
    image.save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, layout: str, count: int = 6, classes: str = "ground\nsky\nsea\nroad\n", **sizes: int) -> Path:
    for split, numbers in (("train", range(count)), ("val", range(count, count + 2))):
        for number in numbers:
            values = class_map(number, **sizes)
            names = {kind: layout.format(kind=kind, split=split) for kind in ("images", "masks")}
            for kind, raw in (("images", png(rendered(values))), ("masks", png(values, palette=number % 2 == 0))):
                (root / names[kind]).mkdir(parents=True, exist_ok=True)
                (root / names[kind] / f"{number:02d}.png").write_bytes(raw)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}", "set/{kind}/{split}/deep", "images/{split}/{kind}"])
@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_each_image_has_its_map(layout: str, form: str, memory: int, tmp_path: Path) -> None:
    data = write(tmp_path / "data", layout)
    if form == "tar":
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            tar.add(data, "data")
        data = tmp_path / "data.tar"
    train, test = open_both(data, targets=PixelTargets)
    assert test is not None
    assert (len(train), len(test)) == (6, 2)
    assert train.classes == test.classes == ["ground", "sky", "sea", "road"]
    assert train.labels is None
    assert not train.skipped
    dataset = ImageDataset(train, side=100, memory=memory)
    assert dataset.in_memory == bool(memory)
    indices = torch.tensor([4, 0, 5])
    batch = dataset.readable(indices)
    images, targets = batch.images, batch.targets
    assert isinstance(targets, PixelTargets)
    assert targets.maps.dtype == torch.int64
    for image, classes, index in zip(images, targets.maps, indices.tolist(), strict=True):
        assert np.array_equal(classes.numpy(), class_map(index))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), rendered(class_map(index)))
    assert torch.equal(
        ImageDataset(test, side=100).readable(torch.tensor([1])).targets.maps[0], torch.from_numpy(class_map(7)).long()
    )


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}", "set/{kind}/{split}/deep"])
def test_masks_are_no_images_to_train_on(layout: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", layout)
    for targets in (None, ClassTargets):
        train, test = open_both(data, targets=targets)
        assert test is not None
        for source, count in ((train, 6), (test, 2)):
            assert source.map_reader is None
            assert len(source) == count
            assert not any("masks" in name for name in source.names)
        assert train.labels is None
        assert any(note.startswith("left out ") and "masks/" in note for note in train.notes)


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_maps_of_many_sizes_shrink_with_their_images(memory: int, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "{kind}/{split}", count=2, height=60, width=90)
    for number, (height, width) in enumerate([(33, 70), (20, 16)], 2):
        values = class_map(number, height, width)
        (data / f"images/train/{number:02d}.png").write_bytes(png(rendered(values)))
        (data / f"masks/train/{number:02d}.png").write_bytes(png(values))
    dataset = ImageDataset(open_both(data, targets=PixelTargets)[0], side=20, memory=memory)
    batch = dataset.readable(torch.arange(4))
    assert batch.sizes.tolist() == [[20, 30], [20, 30], [20, 42], [20, 16]]
    assert isinstance(batch.targets, PixelTargets)
    assert batch.targets.maps.shape == batch.images.shape[:1] + batch.images.shape[2:]
    for (height, width), image, classes in zip(batch.sizes.tolist(), batch.images, batch.targets.maps, strict=True):
        assert bool((classes[height:] == IGNORE).all())
        assert bool((classes[:, width:] == IGNORE).all())
        inner, near = classes[:height, :width], (image[0, :height, :width].float() / 80).round()
        assert (near == inner)[inner != IGNORE].float().mean() > 0.9
        assert (inner == IGNORE).sum() <= 1
    values = class_map(3, 60, 90)
    assert np.array_equal(shrink_class_map(values, 20), values[1::3, 1::3])  # the centres of blocks of 3 x 3
    assert np.array_equal(shrink_class_map(values, None), values)


def test_loaders_and_augmentation_carry_the_maps(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "{split}/{kind}")
    source, _ = open_both(data, targets=PixelTargets)
    augment = Augment(AugmentConfig(), (16, 16), (0.0,) * 3, (1.0,) * 3)
    loaders = [ImageLoader(ImageDataset(source, side=20, memory=memory), batch_size=4, seed=0) for memory in (MEMORY, 0)]
    for step in range(3):
        first, second = (microbatches(loader, step, 0, 1, 1)[0] for loader in loaders)
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets.maps, second.targets.maps)
        augmented = augment(first)
        assert augmented.targets.maps.shape == (4, 16, 16)
        near = (augmented.images[:, 0] * 255 / 80).round()
        assert (near == augmented.targets.maps)[augmented.targets.maps != IGNORE].float().mean() > 0.85


def test_each_file_is_read_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = open_both(write(tmp_path / "data", "{split}/{kind}"), targets=PixelTargets)
    dataset = ImageDataset(source, side=20, memory=0)
    reads: list[str] = []
    real = type(source)._read
    monkeypatch.setattr(
        type(source), "_read", lambda self, reader, index, retry: reads.append(f"{index}") or real(self, reader, index, retry)
    )
    dataset.samples(torch.tensor([1, 2, 1]), torch.arange(3), lambda row: iter(()))
    assert sorted(reads) == ["1", "1", "2", "2"]  # an image and a mask


def test_without_classes_txt_the_classes_are_numbers(tmp_path: Path) -> None:
    train, test = open_both(write(tmp_path / "data", "{split}/{kind}", classes=""), targets=PixelTargets)
    assert test is not None
    assert train.classes == test.classes == ["0", "1", "2", "3"]
    renamed = test.with_classes(["a", "b", "c", "d", "e"])
    assert renamed.classes == ["a", "b", "c", "d", "e"]
    assert np.array_equal(read_class_map(renamed.read_map(0)), class_map(6))


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_images_with_a_bad_mask_are_left_out(memory: int, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "{kind}/{split}")
    for number, raw in enumerate(
        [
            png(class_map(0, 9, 9)),
            b"junk",
            png(rendered(class_map(2))),
            png(np.where(class_map(3) == 3, 9, class_map(3)).astype(np.uint8)),
        ]
    ):
        (data / f"masks/train/{number:02d}.png").write_bytes(raw)
    (data / "masks/train/04.png").unlink()
    source, _ = open_both(data, targets=PixelTargets)
    assert len(source) == 5
    assert source.skipped["images/train/04.png"] == "it has no mask masks/train/04.png"
    dataset = ImageDataset(source, side=50, memory=memory)
    batch = dataset.samples(torch.arange(5), torch.arange(5), lambda row: iter([row, 0, 4]))
    assert len(batch.images) == len(dataset) == 5
    assert dataset.readable(torch.arange(5)).keys.tolist() == [4]
    for image, classes in zip(batch.images, batch.targets.maps, strict=True):  # the last one, in place of all others
        assert np.array_equal(classes.numpy(), class_map(5))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), rendered(class_map(5)))
    assert dataset.skipped == {
        "images/train/00.png": "mask of 9 x 9 pixels, which is not the size of its image, 26 x 20",
        "images/train/01.png": "not an image",
        "images/train/02.png": "mask with the value 80, which is none of its 4 classes",
        "images/train/03.png": "mask with the value 9, which is none of its 4 classes",
    }


def test_arrays_in_memory() -> None:
    maps = np.stack([class_map(i) for i in range(5)]).astype(np.int64)
    images = np.stack([rendered(x) for x in maps])
    for source in (array_source(images, maps), open_both((images, maps), targets=PixelTargets)[0], open_source((images, maps))):
        assert source.classes == ["0", "1", "2", "3"]
        dataset = ImageDataset(source, side=100)
        assert torch.equal(dataset.readable(torch.tensor([3, 1])).targets.maps, torch.from_numpy(maps[[3, 1]]))
    assert array_source(images, maps).fingerprint != array_source(images, maps[::-1]).fingerprint
    assert open_source((images, np.arange(5))).labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UnveilError, match=r"labels of shape \(5, 3, 3\) do not fit images of shape \(5, 20, 26, 3\)"):
        array_source(images, np.zeros((5, 3, 3), np.int64))
    with pytest.raises(UnveilError, match="mask with values from 0 to 25500"):
        array_source(images, maps * 100)
    for data in (images, (images, np.arange(5))):
        with pytest.raises(UnveilError, match="give a pair of arrays"):
            open_both(data, targets=PixelTargets)


def test_targets_that_data_does_not_have(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for data in ("digits", str(unveil.pack(images, tmp_path / "pack", store="raw"))):
        with pytest.raises(UnveilError, match="has no class for each pixel: PixelTargets need a folder images/"):
            open_both(data, targets=PixelTargets)
    (tmp_path / "plain" / "images").mkdir(parents=True)
    (tmp_path / "plain" / "images" / "1.png").write_bytes(png(images[0]))
    with pytest.raises(UnveilError, match=r"no masks in .*: PixelTargets need a folder images/"):
        open_both(tmp_path / "plain", targets=PixelTargets)
    with pytest.raises(UnveilError, match=r"no boxes in .*: expected annotations in COCO json"):
        open_both(tmp_path / "plain", targets=BoxTargets)
    data = write(tmp_path / "data", "{split}/{kind}", classes="one\n\ntwo\n")
    with pytest.raises(UnveilError, match=r"line 2 of classes\.txt is empty: expected one class per line"):
        open_both(data, targets=PixelTargets)


def test_masks_that_are_none() -> None:
    assert read_class_map(png(np.eye(3, dtype=bool))).tolist() == np.eye(3).astype(int).tolist()
    assert read_class_map(png(np.array([[0, 200]], np.uint16))).tolist() == [[0, 200]]
    for raw, reason in [
        (png(np.array([[0, 300]], np.uint16)), "mask with values from 0 to 300, expected classes from 0 to 254"),
        (b"", "empty file"),
        (png(class_map(0))[:60], "truncated PNG"),
        (b"\xff\xd8\xff\xe0 nothing", "mask in JPEG format, expected PNG"),
    ]:
        with pytest.raises(Unreadable, match=f"a: {reason}"):
            read_class_map(raw, name="a")
