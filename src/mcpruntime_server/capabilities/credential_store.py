"""The credentials that principals have for MCP servers: encrypted, in one file of the data folder.

A running server sees at once what the command line or another server changes. A reader
of the file learns who has a credential for which server, and not the credential.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..errors import InvalidRequest, NotFound, Unavailable
from ..journal.principals import check_principal
from .credential_keys import CredentialKeys
from .row_file import FileVersion, RowFile

CREDENTIALS_FILE = "credentials.json"
MAX_CREDENTIALS = 20_000  # of all principals

RowKey = tuple[str, str, str]  # upstream, principal and name


@dataclass(frozen=True)
class StoredCredential:
    """A credential as it is kept; `changed_at` is a time in seconds since the epoch."""

    upstream: str  # the name of its entry in the settings
    principal: str
    name: str
    changed_at: float
    encrypted: str

    @property
    def key(self) -> RowKey:
        """What the credential is for, and what it is bound to."""
        return self.upstream, self.principal, self.name

    def decrypt(self, keys: CredentialKeys) -> str:
        """Return the credential itself; raises `CredentialsUnusable`."""
        return keys.decrypt(self.encrypted, self.key)


@dataclass(frozen=True)
class LoadedCredentials:
    """The content of the file; `version` is None if there is none."""

    version: FileVersion | None = None
    rows: Mapping[RowKey, StoredCredential] = field(default_factory=dict)
    by_owner: Mapping[tuple[str, str], tuple[StoredCredential, ...]] = field(default_factory=dict)


class CredentialStore:
    """The credentials in a data folder; safe to use from several threads and processes."""

    def __init__(self, data_dir: Path) -> None:
        self._file = RowFile(data_dir / CREDENTIALS_FILE)
        self._loaded = LoadedCredentials()

    def list_credentials(self) -> list[StoredCredential]:
        """Return all credentials, sorted by upstream, principal and name; raises `Unavailable`."""
        return sorted(self._load().rows.values(), key=lambda each: each.key)

    def find_credentials(self, upstream: str, principal: str) -> tuple[StoredCredential, ...]:
        """Return what a principal has for an upstream, sorted by name; raises `Unavailable`."""
        return self._load().by_owner.get((upstream, principal), ())

    def set_credential(self, key: RowKey, secret: str, keys: CredentialKeys) -> None:
        """Store a credential in place of the one before; raises `InvalidRequest`, `Unavailable`."""
        check_principal(key[1])
        with self._change() as rows:
            if key not in rows and len(rows) >= MAX_CREDENTIALS:
                raise InvalidRequest(f"There are {MAX_CREDENTIALS:,} credentials already.")
            rows[key] = StoredCredential(*key, time.time(), keys.encrypt(secret, key))

    def remove_credentials(self, upstream: str, principal: str, name: str | None = None) -> int:
        """Remove one credential, or all that a principal has for an upstream; return their number.

        Raises `NotFound`, `Unavailable`.
        """
        with self._change() as rows:
            wanted = [
                key for key in rows if key[:2] == (upstream, principal) and name in (None, key[2])
            ]
            if not wanted:
                named = "" if name is None else f" of the name {name!r:.60}"
                raise NotFound(
                    f"{principal!r:.120} has no credential{named} for {upstream!r:.120}.",
                    remedy="`credentials list` shows all.",
                )
            for key in wanted:
                del rows[key]
            return len(wanted)

    def encrypt_again(self, keys: CredentialKeys) -> int:
        """Encrypt all credentials with the first key; return their number.

        Raises `CredentialsUnusable`, `Unavailable`.
        """
        with self._change() as rows:
            for key, row in rows.items():
                rows[key] = replace(row, encrypted=keys.encrypt(row.decrypt(keys), key))
            return len(rows)

    def _load(self) -> LoadedCredentials:
        """Return what is in the file, which is read again if it is another one."""
        try:
            version = self._file.read_version()
            if version == self._loaded.version:
                return self._loaded
            rows = [StoredCredential(**each) for each in self._file.read_rows()]
        except FileNotFoundError:
            return LoadedCredentials()
        except (OSError, ValueError, TypeError) as exc:
            raise Unavailable(
                f"The credentials in {self._file.path} cannot be read: {exc}",
                remedy="Restore the file, or remove it and set the credentials again.",
            ) from exc
        by_owner: dict[tuple[str, str], list[StoredCredential]] = {}
        for row in sorted(rows, key=lambda each: each.name):
            by_owner.setdefault((row.upstream, row.principal), []).append(row)
        self._loaded = LoadedCredentials(
            version,
            {row.key: row for row in rows},
            {owner: tuple(found) for owner, found in by_owner.items()},
        )
        return self._loaded

    @contextmanager
    def _change(self) -> Iterator[dict[RowKey, StoredCredential]]:
        """Yield the rows and write them back; one process at a time."""
        with self._file.lock():
            rows = dict(self._load().rows)
            yield rows
            self._file.write_rows(asdict(each) for each in rows.values())
