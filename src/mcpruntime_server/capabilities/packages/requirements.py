"""Parse requirements: names with versions only, no addresses, paths or options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from ...errors import CallFailed

MAX_REQUIREMENTS = 50
MAX_REQUIREMENT_CHARS = 200
MAX_INSTALLED = 2_000
PYTHON_VERSION = re.compile(r"3\.[0-9]{1,2}")
MACHINE = re.compile(r"[A-Za-z0-9_]{1,20}")
GLIBC_VERSION = re.compile(r"2\.[0-9]{1,3}")


def parse_requirements(texts: Any) -> list[Requirement]:
    """Return the requirements in `texts`; raises `CallFailed` if one is not a name with versions.

    An option, a path, a URL or a reference to a repository is refused: installers take these, too.
    """
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_REQUIREMENTS:
        raise CallFailed("invalid_arguments", f"Name 1 to {MAX_REQUIREMENTS} packages.")
    found = []
    for text in texts:
        if not isinstance(text, str) or len(text) > MAX_REQUIREMENT_CHARS:
            raise CallFailed("invalid_arguments", f"{text!r:.100} is not a package.")
        try:
            requirement = Requirement(text)
            canonicalize_name(requirement.name, validate=True)
        except (InvalidRequirement, InvalidName):
            requirement = None
        if requirement is None or requirement.url is not None:
            message = f'{text!r:.100} is not a package with versions, such as "scipy>=1.14".'
            remedy = "Options, paths, URLs and repositories are not taken."
            raise CallFailed("invalid_arguments", message, remedy=remedy)
        found.append(requirement)
    return found


def parse_installed(installed: Any) -> dict[str, str]:
    """Return the installed versions of a sandbox, by canonical name; raises `CallFailed`."""
    if not isinstance(installed, dict) or len(installed) > MAX_INSTALLED:
        raise CallFailed("invalid_arguments", "The installed packages are names with versions.")
    found = {}
    for name, version in installed.items():
        try:
            Requirement(str(name))
            found[str(canonicalize_name(str(name)))] = str(Version(str(version)))
        except (InvalidRequirement, InvalidVersion):
            continue  # whatever it is, no index knows it
    return found


def find_refused(requirements: Sequence[Requirement], allowed: Sequence[str]) -> str:
    """Return the first name that no pattern of the settings allows; "" if all are allowed."""
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if not any(fnmatchcase(name, canonicalize_pattern(each)) for each in allowed):
            return requirement.name
    return ""


def canonicalize_pattern(pattern: str) -> str:
    """Return a name pattern in the form that matches canonical names."""
    return re.sub(r"[-_.]+", "-", pattern).lower()


class Platform:
    """The Python version and the platform of a sandbox."""

    def __init__(self, description: Any) -> None:
        """Parse the description that a sandbox sends; raises `CallFailed`."""
        match description:
            case {"python": str(python), "machine": str(machine), "glibc": str(glibc)} if (
                PYTHON_VERSION.fullmatch(python)
                and MACHINE.fullmatch(machine)
                and (not glibc or GLIBC_VERSION.fullmatch(glibc))
            ):
                self.python, self.machine, self.glibc = python, machine, glibc
            case _:
                raise CallFailed("invalid_arguments", "The description of the platform is invalid.")

    def list_tags(self) -> list[str]:
        """Return the platform tags of wheels that run there, the newest first."""
        if not self.glibc:
            return [f"musllinux_1_{minor}_{self.machine}" for minor in (2, 1)]
        newest = int(self.glibc.partition(".")[2])
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        return [*tags, f"manylinux2014_{self.machine}"]

    def list_options(self) -> list[str]:
        """Return the options of pip that select wheels for it."""
        digits = self.python.replace(".", "")
        options = ["--implementation", "cp", "--python-version", self.python]
        for abi in (f"cp{digits}", "abi3", "none"):
            options += ["--abi", abi]
        for tag in self.list_tags():
            options += ["--platform", tag]
        return options


@dataclass(frozen=True)
class PackageRequest:
    """What code asks for, what its sandbox has already, and for which platform."""

    requirements: Sequence[Requirement]
    installed: Mapping[str, str]  # versions by canonical name
    platform: Platform


def parse_request(args: Mapping[str, Any]) -> PackageRequest:
    """Return what a call asks for; raises `CallFailed` if that is not valid."""
    return PackageRequest(
        parse_requirements(args.get("requirements")),
        parse_installed(args.get("installed")),
        Platform(args.get("platform")),
    )
