"""Bearer tokens of the people and programs that use the server over HTTP.

A token is shown once, when it is created. The file has digests only, so that reading it gives
nobody a token. A running server sees at once what the command line creates and revokes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from anyio import to_thread

from ..capabilities.row_file import FileVersion, RowFile
from ..config.scopes import DEFAULT_SCOPES, SCOPES, Scope, order_scopes
from ..errors import InvalidRequest, NotFound, Unavailable
from ..journal.principals import is_token_name
from ..protocol.payloads import JsonObject

TOKENS_FILE = "tokens.json"
TOKEN_PREFIX = "mcprt"  # noqa: S105 - lets scanners of repositories recognise a token
SECRET_BYTES = 32  # random ones: a digest needs no salt and no work factor
ID_BYTES = 4
MAX_TOKEN_CHARS = 200


@dataclass(frozen=True)
class AccessToken:
    """What is kept of a token; times are seconds since the epoch, `expires_at` None for never."""

    id: str
    principal: str
    digest: str  # SHA-256 of the token, in hexadecimal digits
    created_at: float
    expires_at: float | None
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= time.time()


class SingleToken:
    """One token with all scopes, in memory only: for a server that one person looks at."""

    def __init__(self, principal: str, text: str) -> None:
        self.text = text
        self._token = AccessToken("", principal, digest_token(text), time.time(), None, SCOPES)

    async def find_token(self, text: str) -> AccessToken | None:
        """Return the token if it is this one."""
        return self._token if hmac.compare_digest(digest_token(text), self._token.digest) else None


class TokenStore:
    """The tokens of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._file = RowFile(data_dir / TOKENS_FILE)
        self._version: FileVersion | None = None
        self._tokens: dict[str, AccessToken] = {}  # by id

    def list_tokens(self) -> list[AccessToken]:
        """Return all tokens, expired ones included, oldest first; raises `Unavailable`."""
        self._refresh()
        return sorted(self._tokens.values(), key=lambda each: each.created_at)

    def create_token(
        self,
        principal: str,
        lifetime_s: float | None = None,
        scopes: Sequence[str] = DEFAULT_SCOPES,
    ) -> str:
        """Return a new token of a principal; raises `InvalidRequest`, `Unavailable`."""
        if not is_token_name(principal):
            raise InvalidRequest(
                f"{principal!r:.80} cannot be the name of a principal.",
                remedy="Use 1 to 64 letters, digits and . _ @ -, a letter or digit first; "
                "`local` and `gate` are the server's own.",
            )
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise InvalidRequest(
                f"{unknown[0]!r:.80} is not a scope." if unknown else "The token has no scope.",
                remedy=f"The scopes are {', '.join(SCOPES)}.",
            )
        token_id = secrets.token_hex(ID_BYTES)
        token = f"{TOKEN_PREFIX}_{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        now = time.time()
        expires_at = None if lifetime_s is None else now + lifetime_s
        with self._change() as tokens:
            tokens[token_id] = AccessToken(
                token_id, principal, digest_token(token), now, expires_at, order_scopes(scopes)
            )
        return token

    def revoke_token(self, token_id: str) -> AccessToken:
        """Remove a token and return what it was; raises `NotFound`, `Unavailable`."""
        with self._change() as tokens:
            if token_id not in tokens:
                raise NotFound(
                    f"There is no token {token_id!r:.80}.", remedy="`token list` shows them."
                )
            return tokens.pop(token_id)

    async def find_token(self, text: str) -> AccessToken | None:
        """Return what is kept of a token that is valid now; raises `Unavailable`."""
        if not self._is_current():  # in a flood of requests, threads would take most of the time
            await to_thread.run_sync(self._refresh)
        prefix, _, rest = text[:MAX_TOKEN_CHARS].partition("_")
        known = self._tokens.get(rest.partition("_")[0])
        is_same = hmac.compare_digest(
            digest_token(text), known.digest if known else digest_token("")
        )
        if prefix != TOKEN_PREFIX or known is None or not is_same or known.is_expired:
            return None
        if not is_token_name(known.principal):  # the file was edited by hand
            return None
        return known

    def _is_current(self) -> bool:
        """Return whether the file is the one that was read last."""
        try:
            return self._file.read_version() == self._version
        except OSError:
            return False

    def _refresh(self) -> None:
        """Read the file again if it is another one."""
        try:
            version = self._file.read_version()
            if version != self._version:
                self._tokens = {row["id"]: read_token(row) for row in self._file.read_rows()}
                self._version = version
        except FileNotFoundError:
            self._tokens, self._version = {}, None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise Unavailable(
                f"The tokens in {self._file.path} cannot be read: {exc}",
                remedy="Restore the file, or remove it and create new tokens.",
            ) from exc

    @contextmanager
    def _change(self) -> Iterator[dict[str, AccessToken]]:
        """Yield the tokens and write them back; one process at a time."""
        with self._file.lock():
            try:
                self._refresh()
                yield self._tokens
                self._file.write_rows(asdict(each) for each in self._tokens.values())
            finally:
                self._version = None  # what failed half-way is read again


def read_token(row: JsonObject) -> AccessToken:
    """Return a token as the file has it; a scope that is not known here grants nothing."""
    scopes = order_scopes(row.get("scopes", DEFAULT_SCOPES))
    return AccessToken(**{**row, "scopes": scopes})


def digest_token(token: str) -> str:
    """Return what is kept instead of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
