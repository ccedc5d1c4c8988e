"""One server with an upstream for the attacks of a module, and which attacks run where.

`make attack` runs all of them, measures what each does to others, and prints a table. So does
naming them: `pytest tests/attacks`. Everything else, such as `make test`, runs a choice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from tests.helpers.http_service import HttpService
from tests.helpers.loop_watch import IS_MEASURED
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry

from .report import AttackLog
from .rounds import run_rounds

FOLDER = "tests/attacks/"
ATTACKS = AttackLog()
NUMBERS = count()
# What `make test` runs: modules, tests or single cases. A few of each class, and quick ones.
CHOICE = (
    "test_credentials.py",
    "test_entrances.py::test_a_line_that_is_no_request_ends_nothing[auto-an id that is true]",
    "test_entrances.py::test_a_line_that_is_no_request_ends_nothing[legacy-an id that is true]",
    "test_entrances.py::test_an_upstream_that_says_it_gets_an_error_or_is_quoted[auto-half",
    "test_entrances.py::test_settings_with_it_are_explained",
    "test_file_modes.py::test_only_the_user_may_read",
    "test_forged_calls.py::test_a_forged_message_costs_its_own_run_at_most[a target with half",
    "test_forged_calls.py::test_a_forged_message_costs_its_own_run_at_most[a long field]",
    "test_foreign_words.py::test_only_the_server_speaks_at_the_margin",
    "test_foreign_words.py::test_printed_lines_are_indented",
    "test_given_up_sandboxes.py::test_the_container_is_gone_before_anybody_asks_for_it[garbage]",
    "test_hostile_archives.py::test_an_archive_that_expands_to_a_disk_is_refused",
    "test_hostile_guides.py::test_a_guide_is_shown_within_bounds[aliases]",
    "test_hostile_guides.py::test_a_guide_is_shown_within_bounds[tags]",
    "test_hostile_schemas.py::test_an_address_is_compared_with_templates_in_bounded_time",
    "test_http_clients.py::test_a_hostile_client_costs_others_nothing[open connections]",
    "test_http_clients.py::test_a_hostile_client_costs_others_nothing[send a long opening]",
    "test_http_clients.py::test_a_hostile_client_costs_others_nothing[send heads slowly]",
    "test_journal_limits.py::test_a_run_records_no_more_than_its_limit[arguments]",
    "test_link_bounds.py::test_others_are_served_and_the_server_stays_small[a long name]",
    "test_link_bounds.py::test_others_are_served_and_the_server_stays_small[calls with one id]",
    "test_neighbours.py::test_the_memory_of_the_supervisor_and_of_parked_copies_is_closed",
    "test_neighbours.py::test_a_process_of_an_earlier_run_neither_ends_the_next_one_nor_calls",
    "test_signed_skills.py::test_a_signed_skill_is_not_replaced",
    "test_skill_reports.py::test_no_run_has_a_skill_retired",
    "test_terminal.py",
    "test_upstream_http.py::test_a_call_gets_its_result_or_a_clear_error[blank_header]",
    "test_upstream_processes.py::test_no_process_of_an_upstream_outlives_the_server[stubborn",
    "test_unwritable_answers.py::test_a_forged_message_ends_at_most_its_sandbox[auto-an error]",
    "test_unwritable_answers.py::test_an_answer_that_cannot_be_written_is_an_error_to_its_request",
    "test_unwritable_answers.py::test_front_matter",
    "test_web_requests.py::test_web_requests_cost_their_own_session_at_most[chunks without end]",
    "test_web_requests.py::test_web_requests_cost_their_own_session_at_most[headers without end]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the attacks that are not in the choice, unless the attacks are what is asked for."""
    if any("attacks" in argument for argument in config.args):
        return
    attacks = [item for item in items if item.nodeid.startswith(FOLDER)]
    chosen = {each for each in CHOICE for item in attacks if item.nodeid.startswith(FOLDER + each)}
    is_part = config.getoption("lf")  # then only what failed is collected
    if attacks and not is_part and len(chosen) < len(CHOICE):
        raise pytest.UsageError(f"CHOICE names no attack: {set(CHOICE) - chosen}")
    skipped = pytest.mark.skip(reason="one of the attacks that only `make attack` runs")
    for item in attacks:
        if not item.nodeid.startswith(tuple(FOLDER + each for each in CHOICE)):
            item.add_marker(skipped)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run an attack in rounds where it is measured."""
    if not IS_MEASURED or not item.nodeid.startswith(FOLDER):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run_rounds(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


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


@pytest.fixture
async def bystander(service: HttpService) -> AsyncIterator[ServerConnection]:
    """The client of somebody else, who has not sent anything yet; `service` is its module's."""
    async with service.connect(service.create_token(f"bystander{next(NUMBERS)}")) as connection:
        yield connection
