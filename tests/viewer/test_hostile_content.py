"""Hostile texts in everything that code and upstreams control: nothing of them is executed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import expect

from mcpruntime_server.viewer.output_windows import FIRST_LINES

from ..helpers.event_streams import ApiClient
from .conftest import Viewer
from .hostile_texts import HOSTILE_TEXTS
from .page_watcher import WATCH, Watcher

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_program(body: str) -> str:
    """Return code that has the texts as `texts`; the first line has none of them."""
    return f"import json\ntexts = json.loads({json.dumps(HOSTILE_TEXTS)!r})\n{body}"


STEPS = {
    "output": "import sys\nfor text in texts:\n    print(text)\n    print(text, file=sys.stderr)",
    "table": "[{text: text for text in texts[at : at + 20]} for at in range(0, 60, 20)]",
    "rows": "[{'text': text, texts[0]: number} for number, text in enumerate(texts)]",
    "tree": "{text: [text, {text: None}] for text in texts}",
    "repr": "class Shown:\n    def __repr__(self):\n        return '\\n'.join(texts)\nShown()",
    "error": "raise type(texts[0], (Exception,), {})('\\n'.join(texts))",
    "files": """
import os
for number, text in enumerate(texts):
    name = text.replace('/', '').replace('\\0', '')[:80]
    with open(f'{name}.svg' if number % 2 else f'{name}.html', 'w') as file:
        file.write(text)
with open('all.svg', 'w') as file:
    file.write('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + ''.join(texts))
with open('all.html', 'w') as file:
    file.write('<script>alert(1)</script>\\n' + '\\n'.join(texts).replace('\\0', ''))
""",
    "changed files": """
with open('all.html', 'a') as file:
    file.write('\\n'.join(text.replace('\\0', '') for text in texts[::-1]))
""",
    "calls": """
from tools.orders import query
answers = []
for at in range(0, len(texts), 30):
    some = [text.replace('\\0', '') for text in texts[at : at + 30]]
    quoted = ', '.join('? AS "' + text.replace('"', '""') + '"' for text in some)
    answers.append(query(sql=f'SELECT {quoted}', params=some))
    try:
        query(sql=''.join(some))
    except Exception as exc:
        print(exc)
answers
""",
    "variables": """
for text in texts:
    shown = {'__repr__': lambda self, text=text: text}
    globals()[text] = type(text.replace('\\0', ''), (), shown)()
""",
}
ASK = "from tools.counted import add\nadd(item=texts[{0}] + '\\n'.join(texts))"


class HostileSession:
    """A session with the texts, and the addresses of its steps by what they have."""

    def __init__(self, session: str, runs: dict[str, str]) -> None:
        self.session = session
        self.runs = runs

    def address(self, step: str) -> str:
        return f"/s/{self.session}/{self.runs[step]}"


async def execute(api: ApiClient, body: str, **more: Any) -> dict[str, Any]:
    """Execute code that has the texts."""
    request = {"code": write_program(body), "session": "hostile", "wait_s": 60, **more}
    response = await api.post("/execute", request)
    assert response.status_code in (200, 202), response.text
    document: dict[str, Any] = response.json()
    return document


@pytest.fixture(scope="module")
async def hostile(viewer: Viewer) -> AsyncIterator[HostileSession]:
    """A session with a step for everything that code controls, a plan and an open question."""
    async with viewer.api() as api:
        runs = {}
        for name, body in STEPS.items():
            document = await execute(api, body)
            assert document["status"] == ("error" if name == "error" else "ok"), document
            runs[name] = document["run"]
        session = document["session"]
        await execute(api, ASK.format(1), session="plan of hostile", dry_run=True)
        waiting = await execute(api, ASK.format(2), session="question of hostile", wait_s=20)
        yield HostileSession(session, runs)
        await api.post(f"/runs/{waiting['run']}/cancel")


def test_the_texts_are_many_and_differ() -> None:
    assert len(set(HOSTILE_TEXTS)) == len(HOSTILE_TEXTS) >= 200


async def test_nothing_that_code_or_upstreams_control_is_executed(
    viewer: Viewer, hostile: HostileSession
) -> None:
    async with viewer.open() as page:
        await page.add_init_script(WATCH)
        watcher = Watcher(page, viewer.base)
        for step in STEPS:
            await watcher.visit(hostile.address(step), "texts = json.loads")
            if step == "output":
                lines = page.locator(".lines li")
                await expect(lines).to_have_count(FIRST_LINES)
                await page.locator(".output").evaluate("output => output.scrollTop = 1e6")
                await expect(lines.nth(FIRST_LINES + 1)).to_be_attached()
            if step == "variables":
                await page.click("[data-variables]")
                await expect(page.locator("tr.variable-added").nth(50)).to_be_visible()
                await page.fill("#ask-code", "texts")
                await page.press("#ask-code", "Enter")
                await expect(page.locator(".answer")).to_contain_text("onerror")
                await page.fill("#probe-line", "3")
                await page.fill("#probe-expression", "{text: texts}")
                await page.press("#probe-expression", "Enter")
                await expect(page.locator(".probe-result")).to_contain_text("onload")
            if step == "changed files":
                await expect(page.locator(".diff-added").first).to_be_visible()
            await watcher.check()
        for path, shown in (("/", "hostile"), ("/approvals", "onerror"), ("/skills", "")):
            await watcher.visit(path, shown)
            await watcher.check()
        for text in HOSTILE_TEXTS[::50]:
            await watcher.visit(f"/?q={quote(text)}", text)
            await watcher.check()


async def test_a_saved_skill_shows_the_texts_only_as_text(
    viewer: Viewer, hostile: HostileSession
) -> None:
    plain = [text for text in HOSTILE_TEXTS if "base64" not in text]  # others look like credentials
    code = f"price = 12\nshown = ''.join({plain!r})\n(shown, price * 2)"
    async with viewer.service.connect(viewer.token) as client:
        run = await client.run(code, session="hostile skill")
        request = {"run": run.run, "name": "hostile", "description": HOSTILE_TEXTS[0]}
        saved = await client.client.call_tool("save_skill", request)
    assert not saved.is_error, saved
    async with viewer.open() as page:
        await page.add_init_script(WATCH)
        watcher = Watcher(page, viewer.base)
        for path in ("/skills", "/skills/hostile"):
            await watcher.visit(path, "hostile")
            await watcher.check()


async def test_an_exported_page_executes_and_loads_nothing(
    viewer: Viewer, hostile: HostileSession, tmp_path: Path
) -> None:
    async with viewer.api() as api, viewer.open() as page:
        await page.add_init_script(WATCH)
        watcher = Watcher(page, viewer.base)
        for step, run in hostile.runs.items():
            exported = await api.get(f"/runs/{run}/page.html")
            (tmp_path / f"{step}.html").write_bytes(exported.content)
            await page.goto(f"file://{tmp_path}/{step}.html")
            await expect(page.locator("body")).to_contain_text("texts = json.loads")
            assert await page.locator("script, iframe, [onerror], [onload], a").count() == 0
            assert await page.evaluate("findings.length + (globalThis.executed ?? 0)") == 0
        assert watcher.findings == []
        notebook = (await api.get(f"/sessions/{hostile.session}/notebook.ipynb")).json()
        kinds = {
            kind
            for cell in notebook["cells"]
            for output in cell.get("outputs", ())
            for kind in output.get("data", ())
        }
        assert kinds <= {"text/plain", "application/json", "image/png"}


async def test_cells_of_a_csv_file_are_no_formulas(viewer: Viewer, hostile: HostileSession) -> None:
    async with viewer.api() as api:
        exported = await api.get(f"/runs/{hostile.runs['rows']}/value.csv")
    rows = list(csv.reader(io.StringIO(exported.text.removeprefix("\ufeff"))))
    assert len(rows) == len(HOSTILE_TEXTS) + 1
    assert [cell for row in rows for cell in row if cell.startswith(FORMULA_STARTS)] == []


async def test_files_are_saved_and_their_names_add_no_header(
    viewer: Viewer, hostile: HostileSession
) -> None:
    async with viewer.open() as page:
        [cookie] = await page.context.cookies()
        headers = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        async with viewer.service.http(**headers) as http:
            panel = (await http.get(f"{viewer.base}{hostile.address('files')}/panel")).text
            addresses = TagReader(panel).downloads
            assert len(addresses) > 150
            for address in addresses:
                response = await http.get(viewer.base + address)
                assert response.status_code == 200
                assert response.headers["content-disposition"].startswith("attachment; filename*=")
                assert response.headers["x-content-type-options"] == "nosniff"
                assert response.headers["content-security-policy"].startswith("sandbox; ")
                assert "set-cookie" not in response.headers


async def test_a_search_repeats_its_text_without_elements(
    viewer: Viewer, hostile: HostileSession
) -> None:
    async with viewer.open() as page:
        [cookie] = await page.context.cookies()
    async with viewer.service.http() as http:
        forms = [
            TagReader((await http.get(f"{viewer.base}/login?next={quote(text)}")).text).tags
            for text in ("/plain", *HOSTILE_TEXTS)
        ]
        assert all(each == forms[0] for each in forms)
        http.headers["Cookie"] = f"{cookie['name']}={cookie['value']}"
        plain = TagReader((await http.get(f"{viewer.base}/?q=texts")).text)
        for text in HOSTILE_TEXTS:
            response = await http.get(f"{viewer.base}/?q={quote(text)}")
            assert response.status_code == 200
            assert set(TagReader(response.text).tags) <= set(plain.tags)


class TagReader(HTMLParser):
    """Collects the elements of a page with the names of their attributes, and its downloads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.downloads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        values = dict(attrs)
        if "download" in values:
            self.downloads.append(str(values["href"]))
