"""The settings in force, as text: each with where it came from, and no secret.

The text is TOML that can be read back, apart from what was masked. Variables are shown as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import SecretStr

from .interpolate import REFERENCE
from .load import usual_file
from .models import SECTIONS, Config, Key, Limits
from .problems import dotted, origin_of_table

MASK = "********"
SECRET_WORD = re.compile(r"token|secret|passw|pwd|api-?_?key|auth|credential", re.IGNORECASE)
LIKE_A_KEY = re.compile(r"(?=.*[0-9])[A-Za-z0-9_-]{16,}")


def describe(config: Config) -> str:
    """Return all settings as TOML, secrets masked, with the origin of each as a comment."""
    lines = [f"# from {config.file}" if config.file else f"# no settings file; {usual_file()} would be read"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for name, value in getattr(config, section):
            shown = _masked_url(value) if name == "api_base" else value
            lines.append(f"{name} = {_toml(shown)}  # {_origin(config, (section, name))}")
    for server, given in config.as_given.items():
        lines += ["", f"[{dotted(('mcpServers', server))}]  # {_origin(config, ('mcpServers', server))}"]
        lines += [f"{dotted((name,))} = {_toml(value)}" for name, value in _masked(given)]
    for provider, settings in config.context.items():
        lines += ["", f"[{dotted(('context', provider))}]  # {_origin(config, ('context', provider))}"]
        lines += [f"{name} = {_toml(value)}" for name, value in settings if name in settings.model_fields_set]
    return "\n".join(lines) + "\n"


def _origin(config: Config, key: Key) -> str:
    return origin_of_table(config.origins, key) or "default"


def _masked(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if name in ("env", "headers") and isinstance(value, dict):
            yield name, {key: _reference_or_mask(item) for key, item in value.items()}
        elif name == "args":
            yield name, list(_masked_arguments(value))
        elif name == "url":
            yield name, _masked_url(value)
        elif name not in ("command", "cwd", "timeout_s", "max_concurrency", "disabled", "type"):
            yield name, MASK  # a key of some other program's; what it holds is not ours to show
        else:
            yield name, value


def _reference_or_mask(value: Any) -> str:
    """Keep the names of variables, which are no secret, and hide the rest."""
    names = [found["name"] for found in REFERENCE.finditer(str(value)) if found["name"]]
    return "".join(f"${{{name}}}" for name in names) or MASK


def _masked_arguments(arguments: list[str]) -> Iterator[str]:
    hide = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        names_secret = argument.startswith("-") and bool(SECRET_WORD.search(option))
        if hide and not argument.startswith("-"):
            yield _reference_or_mask(argument)
        elif names_secret and equals:
            yield f"{option}={_reference_or_mask(value)}"
        else:
            yield _masked_url(argument) if "://" in argument else argument
        hide = names_secret and not equals


def _masked_url(url: str) -> str:
    """Hide what may be a credential: user and password, values in the query, and path segments that look like keys."""
    before, mark, query = re.sub(r"(?<=://)[^/@?#]*@", f"{MASK}@", url).partition("?")
    path = "/".join(MASK if LIKE_A_KEY.fullmatch(part) else part for part in before.split("/"))
    return path + mark + re.sub(r"=[^&#]*", lambda found: f"={_reference_or_mask(found[0])}", query)


def _toml(value: Any) -> str:
    if isinstance(value, SecretStr):
        return _toml(MASK if value.get_secret_value() else "")
    if isinstance(value, Limits):
        return _toml({name: limit for name, limit in value if limit is not None})
    if isinstance(value, Path):
        return _toml(str(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{dotted((key,))} = {_toml(item)}" for key, item in value.items()) + " }"
            if value
            else "{}"
        )
    return tomli_w.dumps({"": value}).partition("=")[2].strip()
