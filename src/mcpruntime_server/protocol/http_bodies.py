"""Bodies of HTTP messages as JSON, in both directions. Standard library only, Python >= 3.9."""

from __future__ import annotations

import base64

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping


def encode_body(data: bytes) -> Dict[str, str]:
    """Return bytes as JSON: text if they are UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def decode_body(body: Mapping[str, Any]) -> bytes:
    """Return the bytes that JSON stands for; raises `ValueError` for invalid base64."""
    if "text" in body:
        return str(body["text"]).encode("utf-8")
    return base64.b64decode(body.get("base64") or "")
