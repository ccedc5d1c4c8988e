"""Replace `${VARIABLES}` in the settings, so that no credential has to be written into a file.

`${NAME}` is the value of the variable (also `${env:NAME}`), `${NAME:-text}` has a default, and
`$${` stands for `${`. `${credential}` and `${credential:NAME}` are filled in for each principal
when a connection of its own is opened (see `placeholders`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .diagnostics import ReportProblem, SettingKey
from .placeholders import DEFAULT_NAME, PER_PRINCIPAL, PLACEHOLDER_FIELDS, mark_placeholder

UPSTREAM_FIELDS = ("command", "args", "env", "url", "headers")
LLM_FIELDS = ("api_key", "api_base")
NETWORK_FIELDS = ("value",)  # of a credential
VARIABLE_REFERENCE = re.compile(
    r"""(?P<literal>\$\$\{)
      | \$\{ (?P<is_credential>credential) (?: : (?P<credential>[A-Za-z][A-Za-z0-9_-]{0,39}) )? \}
      | \$\{ (?:env:)? (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: :- (?P<default>[^}]*) )? \}
      | (?P<malformed>\$\{ [^}]* \}?)""",
    re.VERBOSE,
)


def interpolate_upstream(
    name: str, entry: Any, environ: Mapping[str, str], report: ReportProblem
) -> Any:
    """Return an entry of `mcpServers` with its variables replaced; a disabled one is unchanged."""
    if not isinstance(entry, dict) or entry.get("disabled"):
        return entry
    has_placeholders = entry.get("credentials") == PER_PRINCIPAL
    table = ("mcpServers", name)
    return _interpolate_fields(entry, table, UPSTREAM_FIELDS, environ, report, has_placeholders)


def interpolate_llm(
    table: Mapping[str, Any], environ: Mapping[str, str], report: ReportProblem
) -> dict[str, Any]:
    """Return the table `[llm]` with its variables replaced."""
    return _interpolate_fields(table, ("llm",), LLM_FIELDS, environ, report)


def interpolate_network(
    table: Mapping[str, Any], environ: Mapping[str, str], report: ReportProblem
) -> dict[str, Any]:
    """Return the table `[network]` with the variables of its credentials replaced."""
    entries = table.get("credentials")
    if not isinstance(entries, dict):
        return dict(table)
    credentials = {
        host: _interpolate_fields(
            entry,
            ("network", "credentials", host),
            NETWORK_FIELDS,
            environ,
            report,
            entry.get("credentials") == PER_PRINCIPAL,
        )
        if isinstance(entry, dict)
        else entry
        for host, entry in entries.items()
    }
    return {**table, "credentials": credentials}


def _interpolate_fields(
    table: Mapping[str, Any],
    key: SettingKey,
    names: tuple[str, ...],
    environ: Mapping[str, str],
    report: ReportProblem,
    has_placeholders: bool = False,
) -> dict[str, Any]:
    interpolated = {
        name: _interpolate_value(
            table[name],
            (*key, name),
            environ,
            report,
            has_placeholders and name in PLACEHOLDER_FIELDS,
        )
        for name in names
        if name in table
    }
    return {**table, **interpolated}


def _interpolate_value(
    value: Any,
    key: SettingKey,
    environ: Mapping[str, str],
    report: ReportProblem,
    has_placeholders: bool,
) -> Any:
    if isinstance(value, dict):
        return {
            name: _interpolate_value(item, (*key, name), environ, report, has_placeholders)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [
            _interpolate_value(item, (*key, index), environ, report, has_placeholders)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    if "\0" in value:
        report(key, "has a NUL character.")
        return ""
    return VARIABLE_REFERENCE.sub(
        lambda found: _resolve_reference(found, key, environ, report, has_placeholders), value
    )


def _resolve_reference(
    found: re.Match[str],
    key: SettingKey,
    environ: Mapping[str, str],
    report: ReportProblem,
    has_placeholders: bool,
) -> str:
    if found["literal"]:
        return "${"
    if found["is_credential"]:
        if has_placeholders:
            return mark_placeholder(found["credential"] or DEFAULT_NAME)
        report(
            key,
            f"has {found[0]!r}, the credential of a principal; it belongs into env, headers, args "
            f'or url of a server, or value of a host, with `credentials = "{PER_PRINCIPAL}"`.',
        )
        return ""
    if found["malformed"]:
        report(
            key,
            f"has {found['malformed']!r}, which is not a variable; "
            "`$${` stands for the text `${`.",
        )
        return ""
    name, default = found["name"], found["default"]
    if name in environ:
        return environ[name]
    if default is None:
        report(
            key,
            f"needs the environment variable {name}; set it, or write ${{{name}:-default}}.",
        )
    return default or ""
