"""A run and a session record no more than their limits, whichever servers do so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpruntime_server.errors import JournalLimitReached
from mcpruntime_server.journal.events import CallFinished, OutputWritten, RunFinished, RunStarted
from mcpruntime_server.journal.quotas import MB, JournalLimits
from mcpruntime_server.journal.store import open_journal

LIMITS = JournalLimits(run_bytes=MB, session_bytes=3 * MB, download_bytes=2 * MB)
HALF = OutputWritten("stdout", "x" * (MB * 6 // 10))


def started(run: str) -> RunStarted:
    return RunStarted(run, None, 1, "1 + 1", "<step 1>", 120.0)


async def test_a_resumed_run_has_what_is_left_of_its_limit(tmp_path: Path) -> None:
    async with open_journal(tmp_path, limits=LIMITS) as journal:
        await journal.create_session("s_1", None, "me")
        journal.append("s_1", started("r_1"), "r_1")
        journal.append("s_1", HALF, "r_1")
    async with open_journal(tmp_path, limits=LIMITS) as journal:
        await journal.claim_session("s_1")
        journal.append("s_1", OutputWritten("stdout", "little"), "r_1")
        with pytest.raises(JournalLimitReached, match="The run has recorded 1 MB"):
            journal.append("s_1", HALF, "r_1")
        journal.append("s_1", RunFinished("error"), "r_1")
        journal.append("s_1", started("r_2"), "r_2")
        journal.append("s_1", HALF, "r_2")


async def test_a_session_has_what_is_left_of_its_limit(tmp_path: Path) -> None:
    for number in range(4):
        async with open_journal(tmp_path, limits=LIMITS) as journal:
            if number:
                await journal.claim_session("s_1")
            else:
                await journal.create_session("s_1", None, "me")
            run = f"r_{number}"
            journal.append("s_1", started(run), run)
            journal.append("s_1", HALF, run)
            journal.append("s_1", RunFinished("ok"), run)
    async with open_journal(tmp_path, limits=LIMITS) as journal:
        await journal.claim_session("s_1")
        journal.append("s_1", started("r_5"), "r_5")
        with pytest.raises(JournalLimitReached, match="The session has recorded 3 MB"):
            journal.append("s_1", HALF, "r_5")


async def test_downloads_have_a_limit_of_their_own_and_count_for_the_session(
    tmp_path: Path,
) -> None:
    async with open_journal(tmp_path, limits=LIMITS) as journal:
        await journal.create_session("s_1", None, "me")
        journal.append("s_1", started("r_1"), "r_1")
        journal.count_download("s_1", "r_1", MB * 3 // 2)
        journal.append("s_1", CallFinished(1, download_bytes=MB * 3 // 2), "r_1")
        journal.append("s_1", HALF, "r_1")
        with pytest.raises(JournalLimitReached, match="has downloaded 2 MB") as caught:
            journal.count_download("s_1", "r_1", MB)
        assert "[network] download_mb" in caught.value.remedy
    async with open_journal(tmp_path, limits=LIMITS) as journal:
        await journal.claim_session("s_1")
        with pytest.raises(JournalLimitReached, match="has downloaded 2 MB"):
            journal.count_download("s_1", "r_1", MB)
        journal.append("s_1", RunFinished("ok"), "r_1")
        journal.append("s_1", started("r_2"), "r_2")
        with pytest.raises(JournalLimitReached, match="The session has recorded 3 MB"):
            journal.count_download("s_1", "r_2", MB)
        journal.count_download("s_1", "r_2", MB // 2)
