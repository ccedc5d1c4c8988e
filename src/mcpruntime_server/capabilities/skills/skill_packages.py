"""The packages that a skill lists at the top of its source, in a block like a script (PEP 723).

Beside names and versions, the block has the digest of each file: the skill gets the bytes that it
was tested with, and no index is asked.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...journal.recording import RecordedCall
from ...protocol.script_block import find_script_block

INSTALL_TARGET = "packages.install"
DIGEST = re.compile("[0-9a-f]{64}")
PLAIN_TEXT = re.compile(r"[A-Za-z0-9._+!-]{1,100}")  # names and versions
MAX_PACKAGES = 200


@dataclass(frozen=True)
class SkillPackage:
    """A package of a skill; `name` is canonical."""

    name: str
    version: str
    digest: str

    @property
    def requirement(self) -> str:
        """What installs it: "scipy==1.17.1"."""
        return f"{self.name}=={self.version}"


def find_packages(source: str) -> Sequence[SkillPackage]:
    """Return the packages that the source of a skill lists with their digests."""
    block = find_script_block(source)
    if block is None:
        return ()
    try:
        table = tomllib.loads(block)["tool"]["mcpruntime"]["packages"]
        found = [
            SkillPackage(name, str(entry["version"]), str(entry["sha256"]))
            for name, entry in table.items()
        ]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(filter(is_valid, found[:MAX_PACKAGES]))


def is_valid(package: SkillPackage) -> bool:
    """Return whether name, version and digest are what they should be."""
    texts = (package.name, package.version)
    return all(map(PLAIN_TEXT.fullmatch, texts)) and bool(DIGEST.fullmatch(package.digest))


def add_packages(source: str, packages: Collection[SkillPackage]) -> str:
    """Return source that lists packages at its top."""
    if not packages:
        return source
    listed = sorted(packages, key=lambda each: each.name)
    lines = ["# /// script", "# dependencies = ["]
    lines += [f'#   "{each.requirement}",' for each in listed]
    lines += ["# ]", "# [tool.mcpruntime.packages]"]
    lines += [
        f'# {each.name} = {{ version = "{each.version}", sha256 = "{each.digest}" }}'
        for each in listed
    ]
    return "\n".join([*lines, "# ///", source])


def select_packages(
    calls: Iterable[RecordedCall], modules: Collection[str]
) -> Collection[SkillPackage]:
    """Return the packages that recorded calls have installed and that `modules` may come from.

    A module often has the name of its package. If one does not, all packages are returned.
    """
    groups = [list_installed(call.value) for call in calls if call.target == INSTALL_TARGET]
    by_module: dict[str, list[SkillPackage]] = {}
    for group in groups:
        for each in group:
            by_module[each.name.replace("-", "_").lower()] = group
    wanted = {module.lower() for module in modules}
    if not wanted <= by_module.keys():
        wanted = set(by_module)
    found = {each.name: each for module in sorted(wanted) for each in by_module[module]}
    return found.values()


def list_installed(value: Any) -> list[SkillPackage]:
    """Return the packages in the answer to a call; [] if it is not such an answer."""
    try:
        found = [
            SkillPackage(each["name"], each["version"], each["sha256"]) for each in value["wheels"]
        ]
        return [each for each in found if is_valid(each)]
    except (KeyError, TypeError):
        return []
