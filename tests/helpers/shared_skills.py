"""What tests about skills need to share a server: sessions of their own, and an empty store."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from .server_connection import ServerConnection, ToolAnswer


class OwnSessions(ServerConnection):
    """A shared server, with sessions that only the test of this name uses."""

    def __init__(self, shared: ServerConnection, test_name: str) -> None:
        super().__init__(shared.client, shared.data_dir)
        self._prefix = f"{sha256(test_name.encode('utf-8', 'replace')).hexdigest()[:8]}-"

    async def run(self, code: str, session: str | None = None, **more: Any) -> ToolAnswer:
        return await super().run(code, self._prefix + (session or "main"), **more)

    async def replay(self, action: str, session: str | None = None, **more: Any) -> ToolAnswer:
        return await super().replay(action, self._prefix + (session or "main"), **more)


def remove_skills(store: Path) -> None:
    """Remove all skills of the local user from a store that a server uses."""
    for path in store.glob("[a-z]*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
