import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data import archives, regular_files, tar
from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
from unveil.data.sources import array_source, expand_braces, open_both, open_parts, open_source
from unveil.errors import UnveilError

SHARED = Path(__file__).parents[3] / "shared" / "data"
Files = dict[str, bytes]


def image(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), value % 256).save(stream, "PNG")
    return stream.getvalue()


def class_folders(prefix: str = "", classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> Files:
    names = [f"{prefix}{name}/{index}.png" for name in classes for index in range(each)]
    return {name: image(number) for number, name in enumerate(names)}


def write_folder(root: Path, files: Files) -> Path:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def write_tar(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, raw in files.items():
            packed.writestr(name, raw)
    return path


def write(form: str, place: Path, files: Files) -> Path:
    if form == "folder":
        return write_folder(place / "data", files)
    if form.startswith("zip"):
        method = zipfile.ZIP_STORED if form == "zip stored" else zipfile.ZIP_DEFLATED
        return write_zip(place / "data.zip", files, method)
    return write_tar(place / f"data.{form}", files, "w:" + form.partition(".")[2].replace("tgz", "gz"))


FORMS = ["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "zip stored"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str, tmp_path: Path) -> None:
    files = class_folders("photos/", ("b", "a", "C")) | {"photos/notes.txt": b"text", "photos/.hidden.png": image(1)}
    files["photos/a/no_ending"] = image(77)
    files["photos/a/page.jpg"] = b"<html>not found</html>"
    source = open_source(write(form, tmp_path, files))
    wanted = sorted(name for name in files if not name.endswith((".txt", ".hidden.png")))
    assert [name.removeprefix("photos/") for name in source.names] == [name.removeprefix("photos/") for name in wanted]
    assert source.classes == ["C", "a", "b"]
    assert source.labels is not None
    assert [source.classes[label] for label in source.labels] == [name.split("/")[1] for name in wanted]
    assert [source.read(index) for index in range(len(source))] == [files[name] for name in wanted]
    page = source.names.index(next(name for name in source.names if name.endswith("page.jpg")))
    with pytest.raises(Unreadable, match="not an image"):
        read_image(source.read(page))
    assert open_source(str(write(form, tmp_path, files))).fingerprint == source.fingerprint
    more = files | {"photos/a/more.png": image(3)}
    assert open_source(write(form, tmp_path, more)).fingerprint != source.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_reads_from_many_threads(form: str, tmp_path: Path) -> None:
    files = {f"{index:03d}.bin.png": bytes([index]) * (100 + 37 * index) for index in range(200)}
    source = open_source(write(form, tmp_path, files))
    wanted = [files[name] for name in source.names]
    order = np.random.default_rng(0).integers(0, 200, 4000)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda index: source.read(index) == wanted[index], order))
    if hasattr(os, "fork") and threading.active_count() == 1:
        child = os.fork()
        right = all(source.read(index) == wanted[index] for index in order)
        if child == 0:
            os._exit(0 if right else 1)
        assert right
        assert os.waitpid(child, 0)[1] == 0


# ---------------------------------------------------------------- splits and labels


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_splits_share_their_classes(form: str, tmp_path: Path) -> None:
    files = class_folders("set/Train/", ("ant", "bee", "cow")) | class_folders("set/val/", ("bee", "cow"), 1)
    train, test = open_both(write(form, tmp_path, files))
    assert test is not None
    assert train.classes == test.classes == ["ant", "bee", "cow"]
    assert len(train) == 9
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2]
    assert open_source(tmp_path / os.listdir(tmp_path)[0]).names == train.names
    assert train.fingerprint != test.fingerprint


def test_which_split_is_the_test_part(tmp_path: Path) -> None:
    train, validation = class_folders("train/"), class_folders("validation/", each=1)
    unlabelled = {"test/1.png": image(1), "test/2.png": image(2)}
    labelled = class_folders("test/", ("dog",), 2)
    for number, (files, wanted) in enumerate(
        [
            (train | validation | labelled, "test/dog/0.png"),
            (train | validation | unlabelled, "validation/cat/0.png"),
            (train | unlabelled, "test/1.png"),
            (train | {"test/unknown/1.png": image(1)}, "test/unknown/1.png"),
        ]
    ):
        test = open_both(write_folder(tmp_path / str(number), files))[1]
        assert test is not None
        assert test.names[0] == wanted
        assert (test.labels is None) == (number > 1)
    no_train = class_folders("val/") | class_folders("test/")
    held = open_source(write_folder(tmp_path / "no train", no_train), split="train")
    assert held.names[0] == "val/cat/0.png"


def test_no_test_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", class_folders())
    assert open_both(folder)[1] is None
    with pytest.raises(UnveilError, match="has no test split: expected a folder named test or val"):
        open_source(folder, split="test")


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["1.png", "2.png"], []),
        (["only/1.png", "only/2.png"], []),
        (["a/1.png", "b/2.png", "3.png"], ["a", "b"]),
        (["deep/down/a/1.png", "deep/down/b/x/y/2.png"], ["a", "b"]),
        (["train/1.png", "test/2.png"], []),
        (["train/a/1.png", "other/a/2.png"], []),
        (["train/a/1.png", "train/b/2.png"], ["a", "b"]),
    ],
)
def test_what_makes_a_class(files: list[str], classes: list[str], tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {name: image(1) for name in files}))
    assert source.classes == classes
    assert (source.labels is None) == (not classes)


@pytest.mark.parametrize("form", FORMS[:2])
def test_labels_csv(form: str, tmp_path: Path) -> None:
    files = {f"set/images/{index}.png": image(index) for index in range(4)}
    table = "\ufefffile,label,by\nimages/0.png,tulip,me\n./images/2.png,rose,me\nimages/3.png,,me\n"
    source = open_source(write(form, tmp_path, files | {"set/labels.csv": table.encode()}))
    assert source.classes == ["rose", "tulip"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0, -1]
    numbers = open_source(write(form, tmp_path, files | {"set/labels.csv": b"file,label\nimages/1.png,7\n"}))
    assert numbers.labels is not None
    assert (numbers.labels.tolist(), numbers.classes) == ([-1, 0, -1, -1], ["7"])
    other = (b"file,label\nx.png,1\n", r"no file in set/labels\.csv is an image")
    for wrong, reason in [(b"a,b\n1,2\n", "expected file,label"), other]:
        with pytest.raises(UnveilError, match=reason):
            open_source(write(form, tmp_path, files | {"set/labels.csv": wrong}))


def test_with_classes(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, class_folders(classes=("bee", "cow", "elk"), each=1)))
    mapped = source.with_classes(["ant", "bee", "cow"])
    assert mapped.labels is not None
    assert mapped.labels.tolist() == [1, 2, 3]
    assert mapped.classes == ["ant", "bee", "cow", "elk"]  # a class that training lacks follows after the last one
    assert mapped.with_classes(mapped.classes) is mapped


# ---------------------------------------------------------------- WebDataset


def sample(key: str, label: str, value: int) -> Files:
    return {f"{key}.png": image(value), f"{key}.cls": label.encode()}


def test_shards(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"shards-{shard:03d}.tar", sample("000", "2\n", shard) | sample("001", "0", shard + 9))
    for data in (tmp_path, f"{tmp_path}/shards-{{000..002}}.tar"):
        source = open_source(data)
        assert source.names[:3] == ["shards-000/000.png", "shards-000/001.png", "shards-001/000.png"]
        assert source.labels is not None
        assert source.labels.tolist() == [1, 0] * 3
        assert source.classes == ["0", "2"]
        assert source.read(4) == image(2)
    assert open_source(tmp_path / "shards-001.tar").labels is not None
    with pytest.raises(UnveilError, match=r"2 of 5 shards are missing, the first is .*shards-003\.tar"):
        open_source(f"{tmp_path}/shards-{{000..004}}.tar")


def test_shards_without_labels_are_not_classes(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"part-{shard}.tar", {"1.png": image(1), "2.png": image(2)})
    assert open_source(tmp_path).labels is None


def test_shards_named_after_splits(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard}.tar", class_folders("train/"))
    write_tar(tmp_path / "val.tar.gz", class_folders("val/", each=1), "w:gz")
    train, test = open_both(tmp_path)
    assert test is not None
    assert (len(train), len(test)) == (12, 2)
    assert train.classes == test.classes == ["cat", "dog"]


def test_json_labels(tmp_path: Path) -> None:
    files = {f"{key}.jpg": image(1) for key in "abcd"}
    for labels, numbers in (({"a": "x", "b": "y", "c": None}, [0, 1, -1, -1]), ({"a": None, "b": "y", "c": "x"}, [-1, 1, 0, -1])):
        texts = {f"{key}.json": json.dumps({"label": label}).encode() for key, label in labels.items()}
        source = open_source(write_tar(tmp_path / "a.tar", files | texts))
        assert source.labels is not None
        assert source.labels.tolist() == numbers
    outlines = {"a.jpg": image(1), "a.json": b'{"shapes": []}', "b.jpg": image(1), "b.json": b"{"}
    assert open_source(write_folder(tmp_path / "outlines", outlines)).labels is None


def test_braces() -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("plain") == ["plain"]
    with pytest.raises(UnveilError, match="more than 100,000 shards"):
        expand_braces("{0..999999999}")


# ---------------------------------------------------------------- named sets and arrays


def listing(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"img": [{"bytes": image(value), "path": None} for value in range(4)], "label": [1, 0, 1, -1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "validation": whole.select([1])}).save_to_disk(tmp_path / "set")
    before = listing(tmp_path)
    train, test = open_both(f"hf://{tmp_path}/set")
    assert test is not None
    assert train.classes == ["no", "yes"]
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 1, -1]
    assert [train.read(index) for index in range(4)] == [image(value) for value in range(4)]
    assert test.read(0) == image(1)
    assert train.fingerprint != test.fingerprint
    assert open_source(f"hf://{tmp_path}/set").fingerprint == train.fingerprint
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda index: train.read(index) == image(index), [0, 1, 2, 3] * 25))
    assert listing(tmp_path) == before
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UnveilError, match="no column of images; its columns are text"):
        open_source(f"hf://{tmp_path}/text")
    with pytest.raises(UnveilError, match="has no name"):
        open_source("hf://")


def test_hugging_face_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnveilError, match=r"pip install 'unveil\[hf\]'"):
        open_source("hf://cifar10")


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    asked: list[tuple[Path, bool, bool]] = []

    class Images:
        classes = ("plane", "car")

        def __init__(self, root: Path, train: bool, download: bool):
            asked.append((root, train, download))
            if not download:
                raise RuntimeError("Dataset not found or corrupted.")
            self.targets = [1, 0] if train else [1]

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (2, 2), (index, 0, 0)), self.targets[index]

    monkeypatch.setenv("UNVEIL_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(datasets, "CIFAR10", Images)
    train, test = open_both("cifar10")
    assert test is not None
    assert asked[:2] == [(tmp_path / "sets", True, False), (tmp_path / "sets", True, True)]
    assert (len(train), len(test), train.classes) == (2, 1, ["plane", "car"])
    assert read_image(train.read(1))[0, 0].tolist() == [1, 0, 0]
    (tmp_path / "a.jpg").write_bytes(image(5))

    def imagenette(root: Path, split: str, download: bool) -> object:
        samples = [(str(tmp_path / "a.jpg"), 1)]
        return SimpleNamespace(_samples=samples, classes=[("tench", "Tinca"), ("dog",)], __len__=lambda: 1)

    class Imagenette(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    monkeypatch.setattr(datasets, "Imagenette", lambda root, **options: Imagenette(**vars(imagenette(root, **options))))
    source = open_source("imagenette")
    assert source.classes == ["tench", "dog"]
    assert source.read(0) == image(5)  # the file itself, so that a large JPEG can be decoded small
    monkeypatch.setattr(datasets, "MNIST", lambda root, **options: 1 / 0)
    with pytest.raises(UnveilError, match=r"cannot load MNIST of torchvision in .*: division by zero"):
        open_source("mnist")
    with pytest.raises(UnveilError, match="'eurosat' has no test split"):
        open_source("eurosat", split="test")


def test_every_torchvision_set_is_there() -> None:
    from torchvision import datasets

    from unveil.data.named_datasets import TORCHVISION_SETS

    for name, chosen in TORCHVISION_SETS.items():
        assert hasattr(datasets, chosen.class_name), name
        assert name == chosen.class_name.lower()


def test_digits() -> None:
    train, test = open_both("digits-plain")
    assert test is not None
    assert train.names[1] == "digits-plain/train/000001"
    assert train.classes == [str(number) for number in range(10)]
    assert read_image(test.read(0)).shape == (8, 8, 1)


def test_lists(tmp_path: Path) -> None:
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, torch.from_numpy(pixels).movedim(-1, 0)]
    source = open_source(given)
    assert list(source.names) == [str(tmp_path / "a.png")] * 2 + [f"image-00000{i}" for i in (2, 3, 4)]
    for i in range(5):
        np.testing.assert_array_equal(read_image(source.read(i)), pixels)
    assert open_source(given).fingerprint == source.fingerprint
    changed = [*given[:3], pixels + 1, given[4]]
    assert open_source(changed).fingerprint != source.fingerprint
    with pytest.raises(UnveilError, match="the list of images is empty"):
        open_source([])
    with pytest.raises(UnveilError, match="channels first"):
        open_source([pixels.transpose(2, 0, 1)])
    with pytest.raises(UnveilError, match=r"none of the files of list exists; the first is .*no such\.png"):
        open_source(["no such.png"])
    with pytest.raises(Unreadable, match=r"no such\.png: does not exist"):
        open_source(["no such.png", tmp_path / "a.png"]).read(0)


def test_arrays() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    source = open_source(images)
    assert len(source) == 2
    assert np.array_equal(read_image(source.read(1)), images[1])
    assert read_image(open_source(images[..., 0]).read(0)).shape == (3, 4, 1)
    assert source.fingerprint != open_source(images + 1).fingerprint
    labelled = array_source(images, np.array([0, 2]))
    assert labelled.classes == ["0", "2"]
    assert array_source(images, np.array([b"cat", b""])).classes == ["cat"]
    assert open_source((images, ["b", "a"])).classes == ["a", "b"]
    for other in (None, 3, {"images": images}, (images, [0], [1])):
        with pytest.raises(UnveilError, match=r"^DATA is a .*: expected a path or a name, an array"):
            open_source(other)
    with pytest.raises(UnveilError, match="an array of object values"):
        open_source(images.astype(object))
    for wrong in (images[0, 0], images[:0]):
        with pytest.raises(UnveilError, match="holds no images"):
            open_source(wrong)
    with pytest.raises(UnveilError, match="there are 1 labels for 2 images"):
        array_source(images, np.array([0]))


# ---------------------------------------------------------------- what goes wrong


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "photos", {"1.png": image(1)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnveilError, match=r"no file or folder 'fotos'; did you mean photos\? DATA is a folder"):
        open_source("fotos")
    with pytest.raises(UnveilError, match="did you mean cifar10"):
        open_source("cifar-10")
    assert open_source("photos").names == ["1.png"]
    assert open_source("photos/1.png").names == ["1.png"]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_see(form: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"no images in .*: none of its 1 files is an image"):
        open_source(write(form, tmp_path, {"readme.md": b"# words"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(UnveilError, match=r"no images in .*: it has no files at all"):
        open_source(write(form, tmp_path / "empty", {}) if form != "folder" else tmp_path / "empty")


@pytest.mark.parametrize("form", FORMS[1:])
def test_an_archive_cut_short_is_an_error(form: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes
    path = write(form, tmp_path, {f"{index}.png": noise(5000) for index in range(20)})
    raw = path.read_bytes()
    for part in (0.3, 0.55, 0.8):
        path.write_bytes(raw[: int(len(raw) * part)])
        with pytest.raises(UnveilError, match=r"is not a complete tar or zip .*: if it was downloaded, download it again"):
            open_source(path)


def test_damage_inside_an_archive(tmp_path: Path) -> None:
    files = {f"{index}.png": image(index) * 20 for index in range(9)}
    raw = bytearray(write_tar(tmp_path / "a.tar", files).read_bytes())
    step = 512 + (len(files["0.png"]) + 511) // 512 * 512
    raw[3 * step : 3 * step + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(UnveilError, match="download it again"):
        open_source(tmp_path / "a.tar")
    raw = bytearray(write_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED).read_bytes())
    raw[60] ^= 1
    (tmp_path / "a.zip").write_bytes(raw)
    source = open_source(tmp_path / "a.zip")
    with pytest.raises(Unreadable, match=r"0\.png: damaged zip: the checksum does not match"):
        source.read(0)
    assert source.read(1) == files["1.png"]
    (tmp_path / "text.tar").write_text("words " * 1000)
    with pytest.raises(UnveilError, match="not a complete tar or zip"):
        open_source(tmp_path / "text.tar")
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(99))
    with pytest.raises(UnveilError, match="zstd -d"):
        open_source(tmp_path / "a.tar.zst")


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_names_that_climb_out_write_nothing(form: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ["../../escape.png", "/etc/absolute.png", "a/../../b.png", "./plain.png", "folder\\windows.png"]
    source = open_source(write(form, tmp_path / "in", {name: image(1) for name in names}))
    assert len(source) == 5
    assert not any(".." in name.split("/") or name.startswith("/") for name in source.names)
    assert all(source.read(index) == image(1) for index in range(5))
    assert sorted(os.listdir(tmp_path)) == ["in"]
    assert len(os.listdir(tmp_path / "in")) == 1


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"{kind!r}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("long" * 40 + ".png")
        member.size = len(image(1))
        tar.addfile(member, io.BytesIO(image(1)))
    assert open_source(tmp_path / "a.tar").names == ["long" * 40 + ".png"]


def test_members_that_are_too_large_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (archives, regular_files, tar):
        monkeypatch.setattr(module, "FILE_LIMIT", 1000)
    files = {"large.png": bytes(2000), "small.png": image(1)}
    for form in ("tar", "zip"):
        source = open_source(write(form, tmp_path, files))
        assert source.names == ["small.png"]
        assert "larger than" in source.skipped["large.png"]
    source = open_source(write("folder", tmp_path, files))
    with pytest.raises(Unreadable, match=r"large\.png: larger than"):
        source.read(0)


def test_a_zip_that_lies_about_sizes_costs_no_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": bytes(50_000_000)})
    raw = path.read_bytes().replace((50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(raw)
    with pytest.raises(Unreadable, match="checksum"):
        open_source(path).read(0)


def test_encrypted_and_strange_members_are_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": image(1), "b.png": image(2)}, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("c.png", image(3))
        packed.writestr("folder\\d.png", image(4))
    source = open_source(path)
    assert "c.png" in source.names
    assert "zip method 12" in source.skipped["a.png"]


def test_folder_links_and_closed_doors(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"a/1.png": image(1), "b/2.png": image(2)})
    (root / "a" / "circle").symlink_to(root)
    (root / "again").symlink_to(root / "a")
    (root / "broken.png").symlink_to(tmp_path / "none")
    outside = write_folder(tmp_path / "outside", {"3.png": image(3)})
    (root / "c").symlink_to(outside)
    os.mkfifo(root / "pipe.png")
    assert open_source(root).names == ["a/1.png", "b/2.png", "c/3.png"]


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path, {"a/1.png": image(1), "b/2.png": image(2)})
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.rstrip("/").endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = open_source(root)
    assert source.names == ["a/1.png"]
    assert source.skipped == {"b": "folder cannot be listed: Permission denied"}


def test_a_file_that_vanishes_is_one_unreadable_image(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"1.png": image(1), "2.png": image(2)}))
    (tmp_path / "1.png").unlink()
    with pytest.raises(Unreadable, match=r"1\.png: cannot be read: No such file"):
        source.read(0)
    assert source.read(1) == image(2)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
        file.write(image(1))
    (tmp_path / "grün & weiß.PNG").write_bytes(gzip.compress(b""))
    source = open_source(tmp_path)
    assert len(source) == 2
    assert {source.read(0), source.read(1)} == {image(1), (tmp_path / "grün & weiß.PNG").read_bytes()}


def test_the_import_is_light() -> None:
    code = "import sys, unveil.data.sources; print({'torch', 'torchvision', 'datasets', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_a_real_archive() -> None:
    test = open_source(SHARED / "cifar10_jpeg" / "test.tar.gz")
    assert (len(test), len(test.classes)) == (10_000, 10)
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert read_image(test.read(9_999), channels=3).shape == (32, 32, 3)


def test_what_is_no_image_is_listed_and_what_speaks_of_one_is_not(tmp_path):
    files = {"a.png": image(1), "a.json": b'{"label": 1}', "b.c.png": image(2), "b.cls": b"2"}
    files["labels.csv"] = b"file,label\na.png,x\n"
    others = {"notes.txt": b"no", "expected.json": b"{}", "lonely.cls": b"3", "my_labels.csv": b"file,label"}
    source = open_source(write("folder", tmp_path, {f"set/{name}": data for name, data in (files | others).items()}))
    assert {name.rpartition("/")[2] for name in source.skipped} == others.keys()
    assert set(source.skipped.values()) == {"not an image, by its name or its first bytes"}


def test_arrays_of_16_bits_that_are_nearly_black_are_said():
    dark = np.full((3, 8, 8, 3), 200, np.uint16)
    assert array_source(dark).notes == (
        "the array is uint16 and its largest value is 200, of 65535, so its images are nearly black: convert it to uint8 if 255 is "
        "white",
    )
    assert any("nearly black" in note for note in array_source(dark, np.array([0, 1, 1])).notes)
    assert array_source(dark * 300).notes == ()
    assert array_source(dark.astype(np.uint8)).notes == ()


def test_a_folder_with_the_name_of_a_known_dataset_is_not_taken_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-plain").mkdir()
    assert "write ./digits-plain" in open_parts("digits-plain").roles().train.notes[0]
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setattr("unveil.data.sources.torchvision_splits", lambda name: {"train": unavailable})
    with pytest.raises(UnveilError, match=r"no network; cifar10 is the name of a dataset that unveil knows: .* write \./cifar10"):
        open_parts("cifar10").roles()
    monkeypatch.chdir(tmp_path / "cifar10")
    assert not open_parts("digits-plain").roles().train.notes


def unavailable() -> None:
    raise UnveilError("no network")
