"""Each form of DATA in Python has the pixels, labels and splits of the same images in a folder."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from unveil.data.dataset import ImageDataset
from unveil.data.image_list import list_source, raw_image
from unveil.data.images import read_image
from unveil.data.python_data import Given, with_columns
from unveil.data.source import Source
from unveil.data.sources import open_parts, open_roles, open_source
from unveil.data.splits import held_out_split
from unveil.data.targets import MultiLabelTargets, NumberTargets, PixelTargets
from unveil.errors import UnveilError

pandas = pytest.importorskip("pandas")
FORMS = [
    "paths", "texts", "names in an array", "pairs", "Pillow", "arrays", "tensors", "ToTensor", "float64", "array", "tensor",
    "DataFrame", "Series", "DataFrame of images", "Dataset", "Dataset with targets", "Dataset of paths", "Dataset of dictionaries",
    "Subset", "Subset with targets",
]  # fmt: skip
COUNT = 12
CLASSES = ("ant", "bee", "cat, black")


class Pictures(Dataset[Any]):
    """Samples (image, label), or images alone."""

    def __init__(self, images: list[Any], labels: list[Any] | None = None) -> None:
        self.images, self.of = images, labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if isinstance(self.images[index], Exception):
            raise self.images[index]
        return self.images[index] if self.of is None else (self.images[index], self.of[index])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, chance = tmp_path_factory.mktemp("forms") / "images", np.random.default_rng(0)
    for index in range(COUNT):
        path = root / CLASSES[index * 3 // COUNT] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def paths_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())


def pixels(source: Source) -> list[np.ndarray]:
    return [read_image(source.read(index)) for index in range(len(source))]


def same(source: Source, wanted: Source) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(pixels(source), pixels(wanted), strict=True))
    assert source.classes == wanted.classes
    assert source.labels is not None
    assert wanted.labels is not None
    assert source.labels.tolist() == wanted.labels.tolist()


def forms(folder: Path) -> dict[str, Any]:
    paths = paths_in(folder)
    labels = [path.parent.name for path in paths]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    numbers = [CLASSES.index(label) for label in labels]
    tensors = torch.from_numpy(arrays).movedim(-1, 1)
    named = Pictures([Image.open(path) for path in paths])
    named.targets, named.classes = numbers, list(CLASSES)  # type: ignore[attr-defined]  # as torchvision does
    return {
        "paths": Given(paths, labels),
        "texts": ([str(path) for path in paths], labels),
        "names in an array": (np.array([str(path) for path in paths]), np.array(labels)),
        "pairs": list(zip(paths, labels, strict=True)),
        "Pillow": ([Image.open(path) for path in paths], labels),
        "arrays": (list(arrays), labels),
        "tensors": (list(tensors), labels),
        "ToTensor": (list(tensors / 255), labels),
        "float64": (list(arrays.astype(np.float64) / 255), labels),
        "array": (arrays, labels),
        "tensor": (tensors, labels),
        "DataFrame": pandas.DataFrame({"id": range(COUNT), "Path": paths, "label": labels}, index=range(5, 5 + COUNT)),
        "Series": (pandas.Series([str(path) for path in paths], index=range(COUNT, 0, -1)), pandas.Series(labels)),
        "DataFrame of images": pandas.DataFrame({"image": list(arrays), "class": labels}),
        "Dataset": Pictures([Image.open(path) for path in paths], labels),
        "Dataset with targets": named,
        "Dataset of paths": (Pictures(paths), labels),
        "Dataset of dictionaries": Pictures([{"image": x, "label": y} for x, y in zip(arrays, labels, strict=True)]),
        "Subset": Subset(Pictures(list(tensors / 255)[::-1], labels[::-1]), range(COUNT - 1, -1, -1)),
        "Subset with targets": Subset(named, range(COUNT)),
    }


@pytest.mark.parametrize("form", FORMS)
def test_each_form_equals_the_folder(folder: Path, form: str) -> None:
    given, wanted = forms(folder)[form], open_source(folder)
    source = open_source(given)
    same(source, wanted)
    assert source.form
    assert not wanted.form
    assert open_source(forms(folder)[form]).fingerprint == source.fingerprint  # not of the objects, but of their content
    assert any(note.startswith("took the labels as classes: ant, bee, 'cat, black' (4 images each)") for note in source.notes)
    dataset = ImageDataset(source, side=16)
    assert torch.equal(
        dataset.readable(torch.arange(COUNT)).images,  # type: ignore[union-attr]
        ImageDataset(wanted, side=16).readable(torch.arange(COUNT)).images,  # type: ignore[union-attr]
    )


def test_forms_are_all_tried(folder: Path) -> None:
    assert list(forms(folder)) == FORMS


def test_hugging_face_datasets(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = paths_in(folder)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [str(path) for path in paths], "label": [CLASSES.index(path.parent.name) for path in paths]}
    data = datasets.Dataset.from_dict(rows, features=features)
    same(open_source(data), open_source(folder))
    parts = open_parts(datasets.DatasetDict({"train": data.select(range(0, COUNT, 2)), "test": data.select(range(1, COUNT, 2))}))
    assert parts.names == ["train", "test"]
    assert len(parts.source("test")) == COUNT // 2
    same(open_source((data, ["x", "y"] * 6)), open_source((paths, ["x", "y"] * 6)))


def test_polars_is_read_by_columns(folder: Path) -> None:
    """polars is not installed for the tests: a table with its interface stands for it."""

    class Frame:
        columns = ("file", "label")
        shape = (COUNT, 2)

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, name: str) -> Any:
            return iter([str(path) if name == "file" else path.parent.name for path in paths_in(folder)])

    same(open_source(Frame()), open_source(folder))


def test_splits(folder: Path, tmp_path: Path) -> None:
    paths = paths_in(folder)
    labels = [path.parent.name for path in paths]
    splits = ["train" if index % 4 < 2 else "validation" if index % 4 == 2 else "TEST" for index in range(COUNT)]
    part = {"train": "train", "validation": "val", "TEST": "test"}
    for path, split in zip(paths, splits, strict=True):
        copy = tmp_path / part[split] / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    wanted = open_roles(tmp_path)
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    frame = pandas.DataFrame({"file": paths, "label": labels, "split": splits})
    pictures = Given(Pictures(list(arrays), labels), None, splits)
    for data in (Given(paths, labels, splits), frame, Given(arrays, labels, splits), pictures):
        roles = open_roles(data)
        same(roles.train, wanted.train)
        for own, other in ((roles.test, wanted.test), (roles.validation, wanted.validation)):
            assert own is not None
            assert other is not None
            same(own, other)
        assert "train/ (6 images) for training" in roles.sentence
        assert len(open_roles(data, split="train+val").train) == 9
        with pytest.raises(UnveilError, match="has the splits train, val, test"):
            open_roles(data, split="unlabeled")


def test_classes_of_a_test_split_follow_those_of_training(folder: Path) -> None:
    paths = paths_in(folder)[:4]
    roles = open_roles(Given(paths, ["b", "c", "a", "b"], ["train", "train", "test", "test"]))
    assert roles.train.classes == ["b", "c"]
    assert roles.test is not None
    assert roles.test.classes == ["b", "c", "a"]
    assert roles.test.labels is not None
    assert roles.test.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([1, None, 10, 2], ["1", "2", "10"], [0, -1, 2, 1]),
        ([1.0, float("nan"), 10.0, 2.0], ["1", "2", "10"], [0, -1, 2, 1]),
        (pandas.Series([1, None, 10, 2], dtype="Int64"), ["1", "2", "10"], [0, -1, 2, 1]),
        (pandas.Series(["b", None, "a", ""], dtype="category"), ["a", "b"], [1, -1, 0, -1]),
        (torch.tensor([3, 3, -1, 2]), ["-1", "2", "3"], [2, 2, 0, 1]),
        ([" b", "b ", " ", None], ["b"], [0, 0, -1, -1]),
        (["01", "1", "2", "3"], ["1", "2", "3"], [0, 0, 1, 2]),
        ([0.5, 0.5, 1.0, 2.0], ["0.5", "1.0", "2.0"], [0, 0, 1, 2]),
    ],
)
def test_labels(folder: Path, labels: Any, classes: list[str], numbers: list[int]) -> None:
    source = open_source((paths_in(folder)[:4], labels))
    assert source.classes == classes
    assert source.labels is not None
    assert source.labels.tolist() == numbers
    assert open_source((paths_in(folder)[:4], [None] * 4)).labels is None
    assert source.fingerprint != open_source((paths_in(folder)[:4], ["x"] * 4)).fingerprint


def test_a_column_of_labels_by_name(folder: Path) -> None:
    frame = pandas.DataFrame({"path": paths_in(folder), "label": "no", "species": [path.parent.name for path in paths_in(folder)]})
    data, rest = with_columns(frame, {"labels": "species", "split": "train", "kind": "knn"})
    same(open_source(data), open_source(folder))
    assert rest == {"split": "train", "kind": "knn"}
    assert with_columns(frame, {"labels": 100, "split": None}) == (frame, {"labels": 100, "split": None})
    assert open_source(frame).classes == ["no"]


def test_a_list_keeps_its_order_and_may_be_moved(folder: Path, tmp_path: Path) -> None:
    paths = paths_in(folder)[::-1]
    source = open_source(paths)
    assert source.names == [str(path) for path in paths]
    assert np.array_equal(read_image(source.read(0)), np.asarray(Image.open(paths[0])))
    moved = []
    for path in paths:
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        moved.append(copy)
    assert open_source(moved).fingerprint == source.fingerprint
    moved[3].write_bytes(moved[4].read_bytes()[:-1] + b"x" * (len(paths[3].read_bytes()) - len(moved[4].read_bytes()) + 1))
    assert open_source(moved).fingerprint != source.fingerprint
    assert open_source(paths[::-1]).fingerprint != source.fingerprint


def test_upright_grey_transparent_and_deep(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    turned = Image.fromarray(chance.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    Image.fromarray(chance.integers(0, 256, (16, 18), dtype=np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(chance.integers(0, 256, (17, 16, 4), dtype=np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(chance.integers(0, 65536, (16, 16), dtype=np.uint16)).save(tmp_path / "d.png")
    wanted, paths = ImageDataset(open_source(tmp_path), side=16), sorted(tmp_path.glob("*.png"))
    assert wanted.channels == 3
    whole = np.arange(4)
    for images in (paths, [Image.open(path) for path in paths]):
        found = ImageDataset(open_source(images), side=16)
        batch, other = (each.readable(torch.from_numpy(whole)) for each in (found, wanted))
        assert batch is not None
        assert other is not None
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.sizes, other.sizes)


def test_floats_and_booleans() -> None:
    chance = np.random.default_rng(2)
    eight, sixteen = (chance.integers(0, top, (5, 6, 3)) for top in (256, 65536))
    for kind in (np.float32, np.float64):
        assert np.array_equal(np.asarray(raw_image((eight / 255).astype(kind), "x")), eight)
        assert raw_image((eight / 255).astype(kind), "x").dtype == np.uint8  # type: ignore[union-attr]
        assert np.array_equal(np.asarray(raw_image((sixteen / 65535).astype(kind), "x")), sixteen)
    assert raw_image(torch.from_numpy(eight / 255).movedim(-1, 0), "x").dtype == np.uint8  # type: ignore[union-attr]
    flags = chance.integers(0, 2, (5, 6)).astype(bool)
    assert np.array_equal(read_image(raw_image(flags, "x"))[:, :, 0], flags * 255)
    nothing = np.full((5, 6, 3), np.nan)
    for wrong in (nothing, eight.astype(np.float32), -eight / 255, (eight / 255 - 0.45) / 0.22):
        with pytest.raises(UnveilError, match=r"x has floats from .* divide by the value of white, such as 255, and do not"):
            raw_image(wrong, "x")
    with pytest.raises(UnveilError, match="image-000001 has values of int64, whose white is unknown"):
        open_source([eight.astype(np.uint8), eight])


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((9, 3, 32, 32), "array", r"channels first: .* use array.transpose\(0, 2, 3, 1\)"),
        ((9, 12, 32, 32), "array", r"channels first: .* use array.transpose\(0, 2, 3, 1\)"),
        ((32, 32, 3), "array", r"one image \(H, W, C\): .* use array\[None\]"),
        ((9, 32, 32, 3), "tensor", r"channels last, \(N, H, W, C\): .* use tensor.movedim\(-1, 1\)"),
        ((3, 32, 32), "tensor", r"one image \(C, H, W\): .* use tensor\[None\]"),
        ((32, 32), "tensor", r"a tensor of shape \(32, 32\) holds no images"),
        ((0, 3, 32, 32), "tensor", "holds no images"),
    ],
)
def test_the_order_of_axes(shape: tuple[int, ...], kind: str, message: str) -> None:
    array = np.zeros(shape, np.uint8)
    with pytest.raises(UnveilError, match=message):
        open_source(array if kind == "array" else torch.from_numpy(array))


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (9, 1, 5, 4), (9, 12, 32, 32), (9, 32, 20, 32), (9, 4, 3, 3), (9, 30, 20)])
def test_axes_of_tensors(shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 256, shape, dtype=torch.uint8)
    found = read_image(open_source(tensor).read(4))
    wanted = tensor[4].movedim(0, -1) if tensor.ndim == 4 else tensor[4][:, :, None]
    assert np.array_equal(found, wanted.numpy())


def test_missing_and_repeated_files(folder: Path, tmp_path: Path) -> None:
    paths = paths_in(folder)
    source = open_source([*paths, tmp_path / "gone.png", tmp_path / "too.png"])
    assert f"2 files of list do not exist, such as {tmp_path / 'gone.png'}" in source.notes
    dataset = ImageDataset(source, side=16)
    assert dataset.skipped == {str(tmp_path / "gone.png"): "does not exist", str(tmp_path / "too.png"): "does not exist"}
    assert not any(fault.lost for _, fault in dataset.faults())
    with pytest.raises(UnveilError, match=r"none of the files of list exists; the first is .*gone.png: relative paths begin"):
        open_source([tmp_path / "gone.png", tmp_path / "too.png"])
    twice = open_source([*paths, *paths[:6]])
    assert "6 paths of list repeat earlier ones: copies of a file are held out together" in twice.notes
    assert twice.groups is not None
    kept, held = held_out_split(len(twice), 6, torch.from_numpy(twice.groups))
    assert len(held)
    assert not {twice.names[i] for i in kept} & {twice.names[i] for i in held}
    leak = open_parts(Given([*paths, paths[0]], None, ["train"] * len(paths) + ["test"]))
    assert "1 file of list is in several splits: scores may be too high" in leak.source("train").notes


def test_a_dataset_is_read_lazily_and_may_fail(folder: Path) -> None:
    arrays: list[Any] = [np.asarray(Image.open(path)) for path in paths_in(folder)]
    arrays[5] = KeyError("no such row")
    data = Pictures(arrays)
    data.targets = ["a", "b"] * 6  # type: ignore[attr-defined]
    source = open_source(data)
    assert data.reads <= 11  # for the fingerprint, the first one twice
    assert source.classes == ["a", "b"]
    dataset = ImageDataset(source, side=16)
    assert dataset.skipped == {"sample-000005": "cannot be read: 'no such row'"}
    slow = Pictures(arrays, list("ab") * 6)
    source = open_source(slow)
    assert any("read all 12 samples for their labels" in note for note in source.notes)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 0, -1, 0, 1, 0, 1, 0, 1]
    with_transform = Pictures(arrays[:4], ["x"] * 4)
    with_transform.targets, with_transform.target_transform = [0] * 4, str  # type: ignore[attr-defined]
    assert open_source(with_transform).classes == ["x"]


def test_a_dataset_with_random_transforms_says_so() -> None:
    class Noise(Pictures):
        def __getitem__(self, index: int) -> Any:
            return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)

    source = open_source(Noise([0] * 4))
    assert any("leave random transforms out of it, and use augment=" in note for note in source.notes)
    assert source.fingerprint == open_source(Noise([0] * 4)).fingerprint


def numbers() -> Iterator[int]:
    yield 1


BLANK = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"the list of images is empty: expected a path"),
        (Pictures([]), "DATA is a Pictures without samples"),
        (numbers(), r"DATA is a generator, which can be read only once: make a list of it"),
        ({"a.png"}, "DATA is a set, whose order may change"),
        ({"image": [BLANK]}, "DATA is a dict: expected"),
        (range(3), "DATA is a range: expected"),
        (DataLoader(Pictures([BLANK])), "DATA is a DataLoader, which gives batches: give its .dataset"),
        ([BLANK, None], "image-000001 is a NoneType: expected a path"),
        ([Path(__file__).parent], "is a folder, in a list of images: give the folder itself as DATA"),
        (("a.png", "b.png"), "DATA is a tuple with a str"),
        (((BLANK[None], [1]), (BLANK[None], [1])), "give the second pair, of test images and their labels, as test="),
        (([BLANK], [1, 2]), "there are 2 labels for 1 image: expected one for each"),
        (([BLANK], "a"), "labels is a str: expected a list"),
        (([BLANK], np.eye(1)), r"labels has the shape \(1, 1\): expected one value for each image"),
        (([BLANK], [{"a": 1}]), "label 0 is a dict: expected a name, a number, or None"),
        ((BLANK[None], [1, 2]), "there are 2 labels for 1 image"),
        (Given([BLANK], None, ["train", "test"]), "there are 2 splits for 1 image"),
        (Given([BLANK], None, ["fold 1"]), "the split of image 0 is 'fold 1': expected train, val, test or unlabeled"),
        (pandas.DataFrame({"url": ["a"], "y": [1]}), "no column of paths: expected one of file, .*; its columns are url, y"),
        (pandas.DataFrame({"path": ["a.png", None]}), "row 1 of the DataFrame has nothing in its column 'path'"),
        (pandas.DataFrame({"path": []}), "a DataFrame of paths is empty"),
        (Given(pandas.DataFrame({"path": ["a.png"]}), "y"), "the DataFrame has no column 'y' of labels; its columns are path"),
        (Pictures([{"x": 1}]), "sample-000000 is a dictionary without an image: expected a key image or img or pixel_values"),
        (Pictures([BLANK / 255 - 1]), "sample-000000 has floats from -1 to -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(data: Any, message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        open_source(data)


def test_labels_beside_a_path_or_nothing() -> None:
    with pytest.raises(UnveilError, match="labels= is for images given in Python, whose order is known, but DATA is 'photos'"):
        with_columns("photos", {"labels": [1, 2]})
    with pytest.raises(UnveilError, match="split= is for images that are given with it: give DATA too"):
        with_columns(None, {"split": ["train"]})
    with pytest.raises(UnveilError, match="labels is 'species': the name of a column needs a DataFrame"):
        with_columns([BLANK], {"labels": "species"})
    with pytest.raises(UnveilError, match="DATA is a pair of images and labels, and there are labels= too"):
        with_columns(([BLANK], [1]), {"labels": [1]})
    with pytest.raises(UnveilError, match="PixelTargets need masks: give a pair of arrays"):
        open_parts([BLANK], targets=PixelTargets)


def test_bytes_of_a_file_are_not_an_image_of_a_list() -> None:
    stream = io.BytesIO()
    Image.fromarray(BLANK).save(stream, "PNG")
    with pytest.raises(UnveilError, match="image-000000 is a bytes"):
        list_source([stream.getvalue()])


def test_several_labels_and_numbers(folder: Path) -> None:
    paths, array = paths_in(folder)[:4], np.zeros((4, 8, 8), np.uint8)
    lists = [["cat", "dog"], ["dog"], [], None]
    table = np.array([[1, 1], [0, 1], [0, 0], [np.nan, np.nan]])
    for data in (
        (paths, lists),
        (array, ["cat|dog", "dog", "|", ""]),
        pandas.DataFrame({"path": paths, "label": "no", "labels": ["cat|dog", "dog", "|", None]}),
    ):
        source = open_parts(data, targets=MultiLabelTargets).source()
        assert source.classes == ["cat", "dog"]
        assert np.array_equal(source.values, table, equal_nan=True)  # type: ignore[arg-type]
        assert source.has_label.tolist() == [True, True, True, False]
    for labels in (table, torch.from_numpy(table)):
        source = open_parts(Given(paths, labels, ["train", "train", "test", "test"]), targets=MultiLabelTargets).source("train")
        assert source.classes == ["0", "1"]
        assert np.array_equal(source.values, table[:2])  # type: ignore[arg-type]
    numbers = [2.5, None, -1, 7]
    for data in (
        (paths, numbers),
        (array, numbers),
        (Pictures(list(array)), pandas.Series(numbers)),
        (paths, ["2.5", "", "-1", "7"]),
    ):
        source = open_parts(data, targets=NumberTargets).source()
        assert np.array_equal(source.values, [2.5, np.nan, -1, 7], equal_nan=True)  # type: ignore[arg-type]
    frame = pandas.DataFrame({"path": paths, "class": "no", "value": numbers})
    assert np.array_equal(open_parts(frame, targets=NumberTargets).source().values, [2.5, np.nan, -1, 7], equal_nan=True)  # type: ignore[arg-type]
    with pytest.raises(UnveilError, match="which is not a number"):
        open_parts((paths, ["a", "b", "c", "d"]), targets=NumberTargets)
    with pytest.raises(UnveilError, match="there are 3 labels for 4 images"):
        open_parts((paths, table[:3]), targets=MultiLabelTargets)
    with pytest.raises(UnveilError, match=r"a list of labels has 'a\|b': expected names without"):
        open_parts((paths, [["a|b"], [], [], []]), targets=MultiLabelTargets)
