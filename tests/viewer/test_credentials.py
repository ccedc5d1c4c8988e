"""A run that needs a credential is in the queue, with the page on which a person stores it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from ..helpers.http_service import open_http_service
from ..service.test_principal_credentials import WHO, prepare
from .conftest import CHROMIUM, Viewer


@pytest.fixture
async def viewer(tmp_path: Path) -> AsyncIterator[Viewer]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    async with open_http_service(prepare(tmp_path)) as service, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Viewer(service, browser, service.create_token("una"), "")
        await browser.close()


async def test_a_credential_is_stored_from_the_queue_or_declined(viewer: Viewer) -> None:
    async with viewer.open("/approvals") as page, viewer.api() as api:
        for session in ("declined", "stored"):
            body = {"code": WHO, "session": session, "shows_pages": True, "wait_s": 0}
            run = (await api.post("/execute", body)).json()["run"]
            card = page.locator("[data-card]")
            await expect(card).to_contain_text("needs a credential")
            if session == "declined":
                await card.locator("[data-answer=decline]").click()
            else:
                async with page.expect_popup() as opened:
                    await card.locator("a.button").click()
                form = await opened.value
                await form.fill("[name=token]", viewer.token)
                await form.fill("[name=credential]", "secret-of-una-1")
                await form.click("button")
                await expect(form.locator("[role=status]")).to_contain_text("is stored")
            await expect(page.locator(".empty")).to_contain_text("Nothing waits")
            end = (await api.read_events(run))[-1]
            assert end.data["status"] == ("error" if session == "declined" else "ok")
