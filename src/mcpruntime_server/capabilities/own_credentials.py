"""What is common to everything that is used with a credential of each principal.

Who has stored none is told how: with a command, or on a page, if the server has pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import quote

import anyio
from anyio.to_thread import run_sync

from ..config.placeholders import DEFAULT_NAME
from ..errors import CallFailed, CredentialsUnusable, Unavailable
from ..journal.call_scope import CredentialRequest, find_call_scope
from .credential_keys import CredentialKeys
from .credential_store import CredentialStore, StoredCredential

MISSING_KIND = "credential_missing"
UNUSABLE_KIND = "credential_unusable"
CHECK_INTERVAL_S = 1.0  # for credentials that another process may store

FormatCommand = Callable[..., str]  # words -> a command for a person's shell


class OwnCredentials:
    """The credentials that principals have stored, and how they store others."""

    def __init__(
        self,
        store: CredentialStore,
        load_keys: Callable[[], CredentialKeys],
        format_command: FormatCommand,
        page_url: str = "",
    ) -> None:
        self._store = store
        self._load_keys = load_keys
        self._format_command = format_command
        self._page_url = page_url

    def find_rows(self, user: str, principal: str) -> tuple[StoredCredential, ...]:
        """Return what a principal has stored for a server or host; raises `Unavailable`."""
        return self._store.find_credentials(user, principal)

    def find_page(self, user: str) -> str:
        """Return the URL of the page where people store a credential; "" if there is none."""
        return f"{self._page_url}/{quote(user, safe='')}" if self._page_url else ""

    def decrypt(
        self, rows: Sequence[StoredCredential], user: str, principal: str, names: Sequence[str]
    ) -> dict[str, str]:
        """Return the credentials with these names; raises `CallFailed` if one is missing."""
        by_name = {row.name: row for row in rows}
        if missing := sorted(set(names) - by_name.keys()):
            words = ["credentials", "set", user, "--principal", principal]
            if len(names) > 1:
                words += ["--name", missing[0]]
            command, page = self._format_command(*words), self.find_page(user)
            raise missing_credential(user, principal, missing, command, page)
        try:
            keys = self._load_keys()
            return {name: by_name[name].decrypt(keys) for name in names}
        except CredentialsUnusable as exc:
            raise CallFailed(UNUSABLE_KIND, exc.message, remedy=exc.remedy) from None

    async def ask(
        self, user: str, principal: str, rows: Sequence[StoredCredential], missing: CallFailed
    ) -> bool:
        """Let a person store what is missing, if the client of the run can show a page.

        Return whether there are other credentials than `rows`.
        """
        scope, url = find_call_scope(), self.find_page(user)
        if scope is None or not url:
            return False
        hints = [missing.message, missing.remedy]
        wait = partial(self.wait_until_changed, user, principal, rows)
        return await scope.ask_for_credential(CredentialRequest(url, hints, wait))

    async def wait_until_changed(
        self, user: str, principal: str, rows: Sequence[StoredCredential]
    ) -> None:
        """Wait until a principal has other credentials, whichever process has stored them.

        Returns as well when they cannot be read: who waits gets the reason.
        """
        while True:
            try:
                if await run_sync(self.find_rows, user, principal) != tuple(rows):
                    return
            except Unavailable:
                return
            await anyio.sleep(CHECK_INTERVAL_S)


def missing_credential(
    user: str, principal: str | None, names: Sequence[str], command: str, page: str = ""
) -> CallFailed:
    """Return the error for a principal that has not stored what a server or host needs."""
    if principal is None:
        message = f"{user} is used with the credentials of a principal, and there is none here."
        return CallFailed(MISSING_KIND, message)
    named = "" if list(names) == [DEFAULT_NAME] else f" ({', '.join(names)})"
    return CallFailed(
        MISSING_KIND,
        f"{user} needs a credential of {principal!r:.120}{named}, and none is stored.",
        remedy=f"A person stores it {f'at {page}, or ' if page else ''}where the server runs, "
        f"with: {command}",
    )
