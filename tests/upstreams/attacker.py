"""A hand-written MCP server that sends too much, too fast, too deep or without end.

argv[1] names what it does when it connects (one of `LISTINGS`, or `calls`). Each tool attacks in
the way that its name says; `kind` answers properly, and shows that the connection goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from threading import Timer
from typing import Any

MB = 1_000_000
SCHEMA = {"type": "object", "properties": {}}
HEAD = '{"jsonrpc":"2.0","id":%s,"result":{"content":[],"structuredContent":{"r":'


def write(text: str) -> None:
    data = memoryview(text.encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(1, data) :]


def say(**message: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")


def notice(method: str, **params: Any) -> str:
    message = {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}
    return json.dumps(message) + "\n"


def tell(number: Any, text: str) -> None:
    """Answer request `number` with one text."""
    say(id=number, result={"content": [{"type": "text", "text": text}]})


def ask(number: Any, method: str, params: dict[str, Any]) -> None:
    """Send 4,000 requests at once, then the answer."""
    write(
        "".join(
            json.dumps({"jsonrpc": "2.0", "id": f"q{n}", "method": method, "params": params}) + "\n"
            for n in range(4_000)
        )
    )
    tell(number, "done")


def flood(number: Any, line: str, times: int) -> None:
    """Write `line` so many times, then the answer."""
    block = line * 1_000
    for _ in range(times // 1_000):
        write(block)
    tell(number, "done")


def pour(text: str) -> None:
    """Write `text` until nobody reads it."""
    while True:
        write(text)


def answer_twice(number: Any) -> None:
    for _ in range(20_000):
        tell(number, "done")


def flood_with_large_lines(number: Any) -> None:
    for _ in range(100):
        write(notice("message", level="info", data="x" * MB))
    tell(number, "done")


def answer_others(number: Any) -> None:
    """Answer two requests that nobody has made with large answers, then the right one."""
    text = {"content": [{"type": "text", "text": "x" * MB}]}
    say(id=number + 1_000, result=text)
    write(json.dumps({"jsonrpc": "2.0", "result": text, "id": number + 2_000, "more": 1}) + "\n")
    tell(number, "done")


def ask_with_long_ids(number: Any) -> None:
    for count in range(30):
        say(id=str(count) + "i" * MB, method="ping")
    tell(number, "done")


MESSAGE = {"role": "user", "content": {"type": "text", "text": "hi"}}
FORM = {"message": "who?", "requestedSchema": SCHEMA}
CALLS: dict[str, Callable[[Any], object]] = {
    "kind": lambda n: tell(n, "hello"),
    # answers that are just within the limits
    "large_text": lambda n: tell(n, "x" * (8 * MB - 100)),
    "large_escapes": lambda n: tell(n, "\n" * (4 * MB - 50)),
    "large_wide_text": lambda n: write((HEAD % n) + '"' + "\u20ac" * 2_600_000 + '"}}}\n'),
    "large_object": lambda n: write((HEAD % n) + "[" + "{}," * 120_000 + "{}]}}}\n"),
    "large_numbers": lambda n: write((HEAD % n) + "[" + "1234567890.5," * 240_000 + "1]}}}\n"),
    "large_json_text": lambda n: tell(n, json.dumps([{"a": "x" * 50}] * 100_000)),
    "large_error": lambda n: say(
        id=n, error={"code": -32000, "message": "failed" * 200_000, "data": ["d" * 5 * MB]}
    ),
    "large_failure": lambda n: say(
        id=n, result={"isError": True, "content": [{"type": "text", "text": "failed" * MB}]}
    ),
    "large_log_line": flood_with_large_lines,
    "other_answers": answer_others,
    "large_keys": lambda n: write(
        (HEAD % n) + "{" + ",".join(f'"{i}":0' for i in range(240_000)) + "}}}}\n"
    ),
    "large_blocks": lambda n: say(
        id=n, result={"content": [{"type": "text", "text": "t"}] * 9_900}
    ),
    # answers that are too large
    "long_text": lambda n: tell(n, "x" * 25 * MB),
    "escaped_text": lambda n: tell(n, "\n" * 12 * MB),
    "wide_text": lambda n: write((HEAD % n) + '"' + "\u20ac" * 8 * MB + '"}}}\n'),
    "longer_text": lambda n: tell(n, "x" * 100 * MB),
    "late_id": lambda n: write(
        '{"jsonrpc":"2.0","result":{"content":[{"type":"text","text":"'
        + "x" * 70 * MB
        + f'"}}]}},"id":{n}}}\n'
    ),
    "no_end": lambda n: pour("x" * MB),
    "many_objects": lambda n: write((HEAD % n) + "[" + "{}," * 2 * MB + "{}]}}}\n"),
    "many_numbers": lambda n: write((HEAD % n) + "[" + "1," * 5 * MB + "1]}}}\n"),
    "many_keys": lambda n: write(
        (HEAD % n) + "{" + ",".join(f'"{i}":0' for i in range(MB)) + "}}}}\n"
    ),
    "many_blocks": lambda n: say(
        id=n, result={"content": [{"type": "text", "text": ""}] * 500_000}
    ),
    "deep": lambda n: write((HEAD % n) + "[" * 100_000 + "]" * 100_000 + "}}}\n"),
    "half_deep": lambda n: write((HEAD % n) + "[" * 900 + "]" * 900 + "}}}\n"),
    "long_number": lambda n: write((HEAD % n) + "9" * 40_000 + "}}}\n"),
    "half_a_character": lambda n: write((HEAD % n) + '"a\\uD800b"}}}\n'),
    "long_error": lambda n: say(
        id=n, error={"code": -32000, "message": "e" * 10 * MB, "data": ["d" * 10 * MB]}
    ),
    # what nobody has asked for
    "sampling": lambda n: ask(n, "sampling/createMessage", {"messages": [MESSAGE], "maxTokens": 1}),
    "forms": lambda n: ask(n, "elicitation/create", FORM),
    "roots": lambda n: ask(n, "roots/list", {}),
    "pings": lambda n: ask(n, "ping", {}),
    "changes": lambda n: flood(n, notice("tools/list_changed"), 50_000),
    "log_lines": lambda n: flood(n, notice("message", level="info", data="x"), 100_000),
    "long_log_lines": lambda n: flood(n, notice("message", level="info", data="x" * 50_000), 1_000),
    "longer_log_line": lambda n: flood(
        n, notice("message", level="info", data="x" * 10_000), 5_000
    ),
    "progress": lambda n: flood(n, notice("progress", progressToken="t", progress=1), 100_000),
    "cancels": lambda n: flood(n, notice("cancelled", requestId=1), 50_000),
    "answers": lambda n: flood(
        n, json.dumps({"jsonrpc": "2.0", "id": 7, "result": {}}) + "\n", 50_000
    ),
    "answers_twice": answer_twice,
    "odd_answers": lambda n: flood(n, '{"jsonrpc":"2.0","id":null,"result":{}}\n', 20_000),
    "no_messages": lambda n: flood(n, "Starting up... {not json\n", 100_000),
    "empty_lines": lambda n: flood(n, "\n", 20 * MB),
    "long_ids": ask_with_long_ids,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": SCHEMA, **more}


def page(count: int, tools: list[dict[str, Any]] | None = None, size: int = 1) -> dict[str, Any]:
    """Return one page with a next one."""
    return {"tools": tools or [tool("kind")], "nextCursor": str(count) * size}


def slow_page(count: int) -> dict[str, Any]:
    time.sleep(0.3)
    return page(count, [tool("kind"), tool(f"t{count}")])


def described_tool(number: int) -> dict[str, Any]:
    schema = {"type": "string", "description": "some words about it", "enum": ["a", "b", "c"]}
    properties = {f"p{n}": schema for n in range(12)}
    return {
        "name": f"t{number}",
        "description": "What this tool does. " * 20,
        "inputSchema": {"type": "object", "properties": properties, "required": ["p1"]},
        "outputSchema": {"type": "object", "properties": properties},
    }


def changing_page(count: int) -> dict[str, Any]:
    """Return one page of other tools each time, and announce the next change."""
    Timer(0.5, write, [notice("tools/list_changed")]).start()
    names = (f"t{next(CHANGES)}_{n}" for n in range(1_000))
    return {"tools": [tool("kind"), *(tool(each, description="words " * 50) for each in names)]}


CHANGES = itertools.count()
LISTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "calls": lambda _: {"tools": [tool(name) for name in CALLS]},
    "same_page": page,
    "same_cursor": lambda n: page(1, [tool("kind"), tool(f"t{n}")]),
    "new_pages": lambda n: page(n, [tool("kind"), tool(f"t{n}")]),
    "empty_pages": lambda n: {"tools": [tool("kind")] if n == 1 else [], "nextCursor": f"{n}"},
    "large_tools": lambda _: {"tools": [tool("kind"), *map(described_tool, range(900))]},
    "changing_tools": changing_page,
    "many_tools": lambda n: page(n, [tool("kind"), *(tool(f"t{n}_{i}") for i in range(1_000))]),
    "long_tools": lambda n: page(n, [tool("kind"), tool(f"t{n}", description="d" * 4 * MB)]),
    "long_cursors": lambda n: page(n, [tool("kind"), tool(f"t{n}")], size=4 * MB),
    "slow_pages": slow_page,
}


def requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        message = json.loads(line)
        if "method" in message and "id" in message:
            yield message


def main() -> None:
    pages = itertools.count(1)
    listing = LISTINGS[sys.argv[1]]
    for message in requests():
        number, params = message["id"], message.get("params") or {}
        match message["method"]:
            case "initialize":
                result: Any = {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": {"name": "attacker", "version": "1"},
                }
                say(id=number, result=result)
            case "tools/list":
                if not params.get("cursor"):
                    pages = itertools.count(1)
                say(id=number, result=listing(next(pages)))
            case "tools/call":
                CALLS[params["name"]](number)
            case method:
                say(id=number, error={"code": -32601, "message": f"no method {method}"})


if __name__ == "__main__":
    main()
