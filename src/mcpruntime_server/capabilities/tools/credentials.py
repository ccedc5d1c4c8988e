"""The credentials that an upstream was given never come back from it.

They are replaced in answers, errors and logs before anything else sees these.

Rule 1: what counts as one, `credential_values` says.
Rule 2: this is about upstreams that repeat what they were given. One that wants to tell it can
spell it in endless ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...config import UpstreamSettings
from ...config.credential_values import find_value_credentials, name_arguments
from ...config.credentials import is_credential_name
from ..redaction import Credentials


def collect_credentials(settings: UpstreamSettings) -> Credentials:
    """Return the credentials in `settings`."""
    return Credentials(find_credentials(settings))


def find_credentials(settings: UpstreamSettings, secrets: Iterable[str] = ()) -> set[str]:
    """Return the values in `settings` that are credentials, and `secrets`, which all are."""
    named = [(name, value.get_secret_value()) for name, value in settings.env.items()]
    for name, header in settings.headers.items():
        text = header.get_secret_value()
        named.append((name, text))
        if is_credential_name(name):
            named += [(name, word) for word in text.split()[1:]]  # after the scheme
    named += name_arguments(settings.args)
    named.append(("", settings.url or ""))
    whole = list(secrets)
    named += [("credential", secret) for secret in whole]
    return set(whole).union(*(find_value_credentials(name, text) for name, text in named))


def reveal_secrets(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the secret values of a settings table in plain text; only for `transport`."""
    return {name: value.get_secret_value() for name, value in table.items()}
