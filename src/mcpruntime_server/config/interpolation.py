"""`${VARIABLES}` in the entries of `mcpServers`, so that credentials need not be written into a file.

`${NAME}` is the variable's value (also written `${env:NAME}`), `${NAME:-text}` has a default; `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .models import SettingKey

INTERPOLATED_FIELDS = ("command", "args", "env", "url", "headers")
VARIABLE_REFERENCE = re.compile(
    r"""(?P<literal>\$\$\{)
      | \$\{ (?:env:)? (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: :- (?P<default>[^}]*) )? \}
      | (?P<odd>\$\{ [^}]* \}?)""",
    re.VERBOSE,
)

ReportProblem = Callable[[SettingKey, str], None]


def interpolate_upstream(
    name: str, given: Any, environ: Mapping[str, str], complain: ReportProblem
) -> Any:
    """Return an entry of `mcpServers` with its variables filled in; a disabled one is left as it is."""
    if not isinstance(given, dict) or given.get("disabled"):
        return given
    return {
        key: _interpolate_value(value, ("mcpServers", name, key), environ, complain)
        if key in INTERPOLATED_FIELDS
        else value
        for key, value in given.items()
    }


def interpolate_llm(
    given: Mapping[str, Any], environ: Mapping[str, str], complain: ReportProblem
) -> dict[str, Any]:
    """Return the table `[llm]` with its variables filled in."""
    return {
        key: _interpolate_value(value, ("llm", key), environ, complain)
        if key in ("api_key", "api_base")
        else value
        for key, value in given.items()
    }


def _interpolate_value(
    value: Any, key: SettingKey, environ: Mapping[str, str], complain: ReportProblem
) -> Any:
    if isinstance(value, dict):
        return {
            name: _interpolate_value(item, (*key, name), environ, complain)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [
            _interpolate_value(item, (*key, place), environ, complain)
            for place, item in enumerate(value)
        ]
    if isinstance(value, str):
        return VARIABLE_REFERENCE.sub(
            lambda found: _resolve_reference(found, key, environ, complain), value
        )
    return value


def _resolve_reference(
    found: re.Match[str], key: SettingKey, environ: Mapping[str, str], complain: ReportProblem
) -> str:
    name, default = found["name"], found["default"]
    if found["literal"]:
        return "${"
    if found["odd"]:
        complain(
            key, f"has {found['odd']!r}, which is not a variable; `$${{` stands for the text `${{`."
        )
    elif default is None and name not in environ:
        complain(
            key, f"needs the environment variable {name}; set it, or write ${{{name}:-default}}."
        )
    return environ.get(name, default or "") if name else ""
