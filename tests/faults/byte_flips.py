"""One bit of a file is flipped: the file is refused or left out with a sentence, or the output is the same, byte for byte."""

import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.harness import Lab, Problem, Result, Trigger
from tests.faults.outcome import numbers_shown, outcome
from tests.faults.samples import FINETUNE, PRETRAIN, TRANSLATE, VERBS, Samples, prepare_for
from tests.faults.suite import Case

Product = Callable[[Lab, Result], Any]


def file(name: str) -> Product:
    """The bytes of a file that the command writes."""
    return lambda lab, result: (lab.folder / name).read_bytes() if (lab.folder / name).exists() else None


def page(name: str) -> Product:
    """The text of a page without times."""
    times = re.compile(r"[\d.,]+(&#160;| )s\b|\d{4}-\d\d-\d\dT[\d:+-]+")
    return lambda lab, result: times.sub("", (lab.folder / name).read_text()) if (lab.folder / name).exists() else None


def shown(lab: Lab, result: Result) -> str:
    return numbers_shown(result.stdout)


def run_folder(name: str) -> Product:
    return lambda lab, result: outcome(lab.folder / name)


@dataclass(frozen=True)
class Target:
    """A kind of file, and a command that reads it."""

    sample: str
    path: str
    """The file; a star stands for one name."""
    command: Sequence[str]
    product: Product
    count: int
    head: int = 0
    """Flip one of the first bytes only."""


EMBED = "embed run images --out e.npz".split()
FROM_FILE = "embed run/encoder.safetensors images --out e.npz".split()
REPORT, PROBE = "report run".split(), "probe run --out probe".split()
FROM_PACK, VERIFY = "embed run pack --out e.npz".split(), "pack pack --verify".split()
DRAW, EXPORT = "reconstruct run images --out f.png".split(), "export run --to safetensors --out x.safetensors".split()
PREDICT = "predict tuned images --out p.csv".split()
SENTENCE = ["translate", "run", "run", "the dog sees a cat", "a man"]
TARGETS = (
    Target("pretrain", "run/model.safetensors", EMBED, file("e.npz"), 60),
    Target("pretrain", "run/model.safetensors", EMBED, file("e.npz"), 20, head=9000),
    Target("pretrain", "run/model.safetensors", DRAW, file("f.png"), 10),
    Target("pretrain", "run/model.safetensors", EXPORT, file("x.safetensors"), 10),
    Target("pretrain", "run/model.safetensors", FINETUNE, run_folder("tuned"), 10),
    Target("pretrain", "run/encoder.safetensors", FROM_FILE, file("e.npz"), 25),
    Target("pretrain", "run/encoder.safetensors", FROM_FILE, file("e.npz"), 10, head=9000),
    Target("pretrain", "run/config.json", EMBED, file("e.npz"), 60),
    Target("pretrain", "run/run.json", REPORT, page("run/report.html"), 20),
    Target("pretrain", "run/results.json", REPORT, page("run/report.html"), 20),
    Target("pretrain", "run/log.jsonl", REPORT, page("run/report.html"), 20),
    Target("pretrain", "run/samples.npz", REPORT, page("run/report.html"), 15),
    Target("pretrain", "run/config.json", REPORT, page("run/report.html"), 10),
    Target("pretrain", "run/results.json", PRETRAIN, shown, 10),
    Target("stopped", "run/checkpoints/step-00000005/model.safetensors", PRETRAIN, run_folder("run"), 15),
    Target("stopped", "run/checkpoints/step-00000005/optimizer.safetensors", PRETRAIN, run_folder("run"), 15),
    Target("stopped", "run/checkpoints/step-00000005/manifest.json", PRETRAIN, run_folder("run"), 20),
    Target("stopped", "run/checkpoints/step-00000004/model.safetensors", PRETRAIN, run_folder("run"), 5),
    Target("stopped", "run/checkpoints/step-00000005/model.safetensors", EMBED, file("e.npz"), 10),
    Target("stopped", "run/run.json", PRETRAIN, run_folder("run"), 20),
    Target("stopped", "run/log.jsonl", PRETRAIN, run_folder("run"), 10),
    Target("stopped", "run/config.json", PRETRAIN, run_folder("run"), 10),
    Target("packed", "pack/shard-00000.bin", FROM_PACK, file("e.npz"), 25),
    Target("packed", "pack/index.safetensors", FROM_PACK, file("e.npz"), 25),
    Target("packed", "pack/unveil-pack.json", FROM_PACK, file("e.npz"), 15),
    Target("packed", "pack/shard-00000.bin", VERIFY, shown, 10),
    Target("translate", "run/model.safetensors", SENTENCE, shown, 15),
    Target("translate", "run/config.json", SENTENCE, shown, 10),
    Target("translate", "run/subwords.json", SENTENCE, shown, 10),
    Target("translate stopped", "run/subwords.json", TRANSLATE, run_folder("run"), 5),
    Target("tuned", "tuned/model.safetensors", "embed tuned images --out e.npz".split(), file("e.npz"), 10),
    Target("tuned", "tuned/model.safetensors", PREDICT, file("p.csv"), 10),
    Target("pretrain", "run/map.npz", REPORT, page("run/report.html"), 15),
    Target("probe", "probe/model.safetensors", "predict probe images --out p.csv".split(), file("p.csv"), 10),
    Target("finetune stopped", "tuned/best/*/model.safetensors", FINETUNE, run_folder("tuned"), 10),
    Target("finetune stopped", "tuned/best/*/manifest.json", FINETUNE, run_folder("tuned"), 10),
    Target("finetune stopped", "tuned/probe.safetensors", FINETUNE, run_folder("tuned"), 10),
    Target("to timm", "exported/model.safetensors", "embed exported images --out e.npz".split(), file("e.npz"), 10),
    Target("to timm", "exported/config.json", "embed exported images --out e.npz".split(), file("e.npz"), 5),
    Target("to mae", "exported", "embed exported images --out e.npz".split(), file("e.npz"), 10),
)


def cases(chance: random.Random) -> Iterator[Case]:
    found = []
    for target in TARGETS:
        for _ in range(target.count):
            place, bit = chance.random(), chance.randrange(8)
            name = (
                f"{target.path} at {place:.6f}, bit {bit}{' of its head' * bool(target.head)}, {target.sample}, {target.command[0]}"
            )
            found.append(Case(name, partial(flipped, target, place, bit)))
    chance.shuffle(found)
    yield from found


def sample(name: str, samples: Samples) -> Path:
    """The folder of a sample."""
    if name.endswith("stopped"):
        verb = name.removesuffix("stopped").strip() or "pretrain"
        return Path(samples.once(name, partial(stopped, verb, samples)))
    if name == "packed":
        return Path(samples.once(name, partial(packed, samples)))
    return samples.finished("finetune" if name == "tuned" else name)


def stopped(verb: str, samples: Samples, folder: Path) -> Path:
    """A run that was stopped after five steps."""
    lab = samples.lab(folder)
    samples.start(lab, verb)
    lab.run(*VERBS[verb][0], prepare=prepare_for(verb), triggers=[Trigger("step", "", 5, "SIGTERM")])
    assert not (lab.folder / VERBS[verb][1] / "results.json").exists()
    return lab.folder


def packed(samples: Samples, folder: Path) -> Path:
    """A run and a pack in one folder."""
    shutil.copytree(samples.finished("pretrain"), folder)
    shutil.copytree(samples.finished("pack") / "pack", folder / "pack")
    return folder


def clean(target: Target, samples: Samples) -> tuple[Result, Any]:
    """What the command does with whole files."""

    def make(folder: Path) -> tuple[Result, Any]:
        lab = samples.lab(folder)
        if target.sample == "new":
            samples.data(lab, "images")
        else:
            shutil.copytree(sample(target.sample, samples), lab.folder, dirs_exist_ok=True)
        result = lab.run(*target.command, prepare=prepare_for("pretrain"))
        assert result.code == 0, result
        return result, target.product(lab, result)

    found: tuple[Result, Any] = samples.once(f"clean {target.sample} {' '.join(target.command)}", make)
    return found


def flipped(target: Target, place: float, bit: int, lab: Lab, samples: Samples) -> Iterator[Problem]:
    shutil.copytree(sample(target.sample, samples), lab.folder, dirs_exist_ok=True)
    path = next(lab.folder.glob(target.path))
    raw = bytearray(path.read_bytes())
    raw[int(place * (target.head or len(raw)))] ^= 1 << bit
    path.write_bytes(raw)
    yield from judged(target, lab, samples, target.path.split("/"))


def judged(target: Target, lab: Lab, samples: Samples, names: Sequence[str]) -> Iterator[Problem]:
    """Runs the command on damaged files, and compares it with one on whole files."""
    expected, product = clean(target, samples)
    result = lab.run(*target.command, prepare=prepare_for("pretrain"))
    if result.code == 0:
        found = None
        try:
            found = target.product(lab, result)
        except (ValueError, KeyError) as error:  # such as a log that is damaged still
            yield Problem("silent", f"what it left is damaged: {type(error).__name__}: {error}")
        if found != product and not warnings(result, expected) and not on_page(found, product):
            yield Problem("silent", f"the output differs, and nothing was said: {result}")
    elif result.code in (1, 2) and not any(name in result.stderr for name in names if len(name) > 2):
        yield Problem("other", f"the sentence does not name the file: {result}")


def on_page(found: Any, expected: Any) -> bool:
    """Whether a page says that something is damaged, which the page of whole files does not say."""
    if not (isinstance(found, str) and isinstance(expected, str)):
        return False
    return any(found.count(word) > expected.count(word) for word in ("damaged", "Not shown", "cannot be read"))


def warnings(result: Result, expected: Result) -> list[str]:
    """Lines on stderr that a run on whole files does not print."""

    def lines(each: Result) -> set[str]:
        return {re.sub(r"\d+([.,]\d+)*", "#", line) for line in numbers_shown(each.stderr).splitlines()}

    return sorted(lines(result) - lines(expected))
