"""Where variables come from, as the recorded code says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from playwright.async_api import expect

from mcpruntime_server.journal.events import RunFinished, RunStarted
from mcpruntime_server.journal.overviews import ExecutedCode, load_executed_code
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.viewer.variable_sources import find_sources

from .conftest import Viewer
from .test_inspection import open_step


def trace(*codes: str, failed_line: int = 0, fresh: int = 0) -> dict[str, tuple[int, int, int]]:
    """Return step and line where each variable was set, and the step where it may have changed.

    The last step failed in `failed_line`, if that is given, and step number `fresh` started anew.
    """
    steps = [
        ExecutedCode(
            f"r_{step}",
            step,
            code,
            succeeded=not failed_line or step < len(codes),
            failed_line=failed_line,
            is_fresh=step == fresh,
        )
        for step, code in enumerate(codes, 1)
    ]
    return {
        name: (
            source.set_in.step,
            source.set_in.line,
            source.changed_in.step if source.changed_in else 0,
        )
        for name, source in find_sources(steps[::-1]).items()
    }


def test_a_failed_step_of_much_code_is_not_parsed() -> None:
    assert trace("x = 1", "y = [1]\n" * 1_000_000, failed_line=9) == {"x": (1, 1, 0)}


async def test_the_code_of_the_newest_steps_is_read_as_far_as_it_is_short(
    tmp_path: Path,
) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", "", "me")
        parent = None
        for step in range(1, 4):
            run, code = f"r_{step}", f"x = {step}"
            journal.append("s_1", RunStarted(run, parent, step, code, "<step>", 60.0), run)
            journal.append("s_1", RunFinished("ok"), run)
            parent = run
        await journal.flush()
        for max_chars, codes in ((15, ["x = 3", "x = 2", "x = 1"]), (14, ["x = 3", "x = 2"])):
            load = partial(
                load_executed_code, blobs=journal.blobs, run_id="r_3", limit=9, max_chars=max_chars
            )
            assert [each.code for each in await journal.read(load)] == codes


def test_the_newest_assignment_is_the_source() -> None:
    assert trace("a = 1\nb = 2", "a = 3\nc = a", "c") == {
        "a": (2, 1, 0),
        "b": (1, 2, 0),
        "c": (2, 2, 0),
    }


def test_loops_imports_and_definitions_set_names() -> None:
    code = "import os.path as p\nfor n in range(3):\n    last = n\ndef f(x):\n    y = x\n"
    code += "with p as q: pass"
    assert trace(code) == {
        "p": (1, 1, 0),
        "n": (1, 2, 0),
        "last": (1, 2, 0),
        "f": (1, 4, 0),
        "q": (1, 6, 0),
    }


def test_a_change_of_an_object_is_told_apart() -> None:
    assert trace("rows = []", "rows.append(1)", "len(rows)")["rows"] == (1, 1, 2)
    assert trace("rows = []", "rows.append(1)", "rows = [2]")["rows"] == (3, 1, 0)


@pytest.mark.parametrize(
    "code", ["exec('a = 2')", "from os import *", "globals()['a'] = 2", "if 1:\n    exec('a = 2')"]
)
def test_code_that_may_set_anything_makes_sources_unknown(code: str) -> None:
    assert trace("a = 1", code, "b = 1") == {"b": (3, 1, 0)}


def test_what_functions_set_is_unknown() -> None:
    code = "def f():\n    global a\n    a = 2"
    assert trace("a = 1", code, "f()") == {"f": (2, 1, 0)}


def test_a_step_that_failed_counts_as_far_as_it_came() -> None:
    code = "a = 2\nfor n in [1, 0]:\n    b = 1 / n\nc = 3"
    assert trace("a = 1\nc = 1", code, failed_line=3) == {
        "a": (2, 1, 0),
        "n": (2, 2, 0),
        "b": (2, 2, 0),
        "c": (1, 2, 0),
    }
    assert trace("a = 1", "a = 1 / 0", failed_line=1) == {"a": (1, 1, 0)}


def test_a_step_that_started_anew_has_nothing_of_those_before() -> None:
    assert trace("a = 1", "b = 1", "c = 1", fresh=2) == {"b": (2, 1, 0), "c": (3, 1, 0)}


def test_code_that_cannot_be_read_has_no_sources() -> None:
    assert trace("a = 1", "a = = 2") == {}
    assert trace("a = 1", "x" + "[0" * 5_000) == {}


async def test_the_table_of_variables_has_their_sizes_and_what_the_step_changed(
    viewer: Viewer,
) -> None:
    async with viewer.api() as api:
        await api.execute("rows, gone, kept = [1], 2, 'abc'", session="sizes")
        [*_, end] = await api.execute("rows.append(2)\ndel gone\nmade = {}", session="sizes")
    async with viewer.open(f"/s/{end.data['session']}/{end.data['run']}") as page:
        await page.click("[data-variables]")
        table = page.locator(".variables")
        await expect(table.locator("tr.variable-changed")).to_have_count(1)
        cells = await table.locator("tr.variable-changed td").all_inner_texts()
        assert cells == ["rows changed", "list", "2", "[1, 2]", "step 1, changed in this step"]
        await expect(table.locator("tr.variable-added")).to_contain_text("made")
        await expect(table.locator("tr", has_text="gone")).to_contain_text("deleted")
        await expect(table.locator("tr.variable-unchanged")).to_contain_text("kept")


async def test_the_table_of_variables_leads_to_the_step_that_set_one(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, 9)) as page:
        await page.click("[data-variables]")
        row = page.locator(".variables tr", has=page.locator("code:text-is('totals')"))
        await expect(row.locator(".variable-source")).to_have_text("step 6")
        here = page.locator(".variables tr", has=page.locator("code:text-is('place')"))
        await expect(here.locator(".variable-source")).to_have_text("this step")
        await row.locator(".variable-source a").click()
        await expect(page.locator(".panel h2")).to_have_text("Step 6")
        await expect(page.locator("#L1")).to_have_class("is-target")
