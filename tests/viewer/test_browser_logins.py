"""The logins of browsers: those of one token make room for themselves."""

from __future__ import annotations

from mcpruntime_server.viewer.browser_logins import (
    MAX_LOGINS,
    MAX_LOGINS_OF_TOKEN,
    BrowserLogins,
)


def test_who_logs_in_very_often_ends_own_logins_only() -> None:
    logins = BrowserLogins()
    other = logins.create_login("a token of somebody else")
    own = [logins.create_login("a token") for _ in range(MAX_LOGINS + 1)]
    assert logins.find_login(other) is not None
    assert [cookie for cookie in own if logins.find_login(cookie)] == own[-MAX_LOGINS_OF_TOKEN:]
