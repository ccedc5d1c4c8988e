"""Installs the rivals of `versions.toml`, each into an environment below `.venvs/rivals`.

Run `make rivals`. What is up to date is left alone. A rival that cannot be installed keeps the
reason, which the report shows; the others are installed all the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results import ROOT

VERSIONS_FILE = Path(__file__).with_name("versions.toml")
FOLDER = ROOT / ".venvs" / "rivals"
MARK, REASON = "installed.json", "missing.txt"
UV = str(Path(sys.executable).with_name("uv"))
NPM = ("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")


class CannotInstall(Exception):
    """A rival cannot be installed; the text is the reason."""


def read_rivals() -> Mapping[str, Mapping[str, Any]]:
    """Return the entries of all rivals by name."""
    with VERSIONS_FILE.open("rb") as file:
        return tomllib.load(file)


def is_installed(name: str, entry: Mapping[str, Any]) -> bool:
    """Return whether the versions of an entry are installed; what is installed elsewhere is."""
    mark = FOLDER / name / MARK
    return not needs(entry) or (mark.exists() and json.loads(mark.read_text()) == needs(entry))


def needs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be installed for a rival."""
    return {key: entry[key] for key in ("packages", "npm", "python") if key in entry}


def install(name: str, entry: Mapping[str, Any]) -> None:
    """Install a rival; raises `CannotInstall`."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if packages := entry.get("packages"):
        python = find_python(entry.get("python", ""))
        run([UV, "venv", "--quiet", "--python", python, str(folder / "venv")], folder)
        interpreter = str(folder / "venv" / "bin" / "python")
        run([UV, "pip", "install", "--quiet", "--python", interpreter, *packages], folder)
    if npm := entry.get("npm"):
        (folder / "package.json").write_text('{"private": true}', "utf-8")
        run([*NPM, *npm], folder)
    (folder / MARK).write_text(json.dumps(needs(entry)), "utf-8")


def find_python(version: str) -> str:
    """Return an interpreter of a version, or the version for uv to find or download one."""
    if not version:
        return sys.executable
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
    return str(installed[-1]) if installed else version


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command; raises `CannotInstall` with the end of what it prints."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise CannotInstall(f"There is no {command[0]}.") from exc
    if done.returncode:
        text = " ".join((done.stderr or done.stdout).split())[-300:]
        (folder / REASON).write_text(text, "utf-8")
        raise CannotInstall(text)


def main() -> int:
    """Install all; return 0 even if some cannot be, because the report says so."""
    for name, entry in read_rivals().items():
        if is_installed(name, entry):
            continue
        print(f"rivals: installing {entry['title']}", flush=True)
        try:
            install(name, entry)
        except CannotInstall as exc:
            print(f"rivals: {entry['title']} is left out: {exc}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
