"""What the examples share: settings that leave yours alone, servers, and a stand-in for a model.

Each example gets a data folder of its own, which is removed afterwards. Your settings file and your
`MCPRUNTIME_...` variables count, so an example that needs a model uses yours: try
`MCPRUNTIME_LLM__MODEL=gpt-5-mini python examples/simple_agent.py`. Where you have configured none,
a scripted model answers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mcpruntime_server import Config, McpRuntimeError, load_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `bench`, which has a scripted model and small MCP servers

Answer = Mapping[str, Any]  # of the scripted model: `match` finds the request, `reply` answers it


@contextmanager
def example_settings(
    overrides: Mapping[str, Any] | None = None, *, answers: Sequence[Answer] = ()
) -> Iterator[Config]:
    """Yield your settings with some overrides, and with no MCP servers but those named there.

    `answers` are those of the scripted model, in case that you have configured no model. An error
    of the server, such as a missing Docker engine, ends the example with its remedy.
    """
    with ExitStack() as stack:
        stack.enter_context(print_errors())
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpruntime-example-"))
        folder = Path(name)
        settings: dict[str, Any] = {
            "server.data_dir": folder / "data",
            "server.shims_dir": folder / "tool_shims",
            "skills.folder": folder / "skills_store",
            "mcpServers": {},
            **(overrides or {}),
        }
        if answers and not load_config().llm.model:
            settings |= stack.enter_context(scripted_model(answers))
        yield load_config(overrides=settings)


@contextmanager
def print_errors() -> Iterator[None]:
    """Turn an error of the server into the last line that the example prints."""
    try:
        yield
    except McpRuntimeError as exc:
        sys.exit(f"[{exc.code}] {exc}")


@contextmanager
def scripted_model(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Run a model server that answers from a script, and yield the settings that name it."""
    from bench import fake_llm

    print("(No model is configured, so a scripted one answers.)\n")
    with fake_llm.start_model_server() as server:
        server.set_script(*map(dict, answers))
        yield {
            "llm.model": "scripted",
            "llm.api_base": server.url,
            "llm.api_key": fake_llm.API_KEY,
        }


def program(code: str) -> str:
    """Return what an agent's model answers: a program in a fenced block."""
    return f"```python\n{code.strip()}\n```"


def small_server(name: str, folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a server of `bench.servers`, whose state is a file in `folder`."""
    (folder / f"{name}.json").write_text(json.dumps(state), "utf-8")
    return {
        "command": sys.executable,
        "args": ["-m", f"bench.servers.{name}"],
        "cwd": str(ROOT),
        "env": {"BENCH_STATE": str(folder)},
    }


def real_server(package: str, *arguments: Path) -> dict[str, Any]:
    """Return the settings of a published server, installed by `scripts/test-upstreams` or not."""
    is_node = package.startswith("@")
    name = package.replace("@modelcontextprotocol/", "mcp-")
    folder = ".venvs/node/node_modules/.bin" if is_node else f".venvs/{name}/bin"
    command, *options = ["npx", "-y", package] if is_node else ["uvx", package]
    if (ROOT / folder / name).exists():
        command, options = str(ROOT / folder / name), []
    return {"command": command, "args": [*options, *map(str, arguments)]}
