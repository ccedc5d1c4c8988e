"""A real browser on the pages of a real server, with one server for the tests of a module."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from .demo_session import execute_demo, write_demo_settings

CHROMIUM = shutil.which("chromium") or ""
TIMEOUT_MS = 20_000.0
expect.set_options(timeout=TIMEOUT_MS)
WIDE = {"width": 1400, "height": 900}


class Viewer:
    """A browser on the pages of a server, and a client of its HTTP API for the same principal."""

    def __init__(self, service: HttpService, browser: Browser, token: str, session: str) -> None:
        self.service = service
        self.browser = browser
        self.token = token
        self.session = session
        self.base = service.url.removesuffix("/mcp")

    @asynccontextmanager
    async def open(self, path: str = "/", token: str | None = None) -> AsyncIterator[Page]:
        """Open a page in a fresh profile that is logged in; an error in a script is a failure."""
        context = await self.browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
        context.set_default_timeout(TIMEOUT_MS)
        problems: list[str] = []
        try:
            page = await context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            await page.goto(f"{self.base}/login")
            await page.fill("#token", self.token if token is None else token)
            await page.click("text=Log in >> visible=true >> nth=-1")
            await page.wait_for_url(f"{self.base}/")
            if path != "/":
                await page.goto(self.base + path)
            yield page
            assert problems == []
        finally:
            await context.close()

    @asynccontextmanager
    async def api(self) -> AsyncIterator[ApiClient]:
        async with connect_api(self.service, self.token) as client:
            yield client


@pytest.fixture(scope="module")
async def viewer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Viewer]:
    """The pages of ann, who has the first 12 steps of the demo."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    settings = write_demo_settings(tmp_path_factory.mktemp("viewer"))
    async with open_http_service(settings) as service, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        token = service.create_token("ann")
        async with connect_api(service, token) as client:
            session = await execute_demo(client, 12, "report")
        yield Viewer(service, browser, token, session)
        await browser.close()
