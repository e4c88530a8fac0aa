"""The short version of the suite: a few cases of each kind. The whole of it: `python -m tests.faults --all`."""

import os
from collections.abc import Iterator

import pytest

from tests.faults.suite import KINDS, Suite, Verdict, cases_of, table

SHORT = {"sigkill": 2, "byte_flips": 10, "hostile_files": 10, "malicious_models": 10, "odd_json": 4}
"""Cases of each kind; 1 where nothing is said."""
verdicts: list[Verdict] = []


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    suite = Suite(jobs=os.cpu_count() or 1)
    yield suite
    suite.close()
    print(f"\n{table(verdicts)}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_some_cases_of_each_kind(suite: Suite, kind: str) -> None:
    found = list(suite.run(kind, SHORT.get(kind, 1)))
    verdicts.extend(found)
    problems = [f"{problem.sort}: {verdict.name}: {problem.text}" for verdict in found for problem in verdict.problems]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_cases(kind: str) -> None:
    names = [case.name for case in cases_of(kind)]
    missing = 74 if kind == "hostile_files" else 0  # of ../shared/data
    assert len(names) >= KINDS[kind] - missing
    assert names == [case.name for case in cases_of(kind)], "the same cases for the same seed"
