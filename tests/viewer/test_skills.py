"""The pages of skills."""

from __future__ import annotations

from playwright.async_api import expect

from .conftest import Viewer


async def test_a_skill_is_read_compared_retired_and_promoted(viewer: Viewer) -> None:
    async with viewer.service.connect(viewer.token) as client:
        for code in ("price = 12\nprice * 2", "price = 12\nprice * 3 + 1"):
            run = await client.run(code, session="skills")
            saved = await client.client.call_tool("save_skill", {"run": run.run, "name": "double"})
            assert not saved.is_error, saved
    async with viewer.open("/skills") as page:
        await page.click(".session-name:has-text('double')")
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
