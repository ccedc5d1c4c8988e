"""Schemas, patterns and address templates of an upstream hold up nobody but who uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry
from tests.upstreams.schemer import CALLED, LISTED

from .bystander import observe

UNUSED = "its output schema exceeds a bound, so that its answers are passed on"
VIOLATION = "it does not follow its output schema"
OUTCOMES = {
    "pattern_nested": VIOLATION,
    "pattern_overlapping": VIOLATION,
    "pattern_looking_ahead": VIOLATION,
    "pattern_repeating": "the schema is not valid",
    "pattern_of_names": VIOLATION,
    "growing_all": UNUSED,
    "growing_any": UNUSED,
    "referring_far": "the schema is not valid",
    "referring_to_a_file": "the schema is not valid",
    "many_allowed_values": UNUSED,
    "nested_deeply": UNUSED,
    "no_answer_of_its_kind": VIOLATION,
}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with two upstreams that attack it."""
    upstreams = {name: own_server_entry("schemer", name) for name in ("called", "listed")}
    settings = write_settings(tmp_path_factory.mktemp("schemas"), mcpServers=upstreams)
    async with connect_server(settings) as connection:
        yield connection


@pytest.mark.parametrize("tool", CALLED)
async def test_an_answer_is_compared_with_its_schema_in_bounded_time(
    server: ServerConnection, tool: str
) -> None:
    code = (
        f"from tools.called import {tool}\n"
        f"try: said = repr({tool}())[:100]\nexcept Exception as exc: said = 'failed: ' + str(exc)\n"
        "said"
    )
    await server.run("from tools import called", "attacker", timeout_s=60)
    async with observe(server):
        answer = await server.run(code, "attacker", timeout_s=60)
        assert answer.status == "ok", answer.text
    expected = OUTCOMES.get(tool)
    if expected == UNUSED:
        assert "failed" not in answer.text
    elif expected is not None:
        assert expected in answer.text


@pytest.mark.parametrize("tool", LISTED)
async def test_a_module_is_generated_in_bounded_time(server: ServerConnection, tool: str) -> None:
    async with observe(server):
        answer = await server.run(
            f"import tools\nfrom tools.listed import {tool}\nhelp({tool})", "reader", timeout_s=60
        )
        assert answer.status == "ok", answer.text


async def test_a_tool_without_its_schema_says_so(server: ServerConnection) -> None:
    shown = await server.run(
        "from tools.called import growing_all\nfrom tools.listed import wide\n"
        "help(growing_all); help(wide)",
        "reader",
        timeout_s=60,
    )
    assert "Its output schema grows to more than 10,000 parts" in shown.text
    assert "Its input schema has more than 20,000 parts" in shown.text


@pytest.mark.parametrize(
    "address", ["a://" + "a" * 996, "a://" + "a" * 30_000, "a://" + "ab" * 498, "a" * 1_000]
)
async def test_an_address_is_compared_with_templates_in_bounded_time(
    server: ServerConnection, address: str
) -> None:
    await server.run("import tools.called", "attacker", timeout_s=60)
    async with observe(server):
        answer = await server.run("CONTEXT", "attacker", context=[address], timeout_s=60)
        assert answer.text
