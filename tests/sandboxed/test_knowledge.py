"""The module `knowledge` as code in a sandbox sees it."""

from __future__ import annotations

import pydoc
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mcpruntime_server.protocol.presentation import present_value
from mcpruntime_server.sandboxed.library import knowledge, tools

TEXT = "".join(f"line {number}\n" for number in range(50_000))
FOUND = {
    "text": "Four stars at most.",
    "source": "handbook",
    "name": "travel.md",
    "title": "Hotels",
    "uri": "knowledge://handbook/travel.md#L7-9",
    "span": {"lines": [7, 9], "chars": [50, 80]},
    "score": 3.5,
}


class Bench:
    """The host's side: one document, and one passage of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[str] = []

    def call(self, target: str, args: dict[str, Any]) -> Any:
        self.calls.append((target, args))
        if target == "knowledge.search":
            return {
                "passages": [dict(FOUND)] if args["query"] == "hotels" else [],
                "problems": self.problems,
            }
        if target == "knowledge.get" and args["chars"] < 1:
            raise tools.HostError("invalid_arguments", "`chars` is at least 1.")
        if target == "knowledge.get":
            return {"text": TEXT[args["start"] :][: min(args["chars"], 200_000)], "size": len(TEXT)}
        return [{"name": "handbook", "kind": "folder", "title": "Rules"}]

    async def acall(self, target: str, args: dict[str, Any]) -> Any:
        return self.call(target, args)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench()
    monkeypatch.setattr(tools.host, "call", made.call, raising=False)
    monkeypatch.setattr(tools.host, "acall", made.acall, raising=False)
    yield made
    sys.modules.pop("knowledge", None)


def test_passages_have_attributes_and_a_repr_with_their_place(bench: Bench) -> None:
    found = knowledge.search("hotels", limit=2, source="handbook")
    assert bench.calls == [
        ("knowledge.search", {"query": "hotels", "limit": 2, "source": "handbook"})
    ]
    assert (len(found), [each.score for each in found], found[0].span["lines"]) == (
        1,
        [3.5],
        [7, 9],
    )
    shown = present_value(found, 1000)
    assert shown["kind"] == "repr"
    assert shown["text"] == (
        "[0] handbook: travel.md > Hotels, lines 7-9 "
        "(knowledge://handbook/travel.md#L7-9)\nFour stars at most."
    )


def test_problems_are_shown_even_if_nothing_was_found(bench: Bench) -> None:
    bench.problems = ["handbook is still being indexed."]
    found = knowledge.search("trains")
    assert not found
    assert (
        present_value(found, 1000)["text"]
        == "no passages found\n\n! handbook is still being indexed."
    )


def test_a_long_text_is_read_in_parts_and_returned_whole(bench: Bench) -> None:
    assert knowledge.get("knowledge://handbook/travel.md") == TEXT
    assert len(bench.calls) == 3
    assert (
        knowledge.get("knowledge://handbook/travel.md", start=7, chars=250_000) == TEXT[7:250_007]
    )
    assert knowledge.get("knowledge://handbook/travel.md", start=10**9) == ""
    [passage] = knowledge.search("hotels")
    knowledge.get(passage, chars=5)
    assert bench.calls[-1][1]["uri"] == passage.uri
    with pytest.raises(tools.ToolArgumentError, match=r"knowledge\.get"):
        knowledge.get(passage, chars=0)


def test_help_names_the_providers(bench: Bench) -> None:
    module = knowledge.install_knowledge()
    assert "Providers: handbook (folder) Rules." in pydoc.plain(pydoc.render_doc(module))
    assert module.__all__ == ["describe", "get", "search"]
    assert sys.modules["knowledge"] is module
