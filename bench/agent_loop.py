"""An agent in its smallest form, as a client: the model writes a program, it is run, the model sees what came of it.

The conversation is that of the project's own agent. What CONTEXT and SUBMIT are, a first step defines, so that it works
on any server that runs code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx
from mcp import Client

from fake_llm import KEY

STEPS = 6
SHOWN = 2_000  # characters of what a program printed
ANSWER_S = 300.0
SYSTEM = f"You finish a task by writing Python, one program an answer. [mcpruntime agent, depth 0, {STEPS} steps]"
PRELUDE = """\
def SUBMIT(value):
    SUBMITTED.append(value)

SUBMITTED = []
CONTEXT = open({path!r}).read()
len(CONTEXT)
"""
PROGRAM = re.compile(r"```python\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Solved:
    """What was submitted, and the most memory that the sandbox had."""

    value: Any
    peak_mb: float


async def solve(client: Client, url: str, model: str, task: str, path: str, session: str) -> Solved:
    """Have a model solve a task about the text at `path`; raises `RuntimeError` if it submits nothing."""
    begun = await finished(client, PRELUDE.format(path=path), session)
    peak = begun["usage"].get("peak_mb", 0.0)
    about = f"Task:\n{task}\n\nCONTEXT: a text of {begun['value']:,} characters"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": about}]
    result: dict[str, Any] = begun
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=ANSWER_S) as http:
        for step in range(1, STEPS + 1):
            said = await ask(http, model, messages)
            program = PROGRAM.search(said)
            if program is None:
                raise RuntimeError(f"the model wrote no program: {said:.200}")
            result = await finished(client, f"{program[1]}\nSUBMITTED", session)
            peak = max(peak, result["usage"].get("peak_mb", 0.0))
            if result["status"] == "ok" and result.get("value"):
                return Solved(result["value"][0], peak)
            told = f"Step {step} of {STEPS}: {result['status']}\n{shown(result)}"
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": told}]
    raise RuntimeError(f"nothing was submitted in {STEPS} steps; the last ended so: {shown(result):.300}")


async def ask(http: httpx.AsyncClient, model: str, messages: list[dict[str, str]]) -> str:
    """Return what the model says."""
    answer = await http.post("/chat/completions", json={"model": model, "messages": messages})
    answer.raise_for_status()
    said: str = answer.json()["choices"][0]["message"]["content"]
    return said


def shown(result: dict[str, Any]) -> str:
    """Return what the model is shown of a run."""
    error = (result.get("error") or {}).get("traceback", "")
    return f"stdout:\n{result.get('stdout', '')[:SHOWN]}\n{error[-SHOWN:]}"


async def finished(client: Client, code: str, session: str) -> dict[str, Any]:
    """Run code to its end, however long that takes, and return its result; raises `RuntimeError` if it is not run."""
    arguments: dict[str, Any] = {"code": code, "session": session}
    while True:
        answer = await client.call_tool("run_code", arguments)
        result: dict[str, Any] = answer.structured_content or {}
        if answer.is_error or not result:
            raise RuntimeError(f"run_code failed: {answer.content}")
        if result["status"] not in ("queued", "running"):
            return result
        arguments = {"run": result["run"]}
