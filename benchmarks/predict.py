"""`unveil predict` on many small files: images per second beside a timm loop, memory at the start and at the end, and a kill.

    python benchmarks/predict.py --count 100000 --folder predict-files

It makes the files once, trains a vit-tiny for a moment, exports it to timm, and measures in processes of their own, in turn:
`unveil predict`, and a plain loop of a torch `DataLoader` with timm's transform and the exported model. Then it kills a third run
in its middle, resumes it, and compares the bytes. CPU time is what a busy machine changes least.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

LOOP = """
import csv, sys, torch, timm
from pathlib import Path
from PIL import Image
from timm.data import create_transform, resolve_data_config
folder, exported, out, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
model = timm.create_model("local-dir:" + exported, pretrained=True).eval()
transform = create_transform(**resolve_data_config(model=model))
class Files(torch.utils.data.Dataset):
    def __init__(self): self.paths = sorted(map(str, Path(folder).rglob("*.jpg")))
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return transform(Image.open(self.paths[i]).convert("RGB")), i
files = Files()
with open(out, "w") as file, torch.inference_mode():
    writer = csv.writer(file)
    for images, keys in torch.utils.data.DataLoader(files, batch_size=256, num_workers=2):
        best = model(images).softmax(1).max(1)
        for key, label, p in zip(keys.tolist(), best.indices.tolist(), best.values.tolist()):
            writer.writerow([files.paths[key], label, f"{p:.6g}"])
"""


def make_files(folder: Path, count: int, folders: int = 1000) -> None:
    """Writes JPEGs of 64 x 64 pixels in folders of their own."""
    from PIL import Image

    if folder.exists():
        return
    rng = np.random.default_rng(0)
    bank = rng.integers(0, 255, (256, 8, 8, 3), dtype=np.uint8)
    for i in range(count):
        path = folder / f"{i % folders:03d}" / f"{i:06d}.jpg"
        if i < folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        tile = np.roll(bank[i % 256], i // 256, axis=(0, 1)[i % 2])
        Image.fromarray(tile).resize((64, 64)).save(path, quality=90)


def memory_of(pid: int) -> float:
    """Memory of a process and its children in MiB that is not shared, as far as Linux tells."""
    total = 0.0
    for each in [pid, *children_of(pid)]:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def children_of(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def measured(command: list[str], count: int, env: dict[str, str]) -> dict[str, float]:
    """Seconds, CPU seconds, images per second, and the memory over time of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    samples: list[tuple[float, float]] = []

    def watch() -> None:
        while process.poll() is None:
            samples.append((time.monotonic() - start, memory_of(process.pid)))
            time.sleep(1)

    thread = threading.Thread(target=watch)
    thread.start()
    assert process.wait() == 0, command
    thread.join()
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    early = max(memory for at, memory in samples if at <= max(0.1 * seconds, samples[0][0]))
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "images_per_second": round(count / seconds, 1),
        "images_per_cpu_second": round(count / cpu, 1),
        "peak_mib_in_first_tenth": round(early),
        "peak_mib": round(max(memory for _, memory in samples)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="vit-nano")
    arguments = parser.parse_args()
    folder = arguments.folder
    make_files(folder / "files", arguments.count)
    small, tuned, exported = folder / "small", folder / "tuned", folder / "timm"
    make_files(small, 400, 10)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    unveil = [sys.executable, "-m", "unveil"]
    common = ["--device", "cpu", "--precision", "float32"]
    if not (tuned / "results.json").exists():
        words = [
            str(small),
            "--model",
            arguments.model,
            "--image-size",
            "64",
            "--epochs",
            "1",
            "--out",
            str(folder / "run"),
            *common,
        ]
        subprocess.run([*unveil, "pretrain", *words], check=True, env=env, stderr=subprocess.DEVNULL)
        words = [str(folder / "run"), str(small), "--epochs", "1", "--out", str(tuned), *common]
        subprocess.run([*unveil, "finetune", *words], check=True, env=env, stderr=subprocess.DEVNULL)
        subprocess.run([*unveil, "export", str(tuned), "--to", "timm", "--out", str(exported)], check=True, env=env)
    predict = [*unveil, "predict", str(tuned), str(folder / "files"), "--device", "cpu", "--out"]
    for turn in range(arguments.rounds):
        out = folder / f"labels-{turn}.csv"
        out.unlink(missing_ok=True)
        print("unveil predict", json.dumps(measured([*predict, str(out)], arguments.count, env)), flush=True)
        loop = [sys.executable, "-c", LOOP, str(folder / "files"), str(exported), str(folder / "loop.csv"), "1"]
        print("timm loop", json.dumps(measured(loop, arguments.count, env)), flush=True)
    killed = folder / "killed.csv"
    killed.unlink(missing_ok=True)
    process = subprocess.Popen([*predict, str(killed)], env=env, stderr=subprocess.DEVNULL)
    parts = folder / "killed.csv.unfinished"
    total = -(-arguments.count // 1024)
    while len(list(parts.glob("part-*.json"))) < total // 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"killed after {len(list(parts.glob('part-*.json')))} of {total} parts", flush=True)
    subprocess.run([*predict, str(killed)], check=True, env=env)
    same = killed.read_bytes() == (folder / "labels-0.csv").read_bytes()
    print("same bytes after the kill:", same)
    sys.exit(not same)


if __name__ == "__main__":
    main()
