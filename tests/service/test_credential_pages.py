"""The page on which people store credentials: whose they are, and what others can do with it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx2
import pytest

from mcpruntime_server.capabilities.credential_store import CredentialStore

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_local_settings
from .test_principal_credentials import SECRETS, WHO, digest, prepare


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    async with open_http_service(prepare(tmp_path_factory.mktemp("pages"))) as opened:
        yield opened


def page_of(service: HttpService, server: str = "keyed") -> str:
    return f"{service.url.removesuffix('/mcp')}/credentials/{quote(server, safe='')}"


def owners(service: HttpService) -> set[str]:
    return {row.principal for row in CredentialStore(service.data_dir).list_credentials()}


async def send(
    service: HttpService, server: str = "keyed", headers: dict[str, str] | None = None, **form: str
) -> httpx2.Response:
    """Send a form as a browser would."""
    usual = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Origin": service.url.removesuffix("/mcp"),
    }
    async with service.http() as http:
        return await http.post(
            page_of(service, server), content=urlencode(form), headers={**usual, **(headers or {})}
        )


async def test_a_person_follows_the_error_and_stores_a_credential(service: HttpService) -> None:
    token = service.create_token("zoe")
    async with service.connect(token) as client:
        answer = await client.run(WHO)
        found = re.search(
            r"A person stores it at (http://\S+), or where the server runs", answer.text
        )
        assert found, answer.text
        async with service.http() as http:
            page = await http.get(found[1])
        assert page.status_code == 200
        assert '<form method="post"' in page.text
        assert 'name="token"' in page.text
        stored = await send(service, token=token, credential="secret-of-zoe-1")
        assert stored.status_code == 200
        assert "The credential is stored" in stored.text
        assert "secret-of-zoe-1" not in stored.text
        assert (await client.evaluate(WHO))["digest"] == digest("secret-of-zoe-1")


async def test_programs_send_their_token_as_ever(service: HttpService) -> None:
    token = service.create_token("max")
    headers = {"Authorization": f"Bearer {token}"}
    assert (await send(service, headers=headers, credential="secret-of-max-1")).status_code == 200
    assert "max" in owners(service)


async def test_without_a_valid_token_nothing_is_stored(service: HttpService) -> None:
    token = service.create_token("eve")
    for wrong in ("", "x", "mcprt_00000000_x", f"{token}x", "a\r\nX-Other: 1", "\u00e9"):
        refused = await send(service, token=wrong, credential="secret-of-eve-1")
        assert refused.status_code == 401, wrong
        assert "token" in refused.text
        assert "secret-of-eve" not in refused.text
    narrow = service.create_token("eve", "--scope", "read")
    assert (await send(service, token=narrow, credential="secret-of-eve-1")).status_code == 403
    assert "eve" not in owners(service)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"]
)
async def test_the_page_of_somebody_else_cannot_send_the_form(
    service: HttpService, origin: str
) -> None:
    token = service.create_token("joe")
    refused = await send(
        service, headers={"Origin": origin}, token=token, credential="secret-of-joe-1"
    )
    assert refused.status_code == 403
    assert "joe" not in owners(service)


async def test_a_page_tells_strangers_nothing_and_runs_no_code(service: HttpService) -> None:
    async with service.http() as http:
        known, unknown = [await http.get(page_of(service, name)) for name in ("keyed", "other")]
        hostile = await http.get(page_of(service, "<script>alert(1)</script>{{ 7 * 7 }}"))
    assert known.text.replace("keyed", "") == unknown.text.replace("other", "")
    assert "<script>" not in hostile.text
    assert "&lt;script&gt;" in hostile.text
    for page in (known, unknown, hostile):
        assert page.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in page.headers


@pytest.mark.parametrize(
    ("server", "form", "status", "message"),
    [
        ("other", {"credential": "secret-1"}, 404, "There is no entry"),
        ("shared", {"credential": "secret-1"}, 400, "are shared"),
        ("../keyed", {"credential": "secret-1"}, 404, ""),
        ("keyed", {"credential": "short"}, 400, "fewer than 6"),
        ("keyed", {"credential": ""}, 400, "fewer than 6"),
        ("keyed", {"credential": "x" * 9_000}, 400, "more than 8,192 bytes"),
        ("keyed", {"credential": "x" * 100_000}, 400, "at most 65,536 bytes"),
        ("keyed", {"credential": "nul\0in-it"}, 400, "NUL"),
        ("keyed", {"credential": "secret-1", "name": "other"}, 400, "uses no credential"),
        ("keyed", {f"field{n}": "x" for n in range(20)}, 400, "cannot be read"),
    ],
)
async def test_what_cannot_be_stored_is_refused_on_the_page(
    service: HttpService, server: str, form: dict[str, str], status: int, message: str
) -> None:
    token = service.create_token("pat")
    headers = {"Authorization": f"Bearer {token}"}
    refused = await send(service, server, headers, **form)
    assert refused.status_code == status
    assert message in refused.text
    assert "secret-1" not in refused.text
    assert "pat" not in owners(service)


async def test_without_authentication_the_form_asks_for_no_token(tmp_path: Path) -> None:
    async with open_http_service(prepare(tmp_path), "--no-auth") as service:
        async with service.http() as http:
            assert 'name="token"' not in (await http.get(page_of(service))).text
        assert (await send(service, credential="secret-of-me-1")).status_code == 200
        assert owners(service) == {"local", *SECRETS}


async def test_without_servers_that_need_them_there_are_no_pages(tmp_path: Path) -> None:
    settings = write_local_settings(tmp_path)
    async with open_http_service(settings) as service, service.http() as http:
        assert (await http.get(page_of(service))).status_code == 404
