"""The resources of one of the user's MCP servers as a provider.

Rule: this module knows nothing about connections. It is given two functions that list and read
resources. They run on the event loop; the provider calls them from a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from ...errors import CallFailed, Unavailable
from .boundaries import guess_format
from .provider import (
    MAX_DOCUMENT_BYTES,
    MAX_DOCUMENTS,
    DocumentSkipped,
    SkippedDocuments,
    clean_line,
    is_valid_name,
)

MAX_ERROR_CHARS = 500
MAX_SKIPPED_URI_CHARS = 200
FORMAT_BY_MIME_TYPE: Mapping[str, str] = {
    "text/markdown": "markdown",
    "application/json": "json",
    "application/yaml": "yaml",
    "application/toml": "toml",
    "text/csv": "csv",
    "application/sql": "sql",
}


@dataclass(frozen=True)
class ListedResource:
    """A resource as its server lists it.

    `version` is "" if the server does not say when it changes.
    """

    uri: str
    mime_type: str = ""
    version: str = ""


@dataclass(frozen=True)
class ResourceListing:
    """The resources that a server lists; `note` says why they are not all, "" if they are."""

    resources: Sequence[ListedResource]
    note: str = ""


@dataclass(frozen=True)
class ResourceAccess:
    """How to list the resources of a server and to read one of them as text (None: it is not text).

    Both functions raise `CallFailed`. `identity` differs between servers, whatever their names are.
    """

    identity: str
    list: Callable[[], Coroutine[Any, Any, ResourceListing]]
    read: Callable[[str], Coroutine[Any, Any, str | None]]


class ResourceProvider:
    """The resources of a server, named by their addresses."""

    def __init__(self, access: ResourceAccess) -> None:
        self.skipped = SkippedDocuments()
        self._access = access
        self._formats: dict[str, str] = {}

    def names(self) -> Mapping[str, str]:
        """Return the version of each resource; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        try:
            listing = anyio.from_thread.run(self._access.list)
        except CallFailed as exc:
            raise Unavailable(clean_line(exc.message, MAX_ERROR_CHARS), remedy=exc.remedy) from exc
        versions: dict[str, str] = {}
        if listing.note:
            self.skipped.add(f"and more: {listing.note}", "...")
        for resource in listing.resources[:MAX_DOCUMENTS]:
            if is_valid_name(resource.uri):
                mime_type = resource.mime_type.partition(";")[0].strip().lower()
                versions[resource.uri] = resource.version
                self._formats[resource.uri] = FORMAT_BY_MIME_TYPE.get(mime_type, "")
            else:
                shown = ascii(resource.uri[:MAX_SKIPPED_URI_CHARS])
                self.skipped.add("not a printable address", shown)
        return versions

    def read(self, name: str) -> str:
        """Return the text of a resource.

        Raises `DocumentSkipped`, or `Unavailable` if its server is gone.
        """
        try:
            text = anyio.from_thread.run(self._access.read, name)
        except CallFailed as exc:
            if exc.kind == "unavailable":
                message = clean_line(exc.message, MAX_ERROR_CHARS)
                raise Unavailable(message, remedy=exc.remedy) from exc
            raise DocumentSkipped("its server refuses to send it", is_temporary=True) from exc
        if text is None:
            raise DocumentSkipped("not text")
        if len(text) > MAX_DOCUMENT_BYTES:
            raise DocumentSkipped("too large")
        return text

    def get_format(self, name: str) -> str:
        """Return the format of a text by its MIME type, or else by its address."""
        return self._formats.get(name) or guess_format(name.partition("?")[0])
