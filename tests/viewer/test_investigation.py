"""A person finds out with the pages why a step failed, and proves that a change fixes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from ..helpers.event_streams import connect_api
from ..helpers.http_service import open_http_service
from .conftest import CHROMIUM
from .demo_session import execute_demo, write_demo_settings

FAILED_STEP = 37
LAST_STEP = 38
CAUSE = 12


async def test_the_cause_of_a_failure_is_found_and_its_fix_is_proven(tmp_path: Path) -> None:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    settings = write_demo_settings(tmp_path)
    async with open_http_service(settings, "--no-auth") as service, async_playwright() as player:
        async with connect_api(service) as client:
            await execute_demo(client, LAST_STEP)
        browser = await player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        base = service.url.removesuffix("/mcp")
        await page.goto(base)
        await page.click("text=shop-report")
        await expect(page.locator(".panel h2")).to_have_text(f"Step {LAST_STEP}")
        failed = page.locator("[data-go=failure]")
        await expect(failed).to_have_text("2 failed")
        await failed.click()
        await expect(page.locator(".panel h2")).to_have_text("Step 5")
        await page.keyboard.press("f")
        await expect(page.locator(".panel h2")).to_have_text(f"Step {FAILED_STEP}")
        await expect(page.locator(".failure")).to_contain_text("division by zero")
        await page.fill("#probe-expression", "region, count")  # the line is the one that failed
        await page.click("[data-probe-form] button")
        await expect(page.locator(".code-section")).to_contain_text("ANTARCTICA")
        await page.click("[data-variables]")  # it counted by `regions`
        row = page.locator(".variables tr", has=page.locator("code:text-is('regions')"))
        await expect(row).to_contain_text("ANTARCTICA")
        await row.locator(f".variable-source >> text=step {CAUSE}").click()
        await expect(page.locator(".panel h2")).to_have_text(f"Step {CAUSE}")
        await page.click("[data-try]")
        code = await page.input_value("#try-code")
        await page.fill("#try-code", code.replace(", 'ANTARCTICA'", ""))
        await page.check("#try-following")
        await page.click("text=Execute and compare")
        await page.click("text=Open the session of the attempt")
        await expect(page.locator(".panel h2")).to_have_text(f"Step {LAST_STEP}")
        await expect(failed).to_have_text("1 failed")
        await page.keyboard.press("k")
        await expect(page.locator(".panel h2")).to_have_text(f"Step {FAILED_STEP}")
        await expect(page.locator(".panel .pill").first).to_have_text("ok")
        await browser.close()
