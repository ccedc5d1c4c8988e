"""Read the settings from the file, the environment and the command line.

Rule 1: command-line flag > environment (`MCPRUNTIME_SANDBOX__MEMORY_MB=512`) > file > default,
setting by setting.
Rule 2: the file is the one that `--config` or `MCPRUNTIME_CONFIG` names, else `server.toml` in the
platform's settings folder. A file in the working directory is never read: a client starts servers
anywhere, and a settings file can name programs to run.
Rule 3: every mistake is reported at once. No other package reads `os.environ`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from mcpruntime_server import APP_NAME
from mcpruntime_server.errors import ConfigError

from .diagnostics import (
    ReportProblem,
    SettingKey,
    SettingLocations,
    dotted_key,
    iter_leaves,
    suggest_names,
)
from .interpolation import interpolate_llm, interpolate_network, interpolate_upstream
from .models import SETTINGS_TABLES, Config, SettingSources
from .placeholders import PER_PRINCIPAL
from .validation import SecretText, iter_setting_keys, parse_table

ENV_PREFIX = "MCPRUNTIME_"
CONFIG_FILE_VARIABLE = "MCPRUNTIME_CONFIG"
CREDENTIALS_KEY_VARIABLE = "MCPRUNTIME_CREDENTIALS_KEY"
OTHER_VARIABLES = (CONFIG_FILE_VARIABLE, CREDENTIALS_KEY_VARIABLE)  # that are not settings
SETTINGS_REMEDY = (
    "(`server.toml` in the project's repository lists every setting with its default.)"
)

TABLE_KEYS = {("policy", "tools"), ("network", "credentials")}  # a variable cannot hold these
PATH_LIST_KEYS = {("sandbox", "mounts"), ("skills", "folders"), ("server", "context_roots")}
LIST_KEYS = {
    ("sandbox", "packages"),
    ("sandbox", "allowed_packages"),
    ("policy", "reads"),
    ("skills", "trusted_keys"),
    ("network", "allow"),
    ("network", "ask"),
    ("network", "reads"),
    ("network", "private"),
    *PATH_LIST_KEYS,
}
PATH_KEYS = {
    ("server", "data_dir"),
    ("server", "shims_dir"),
    ("server", "export_dir"),
    ("skills", "folder"),
    ("credentials", "key_file"),
    ("network", "ca_file"),
}
PROVIDER_PATH_FIELDS = ("path", "sqlite", "python")
MAX_NESTING = 20  # of tables and lists
MAX_NUMBER = 1 << 63

T = TypeVar("T")


def _variable_name(key: SettingKey) -> str:
    return ENV_PREFIX + "__".join(map(str, key)).upper()


def load_config(
    file: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the settings.

    `overrides` are flags by dotted name (`sandbox.backend`); None means that the flag is absent.
    Raises `ConfigError`, which lists every mistake.
    """
    environ = os.environ if environ is None else environ
    source = _find_settings_file(Path(file) if file else None, environ)
    text = _read_settings_file(source) if source else ""
    document = _parse_toml(source, text) if source else {}
    problems: list[str] = []
    tree: dict[str, Any] = {}
    origins: dict[SettingKey, str] = {}
    base = source.parent if source else Path()
    _merge_values(tree, dict(iter_leaves(document)), "file", base, origins)
    for key, value in _read_environment(environ, problems).items():
        origin = f"environment, {_variable_name(key)}"
        _merge_values(tree, {key: value}, origin, Path.cwd(), origins)
    flags: dict[SettingKey, Any] = {
        tuple(name.split(".")): value
        for name, value in (overrides or {}).items()
        if value is not None
    }
    _merge_values(tree, flags, "command line", Path.cwd(), origins)
    locations = SettingLocations(source, text, origins)

    def report(key: SettingKey, problem: str) -> None:
        problems.append(f"{locations.label(key)} {problem}")

    servers_as_written = tree.get("mcpServers")
    _interpolate_variables(tree, environ, report)
    _check_server_names(tree, report)
    config = parse_table(Config, tree, (), report)
    if config is None or problems:
        lines = (f"- {problem}" for problem in problems)
        raise ConfigError(
            "\n".join(("The settings are not usable:", *lines)), remedy=SETTINGS_REMEDY
        )
    sources = SettingSources(source, origins, servers_as_written or {})
    keys = SecretText(environ.get(CREDENTIALS_KEY_VARIABLE, ""))
    credentials = replace(config.credentials, keys=keys)
    return replace(_resolve_folders(config, source), sources=sources, credentials=credentials)


def _interpolate_variables(
    tree: dict[str, Any], environ: Mapping[str, str], report: ReportProblem
) -> None:
    servers, llm, network = tree.get("mcpServers"), tree.get("llm"), tree.get("network")
    if isinstance(servers, dict):
        tree["mcpServers"] = {
            name: interpolate_upstream(name, entry, environ, report)
            for name, entry in servers.items()
        }
    if isinstance(llm, dict):
        tree["llm"] = interpolate_llm(llm, environ, report)
    if isinstance(network, dict):
        tree["network"] = interpolate_network(network, environ, report)


def _check_server_names(tree: Mapping[str, Any], report: ReportProblem) -> None:
    """Report knowledge providers that name a server which everybody cannot use."""
    servers, providers = tree.get("mcpServers", {}), tree.get("knowledge", {})
    if not isinstance(servers, dict) or not isinstance(providers, dict):
        return
    enabled = [
        name
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled"))
    ]
    for name, entry in providers.items():
        server = entry.get("server") if isinstance(entry, dict) else None
        if isinstance(server, str) and server not in enabled:
            hint = suggest_names(server, enabled) if enabled else " There are none."
            report(
                ("knowledge", name, "server"),
                f"is {server!r:.100}, which is not an enabled entry of mcpServers.{hint}",
            )
        elif isinstance(server, str) and servers[server].get("credentials") == PER_PRINCIPAL:
            report(
                ("knowledge", name, "server"),
                f"is {server!r:.100}, whose credentials are per principal; everybody searches what "
                "is indexed here.",
            )


def default_settings_file() -> Path:
    """Return the settings file that is read when none is named."""
    return platformdirs.user_config_path(APP_NAME, appauthor=False) / "server.toml"


def choose_settings_file(
    file: Path | None = None, environ: Mapping[str, str] | None = None
) -> Path:
    """Return the settings file that is read, which may not exist; `file` is that of the flag."""
    environ = os.environ if environ is None else environ
    variable = environ.get(CONFIG_FILE_VARIABLE)
    named = file or (Path(variable) if variable else None)
    return default_settings_file() if named is None else named.expanduser().absolute()


def _find_settings_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    found = choose_settings_file(file, environ)
    is_named = file is not None or bool(environ.get(CONFIG_FILE_VARIABLE))
    return found if is_named or found.is_file() else None


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
        return check_plain_values(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        reason, line, column = str(exc), text.count("\n") + 1, 1
        pattern = r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"
        if found := re.fullmatch(pattern, reason, re.DOTALL):
            reason = found[1]
            line, column = int(found[2] or line), int(found[3] or column)
        raise ConfigError(
            f"The settings file {path} is not TOML: line {line}, column {column}: {reason}."
        ) from exc
    except (ValueError, RecursionError) as exc:  # a number or nesting that Python refuses to read
        raise ConfigError(f"The settings file {path} is not usable: {exc!s:.200}.") from exc


def check_plain_values(tree: T) -> T:
    """Return parsed settings; raises `ValueError` for nesting and numbers that none has."""
    level: list[Any] = [tree]
    for _ in range(MAX_NESTING):
        level = [item for each in level for item in _iter_items(each)]
        if any(type(item) is int and abs(item) > MAX_NUMBER for item in level):
            raise ValueError("a number is too large")
        if not level:
            return tree
    raise ValueError(f"it is nested more than {MAX_NESTING} deep")


def _iter_items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _read_environment(environ: Mapping[str, str], problems: list[str]) -> dict[SettingKey, Any]:
    """Return the settings that variables give, and add the mistakes in them to `problems`."""
    names = sorted(
        name for name in environ if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES
    )
    if not names:
        return {}
    keys = setting_keys_by_variable()
    found: dict[SettingKey, Any] = {}
    for name in names:
        key = keys.get(name)
        if key is None:
            hint = suggest_names(name, (*keys, *OTHER_VARIABLES))
            problems.append(f"environment: {name} is not a setting.{hint}")
        elif key in TABLE_KEYS:
            problems.append(
                f"environment: {name} is not usable: {dotted_key(key)} is a table, "
                "which belongs in a file."
            )
        else:
            found[key] = _parse_list(environ[name]) if key in LIST_KEYS else environ[name]
    return found


def setting_keys_by_variable() -> dict[str, SettingKey]:
    """Return the setting that each environment variable gives."""
    return {
        _variable_name(key): key
        for section, table in SETTINGS_TABLES.items()
        for key in iter_setting_keys(table, (section,))
    }


def _parse_list(text: str) -> Any:
    """Parse `a,b` or `["a", "b"]`; validation rejects anything else."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return check_plain_values(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _merge_values(
    tree: dict[str, Any],
    values: Mapping[SettingKey, Any],
    origin: str,
    base: Path,
    origins: dict[SettingKey, str],
) -> None:
    """Put `values` into `tree`; paths in them are relative to `base`."""
    for key, value in values.items():
        table: Any = tree
        for name in key[:-1]:
            if not isinstance(table.get(name), dict):
                table[name] = {}
            table = table[name]
        table[key[-1]] = _resolve_paths(key, value, base)
        origins[key] = origin


def _resolve_paths(key: SettingKey, value: Any, base: Path) -> Any:
    """Return `value` with the paths in it made absolute."""
    if key in PATH_LIST_KEYS and isinstance(value, list | tuple):
        return [_absolute_path(item, base) if isinstance(item, str) else item for item in value]
    if not isinstance(value, str | Path) or not str(value):
        return value
    section, field = (key[0], key[-1]) if len(key) == 3 else ("", "")
    if section == "mcpServers" and field == "command":
        is_path = str(value).startswith(("./", "../", "~/"))
    elif section == "mcpServers":
        is_path = field == "cwd"
    elif section == "knowledge":
        is_path = field in PROVIDER_PATH_FIELDS
    else:
        is_path = key in PATH_KEYS
    return _absolute_path(str(value), base) if is_path else value


def _absolute_path(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _resolve_folders(config: Config, file: Path | None) -> Config:
    """Return the settings with the folders that were left empty."""
    server, skills = config.server, config.skills
    data_dir = server.data_dir
    if data_dir == Path():
        data_dir = platformdirs.user_data_path(APP_NAME, appauthor=False)
    base = file.parent if file else data_dir
    shims_dir = server.shims_dir if server.shims_dir != Path() else base / "tool_shims"
    export_dir = server.export_dir if server.export_dir != Path() else data_dir / "exports"
    folder = skills.folder if skills.folder != Path() else base / "skills_store"
    return replace(
        config,
        server=replace(server, data_dir=data_dir, shims_dir=shims_dir, export_dir=export_dir),
        skills=replace(skills, folder=folder),
    )
