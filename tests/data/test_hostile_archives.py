"""Archives and folders that are made to exhaust memory, disk, time or descriptors, or that change while they are read."""

import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.data import archives, regular_files, tar
from unveil.data.pixels import Unreadable
from unveil.data.sources import open_source
from unveil.errors import UnveilError

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
MIB = 2**20


def png(value: int = 7, side: int = 3) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (side, side), value).save(stream, "PNG")
    return stream.getvalue()


def entry(name: str, raw: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member of a tar, padded to whole blocks."""
    member = tarfile.TarInfo(name)
    member.size, member.type = len(raw), kind
    return member.tobuf() + raw + bytes(-len(raw) % 512)


def tar_of(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def zip_of_zeros(path: Path, head: bytes, suffix: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("fine.png", png())
        for index in range(2):
            with packed.open(f"{index}{suffix}", "w") as file:
                file.write(head)
                for _ in range(160):
                    file.write(bytes(MIB))


def sparse(path: Path, head: bytes, size: int = 1000 * MIB) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


CODE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import PIL.Image, tifffile
from unveil.data.sources import open_source
from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
from unveil.errors import UnveilError
PIL.Image.init()

def memory(which):
    return int(next(line for line in open("/proc/self/status") if line.startswith(which)).split()[1]) / 1024

def one(source, index):
    try:
        return list(read_image(source.read(index)).shape)
    except Unreadable as error:
        return error.reason

found = {}
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak
    before, start, skipped = memory("VmRSS"), time.monotonic(), {}
    try:
        source = open_source(path)
        with ThreadPoolExecutor(2) as pool:
            said = dict(zip(source.names, pool.map(lambda i: one(source, i), range(len(source)))))
        skipped = dict(source.skipped)
    except UnveilError as error:
        said = str(error)
    found[path] = [said, skipped, memory("VmHWM") - before, time.monotonic() - start]
print(json.dumps(found))
"""


def tried(*paths: Path) -> dict[str, tuple[object, dict[str, str]]]:
    """What is said and what is skipped when a process of its own reads everything in these paths. Checks its memory and time."""
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    results = json.loads(done.stdout)
    for path, (_, _, peak, seconds) in results.items():
        assert peak < 150, f"{path}: {peak:.0f} MiB"  # two threads, each with less than `SMALL`
        assert seconds < 10, f"{path}: {seconds:.0f} s"
    return {Path(path).name: (said, skipped) for path, (said, skipped, _, _) in results.items()}


@LINUX
def test_what_unpacks_to_a_hundred_times_its_size_costs_no_memory(tmp_path: Path) -> None:
    zip_of_zeros(tmp_path / "zeros.zip", b"", ".png")
    zip_of_zeros(tmp_path / "heads.zip", png()[:33], ".png")
    zip_of_zeros(tmp_path / "tiff.zip", b"II*\0\x08\0\0\0", ".tif")
    zip_of_zeros(tmp_path / "labels.zip", b"", ".cls")
    for form in ("gz", "xz"):
        with (gzip.open if form == "gz" else lzma.open)(tmp_path / f"bomb.tar.{form}", "wb") as file:
            file.write(tar_of(entry("fine.png", png())[:-1024]))
            for _ in range(160):
                file.write(bytes(MIB))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fine.png").write_bytes(png())
    sparse(folder / "hole.jpg", b"")
    sparse(folder / "head.png", png()[:33])
    sparse(folder / "head.tif", b"II*\0\x08\0\0\0")
    sparse(tmp_path / "sparse.tar", entry("fine.png", png()))
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 900 * MIB
    sparse(tmp_path / "pax.tar", header.tobuf())
    found = tried(*sorted(tmp_path.iterdir()))
    for name in ("zeros.zip", "heads.zip", "tiff.zip", "labels.zip"):
        said, skipped = found[name]
        assert said == {"fine.png": [3, 3, 1]}
        assert len(skipped) == 2
        assert all("over 100 times its size in the zip" in reason for reason in skipped.values())
    for form in ("gz", "xz"):
        assert "unpacks to more than 100 times its" in str(found[f"bomb.tar.{form}"][0])
    for name in ("sparse.tar", "pax.tar"):
        assert "is sparse: most of it is not on the disk" in str(found[name][0])
    assert found["folder"][0] == {
        "fine.png": [3, 3, 1],
        "hole.jpg": "not an image",
        "head.png": f"a sparse file: {1000 * MIB:,} bytes, of which 4,096 are on the disk",
        "head.tif": f"a sparse file: {1000 * MIB:,} bytes, of which 4,096 are on the disk",
    }


def test_headers_of_a_tar_without_end_are_one_sentence(tmp_path: Path) -> None:
    long_name, extended = (
        entry("././@LongLink", b"a" * 10, tarfile.GNUTYPE_LONGNAME),
        entry("pax", b"11 path=ab\n", tarfile.XHDTYPE),
    )
    for header in (long_name, extended):
        (tmp_path / "a.tar").write_bytes(tar_of(header * 5000, entry("a.png", png())))
        with pytest.raises(UnveilError, match="is not a complete tar or zip"):
            open_source(tmp_path / "a.tar")
        (tmp_path / "a.tar").write_bytes(tar_of(header, entry("a.png", png())))
        assert len(open_source(tmp_path / "a.tar")) == 1


def test_an_xz_file_that_asks_for_four_gigabytes_is_refused(tmp_path: Path) -> None:
    raw = bytearray(lzma.compress(tar_of(entry("a.png", png()))))
    (tmp_path / "a.tar.xz").write_bytes(raw)
    assert open_source(tmp_path / "a.tar.xz").read(0) == png()
    (tmp_path / "a.tar.xz").write_bytes(raw + lzma.compress(b"") + bytes(8))  # several streams are one file
    assert open_source(tmp_path / "a.tar.xz").read(0) == png()
    length = 4 * (raw[12] + 1)
    raw[16] = 40  # the size of the dictionary
    raw[12 + length - 4 : 12 + length] = zlib.crc32(raw[12 : 12 + length - 4]).to_bytes(4, "little")
    (tmp_path / "a.tar.xz").write_bytes(raw)
    with pytest.raises(UnveilError, match="Memory usage limit"):
        open_source(tmp_path / "a.tar.xz")


def deleted_files() -> set[str]:
    """The unnamed temporary files of this process that hold anything."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.exists(path) and "(deleted)" in os.readlink(path) and os.stat(path).st_size:
            found.add(os.readlink(path))
    return found


@LINUX
def test_unpacking_looks_at_the_free_space_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).bytes(40 * MIB)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(entry("a.png", png()), entry("b.bin", noise)), 1))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = deleted_files()
    free = iter([10**12, 10**12, 0])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": next(free)}))
    with pytest.raises(UnveilError, match=r"a\.tar\.gz' does not fit into .*temporary.*: set TMPDIR to a folder on a larger disk"):
        open_source(tmp_path / "a.tar.gz")
    assert os.listdir(tmp_path / "temporary") == []
    assert deleted_files() == before
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:-100_000])
    with pytest.raises(UnveilError, match="not a complete tar or zip"):
        open_source(tmp_path / "a.tar.gz")
    assert deleted_files() == before
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(entry("a.png", png()))))
    source = open_source(tmp_path / "a.tar.gz")
    assert source.read(0) == png()
    assert len(deleted_files()) == len(before) + 1
    del source
    assert deleted_files() == before


# ---------------------------------------------------------------- pipes, devices and links


def test_what_is_no_file_is_left_out_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "fine.png").write_bytes(png())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.png").write_bytes(png())
    os.mkfifo(root / "pipe.png")
    (root / "sub" / "pipe.png").symlink_to(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        here = os.getcwd()
        os.chdir(root)  # the name of a socket has at most 108 bytes
        door.bind("socket.png")
        os.chdir(here)
    for name, target in [
        ("gone.png", "nowhere"),
        ("zero.png", "/dev/zero"),
        ("up", tmp_path),
        ("root", "/"),
        ("kernel", "/proc"),
        ("devices", "/dev/"),
        ("outside", tmp_path / "outside"),
        ("again", root / "sub"),
    ]:
        (root / name).symlink_to(target)
    source = open_source(root)
    assert source.names == ["fine.png", "outside/b.png"]
    assert source.skipped == {
        "pipe.png": "not a file, but a named pipe",
        "sub/pipe.png": "not a file, but a link to a named pipe",
        "socket.png": "not a file, but a socket",
        "gone.png": "a link to a file that does not exist",
        "zero.png": "not a file, but a link to a device",
        "up": "a link to a folder in which this data lies",
        "root": "a link to a folder in which this data lies",
        "kernel": "a folder of the system, not of images",
        "devices": "a folder of the system, not of images",
    }


def test_a_run_folder_inside_the_data_is_left_out(tmp_path: Path) -> None:
    """With --out inside of DATA, a figure of the run would become an image, and its folder a class."""
    for name in ("a/1.png", "run/reconstruction.png", "run/export/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    for name in ("run.json", "config.json"):
        (tmp_path / "run" / name).write_text("{}")
    source = open_source(tmp_path)
    assert source.names == ["a/1.png"]
    assert source.skipped == {"run": "a run folder of unveil"}
    assert open_source(tmp_path / "run").names == ["export/2.png", "reconstruction.png"]  # as the user asked for it


def test_a_pipe_or_a_device_as_data_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for data in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UnveilError, match=r"is neither a folder nor a file, but a pipe, a socket or a device\. DATA is"):
            open_source(data)
        done = subprocess.run(
            [sys.executable, "-m", "unveil", "pretrain", str(data)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert "is neither a folder nor a file" in done.stderr
        assert "Traceback" not in done.stderr


def becomes_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def becomes_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def becomes_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (becomes_pipe, "not a file, but a named pipe"),
        (becomes_endless, "not a file, but a device"),
        (becomes_folder, "not a file, but a folder"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_what_is_replaced_while_it_is_read(
    form: str, change: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "folder":
        (tmp_path / "a.png").write_bytes(png())
        source, path = open_source(tmp_path), tmp_path / "a.png"
    else:
        path = tmp_path / f"a.{form}"
        if form == "tar":
            path.write_bytes(tar_of(entry("a.png", png())))
        else:
            with zipfile.ZipFile(path, "w") as packed:
                packed.writestr("a.png", png())
        source = open_source(path)
        monkeypatch.setattr(regular_files, "_recent", regular_files._Recent())  # as if other archives had been read since
    assert source.read(0) == png()
    monkeypatch.setattr(regular_files, "_recent", regular_files._Recent())
    change(path)
    caught: list[Unreadable] = []

    def read() -> None:
        try:
            source.read(0)
        except Unreadable as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)  # the old code waits for ever
    thread.start()
    thread.join(10)
    assert [error.reason for error in caught] == [reason]
    assert caught[0].lost


# ---------------------------------------------------------------- many shards


def shards(folder: Path, count: int, form: str) -> None:
    folder.mkdir()
    for number in range(count):
        path, raw = folder / f"shard-{number:04d}.{form}", png(number % 256, 3 + number % 5)
        if form == "zip":
            with zipfile.ZipFile(path, "w") as packed:
                packed.writestr("a.png", raw)
        else:
            whole = tar_of(entry("a.png", raw))
            path.write_bytes(gzip.compress(whole) if form == "tar.gz" else whole)


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from unveil.data.sources import open_source
from unveil.data.images import read_image
for data in sys.argv[1:]:
    source = open_source(data)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(source)), 2))
    with ThreadPoolExecutor(16) as pool:
        pixels = list(pool.map(lambda i: read_image(source.read(int(i)))[0, 0, 0], order))
    assert pixels == [i % 256 for i in order]
    print(len(source))
"""


@pytest.mark.parametrize("form", ["tar", "zip", "tar.gz"])
def test_more_shards_than_files_may_be_open(form: str, tmp_path: Path) -> None:
    shards(tmp_path / "set", 1300, form)
    pattern = f"{tmp_path}/set/shard-{{0000..1299}}.{form}"
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path / "set"), pattern], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1300\n1300\n", "")


def test_a_shard_that_was_replaced_is_not_read_as_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_files, "OPEN_ARCHIVES", 2)
    shards(tmp_path / "set", 5, "tar")
    source = open_source(tmp_path / "set")
    (tmp_path / "set" / "shard-0000.tar").write_bytes(tar_of(entry("b.png", png(9, 40))))
    assert len(source.read(4)) == len(png(4, 7))
    with pytest.raises(Unreadable, match="the archive has changed since it was listed") as caught:
        source.read(0)
    assert caught.value.lost


# ---------------------------------------------------------------- what is left out is said


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        for index in range(12):
            packed.writestr(f"{index:02d}.png", png())
    raw = bytearray(path.read_bytes())
    at = -1
    while (at := raw.find(b"PK\1\2", at + 1)) >= 0:
        raw[at + 8] |= 1
    path.write_bytes(raw)


def test_an_archive_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    encrypted(tmp_path / "a.zip")
    with pytest.raises(UnveilError, match=r"no images in '.*a\.zip': 12 files were left out, the first is 00\.png: encrypted"):
        open_source(tmp_path / "a.zip")
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    (tmp_path / "a.tar").write_bytes(tar_of(link.tobuf(), entry("notes.txt", b"words")))
    with pytest.raises(UnveilError, match=r"none of its 1 files is an image, and 1 file was left out, a\.png: a link in a tar"):
        open_source(tmp_path / "a.tar")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    with pytest.raises(UnveilError, match=r"1 file was left out, pipe\.png: not a file, but a named pipe"):
        open_source(tmp_path / "folder")


def test_label_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for name, size, reason in [
        ("labels.csv", 1000 * MIB, r"expected at most 268,435,456"),
        ("labels.csv", 200 * MIB, "cannot be read: a sparse file"),
        ("a.cls", 32 * MIB, r"expected at most 16,777,216"),
        ("a.json", 32 * MIB, r"expected at most 16,777,216"),
    ]:
        sparse(tmp_path / name, b"", size)
        with pytest.raises(UnveilError, match=rf"{name} .*{reason}"):
            open_source(tmp_path)
        (tmp_path / name).unlink()


def test_a_mask_of_webdataset_is_not_an_image(tmp_path: Path) -> None:
    members = []
    for key in ("000", "001"):
        members += [entry(f"{key}.png", png()), entry(f"{key}.seg.png", png(1)), entry(f"{key}.cls", b"1")]
    members += [entry("other.v2.png", png()), entry("other.png", png()), entry("dir/photo.edit.png", png())]
    (tmp_path / "a.tar").write_bytes(tar_of(*members))
    source = open_source(tmp_path / "a.tar")
    assert source.names == ["000.png", "001.png", "dir/photo.edit.png", "other.png", "other.v2.png"]
    assert source.skipped["000.seg.png"] == "belongs to the sample 000, whose image is 000.png"
    only = [entry("000.image.png", png()), entry("000.cls", b"0")]
    (tmp_path / "b.tar").write_bytes(tar_of(*only))
    assert open_source(tmp_path / "b.tar").names == ["000.image.png"]


def test_any_error_of_a_reader_is_one_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    source = open_source(tmp_path)
    for error in (MemoryError(), RuntimeError("can't start new thread"), ValueError("odd")):

        def fail(self: object, index: int, limit: int, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(archives.Folder, "_read", fail)
        with pytest.raises(Unreadable, match=r"a\.png: cannot be read: "):
            source.read(0)


def test_limits_do_not_hinder_ordinary_data() -> None:
    assert tar.HEADER_LIMIT > 100 * 4096
    assert regular_files.OPEN_ARCHIVES < 128
