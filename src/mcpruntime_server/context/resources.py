"""The resources of one of the user's MCP servers as a provider.

Rule: this room knows no connections. Two functions that list and read are handed to it; they run on the event loop, and
whoever asks here is in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from ..errors import CallFailed, Unavailable
from .marks import kind_of
from .provider import MAX_BYTES, MAX_DOCUMENTS, Omissions, PassedOver, clean, fit_name

SAID = 500  # characters of an error that are told
MIME: Mapping[str, str] = {
    "text/markdown": "markdown",
    "application/json": "json",
    "application/yaml": "yaml",
    "application/toml": "toml",
    "text/csv": "csv",
    "application/sql": "sql",
}


@dataclass(frozen=True)
class Listed:
    """A resource as its server lists it; `version` is "" where the server does not tell when it changes."""

    uri: str
    mime_type: str = ""
    version: str = ""


@dataclass(frozen=True)
class Access:
    """How the resources of a server are had: all of them, and the text of one, None if it has none.

    Both raise `CallFailed`. `identity` is another one for another server, whatever its name.
    """

    identity: str
    list: Callable[[], Coroutine[Any, Any, Sequence[Listed]]]
    read: Callable[[str], Coroutine[Any, Any, str | None]]


class Resources:
    """The resources of a server, by their addresses there."""

    def __init__(self, access: Access) -> None:
        self.omissions = Omissions()
        self._access = access
        self._kinds: dict[str, str] = {}

    def names(self) -> Mapping[str, str]:
        """Return the version of each resource; raises `Unavailable`."""
        self.omissions = Omissions()
        try:
            listed = anyio.from_thread.run(self._access.list)
        except CallFailed as exc:
            raise Unavailable(clean(exc.message, SAID), remedy=exc.remedy) from exc
        found: dict[str, str] = {}
        for each in listed[:MAX_DOCUMENTS]:
            if fit_name(each.uri):
                found[each.uri] = each.version
                self._kinds[each.uri] = MIME.get(each.mime_type.partition(";")[0].strip().lower(), "")
            else:
                self.omissions.add("not a printable address", ascii(each.uri[:200]))
        return found

    def read(self, name: str) -> str:
        """Return the text of a resource; raises `PassedOver`, and `Unavailable` if its server is gone."""
        try:
            text = anyio.from_thread.run(self._access.read, name)
        except CallFailed as exc:
            if exc.kind == "unavailable":
                raise Unavailable(clean(exc.message, SAID), remedy=exc.remedy) from exc
            raise PassedOver("its server does not give it", passes=True) from exc
        if text is None:
            raise PassedOver("not text")
        if len(text) > MAX_BYTES:
            raise PassedOver("too large")
        return text

    def kind(self, name: str) -> str:
        """Return how a text is taken apart, by its type or else by its address."""
        return self._kinds.get(name) or kind_of(name.partition("?")[0])
