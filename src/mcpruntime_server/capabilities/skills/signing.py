"""Signatures of skills: who stands for the content of a version, by an Ed25519 key of theirs.

Rule: what is signed is the name and the digest of all files, so that it holds wherever these are the same.
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

PURPOSE = "mcpruntime-server skill"
SHOWN = 16  # characters of a public key


def signed_message(name: str, digest: str) -> bytes:
    """Return what a signature is of."""
    return f"{PURPOSE}\n{name}\n{digest}\n".encode()


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a file, 32 bytes in hex, which is made if it is not there.

    Raises `InvalidRequest` for a file that is no key or that others may read, `Unavailable` where it cannot be used.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    except OSError as exc:
        raise Unavailable(f"The key {path} cannot be made: {exc.strerror}.") from exc
    key = Ed25519PrivateKey.generate()
    with os.fdopen(handle, "w") as file:
        file.write(key.private_bytes_raw().hex() + "\n")
    return key


def _read_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        status = path.stat()
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidRequest(f"Others may read the key {path}.", remedy=f"chmod 600 {path}")
        text = path.read_bytes()[:200].decode().strip()
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except OSError as exc:
        raise Unavailable(f"The key {path} cannot be read: {exc.strerror}.") from exc
    except ValueError:
        raise InvalidRequest(
            f"{path} is no key: it has to hold 64 hexadecimal digits.",
            remedy="Name a new file; the key is made there.",
        ) from None


def public_key_hex(key: Ed25519PrivateKey) -> str:
    """Return the public key, in hex."""
    return key.public_key().public_bytes_raw().hex()


def create_signature(skill: Skill, key: Ed25519PrivateKey) -> str:
    """Return the signature of a version, in hex."""
    return key.sign(signed_message(skill.name, skill.digest)).hex()


def is_signature_valid(name: str, digest: str, signature: str, signer: str) -> bool:
    """Return whether `signature` is that of the key `signer`, both in hex."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
        key.verify(bytes.fromhex(signature), signed_message(name, digest))
    except (ValueError, InvalidSignature):
        return False
    return True


def describe_signature(skill: Skill, trusted: Collection[str]) -> str:
    """Return what there is to say of who has signed a version."""
    if not skill.signature_hex:
        return "not signed"
    if not is_signature_valid(skill.name, skill.digest, skill.signature_hex, skill.signer_key):
        return "the signature is WRONG"
    known = "a trusted key" if skill.signer_key in trusted else "a key that is not trusted"
    return f"signed by {known} ({skill.signer_key[:SHOWN]})"
