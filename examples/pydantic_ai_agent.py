"""An agent of another framework, Pydantic AI, that uses the server over MCP.

The agent starts the server as any MCP client does, and gets its tools. Instead of many tool calls,
its model writes one program. Expect the tools that it sees, what it called, and its answer.

    pip install 'pydantic-ai-slim[mcp,openai]'

`MCPRUNTIME_LLM__MODEL` may name any model of an OpenAI-compatible API, whose address is
`MCPRUNTIME_LLM__API_BASE`, and whose key is `MCPRUNTIME_LLM__API_KEY`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import anyio

try:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
except ImportError as problem:
    sys.exit(f"{problem}. This example needs: pip install 'pydantic-ai-slim[mcp,openai]'")

from example_settings import Answer, example_settings

TASK = "How many primes are there below 100,000? Use run_code."
CODE = """\
sieve = [True] * 100_000
for number in range(2, 317):
    if sieve[number]:
        sieve[number * number :: number] = [False] * len(sieve[number * number :: number])
sum(sieve[2:])"""
CALL = {"name": "run_code", "arguments": json.dumps({"code": CODE})}

SCRIPT: list[Answer] = [  # for the scripted model, which you do not need if you have configured one
    {"match": "How many primes", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    {"match": "9592", "reply": "There are 9,592 primes below 100,000."},
]


async def main() -> None:
    """Give the agent a task, and print what it did."""
    with example_settings(answers=SCRIPT) as config:
        server = StdioTransport(
            str(Path(sys.executable).with_name("mcpruntime-server")),
            ["--data-dir", str(config.server.data_dir), "--stdio"],
            env=dict(os.environ),
            keep_alive=False,
        )
        provider = OpenAIProvider(
            base_url=config.llm.api_base or None,
            api_key=config.llm.api_key.get_secret_value() or None,
        )
        model = OpenAIChatModel(config.llm.model.removeprefix("openai/"), provider=provider)
        tools = MCPToolset(server, include_instructions=True, init_timeout=60)
        async with Agent(model, toolsets=[tools]) as agent:
            print("tools:", ", ".join(tool.name for tool in await tools.list_tools()))
            result = await agent.run(TASK)
        for message in result.all_messages():
            for part in message.parts:
                if isinstance(part, ToolCallPart):
                    print(f"\n{part.tool_name}:\n{part.args_as_dict()['code']}")
        print(f"\n{TASK}\n-> {result.output}")


if __name__ == "__main__":
    anyio.run(main)
