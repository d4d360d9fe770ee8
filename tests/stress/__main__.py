"""``python -m tests.stress``: see tests/stress/__init__.py."""

import argparse
import sys
from pathlib import Path

from tests.stress.case import run_case
from tests.stress.properties import PROPERTIES
from tests.stress.running import run, show


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description="Random compositions at length.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--state", type=Path, help="a file of what was run, from which a later run goes on")
    parser.add_argument("--property", choices=sorted(PROPERTIES), metavar="NAME", help="this property alone")
    parser.add_argument("--seed", type=int, help="this case alone")
    given = parser.parse_args()
    if given.property is None:
        try:
            state = run(given.cases, given.processes, given.state)
        except KeyboardInterrupt:
            return 130
        print(state.table())
        for failure in state.failures:
            show(failure)
        return 1 if state.failures else 0
    seeds = range(given.cases) if given.seed is None else [given.seed]
    outcomes = [run_case(given.property, seed, show=given.seed is not None) for seed in seeds]
    found = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    for failure in found:
        show(failure)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
