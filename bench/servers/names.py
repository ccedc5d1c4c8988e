"""Names that the servers and the bench share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CALL_LOG = "calls.jsonl"
FILES_FOLDER = "files"
REPOSITORY_FOLDER = "repository"
DATABASE_FILE = "shop.db"
STATE_VARIABLE, LATENCY_VARIABLE, API_VARIABLE = "BENCH_STATE", "BENCH_LATENCY_MS", "BENCH_API"
SCENARIO_FILE, TRACE_FILE = "scenario.json", "trace.pickle"
HOLD_FILE, HELD_FILE = "hold.txt", "held.txt"  # a call that waits for the bench, and while it does


def describe_hold(point: str, arguments: Mapping[str, Any]) -> str:
    """Return what `HOLD_FILE` says to hold the call with these arguments at a point."""
    return f"{point} {json.dumps(arguments, sort_keys=True)}"
