"""Models that carry code, lead out of their folder, or ask for more memory than there is. Nothing of them may run or be built."""

import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults.byte_flips import sample
from tests.faults.harness import Lab, Problem, Result
from tests.faults.hostile_files import bounded
from tests.faults.hostile_pickles import CONTAINERS, GADGETS, pickled, zipped
from tests.faults.samples import PRETRAIN, Samples, prepare_for
from tests.faults.suite import Case

EVIL = "import pathlib\npathlib.Path({canary!r}).touch()\nclass Evil: pass\n"


def cases(chance: random.Random) -> Iterator[Case]:
    for number, gadget in enumerate(GADGETS):
        for turn, container in enumerate(CONTAINERS):
            if (number + turn) % 2 == 0:
                yield Case(f"{gadget} in {container}", partial(code_in_file, gadget, container))
    yield Case("1 GiB of zeros in a file of 1 MiB", deflated)
    yield Case("a tensor of 4e8 patches with stride 0", repeated)
    for place in PLACES:
        yield Case(f"a pickle as {place}", partial(code_in_place, place))
    for name, value in CLASSES.items():
        yield Case(f"config.json names {name}", partial(named_class, value))
    for name, change in BOMBS.items():
        yield Case(f"config.json with {name}", partial(changed_config, change))
    for name, write in HEADERS.items():
        yield Case(f"a .safetensors file with {name}", partial(odd_header, write))
    for name, build in OUTSIDE.items():
        yield Case(name, partial(outside, build))


def embed(lab: Lab, run: str = "run", *, code: bool = False) -> Iterator[Problem]:
    """Runs `embed`, which must refuse the model."""
    result = lab.run("embed", run, "images", "--out", "e.npz", limits={"DATA": 3 << 30}, timeout=60)
    yield from judged(result)
    if code and result.code == 0:
        yield Problem("other", "a file with code was accepted")


def judged(result: Result) -> Iterator[Problem]:
    yield from bounded(result)
    for word in ("weights_only", "torch.load", "\x1b"):
        if word in result.stderr:
            yield Problem("other", f"the sentence has {word!r}: {result}")


def code_in_file(gadget: str, container: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.data(lab, "images")
    (lab.home / "canary.py").write_text(EVIL.format(canary=str(lab.canary)))
    (lab.folder / "model.pth").write_bytes(CONTAINERS[container](gadget, str(lab.canary)))
    yield from embed(lab, "model.pth", code=True)


def deflated(lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A file of `torch.save` whose tensor is compressed, as torch never writes it."""
    samples.data(lab, "images")
    stream = io.BytesIO()
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 192)}}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(lab.folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as table:
        for name in whole.namelist():
            table.writestr(name, bytes(1 << 30) if name.endswith("data/0") else whole.read(name))
    yield from embed(lab, "model.pth", code=True)


def repeated(lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.data(lab, "images")
    state = {"cls_token": torch.zeros(1, 1, 192), "pos_embed": torch.zeros(1, 1, 1).expand(1, 400_000_001, 192)}
    torch.save({"model": state}, lab.folder / "model.pth")
    yield from embed(lab, "model.pth", code=True)


PLACES = (
    "run/model.safetensors",
    "run/encoder.safetensors",
    "run/samples.npz",
    "run/results.json",
    "run/config.json",
    "run/log.jsonl",
    "run/checkpoints/step-00000005/model.safetensors",
    "run/checkpoints/step-00000005/optimizer.safetensors",
    "run/checkpoints/step-00000005/manifest.json",
    "exported/model.safetensors",
    "exported/pytorch_model.bin",
    "images/train/a/000.png",
    "images/labels.csv",
)


def code_in_place(place: str, lab: Lab, samples: Samples) -> Iterator[Problem]:
    """A pickle instead of another file."""
    name = "stopped" if "checkpoints" in place else "to timm" if place.startswith("exported") else "pretrain"
    shutil.copytree(sample(name, samples), lab.folder, dirs_exist_ok=True)
    path = lab.folder / place
    data = zipped(pickled("os.system", str(lab.canary)))
    if path.suffix == ".npz":
        stream = io.BytesIO()
        head = b"\x93NUMPY\1\0v\0" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
        with zipfile.ZipFile(stream, "w") as table:
            for array in ("images", "names", "features", "labels"):
                table.writestr(f"{array}.npy", head + pickled("os.system", str(lab.canary), inside=False))
        data = stream.getvalue()
    path.write_bytes(data)
    if path.name == "pytorch_model.bin":
        (lab.folder / "exported/model.safetensors").unlink()
    run = "exported" if place.startswith("exported") else "run/encoder.safetensors" if "encoder" in place else "run"
    yield from embed(lab, run)
    if place.startswith("run"):
        yield from judged(lab.run("report", "run"))
        yield from judged(lab.run(*PRETRAIN, prepare=prepare_for("pretrain")))


CLASSES: dict[str, dict[str, Any]] = {
    "a file in the run folder": {"class": "run/evil.py:Evil", "method": None},
    "an absolute file": {"class": "{home}/evil.py:Evil", "method": None},
    "a module beside the command": {"class": "evil:Evil", "method": None},
    "os:system": {"class": "os:system"},
    "a file as the method": {"method": "{home}/evil.py:Evil"},
    "a module as the method": {"method": "evil:Evil", "class": "evil:Evil"},
    "a file as the task": {"method": None, "task": "{home}/evil.py:Evil", "classes": ["a"]},
    "a module as the task": {"method": None, "task": "evil", "class": "evil:Evil", "classes": ["a"]},
    "a list as the class": {"class": ["evil:Evil"]},
    "dunders as the method": {"method": "__import__", "class": "builtins:__import__"},
    "a URL as the class": {"class": "http://localhost/evil.py:Evil"},
    "auto_map": {"auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True, "format": "x", "model_type": "vit_mae"},
}


def named_class(values: dict[str, Any], lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.copy(lab, "pretrain")
    for path in (lab.home / "evil.py", lab.folder / "evil.py", lab.folder / "run/evil.py"):
        path.write_text(EVIL.format(canary=str(lab.canary)))

    def change(config: dict[str, Any]) -> None:
        for key, value in values.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = value.replace("{home}", str(lab.home)) if isinstance(value, str) else value

    rewrite(lab.folder / "run", change)
    yield from embed(lab, code=True)
    yield from judged(lab.run("finetune", "run", "images", "--out", "tuned", "--epochs", "1"))


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the config in a run folder, in config.json and in the notes of the files."""
    config = json.loads((run / "config.json").read_text())
    config.pop("checksum")
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    for path in (run / "model.safetensors", run / "encoder.safetensors"):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        note = json.loads(header["__metadata__"]["unveil"])
        change(note)
        header["__metadata__"]["unveil"] = json.dumps(note)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[start:])


def in_encoder(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["encoder"].update(values) if isinstance(config.get("encoder"), dict) else None


def in_options(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["options"].update(values) if isinstance(config.get("options"), dict) else None


BOMBS: dict[str, Callable[[dict[str, Any]], None]] = {
    "depth 1e9": in_encoder(depth=10**9),
    "depth 1e5": in_encoder(depth=10**5),
    "depth -1": in_encoder(depth=-1),
    "depth 1e400": in_encoder(depth=10**400),
    "width 1e6": in_encoder(width=10**6),
    "heads 0": in_encoder(heads=0),
    "image_size 65536": in_encoder(image_size=[65536, 65536]),
    "image_size 0": in_encoder(image_size=[0, 0]),
    "patch_size 1 and image_size 4096": in_encoder(image_size=[4096, 4096], patch_size=[1, 1]),
    "channels 1e9": in_encoder(channels=10**9),
    "std 0": in_encoder(std=[0, 0, 0]),
    "std NaN": in_encoder(std=[float("nan")] * 3),
    "mean of two channels": in_encoder(mean=[0.5, 0.5]),
    "decoder_depth 1e9": in_options(decoder_depth=10**9),
    "decoder_width 1e7": in_options(decoder_width=10**7),
    "mask_ratio 2": in_options(mask_ratio=2.0),
    "codebook_size 1e12": in_options(target="token", codebook_size=10**12),
    "a tokenizer elsewhere": in_options(target="token", visual_tokenizer="/etc"),
    "a million classes": lambda config: config.update(classes=["x"] * 1_000_000),
    "a version from the future": lambda config: config.update(format_version=10**6),
}


def changed_config(change: Callable[[dict[str, Any]], None], lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.copy(lab, "pretrain")
    rewrite(lab.folder / "run", change)
    yield from embed(lab)
    yield from judged(lab.run("reconstruct", "run", "images", "--out", "f.png", limits={"DATA": 3 << 30}, timeout=60))


def with_header(header: Any, length: int | None = None, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], first: int, last: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


NOTE = {"__metadata__": {"unveil": json.dumps({"format": "unveil", "format_version": 1})}}
HEADERS: dict[str, Callable[[], bytes]] = {
    "a length of 2^60": lambda: with_header(b"{", 2**60),
    "a length of 99 MB": lambda: with_header(b"{" + b" " * 100, 99_000_000),
    "spaces of 90 MB": lambda: with_header(b"{" + b" " * 90_000_000 + b"}"),
    "a tensor of 2^62 bytes": lambda: with_header({"a": tensor([2**60], 0, 2**62)}),
    "a shape that overflows": lambda: with_header({"a": tensor([2**40, 2**40], 0, 0)}),
    "tensors that overlap": lambda: with_header({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, data=bytes(4)),
    "offsets backwards": lambda: with_header({"a": tensor([1], 4, 0)}, data=bytes(4)),
    "an unknown type": lambda: with_header({"a": tensor([1], 0, 4, "F7")}, data=bytes(4)),
    "a million tensors": lambda: with_header({str(i): tensor([0], 0, 0) for i in range(200_000)}),
    "brackets": lambda: with_header(b'{"a":' + b"[" * 200_000),
    "no data": lambda: with_header({**NOTE, "a": tensor([1000], 0, 4000)}),
    "a note that is a list": lambda: with_header({"__metadata__": ["unveil"], "a": tensor([1], 0, 4)}, data=bytes(4)),
    "a name that leads away": lambda: with_header({**NOTE, "../../canary": tensor([1], 0, 4)}, data=bytes(4)),
}


def odd_header(write: Callable[[], bytes], lab: Lab, samples: Samples) -> Iterator[Problem]:
    samples.data(lab, "images")
    (lab.folder / "x.safetensors").write_bytes(write())
    yield from embed(lab, "x.safetensors", code=True)


def manifest_leads_away(lab: Lab) -> None:
    """The manifest of the newest checkpoint names a file outside, which must be neither read nor removed."""
    path = lab.folder / "run/checkpoints/step-00000005/manifest.json"
    facts = json.loads(path.read_text())
    facts.pop("checksum")
    shutil.copy(path.with_name("model.safetensors"), lab.home / "outside.safetensors")
    facts["files"] = {"../../../../outside.safetensors": facts["files"]["model.safetensors"]}
    path.write_text(json.dumps(facts))


def linked_checkpoint(lab: Lab) -> None:
    """The newest checkpoint is a link to a folder outside, which must not be emptied."""
    path = lab.folder / "run/checkpoints/step-00000005"
    path.rename(lab.home / "outside")
    path.symlink_to(lab.home / "outside")


def linked_leftover(lab: Lab) -> None:
    """A leftover is a link to a folder outside."""
    (lab.home / "outside").mkdir()
    (lab.home / "outside/precious.txt").write_text("x")
    (lab.folder / "run/checkpoints/.00000007-0123456789abcdef0123456789abcdef").symlink_to(lab.home / "outside")


def linked_results(lab: Lab) -> None:
    """The log is a link to a file outside."""
    (lab.home / "outside.txt").write_text("precious\n")
    (lab.folder / "run/log.jsonl").unlink()
    (lab.folder / "run/log.jsonl").symlink_to(lab.home / "outside.txt")


def fifo_as_log(lab: Lab) -> None:
    (lab.folder / "run/log.jsonl").unlink()
    os.mkfifo(lab.folder / "run/log.jsonl")


def device_as_results(lab: Lab) -> None:
    (lab.folder / "run/results.json").symlink_to("/dev/zero")


OUTSIDE: dict[str, Callable[[Lab], None]] = {
    "the manifest leads out of the run folder": manifest_leads_away,
    "a checkpoint is a link": linked_checkpoint,
    "a leftover is a link": linked_leftover,
    "the log is a link": linked_results,
    "the log is a FIFO": fifo_as_log,
    "results.json is a device": device_as_results,
}


def outside(build: Callable[[Lab], None], lab: Lab, samples: Samples) -> Iterator[Problem]:
    shutil.copytree(sample("stopped", samples), lab.folder, dirs_exist_ok=True)
    build(lab)
    kept = {
        path: path.read_bytes() for path in lab.home.rglob("*") if path.is_file() and "outside" in str(path.relative_to(lab.home))
    }
    kept = {path: data for path, data in kept.items() if not str(path.relative_to(lab.home)).startswith(("work", "logs"))}
    for words in (PRETRAIN, ["report", "run"]):
        yield from judged(lab.run(*words, prepare=prepare_for("pretrain"), timeout=60))
    for path, data in kept.items():
        if not path.exists() or path.read_bytes() != data:
            yield Problem("other", f"{path.name}, which is outside of the run folder, was changed")
