"""The command `skills`, on a store that a real server filled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cli.conftest import lively_entry
from tests.helpers.commands import run_command
from tests.helpers.server_connection import connect_server, write_settings

CODE = """\
from tools.lively import echo
text = 'WORD'
said = echo(text=text)
[text.upper(), len(str(said)) > 0]
"""
DRAFT = "def run(a: int) -> int:\n    return a\n"


def write_skill_settings(folder: Path, **sections: Any) -> Path:
    sandbox = {"backend": "local", "pool_size": 0}
    return write_settings(
        folder, sandbox=sandbox, mcpServers={"lively": lively_entry()}, **sections
    )


async def save_skills(settings: Path) -> None:
    async with connect_server(settings) as server:
        for word in ("one", "two"):
            run = await server.run(CODE.replace("WORD", word), session=word)
            saved = await server.client.call_tool("save_skill", {"run": run.run, "name": "shout"})
            assert (saved.structured_content or {})["state"] == "active", saved
        await server.client.call_tool("save_skill", {"code": DRAFT, "name": "later"})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of `shout`, the second one in use, and the draft `later`."""
    folder = tmp_path_factory.mktemp("skills")
    anyio.run(save_skills, write_skill_settings(folder))
    return folder / "skills_store"


@pytest.fixture
def settings(template: Path, tmp_path: Path) -> Path:
    """Settings with a copy of that store."""
    shutil.copytree(template, tmp_path / "skills_store")
    return write_skill_settings(tmp_path)


def test_skills_are_listed_shown_compared_checked_and_retired(settings: Path) -> None:
    listed = run_command("--config", settings, "skills")
    assert "shout@2(text: str = 'one')" in listed.stdout
    assert "1 in use, drafts: 1;" in listed.stdout
    everything = json.loads(
        run_command("--config", settings, "skills", "list", "--all", "--json").stdout
    )
    assert [(each["name"], each["version"], each["state"]) for each in everything] == [
        ("later", 1, "draft"), ("shout", 1, "active"), ("shout", 2, "active")
    ]  # fmt: skip
    shown = run_command("--config", settings, "skills", "show", "later")
    assert "It has no recorded case" in shown.stdout
    assert "def run(a: int)" in shown.stdout
    assert run_command("--config", settings, "skills", "diff", "shout@1", "shout@2").returncode == 0
    assert (
        "-    return a"
        in run_command("--config", settings, "skills", "diff", "later@1", "shout@2").stdout
    )
    checked = run_command("--config", settings, "skills", "check")
    assert (checked.returncode, checked.stdout) == (0, "shout@2 is in use.\n")
    promoted = run_command("--config", settings, "skills", "promote", "later")
    assert promoted.returncode == 1
    assert "later@1 is a draft.\n    It has no recorded case" in promoted.stdout
    retired = run_command("--config", settings, "skills", "retire", "shout@2").stdout
    assert retired.endswith("still imports it.\nshout@1 is in use now.\n")
    assert "shout@1" in run_command("--config", settings, "skills").stdout
    refused = run_command("--config", settings, "skills", "promote", "shout")
    assert (refused.returncode, "is in use already" in refused.stderr) == (2, True)


def test_a_retired_version_stays_retired_until_it_is_promoted(settings: Path) -> None:
    run_command("--config", settings, "skills", "retire", "shout@2")
    checked = run_command("--config", settings, "skills", "check", "shout@2")
    assert (checked.returncode, checked.stdout.splitlines()[0]) == (1, "shout@2 is retired.")
    assert "Retired by hand." in checked.stdout
    promoted = run_command("--config", settings, "skills", "promote", "shout@2")
    assert (promoted.returncode, promoted.stdout) == (0, "shout@2 is in use.\n")
    assert "shout@2(" in run_command("--config", settings, "skills").stdout


def test_a_quarantined_skill_that_passes_is_in_use_again(settings: Path) -> None:
    manifest = settings.parent / "skills_store" / "shout" / "versions" / "2" / "skill.toml"
    text = manifest.read_text().replace('state = "active"', 'state = "quarantined"')
    digest = next(line for line in text.splitlines() if line.startswith('"lively.echo"')).split(
        '"'
    )[3]
    manifest.write_text(text.replace(digest, "sha256:" + "0" * 64))
    checked = run_command("--config", settings, "skills", "check", "shout@2", "--json")
    assert [each["state"] for each in json.loads(checked.stdout)] == ["active"]
    assert digest in manifest.read_text()


def test_an_empty_store_is_listed_and_unknown_names_are_refused(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"backend": "local"})
    assert "0 in use, drafts: 0;" in run_command("--config", settings, "skills").stdout
    for words in (
        ["show", "nope"],
        ["check", "nope"],
        ["retire", "../x"],
        ["diff", "a@1", "b@2"],
        ["promote", "a@x"],
    ):
        refused = run_command("--config", settings, "skills", *words)
        assert refused.returncode == 2, words
        assert refused.stderr.startswith("mcpruntime-server: "), words


def test_a_skill_is_signed_exported_imported_and_checked(settings: Path, tmp_path: Path) -> None:
    archive, key = tmp_path / "shout.zip", tmp_path / "key"
    signed = run_command("--config", settings, "skills", "sign", "shout", "--key", key)
    public = signed.stdout.split()[-1]
    assert (
        "signed by a key that is not trusted"
        in run_command("--config", settings, "skills", "show", "shout").stdout
    )
    assert run_command("--config", settings, "skills", "export", "shout", archive).returncode == 0
    again = run_command("--config", settings, "skills", "export", "shout@1", archive)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    there = write_skill_settings(tmp_path / "there", skills={"trusted_keys": [public]})
    left = run_command("--config", there, "skills", "import", archive, "--no-check")
    assert (left.returncode, left.stdout) == (
        0,
        f"shout@1: imported, signed by a trusted key ({public[:16]}).\nshout@1 is a draft.\n",
    )
    checked = run_command("--config", there, "skills", "import", archive)
    assert (checked.returncode, "here already" in checked.stdout) == (0, True)
    assert checked.stdout.endswith("shout@1 is in use.\n")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    refusals: tuple[tuple[str | Path, ...], ...] = (
        ("import", tmp_path / "bad.zip"),
        ("import", tmp_path / "none.zip"),
        ("export", "nope", archive),
    )
    for words in refusals:
        refused = run_command("--config", there, "skills", *words)
        assert refused.returncode != 0
        assert refused.stderr
