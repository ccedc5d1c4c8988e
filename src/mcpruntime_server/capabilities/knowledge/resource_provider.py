"""The resources of one of the user's MCP servers as a provider.

Rule: this room knows no connections. Two functions that list and read are handed to it; they run on the event loop, and
whoever asks here is in a worker thread.
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

MAX_ERROR_CHARS = 500  # characters of an error that are told
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
    """A resource as its server lists it; `version` is "" where the server does not tell when it changes."""

    uri: str
    mime_type: str = ""
    version: str = ""


@dataclass(frozen=True)
class ResourceAccess:
    """How the resources of a server are had: all of them, and the text of one, None if it has none.

    Both raise `CallFailed`. `identity` is another one for another server, whatever its name.
    """

    identity: str
    list: Callable[[], Coroutine[Any, Any, Sequence[ListedResource]]]
    read: Callable[[str], Coroutine[Any, Any, str | None]]


class ResourceProvider:
    """The resources of a server, by their addresses there."""

    def __init__(self, access: ResourceAccess) -> None:
        self.skipped = SkippedDocuments()
        self._access = access
        self._formats: dict[str, str] = {}

    def names(self) -> Mapping[str, str]:
        """Return the version of each resource; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        try:
            listed = anyio.from_thread.run(self._access.list)
        except CallFailed as exc:
            raise Unavailable(clean_line(exc.message, MAX_ERROR_CHARS), remedy=exc.remedy) from exc
        found: dict[str, str] = {}
        for each in listed[:MAX_DOCUMENTS]:
            if is_valid_name(each.uri):
                found[each.uri] = each.version
                self._formats[each.uri] = FORMAT_BY_MIME_TYPE.get(
                    each.mime_type.partition(";")[0].strip().lower(), ""
                )
            else:
                self.skipped.add("not a printable address", ascii(each.uri[:200]))
        return found

    def read(self, name: str) -> str:
        """Return the text of a resource; raises `PassedOver`, and `Unavailable` if its server is gone."""
        try:
            text = anyio.from_thread.run(self._access.read, name)
        except CallFailed as exc:
            if exc.kind == "unavailable":
                raise Unavailable(
                    clean_line(exc.message, MAX_ERROR_CHARS), remedy=exc.remedy
                ) from exc
            raise DocumentSkipped("its server does not give it", is_temporary=True) from exc
        if text is None:
            raise DocumentSkipped("not text")
        if len(text) > MAX_DOCUMENT_BYTES:
            raise DocumentSkipped("too large")
        return text

    def get_format(self, name: str) -> str:
        """Return how a text is taken apart, by its type or else by its address."""
        return self._formats.get(name) or guess_format(name.partition("?")[0])
