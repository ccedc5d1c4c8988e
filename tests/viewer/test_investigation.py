"""A person with a keyboard finds out why a step failed, and proves that a change fixes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from ..helpers.event_streams import connect_api
from ..helpers.http_service import open_http_service
from .conftest import CHROMIUM
from .demo_session import execute_demo, write_demo_settings

FAILED_STEP = 37
LAST_STEP = 38
CAUSE = 12
MAX_TABS = 60
LINK_WITH_FOCUS = """() => {
  const { tagName, textContent } = document.activeElement;
  return tagName === "A" ? textContent : "";
}"""


async def test_the_cause_of_a_failure_is_found_and_its_fix_is_proven(tmp_path: Path) -> None:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    settings = write_demo_settings(tmp_path)
    async with open_http_service(settings, "--no-auth") as service, async_playwright() as player:
        async with connect_api(service) as client:
            await execute_demo(client, LAST_STEP)
        browser = await player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(service.url.removesuffix("/mcp"))
        await open_link(page, "shop-report")
        heading, failed = page.locator(".panel h2"), page.locator("[data-go=failure]")
        await expect(heading).to_have_text(f"Step {LAST_STEP}")
        await expect(failed).to_have_text("2 failed")
        for step in (5, FAILED_STEP):
            await page.keyboard.press("f")
            await expect(heading).to_have_text(f"Step {step}")
        await expect(page.locator(".failure")).to_contain_text("division by zero")
        await page.keyboard.press("p")
        await page.keyboard.type("region, count")  # at the line that failed
        await page.keyboard.press("Enter")
        await expect(page.locator(".code-section")).to_contain_text('["ANTARCTICA", 0]')
        await page.keyboard.press("Tab")  # out of the field, in which keys are letters
        await page.keyboard.press("v")  # it counted by `regions`
        row = page.locator(".variables tr", has=page.locator("code:text-is('regions')"))
        await expect(row).to_contain_text("ANTARCTICA")
        await open_link(page, f"step {CAUSE}")
        await expect(heading).to_have_text(f"Step {CAUSE}")
        await page.keyboard.press("t")
        await expect(page.locator("#try-code")).to_be_focused()
        await page.keyboard.press("Control+A")
        await page.keyboard.type("regions = ['EMEA', 'APAC', 'AMER']")
        for key in ("Tab", "Tab", "Space", "Tab", "Enter"):  # the steps after it, too
            await page.keyboard.press(key)
        result = page.locator(".try-result")
        await expect(result).to_contain_text(f"Steps {CAUSE + 1} to {FAILED_STEP - 1}")
        await expect(result).to_contain_text("ZeroDivisionError: division by zero")
        outcome = f"Step {FAILED_STEP} failed in the recording, and not in the attempt."
        await expect(result.locator(".outcomes")).to_have_text(outcome)
        await open_link(page, "Open the session of the attempt")
        await expect(heading).to_have_text(f"Step {LAST_STEP}")
        await expect(failed).to_have_text("1 failed")
        await page.keyboard.press("k")
        await expect(heading).to_have_text(f"Step {FAILED_STEP}")
        await expect(page.locator(".panel .pill").first).to_have_text("ok")
        await browser.close()


async def open_link(page: Page, text: str) -> None:
    """Go to a link with the keyboard, and follow it."""
    for _ in range(MAX_TABS):
        await page.keyboard.press("Tab")
        if text in await page.evaluate(LINK_WITH_FOCUS):
            await page.keyboard.press("Enter")
            return
    raise AssertionError(f"The keyboard does not lead to {text!r}.")
