"""Lists the resources of upstreams and reads them as text, within bounds.

Rule: an upstream may list without end, send too much, or answer with bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from mcp import Client, types

from ...errors import CallFailed
from ...journal.events import canonical_json
from .upstream import Upstream

MAX_RESOURCES = 10_000  # of one upstream
MAX_PAGES = 200
MAX_TEXT_CHARS = 4_000_000  # of one resource


@dataclass(frozen=True)
class UpstreamResource:
    """A resource as its upstream lists it; `version` is "" if the upstream does not say."""

    uri: str
    mime_type: str
    version: str


def upstream_digest(upstream: Upstream) -> str:
    """Return a digest of the command or URL of an upstream, which identifies it."""
    settings = upstream.settings
    identity = [settings.command, settings.args, str(settings.cwd), settings.url]
    return sha256(canonical_json(identity).encode("utf-8", "surrogatepass")).hexdigest()


async def list_resources(upstream: Upstream) -> list[UpstreamResource]:
    """Return the resources of an upstream; raises `CallFailed`."""
    listed = await upstream.send_request("resources/list", fetch_resources)
    return [
        UpstreamResource(str(each.uri), each.mime_type or "", _resource_version(each))
        for each in listed
    ]


async def fetch_resources(client: Client) -> list[types.Resource]:
    """Return the resources that a connected server lists, within the limits of this module."""
    if client.server_capabilities.resources is None:
        return []
    found: dict[str, types.Resource] = {}
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_resources(cursor=cursor)
        found |= {str(each.uri): each for each in page.resources}
        cursor = page.next_cursor
        if not cursor or not page.resources or len(found) > MAX_RESOURCES:
            break
    return list(found.values())[:MAX_RESOURCES]


def _resource_version(resource: types.Resource) -> str:
    changed = resource.annotations.last_modified if resource.annotations else None
    return f"{changed}:{resource.size or ''}" if changed else ""


async def read_text_resource(upstream: Upstream, uri: str) -> str | None:
    """Return the text of a resource without credentials; None if it is not text.

    Raises `CallFailed`.
    """
    result = await upstream.send_request("resources/read", lambda client: client.read_resource(uri))
    contents = result.contents
    if not contents or not all(isinstance(each, types.TextResourceContents) for each in contents):
        return None
    text = "\n".join(each.text for each in contents if isinstance(each, types.TextResourceContents))
    if len(text) > MAX_TEXT_CHARS:
        raise CallFailed("too_large", f"{uri!r:.200} has more than {MAX_TEXT_CHARS:,} characters.")
    return upstream.redact_bytes(text.encode("utf-8", "replace")).decode()
