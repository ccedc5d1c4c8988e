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

from mcpruntime_server.errors import ConfigError

from .interpolate import interpolate_llm, interpolate_upstream
from .models import SECTIONS, Config, Key, Settings
from .problems import Places, did_you_mean, dotted, leaves

APP = "mcpruntime-server"
ENV_PREFIX = "MCPRUNTIME_"
FILE_VARIABLE = "MCPRUNTIME_CONFIG"
REMEDY = "(`server.toml` in the project's repository lists every setting with its default.)"

TABLES = {("policy", "tools")}  # which a variable cannot hold
PATH_LISTS = {("sandbox", "mounts"), ("skills", "folders"), ("server", "context_roots")}
LISTS = {("sandbox", "packages"), ("skills", "trusted_keys"), *PATH_LISTS}
SOURCES = ("path", "sqlite", "python")  # of a provider
PATHS = {("server", "data_dir"), ("server", "shims_dir"), ("skills", "folder")}


def _keys_of(section: Key, model: type[Settings]) -> Iterator[Key]:
    """Yield the names of a section's settings, those of the tables in it too."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _keys_of((*section, name), kind)
        else:
            yield (*section, name)


def _variable(key: Key) -> str:
    return ENV_PREFIX + "__".join(map(str, key)).upper()


ENV_KEYS: Mapping[str, Key] = {
    _variable(key): key for section, model in SECTIONS.items() for key in _keys_of((section,), model)
}


def load(
    file: Path | None = None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Return the settings; `overrides` are flags, by dotted name (`sandbox.backend`), None where a flag was not given.

    Raises `ConfigError`, which lists everything that is wrong.
    """
    environ = os.environ if environ is None else environ
    source = _find_file(file, environ)
    text = _read(source) if source else ""
    document = _parse(source, text) if source else {}
    problems: list[str] = []
    tree: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    _merge(tree, dict(leaves(document)), "file", source.parent if source else Path(), origins)
    for key, value in _from_environment(environ, problems).items():
        _merge(tree, {key: value}, f"environment, {_variable(key)}", Path.cwd(), origins)
    flags: dict[Key, Any] = {
        tuple(name.split(".")): value for name, value in (overrides or {}).items() if value is not None
    }
    _merge(tree, flags, "command line", Path.cwd(), origins)
    places = Places(source, text, origins)
    as_given = tree.get("mcpServers")
    if isinstance(as_given, dict):
        tree["mcpServers"] = {
            name: interpolate_upstream(
                name, given, environ, lambda key, what: problems.append(f"{places.name(key)} {what}")
            )
            for name, given in as_given.items()
        }
    if isinstance(tree.get("llm"), dict):
        tree["llm"] = interpolate_llm(
            tree["llm"], environ, lambda key, what: problems.append(f"{places.name(key)} {what}")
        )
    problems += _unknown_servers(tree, places)
    config = _validate(tree, places, problems)
    config = _with_folders(config, source)
    return config.with_sources(source, origins, as_given or {})


def _unknown_servers(tree: Mapping[str, Any], places: Places) -> Iterator[str]:
    """Yield what is wrong with providers that name a server which there is not."""
    servers, providers = tree.get("mcpServers", {}), tree.get("context", {})
    if not isinstance(servers, dict) or not isinstance(providers, dict):
        return
    enabled = [name for name, given in servers.items() if not (isinstance(given, dict) and given.get("disabled"))]
    for name, given in providers.items():
        server = given.get("server") if isinstance(given, dict) else None
        if isinstance(server, str) and server not in enabled:
            hint = did_you_mean(server, enabled) if enabled else " There are none."
            at = places.name(("context", name, "server"))
            yield f"{at} is {server!r:.100}, which is no entry of mcpServers.{hint}"


def _validate(tree: Mapping[str, Any], places: Places, problems: list[str]) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as exc:
        problems += [places.describe(error) for error in exc.errors(include_url=False)]
    if problems:
        lines = (f"- {problem}" for problem in problems)
        raise ConfigError("\n".join(("The settings are not usable:", *lines)), remedy=REMEDY)
    return config


def usual_file() -> Path:
    """Return the settings file that is read when none is named."""
    return platformdirs.user_config_path(APP, appauthor=False) / "server.toml"


def _find_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    if named is not None:
        return named.expanduser().absolute()
    usual = usual_file()
    return usual if usual.is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError(f"The settings file {path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"The settings file {path} is not UTF-8 text (byte {exc.start}).") from exc


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        what, line, column = str(exc), text.count("\n") + 1, 1
        if found := re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", what, re.DOTALL):
            what = found[1]
            line, column = int(found[2] or line), int(found[3] or column)
        raise ConfigError(f"The settings file {path} is not TOML: line {line}, column {column}: {what}.") from exc


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[Key, Any]:
    found: dict[Key, Any] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == FILE_VARIABLE:
            continue
        if (key := ENV_KEYS.get(name)) is None:
            problems.append(f"environment: {name} is not a setting.{did_you_mean(name, (*ENV_KEYS, FILE_VARIABLE))}")
        elif key in TABLES:
            problems.append(f"environment: {name} is not usable: {dotted(key)} is a table, which belongs in a file.")
        else:
            found[key] = _list_of(environ[name]) if key in LISTS else environ[name]
    return found


def _list_of(text: str) -> Any:
    """Read `a,b` or `["a", "b"]`; what is neither is left for validation to refuse."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merge(tree: dict[str, Any], leaves: Mapping[Key, Any], origin: str, base: Path, origins: dict[Key, str]) -> None:
    for key, value in leaves.items():
        table: Any = tree
        for name in key[:-1]:
            if not isinstance(table.get(name), dict):
                table[name] = {}
            table = table[name]
        table[key[-1]] = _placed(key, value, base)
        origins[key] = origin


def _placed(key: Key, value: Any, base: Path) -> Any:
    """Return `value` with the paths in it made absolute: they are relative to `base`."""
    upstream = key[-1] if len(key) == 3 and key[0] == "mcpServers" else None
    provider = key[-1] if len(key) == 3 and key[0] == "context" else None
    if key in PATH_LISTS and isinstance(value, list | tuple):
        return [_absolute(item, base) if isinstance(item, str) else item for item in value]
    if isinstance(value, str | Path) and str(value) and (key in PATHS or upstream == "cwd" or provider in SOURCES):
        return _absolute(str(value), base)
    if upstream == "command" and isinstance(value, str) and value.startswith(("./", "../", "~/")):
        return _absolute(value, base)
    return value


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _with_folders(config: Config, file: Path | None) -> Config:
    server, skills = config.server, config.skills.folder
    data = server.data_dir if server.data_dir != Path() else platformdirs.user_data_path(APP, appauthor=False)
    base = file.parent if file else data
    shims = server.shims_dir if server.shims_dir != Path() else base / "tool_shims"
    folder = skills if skills != Path() else base / "skills_store"
    return config.model_copy(
        update={
            "server": server.model_copy(update={"data_dir": data, "shims_dir": shims}),
            "skills": config.skills.model_copy(update={"folder": folder}),
        }
    )
