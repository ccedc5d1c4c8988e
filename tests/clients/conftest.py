"""One headless conversation per agent, whose results all tests of the module look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.server_connection import write_settings
from tests.helpers.sizes import choose_cases
from tests.upstreams import own_server_entry

from .agents import AGENTS, FOLDER, CodingAgent, run_agent, stdio_server
from .scripted_model import Conversation, ToolResult, serve_model

# What the scripted model asks for, turn by turn, under the name that the tests use.
TURNS: dict[str, dict[str, Any]] = {
    "value": {"code": "print('hello')\n{'total': sum(range(10))}"},
    "text that is JSON": {"code": "[1, 2, 3]"},
    "error": {"code": "counts = {}\ncounts['a']"},
    "next step": {"code": "counts"},
    "a tool": {"code": "from tools.ledger import add, count\nadd(item='x')\nint(count())"},
    "a picture": {"code": "from PIL import Image\nImage.new('RGB', (8, 8), 'red')"},
    "files": {"code": "for name in 'ab': open(name, 'w').write(f'text of {name}')"},
    "picture": {"code": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"},
    "inputs": {"code": "[item.peek(99) for item in CONTEXT_DATA]", "context": ["a", "b"]},
}


@dataclass(frozen=True)
class Played:
    """What happened in a conversation: the result that the model was sent for each turn."""

    first: Conversation
    results: dict[str, ToolResult]
    printed: str


async def play(agent: CodingAgent, folder: Path) -> Played:
    """Let an agent play the script against a server of its own."""
    upstream = own_server_entry("counted", str(folder / "calls"))
    settings = write_settings(folder / "server", mcpServers={"ledger": upstream})
    async with serve_model(list(TURNS.values())) as model:
        printed = await run_agent(agent, folder, stdio_server(settings), model)
    assert model.requests, printed
    results = dict(zip(TURNS, model.results, strict=False))
    assert len(results) == len(TURNS), printed
    return Played(model.requests[0], results, printed)


def require_agent(agent: CodingAgent) -> None:
    """Skip the test, with the reason, if an agent is not installed."""
    missing = FOLDER / ".missing"
    if missing.exists() or not agent.command.exists():
        reason = missing.read_text().strip() if missing.exists() else "it is not installed"
        pytest.skip(f"{agent.name}: {reason} (scripts/test-agents)")


# The others of a short run play over HTTP, in test_http_agents.py.
@pytest.fixture(scope="module", params=choose_cases(AGENTS, short=2), ids=lambda agent: agent.name)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The conversation of an agent; without the agent the tests are skipped."""
    agent: CodingAgent = request.param
    require_agent(agent)
    return anyio.run(play, agent, tmp_path_factory.mktemp(agent.name))
