"""Archives of skills, hostile ones included, and their signatures."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.skills.archives import (
    import_archive,
    pack_skill,
    unpack_archive,
)
from mcpruntime_server.capabilities.skills.model import RecordedCase, Skill
from mcpruntime_server.capabilities.skills.signing import (
    create_signature,
    describe_signature,
    has_valid_signature,
    load_or_create_key,
    public_key_hex,
)
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.errors import InvalidRequest, McpRuntimeError, SkillRefused, Unavailable

SOURCE = '"""Double."""\n\n\ndef run(n: int) -> int:\n    return n * 2\n'


def kept(store: SkillStore, source: str = SOURCE, name: str = "double") -> Skill:
    cases = (RecordedCase({"n": 2}),)
    return store.add_version(Skill(name, "Double a number.", source, cases, state="active"))


@pytest.fixture
def store(tmp_path: Path) -> SkillStore:
    (tmp_path / "mine").mkdir()
    return SkillStore(tmp_path / "mine")


@pytest.fixture
def other(tmp_path: Path) -> SkillStore:
    (tmp_path / "theirs").mkdir()
    return SkillStore(tmp_path / "theirs")


def archive_of(store: SkillStore, skill: Skill) -> bytes:
    return pack_skill(skill, store.read_files(skill))


def changed(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Return an archive with other files."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    return zipped(files)


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def test_exports_are_reproducible_and_imported_as_drafts(
    store: SkillStore, other: SkillStore
) -> None:
    skill = kept(store)
    data = archive_of(store, skill)
    assert data == archive_of(store, skill)
    taken, is_known = import_archive(other, data, ())
    assert (taken.state, taken.origin, taken.digest, is_known) == (
        "draft",
        "import",
        skill.digest,
        False,
    )
    assert taken.cases == skill.cases
    again, is_known = import_archive(other, data, ())
    assert (again.id, is_known) == (taken.id, True)
    assert import_archive(store, data, ())[1]  # where it came from


def test_importing_a_signed_copy_signs_the_unsigned_version(
    store: SkillStore, other: SkillStore, tmp_path: Path
) -> None:
    skill = kept(store)
    import_archive(other, archive_of(store, skill), ())
    key = load_or_create_key(tmp_path / "key")
    signed = store.set_signature(skill, create_signature(skill, key), public_key_hex(key))
    taken, is_known = import_archive(other, archive_of(store, signed), ())
    assert (is_known, describe_signature(taken, [public_key_hex(key)])) == (
        True,
        describe_signature(signed, [public_key_hex(key)]),
    )
    assert other.versions("double")[0].signer_key == public_key_hex(key)


def test_different_content_becomes_another_version(store: SkillStore, other: SkillStore) -> None:
    mine = kept(store)
    kept(other, SOURCE.replace("* 2", "* 3"))
    taken, _ = import_archive(other, archive_of(store, mine), ())
    assert taken.id == "double@2"
    assert other.versions("double")[0].state == "active"


HOSTILE: dict[str, Callable[[dict[str, bytes]], None]] = {
    "traversal": lambda files: files.update({"double/../../x": b""}),
    "absolute": lambda files: files.update({"/etc/cron.d/x": b""}),
    "backslashes": lambda files: files.update({"double\\..\\x": b""}),
    "another file": lambda files: files.update({"double/run.sh": b""}),
    "two folders": lambda files: files.update({"other/SKILL.md": b""}),
    "no folder": lambda files: files.update({"SKILL.md": b""}),
    "no code": lambda files: files.__delitem__("double/skill.py"),
    "no manifest": lambda files: files.__delitem__("double/skill.toml"),
    "other code": lambda files: files.update({"double/skill.py": b"import os\n"}),
    "a bomb": lambda files: files.update({"double/cases/0002.json": b"0" * 3_000_000}),
    "many files": lambda files: files.update(
        {f"double/cases/{n:04}.json": b"{}" for n in range(80)}
    ),
    "a dot": lambda files: files.update({"double/./SKILL.md": b""}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused_and_leave_no_files(
    store: SkillStore, other: SkillStore, change: Callable[[dict[str, bytes]], None]
) -> None:
    data = changed(archive_of(store, kept(store)), change)
    with pytest.raises(SkillRefused):
        import_archive(other, data, ())
    assert other.all_versions() == {}
    assert not (other.folder.parent / "x").exists()


def test_links_encrypted_files_and_damaged_archives_are_refused(store: SkillStore) -> None:
    data = archive_of(store, kept(store))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, content)
    with pytest.raises(SkillRefused, match="not a plain file"):
        unpack_archive(target.getvalue())
    flagged = bytearray(data)
    at = data.index(b"PK\x01\x02")
    flagged[at + 8] |= 1
    with pytest.raises(SkillRefused, match="encrypted"):
        unpack_archive(bytes(flagged))
    for broken in (b"", b"PK", data[:-40], data[: len(data) // 2], b"x" * 9_000_000):
        with pytest.raises(SkillRefused):
            unpack_archive(broken)


def test_no_single_changed_byte_imports_another_skill(store: SkillStore, other: SkillStore) -> None:
    skill = kept(store)
    data = archive_of(store, skill)
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        try:
            taken, _ = import_archive(other, bytes(damaged), ())
        except McpRuntimeError:
            continue
        assert taken.digest == skill.digest


@pytest.mark.parametrize(
    "source",
    [
        "def run(n: int) -> str:\n    return 'AKIAIOSFODNN7EXAMPLE' * n\n",
        "import os\n\n\ndef run(n: int) -> str:\n    return os.environ['HOME'] * n\n",
        "import numpy\n\n\ndef run(n: int) -> int:\n    return numpy.abs(n)\n",
        "print(1)\n\n\ndef run(n: int) -> int:\n    return n\n",
        (
            "from skills.double import run as other\n\n\ndef run(n: int) -> int:\n"
            "    return other(n)\n"
        ),
    ],
    ids=["a secret", "the environment", "a package that is not there", "work at import", "itself"],
)
def test_code_that_cannot_be_saved_is_not_imported(
    store: SkillStore, other: SkillStore, source: str
) -> None:
    with pytest.raises(SkillRefused):
        import_archive(other, archive_of(store, kept(store, source)), ())
    assert other.all_versions() == {}


# signatures ------------------------------------------------------------------------------------


def test_a_signature_is_exported_with_the_skill_and_names_the_signer(
    store: SkillStore, other: SkillStore, tmp_path: Path
) -> None:
    skill = kept(store)
    assert describe_signature(skill, ()) == "not signed"
    key = load_or_create_key(tmp_path / "key")
    signed = store.set_signature(skill, create_signature(skill, key), public_key_hex(key))
    taken, _ = import_archive(other, archive_of(store, signed), ())
    assert describe_signature(taken, ()).startswith("signed by a key that is not trusted")
    assert (
        describe_signature(taken, (public_key_hex(key),))
        == f"signed by a trusted key ({public_key_hex(key)[:16]})"
    )
    assert taken.state == "draft"


def test_a_signature_of_other_content_is_refused(
    store: SkillStore, other: SkillStore, tmp_path: Path
) -> None:
    key = load_or_create_key(tmp_path / "key")
    skill, evil = kept(store), kept(store, SOURCE.replace("* 2", "* 3"))
    signed = store.set_signature(evil, create_signature(skill, key), public_key_hex(key))
    assert describe_signature(signed, (public_key_hex(key),)) == "the signature is WRONG"
    with pytest.raises(SkillRefused, match="signature is wrong"):
        import_archive(other, archive_of(store, signed), ())
    for signature, signer in (
        ("00", public_key_hex(key)),
        ("zz", "zz"),
        (create_signature(skill, key), "00" * 32),
        ("", "x"),
    ):
        assert not has_valid_signature(replace(skill, signature_hex=signature, signer_key=signer))


def test_a_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    public = public_key_hex(load_or_create_key(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key_hex(load_or_create_key(path)) == public
    path.chmod(0o640)
    with pytest.raises(InvalidRequest, match="Others may read"):
        load_or_create_key(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(InvalidRequest, match="is not a key"):
        load_or_create_key(path)
    with pytest.raises(Unavailable):
        load_or_create_key(tmp_path / "none" / "key")
