"""Packs: what comes back is what was packed, and no changed byte goes unnoticed."""

import errno
import io
import json
import os
import shutil
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.numpy import load_file, save

import unveil
from unveil.data import pack_reader as packs
from unveil.data.dataset import ImageDataset
from unveil.data.faults import Fault
from unveil.data.pack_reader import FACTS, INDEX, Pack, seal, unseal
from unveil.data.pixels import Unreadable
from unveil.data.sources import Source, open_both, open_source
from unveil.errors import UnveilError

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd_images" / "odd_images.tar"


def photo(chance: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth image of quiet colours, which JPEG keeps well."""
    small = (chance.integers(0, 200, (3, 4, 1)) + chance.integers(0, 50, (3, 4, channels))).astype(np.uint8)
    planes = [Image.fromarray(small[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def write_set(folder: Path, count: int = 5) -> Path:
    """Two splits of two classes of images of many sizes, with two files that are none."""
    chance = np.random.default_rng(0)
    for split, each in (("train", count), ("val", 2)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = photo(chance, 20 + 3 * i, 24 + i)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    (folder / "train" / "cat" / "1b.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / "train" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def packed(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unveil.pack(data, tmp_path_factory.mktemp("packs") / request.param, side=24, store=request.param, shard_bytes=4000)


def every(images: ImageDataset) -> list[np.ndarray]:
    return [images.read(number) for number in images.readable(torch.arange(len(images))).keys.tolist()]


def alike(a: Source, b: Source, tolerance: float) -> None:
    """That two sources give the same images to training."""
    left, right = ImageDataset(a, side=24), ImageDataset(b, side=24)
    assert left.names == right.names
    assert torch.equal(left.labels, right.labels)
    assert (left.classes, left.channels, left.dtype) == (right.classes, right.channels, right.dtype)
    for x, y in zip(every(left), every(right), strict=True):
        assert x.shape == y.shape
        assert np.abs(x.astype(int) - y.astype(int)).mean() <= tolerance


def test_what_comes_back_is_what_was_packed(data: Path, packed: Path) -> None:
    for source, again in zip(open_both(data), open_both(packed), strict=True):
        assert source is not None
        assert again is not None
        alike(source, again, 0 if packed.name == "raw" else 2)
        assert again.name == str(packed)
        assert dict(source.skipped).items() <= dict(again.skipped).items()
    train = open_source(packed)
    assert set(train.skipped) == {"train/notes.txt", "train/cat/1b.jpg"}
    assert train.names[0] == "train/cat/0.png"
    test = open_both(packed)[1]
    assert test is not None
    assert test.classes == train.classes == ["cat", "dog"]
    assert test.fingerprint != train.fingerprint
    assert len(json.loads((packed / FACTS).read_bytes())["shards"]) > 1


def test_raw_pixels_are_handed_out_without_decoding(packed: Path) -> None:
    found = open_source(packed).read(3)
    if packed.name == "jpeg":
        assert Image.open(io.BytesIO(found)).format == "JPEG"
        return
    assert isinstance(found, np.ndarray)
    assert not found.flags.owndata  # it is a view of the bytes that were read
    assert not found.flags.writeable


def test_reads_from_many_threads_and_few_open_shards(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = [i for i in range(11) if i != 2]
    wanted = {i: bytes(memoryview(open_source(packed).read(i))) for i in readable}
    monkeypatch.setattr(packs, "OPEN_SHARDS", 1)
    source = open_source(packed)
    order = np.random.default_rng(0).choice(readable, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: bytes(memoryview(source.read(i))) == wanted[i], order))


def test_larger_packs_are_read_on_demand(data: Path, packed: Path) -> None:
    kept, fresh = ImageDataset(open_source(packed), side=24), ImageDataset(open_source(packed), side=24, memory=0)
    assert not fresh.in_memory
    for a, b in zip(kept.readable(torch.arange(10))[:3], fresh.readable(torch.arange(10))[:3], strict=True):
        assert torch.equal(a, b)


def test_a_pack_of_a_pack(packed: Path, tmp_path: Path) -> None:
    again = unveil.pack(packed, tmp_path / "again", side=24, store=packed.name)
    for a, b in zip(open_both(packed), open_both(again), strict=True):
        assert a is not None
        assert b is not None
        assert list(a.names) == list(b.names)
        x, y = (ImageDataset(source, side=24) for source in (a, b))
        assert all(np.array_equal(*each) for each in zip(every(x), every(y), strict=True))
        assert x.unreadable == y.unreadable
        assert dict(a.skipped) == dict(b.skipped)


DEEP = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50


@pytest.mark.parametrize(
    ("name", "array", "channels"),
    [
        ("a.npy", np.arange(30 * 40, dtype=np.uint8).reshape(30, 40), 0),
        ("a.npy", np.arange(30 * 40 * 4, dtype=np.uint8).reshape(30, 40, 4), 0),
        ("a.npy", DEEP, 0),
        ("a.npy", DEEP.astype(">u2"), 0),
        ("a.npy", DEEP[:, :, None].repeat(7, 2), 0),
        ("a.tif", DEEP, 0),
        ("a.tif", DEEP[:, :, None].repeat(5, 2), 0),
        ("a.png", np.arange(30 * 40 * 4, dtype=np.uint8).reshape(30, 40, 4), 4),
    ],
)
@pytest.mark.parametrize("side", [16, 100])
def test_any_channels_and_depth(name: str, array: np.ndarray, channels: int, side: int, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        path = folder / f"{number}{name}"
        if name.endswith("npy"):
            np.save(path, array + number)
        elif name.endswith("tif"):
            tifffile.imwrite(path, array + number, photometric="minisblack")
        else:
            Image.fromarray(array + number).save(path)
    wanted = ImageDataset(open_source(folder), side=side, channels=channels or None)
    found = ImageDataset(open_source(unveil.pack(folder, tmp_path / "out", side=side, store="raw", channels=channels)), side=side)
    assert (wanted.channels, wanted.dtype) == (found.channels, found.dtype)
    for x, y in zip(every(wanted), every(found), strict=True):
        assert np.array_equal(x, y)


def test_depths_that_are_mixed_become_one_as_they_would_have(tmp_path: Path) -> None:
    arrays = [DEEP, (DEEP // 256).astype(np.uint8), (DEEP // 256).astype(np.uint8)[..., None].repeat(3, 2)]
    (tmp_path / "set").mkdir()
    for number, array in enumerate([*arrays, *arrays[1:]]):
        np.save(tmp_path / "set" / f"{number}.npy", array)
    for store in ("raw", "jpeg"):
        out = unveil.pack(tmp_path / "set", tmp_path / store, store=store, side=24)
        alike(open_source(tmp_path / "set"), open_source(out), 0 if store == "raw" else 1)


def test_16_bits_may_begin_at_an_odd_byte(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number, array in enumerate([np.full((3, 5), 7, np.uint8), DEEP, DEEP + 1]):
        np.save(tmp_path / "set" / f"{number}.npy", array)
    source = open_source(unveil.pack(tmp_path / "set", tmp_path / "out", store="raw"))
    assert Pack(tmp_path / "out").table["offset"][1] % 2 == 1
    assert np.array_equal(ImageDataset(source, side=256).read(2)[:, :, 0], DEEP + 1)
    assert ImageDataset(source, side=10).read(1).shape == (10, 13, 1)


def test_what_jpeg_cannot_hold_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number, shape in enumerate([(8, 8), (8, 8), (8, 8, 4), (1, 66_000)]):
        np.save(tmp_path / "set" / f"{number}.npy", np.zeros(shape, np.uint8))
    source = open_source(unveil.pack(tmp_path / "set", tmp_path / "out", side=16_384))
    assert ImageDataset(source, side=256).readable(torch.arange(4)).keys.tolist() == [0, 1]
    assert source.skipped["2.npy"].startswith("has 4 channels, but JPEG has 1 or 3")
    assert source.skipped["3.npy"].startswith("65536 x 1 pixels, but sides of a JPEG have up to 65,500")


def test_a_jpeg_that_needs_no_shrinking_is_kept_as_it_is(tmp_path: Path) -> None:
    pixels = photo(np.random.default_rng(0), 40, 50)
    (tmp_path / "set").mkdir()
    for name, quality in (("coarse", 60), ("fine", 100)):
        Image.fromarray(pixels).save(tmp_path / "set" / f"{name}.jpg", quality=quality)
    small = open_source(unveil.pack(tmp_path / "set", tmp_path / "out"))
    assert small.read(0) == (tmp_path / "set" / "coarse.jpg").read_bytes()
    assert len(small.read(1)) < (tmp_path / "set" / "fine.jpg").stat().st_size
    shrunk = open_source(unveil.pack(tmp_path / "set", tmp_path / "shrunk", side=39))
    assert Image.open(io.BytesIO(shrunk.read(0))).size == (49, 39)


def test_names_of_any_bytes_and_labels_that_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    names = ["Bär & Co.png", "new\nline.png", "tab\there.png", b"latin-\xe9.png".decode("utf-8", "surrogateescape")]
    for number, name in enumerate(names):
        Image.new("L", (4, 4), 60 * number).save(folder / "image.png")
        (folder / "image.png").rename(folder / name)
    (folder / b"broken-\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    (folder / "labels.csv").write_text("file,label\nBär & Co.png,bear\n")
    out = unveil.pack(folder, tmp_path / "out", store="raw")
    alike(open_source(folder), open_source(out), 0)
    assert open_source(out).labels.tolist() == [0, -1, -1, -1, -1]
    assert "broken-\\xe9.png\t" in (out / "skipped.txt").read_text(encoding="utf-8")
    plain = unveil.pack(np.zeros((3, 4, 4), np.uint8), tmp_path / "plain", store="raw")
    assert open_source(plain).labels is None
    assert open_source(plain).classes == []
    assert not (plain / "skipped.txt").exists()


@pytest.mark.skipif(not ODD.is_file(), reason="../shared/data is absent")
@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_odd_files(store: str, tmp_path: Path) -> None:
    out = unveil.pack(ODD, tmp_path / "out", store=store, side=64)
    wanted, found = ImageDataset(open_source(ODD), side=64), ImageDataset(open_source(out), side=64)
    assert wanted.names == found.names
    assert dict(wanted.source.skipped) | wanted.skipped == dict(found.source.skipped)
    differences = [np.abs(x.astype(int) - y.astype(int)).mean() for x, y in zip(every(wanted), every(found), strict=True)]
    assert max(differences) <= (0 if store == "raw" else 20)  # 64 px, some of them noise
    assert np.median(differences) <= 5
    with tarfile.open(ODD) as tar:
        assert len(found.source.skipped) + len(every(found)) == sum(member.isfile() for member in tar)


# ---------------------------------------------------------------- damage


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << place % 8)]))


def test_one_flipped_byte_is_found(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chance = np.random.default_rng(0)
    for path in sorted(packed.iterdir()):
        for place in {0, path.stat().st_size - 1, *chance.integers(0, path.stat().st_size, 12).tolist()}:
            shutil.copytree(packed, out)
            flip(out / path.name, place)
            if path.name in (FACTS, INDEX):
                with pytest.raises(UnveilError, match="is damaged"):
                    open_source(out)
            with pytest.raises(UnveilError, match=f"is damaged.*{path.name}"):
                unveil.pack(out, verify=True)
            shutil.rmtree(out)


def test_every_byte_of_the_facts_counts(packed: Path, tmp_path: Path) -> None:
    raw = (packed / FACTS).read_bytes()
    path = tmp_path / FACTS
    for place in range(0, len(raw), 3):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(ValueError, match=FACTS):
            unseal(path)
    path.write_bytes(raw)
    assert seal({key: value for key, value in unseal(path).items() if key != "sha256"}) == raw


def test_a_damaged_image_is_left_out_and_listed(packed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    table = load_file(out / INDEX)
    row = 4
    stored = row - 1  # the image 2 could not be packed
    flip(out / f"shard-{table['shard'][stored]:05d}.bin", int(table["offset"][stored] + table["bytes"][stored] // 2))
    source = open_source(out)
    with pytest.raises(Unreadable, match="damaged in the pack"):
        source.read(row)
    images = ImageDataset(source, side=24)
    assert images.readable(torch.arange(11)).keys.tolist() == [0, 1, 3, 5, 6, 7, 8, 9, 10]
    assert images.skipped[source.names[row]] == "damaged in the pack: its checksum does not match"
    assert len(images.skipped) == 2  # with the one that could not be packed
    with pytest.raises(UnveilError, match=rf"with 1 image \({source.names[row]}\)"):
        unveil.pack(out, verify=True)


def test_wrong_sizes_and_missing_files_are_refused_on_opening(packed: Path, tmp_path: Path) -> None:
    shard = "shard-00001.bin"
    size = (packed / shard).stat().st_size
    for name, change, told in (
        (shard, lambda path: path.write_bytes(path.read_bytes()[:-1]), rf"{shard} has {size - 1:,} bytes instead of {size:,}"),
        (shard, lambda path: path.write_bytes(path.read_bytes() + b"x"), rf"{shard} has {size + 1:,} bytes"),
        (shard, lambda path: path.unlink(), shard),
        (INDEX, lambda path: path.unlink(), INDEX),
        ("skipped.txt", lambda path: path.write_text(""), "skipped.txt has 0 bytes"),
        (FACTS, lambda path: path.write_bytes(b""), f"{FACTS} is not JSON"),
    ):
        out = Path(shutil.copytree(packed, tmp_path / "out"))
        change(out / name)
        with pytest.raises(UnveilError, match=f"the pack {out} is damaged .*{told}.*: copy it again, or pack again"):
            open_source(out)
        shutil.rmtree(out)


def test_another_format_and_an_index_of_other_shards(packed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    facts = unseal(out / FACTS)
    facts.pop("sha256")
    (out / FACTS).write_bytes(seal(facts | {"format": "unveil pack 2"}))
    with pytest.raises(UnveilError, match="has the format 'unveil pack 2', but this version reads 'unveil pack 1'"):
        open_source(out)
    (out / FACTS).write_bytes(seal(facts | {"shards": facts["shards"][:1]}))
    with pytest.raises(UnveilError, match="is damaged"):
        open_source(out)


def test_a_shard_that_goes_away_costs_its_images_only(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.retries.PAUSES", (0.0, 0.0))
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    source = open_source(out)
    (out / "shard-00000.bin").unlink()
    assert 0 < len(ImageDataset(source, side=24).readable(torch.arange(10)).keys) < 10


def test_the_index_is_numbers_and_names(packed: Path) -> None:
    table = load_file(packed / INDEX)
    facts = Pack(packed).facts
    assert sum(shard["pictures"] for shard in facts["shards"]) == len(table["offset"]) == 14
    assert table["split"].tolist() == [0] * 10 + [1] * 4
    assert table["label"].tolist() == [0] * 5 + [1] * 5 + [0, 0, 1, 1]
    assert table["bits"].tolist() == [8] * 14
    assert table["height"].min() == 20
    first = table["names"].tobytes()[: table["name_end"][0]]
    assert first == b"train/cat/0.png"


# ---------------------------------------------------------------- packs of earlier versions

EARLIER_SHARD = b"unveil shard 1\n\0" + bytes(range(12)) + bytes(range(100, 112))
EARLIER_FACTS = {
    "format": "unveil pack 1",
    "data": {"name": "set", "train": 3, "train_fingerprint": "f" * 64},
    "settings": {"side": 256, "store": "raw", "channels": 0, "pixel_limit": 64_000_000, "shard_bytes": 268_435_456},
    "splits": {"train": {"pictures": 2, "labelled": True, "classes": ["cat", "dog"], "skipped": {"c.png": "not an image"}}},
}


def write_earlier_pack(folder: Path) -> Path:
    """A pack as commit d98af96 wrote it, byte by byte: two raw images of 2 x 2 pixels."""
    table = {
        "offset": np.array([16, 28], np.int64),
        "bytes": np.array([12, 12], np.int64),
        "height": np.array([2, 2], np.int32),
        "width": np.array([2, 2], np.int32),
        "channels": np.array([3, 3], np.int32),
        "bits": np.array([8, 8], np.uint8),
        "crc": np.array([zlib.crc32(EARLIER_SHARD[16:28]), zlib.crc32(EARLIER_SHARD[28:])], np.uint32),
        "shard": np.zeros(2, np.int32),
        "split": np.zeros(2, np.uint8),
        "label": np.array([1, 0], np.int64),
        "name_end": np.array([5, 10], np.int64),
        "names": np.frombuffer(b"a.pngb.png", np.uint8),
    }
    index, lines = save(table), b"c.png\tnot an image\n"
    facts = EARLIER_FACTS | {
        "shards": [{"bytes": len(EARLIER_SHARD), "sha256": sha256(EARLIER_SHARD).hexdigest(), "pictures": 2}],
        "index": {"bytes": len(index), "sha256": sha256(index).hexdigest()},
        "skipped": {"bytes": len(lines), "sha256": sha256(lines).hexdigest()},
    }
    folder.mkdir()
    body = json.dumps(facts, indent=1).removesuffix("\n}")
    sealed = f'{body},\n "sha256": "{sha256(body.encode()).hexdigest()}"\n}}\n'
    for name, raw in ((INDEX, index), ("shard-00000.bin", EARLIER_SHARD), ("skipped.txt", lines), (FACTS, sealed.encode())):
        (folder / name).write_bytes(raw)
    return folder


def test_packs_of_earlier_versions_open(tmp_path: Path) -> None:
    folder = write_earlier_pack(tmp_path / "pack")
    source = open_source(folder)
    assert (source.names, source.classes, source.labels.tolist()) == (["a.png", "b.png"], ["cat", "dog"], [1, 0])
    assert source.skipped == {"c.png": "not an image"}
    assert source.read(1).tolist() == np.arange(100, 112).reshape(2, 2, 3).tolist()
    assert unveil.pack(folder, verify=True) == folder


def test_the_facts_keep_their_keys(packed: Path) -> None:
    """So that packs of any version can be read and resumed by any other."""
    facts = unseal(packed / FACTS)
    assert list(facts) == [*EARLIER_FACTS, "shards", "index", "skipped", "sha256"]
    settings = [key for key in facts["settings"] if key != "quality"]
    assert settings == list(EARLIER_FACTS["settings"])
    assert all(list(split) == [*EARLIER_FACTS["splits"]["train"], "unreadable"] for split in facts["splits"].values())
    assert all(list(shard) == ["bytes", "sha256", "pictures"] for shard in facts["shards"])
    assert {"train", "train_fingerprint", "test", "test_fingerprint", "name"} == set(facts["data"])


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_shard_that_is_cut_short_while_it_is_read_costs_its_images_only(store: str, data: Path, tmp_path: Path) -> None:
    """A mapped shard would end the process with SIGBUS."""
    out = unveil.pack(data, tmp_path / "out", side=24, store=store)
    images = ImageDataset(open_source(out), side=24, memory=0)
    assert len(images.readable(torch.arange(11)).keys) == 10
    told = open_source(out).skipped["train/cat/1b.jpg"]
    os.truncate(out / "shard-00000.bin", int(load_file(out / INDEX)["offset"][3]))
    assert images.readable(torch.arange(11)).keys.tolist() == [0, 1, 3]
    assert images.unreadable.pop(2) == Fault(told)
    assert set(images.unreadable.values()) == {Fault("the pack has become shorter", lost=True, may_pass=True)}


def test_a_pack_on_a_share_that_fails_for_a_moment(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.retries.PAUSES", (0.0, 0.0))
    source, real, calls = open_source(packed), os.pread, []

    def pread(handle: int, size: int, offset: int) -> bytes:
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(handle, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert bytes(memoryview(source.read(0))) == bytes(memoryview(open_source(packed).read(0)))
