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

from .diagnostics import dotted_key, find_table_origin
from .interpolation import VARIABLE_REFERENCE
from .loader import default_settings_file
from .models import SETTINGS_TABLES, BudgetLimits, Config, SettingKey

MASK = "********"
SECRET_NAME = re.compile(r"token|secret|passw|pwd|api-?_?key|auth|credential", re.IGNORECASE)
KEY_LIKE_SEGMENT = re.compile(r"(?=.*[0-9])[A-Za-z0-9_-]{16,}")


def render_config(config: Config) -> str:
    """Return all settings as TOML, secrets masked, with the origin of each as a comment."""
    lines = [
        f"# from {config.settings_file}"
        if config.settings_file
        else f"# no settings file; {default_settings_file()} would be read"
    ]
    for section in SETTINGS_TABLES:
        lines += ["", f"[{section}]"]
        for name, value in getattr(config, section):
            shown = _mask_url(value) if name == "api_base" else value
            lines.append(
                f"{name} = {_render_toml(shown)}  # {_setting_origin(config, (section, name))}"
            )
    for server, given in config.servers_as_written.items():
        lines += [
            "",
            f"[{dotted_key(('mcpServers', server))}]  # {_setting_origin(config, ('mcpServers', server))}",
        ]
        lines += [
            f"{dotted_key((name,))} = {_render_toml(value)}"
            for name, value in _mask_server_entry(given)
        ]
    for provider, settings in config.knowledge.items():
        lines += [
            "",
            f"[{dotted_key(('knowledge', provider))}]  # {_setting_origin(config, ('knowledge', provider))}",
        ]
        lines += [
            f"{name} = {_render_toml(value)}"
            for name, value in settings
            if name in settings.model_fields_set
        ]
    return "\n".join(lines) + "\n"


def _setting_origin(config: Config, key: SettingKey) -> str:
    return find_table_origin(config.origins, key) or "default"


def _mask_server_entry(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if name in ("env", "headers") and isinstance(value, dict):
            yield name, {key: _mask_value(item) for key, item in value.items()}
        elif name == "args":
            yield name, list(_mask_arguments(value))
        elif name == "url":
            yield name, _mask_url(value)
        elif name not in ("command", "cwd", "timeout_s", "max_concurrency", "disabled", "type"):
            yield name, MASK  # a key of some other program's; what it holds is not ours to show
        else:
            yield name, value


def _mask_value(value: Any) -> str:
    """Keep the names of variables, which are no secret, and hide the rest."""
    names = [found["name"] for found in VARIABLE_REFERENCE.finditer(str(value)) if found["name"]]
    return "".join(f"${{{name}}}" for name in names) or MASK


def _mask_arguments(arguments: list[str]) -> Iterator[str]:
    hide = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        names_secret = argument.startswith("-") and bool(SECRET_NAME.search(option))
        if hide and not argument.startswith("-"):
            yield _mask_value(argument)
        elif names_secret and equals:
            yield f"{option}={_mask_value(value)}"
        else:
            yield _mask_url(argument) if "://" in argument else argument
        hide = names_secret and not equals


def _mask_url(url: str) -> str:
    """Hide what may be a credential: user and password, values in the query, and path segments that look like keys."""
    before, mark, query = re.sub(r"(?<=://)[^/@?#]*@", f"{MASK}@", url).partition("?")
    path = "/".join(
        MASK if KEY_LIKE_SEGMENT.fullmatch(part) else part for part in before.split("/")
    )
    return path + mark + re.sub(r"=[^&#]*", lambda found: f"={_mask_value(found[0])}", query)


def _render_toml(value: Any) -> str:
    if isinstance(value, SecretStr):
        return _render_toml(MASK if value.get_secret_value() else "")
    if isinstance(value, BudgetLimits):
        return _render_toml({name: limit for name, limit in value if limit is not None})
    if isinstance(value, Path):
        return _render_toml(str(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_render_toml, value))}]"
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(
                f"{dotted_key((key,))} = {_render_toml(item)}" for key, item in value.items()
            )
            + " }"
            if value
            else "{}"
        )
    return tomli_w.dumps({"": value}).partition("=")[2].strip()
