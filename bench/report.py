"""Writes `docs/benchmarks.md`, its plots, and the figures in other documents from result files.

Rule: nobody types a figure. A section is written by a function that sees one suite's results.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .results import RESULTS_FOLDER, ROOT, SuiteResult, read_result

DOCUMENT = Path("docs/benchmarks.md")
MARKED_DOCUMENTS = tuple(  # have figures between marks
    Path(name) for name in ("README.md", "docs/comparison.md", "docs/models.md", "docs/runs.md")
)
HEAD = """\
# Benchmarks

Everything here was written by `python -m bench report` from result files; nobody typed a figure.
A machine with other processors or a load of its own gives other times: compare the columns of a
table with each other, not with those of another machine. `make bench-smoke` runs every part once,
small; each section names the command that repeats it.

What the figures do not show: how often a real model is right (no run with one is among them), how
servers of others do on the tasks of MRBS, and what a provider bills that caches the beginning of a
prompt. Tokens in are counted in full for every request.

The lines in small print name the Git trees of `src` and `bench` that were measured, which outlive a
rebase: `git rev-parse COMMIT:src` prints that of a commit.

`python -m bench list` names the suites. `python -m bench run mrbs` does 66 tasks in eleven
categories on real MCP servers, each judged by the end state of the servers and a value. `--mode llm
--model NAME` lets any model of litellm write the programs, in `--mode recursive` these programs ask
models themselves, `--mode function-calling` gives the same model the same tools as functions, and
`--server` measures another server.
"""

SECTION = re.compile(r"<!-- bench:([\w-]+) -->\n(.*?)\n<!-- /bench:\1 -->", re.DOTALL)
WriteSection = Callable[[Sequence[SuiteResult], Path], str]  # results, and the folder for plots


def write_report(files: Sequence[Path], into: Path | None, *, check: bool = False) -> int:
    """Write the documents; return 1 with `check` if one was not up to date, 2 without results."""
    from .sections import SECTIONS, document_figures

    files = files or sorted(RESULTS_FOLDER.glob("*.json"))
    results: dict[str, list[SuiteResult]] = {}
    for file in files:
        try:
            result = read_result(file)
        except ValueError as exc:
            print(f"{file} is no result of a suite: {exc}", file=sys.stderr)
            return 2
        results.setdefault(result.suite, []).append(result)
    if unknown := set(results) - set(SECTIONS):
        print(f"The report has no section for {', '.join(unknown)}.", file=sys.stderr)
        return 2
    if not results:
        print(f"There are no results in {RESULTS_FOLDER}: run a suite first.", file=sys.stderr)
        return 2
    root = into or ROOT
    plots = root / "docs" / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    document = root / DOCUMENT
    sections = read_sections(document.read_text("utf-8") if document.exists() else "")
    sections |= {name: SECTIONS[name](found, plots) for name, found in results.items()}
    ordered = [mark_text(name, sections[name]) for name in SECTIONS if name in sections]
    changed = replace_text(document, "\n".join([HEAD, *ordered]), check=check)
    figures = document_figures(results)
    for file in (root / name for name in MARKED_DOCUMENTS):
        if file.exists():
            text = fill_marks(file.read_text(encoding="utf-8"), figures)
            changed |= replace_text(file, text, check=check)
    return int(check and changed)


def replace_text(file: Path, text: str, *, check: bool) -> bool:
    """Write a file, unless `check`; return whether its text differs."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return False
    if check:
        print(f"{file} is not what the results say.", file=sys.stderr)
    else:
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file}")
    return True


def read_sections(text: str) -> dict[str, str]:
    """Return the sections of a document by the names of their marks.

    A section whose suite has no new result stays, with the place and date that it names.
    """
    return {found[1]: found[2] for found in SECTION.finditer(text)}


def mark_text(name: str, text: str) -> str:
    """Return a text between marks with this name."""
    return f"<!-- bench:{name} -->\n{text.strip()}\n<!-- /bench:{name} -->\n"


def fill_marks(text: str, figures: Mapping[str, str]) -> str:
    """Return a text with new figures between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`."""
    for name, figure in figures.items():
        begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
        if begin in text and end in text:
            head, _, rest = text.partition(begin)
            text = f"{head}{mark_text(name, figure).strip()}{rest.partition(end)[2]}"
    return text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def describe_run(result: SuiteResult, command: str) -> str:
    """Return where and how a result was measured, as one paragraph."""
    where = result.environment
    is_busy = where.load_before > where.processors
    busy = " (beside other work, so times are longer than alone)" if is_busy else ""
    parts = [
        f"`{command}`",
        f"`src` {where.sources}, `bench` {where.harness}",
        f"{where.processors} processors ({where.processor})",
        f"load {where.load_before:g} before and {where.load_after:g} after{busy}",
        f"Python {where.python}, mcp {where.packages.get('mcp', 'unknown')}",
        f"seed {result.seed}",
        result.started[:10],
    ]
    return f"<sub>{'; '.join(parts)}</sub>\n"
