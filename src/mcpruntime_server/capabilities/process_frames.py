"""The frames that the server and its helper processes exchange.

A frame is `length of the head (4 bytes, big endian) | length of the body | head (JSON) | body`.
"""

from __future__ import annotations

import json
import struct
from typing import Any

PREFIX = struct.Struct(">II")
MAX_HEAD_BYTES = 4 * 1024 * 1024  # with the schema of a tool


def encode_frame(head: Any, body_bytes: int) -> bytes:
    """Return the beginning of a frame, which its body follows."""
    encoded = json.dumps(head).encode()
    return PREFIX.pack(len(encoded), body_bytes) + encoded
