"""The folder of generated shims and of observed result shapes, both readable and diffable.

`<server>.py` is the shim that sandboxes got last. `<server>.observed.json` maps a tool's own name
to the schema of its results so far. Shims are generated from the upstreams and never read back.

Rule: the disk may be full or read-only. Everything works without what cannot be stored.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic_files import write_atomically
from .observed_shapes import MAX_RESULTS, LargeValue, Shape, infer_shape, merge_shapes

OBSERVED_SUFFIX = ".observed.json"
SHAPE_KEYWORDS = frozenset({"type", "items", "properties", "required", "additionalProperties"})
MAX_FILE_BYTES = 4 * 1024 * 1024  # of observed shapes; a larger file was not written here


class ShimStore:
    """Shims and observed shapes on disk; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._shapes: dict[str, dict[str, Shape]] = {}
        self._revisions: dict[str, int] = {}
        self._observed_counts: dict[tuple[str, str], int] = {}
        self._unsaved_servers: set[str] = set()

    @property
    def folder(self) -> Path:
        """Where the shims are."""
        return self._folder

    def load_observed(self) -> None:
        """Read the observed shapes; an invalid file is ignored."""
        for path in sorted(self._folder.glob(f"*{OBSERVED_SUFFIX}")):
            with suppress(OSError, ValueError, RecursionError):
                found = (
                    json.loads(path.read_text()) if path.stat().st_size <= MAX_FILE_BYTES else None
                )
                if isinstance(found, dict):
                    shapes = {tool: shape for tool, shape in found.items() if is_shape(shape)}
                    self._shapes[path.name.removesuffix(OBSERVED_SUFFIX)] = shapes

    def save_shim(self, server: str, source: str) -> None:
        """Store the shim of `server`."""
        with suppress(OSError):
            write_atomically(self._folder / f"{server}.py", source.encode())

    def observed_shapes(self, server: str) -> dict[str, Shape]:
        """Return the observed shapes of the tools of `server`."""
        with self._lock:
            return dict(self._shapes.get(server, {}))

    def shapes_revision(self, server: str) -> int:
        """Return a number that grows whenever an observed shape of `server` changes."""
        return self._revisions.get(server, 0)

    def observe_result(self, server: str, tool: str, value: Any) -> bool:
        """Merge the shape of a result; return whether that changed anything.

        Only the first results of a tool are observed.
        """
        looked = self._observed_counts.get((server, tool), 0)
        if looked >= MAX_RESULTS:
            return False
        self._observed_counts[server, tool] = looked + 1
        with self._lock:
            known = self._shapes.setdefault(server, {})
            shape = value.shape if isinstance(value, LargeValue) else infer_shape(value)
            found = merge_shapes(known.get(tool, {}), shape)
            if found == known.get(tool, {}):
                return False
            known[tool] = found
            self._revisions[server] = self.shapes_revision(server) + 1
            self._unsaved_servers.add(server)
        return True

    def save_observed(self) -> None:
        """Write the shapes that changed since the last call."""
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
    """Return whether `value` is a schema as `observed_shapes` infers it."""
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
