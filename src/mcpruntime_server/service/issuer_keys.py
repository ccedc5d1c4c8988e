"""The public keys of an identity provider, which sign its access tokens.

They are fetched when they are needed and kept. Nobody can make the server fetch often: a token
that names an unknown key causes one attempt in `RETRY_S`, and all requests share it. While the
provider cannot be reached, its last keys are used for `KEEP_S`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2

from ..capabilities.tls_context import load_tls_context
from ..config import OAuthSettings
from ..config.models import is_secure_url
from ..errors import Unavailable
from ..protocol.payloads import JsonObject

FETCH_TIMEOUT_S = 5.0  # for all requests of one attempt
REFRESH_S = 600.0  # a key that the provider withdraws is refused after this time
RETRY_S = 10.0
KEEP_S = 3600.0
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100
MIN_RSA_BITS = 2048
KEY_TYPES = ("RSA", "EC", "OKP")  # public keys: a shared secret is not the key of a provider

logger = logging.getLogger(__name__)

Jwk = Mapping[str, Any]


class IssuerKeys:
    """Fetches and keeps the keys of one issuer."""

    def __init__(
        self,
        settings: OAuthSettings,
        retry_s: float = RETRY_S,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._issuer = settings.issuer
        self._given_url = settings.jwks_url
        self._found_url = ""
        self._retry_s = retry_s
        self._fetch_timeout_s = fetch_timeout_s
        self._keys: Sequence[Jwk] = ()
        self._fetched_at = -KEEP_S
        self._tried_at = -retry_s
        self._lock = anyio.Lock()

    async def find_key(self, key_id: str | None) -> Jwk | None:
        """Return the key with an id, or the only one if a token names none.

        Raises `Unavailable` if there are no keys, and none can be fetched.
        """
        age_s = time.monotonic() - self._fetched_at
        if age_s > KEEP_S:
            self._keys = ()
        if not self._keys or (age_s > REFRESH_S and not self._lock.locked()):
            await self._refresh()
        found = self._select(key_id)
        if found is None and self._keys:
            await self._refresh()
            found = self._select(key_id)
        if not self._keys:
            raise Unavailable(
                f"The keys of {self._issuer} cannot be fetched now.",
                remedy="Try again later; the server's log says why.",
            )
        return found

    def _select(self, key_id: str | None) -> Jwk | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == key_id), None)

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; a failure is logged."""
        async with self._lock:
            if time.monotonic() - self._tried_at < self._retry_s:
                return
            self._tried_at = time.monotonic()
            try:
                with anyio.fail_after(self._fetch_timeout_s):
                    self._keys = await self._fetch_keys()
                self._fetched_at = time.monotonic()
            except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as exc:
                self._found_url = ""
                reason = str(exc) or type(exc).__name__
                logger.warning("could not fetch the keys of %s: %.300s", self._issuer, reason)

    async def _fetch_keys(self) -> Sequence[Jwk]:
        tls = await anyio.to_thread.run_sync(load_tls_context)
        async with httpx2.AsyncClient(verify=tls, timeout=self._fetch_timeout_s) as client:
            if not self._given_url and not self._found_url:
                self._found_url = await find_keys_url(client, self._issuer)
            document = await fetch_json(client, self._given_url or self._found_url)
        keys = document.get("keys")
        if not isinstance(keys, list):
            raise ValueError("The document has no list of keys.")
        usable = [key for key in keys[:MAX_KEYS] if is_signature_key(key)]
        if not usable:
            raise ValueError("The document has no key that can verify signatures.")
        return usable


async def find_keys_url(client: httpx2.AsyncClient, issuer: str) -> str:
    """Return where an issuer publishes its keys; raises `ValueError` and errors of HTTP."""
    problem: Exception = ValueError("No metadata was found.")
    for url in metadata_urls(issuer):
        try:
            metadata = await fetch_json(client, url)
        except (httpx2.HTTPError, ValueError) as exc:
            problem = exc
            continue
        if metadata.get("issuer") != issuer:
            problem = ValueError(f"{url} is the metadata of another issuer.")
            continue
        found = metadata.get("jwks_uri")
        if isinstance(found, str) and is_secure_url(found):
            return found
        problem = ValueError(f"{url} has no `jwks_uri` that begins with https://.")
    raise problem


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Return where the metadata of an issuer may be, by RFC 8414 and by OpenID Connect."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    origin = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}{path}/.well-known/openid-configuration",
    )


async def fetch_json(client: httpx2.AsyncClient, url: str) -> JsonObject:
    """Return the JSON object at an address; raises `ValueError` and errors of HTTP."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    body = bytearray()
    async with client.stream("GET", url, headers=headers, follow_redirects=False) as response:
        if response.status_code != httpx2.codes.OK:
            raise ValueError(f"{url} responds with HTTP {response.status_code}.")
        async for part in response.aiter_raw():
            body += part
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} sends more than {MAX_DOCUMENT_BYTES:,} bytes.")
    document = json.loads(bytes(body))
    if not isinstance(document, dict):
        raise ValueError(f"{url} sends no JSON object.")
    return document


def is_signature_key(key: Any) -> bool:
    """Return whether a key of a provider can verify signatures, and is strong enough."""
    if not isinstance(key, dict) or key.get("kty") not in KEY_TYPES:
        return False
    if key.get("use", "sig") != "sig":
        return False
    if key["kty"] != "RSA":
        return True
    modulus = key.get("n")
    return isinstance(modulus, str) and len(modulus) * 6 >= MIN_RSA_BITS
