"""The browsers that are logged in: each cookie stands for an access token, in memory only.

The token is checked again with every request, so that a login ends with its token. It also ends
with the server, and `LOGIN_IDLE_S` after its last request.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

LOGIN_IDLE_S = 12 * 3600.0
MAX_LOGINS = 10_000
MAX_LOGINS_OF_TOKEN = 100
CODE_LIFETIME_S = 600.0
SECRET_BYTES = 32


@dataclass
class BrowserLogin:
    """A browser that has shown a token; forms and scripts of its pages send `csrf_token`."""

    token: str
    csrf_token: str
    used_at: float


class BrowserLogins:
    """The logins of one server."""

    def __init__(self) -> None:
        self._logins: OrderedDict[str, BrowserLogin] = OrderedDict()  # by the value of the cookie
        self._codes: dict[str, tuple[str, float]] = {}  # token and creation, by one-time code
        self.anonymous_csrf_token = secrets.token_urlsafe(SECRET_BYTES)  # where nobody logs in

    def create_login(self, token: str) -> str:
        """Return the value of the cookie of a browser that has shown a valid token."""
        cookie = secrets.token_urlsafe(SECRET_BYTES)
        csrf_token = secrets.token_urlsafe(SECRET_BYTES)
        own = [name for name, login in self._logins.items() if login.token == token]
        if len(own) >= MAX_LOGINS_OF_TOKEN:  # else one person could log all others out
            del self._logins[own[0]]
        self._logins[cookie] = BrowserLogin(token, csrf_token, time.monotonic())
        if len(self._logins) > MAX_LOGINS:
            self._logins.popitem(last=False)
        return cookie

    def find_login(self, cookie: str) -> BrowserLogin | None:
        """Return the login that a cookie stands for; None if it has ended."""
        login = self._logins.get(cookie)
        if login is None:
            return None
        now = time.monotonic()
        if now - login.used_at > LOGIN_IDLE_S:
            del self._logins[cookie]
            return None
        login.used_at = now
        self._logins.move_to_end(cookie)
        return login

    def end_login(self, cookie: str) -> None:
        """Forget a login."""
        self._logins.pop(cookie, None)

    def create_code(self, token: str) -> str:
        """Return a code with which one browser may log in once, soon, instead of with a token."""
        code = secrets.token_urlsafe(SECRET_BYTES)
        self._codes[code] = token, time.monotonic()
        return code

    def redeem_code(self, code: str) -> str | None:
        """Return the token that a code stands for; it is used up."""
        token, created_at = self._codes.pop(code, ("", 0.0))
        is_valid = token and time.monotonic() - created_at <= CODE_LIFETIME_S
        return token if is_valid else None
