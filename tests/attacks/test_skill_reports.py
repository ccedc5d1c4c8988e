"""Forged reports about skills do not add up: one session has one vote, whatever it does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.skills.guides import GuideFolders
from mcpruntime_server.capabilities.skills.library import SkillLibrary
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.capabilities.skills.usage import MIN_FAILING_SESSIONS, count_uses
from mcpruntime_server.journal import queries
from mcpruntime_server.journal.events import CallStarted, RunStarted
from mcpruntime_server.journal.store import Journal, open_journal
from tests.helpers.server_connection import connect_server, write_settings

CODE = "text = 'word'\n[text.upper(), len(text)]"
FORGE = """\
import sys
host = sys.modules['mcpruntime_sandbox.sandboxed.library.tools'].host
for number in range(12):
    report = {'skill': 'shout', 'version': 1, 'ok': False, 'error': 'X', 'KEY': number}
    host.call('skills.used', report)
"""
FORGERIES = {
    "another key": FORGE,
    "another error": FORGE.replace("'X'", "f'X{number}'").replace("'KEY': number", ""),
    "inputs": FORGE.replace("'KEY': number", "'inputs': {'n': number}"),
    "threads": FORGE.replace("for number in range(12):", "def report_one(number):")
    + "from concurrent.futures import ThreadPoolExecutor\n"
    "list(ThreadPoolExecutor().map(report_one, range(12)))\n",
}


async def test_no_run_has_a_skill_retired(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"backend": "local", "pool_size": 0})
    async with connect_server(settings) as server:
        run = await server.run(CODE)
        arguments = {"run": run.run, "name": "shout"}
        saved = await server.client.call_tool("save_skill", arguments)
        assert (saved.structured_content or {})["state"] == "active"
        for name, code in FORGERIES.items():
            forged = await server.run(code, name.replace(" ", "_"))
            assert forged.status == "ok", forged.text
        for _ in range(3):  # in one session
            await server.run(FORGE, "another_key")
        shown = await server.client.call_tool("list_skills", {"name": "shout"})
        assert "runs that used it: 7, failed: 7." in getattr(shown.content[0], "text", "")
    async with open_journal(tmp_path / "data") as journal:
        store = SkillStore(tmp_path / "skills_store")
        library = SkillLibrary(store, journal, lambda _: "", GuideFolders())
        record = await library.find_usage(await library.get("shout"))
        assert (record.uses, record.failing_sessions) == (7, len(FORGERIES))
        assert await library.retire_unused() == []


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path) as opened:
        yield opened


REPORT = {"ok": False, "skill": "shout", "version": 1}


async def report_failure(
    journal: Journal,
    number: int,
    purpose: str = "",
    origin: str | None = None,
    principal: str = "local",
    reports: Sequence[str] = (json.dumps(REPORT),),
) -> str:
    """Let a run of a new session report that a skill failed; return the run's id."""
    session, run = f"s_{number}", f"r_{number}"
    await journal.create_session(session, None, principal, None, purpose, origin)
    journal.append(session, RunStarted(run, None, 1, "", "<step 1>", 10.0), run)
    for each, args in enumerate(reports):
        journal.append(session, CallStarted(each + 1, "skills.used", args, "read", 0), run)
    await journal.flush()
    return run


async def load_uses(journal: Journal) -> list[tuple[str, int, bool, str]]:
    found = await journal.load_skill_uses("local", ["open"])
    return sorted((use.skill, use.version, use.has_succeeded, use.principal) for use in found)


async def test_a_run_counts_once_whatever_it_reports(journal: Journal) -> None:
    reports = [json.dumps({**REPORT, "error": str(number)}) for number in range(12)]
    await report_failure(journal, 1, reports=reports)
    assert await load_uses(journal) == [("shout", 1, False, "local")]
    await report_failure(journal, 2, reports=[*reports, json.dumps({**REPORT, "ok": True})])
    assert await load_uses(journal) == [("shout", 1, False, "local"), ("shout", 1, True, "local")]


MALFORMED = [
    "",
    "[]",
    "{}",
    "[" * 5_000 + "]" * 5_000,
    '{"skill": 1, "version": 2, "ok": true}',
    '{"skill": "shout", "version": true, "ok": true}',
    '{"skill": "shout", "version": 2, "ok": 1}',
    '{"skill": ["shout"], "version": 2, "ok": true}',
    '{"skill": "shout", "version": 2.5, "ok": true}',
]


async def test_malformed_reports_are_skipped(journal: Journal) -> None:
    await report_failure(journal, 1, reports=[*MALFORMED, json.dumps(REPORT)])
    assert await load_uses(journal) == [("shout", 1, False, "local")]


async def test_what_others_report_counts_for_shared_skills_alone(journal: Journal) -> None:
    reports = [json.dumps({**REPORT, "skill": name}) for name in ("shout", "open")]
    await report_failure(journal, 1, principal="bob", reports=reports)
    assert await load_uses(journal) == [("open", 1, False, "bob")]


async def test_the_reports_of_a_principal_are_bounded_and_displace_no_other(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_USES_PER_PRINCIPAL", 3)
    open_skill = {**REPORT, "skill": "open"}
    await report_failure(journal, 1, reports=[json.dumps(open_skill)])
    many = [json.dumps({**open_skill, "version": number}) for number in range(50)]
    await report_failure(journal, 2, principal="bob", reports=many)
    found = [principal for _, _, _, principal in await load_uses(journal)]
    assert sorted(found) == ["bob", "bob", "bob", "local"]


@pytest.mark.parametrize("purpose", ["fork", "agent"])
@pytest.mark.parametrize("is_chain", [True, False], ids=["of each other", "of one session"])
async def test_sessions_made_of_one_session_share_its_vote(
    journal: Journal, purpose: str, is_chain: bool
) -> None:
    origin = first = await report_failure(journal, 0)
    for number in range(1, 12):
        made = await report_failure(journal, number, purpose, origin)
        origin = made if is_chain else first
    uses = await journal.load_skill_uses("local", ())
    record = count_uses(uses, lambda principal, _: principal)["local", "shout", 1]
    assert (record.uses, record.failing_sessions) == (12, 1)


@pytest.mark.parametrize("purpose", ["import", "rerun"])
async def test_imported_and_repeated_sessions_have_no_vote(journal: Journal, purpose: str) -> None:
    for number in range(2 * MIN_FAILING_SESSIONS):
        await report_failure(journal, number, purpose)
    assert await journal.load_skill_uses("local", ()) == []
