"""What a run costs before its first step: importing unveil, listing DATA, and the rest; afresh, again, and on resume.

    python benchmarks/start.py                              # 10,000 and 100,000 images
    python benchmarks/start.py --images 1000000             # writes 2.6 GB to the folder for temporary files
    python benchmarks/start.py --forms folder --images 100000 --keep 1000

Makes a tar, a folder or 100 shards of JPEGs of 32 px and less than 1 KB, in 1,000 class folders, and pre-trains a tiny encoder for
one step: without a saved listing, with it, and once more to go on after the first step. Each is a process of its own. `--keep` is
the memory for images in MB; by default 0, so that images are read when they are needed. CPU time is of the whole process, all
threads. Memory is resident: when unveil is imported, when DATA is listed, at the first step, and at its height.
"""

import argparse
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CLASSES, SHARDS, VARIANTS = 1000, 100, 256
HEADS = ("form", "images", "start", "import", "listed", "first step", "wall", "MB: import", "listed", "first step", "height")
MARK = "milestones: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--forms", nargs="+", choices=["tar", "shards", "folder"], default=["tar"])
    parser.add_argument("--keep", type=int, default=0, metavar="MB")
    parser.add_argument("--child", nargs=3, metavar=("DATA", "OUT", "KEEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    print(" | ".join(HEADS))
    for form in args.forms:
        for count in args.images:
            with tempfile.TemporaryDirectory(prefix="unveil-start-") as folder:
                compare(form, count, args.keep, Path(folder))
    import torch  # late, because the processes that are measured import it themselves
    from turns import receipt

    print(receipt(torch.device("cpu")))


def compare(form: str, count: int, keep: int, folder: Path) -> None:
    data = make(form, count, folder)
    time.sleep(4)  # the listing of a tar that has just been changed is not saved
    for start, out in (("afresh", "one"), ("again", "two"), ("resumed", "two")):
        print(" | ".join([form, f"{count:,}", start, *measured(data, folder / out, keep, folder / "cache")]), flush=True)


def measured(data: Path, out: Path, keep: int, cache: Path) -> list[str]:
    """CPU s and MB of one run, as text."""
    environment = os.environ | {"UNVEIL_CACHE": str(cache)}
    command = [sys.executable, __file__, "--child", str(data), str(out), str(keep)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        sys.exit(f"the run has failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    facts = json.loads(lines[0].removeprefix(MARK))
    return [f"{value:.1f}" for value in facts["cpu"]] + [f"{facts['wall']:.1f}"] + [f"{value:.0f}" for value in facts["memory"]]


def make(form: str, count: int, folder: Path) -> Path:
    """Writes the images, and returns DATA."""
    import numpy as np
    from PIL import Image

    rng, images = np.random.default_rng(0), list[bytes]()
    for _ in range(VARIANTS):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)).save(stream, "JPEG", quality=80)
        images.append(stream.getvalue())
    names = [f"class{i % CLASSES:04d}/n{i:08d}.jpg" for i in range(count)]
    data = folder / ("data.tar" if form == "tar" else "data")
    if form == "folder":
        for name in names[:CLASSES]:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            (data / name).write_bytes(images[i % VARIANTS])
        return data
    if form == "shards":
        data.mkdir()
    paths = [data] if form == "tar" else [data / f"{number:03d}.tar" for number in range(SHARDS)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for i in range(number, count, len(paths)):
                member = tarfile.TarInfo(names[i])
                member.size, member.mtime = len(images[i % VARIANTS]), 1.5e9  # a fraction, so a pax header, as `TarFile.add` writes
                tar.addfile(member, io.BytesIO(images[i % VARIANTS]))
                tar.members.clear()
    return data


def child(data: str, out: str, keep: str) -> None:
    """Pre-trains up to the first step, and prints CPU s and memory at the milestones."""
    began, cpu, memory = time.perf_counter(), list[float](), list[float]()

    def milestone() -> None:
        cpu.append(time.process_time())
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    from unveil.cli import imported

    pretrain = imported("unveil.recipes.pretrain", "pretrain")  # as the command does
    from unveil.data.dataset import ImageDataset
    from unveil.data.parts import DataParts
    from unveil.errors import Interrupted
    from unveil.train.steps import Stepper

    milestone()
    roles, compute = DataParts.roles, Stepper.compute

    def listed(*args: Any, **options: Any) -> Any:
        found = roles(*args, **options)
        milestone()
        return found

    def first_step(*args: Any) -> Any:
        milestone()
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
        print(MARK + json.dumps({"cpu": cpu, "wall": time.perf_counter() - began, "memory": memory}), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # saves after this step, and stops
        return compute(*args)

    DataParts.roles, Stepper.compute = listed, first_step  # type: ignore[method-assign]
    ImageDataset.__init__.__kwdefaults__["memory"] = int(keep) * 1_000_000
    with suppress(Interrupted):
        pretrain(data, model="vit-nano", out=out, image_size=32, epochs=1, batch_size=64, device="cpu")


if __name__ == "__main__":
    main()
