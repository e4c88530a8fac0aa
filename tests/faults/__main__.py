"""Runs the suite of faults: `python -m tests.faults --all`."""

import argparse
import os
import sys
import time

from tests.faults.suite import KINDS, Suite, cases_of, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Damages things, and looks whether unveil says so.")
    parser.add_argument("kinds", nargs="*", help=f"by default all of {', '.join(KINDS)}")
    parser.add_argument("--all", action="store_true", help="every case; by default 3 of each kind")
    parser.add_argument("--count", type=int, help="this many cases of each kind, spread evenly")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="for other moments, other bytes, ...")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cases that fail")
    parser.add_argument("--list", action="store_true", help="list the cases instead")
    options = parser.parse_args()
    kinds = options.kinds or list(KINDS)
    if options.list:
        for kind in kinds:
            print(*(f"{kind} {case.name}" for case in cases_of(kind, options.seed) if options.only in case.name), sep="\n")
        return 0
    suite, verdicts, start = Suite(options.jobs, options.keep), [], time.monotonic()
    try:
        for kind in kinds:
            count = options.count or (len(list(cases_of(kind))) if options.all or options.only else 3)
            for verdict in suite.run(kind, count, options.only, options.seed):
                verdicts.append(verdict)
                if len(verdicts) % 20 == 0:
                    print(f"{kind}: {len(verdicts)} cases, {time.monotonic() - start:.0f} s", file=sys.stderr)
                for problem in verdict.problems:
                    print(f"{problem.sort}: {kind} {verdict.name}: {problem.text}", flush=True)
    finally:
        suite.close()
    print(table(verdicts))
    worst = max(verdicts, key=lambda verdict: verdict.peak)
    print(f"most memory: {worst.kind} {worst.name}")
    print(
        f"{time.monotonic() - start:.0f} s; folders of failures: {suite.home}/kept"
        if options.keep
        else f"{time.monotonic() - start:.0f} s"
    )
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
