"""What a page makes of the recorded events of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpruntime_server.journal.events import RunFinished, RunStarted
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.viewer.code_highlighting import MAX_CODE_LINES
from mcpruntime_server.viewer.step_views import build_step_view


@pytest.mark.parametrize("extra", [0, 1])
async def test_the_page_says_that_it_does_not_show_all_lines_of_the_code(
    tmp_path: Path, extra: int
) -> None:
    code = "x = 1\n" * (MAX_CODE_LINES + extra)
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", "", "me")
        journal.append("s_1", RunStarted("r_1", None, 1, code, "<step 1>", 60.0), "r_1")
        journal.append("s_1", RunFinished("ok"), "r_1")
        await journal.flush()
        row, session = await journal.load_run("r_1"), await journal.find_session("s_1", "me")
        view = build_step_view(row, session, await journal.load_run_parts(row, []), {}, [])
    assert len(view.code_lines) == MAX_CODE_LINES
    assert view.damage == ("The code is too long to be shown whole.",) * extra
