"""Data, runs and exports to damage. Each is made once per suite, and copied into the folder of a case."""

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.harness import Lab, Result, Server, Trigger
from tests.faults.outcome import outcome

TINY = "--model vit-nano --image-size 16 --patch-size 4 --precision float32".split()
STEPS = "--batch-size 8 --epochs 3 --log-every 2 --num-evals 1 --save-seconds 0.001".split()
PRETRAIN = ["pretrain", "images", *TINY, *STEPS, "--out", "run"]
"""9 steps on 24 images, with a checkpoint after each step if `save_always` is prepared."""
FINETUNE = [*"finetune run images --batch-size 8 --epochs 3 --log-every 2 --num-evals 3 --save-seconds 0.001".split()]
FINETUNE += "--validation 0.25 --precision float32 --out tuned".split()
"""6 steps on 18 images; 6 more choose the best weights."""
TRANSLATE = (
    "translate train pairs --model nano --vocabulary-size 300 --source en --target de --batch-size 16 --epochs 2 --log-every 2 "
    "--num-evals 1 --save-seconds 0.001 --precision float32 --out run"
).split()
BERT = [
    *"pretrain texts --method bert --model bert-nano --max-length 12 --precision float32 --out run".split(),
    *"--batch-size 16 --epochs 3 --log-every 2 --num-evals 1 --save-seconds 0.001".split(),
]
COMPARE = ["compare", "mae,simmim", "images", *TINY, *STEPS, "--seeds", "0", "--no-with-finetune", "--out", "runs"]
STUDY = ["study", "mask_ratio=0.5,0.75", "images", *TINY, *STEPS, "--seeds", "0", "--no-with-finetune", "--out", "runs"]
PACK = "pack images pack".split()
VERBS = {
    "pretrain": (PRETRAIN, "run"),
    "on demand": (PRETRAIN, "run"),
    "finetune": (FINETUNE, "tuned"),
    "translate": (TRANSLATE, "run"),
    "bert": (BERT, "run"),
}
"""Commands that train, and their run folders."""
WAITS = ("save_always",)


def prepare_for(verb: str) -> tuple[str, ...]:
    return (*WAITS, "on_demand") if verb == "on demand" else WAITS


def make_images(folder: Path, counts: Sequence[tuple[str, int]] = (("train", 24), ("test", 8)), seed: int = 0) -> Path:
    """Noise in two classes that differ in colour, as PNG files in class folders in split folders."""
    chance = np.random.default_rng(seed)
    for split, count in counts:
        for number in range(count):
            pixels = chance.integers(0, 120, (20, 20, 3), dtype=np.uint8)
            pixels[..., number % 2] += 100
            file = folder / split / "ab"[number % 2] / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return folder


def make_pairs(folder: Path) -> Path:
    words = {"en": "a the dog cat man sees hears and".split(), "de": "ein der Hund Katze Mann sieht hört und".split()}
    chance = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in (("train", 48), ("val", 6), ("test", 6)):
        rows = [[chance.randrange(8) for _ in range(chance.randint(1, 7))] for _ in range(count)]
        for language, vocabulary in words.items():
            lines = [" ".join(vocabulary[word] for word in row) for row in rows]
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_texts(folder: Path) -> Path:
    chance = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in (("train", 60), ("test", 12)):
        things = [chance.choice("red green blue cold warm mild".split()) for _ in range(count)]
        (folder / f"{name}.tsv").write_text("".join(f"the {word} thing is here .\t{len(word) % 2}\n" for word in things))
    return folder


class Samples:
    """Makes samples on demand; safe to use from several threads."""

    def __init__(self, server: Server, home: Path) -> None:
        self._server, self._home = server, home
        self._made: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def once(self, name: str, make: Callable[[Path], Any]) -> Any:
        """The result of `make(folder)`, which is called once for each name."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._made:
                self._made[name] = make(self._home / name.replace(" ", "-").replace("/", "-"))
            return self._made[name]

    def data(self, lab: Lab, *names: str) -> None:
        """Copies data into the folder of a case, with its times: "images", "pairs" or "texts"."""
        makers = {"images": make_images, "pairs": make_pairs, "texts": make_texts}
        for name in names:
            shutil.copytree(self.once(name, makers[name]), lab.folder / name)

    def lab(self, folder: Path) -> Lab:
        return Lab(self._server, folder)

    def made(self, name: str, *commands: Sequence[str], data: Sequence[str] = ("images",), needs: str = "") -> Path:
        """The folder in which some commands have run to their end."""

        def make(folder: Path) -> Path:
            lab = self.lab(folder)
            if needs:
                shutil.copytree(self.finished(needs), lab.folder, dirs_exist_ok=True)
            else:
                self.data(lab, *data)
            for command in commands:
                result = lab.run(*command, prepare=prepare_for(name))
                if result.code:
                    raise AssertionError(f"{' '.join(command)} failed: {result.stderr[-2000:]}")
            self._made[f"{name} results"] = lab.results
            return lab.folder

        return Path(self.once(name, make))

    def finished(self, verb: str) -> Path:
        """The folder with the data and the finished run of one of `VERBS`, or with a "pack", exports, a comparison or a study."""
        others: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
            "pack": (PACK, ("images",), ""),
            "compare": (COMPARE, ("images",), ""),
            "study": (STUDY, ("images",), ""),
            "probe": (["probe", "run", "--out", "probe"], (), "pretrain"),
            **{
                f"to {to}": (["export", "run", "--to", to, "--out", "exported"], (), "pretrain")
                for to in ("timm", "mae", "safetensors", "onnx")
            },
        }
        if verb in VERBS:
            data = {"translate": "pairs", "bert": "texts"}.get(verb, "images")
            return self.made(verb, VERBS[verb][0], data=(data,), needs="pretrain" if verb == "finetune" else "")
        command, names, needs = others[verb]
        return self.made(verb, command, data=names, needs=needs)

    def start(self, lab: Lab, verb: str) -> None:
        """Copies what a command of `VERBS` needs into the folder of a case."""
        if verb == "finetune":
            self.copy(lab, "pretrain")
        else:
            self.data(lab, {"translate": "pairs", "bert": "texts"}.get(verb, "images"))

    def copy(self, lab: Lab, verb: str) -> None:
        """Copies a finished folder into the folder of a case."""
        shutil.copytree(self.finished(verb), lab.folder, dirs_exist_ok=True, symlinks=True)

    def result(self, verb: str) -> Result:
        """What the last command of a finished folder printed."""
        self.finished(verb)
        result: Result = self._made[f"{verb} results"][-1]
        return result

    def expected(self, verb: str) -> dict[str, Any]:
        """The outcome of an undisturbed run."""
        found: dict[str, Any] = self.once(f"outcome of {verb}", lambda folder: outcome(self.finished(verb) / VERBS[verb][1]))
        return found

    def writes(self, verb: str, argv: Sequence[str] = (), needs: str = "") -> list[str]:
        """What an undisturbed run does to files, in order: "os.rename run/run.json", ..."""

        def make(folder: Path) -> list[str]:
            lab, log = self.lab(folder), folder / "writes"
            if needs:
                self.copy(lab, needs)
            else:
                self.start(lab, verb)
            lab.run(*(argv or VERBS[verb][0]), triggers=[Trigger("write", "", 0, f"log {log}")], prepare=prepare_for(verb))
            return log.read_text(errors="surrogateescape").splitlines()

        found: list[str] = self.once(f"writes of {verb}", make)
        return found
