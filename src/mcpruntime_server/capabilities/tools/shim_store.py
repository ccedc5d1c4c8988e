"""The folder in which shims lie, readable and diffable, and beside them what was learned of results.

`<server>.py` is the shim as sandboxes last got it; `<server>.observed.json` maps a tool's own name to the schema of
what it has answered. Both are made anew from what upstreams say and do; nothing reads a shim back.

Rule: the disk may be full, read-only or somebody else's. What cannot be kept there works without.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic_files import write_atomically
from .observed_shapes import MAX_RESULTS, Shape, infer_shape, merge_shapes

OBSERVED_SUFFIX = ".observed.json"
SHAPE_KEYWORDS = frozenset({"type", "items", "properties", "required", "additionalProperties"})
MAX_FILE_BYTES = 4 * 1024 * 1024  # bytes; a larger one is not ours


class ShimStore:
    """Shims and observations on disk; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._shapes: dict[str, dict[str, Shape]] = {}
        self._revisions: dict[str, int] = {}
        self._observed_counts: dict[tuple[str, str], int] = {}
        self._unsaved_servers: set[str] = set()

    def load_observed(self) -> None:
        """Read what was learned before; a file that is not as it should be counts as nothing learned."""
        for path in sorted(self._folder.glob(f"*{OBSERVED_SUFFIX}")):
            with suppress(OSError, ValueError, RecursionError):
                found = (
                    json.loads(path.read_text()) if path.stat().st_size <= MAX_FILE_BYTES else None
                )
                if isinstance(found, dict):
                    shapes = {tool: shape for tool, shape in found.items() if is_shape(shape)}
                    self._shapes[path.name.removesuffix(OBSERVED_SUFFIX)] = shapes

    def save_shim(self, server: str, source: str) -> None:
        """Keep the shim of `server`."""
        with suppress(OSError):
            write_atomically(self._folder / f"{server}.py", source.encode())

    def observed_shapes(self, server: str) -> dict[str, Shape]:
        """Return what was learned of the tools of `server`."""
        with self._lock:
            return dict(self._shapes.get(server, {}))

    def shapes_revision(self, server: str) -> int:
        """Return a number that grows when something new is learned of `server`."""
        return self._revisions.get(server, 0)

    def observe_result(self, server: str, tool: str, value: Any) -> bool:
        """Look at a result; return whether it showed something new. Only the first results of a tool are looked at."""
        looked = self._observed_counts.get((server, tool), 0)
        if looked >= MAX_RESULTS:
            return False
        self._observed_counts[server, tool] = looked + 1
        with self._lock:
            known = self._shapes.setdefault(server, {})
            found = merge_shapes(known.get(tool, {}), infer_shape(value))
            if found == known.get(tool, {}):
                return False
            known[tool] = found
            self._revisions[server] = self.shapes_revision(server) + 1
            self._unsaved_servers.add(server)
        return True

    def save_observed(self) -> None:
        """Write down what was learned since the last time."""
        with self._lock:
            texts = {
                name: json.dumps(self._shapes[name], indent=1, sort_keys=True)
                for name in self._unsaved_servers
            }
            self._unsaved_servers.clear()
        for name, text in texts.items():
            with suppress(OSError):
                write_atomically(self._folder / f"{name}{OBSERVED_SUFFIX}", f"{text}\n".encode())


def is_shape(value: Any) -> bool:
    """Return whether `value` is a schema such as `observed` makes."""
    if not isinstance(value, dict) or not value.keys() <= SHAPE_KEYWORDS:
        return False
    kinds, properties = value.get("type", []), value.get("properties", {})
    if (
        not isinstance(kinds, list)
        or not isinstance(properties, dict)
        or bool(kinds) != bool(value)
    ):
        return False
    parts = [
        *properties.values(),
        *(value[key] for key in ("items", "additionalProperties") if key in value),
    ]
    return all(isinstance(kind, str) for kind in kinds) and all(map(is_shape, parts))
