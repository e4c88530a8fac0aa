"""JSON of another type, cut, binary, empty or deeply nested, in any file of a run folder, an export or a pack: one sentence."""

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.byte_flips import (
    DRAW,
    EMBED,
    FROM_FILE,
    FROM_PACK,
    REPORT,
    SENTENCE,
    Target,
    file,
    judged,
    page,
    run_folder,
    sample,
    shown,
)
from tests.faults.harness import Lab, Problem
from tests.faults.samples import COMPARE, PRETRAIN, TRANSLATE, Samples
from tests.faults.suite import Case

NESTED = 200_000
TEXTS: dict[str, bytes] = {
    "an array": b"[]",
    "a number": b"3",
    "null": b"null",
    "a string": b'"x"',
    "true": b"true",
    "parts of other types": b'{"config": [], "data": 3, "kind": 1, "format": "x", "encoder": 4, "files": 5, "step": "a"}',
    "an empty object": b"{}",
    "nothing": b"",
    "brackets": b"[" * NESTED,
    "nested objects": b'{"a":' * NESTED + b"1" + b"}" * NESTED,
    "bytes": bytes(range(128, 256)) * 4,
    "zeros": bytes(500),
    "a long number": b"1" * 10_000,
    "NaN": b"NaN",
    "UTF-16": '{"config": {}}'.encode("utf-16"),
    "cut": b"",  # the first half of the file
    "a mark": b"\xef\xbb\xbf",  # the file after a byte order mark, as some editors write it
    "other types": b"",  # the file, with each value replaced by one of another type
}
FILES: dict[str, Target] = {
    "run.json, report": Target("pretrain", "run/run.json", REPORT, page("run/report.html"), 0),
    "run.json, resume": Target("stopped", "run/run.json", PRETRAIN, run_folder("run"), 0),
    "results.json, report": Target("pretrain", "run/results.json", REPORT, page("run/report.html"), 0),
    "results.json, resume": Target("stopped", "run/results.json", PRETRAIN, run_folder("run"), 0),
    "log.jsonl, report": Target("pretrain", "run/log.jsonl", REPORT, page("run/report.html"), 0),
    "log.jsonl, resume": Target("stopped", "run/log.jsonl", PRETRAIN, run_folder("run"), 0),
    "config.json, embed": Target("pretrain", "run/config.json", EMBED, file("e.npz"), 0),
    "config.json, reconstruct": Target("pretrain", "run/config.json", DRAW, file("f.png"), 0),
    "config.json, translate": Target("translate", "run/config.json", SENTENCE, shown, 0),
    "subwords.json, translate": Target("translate", "run/subwords.json", SENTENCE, shown, 0),
    "manifest.json, resume": Target("stopped", "run/checkpoints/step-00000005/manifest.json", PRETRAIN, run_folder("run"), 0),
    "manifest.json, embed": Target("stopped", "run/checkpoints/step-00000005/manifest.json", EMBED, file("e.npz"), 0),
    "a header, embed": Target("pretrain", "run/encoder.safetensors", FROM_FILE, file("e.npz"), 0),
    "a pack, embed": Target("packed", "pack/unveil-pack.json", FROM_PACK, file("e.npz"), 0),
    "config.json of timm": Target("to timm", "exported/config.json", "embed exported images --out e.npz".split(), file("e.npz"), 0),
    "compare.json": Target("compare", "runs/compare.json", COMPARE, page("runs/report.html"), 0),
    "a run of compare": Target("compare", "runs/mae-seed0/results.json", COMPARE, page("runs/report.html"), 0),
    "plan.json": Target("planned", "run/plan.json", PRETRAIN, run_folder("run"), 0),
    "translate resumes": Target("translate stopped", "run/subwords.json", TRANSLATE, run_folder("run"), 0),
}
"""Files by name, and the command that reads each."""


def cases(chance: random.Random) -> Iterator[Case]:
    """Each text in at least three files, and each file with at least three texts."""
    names, texts = list(FILES), list(TEXTS)
    pairs = []
    for turn in range(4):
        chance.shuffle(names)
        pairs += [(names[i % len(names)], texts[(i + turn * 5) % len(texts)]) for i in range(max(len(names), len(texts)))]
    for name, text in list(dict.fromkeys(pairs))[:60]:
        yield Case(f"{text} in {name}", partial(odd, FILES[name], text))


def odd(target: Target, name: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    if target.sample == "planned":
        samples.data(lab, "images")
        (lab.folder / "run").mkdir()
        target = Target("new", target.path, target.command, target.product, 0)
    else:
        shutil.copytree(sample(target.sample, samples), lab.folder, dirs_exist_ok=True)
    path = lab.folder / target.path
    damage(path, name)
    yield from judged(target, lab, samples, [path.name, path.parent.name])


def damage(path: Path, name: str) -> None:
    """Replaces the JSON in a file, or in the note of a .safetensors file."""
    if path.suffix == ".safetensors":
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        note = header["__metadata__"]["unveil"].encode()
        header["__metadata__"]["unveil"] = text_of(name, note).decode("utf-8", "replace")
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])
        return
    path.write_bytes(text_of(name, path.read_bytes() if path.exists() else b'{"config": {"seed": 3}}'))


def text_of(name: str, before: bytes) -> bytes:
    if name == "cut":
        return before[: len(before) // 2]
    if name == "a mark":
        return TEXTS[name] + before
    if name == "other types":
        lines = (
            [json.dumps(exchanged(json.loads(line))) for line in before.decode().splitlines()]
            if before[:1] != b"{" or b"}\n{" in before
            else []
        )
        return ("\n".join(lines) or json.dumps(exchanged(json.loads(before)))).encode()
    return TEXTS[name]


def exchanged(value: Any) -> Any:
    """The same JSON, with numbers for strings, strings for numbers, and objects for arrays, and without its checksum."""
    if isinstance(value, dict):
        return {key: exchanged(each) for key, each in value.items() if key != "checksum"}
    if isinstance(value, list):
        return {"0": value}
    return 7 if isinstance(value, str) else "seven"
