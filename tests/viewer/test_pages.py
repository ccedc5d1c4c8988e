"""The pages of sessions and steps, as a person uses them."""

from __future__ import annotations

import re

from playwright.async_api import expect

from mcpruntime_server.viewer.output_windows import FIRST_LINES, WINDOW_LINES

from .conftest import Viewer

FIGURE = re.compile(r"^\d+\.\d$")


async def test_sessions_that_wait_or_have_failed_come_first_with_what_they_were_forked_from(
    viewer: Viewer,
) -> None:
    ask = "from tools.counted import add\nadd(item='x')"
    async with viewer.api() as api, viewer.open() as page:
        waiting = await api.post("/execute", {"code": ask, "session": "asks", "wait_s": 30})
        await api.execute("1", session="root")
        assert (await api.post("/sessions/root/fork", {"name": "twig"})).status_code == 201
        await api.execute("1 / 0", session="twig")
        await api.execute("1 / 0", session="broken")
        await api.execute("1", session="calm")
        await page.reload()
        names = await page.locator(".session-name").all_inner_texts()
        assert names[:5] == ["asks", "broken", "root", "↳twig", "calm"]
        await page.click("text=Failed")
        await expect(page.locator(".session-name")).to_have_text(["broken", "twig"])
        await api.post(f"/runs/{waiting.json()['run']}/cancel")


async def test_the_list_tells_of_failures_and_leads_to_the_newest_step(viewer: Viewer) -> None:
    async with viewer.open() as page:
        await expect(page.locator(".earlier-failures")).to_have_text("1 earlier failure")
        await page.click("text=report")
        await expect(page.locator(".panel h2")).to_have_text("Step 12")
        await expect(page.locator(".rail-row")).to_have_count(12)


async def test_keys_and_the_bar_go_through_the_steps(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        heading = page.locator(".panel h2")
        await expect(page.locator(".rail-row")).to_have_count(12)
        for key, step in (("k", 11), ("ArrowLeft", 10), ("j", 11), ("ArrowRight", 12)):
            await page.keyboard.press(key)
            await expect(heading).to_have_text(f"Step {step}")
        box = await page.locator("[data-scrub]").bounding_box()
        assert box is not None
        await page.mouse.click(box["x"] + 3, box["y"] + 20)
        await expect(heading).to_have_text("Step 1")
        await page.focus("[data-scrub]")
        await page.keyboard.press("End")
        await expect(heading).to_have_text("Step 12")
        await page.reload()
        await expect(heading).to_have_text("Step 12")


async def test_a_step_shows_its_code_calls_and_table(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click(".rail-row >> nth=2")
        await expect(page.locator(".panel h2")).to_have_text("Step 3")
        await expect(page.locator("#L1")).to_contain_text("rows = query")
        await expect(page.locator("#L1 .tok-s1", has_text="SELECT id")).to_be_visible()
        for fact in ("Took", "CPU", "Memory"):
            await expect(page.locator(".panel-head .facts")).to_contain_text(fact)
        await expect(page.locator("[aria-label=Value] tbody tr")).to_have_count(8)
        await expect(page.locator("#call-1 .bar rect")).to_have_attribute("width", FIGURE)
        await expect(page.locator("#call-1 .call-time")).to_have_text(re.compile(r"\d ms$"))
        await page.click("#call-1 summary")
        await expect(page.locator("#call-1 .call-data")).to_contain_text("LIMIT 8")
        await expect(page.locator("#call-1 .call-data")).to_contain_text("placed")


async def test_a_value_folds_and_unfolds(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click(".rail-row >> nth=9")
        limits = page.locator("[aria-label=Value] details", has_text="limits").last
        low = limits.locator(".leaf", has_text="low")
        await expect(low).to_be_visible()
        await limits.locator("summary").click()
        await expect(low).to_be_hidden()
        await limits.locator("summary").click()
        await expect(low).to_have_text("low0.1")


async def test_a_failure_names_its_line(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click(".rail-row >> nth=4")
        await expect(page.locator(".failure")).to_contain_text("undefined_name")
        await expect(page.locator("#L1")).to_have_class(re.compile("is-error"))


async def test_images_and_colours_are_shown(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click(".rail-row >> nth=6")
        image = page.locator(".media img")
        await expect(image).to_be_visible()
        width = "image => image.decode().then(() => image.naturalWidth)"
        assert await image.evaluate(width) == 480
        await page.click(".rail-row >> nth=3")
        await expect(page.locator("#O1 .ansi-fg2")).to_have_text("ok")


async def test_long_output_comes_in_windows_and_lines_have_addresses(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click(".rail-row >> nth=8")
        await expect(page.locator(".output-section h3")).to_contain_text("1,201 lines")
        lines = page.locator(".lines li")
        await expect(lines).to_have_count(FIRST_LINES)
        await page.locator(".output").evaluate("output => output.scrollTop = 1e6")
        await expect(lines).to_have_count(FIRST_LINES + WINDOW_LINES)
        await page.goto(page.url.partition("#")[0] + "#O1100")
        await page.reload()
        await expect(page.locator("#O1100")).to_have_class(re.compile("is-target"))
        await expect(page.locator("#O1100")).to_contain_text("row 01099 checked")
        await expect(page.locator("#O1100")).to_be_in_viewport()


async def test_a_search_finds_code_output_arguments_and_file_names(viewer: Viewer) -> None:
    async with viewer.api() as api, viewer.open() as page:
        await api.execute("name = 'kept'\nopen(f'{name}-9.txt', 'w').write('1')", session="names")
        for text in ("row 00042", "sys.stderr", "LIMIT 8", "kept-9.txt"):
            await page.keyboard.press("/")
            await page.fill("[data-search]", text)
            await page.keyboard.press("Enter")
            await expect(page.locator(".found-list mark").first).to_have_text(text)
        await page.fill("[data-search]", "nowhere to be found")
        await page.keyboard.press("Enter")
        await expect(page.locator("[role=status]").nth(1)).to_contain_text("0 sessions")


async def test_a_running_session_is_followed_by_two_people_and_cancelled(viewer: Viewer) -> None:
    code = (
        "import time\nfor n in range(1000):\n    print('line', n, flush=True)\n    time.sleep(0.1)"
    )
    async with viewer.api() as api, viewer.open() as page, viewer.open() as other:
        first = (await api.post("/execute", {"code": "1", "session": "live"})).json()
        people = (page, other)
        for each in people:
            await each.goto(f"{viewer.base}/s/{first['session']}")
            await expect(each.locator(".rail-row")).to_have_count(1)
        await api.post("/execute", {"code": code, "session": "live", "wait_s": 0})
        for each in people:
            await expect(each.locator(".panel h2")).to_have_text("Step 2")
            await expect(each.locator(".lines li").nth(4)).to_be_visible()
            await expect(each.locator("[data-live]")).to_be_visible()
            await expect(each.locator("[data-variables]")).to_have_count(0)
        await page.click("text=Cancel run")
        for each in people:
            await expect(each.locator(".panel .pill").first).to_have_text("cancelled")
            await expect(each.locator("[data-live]")).to_be_hidden()


async def test_a_gigabyte_of_output_is_cut_where_it_arises_and_the_page_says_so(
    viewer: Viewer,
) -> None:
    code = (
        "import os\nlines = (b'x' * 1023 + b'\\n') * 1024\nfor _ in range(1024): os.write(1, lines)"
    )
    async with viewer.api() as api:
        [*_, end] = await api.execute(code, session="gigabyte")
    async with viewer.open(f"/s/{end.data['session']}") as page:
        await expect(page.locator("[data-dropped]")).to_have_text("1.1 GB were not recorded.")
        await expect(page.locator("[data-line-count]")).to_have_text(re.compile(r"^[\d,]+ lines$"))


async def test_a_line_of_code_has_an_address(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await page.click("#L2 .no", force=True)
        await expect(page).to_have_url(re.compile("#L2$"))
        address = page.url
        await page.goto(viewer.base)
        await page.goto(address)
        await expect(page.locator("#L2")).to_have_class(re.compile("is-target"))


async def test_changed_files_are_compared_and_downloaded(viewer: Viewer) -> None:
    code = "open('notes.md', 'w').write('# Report\\n\\nTotals are <b>wrong</b>.\\n')"
    async with viewer.api() as api, viewer.open() as page:
        forked = (await api.post(f"/sessions/{viewer.session}/fork", {"step": 9})).json()
        await api.post("/execute", {"code": code, "session": forked["session"]})
        await page.goto(f"{viewer.base}/s/{forked['session']}")
        await page.click("text=notes.md >> visible=true >> nth=-1")
        await expect(page.locator(".diff-removed")).to_contain_text("Totals are final.")
        await expect(page.locator(".diff-added")).to_contain_text("Totals are <b>wrong</b>.")
        async with page.expect_download() as download:
            await page.click("a.download >> visible=true >> nth=-1")
        saved = await (await download.value).path()
        assert "<b>wrong</b>" in saved.read_text()


async def test_a_session_is_deleted_after_a_question_and_others_who_see_it_are_told(
    viewer: Viewer,
) -> None:
    async with viewer.api() as api, viewer.open() as page, viewer.open() as other:
        [*_, end] = await api.execute("1 + 1", session="doomed")
        for each in (page, other):
            await each.goto(f"{viewer.base}/s/{end.data['session']}")
            await expect(each.locator(".rail-row")).to_have_count(1)
        await page.click("[data-delete]")
        await page.click("text=Keep it")
        await page.click("[data-delete]")
        await page.click("text=Delete for good")
        await page.wait_for_url(f"{viewer.base}/")
        await expect(page.locator("text=doomed")).to_have_count(0)
        await expect(other.locator("[data-panel] .alert")).to_be_visible()
