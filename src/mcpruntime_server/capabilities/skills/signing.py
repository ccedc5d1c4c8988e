"""Sign versions of skills with an Ed25519 key, and check such signatures.

Rule 1: a signature covers the name and the digest of all files, so it is valid wherever these are
the same.
Rule 2: a skill that is signed stays signed. Once a signed version has been in use, another version
is put in use only with a signature of the same key or of a trusted one, or by a person.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidRequest, Unavailable
from .model import Skill

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PURPOSE = "mcpruntime-server skill"  # so that a signature of something else is never one of a skill
MAX_KEY_FILE_BYTES = 200
SHOWN_KEY_CHARS = 16
REPLACE_OPTION = "--replace-signed"  # with which a person puts any version in use


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a file, 32 bytes in hex; the file is created if it does not exist.

    Raises `InvalidRequest` if it holds no key or others may read it, `Unavailable` if it cannot be
    used.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _load_key(path)
    except OSError as exc:
        raise Unavailable(f"The key {path} cannot be created: {exc.strerror}.") from exc
    key = Ed25519PrivateKey.generate()
    with os.fdopen(handle, "w") as file:
        file.write(key.private_bytes_raw().hex() + "\n")
    return key


def _load_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidRequest(f"Others may read the key {path}.", remedy=f"chmod 600 {path}")
        text = path.read_bytes()[:MAX_KEY_FILE_BYTES].decode().strip()
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except OSError as exc:
        raise Unavailable(f"The key {path} cannot be read: {exc.strerror}.") from exc
    except ValueError:
        raise InvalidRequest(
            f"{path} is not a key, which has 64 hexadecimal digits.",
            remedy="Name a file that does not exist; the key is created there.",
        ) from None


def public_key_hex(key: Ed25519PrivateKey) -> str:
    """Return the public key, in hex."""
    return key.public_key().public_bytes_raw().hex()


def create_signature(skill: Skill, key: Ed25519PrivateKey) -> str:
    """Return the signature of a version, in hex."""
    return key.sign(_signed_message(skill)).hex()


def _signed_message(skill: Skill) -> bytes:
    return f"{PURPOSE}\n{skill.name}\n{skill.digest}\n".encode()


def has_valid_signature(skill: Skill) -> bool:
    """Return whether the key that a version names, in hex, has signed its name and its files."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(skill.signer_key))
        key.verify(bytes.fromhex(skill.signature_hex), _signed_message(skill))
    except (ValueError, InvalidSignature):
        return False
    return True


def describe_signature(skill: Skill, trusted_keys: Collection[str]) -> str:
    """Return in a few words who signed a version."""
    if not skill.signature_hex:
        return "not signed"
    if not has_valid_signature(skill):
        return "the signature is WRONG"
    is_trusted = skill.signer_key in trusted_keys
    signer = "a trusted key" if is_trusted else "a key that is not trusted"
    return f"signed by {signer} ({skill.signer_key[:SHOWN_KEY_CHARS]})"


# which version may be put in use ------------------------------------------------------------------


def is_signed_by(skill: Skill, keys: Collection[str]) -> bool:
    """Return whether one of `keys` has signed a version."""
    return skill.signer_key in keys and has_valid_signature(skill)


def find_protected_version(versions: Sequence[Skill]) -> Skill | None:
    """Return the newest signed version that is or was in use.

    Return None if there is none, or if a version that came after it is in use without it: then a
    person has decided so. `versions` are in order.
    """
    for skill in reversed(versions):
        if skill.was_in_use and has_valid_signature(skill):
            return skill
        if skill.is_active:
            return None
    return None


def succession_problem(
    skill: Skill, versions: Sequence[Skill], trusted_keys: Collection[str]
) -> str:
    """Return why a version may not be put in use without a person; "" if it may."""
    protected = find_protected_version(versions)
    if protected is None or protected.version == skill.version:
        return ""
    if is_signed_by(skill, {protected.signer_key, *trusted_keys}):
        return ""
    how = "is signed with a key that is not trusted" if skill.signature_hex else "is not"
    return (
        f"{protected.id} is signed and this version {how}, so it is not put in use. "
        f"A person can do that: {_replace_command(skill)}."
    )


def find_replaced_versions(
    skill: Skill, versions: Sequence[Skill], trusted_keys: Collection[str]
) -> list[Skill]:
    """Return the older versions in use that must not come back when a signed one is retired."""
    if not skill.is_active or not has_valid_signature(skill):
        return []
    keys = {skill.signer_key, *trusted_keys}
    older = [each for each in versions if each.version < skill.version and each.is_active]
    return [each for each in older if not is_signed_by(each, keys)]


def is_held_back(skill: Skill) -> bool:
    """Return whether a version only lacks a signature, or a person, to be put in use."""
    return bool(skill.reasons) and skill.reasons[0].endswith(f"{_replace_command(skill)}.")


def _replace_command(skill: Skill) -> str:
    return f"`mcpruntime-server skills promote {skill.id} {REPLACE_OPTION}`"
