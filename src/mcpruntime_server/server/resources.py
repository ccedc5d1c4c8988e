"""What the server tells as MCP resources: each source has a scheme of addresses of its own.

Skills are at `skill://NAME/PATH`, and also in the extension for skills (SEP-2640), which tells each file's digest.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import anyio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.types import INVALID_PARAMS, PaginatedRequestParams, RequestParams, Resource, ResourceTemplate

from ..errors import InvalidRequest, McpRuntimeError, NotFound
from ..skills.folder import SKILL, digest_of
from ..skills.guides import Guide, front_matter
from ..skills.library import Library
from ..skills.model import Skill
from ..skills.names import skill_name, slug

SCHEME = "skill://"
LISTED = 100  # resources; the template has the address of any other
PAGE = 50  # skills of one answer of the extension
MARKDOWN = "text/markdown"
TEXTS = (MARKDOWN, "text/", "application/json", "application/toml", "application/yaml")

mimetypes.add_type(MARKDOWN, ".md")
mimetypes.add_type("application/toml", ".toml")


class Source(Protocol):
    """Some of what the server has to tell."""

    scheme: str

    async def list(self) -> Sequence[Resource]:
        """Return what there is, the best first, if it is much."""
        ...

    def templates(self) -> Sequence[ResourceTemplate]:
        """Return the forms of addresses."""
        ...

    async def read(self, uri: str) -> ReadResourceContents:
        """Return what an address of the scheme stands for; raises `NotFound`, `InvalidRequest`, `Unavailable`."""
        ...


class SkillResources:
    """Skills in use, and guides, as resources."""

    scheme = SCHEME

    def __init__(self, library: Library) -> None:
        self._library = library

    async def list(self) -> Sequence[Resource]:
        """Return the best skills."""
        return [
            Resource(uri=uri_of(each), name=slug(each.name), description=each.summary, mime_type=MARKDOWN)
            for each in await self._library.find("", LISTED)
        ]

    def templates(self) -> Sequence[ResourceTemplate]:
        """Return the address of a skill's file."""
        return [
            ResourceTemplate(
                uri_template=f"{SCHEME}{{name}}/{{+path}}", name="skill", description="A file of a skill: SKILL.md, ..."
            )
        ]

    async def read(self, uri: str) -> ReadResourceContents:
        """Return a file of a skill."""
        name, _, path = uri.removeprefix(SCHEME).partition("/")
        content = await self._library.content(skill_name(name))
        if path not in content:
            raise NotFound(f"The skill {name} has no file {path!r:.200}.", remedy=f"It has {', '.join(content)}."[:500])
        return contents_of(path, content[path])


def contents_of(path: str, data: bytes) -> ReadResourceContents:
    """Return a file as clients get it: as text, if it is that."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    try:
        text = data.decode() if kind.startswith(TEXTS) or b"\0" not in data else None
    except ValueError:
        text = None
    if text is None:
        return ReadResourceContents(data, kind)
    return ReadResourceContents(text, kind if kind.startswith(TEXTS) else "text/plain")


def uri_of(skill: Skill | Guide, path: str = SKILL) -> str:
    """Return the address of a skill's file."""
    return f"{SCHEME}{slug(skill.name)}/{path}"


# the extension ------------------------------------------------------------------------------------


class SkillParams(RequestParams):
    """Which skill a request is about: the address of its SKILL.md."""

    uri: str


class SkillsExtension(Extension):
    """The extension `io.modelcontextprotocol/skills`."""

    identifier = "io.modelcontextprotocol/skills"

    def __init__(self, library: Library) -> None:
        self._library = library

    def methods(self) -> Sequence[MethodBinding]:
        """Return the requests about skills."""
        return [
            MethodBinding("skills/list", PaginatedRequestParams, self._list),
            MethodBinding("skills/get", SkillParams, self._get),
        ]

    async def _list(self, ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> dict[str, Any]:
        names = sorted(await self._library.names())
        begin = next((at for at, name in enumerate(names) if name > params.cursor), len(names)) if params.cursor else 0
        page = names[begin : begin + PAGE]
        told = []
        for name in page:
            try:
                told.append(await self._entry(name))
            except McpRuntimeError:
                continue  # gone since, or its files cannot be read, which `doctor` and `skills list` tell
        more = {"nextCursor": page[-1]} if begin + PAGE < len(names) else {}
        return answer({"skills": told, **more})

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: SkillParams) -> dict[str, Any]:
        name, _, path = params.uri.removeprefix(SCHEME).partition("/")
        try:
            if not params.uri.startswith(SCHEME) or path != SKILL:
                raise InvalidRequest(f"A skill's address is {SCHEME}NAME/{SKILL}.")
            return answer({"skill": await self._entry(skill_name(name))})
        except McpRuntimeError as exc:
            raise MCPError(INVALID_PARAMS, str(exc), {"uri": params.uri}) from None

    async def _entry(self, name: str) -> dict[str, Any]:
        content = await self._library.content(name)
        files = await anyio.to_thread.run_sync(
            lambda: [
                {"uri": f"{SCHEME}{slug(name)}/{path}", "digest": digest_of(data), "size": len(data)}
                for path, data in content.items()
            ]
        )
        told = front_matter(content[SKILL].decode("utf-8", "replace"))
        return {"uri": f"{SCHEME}{slug(name)}/{SKILL}", "frontmatter": told, "resources": files}


def answer(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a request of the extension; it holds until the next save."""
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **data}
