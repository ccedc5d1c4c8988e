"""Credentials that are added to the requests for a host, and removed from its responses.

Rule 1: one is sent over HTTPS, to exactly its host, in place of what code has written there.
Rule 2: an answer to such a request is not compressed, and whatever in it repeats the credential is
replaced before anything else sees it, also where two pieces of it meet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from ...config.models import WebCredential
from ...config.web_rules import WebAddress
from ...errors import CallFailed
from ..redaction import Credentials

COMPRESSION_HEADERS = (b"accept-encoding", b"range")
MIN_SECRET_CHARS = 6  # of a word of the value; shorter ones occur by chance


class HostCredential:
    """The credential of one host, as a header of requests."""

    def __init__(self, settings: WebCredential) -> None:
        self._name = settings.header.encode()
        self._value = settings.value.get_secret_value().encode()
        value = settings.value.get_secret_value().strip()
        words = [each for each in value.split() if len(each) >= MIN_SECRET_CHARS]
        self.redactor = Credentials({value, *words[-1:]})

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
    """The credentials of all hosts."""

    def __init__(self, settings: Mapping[str, WebCredential]) -> None:
        self._by_host = {host: HostCredential(each) for host, each in settings.items()}

    def find(self, address: WebAddress) -> HostCredential | None:
        """Return the credential for an address, if there is one."""
        if address.scheme != "https":
            return None
        return self._by_host.get(address.netloc)
