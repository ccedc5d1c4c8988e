"""What a sandbox is, in three lines: for `help()` in the sandbox and for the server's instructions.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, Sequence

    from .payloads import SandboxFacts

NO_FACTS: Dict[str, Any] = {
    "is_isolated": False,
    "timeout_s": 0.0,
    "roots": [],
    "mounts": [],
    "export_dir": "",
    "fetchers": [],
    "packages_folder": "",
    "web_rules": [],
}
MAX_NAMED_FOLDERS = 5
MAX_NAMED_PACKAGES = 25
MAX_NAMED_RULES = 10


def describe_sandbox(facts: SandboxFacts, python: str, packages: Sequence[str]) -> str:
    """Return three lines: interpreter and packages, the user's files, and the time limit."""
    installed = list_some(packages, MAX_NAMED_PACKAGES) or "the standard library alone"
    if facts["packages_folder"]:
        installed += " (packages.install brings others)"
    place = "the user's own machine"
    if facts["is_isolated"]:
        place = f"a container {describe_network(facts)}"
    return (
        f"{python} in {place}, with {installed}.\n"
        f"{describe_user_files(facts)}\n"
        f"A run may take {facts['timeout_s']:g} s (timeout_s)."
    )


def describe_network(facts: SandboxFacts) -> str:
    """Return what a container can reach."""
    if not facts["web_rules"]:
        return "without network"
    rules = list_some(facts["web_rules"], MAX_NAMED_RULES)
    return f"without network except for web requests ({rules})"


def describe_user_files(facts: SandboxFacts) -> str:
    """Return one line about the files of the user that code can reach."""
    if not facts["is_isolated"]:
        return "The user's files are under their own paths."
    ways = []
    if facts["roots"]:
        roots = list_some(facts["roots"], MAX_NAMED_FOLDERS)
        ways.append(f"context=[path] gives code a file below {roots} as CONTEXT")
    if facts["mounts"]:
        ways.append(f"mounted: {list_some(facts['mounts'], MAX_NAMED_FOLDERS)}")
    if not ways:
        ways.append("out of reach")
    return f"The user's files: {'; '.join(ways)}. export(path) copies one to {facts['export_dir']}."


def list_some(names: Sequence[str], limit: int) -> str:
    """Return the first names as a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
