"""Attacks that made others wait too long are repeated, because other processes can do that, too.

Each of three rounds has a new server, and the median counts. A round that fails for any other
reason is not repeated: its report is the result.
"""

from __future__ import annotations

import pytest
from _pytest.runner import runtestprotocol

from .bystander import BystanderWaited, Impact, impacts

ROUND_COUNT = 3
Round = tuple[list[pytest.TestReport], Impact]


def run_rounds(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run an attack, three times if its bystander waits too long; return the reports that count."""
    rounds: list[Round] = []
    while len(rounds) < ROUND_COUNT:
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if item.nodeid not in impacts:
            return reports
        rounds.append((reports, impacts[item.nodeid]))
        failed = [report for report in reports if report.failed]
        if not all(map(has_waited, failed)) or (not failed and len(rounds) == 1):
            return reports
        if len(rounds) < ROUND_COUNT:
            item.session._setupstate.teardown_exact(None)  # so that the next round sets up anew
    rounds.sort(key=lambda done: done[1].slowness)
    reports, impacts[item.nodeid] = rounds[ROUND_COUNT // 2]
    return reports


def has_waited(report: pytest.TestReport) -> bool:
    """Return whether an attack has failed only because others waited too long."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash is not None and BystanderWaited.__name__ in crash.message.partition(":")[0]
