"""Looking into a step on its page: prints, questions, variables, and trying a change."""

from __future__ import annotations

import re
from typing import Any

import nbformat
from playwright.async_api import expect

from .conftest import Viewer

READ_NOTEBOOK: Any = nbformat.reads  # without types
IS_SCROLLED_ASIDE = "(element) => element.scrollWidth > element.clientWidth"
LOOP_STEP = 9  # prints 1,200 rows; its line 2 is the head of the loop, its line 3 the body


async def open_step(viewer: Viewer, step: int) -> str:
    """Return the address of a step of the demo."""
    async with viewer.api() as api:
        runs = (await api.get(f"/sessions/{viewer.session}")).json()["runs"]
    (run,) = (each["run"] for each in runs if each["step"] == step)
    return f"/s/{viewer.session}/{run}"


async def test_a_value_is_printed_after_the_fact_on_the_line_that_was_clicked(
    viewer: Viewer,
) -> None:
    async with viewer.open(await open_step(viewer, LOOP_STEP)) as page:
        await page.hover("#L3")
        await page.click("#L3 .probe-mark")
        await page.keyboard.type("place * 2, '<b>' * 2")
        await page.keyboard.press("Enter")
        result = page.locator("#L3 + .probe-result")
        await expect(result).to_contain_text("50 of 1,200 executions")
        await expect(result.locator(".hits li >> nth=3")).to_contain_text('[6, "<b><b>"]')
        await expect(page.locator("[data-probe-state]")).to_contain_text("exactly as recorded")
        await result.locator("button").click()
        await expect(result).to_have_count(0)


async def test_a_wrong_expression_is_explained(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, LOOP_STEP)) as page:
        await page.fill("#probe-line", "999")
        await page.fill("#probe-expression", "place")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-probe-state]")).to_contain_text("no statement on line 999")


async def test_a_step_is_asked_and_lists_its_variables(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, LOOP_STEP)) as page:
        await page.fill("#ask-code", "place, '<img src=x onerror=alert(1)>'")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer")).to_contain_text("1199")
        await expect(page.locator(".answer")).to_contain_text("<img src=x onerror=alert(1)>")
        await page.click("[data-variables]")
        row = page.locator("tr.variable-added", has_text="place")
        await expect(row).to_contain_text("1199")
        await expect(page.locator("tr.variable-unchanged >> nth=0")).to_be_visible()


async def test_a_change_is_tried_and_shown_beside_the_recording(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, LOOP_STEP)) as page:
        await page.click("[data-try]")
        editor = page.locator("#try-code")
        code = await editor.input_value()
        await editor.fill(code.replace("1200", "1198"))
        await page.click("text=Execute and compare")
        result = page.locator(".try-result")
        await expect(result.locator(".side-by-side >> nth=0")).to_contain_text("range(1198)")
        await expect(result).to_contain_text("row 01199 checked")
        await page.click(".dialog-buttons >> text=Close")
        await expect(page.locator("dialog")).to_have_count(0)


async def test_a_recorded_answer_is_changed(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, 3)) as page:
        await page.set_viewport_size({"width": 420, "height": 800})
        await page.click("[data-try]")
        await page.click(".try-calls summary")
        assert not await page.locator("dialog").evaluate(IS_SCROLLED_ASIDE)
        await page.fill(".try-calls textarea", "{nothing}")
        await page.click("text=Execute and compare")
        await expect(page.locator("dialog [role=alert]")).to_contain_text("not valid JSON")
        await page.fill(".try-calls textarea", '[{"id": 7}]')
        await page.click("text=Execute and compare")
        await expect(page.locator(".try-result")).to_contain_text('"id": 7')


async def test_tools_that_are_allowed_are_called_for_real(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, 3)) as page:
        await page.click("[data-try]")
        code = await page.input_value("#try-code")
        await page.fill("#try-code", code.replace("LIMIT 8", "LIMIT 2"))
        await page.fill("#try-live", "nothing")
        await page.click("text=Execute and compare")
        await expect(page.locator("dialog [role=alert]")).to_contain_text("'nothing' is none of")
        await page.fill("#try-live", "")
        await page.click("text=Execute and compare")
        recorded = page.locator(".difference", has_text="Error")
        await expect(recorded).to_contain_text("LIMIT 2")  # is not in the recording
        await page.fill("#try-live", "orders.query")
        await page.click("text=Execute and compare")
        calls = page.locator(".difference h4:has-text('query(') + .side-by-side")
        await expect(calls).to_have_count(2)  # one more, and one less
        await expect(calls.nth(1)).to_contain_text("not called")
        value = page.locator(".difference h4:has-text('Value') + .side-by-side td.added")
        assert (await value.inner_text()).count('"channel"') == 2


async def test_a_step_that_cannot_be_replayed_says_why(viewer: Viewer) -> None:
    async with viewer.api() as api:
        body = {"code": "x = 1\nwhile True: pass", "session": "interrupted", "timeout_s": 0.5}
        run = (await api.post("/execute", {**body, "wait_s": 30})).json()
    async with viewer.open(f"/s/{run['session']}/{run['run']}") as page:
        await page.fill("#probe-expression", "1")
        await page.press("#probe-expression", "Enter")
        state = page.locator("[data-probe-state]")
        await expect(state).to_contain_text("cannot be interrupted at the same place")
        await page.click("[data-try]")
        await page.click("text=Execute and compare")
        await expect(page.locator("dialog [role=alert]")).to_contain_text("was interrupted")


async def test_a_fork_opens_and_files_are_downloaded(viewer: Viewer) -> None:
    address = await open_step(viewer, 3)
    async with viewer.open(address) as page:
        await page.click(".menu summary")
        async with page.expect_download() as download:
            await page.click("text=Value as CSV")
        assert (await download.value).suggested_filename == "report-step-3.csv"
        await page.click("[data-fork]")
        await expect(page.locator(".crumbs .tag")).to_contain_text("forked at step 3")


async def test_a_step_is_pinned_and_unpinned(viewer: Viewer) -> None:
    async with viewer.open(await open_step(viewer, 3)) as page:
        await page.click("text=Pin")
        await expect(page.locator("[data-pin]")).to_have_text("Unpin")
        await page.reload()
        await page.click("text=Unpin")
        await expect(page.locator("[data-pin]")).to_have_text("Pin")


async def test_a_rewind_asks_first_and_the_session_goes_on_from_there(viewer: Viewer) -> None:
    async with viewer.api() as api:
        for code in ("place = 1", "place = 2"):
            [*_, end] = await api.execute(code, session="rewound")
        async with viewer.open(f"/s/{end.data['session']}") as page:
            await expect(page.locator(".panel h2")).to_have_text("Step 2")
            await page.keyboard.press("k")
            await expect(page.locator(".panel h2")).to_have_text("Step 1")
            await page.click("text=Rewind")
            await page.click("text=are you sure")
            await expect(page.locator(".toast")).to_contain_text("continues from step 1")
            await expect(page.locator(".rail-row.is-aside")).to_have_count(1)
        [*_, end] = await api.execute("place", session="rewound")
        assert end.data["value"] == 1


async def test_a_step_and_its_session_are_downloaded_as_files_that_need_nothing_else(
    viewer: Viewer,
) -> None:
    async with viewer.open(await open_step(viewer, LOOP_STEP)) as page:
        saved = {}
        for kind in ("Step as HTML", "Session as notebook"):
            await page.click(".menu summary")
            async with page.expect_download() as download:
                await page.click(f"text={kind}")
            saved[kind] = (await (await download.value).path()).read_text()
            await page.click(".menu summary")
    assert "row 01199 checked" in saved["Step as HTML"]
    assert not re.search(r"<(?:script|link)|src=|@import|url\(", saved["Step as HTML"])
    notebook = READ_NOTEBOOK(saved["Session as notebook"], as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) >= LOOP_STEP
