"""The pages for people who use a keyboard, a screen reader, a narrow window or a dark theme."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Page, ViewportSize, expect

from .conftest import Viewer

AXE = Path(__file__).parents[2] / ".venvs/axe/node_modules/axe-core/axe.min.js"
RUN_AXE = """async () => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations } = await axe.run({ runOnly: tags });
  return violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html).slice(0, 3)]);
}"""
HAS_OVERFLOW = """() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  return scrollWidth > clientWidth;
}"""
UNFOLD = "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
DESCRIBE_FOCUS = """() => {
  const element = document.activeElement;
  if (element === document.body) return ["body", true, false];
  const { outlineStyle } = getComputedStyle(element);
  const name = element.getAttribute("aria-label") ?? element.textContent.trim();
  return [name.slice(0, 40), outlineStyle !== "none", Boolean(element.closest("dialog"))];
}"""
ACTIONS = (
    *("Sessions", "Approvals", "Skills", "Log out", "Previous step", "Step", "Steps"),
    *("Try a change", "Fork", "Rewind", "Pin", "Download", "Print", "Ask"),
    "Show the variables after this step",
)
LOOKS: tuple[tuple[Literal["light", "dark"], ViewportSize], ...] = (
    ("light", {"width": 360, "height": 740}),
    ("dark", {"width": 1400, "height": 900}),
)


async def find_violations(page: Page) -> list[Any]:
    """Return what axe finds on a page, in both themes, in a narrow and in a wide window."""
    found: list[Any] = []
    await page.evaluate(AXE.read_text())
    for scheme, size in LOOKS:
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await page.set_viewport_size(size)
        found += [(scheme, size["width"], each) for each in await page.evaluate(RUN_AXE)]
        if await page.evaluate(HAS_OVERFLOW):
            found.append((size["width"], "is wider than its window"))
    return found


async def test_axe_finds_nothing_on_any_page(viewer: Viewer) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: run scripts/test-browser")
    code = "from tools.counted import add\nadd(item='x').result"
    async with viewer.service.connect(viewer.token) as client:
        for source in ("price = 12\nprice * 2", "price = 12\nprice * 3 + 1"):
            run = await client.run(source, session="skills")
            await client.client.call_tool("save_skill", {"run": run.run, "name": "double"})
    async with viewer.api() as api, viewer.open() as page:
        request = {"code": code, "session": "waits", "wait_s": 30}
        waiting = (await api.post("/execute", request)).json()
        runs = (await api.get(f"/sessions/{viewer.session}")).json()["runs"]
        steps = {each["step"]: f"/s/{viewer.session}/{each['run']}" for each in runs}
        found = {}
        shown = [steps[step] for step in (3, 5, 7, 8)]
        lists = ("/", "/?q=row", "/?state=failed", "/approvals", "/skills", "/skills/double")
        for path in (*lists, "/s/none/none", *shown):
            await page.goto(viewer.base + path)
            if path in shown:
                await expect(page.locator(".rail-row").first).to_be_visible()
                await page.evaluate(UNFOLD)
            found[path] = await find_violations(page)
        await page.click("[data-variables]")
        await expect(page.locator("[data-variable-list] tr").nth(1)).to_be_visible()
        await page.fill("#probe-expression", "open")
        await page.press("#probe-expression", "Enter")
        await expect(page.locator(".probe-result")).to_be_visible()
        await page.fill("#ask-code", "1 / 0")
        await page.press("#ask-code", "Enter")
        await expect(page.locator(".answer")).to_be_visible()
        found["looked into"] = await find_violations(page)
        await page.click("[data-try]")
        await page.fill("#try-code", "open('totals.json', 'w').write('{}')")
        await page.click("text=Execute and compare")
        await expect(page.locator(".side-by-side").first).to_be_visible()
        found["comparison"] = await find_violations(page)
        await page.keyboard.press("Escape")
        await page.click("[data-save-skill]")
        await expect(page.locator(".skill-preview code").first).to_be_visible()
        found["saving"] = await find_violations(page)
        await page.keyboard.press("Escape")
        await page.set_viewport_size({"width": 1400, "height": 900})
        await page.click("[data-delete]")
        found["deletion"] = await find_violations(page)
        await page.context.clear_cookies()
        await page.goto(f"{viewer.base}/login")
        found["login"] = await find_violations(page)
        await api.post(f"/runs/{waiting['run']}/cancel")
    assert {path: each for path, each in found.items() if each} == {}


async def test_the_keyboard_reaches_every_action_and_stays_in_a_dialog(viewer: Viewer) -> None:
    async with viewer.open(f"/s/{viewer.session}") as page:
        await expect(page.locator(".rail-row").first).to_be_visible()
        await page.keyboard.press("Tab")
        assert (await page.evaluate(DESCRIBE_FOCUS))[0] == "Skip to content"
        names = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            name, is_visible, _ = await page.evaluate(DESCRIBE_FOCUS)
            assert is_visible, name
            names.append(name)
        assert [each for each in ACTIONS if not any(name.startswith(each) for name in names)] == []
        await page.focus("[data-try]")
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog")).to_be_visible()
        for _ in range(12):
            await page.keyboard.press("Tab")
            name, _, is_inside = await page.evaluate(DESCRIBE_FOCUS)
            assert is_inside or name == "body", name
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_have_count(0)
        assert (await page.evaluate(DESCRIBE_FOCUS))[0] == "Try a change"
