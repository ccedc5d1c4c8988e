"""What the tool definitions of MCP servers cost a client that loads all of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from ..capabilities.tools.listed_tools import ListedTool
from ..capabilities.tools.python_names import to_identifier
from ..capabilities.tools.shim_generator import RESERVED_NAMES
from ..capabilities.tools.upstream import Upstream, open_upstreams
from ..config import UpstreamSettings
from ..errors import CallFailed
from ..protocol.library_names import TOOLS_NAMES
from ..protocol.payloads import JsonObject

if TYPE_CHECKING:
    import tiktoken

ENCODING = "cl100k_base"
ENCODING_FOLDER = ("litellm_core_utils", "tokenizers")  # in litellm, which ships the encoding
START_TIMEOUT_S = 60.0  # a package runner downloads the server when it starts it first

ReportDone = Callable[[str], None]  # gets the name of each server that has answered or failed


@dataclass(frozen=True)
class ToolCost:
    """The tools of one server; `problem` says why they are not known."""

    tools: int = 0
    tokens: int = 0
    problem: str = ""


async def measure_tool_costs(
    servers: Mapping[str, UpstreamSettings], base_dir: Path, report: ReportDone
) -> dict[str, ToolCost]:
    """Start servers, and count the tokens of their tool definitions."""
    costs: dict[str, ToolCost] = {}

    async def measure(upstream: Upstream) -> None:
        costs[upstream.name] = await measure_upstream(upstream)
        report(upstream.name)

    with tempfile.TemporaryDirectory(prefix="mcpruntime-") as folder:
        async with (
            open_upstreams(servers, base_dir, Path(folder)) as upstreams,
            anyio.create_task_group() as tasks,
        ):
            for upstream in upstreams.values():
                tasks.start_soon(measure, upstream)
    return costs


async def measure_upstream(upstream: Upstream) -> ToolCost:
    """Return what the tools of one server cost."""
    try:
        with anyio.fail_after(START_TIMEOUT_S):
            listed = await upstream.list_tools()
    except CallFailed as exc:
        return ToolCost(problem=exc.message)
    except TimeoutError:
        return ToolCost(problem=f"it did not answer within {START_TIMEOUT_S:g} s")
    definitions = await to_thread.run_sync(define_tools, listed)
    return ToolCost(len(listed), await to_thread.run_sync(count_json_tokens, definitions))


def define_tools(listed: Sequence[ListedTool]) -> list[JsonObject]:
    """Return the definitions of tools as a client gets them."""
    return [
        {"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema}
        for tool in map(ListedTool.parse, listed)
    ]


@cache
def load_encoding() -> tiktoken.Encoding:
    """Return the encoding without the network; loading takes a second."""
    import tiktoken

    spec = find_spec("litellm")
    for folder in (spec and spec.submodule_search_locations) or ():
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(folder, *ENCODING_FOLDER))
    return tiktoken.get_encoding(ENCODING)


def count_json_tokens(values: list[Any]) -> int:
    """Return the number of tokens of some values, each as JSON text."""
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    encoded = load_encoding().encode_batch(texts, disallowed_special=())
    return sum(map(len, encoded))


def name_tool_rule(server: str, tool: str) -> str:
    """Return the rule of `[policy.tools]` for a tool of a server; "*" stands for all tools."""
    tool_name = tool if tool == "*" else to_identifier(tool, "tool", RESERVED_NAMES)
    return f"{to_identifier(server, 'server', TOOLS_NAMES)}.{tool_name}"
