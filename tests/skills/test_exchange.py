"""Skills on their way between stores: archives, hostile ones too, and signatures."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpruntime_server.errors import InvalidRequest, McpRuntimeError, SkillRefused, Unavailable
from mcpruntime_server.skills.exchange import packed, take_in, unpacked
from mcpruntime_server.skills.folder import Manifest, content_of
from mcpruntime_server.skills.lint import check_entry, parse
from mcpruntime_server.skills.model import Case, Skill
from mcpruntime_server.skills.signing import is_right, key_in, public_of, sign, standing
from mcpruntime_server.skills.store import Store

SOURCE = '"""Double."""\n\n\ndef run(n: int) -> int:\n    return n * 2\n'


def kept(store: Store, source: str = SOURCE, name: str = "double") -> Skill:
    content = content_of(name, "Double a number.", source, check_entry(parse(source)), (Case({"n": 2}),))
    return store.add(content, Manifest(name=name, version=0, state="active", summary="Double a number."))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "mine").mkdir()
    return Store(tmp_path / "mine")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    (tmp_path / "theirs").mkdir()
    return Store(tmp_path / "theirs")


def archive_of(store: Store, skill: Skill) -> bytes:
    return packed(skill, store.files(skill))


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


def test_what_is_exported_is_the_same_bytes_and_comes_in_as_a_draft(store: Store, other: Store) -> None:
    skill = kept(store)
    data = archive_of(store, skill)
    assert data == archive_of(store, skill)
    taken, is_known = take_in(other, data, ())
    assert (taken.state, taken.origin, taken.digest, is_known) == ("draft", "import", skill.digest, False)
    assert taken.cases == skill.cases
    again, is_known = take_in(other, data, ())
    assert (again.id, is_known) == (taken.id, True)
    assert take_in(store, data, ())[1]  # where it came from


def test_a_signature_is_taken_over_by_what_is_here_unsigned(store: Store, other: Store, tmp_path: Path) -> None:
    skill = kept(store)
    take_in(other, archive_of(store, skill), ())
    key = key_in(tmp_path / "key")
    signed = store.sign(skill, sign(skill, key), public_of(key))
    taken, is_known = take_in(other, archive_of(store, signed), ())
    assert (is_known, standing(taken, [public_of(key)])) == (True, standing(signed, [public_of(key)]))
    assert other.version("double", 1).signer == public_of(key)


def test_another_content_is_another_version(store: Store, other: Store) -> None:
    mine = kept(store)
    kept(other, SOURCE.replace("* 2", "* 3"))
    taken, _ = take_in(other, archive_of(store, mine), ())
    assert taken.id == "double@2"
    assert other.version("double", 1).state == "active"


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
    "many files": lambda files: files.update({f"double/cases/{n:04}.json": b"{}" for n in range(80)}),
    "a dot": lambda files: files.update({"double/./SKILL.md": b""}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused_and_leave_nothing(
    store: Store, other: Store, change: Callable[[dict[str, bytes]], None]
) -> None:
    data = changed(archive_of(store, kept(store)), change)
    with pytest.raises(SkillRefused):
        take_in(other, data, ())
    assert other.all() == {}
    assert not (other.folder.parent / "x").exists()


def test_links_and_encrypted_files_and_what_is_no_archive_are_refused(store: Store) -> None:
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
        unpacked(target.getvalue())
    flagged = bytearray(data)
    at = data.index(b"PK\x01\x02")
    flagged[at + 8] |= 1
    with pytest.raises(SkillRefused, match="encrypted"):
        unpacked(bytes(flagged))
    for broken in (b"", b"PK", data[:-40], data[: len(data) // 2], b"x" * 9_000_000):
        with pytest.raises(SkillRefused):
            unpacked(broken)


def test_no_single_changed_byte_gets_another_skill_in(store: Store, other: Store) -> None:
    skill = kept(store)
    data = archive_of(store, skill)
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        try:
            taken, _ = take_in(other, bytes(damaged), ())
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
        "from skills.double import run as other\n\n\ndef run(n: int) -> int:\n    return other(n)\n",
    ],
    ids=["a secret", "the environment", "a package that is not there", "work at import", "itself"],
)
def test_code_that_may_not_be_kept_does_not_come_in(store: Store, other: Store, source: str) -> None:
    with pytest.raises(SkillRefused):
        take_in(other, archive_of(store, kept(store, source)), ())
    assert other.all() == {}


# signatures --------------------------------------------------------------------------------------------------------


def test_a_signature_goes_with_the_skill_and_says_whose_it_is(store: Store, other: Store, tmp_path: Path) -> None:
    skill = kept(store)
    assert standing(skill, ()) == "not signed"
    key = key_in(tmp_path / "key")
    signed = store.sign(skill, sign(skill, key), public_of(key))
    taken, _ = take_in(other, archive_of(store, signed), ())
    assert standing(taken, ()).startswith("signed by a key that is not trusted")
    assert standing(taken, (public_of(key),)) == f"signed by a trusted key ({public_of(key)[:16]})"
    assert taken.state == "draft"


def test_a_signature_of_something_else_is_refused(store: Store, other: Store, tmp_path: Path) -> None:
    key = key_in(tmp_path / "key")
    skill, evil = kept(store), kept(store, SOURCE.replace("* 2", "* 3"))
    signed = store.sign(evil, sign(skill, key), public_of(key))
    assert standing(signed, (public_of(key),)) == "the signature is WRONG"
    with pytest.raises(SkillRefused, match="signature is wrong"):
        take_in(other, archive_of(store, signed), ())
    for signature, signer in (("00", public_of(key)), ("zz", "zz"), (sign(skill, key), "00" * 32), ("", "x")):
        assert not is_right("double", skill.digest, signature, signer)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    public = public_of(key_in(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_of(key_in(path)) == public
    path.chmod(0o640)
    with pytest.raises(InvalidRequest, match="Others may read"):
        key_in(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(InvalidRequest, match="is no key"):
        key_in(path)
    with pytest.raises(Unavailable):
        key_in(tmp_path / "none" / "key")
