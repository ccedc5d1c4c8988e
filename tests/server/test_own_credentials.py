"""Over stdio, the local user has credentials of its own, with a key from the environment."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from mcpruntime_server.capabilities.credential_keys import create_key, load_keys
from mcpruntime_server.capabilities.credential_store import CredentialStore
from mcpruntime_server.config import CredentialSettings, SecretText

from ..helpers.server_connection import connect_server, write_settings
from .conftest import upstream_entry

CALL = "from tools.keyed import whoami, tell\nwhoami()"


async def test_the_local_user_has_a_connection_of_its_own(tmp_path: Path) -> None:
    keyed = upstream_entry("keyed", env={"TOKEN": "${credential}"}, credentials="per-principal")
    settings = write_settings(
        tmp_path, mcpServers={"keyed": keyed}, sandbox={"backend": "local", "pool_size": 0}
    )
    key = create_key()
    async with connect_server(settings, {"MCPRUNTIME_CREDENTIALS_KEY": key}) as server:
        missing = await server.run(CALL)
        assert "credentials set keyed --principal local" in missing.text
        assert "stores it at" not in missing.text  # there is no page
        keys = load_keys(CredentialSettings(keys=SecretText(key)), tmp_path / "data")
        store = CredentialStore(tmp_path / "data")
        for secret in ("secret-of-mine-1", "secret-of-mine-2"):
            store.set_credential(("keyed", "local", "default"), secret, keys)
            found = await server.evaluate(CALL)
            assert found["digest"] == sha256(secret.encode()).hexdigest()[:12]
        text = (await server.run("import os\n[dict(os.environ), tell()]")).text
        assert "TOKEN" in text
        assert key not in text
        assert "secret-of-mine" not in text
