"""The one entry of the bench: `python -m bench run SUITE`, `perf`, `compare`, `report`, `list`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .suites import SUITES


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    match arguments:
        case ["run", name, *rest] if name in SUITES:
            return SUITES[name].main(rest)
        case ["perf", *rest]:
            return SUITES["perf"].main(rest)
    options = build_parser().parse_args(arguments)
    if options.command == "list":
        print(*(f"{suite.name:14} {suite.summary}" for suite in SUITES.values()), sep="\n")
        return 0
    if options.command == "compare":
        from .comparison import compare_files

        return compare_files(options.before, options.after, options.seed)
    from .report import write_report

    return write_report(options.results, options.into, check=options.check)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; options of a suite are parsed by the suite."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a suite, with its options after its name")
    run.add_argument("suite", choices=SUITES)
    commands.add_parser("perf", help="the same as `run perf`", add_help=False)
    commands.add_parser("list", help="list the suites")
    compare = commands.add_parser("compare", help="compare two result files")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    report = commands.add_parser("report", help="write docs/benchmarks.md and README's figures")
    report.add_argument("results", type=Path, nargs="*", help="default: all in bench/results")
    report.add_argument("--into", type=Path, help="instead of the repository")
    report.add_argument("--check", action="store_true", help="fail if a document would change")
    return top


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
