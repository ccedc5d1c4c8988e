"""Show the settings in force as text: each with its origin, and no credential.

The text is TOML that can be read back, apart from what was masked. Variables are shown as they
were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from .credentials import is_credential_name, is_key_like
from .diagnostics import SettingKey, dotted_key, find_table_origin
from .interpolation import VARIABLE_REFERENCE
from .loader import default_settings_file
from .models import SETTINGS_TABLES, Config
from .validation import SecretText, SettingsTable, setting_types

MASK = "********"
SHOWN_FIELDS = (
    "command",
    "cwd",
    "timeout_s",
    "max_concurrency",
    "credentials",
    "disabled",
    "type",
)


def render_config(config: Config) -> str:
    """Return all settings as TOML, credentials masked, with the origin of each as a comment."""
    file = config.sources.file
    if file is None:
        lines = [f"# no settings file; {default_settings_file()} would be read"]
    else:
        lines = [f"# from {file}"]
    for section, table in SETTINGS_TABLES.items():
        lines += ["", f"[{section}]"]
        for name in setting_types(table):
            value = getattr(getattr(config, section), name)
            shown = _mask_url(value) if name == "api_base" else value
            origin = _setting_origin(config, (section, name))
            lines.append(f"{name} = {_render_toml(shown)}  # {origin}")
    for server, entry in config.sources.servers_as_written.items():
        lines += ["", _table_header(config, ("mcpServers", server))]
        lines += [
            f"{dotted_key((name,))} = {_render_toml(value)}"
            for name, value in _mask_server_entry(entry)
        ]
    for provider, settings in config.knowledge.items():
        lines += ["", _table_header(config, ("knowledge", provider))]
        lines += [
            f"{name} = {_render_toml(value)}"
            for name, value in settings.non_default_values().items()
        ]
    return "\n".join(lines) + "\n"


def _table_header(config: Config, key: SettingKey) -> str:
    return f"[{dotted_key(key)}]  # {_setting_origin(config, key)}"


def _setting_origin(config: Config, key: SettingKey) -> str:
    return find_table_origin(config.sources.origins, key) or "default"


def _mask_server_entry(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if name in ("env", "headers") and isinstance(value, dict):
            yield name, {key: _mask_value(item) for key, item in value.items()}
        elif name == "args":
            yield name, list(_mask_arguments(value))
        elif name == "url":
            yield name, _mask_url(value)
        elif name in SHOWN_FIELDS:
            yield name, value
        else:
            yield name, MASK  # a key of another program, which may be a credential


def _mask_value(value: Any) -> str:
    """Return only the references to variables and credentials, whose names are not secret."""
    references = [
        f"${{{found['name']}}}" if found["name"] else found[0]
        for found in VARIABLE_REFERENCE.finditer(str(value))
        if found["name"] or found["is_credential"]
    ]
    return "".join(references) or MASK


def _mask_arguments(arguments: list[str]) -> Iterator[str]:
    follows_option = False  # that names a credential
    for argument in arguments:
        option, equals, value = argument.partition("=")
        is_option = argument.startswith("-")
        names_credential = is_option and is_credential_name(option)
        if follows_option and not is_option:
            yield _mask_value(argument)
        elif names_credential and equals:
            yield f"{option}={_mask_value(value)}"
        elif "://" in argument:
            yield _mask_url(argument)
        else:
            yield argument
        follows_option = names_credential and not equals


def _mask_url(url: str) -> str:
    """Mask user and password, the values in the query, and path segments that look like keys."""
    without_user = re.sub(r"(?<=://)[^/@?#]*@", f"{MASK}@", url)
    address, mark, query = without_user.partition("?")
    segments = (MASK if is_key_like(segment) else segment for segment in address.split("/"))
    masked_query = re.sub(r"=[^&#]*", lambda found: f"={_mask_value(found[0])}", query)
    return "/".join(segments) + mark + masked_query


def _render_toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    match value:
        case SecretText():
            return _render_toml(MASK if value.get_secret_value() else "")
        case SettingsTable():
            limits = {name: getattr(value, name) for name in setting_types(type(value))}
            return _render_toml(
                {name: limit for name, limit in limits.items() if limit is not None}
            )
        case Path():
            return _render_toml(str(value))
        case list() | tuple():
            return f"[{', '.join(map(_render_toml, value))}]"
        case {}:
            if not value:
                return "{}"
            items = (f"{dotted_key((key,))} = {_render_toml(item)}" for key, item in value.items())
            return f"{{ {', '.join(items)} }}"
        case _:
            return tomli_w.dumps({"": value}).partition("=")[2].strip()
