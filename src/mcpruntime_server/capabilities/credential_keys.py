"""The keys that encrypt the credentials of principals, and where they come from.

Rule 1: a key is not kept with what it encrypts: it comes from the environment, or from a file
outside the data folder that only this user can read.
Rule 2: the first key encrypts, every key decrypts, so that a key can be replaced in two steps.
Rule 3: a credential is bound to its upstream, principal and name. Moved into another row, it cannot
be decrypted.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from stat import S_IMODE, S_ISREG

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..config import CredentialSettings
from ..config.file_modes import SHARED_BITS
from ..config.loader import CREDENTIALS_KEY_VARIABLE
from ..errors import CredentialsUnusable

KEY_BYTES = 32
NONCE_BYTES = 12  # random: GCM allows billions of messages with one key
MAX_KEY_FILE_BYTES = 4_096
PURPOSE = "mcpruntime-server credential"  # so that a key may also be used elsewhere
NEW_KEY_REMEDY = (
    "`mcpruntime-server credentials new-key` prints a key. Put it into the variable "
    f"{CREDENTIALS_KEY_VARIABLE}, or into a file that [credentials] key_file names."
)


def create_key() -> str:
    """Return a new random key."""
    return secrets.token_urlsafe(KEY_BYTES)


class CredentialKeys:
    """The keys of a server, the one that encrypts first."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in keys]

    def encrypt(self, secret: str, binding: Sequence[str]) -> str:
        """Return `secret` encrypted and bound to `binding`, as text."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, secret.encode(), _bind(binding))
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def decrypt(self, text: str, binding: Sequence[str]) -> str:
        """Return the secret in what `encrypt` returned; raises `CredentialsUnusable`."""
        try:
            data = base64.urlsafe_b64decode(text)
        except ValueError:
            data = b""
        nonce, encrypted = data[:NONCE_BYTES], data[NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, encrypted, _bind(binding)).decode()
            except (InvalidTag, ValueError):
                continue
        raise CredentialsUnusable(
            "A credential cannot be decrypted: the key is another one, or the data is damaged.",
            remedy="Use the key with which it was set, beside a new one if there is one, "
            "or set the credential again.",
        )


def load_keys(settings: CredentialSettings, data_dir: Path) -> CredentialKeys:
    """Return the keys that the settings name; raises `CredentialsUnusable`."""
    text = settings.keys.get_secret_value()
    origin = f"The variable {CREDENTIALS_KEY_VARIABLE}"
    if not text and settings.key_file != Path():
        origin = f"The key file {settings.key_file}"
        text = _read_key_file(settings.key_file, data_dir)
    words = text.replace(",", " ").split()
    if not words:
        raise CredentialsUnusable(
            "There is no key that encrypts the credentials of principals."
            if not text
            else f"{origin} has no key.",
            remedy=NEW_KEY_REMEDY,
        )
    return CredentialKeys([_parse_key(word, origin) for word in words])


def _parse_key(word: str, origin: str) -> bytes:
    try:
        key = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise CredentialsUnusable(
            f"{origin} has something that is not a key of {KEY_BYTES} bytes in base64.",
            remedy=NEW_KEY_REMEDY,
        )
    return key


def _read_key_file(path: Path, data_dir: Path) -> str:
    """Return the text of a key file that is safe to use."""
    try:
        real_path = path.resolve()
        handle = os.open(real_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise CredentialsUnusable(
            f"The key file {path} cannot be read: {exc.strerror}.", remedy=NEW_KEY_REMEDY
        ) from None
    try:
        status = os.fstat(handle)
        if not S_ISREG(status.st_mode) or status.st_size > MAX_KEY_FILE_BYTES:
            raise CredentialsUnusable(
                f"{path} is not a key file: a file of at most {MAX_KEY_FILE_BYTES:,} bytes."
            )
        if real_path.is_relative_to(data_dir.resolve()):
            raise CredentialsUnusable(
                f"The key file {path} is in the data folder, beside what it encrypts.",
                remedy="Move it elsewhere, so that no copy of the data folder has the key.",
            )
        if S_IMODE(status.st_mode) & SHARED_BITS or status.st_uid not in (os.geteuid(), 0):
            raise CredentialsUnusable(
                f"Other users can read or replace the key file {path}.",
                remedy="Make it this user's own, with the mode 0600.",
            )
        return os.read(handle, MAX_KEY_FILE_BYTES).decode("ascii", "replace")
    finally:
        os.close(handle)


def _bind(binding: Sequence[str]) -> bytes:
    return json.dumps([PURPOSE, *binding]).encode()
