"""What is made of the tools that a server lists: those of the catalogue, and their module.

Both take seconds of processor time and tens of megabytes for a long list. So what is long is
described in a process of its own (`description_worker`), everything else in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from anyio.to_thread import run_sync
from pydantic_core import from_json, to_json

from ...journal.events import EncodedJson, encode_json
from ...protocol.payloads import JsonObject
from ..framed_process import FramedProcess
from .catalog_tools import CatalogTool, build_catalog_tool
from .listed_tools import ListedTool
from .observed_shapes import Shape
from .shim_generator import describe_module, render_shim, source_digest
from .shim_store import ShimStore
from .signatures import format_brief_signature

WORKER_MODULE = "mcpruntime_server.capabilities.tools.description_worker"
LONG_LIST_BYTES = 128_000  # of tools and observed shapes
DESCRIBE_TIMEOUT_S = 20.0  # on a machine that may be busy; the longest lists take some seconds
MAX_REPLY_BYTES = 16_000_000


@dataclass(frozen=True)
class ListedServer:
    """A server under its Python name, with its tools and the shapes of their results.

    `upstream` is its own name, `file_name` that of what is stored about it. A shape is JSON;
    b"null" stands for one that is not known.
    """

    name: str
    upstream: str
    file_name: str
    tools: Sequence[ListedTool]
    shapes: Sequence[bytes]  # one for each tool, each of them one line

    @property
    def is_long(self) -> bool:
        """Whether describing it would hold up others."""
        shapes_bytes = sum(map(len, self.shapes))
        return shapes_bytes + sum(len(tool.text) for tool in self.tools) > LONG_LIST_BYTES

    @property
    def observed(self) -> dict[str, Shape]:
        """The shapes that are known, by tool."""
        found = zip(self.tools, map(json.loads, self.shapes), strict=True)
        return {tool.name: shape for tool, shape in found if shape is not None}


class Shim(TypedDict):
    """The generated module of one server, as code that imports it gets it."""

    server: str
    source: str
    digest: str


@dataclass(frozen=True)
class DescribedServer:
    """The tools of a server; `problems` says which of their names had to change."""

    tools: Sequence[CatalogTool]
    problems: tuple[str, ...]


def encode_shapes(tools: Sequence[ListedTool], observed: Mapping[str, Shape]) -> Sequence[bytes]:
    """Return the observed shapes of the results of tools as a `ListedServer` has them."""
    return [json.dumps(observed.get(tool.name)).encode() for tool in tools]


def describe_server(server: ListedServer) -> DescribedServer:
    """Return what the catalogue knows of the tools of a server."""
    tools = [tool.parse() for tool in server.tools]
    module = describe_module(server.name, server.upstream, tools, server.observed)
    described = [
        build_catalog_tool(tool, shim, module)
        for tool, shim in zip(tools, module.tools, strict=True)
    ]
    return DescribedServer(described, module.problems)


def format_brief_signatures(name: str, tools: Sequence[ListedTool]) -> list[str | None]:
    """Return the brief signature of each tool, or None if it needs a record."""
    module = describe_module(name, name, [tool.parse() for tool in tools])
    return [format_brief_signature(name, tool) for tool in module.tools]


def render_module(server: ListedServer, shims: ShimStore) -> EncodedJson:
    """Store the module of a server, and return it as code that imports it gets it (`Shim`)."""
    tools = [tool.parse() for tool in server.tools]
    module = describe_module(server.name, server.upstream, tools, server.observed)
    source = render_shim(module)
    shims.save_shim(server.file_name, source)
    shim: Shim = {"server": server.name, "source": source, "digest": source_digest(source)}
    return EncodedJson(encode_json(shim).encode("ascii"))


# in a process of its own --------------------------------------------------------------------------


class DescriptionProcess:
    """Describes servers in a process, one at a time.

    All methods raise `ValueError` if a description takes too long, or is too long.
    """

    def __init__(self) -> None:
        self._process = FramedProcess(WORKER_MODULE, DESCRIBE_TIMEOUT_S)

    async def describe(self, server: ListedServer) -> DescribedServer:
        """Return what the catalogue knows of the tools of a server."""
        head, body = await self._ask(server, {"kind": "describe"})
        return await run_sync(decode_description, head, body)

    async def render(self, server: ListedServer, folder: Path) -> EncodedJson:
        """Store the module of a server in a folder, and return it (`Shim`)."""
        _, body = await self._ask(server, {"kind": "render", "folder": str(folder)})
        return EncodedJson(bytes(body))

    async def _ask(
        self, server: ListedServer, request: JsonObject
    ) -> tuple[JsonObject, memoryview]:
        head = request | {
            "name": server.name,
            "upstream": server.upstream,
            "file_name": server.file_name,
        }
        body = await run_sync(encode_server, server)
        return await self._process.ask(lambda: head, body, MAX_REPLY_BYTES)

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()


def encode_server(server: ListedServer) -> bytes:
    """Return the body of a request: a line for the name of each tool, its text and its shape."""
    names = [json.dumps(tool.name).encode() for tool in server.tools]
    texts = [tool.text for tool in server.tools]
    lines = zip(names, texts, server.shapes, strict=True)
    return b"\n".join(line for each in lines for line in each)


def decode_server(head: Mapping[str, str], body: bytes) -> ListedServer:
    """Return the server that a request is about."""
    lines = body.split(b"\n") if body else []
    tools = [
        ListedTool(json.loads(name), text)
        for name, text in zip(lines[::3], lines[1::3], strict=True)
    ]
    return ListedServer(head["name"], head["upstream"], head["file_name"], tools, lines[2::3])


def encode_description(described: DescribedServer) -> tuple[JsonObject, bytes]:
    """Return head and body of the reply to a request to describe: a line for each tool."""
    return {"problems": described.problems}, b"\n".join(map(to_json, described.tools))


def decode_description(head: JsonObject, body: memoryview) -> DescribedServer:
    """Return the description in a reply, in a thread: there may be thousands of tools."""
    lines = bytes(body).split(b"\n") if body else []
    return DescribedServer(list(map(decode_tool, lines)), tuple(head["problems"]))


def decode_tool(line: bytes) -> CatalogTool:
    """Return a tool of a description."""
    found = from_json(line)
    names = {"parameters": tuple(found["parameters"]), "required": frozenset(found["required"])}
    return CatalogTool(**{**found, **names})
