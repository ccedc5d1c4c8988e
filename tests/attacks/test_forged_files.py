"""What a damaged supervisor says about files is checked against the files that there were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.forged_messages import run_compromised
from tests.helpers.server_connection import ServerConnection

from .archives import check_export
from .bystander import observe

FORGED = {  # what is said to be removed, and what was
    "a removed file that never was": ("['never', 'removed']", ["-removed"]),
    "a removed file that is named often": ("['removed'] * 200_000", ["-removed"]),
    "many removed files that never were": ("[f'f{n}' for n in range(200_000)]", []),
}
WAIT = "import time; time.sleep(2)"


@pytest.mark.parametrize("attack", FORGED)
async def test_only_files_of_the_workspace_are_removed(
    server: ServerConnection, attack: str, tmp_path: Path
) -> None:
    code = "open('kept', 'w').write('kept')\nopen('removed', 'w').write('here')"
    assert (await server.run(code, attack)).files == ["kept", "removed"]
    claimed, removed = FORGED[attack]
    said = (
        f"head = {{'run_number': 3, 'changed': [], 'removed': {claimed}, 'skipped_count': 0}}\n"
        "say_outside(frame('FilesChanged', head))\ntime.sleep(4)\n"
        "say_outside(frame('FilesSaved', {'run_number': 3, 'unreadable': []}))"
    )
    async with observe(server):
        answer = await run_compromised(server, attack, said, WAIT)
        assert answer.status == "ok"
        assert len(answer.text) < 60_000
    await server.run("1", attack)
    shown = await server.replay("show", attack, step=3)
    assert shown.data.get("files", []) == removed
    await check_export(server, attack, tmp_path)
