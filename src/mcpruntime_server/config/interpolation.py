"""Replace `${VARIABLES}` in the settings, so that no credential has to be written into a file.

`${NAME}` is the value of the variable (also `${env:NAME}`), `${NAME:-text}` has a default, and
`$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .diagnostics import ReportProblem, SettingKey

UPSTREAM_FIELDS = ("command", "args", "env", "url", "headers")
LLM_FIELDS = ("api_key", "api_base")
VARIABLE_REFERENCE = re.compile(
    r"""(?P<literal>\$\$\{)
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
    return _interpolate_fields(entry, ("mcpServers", name), UPSTREAM_FIELDS, environ, report)


def interpolate_llm(
    table: Mapping[str, Any], environ: Mapping[str, str], report: ReportProblem
) -> dict[str, Any]:
    """Return the table `[llm]` with its variables replaced."""
    return _interpolate_fields(table, ("llm",), LLM_FIELDS, environ, report)


def _interpolate_fields(
    table: Mapping[str, Any],
    key: SettingKey,
    names: tuple[str, ...],
    environ: Mapping[str, str],
    report: ReportProblem,
) -> dict[str, Any]:
    interpolated = {
        name: _interpolate_value(table[name], (*key, name), environ, report)
        for name in names
        if name in table
    }
    return {**table, **interpolated}


def _interpolate_value(
    value: Any, key: SettingKey, environ: Mapping[str, str], report: ReportProblem
) -> Any:
    if isinstance(value, dict):
        return {
            name: _interpolate_value(item, (*key, name), environ, report)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [
            _interpolate_value(item, (*key, index), environ, report)
            for index, item in enumerate(value)
        ]
    if isinstance(value, str):
        return VARIABLE_REFERENCE.sub(
            lambda found: _resolve_reference(found, key, environ, report), value
        )
    return value


def _resolve_reference(
    found: re.Match[str], key: SettingKey, environ: Mapping[str, str], report: ReportProblem
) -> str:
    if found["literal"]:
        return "${"
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
