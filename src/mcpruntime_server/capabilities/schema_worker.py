"""The process that compares values with schemas; see `schema_checks`.

It reads one request a line from its stdin and writes one reply a line to its stdout. It ends with
its stdin, and when a comparison takes more processor time than the limit, so that it never outlives
a server that was killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .json_schemas import compile_schema, find_violation
from .process_limits import limit_process, limit_processor_time

if TYPE_CHECKING:
    from jsonschema_rs import Validator


def answer_check(request: Mapping[str, Any], known: dict[int, Validator]) -> dict[str, str]:
    """Return the reply to a request; `known` has the schemas of earlier ones."""
    number = request["number"]
    try:
        if number not in known:
            known[number] = compile_schema(request["schema"])
    except ValueError as exc:
        return {"error": str(exc)}
    return {"violation": find_violation(request["value"], known[number])}


def main() -> None:
    """Answer requests until there are no more."""
    limit_process()
    known: dict[int, Validator] = {}
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        limit_processor_time()
        print(json.dumps(answer_check(json.loads(line), known)), flush=True)


if __name__ == "__main__":
    main()
