"""A scripted model that makes no mistakes: it shows what a mode costs, and not what a model can do.

As a programmer it first reads the help of the servers that a task needs, then that of each function
that it will use, and then writes the reference program. As a caller of functions it makes the calls
that the reference program made, one a turn, and then says the value.

In the mode `recursive` it writes one program. That lets a model read the help of the servers and
name the functions that the task needs, and then lets a sub-agent do the task with these. The
sub-agent reads the help of each function and submits the value of the reference program.

The model is served by the bench's own server (`fake_llm`), which counts tokens in cl100k_base.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from . import fake_llm
from .agents import ANSWER_MARK
from .models import ChatModel

GOLD = "gold"
LOOK_PROGRAM = "import tools\nfor each in ({names}):\n    help(each)"
CHOOSE_PROMPT = "Which of these functions does the task need? Name each as tools.SERVER.FUNCTION."
DELEGATE_PROGRAM = """\
import contextlib, io
import tools
task = {task!r}
page = io.StringIO()
with contextlib.redirect_stdout(page):
    for each in ({servers}):
        help(each)
named = ask_llm({prompt!r} + "\\n\\n" + task, page.getvalue(), schema=list[str])
sub_agent(task, context={{"functions": named}})
"""


@contextmanager
def start_gold_model(seed: int) -> Iterator[tuple[ChatModel, fake_llm.ModelServer]]:
    """Run the model server; yield the model and the server that is scripted."""
    with fake_llm.start_model_server("--exact-tokens") as server:
        yield ChatModel("openai/echo", server.url, fake_llm.API_KEY, seed=seed), server


def script_programs(program: str, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers of a programmer: two looks at the help, and the reference program."""
    names = list_servers(calls), list_functions(calls)
    return [
        *(reply_with(LOOK_PROGRAM.format(names=join_names(each))) for each in names),
        reply_with(f"{ANSWER_MARK}\n{program.strip()}"),
    ]


def script_recursion(
    prompt: str, program: str, calls: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the answers of all models of a recursive agent, in the order of their requests."""
    functions = list_functions(calls)
    delegation = DELEGATE_PROGRAM.format(
        task=prompt, servers=join_names(list_servers(calls)), prompt=CHOOSE_PROMPT
    )
    return [
        reply_with(f"{ANSWER_MARK}\n{delegation}"),
        {"reply": json.dumps({"value": functions})},
        reply_with(LOOK_PROGRAM.format(names=join_names(functions))),
        reply_with(submit_value(program)),
    ]


def submit_value(program: str) -> str:
    """Return a program that submits its last expression."""
    tree = ast.parse(program)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        raise ValueError(f"The program does not end with an expression: {program[-80:]!r}")
    call = ast.Call(ast.Name("SUBMIT"), [last.value], [])
    tree.body[-1] = ast.Expr(call)
    return ast.unparse(tree)


def list_servers(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the called servers as code has them."""
    return list(dict.fromkeys(f"tools.{call['server']}" for call in calls))


def list_functions(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the called functions as code has them."""
    return list(dict.fromkeys(f"tools.{call['server']}.{call['tool']}" for call in calls))


def join_names(names: Sequence[str]) -> str:
    """Return names as the items of a tuple in code."""
    return "".join(f"{each}, " for each in names)


def reply_with(program: str) -> dict[str, Any]:
    """Return the entry of a script that answers with a program."""
    return {"reply": f"I run this.\n```python\n{program}\n```"}


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
