"""The command `view`: pages for a local data folder, beside running servers."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from playwright.async_api import async_playwright, expect

from ..helpers.child_processes import start_process
from ..helpers.forking import forked_command
from ..helpers.server_connection import TEST_TIMEOUT_S, connect_server, write_settings
from .conftest import CHROMIUM

ADDRESS = re.compile(rb"pages at (\S+)")


async def test_its_address_logs_one_browser_in_beside_a_stdio_server(tmp_path: Path) -> None:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    settings = write_settings(tmp_path, sandbox={"backend": "local", "pool_size": 0})
    async with connect_server(settings) as client, async_playwright() as playwright:
        await client.run("print('seen')", session="local work")
        command = forked_command("--config", str(settings), "view", "--no-browser")
        async with start_process(command) as process:
            assert process.stderr is not None
            log = BufferedByteReceiveStream(process.stderr)
            with anyio.fail_after(TEST_TIMEOUT_S):
                found = ADDRESS.search(await log.receive_until(b"\n", 65_536))
            assert found is not None
            address = found[1].decode()
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"]
            )
            page = await browser.new_page()
            await page.goto(address)
            await page.click("text=local work")
            await expect(page.locator(".lines")).to_contain_text("seen")
            await client.run("print('live')", session="local work")
            await expect(page.locator(".panel h2")).to_have_text("Step 2")
            other = await (await browser.new_context()).new_page()
            await other.goto(address)
            await expect(other.locator("[role=alert]")).to_contain_text("used already")
            await browser.close()
            process.terminate()
            with anyio.fail_after(TEST_TIMEOUT_S):
                await process.wait()
