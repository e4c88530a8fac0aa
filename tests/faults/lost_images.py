"""Images vanish or break while a run reads them on demand: it says so, tries again, and stops with a checkpoint when many are lost.

The run is paused at a step, the images are damaged, and it goes on. If it stops, the same command must end with the weights of an
undisturbed run when the images are back. If it ends, it must have named the images.
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.harness import MIB, Lab, Problem, paused_at, succeeded
from tests.faults.outcome import differences, outcome
from tests.faults.samples import VERBS, Samples, make_images, prepare_for
from tests.faults.suite import Case


def unlink(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(path: Path) -> None:
    path.write_bytes(b"<html>404 not found</html>" * 20)


def sparse(path: Path) -> None:
    os.truncate(path, 1 << 30)


def itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: tuple[Callable[[Path], None], ...] = (unlink, cut, empty, fifo, dangling, device, folder, text, sparse, itself)


def cases(chance: random.Random) -> Iterator[Case]:
    for damage in DAMAGES:
        share, step = chance.choice((0.1, 0.5, 1.0)), chance.randint(1, 6)
        yield Case(
            f"{damage.__name__}, {share:.0%} of the images, at step {step}", partial(lost, damage, share, step, "images/train")
        )
        yield Case(f"{damage.__name__}, 2 of 240 images", partial(few, damage))
    for damage in (unlink, cut, text):
        yield Case(f"{damage.__name__}, test images, before the evaluation", partial(lost, damage, 0.5, 8, "images/test"))
    for step in (1, 4):
        yield Case(f"the folder is away for half a second at step {step}", partial(away, step, False))
    yield Case("the folder is away for good", partial(away, 3, True))
    for verb in ("finetune", "pack"):
        yield Case(f"{verb}: half of the images vanish", partial(other, verb))
    yield Case("a shard of a pack is cut", partial(in_pack, "cut"))
    yield Case("a shard of a pack vanishes", partial(in_pack, "gone"))


def lost(damage: Callable[[Path], None], share: float, step: int, where: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.start(lab, "on demand")
    command, run = VERBS["on demand"]
    expected = samples.expected("on demand")
    shutil.copytree(lab.folder / "images", lab.home / "whole")
    paths = sorted((lab.folder / where).rglob("*.png"))
    count = max(2, round(share * len(paths)))
    with paused_at(lab, "step", "", step, *command, prepare=prepare_for("on demand"), limits={"DATA": 2 << 30}) as process:
        names = [path.name for path in paths[:count]]
        for path in paths[:count]:
            damage(path)
    result = lab.end(process)
    if result.peak > 400 * MIB:
        yield Problem("memory", f"{result.peak // MIB} MiB above the idle process")
    yield from told(result.code, result.stderr + skipped(lab.folder / run), names, outcome(lab.folder / run), expected)
    if result.code == 1:
        yield from restored(lab, samples)


def few(damage: Callable[[Path], None], lab: Lab, samples: Samples) -> Iterator[Problem]:
    """Less than a hundredth of the images is lost: the run goes on with others, and names the lost ones."""
    shutil.copytree(samples.once("240 images", partial(make_images, counts=(("train", 240), ("test", 8)))), lab.folder / "images")
    paths = sorted((lab.folder / "images/train").rglob("*.png"))[100:102]
    command, run = [*VERBS["on demand"][0], "--epochs", "1"], VERBS["on demand"][1]
    with paused_at(lab, "step", "", 1, *command, prepare=prepare_for("on demand"), limits={"DATA": 2 << 30}) as process:
        for path in paths:
            damage(path)
    result = lab.end(process)
    yield from succeeded(result)
    for path in paths:
        if path.name not in skipped(lab.folder / run):
            yield Problem("silent", f"{path.name} is not named in skipped.txt: {result}")
    if result.code == 0 and not re.search("could not be|cannot be", result.stderr):
        yield Problem("silent", f"nothing was said: {result}")


def told(code: int, text: str, names: Sequence[str], found: dict[str, object], expected: dict[str, object]) -> Iterator[Problem]:
    """Problems if the result is another one and nothing was said about images."""
    if code == 0 and found != expected and not any(name in text for name in names):
        yield Problem("silent", f"the results differ, and no lost image is named: {text[-300:]!r}")
    if code == 1 and "save" not in text and "resume" not in text:
        yield Problem("other", f"the sentence does not say that the run is saved: {text[-300:]!r}")


def skipped(run: Path) -> str:
    file = run / "skipped.txt"
    return file.read_text(errors="replace") if file.exists() else ""


def restored(lab: Lab, samples: Samples) -> Iterator[Problem]:
    """With the images back, the same command must resume, and end as an undisturbed run."""
    command, run = VERBS["on demand"]
    shutil.rmtree(lab.folder / "images")
    shutil.copytree(lab.home / "whole", lab.folder / "images")
    yield from succeeded(lab.run(*command, prepare=prepare_for("on demand")), "resuming from")
    yield from differences(without_skipped(outcome(lab.folder / run)), without_skipped(samples.expected("on demand")))


def without_skipped(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome without the list of unreadable files. It is kept over a resume, since steps before may have met them."""
    results = {key: value for key, value in found["results.json"].items() if key != "skipped"}
    return {key: value for key, value in found.items() if key != "skipped.txt"} | {"results.json": results}


def away(step: int, for_good: bool, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """The folder is moved away, as a network share that hiccups, and comes back after the first failure to read."""
    samples.start(lab, "on demand")
    command, run = VERBS["on demand"]
    shutil.copytree(lab.folder / "images", lab.home / "whole")
    with paused_at(lab, "step", "", step, *command, prepare=prepare_for("on demand")) as process:
        (lab.folder / "images").rename(lab.folder / "away")
    if not for_good:
        process.wait_until(lambda: False, timeout=0.5)
        (lab.folder / "away").rename(lab.folder / "images")
    result = lab.end(process)
    if for_good:
        if result.code != 1:
            yield Problem("silent", f"it ended well without images: {result}")
        (lab.folder / "images").mkdir(exist_ok=True)
        yield from restored(lab, samples)
    else:
        yield from succeeded(result)
        yield from differences(without_skipped(outcome(lab.folder / run)), without_skipped(samples.expected("on demand")))


def other(verb: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """Images vanish while they are read for the first time."""
    if verb == "finetune":
        samples.start(lab, "finetune")
        command = VERBS["finetune"][0]
    else:
        samples.data(lab, "images")
        command = ["pack", "images", "pack"]
    paths = sorted((lab.folder / "images/train").rglob("*.png"))[::2]
    with paused_at(lab, "read", r"\.png$", 30, *command, prepare=("save_always", "on_demand")) as process:
        for path in paths:
            path.unlink()
    result = lab.end(process)
    if result.code == 0:
        text = result.stderr + "".join(path.read_text(errors="replace") for path in lab.folder.rglob("skipped.txt"))
        if not any(path.name in text for path in paths):
            yield Problem("silent", f"no lost image is named: {result}")


def in_pack(damage: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A pack is damaged while a run reads it."""
    shutil.copytree(samples.finished("pack") / "pack", lab.folder / "pack")
    command = ["pretrain", "pack", *VERBS["on demand"][0][2:]]
    shard = lab.folder / "pack/shard-00000.bin"
    with paused_at(lab, "step", "", 3, *command, prepare=prepare_for("on demand")) as process:
        if damage == "cut":
            os.truncate(shard, shard.stat().st_size // 2)
        else:
            shard.rename(lab.home / "shard")
    result = lab.end(process)
    if damage == "gone":
        return  # the shard is open, so nothing is lost
    if result.code == 0 and not any(word in result.stderr for word in ("could not be", "cannot be", "unreadable", "damaged")):
        yield Problem("silent", f"half of the pack is gone, and nothing was said: {result}")
