"""The page of a session with many steps, whose rows come in windows, and with long output."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from mcpruntime_server.journal import overviews, queries
from mcpruntime_server.journal.events import (
    ModelUsageRecorded,
    RunFinished,
    RunStarted,
    TipMoved,
)
from mcpruntime_server.journal.rows import INTERRUPTED_FLAG
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.viewer.output_windows import FIRST_LINES
from mcpruntime_server.viewer.step_lists import WINDOW_ROWS, build_columns

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_settings
from .conftest import CHROMIUM, TIMEOUT_MS
from .measure_scale import write_session

STEPS = WINDOW_ROWS * 4 + 20
HEAT = (("ok", 0.0), ("ok", 2.0), ("error", 0.0), ("ok", 0.0))  # statuses and costs
# The colours of the bar in the middle of each step, and those that the style has for them.
READ_BAR = """() => {
  const canvas = document.querySelector("[data-scrub]");
  const context = canvas.getContext("2d");
  const read = (x, y) => {
    const ratio = devicePixelRatio;
    const [r, g, b, a] = context.getImageData(x * ratio, y * ratio, 1, 1).data;
    return a ? `rgb(${r}, ${g}, ${b})` : "";
  };
  const probe = document.body.appendChild(document.createElement("i"));
  const resolve = (name) => {
    probe.style.setProperty("color", `var(${name})`);
    return getComputedStyle(probe).color;
  };
  const names = { "--heat-0": "fast", "--heat-3": "slow", "--bad": "failed", "--cost": "dear" };
  const known = Object.fromEntries(Object.entries(names).map(([name, as]) => [resolve(name), as]));
  const { clientHeight } = canvas;
  const columns = [0, 1, 2].map((place) => place * 56 + 20);
  const rows = { top: 3, foot: clientHeight - 9, strip: clientHeight - 2 };
  const readRow = (y) => columns.map((x) => known[read(x, y)] ?? "");
  return Object.fromEntries(Object.entries(rows).map(([row, y]) => [row, readRow(y)]));
}"""
# Where each row draws its dot and its lines, inside of its own height.
READ_LANES = """(rows) => rows.map((row) => {
  const svg = row.querySelector("svg");
  const height = svg.clientHeight;
  const clip = (y) => Math.min(Math.max(y, 0), height);
  const lines = [...svg.querySelectorAll("path")].map((path) => {
    const length = path.getTotalLength();
    const [start, end] = [path.getPointAtLength(0), path.getPointAtLength(length)];
    return [start.x, start.y, end.x, end.y].map(Math.round);
  });
  const dot = Number(svg.querySelector("circle").getAttribute("cx"));
  return { dot, lines, height, is_aside: row.classList.contains("is-aside") };
})"""
MEGABYTES = 6  # more than a page reads before it is there


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    folder = tmp_path_factory.mktemp("many")
    settings = write_settings(folder, sandbox={"backend": "local", "pool_size": 0})
    async with open_journal(folder / "data") as journal:
        await write_session(journal, STEPS, MEGABYTES)
        await write_heat(journal)
        await write_branches(journal)
        await write_lost(journal)
    async with open_http_service(settings, "--no-auth") as opened:
        yield opened


async def write_heat(journal: Journal) -> None:
    """Write the session whose bar is looked at; its last step is the selected one."""
    await journal.create_session("s_heat", "heat", "local")
    parent = None
    for step, (status, usd) in enumerate(HEAT, 1):
        run = f"r_heat{step}"
        journal.append("s_heat", RunStarted(run, parent, step, "1", f"<step {step}>", 60.0), run)
        if usd:
            journal.append("s_heat", ModelUsageRecorded(1, 1, 2, usd), run)
        journal.append("s_heat", RunFinished(status), run)
        parent = run
    await journal.flush()


async def write_branches(journal: Journal) -> None:
    """Write a session of two steps, two that were given up, and one that continues the second."""
    await journal.create_session("s_branches", "branches", "local")
    chain: tuple[tuple[str, str | None, int], ...] = (
        ("r_first", None, 1),
        ("r_second", "r_first", 2),
        ("r_try", "r_second", 3),
        ("r_retry", "r_try", 4),
        ("r_third", "r_second", 3),
    )
    for run, parent, step in chain:
        if run == "r_third":
            journal.append("s_branches", TipMoved("r_second", "r_retry"))
        started = RunStarted(run, parent, step, f"{run} = 1", f"<step {step}>", 60.0)
        journal.append("s_branches", started, run)
        journal.append("s_branches", RunFinished("ok"), run)
    await journal.flush()


async def write_lost(journal: Journal) -> None:
    """Write a session whose first step was interrupted, so that no later state can be rebuilt."""
    await journal.create_session("s_lost", "lost", "local")
    first = RunStarted("r_lost1", None, 1, "while True: pass", "<step 1>", 1.0)
    journal.append("s_lost", first, "r_lost1")
    journal.append("s_lost", RunFinished("timeout", flags=[INTERRUPTED_FLAG]), "r_lost1")
    then = RunStarted("r_lost2", "r_lost1", 2, "y = x + 1", "<step 2>", 60.0)
    journal.append("s_lost", then, "r_lost2")
    journal.append("s_lost", RunFinished("ok"), "r_lost2")
    await journal.flush()


async def test_a_state_that_cannot_be_rebuilt_says_why(page: Page) -> None:
    await page.goto("/s/s_lost/r_lost2")
    await expect(page.locator(".rail-row")).to_have_count(2)
    reason = re.compile(r"state after step 2 cannot be restored. \w")
    await page.fill("#ask-code", "y")
    await page.press("#ask-code", "Enter")
    await expect(page.locator(".answers [role=alert]")).to_contain_text(reason)
    await page.click("[data-variables]")
    await expect(page.locator("[data-variable-list] [role=alert]")).to_contain_text(reason)


async def test_the_rail_draws_branches_where_they_leave_the_trunk(page: Page) -> None:
    await page.goto("/s/s_branches")
    rows = page.locator(".rail-row")
    await expect(rows).to_have_count(5)
    lanes = await rows.evaluate_all(READ_LANES)
    trunk, branch = lanes[0]["dot"], lanes[2]["dot"]
    assert [each["dot"] for each in lanes] == [trunk, trunk, branch, branch, trunk]
    assert [each["is_aside"] for each in lanes] == [False, False, True, True, False]
    height = lanes[0]["height"]
    assert all([trunk, 0, trunk, height] in each["lines"] for each in lanes[1:4])
    assert [trunk, 0, branch, height / 2] in lanes[2]["lines"]  # from the trunk to the first step
    assert [branch, 0, branch, height / 2] in lanes[3]["lines"]
    assert not [line for line in lanes[4]["lines"] if line[2] == branch]


async def test_the_bar_shows_time_cost_and_failures_as_heat(page: Page) -> None:
    async def slow_down(route: Route) -> None:
        response = await route.fetch()
        steps = {**await response.json(), "durations": [1, 9_000, 9_000, 1]}
        await route.fulfill(response=response, json=steps)

    await page.route("**/steps?run=*", slow_down)
    await page.goto("/s/s_heat")
    await expect(page.locator("[data-totals]")).to_contain_text("$2.00")
    assert await page.evaluate(READ_BAR) == {
        "top": ["", "slow", "failed"],
        "foot": ["fast", "slow", "failed"],
        "strip": ["", "dear", ""],
    }


@pytest.fixture(scope="module")
async def browser(service: HttpService) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        await opened.close()


@pytest.fixture
async def page(service: HttpService, browser: Browser) -> AsyncIterator[Page]:
    opened = await browser.new_page(base_url=service.url.removesuffix("/mcp"))
    opened.set_default_timeout(TIMEOUT_MS)
    yield opened
    await opened.close()


async def test_rows_come_where_somebody_looks(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto("/s/s_scale")
    await expect(page.locator(".panel h2")).to_have_text(f"Step {STEPS}")
    await expect(page.locator("[data-totals]")).to_contain_text(f"{STEPS} steps")
    rows = page.locator(".rail-row")
    await expect(rows.last).to_contain_text(f"total_{STEPS} =")
    assert not any("/steps/rows" in each for each in asked)
    await page.locator("[data-rail]").evaluate("rail => rail.scrollTop = 30 * 150")
    row = page.locator(".rail-row", has_text=re.compile(r"total_160 ="))
    await expect(row).to_be_visible()
    assert len([each for each in asked if "/steps/rows" in each]) == 1
    await row.click()
    await expect(page.locator(".panel h2")).to_have_text("Step 160")
    await expect(page).to_have_url(re.compile(r"/r_00000160$"))
    await page.reload()
    await expect(page.locator(".rail-row[aria-current]")).to_contain_text("total_160 =")


async def test_a_jump_shows_the_step_and_its_neighbours_are_there_at_once(page: Page) -> None:
    await page.goto("/s/s_scale")
    await expect(page.locator(".rail-row").first).to_be_visible()
    await page.focus("[data-scrub]")
    await page.keyboard.press("Home")
    await expect(page.locator(".panel h2")).to_have_text("Step 1")
    async with page.expect_response("**/r_00000003/panel"):
        await page.keyboard.press("j")
        await expect(page.locator(".panel h2")).to_have_text("Step 2")
    for _ in range(30):
        await page.keyboard.press("j")
    await expect(page.locator(".panel h2")).to_have_text("Step 32")
    await expect(page.locator(".rail-row[aria-current]")).to_contain_text("total_32 =")
    await expect(page).to_have_url(re.compile(r"/r_00000032$"))


async def test_keys_count_before_the_steps_are_there(page: Page) -> None:
    may_answer = anyio.Event()

    async def hold(route: Route) -> None:
        await may_answer.wait()
        await route.continue_()

    await page.route("**/steps?run=*", hold)
    async with page.expect_request("**/steps?run=*"):
        await page.goto("/s/s_scale/r_00000100")
    for key in ("ArrowRight", "j", "k", "ArrowRight"):
        await page.keyboard.press(key)
    may_answer.set()
    await expect(page.locator(".panel h2")).to_have_text("Step 102")
    await expect(page.locator(".rail-row[aria-current]")).to_contain_text("total_102 =")
    await page.unroute_all(behavior="wait")
    async with page.expect_request("**/steps?run=*"):
        await page.reload()
    await page.focus("[data-scrub]")
    await page.keyboard.press("Home")
    await page.keyboard.press("j")
    await expect(page.locator(".panel h2")).to_have_text("Step 2")


async def test_a_long_output_is_counted_and_any_line_can_be_reached(page: Page) -> None:
    await page.goto("/s/s_scale")
    lines = page.locator(".lines li")
    await expect(lines.first).to_contain_text(f"step {STEPS}")
    await expect(page.locator("[data-line-count]")).to_have_text(re.compile(r"^\d{3},\d{3} lines$"))
    await page.locator(".output").evaluate("output => output.scrollTop = 1e9")
    await expect(page.locator(f"#O{FIRST_LINES + 1}")).to_be_attached()
    await page.goto("/s/s_scale#O100000")
    await page.reload()
    await expect(page.locator("#O100000")).to_be_in_viewport()
    await expect(page.locator("#O100000")).to_have_class(re.compile("is-target"))


async def test_figures_are_columns_of_differences(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        last = await write_session(journal, 3, 0)
        figures = await journal.read(lambda rows: overviews.load_step_figures(rows, "s_scale"))
        code = await journal.read(lambda rows: overviews.load_code_starts(rows, [last, "r_none"]))
    columns = build_columns(figures, last)
    assert columns["steps"] == [1, 1, 1]
    assert columns["parents"] == [0, 1, 1]
    assert columns["status_names"] == ["ok"]
    assert columns["tip"] == 2
    assert code == ["total_3 = 3 * 2\nprint('step 3')\ntotal_3", ""]


async def test_figures_have_the_ancestors_of_a_fork_and_what_was_left(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        last = await write_session(journal, 4, 0)
        await journal.create_session("s_fork", "fork", "local", last, "fork", last)
        journal.append("s_fork", RunStarted("r_a", last, 5, "5", "<step 5>", 60.0), "r_a")
        usage = ModelUsageRecorded(1, 1, 2, 0.25)
        journal.append("s_fork", usage, "r_a")
        journal.append("s_fork", RunFinished("ok"), "r_a")
        journal.append("s_fork", TipMoved("r_00000002", "r_a"))
        journal.append("s_fork", RunStarted("r_b", "r_00000002", 3, "3", "<step 3>", 60.0), "r_b")
        await journal.flush()
        figures = await journal.read(lambda rows: overviews.load_step_figures(rows, "s_fork"))
        visited = await journal.read(lambda rows: queries.list_visited_runs(rows, "s_fork"))
    assert figures.run_ids == [run for run, _ in visited]
    assert figures.steps == [1, 2, 3, 4, 5, 3]
    assert figures.parents == [-1, 0, 1, 2, 3, 1]
    assert figures.usd == {4: 0.25}
