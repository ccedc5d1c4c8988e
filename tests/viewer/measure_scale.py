"""Measure the page of a session with 10,000 steps, the last of which has printed 100 MB.

`python -m tests.viewer.measure_scale FOLDER [STEPS] [MEGABYTES]` writes the journal, serves it and
looks at it with Chromium: first paint, scrubbing with keys, windows of output, memory and bytes.

A browser that has just started paints its first page late, whatever is on it: the figure for the
page of skills, which is empty, says how late. With a fresh profile, nothing is in its cache.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from playwright.async_api import Browser, Page, Playwright, ViewportSize, async_playwright

from mcpruntime_server.journal.events import OutputWritten, RunFinished, RunStarted, RunValue
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.viewer.output_windows import FIRST_LINES

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_settings
from .conftest import CHROMIUM

CHUNK_BYTES = 64 * 1024
KEYS = 60
WINDOW: ViewportSize = {"width": 1400, "height": 900}
FIRST_PAINT = """() => new Promise((resolve) => {
  new PerformanceObserver((entries) => {
    for (const entry of entries.getEntries()) {
      if (entry.name === "first-contentful-paint") resolve(entry.startTime);
    }
  }).observe({ type: "paint", buffered: true });
})"""
MEASURE_KEY = """(key) => new Promise((resolve) => {
  const start = performance.now();
  const heading = () => document.querySelector(".panel h2").textContent;
  const before = heading();
  const check = () => {
    if (heading() !== before) requestAnimationFrame(() => resolve(performance.now() - start));
    else requestAnimationFrame(check);
  };
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  check();
})"""
PAGE_BYTES = "() => performance.memory.usedJSHeapSize"


async def write_session(journal: Journal, steps: int, megabytes: int) -> str:
    """Write the session, and return its last run."""
    session, parent = "s_scale", None
    await journal.create_session(session, "scale", "local")
    for step in range(1, steps + 1):
        run = f"r_{step:08}"
        code = f"total_{step} = {step} * 2\nprint('step {step}')\ntotal_{step}"
        journal.append(session, RunStarted(run, parent, step, code, f"<step {step}>", 60.0), run)
        journal.append(session, OutputWritten("stdout", f"step {step}\n"), run)
        if step == steps:
            await write_output(journal, session, run, megabytes)
        value = RunValue(kind="json", type="int", text=str(step * 2), cut=False)
        usage = {"wall_ms": float(step % 97), "cpu_ms": 1.0, "peak_mb": 20.0}
        journal.append(session, RunFinished("ok", value, usage=usage), run)
        parent = run
        if step % 500 == 0:
            await journal.flush()
    await journal.flush()
    return str(parent)


async def write_output(journal: Journal, session: str, run: str, megabytes: int) -> None:
    """Write the output of a run in chunks as a worker sends them."""
    line = "row {:06}.{:04} is \x1b[32mchecked\x1b[0m, all well\n"
    for number in range(megabytes * 1_000_000 // CHUNK_BYTES):
        chunk = "".join(line.format(number, place) for place in range(1_500))[:CHUNK_BYTES]
        journal.append(session, OutputWritten("stdout", chunk), run)
        if number % 50 == 0:
            await journal.flush()


async def measure(service: HttpService, last: str) -> dict[str, Any]:
    """Return the figures of the page."""
    base = service.url.removesuffix("/mcp")
    found: dict[str, Any] = {}
    async with async_playwright() as playwright:
        browser = await start_browser(playwright)
        page = await browser.new_page(viewport=WINDOW)
        await page.goto(f"{base}/skills")
        found["first_paint_ms, no steps, fresh browser"] = await page.evaluate(FIRST_PAINT)
        await browser.close()
        browser = await start_browser(playwright)
        page = await browser.new_page(viewport=WINDOW)
        received = 0

        def count(event: dict[str, Any]) -> None:
            nonlocal received
            received += event["encodedDataLength"]

        network = await page.context.new_cdp_session(page)
        await network.send("Network.enable")
        network.on("Network.loadingFinished", count)
        for name, run in (
            ("last, fresh browser", last),
            ("last again", last),
            ("middle", "r_00000500"),
        ):
            received = 0
            started_at = time.monotonic()
            await page.goto(f"{base}/s/s_scale/{run}")
            await page.wait_for_selector(".rail-row")
            found.setdefault("server_mb, before", read_server_mb(service))
            found[f"first_paint_ms, {name}"] = await page.evaluate(FIRST_PAINT)
            found[f"rail_ms, {name}"] = (time.monotonic() - started_at) * 1_000
            found[f"received_kb, {name}"] = received / 1e3
        times = sorted([await page.evaluate(MEASURE_KEY, "ArrowRight") for _ in range(KEYS)])
        found["key_ms, median"], found["key_ms, p95"] = times[KEYS // 2], times[KEYS * 95 // 100]
        await page.goto(f"{base}/s/s_scale/{last}")
        await page.wait_for_selector(".lines li")
        found["window_ms"] = await measure_window(page)
        found["page_mb"] = await page.evaluate(PAGE_BYTES) / 1e6
        found["elements"] = await page.evaluate("document.querySelectorAll('*').length")
        fresh = await browser.new_context(viewport=WINDOW)
        page = await fresh.new_page()
        await page.goto(f"{base}/s/s_scale/{last}")
        found["first_paint_ms, last, fresh profile"] = await page.evaluate(FIRST_PAINT)
        await browser.close()
    found["server_mb, after"] = read_server_mb(service)
    return found


async def start_browser(playwright: Playwright) -> Browser:
    """Return a browser that has opened no page yet."""
    return await playwright.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"]
    )


def read_server_mb(service: HttpService) -> float:
    """Return the resident memory of the server."""
    lock = next((service.data_dir / "servers").glob("*.lock"))
    status = Path(f"/proc/{lock.read_text().strip()}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1_024 / 1e6


async def measure_window(page: Page) -> float:
    """Return how long the next window of output takes."""
    started_at = time.monotonic()
    await page.locator(".output").evaluate("output => output.scrollTop = 1e9")
    await page.locator(".lines li").nth(FIRST_LINES + 1).wait_for(state="attached")
    return (time.monotonic() - started_at) * 1_000


async def run(folder: Path, steps: int, megabytes: int) -> None:
    """Write, serve and measure."""

    settings = write_settings(folder, sandbox={"backend": "local", "pool_size": 0})
    started_at = time.monotonic()
    async with open_journal(folder / "data") as journal:
        last = await write_session(journal, steps, megabytes)
    print(f"written in {time.monotonic() - started_at:.1f} s")
    async with open_http_service(settings, "--no-auth") as service:
        for name, figure in (await measure(service, last)).items():
            print(f"{name:<42} {figure:>12,.1f}")


def main(folder: Path, steps: int = 10_000, megabytes: int = 100) -> None:
    """Write, serve and measure a session."""
    folder.mkdir(parents=True)
    anyio.run(partial(run, folder, steps, megabytes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
