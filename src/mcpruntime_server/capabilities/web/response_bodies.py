"""How the bodies of answers are recorded: small ones in the answer, others as blobs.

What code gets is the same in both cases: the bytes of a blob follow the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...journal.call_scope import Download, current_call_scope
from ...journal.store import Journal
from ...protocol.http_bodies import BLOB_KEY, encode_body
from ...protocol.payloads import JsonObject

MAX_INLINE_BYTES = 8 * 1024


async def record_body(journal: Journal, answer: JsonObject, data: bytes) -> JsonObject | Download:
    """Return an answer with a body, which is stored if it is large.

    Raises `JournalLimitReached`.
    """
    if len(data) <= MAX_INLINE_BYTES:
        return {**answer, "body": encode_body(data)}
    current_call_scope().count_download(len(data))
    digest = await journal.put_blob(data)
    return Download({**answer, "body": {BLOB_KEY: digest}}, data)


def list_body_blobs(answer: Any) -> list[str]:
    """Return the blob of an answer's body, if it has one."""
    body = answer.get("body") if isinstance(answer, Mapping) else None
    digest = body.get(BLOB_KEY) if isinstance(body, Mapping) else None
    return [digest] if isinstance(digest, str) else []


async def load_body(journal: Journal, answer: Any) -> bytes:
    """Return the bytes that follow a recorded answer."""
    return b"".join([await journal.get_blob(digest) for digest in list_body_blobs(answer)])
