"""What a person stores a credential for: the command line and the page of the service share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import Config, UpstreamSettings
from ..config.diagnostics import suggest_names
from ..config.models import WebCredential
from ..config.placeholders import DEFAULT_NAME, PER_PRINCIPAL, check_credential
from ..config.web_rules import CREDENTIAL_SCHEME, credential_user
from ..errors import InvalidRequest, NotFound
from .credential_keys import load_keys
from .credential_store import CredentialStore


@dataclass(frozen=True)
class CredentialEntry:
    """One credential that a server needs of each principal, and where it is used."""

    server: str
    name: str
    fields: frozenset[str]  # of the server's entry in the settings


def find_entry(config: Config, server: str, name: str | None) -> CredentialEntry:
    """Return the credential that is meant; a name is needed if the server has several.

    A host of `[network]` is named as it is there, or with https:// in front.

    Raises `NotFound`, `InvalidRequest`.
    """
    host = server.removeprefix(CREDENTIAL_SCHEME)
    if server != host or (host in config.network.credentials and host not in config.mcpServers):
        return _find_host(config.network.credentials, host, name)
    needed = _find_server(config.mcpServers, server).find_placeholders()
    listed = ", ".join(needed)
    if name is None and len(needed) > 1:
        raise InvalidRequest(
            f"{server} needs several credentials.", remedy=f"Say which by its name: {listed}."
        )
    if name is not None and name not in needed:
        raise InvalidRequest(
            f"{server} uses no credential {name!r:.60}.", remedy=f"It uses: {listed}."
        )
    chosen = next(iter(needed)) if name is None else name
    return CredentialEntry(server, chosen, frozenset(needed[chosen]))


def store_credential(config: Config, entry: CredentialEntry, principal: str, secret: str) -> None:
    """Store the credential of a principal, encrypted.

    Raises `InvalidRequest`, `CredentialsUnusable`, `Unavailable`.
    """
    if problem := check_credential(secret, entry.fields):
        raise InvalidRequest(f"The credential is not stored: {problem}.")
    data_dir = config.server.data_dir
    keys = load_keys(config.credentials, data_dir)
    CredentialStore(data_dir).set_credential((entry.server, principal, entry.name), secret, keys)


def _find_host(hosts: Mapping[str, WebCredential], host: str, name: str | None) -> CredentialEntry:
    entry = hosts.get(host)
    if entry is None:
        hint = suggest_names(host, hosts) if hosts else "The settings have no entries."
        message = f"There is no entry {host!r:.80} in network.credentials."
        raise NotFound(message, remedy=hint.strip())
    if not entry.is_per_principal:
        raise InvalidRequest(
            f"The credential of {host} is shared: it is in the settings.",
            remedy=f'Write `credentials = "{PER_PRINCIPAL}"` and `${{credential}}` into its entry.',
        )
    if name not in (None, DEFAULT_NAME):
        raise InvalidRequest(
            f"{host} uses no credential {name!r:.60}.", remedy=f"It uses: {DEFAULT_NAME}."
        )
    return CredentialEntry(credential_user(host), DEFAULT_NAME, frozenset({"headers"}))


def _find_server(servers: Mapping[str, UpstreamSettings], name: str) -> UpstreamSettings:
    settings = servers.get(name)
    if settings is None or settings.disabled:
        hint = suggest_names(name, servers) if servers else "The settings have no entries."
        raise NotFound(f"There is no entry {name!r:.80} in mcpServers.", remedy=hint.strip())
    if not settings.is_per_principal:
        raise InvalidRequest(
            f"The credentials of {name} are shared: they are in the settings.",
            remedy=f'Write `credentials = "{PER_PRINCIPAL}"` and `${{credential}}` into its entry.',
        )
    return settings
