"""What an endpoint learns of a request that is authenticated."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mcpruntime_server.config import HttpSettings
from mcpruntime_server.errors import InvalidRequest
from mcpruntime_server.service.access_tokens import TokenStore
from mcpruntime_server.service.authentication import Authentication, find_caller, find_principal


async def describe(request: Request) -> Response:
    caller = find_caller(request.scope)
    shown = {"principal": caller.principal, "scopes": sorted(caller.scopes)}
    return JSONResponse({**shown, "scope": repr(sorted(map(repr, request.scope.items())))})


async def fail(request: Request) -> Response:
    raise InvalidRequest("The request is strange.")


async def forget(request: Request) -> Response:
    return Response(find_principal(request.scope))


def build_client(authentication: Authentication) -> httpx2.AsyncClient:
    routes = [
        Route("/describe", authentication.protect(describe, ["read"])),
        Route("/admin", authentication.protect(describe, ["admin", "read"])),
        Route("/fail", authentication.protect(fail)),
        Route("/open", forget),
    ]
    transport = httpx2.ASGITransport(Starlette(routes=routes))
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def test_an_endpoint_learns_the_principal_and_never_the_token(tmp_path: Path) -> None:
    tokens = TokenStore(tmp_path)
    token = tokens.create_token("ann", scopes=["read", "run"])
    async with build_client(Authentication(tokens, HttpSettings())) as http:
        http.headers["Authorization"] = f"Bearer {token}"
        shown = (await http.get("/describe")).json()
        assert (shown["principal"], shown["scopes"]) == ("ann", ["read", "run"])
        assert token not in shown["scope"]
        refused = await http.get("/admin")
        assert refused.status_code == 403
        assert 'scope="read admin"' in refused.headers["WWW-Authenticate"]
        strange = await http.get("/fail")
        assert (strange.status_code, strange.json()["detail"]) == (400, "The request is strange.")


async def test_a_route_that_is_not_protected_learns_no_principal(tmp_path: Path) -> None:
    tokens = TokenStore(tmp_path)
    token = tokens.create_token("ann")
    async with build_client(Authentication(tokens, HttpSettings())) as http:
        with pytest.raises(KeyError):
            await http.get("/open", headers={"Authorization": f"Bearer {token}"})


async def test_without_authentication_everybody_is_the_local_user() -> None:
    async with build_client(Authentication(None, HttpSettings())) as http:
        shown = (await http.get("/admin")).json()
    assert (shown["principal"], len(shown["scopes"])) == ("local", 4)
