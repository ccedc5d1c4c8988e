"""Workspace files as MCP resources: `workspace://SESSION/PATH`.

A resource is the file at the end of the session's tip, as the journal has it.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

from anyio import to_thread
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.types import Resource, ResourceLink, ResourceTemplate

from ..errors import InvalidRequest, NotFound
from ..protocol.presentation import truncate_name
from ..runtime.run_history import find_any_session
from ..runtime.runtime import Runtime
from .resources import to_resource_contents

WORKSPACE_SCHEME = "workspace://"
MAX_LISTED_FILES = 100  # of the session used last; the template gives the addresses of all others
MAX_RESOURCE_BYTES = 1 << 20  # one message: to build it takes the event loop 5 ms a megabyte
MAX_LINKS = 10  # in the result of one run; it names the other files


class WorkspaceResources:
    """The workspace files of one principal's sessions."""

    scheme = WORKSPACE_SCHEME

    def __init__(self, runtime: Runtime, principal: str) -> None:
        self._runtime = runtime
        self._principal = principal

    async def list_resources(self) -> Sequence[Resource]:
        """Return the files of the session that was used last."""
        journal = self._runtime.journal
        sessions = await journal.list_sessions(self._principal)
        if not sessions:
            return []
        await self._runtime.wait_for_files(sessions[0].id)
        files, _ = await journal.load_files_at(sessions[0].tip, [])
        handle = sessions[0].name or sessions[0].id
        return [
            Resource(
                uri=workspace_uri(handle, path),
                name=truncate_name(path),
                size=files[path]["size"],
                mime_type=guess_type(path),
            )
            for path in sorted(files)[:MAX_LISTED_FILES]
        ]

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the template for the files of any session."""
        return [
            ResourceTemplate(
                uri_template=f"{WORKSPACE_SCHEME}{{session}}/{{+path}}",
                name="workspace",
                description="A file in the workspace of a session",
            )
        ]

    async def read_resource(self, uri: str) -> ReadResourceContents:
        """Return a workspace file: as text if possible."""
        handle, _, path = uri.removeprefix(WORKSPACE_SCHEME).partition("/")
        handle, path = unquote(handle), unquote(path)
        journal = self._runtime.journal
        row = await find_any_session(journal, handle, self._principal)
        await self._runtime.wait_for_files(row.id)
        row = await find_any_session(journal, row.id, self._principal)
        files, _ = await journal.load_files_at(row.tip, [])
        entry = files.get(path)
        if entry is None:
            raise NotFound(f"The workspace of {handle!r:.80} has no file {path!r:.200}.")
        if entry["size"] > MAX_RESOURCE_BYTES:
            raise InvalidRequest(
                f"The file {path!r:.200} has {entry['size']:,} bytes; a resource has at most "
                f"{MAX_RESOURCE_BYTES:,}.",
                remedy="Copy it to the user's machine: export(path) in code.",
            )
        data = await journal.get_blob(entry["digest"])
        return await to_thread.run_sync(to_resource_contents, path, data)


def workspace_uri(session: str, path: str) -> str:
    """Return the address of a workspace file."""
    return f"{WORKSPACE_SCHEME}{quote(session, safe='')}/{quote(path)}"


def guess_type(path: str) -> str:
    """Return the media type that the name of a file suggests."""
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def link_files(session: str, paths: Iterable[str]) -> list[ResourceLink]:
    """Return links to the first of some workspace files, whose paths are short and printable."""
    return [
        ResourceLink(
            type="resource_link",
            uri=workspace_uri(session, path),
            name=path,
            mime_type=guess_type(path),
        )
        for path in list(paths)[:MAX_LINKS]
    ]
