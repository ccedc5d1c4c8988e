"""Whether a session that was attacked can still be exported, and imported elsewhere."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from tests.helpers.commands import run_command
from tests.helpers.server_connection import ServerConnection, write_settings


async def check_export(server: ServerConnection, session: str, folder: Path) -> None:
    """Assert that an archive of `session` is taken by another server; files go to `folder`."""
    here, there = server.data_dir.parent / "server.toml", write_settings(folder / "there")
    archive = folder / "session.zip"
    for words in (
        (here, "replay", "export", session, archive),
        (there, "replay", "import", archive),
        (there, "replay", "show", session),
    ):
        done = await to_thread.run_sync(run_command, "--config", *words)
        assert done.returncode == 0, done.stderr
