"""A small identity provider over real HTTP: metadata, public keys, and tokens of any kind."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import jwt
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from mcpruntime_server.service.http_service import HttpServer

Respond = Callable[[Request], Coroutine[Any, Any, Response]]
RESOURCE = "https://runtime.example.org/mcp"


class IdentityProvider:
    """Signs tokens with the keys that it publishes at `issuer`."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.keys: list[dict[str, Any]] = [
            public_jwk(self.rsa, "RS256", kid="rsa"),
            public_jwk(self.ec, "ES256", kid="ec"),
            public_jwk(self.ed, "EdDSA", kid="ed"),
        ]
        self.fetches = 0  # of the keys
        self.respond: Respond | None = None  # instead of publishing the keys

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a valid token with `changes`; None leaves one out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": RESOURCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "scope": "run read approve",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def issue(
        self,
        key: Any = None,
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        named = {"kid": "rsa", **(headers or {})}
        return jwt.encode(self.claims(**changes), key or self.rsa, algorithm, headers=named)

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse({"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"})

    async def _keys(self, request: Request) -> Response:
        self.fetches += 1
        if self.respond is not None:
            return await self.respond(request)
        return JSONResponse({"keys": self.keys})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._metadata),
                Route("/keys", self._keys),
            ]
        )


def public_jwk(key: Any, algorithm: str, **more: Any) -> dict[str, Any]:
    described = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**described, "use": "sig", **more}


@asynccontextmanager
async def open_identity_provider() -> AsyncIterator[IdentityProvider]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        provider = IdentityProvider(f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            provider.app(),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = HttpServer(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            try:
                yield provider
            finally:
                server.should_exit = True


async def gone(request: Request) -> Response:
    return Response("gone", 410)


async def huge(request: Request) -> Response:
    return Response(b'{"keys": [' + b" " * 1_000_000 + b"]}")


async def never(request: Request) -> Response:
    await anyio.sleep_forever()
    raise AssertionError


async def garbage(request: Request) -> Response:
    return Response(b"[" * 100_000)


async def elsewhere(request: Request) -> Response:
    return RedirectResponse("http://127.0.0.1:9/keys")
