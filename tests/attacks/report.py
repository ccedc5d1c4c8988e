"""The table at the end of `make attack`: what each attack did to the others, and what held."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from .bystander import MAX_GROWTH_MB, MAX_KEPT_MB, MAX_P99_MS, MAX_STALL_MS, Impact, impacts

NAME_COLUMNS = 62
FIGURES = "{:>9} {:>8} {:>8} {:>10} {:>8} {:>5}"  # milliseconds, MB, MB, sandboxes
UNMEASURED = FIGURES.format(*"······")
TITLES = FIGURES.format("before", "p99 ms", "stall ms", "growth MB", "kept MB", "left")
HEADER = f"{'attack':<{NAME_COLUMNS}} {TITLES}"
PEACE = "test_peace"  # no attack
MAX_FAILURE_CHARS = 100


@dataclass(frozen=True)
class Attack:
    """One attack, and whether the server withstood it."""

    file: Path
    promise: str  # the sentence that the test proves
    name: str
    impact: Impact | None
    failure: str  # what went wrong, in one line

    @property
    def class_name(self) -> str:
        """The class of attacks that it belongs to."""
        return self.file.stem.removeprefix("test_").replace("_", " ")


class AttackLog:
    """The attacks of a test run, in its order."""

    def __init__(self) -> None:
        self._attacks: dict[str, Attack] = {}  # by the id of the test

    def record(self, report: pytest.TestReport) -> None:
        """Record the outcome of one phase of a test."""
        is_outcome = report.when == "call" and not report.skipped
        if is_outcome or report.failed:
            self._attacks[report.nodeid] = parse_attack(report)

    def write(self, terminal: pytest.TerminalReporter) -> None:
        """Write the table of all attacks by class."""
        attacks = list(self._attacks.values())
        terminal.section("attacks", bold=True)
        for file, group in groupby(attacks, key=lambda attack: attack.file):
            members = list(group)
            terminal.write_line("")
            terminal.write_line(members[0].class_name.upper(), bold=True)
            terminal.write_line(read_promise(terminal.config.rootpath / file))
            terminal.write_line(f"{HEADER}  verdict")
            for promise, variants in groupby(members, key=lambda attack: attack.promise):
                write_promise(terminal, promise, list(variants))
        terminal.section("attacks by class", bold=True)
        terminal.write_line(HEADER)
        for _, group in groupby(attacks, key=lambda attack: attack.file):
            write_class(terminal, list(group))
        terminal.write_line("")
        for line in summarize(attacks):
            terminal.write_line(line, bold=True)


def parse_attack(report: pytest.TestReport) -> Attack:
    """Return the attack that a test has made."""
    path, _, test = report.nodeid.partition("::")
    function, _, variant = test.partition("[")
    promise = function.removeprefix("test_").replace("_", " ")
    name = variant.removesuffix("]")
    failure = describe_failure(report) if report.failed else ""
    return Attack(Path(path), promise, name, impacts.get(report.nodeid), failure)


def describe_failure(report: pytest.TestReport) -> str:
    """Return why a test failed, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr)
    return text.removeprefix("AssertionError: ").partition("\n")[0][:MAX_FAILURE_CHARS]


def write_promise(terminal: pytest.TerminalReporter, promise: str, variants: list[Attack]) -> None:
    """Write the attacks on one promise; a single one without a name has that of the promise."""
    if variants[0].name:
        terminal.write_line(f"  {promise}")
    for attack in variants:
        label = f"    {attack.name}" if attack.name else f"  {promise}"
        verdict = f"BROKEN: {attack.failure}" if attack.failure else "holds"
        line = f"{shorten(label):<{NAME_COLUMNS}} {format_figures(attack.impact)}  {verdict}"
        terminal.write_line(line, red=bool(attack.failure))


def write_class(terminal: pytest.TerminalReporter, attacks: list[Attack]) -> None:
    """Write the worst figures of a class on one line."""
    broken = sum(bool(attack.failure) for attack in attacks)
    label = f"  {attacks[0].class_name}: {len(attacks)}"
    figures = format_figures(find_worst(attacks))
    verdict = f"{broken} BROKEN" if broken else "holds"
    terminal.write_line(f"{label:<{NAME_COLUMNS}} {figures}  {verdict}", red=bool(broken))


def find_worst(attacks: list[Attack]) -> Impact | None:
    """Return an impact with the worst figure of each kind; None if none was measured."""
    measured = [each.impact for each in attacks if each.impact and each.impact.latencies_ms]
    if not measured:
        return None
    return Impact(
        [max(impact.control_p99_ms for impact in measured)],
        [max(impact.p99_ms for impact in measured)],
        [max(impact.longest_stall_ms for impact in measured)],
        [0.0, max(impact.growth_mb for impact in measured)],
        max(impact.kept_mb for impact in measured),
        sum(impact.sandboxes_left for impact in measured),
    )


def shorten(text: str) -> str:
    """Return a text that fits into the first column."""
    return text if len(text) <= NAME_COLUMNS else f"{text[: NAME_COLUMNS - 1]}…"


def format_figures(impact: Impact | None) -> str:
    """Return what the others noticed of an attack; dots if it concerns nobody else."""
    if impact is None or not impact.latencies_ms:
        return UNMEASURED
    times = (impact.control_p99_ms, impact.p99_ms, impact.longest_stall_ms)
    growth, kept = f"{impact.growth_mb:.1f}", f"{impact.kept_mb:.1f}"
    return FIGURES.format(*(f"{each:.0f}" for each in times), growth, kept, impact.sandboxes_left)


def read_promise(file: Path) -> str:
    """Return the first paragraph of a module's docstring: what its attacks try to break."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split())


def summarize(cases: list[Attack]) -> Iterator[str]:
    """Yield the sentences that a person reads first."""
    attacks = [case for case in cases if case.file.stem != PEACE]
    broken = sum(bool(attack.failure) for attack in attacks)
    yield f"{len(attacks)} attacks, {len(attacks) - broken} held, {broken} did not."
    worst = find_worst(attacks)
    if worst is None:
        return
    peace = find_worst([case for case in cases if case.file.stem == PEACE])
    compared = f", {peace.p99_ms:.0f} without an attack" if peace else ""
    longest = f"{worst.p99_ms:.0f} ms (at most {MAX_P99_MS:.0f}{compared})"
    yield f"Longest p99 of another session's 1+1: {longest}."
    stall = f"{worst.longest_stall_ms:.0f} ms (at most {MAX_STALL_MS:.0f})"
    yield f"Longest stall of the server's event loop: {stall}."
    yield f"Largest growth of the server: {worst.growth_mb:.1f} MB (at most {MAX_GROWTH_MB:.0f})."
    yield f"Most memory kept afterwards: {worst.kept_mb:.1f} MB (at most {MAX_KEPT_MB:.0f})."
    yield f"Sandboxes left: {worst.sandboxes_left} (at most 0)."
