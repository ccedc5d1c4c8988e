"""Bodies of HTTP messages as JSON, in both directions. Standard library only, Python >= 3.9.

A large one is named by its digest instead; its bytes are beside the message.
"""

from __future__ import annotations

import base64

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping


BLOB_KEY = "blob"  # with the digest of a body whose bytes are beside the message


def encode_body(data: bytes) -> Dict[str, str]:
    """Return bytes as JSON: text if they are UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def decode_body(body: Mapping[str, Any], data: bytes = b"") -> bytes:
    """Return the bytes that JSON stands for, or `data`; raises `ValueError` for invalid base64."""
    if BLOB_KEY in body:
        return data
    if "text" in body:
        return str(body["text"]).encode("utf-8")
    return base64.b64decode(body.get("base64") or "")
