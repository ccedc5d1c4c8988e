"""Who may see the pages, and which requests may change something."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from mcpruntime_server.service.api import API_ROUTES
from mcpruntime_server.viewer.page_routes import API_PREFIX, PAGE_ROUTES

from ..helpers.commands import run_command
from ..helpers.event_streams import connect_api
from .conftest import Viewer
from .test_scopes import fill_path

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; require-trusted-types-for 'script'; "
    "trusted-types 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
NOSNIFF = {"x-content-type-options": "nosniff"}


async def test_without_a_login_every_page_leads_to_the_login(viewer: Viewer) -> None:
    async with viewer.service.http() as http:
        for path in ("/", f"/s/{viewer.session}", "/s/none/none"):
            response = await http.get(viewer.base + path)
            assert response.status_code == 303
            assert response.headers["location"].startswith("/login")
        for path in (f"/s/{viewer.session}/steps", "/ui/api/sessions"):
            assert (await http.get(viewer.base + path)).status_code == 401


async def test_every_address_has_headers_against_hostile_content(viewer: Viewer) -> None:
    async with viewer.api() as api:
        runs = (await api.get(f"/sessions/{viewer.session}")).json()["runs"]
    async with viewer.open() as page:
        [cookie] = await page.context.cookies()
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    paths = [("/login", SECURITY), ("/static/0/none", SECURITY)]
    paths += [(each.path, SECURITY) for each in PAGE_ROUTES if each.method == "GET"]
    paths += [(f"{API_PREFIX}{each.path}", NOSNIFF) for each in API_ROUTES if each.method == "GET"]
    paths += [(path, NOSNIFF) for path in ("/ui/api/sessions/none", "/ui/api/sessions?limit=0")]
    found = {}
    async with viewer.service.http(**headers) as http:
        for path, expected in paths:
            address = viewer.base + fill_path(path, runs[-1]["run"], viewer.session)
            async with http.stream("GET", address) as response:  # some do not end
                if response.status_code != 303:
                    found[path] = {name: response.headers.get(name) for name in expected}
    assert found == {path: expected for path, expected in paths if path in found}
    assert len(found) > 30


async def test_a_body_that_does_not_fit_is_a_problem_and_no_failure(viewer: Viewer) -> None:
    async with viewer.api() as api:
        run = (await api.get(f"/sessions/{viewer.session}")).json()["runs"][0]["run"]
    async with viewer.open() as page:
        token = str(await page.get_attribute("meta[name=csrf-token]", "content"))
        [cookie] = await page.context.cookies()
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}", "X-CSRF-Token": token}
    long = {"call": 1, "error": "x" * 2_000}
    async with viewer.service.http(**headers, Origin=viewer.base) as http:
        for path, body in (
            (f"/s/{viewer.session}/rerun", {"run": run, "answers": [long]}),
            (f"/s/{viewer.session}/{run}/skill", {"name": 1}),
            ("/skills/none/state", {}),
        ):
            response = await http.post(viewer.base + path, json=body)
            assert response.status_code == 400, response.text
            assert response.json()["code"] == "invalid_request"


async def test_a_wrong_token_is_refused_and_a_login_can_be_ended(viewer: Viewer) -> None:
    async with viewer.open() as page:
        await page.click("text=Log out")
        await page.fill("#token", "mcprt_00000000_wrong")
        await page.click("button:has-text('Log in')")
        await expect(page.locator("[role=alert]")).to_contain_text("not valid")
        await page.goto(viewer.base)
        assert page.url == f"{viewer.base}/login"


async def test_a_login_ends_with_its_token(viewer: Viewer) -> None:
    token = viewer.service.create_token("ann")
    async with viewer.open(f"/s/{viewer.session}", token) as page:
        name = token.split("_")[1]
        run_command("--config", viewer.service.settings, "token", "revoke", name)
        await page.goto(viewer.base)
        assert page.url == f"{viewer.base}/login"


async def test_what_others_own_is_not_found(viewer: Viewer) -> None:
    async with viewer.open(token=viewer.service.create_token("bob")) as page:
        assert "report" not in await page.inner_text("main")
        async with viewer.api() as api:
            session = (await api.get(f"/sessions/{viewer.session}")).json()
        run = session["runs"][0]["run"]
        [cookie] = await page.context.cookies()
        headers = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        async with viewer.service.http(**headers) as http:
            for path in ("", f"/{run}", f"/{run}/panel", f"/{run}/output", "/steps", "/changes"):
                theirs = await http.get(f"{viewer.base}/s/{viewer.session}{path}")
                none = await http.get(f"{viewer.base}/s/s_none{path.replace(run, 'r_none')}")
                assert (theirs.status_code, none.status_code) == (404, 404)
                known = theirs.text.replace(viewer.session, "s_none").replace(run, "r_none")
                assert known == none.text


@pytest.mark.parametrize("header", ["X-CSRF-Token", "Origin"])
async def test_a_write_needs_the_token_and_the_origin_of_a_page(
    viewer: Viewer, header: str
) -> None:
    async with viewer.open() as page:
        token = await page.get_attribute("meta[name=csrf-token]", "content")
        [cookie] = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        headers = {
            "Cookie": f"{cookie['name']}={cookie['value']}",
            "X-CSRF-Token": str(token),
            "Origin": viewer.base,
        }
        path = f"/ui/api/sessions/{viewer.session}/fork"
        async with connect_api(viewer.service, "") as api:
            assert (await api.post(path, {}, headers=headers)).status_code == 201
            wrong = {**headers, header: "http://127.0.0.1:1"}
            assert (await api.post(path, {}, headers=wrong)).status_code == 403
            del headers[header]
            assert (await api.post(path, {}, headers=headers)).status_code == 403


async def test_every_write_is_refused_without_the_token_of_its_login_or_from_elsewhere(
    viewer: Viewer,
) -> None:
    async with viewer.open() as page:
        token = str(await page.get_attribute("meta[name=csrf-token]", "content"))
        [cookie] = await page.context.cookies()
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    attempts = (
        {"Origin": viewer.base},
        {"Origin": viewer.base, "X-CSRF-Token": token[::-1]},
        {"Origin": "http://127.0.0.1:1", "X-CSRF-Token": token},
        {"Origin": "null", "X-CSRF-Token": token},
        {"X-CSRF-Token": token},
    )
    writes = [(each.method, f"/ui/api{each.path}") for each in API_ROUTES if each.method != "GET"]
    assert len(writes) >= 10
    async with viewer.service.http(**headers) as http:
        for method, path in [*writes, ("POST", "/skills/x/state")]:
            for attempt in attempts:
                response = await http.request(method, viewer.base + path, headers=attempt, json={})
                assert response.status_code == 403, (method, path, attempt)
                assert "insufficient_scope" not in response.text
