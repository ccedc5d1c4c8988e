"""An upstream that sends too much, too fast, too deep or without end harms its own calls alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry

from .bystander import observe

TOO_LONG = "answered {name} with more than 8 MB"
TOO_MANY = "answered {name} with more than 250,000 JSON values"
FLOOD = "(done|messages a second that nobody has asked for)"
ANSWERS = {
    "kind": "hello",
    "long_text": TOO_LONG,
    "escaped_text": TOO_LONG,
    "wide_text": TOO_LONG,
    "longer_text": TOO_LONG,
    "late_id": TOO_LONG,
    "long_error": TOO_LONG,
    "no_end": TOO_LONG,
    "many_objects": TOO_MANY,
    "many_numbers": TOO_MANY,
    "many_keys": TOO_MANY,
    "many_blocks": TOO_MANY,
    "large_text": "x{100}",
    "large_escapes": "\n{100}",
    "large_wide_text": "\u20ac{100}",
    "large_object": r"\[\{\}",
    "large_numbers": r"\[1234567890\.5",
    "large_keys": "'0': 0",
    "large_json_text": r"\[\{'a': 'xxx",
    "large_blocks": r"\['t'",
    "large_error": "(failed){100}",
    "large_failure": "(failed){100}",
    "large_log_line": "(done|did not answer)",
    "other_answers": "done",
    "deep": "answered deep with values nested more than 200 levels deep",
    "long_number": "answered long_number in violation",
    "half_deep": "nested more than 200 levels deep",
    "half_a_character": r"a\?b|a.b",
    "sampling": FLOOD,
    "forms": FLOOD,
    "roots": FLOOD,
    "pings": FLOOD,
    "changes": FLOOD,
    "log_lines": FLOOD,
    "long_log_lines": FLOOD,
    "longer_log_line": FLOOD,
    "progress": FLOOD,
    "cancels": FLOOD,
    "answers": FLOOD,
    "answers_twice": "done",
    "odd_answers": FLOOD,
    "no_messages": FLOOD,
    "empty_lines": "done",
    "long_ids": "done",
}
LISTINGS = {
    "same_page": "nothing new, and yet a next page",
    "same_cursor": "`max_pages` under",
    "new_pages": "`max_pages` under",
    "empty_pages": "nothing new, and yet a next page",
    "large_tools": "",
    "changing_tools": "",
    "many_tools": "`max_tools` under",
    "long_tools": "`tools_mb` under",
    "long_cursors": "the address of page 2 is too long",
    "slow_pages": "`timeout_s` under",
}
TIMEOUT_S = 20  # of a call
FLOOD_TIMEOUT_S = 2  # a flood is read slowly for longer than that


@pytest.fixture(scope="module")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with an upstream for each attack: floods go on after their call has ended."""
    upstreams = {
        name: own_server_entry(
            "attacker", "calls", timeout_s=FLOOD_TIMEOUT_S if words == FLOOD else TIMEOUT_S
        )
        for name, words in ANSWERS.items()
    }
    upstreams |= {
        name: own_server_entry("attacker", name, timeout_s=TIMEOUT_S, max_pages=40)
        for name in LISTINGS
    }
    upstreams["slow_pages"]["timeout_s"] = 6
    settings = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    async with connect_server(settings) as connection:
        yield connection


@pytest.mark.parametrize("attack", ANSWERS)
async def test_a_call_gets_its_result_or_a_clear_error(
    attacked: ServerConnection, attack: str
) -> None:
    expected = ANSWERS[attack].replace("{name}", attack)
    code = (
        f"import re\nfrom tools.{attack} import {attack}, kind\n"
        f"try: said = str({attack}())\nexcept Exception as exc: said = str(exc)\n"
        f"bool(re.search({expected!r}, said)) or said[:300]"
    )
    async with observe(attacked):
        assert await attacked.evaluate(code, attack) is True
    if ANSWERS[attack] != FLOOD:  # after a flood, an answer has to wait for its turn
        assert (
            await attacked.evaluate(f"from tools.{attack} import kind\nkind()", attack) == "hello"
        )


@pytest.mark.parametrize("attack", LISTINGS)
async def test_a_list_of_tools_ends_and_says_what_cut_it(
    attacked: ServerConnection, attack: str
) -> None:
    code = f"import tools\n[*tools.list('{attack}').problems, ''][0]"
    async with observe(attacked):
        assert LISTINGS[attack] in await attacked.evaluate(code, attack)
        misspelt = await attacked.run(f"from tools.{attack} import kind, knd", attack)
        assert misspelt.status == "error"
        assert (
            await attacked.evaluate(f"from tools.{attack} import kind\nkind()", attack) == "hello"
        )
