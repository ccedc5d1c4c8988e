"""One server with an upstream for the attacks of a module, and which attacks run where.

`make attack` runs all of them, measures what each does to others, and prints a table. So does
naming them: `pytest tests/attacks`. Everything else, such as `make test`, runs a choice.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry

from .bystander import IS_MEASURED
from .report import AttackLog

sys.path.append(str(Path(__file__).parents[2] / "bench"))  # for its model server

FOLDER = "tests/attacks/"
ATTACKS = AttackLog()
# What `make test` runs: modules, tests or single cases. A few of each class, and quick ones.
CHOICE = (
    "test_terminal.py",
    "test_foreign_words.py",
    "test_unwritable_answers.py",
    "test_given_up_sandboxes.py::test_the_container_is_gone_before_anybody_asks_for_it[garbage]",
    "test_link_bounds.py::test_others_are_served_and_the_server_stays_small[a long name]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the attacks that are not in the choice, unless the attacks are what is asked for."""
    if any("attacks" in argument for argument in config.args):
        return
    chosen = tuple(FOLDER + each for each in CHOICE)
    skipped = pytest.mark.skip(reason="one of the attacks that only `make attack` runs")
    for item in items:
        if item.nodeid.startswith(FOLDER) and not item.nodeid.startswith(chosen):
            item.add_marker(skipped)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of an attack."""
    if report.nodeid.startswith(FOLDER):
        ATTACKS.record(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of the attacks."""
    if IS_MEASURED:
        ATTACKS.write(terminalreporter)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with an upstream."""
    upstreams = {"lively": own_server_entry("lively")}
    settings = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    async with connect_server(settings) as connection:
        yield connection
