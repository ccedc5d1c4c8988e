"""What is measured of every rival: the same programs, in its own language.

This module and the adapters run in the environment of a rival, so they import the standard library
and the rival only. An adapter is a program: it reads a request as JSON from its first argument,
measures, and prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

CALLS = 50  # calls of a tool in one run
NO_CALLS = 0


@dataclass(frozen=True)
class Programs:
    """The programs in the language of a rival; `calls` is empty if code cannot call tools."""

    value: str = "1 + 1"
    output: str = "print('line {n}')"
    set_variable: str = "kept = 41"
    get_variable: str = "kept + 1"
    calls: str = ""


class Rival:
    """A runtime with one place where code runs."""

    programs = Programs()

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request

    async def open(self) -> None:
        """Start everything that the first run needs."""

    async def run(self, code: str) -> str:
        """Run code and return what the rival answers, value and output, as text."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop everything."""


@dataclass
class Figures:
    """What was measured: seconds to the first result, milliseconds, and what is lost."""

    first_s: list[float] = field(default_factory=list)
    warm_ms: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)
    outputs: int = 0
    lost_outputs: int = 0
    keeps_variables: bool = False


async def measure(rival_type: type[Rival], request: dict[str, Any]) -> Figures:
    """Measure a rival: from nothing to the first result, warm runs, calls, and short outputs."""
    figures = Figures()
    rival = rival_type(request)
    for number in range(request["starts"]):
        if number:
            await rival.close()
            rival = rival_type(request)
        began = time.perf_counter()
        await rival.open()
        answer = await rival.run(rival.programs.value)
        figures.first_s.append(time.perf_counter() - began)
        check_answer(answer, "2")
    try:
        for _ in range(request["runs"]):
            figures.warm_ms.append(await time_run(rival, rival.programs.value))
        for number in range(request["runs"]):
            answer = await rival.run(rival.programs.output.format(n=number))
            figures.outputs += 1
            figures.lost_outputs += f"line {number}" not in answer
        figures.keeps_variables = await keeps_variables(rival)
        for _ in range(request["rounds"] if rival.programs.calls else 0):
            code = rival.programs.calls
            none = await time_run(rival, code.replace("COUNT", str(NO_CALLS)))
            some = await time_run(rival, code.replace("COUNT", str(CALLS)))
            figures.call_ms.append((some - none) / CALLS)
    finally:
        await rival.close()
    return figures


async def time_run(rival: Rival, code: str) -> float:
    """Return the milliseconds of a run."""
    began = time.perf_counter()
    await rival.run(code)
    return (time.perf_counter() - began) * 1e3


async def keeps_variables(rival: Rival) -> bool:
    """Return whether a variable of one run is there in the next."""
    try:
        await rival.run(rival.programs.set_variable)
        return "42" in await rival.run(rival.programs.get_variable)
    except Exception:  # noqa: BLE001 - each rival has errors of its own for a missing name
        return False


def check_answer(answer: str, expected: str) -> None:
    """Raise `RuntimeError` if an answer has not what it must have."""
    if expected not in answer:
        raise RuntimeError(f"The answer is {answer[:300]!r}, without {expected!r}.")


def serve(rival_type: type[Rival]) -> None:
    """Measure and print; the last line of the output is the result."""
    request = json.loads(sys.argv[1])
    figures = asyncio.run(measure(rival_type, request))
    print(json.dumps(asdict(figures)), flush=True)
