"""Cases, and the table that counts them."""

import importlib
import random
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.harness import MIB, Lab, Problem, Server, remove
from tests.faults.samples import Samples

KINDS = {
    "sigkill": 200,
    "two_processes": 50,
    "signals": 30,
    "full_disk": 30,
    "byte_flips": 500,
    "odd_json": 60,
    "hostile_files": 150,
    "two_writers": 10,
    "lost_images": 30,
    "not_finite": 20,
    "changed_runs": 40,
    "malicious_models": 100,
}
"""Kinds of faults and the number of their cases, in the order of the table. Each is a file of this folder."""


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong."""

    name: str
    run: Callable[[Lab, Samples], Iterable[Problem]]


@dataclass(frozen=True)
class Verdict:
    kind: str
    name: str
    problems: Sequence[Problem]
    seconds: float
    peak: int = 0
    """Largest memory of its commands, above the idle process."""


@dataclass
class Suite:
    """Runs cases, several at a time."""

    jobs: int = 2
    keep: bool = False
    """Whether to keep the folders of cases that fail."""
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="unveil-faults-")))

    def __post_init__(self) -> None:
        try:
            self.server = Server()
        except RuntimeError:
            self.home.rmdir()
            raise
        self.server.measure_idle(self.home)
        self.samples = Samples(self.server, self.home / "samples")

    def run(self, kind: str, count: int, only: str = "", seed: int = 0) -> Iterator[Verdict]:
        """Runs `count` cases of a kind, spread evenly over those whose name contains `only`."""
        cases = [case for case in cases_of(kind, seed) if only in case.name]
        if count < len(cases):
            cases = [cases[i * len(cases) // count] for i in range(count)]
        with ThreadPoolExecutor(self.jobs) as pool:
            yield from pool.map(lambda case: self.judge(kind, case), cases)

    def judge(self, kind: str, case: Case) -> Verdict:
        """Runs a case in a fresh folder."""
        start = time.monotonic()
        lab = Lab(self.server, self.home / f"{kind}-{zlib.crc32(case.name.encode()):08x}")
        problems: list[Problem] = []
        try:
            problems += case.run(lab, self.samples)
        except Exception as error:  # a mistake of the suite, or something that nobody has thought of
            where = traceback.extract_tb(error.__traceback__)[-1]
            problems.append(Problem("other", f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"))
        problems = [*lab.general_problems(), *problems]
        peak = max((result.peak for result in lab.results), default=0)
        lab.close(self.home / "kept" / lab.home.name if problems and self.keep else None)
        return Verdict(kind, case.name, problems, time.monotonic() - start, peak)

    def close(self) -> None:
        self.server.close()
        for path in self.home.iterdir():
            if path.name != "kept":
                remove(path)
        if not any(self.home.iterdir()):
            self.home.rmdir()


def cases_of(kind: str, seed: int = 0) -> Iterator[Case]:
    """All cases of a kind, the same ones for the same seed."""
    module = importlib.import_module(f"tests.faults.{kind}")
    for number, case in enumerate(module.cases(random.Random(f"{kind} {seed}"))):
        yield Case(f"{number + 1}: {case.name}", case.run)


def table(verdicts: Sequence[Verdict]) -> str:
    """Counts by kind."""
    head = f"{'kind':<18}{'cases':>6}{'tracebacks':>12}{'silent':>8}{'code run':>10}{'other':>7}{'peak MiB':>10}{'seconds':>9}"
    rows = [head, "-" * len(head)]
    for kind in [*dict.fromkeys(verdict.kind for verdict in verdicts), "all"]:
        own = [verdict for verdict in verdicts if kind in (verdict.kind, "all")]
        sorts = [{problem.sort for problem in verdict.problems} for verdict in own]
        count = {sort: sum(sort in found for found in sorts) for sort in ("traceback", "silent", "code")}
        other = sum(bool(found - count.keys()) for found in sorts)
        peak = max((verdict.peak for verdict in own), default=0) // MIB
        seconds = sum(verdict.seconds for verdict in own)
        rows.append(
            f"{kind:<18}{len(own):>6}{count['traceback']:>12}{count['silent']:>8}{count['code']:>10}{other:>7}{peak:>10}{seconds:>9.0f}"
        )
    return "\n".join(rows)
