"""A scripted model that makes no mistakes: it shows what a mode costs, and not what a model can do.

As a programmer it first reads the help of the servers that a task needs, then that of each function
that it will use, and then writes the reference program. As a caller of functions it makes the calls
that the reference program made, one a turn, and then says the value. It is served by the bench's
own model server (`fake_llm`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from . import fake_llm
from .agents import ANSWER_MARK
from .models import ChatModel

GOLD = "gold"
LOOK_PROGRAM = "import tools\nfor each in ({names}):\n    help(each)"


@contextmanager
def start_gold_model(seed: int) -> Iterator[tuple[ChatModel, fake_llm.ModelServer]]:
    """Run the model server; yield the model and the server that is scripted."""
    with fake_llm.start_model_server() as server:
        yield (
            ChatModel("openai/echo", server.url, fake_llm.API_KEY, counts_here=True, seed=seed),
            server,
        )


def script_programs(program: str, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers of a programmer: two looks at the help, and the reference program."""
    servers = dict.fromkeys(f"tools.{call['server']}" for call in calls)
    functions = dict.fromkeys(f"tools.{call['server']}.{call['tool']}" for call in calls)
    looks = (
        LOOK_PROGRAM.format(names="".join(f"{each}, " for each in names))
        for names in (servers, functions)
    )
    return [
        *({"reply": f"I look at what there is.\n```python\n{look}\n```"} for look in looks),
        {"reply": f"This does it.\n```python\n{ANSWER_MARK}\n{program.strip()}\n```"},
    ]


def script_calls(calls: Sequence[Mapping[str, Any]], value: Any) -> list[dict[str, Any]]:
    """Return the answers of a caller of functions: each call, and the value."""
    entries: list[dict[str, Any]] = []
    for number, call in enumerate(calls):
        name = f"{call['server']}__{call['tool']}"
        function = {"name": name, "arguments": json.dumps(call["arguments"])}
        entries.append(
            {"tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]}
        )
    return [*entries, {"reply": json.dumps(value)}]
