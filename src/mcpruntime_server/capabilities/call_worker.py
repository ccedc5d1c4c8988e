"""The process that reads calls with large arguments; see `large_calls`.

It takes what `decode_message` takes, and nothing else. Reading and encoding megabytes of JSON holds
the interpreter's lock for up to fifty milliseconds, so a thread would keep the event loop waiting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from ..protocol.presentation import format_call
from ..protocol.wire import TYPE_CODES, Call, WireError, decode_message
from .framed_worker import serve_requests

MAX_NAMES = 1_000  # of arguments that are passed on as text
MAX_HEAD_VALUES = 1_000  # clock readings beside them

# As the journal writes canonical JSON, whose module would take long to import.
encode_sorted = json.JSONEncoder(allow_nan=False, separators=(",", ":"), sort_keys=True).encode


def read_call(request: Mapping[str, Any], body: bytes) -> tuple[Any, bytes]:
    """Return what a call is without its arguments, and these as canonical JSON, twice.

    The second time they are a JSON string. The head says only `invalid` for what is not a call, and
    is empty for one that is not to be passed on in this way.
    """
    try:
        call = decode_message(TYPE_CODES[Call], body)
    except WireError as exc:
        return {"invalid": str(exc)}, b""
    assert isinstance(call, Call)
    readings = call.clock_readings or {}
    reading_count = sum(len(each) if isinstance(each, list) else 1 for each in readings.values())
    if len(call.args) > MAX_NAMES or reading_count > MAX_HEAD_VALUES or call.data:
        return {}, b""
    try:
        text = encode_sorted(call.args)
    except ValueError:  # a number is too large for JSON
        return {}, b""
    fields = {name: value for name, value in vars(call).items() if name not in ("args", "data")}
    head = {
        "fields": fields,
        "names": sorted(call.args),
        "digest": sha256(text.encode()).hexdigest(),
        "shown": format_call(call.target, call.args, request["max_shown_chars"]),
        "args_bytes": len(text),
    }
    return head, (text + json.dumps(text)).encode("ascii")


if __name__ == "__main__":
    serve_requests(read_call)
