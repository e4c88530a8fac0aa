"""Data or options change between a stop and the resume: refused by name, or harmless and with the results of an unchanged run."""

import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tests.faults.byte_flips import stopped
from tests.faults.harness import Lab, Problem, refused, succeeded
from tests.faults.outcome import differences, outcome
from tests.faults.samples import PRETRAIN, Samples, prepare_for
from tests.faults.suite import Case

Change = Callable[[Path], None]


def nothing(work: Path) -> None:
    """The options change, the files do not."""


def images(work: Path, split: str = "train") -> list[Path]:
    return sorted((work / "images" / split).rglob("*.png"))


def other_image(path: Path, same_size: bool = True) -> None:
    """Replaces an image by another one, of the same number of bytes if asked to (a chunk of text fills it up)."""
    size, status = path.stat().st_size, path.stat()
    Image.fromarray(np.full((20, 20, 3), len(path.name) * 7 % 255, dtype=np.uint8)).save(path)
    raw = path.read_bytes()
    if same_size:
        from tests.faults.hostile_bytes import chunk

        room = size - len(raw) - 12
        path.write_bytes(raw[:33] + chunk(b"tEXt", b"a\0".ljust(room, b"x")) + raw[33:])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(work: Path) -> None:
    for path in images(work):
        os.utime(path, (1, 1))


def moved(work: Path) -> None:
    (work / "images").rename(work / "elsewhere")


def linked(work: Path) -> None:
    (work / "images").rename(work / "elsewhere")
    (work / "images").symlink_to("elsewhere")


def copied(work: Path) -> None:
    shutil.copytree(work / "images", work / "copy", copy_function=shutil.copy)
    shutil.rmtree(work / "images")
    (work / "copy").rename(work / "images")


def as_tar(work: Path) -> None:
    with tarfile.open(work / "images.tar", "w") as table:
        for split in ("test", "train"):
            table.add(work / "images" / split, split)


def replaced(count: int, split: str = "train", same_size: bool = True) -> Change:
    def change(work: Path) -> None:
        for path in images(work, split)[:count]:
            other_image(path, same_size)

    return change


def run_moved(work: Path) -> None:
    (work / "run").rename(work / "run2")


@dataclass(frozen=True)
class Changed:
    name: str
    change: Change
    options: Sequence[str]
    """Words that replace or follow those of the command."""
    expected: Literal["equal", "weights", "refused", "either"]
    words: Sequence[str] = ()
    """What a refusal must name."""


def with_data(data: str) -> list[str]:
    return ["pretrain", data, *PRETRAIN[2:]]


def with_option(*words: str) -> list[str]:
    return [*PRETRAIN, *words]


CHANGES = (
    Changed("the name ends in a slash", nothing, with_data("images/"), "equal"),
    Changed("the name begins with ./", nothing, with_data("./images"), "equal"),
    Changed("an absolute path", nothing, with_data("{work}/images"), "equal"),
    Changed("a path with ..", nothing, with_data("images/../images"), "equal"),
    Changed("the folder was moved", moved, with_data("elsewhere"), "equal"),
    Changed("the folder is a link", linked, PRETRAIN, "equal"),
    Changed("a copy without times", copied, PRETRAIN, "equal"),
    Changed("the files were touched", touch, PRETRAIN, "equal"),
    Changed("a hidden file more", lambda work: void((work / "images/.DS_Store").write_bytes(b"x")), PRETRAIN, "equal"),
    Changed("a text file more", lambda work: void((work / "images/notes.txt").write_text("x")), PRETRAIN, "weights"),
    Changed(
        "an image more",
        lambda work: void(shutil.copy(images(work)[0], work / "images/train/a/zzz.png")),
        PRETRAIN,
        "refused",
        ("data",),
    ),
    Changed("an image less", lambda work: images(work)[3].unlink(), PRETRAIN, "refused", ("data",)),
    Changed(
        "an image renamed",
        lambda work: void(images(work)[3].rename(images(work)[3].with_name("zzz.png"))),
        PRETRAIN,
        "refused",
        ("data",),
    ),
    Changed("an image of another size", replaced(1, same_size=False), PRETRAIN, "refused", ("data",)),
    Changed("all images replaced, same sizes", replaced(24), PRETRAIN, "refused", ("data",)),
    Changed("half of the images replaced, same sizes", replaced(12), PRETRAIN, "refused", ("data",)),
    Changed("one image replaced, same size", replaced(1), PRETRAIN, "refused", ("data",)),
    Changed("all test images replaced, same sizes", replaced(8, "test"), PRETRAIN, "refused", ("data",)),
    Changed("one test image replaced, same size", replaced(1, "test"), PRETRAIN, "refused", ("data",)),
    Changed(
        "an image in another class",
        lambda work: void(images(work)[0].rename(work / "images/train/b/zzz.png")),
        PRETRAIN,
        "refused",
        ("data",),
    ),
    Changed(
        "a class renamed",
        lambda work: void((work / "images/train/a").rename(work / "images/train/c")),
        PRETRAIN,
        "refused",
        ("data",),
    ),
    Changed("no test images any more", lambda work: shutil.rmtree(work / "images/test"), PRETRAIN, "refused", ("data",)),
    Changed(
        "labels.csv was added",
        lambda work: void((work / "images/labels.csv").write_text("file,label\ntrain/a/000.png,x\n")),
        PRETRAIN,
        "refused",
        ("data",),
    ),
    Changed("a tar of the same images", as_tar, with_data("images.tar"), "either", ("data",)),
    Changed("no images any more", lambda work: shutil.rmtree(work / "images"), PRETRAIN, "refused", ("images",)),
    Changed("more epochs", nothing, with_option("--epochs", "4"), "refused", ("epochs",)),
    Changed("another batch size", nothing, with_option("--batch-size", "4"), "refused", ("batch_size",)),
    Changed("another seed", nothing, with_option("--seed", "1"), "refused", ("seed",)),
    Changed("another learning rate", nothing, with_option("--base-lr", "0.5"), "refused", ("base_lr",)),
    Changed("another mask ratio", nothing, with_option("--mask-ratio", "0.5"), "refused", ("mask_ratio",)),
    Changed("another method", nothing, with_option("--method", "simmim"), "refused", ("method",)),
    Changed("another image size", nothing, with_option("--image-size", "20"), "refused", ("image_size",)),
    Changed("another model", nothing, with_option("--model", "vit-tiny"), "refused", ("model",)),
    Changed("no flips", nothing, with_option("--no-flip"), "refused", ("flip",)),
    Changed("another precision", nothing, with_option("--precision", "bfloat16"), "refused", ("precision",)),
    Changed("another number of log lines", nothing, with_option("--log-every", "3"), "weights"),
    Changed("more evaluations", nothing, with_option("--num-evals", "3"), "weights"),
    Changed("fewer checkpoints", nothing, with_option("--keep-checkpoints", "1"), "weights"),
    Changed("other seconds between checkpoints", nothing, with_option("--save-seconds", "50"), "weights"),
    Changed("a device", nothing, with_option("--device", "cpu"), "weights"),
    Changed("the run folder was renamed", run_moved, [*PRETRAIN[:-1], "run2"], "equal"),
    Changed("another command", nothing, ["finetune", "images", "images", "--out", "run"], "refused", ()),
)


def void(value: object) -> None:
    """Drops a value."""


def cases(chance: random.Random) -> Iterator[Case]:
    for each in CHANGES:
        yield Case(each.name, partial(changed, each))


def changed(each: Changed, lab: Lab, samples: Samples) -> Iterator[Problem]:
    shutil.copytree(samples.once("stopped", partial(stopped, "pretrain", samples)), lab.folder, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (lab.folder / "run").rglob("*.safetensors")}
    each.change(lab.folder)
    words = [word.replace("{work}", str(lab.folder)) for word in each.options]
    result = lab.run(*words, prepare=prepare_for("pretrain"))
    if each.expected == "refused" or (each.expected == "either" and result.code):
        yield from refused(result, *each.words)
        after = {path: path.stat().st_mtime_ns for path in (lab.folder / "run").rglob("*.safetensors")}
        if result.code and after != before:
            yield Problem("other", "a refused command changed the run folder")
        return
    yield from succeeded(result, "resuming from")
    if result.code == 0:
        found, expected = outcome(lab.folder / words[words.index("--out") + 1]), samples.expected("pretrain")
        if each.expected == "weights":
            found, expected = ({key: value for key, value in each.items() if "safetensors" in key} for each in (found, expected))
        yield from differences(found, expected)
