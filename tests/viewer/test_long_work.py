"""Work that takes long, lost connections, and sessions that go away while somebody looks."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from playwright.async_api import Page, Route, expect

from ..helpers.relay import open_relay
from .conftest import Viewer

PAUSE = "import time\nfor place in range(3):\n    time.sleep(0.6)\nplace"


async def execute(viewer: Viewer, code: str, session: str) -> str:
    """Execute code and return the address of its step."""
    async with viewer.api() as api:
        [*_, end] = await api.execute(code, session=session)
    return f"/s/{end.data['session']}/{end.data['run']}"


async def probe(page: Page, line: int, expression: str) -> None:
    """Ask for a value at a line."""
    await page.fill("#probe-line", str(line))
    await page.fill("#probe-expression", expression)
    await page.click("[data-probe-form] button")


async def test_a_long_probe_says_how_long_it_may_take_and_can_be_cancelled(
    viewer: Viewer,
) -> None:
    async with viewer.open(await execute(viewer, PAUSE, "long probe")) as page:
        await probe(page, 3, "place")
        state = page.locator("[data-probe-state]")
        await expect(state).to_contain_text("when it was recorded")
        await page.click("[data-probe-form] >> text=Cancel")
        await expect(state).to_have_text("Cancelled.")
        await probe(page, 4, "place")  # the sandbox of the one that was cancelled is free
        await expect(page.locator(".probe-result")).to_contain_text("2")
        await expect(page.locator("[data-probe-form] button")).to_have_text("Print")


async def test_a_step_that_begins_while_the_page_loads_is_followed(viewer: Viewer) -> None:
    first = await execute(viewer, "1", "followed early")
    has_begun = anyio.Event()

    async def hold(route: Route) -> None:
        await has_begun.wait()
        await route.continue_()

    async with viewer.open() as page:
        await page.route(re.compile(r"/steps\?"), hold)
        await page.goto(viewer.base + first)
        await expect(page.locator(".panel h2")).to_have_text("Step 1")
        await execute(viewer, "2", "followed early")
        has_begun.set()
        await expect(page.locator(".panel h2")).to_have_text("Step 2")


async def test_an_attempt_without_an_end_is_cancelled(viewer: Viewer) -> None:
    async with viewer.open(await execute(viewer, "1 + 1", "endless")) as page:
        await page.click("[data-try]")
        await page.fill("#try-code", "while True:\n    pass")
        await page.click("text=Execute and compare")
        await expect(page.locator("dialog .progress")).to_contain_text(" s")  # its clock runs
        await page.click("dialog >> text=Cancel")
        await expect(page.locator("dialog [role=alert]")).to_have_text("Cancelled.")
        await page.fill("#try-code", "1 + 2")
        await page.click("text=Execute and compare")
        await expect(page.locator(".try-result")).to_contain_text("3")


async def test_a_question_is_cancelled(viewer: Viewer) -> None:
    async with viewer.open(await execute(viewer, "x = 5", "endless question")) as page:
        await page.fill("#ask-code", "[None for _ in iter(int, 1)]")
        await page.click("[data-ask] button")
        await page.click("[data-ask] >> text=Cancel")
        await expect(page.locator(".answers [role=alert]")).to_have_text("Cancelled.")
        await page.fill("#ask-code", "x + 1")
        await page.click("[data-ask] button")
        await expect(page.locator(".answer")).to_contain_text("6")


async def test_a_lost_connection_is_said_and_made_up_for(viewer: Viewer) -> None:
    address = await execute(viewer, "'before'", "lost")
    port = urlsplit(viewer.base).port
    assert port is not None
    async with open_relay(port) as relay, viewer.open() as page:
        base = f"http://127.0.0.1:{relay.port}"
        await page.goto(f"{base}/login")
        await page.fill("#token", viewer.token)
        await page.click("button:has-text('Log in')")
        await page.wait_for_url(f"{base}/")
        await page.goto(base + address)
        await expect(page.locator(".rail-row")).to_have_count(1)
        relay.cut()
        await expect(page.locator("[data-connection]")).to_contain_text("Connection lost")
        await page.fill("#ask-code", "1")
        await page.click("[data-ask] button")
        await expect(page.locator(".answers [role=alert]")).to_contain_text("does not answer")
        await execute(viewer, "print('meanwhile')", "lost")
        relay.mend()
        await expect(page.locator("[data-connection]")).to_be_hidden()
        await expect(page.locator(".panel h2")).to_have_text("Step 2")
        await expect(page.locator(".lines")).to_contain_text("meanwhile")


async def test_actions_on_a_session_that_was_deleted_are_explained(viewer: Viewer) -> None:
    address = await execute(viewer, "value = 1", "deleted meanwhile")
    async with viewer.open(address) as page, viewer.api() as api:
        await expect(page.locator(".rail-row")).to_have_count(1)
        await page.route("**/changes", lambda route: route.abort())
        await page.reload()  # nobody tells this page
        await expect(page.locator(".panel h2")).to_be_visible()
        session = address.split("/")[2]
        assert (await api.delete(f"/sessions/{session}")).status_code == 204
        await page.click("[data-pin]")
        await expect(page.locator(".toast.error").first).to_contain_text("There is no run")
        await page.click("[data-variables]")
        await expect(page.locator("[data-variable-list] [role=alert]")).to_be_visible()
        response = await page.reload()
        assert response is not None
        assert response.status == 404
        await expect(page.locator("h1")).to_be_visible()


async def test_steps_that_are_executed_again_are_counted_and_can_be_cancelled(
    viewer: Viewer,
) -> None:
    first = await execute(viewer, "x = 1", "counted")
    for number in range(3):
        await execute(viewer, f"import time\ntime.sleep(0.4)\nx += {number}\nx", "counted")
    async with viewer.open(first) as page:
        await page.click("[data-try]")
        await page.fill("#try-code", "x = 10")
        await page.check("#try-following")
        progress = page.locator("dialog .progress")
        await page.click("text=Execute and compare")
        await expect(progress).to_contain_text(
            re.compile("Step [234] is executed again, [234] of 4.")
        )
        await page.click("dialog >> text=Cancel")
        await expect(page.locator("dialog [role=alert]")).to_have_text("Cancelled.")
        await page.click("text=Execute and compare")
        await expect(page.locator(".difference")).to_have_count(4)
        await expect(page.locator(".try-result")).to_contain_text("13")


async def test_a_data_frame_is_written_and_downloaded(viewer: Viewer, tmp_path: Path) -> None:
    code = "class DataFrame:\n"
    code += "    def __repr__(self): return 'a frame'\n"
    code += "    def to_csv(self, file, index): open(file, 'w').write('name,n\\n=1,1\\nb,2\\n')\n"
    code += "DataFrame()"
    async with viewer.open(await execute(viewer, code, "frame")) as page:
        await page.click(".menu summary")
        async with page.expect_download() as started:
            await page.click("text=Value as CSV")
        download = await started.value
        assert download.suggested_filename == "frame-step-1.csv"
        await download.save_as(tmp_path / "table.csv")
        assert (tmp_path / "table.csv").read_text() == "name,n\n'=1,1\nb,2\n"
        await expect(page.locator("dialog")).to_have_count(0)
    code = "class DataFrame: pass\nDataFrame()"
    async with viewer.open(await execute(viewer, code, "frame")) as page:
        await page.click(".menu summary")
        await page.click("text=Value as CSV")
        await expect(page.locator("dialog [role=alert]")).to_contain_text("writes CSV")
