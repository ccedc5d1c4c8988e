"""`packages.install`: packages that the image does not have, while the session goes on.

The host resolves and downloads them into a folder that all sandboxes see read-only. Here each
becomes importable at the end of `sys.path`, where it can hide nothing.
"""

from __future__ import annotations

import os
import re
import sys
import types

from ...protocol.library_names import PACKAGES_MODULE
from ...protocol.script_block import find_script_block
from . import tools

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from ...protocol.payloads import PackageWheel

HELP = """\
packages.install("scipy>=1.14", ...) makes packages importable that are not installed, and returns
their names and versions. They stay for the session. A block at the top of the code does the same:
# /// script
# dependencies = ["scipy>=1.14"]
# ///"""
DEPENDENCIES = r"(?ms)^dependencies\s*=\s*\[(.*?)\]"
TOML_TEXT = r"\"([^\"\\\n]*)\"|'([^'\n]*)'"


class PackagesModule(types.ModuleType):
    """The module `packages`."""

    folder = ""  # where the sandbox sees the cache; "": nowhere

    @property
    def _help_text(self) -> str:
        return HELP

    def install(self, *requirements: str) -> Dict[str, str]:
        """Make packages importable; return the versions of what was added, by name.

        Each is a name with versions as pip has them: "scipy>=1.14".
        """
        if not self.folder:
            raise ImportError(
                "Code may not ask for packages here: [sandbox] packages_on_demand is off."
            )
        arguments = {
            "requirements": [str(each) for each in requirements],
            "installed": list_installed(),
            "platform": describe_platform(),
        }
        shown = {"requirements": arguments["requirements"]}
        try:
            answer = tools.host.call("packages.install", arguments)
        except tools.HostError as error:
            tools.raise_tool_error(error, "packages.install", shown)
        add_wheels(self.folder, answer["wheels"])
        return {each["name"]: each["version"] for each in answer["wheels"]}


def add_wheels(folder: str, wheels: List[PackageWheel]) -> None:
    """Make packages importable that are in `folder`; raises `ImportError` if one is not."""
    for wheel in wheels:
        path = os.path.join(folder, wheel["sha256"])
        if not folder or not os.path.isdir(path):
            raise ImportError(
                f"{wheel['name']} {wheel['version']} is not in this sandbox: it was removed from "
                "the cache, or [sandbox] packages_on_demand is off."
            )
        if path not in sys.path:
            sys.path.append(path)


def list_installed() -> Dict[str, str]:
    """Return the versions of what can be imported, by name.

    They are in the names of folders: to import what reads their content takes 30 milliseconds.
    """
    found: Dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue  # it is a file, or missing
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending in (".dist-info", ".egg-info"):
                package, _, rest = stem.partition("-")
                found.setdefault(package, rest.partition("-")[0])
    return {package: version for package, version in found.items() if version}


def describe_platform() -> Dict[str, str]:
    """Return what wheels have to be for."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        libc = ""
    return {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "machine": os.uname().machine,
        "glibc": libc.rpartition(" ")[2],
    }


def find_script_dependencies(code: str) -> List[str]:
    """Return the dependencies in the block at the top of a script (PEP 723)."""
    block = find_script_block(code)
    if block is None:
        return []
    found = re.search(DEPENDENCIES, block)
    if found is None:
        return []
    return [first or second for first, second in re.findall(TOML_TEXT, found[1])]


def install_packages_module(folder: str) -> Any:
    """Make the module importable; return it."""
    module = PackagesModule(PACKAGES_MODULE)
    PackagesModule.folder = folder  # for skills, too, whatever code does to the module
    sys.modules[PACKAGES_MODULE] = module
    return module
