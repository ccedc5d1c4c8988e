"""The process that compares values with schemas; see `schema_checks`.

It reads one request a line from its stdin and writes one reply a line to its stdout. It ends with
its stdin, and when a comparison takes more processor time than the limit, so that it never outlives
a server that was killed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .json_schemas import compile_schema, find_violation

if TYPE_CHECKING:
    from jsonschema_rs import Validator

MAX_MEMORY_BYTES = 1 << 30
MAX_COMPARISON_S = 10.0  # of processor time; the server waits less
NICENESS = 5  # behind the server and the sandboxes

if sys.platform != "win32":
    import os
    import resource

    def limit_process() -> None:
        """Limit the memory of this process, and let others have the processor first."""
        os.nice(NICENESS)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, most))

    def limit_processor_time() -> None:
        """Limit the processor time from now on."""
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        last_second = math.ceil(time.process_time() + MAX_COMPARISON_S)
        resource.setrlimit(resource.RLIMIT_CPU, (last_second, most))

else:

    def limit_process() -> None:
        """Limit nothing: this system cannot."""

    def limit_processor_time() -> None:
        """Limit nothing: this system cannot."""


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
