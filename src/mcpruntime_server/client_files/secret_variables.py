"""Put references to variables in the place of credentials in the entry of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.credential_values import find_value_credentials, name_arguments
from ..config.credentials import is_credential_name
from .variable_references import has_references, remove_references, variable_name

SCHEME = re.compile(r"((?:Bearer|Basic|Token|ApiKey|Api-Key)\s+)(\S.*)", re.IGNORECASE | re.DOTALL)
RESERVED_PREFIX = "MCPRUNTIME_"  # variables of this name are settings


@dataclass
class VariableNames:
    """The names that credentials get; `values` has those of variables that are known."""

    values: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)  # what must be set, with its value
    servers: dict[str, str] = field(default_factory=dict)  # whose entry had that value

    def name_secret(self, server: str, wanted: str, value: str) -> str:
        """Return the name of a variable with this value, new if there is none."""
        plain = variable_name(wanted)
        first = wanted if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", wanted) else plain
        if first.startswith(RESERVED_PREFIX):
            first = variable_name(server, wanted)
        candidates = [first, variable_name(server, wanted)]
        candidates += [f"{candidates[1]}_{number}" for number in range(2, 100)]
        for name in candidates:
            if self.values.get(name, value) == value and not name.startswith(RESERVED_PREFIX):
                self.values[name] = value
                self.found[name] = value
                self.servers.setdefault(name, server)
                return name
        raise AssertionError("a hundred variables of one name have different values")


def hide_secrets(server: str, entry: Mapping[str, Any], names: VariableNames) -> dict[str, Any]:
    """Return an entry of `mcpServers` with references in the place of its credentials."""
    hidden = dict(entry)
    if "env" in entry:
        hidden["env"] = {
            name: hide_whole(server, name, value, names) for name, value in entry["env"].items()
        }
    if "headers" in entry:
        hidden["headers"] = {
            name: hide_header(server, name, value, names)
            for name, value in entry["headers"].items()
        }
    if "args" in entry:
        hidden["args"] = hide_arguments(server, entry["args"], names)
    if "url" in entry:
        hidden["url"] = hide_parts(server, "URL_KEY", entry["url"], names)
    return hidden


def has_secret(name: str, text: str) -> bool:
    """Return whether a text holds a credential beside its references."""
    rest = remove_references(text)
    return bool(rest.strip()) and bool(find_value_credentials(name, rest))


def hide_whole(server: str, name: str, text: str, names: VariableNames) -> str:
    """Return a reference in the place of a text that holds a credential."""
    if not has_secret(name, text):
        return text
    if has_references(text):
        return hide_parts(server, name, text, names)
    return f"${{{names.name_secret(server, name, remove_references(text))}}}"


def hide_header(server: str, name: str, text: str, names: VariableNames) -> str:
    """Return a header with its credential hidden; its scheme stays."""
    scheme = SCHEME.fullmatch(text)
    is_secret = has_secret(name, text)
    if scheme and (is_credential_name(name) or is_secret):
        if has_references(scheme[2]):
            return text
        value = remove_references(scheme[2])
        return f"{scheme[1]}${{{names.name_secret(server, f'{server} token', value)}}}"
    wanted = f"{server} token" if name.lower() == "authorization" else f"{server} {name}"
    return hide_whole(server, wanted, text, names) if is_secret else text


def hide_arguments(server: str, arguments: list[str], names: VariableNames) -> list[str]:
    """Return arguments with the credentials among them hidden."""
    hidden = []
    for argument, (option, value) in zip(arguments, name_arguments(arguments), strict=False):
        name, equals, text = argument.partition("=")
        if argument.startswith("-") and equals:
            wanted = f"{server} {name.strip('-')}"
            shown = hide_whole(server, wanted, text, names)
            hidden.append(f"{name}={shown}")
        elif has_secret(option, value):
            hidden.append(hide_whole(server, f"{server} {option or 'key'}", argument, names))
        else:
            hidden.append(argument)
    return hidden


def hide_parts(server: str, name: str, text: str, names: VariableNames) -> str:
    """Return a text with references in the place of the credentials in it.

    A credential that is spelled in another way there, as in a percent-encoded URL, hides all.
    """
    rest = remove_references(text)
    hidden = text
    found = find_value_credentials("", rest) - {rest}
    innermost = [each for each in found if not any(other in each for other in found - {each})]
    for secret in sorted(innermost, key=len, reverse=True):
        if secret in hidden:
            reference = f"${{{names.name_secret(server, f'{server} {name}', secret)}}}"
            hidden = hidden.replace(secret, reference)
    if has_secret("", hidden) and not has_references(text):
        return f"${{{names.name_secret(server, f'{server} url', rest)}}}"
    return hidden
