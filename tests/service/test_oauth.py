"""Access tokens of an identity provider, and everything that only looks like one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mcpruntime_server.config import Config, OAuthSettings, load_config
from mcpruntime_server.errors import ConfigError, InvalidToken, Unavailable
from mcpruntime_server.service.issuer_keys import IssuerKeys
from mcpruntime_server.service.issuer_tokens import IssuerTokens

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.identity_provider import (
    RESOURCE,
    IdentityProvider,
    Respond,
    elsewhere,
    garbage,
    gone,
    huge,
    never,
    open_identity_provider,
    public_jwk,
)
from ..helpers.server_connection import write_local_settings, write_settings
from .test_http import post

Forge = Callable[[IdentityProvider], str]
FUTURE_S = 3_600


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[IdentityProvider]:
    async with open_identity_provider() as opened:
        yield opened


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider
) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("oauth")
    settings = write_local_settings(
        folder,
        http={
            "failures_per_minute": 0,  # the tests fail often, from one address
            "oauth": {"issuer": provider.issuer, "resource": RESOURCE},
        },
    )
    async with open_http_service(settings) as opened:
        yield opened


# what works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_user_of_the_provider_has_sessions_of_their_own(
    service: HttpService, provider: IdentityProvider, era: str
) -> None:
    name = f"work-{era}"
    async with service.connect(provider.issue(), era) as client:
        await client.run("x = 1", name)
    async with service.connect(provider.issue(exp=int(time.time()) + 900), era) as client:
        assert (await client.run("x + 1", name)).value == 2
    for other in (provider.issue(sub="bob"), service.create_token("alice")):
        async with service.connect(other, era) as client:
            assert name not in (await client.replay("list")).text


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "PS256"), ("ec", "ES256"), ("ed", "EdDSA")])
async def test_other_signatures_are_accepted(
    service: HttpService, provider: IdentityProvider, key: str, algorithm: str
) -> None:
    token = provider.issue(getattr(provider, key), algorithm, {"kid": key, "typ": "at+jwt"})
    async with service.http(token) as http:
        assert (await post(http, service.url)).status_code == 200


async def test_clients_find_the_provider(service: HttpService, provider: IdentityProvider) -> None:
    async with service.http() as http:
        refused = await post(http, service.url)
        challenge = refused.headers["WWW-Authenticate"]
        path = "/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="https://runtime.example.org{path}"' in challenge
        assert 'scope="run read approve"' in challenge
        origin = service.url.removesuffix("/mcp")
        for each in (path, path.removesuffix("/mcp")):
            metadata = (await http.get(origin + each)).json()
            assert metadata["resource"] == RESOURCE
            assert metadata["authorization_servers"] == [provider.issuer]
            assert metadata["scopes_supported"] == ["run", "read", "approve"]
        public = await post(http, service.url, Host="runtime.example.org")
        assert public.status_code == 401


async def test_a_token_that_does_not_allow_a_request_says_which_scope_would(
    service: HttpService, provider: IdentityProvider
) -> None:
    async with service.http(provider.issue(scope="read other")) as http:
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        request["params"] = {"name": "run_code", "arguments": {"code": "1"}}
        refused = await http.post(
            service.url, json=request, headers={"Accept": "application/json, text/event-stream"}
        )
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
    assert 'scope="run"' in refused.headers["WWW-Authenticate"]


# what is no token ---------------------------------------------------------------------------------


def part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned(provider: IdentityProvider, algorithm: str) -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': 'rsa'})}.{part(provider.claims())}."


def with_public_key_as_secret(provider: IdentityProvider, algorithm: str, header: str) -> str:
    """Sign with HMAC, as a verifier would that lets the token choose and has the public key."""
    signed = f"{part({'alg': header, 'kid': 'rsa'})}.{part(provider.claims())}"
    digest = hmac.new(provider.public_pem(), signed.encode(), getattr(hashlib, algorithm)).digest()
    return f"{signed}.{part(digest)}"


def with_own_key(provider: IdentityProvider, **header: Any) -> str:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    named = {name: value or public_jwk(own, "RS256") for name, value in header.items()}
    return provider.issue(own, headers=named)


def altered(provider: IdentityProvider) -> str:
    head, _, signature = provider.issue().split(".")
    return f"{head}.{part(provider.claims(sub='root'))}.{signature}"


FORGED: dict[str, Forge] = {
    "expired": lambda p: p.issue(exp=int(time.time()) - FUTURE_S),
    "never expires": lambda p: p.issue(exp=None),
    "expires at no time": lambda p: p.issue(exp="soon"),
    "expires at infinity": lambda p: p.issue(exp=float("inf")),
    "not valid yet": lambda p: p.issue(nbf=int(time.time()) + FUTURE_S),
    "issued in the future": lambda p: p.issue(iat=int(time.time()) + FUTURE_S),
    "for another resource": lambda p: p.issue(aud="https://other.example.org/mcp"),
    "for other resources": lambda p: p.issue(aud=["https://other.example.org/mcp", "x"]),
    "for a longer address": lambda p: p.issue(aud=f"{RESOURCE}/x"),
    "for nobody": lambda p: p.issue(aud=None),
    "of another issuer": lambda p: p.issue(iss="https://evil.example.org"),
    "of a similar issuer": lambda p: p.issue(iss=f"{p.issuer}/"),
    "of no issuer": lambda p: p.issue(iss=None),
    "of nobody": lambda p: p.issue(sub=None),
    "of an empty subject": lambda p: p.issue(sub=""),
    "of a long subject": lambda p: p.issue(sub="x" * 256),
    "bound to a key": lambda p: p.issue(cnf={"jkt": "x"}),
    "a logout token": lambda p: p.issue(headers={"typ": "logout+jwt"}),
    "critical extension": lambda p: p.issue(headers={"crit": ["exp"]}),
    "unknown key": lambda p: p.issue(headers={"kid": "none"}),
    "strange key": lambda p: p.issue(headers={"kid": "../../etc/passwd"}),
    "signed by a stranger": with_own_key,
    "brings its key": lambda p: with_own_key(p, jwk=None),
    "names its keys": lambda p: with_own_key(p, jku=f"{p.issuer}/mine"),
    "altered": altered,
    "none": lambda p: unsigned(p, "none"),
    "None": lambda p: unsigned(p, "None"),
    "no signature": lambda p: unsigned(p, "RS256"),
    "HS256": lambda p: with_public_key_as_secret(p, "sha256", "HS256"),
    "HS256 that says RS256": lambda p: with_public_key_as_secret(p, "sha256", "RS256"),
    "the key of another algorithm": lambda p: p.issue(p.ec, "ES256"),
    "an algorithm that is not configured": lambda p: p.issue(algorithm="RS512"),
    "garbage": lambda p: "a.b.c",
    "no parts": lambda p: "x" * 100,
    "binary": lambda p: f"{part(bytes(range(256)))}.{part(b'x')}.{part(b'y')}",
    "nested header": lambda p: f"{part(b'[' * 3_000)}.{part({})}.x",
    "header that is no object": lambda p: f"{part([1])}.{part({})}.x",
    "key id that is no text": lambda p: f"{part({'alg': 'RS256', 'kid': [1]})}.{part({})}.x",
    "algorithm that is no text": lambda p: f"{part({'alg': ['RS256']})}.{part({})}.x",
    "encrypted": lambda p: "a.b.c.d.e",
    "huge": lambda p: p.issue(extra="x" * 13_000),
}


@pytest.mark.parametrize("kind", FORGED)
async def test_what_is_no_valid_token_opens_nothing(
    service: HttpService, provider: IdentityProvider, kind: str
) -> None:
    token = FORGED[kind](provider)
    async with service.http(token) as http:
        refused = await post(http, service.url)
    assert refused.status_code == 401, refused.text
    assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    assert token not in refused.text
    log = (service.data_dir / "logs" / "server.log").read_text()
    assert token not in log
    assert "Traceback" not in log


async def test_unknown_keys_do_not_cause_many_requests(
    service: HttpService, provider: IdentityProvider
) -> None:
    before = provider.fetches
    for number in range(50):
        async with service.http(provider.issue(headers={"kid": f"k{number}"})) as http:
            assert (await post(http, service.url)).status_code == 401
    assert provider.fetches <= before + 2


# the keys -----------------------------------------------------------------------------------------


def settings_for(provider: IdentityProvider, **changes: Any) -> OAuthSettings:
    return OAuthSettings(issuer=provider.issuer, resource=RESOURCE, **changes)


@pytest.mark.parametrize("respond", [gone, huge, never, garbage, elsewhere])
async def test_keys_that_cannot_be_fetched_refuse_nobody_who_is_known(respond: Respond) -> None:
    async with open_identity_provider() as provider:
        keys = IssuerKeys(settings_for(provider), retry_s=0.0, fetch_timeout_s=2.0)
        tokens = IssuerTokens(settings_for(provider), keys)
        provider.respond = respond
        with pytest.raises(Unavailable, match="cannot be fetched now"):
            await tokens.find_caller(provider.issue())
        provider.respond = None
        assert (await tokens.find_caller(provider.issue())).principal.endswith("#alice")
        provider.respond = respond
        with pytest.raises(InvalidToken, match="unknown key"):
            await tokens.find_caller(provider.issue(headers={"kid": "new"}))
        assert (await tokens.find_caller(provider.issue())).principal.endswith("#alice")


async def test_a_new_key_is_found_and_a_withdrawn_one_is_refused() -> None:
    async with open_identity_provider() as provider:
        tokens = IssuerTokens(
            settings_for(provider), IssuerKeys(settings_for(provider), retry_s=0.0)
        )
        await tokens.find_caller(provider.issue())
        new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        provider.keys = [public_jwk(new, "RS256", kid="new")]
        await tokens.find_caller(provider.issue(new, headers={"kid": "new"}))
        with pytest.raises(InvalidToken):
            await tokens.find_caller(provider.issue())


async def test_weak_and_secret_keys_are_not_used() -> None:
    async with open_identity_provider() as provider:
        weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"}
        for_encryption = {**provider.keys[0], "use": "enc", "kid": "enc"}
        provider.keys += [public_jwk(weak, "RS256", kid="weak"), secret, for_encryption, 1, {}]  # type: ignore[list-item]
        tokens = IssuerTokens(settings_for(provider))
        assert (await tokens.find_caller(provider.issue())).principal.endswith("#alice")
        for kid in ("weak", "oct", "enc"):
            with pytest.raises(InvalidToken):
                await tokens.find_caller(provider.issue(headers={"kid": kid}))


async def test_metadata_of_another_issuer_is_not_believed() -> None:
    async with open_identity_provider() as provider:
        settings = OAuthSettings(issuer=f"{provider.issuer}/realm", resource=RESOURCE)
        with pytest.raises(Unavailable):
            await IssuerTokens(settings).find_caller(provider.issue())


async def test_the_provider_may_have_other_names_for_scopes() -> None:
    async with open_identity_provider() as provider:
        settings = settings_for(provider, scopes={"run": "rt.run", "admin": "rt.all"})
        tokens = IssuerTokens(settings)
        for claims in (
            {"scope": "rt.run read run"},
            {"scope": None, "scp": ["rt.run", "read", 1]},
            {"scope": None, "scp": "rt.run read"},
        ):
            assert (await tokens.find_caller(provider.issue(**claims))).scopes == {"run", "read"}
        for strange in (None, 1, {"run": 1}):
            caller = await tokens.find_caller(provider.issue(scope=strange))
            assert caller.scopes == frozenset()


# the settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oauth", "problem"),
    [
        ({"issuer": "https://id.example.org"}, "resource"),
        ({"resource": RESOURCE}, "issuer"),
        ({"issuer": "http://id.example.org", "resource": RESOURCE}, "https://"),
        ({"issuer": "https://id.example.org#x", "resource": RESOURCE}, "#"),
        ({"issuer": "https://u:p@id.example.org", "resource": RESOURCE}, "https://"),
        ({"issuer": "https://id.example.org", "resource": "api://x"}, "https://"),
        (
            {"issuer": "https://id.example.org", "resource": RESOURCE, "jwks_url": "file:///etc/x"},
            "jwks_url",
        ),
        (
            {"issuer": "https://id.example.org", "resource": RESOURCE, "algorithms": ["HS256"]},
            "HS256",
        ),
        (
            {"issuer": "https://id.example.org", "resource": RESOURCE, "algorithms": ["none"]},
            "none",
        ),
        ({"issuer": "https://id.example.org", "resource": RESOURCE, "algorithms": []}, "one"),
        ({"issuer": "https://i.example.org", "resource": RESOURCE, "scopes": {"x": "y"}}, "x"),
        ({"issuer": "https://i.example.org", "resource": RESOURCE, "scopes": {"run": ""}}, "words"),
    ],
)
def test_settings_that_are_not_safe_are_refused(
    tmp_path: Path, oauth: dict[str, Any], problem: str
) -> None:
    settings = write_settings(tmp_path, http={"oauth": oauth})
    with pytest.raises(ConfigError, match=problem):
        load_config(settings)


def test_without_settings_there_is_no_provider() -> None:
    assert Config().http.oauth.issuer == ""
