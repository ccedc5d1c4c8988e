"""MCP resources: each source has its own address scheme.

Skills are at `skill://NAME/PATH`, and in the skills extension (SEP-2640), which adds the digest of
each file.
"""

from __future__ import annotations

import json
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
from ..capabilities.skills.version_files import SKILL_FILE, FileContents, compute_digest
from ..errors import InvalidRequest, McpRuntimeError, NotFound
from ..protocol.payloads import JsonObject

SKILL_SCHEME = "skill://"
MAX_LISTED_RESOURCES = 100  # the template gives the addresses of the others
SKILLS_PAGE_SIZE = 50
MAX_PAGE_CHARS = 200_000  # of the skills of a page, but for the last one
MAX_FILE_BYTES = 1 << 20  # of a file of a skill; whole, because a client compares its digest
MARKDOWN_TYPE = "text/markdown"
TEXT_TYPES = (MARKDOWN_TYPE, "text/", "application/json", "application/toml", "application/yaml")

mimetypes.add_type(MARKDOWN_TYPE, ".md")
mimetypes.add_type("application/toml", ".toml")


class ResourceSource(Protocol):
    """The resources of one scheme."""

    scheme: str

    async def list_resources(self) -> Sequence[Resource]:
        """Return the resources, the best ones if there are many."""
        ...

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the templates of addresses."""
        ...

    async def read_resource(self, uri: str) -> ReadResourceContents:
        """Return the resource at `uri`; raises `NotFound`, `InvalidRequest` or `Unavailable`."""
        ...


class SkillResources:
    """Available skills, and guides, as resources."""

    scheme = SKILL_SCHEME

    def __init__(self, library: SkillLibrary) -> None:
        self._library = library

    async def list_resources(self) -> Sequence[Resource]:
        """Return the best skills."""
        found, _ = await self._library.search("", MAX_LISTED_RESOURCES)
        return [
            Resource(
                uri=skill_uri(each),
                name=to_slug(each.name),
                description=each.summary,
                mime_type=MARKDOWN_TYPE,
            )
            for each in found
        ]

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the template for the files of a skill."""
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
        folder, size = f"skills.{parse_skill_name(name)}.folder", len(content[path])
        if size > MAX_FILE_BYTES:
            raise InvalidRequest(
                f"The file {path!r:.200} of the skill {name} has {size:,} bytes; a resource has "
                f"at most {MAX_FILE_BYTES:,}.",
                remedy=f"Read it in run_code, where it is in {folder}.",
            )
        return to_resource_contents(path, content[path])


def to_resource_contents(path: str, data: bytes) -> ReadResourceContents:
    """Return a file as resource contents: as text if possible."""
    mime_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    is_text_type = mime_type.startswith(TEXT_TYPES)
    if b"\0" in data and not is_text_type:
        return ReadResourceContents(data, mime_type)
    try:
        text = data.decode()
    except ValueError:
        return ReadResourceContents(data, mime_type)
    return ReadResourceContents(text, mime_type if is_text_type else "text/plain")


def skill_uri(skill: Skill | Guide, path: str = SKILL_FILE) -> str:
    """Return the address of a file of a skill."""
    return f"{SKILL_SCHEME}{to_slug(skill.name)}/{path}"


# the extension ------------------------------------------------------------------------------------


class SkillRequestParams(RequestParams):
    """The parameters of `skills/get`: the address of a SKILL.md."""

    uri: str


class SkillsExtension(Extension):
    """The extension `io.modelcontextprotocol/skills`."""

    identifier = "io.modelcontextprotocol/skills"

    def __init__(self, library: SkillLibrary) -> None:
        self._library = library

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods of the extension."""
        return [
            MethodBinding("skills/list", PaginatedRequestParams, self._handle_list),
            MethodBinding("skills/get", SkillRequestParams, self._handle_get),
        ]

    async def _handle_list(
        self, ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams
    ) -> JsonObject:
        cursor = params.cursor or ""
        names = sorted(name for name in await self._library.list_available() if name > cursor)
        skills: list[JsonObject] = []
        remaining_chars = MAX_PAGE_CHARS
        last = ""
        for last in names[:SKILLS_PAGE_SIZE]:
            try:
                skills.append(await self._describe_skill(last))
            except McpRuntimeError:
                continue  # removed meanwhile, or unreadable, which `doctor` reports
            remaining_chars -= len(json.dumps(skills[-1]))
            if remaining_chars < 0:
                break
        result: JsonObject = {"skills": skills}
        if names and last != names[-1]:
            result["nextCursor"] = last
        return extension_result(result)

    async def _handle_get(
        self, ctx: ServerRequestContext[Any, Any], params: SkillRequestParams
    ) -> JsonObject:
        name, _, path = params.uri.removeprefix(SKILL_SCHEME).partition("/")
        try:
            if not params.uri.startswith(SKILL_SCHEME) or path != SKILL_FILE:
                raise InvalidRequest(
                    f"{params.uri!r:.200} is not the address of a skill.",
                    remedy=f"It has the form {SKILL_SCHEME}NAME/{SKILL_FILE}.",
                )
            return extension_result({"skill": await self._describe_skill(parse_skill_name(name))})
        except McpRuntimeError as exc:
            raise MCPError(INVALID_PARAMS, str(exc), {"uri": params.uri}) from None

    async def _describe_skill(self, name: str) -> JsonObject:
        content = await self._library.read_files(name)
        return await anyio.to_thread.run_sync(describe_skill_files, to_slug(name), content)


def describe_skill_files(slug: str, content: FileContents) -> JsonObject:
    """Return a skill as the extension shows it; raises `SkillRefused`."""
    return {
        "uri": f"{SKILL_SCHEME}{slug}/{SKILL_FILE}",
        "frontmatter": parse_front_matter(content[SKILL_FILE].decode("utf-8", "replace")),
        "resources": [
            {
                "uri": f"{SKILL_SCHEME}{slug}/{path}",
                "digest": compute_digest(data),
                "size": len(data),
            }
            for path, data in content.items()
        ],
    }


def extension_result(data: Mapping[str, Any]) -> JsonObject:
    """Return the result of a request of the extension, which clients must not cache."""
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **data}
