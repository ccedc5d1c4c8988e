"""Sign versions of skills with an Ed25519 key, and check such signatures.

Rule: a signature covers the name and the digest of all files, so it is valid wherever these are the
same.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidRequest, Unavailable
from .model import Skill

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PURPOSE = "mcpruntime-server skill"  # so that a signature of something else is never one of a skill
MAX_KEY_FILE_BYTES = 200
SHOWN_KEY_CHARS = 16


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
    return key.sign(_signed_message(skill.name, skill.digest)).hex()


def _signed_message(name: str, digest: str) -> bytes:
    return f"{PURPOSE}\n{name}\n{digest}\n".encode()


def is_signature_valid(name: str, digest: str, signature_hex: str, signer_key: str) -> bool:
    """Return whether the key `signer_key`, in hex, made this signature of a version."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer_key))
        key.verify(bytes.fromhex(signature_hex), _signed_message(name, digest))
    except (ValueError, InvalidSignature):
        return False
    return True


def describe_signature(skill: Skill, trusted_keys: Collection[str]) -> str:
    """Return in a few words who signed a version."""
    if not skill.signature_hex:
        return "not signed"
    if not is_signature_valid(skill.name, skill.digest, skill.signature_hex, skill.signer_key):
        return "the signature is WRONG"
    is_trusted = skill.signer_key in trusted_keys
    signer = "a trusted key" if is_trusted else "a key that is not trusted"
    return f"signed by {signer} ({skill.signer_key[:SHOWN_KEY_CHARS]})"
