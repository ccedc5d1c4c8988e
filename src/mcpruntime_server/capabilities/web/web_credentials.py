"""Credentials that are added to the requests for a host, and removed from its responses.

Rule 1: one is sent over HTTPS, to exactly its host, in place of what code has written there.
Rule 2: where each principal has its own, it is read anew for each request, and used for requests of
that principal's code alone.
Rule 3: an answer to such a request is not compressed, and whatever in it repeats the credential is
replaced before anything else sees it, also where two pieces of it meet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from hashlib import sha256

from anyio.to_thread import run_sync

from ...config.models import WebCredential
from ...config.placeholders import DEFAULT_NAME, check_credential
from ...config.web_rules import WebAddress, credential_user
from ...errors import CallFailed, Unavailable
from ..credential_store import StoredCredential
from ..own_credentials import MISSING_KIND, UNUSABLE_KIND, OwnCredentials
from ..redaction import Credentials

COMPRESSION_HEADERS = (b"accept-encoding", b"range")
MIN_SECRET_CHARS = 6  # of a word of the value; shorter ones occur by chance


class HostCredential:
    """The credential of one host, as a header of requests."""

    def __init__(self, settings: WebCredential, secret: str = "") -> None:
        self._name = settings.header.encode()
        self._value = settings.value.get_secret_value().encode()
        value = settings.value.get_secret_value().strip()
        words = [each for each in value.split() if len(each) >= MIN_SECRET_CHARS]
        self.redactor = Credentials({value, *words[-1:], *filter(None, [secret])})
        self.digest = sha256(self._name + b"\0" + self._value).digest()

    def apply(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return request headers with the credential, which ask for an uncompressed response."""
        replaced = (self._name.lower(), *COMPRESSION_HEADERS)
        kept = [each for each in headers if each[0].lower() not in replaced]
        return [*kept, (b"Accept-Encoding", b"identity"), (self._name, self._value)]

    def redact_headers(self, headers: list[list[str]]) -> list[list[str]]:
        """Return response headers without the credential; raises `CallFailed`."""
        for name, value in headers:
            if name.lower() == "content-encoding" and value.strip().lower() != "identity":
                raise CallFailed(
                    "protocol",
                    "The server compressed its answer although it was told not to: it is refused, "
                    "because the credential that was sent could be in it.",
                )
        return [[self.redactor.redact_text(each) for each in header] for header in headers]

    async def redact_body(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the pieces of a response body without the credential."""
        pending = b""
        async for chunk in chunks:
            done, pending = self.redactor.redact_beginning(pending + chunk)
            if done:
                yield done
        if pending:
            yield self.redactor.redact_bytes(pending)


class HostCredentials:
    """The credentials of all hosts, shared ones and those that `vault` has of each principal."""

    def __init__(self, settings: Mapping[str, WebCredential], vault: OwnCredentials) -> None:
        self._settings = settings
        self._vault = vault
        self._shared = {
            host: HostCredential(each)
            for host, each in settings.items()
            if not each.is_per_principal
        }

    async def find(self, address: WebAddress, principal: str) -> HostCredential | None:
        """Return the credential for an address, if there is one.

        Raises `CallFailed` if a principal has not stored its own; before, a person is asked for it,
        if the client of the run can show a page.
        """
        entry = self._settings.get(address.netloc) if address.scheme == "https" else None
        if entry is None or not entry.is_per_principal:
            return self._shared.get(address.netloc) if entry is not None else None
        user = credential_user(address.netloc)
        while True:
            try:
                rows = await run_sync(self._vault.find_rows, user, principal)
            except Unavailable as exc:
                raise CallFailed(UNUSABLE_KIND, str(exc)) from None
            try:
                return await run_sync(self._open, entry, user, principal, rows)
            except CallFailed as exc:
                is_missing = exc.kind == MISSING_KIND
                if not is_missing or not await self._vault.ask(user, principal, rows, exc):
                    raise

    def _open(
        self,
        entry: WebCredential,
        user: str,
        principal: str,
        rows: tuple[StoredCredential, ...],
    ) -> HostCredential:
        secret = self._vault.decrypt(rows, user, principal, [DEFAULT_NAME])[DEFAULT_NAME]
        if problem := check_credential(secret, ("headers",)):
            raise CallFailed(UNUSABLE_KIND, f"The credential for {user} cannot be used: {problem}.")
        return HostCredential(entry.fill_placeholder(secret), secret)
