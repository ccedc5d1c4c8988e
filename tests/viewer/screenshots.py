"""Pictures of the main pages for the documentation: `python -m tests.viewer.screenshots`.

Each page is drawn light and dark, wide and narrow, with the session of the demo and a skill.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import anyio
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect

from ..helpers.event_streams import connect_api
from ..helpers.http_service import HttpService, open_http_service
from .conftest import CHROMIUM
from .demo_session import execute_demo, execute_others, write_demo_settings

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MAX_BYTES = 150_000
COLOURS = 256
IMAGES_ARE_THERE = "() => [...document.images].every((each) => each.complete)"
EXACT_COLOURS = 160  # those of the largest areas
WIDTHS = {"wide": 1360, "narrow": 420}
HEIGHT = 860
WRONG_STEP = 37
CHART_STEP = 7
TOTALS_STEP = 6
FIX = "cost[region] = total / count if count else 0.0"


async def save_skills(service: HttpService) -> None:
    """Save a skill with two versions as the local user."""
    async with service.connect("") as client:
        for code in ("price = 12\nprice * 2", "price = 12\nprice * 3 + 1"):
            run = await client.run(code, session="skills")
            saved = await client.client.call_tool("save_skill", {"run": run.run, "name": "double"})
            assert not saved.is_error, saved


async def show_step(page: Page, base: str, session: str, number: int = WRONG_STEP) -> None:
    """Open a step: unless another is asked for, the one that went wrong."""
    await page.goto(f"{base}/s/{session}")
    rows = page.locator(".rail-row")
    await expect(rows.first).to_be_visible()
    await page.focus("[data-scrub]")
    heading = page.locator(".panel h2")
    await page.keyboard.press("Home")
    await expect(heading).to_have_text("Step 1")
    while (await heading.inner_text()) != f"Step {number}":
        shown = await heading.inner_text()
        await page.keyboard.press("j")
        await expect(heading).not_to_have_text(shown)


async def probe_step(page: Page, base: str, session: str) -> None:
    """Print a value at a line of it."""
    await show_step(page, base, session)
    await page.fill("#probe-expression", "region, count, total")
    await page.click("[data-probe-form] button")
    await expect(page.locator(".probe-result")).to_be_visible()
    await expect(page.locator("[data-probe-form] button")).to_have_text("Print")


async def compare_step(page: Page, base: str, session: str) -> None:
    """Try a change of it, and see what is different."""
    await show_step(page, base, session)
    await page.click("[data-try]")
    code = await page.input_value("#try-code")
    await page.fill("#try-code", code.replace("cost[region] = total / count", FIX))
    await page.click("text=Execute and compare")
    await expect(page.locator(".try-result h2").first).to_be_visible()
    await page.locator(".try-result").scroll_into_view_if_needed()


async def save_step(page: Page, base: str, session: str) -> None:
    """See what a step would be saved as."""
    await show_step(page, base, session, TOTALS_STEP)
    await page.click("[data-save-skill]")
    await expect(page.locator(".skill-preview h3").first).to_be_visible()


async def list_variables(page: Page, base: str, session: str) -> None:
    """List the variables of it, with the steps that set them."""
    await show_step(page, base, session)
    await page.click("[data-variables]")
    await expect(page.locator(".variables tr").nth(1)).to_be_visible()
    await page.locator(".variables").scroll_into_view_if_needed()


def show_path(path: str) -> Callable[[Page, str, str], Awaitable[None]]:
    """Return what opens a page."""

    async def show(page: Page, base: str, session: str) -> None:
        await page.goto(base + path)
        await page.wait_for_load_state("load")

    return show


VIEWS: dict[str, Callable[[Page, str, str], Awaitable[None]]] = {
    "sessions": show_path("/"),
    "session": partial(show_step, number=CHART_STEP),
    "step": show_step,
    "probe": probe_step,
    "diff": compare_step,
    "saving": save_step,
    "variables": list_variables,
    "approvals": show_path("/approvals"),
    "skills": show_path("/skills"),
    "skill": show_path("/skills/double"),
}


@asynccontextmanager
async def open_demo(folder: Path) -> AsyncIterator[tuple[HttpService, str]]:
    """Serve the demo without tokens, with its session's id."""
    settings = write_demo_settings(folder)
    async with open_http_service(settings, "--no-auth") as service:
        async with connect_api(service) as api:
            session = await execute_demo(api)
            await execute_others(api, session)
        await save_skills(service)
        yield service, session


def reduce_colours(picture: Image.Image) -> Image.Image:
    """Return a picture with few colours: large areas keep theirs, small ones are not lost."""
    data = picture.tobytes()
    pixels = list(zip(data[::3], data[1::3], data[2::3], strict=True))
    exact = [colour for colour, _ in Counter(pixels).most_common(EXACT_COLOURS)]
    places = {colour: place for place, colour in enumerate(exact)}
    others = picture.quantize(
        COLOURS - len(exact), Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    indexes = (
        places.get(colour, len(exact) + place)
        for colour, place in zip(pixels, others.tobytes(), strict=True)
    )
    reduced = Image.frombytes("P", picture.size, bytes(indexes))
    reduced.putpalette([*chain.from_iterable(exact), *(others.getpalette() or ())])
    return reduced


def write_picture(path: Path, png: bytes) -> None:
    """Write a picture with few colours; raises if it is large."""
    with Image.open(io.BytesIO(png)) as picture:
        reduce_colours(picture.convert("RGB")).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise AssertionError(f"{path.name} has {size:,} bytes, over {MAX_BYTES:,}.")


async def draw_pages(browser: Browser, base: str, session: str) -> None:
    """Write the pictures of all pages."""
    for name, show in VIEWS.items():
        for scheme in ("light", "dark"):
            for width_name, width in WIDTHS.items():
                context = await browser.new_context(
                    viewport={"width": width, "height": HEIGHT},
                    color_scheme="dark" if scheme == "dark" else "light",
                    reduced_motion="reduce",
                )
                page = await context.new_page()
                await show(page, base, session)
                await page.mouse.move(0, 0)  # whatever it is over looks different
                await page.wait_for_function(IMAGES_ARE_THERE)
                path = IMAGES / f"{name}-{scheme}-{width_name}.png"
                write_picture(path, await page.screenshot())
                await context.close()


async def main() -> None:
    """Serve the demo, draw its pages, and end."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_demo(Path(folder)) as (service, session),
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"]
            )
            await draw_pages(browser, service.url.removesuffix("/mcp"), session)
            await browser.close()


if __name__ == "__main__":
    anyio.run(main)
