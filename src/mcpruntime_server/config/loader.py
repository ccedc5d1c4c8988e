"""From files, variables and flags to one `Config`.

Rule 1: command-line flag > environment (`MCPRUNTIME_SANDBOX__MEMORY_MB=512`) > file > default, setting by setting.
Rule 2: the file is the one that `--config` or `MCPRUNTIME_CONFIG` names, else `server.toml` in the platform's folder
for settings. One that merely lies in the working directory is never read: a client starts servers anywhere, and a
settings file can name programs to run.
Rule 3: every mistake is reported at once. `os.environ` is read in no other room.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from mcpruntime_server import APP_NAME
from mcpruntime_server.errors import ConfigError

from .diagnostics import SettingLocations, dotted_key, iter_leaves, suggest_names
from .interpolation import interpolate_llm, interpolate_upstream
from .models import SETTINGS_TABLES, Config, SettingKey, SettingsTable

ENV_PREFIX = "MCPRUNTIME_"
CONFIG_FILE_VARIABLE = "MCPRUNTIME_CONFIG"
SETTINGS_REMEDY = (
    "(`server.toml` in the project's repository lists every setting with its default.)"
)

TABLE_KEYS = {("policy", "tools")}  # which a variable cannot hold
PATH_LIST_KEYS = {("sandbox", "mounts"), ("skills", "folders"), ("server", "context_roots")}
LIST_KEYS = {("sandbox", "packages"), ("skills", "trusted_keys"), *PATH_LIST_KEYS}
PROVIDER_PATH_FIELDS = ("path", "sqlite", "python")  # of a provider
PATH_KEYS = {("server", "data_dir"), ("server", "shims_dir"), ("skills", "folder")}


def _iter_setting_keys(section: SettingKey, model: type[SettingsTable]) -> Iterator[SettingKey]:
    """Yield the names of a section's settings, those of the tables in it too."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, SettingsTable):
            yield from _iter_setting_keys((*section, name), kind)
        else:
            yield (*section, name)


def _variable_name(key: SettingKey) -> str:
    return ENV_PREFIX + "__".join(map(str, key)).upper()


KEY_BY_VARIABLE: Mapping[str, SettingKey] = {
    _variable_name(key): key
    for section, model in SETTINGS_TABLES.items()
    for key in _iter_setting_keys((section,), model)
}


def load_config(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the settings; `overrides` are flags, by dotted name (`sandbox.backend`), None where a flag was not given.

    Raises `ConfigError`, which lists everything that is wrong.
    """
    environ = os.environ if environ is None else environ
    source = _find_settings_file(file, environ)
    text = _read_settings_file(source) if source else ""
    document = _parse_toml(source, text) if source else {}
    problems: list[str] = []
    tree: dict[str, Any] = {}
    origins: dict[SettingKey, str] = {}
    _merge_values(
        tree, dict(iter_leaves(document)), "file", source.parent if source else Path(), origins
    )
    for key, value in _read_environment(environ, problems).items():
        _merge_values(
            tree, {key: value}, f"environment, {_variable_name(key)}", Path.cwd(), origins
        )
    flags: dict[SettingKey, Any] = {
        tuple(name.split(".")): value
        for name, value in (overrides or {}).items()
        if value is not None
    }
    _merge_values(tree, flags, "command line", Path.cwd(), origins)
    places = SettingLocations(source, text, origins)
    as_given = tree.get("mcpServers")
    if isinstance(as_given, dict):
        tree["mcpServers"] = {
            name: interpolate_upstream(
                name,
                given,
                environ,
                lambda key, what: problems.append(f"{places.label(key)} {what}"),
            )
            for name, given in as_given.items()
        }
    if isinstance(tree.get("llm"), dict):
        tree["llm"] = interpolate_llm(
            tree["llm"], environ, lambda key, what: problems.append(f"{places.label(key)} {what}")
        )
    problems += _find_unknown_servers(tree, places)
    config = _validate_tree(tree, places, problems)
    config = _resolve_folders(config, source)
    return config.with_sources(source, origins, as_given or {})


def _find_unknown_servers(tree: Mapping[str, Any], places: SettingLocations) -> Iterator[str]:
    """Yield what is wrong with providers that name a server which there is not."""
    servers, providers = tree.get("mcpServers", {}), tree.get("knowledge", {})
    if not isinstance(servers, dict) or not isinstance(providers, dict):
        return
    enabled = [
        name
        for name, given in servers.items()
        if not (isinstance(given, dict) and given.get("disabled"))
    ]
    for name, given in providers.items():
        server = given.get("server") if isinstance(given, dict) else None
        if isinstance(server, str) and server not in enabled:
            hint = suggest_names(server, enabled) if enabled else " There are none."
            at = places.label(("knowledge", name, "server"))
            yield f"{at} is {server!r:.100}, which is no entry of mcpServers.{hint}"


def _validate_tree(
    tree: Mapping[str, Any], places: SettingLocations, problems: list[str]
) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as exc:
        problems += [places.describe_error(error) for error in exc.errors(include_url=False)]
    if problems:
        lines = (f"- {problem}" for problem in problems)
        raise ConfigError(
            "\n".join(("The settings are not usable:", *lines)), remedy=SETTINGS_REMEDY
        )
    return config


def default_settings_file() -> Path:
    """Return the settings file that is read when none is named."""
    return platformdirs.user_config_path(APP_NAME, appauthor=False) / "server.toml"


def _find_settings_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = file or (
        Path(environ[CONFIG_FILE_VARIABLE]) if environ.get(CONFIG_FILE_VARIABLE) else None
    )
    if named is not None:
        return named.expanduser().absolute()
    usual = default_settings_file()
    return usual if usual.is_file() else None


def _read_settings_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError(f"The settings file {path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"The settings file {path} is not UTF-8 text (byte {exc.start})."
        ) from exc


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        what, line, column = str(exc), text.count("\n") + 1, 1
        if found := re.fullmatch(
            r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", what, re.DOTALL
        ):
            what = found[1]
            line, column = int(found[2] or line), int(found[3] or column)
        raise ConfigError(
            f"The settings file {path} is not TOML: line {line}, column {column}: {what}."
        ) from exc


def _read_environment(environ: Mapping[str, str], problems: list[str]) -> dict[SettingKey, Any]:
    found: dict[SettingKey, Any] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_FILE_VARIABLE:
            continue
        if (key := KEY_BY_VARIABLE.get(name)) is None:
            problems.append(
                f"environment: {name} is not a setting.{suggest_names(name, (*KEY_BY_VARIABLE, CONFIG_FILE_VARIABLE))}"
            )
        elif key in TABLE_KEYS:
            problems.append(
                f"environment: {name} is not usable: {dotted_key(key)} is a table, which belongs in a file."
            )
        else:
            found[key] = _parse_list(environ[name]) if key in LIST_KEYS else environ[name]
    return found


def _parse_list(text: str) -> Any:
    """Read `a,b` or `["a", "b"]`; what is neither is left for validation to refuse."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merge_values(
    tree: dict[str, Any],
    leaves: Mapping[SettingKey, Any],
    origin: str,
    base: Path,
    origins: dict[SettingKey, str],
) -> None:
    for key, value in leaves.items():
        table: Any = tree
        for name in key[:-1]:
            if not isinstance(table.get(name), dict):
                table[name] = {}
            table = table[name]
        table[key[-1]] = _resolve_paths(key, value, base)
        origins[key] = origin


def _resolve_paths(key: SettingKey, value: Any, base: Path) -> Any:
    """Return `value` with the paths in it made absolute: they are relative to `base`."""
    upstream = key[-1] if len(key) == 3 and key[0] == "mcpServers" else None
    provider = key[-1] if len(key) == 3 and key[0] == "knowledge" else None
    if key in PATH_LIST_KEYS and isinstance(value, list | tuple):
        return [_absolute_path(item, base) if isinstance(item, str) else item for item in value]
    if (
        isinstance(value, str | Path)
        and str(value)
        and (key in PATH_KEYS or upstream == "cwd" or provider in PROVIDER_PATH_FIELDS)
    ):
        return _absolute_path(str(value), base)
    if upstream == "command" and isinstance(value, str) and value.startswith(("./", "../", "~/")):
        return _absolute_path(value, base)
    return value


def _absolute_path(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _resolve_folders(config: Config, file: Path | None) -> Config:
    server, skills = config.server, config.skills.folder
    data = (
        server.data_dir
        if server.data_dir != Path()
        else platformdirs.user_data_path(APP_NAME, appauthor=False)
    )
    base = file.parent if file else data
    shims = server.shims_dir if server.shims_dir != Path() else base / "tool_shims"
    folder = skills if skills != Path() else base / "skills_store"
    return config.model_copy(
        update={
            "server": server.model_copy(update={"data_dir": data, "shims_dir": shims}),
            "skills": config.skills.model_copy(update={"folder": folder}),
        }
    )
