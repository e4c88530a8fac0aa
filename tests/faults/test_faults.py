"""The short version of the suite: a few cases of each kind. The whole of it: `python -m tests.faults --all`."""

import os
from collections.abc import Iterator

import pytest

from tests.faults.suite import KINDS, Suite, Verdict, cases_of, table

SHORT = {
    "sigkill": (1, "translate"),  # the fastest of the commands that train
    "two_processes": (1, "translate"),
    "signals": (1, "translate"),
    "full_disk": (1, "embed"),
    "byte_flips": (5, "embed"),
    "odd_json": (2, ""),
    "hostile_files": (6, ""),
    "two_writers": (1, "translate"),
    "lost_images": (1, "a shard of a pack is cut"),
    "not_finite": (1, "one process"),
    "changed_runs": (1, "other"),
    "malicious_models": (6, " in "),
}
"""Cases of each kind, and a part of their names."""
verdicts: list[Verdict] = []


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    suite = Suite(jobs=os.cpu_count() or 1)
    yield suite
    suite.close()
    print(f"\n{table(verdicts)}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHORT)
def test_some_cases_of_each_kind(suite: Suite, kind: str) -> None:
    found = list(suite.run(kind, *SHORT[kind]))
    verdicts.extend(found)
    problems = [f"{problem.sort}: {verdict.name}: {problem.text}" for verdict in found for problem in verdict.problems]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_cases(kind: str) -> None:
    names = [case.name for case in cases_of(kind)]
    missing = 74 if kind == "hostile_files" else 0  # of ../shared/data
    assert len(names) >= KINDS[kind] - missing
    assert names == [case.name for case in cases_of(kind)], "the same cases for the same seed"
