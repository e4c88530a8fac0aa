"""The disk is full, at once or from some moment on: a sentence names a file, and the same command succeeds when there is room.

Where this user may mount one, the disk is a small tmpfs, filled by another file. Elsewhere each file is limited to some bytes
(RLIMIT_FSIZE), which fails in the same calls.
"""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial

from tests.faults.harness import MIB, Lab, Problem, Result, Trigger, remove
from tests.faults.outcome import differences, leftovers, outcome, tensors
from tests.faults.samples import COMPARE, PACK, STUDY, VERBS, Samples, prepare_for
from tests.faults.suite import Case

WORDS = ("disk", "space", "full", "large")
SMALL = {
    "probe": ("pretrain", "probe run --out probe".split(), "probe"),
    "embed npz": ("pretrain", "embed run images --out e.npz".split(), "e.npz"),
    "embed parquet": ("pretrain", "embed run images --out e.parquet".split(), "e.parquet"),
    "reconstruct": ("pretrain", "reconstruct run images --out figure.png".split(), "figure.png"),
    "report": ("pretrain", "report run".split(), "run/report.html"),
    "plan": ("", "plan images --model vit-nano --image-size 16 --seconds 1 --out run".split(), "run/plan.json"),
    "pack": ("", PACK, "pack"),
    "compare": ("", COMPARE, "runs"),
    "study": ("", STUDY, "runs"),
    **{
        f"export to {to}": ("pretrain", f"export run --to {to} --out exported".split(), "exported")
        for to in ("timm", "mae", "safetensors", "onnx", "transformers")
    },
}
"""Commands, what they need, and what they write."""


def cases(chance: random.Random) -> Iterator[Case]:
    for verb in ("pretrain", "finetune", "translate", "bert"):
        for share in (0.0, chance.random(), chance.random()):
            yield Case(f"{verb}, full from {share:.3f} of the run on", partial(full, verb, *VERBS[verb], "", share))
    for name, (needs, command, out) in SMALL.items():
        yield Case(f"{name}, full at once", partial(full, name, command, out, needs, 0.0))
    for name in ("pack", "compare", "study", "probe"):
        needs, command, out = SMALL[name]
        share = 0.2 + 0.6 * chance.random()
        yield Case(f"{name}, full from {share:.3f} of the run on", partial(full, name, command, out, needs, share))


@cache
def may_mount() -> bool:
    """Whether this user may mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


def full(name: str, command: Sequence[str], out: str, needs: str, share: float, lab: Lab, samples: Samples) -> Iterator[Problem]:
    prepare = prepare_for(name)
    disk = Disk(lab)
    try:
        if name in VERBS:
            samples.start(lab, name)
        elif needs:
            samples.copy(lab, needs)
        else:
            samples.data(lab, "images")
        before = set(lab.folder.rglob("*"))
        result = run_when_full(lab, samples, disk, name, command, needs, share, prepare)
        if result is None:
            return
        if result.code == 0:  # nothing had to be written after that moment
            lost = complete(lab, samples, name, out)
            yield from (Problem("silent", f"it ended well on a full disk, and {problem.text}") for problem in lost)
        else:
            yield from told(result)
        disk.make_room()
        again = lab.run(*command, prepare=prepare)
        if again.code:
            yield Problem("other", f"with room again: {again}")
        else:
            yield from complete(lab, samples, name, out)
        yield from leftovers(lab.folder)
        gone = [path for path in before if not path.exists() and "checkpoints" not in path.parts and not path.name.startswith(".")]
        if gone:
            yield Problem("other", f"it removed {gone[0].relative_to(lab.folder)}")
    finally:
        disk.close()


def complete(lab: Lab, samples: Samples, name: str, out: str) -> Iterator[Problem]:
    """Problems unless everything that the command writes is there."""
    path = lab.folder / out
    if not path.exists():
        yield Problem("other", f"{out} is missing")
    elif name in VERBS:
        yield from differences(outcome(path), samples.expected(name))
    elif path.suffix == ".safetensors":
        tensors(path)
    elif name in ("pack", "compare", "study"):
        last = {"pack": "unveil-pack.json", "compare": "report.html", "study": "report.html"}[name]
        if not any(path.rglob(last)):
            yield Problem("other", f"{out} has no {last}")


def run_when_full(
    lab: Lab, samples: Samples, disk: "Disk", name: str, command: Sequence[str], needs: str, share: float, prepare: Sequence[str]
) -> Result | None:
    """Runs a command whose disk is full at once, or from a moment on."""
    if not disk.mounted:
        return lab.run(*command, prepare=prepare, limits={"FSIZE": int(share * 4 * MIB) + 100})
    if not share:
        disk.fill()
        return lab.run(*command, prepare=prepare)
    writes = len(samples.writes(name, command, "" if name in VERBS else needs))
    shutil.copytree(lab.folder, lab.home / "before")
    for factor in (1.0, 0.7, 0.4):  # a run that saves less often has fewer such moments
        moment = Trigger("write", "", 1 + int(factor * share * writes), "SIGSTOP")
        process = lab.start(*command, prepare=prepare, triggers=[moment])
        if process.paused():
            disk.fill()
            process.resume()
            return lab.end(process)
        lab.end(process)
        for path in lab.folder.iterdir():
            remove(path)
        shutil.copytree(lab.home / "before", lab.folder, dirs_exist_ok=True)
    raise AssertionError("the moment never came")


def told(result: Result) -> Iterator[Problem]:
    """Problems unless the sentence names the disk, and a file or folder."""
    if result.code == 1:
        sentence = result.stderr[result.stderr.rfind("unveil: ") :]
        if not any(word in sentence for word in WORDS):
            yield Problem("other", f"the sentence is not about the disk: {sentence.strip()[:300]!r}")
        elif not any(word in sentence for word in ("run", "tuned", "pack", "probe", "e.npz", "e.parquet", "figure", "exported")):
            yield Problem("other", f"the sentence names no file or folder: {sentence.strip()[:300]!r}")
    else:
        yield Problem("other", f"expected exit code 1: {result}")


class Disk:
    """The folder of a case as a disk of its own, which can be filled."""

    def __init__(self, lab: Lab, size: int = 256 * MIB) -> None:
        self.folder, self.mounted = lab.folder, may_mount()
        self._filler = self.folder / ".filler"
        if self.mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder)], check=True)

    def fill(self) -> None:
        """Takes all the room that is left."""
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            while True:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), os.statvfs(self.folder).f_bavail * 4096 or 4096)
                    file.seek(0, os.SEEK_END)
                except OSError as error:
                    if error.errno != errno.ENOSPC or os.statvfs(self.folder).f_bavail == 0:
                        raise

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self.mounted = False
