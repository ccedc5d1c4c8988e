"""Every field of every template shows the hostile texts, unless it can have own texts only."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from playwright.async_api import Page, async_playwright, expect

from mcpruntime_server.journal.principals import issuer_principal
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.viewer import page_rendering

from ..helpers.http_service import open_http_service
from ..helpers.identity_provider import RESOURCE, IdentityProvider, open_identity_provider
from ..service.test_principal_credentials import prepare
from . import shown_fields
from .conftest import CHROMIUM, Viewer
from .hostile_session import ADDRESS, FUNCTION_SESSION, SESSION, TAG, SessionWriter, write_skills
from .page_watcher import WATCH, Watcher
from .shown_fields import EXPRESSION, SHOWN_FILE, list_fields, list_templates, read_shown

SUBJECT = "<img/src=x/onerror=alert(1)>"  # a principal has no spaces and no quotes
# Why these show no text of anybody else. Figures are not listed: they are seen to be numbers.
OWN_TEXTS = {
    "ids that this server makes": """
        card.key ¦ card.run_id ¦ card.name ¦ card.session.id ¦ each.row.id ¦ entry.digest
        heading.origin.id ¦ heading.origin.session_id ¦ heading.row.id ¦ item.row.id
        match.run_id ¦ run.id ¦ session_id ¦ step.run.id ¦ step.run.id if step else ""
        viewer.csrf_token
    """,
    "names that a pattern allows": """
        each.name ¦ item.skill.name ¦ preview.known.id ¦ preview.known.name ¦ preview.skill.name
        preview.skill.used_tools | join(", ") ¦ view.skill.name
    """,
    "words of this program": """
        "Approval" if each.kind == "approval" else each.kind | replace("_", " ") | capitalize
        call.effect ¦ call.status ¦ card.kind ¦ card.label ¦ card.question ¦ diff.problem
        each.decision ¦ each.scope ¦ each.state ¦ error.code | replace("_", " ") | capitalize
        error.remedy ¦ file.change ¦ item.skill.state ¦ item.state ¦ kinds[match.kind] ¦ label
        line.kind ¦ node.kind ¦ problem ¦ report.status ¦ sessions.state ¦ started_at ¦ static
        status ¦ status_pill(call.status) ¦ status_pill(step.status) ¦ status_pill(view.state)
        step.status ¦ text ¦ title
        viewer/login.html: error.message ¦ viewer/session.html: name ¦ viewer/sessions.html: name
    """,
    "types of media, which are read from their bytes": "each.mime_type ¦ mime_type",
    "figures that this session does not have": """
        "{:,}".format(step.model_tokens) ¦ "{:,}".format(entry.size) ¦ preview.known.version
        each.number ¦ exports/run.html: loop.index ¦ heading.origin.step ¦ result.searched_count
        sessions.next_offset ¦ view.usage.successes
    """,
}
COMPARED_STEPS = 4  # of the session
COMPARED = ("Output", "Error output", "Status", "Value", "Error", f"{TAG}.{TAG}(", "made.html")
IS_VISITED = re.compile(r"/(?:s/\w+/\w+|[a-z]*(?:/[a-z]+)?)(?:\?(?!path).*)?")  # not parts of pages
SINKS = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
# What scripts assign to addresses: paths of this server, or what a page of it has.
ADDRESSES = re.compile(r"\b(?:href|src|location\.assign)(?: = |: |\()(.+)")
OWN_ADDRESSES = re.compile(
    r"`/|\"/|`#|place\.run === run \? `#|URL\.createObjectURL|addressOf\(|`\$\{this"
)


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[IdentityProvider]:
    async with open_identity_provider() as opened:
        yield opened


@pytest.fixture(scope="module")
async def viewer(
    tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider
) -> AsyncIterator[Viewer]:
    """The pages of a principal with a hostile name, who has the hostile session and skills."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: run scripts/test-browser")
    folder = tmp_path_factory.mktemp("fields")
    settings = prepare(
        folder,
        http={"oauth": {"issuer": provider.issuer, "resource": RESOURCE}},
        skills={"folder": str(folder / "skills")},
    )
    principal = issuer_principal(provider.issuer, SUBJECT)
    write_skills(folder / "skills", principal)
    async with (
        open_http_service(settings, script=Path(shown_fields.__file__)) as service,
        open_journal(folder / "data") as journal,  # of another server, which asks its questions
        async_playwright() as playwright,
    ):
        await write_journal(journal, principal)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Viewer(service, browser, provider.issue(sub=SUBJECT), SESSION)
        await browser.close()


async def write_journal(journal: Journal, principal: str) -> None:
    """Write the sessions."""
    writer = SessionWriter(journal)
    await writer.write(principal)
    await writer.write_questions(principal)


def list_own_texts() -> set[str]:
    """Return the fields that show own texts, by template where only that of one template does."""
    return {
        each.strip()
        for texts in OWN_TEXTS.values()
        for line in texts.splitlines()
        for each in line.split("¦")
        if each.strip()
    }


def list_pages() -> list[str]:
    """Return the addresses of everything that templates render."""
    steps = [f"/s/{SESSION}/r_{name}" for name in ("calls", "files", "table", "tree")]
    steps.append(f"/s/{FUNCTION_SESSION}/r_function")
    return [
        "/",
        f"/?q={quote('alert(1)')}",
        "/?state=failed",
        *steps,
        *(f"{step}/panel" for step in steps),
        f"/s/{SESSION}/r_calls/output?line=1",
        f"/s/{SESSION}/r_files/diff?path={quote(TAG)}",
        f"/s/{FUNCTION_SESSION}/r_function/skill",
        "/approvals",
        "/skills",
        "/skills/hostile",
        "/skills/hostile?version=1",
        f"/credentials/{quote(TAG, safe='')}",
        *(f"/ui/api/runs/r_{name}/page.html" for name in ("calls", "files", "tree")),
    ]


async def log_in(viewer: Viewer, token: str) -> dict[str, str]:
    """Return the headers of a browser that has logged in."""
    async with viewer.open(token=token) as page:
        [cookie] = await page.context.cookies()
        return {"Cookie": f"{cookie['name']}={cookie['value']}"}


async def fetch_pages(viewer: Viewer, http: httpx2.AsyncClient) -> None:
    """Fetch everything that templates render, once."""
    for path in list_pages():
        response = await http.get(viewer.base + path)
        assert response.status_code == 200, path
    missing = await http.get(f"{viewer.base}/s/{SESSION}/{quote(TAG, safe='')}")
    assert missing.status_code == 404
    form = {"token": viewer.token, "credential": "x"}
    stored = await http.post(f"{viewer.base}/credentials/{quote(TAG, safe='')}", data=form)
    assert stored.is_client_error
    login = f"{viewer.base}/login?next={quote(f'/{TAG}')}"
    assert (await http.get(login, headers={"Cookie": ""})).status_code == 200


async def test_every_field_shows_the_texts_or_cannot(viewer: Viewer) -> None:
    async with viewer.service.http(**await log_in(viewer, viewer.token)) as http:
        await fetch_pages(viewer, http)
    async with viewer.service.http(
        **await log_in(viewer, viewer.service.create_token("bob"))
    ) as http:
        assert (await http.get(f"{viewer.base}/skills/shared")).status_code == 200
        await http.get(f"{viewer.base}/skills")
    shown, own = read_shown(viewer.service.settings.with_name(SHOWN_FILE)), list_own_texts()
    missed, wrong = set(), set()
    for field in list_fields():
        kinds = shown.get(field, set())
        is_own = field in own or field.partition(": ")[2] in own
        if "hostile" in kinds and is_own:
            wrong.add(field)
        if "markup" in kinds and is_own:
            wrong.add(field)
        if not is_own and "hostile" not in kinds and kinds != {"number"}:
            missed.add((field, *kinds))
    assert (missed, wrong) == (set(), set())


def test_templates_escape_everything_and_quote_every_attribute() -> None:
    assert page_rendering.load_templates().autoescape is True
    for name, source in list_templates().items():
        assert "safe" not in re.findall(r"\|\s*(\w+)", source), name
        assert "autoescape" not in source, name
        text = re.sub(r"\{%.*?%\}", "", source, flags=re.DOTALL)
        while found := EXPRESSION.search(text):
            before = text[: found.start()]
            start = before.rfind("<")
            if start >= 0 and ">" not in before[start:]:
                assert before[start:].count('"') % 2 == 1, f"{name}: {found[0]} is in no quotes"
            is_address = re.search(r'(?:href|src|action)="$', before)
            if is_address:
                assert found[1].strip() in ("static", "card.url"), f"{name}: {found[0]}"
            text = f"{before}X{text[found.end() :]}"


def test_scripts_make_no_markup_and_no_foreign_addresses() -> None:
    for name, content in page_rendering.load_static_files().items():
        if not name.endswith(".js"):
            continue
        source = content.decode()
        assert not SINKS.search(source), name
        for found in ADDRESSES.finditer(source):
            assert OWN_ADDRESSES.search(found[1]), f"{name}: {found[0]}"


async def test_nothing_in_the_session_is_executed(viewer: Viewer) -> None:
    async with viewer.open() as page:
        await page.add_init_script(WATCH)
        watcher = Watcher(page, viewer.base, ADDRESS)
        for path in list_pages():
            if not IS_VISITED.fullmatch(path):
                continue
            await watcher.visit(path, "")
            if path.startswith("/s/"):
                await expect(page.locator(".rail-row").first).to_be_visible()
                await page.hover("[data-scrub]")
            await watcher.check()
        await try_everything(page, watcher, viewer)


async def try_everything(page: Page, watcher: Watcher, viewer: Viewer) -> None:
    """Use the dialogs and forms of steps with the texts."""
    await page.goto(f"{viewer.base}/s/{SESSION}/r_calls")
    await expect(page.locator(".rail-row").first).to_be_visible()  # then keys do something
    await page.press("[data-try]", "Enter")
    await expect(page.locator("dialog .try-calls summary").last).to_be_visible()
    await watcher.check()
    await page.check("#try-following")  # the code and the answers are those of the recording
    await page.press("text=Execute and compare", "Enter")
    await expect(page.locator(".difference")).to_have_count(COMPARED_STEPS)
    for compared in COMPARED:
        await expect(page.locator(".difference h4", has_text=compared).first).to_be_visible()
    await expect(page.locator(".side-by-side", has_text="onerror").first).to_be_visible()
    await watcher.check()
    await page.keyboard.press("Escape")
    await page.goto(f"{viewer.base}/s/{FUNCTION_SESSION}/r_function")
    await expect(page.locator(".rail-row").first).to_be_visible()
    await page.press("[data-save-skill]", "Enter")
    await expect(page.locator(".skill-preview code").first).to_be_visible()
    await watcher.check()
    await page.press("text=Test and save", "Enter")
    await expect(page.locator(".verdict .pill")).to_be_visible()
    await watcher.check()
    await page.keyboard.press("Escape")
    await page.fill("#probe-expression", repr(TAG))
    await page.press("#probe-expression", "Enter")
    await expect(page.locator(".probe-result .hits")).to_contain_text("onerror")
    await page.fill("#ask-code", f"{{}}[{TAG!r}]")
    await page.press("#ask-code", "Enter")
    await expect(page.locator(".answers")).to_contain_text("onerror")
    await page.press("[data-variables]", "Enter")
    await expect(page.locator(".variables")).to_contain_text("onerror")
    await watcher.check()
    await page.press("[data-try]", "Enter")
    await page.fill("#try-live", TAG)
    await page.press("text=Execute and compare", "Enter")  # is refused, which the console notes
    await expect(page.locator("dialog [role=alert]")).to_contain_text("onerror")
    assert await page.evaluate("findings") == []


async def test_names_of_downloads_have_no_texts(viewer: Viewer) -> None:
    headers = await log_in(viewer, viewer.token)
    async with viewer.service.http(**headers) as http:
        for path in (
            "runs/r_calls/page.html",
            "runs/r_table/value.csv",
            f"sessions/{SESSION}/notebook.ipynb",
        ):
            response = await http.get(f"{viewer.base}/ui/api/{path}")
            assert response.status_code == 200
            disposition = response.headers["content-disposition"]
            assert re.fullmatch(r'attachment; filename="[\w.-]+"', disposition), disposition
            assert response.headers["x-content-type-options"] == "nosniff"
