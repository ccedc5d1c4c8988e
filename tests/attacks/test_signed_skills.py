"""Nobody replaces a signed skill without its key, a trusted key, or a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mcpruntime_server.capabilities.skills.archives import import_archive, pack_skill
from mcpruntime_server.capabilities.skills.model import (
    RecordedCase,
    Skill,
    SkillState,
    active_skills,
)
from mcpruntime_server.capabilities.skills.signing import create_signature, public_key_hex
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.capabilities.skills.version_files import (
    compute_content_digest,
    render_version_files,
)
from tests.helpers.commands import run_command
from tests.helpers.server_connection import connect_server, write_settings

NAME = "greet_all"
OWNER, TRUSTED, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))


def make(text: str) -> Skill:
    source = f'def run(city: str = "Oslo") -> str:\n    """Greet."""\n    return city + "{text}"\n'
    return Skill(NAME, "Greet.", source, (RecordedCase({"city": "x"}),))


def add(
    store: SkillStore,
    text: str,
    key: Ed25519PrivateKey | None = None,
    state: SkillState = "active",
    **forged: str,
) -> Skill:
    """Add a version in a state, signed with a key."""
    skill = replace(make(text), state=state, **forged)  # type: ignore[arg-type]
    if key is not None:
        skill = replace(skill, digest=compute_content_digest(render_version_files(skill)))
        signed = create_signature(skill, key)
        skill = replace(skill, signature_hex=signed, signer_key=public_key_hex(key))
    return store.add_version(skill)


@pytest.fixture
def store(tmp_path: Path) -> SkillStore:
    """A skill whose second version is signed and in use."""
    store = SkillStore(tmp_path / "skills", (public_key_hex(TRUSTED),))
    add(store, "plain")
    add(store, "signed", OWNER)
    assert in_use(store) == 2
    return store


def in_use(store: SkillStore) -> int:
    """Return the version that code gets by name, 0 if there is none."""
    skill = active_skills(store.all_versions()).get(NAME)
    return skill.version if skill else 0


def add_unsigned(store: SkillStore) -> None:
    add(store, "mine")


def add_signed_by_a_stranger(store: SkillStore) -> None:
    add(store, "mine", STRANGER)


def add_with_the_signature_of_another_version(store: SkillStore) -> None:
    signed = store.versions(NAME)[1]
    add(store, "mine", signature_hex=signed.signature_hex, signer_key=signed.signer_key)


def add_with_a_forged_signature(store: SkillStore) -> None:
    add(store, "mine", signature_hex="00" * 64, signer_key=public_key_hex(TRUSTED))


def promote_a_draft(store: SkillStore) -> None:
    store.record_event(add(store, "mine", state="draft"), "promoted")


def promote_the_version_before(store: SkillStore) -> None:
    store.record_event(store.versions(NAME)[0], "promoted")


def retire_the_signed_version(store: SkillStore) -> None:
    store.record_event(store.versions(NAME)[1], "retired", ("It failed.",))


def quarantine_the_signed_version(store: SkillStore) -> None:
    store.record_event(store.versions(NAME)[1], "tool_changed", ("A tool has changed.",))


def retire_it_and_add(store: SkillStore) -> None:
    retire_the_signed_version(store)
    add(store, "mine")


def retire_it_and_promote_the_version_before(store: SkillStore) -> None:
    retire_the_signed_version(store)
    promote_the_version_before(store)


def edit_the_folder(store: SkillStore) -> None:
    (store.folder / "greet-all" / "skill.py").write_text(make("mine").source)
    store.record_event(store.all_versions()[NAME][-1], "promoted")


def import_it_unsigned(store: SkillStore) -> None:
    theirs = SkillStore(store.folder.parent / "theirs")
    skill = add(theirs, "mine")
    imported, _ = import_archive(store, pack_skill(skill, theirs.read_files(skill)), ())
    store.record_event(imported, "promoted")


def import_it_signed_by_a_stranger(store: SkillStore) -> None:
    theirs = SkillStore(store.folder.parent / "theirs")
    skill = add(theirs, "mine", STRANGER)
    imported, _ = import_archive(store, pack_skill(skill, theirs.read_files(skill)), ())
    store.record_event(imported, "promoted")


def sign_a_retired_draft(store: SkillStore) -> None:
    store.record_event(add(store, "mine", STRANGER, state="draft"), "retired", ("By hand.",))
    add(store, "mine too", STRANGER)


REPLACEMENTS: list[Callable[[SkillStore], None]] = [
    add_unsigned,
    add_signed_by_a_stranger,
    add_with_the_signature_of_another_version,
    add_with_a_forged_signature,
    promote_a_draft,
    promote_the_version_before,
    retire_the_signed_version,
    quarantine_the_signed_version,
    retire_it_and_add,
    retire_it_and_promote_the_version_before,
    edit_the_folder,
    import_it_unsigned,
    import_it_signed_by_a_stranger,
    sign_a_retired_draft,
]


@pytest.mark.parametrize("attack", REPLACEMENTS)
def test_a_signed_skill_is_not_replaced(
    store: SkillStore, attack: Callable[[SkillStore], None]
) -> None:
    attack(store)
    assert in_use(store) in (0, 2)
    held = store.all_versions()[NAME][-1]
    if held.version > 2 and held.state == "draft":
        assert held.reasons[0].endswith(f"promote {held.id} --replace-signed`.")


@pytest.mark.parametrize("key", [OWNER, TRUSTED])
def test_a_version_with_the_same_or_a_trusted_key_replaces_it(
    store: SkillStore, key: Ed25519PrivateKey
) -> None:
    add(store, "next", key)
    assert in_use(store) == 3


def test_a_person_may_replace_it_and_then_others_may(store: SkillStore) -> None:
    draft = add(store, "mine", state="draft")
    store.record_event(draft, "promoted", replaces_signed=True)
    assert in_use(store) == 3
    add(store, "more")
    assert in_use(store) == 4


def test_an_unsigned_skill_cannot_be_taken_over_with_a_signature(tmp_path: Path) -> None:
    """A stranger who signs what is in use would decide what may replace it."""
    store = SkillStore(tmp_path / "mine")
    skill = add(store, "plain")
    theirs = SkillStore(tmp_path / "theirs")
    signed = add(theirs, "plain", STRANGER)
    assert signed.digest == skill.digest
    import_archive(store, pack_skill(signed, theirs.read_files(signed)), ())
    store.record_event(add(store, "drafted", STRANGER, state="draft"), "retired", ("By hand.",))
    add(store, "next")
    assert in_use(store) == 3


CODE = "text = 'WORD'\n[text.upper(), len(text)]"


def test_a_model_is_told_why_its_version_waits_and_a_person_decides(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"backend": "local", "pool_size": 0})

    async def save(code: str) -> str:
        async with connect_server(settings) as server:
            run = await server.run(code)
            arguments = {"run": run.run, "name": "shout"}
            saved = await server.client.call_tool("save_skill", arguments)
            return str(getattr(saved.content[0], "text", ""))

    def skills(*words: str | Path) -> str:
        return run_command("--config", settings, "skills", *words).stdout

    assert anyio.run(save, CODE).startswith("shout@1 is in use.")
    skills("sign", "shout", "--key", tmp_path / "key")
    told = anyio.run(save, CODE.replace("len(text)", "len(text) * 2"))
    promote = "`mcpruntime-server skills promote shout@2 --replace-signed`"
    reason = (
        "shout@1 is signed and this version is not, so it is not put in use. "
        f"A person can do that: {promote}."
    )
    assert told.splitlines()[:2] == ["shout@2 is a draft.", reason]
    assert "from skills.shout.v2 import run  # it has passed its test" in told
    again = anyio.run(save, CODE.replace("len(text)", "len(text) * 2"))
    assert again.startswith("shout@2 is a draft already.")
    assert skills("promote", "shout@2") == f"shout@2 is a draft.\n    {reason}\n"
    assert skills("promote", "shout@2", "--replace-signed") == "shout@2 is in use.\n"
