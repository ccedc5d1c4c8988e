"""Resources of upstreams as inputs of a run: found by server and address, or by address alone.

Rule: only servers whose resources may be read without approval are contacted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping

import anyio
from mcp import types

from ...errors import CallFailed, InvalidRequest
from .paged_lists import RESOURCES, TEMPLATES
from .upstream import Upstream

MAX_RESOURCE_BYTES = 64 << 20  # of one resource: it arrives in one message
MAX_TEMPLATES = 200  # of one server, with which an address is compared
MAX_TEMPLATE_CHARS = 1_000
MAX_EXPRESSIONS = 32  # of a template
MAX_ADDRESS_CHARS = 4_000
EXPRESSION = re.compile(r"\{([+#./;?&=,!@|]?)[^{}]*\}")
MAY_BE_EMPTY = frozenset("#./;?&")  # operators of expressions that may stand for nothing
FIND_TIMEOUT_S = 20.0  # for a server to list its resources
ADDRESS_REMEDY = "Name a resource as SERVER:ADDRESS."


class UpstreamResources:
    """Reads resources of upstreams; `may_read` applies the policy.

    `find_upstreams` returns those of the principal for whom the task works, by Python name.
    """

    def __init__(
        self,
        find_upstreams: Callable[[], Awaitable[Mapping[str, Upstream]]],
        may_read: Callable[[str], bool],
    ) -> None:
        self._find_upstreams = find_upstreams
        self._may_read = may_read

    async def read_resource(self, reference: str) -> tuple[str, bytes]:
        """Return address and content of `SERVER:ADDRESS` or `ADDRESS`.

        Raises `InvalidRequest` and `CallFailed`.
        """
        upstreams = await self._find_upstreams()
        server, address = split_address(reference, upstreams)
        if len(address) > MAX_ADDRESS_CHARS:
            raise InvalidRequest(
                f"The address has {len(address):,} characters; the limit is {MAX_ADDRESS_CHARS:,}."
            )
        if server is None:
            server = await self._find_owner(address, upstreams)
        if not self._may_read(server):
            raise InvalidRequest(f"The [policy] settings forbid reading resources of {server}.")
        result = await upstreams[server].send_request(
            "resources/read", lambda client: client.read_resource(address)
        )
        return address, upstreams[server].redact_bytes(resource_bytes(result))

    async def _find_owner(self, address: str, upstreams: Mapping[str, Upstream]) -> str:
        """Return the only server that has the resource."""
        readable = [name for name in upstreams if self._may_read(name)]
        found: list[str] = []
        notes: list[str] = []

        async def check(name: str) -> None:
            with anyio.move_on_after(FIND_TIMEOUT_S):
                if await has_resource(upstreams[name], address, notes):
                    found.append(name)

        async with anyio.create_task_group() as tasks:
            for name in readable:
                tasks.start_soon(check, name)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{name}:{address}" for name in sorted(found))
            raise InvalidRequest(
                f"{len(found)} servers have this resource.", remedy=f"Say which: {listed}."
            )
        listed = ", ".join(readable) or "none"
        remedy = " ".join([f"{ADDRESS_REMEDY} Servers: {listed}.", *sorted(notes)])
        raise InvalidRequest("No server has this resource.", remedy=remedy)


def split_address(place: str, upstreams: Mapping[str, Upstream]) -> tuple[str | None, str]:
    """Return server and address of `SERVER:ADDRESS`; no server if there is none of that name."""
    head, _, rest = place.partition(":")
    for name, upstream in upstreams.items():
        if head in (name, upstream.name) and ":" in rest:
            return name, rest
    return None, place


async def has_resource(upstream: Upstream, address: str, notes: list[str]) -> bool:
    """Return whether an upstream lists a resource, or a template that its address matches.

    `notes` gets a sentence for each list that is not whole, if there is no match.
    """
    try:
        resources = await upstream.fetch_list(RESOURCES)
        if any(str(each.uri) == address for each in resources.items):
            return True
        templates = await upstream.fetch_list(TEMPLATES)
    except CallFailed:
        return False  # it has no resources, or cannot be reached
    considered = [each.uri_template for each in templates.items[:MAX_TEMPLATES]]
    if any(matches_template(template, address) for template in considered):
        return True
    for kind, listed in ((RESOURCES, resources), (TEMPLATES, templates)):
        if listed.cut:
            notes.append(listed.cut.describe(kind.words, upstream.name, len(listed.items)))
    if len(templates.items) > MAX_TEMPLATES:
        notes.append(f"Of the templates of {upstream.name}, {MAX_TEMPLATES:,} were compared.")
    return False


def matches_template(template: str, address: str) -> bool:
    """Return whether an address matches a template (RFC 6570); an expression matches any text.

    The function takes linear time: the text of an expression ends where what follows it occurs
    first, and no later place would match more.
    """
    if len(template) > MAX_TEMPLATE_CHARS or len(address) > MAX_ADDRESS_CHARS or " " in address:
        return False
    start, *rest = EXPRESSION.split(template)
    if not rest:
        return template == address
    if not address.startswith(start) or len(rest) > 2 * MAX_EXPRESSIONS:
        return False
    place = len(start)
    operators, texts = rest[::2], rest[1::2]
    for operator, text in zip(operators, texts[:-1], strict=False):
        found = address.find(text, place + (operator not in MAY_BE_EMPTY))
        if found < 0:
            return False
        place = found + len(text)
    place += operators[-1] not in MAY_BE_EMPTY
    return address.endswith(texts[-1]) and place <= len(address) - len(texts[-1])


def resource_bytes(result: types.ReadResourceResult) -> bytes:
    """Return the content of a resource, its parts joined by newlines; raises `InvalidRequest`."""
    pieces = []
    for each in result.contents:
        if isinstance(each, types.TextResourceContents):
            pieces.append(each.text.encode("utf-8", "backslashreplace"))
        else:
            try:
                pieces.append(base64.b64decode(each.blob))
            except ValueError:
                raise InvalidRequest("The content of the resource is not valid base64.") from None
    data = b"\n".join(pieces)
    if len(data) > MAX_RESOURCE_BYTES:
        raise InvalidRequest(
            f"The resource has {len(data):,} bytes; the limit is {MAX_RESOURCE_BYTES:,}."
        )
    return data
