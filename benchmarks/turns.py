"""Several programs take turns in one process, so that a machine that is slow for a while slows all of them."""

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEPT_HEAP = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def keep_heap() -> None:
    """Starts this program again with a heap that is not returned to the system after each step, the same for all variants."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": KEPT_HEAP})


def receipt(device: torch.device) -> str:
    """Commit, machine and versions, for the caption of a table."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=here
    ).stdout.strip()
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else ""
    when = time.strftime("%Y-%m-%d %H:%M")
    return ", ".join(
        filter(None, [when, f"commit {commit}", chip, threads, f"torch {torch.__version__}", f"Python {platform.python_version()}"])
    )


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free() -> None:
    """Returns unused memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def at_batches(
    at: Callable[[int], Callable[[], object]], batches: Iterable[int], device: torch.device, *, steps: int = 4
) -> Iterator[tuple[int, float]]:
    """Increasing batch sizes with their samples per second, until one does not fit into memory, or two in a row are no faster.

    Args:
        at: Makes the step of a batch size.
        batches: The batch sizes to try, in ascending order.
        device: The device. On a CPU, a lack of memory cannot be caught.
        steps: Number of steps that are timed, after one that is not; the fastest counts.
    """
    best, not_faster = 0.0, 0
    for count in batches:
        speed = speed_at(at, count, device, steps)
        free()  # before the next batch is made
        if speed is None:
            return
        yield count, speed
        best, not_faster = max(best, speed), 0 if speed > best else not_faster + 1
        if not_faster == 2:
            return


def speed_at(at: Callable[[int], Callable[[], object]], count: int, device: torch.device, steps: int) -> float | None:
    """Samples per second; None if there is too little memory."""
    try:
        return count / min(take_turns({"step": at(count)}, device, rounds=steps, warmup=1)["step"])
    except torch.OutOfMemoryError:
        return None


def take_turns(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, by one clock. The other options are those of `take_timed_turns`.

    With `time.process_time` as the clock, other programs on a shared machine count less.
    """
    turns = take_timed_turns(variants, device, clocks=(clock,), **options)
    return {name: [seconds for (seconds,) in rounds] for name, rounds in turns.items()}


def take_timed_turns(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    clocks: Sequence[Callable[[], float]] = (time.perf_counter, time.process_time),
    rounds: int = 10,
    repeat: int = 1,
    warmup: int = 2,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each variant in each round, by each of the clocks: wall time and processor time by default.

    The order rotates from round to round. What runs `before` a turn is not timed.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if before and name in before:
                before[name]()
            wait(device)
            starts = [clock() for clock in clocks]
            for _ in range(repeat):
                variants[name]()
            wait(device)
            seconds[name].append(tuple((clock() - start) / repeat for clock, start in zip(clocks, starts, strict=True)))
    return seconds


def matrix_products(device: torch.device, precision: str) -> dict[str, tuple[float, Callable[[], Tensor]]]:
    """Large matrix products by name, with their FLOPs: what the speed of a step is compared with.

    Which size is fastest differs from processor to processor, so a CPU gets three of them.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    products = {}
    for side in (512, 1024, 2048) if device.type == "cpu" else (8192,):
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        products[f"{precision}, {side} x {side}"] = (2.0 * side**3, partial(torch.mm, a, b))
    return products


def table(seconds: Mapping[str, list[float]], samples: int, unit: str = "images/s") -> str:
    """A line for each variant: its speed in the median and in the best round, and how many times faster the first one is."""
    first = next(iter(seconds))
    width = max(map(len, seconds))
    lines = [f"{'':{width}}  {unit + ', median':>18}  {'best':>10}  {first + ' is faster by (quartiles)':>34}  {'by best':>8}"]
    for name, times in seconds.items():
        ratios = sorted(theirs / ours for ours, theirs in zip(seconds[first], times, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        ratio = f"{middle:.2f} times ({low:.2f} to {high:.2f})" if name != first else ""
        best = f"{min(times) / min(seconds[first]):.2f}" if name != first else ""
        lines.append(
            f"{name:{width}}  {samples / statistics.median(times):18,.1f}  {samples / min(times):10,.1f}  {ratio:>34}  {best:>8}"
        )
    return "\n".join(lines)
