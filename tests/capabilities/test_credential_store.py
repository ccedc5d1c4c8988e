"""The credentials of principals on the disk: encrypted, bound to their row, and seen at once."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.capabilities.credential_keys import CredentialKeys, create_key, load_keys
from mcpruntime_server.capabilities.credential_store import CREDENTIALS_FILE, CredentialStore
from mcpruntime_server.config import CredentialSettings, SecretText
from mcpruntime_server.errors import CredentialsUnusable, InvalidRequest, NotFound, Unavailable

ANN, BOB = ("tracker", "ann", "default"), ("tracker", "bob", "default")
SECRET = "a secret: \n\u00e9\U0001f511 {}"


def make_keys(*keys: str) -> CredentialKeys:
    text = SecretText(", ".join(keys or (create_key(),)))
    return load_keys(CredentialSettings(keys=text), Path("/nonexistent"))


def read(store: CredentialStore, key: tuple[str, str, str], keys: CredentialKeys) -> str:
    [row] = [row for row in store.find_credentials(*key[:2]) if row.name == key[2]]
    return row.decrypt(keys)


def test_what_was_stored_is_found_again_and_is_not_in_the_file(tmp_path: Path) -> None:
    store, keys = CredentialStore(tmp_path), make_keys()
    store.set_credential(ANN, SECRET, keys)
    store.set_credential(BOB, "another one", keys)
    assert read(store, ANN, keys) == SECRET
    assert read(CredentialStore(tmp_path), BOB, keys) == "another one"
    file = tmp_path / CREDENTIALS_FILE
    assert b"secret" not in file.read_bytes()
    assert b"another" not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_store_sees_a_change_at_once(tmp_path: Path) -> None:
    store, other, keys = CredentialStore(tmp_path), CredentialStore(tmp_path), make_keys()
    assert other.find_credentials("tracker", "ann") == ()
    for secret in ("first one", "second one", "second one"):
        before = other.find_credentials("tracker", "ann")
        store.set_credential(ANN, secret, keys)
        assert read(other, ANN, keys) == secret
        assert other.find_credentials("tracker", "ann") != before
    assert store.remove_credentials("tracker", "ann") == 1
    assert other.find_credentials("tracker", "ann") == ()
    with pytest.raises(NotFound, match="'ann' has no credential for 'tracker'"):
        store.remove_credentials("tracker", "ann")


@pytest.mark.parametrize("field", ["upstream", "principal", "name"])
def test_a_row_that_was_moved_cannot_be_decrypted(tmp_path: Path, field: str) -> None:
    store, keys = CredentialStore(tmp_path), make_keys()
    store.set_credential(ANN, SECRET, keys)
    path = tmp_path / CREDENTIALS_FILE
    [row] = json.loads(path.read_bytes())
    path.write_text(json.dumps([{**row, field: "other"}]))
    [moved] = store.list_credentials()
    with pytest.raises(CredentialsUnusable, match="cannot be decrypted"):
        moved.decrypt(keys)


def test_keys_are_replaced_in_two_steps(tmp_path: Path) -> None:
    old, new = create_key(), create_key()
    store = CredentialStore(tmp_path)
    store.set_credential(ANN, SECRET, make_keys(old))
    both = make_keys(new, old)
    assert read(store, ANN, both) == SECRET
    with pytest.raises(CredentialsUnusable, match="the key is another one"):
        read(store, ANN, make_keys(new))
    with pytest.raises(CredentialsUnusable):
        store.encrypt_again(make_keys(new))
    assert store.encrypt_again(both) == 1
    assert read(store, ANN, make_keys(new)) == SECRET
    with pytest.raises(CredentialsUnusable):
        read(store, ANN, make_keys(old))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-4],
        lambda text: "A" + text[1:],
        lambda text: "",
        lambda text: "no base64!",
        lambda text: "\u00e9",
    ],
)
def test_a_damaged_row_is_an_error_with_a_code(
    tmp_path: Path, damage: Callable[[str], str]
) -> None:
    store, keys = CredentialStore(tmp_path), make_keys()
    store.set_credential(ANN, SECRET, keys)
    path = tmp_path / CREDENTIALS_FILE
    [row] = json.loads(path.read_bytes())
    path.write_text(json.dumps([{**row, "encrypted": damage(row["encrypted"])}]))
    with pytest.raises(CredentialsUnusable):
        read(store, ANN, keys)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"a": 1}]', "null", "\udce9"])
def test_a_damaged_file_is_unavailable(tmp_path: Path, text: str) -> None:
    (tmp_path / CREDENTIALS_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Unavailable, match="cannot be read"):
        CredentialStore(tmp_path).list_credentials()


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "x" * 2_001, "\udce9"])
def test_nobody_has_such_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a principal"):
        CredentialStore(tmp_path).set_credential(("tracker", name, "default"), "x" * 9, make_keys())


# keys ---------------------------------------------------------------------------------------------


def key_file(folder: Path, text: str, mode: int = 0o600) -> CredentialSettings:
    path = folder / "keys"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return CredentialSettings(key_file=path)


def test_keys_come_from_a_file_that_only_this_user_reads(tmp_path: Path) -> None:
    key = create_key()
    settings = key_file(tmp_path / "etc", f"{create_key()}\n{key}\n")
    keys = load_keys(settings, tmp_path / "data")
    store = CredentialStore(tmp_path / "data")
    store.set_credential(ANN, SECRET, make_keys(key))
    assert read(store, ANN, keys) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_key_file_that_others_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(CredentialsUnusable, match="Other users can read or replace"):
        load_keys(key_file(tmp_path / "etc", create_key(), mode), tmp_path / "data")


def test_a_key_file_in_the_data_folder_is_refused_also_behind_a_link(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = key_file(data, create_key())
    link = tmp_path / "link"
    link.symlink_to(settings.key_file)
    for path in (settings.key_file, link, data / ".." / "data" / "keys"):
        with pytest.raises(CredentialsUnusable, match="in the data folder"):
            load_keys(CredentialSettings(key_file=path), data)


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    missing = CredentialSettings(key_file=tmp_path / "none")
    folder = CredentialSettings(key_file=tmp_path)
    long = key_file(tmp_path, "A" * 5_000)
    for settings, message in ((missing, "cannot be read"), (folder, "not a"), (long, "not a")):
        with pytest.raises(CredentialsUnusable, match=message):
            load_keys(settings, tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no key"),
        (" , ", "has no key"),
        ("secret", "not a key of 32 bytes"),
        ("A" * 42, "not a key"),
        ("A" * 44, "not a key"),
        ("\u00e9" * 43, "not a key"),
        (f"{'A' * 43}, x", "not a key"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(text: str, message: str) -> None:
    settings: Any = CredentialSettings(keys=SecretText(text))
    with pytest.raises(CredentialsUnusable, match=message) as caught:
        load_keys(settings, Path("/nonexistent"))
    assert "credentials new-key" in caught.value.remedy
    assert not text.strip(" ,") or text not in str(caught.value)
