"""Hostile, odd and broken images and archives as DATA: refused, or left out and named, in bounded memory and time.

The images come from `hostile_images`, and from odd_images of ../shared/data where it is there. Three good images lie beside them.
"""

import os
import random
import re
import socket
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tests.faults.harness import MEMORY_LIMIT, ROOT, TIME_LIMIT, Lab, Problem, Result
from tests.faults.hostile_archives import CANARY, GOOD, archives
from tests.faults.hostile_bytes import GIB, MIB, png
from tests.faults.hostile_images import images
from tests.faults.samples import Samples
from tests.faults.suite import Case

ODD_IMAGES = ROOT.parent / "shared" / "data" / "odd_images" / "odd_images.tar"


def in_folder(name: str, data: Callable[[], bytes]) -> Callable[[Path], str]:
    def build(home: Path) -> str:
        write_good(home)
        path = home / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data())
        return "data"

    return build


def write_good(home: Path) -> None:
    for name, data in GOOD.items():
        (home / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "data" / name).write_bytes(data)


def special_file(name: str, make: Callable[[Path], object]) -> Callable[[Path], str]:
    """A good folder with something that is no regular file, or has an odd name."""

    def build(home: Path) -> str:
        write_good(home)
        make(home / "data" / name)
        return "data"

    return build


def sparse(size: int, head: bytes = b"") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return make


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def deep(path: Path) -> None:
    """A path that is longer than the system's limit, 4,096 bytes."""
    place = os.open(path.parent, os.O_RDONLY)
    for _ in range(700):
        os.mkdir("d" * 5, dir_fd=place)
        inner = os.open("d" * 5, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    with open(os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=place), "wb") as file:
        file.write(png())
    os.close(place)


def many(path: Path) -> None:
    path.mkdir()
    for number in range(3000):
        (path / f"{number}.png").touch()


SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo.png": os.mkfifo,
    "socket.png": listening,
    "zeros.png": lambda path: path.symlink_to("/dev/zero"),
    "random.jpg": lambda path: path.symlink_to("/dev/urandom"),
    "processes": lambda path: path.symlink_to("/proc"),
    "everything": lambda path: path.symlink_to("/"),
    "passwords.png": lambda path: path.symlink_to("/etc/passwd"),
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
    "itself.png": lambda path: path.symlink_to("itself.png"),
    "loop": lambda path: path.symlink_to(".."),
    "folder.png": Path.mkdir,
    "sparse_1_gib.jpg": sparse(GIB),
    "sparse_2_gib.png": sparse(2 * GIB, b"\x89PNG\r\n\x1a\n"),
    "sparse_600_mib.tif": sparse(600 * MIB, b"II*\0\x08\0\0\0"),
    "sparse_without_suffix": sparse(GIB, b"\xff\xd8\xff"),
    "\x1b[31mred\x1b]0;title\x07.png": lambda path: path.write_bytes(b"no image"),
    "[bold][/x].png": lambda path: (path.parent.mkdir(), path.write_bytes(b"no image")),
    "line\nend\ttab.png": lambda path: path.write_bytes(b"no image"),
    os.fsdecode(b"caf\xe9 \xff.png"): lambda path: path.write_bytes(b"no image"),
    "\u202egnp.exe.png": lambda path: path.write_bytes(b"no image"),
    "x" * 250 + ".png": lambda path: path.write_bytes(b"no image"),
    "ddddd": deep,
    "many": many,
    "labels.csv": lambda path: path.write_bytes(b"\xef\xbb\xbffile,label\r\n" + b"a" * MIB + b",1\0\r\n" + b",,,\n" * 1000),
}


def cases(chance: random.Random) -> Iterator[Case]:
    for name, make in images().items():
        yield Case(f"image {name}", partial(hostile, name, in_folder(f"bad/{name}", make)))
    for name, make in SPECIAL.items():
        yield Case(f"file {name!r}", partial(hostile, name, special_file(name, make)))
    for name, build in archives().items():
        yield Case(f"archive {name}", partial(hostile, "", build))
    for place in ("fifo", "device"):
        yield Case(f"DATA is a {place}", partial(no_folder, place))
    if ODD_IMAGES.is_file():
        with tarfile.open(ODD_IMAGES) as table:
            odd = sorted(member.name for member in table if member.isreg() and "LICEN" not in member.name.upper())
        for name in odd:
            yield Case(f"odd image {name}", partial(hostile, Path(name).name, partial(odd_image, name)))


def odd_image(name: str, home: Path) -> str:
    with tarfile.open(ODD_IMAGES) as table:
        member = table.extractfile(name)
        assert member is not None
        return in_folder(f"bad/{Path(name).name}", member.read)(home)


def hostile(name: str, build: Callable[[Path], str], lab: Lab, samples: Samples) -> Iterator[Problem]:
    """Writes the features of DATA. A good image must be in the table, and any other one in the table or in a sentence."""
    data = build(lab.folder)
    run = samples.finished("pretrain") / "run"
    limits = {"DATA": 4 * GIB} | ({"NOFILE": 256} if "{" in data else {})
    result = lab.run("embed", run, data, "--out", "e.npz", limits=limits, timeout=60)
    yield from bounded(result)
    for escape in ("\x1b", "\x07", "\u202e"):
        if escape in result.stderr + result.stdout:
            yield Problem("other", f"{escape!r} reaches the terminal")
    if result.code == 0:
        paths = [str(path) for path in np.load(lab.folder / "e.npz", allow_pickle=False)["path"]]
        told = result.stderr + "".join(path.read_text(errors="replace") for path in lab.folder.glob("*skipped*"))
        if data == "data":
            missing = [each for each in GOOD if each not in paths]
            if missing:
                yield Problem("silent", f"{missing[0]} is not in the table")
        shown = re.sub(r"[^a-z0-9]", "", name.encode("ascii", "ignore").decode().lower())
        where = re.sub(r"\\(x..|u....|[nrt])|[^a-z0-9]", "", " ".join([*paths, told]).lower())
        if shown and shown[:40] not in where and name not in ("labels.csv", "folder.png", "loop"):
            yield Problem("silent", f"{name!r} is neither in the table nor in a sentence: {result}")
    if CANARY.exists():
        yield Problem("code", f"a member of an archive was written to {CANARY}")


def bounded(result: Result) -> Iterator[Problem]:
    if result.peak > MEMORY_LIMIT:
        yield Problem("memory", f"{result.peak // MIB} MiB above the idle process")
    if result.cpu > TIME_LIMIT:
        yield Problem("time", f"{result.cpu:.1f} s of CPU time")
    if result.code == 2:
        yield Problem("other", f"{result}")


def no_folder(place: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """DATA itself is no regular file."""
    path = Path("/dev/zero") if place == "device" else lab.folder / "data"
    if place == "fifo":
        os.mkfifo(path)
    for verb in ("pretrain", "embed"):
        words = ["pretrain", path, "--out", "run"] if verb == "pretrain" else ["embed", path, path, "--out", "e.npz"]
        result = lab.run(*words, timeout=30)
        yield from bounded(result)
        if result.code == 0:
            yield Problem("silent", f"{path} was taken for data")
