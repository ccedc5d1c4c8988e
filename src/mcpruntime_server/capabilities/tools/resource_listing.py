"""Lists the resources of upstreams and reads them as text, within bounds.

Rule: an upstream may list without end, send too much, or answer with bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from mcp import types

from ...errors import CallFailed
from ...journal.events import canonical_json
from .paged_lists import RESOURCES
from .upstream import Upstream

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


@dataclass(frozen=True)
class ResourceList:
    """The resources of an upstream; `note` says why they are not all, "" if they are."""

    resources: Sequence[UpstreamResource]
    note: str


async def list_resources(upstream: Upstream) -> ResourceList:
    """Return the resources of an upstream; raises `CallFailed`."""
    listed = await upstream.fetch_list(RESOURCES)
    resources = [
        UpstreamResource(str(each.uri), each.mime_type or "", _resource_version(each))
        for each in listed.items
    ]
    note = listed.cut.describe(RESOURCES.words, upstream.name, len(resources)) if listed.cut else ""
    return ResourceList(resources, note)


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
