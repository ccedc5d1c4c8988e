"""The pages of skills."""

from __future__ import annotations

import re

from playwright.async_api import expect

from .conftest import Viewer

COUNT_STATUS = """from tools.orders import query
unused = 'not needed'
status = 'open'
rows = query(sql='SELECT count(*) AS n FROM orders WHERE status = ?', params=[status])
rows[0]['n']"""


async def test_a_skill_is_read_compared_retired_and_promoted(viewer: Viewer) -> None:
    async with viewer.service.connect(viewer.token) as client:
        for code in ("price = 12\nprice * 2", "price = 12\nprice * 3 + 1"):
            run = await client.run(code, session="skills")
            saved = await client.client.call_tool("save_skill", {"run": run.run, "name": "double"})
            assert not saved.is_error, saved
        await client.run("from skills.double import run\nrun(3)", session="skills")
    async with viewer.open("/skills") as page:
        await expect(page.locator(".skill-list")).to_contain_text("1 use")
        await page.click(".session-name:has-text('double')")
        await expect(page.locator(".facts")).to_contain_text(re.compile(r"Worked\s*1 of 1"))
        await expect(page.locator(".code")).to_contain_text("def run")
        await expect(page.locator(".diff-added").first).to_be_visible()
        await expect(page.locator("[aria-label=Cases]")).to_contain_text("37")
        for button, state in (("Retire", "retired"), ("Promote", "active")):
            await page.click(f"button:has-text('{button}')")
            await expect(page.locator(".panel-head .pill")).to_have_text(state)
    async with viewer.open("/skills", viewer.service.create_token("bob")) as page:
        await expect(page.locator(".empty")).to_be_visible()
        response = await page.goto(f"{viewer.base}/skills/double")
        assert response is not None
        assert response.status == 404


async def execute(viewer: Viewer, code: str, session: str) -> str:
    """Execute code and return the address of its step."""
    async with viewer.api() as api:
        [*_, end] = await api.execute(code, session=session)
    return f"/s/{end.data['session']}/{end.data['run']}"


async def test_a_step_is_saved_as_a_skill_that_passes_its_test(viewer: Viewer) -> None:
    await execute(viewer, "note = '<b>left out</b>'", "saving")
    address = await execute(viewer, COUNT_STATUS, "saving")
    async with viewer.open(address) as page:
        await page.click("[data-save-skill]")
        preview = page.locator(".skill-preview")
        await expect(preview.locator("[aria-label='Extracted code']")).to_contain_text("def run")
        row = preview.locator("tbody tr", has=page.locator("code:text-is('status')"))
        cells = await row.locator("td").all_inner_texts()
        assert cells == ["status", "str", "'open'", "'open'"]
        await expect(preview.locator("[aria-label='Left out']")).to_contain_text("2 statements")
        await preview.locator(".left-out summary").first.click()
        await expect(preview.locator(".left-out pre").first).to_contain_text("<b>left out</b>")
        await page.fill("#skill-name", "order_count")
        await page.fill("#skill-summary", "Count the orders that have a <status>.")
        await page.click("text=Test and save")
        verdict = page.locator(".verdict")
        await expect(verdict.locator(".pill")).to_have_text("active")
        await expect(verdict).to_contain_text("from skills.order_count import run")
        await verdict.locator("a").click()
        await expect(page.locator(".panel-head .pill")).to_have_text("active")
        await expect(page.locator("main")).to_contain_text("Count the orders that have a <status>.")
        await expect(page.locator("[aria-label=Cases]")).to_contain_text("open")
        await page.click("[aria-label=Cases] summary:has-text('tools.orders.query')")
        await expect(page.locator("[aria-label=Cases]")).to_contain_text("SELECT count(*)")
        await page.goto(viewer.base + address)
        await page.click("[data-save-skill]")
        await expect(page.locator(".skill-preview .notice")).to_contain_text("order_count@1")


async def test_the_verdict_says_why_a_skill_is_a_draft(viewer: Viewer) -> None:
    code = "import random\nsides = 6\nrandom.randint(1, sides * 1000000)"
    async with viewer.open(await execute(viewer, code, "saving chance")) as page:
        await page.click("[data-save-skill]")
        await page.click("text=Test and save")
        await expect(page.locator(".verdict .pill")).to_have_text("draft")
        await expect(page.locator(".verdict .notice")).to_contain_text("depends on randomness")


async def test_what_cannot_be_saved_is_explained(viewer: Viewer) -> None:
    nothing = await execute(viewer, "for n in range(3):\n    print(n)", "saving nothing")
    async with viewer.open(nothing) as page:
        await page.click("[data-save-skill]")
        problem = page.locator("dialog [role=alert]")
        await expect(problem).to_contain_text("the code has no result. End it with an expression")
        await expect(page.locator("text=Test and save")).to_be_disabled()
        await page.goto(viewer.base + await execute(viewer, "price = 3\nprice * 2", "names"))
        await page.click("[data-save-skill]")
        await page.fill("#skill-name", "Not A Name")
        await page.click("text=Test and save")
        await expect(problem).to_contain_text("cannot name a skill")
        await page.fill("#skill-name", "doubled_price")
        await page.click("text=Test and save")
        await expect(page.locator(".verdict .pill")).to_have_text("active")
    failed = await execute(viewer, "1 / 0", "saving failed")
    async with viewer.open(failed) as page:
        await expect(page.locator(".failure")).to_be_visible()
        await expect(page.locator("[data-save-skill]")).to_have_count(0)


async def test_a_test_that_is_cancelled_saves_nothing(viewer: Viewer) -> None:
    code = "import time\npause = 2.5\ntime.sleep(pause)\npause * 2"
    async with viewer.open(await execute(viewer, code, "saving slowly")) as page:
        await page.click("[data-save-skill]")
        await page.fill("#skill-name", "slow_skill")
        await page.click("text=Test and save")
        await expect(page.locator("dialog .progress")).to_contain_text("case 1 of 1 is repeated")
        await page.click("dialog >> text=Cancel")
        await expect(page.locator("dialog .progress")).to_contain_text("nothing was saved")
        await page.goto(f"{viewer.base}/skills")
        await expect(page.locator("text=slow_skill")).to_have_count(0)


async def test_only_those_who_may_run_code_save_skills(viewer: Viewer) -> None:
    address = await execute(viewer, "price = 12\nprice * 5", "saving by readers")
    reader = viewer.service.create_token("ann", "--scope", "read")
    async with viewer.open(address, reader) as page:
        await expect(page.locator(".panel h2")).to_be_visible()
        await expect(page.locator("[data-save-skill]")).to_have_count(0)
        response = await page.goto(f"{viewer.base}{address}/skill")
        assert response is not None
        assert response.status == 403
    async with viewer.open("/", viewer.service.create_token("bob")) as page:
        response = await page.goto(f"{viewer.base}{address}/skill")
        assert response is not None
        assert response.status == 404
