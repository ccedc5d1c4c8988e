"""`${VARIABLES}` in the entries of `mcpServers`, so that credentials need not be written into a file.

`${NAME}` is the variable's value (also written `${env:NAME}`), `${NAME:-text}` has a default; `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .models import Key

INTERPOLATED = ("command", "args", "env", "url", "headers")
REFERENCE = re.compile(
    r"""(?P<literal>\$\$\{)
      | \$\{ (?:env:)? (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: :- (?P<default>[^}]*) )? \}
      | (?P<odd>\$\{ [^}]* \}?)""",
    re.VERBOSE,
)

Complain = Callable[[Key, str], None]


def interpolate_upstream(name: str, given: Any, environ: Mapping[str, str], complain: Complain) -> Any:
    """Return an entry of `mcpServers` with its variables filled in; a disabled one is left as it is."""
    if not isinstance(given, dict) or given.get("disabled"):
        return given
    return {
        key: _fill_all(value, ("mcpServers", name, key), environ, complain) if key in INTERPOLATED else value
        for key, value in given.items()
    }


def interpolate_llm(given: Mapping[str, Any], environ: Mapping[str, str], complain: Complain) -> dict[str, Any]:
    """Return the table `[llm]` with its variables filled in."""
    return {
        key: _fill_all(value, ("llm", key), environ, complain) if key in ("api_key", "api_base") else value
        for key, value in given.items()
    }


def _fill_all(value: Any, key: Key, environ: Mapping[str, str], complain: Complain) -> Any:
    if isinstance(value, dict):
        return {name: _fill_all(item, (*key, name), environ, complain) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill_all(item, (*key, place), environ, complain) for place, item in enumerate(value)]
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: _fill(found, key, environ, complain), value)
    return value


def _fill(found: re.Match[str], key: Key, environ: Mapping[str, str], complain: Complain) -> str:
    name, default = found["name"], found["default"]
    if found["literal"]:
        return "${"
    if found["odd"]:
        complain(key, f"has {found['odd']!r}, which is not a variable; `$${{` stands for the text `${{`.")
    elif default is None and name not in environ:
        complain(key, f"needs the environment variable {name}; set it, or write ${{{name}:-default}}.")
    return environ.get(name, default or "") if name else ""
