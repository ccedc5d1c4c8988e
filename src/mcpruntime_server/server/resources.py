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
from mcp.types import (
    INVALID_PARAMS,
    PaginatedRequestParams,
    RequestParams,
    Resource,
    ResourceTemplate,
)

from ..capabilities.skills.guides import Guide, parse_front_matter
from ..capabilities.skills.library import SkillLibrary
from ..capabilities.skills.model import Skill
from ..capabilities.skills.skill_names import parse_skill_name, to_slug
from ..capabilities.skills.version_files import SKILL_FILE, compute_digest
from ..errors import InvalidRequest, McpRuntimeError, NotFound

SKILL_SCHEME = "skill://"
MAX_LISTED_RESOURCES = 100  # resources; the template has the address of any other
SKILLS_PAGE_SIZE = 50  # skills of one answer of the extension
MARKDOWN_TYPE = "text/markdown"
TEXT_TYPES = (MARKDOWN_TYPE, "text/", "application/json", "application/toml", "application/yaml")

mimetypes.add_type(MARKDOWN_TYPE, ".md")
mimetypes.add_type("application/toml", ".toml")


class ResourceSource(Protocol):
    """Some of what the server has to tell."""

    scheme: str

    async def list_resources(self) -> Sequence[Resource]:
        """Return what there is, the best first, if it is much."""
        ...

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the forms of addresses."""
        ...

    async def read_resource(self, uri: str) -> ReadResourceContents:
        """Return what an address of the scheme stands for; raises `NotFound`, `InvalidRequest`, `Unavailable`."""
        ...


class SkillResources:
    """Skills in use, and guides, as resources."""

    scheme = SKILL_SCHEME

    def __init__(self, library: SkillLibrary) -> None:
        self._library = library

    async def list_resources(self) -> Sequence[Resource]:
        """Return the best skills."""
        return [
            Resource(
                uri=skill_uri(each),
                name=to_slug(each.name),
                description=each.summary,
                mime_type=MARKDOWN_TYPE,
            )
            for each in await self._library.search("", MAX_LISTED_RESOURCES)
        ]

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the address of a skill's file."""
        return [
            ResourceTemplate(
                uri_template=f"{SKILL_SCHEME}{{name}}/{{+path}}",
                name="skill",
                description="A file of a skill: SKILL.md, ...",
            )
        ]

    async def read_resource(self, uri: str) -> ReadResourceContents:
        """Return a file of a skill."""
        name, _, path = uri.removeprefix(SKILL_SCHEME).partition("/")
        content = await self._library.read_files(parse_skill_name(name))
        if path not in content:
            raise NotFound(
                f"The skill {name} has no file {path!r:.200}.",
                remedy=f"It has {', '.join(content)}."[:500],
            )
        return to_resource_contents(path, content[path])


def to_resource_contents(path: str, data: bytes) -> ReadResourceContents:
    """Return a file as clients get it: as text, if it is that."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    try:
        text = data.decode() if kind.startswith(TEXT_TYPES) or b"\0" not in data else None
    except ValueError:
        text = None
    if text is None:
        return ReadResourceContents(data, kind)
    return ReadResourceContents(text, kind if kind.startswith(TEXT_TYPES) else "text/plain")


def skill_uri(skill: Skill | Guide, path: str = SKILL_FILE) -> str:
    """Return the address of a skill's file."""
    return f"{SKILL_SCHEME}{to_slug(skill.name)}/{path}"


# the extension ------------------------------------------------------------------------------------


class SkillRequestParams(RequestParams):
    """Which skill a request is about: the address of its SKILL.md."""

    uri: str


class SkillsExtension(Extension):
    """The extension `io.modelcontextprotocol/skills`."""

    identifier = "io.modelcontextprotocol/skills"

    def __init__(self, library: SkillLibrary) -> None:
        self._library = library

    def methods(self) -> Sequence[MethodBinding]:
        """Return the requests about skills."""
        return [
            MethodBinding("skills/list", PaginatedRequestParams, self._handle_list),
            MethodBinding("skills/get", SkillRequestParams, self._handle_get),
        ]

    async def _handle_list(
        self, ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams
    ) -> dict[str, Any]:
        names = sorted(await self._library.available_names())
        begin = (
            next((at for at, name in enumerate(names) if name > params.cursor), len(names))
            if params.cursor
            else 0
        )
        page = names[begin : begin + SKILLS_PAGE_SIZE]
        told = []
        for name in page:
            try:
                told.append(await self._describe_skill(name))
            except McpRuntimeError:
                continue  # gone since, or its files cannot be read, which `doctor` and `skills list` tell
        more = {"nextCursor": page[-1]} if begin + SKILLS_PAGE_SIZE < len(names) else {}
        return extension_result({"skills": told, **more})

    async def _handle_get(
        self, ctx: ServerRequestContext[Any, Any], params: SkillRequestParams
    ) -> dict[str, Any]:
        name, _, path = params.uri.removeprefix(SKILL_SCHEME).partition("/")
        try:
            if not params.uri.startswith(SKILL_SCHEME) or path != SKILL_FILE:
                raise InvalidRequest(f"A skill's address is {SKILL_SCHEME}NAME/{SKILL_FILE}.")
            return extension_result({"skill": await self._describe_skill(parse_skill_name(name))})
        except McpRuntimeError as exc:
            raise MCPError(INVALID_PARAMS, str(exc), {"uri": params.uri}) from None

    async def _describe_skill(self, name: str) -> dict[str, Any]:
        content = await self._library.read_files(name)
        files = await anyio.to_thread.run_sync(
            lambda: [
                {
                    "uri": f"{SKILL_SCHEME}{to_slug(name)}/{path}",
                    "digest": compute_digest(data),
                    "size": len(data),
                }
                for path, data in content.items()
            ]
        )
        told = parse_front_matter(content[SKILL_FILE].decode("utf-8", "replace"))
        return {
            "uri": f"{SKILL_SCHEME}{to_slug(name)}/{SKILL_FILE}",
            "frontmatter": told,
            "resources": files,
        }


def extension_result(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a request of the extension; it holds until the next save."""
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **data}
