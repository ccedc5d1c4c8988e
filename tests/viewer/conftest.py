"""A real browser on the pages of a real server, with one server for the tests of a module."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, StorageState, async_playwright, expect

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from .demo_session import execute_demo, write_demo_settings

# Chromium without a user interface opens a page for a third of the processor time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or ""
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
        self._logins: dict[str, StorageState] = {}  # the cookie of each token

    @asynccontextmanager
    async def open(self, path: str = "/", token: str | None = None) -> AsyncIterator[Page]:
        """Open a page in a fresh profile that is logged in; an error in a script is a failure."""
        login = self.token if token is None else token
        context = await self.browser.new_context(
            viewport=WIDE,  # type: ignore[arg-type]
            storage_state=self._logins.get(login),
        )
        context.set_default_timeout(TIMEOUT_MS)
        problems: list[str] = []
        try:
            page = await context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            if login in self._logins:
                await page.goto(self.base + path)
            if login not in self._logins or page.url.startswith(f"{self.base}/login"):
                await self._log_in(page, login)  # for the first time, or once more after a logout
                if path != "/":
                    await page.goto(self.base + path)
            yield page
            assert problems == []
        finally:
            await context.close()

    async def _log_in(self, page: Page, token: str) -> None:
        """Log in as a person does, for this profile and those of later pages."""
        await page.goto(f"{self.base}/login")
        await page.fill("#token", token)
        await page.click("text=Log in >> visible=true >> nth=-1")
        await page.wait_for_url(f"{self.base}/")
        self._logins[token] = await page.context.storage_state()

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
