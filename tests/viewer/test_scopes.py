"""What each scope of a token shows and does in the viewer: never more than over the API."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mcpruntime_server.config.scopes import SCOPES
from mcpruntime_server.service.api import API_ROUTES
from mcpruntime_server.viewer.page_routes import API_PREFIX, PAGE_ROUTES

from .conftest import Viewer

ROUTES = [
    *((each.method, each.path, each.scopes) for each in PAGE_ROUTES),
    *((each.method, f"{API_PREFIX}{each.path}", each.scopes) for each in API_ROUTES),
]
TOKENS: tuple[tuple[str, ...], ...] = tuple(
    tuple(scope for scope, is_given in zip(SCOPES, given, strict=True) if is_given)
    for given in product((True, False), repeat=len(SCOPES))
    if any(given)
)
STREAMS = ("/changes", "/events")  # which do not end by themselves
CONTROLS = {  # what a page offers, by the scope that it needs
    "run": "[data-try], [data-fork], [data-rewind], [data-pin], [data-delete], [data-probe-form], "
    "[data-ask], [data-variables], [data-save-skill]",
}


def fill_path(path: str, run: str, session: str) -> str:
    """Return an address of things that do not exist, or that are harmless to read."""
    for name, value in (
        ("{session}", session),
        ("{run_id}", run),
        ("{name}", "no_such_skill"),
        ("{number:int}", "1"),
        ("{path:path}", "none.txt"),
    ):
        path = path.replace(name, value)
    assert "{" not in path, path
    return path


@pytest.mark.parametrize("scopes", TOKENS, ids="+".join)
async def test_every_address_is_refused_without_its_scopes_and_only_then(
    viewer: Viewer, scopes: tuple[str, ...]
) -> None:
    options = [part for scope in scopes for part in ("--scope", scope)]
    token = viewer.service.create_token("scoped", *options)
    async with viewer.service.http() as http:
        login = await http.post(
            f"{viewer.base}/login",
            data={"token": token},
            headers={"Origin": viewer.base},
        )
        assert login.status_code == 303, login.text
    cookie = login.headers["set-cookie"].partition(";")[0]
    headers: dict[str, Any] = {"Cookie": cookie}
    async with viewer.service.http(**headers) as http:
        page = (await http.get(f"{viewer.base}/")).text
        csrf = page.partition('name="csrf-token" content="')[2].partition('"')[0]
        assert csrf
        write = {"Origin": viewer.base, "X-CSRF-Token": csrf}
        wrong = []
        for method, path, needed in ROUTES:
            address = viewer.base + fill_path(path, "r_none", "s_none")
            body: dict[str, Any] = {"headers": write, "json": {}} if method != "GET" else {}
            if path.endswith(STREAMS) and set(needed) <= set(scopes) and "approvals" in path:
                async with http.stream(method, address) as response:
                    status = response.status_code
            else:
                status = (await http.request(method, address, **body)).status_code
            is_refused = status == 403
            if is_refused != (not set(needed) <= set(scopes)):
                wrong.append((method, path, needed, status))
            assert status < 500, (method, path, status)
        assert wrong == []


async def test_a_page_offers_only_what_its_token_may_do(viewer: Viewer) -> None:
    async with viewer.open(
        f"/s/{viewer.session}", viewer.service.create_token("ann", "--scope", "read")
    ) as page:
        for selector in CONTROLS.values():
            assert await page.locator(selector).count() == 0
    async with viewer.open(f"/s/{viewer.session}") as page:
        for selector in CONTROLS["run"].split(", "):
            assert await page.locator(selector).count() == 1, selector
