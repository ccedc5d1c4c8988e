"""Archives of sessions as an attacker writes them: right in form, hostile in what they hold."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

Blobs = dict[str, bytes]
YEARS_S = 3e9  # a time limit that never ends


def build_blob(data: bytes) -> tuple[str, bytes]:
    """Return the digest and the content of a blob."""
    return sha256(data).hexdigest(), data


def build_event(sequence: int, kind: str, body: Any, **more: Any) -> dict[str, Any]:
    """Return an event of the only run of an archive."""
    return {
        "session": 0,
        "sequence": sequence,
        "run_id": "r_1",
        "recorded_at": 1.0,
        "kind": kind,
        "version": 1,
        "body": body,
        **more,
    }


def build_step(code: str, timeout_s: float = YEARS_S) -> list[dict[str, Any]]:
    """Return the events of a step that has finished, as its recording claims."""
    start = {
        "run_id": "r_1",
        "parent_id": None,
        "step": 1,
        "code": code,
        "name": "<step 1>",
        "timeout_s": timeout_s,
        "seed": "s",
    }
    return [build_event(1, "run_started", start), build_event(2, "run_finished", {"status": "ok"})]


def write_archive(path: Path, events: list[Any], blobs: Blobs | None = None) -> Path:
    """Write an archive of one session with one run, and return its path."""
    session = {"id": "s_1", "name": "strange", "created_at": 1.0, "origin": None}
    manifest = {
        "format": "mcpruntime-server session archive",
        "version": 1,
        "sessions": [session],
        "run_count": 1,
        "event_count": len(events),
        "skipped_blobs": [],
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", json.dumps(manifest))
        lines = [json.dumps(event) + "\n" for event in events]
        file.writestr("events.jsonl", "".join(lines))
        for digest, data in (blobs or {}).items():
            file.writestr(f"blobs/{digest}", data)
    return path
