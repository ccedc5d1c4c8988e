"""What code in a dry run holds instead of results: it can be kept and shown; the plan ends where it is looked at."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from mcpruntime_server.kernel import guest
from mcpruntime_server.kernel.guest import HostError, ToolDeniedError, shim
from mcpruntime_server.kernel.planned import TEXT, PlanEnds, Planned
from mcpruntime_server.kernel.results import map_concurrently

LOOKS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda r: r.key,
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

    monkeypatch.setattr(guest.host, "call", call, raising=False)
    monkeypatch.setattr(guest.host, "acall", acall, raising=False)
    monkeypatch.setattr(Planned, "any_made", False)

    @shim("s")
    def tool(x: Any = 0) -> Any: ...

    return tool


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_looking_into_it_ends_the_plan(planned: Any, look: Callable[[Any], Any]) -> None:
    result = planned()
    with pytest.raises(PlanEnds, match=r"needs the result of s.tool \(planned call 1\), which is not known"):
        look(result)


def test_it_can_be_kept_shown_and_put_into_texts(planned: Any) -> None:
    result = planned()
    text = TEXT.format(1)
    assert (repr(result), str(result), f"{result}", f"{result:>30}") == (text, text, text, text.rjust(30))
    assert repr([result]) == f"[{text}]"
    assert {result: 1}
    assert not hasattr(result, "__fspath__")
    assert isinstance(result, Planned)


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: [r], lambda r: {"a": [{"b": r}]}, lambda r: (1, r)])
def test_it_cannot_be_sent(planned: Any, wrap: Callable[[Any], Any]) -> None:
    result = planned()
    with pytest.raises(PlanEnds):
        planned(wrap(result))
    assert planned(x="plain") is not None


def test_code_that_handles_failures_does_not_take_it_for_one(planned: Any) -> None:
    def careless() -> str:
        try:
            return str(planned().key)
        except Exception:  # noqa: BLE001 - as such code does
            return "handled"

    with pytest.raises(PlanEnds):
        careless()


def test_batches_let_it_out_and_hold_planned_results(planned: Any) -> None:
    slots = map_concurrently(planned, range(5))
    assert all(slot.ok and isinstance(slot.value, Planned) for slot in slots)
    with pytest.raises(PlanEnds):
        map_concurrently(lambda n: planned(n).key, range(5))


async def test_asyncio_code_is_treated_alike(planned: Any) -> None:
    results = await asyncio.gather(*(planned.aio(n) for n in range(3)))
    assert all(isinstance(result, Planned) for result in results)
    with pytest.raises(PlanEnds):
        await results[0]


def test_a_denied_call_raises_an_error_of_its_own(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: str, arguments: dict[str, Any]) -> Any:
        raise HostError("denied", "It is not allowed.")

    monkeypatch.setattr(guest.host, "call", refuse)
    with pytest.raises(ToolDeniedError, match="It is not allowed") as caught:
        planned(x=1)
    assert (caught.value.tool, caught.value.kind, caught.value.arguments) == ("s.tool", "denied", {"x": 1})
