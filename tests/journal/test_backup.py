"""Backups of a data folder that a server is using, and what is restored from them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.capabilities.credential_keys import CredentialKeys
from mcpruntime_server.capabilities.credential_store import CredentialStore

from ..helpers.commands import run_command
from ..helpers.http_service import open_http_service
from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    connect_server,
    parse_answer,
    write_settings,
)
from ..server.conftest import upstream_entry

LOCAL = {"backend": "local", "pool_size": 0}
BIG_TEXT = "x" * 300_000  # more than an event holds: it is in a blob
SAVE = "def double(n: int) -> int:\n    return 2 * n\nassert double(21) == 42\ndouble(21)"


def settings_in(folder: Path, **sections: object) -> Path:
    return write_settings(
        folder, sandbox=LOCAL, skills={"folder": str(folder / "skills")}, **sections
    )


async def test_a_backup_of_a_working_server_restores_sessions_files_skills_and_tokens(
    tmp_path: Path,
) -> None:
    old = settings_in(tmp_path / "old")
    # the skills of the new server are in its data folder
    inside = {"folder": str(tmp_path / "new" / "data" / "skills_store")}
    new = write_settings(tmp_path / "new", sandbox=LOCAL, skills=inside)
    backup = tmp_path / "backup.tar.gz"
    async with open_http_service(old) as service:
        token = service.create_token("ann")
        async with service.connect(token) as client, anyio.create_task_group() as tasks:
            code = f"text = {BIG_TEXT!r}\nopen('notes.txt', 'w').write(text)\nlen(text)"
            assert (await client.run(code, "work")).status == "ok"
            saved = await client.run(SAVE, "skill")
            arguments = {"run": saved.run, "name": "double", "description": "Double a number."}
            skill = parse_answer(await client.client.call_tool("save_skill", arguments))
            assert not skill.is_error, skill.text

            async def keep_writing() -> None:
                while True:
                    await client.run(f"y = {BIG_TEXT!r}", "other")

            tasks.start_soon(keep_writing)
            for number in range(3):  # each while events and blobs are being written
                done = await anyio.to_thread.run_sync(
                    run_command, "--config", old, "backup", f"{tmp_path}/{number}.tar"
                )
                assert done.returncode == 0, done.stderr
            done = await anyio.to_thread.run_sync(
                run_command, "--config", old, "backup", str(backup)
            )
            assert done.returncode == 0, done.stderr
            tasks.cancel_scope.cancel()

    done = run_command("--config", new, "restore", backup)
    assert done.returncode == 0, done.stderr
    async with open_http_service(new) as service, service.connect(token) as client:
        assert await client.evaluate("len(text), open('notes.txt').read() == text", "work") == [
            len(BIG_TEXT),
            True,
        ]
        found = await client.evaluate("from skills import double\ndouble.run(n=4)", "x")
        assert found == 8


def test_credentials_are_restored_encrypted(tmp_path: Path, backup: Path) -> None:
    secret, keys = "s3cret-of-ann", CredentialKeys([b"k" * 32])
    CredentialStore(backup.parent / "data").set_credential(("mail", "ann", "key"), secret, keys)
    file, new = tmp_path / "with.tar", settings_in(tmp_path / "new")
    settings = backup.parent / "server.toml"
    assert run_command("--config", settings, "backup", file).returncode == 0
    assert secret.encode() not in file.read_bytes()
    assert run_command("--config", new, "restore", file).returncode == 0
    [found] = CredentialStore(tmp_path / "new" / "data").find_credentials("mail", "ann")
    assert found.decrypt(keys) == secret


async def test_a_restored_run_that_had_not_ended_does_not_continue(tmp_path: Path) -> None:
    done_file = tmp_path / "done"
    upstreams = {"counted": upstream_entry("counted", str(done_file))}
    old = settings_in(tmp_path / "old", mcpServers=upstreams)
    new = settings_in(tmp_path / "new", mcpServers=upstreams)
    backup = tmp_path / "backup.tar"
    code = "from tools import counted\ncounted.add('once')\nwhile True: pass"
    async with connect_server(old) as client, anyio.create_task_group() as tasks:
        assert await client.evaluate("x = 1\nx", "work") == 1
        tasks.start_soon(client.run, code, "work")
        with anyio.fail_after(TEST_TIMEOUT_S):
            while not done_file.exists():  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(0.05)
            done = await anyio.to_thread.run_sync(
                run_command, "--config", old, "backup", str(backup)
            )
        assert done.returncode == 0, done.stderr
        tasks.cancel_scope.cancel()
    done = run_command("--config", new, "restore", backup)
    assert "1 run had not ended and will not continue" in done.stderr
    async with connect_server(new) as client:
        assert await client.evaluate("x + 1", "work") == 2
        listed = await client.replay("list", "work")
    assert "crashed" in listed.text
    assert done_file.read_text().splitlines() == ["add once"]


# what is refused ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backup")
    settings = settings_in(folder)

    async def fill() -> None:
        async with connect_server(settings) as client:
            await client.evaluate(f"x = {BIG_TEXT!r}\n1", "work")

    anyio.run(fill)
    done = run_command("--config", settings, "backup", folder / "backup.tar")
    assert done.returncode == 0, done.stderr
    return folder / "backup.tar"


def restore(folder: Path, file: Path) -> str:
    """Restore into a new folder, which must fail and leave nothing; return the message."""
    done = run_command("--config", settings_in(folder), "restore", file)
    assert done.returncode == 2, done.stderr
    assert list((folder / "data").glob("*")) == []
    assert list((folder / "data").glob(".*")) == []
    return done.stderr


def test_only_what_lasts_is_in_a_backup(backup: Path) -> None:
    with tarfile.open(backup) as tar:
        names = tar.getnames()
        assert all(entry.isreg() and entry.mode == 0o600 for entry in tar)
    assert names[0] == "mcpruntime-backup.json"
    assert "data/journal.db" in names
    assert any(name.startswith("data/blobs/") for name in names)
    assert {name.partition("/")[0] for name in names[1:]} == {"data"}  # there are no skills
    assert not any("servers" in name or "logs" in name or "-wal" in name for name in names)


def test_nothing_is_restored_into_a_folder_that_is_in_use(backup: Path) -> None:
    done = run_command("--config", backup.parent / "server.toml", "restore", backup)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_a_backup_that_ends_early_is_refused(tmp_path: Path, backup: Path) -> None:
    short = tmp_path / "short.tar"
    short.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    assert "damaged" in restore(tmp_path / "new", short)


def test_a_changed_blob_is_refused(tmp_path: Path, backup: Path) -> None:
    changed = tmp_path / "changed.tar"
    changed.write_bytes(backup.read_bytes().replace(b"xxxx", b"yyyy"))
    assert "not what it was" in restore(tmp_path / "new", changed)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(b"no archive")
    assert "damaged" in restore(tmp_path / "a", other)
    with tarfile.open(other, "w") as tar:
        tar.add(__file__, "x")
    assert "not a backup" in restore(tmp_path / "b", other)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data/../../escaped", tarfile.REGTYPE),
        ("/escaped", tarfile.REGTYPE),
        ("data/link", tarfile.SYMTYPE),
        ("data/link", tarfile.LNKTYPE),
        ("data/pipe", tarfile.FIFOTYPE),
        ("elsewhere/file", tarfile.REGTYPE),
    ],
)
def test_hostile_entries_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    file = tmp_path / "hostile.tar"
    manifest = json.dumps({"format": 1}).encode()
    with tarfile.open(file, "w") as tar:
        for entry_name, entry_kind in (("mcpruntime-backup.json", tarfile.REGTYPE), (name, kind)):
            entry = tarfile.TarInfo(entry_name)
            entry.type, entry.linkname = entry_kind, "/etc/passwd"
            entry.size = len(manifest) if entry_kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(manifest))
    assert "does not belong" in restore(tmp_path / "new", file)
    assert not (tmp_path / "escaped").exists()


def test_a_backup_replaces_nothing_unasked_and_can_be_a_stream(
    tmp_path: Path, backup: Path
) -> None:
    settings = backup.parent / "server.toml"
    before = backup.read_bytes()
    assert run_command("--config", settings, "backup", backup).returncode == 2
    assert backup.read_bytes() == before
    assert run_command("--config", settings, "backup", backup, "--force").returncode == 0
    empty = settings_in(tmp_path / "empty")
    assert "no journal" in run_command("--config", empty, "backup", tmp_path / "x").stderr
    assert list(tmp_path.glob("*x*")) == []
