"""The results of planned calls can be stored and shown; any other use ends the plan."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.protocol import wire
from mcpruntime_server.protocol.library_names import PLANNED_RESULT_TEXT
from mcpruntime_server.protocol.presentation import present_value
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.frame_writer import FrameWriter
from mcpruntime_server.sandbox.link import open_link
from mcpruntime_server.sandbox.local_backend import LocalBackend
from mcpruntime_server.sandboxed.library import tools
from mcpruntime_server.sandboxed.library.planned import (
    PlanEnded,
    PlannedResult,
)
from mcpruntime_server.sandboxed.library.results import map_concurrently
from mcpruntime_server.sandboxed.library.tools import HostError, ToolDeniedError, shim


def enter(result: Any) -> None:
    with result:
        pass


async def enter_async(result: Any) -> None:
    async with result:
        pass


async def wait(result: Awaitable[Any]) -> Any:
    return await result


LOOKS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda r: r.key,
    "private attribute": lambda r: r._call,
    "attribute like a dunder": lambda r: r.__typename,
    "format attribute": "{0.key}".format,
    "item": lambda r: r["key"],
    "call": lambda r: r(),
    "truth": bool,
    "length": len,
    "loop": list,
    "unpack": lambda r: [*r],
    "in": lambda r: "x" in r,
    "equal": lambda r: r == {},
    "unequal": lambda r: r != None,  # noqa: E711 - the comparison is what is tried
    "less": lambda r: r < 1,
    "sum": lambda r: r + 1,
    "rsum": lambda r: "a" + r,
    "product": lambda r: 2 * r,
    "int": int,
    "float": float,
    "index": lambda r: [1][r],
    "negative": lambda r: -r,
    "set": lambda r: setattr(r, "key", 1),
    "put": lambda r: r.__setitem__("key", 1),
    "delete": lambda r: r.__delitem__("key"),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "modulo": lambda r: r % 2,
    "round": round,
    "trunc": math.trunc,
    "number in a text": lambda r: "%.2f" % r,  # noqa: UP031 - the operator is what is tried
    "keywords": lambda r: dict(**r),
    "path": os.fspath,
    "open": open,
    "with": enter,
    "async with": lambda r: asyncio.run(enter_async(r)),
    "next of async": lambda r: asyncio.run(wait(anext(r))),
    "search": tools.search,
}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tool of which every call is planned."""
    calls: list[Any] = []

    def call(target: str, arguments: dict[str, Any]) -> Any:
        calls.append(arguments)
        raise HostError("planned", "It is planned.", {"call": len(calls)})

    async def acall(target: str, arguments: dict[str, Any]) -> Any:
        return call(target, arguments)

    monkeypatch.setattr(tools.host, "call", call, raising=False)
    monkeypatch.setattr(tools.host, "acall", acall, raising=False)
    monkeypatch.setattr(PlannedResult, "any_created", False)
    monkeypatch.setattr(PlannedResult, "first_end", None)

    @shim("s")
    def tool(x: Any = 0) -> Any: ...

    return tool


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_using_the_result_of_a_planned_call_ends_the_plan(
    planned: Any, look: Callable[[Any], Any]
) -> None:
    result = planned()
    with pytest.raises(
        PlanEnded, match=r"needs the result of s.tool \(planned call 1\), which is not known"
    ):
        look(result)


def test_a_planned_result_can_be_stored_printed_and_formatted(planned: Any) -> None:
    result = planned()
    text = PLANNED_RESULT_TEXT.format(1)
    assert (repr(result), str(result), f"{result}", f"{result:>30}") == (
        text,
        text,
        text,
        text.rjust(30),
    )
    assert (f"{result:.2f}", f"{result:,}") == (text, text)
    assert repr([result]) == f"[{text}]"
    assert {result: 1}
    assert not hasattr(result, "__array__")
    assert isinstance(result, PlannedResult)


@pytest.mark.parametrize(
    "wrap", [lambda r: r, lambda r: [r], lambda r: {"a": [r]}, lambda r: (1, r)]
)
def test_a_planned_result_as_a_value_is_shown_by_its_repr(
    planned: Any, wrap: Callable[[Any], Any]
) -> None:
    value = wrap(planned())
    assert present_value(value, 1_000)["text"] == repr(value)
    assert PlannedResult.first_end is None


@pytest.mark.parametrize(
    "wrap",
    [lambda r: r, lambda r: [r], lambda r: {"a": [{"b": r}]}, lambda r: (1, r), lambda r: {r: 1}],
)
def test_a_planned_result_cannot_be_sent(planned: Any, wrap: Callable[[Any], Any]) -> None:
    result = planned()
    with pytest.raises(PlanEnded):
        planned(wrap(result))
    assert planned(x="plain") is not None


def test_code_that_handles_failures_does_not_catch_the_end_of_the_plan(planned: Any) -> None:
    def careless() -> str:
        try:
            return str(planned().key)
        except Exception:  # noqa: BLE001 - as such code does
            return "handled"

    with pytest.raises(PlanEnded):
        careless()


def test_batches_raise_the_end_of_the_plan_and_return_planned_results(planned: Any) -> None:
    slots = map_concurrently(planned, range(5))
    assert all(slot.ok and isinstance(slot.value, PlannedResult) for slot in slots)
    with pytest.raises(PlanEnded):
        map_concurrently(lambda n: planned(n).key, range(5))


async def test_asyncio_code_gets_planned_results_too(planned: Any) -> None:
    results = await asyncio.gather(*(planned.aio(n) for n in range(3)))
    assert all(isinstance(result, PlannedResult) for result in results)
    with pytest.raises(PlanEnded):
        await results[0]


def test_a_denied_call_raises_an_error_of_its_own(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: str, arguments: dict[str, Any]) -> Any:
        raise HostError("denied", "It is not allowed.")

    monkeypatch.setattr(tools.host, "call", refuse)
    with pytest.raises(ToolDeniedError, match="It is not allowed") as caught:
        planned(x=1)
    assert (caught.value.tool, caught.value.kind, caught.value.arguments) == (
        "s.tool",
        "denied",
        {"x": 1},
    )


# in a sandbox -------------------------------------------------------------------------------------


class DryRun:
    """A host that plans every call to `tools.s.put`."""

    def __init__(self) -> None:
        self.planned: list[Any] = []

    async def catch_up(self) -> None:
        pass

    def on_output(self, message: wire.Output) -> None:
        pass

    def on_files(self, message: wire.FilesChanged) -> None:
        pass

    def on_file_data(self, message: wire.FileData) -> None:
        pass

    def on_saved(self, message: wire.FilesSaved) -> None:
        pass

    def on_probe_hit(self, message: wire.ProbeHit) -> None:
        pass

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        if message.target == "catalog.shim":
            return wire.Reply(
                message.call_id,
                {"source": "from tools import shim\n@shim('s')\ndef put(x=0): ...\n"},
            )
        self.planned.append(message.args.get("x"))
        return wire.Reply(
            message.call_id,
            None,
            {"kind": "planned", "message": "", "data": {"call": len(self.planned)}},
        )


@pytest.fixture
async def run(
    tmp_path: Path,
) -> AsyncIterator[Callable[[str], Awaitable[tuple[wire.RunDone, DryRun]]]]:
    """Something that runs code in a sandbox, each time as a dry run."""
    backend = LocalBackend(
        SandboxSettings(), tmp_path, KERNEL_ARGV, KERNEL_ENV, "tester", lambda owner: True
    )
    setup = wire.Setup(
        version=wire.PROTOCOL_VERSION,
        has_own_processes=False,
        max_output_bytes=1 << 20,
        max_value_chars=10_000,
        max_shown_chars=10_000,
        max_shown_items=1_000,
        max_file_bytes=1 << 20,
        max_processes=0,
        max_checkpoints=0,
        max_checkpoint_bytes=0,
        resource_limits=backend.resource_limits,
    )
    async with open_link(backend, setup) as link:

        async def execute(code: str) -> tuple[wire.RunDone, DryRun]:
            host = DryRun()
            done, _ = await link.execute(code, "<step 1>", host, 30.0, seed="1", park=False)
            return done, host

        yield execute


IMPORT = (
    "import asyncio\nfrom tools.s import put\nasync def look(x): return (await put.aio(x)).key\n"
)


async def test_a_run_may_end_with_a_planned_result(run: Any) -> None:
    for code in (
        "put(1)",
        "r = put(1)",
        "[put(1)]",
        "[slot.value for slot in tools.map(put, [1])]",
    ):
        done, host = await run(IMPORT + code)
        assert (done.status, done.error, host.planned) == ("ok", None, [1])
        assert PLANNED_RESULT_TEXT.format(1) in done.value["text"]


@pytest.mark.parametrize(
    "code",
    [
        "put(1).key",
        "await look(1)",
        "await asyncio.gather(look(1))",
        "await asyncio.gather(look(1), return_exceptions=True)",
        "(await asyncio.gather(look(1), return_exceptions=True))[0]['key']",
        "async with asyncio.TaskGroup() as group: group.create_task(look(1))",
        "tools.map(lambda x: put(x).key, [1])",
        "try: put(1).key\nexcept: pass",
        "try: put(1).key\nfinally: {}['other']",
        "import sys\ntry: put(1).key\nfinally: sys.exit()",
        "import threading\nthread = threading.Thread(target=lambda: put(1).key)\n"
        "thread.start()\nthread.join()",
    ],
)
async def test_the_run_ends_with_the_plan_and_shows_the_line(run: Any, code: str) -> None:
    done, host = await run(IMPORT + code)
    assert (done.status, done.value, host.planned) == ("error", None, [1])
    assert done.error["type"] == "tools.PlanEnded"
    assert done.error["message"].startswith(
        "The code needs the result of s.put (planned call 1), which is not known"
    )
    assert done.error["line"] in range(3, 6)
    assert ".key" in done.error["traceback"]
    assert "mcpruntime_sandbox" not in done.error["traceback"]


async def test_the_next_run_does_not_end_with_an_earlier_plan(run: Any) -> None:
    await run(f"{IMPORT}try: put(1).key\nexcept: pass")
    done, _ = await run("1 + 1")
    assert (done.status, done.value["text"]) == ("ok", "2")
